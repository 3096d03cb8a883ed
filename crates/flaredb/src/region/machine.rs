//! What committed commands do to a region.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use base::{GroupId, PeerId, hash};
use bytes::Bytes;
use consensus::{
    Applied, Entry, HASH_EVERY, MachineError, Mark, Outcome, Payload, SnapshotSink, SnapshotSource, StateMachine,
};
use prost::Message as _;
use proto::flaredb as pb;
use storage::{Engine, WriteBatch};

use super::layout::{self, RAW, REGION};
use super::snapshot::{self, Receiver};
use super::{RangeMap, RegionCell, RegionState};

/// [`Outcome::code`]: the region was of another version by then, or does not cover the key. Nothing was done.
pub const STALE: u32 = 1;
/// [`Outcome::code`]: a later version of the program proposed it.
pub const UNKNOWN: u32 = 2;

/// The state machine of one region.
pub struct RegionMachine {
    engine: Arc<dyn Engine>,
    /// Where received snapshots wait.
    incoming: PathBuf,
    id: GroupId,
    state: RegionState,
    cell: RegionCell,
    map: Arc<RangeMap>,
}

/// What entries under way have done.
struct Stage<'a> {
    engine: &'a dyn Engine,
    batch: WriteBatch,
    /// Raw pairs as the batch leaves them.
    written: BTreeMap<Bytes, Option<Bytes>>,
}

impl RegionMachine {
    /// Opens a region; one of which nothing lies in the engine has version zero. A snapshot that was being put in place is.
    pub fn open(
        engine: Arc<dyn Engine>,
        incoming: PathBuf,
        id: GroupId,
        map: Arc<RangeMap>,
    ) -> Result<RegionMachine, MachineError> {
        snapshot::roll_forward(&*engine, &incoming, id)?;
        let state = load(&*engine, id)?;
        let machine = RegionMachine { engine, incoming, id, state, cell: RegionCell::default(), map };
        machine.publish();
        Ok(machine)
    }

    pub fn cell(&self) -> RegionCell {
        self.cell.clone()
    }

    /// What a region begins with that comes from nowhere: its range. To be called before [`StateMachine::found`].
    pub fn set_range(&mut self, start: Bytes, end: Bytes) {
        (self.state.start, self.state.end) = (start, end);
        (self.state.version, self.state.conf_version) = (1, 1);
    }

    fn publish(&self) {
        self.publish_as(self.state.clone());
    }

    fn publish_as(&self, state: RegionState) {
        let after = Arc::new(state);
        let before = self.cell.swap(after.clone());
        self.map.place(self.id, &before, &after);
    }

    fn execute(&self, stage: &mut Stage<'_>, command: Bytes) -> Result<Outcome, MachineError> {
        let refused = |code| Ok(Outcome { code, body: Bytes::new() });
        let Ok(pb::Command { version, what: Some(what) }) = pb::Command::decode(command) else {
            return refused(UNKNOWN);
        };
        let covered = match &what {
            pb::command::What::Write(write) => write.mutations.iter().all(|mutation| self.state.covers(&mutation.key)),
            pb::command::What::CompareAndSwap(swap) => self.state.covers(&swap.key),
        };
        if version != self.state.version || !covered {
            return refused(STALE);
        }
        let mut outcome = pb::Outcome::default();
        match what {
            pb::command::What::Write(pb::Write { mutations, tell }) => {
                for pb::Mutation { key, value } in mutations {
                    if tell {
                        outcome.existed.push(stage.get(&key)?.is_some());
                    }
                    stage.set(key, value);
                }
            }
            pb::command::What::CompareAndSwap(pb::CompareAndSwap { key, expected, value }) => {
                outcome.previous = stage.get(&key)?;
                outcome.swapped = outcome.previous == expected;
                if outcome.swapped {
                    stage.set(key, value);
                }
            }
        }
        Ok(Outcome { code: 0, body: outcome.encode_to_vec().into() })
    }
}

impl Stage<'_> {
    fn get(&self, key: &Bytes) -> Result<Option<Bytes>, MachineError> {
        match self.written.get(key) {
            Some(value) => Ok(value.clone()),
            None => Ok(self.engine.get(RAW, &layout::raw_key(key))?),
        }
    }

    fn set(&mut self, key: Bytes, value: Option<Bytes>) {
        let raw = layout::raw_key(&key);
        match &value {
            Some(value) => self.batch.put(RAW, &raw, value),
            None => self.batch.delete(RAW, &raw),
        }
        self.written.insert(key, value);
    }
}

impl StateMachine for RegionMachine {
    fn mark(&self) -> Mark {
        self.state.mark
    }

    fn membership(&self) -> Bytes {
        self.state.membership.clone()
    }

    fn found(&mut self, mark: Mark, membership: Bytes) -> Result<(), MachineError> {
        (self.state.mark, self.state.membership) = (mark, membership);
        let mut batch = WriteBatch::new();
        batch.put(REGION, &layout::state_key(self.id), &layout::write_state(&self.state));
        batch.put(REGION, &layout::membership_key(self.id), &self.state.membership);
        self.engine.write(&batch)?;
        self.publish();
        Ok(self.engine.flush()?)
    }

    fn apply(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) -> Result<(), MachineError> {
        let before = self.state.clone();
        let result = self.apply_all(entries, local, applied);
        if result.is_err() {
            self.state = before;
        }
        result
    }

    fn may_wait(&self) -> bool {
        self.engine.is_stalled()
    }

    fn durable(&self) -> Result<u64, MachineError> {
        let state = self.engine.durable_get(REGION, &layout::state_key(self.id))?;
        Ok(state.map(|state| layout::read_state(state, Bytes::new())).transpose()?.map_or(0, |state| state.mark.index))
    }

    fn flusher(&self) -> Box<dyn Fn() -> Result<(), MachineError> + Send> {
        let engine = self.engine.clone();
        Box::new(move || Ok(engine.flush()?))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Ok(Box::new(snapshot::stream(self.engine.view(), self.id, self.state.clone())))
    }

    fn receiver(&self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::new(Receiver::new(&self.incoming, self.id)?))
    }

    fn install(&mut self, staged: &mut dyn SnapshotSink) -> Result<(), MachineError> {
        let receiver = staged
            .as_any()
            .downcast_mut::<Receiver>()
            .ok_or_else(|| MachineError::BadSnapshot("it was received by another machine".into()))?;
        receiver.decide()?;
        // Nobody reads while the old pairs go and the others come.
        self.publish_as(RegionState::default());
        snapshot::roll_forward(&*self.engine, &self.incoming, self.id)?;
        self.state = load(&*self.engine, self.id)?;
        self.publish();
        Ok(())
    }
}

impl RegionMachine {
    fn apply_all(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) -> Result<(), MachineError> {
        let engine = self.engine.clone();
        let mut stage = Stage { engine: &*engine, batch: WriteBatch::new(), written: BTreeMap::new() };
        let (mut outcomes, mut hashes) = (Vec::new(), Vec::new());
        for entry in entries {
            if entry.index != self.state.mark.index + 1 {
                let why = format!("entry {} was to be applied after {}", entry.index, self.state.mark.index);
                return Err(MachineError::Damaged(why));
            }
            let begun = stage.batch.bytes().len();
            match &entry.payload {
                Payload::Nothing => {}
                Payload::Commands(commands) => {
                    for (seq, command) in commands.iter() {
                        let outcome = self.execute(&mut stage, command)?;
                        if commands.origin == local {
                            outcomes.push((seq, outcome));
                        }
                    }
                }
                Payload::Membership { membership, done } => {
                    self.state.membership = membership.clone();
                    self.state.conf_version += 1;
                    stage.batch.put(REGION, &layout::membership_key(self.id), membership);
                    if let Some((peer, seq)) = done
                        && *peer == local
                    {
                        outcomes.push((*seq, Outcome { code: 0, body: membership.clone() }));
                    }
                }
            }
            let hash = hash::roll(self.state.mark.hash, &stage.batch.bytes()[begun..]);
            self.state.mark = Mark { index: entry.index, term: entry.term, hash };
            if entry.index % HASH_EVERY == 0 {
                hashes.push((entry.index, hash));
            }
        }
        stage.batch.put(REGION, &layout::state_key(self.id), &layout::write_state(&self.state));
        engine.write(&stage.batch)?;
        self.publish();
        applied.outcomes.append(&mut outcomes);
        applied.hashes.append(&mut hashes);
        Ok(())
    }
}

/// A region's records; version zero where there are none.
pub fn load(engine: &dyn Engine, id: GroupId) -> Result<RegionState, MachineError> {
    let Some(state) = engine.get(REGION, &layout::state_key(id))? else { return Ok(RegionState::default()) };
    let membership = engine.get(REGION, &layout::membership_key(id))?.unwrap_or_default();
    layout::read_state(state, membership)
}
