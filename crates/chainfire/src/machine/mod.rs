//! Chainfire's state machine: what committed commands do to the key space, its history and its leases.
//!
//! ```text
//!  entries ──► apply ──► Stage: batch + overlays + events        (nothing has happened yet)
//!                          │ engine.write            one atomic write: data, buckets, mark
//!                          ▼
//!                        Reader.publish              readers see it
//!                          ▼
//!                        EventSink                   watchers and the lease keeper are told
//! ```
//!
//! | file | its one subject |
//! |---|---|
//! | [`layout`] | where everything lies, and the codecs of keys and small values |
//! | [`record`] | a version of a key, which is stored as it goes to clients |
//! | [`source`] | reading: the present, the past, and a batch under way |
//! | [`stage`] | writing: a batch under way |
//! | [`commands`], [`txn`] | what each command does |
//! | [`recent`] | the versions that will be replaced next |
//! | [`count`] | counting without walking |
//! | [`sweep`], [`horizon`] | what follows a compaction, and what it must leave alone |
//! | [`snapshot`] | the state as a stream |
//! | [`changes`], [`replay`] | what changed since a revision as a stream, and back from it |
//!
//! Invariants
//! 1. Determinism: what an entry writes is a function of the store and the entry. No clock, no randomness, no map with
//!    an order of its own; batching and physical clean-up make no difference. The rolling hash watches over it.
//! 2. One engine write per `apply`: data and mark are durable together or not at all.
//! 3. If `apply` fails, nothing has happened: neither in the engine nor in memory nor for watchers.
//! 4. A revision is published after it was written, and once.
//!
//! Left out: expiry. Which lease has run out is the leader's business, which proposes to revoke it; here a lease is a
//! number and the keys attached to it.

pub mod changes;
pub mod commands;
pub mod count;
pub mod horizon;
pub mod layout;
pub mod recent;
pub mod record;
pub mod replay;
pub mod snapshot;
pub mod source;
pub mod stage;
pub mod sweep;
pub mod txn;

use std::sync::Arc;

use base::{ClusterId, NodeId, PeerId, hash};
use bytes::Bytes;
use consensus::{
    Applied, Entry, HASH_EVERY, MachineError, Mark, Membership, Outcome, Payload, SnapshotSink, SnapshotSource,
    StateMachine,
};
use storage::{Engine, View, WriteBatch};

use crate::event::EventSink;
use crate::read::{Reader, StateView};
use count::CountIndex;
use horizon::Horizons;
use layout::META;
use recent::Recent;
use snapshot::SnapshotReceiver;
use stage::{Stage, State, Written};
use sweep::Sweep;

/// A batch's memory is kept for the next one up to this size.
const BATCH_BYTES_KEPT: usize = 4 << 20;

/// What stands in the header of every answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub member: NodeId,
}

/// The state machine over an engine that was opened with [`layout::FAMILIES`].
pub struct Machine {
    engine: Arc<dyn Engine>,
    identity: Identity,
    sink: Arc<dyn EventSink>,
    reader: Reader,
    state: State,
    recent: Recent,
    batch: WriteBatch,
    sweep: Sweep,
    horizons: Horizons,
}

impl Machine {
    /// Opens what the engine holds. Reads the counts, not the keys. Errors: `Engine`; `TooNew` for a layout of a later
    /// version; `Damaged` for bytes that make no sense.
    pub fn open(
        engine: Arc<dyn Engine>,
        identity: Identity,
        sink: Arc<dyn EventSink>,
    ) -> Result<(Machine, Reader), MachineError> {
        let (state, view) = load(&*engine)?;
        let sweep = Sweep::load(&*view)?;
        let horizons = Horizons::new(state.compacted);
        let reader = Reader::new(engine.clone(), picture(&state, view, &horizons));
        let machine = Machine {
            engine,
            identity,
            sink,
            reader: reader.clone(),
            state,
            recent: Recent::default(),
            batch: WriteBatch::new(),
            sweep,
            horizons,
        };
        Ok((machine, reader))
    }

    fn picture(&self, view: Arc<dyn View>) -> StateView {
        picture(&self.state, view, &self.horizons)
    }

    /// Begins a batch. What it takes along of the machine's memory comes back when it was written, and is only memory.
    fn begin<'a>(&mut self, engine: &'a dyn Engine, base: &'a StateView) -> Stage<'a> {
        let (recent, batch) = (std::mem::take(&mut self.recent), std::mem::take(&mut self.batch));
        Stage::new(engine, &*base.view, self.state.clone(), recent, batch)
    }

    /// Writes a batch, puts what it came to in place and tells of it.
    fn write(&mut self, stage: Stage<'_>) -> Result<(), MachineError> {
        self.engine.write(&stage.batch)?;
        let Written { state, recent, batch, published, lease_changes, compacted } = stage.written();
        self.state = state;
        self.recent = recent;
        if batch.bytes().len() <= BATCH_BYTES_KEPT {
            self.batch = batch;
            self.batch.clear();
        }
        self.horizons.advance(self.state.compacted);
        self.reader.publish(self.picture(self.engine.view()));
        if !published.is_empty() {
            self.sink.publish(Arc::new(published), self.state.revision);
        }
        if !lease_changes.is_empty() {
            self.sink.leases(&lease_changes);
        }
        if compacted {
            self.engine.set_watermark(self.horizons.watermark());
            self.sink.compacted(self.state.compacted);
        }
        Ok(())
    }
}

impl StateMachine for Machine {
    fn mark(&self) -> Mark {
        self.state.mark
    }

    fn membership(&self) -> Bytes {
        self.state.membership.clone()
    }

    fn found(&mut self, mark: Mark, membership: Bytes) -> Result<(), MachineError> {
        let base = self.reader.current();
        let engine = self.engine.clone();
        let mut stage = self.begin(&*engine, &base);
        stage.state.mark = mark;
        stage.set_membership(membership);
        stage.finish()?;
        self.write(stage)?;
        Ok(engine.flush()?)
    }

    fn apply(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) -> Result<(), MachineError> {
        if entries.is_empty() {
            return Ok(());
        }
        let base = self.reader.current();
        let engine = self.engine.clone();
        let mut stage = self.begin(&*engine, &base);
        let mut outcomes = Vec::new();
        let mut hashes = Vec::new();
        for entry in entries {
            if entry.index != stage.state.mark.index + 1 {
                let why = format!("entry {} was to be applied after {}", entry.index, stage.state.mark.index);
                return Err(MachineError::Damaged(why));
            }
            let before = stage.batch.bytes().len();
            match &entry.payload {
                Payload::Nothing => {}
                Payload::Commands(commands) => {
                    let reply = commands.origin == local;
                    for (seq, command) in commands.iter() {
                        let outcome = commands::execute(&mut stage, &self.identity, entry.term, command, reply)?;
                        if reply {
                            outcomes.push((seq, outcome));
                        }
                    }
                }
                Payload::Membership { membership, done } => {
                    stage.set_membership(membership.clone());
                    if let Some(Membership { members, .. }) = Membership::decode(membership) {
                        commands::lower_alarms_of_strangers(&mut stage, &members);
                    }
                    if let Some((peer, seq)) = done
                        && *peer == local
                    {
                        outcomes.push((*seq, Outcome { code: 0, body: membership.clone() }));
                    }
                }
            }
            let hash = hash::roll(stage.state.mark.hash, &stage.batch.bytes()[before..]);
            stage.state.mark = Mark { index: entry.index, term: entry.term, hash };
            if entry.index % HASH_EVERY == 0 {
                hashes.push((entry.index, hash));
            }
        }
        stage.finish()?;
        self.write(stage)?;
        applied.outcomes.append(&mut outcomes);
        applied.hashes.append(&mut hashes);
        Ok(())
    }

    fn may_wait(&self) -> bool {
        self.engine.is_stalled()
    }

    fn tends(&self) -> bool {
        true
    }

    fn tend(&mut self) -> Result<bool, MachineError> {
        self.engine.set_watermark(self.horizons.watermark());
        self.sweep.step(&*self.engine, self.state.compacted, self.state.revision)
    }

    fn durable(&self) -> Result<u64, MachineError> {
        let value = self.engine.durable_get(META, layout::STATE)?;
        Ok(value.map(|value| layout::read_state(&value)).transpose()?.map_or(0, |(mark, _)| mark.index))
    }

    fn flusher(&self) -> Box<dyn Fn() -> Result<(), MachineError> + Send> {
        let engine = self.engine.clone();
        Box::new(move || Ok(engine.flush()?))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(snapshot::stream(self.reader.current(), self.engine.stats().live_bytes)))
    }

    fn receiver(&self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::new(SnapshotReceiver::new(Some(self.engine.begin_install()?))))
    }

    fn install(&mut self, staged: &mut dyn SnapshotSink) -> Result<(), MachineError> {
        let receiver = staged
            .as_any()
            .downcast_mut::<SnapshotReceiver>()
            .ok_or_else(|| MachineError::BadSnapshot("it was received by another machine".into()))?;
        let install = receiver.install()?;
        self.reader.suspend();
        let replaced = self.engine.commit_install(install).map_err(MachineError::from);
        let loaded = replaced.and_then(|()| {
            let (state, view) = load(&*self.engine)?;
            let sweep = Sweep::load(&*view)?;
            Ok((state, sweep, view))
        });
        let (view, done) = match loaded {
            Ok((state, sweep, view)) => {
                self.state = state;
                self.sweep = sweep;
                self.recent = Recent::default();
                (view, Ok(()))
            }
            // Readers are served, or refused, by what the engine has; the error stops the node.
            Err(error) => (self.engine.view(), Err(error)),
        };
        self.horizons = Horizons::new(self.state.compacted);
        self.reader.publish(self.picture(view));
        done?;
        self.sink.reset(self.state.revision);
        Ok(())
    }
}

/// Reads what the machine knows by heart.
fn load(engine: &dyn Engine) -> Result<(State, Arc<dyn View>), MachineError> {
    let view = engine.view();
    let stored = view.get(META, layout::STATE)?;
    let (mark, revision) = stored.map(|value| layout::read_state(&value)).transpose()?.unwrap_or((Mark::default(), 1));
    let compacted = view.get(META, layout::COMPACTED)?;
    let compacted = compacted.map(|value| layout::read_i64(&value)).transpose()?.unwrap_or(-1);
    let membership = view.get(META, layout::MEMBERSHIP)?.unwrap_or_default();
    let mut alarms = Vec::new();
    let mut walk = view.scan(META, &[layout::ALARM], Some(&[layout::ALARM + 1]));
    while walk.valid() {
        alarms.push(layout::read_alarm_key(walk.key())?);
        walk.advance();
    }
    walk.status()?;
    drop(walk);
    let counts = CountIndex::load(&*view)?;
    let state = State { mark, revision, compacted, membership, alarms: Arc::new(alarms), counts };
    Ok((state, view))
}

fn picture(state: &State, view: Arc<dyn View>, horizons: &Horizons) -> StateView {
    StateView {
        revision: state.revision,
        compacted: state.compacted,
        mark: state.mark,
        membership: state.membership.clone(),
        alarms: state.alarms.clone(),
        counts: state.counts.clone(),
        view,
        horizon: Some(horizons.current()),
    }
}
