//! Changes made to a restored state: what turns a full backup and the incremental ones after it into the state at a later
//! revision.
//!
//! The changes of a stream ([`super::changes`]) are carried out one revision after the other by the same [`Stage`] that
//! carries commands out, so that counts, signposts and superseded versions come out as they would have. What each change
//! leaves, and what it replaces, must be what the stream says: a backup that does not belong to the state, a gap or a
//! contradiction ends the replay with an error, and the state is of no use then.
//!
//! Leases in the end: those of the stream; of those known before, the ones that still have keys; and for keys that hang
//! on a lease which neither knows (it came and went between two backups), one with the TTL [`UNKNOWN_LEASE_TTL_S`], so that
//! they do not stay for ever.
//!
//! How far was compacted stays as in the full backup: what was compacted since is readable again.
//!
//! Memory: the changes of one revision, and a batch of about [`BATCH_BYTES`].

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use consensus::MachineError;
use proto::snapshot::{FRAME_BYTES_MAX, Header, Reader};
use storage::{Engine, View, WriteBatch};

use super::layout::{self, FAMILIES, Lease, META, REV, Rev};
use super::recent::Recent;
use super::record::Record;
use super::stage::{Stage, State};

/// What a lease gets of which nothing is known but that keys hang on it.
pub const UNKNOWN_LEASE_TTL_S: i64 = 3600;

/// A batch is written once it holds about this much.
const BATCH_BYTES: usize = 1 << 20;
/// More leases than any cluster has.
const LEASES_MAX: usize = 16 << 20;

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Changes of keys.
    pub changes: u64,
    /// The revision it led to.
    pub revision: i64,
    /// Leases that had to be made up.
    pub unknown_leases: u64,
}

/// Carries a stream of changes out on the engine's state. The engine must not be in use by a machine.
pub fn replay(engine: &dyn Engine, mut from: impl Read) -> Result<Replayed, MachineError> {
    let (state, view) = super::load(engine)?;
    let mut replay = Replay {
        engine,
        view,
        state: Some(state),
        recent: Recent::default(),
        batch: WriteBatch::new(),
        waiting: Vec::new(),
        waiting_bytes: 0,
        revision: Vec::new(),
        leases: BTreeMap::new(),
        done: Replayed::default(),
        began: false,
    };
    let mut reader = Reader::new(u8::try_from(FAMILIES.len()).expect("a handful of families"));
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let length = from.read(&mut buffer).map_err(|error| bad(&format!("it cannot be read: {error}")))?;
        if length == 0 {
            break;
        }
        reader.feed(&buffer[..length]);
        while let Some(pair) = reader.pair().map_err(|why| bad(&why.0))? {
            let pair = (pair.family, Bytes::copy_from_slice(pair.key), Bytes::copy_from_slice(pair.value));
            replay.pair(reader.header(), pair)?;
        }
    }
    let content = reader.finish().map_err(|why| bad(&why.0))?;
    replay.finish(&content.header)
}

/// A change as it lies in `rev`.
struct Change {
    place: u32,
    key: Bytes,
    value: Bytes,
}

struct Replay<'a> {
    engine: &'a dyn Engine,
    view: Arc<dyn View>,
    /// Taken while a batch is made.
    state: Option<State>,
    recent: Recent,
    batch: WriteBatch,
    /// Whole revisions, each in the order of its changes.
    waiting: Vec<Vec<Change>>,
    waiting_bytes: usize,
    /// The revision that is coming in.
    revision: Vec<Change>,
    leases: BTreeMap<i64, Lease>,
    done: Replayed,
    began: bool,
}

impl Replay<'_> {
    fn state(&self) -> &State {
        self.state.as_ref().expect("between batches")
    }

    fn begin(&mut self, header: &Header) -> Result<(), MachineError> {
        if std::mem::replace(&mut self.began, true) {
            return Ok(());
        }
        let have = self.state().revision;
        match header.since {
            None => Err(bad("it holds a whole state, not changes")),
            Some(since) if since != have => Err(bad(&format!("its changes follow on revision {since}, not on {have}"))),
            Some(_) => Ok(()),
        }
    }

    fn pair(&mut self, header: &Header, (family, key, value): (u8, Bytes, Bytes)) -> Result<(), MachineError> {
        self.begin(header)?;
        if family == META.0 && key.first() == Some(&layout::LEASE) && self.leases.len() < LEASES_MAX {
            let lease = Lease::read(layout::read_lease_key(&key)?, &value)?;
            self.leases.insert(lease.id, lease);
            return Ok(());
        }
        if family != REV.0 {
            return Err(bad("it holds what is no change"));
        }
        let change = Rev::read(&key, &value)?;
        let under_way = self.revision.first().map(|first| Rev::read(&first.key, &first.value)).transpose()?;
        if under_way.is_some_and(|first| first.revision != change.revision) {
            self.close_revision()?;
        }
        let place = change.place;
        self.waiting_bytes += key.len() + value.len();
        self.revision.push(Change { place, key, value });
        Ok(())
    }

    /// The revision that came in is whole.
    fn close_revision(&mut self) -> Result<(), MachineError> {
        let mut revision = std::mem::take(&mut self.revision);
        if !revision.is_empty() {
            revision.sort_by_key(|change| change.place);
            self.waiting.push(revision);
        }
        if self.waiting_bytes >= BATCH_BYTES { self.write() } else { Ok(()) }
    }

    /// Carries out what waits, in one batch.
    fn write(&mut self) -> Result<(), MachineError> {
        self.waiting_bytes = 0;
        let revisions = std::mem::take(&mut self.waiting);
        self.in_batch(|stage, done| {
            for revision in &revisions {
                for change in revision {
                    carry_out(stage, change)?;
                    done.changes += 1;
                }
                stage.commit();
            }
            Ok(())
        })
    }

    fn in_batch(
        &mut self,
        work: impl FnOnce(&mut Stage<'_>, &mut Replayed) -> Result<(), MachineError>,
    ) -> Result<(), MachineError> {
        let state = self.state.take().expect("an error ends the replay");
        let (recent, batch) = (std::mem::take(&mut self.recent), std::mem::take(&mut self.batch));
        let view = self.view.clone();
        let mut stage = Stage::new(self.engine, &*view, state, recent, batch);
        work(&mut stage, &mut self.done)?;
        stage.finish()?;
        self.engine.write(&stage.batch)?;
        let written = stage.written();
        (self.state, self.recent, self.batch) = (Some(written.state), written.recent, written.batch);
        self.batch.clear();
        self.view = self.engine.view();
        Ok(())
    }

    fn finish(mut self, header: &Header) -> Result<Replayed, MachineError> {
        self.begin(header)?;
        self.close_revision()?;
        self.write()?;
        self.settle_leases()?;
        self.done.revision = self.state().revision;
        if self.done.revision != header.revision {
            return Err(bad(&format!(
                "its changes end at revision {}, not at {}",
                self.done.revision, header.revision
            )));
        }
        self.engine.flush()?;
        Ok(self.done)
    }

    fn settle_leases(&mut self) -> Result<(), MachineError> {
        let mut known = BTreeMap::new();
        let mut walk = self.view.scan(META, &[layout::LEASE], Some(&[layout::LEASE + 1]));
        while walk.valid() {
            let lease = Lease::read(layout::read_lease_key(walk.key())?, walk.value())?;
            known.insert(lease.id, lease);
            walk.advance();
        }
        walk.status()?;
        drop(walk);
        let mut leases = std::mem::take(&mut self.leases);
        // Attachments of one lease lie beside each other: one look per lease.
        let mut from = vec![layout::ATTACHED];
        loop {
            let walk = self.view.scan(META, &from, Some(&[layout::ATTACHED + 1]));
            if !walk.valid() {
                walk.status()?;
                break;
            }
            let (id, _) = layout::read_attached_key(walk.key())?;
            drop(walk);
            let unknown = Lease { id, ttl_s: UNKNOWN_LEASE_TTL_S, remaining_s: 0 };
            self.done.unknown_leases += u64::from(!leases.contains_key(&id) && !known.contains_key(&id));
            leases.entry(id).or_insert_with(|| known.get(&id).copied().unwrap_or(unknown));
            match (id as u64).checked_add(1) {
                Some(next) => from = layout::attached_key(next as i64, &[]),
                None => break,
            }
        }
        self.in_batch(|stage, _| {
            for id in known.keys().filter(|id| !leases.contains_key(id)) {
                stage.set_meta(layout::lease_key(*id).to_vec(), None);
            }
            for lease in leases.values().filter(|lease| known.get(&lease.id) != Some(lease)) {
                stage.set_meta(layout::lease_key(lease.id).to_vec(), Some(&lease.value()));
            }
            Ok(())
        })
    }
}

fn carry_out(stage: &mut Stage<'_>, change: &Change) -> Result<(), MachineError> {
    let wanted = Rev::read(&change.key, &change.value)?;
    let out_of_step = |why: &str| {
        let key: String = wanted.key.escape_ascii().take(64).map(char::from).collect();
        bad(&format!(
            "its changes do not fit the state they are to be made to: {why}, revision {} key {key}",
            wanted.revision
        ))
    };
    if wanted.revision != stage.state.revision + 1 {
        return Err(out_of_step(&format!("after revision {} comes", stage.state.revision)));
    }
    let live = stage.get(wanted.key)?;
    let previous = live.as_deref().map(Record::read).transpose()?.map_or(0, |record| record.mod_revision);
    if (wanted.previous, wanted.place) != (previous, stage.place()) {
        return Err(out_of_step("history would tell it otherwise"));
    }
    match wanted.record {
        Some(record) => {
            let put = Record::read(record)?;
            stage.put(wanted.key, put.value, put.lease, live)?;
            if stage.get(wanted.key)?.as_deref() != Some(record) {
                return Err(out_of_step("another version would come of it"));
            }
        }
        None => stage.delete(live.ok_or_else(|| out_of_step("what it deletes is not there"))?)?,
    }
    Ok(())
}

fn bad(why: &str) -> MachineError {
    MachineError::BadSnapshot(why.into())
}
