//! Two regions on each of some stores, and their logs as lists; nothing but the state machines is real.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::rng::Rng;
use base::{ClusterId, GroupId, NodeId, PeerId, hash};
use bytes::Bytes;
use consensus::entry::{Commands, CommandsBuilder};
use consensus::{
    Applied, Entry, MachineError, Mark, Member, MemberRole, Membership, Payload, SnapshotSink as _, StateMachine as _,
};
use parking_lot::Mutex;
use prost::Message as _;
use proto::flaredb as pb;
use proto::flaredb::command::What;
use storage::memengine::MemEngine;
use storage::{Engine, EngineError, WriteBatch};
use tempfile::TempDir;

use super::{Merged, displaced};
use crate::region::layout::{self, FAMILIES, RAW, REGION};
use crate::region::machine::{FROZEN, Happened, REFUSED, RegionMachine, STALE, load};
use crate::region::snapshot::Receiver;
use crate::region::{RangeMap, RegionState};

pub(in crate::region) const SOURCE: u64 = 1;
pub(in crate::region) const TARGET: u64 = 2;
const NODES: [u64; 3] = [1, 2, 3];

/// A store that has applied some of the logs.
pub(in crate::region) struct World {
    node: u64,
    pub engine: Arc<MemEngine>,
    pub folder: TempDir,
    map: Arc<RangeMap>,
    pub machines: BTreeMap<u64, RegionMachine>,
    heard: Arc<Mutex<Vec<String>>>,
}

/// What is committed. The first entry's index is 2.
#[derive(Default)]
pub(in crate::region) struct Logs(BTreeMap<u64, Vec<Entry>>);

impl Logs {
    fn push(&mut self, region: u64, version: u64, what: What) -> Entry {
        let log = self.0.entry(region).or_default();
        let mut commands = CommandsBuilder::new(peer(region, NODES[0]));
        commands.push(7, &pb::Command { version, what: Some(what) }.encode_to_vec());
        let payload = Payload::Commands(Commands::decode(commands.finish()).unwrap());
        log.push(Entry { index: log.len() as u64 + 2, term: 1, payload });
        log.last().unwrap().clone()
    }

    fn from(&self, region: u64, after: u64) -> &[Entry] {
        self.0.get(&region).map_or(&[], |log| &log[(after as usize - 1).min(log.len())..])
    }
}

fn peer(region: u64, node: u64) -> PeerId {
    PeerId(region * 10 + node)
}

fn membership(region: u64, nodes: &[u64]) -> Membership {
    let member = |node: &u64| Member {
        node: NodeId(*node),
        peer: peer(region, *node),
        role: MemberRole::Voter,
        ..Member::default()
    };
    Membership::founding(ClusterId(1), nodes.iter().map(member).collect())
}

impl World {
    /// The source has the keys before `m`, the target those from there on.
    pub fn new(node: u64) -> World {
        let mut world = World::empty(node);
        world.found(SOURCE, "", "m", &NODES);
        world.found(TARGET, "m", "", &NODES);
        world
    }

    pub fn empty(node: u64) -> World {
        World {
            node,
            engine: Arc::new(MemEngine::new(&FAMILIES)),
            folder: TempDir::new().unwrap(),
            map: Arc::default(),
            machines: BTreeMap::new(),
            heard: Arc::default(),
        }
    }

    fn found(&mut self, region: u64, start: &'static str, end: &'static str, nodes: &[u64]) {
        let mut batch = WriteBatch::new();
        batch.put(REGION, &layout::peer_key(GroupId(region)), &peer(region, self.node).0.to_le_bytes());
        self.engine.write(&batch).unwrap();
        let mut machine = self.open(region).unwrap();
        machine.set_range(start.into(), end.into());
        let mark = Mark { index: 1, term: 1, hash: hash::START };
        machine.found(mark, membership(region, nodes).encode().into()).unwrap();
        self.machines.insert(region, machine);
    }

    pub fn open(&self, region: u64) -> Result<RegionMachine, MachineError> {
        let heard = self.heard.clone();
        let sink = move |what| {
            heard.lock().push(match what {
                Happened::Born(regions) => format!("{region} bore {}", regions.len()),
                Happened::Taken { source, .. } => format!("{region} took {source}"),
                Happened::Frozen(frozen) => format!("{region} frozen {frozen}"),
                Happened::Behind { source, index, .. } => format!("{region} waits for {source} at {index}"),
            });
        };
        let incoming = self.folder.path().to_owned();
        RegionMachine::open(self.engine.clone(), incoming, GroupId(region), self.map.clone(), Arc::new(sink))
    }

    /// Power is lost, and comes back.
    pub fn crash(&mut self) {
        self.machines.clear();
        self.map = Arc::default();
        self.engine.crash();
        let here = |region: &u64| self.engine.get(REGION, &layout::peer_key(GroupId(*region))).unwrap().is_some();
        self.machines = [SOURCE, TARGET].into_iter().filter(here).map(|id| (id, self.open(id).unwrap())).collect();
    }

    /// Applies up to so many entries at once; the code of the last one's outcome, where this is the node that asked.
    fn apply(&mut self, logs: &Logs, region: u64, most: usize) -> Result<Option<u32>, MachineError> {
        let Some(machine) = self.machines.get_mut(&region) else { return Ok(None) };
        let entries = logs.from(region, machine.mark().index);
        let mut applied = Applied::default();
        machine.apply(&entries[..most.min(entries.len())], peer(region, self.node), &mut applied)?;
        Ok(applied.outcomes.last().map(|(_, outcome)| outcome.code))
    }

    pub fn state(&self, region: u64) -> RegionState {
        load(&*self.engine, GroupId(region)).unwrap()
    }

    /// Appends a command and applies all that there is of that log.
    pub fn run(&mut self, logs: &mut Logs, region: u64, what: What) -> u32 {
        logs.push(region, self.state(region).version, what);
        self.apply(logs, region, usize::MAX).unwrap().expect("the first node asks")
    }

    pub fn has(&self, key: &str) -> Option<Bytes> {
        self.engine.get(RAW, &layout::raw_key(key.as_bytes())).unwrap()
    }

    pub fn at(&self, key: &str) -> u64 {
        self.map.find(key.as_bytes()).map_or(0, |region| region.0)
    }

    /// A region as it is sent.
    pub fn stream(&self, region: u64) -> Vec<Bytes> {
        let mut stream = self.machines[&region].snapshot().unwrap();
        std::iter::from_fn(|| stream.next_chunk().unwrap()).collect()
    }

    pub fn receive(&self, region: u64, chunks: &[Bytes]) -> Result<Receiver, MachineError> {
        let receiver = Receiver::new(self.engine.clone(), self.folder.path(), GroupId(region))?;
        let mut receiver = receiver.claiming(self.map.claims.clone());
        chunks.iter().try_for_each(|chunk| receiver.write(chunk.clone()))?;
        receiver.finish()?;
        Ok(receiver)
    }

    pub fn freeze(&self) -> What {
        let target = self.state(TARGET);
        What::Freeze(pb::Freeze {
            target: TARGET,
            target_version: target.version,
            target_start: target.start,
            target_end: target.end,
        })
    }

    fn commit(&self) -> What {
        let state = self.state(SOURCE);
        let frozen = state.frozen.clone().unwrap();
        What::CommitMerge(pb::CommitMerge {
            source: Some(state.describe(GroupId(SOURCE))),
            frozen_at: frozen.at,
            frozen_term: frozen.term,
            frozen_hash: frozen.hash,
        })
    }
}

pub(in crate::region) fn put(key: &str, value: &str) -> What {
    let mutation = pb::Mutation { key: key.to_owned().into(), value: Some(value.to_owned().into()) };
    What::Write(pb::Write { mutations: vec![mutation], tell: false })
}

pub(in crate::region) fn split(key: &'static str, region: u64) -> What {
    let peers = NODES.map(|node| proto::placement::Peer { id: region * 10 + node, store_id: node, learner: false });
    let region = pb::NewRegion { region_id: region, start: key.into(), peers: peers.to_vec() };
    What::Split(pb::Split { regions: vec![region] })
}

#[test]
fn a_neighbour_takes_a_region_in_with_all_that_is_in_it() {
    let (mut logs, mut world, mut other) = (Logs::default(), World::new(1), World::new(2));
    assert_eq!(world.run(&mut logs, SOURCE, put("a", "1")), 0);
    assert_eq!(world.run(&mut logs, TARGET, put("x", "2")), 0);
    let freeze = world.freeze();
    assert_eq!(world.run(&mut logs, SOURCE, freeze.clone()), 0);
    assert_eq!(world.heard.lock().last().unwrap(), "1 frozen true");
    for refused in [put("a", "3"), split("c", 9), freeze, What::AbortMerge(pb::AbortMerge {}), world.commit()] {
        assert_eq!(world.run(&mut logs, SOURCE, refused), FROZEN);
    }
    let at = world.state(SOURCE).frozen.unwrap().at;
    assert_eq!(world.run(&mut logs, SOURCE, What::Seal(pb::Seal { frozen_at: at })), 0);
    assert_eq!(world.run(&mut logs, SOURCE, What::Seal(pb::Seal { frozen_at: at + 1 })), REFUSED);
    let commit = world.commit();
    assert_eq!(world.run(&mut logs, TARGET, commit.clone()), 0);
    assert_eq!(world.heard.lock().last().unwrap(), "2 took 1");
    let state = world.state(TARGET);
    assert_eq!((&state.start[..], &state.end[..], state.version), (&b""[..], &b""[..], 2));
    assert_eq!((world.at("a"), world.at("x")), (TARGET, TARGET));
    assert_eq!(world.run(&mut logs, TARGET, put("a", "4")), 0);
    assert_eq!((world.has("a").unwrap(), world.has("x").unwrap()), (Bytes::from("4"), Bytes::from("2")));
    assert_eq!(world.run(&mut logs, TARGET, commit), REFUSED, "once");

    // What is left of the source does nothing any more, whatever its log says.
    let late = logs.push(SOURCE, 1, put("a", "5"));
    let source = world.machines.get_mut(&SOURCE).unwrap();
    let mut applied = Applied::default();
    source.apply(&[late], peer(SOURCE, 1), &mut applied).unwrap();
    assert_eq!(applied.outcomes[0].1.code, FROZEN);
    assert!(!source.is_sound() && world.has("a").unwrap() == "4");
    let records: [fn(GroupId) -> [u8; 9]; 3] = [layout::peer_key, layout::state_key, layout::membership_key];
    assert!(records.iter().all(|key| world.engine.get(REGION, &key(GroupId(SOURCE))).unwrap().is_none()));
    let retired = world.engine.get(REGION, &layout::retired_key(GroupId(SOURCE))).unwrap().unwrap();
    assert_eq!(layout::read_peer(&retired).unwrap(), peer(SOURCE, 1));

    // Another replica comes to the same, in batches of another size.
    other.apply(&logs, SOURCE, usize::MAX).unwrap();
    other.apply(&logs, TARGET, usize::MAX).unwrap();
    assert_eq!(other.state(TARGET), world.state(TARGET));

    // What is split off remembers too.
    assert_eq!(world.run(&mut logs, TARGET, split("g", 3)), 0);
    assert_eq!(world.state(3).merged, world.state(TARGET).merged);
    assert_eq!(world.run(&mut logs, TARGET, What::ForgetMerged(pb::ForgetMerged { source: SOURCE })), 0);
    assert!(world.state(TARGET).merged.is_empty() && !world.state(3).merged.is_empty());
}

#[test]
fn whatever_changes_the_target_ends_the_merge() {
    let changes: [fn(&mut World, &mut Logs); 3] = [
        |world, logs| assert_eq!(world.run(logs, TARGET, What::AbortMerge(pb::AbortMerge {})), 0),
        |world, logs| assert_eq!(world.run(logs, TARGET, split("t", 9)), 0),
        |world, logs| {
            // Frozen for the source's sake, and back.
            let (state, version) = (world.state(SOURCE), world.state(SOURCE).version);
            let freeze = pb::Freeze {
                target: SOURCE,
                target_version: version,
                target_start: state.start,
                target_end: state.end,
            };
            assert_eq!(world.run(logs, TARGET, What::Freeze(freeze)), 0);
            let commit = world.commit();
            assert_eq!(world.run(logs, TARGET, commit), FROZEN);
            let frozen_at = world.state(TARGET).frozen.unwrap().at;
            assert_eq!(world.run(logs, TARGET, What::Thaw(pb::Thaw { frozen_at: 3 })), STALE);
            assert_eq!(world.run(logs, TARGET, What::Thaw(pb::Thaw { frozen_at })), 0);
        },
    ];
    for change in changes {
        let (mut logs, mut world) = (Logs::default(), World::new(1));
        let freeze = world.freeze();
        assert_eq!(world.run(&mut logs, SOURCE, freeze), 0);
        let (commit, version) = (world.commit(), world.state(TARGET).version);
        change(&mut world, &mut logs);
        logs.push(TARGET, version, commit);
        assert_eq!(world.apply(&logs, TARGET, usize::MAX).unwrap(), Some(STALE));
        let frozen_at = world.state(SOURCE).frozen.unwrap().at;
        assert_eq!(world.run(&mut logs, SOURCE, What::Thaw(pb::Thaw { frozen_at })), 0);
        assert_eq!(world.heard.lock().last().unwrap(), "1 frozen false");
        assert_eq!(world.run(&mut logs, SOURCE, put("a", "1")), 0);
        assert_eq!((world.at("a"), world.state(SOURCE).version), (SOURCE, 2));
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (mut logs, mut world) = (Logs::default(), World::new(1));
    // No neighbours.
    let far = pb::Freeze { target: 3, target_version: 1, target_start: "n".into(), target_end: Bytes::new() };
    assert_eq!(world.run(&mut logs, SOURCE, What::Freeze(far)), REFUSED);
    let freeze = world.freeze();
    assert_eq!(world.run(&mut logs, SOURCE, freeze), 0);
    let What::CommitMerge(commit) = world.commit() else { unreachable!() };
    let mut elsewhere = commit.clone();
    elsewhere.source.as_mut().unwrap().peers[2].store_id = 4;
    let mut fewer = commit.clone();
    fewer.source.as_mut().unwrap().peers.pop();
    let mut apart = commit.clone();
    apart.source.as_mut().unwrap().end = "l".into();
    for wrong in [elsewhere, fewer, apart] {
        assert_eq!(world.run(&mut logs, TARGET, What::CommitMerge(wrong)), REFUSED);
    }
    assert_eq!(world.run(&mut logs, TARGET, What::CommitMerge(commit)), 0);
    // One that has just taken a neighbour in is not merged before that is settled.
    assert_eq!(world.run(&mut logs, TARGET, split("t", 3)), 0);
    let next = pb::Freeze { target: 3, target_version: 3, target_start: "t".into(), target_end: Bytes::new() };
    assert_eq!(world.run(&mut logs, TARGET, What::Freeze(next.clone())), REFUSED);
    assert_eq!(world.run(&mut logs, TARGET, What::ForgetMerged(pb::ForgetMerged { source: SOURCE })), 0);
    assert_eq!(world.run(&mut logs, TARGET, What::Freeze(next)), 0);
}

#[test]
fn after_a_power_cut_the_target_waits_for_the_source() {
    let (mut logs, mut world, mut other) = (Logs::default(), World::new(1), World::new(2));
    assert_eq!(world.run(&mut logs, SOURCE, put("a", "1")), 0);
    world.engine.flush().unwrap();
    assert_eq!(world.run(&mut logs, SOURCE, put("a", "2")), 0);
    let freeze = world.freeze();
    assert_eq!(world.run(&mut logs, SOURCE, freeze), 0);
    assert_eq!(world.run(&mut logs, TARGET, put("x", "3")), 0);
    let commit = world.commit();
    assert_eq!(world.run(&mut logs, TARGET, commit), 0);
    assert_eq!(world.run(&mut logs, TARGET, put("a", "4")), 0);
    world.crash();
    assert_eq!((world.at("a"), world.at("x"), world.has("a")), (SOURCE, TARGET, Some("1".into())));
    let before = world.state(TARGET);
    for _ in 0..2 {
        let held = world.apply(&logs, TARGET, usize::MAX);
        assert!(matches!(held, Err(MachineError::Engine(EngineError::Held))), "{held:?}");
        assert_eq!(
            (world.heard.lock().last().unwrap().as_str(), world.state(TARGET)),
            ("2 waits for 1 at 4", before.clone())
        );
    }
    world.apply(&logs, SOURCE, usize::MAX).unwrap();
    world.apply(&logs, TARGET, usize::MAX).unwrap();
    assert!(world.machines[&TARGET].is_sound());
    other.apply(&logs, SOURCE, usize::MAX).unwrap();
    other.apply(&logs, TARGET, usize::MAX).unwrap();
    assert_eq!((world.state(TARGET), world.has("a")), (other.state(TARGET), Some("4".into())));
    // Once it is on disk it stays.
    world.engine.flush().unwrap();
    world.crash();
    assert_eq!((world.at("a"), world.machines.len()), (TARGET, 1));
}

#[test]
fn a_replica_that_lacks_the_source_answers_nothing() {
    let spoil: [fn(&mut World); 3] = [
        // Gone.
        |world| {
            let mut batch = WriteBatch::new();
            batch.delete(REGION, &layout::peer_key(GroupId(SOURCE)));
            world.engine.write(&batch).unwrap();
        },
        // Another one.
        |world| {
            let mut batch = WriteBatch::new();
            batch.put(REGION, &layout::peer_key(GroupId(SOURCE)), &99u64.to_le_bytes());
            world.engine.write(&batch).unwrap();
        },
        // It has come to something else.
        |world| {
            let mut state = world.state(SOURCE);
            state.frozen.as_mut().unwrap().hash += 1;
            let mut batch = WriteBatch::new();
            batch.put(REGION, &layout::state_key(GroupId(SOURCE)), &layout::write_state(&state));
            world.engine.write(&batch).unwrap();
        },
    ];
    for spoil in spoil {
        let (mut logs, mut world, mut other) = (Logs::default(), World::new(1), World::new(2));
        let freeze = world.freeze();
        assert_eq!(world.run(&mut logs, SOURCE, freeze), 0);
        let commit = world.commit();
        assert_eq!(world.run(&mut logs, TARGET, commit), 0);
        other.apply(&logs, SOURCE, usize::MAX).unwrap();
        spoil(&mut other);
        other.apply(&logs, TARGET, usize::MAX).unwrap();
        assert!(world.machines[&TARGET].is_sound() && !other.machines[&TARGET].is_sound());
        assert_ne!(world.state(TARGET).mark.hash, other.state(TARGET).mark.hash, "the others notice");
        assert_eq!(world.state(TARGET).version, other.state(TARGET).version);
        assert_eq!(other.at("x"), 0);
        other.engine.flush().unwrap();
        other.crash();
        assert!(!other.machines[&TARGET].is_sound(), "nor after a start");
    }
}

/// What a region is, as it comes to another store.
fn send(from: &World, to: &World, region: u64) -> Result<Receiver, MachineError> {
    to.receive(region, &from.stream(region))
}

#[test]
fn a_snapshot_takes_the_place_of_what_the_region_has_taken_in() {
    for power_is_cut in [false, true] {
        let (mut logs, mut world, mut late) = (Logs::default(), World::new(1), World::new(2));
        assert_eq!(world.run(&mut logs, SOURCE, put("a", "1")), 0);
        assert_eq!(world.run(&mut logs, SOURCE, put("b", "1")), 0);
        let freeze = world.freeze();
        assert_eq!(world.run(&mut logs, SOURCE, freeze), 0);
        late.apply(&logs, SOURCE, usize::MAX).unwrap();
        // Nobody has merged yet.
        assert!(displaced(&*late.engine, GroupId(TARGET), &world.state(TARGET)).unwrap().is_empty());
        let commit = world.commit();
        assert_eq!(world.run(&mut logs, TARGET, commit), 0);
        let delete = pb::Mutation { key: "b".into(), value: None };
        let delete = What::Write(pb::Write { mutations: vec![delete], tell: false });
        assert_eq!(world.run(&mut logs, TARGET, delete), 0);
        // What was split off must not take it, while the one that took it in is still to do so there.
        assert_eq!(world.run(&mut logs, TARGET, split("Z", 3)), 0);
        let part = world.open(3).unwrap();
        world.machines.insert(3, part);
        assert!(send(&world, &late, 3).is_err());
        assert!(send(&world, &late, TARGET).is_ok());
        let mut forgotten = world.state(3);
        assert_eq!(displaced(&*late.engine, GroupId(3), &forgotten).unwrap(), []);
        forgotten.merged = vec![Merged { version: 1, ..forgotten.merged[0].clone() }];
        assert_eq!(displaced(&*late.engine, GroupId(3), &forgotten).unwrap(), [(GroupId(SOURCE), peer(SOURCE, 2))]);

        // One that the region did not take in is left alone.
        let (mut logs, mut world) = (Logs::default(), World::new(1));
        assert_eq!(world.run(&mut logs, SOURCE, put("a", "1")), 0);
        assert_eq!(world.run(&mut logs, SOURCE, put("b", "1")), 0);
        let freeze = world.freeze();
        assert_eq!(world.run(&mut logs, SOURCE, freeze), 0);
        let commit = world.commit();
        assert_eq!(world.run(&mut logs, TARGET, commit), 0);
        let mut own = world.state(TARGET);
        own.merged.clear();
        assert!(displaced(&*late.engine, GroupId(TARGET), &own).unwrap().is_empty());
        assert_eq!(world.run(&mut logs, TARGET, put("a", "2")), 0);
        let mut receiver = send(&world, &late, TARGET).unwrap();
        if power_is_cut {
            receiver.decide().unwrap();
            late.engine.flush().unwrap();
            late.crash();
            let target = late.open(TARGET).unwrap();
            late.machines = BTreeMap::from([(TARGET, target)]);
        } else {
            late.machines.get_mut(&TARGET).unwrap().install(&mut receiver).unwrap();
            assert_eq!(late.heard.lock().last().unwrap(), "2 took 1");
            let source = late.machines.get_mut(&SOURCE).unwrap();
            assert!(!source.is_sound());
            // One of its own that comes too late changes nothing.
            let mut own = send(&World::new(3), &World::new(3), SOURCE).unwrap();
            source.install(&mut own).unwrap();
            assert_eq!(source.mark().index, 1);
        }
        assert_eq!((late.at("a"), late.has("a")), (TARGET, Some("2".into())));
        assert_eq!(late.state(TARGET), world.state(TARGET));
        assert!(late.engine.get(REGION, &layout::peer_key(GroupId(SOURCE))).unwrap().is_none());
    }
}

/// Three stores and a leader who knows all, at their own paces, with power cuts. `early`: the merge is committed before all
/// have applied the freeze.
fn run(seed: u64, early: bool) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let mut logs = Logs::default();
    let mut leader = World::new(1);
    let mut stores = NODES.map(World::new);
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    // The first store may answer for the source without asking, until it stops; what it has is all that was written there.
    let mut lease = true;
    let (mut decided, mut frozen_at) = (false, 0);
    for step in 0..400 {
        let at = rng.below(3) as usize;
        match rng.below(12) {
            0..=3 => {
                let region = if rng.below(2) == 0 { SOURCE } else { TARGET };
                let most = 1 + rng.below(4) as usize;
                match stores[at].apply(&logs, region, most) {
                    Ok(_) | Err(MachineError::Engine(EngineError::Held)) => {}
                    Err(why) => return Err(why.to_string()),
                }
            }
            4 if rng.below(8) == 0 => {
                stores[at].crash();
                lease &= at > 0;
            }
            4 | 5 => stores[at].engine.maybe_flush(&mut rng),
            6..=8 => {
                let (key, value) = (["a", "b", "x"][rng.below(3) as usize], step.to_string());
                let region = leader.at(key);
                if leader.run(&mut logs, region, put(key, &value)) == 0 {
                    model.insert(key.to_owned(), value);
                }
            }
            9 => {
                let state = leader.state(SOURCE);
                if state.version > 0 && state.frozen.is_none() && step > 50 {
                    let freeze = leader.freeze();
                    leader.run(&mut logs, SOURCE, freeze);
                    decided = false;
                    frozen_at = leader.state(SOURCE).mark.index;
                } else if let Some(frozen) = state.frozen {
                    let has_it = |store: &World| store.state(SOURCE).frozen.is_some_and(|it| it.at == frozen.at);
                    if decided {
                        leader.run(&mut logs, SOURCE, What::Thaw(pb::Thaw { frozen_at: frozen.at }));
                    } else if rng.below(6) == 0 {
                        leader.run(&mut logs, TARGET, What::AbortMerge(pb::AbortMerge {}));
                        decided = true;
                    } else if early || stores.iter().all(has_it) {
                        let commit = leader.commit();
                        leader.run(&mut logs, TARGET, commit);
                    }
                }
            }
            _ => {
                let first = &stores[0];
                let state = first.state(SOURCE);
                let has_all = state.version > 0 && state.frozen.is_none() && state.mark.index + 1 >= frozen_at;
                if lease && has_all && leader.at("a") == TARGET {
                    let seen = first.has("a").map(|value| String::from_utf8(value.to_vec()).unwrap());
                    if seen.as_ref() != model.get("a") {
                        return Err(format!("step {step}: the old leader's {seen:?} is not {:?}", model.get("a")));
                    }
                }
            }
        }
    }
    for store in &mut stores {
        for _ in 0..2 {
            for region in [TARGET, SOURCE, TARGET] {
                match store.apply(&logs, region, usize::MAX) {
                    Ok(_) | Err(MachineError::Engine(EngineError::Held)) => {}
                    Err(why) => return Err(why.to_string()),
                }
            }
        }
        for region in [SOURCE, TARGET] {
            if store.state(region) != leader.state(region) {
                return Err(format!("region {region} of store {} is another one", store.node));
            }
        }
        if !store.machines[&TARGET].is_sound() {
            return Err(format!("store {} lacks something", store.node));
        }
        for key in ["a", "b", "x"] {
            let value = store.has(key).map(|value| String::from_utf8(value.to_vec()).unwrap());
            if value.as_ref() != model.get(key) || store.at(key) != leader.at(key) {
                return Err(format!("store {}: {key} is {value:?}, not {:?}", store.node, model.get(key)));
            }
        }
    }
    Ok(())
}

#[test]
fn nothing_is_lost_and_nothing_old_is_read_whatever_the_order() {
    for seed in 0..300 {
        if let Err(why) = run(seed, false) {
            panic!("seed {seed}: {why}");
        }
    }
}

/// The check has teeth.
#[test]
fn a_merge_that_does_not_wait_is_noticed() {
    assert!((0..300).any(|seed| run(seed, true).is_err()));
}
