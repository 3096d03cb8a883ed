//! The production engine: RocksDB at the top of a data folder.
//!
//! Writes go to memory only; RocksDB flushes all families together when memory is full, and [`Engine::flush`]
//! does so at once. After a crash the folder therefore holds the state after some prefix of the writes, the
//! same one in every family, and the Raft log above replays the rest. Closing is no different from a crash: who
//! wants a fast start flushes first.
//!
//! The parts: [`options`] how RocksDB is set up, [`view`] reading, [`install`] receiving a replacement, [`swap`]
//! its crash-safe exchange on disk, [`range`] replacing a part of it, [`events`] what RocksDB tells of itself, [`scrub`] and [`manifest`] checking what lies
//! on the disk, [`check`] a database that nobody has open.
//!
//! Invariants:
//! * The watermark that physical clean-up sees is never ahead of what is durable: it takes effect with the flush
//!   that follows [`Engine::set_watermark`], so that a crash never goes back to a state that could still read
//!   what was dropped.
//! * During an exchange nobody reads or writes: calls wait until it is over, and it waits (5 s at most, then it is
//!   refused, the old content stays, and it may be tried again) for views taken before. Whoever reads in one of these is told
//!   that it is outdated, so that long walks end: streams of backups, digests. A thread must not wait for a commit, nor ask
//!   for a second view while one may be under way, with a view in its hands.
//! * A failed exchange leaves no database: every call answers with the reason, and the next opening of the
//!   folder finishes what was begun.

mod check;
mod events;
mod install;
mod manifest;
mod options;
mod range;
mod scrub;
mod swap;
mod tables;
mod view;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, io, thread};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use rust_rocksdb::{CompactOptions, DB, ErrorKind, FlushOptions, WriteOptions, properties};

pub use self::check::{LOST, StateFiles, check, repair};
pub use self::options::{Background, RocksOptions};
pub use self::scrub::{PIECE_BYTES, StateScrub};

use self::events::Events;
use self::install::{RocksInstall, Staging};
use self::options::Blueprint;
use self::view::{RocksView, Store};
use crate::batch::{Op, WriteBatch};
use crate::engine::{Engine, EngineError, EngineEvent, EngineStats, FamilyId, FamilySpec, Install, Tables, View};

/// How often, and how many times, a commit looks whether the last view of the old content is gone: 5 s in all.
const VIEWS_POLL: Duration = Duration::from_millis(1);
const VIEWS_POLLS_MAX: u32 = 5_000;

/// RocksDB as an [`Engine`]. One thread writes, any number read.
pub struct RocksEngine {
    /// `Err` after an exchange that failed midway.
    store: RwLock<Result<Arc<Store>, EngineError>>,
    staging: Arc<Staging>,
    events: Arc<Events>,
    /// Counts replacements of the content.
    generation: AtomicU64,
    writer: Mutex<Writer>,
    /// Set, but perhaps not yet in effect.
    watermark: AtomicU64,
}

/// What the writing thread reuses.
struct Writer {
    batch: rust_rocksdb::WriteBatch,
    options: WriteOptions,
}

impl RocksEngine {
    /// Opens the database in `dir`, or makes one; finishes or undoes an interrupted replacement first. `families`
    /// are in the order of their [`FamilyId`]; those the folder lacks are added.
    pub fn open(
        dir: &Path,
        families: &'static [FamilySpec],
        options: &RocksOptions,
    ) -> Result<RocksEngine, EngineError> {
        fs::create_dir_all(dir).map_err(failed_io)?;
        swap::settle(dir).map_err(failed_io)?;
        if scrub::lost_current(dir).map_err(failed_io)? {
            return Err(EngineError::Corrupt("the file CURRENT is gone".to_owned()));
        }
        let staging = Arc::new(Staging::new(dir.to_path_buf(), Blueprint::new(families, options)));
        let events = Arc::new(Events::new(options.now, options.slow_compaction_ms));
        let store = open_store(&staging, &events)?;
        let mut without_log = WriteOptions::new();
        without_log.disable_wal(true);
        Ok(RocksEngine {
            store: RwLock::new(Ok(store)),
            staging,
            events,
            generation: AtomicU64::new(0),
            writer: Mutex::new(Writer { batch: rust_rocksdb::WriteBatch::new(), options: without_log }),
            watermark: AtomicU64::new(0),
        })
    }

    /// What happened in the background since the last call; at most a few hundred events, the latest.
    pub fn take_events(&self) -> Vec<EngineEvent> {
        self.events.take()
    }

    /// What was found damaged since the opening, by whoever came upon it first: a read, a write, a flush or compaction in
    /// the background, a scrub. Nothing here can be trusted from then on.
    pub fn damage(&self) -> Option<String> {
        self.events.damage()
    }

    /// Makes a [`Engine::reclaim`] under way return early. For a stop that should not wait for it.
    pub fn cancel_reclaim(&self) -> Result<(), EngineError> {
        let store = self.store()?;
        store.db.disable_manual_compaction();
        store.db.enable_manual_compaction();
        Ok(())
    }

    fn store(&self) -> Result<Arc<Store>, EngineError> {
        self.store.read().clone()
    }
}

fn open_store(staging: &Staging, events: &Arc<Events>) -> Result<Arc<Store>, EngineError> {
    let blueprint = &staging.blueprint;
    let db = DB::open_cf_descriptors(&blueprint.database(Some(events)), &staging.dir, blueprint.descriptors())
        .map_err(failed)?;
    if db.latest_sequence_number() == 0 {
        leave_sequence_zero(&db).map_err(failed)?;
    }
    Ok(Arc::new(Store::new(db, blueprint, events.clone())))
}

/// Writes something that is not part of the state. Installed pairs bear sequence number zero, and so would a
/// snapshot taken of them before the first write; RocksDB reads that as "no snapshot" and would compact away what
/// it shows.
fn leave_sequence_zero(db: &DB) -> Result<(), rust_rocksdb::Error> {
    let mut batch = rust_rocksdb::WriteBatch::new();
    batch.put("sequence", "");
    let mut without_log = WriteOptions::new();
    without_log.disable_wal(true);
    db.write_opt(&batch, &without_log)
}

/// Where an operation on one key takes effect.
fn place<'a>(op: &Op<'a>) -> (FamilyId, &'a [u8]) {
    match op {
        Op::Put { family, key, .. } | Op::Delete { family, key } => (*family, key),
        Op::DeleteRange { family, from, .. } => (*family, from),
    }
}

impl Engine for RocksEngine {
    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError> {
        let store = self.store()?;
        let mut writer = self.writer.lock();
        let Writer { batch: rocks, options } = &mut *writer;
        rocks.clear();
        let mut ops: Vec<Op<'_>> = batch.ops().collect();
        if !ops.iter().any(|op| matches!(op, Op::DeleteRange { .. })) {
            // Neighbours are cheap to insert one after the other, and of several writes of a key only the last counts.
            ops.sort_by_key(|op| place(op));
            let last_of_key = |at: usize| ops.get(at + 1).is_none_or(|next| place(next) != place(&ops[at]));
            ops = (0..ops.len()).filter(|at| last_of_key(*at)).map(|at| ops[at]).collect();
        }
        for op in ops {
            match op {
                Op::Put { family, key, value } => rocks.put_cf(&store.family(family), key, value),
                Op::Delete { family, key } => rocks.delete_cf(&store.family(family), key),
                Op::DeleteRange { family, from, to } if from < to => {
                    rocks.delete_range_cf(&store.family(family), from, to);
                }
                Op::DeleteRange { .. } => {}
            }
        }
        store.db.write_opt(rocks, options).map_err(|error| self.events.noted(failed(error)))
    }

    fn view(&self) -> Arc<dyn View> {
        match self.store() {
            Ok(store) => Arc::new(RocksView::new(store)),
            Err(error) => Arc::new(crate::engine::NoView(error)),
        }
    }

    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.store()?.get(family, key)
    }

    fn get_in_memory(&self, family: FamilyId, key: &[u8]) -> Result<Option<Option<Bytes>>, EngineError> {
        self.store()?.get_in_memory(family, key)
    }

    fn flush(&self) -> Result<(), EngineError> {
        let store = self.store()?;
        let watermark = self.watermark.load(Ordering::Acquire);
        let mut wait = FlushOptions::default();
        wait.set_wait(true);
        store.db.flush_cfs_opt(&store.families(), &wait).map_err(|error| self.events.noted(failed(error)))?;
        self.staging.blueprint.watermark.fetch_max(watermark, Ordering::Release);
        Ok(())
    }

    fn durable_get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.store()?.get_persisted(family, key)
    }

    fn set_watermark(&self, watermark: u64) {
        self.watermark.fetch_max(watermark, Ordering::Release);
    }

    fn reclaim(&self) -> Result<(), EngineError> {
        self.flush()?;
        let store = self.store()?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        for family in store.families() {
            store.db.compact_range_cf_opt(&family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        Ok(())
    }

    fn begin_install(&self) -> Result<Box<dyn Install>, EngineError> {
        Ok(Box::new(self.staging.begin()?))
    }

    fn commit_install(&self, install: &mut dyn Install) -> Result<(), EngineError> {
        let staged = install
            .as_any()
            .downcast_mut::<RocksInstall>()
            .filter(|staged| staged.is_ready(&self.staging))
            .ok_or_else(|| EngineError::Failed("this install is not finished, or not the latest".into()))?;
        let mut slot = self.store.write();
        let Ok(old) = std::mem::replace(&mut *slot, Err(EngineError::Failed("the state could not be replaced".into())))
        else {
            return Err(EngineError::Failed("an earlier replacement of the state failed".into()));
        };
        old.db.disable_manual_compaction();
        old.outdate(true);
        let old = match sole(old) {
            Ok(old) => old,
            Err(shared) => {
                shared.db.enable_manual_compaction();
                shared.outdate(false);
                *slot = Ok(shared);
                return Err(EngineError::Held);
            }
        };
        staged.decided();
        self.generation.fetch_add(1, Ordering::SeqCst);
        let replaced = swap::decide(&self.staging.dir).map_err(failed_io).and_then(|()| {
            drop(old);
            self.events.closed();
            swap::settle(&self.staging.dir).map_err(failed_io)?;
            open_store(&self.staging, &self.events)
        });
        *slot = replaced;
        slot.as_ref().map(|_| ()).map_err(EngineError::clone)
    }

    fn begin_tables(&self, family: FamilyId, folder: &Path) -> Result<Box<dyn Tables>, EngineError> {
        Ok(Box::new(range::begin_tables(self, family, folder)))
    }

    fn replace_range(&self, family: FamilyId, from: &[u8], to: &[u8], folder: &Path) -> Result<(), EngineError> {
        range::replace(self, family, from, to, folder)
    }

    fn is_stalled(&self) -> bool {
        self.events.is_stalled()
    }

    fn stats(&self) -> EngineStats {
        let Ok(store) = self.store() else { return EngineStats::default() };
        let sum = |names: &[&properties::PropName]| -> u64 {
            let all = store.families().into_iter();
            all.flat_map(|family| names.iter().map(move |name| (family, *name)))
                .filter_map(|(family, name)| store.db.property_int_value_cf(&family, name).ok().flatten())
                .sum()
        };
        // RocksDB tells the same of each family.
        let once = |name: &properties::PropName| store.db.property_int_value(name).ok().flatten().unwrap_or(0);
        let (stalls, stall_ms) = self.events.stalls();
        let work = self.events.work();
        EngineStats {
            total_bytes: sum(&[properties::TOTAL_SST_FILES_SIZE, properties::SIZE_ALL_MEM_TABLES]),
            live_bytes: sum(&[properties::ESTIMATE_LIVE_DATA_SIZE, properties::CUR_SIZE_ALL_MEM_TABLES]),
            stall_ms,
            stalls,
            // Memory tables are charged to the cache.
            memory_bytes: self.staging.blueprint.cache.get_usage() as u64
                + sum(&[properties::ESTIMATE_TABLE_READERS_MEM]),
            flushes: work.flushes,
            compactions: work.compactions,
            compaction_ms: work.compaction_us / 1000,
            compaction_read_bytes: work.compaction_read_bytes,
            compaction_written_bytes: work.compaction_written_bytes,
            compactions_running: once(properties::NUM_RUNNING_COMPACTIONS),
            compaction_pending_bytes: sum(&[properties::ESTIMATE_PENDING_COMPACTION_BYTES]),
            level0_files: sum(&[&properties::num_files_at_level(0)]),
            memtables_waiting: sum(&[properties::NUM_IMMUTABLE_MEM_TABLE]),
            memtable_bytes: sum(&[properties::CUR_SIZE_ALL_MEM_TABLES]),
            deletions_in_memory: sum(&[
                properties::NUM_DELETES_ACTIVE_MEM_TABLE,
                properties::NUM_DELETES_IMM_MEM_TABLES,
            ]),
        }
    }
}

/// Waits until nobody else holds `store`; gives it back shared when that takes too long.
fn sole(mut store: Arc<Store>) -> Result<Store, Arc<Store>> {
    for _ in 0..VIEWS_POLLS_MAX {
        match Arc::try_unwrap(store) {
            Ok(alone) => return Ok(alone),
            Err(shared) => store = shared,
        }
        thread::sleep(VIEWS_POLL);
    }
    Err(store)
}

/// What a RocksDB error means for the node.
fn failed(error: rust_rocksdb::Error) -> EngineError {
    meaning(error.kind(), error.into_string())
}

fn meaning(kind: ErrorKind, text: String) -> EngineError {
    if text.contains("No space left") || text.contains("Space limit") {
        EngineError::NoSpace(text)
    } else if kind == ErrorKind::Corruption || text.contains("No such file") || is_lost_read(&text) {
        EngineError::Corrupt(text)
    } else {
        EngineError::Failed(text)
    }
}

/// A sector that cannot be read is lost. (What cannot be written, or synced, is another matter: nothing is damaged, and
/// nothing can go on.)
fn is_lost_read(text: &str) -> bool {
    const READS: [&str; 5] = [
        "While pread ",
        "While mmap read ",
        "While reading ",
        "for sequentially read",
        "While open a file for random read",
    ];
    text.contains("Input/output error") && READS.iter().any(|read| text.contains(read))
}

fn failed_io(error: io::Error) -> EngineError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => EngineError::NoSpace(error.to_string()),
        _ => EngineError::Failed(error.to_string()),
    }
}

/// As [`failed_io`], of reading a file in place.
fn unreadable(name: &str, error: &io::Error) -> EngineError {
    let why = format!("{name} cannot be read: {error}");
    if error.raw_os_error() == Some(libc::EIO) { EngineError::Corrupt(why) } else { EngineError::Failed(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_damage_and_what_cannot_be_written_is_not() {
        let of = |text: &str| meaning(ErrorKind::IOError, format!("IO error: {text}"));
        for read in [
            "While pread offset 4096 len 1234: /data/000012.sst: Input/output error",
            "While pread 100 bytes from offset 7: /data/MANIFEST-000005: Input/output error",
            "While reading file sequentially: /data/CURRENT: Input/output error",
            "While open a file for random read: /data/000012.sst: Input/output error",
            "While opening a file for sequentially reading: /data/CURRENT: Input/output error",
        ] {
            assert!(matches!(of(read), EngineError::Corrupt(_)), "{read}");
        }
        for other in [
            "While appending to file: /data/000013.sst: Input/output error",
            "While fsync: /data/000013.sst: Input/output error",
            "While pread offset 4096 len 1234: /data/000012.sst: Too many open files",
        ] {
            assert!(matches!(of(other), EngineError::Failed(_)), "{other}");
        }
        assert!(matches!(of("No space left on device"), EngineError::NoSpace(_)));
    }
}
