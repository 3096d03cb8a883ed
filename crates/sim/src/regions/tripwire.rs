//! An engine whose power can be cut between any two of its operations: from then on it refuses everything, as a process that
//! is dead would, until it is opened again. Whatever production code does in several steps is thus interrupted within them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use base::GroupId;
use bytes::Bytes;
use flaredb::region::layout::{self, REGION, Record};
use storage::batch::Op;
use storage::engine::EngineStats;
use storage::memengine::MemEngine;
use storage::{Engine, EngineError, FamilyId, Install, Tables, View, WriteBatch};

/// How an engine may lie, for a planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    FlushNothing,
    /// Records of peers that are gone for good are not kept.
    ForgetRetired,
    /// A region's record keeps the version that it had.
    KeepVersion,
    /// What has become part of another region keeps its records.
    KeepMerged,
    /// The flush behind a split is said to be done, and is not.
    ForgetBirths,
}

pub struct Tripwire {
    pub inner: Arc<MemEngine>,
    /// Operations until the power is cut; zero: it is not.
    left: AtomicU64,
    cut: AtomicBool,
    /// Batches written in all, to see that somebody has written nothing.
    writes: AtomicU64,
    /// Regions have come of a split, and nothing was flushed since.
    born: AtomicBool,
    /// A planted bug.
    pub lie: parking_lot::Mutex<Option<Lie>>,
}

impl Tripwire {
    pub fn new(inner: Arc<MemEngine>) -> Arc<Tripwire> {
        Arc::new(Tripwire {
            inner,
            left: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            writes: AtomicU64::new(0),
            born: AtomicBool::new(false),
            lie: parking_lot::Mutex::default(),
        })
    }

    /// Cuts the power before the `operations`th write or flush from here.
    pub fn arm(&self, operations: u64) {
        self.left.store(operations, Ordering::Relaxed);
    }

    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// The machine is off: what was not durable is gone.
    pub fn crash(&self) {
        self.inner.crash();
        self.left.store(0, Ordering::Relaxed);
        self.cut.store(false, Ordering::Relaxed);
    }

    fn step(&self) -> Result<(), EngineError> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 1 {
            self.cut.store(true, Ordering::Relaxed);
        }
        self.left.store(left.saturating_sub(1), Ordering::Relaxed);
        self.alive()
    }

    fn alive(&self) -> Result<(), EngineError> {
        if self.is_cut() { Err(EngineError::Failed("the power was cut".to_owned())) } else { Ok(()) }
    }
}

impl Engine for Tripwire {
    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        self.step()?;
        self.writes.fetch_add(1, Ordering::Relaxed);
        match *self.lie.lock() {
            Some(Lie::ForgetRetired) => self.inner.write(&rewritten(batch, |key, value| {
                let retired = key.last() == layout::retired_key(GroupId(0)).last();
                (!retired).then(|| value.to_vec())
            })),
            Some(Lie::KeepVersion) => {
                self.inner.write(&rewritten(batch, |key, value| Some(self.old_version(key, value))))
            }
            Some(Lie::KeepMerged) if is_merge(batch) => self.inner.write(&without_ends(batch)),
            Some(Lie::ForgetBirths) => {
                self.born.fetch_or(is_birth(batch), Ordering::Relaxed);
                self.inner.write(batch)
            }
            _ => self.inner.write(batch),
        }
    }

    fn view(&self) -> Arc<dyn View> {
        self.inner.view()
    }

    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.get(family, key)
    }

    fn begin_tables(&self, family: FamilyId, folder: &Path) -> Result<Box<dyn Tables>, EngineError> {
        self.alive()?;
        self.inner.begin_tables(family, folder)
    }

    /// The power may be cut before anything is done, and when the old content is gone and the new one is not there.
    fn replace_range(&self, family: FamilyId, from: &[u8], to: &[u8], folder: &Path) -> Result<(), EngineError> {
        self.step()?;
        let nothing = folder.join("nothing");
        self.inner.replace_range(family, from, to, &nothing)?;
        self.step()?;
        self.inner.replace_range(family, from, to, folder)
    }

    /// Now this way, now that.
    fn is_large_range(&self, bytes: u64) -> bool {
        bytes % 3 == 1
    }

    fn flush(&self) -> Result<(), EngineError> {
        self.step()?;
        match *self.lie.lock() {
            Some(Lie::FlushNothing) => Ok(()),
            Some(Lie::ForgetBirths) if self.born.swap(false, Ordering::Relaxed) => Ok(()),
            _ => self.inner.flush(),
        }
    }

    fn durable_get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.inner.durable_get(family, key)
    }

    fn set_watermark(&self, watermark: u64) {
        self.inner.set_watermark(watermark);
    }

    fn reclaim(&self) -> Result<(), EngineError> {
        self.alive()?;
        self.inner.reclaim()
    }

    fn begin_install(&self) -> Result<Box<dyn Install>, EngineError> {
        self.alive()?;
        self.inner.begin_install()
    }

    fn commit_install(&self, install: &mut dyn Install) -> Result<(), EngineError> {
        self.step()?;
        self.inner.commit_install(install)
    }

    fn stats(&self) -> EngineStats {
        self.inner.stats()
    }
}

impl Tripwire {
    /// A region's state record with the version that was there before.
    fn old_version(&self, key: &[u8], value: &[u8]) -> Vec<u8> {
        let read = |bytes: &[u8]| layout::read_state(Bytes::copy_from_slice(bytes), Bytes::new()).ok();
        let Some((id, Record::State)) = layout::record(key) else { return value.to_vec() };
        let before = self.inner.get(REGION, &layout::state_key(id)).ok().flatten().and_then(|bytes| read(&bytes));
        match (before, read(value)) {
            (Some(before), Some(mut state)) if before.version > 0 => {
                state.version = before.version;
                layout::write_state(&state)
            }
            _ => value.to_vec(),
        }
    }
}

/// The batch with other records of regions: `None` leaves one out.
fn rewritten(batch: &WriteBatch, record: impl Fn(&[u8], &[u8]) -> Option<Vec<u8>>) -> WriteBatch {
    let mut kept = WriteBatch::new();
    for op in batch.ops() {
        match op {
            Op::Put { family: REGION, key, value } => {
                if let Some(value) = record(key, value) {
                    kept.put(REGION, key, &value);
                }
            }
            Op::Put { family, key, value } => kept.put(family, key, value),
            Op::Delete { family, key } => kept.delete(family, key),
            Op::DeleteRange { family, from, to } => kept.delete_range(family, from, to),
        }
    }
    kept
}

/// Whether a peer and the states of two regions are written together, as only a split does it.
fn is_birth(batch: &WriteBatch) -> bool {
    let (mut peers, mut states) = (0, 0);
    for op in batch.ops() {
        if let Op::Put { family: REGION, key, .. } = op {
            match layout::record(key) {
                Some((_, Record::Peer)) => peers += 1,
                Some((_, Record::State)) => states += 1,
                _ => {}
            }
        }
    }
    peers > 0 && states > 1
}

/// Whether a region's peer ends in the batch in which another region's state is written: it has become part of that one.
fn is_merge(batch: &WriteBatch) -> bool {
    let (mut ends, mut states) = (false, false);
    for op in batch.ops() {
        match op {
            Op::Put { family: REGION, key, .. } => states |= matches!(layout::record(key), Some((_, Record::State))),
            Op::Delete { family: REGION, key } => ends |= matches!(layout::record(key), Some((_, Record::Peer))),
            _ => {}
        }
    }
    ends && states
}

fn without_ends(batch: &WriteBatch) -> WriteBatch {
    let mut kept = WriteBatch::new();
    for op in batch.ops() {
        match op {
            Op::Delete { family: REGION, .. } => {}
            Op::Delete { family, key } => kept.delete(family, key),
            Op::Put { family, key, value } => kept.put(family, key, value),
            Op::DeleteRange { family, from, to } => kept.delete_range(family, from, to),
        }
    }
    kept
}
