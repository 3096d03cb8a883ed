//! What committed commands do to a region.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::{GroupId, NodeId, PeerId, hash};
use bytes::Bytes;
use consensus::{
    Applied, Entry, HASH_EVERY, MachineError, Mark, Member, Membership, Outcome, Payload, SnapshotSink, SnapshotSource,
    StateMachine,
};
use prost::Message as _;
use proto::{flaredb as pb, placement};
use storage::{Engine, WriteBatch};

use super::layout::{self, RAW, REGION};
use super::snapshot::{self, Receiver};
use super::{RangeMap, RegionCell, RegionState};

/// [`Outcome::code`]: the region was of another version by then, or does not cover the key. Nothing was done.
pub const STALE: u32 = 1;
/// [`Outcome::code`]: a later version of the program proposed it.
pub const UNKNOWN: u32 = 2;
/// [`Outcome::code`]: the region is about to become part of another one. Nothing was done.
pub const FROZEN: u32 = 3;
/// [`Outcome::code`]: it does not fit the region's members or neighbours, and would not if it came again. Nothing was done.
pub const REFUSED: u32 = 4;

/// The state machine of one region.
pub struct RegionMachine {
    pub(super) engine: Arc<dyn Engine>,
    /// Where received snapshots wait.
    incoming: PathBuf,
    pub(super) id: GroupId,
    pub(super) state: RegionState,
    cell: Arc<RegionCell>,
    map: Arc<RangeMap>,
    pub(super) sink: Sink,
    /// This store lacks what the region has taken in.
    lacking: bool,
}

/// Told of what happens to regions.
pub type Sink = Arc<dyn Fn(Happened) + Send + Sync>;

/// What a region's machine has done that concerns more than itself.
pub enum Happened {
    /// Regions have come of it, each with its peer here. They are in the engine.
    Born(Vec<(GroupId, PeerId)>),
    /// Another region's peer here has become part of it; its records are gone.
    Taken { source: GroupId, peer: PeerId },
    /// It is about to become part of another one, or not any more. Told before anybody sees it.
    Frozen(bool),
    /// It waits until a region here has applied this entry, which is committed.
    Behind { source: GroupId, index: u64, term: u64 },
}

/// What entries under way have done.
pub(super) struct Stage<'a> {
    cell: &'a RegionCell,
    engine: &'a dyn Engine,
    local: PeerId,
    pub batch: WriteBatch,
    /// What only this store writes, and no other replica: it is not hashed.
    pub own: WriteBatch,
    born: Vec<(GroupId, PeerId)>,
    pub taken: Vec<(GroupId, PeerId)>,
    pub lacking: bool,
    /// The entry under way, and where in the batch it begins.
    pub index: u64,
    pub term: u64,
    pub begun: usize,
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
        sink: Sink,
    ) -> Result<RegionMachine, MachineError> {
        snapshot::roll_forward(&*engine, &incoming, id)?.clear_away();
        let state = load(&*engine, id)?;
        let lacking = engine.get(REGION, &layout::lacking_key(id))?.is_some();
        let machine = RegionMachine { engine, incoming, id, state, cell: Arc::default(), map, sink, lacking };
        machine.map.register(id, &machine.cell);
        machine.publish();
        Ok(machine)
    }

    pub fn cell(&self) -> Arc<RegionCell> {
        self.cell.clone()
    }

    /// What a region begins with that comes from nowhere: its range. To be called before [`StateMachine::found`].
    pub fn set_range(&mut self, start: Bytes, end: Bytes) {
        (self.state.start, self.state.end) = (start, end);
        (self.state.version, self.state.conf_version) = (1, 1);
    }

    /// Of what is lacking nobody sees anything.
    fn publish(&self) {
        self.publish_as(if self.lacking { RegionState::default() } else { self.state.clone() });
    }

    fn publish_as(&self, state: RegionState) {
        let after = Arc::new(state);
        let is_frozen = after.frozen.is_some();
        if self.cell.state().frozen.is_some() != is_frozen {
            (self.sink)(Happened::Frozen(is_frozen));
        }
        let before = self.cell.set(after.clone());
        self.map.place(self.id, &before, &after);
    }

    fn execute(&mut self, stage: &mut Stage<'_>, command: Bytes) -> Result<Outcome, MachineError> {
        let with = |code| Ok(Outcome { code, body: Bytes::new() });
        let Ok(pb::Command { version, what: Some(what) }) = pb::Command::decode(command) else {
            return with(UNKNOWN);
        };
        let covered = match &what {
            pb::command::What::Write(write) => write.mutations.iter().all(|mutation| self.state.covers(&mutation.key)),
            pb::command::What::CompareAndSwap(swap) => self.state.covers(&swap.key),
            pb::command::What::Split(split) => {
                let starts = split.regions.iter().map(|region| &region.start);
                let ascend = starts.clone().zip(starts.clone().skip(1)).all(|(a, b)| a < b);
                ascend && starts.clone().all(|start| self.state.covers(start) && *start > self.state.start)
            }
            pb::command::What::Freeze(_)
            | pb::command::What::Seal(_)
            | pb::command::What::CommitMerge(_)
            | pb::command::What::AbortMerge(_)
            | pb::command::What::Thaw(_)
            | pb::command::What::ForgetMerged(_) => self.state.version > 0,
        };
        if version != self.state.version || !covered {
            return with(STALE);
        }
        let of_a_frozen_one = matches!(
            what,
            pb::command::What::Seal(_) | pb::command::What::Thaw(_) | pb::command::What::ForgetMerged(_)
        );
        if self.state.frozen.is_some() && !of_a_frozen_one {
            return with(FROZEN);
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
            pb::command::What::Split(split) => {
                if !self.split(stage, split)? {
                    return with(STALE);
                }
            }
            pb::command::What::Freeze(freeze) => return with(self.freeze(stage, freeze)),
            pb::command::What::Seal(seal) => return with(self.seal(&seal)),
            pb::command::What::CommitMerge(commit) => return with(self.commit_merge(stage, commit)?),
            pb::command::What::AbortMerge(_) => return with(self.abort_merge(stage)),
            pb::command::What::Thaw(thaw) => return with(self.thaw(stage, &thaw)),
            pb::command::What::ForgetMerged(forget) => return with(self.forget_merged(stage, &forget)),
        }
        Ok(Outcome { code: 0, body: outcome.encode_to_vec().into() })
    }
}

impl RegionMachine {
    /// Cuts this region. False: the peers named are not those of its members, and nothing was done.
    fn split(&mut self, stage: &mut Stage<'_>, split: pb::Split) -> Result<bool, MachineError> {
        let membership = Membership::decode(&self.state.membership).unwrap_or_default();
        let member_of = |peer: &placement::Peer| membership.members.get(&NodeId(peer.store_id));
        let named = |region: &pb::NewRegion| {
            region.peers.len() == membership.members.len() && region.peers.iter().all(|peer| member_of(peer).is_some())
        };
        if split.regions.is_empty() || membership.is_joint() || !split.regions.iter().all(named) {
            return Ok(false);
        }
        let version = self.state.version + split.regions.len() as u64;
        let ends = split.regions.iter().skip(1).map(|next| next.start.clone()).chain([self.state.end.clone()]);
        for (region, end) in split.regions.iter().zip(ends) {
            let id = GroupId(region.region_id);
            let new_peer = |old: PeerId| {
                let node = membership.node_of(old)?;
                region.peers.iter().find(|peer| peer.store_id == node.0).map(|peer| PeerId(peer.id))
            };
            let all = |peers: &[PeerId]| peers.iter().filter_map(|peer| new_peer(*peer)).collect();
            let members = membership.members.iter().map(|(node, member)| {
                let peer = new_peer(member.peer).unwrap_or(PeerId::NONE);
                (*node, Member { peer, successor: PeerId::NONE, ..member.clone() })
            });
            let born = Membership {
                members: members.collect(),
                voters: all(&membership.voters),
                learners: all(&membership.learners),
                ..membership.clone()
            };
            let state = RegionState {
                mark: Mark { index: 1, term: 1, hash: hash::START },
                start: region.start.clone(),
                end,
                version,
                conf_version: self.state.conf_version,
                membership: born.encode().into(),
                frozen: None,
                // Whatever part of what was taken in lies there: whoever asks for it may ask there.
                merged: self.state.merged.clone(),
            };
            // Its place may be taken already, where this replica comes late: by a peer that was added since, or that was and
            // is gone. What it holds comes from the others then.
            let own = membership.node_of(stage.local).and_then(|_| new_peer(stage.local));
            if let Some(own) = own.filter(|own| !own.is_none())
                && self.is_free_for(id, own)?
            {
                stage.own.put(REGION, &layout::state_key(id), &layout::write_state(&state));
                stage.own.put(REGION, &layout::membership_key(id), &state.membership);
                stage.own.put(REGION, &layout::peer_key(id), &own.0.to_le_bytes());
                stage.born.push((id, own));
            }
        }
        self.state.end = split.regions[0].start.clone();
        self.state.version = version;
        self.agree(stage);
        Ok(true)
    }

    fn is_free_for(&self, id: GroupId, peer: PeerId) -> Result<bool, MachineError> {
        let there = self.engine.get(REGION, &layout::peer_key(id))?;
        let retired =
            self.engine.get(REGION, &layout::retired_key(id))?.map(|bytes| layout::read_peer(&bytes)).transpose()?;
        Ok(there.is_none() && retired.is_none_or(|retired| peer > retired))
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
        self.cell.traffic.write(&key, (key.len() + value.as_ref().map_or(0, Bytes::len)) as u64);
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
        let cell = self.cell.clone();
        let _applying = cell.applying();
        if cell.is_consumed() {
            self.refuse_all(entries, local, applied);
            return Ok(());
        }
        let before = self.state.clone();
        let result = self.apply_all(entries, local, applied);
        if result.is_err() {
            self.state = before;
        }
        result
    }

    fn is_sound(&self) -> bool {
        !self.lacking && !self.cell.is_consumed()
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
        let receiver = Receiver::new(self.engine.clone(), &self.incoming, self.id)?;
        Ok(Box::new(receiver.claiming(self.map.claims.clone())))
    }

    fn install(&mut self, staged: &mut dyn SnapshotSink) -> Result<(), MachineError> {
        let receiver = staged
            .as_any()
            .downcast_mut::<Receiver>()
            .ok_or_else(|| MachineError::BadSnapshot("it was received by another machine".into()))?;
        if self.cell.is_consumed() {
            // It is about to be taken away; the log is told what it wants to hear.
            self.state.mark = receiver.mark().unwrap_or_default();
            return Ok(());
        }
        receiver.decide()?;
        // Nobody reads while the old pairs go and the others come.
        self.publish_as(RegionState::default());
        self.cell.begin_install();
        // What they still have to apply is of before, and must not come over it.
        receiver.displaced()?.iter().for_each(|(source, _)| self.map.consume(*source));
        let mut in_place = snapshot::roll_forward(&*self.engine, &self.incoming, self.id)?;
        self.state = load(&*self.engine, self.id)?;
        self.lacking = false;
        self.publish();
        self.let_go(std::mem::take(&mut in_place.displaced));
        receiver.is_in_place();
        in_place.clear_away();
        Ok(())
    }
}

impl RegionMachine {
    fn apply_all(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) -> Result<(), MachineError> {
        let (engine, cell) = (self.engine.clone(), self.cell.clone());
        let mut stage = Stage {
            cell: &cell,
            engine: &*engine,
            local,
            batch: WriteBatch::new(),
            own: WriteBatch::new(),
            born: Vec::new(),
            taken: Vec::new(),
            lacking: false,
            index: 0,
            term: 0,
            begun: 0,
            written: BTreeMap::new(),
        };
        let (mut outcomes, mut hashes) = (Vec::new(), Vec::new());
        for entry in entries {
            if entry.index != self.state.mark.index + 1 {
                let why = format!("entry {} was to be applied after {}", entry.index, self.state.mark.index);
                return Err(MachineError::Damaged(why));
            }
            let begun = stage.batch.bytes().len();
            (stage.index, stage.term, stage.begun) = (entry.index, entry.term, begun);
            let was_whole = !stage.lacking;
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
            let mut hash = hash::roll(self.state.mark.hash, &stage.batch.bytes()[begun..]);
            if stage.lacking && was_whole {
                hash = hash::roll(hash, b"lacking");
            }
            self.state.mark = Mark { index: entry.index, term: entry.term, hash };
            if entry.index % HASH_EVERY == 0 {
                hashes.push((entry.index, hash));
            }
        }
        stage.batch.put(REGION, &layout::state_key(self.id), &layout::write_state(&self.state));
        let Stage { mut batch, own, born, taken, lacking, .. } = stage;
        self.cell.written.fetch_add(batch.bytes().len() as u64, Ordering::Relaxed);
        batch.append(&own);
        engine.write(&batch)?;
        self.lacking |= lacking;
        self.publish();
        self.let_go(taken);
        if !born.is_empty() {
            (self.sink)(Happened::Born(born));
        }
        applied.outcomes.append(&mut outcomes);
        applied.hashes.append(&mut hashes);
        Ok(())
    }
}

impl RegionMachine {
    /// Regions whose records have gone, and whose range is this one's by now.
    fn let_go(&self, taken: Vec<(GroupId, PeerId)>) {
        for (source, peer) in taken {
            self.map.consume(source);
            (self.sink)(Happened::Taken { source, peer });
        }
    }

    /// This region has become part of another one, whose business its pairs are. What came after it was frozen does nothing.
    fn refuse_all(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) {
        let was_frozen = self.state.frozen.is_some();
        for entry in entries {
            self.state.mark = Mark { index: entry.index, term: entry.term, ..self.state.mark };
            if let Payload::Commands(commands) = &entry.payload
                && commands.origin == local
                && was_frozen
            {
                let refused = |(seq, _)| (seq, Outcome { code: FROZEN, body: Bytes::new() });
                applied.outcomes.extend(commands.iter().map(refused));
            }
        }
    }
}

/// A region's records; version zero where there are none.
pub fn load(engine: &dyn Engine, id: GroupId) -> Result<RegionState, MachineError> {
    let Some(state) = engine.get(REGION, &layout::state_key(id))? else { return Ok(RegionState::default()) };
    let membership = engine.get(REGION, &layout::membership_key(id))?.unwrap_or_default();
    layout::read_state(state, membership)
}
