//! A batch under way: what entries have written so far, and how writes are made.
//!
//! Life of a batch: [`Stage::new`] over the last published view; for each command some [`Stage::put`] and
//! [`Stage::delete`], which fill the engine batch, the overlays that later commands read through, and the events of the
//! revision under way; [`Stage::commit`] closes that revision; [`Stage::finish`] adds what is written once per batch.
//! Nothing reaches the engine or the machine before the whole batch does.
//!
//! Invariants
//! 1. All writes of one command have one revision, and a command that wrote nothing takes none.
//! 2. The bytes that a command adds to the batch are a function of the store before it and of the command: they are
//!    what the rolling hash covers, so they must not depend on which entries share a batch.
//! 3. The overlays show exactly what the engine would show had the batch been written.

use std::sync::Arc;

use bytes::Bytes;
use consensus::{MachineError, Mark};
use storage::batch::Op;
use storage::{Engine, View, WriteBatch};

use super::count::CountIndex;
use super::layout::{self, KV, META, OLD, REV, SIGNPOST_EVERY};
use super::recent::Recent;
use super::record::{Record, shared_key};
use super::source::{Overlays, Source, Staged};
use crate::event::{Event, EventKind, LeaseChange, RevisionEvents};
use crate::read::history::tombstone;

/// What the machine knows by heart. Cloning copies pointers.
#[derive(Clone, Debug)]
pub struct State {
    pub mark: Mark,
    pub revision: i64,
    /// -1 when nothing was ever compacted.
    pub compacted: i64,
    pub membership: Bytes,
    /// (kind, member), ordered.
    pub alarms: Arc<Vec<(i32, u64)>>,
    pub counts: CountIndex,
}

/// A batch under way.
pub struct Stage<'a> {
    /// For single keys as they are; without it the view is asked.
    engine: Option<&'a dyn Engine>,
    view: &'a dyn View,
    recent: Recent,
    pub state: State,
    pub batch: WriteBatch,
    overlays: Overlays,
    /// Operations of the batch that the overlays of `old` and `rev` know of.
    past_ops: usize,
    /// Writes of the revision under way.
    writes: u32,
    events: Vec<Event>,
    /// Closed revisions.
    published: Vec<RevisionEvents>,
    /// What happened to leases, in order.
    pub lease_changes: Vec<LeaseChange>,
    /// Whether the batch moved the compacted revision.
    compacted: bool,
    membership_changed: bool,
    key_scratch: Vec<u8>,
    value_scratch: Vec<u8>,
}

/// What is left of a batch that was written.
pub struct Written {
    pub state: State,
    pub recent: Recent,
    pub batch: WriteBatch,
    pub published: Vec<RevisionEvents>,
    pub lease_changes: Vec<LeaseChange>,
    /// Whether the compacted revision moved.
    pub compacted: bool,
}

impl<'a> Stage<'a> {
    /// `view` must show the engine as it is; `recent` says nothing else; `batch` is empty and may bring
    /// its memory along.
    pub fn new(
        engine: &'a dyn Engine,
        view: &'a dyn View,
        state: State,
        recent: Recent,
        batch: WriteBatch,
    ) -> Stage<'a> {
        assert!(batch.is_empty(), "a batch is begun empty");
        Stage { engine: Some(engine), recent, batch, ..Stage::over(view, state) }
    }

    /// A batch that is never written: for commands that only read, over any view.
    pub fn over(view: &'a dyn View, state: State) -> Stage<'a> {
        Stage {
            engine: None,
            view,
            recent: Recent::default(),
            state,
            batch: WriteBatch::new(),
            overlays: Overlays::default(),
            past_ops: 0,
            writes: 0,
            events: Vec::new(),
            published: Vec::new(),
            lease_changes: Vec::new(),
            compacted: false,
            membership_changed: false,
            key_scratch: Vec::new(),
            value_scratch: Vec::new(),
        }
    }

    /// The store as the next read within the batch sees it, at present.
    pub fn source(&self) -> Source<'_> {
        Source::staged(self.view, &self.state.counts, &self.overlays)
    }

    /// As [`Stage::source`], for reads in the past too.
    pub fn source_of_all_times(&mut self) -> Source<'_> {
        for op in self.batch.ops().skip(self.past_ops) {
            let (overlay, key, value) = match op {
                Op::Put { family: OLD, key, value } => (&mut self.overlays.old, key, value),
                Op::Put { family: REV, key, value } => (&mut self.overlays.rev, key, value),
                _ => continue,
            };
            let staged = Staged { existed: false, now: Some(Bytes::copy_from_slice(value)) };
            overlay.insert(Bytes::copy_from_slice(key), staged);
        }
        self.past_ops = self.batch.len();
        self.source()
    }

    /// The revision that a read within the batch sees: the one under way as soon as something was written in it.
    pub fn now(&self) -> i64 {
        self.state.revision + i64::from(self.writes > 0)
    }

    /// Which of its revision's changes the next one will be.
    pub fn place(&self) -> u32 {
        self.writes
    }

    /// The live version of a key.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        if let Some(staged) = self.overlays.kv.get(key) {
            return Ok(staged.now.clone());
        }
        if let Some(record) = self.recent.get(key) {
            return Ok(Some(record));
        }
        let Some(engine) = self.engine else { return Ok(self.view.get(KV, key)?) };
        let record = engine.get(KV, key)?;
        if let Some(record) = &record {
            self.recent.put(key, record.clone());
        }
        Ok(record)
    }

    /// Puts a key over its live version `previous`. Returns nothing: the record is what the next read sees.
    pub fn put(&mut self, key: &[u8], value: &[u8], lease: i64, previous: Option<Bytes>) -> Result<(), MachineError> {
        let revision = self.state.revision + 1;
        let before = previous.as_deref().map(Record::read).transpose()?;
        let record = Record {
            key,
            create_revision: before.map_or(revision, |before| before.create_revision),
            mod_revision: revision,
            version: before.map_or(0, |before| before.version) + 1,
            value,
            lease,
        };
        let signpost = record.version % SIGNPOST_EVERY == 0;
        let record = record.encode();
        self.batch.put(KV, key, &record);
        let (lease_before, revision_before) = before.map_or((0, 0), |before| (before.lease, before.mod_revision));
        self.supersede(key, previous.as_deref(), revision_before);
        self.note_change(revision_before, key, Some(&record))?;
        if signpost {
            self.signpost(key);
        }
        if lease_before != lease {
            self.detach(lease_before, key);
            if lease != 0 {
                self.set_meta(layout::attached_key(lease, key), Some(&[]));
            }
        }
        let key = shared_key(&record)?;
        self.overlay(key.clone(), previous.is_some(), Some(record.clone()));
        self.events.push(Event { kind: EventKind::Put, key, kv: record, prev: previous });
        Ok(())
    }

    /// Deletes a key whose live version is `previous`.
    pub fn delete(&mut self, previous: Bytes) -> Result<(), MachineError> {
        let revision = self.state.revision + 1;
        let before = Record::read(&previous)?;
        let key = shared_key(&previous)?;
        self.batch.delete(KV, &key);
        self.supersede(&key, Some(&previous), before.mod_revision);
        self.note_change(before.mod_revision, &key, None)?;
        self.signpost(&key);
        self.detach(before.lease, &key);
        self.overlay(key.clone(), true, None);
        let kv = tombstone(&key, revision);
        self.events.push(Event { kind: EventKind::Delete, key, kv, prev: Some(previous) });
        Ok(())
    }

    /// Closes the revision under way, if anything was written in it.
    pub fn commit(&mut self) {
        if self.writes > 0 {
            self.state.revision += 1;
            self.writes = 0;
            let events = std::mem::take(&mut self.events);
            self.published.push(RevisionEvents { revision: self.state.revision, events });
        }
    }

    /// What `meta` holds under a key.
    pub fn meta(&self, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        match self.overlays.meta.get(key) {
            Some(staged) => Ok(staged.now.clone()),
            None => Ok(match self.engine {
                Some(engine) => engine.get(META, key)?,
                None => self.view.get(META, key)?,
            }),
        }
    }

    /// Writes or deletes a key of `meta`, as an effect of a command.
    pub fn set_meta(&mut self, key: impl Into<Bytes>, value: Option<&[u8]>) {
        let key = key.into();
        match value {
            Some(value) => self.batch.put(META, &key, value),
            None => self.batch.delete(META, &key),
        }
        let now = value.map(Bytes::copy_from_slice);
        self.overlays.meta.insert(key, Staged { existed: false, now });
    }

    /// Moves the compacted revision up.
    pub fn compact(&mut self, revision: i64) {
        self.batch.put(META, layout::COMPACTED, &revision.to_le_bytes());
        self.compacted = true;
        self.state.compacted = revision;
    }

    pub fn set_membership(&mut self, membership: Bytes) {
        self.state.membership = membership;
        self.membership_changed = true;
    }

    /// Adds what is written once per batch and is no command's effect.
    pub fn finish(&mut self) -> Result<(), MachineError> {
        assert_eq!(self.writes, 0, "a batch ends between revisions");
        if self.membership_changed {
            self.batch.put(META, layout::MEMBERSHIP, &self.state.membership);
        }
        let before = self.state.counts.clone();
        let source = Source::staged(self.view, &before, &self.overlays);
        let changes = self.overlays.kv.iter().filter_map(|(key, staged)| match (staged.existed, &staged.now) {
            (false, Some(_)) => Some((key, 1)),
            (true, None) => Some((key, -1)),
            _ => None,
        });
        self.state.counts.settle(changes, &source, &mut self.batch)?;
        self.batch.put(META, layout::STATE, &layout::state_value(&self.state.mark, self.state.revision));
        Ok(())
    }

    /// The batch is written: what it left live is what will be replaced next.
    pub fn written(mut self) -> Written {
        for (key, staged) in &self.overlays.kv {
            match &staged.now {
                Some(record) => self.recent.put(key, record.clone()),
                None => self.recent.remove(key),
            }
        }
        Written {
            compacted: self.compacted,
            state: self.state,
            recent: self.recent,
            batch: self.batch,
            published: self.published,
            lease_changes: self.lease_changes,
        }
    }

    /// Keeps a version that is replaced or deleted and that `rev` has no more, or soon will not have.
    fn supersede(&mut self, key: &[u8], previous: Option<&[u8]>, mod_revision: i64) {
        if let Some(previous) = previous
            && mod_revision < self.state.compacted
        {
            layout::old_key(&mut self.key_scratch, key, mod_revision);
            layout::old_value(&mut self.value_scratch, self.state.revision + 1, Some(previous));
            self.batch.put(OLD, &self.key_scratch, &self.value_scratch);
        }
    }

    /// Leaves a sign at the change under way, where reads of the past may begin.
    fn signpost(&mut self, key: &[u8]) {
        let revision = self.state.revision + 1;
        layout::old_key(&mut self.key_scratch, key, revision);
        layout::old_value(&mut self.value_scratch, revision, None);
        self.batch.put(OLD, &self.key_scratch, &self.value_scratch);
    }

    /// Enters a change into history. `previous` is the mod revision of the version it replaced, and zero without one.
    fn note_change(&mut self, previous: i64, key: &[u8], record: Option<&[u8]>) -> Result<(), MachineError> {
        let revision = self.state.revision + 1;
        let previous = self.before_this_revision(previous, key)?;
        layout::rev_key(&mut self.key_scratch, revision, key);
        layout::rev_value(&mut self.value_scratch, self.writes, previous, record);
        self.batch.put(REV, &self.key_scratch, &self.value_scratch);
        self.writes += 1;
        Ok(())
    }

    /// The API lets no command change a key twice. Were there one all the same, history would have the last change, and
    /// link it to what was before all of them.
    fn before_this_revision(&self, previous: i64, key: &[u8]) -> Result<i64, MachineError> {
        let deleted = || self.overlays.kv.get(key).is_some_and(|staged| staged.now.is_none());
        if self.writes == 0 || !(previous == self.state.revision + 1 || previous == 0 && deleted()) {
            return Ok(previous);
        }
        let Some(first) = self.events.iter().find(|event| event.key == key) else { return Ok(previous) };
        let before = first.prev.as_deref().map(Record::read).transpose()?;
        Ok(before.map_or(0, |before| before.mod_revision))
    }

    fn detach(&mut self, lease: i64, key: &[u8]) {
        if lease != 0 {
            self.set_meta(layout::attached_key(lease, key), None);
        }
    }

    fn overlay(&mut self, key: Bytes, existed: bool, now: Option<Bytes>) {
        // An earlier write of the batch knows whether the engine has the key.
        self.overlays
            .kv
            .entry(key)
            .and_modify(|staged| staged.now.clone_from(&now))
            .or_insert_with(|| Staged { existed, now: now.clone() });
    }
}
