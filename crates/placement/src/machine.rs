//! What the placement driver's members agree on: stores, regions, ids, policy. Everything else that its leader knows is
//! heard from the stores, and lost with it ([`crate::leader`]).
//!
//! ```text
//!  entries ─▶ commands ─▶ Stage ─┬─ `records` are changed, where readers look
//!             (`register`: stores └─ a batch, and then the engine
//!              that come)
//! ```
//!
//! Invariants
//! 1. An id is given out once, whatever it is for: stores, regions and peers draw from one sequence, which stays ahead of
//!    every id that a store or a report names, and of what lost members may have given out ([`PlacementMachine::go_on_alone`]).
//! 2. A store id belongs to one incarnation of one data folder, and an address to one store that is not a tombstone.
//!    An empty data folder never goes on under the id of one that is lost: regions may have members there that have voted,
//!    also such as were not reported yet, and what asks for them by that id must not be answered out of nothing. It comes in
//!    under an id of its own and takes the address ([`Stage::displace`]); the replicas of the lost one are made anew.
//! 3. A data folder is where it was last, or where it is first heard of once people have said that it was moved. The same
//!    folder at another place is a copy of it, however silent the original may be: that one may be cut off from here alone,
//!    and what it has voted and acknowledged since is not in the copy.
//! 4. A region's record never goes back to an earlier epoch. One that lies within a newer one's range has become part of it:
//!    its record goes, and does not come back.

mod records;
mod register;

use std::sync::Arc;

use base::{ClusterId, PeerId, hash};
use bytes::Bytes;
use consensus::{
    Applied, Entry, HASH_EVERY, MachineError, Mark, Outcome, Payload, SnapshotSink, SnapshotSource, StateMachine,
};
use parking_lot::RwLock;
use prost::Message as _;
use proto::placement as pb;
use proto::placement::command::What;
use storage::{Engine, WriteBatch};

use records::{CLUSTER, FOUNDING, MEMBERS, POLICY, STATE, ids_of, load, write_state};

pub(crate) use records::read_state;
pub use records::{FAMILIES, META, REGION, Records, STORE, SharedRecords};

use crate::snapshot::{self, Receiver};

/// Ids that one command may take.
pub const IDS_MAX: u32 = 10_000;
/// None is ever drawn beyond it; one that somebody names is not reckoned with.
pub const ID_MAX: u64 = 1 << 62;
/// More than the lost members of a placement driver can have given out beyond what the one that goes on has heard of.
const LOST_IDS_MAX: u64 = 1 << 32;

/// [`Outcome::code`]s: the command was refused, and the body says why.
pub const ALREADY_EXISTS: u32 = 1;
pub const FAILED_PRECONDITION: u32 = 2;
pub const NOT_FOUND: u32 = 3;
pub const UNKNOWN: u32 = 4;

/// Whoever wanted to change the policy makes his change of what it is by now.
pub const POLICY_CHANGED: &str = "the policy has changed meanwhile";

/// The state machine of the placement driver's one group.
pub struct PlacementMachine {
    engine: Arc<dyn Engine>,
    cluster: ClusterId,
    records: SharedRecords,
}

impl PlacementMachine {
    pub fn open(engine: Arc<dyn Engine>, cluster: ClusterId) -> Result<PlacementMachine, MachineError> {
        let records = load(&*engine.view())?;
        Ok(PlacementMachine { engine, cluster, records: Arc::new(RwLock::new(records)) })
    }

    pub fn records(&self) -> SharedRecords {
        self.records.clone()
    }

    /// For a member whose group is lost. The stores stay in the cluster that they know, whatever the placement driver's group
    /// is called from now on. Ids begin anew far beyond: the lost members may have given out some that this one never heard of.
    pub fn go_on_alone(&mut self) -> Result<(), MachineError> {
        let mut records = self.records.write();
        let mut batch = WriteBatch::new();
        let cluster = *records.cluster.get_or_insert(self.cluster);
        records.next_id = records.next_id.saturating_add(LOST_IDS_MAX);
        batch.put(META, CLUSTER, &cluster.0.to_le_bytes());
        batch.put(META, STATE, &write_state(&records));
        Ok(self.engine.write(&batch)?)
    }
}

/// Entries under way: the records are changed at once, and stay locked until the batch is written.
struct Stage<'a> {
    records: &'a mut Records,
    batch: WriteBatch,
    cluster: ClusterId,
}

type Refused = (u32, String);

impl Stage<'_> {
    fn execute(&mut self, command: Bytes) -> Outcome {
        let what = pb::Command::decode(command).ok().and_then(|command| command.what);
        let done = match what {
            Some(What::Register(request)) => self.register(request).map(|response| response.encode_to_vec()),
            Some(What::Allocate(request)) => {
                let first = self.allocate(request.count.clamp(1, IDS_MAX).into());
                Ok(pb::AllocateIdsResponse { first }.encode_to_vec())
            }
            Some(What::Save(save)) => {
                save.regions.into_iter().for_each(|region| self.save(region));
                Ok(Vec::new())
            }
            Some(What::SetState(set)) => self.set_state(set.store_id, set.state()).map(|()| Vec::new()),
            Some(What::SetPolicy(policy)) => {
                self.batch.put(META, POLICY, &policy);
                self.records.policy = policy;
                Ok(Vec::new())
            }
            Some(What::SetStore(set)) => self.set_store(set).map(|()| Vec::new()),
            Some(What::ChangePolicy(change)) if change.from != self.records.policy => {
                Err((FAILED_PRECONDITION, POLICY_CHANGED.to_owned()))
            }
            Some(What::ChangePolicy(pb::ChangePolicy { to, .. })) => {
                self.batch.put(META, POLICY, &to);
                self.records.policy = to;
                Ok(Vec::new())
            }
            None => Err((UNKNOWN, "a later version proposed it".to_owned())),
        };
        match done {
            Ok(body) => Outcome { code: 0, body: body.into() },
            Err((code, why)) => Outcome { code, body: why.into() },
        }
    }

    fn allocate(&mut self, count: u64) -> u64 {
        let first = self.records.next_id;
        self.records.next_id += count;
        first
    }

    /// Ids that somebody has are not drawn, wherever they are from.
    fn note_ids(&mut self, ids: impl Iterator<Item = u64>) {
        let next = ids.filter(|id| *id <= ID_MAX).map(|id| id + 1).max();
        self.records.next_id = self.records.next_id.max(next.unwrap_or(0));
    }

    fn put_store(&mut self, store: pb::Store) {
        self.batch.put(STORE, &store.id.to_be_bytes(), &store.encode_to_vec());
        self.records.put_store(store);
    }

    fn save(&mut self, region: pb::Region) {
        self.note_ids(ids_of(&region));
        let epoch = |region: &pb::Region| (region.version, region.conf_version);
        let known = self.records.regions.get(&region.id);
        if known.is_some_and(|known| epoch(&region).0 < epoch(known).0 || epoch(&region).1 < epoch(known).1) {
            return;
        }
        if known == Some(&region) {
            return;
        }
        let overlapping = self.records.overlapping(&region);
        if overlapping.iter().any(|other| other.version >= region.version) {
            return;
        }
        // One that began where this one does has been cut or is no more. Where it lies, if it does, it will say itself.
        let is_old = |other: &&pb::Region| other.start == region.start || self.records.is_covered(other, &region);
        let merged = overlapping.into_iter().filter(is_old);
        for id in merged.map(|other| other.id).collect::<Vec<_>>() {
            self.batch.delete(REGION, &id.to_be_bytes());
            self.records.remove_region(id);
        }
        let founded = self.records.founding.as_ref().and_then(|founding| founding.region.as_ref());
        if founded.is_some_and(|founded| founded.id == region.id) {
            self.batch.delete(META, FOUNDING);
            self.records.founding = None;
        }
        self.batch.put(REGION, &region.id.to_be_bytes(), &region.encode_to_vec());
        self.records.put_region(region);
    }

    fn set_store(&mut self, set: pb::SetStore) -> Result<(), Refused> {
        let id = set.store_id;
        let Some(known) = self.records.stores.get(&id) else {
            return Err((NOT_FOUND, format!("there is no store {id}")));
        };
        if known.state() == pb::StoreState::Tombstone {
            return Err((FAILED_PRECONDITION, format!("store {id} is gone for good")));
        }
        let mut store = known.clone();
        if set.clear_limits {
            (store.add_limit, store.remove_limit) = (None, None);
        }
        store.leader_weight = set.leader_weight.or(store.leader_weight);
        store.region_weight = set.region_weight.or(store.region_weight);
        store.add_limit = set.add_limit.or(store.add_limit);
        store.remove_limit = set.remove_limit.or(store.remove_limit);
        store.may_move |= set.moved;
        store.labels_set.extend(set.labels);
        for label in &set.labels_removed {
            store.labels_set.remove(label);
        }
        self.put_store(store);
        Ok(())
    }

    fn set_state(&mut self, id: u64, state: pb::StoreState) -> Result<(), Refused> {
        let Some(store) = self.records.stores.get(&id) else {
            return Err((NOT_FOUND, format!("there is no store {id}")));
        };
        if store.state() == pb::StoreState::Tombstone {
            return Err((FAILED_PRECONDITION, format!("store {id} is gone for good")));
        }
        if state == pb::StoreState::Up && store.replaced_by != 0 {
            let why =
                format!("store {id} was silent, and store {} has its place; start it anew first", store.replaced_by);
            return Err((FAILED_PRECONDITION, why));
        }
        self.put_store(pb::Store { state: state as i32, given_up: false, ..store.clone() });
        // One that was to begin the first region, and is gone before it did, leaves that to the next.
        let founder = self.records.founding.as_ref().map(|founding| founding.store_id);
        if state == pb::StoreState::Tombstone && founder == Some(id) {
            self.batch.delete(META, FOUNDING);
            self.records.founding = None;
        }
        Ok(())
    }
}

impl StateMachine for PlacementMachine {
    fn mark(&self) -> Mark {
        self.records.read().mark
    }

    fn membership(&self) -> Bytes {
        self.records.read().membership.clone()
    }

    fn found(&mut self, mark: Mark, membership: Bytes) -> Result<(), MachineError> {
        let mut records = self.records.write();
        (records.mark, records.membership) = (mark, membership);
        let mut batch = WriteBatch::new();
        batch.put(META, STATE, &write_state(&records));
        batch.put(META, MEMBERS, &records.membership);
        self.engine.write(&batch)?;
        Ok(self.engine.flush()?)
    }

    fn apply(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) -> Result<(), MachineError> {
        let mut records = self.records.write();
        let mut stage = Stage { records: &mut records, batch: WriteBatch::new(), cluster: self.cluster };
        for entry in entries {
            if entry.index != stage.records.mark.index + 1 {
                let why = format!("entry {} was to be applied after {}", entry.index, stage.records.mark.index);
                return Err(MachineError::Damaged(why));
            }
            let begun = stage.batch.bytes().len();
            match &entry.payload {
                Payload::Nothing => {}
                Payload::Commands(commands) => {
                    for (seq, command) in commands.iter() {
                        let outcome = stage.execute(command);
                        if commands.origin == local {
                            applied.outcomes.push((seq, outcome));
                        }
                    }
                }
                Payload::Membership { membership, done } => {
                    stage.batch.put(META, MEMBERS, membership);
                    stage.records.membership = membership.clone();
                    if let Some((peer, seq)) = done
                        && *peer == local
                    {
                        applied.outcomes.push((*seq, Outcome { code: 0, body: membership.clone() }));
                    }
                }
            }
            let hash = hash::roll(stage.records.mark.hash, &stage.batch.bytes()[begun..]);
            stage.records.mark = Mark { index: entry.index, term: entry.term, hash };
            if entry.index % HASH_EVERY == 0 {
                applied.hashes.push((entry.index, hash));
            }
        }
        let state = write_state(stage.records);
        stage.batch.put(META, STATE, &state);
        let written = self.engine.write(&stage.batch);
        if let Err(error) = written {
            // The same entries may come again: a full disk is waited for.
            *records = load(&*self.engine.view())?;
            applied.outcomes.clear();
            applied.hashes.clear();
            return Err(error.into());
        }
        Ok(())
    }

    fn may_wait(&self) -> bool {
        self.engine.is_stalled()
    }

    fn durable(&self) -> Result<u64, MachineError> {
        let state = self.engine.durable_get(META, STATE)?;
        Ok(state.map(read_state).transpose()?.map_or(0, |(mark, _)| mark.index))
    }

    fn flusher(&self) -> Box<dyn Fn() -> Result<(), MachineError> + Send> {
        let engine = self.engine.clone();
        Box::new(move || Ok(engine.flush()?))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let records = self.records.read();
        Ok(Box::new(snapshot::stream(self.engine.view(), records.mark, records.membership.clone())))
    }

    fn receiver(&self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::new(Receiver::new(self.engine.begin_install()?)))
    }

    fn install(&mut self, staged: &mut dyn SnapshotSink) -> Result<(), MachineError> {
        let receiver = staged
            .as_any()
            .downcast_mut::<Receiver>()
            .ok_or_else(|| MachineError::BadSnapshot("it was received by another machine".into()))?;
        self.engine.commit_install(receiver.install())?;
        *self.records.write() = load(&*self.engine.view())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use storage::memengine::MemEngine;

    use super::*;

    fn region(id: u64, start: &'static str, end: &'static str, version: u64) -> pb::Region {
        let peers = vec![pb::Peer { id: id * 10, store_id: 1, learner: false }];
        pb::Region { id, start: start.into(), end: end.into(), conf_version: 1, version, peers }
    }

    /// What the records have, as `id:start-end`, and what a new machine on the same engine finds.
    fn saved(reports: &[pb::Region]) -> Vec<String> {
        let engine = Arc::new(MemEngine::new(&FAMILIES));
        let mut records = Records::default();
        for report in reports {
            let mut stage = Stage { records: &mut records, batch: WriteBatch::new(), cluster: ClusterId(1) };
            stage.save(report.clone());
            engine.write(&stage.batch).unwrap();
        }
        let shown = |records: &Records| -> Vec<String> {
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let all = records.regions_from(b"");
            all.map(|region| format!("{}:{}-{}", region.id, text(&region.start), text(&region.end))).collect()
        };
        assert_eq!(shown(&load(&*engine.view()).unwrap()), shown(&records));
        assert_eq!(records.regions.len(), records.by_start.len());
        shown(&records)
    }

    #[test]
    fn a_region_that_has_become_part_of_another_one_goes_and_does_not_come_back() {
        let [low, middle, high] = [region(1, "", "d", 3), region(2, "d", "m", 3), region(3, "m", "", 3)];
        let all = [low.clone(), middle.clone(), high.clone()];
        assert_eq!(saved(&all), ["1:-d", "2:d-m", "3:m-"]);
        let with = |more: &[pb::Region]| saved(&[&all[..], more].concat());
        assert_eq!(with(&[region(1, "", "m", 4)]), ["1:-m", "3:m-"]);
        assert_eq!(with(&[region(3, "d", "", 4)]), ["1:-d", "3:d-"]);
        assert_eq!(with(&[region(2, "", "m", 4)]), ["2:-m", "3:m-"]);
        // What is left of it still reports.
        assert_eq!(with(&[region(1, "", "m", 4), middle.clone()]), ["1:-m", "3:m-"]);
        assert_eq!(with(&[region(3, "d", "", 4), middle, region(1, "", "", 5)]), ["1:-"]);
        // The part before a cut keeps its place until it tells of the cut itself.
        assert_eq!(with(&[region(9, "p", "", 4)]), ["1:-d", "2:d-m", "3:m-", "9:p-"]);
        assert_eq!(with(&[region(9, "p", "", 4), region(3, "m", "p", 4)]), ["1:-d", "2:d-m", "3:m-p", "9:p-"]);
        // It was cut, and its part merged, before it told of the cut.
        assert_eq!(with(&[region(9, "p", "", 4), region(2, "d", "p", 5)]), ["1:-d", "2:d-p", "9:p-"]);
        assert_eq!(with(&[region(2, "d", "p", 5), region(9, "p", "", 4)]), ["1:-d", "2:d-p", "9:p-"]);
        // A part of it may still be its own.
        assert_eq!(with(&[region(9, "r", "", 4), region(2, "d", "p", 5)]), ["1:-d", "2:d-p", "3:m-", "9:r-"]);
        // It was merged into one that was cut before it told of either.
        assert_eq!(with(&[region(2, "", "c", 5)]), ["2:-c", "3:m-"]);
        assert_eq!(with(&[region(2, "", "c", 5), region(9, "c", "m", 5)]), ["2:-c", "9:c-m", "3:m-"]);
        assert_eq!(with(&[region(2, "", "c", 5), region(1, "c", "m", 5)]), ["2:-c", "1:c-m", "3:m-"]);
    }

    #[test]
    fn of_two_records_that_begin_with_the_same_key_the_newer_one_counts() {
        for order in [[1, 2], [2, 1]] {
            let mut records = Records::default();
            order.into_iter().for_each(|id| records.put_region(region(id, "", "", id)));
            assert_eq!(records.region_at(b"k").map(|region| region.id), Some(2));
            assert_eq!((records.regions.len(), records.by_start.len()), (1, 1));
        }
    }

    #[test]
    fn ids_that_are_named_are_not_drawn() {
        let mut records = Records { next_id: 5, ..Records::default() };
        let mut stage = Stage { records: &mut records, batch: WriteBatch::new(), cluster: ClusterId(1) };
        stage.save(region(7, "", "", 3));
        assert_eq!(stage.allocate(1), 71, "behind the region's peer");
        let peers = vec![pb::Peer { id: 80, store_id: 90, learner: false }];
        stage.save(pb::Region { peers, version: 2, ..region(7, "", "", 3) });
        assert_eq!(stage.allocate(1), 91, "also if the report is out of date");
        let asking = |store_id: u64| pb::RegisterRequest {
            store_id,
            incarnation: store_id,
            client_url: store_id.to_string(),
            peer_url: store_id.to_string(),
            ..pb::RegisterRequest::default()
        };
        assert_eq!(stage.register(asking(200)).unwrap().store_id, 200);
        assert_eq!(stage.allocate(1), 201);
        assert_eq!(stage.register(pb::RegisterRequest { incarnation: 9, ..asking(0) }).unwrap().store_id, 202);
        assert!(stage.register(asking(ID_MAX + 1)).unwrap_err().1.contains("too large"));
        let taken = |ids| stage.records.taken(ids);
        assert_eq!([taken(2..8), taken(91..201), taken(203..210)], [Some(7), Some(200), None]);
        stage.save(pb::Region { id: u64::MAX, ..region(8, "", "", 9) });
        assert_eq!(stage.allocate(1), 203, "what nobody has drawn does not use the ids up");
    }
}
