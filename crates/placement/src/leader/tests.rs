//! A leader of a group that is only pretended: what is proposed is applied at once or after a while, and whether a quorum
//! stands behind a read is the test's choice.

use std::sync::atomic::AtomicBool;

use base::ClusterId;
use consensus::entry::{Commands, CommandsBuilder};
use consensus::{Applied, Entry, GroupStatus, Mark, Membership, MembershipChange, Outcome, Payload, StateMachine as _};
use node::ground::Later;
use node::handle::ReadGrant;
use storage::memengine::MemEngine;

use super::*;
use crate::machine::{FAMILIES, PlacementMachine};
use crate::model::{Cause, Step};

const LOCAL: PeerId = PeerId(1);

/// What leader and test share.
struct Group {
    machine: Mutex<PlacementMachine>,
    now_ms: AtomicU64,
    term: AtomicU64,
    /// A new leader is elsewhere, and this one has not heard of it.
    cut_off: AtomicBool,
    reads: AtomicU64,
    /// What a read makes this member learn of.
    news: Mutex<Option<pb::Region>>,
    /// Turns of the runtime that an entry takes.
    slowness: AtomicU64,
}

#[derive(Clone)]
struct Pretended(Arc<Group>);

impl Pretended {
    fn apply(&self, command: &[u8]) -> Outcome {
        let mut machine = self.0.machine.lock();
        let mut builder = CommandsBuilder::new(LOCAL);
        builder.push(1, command);
        let payload = Payload::Commands(Commands::decode(builder.finish()).unwrap());
        let index = machine.mark().index + 1;
        let mut applied = Applied::default();
        machine.apply(&[Entry { index, term: 1, payload }], LOCAL, &mut applied).unwrap();
        applied.outcomes.pop().unwrap().1
    }
}

impl Replicated for Pretended {
    fn id(&self) -> GroupId {
        GroupId(1)
    }

    fn status(&self) -> Arc<GroupStatus> {
        let term = self.0.term.load(Ordering::SeqCst);
        Arc::new(GroupStatus { role: Role::Leader, term, ..GroupStatus::default() })
    }

    fn membership(&self) -> Arc<Membership> {
        Arc::default()
    }

    fn now(&self) -> Time {
        Time::from_millis(self.0.now_ms.load(Ordering::SeqCst))
    }

    fn propose(&self, command: Bytes) -> Later<Result<Outcome, Refusal>> {
        let group = self.clone();
        Box::pin(async move {
            for _ in 0..group.0.slowness.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
            Ok(group.apply(&command))
        })
    }

    fn change(&self, _change: MembershipChange) -> Later<Result<Membership, Refusal>> {
        Box::pin(std::future::ready(Err(Refusal::NoGroup)))
    }

    fn transfer(&self, _to: Option<NodeId>) -> Later<Result<(), Refusal>> {
        Box::pin(std::future::ready(Err(Refusal::NoGroup)))
    }

    fn read(&self) -> Later<Result<ReadGrant, Refusal>> {
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        if let Some(region) = self.0.news.lock().take() {
            let what = Some(What::Save(pb::SaveRegions { regions: vec![region] }));
            self.apply(&pb::Command { what }.encode_to_vec());
        }
        let index = self.0.machine.lock().mark().index;
        let cut_off = self.0.cut_off.load(Ordering::SeqCst);
        let grant = if cut_off { Err(Refusal::TimedOut) } else { Ok(ReadGrant { index, valid_until: None }) };
        Box::pin(std::future::ready(grant))
    }

    fn is_sound(&self) -> bool {
        true
    }

    fn differs(&self) -> bool {
        false
    }

    fn hold_group(&self, _held: bool) {}

    fn snapshot_bytes_sent(&self) -> u64 {
        0
    }

    fn still_valid(&self, _grant: &ReadGrant) -> bool {
        true
    }
}

struct World {
    group: Pretended,
    leader: Arc<Leader>,
    runtime: tokio::runtime::Runtime,
}

impl World {
    /// So many stores, from 1 on.
    fn new(stores: u64) -> World {
        let mut machine = PlacementMachine::open(Arc::new(MemEngine::new(&FAMILIES)), ClusterId(7)).unwrap();
        machine.found(Mark { index: 1, term: 1, hash: base::hash::START }, Bytes::new()).unwrap();
        let records = machine.records();
        let group = Pretended(Arc::new(Group {
            machine: Mutex::new(machine),
            now_ms: AtomicU64::new(1000),
            term: AtomicU64::new(1),
            cut_off: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            news: Mutex::default(),
            slowness: AtomicU64::new(0),
        }));
        let leader = Leader::new(group.clone(), records, Policy::default(), Arc::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let world = World { group, leader, runtime };
        for store in 1..=stores {
            world.run(world.leader.register(asking(store, store))).unwrap();
        }
        world
    }

    fn run<T>(&self, task: impl Future<Output = T>) -> T {
        self.runtime.block_on(task)
    }

    fn pass(&self, time: Duration) {
        self.group.0.now_ms.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
    }

    fn heartbeat(&self, store: u64, led: Vec<pb::RegionReport>, others: &[(u64, u64)]) -> pb::HeartbeatResponse {
        self.try_heartbeat(store, led, others).unwrap()
    }

    fn try_heartbeat(
        &self,
        store: u64,
        led: Vec<pb::RegionReport>,
        others: &[(u64, u64)],
    ) -> Result<pb::HeartbeatResponse, Status> {
        let others = others.iter().map(|(region_id, peer_id)| pb::Replica { region_id: *region_id, peer_id: *peer_id });
        let incarnation = self.leader.records().read().stores[&store].incarnation;
        let others = others.collect();
        let (capacity_bytes, available_bytes) = (1 << 40, 1 << 40);
        let stats = Some(pb::StoreStats { capacity_bytes, available_bytes, ..pb::StoreStats::default() });
        let request = pb::HeartbeatRequest { store_id: store, incarnation, stats, led, others, ..Default::default() };
        self.run(self.leader.heartbeat(request))
    }
}

fn asking(store_id: u64, incarnation: u64) -> pb::RegisterRequest {
    let (client_url, peer_url) = (format!("http://s{incarnation}:1"), format!("s{incarnation}:2"));
    pb::RegisterRequest { store_id, incarnation, client_url, peer_url, ..pb::RegisterRequest::default() }
}

/// The whole key space, in these peers: id and store.
fn region(id: u64, conf_version: u64, peers: &[(u64, u64)]) -> pb::RegionReport {
    let peer = |(id, store_id): &(u64, u64)| pb::Peer { id: *id, store_id: *store_id, learner: false };
    let peers = peers.iter().map(peer).collect();
    let region = pb::Region { id, conf_version, version: 1, peers, ..pb::Region::default() };
    pb::RegionReport { region: Some(region), measured: true, ..pb::RegionReport::default() }
}

fn operator(world: &World, region: u64, steps: Vec<Step>) -> Operator {
    let epoch = world.leader.term().unwrap().view.region(GroupId(region)).unwrap().epoch;
    Operator { region: GroupId(region), epoch, cause: Cause::Admin, steps, reason: String::new(), rejected: Vec::new() }
}

/// Whoever begins with records that lag draws ids that are in use.
#[test]
fn no_operator_begins_with_an_id_that_is_in_use() {
    let world = World::new(4);
    world.heartbeat(1, vec![region(7, 1, &[(11, 1), (12, 2), (13, 3)])], &[]);
    let next = world.run(world.leader.allocate(1)).unwrap() + 1;
    // A region that was born elsewhere has what comes next, by a record that did not move the sequence.
    let stolen = pb::Region { id: 9, ..region(9, 1, &[(next, 4)]).region.unwrap() };
    world.leader.records().write().plant(stolen);
    let add = operator(&world, 7, vec![Step::AddLearner { store: NodeId(4), peer: PeerId::NONE }]);
    assert_eq!(world.run(world.leader.begin(add.clone())).unwrap(), None);
    assert!(world.run(world.leader.begin(add)).unwrap().is_some(), "the next one is free");
}

#[test]
fn a_damaged_store_is_let_go_on_word_that_is_newer_than_its_question() {
    let world = World::new(3);
    let second = Duration::from_secs(1);
    let report = || vec![region(7, 1, &[(11, 1), (12, 2), (13, 3)])];
    let ask = || world.run(world.leader.register(pb::RegisterRequest { lost: true, ..asking(0, 1) }));
    let refused = |words: &str| {
        let why = ask().unwrap_err();
        assert!(why.code == Code::Unavailable && why.message.contains(words), "{}", why.message);
    };
    world.heartbeat(2, report(), &[]);
    world.heartbeat(3, Vec::new(), &[(7, 13)]);
    world.pass(second * 10);
    // All that is known is of ten seconds ago.
    refused("has not reported since");
    world.pass(second);
    world.heartbeat(2, report(), &[]);
    refused("only 1 others are well");
    world.heartbeat(3, Vec::new(), &[(7, 13)]);
    // It has not asked for so long that it may have been well in between.
    world.pass(second * 20);
    world.heartbeat(3, Vec::new(), &[(7, 13)]);
    refused("has not reported since");
    world.pass(second);
    world.heartbeat(2, vec![pb::RegionReport { pending: vec![13], ..report().remove(0) }], &[]);
    refused("only 1 others are well");
    world.heartbeat(2, report(), &[]);
    ask().unwrap();
    assert_eq!(world.leader.records().read().stores[&1].state(), pb::StoreState::Tombstone);
}

#[test]
fn no_replica_is_taken_away_on_the_word_of_a_leader_that_was_replaced() {
    let world = World::new(3);
    world.heartbeat(1, vec![region(7, 1, &[(11, 1), (12, 2)])], &[]);
    world.pass(Duration::from_secs(20));
    world.heartbeat(1, vec![region(7, 1, &[(11, 1), (12, 2)])], &[]);
    let retired = || world.try_heartbeat(3, Vec::new(), &[(7, 13)]).map(|answer| answer.retired.len());
    let reads = || world.group.0.reads.load(Ordering::SeqCst);
    assert_eq!(retired(), Ok(1));
    world.group.0.cut_off.store(true, Ordering::SeqCst);
    assert!(retired().is_err(), "no quorum stands behind it");
    // It is a member by now, and this one has not applied that yet.
    world.group.0.cut_off.store(false, Ordering::SeqCst);
    *world.group.0.news.lock() = region(7, 2, &[(11, 1), (12, 2), (13, 3)]).region;
    assert_eq!(retired(), Ok(0));
    let before = reads();
    assert_eq!(retired(), Ok(0));
    assert_eq!(reads(), before, "where nothing is taken away, nobody is asked");
}

/// A store has admitted a replica, and the region's leader is about to make it a member.
#[test]
fn a_replica_that_an_ended_operator_was_to_add_is_spared_for_a_while() {
    let world = World::new(3);
    let report = || vec![region(7, 1, &[(11, 1), (12, 2)])];
    world.heartbeat(1, report(), &[]);
    world.pass(Duration::from_secs(60));
    let add = operator(&world, 7, vec![Step::AddLearner { store: NodeId(3), peer: PeerId::NONE }]);
    world.run(world.leader.begin(add)).unwrap();
    let steps = world.heartbeat(1, report(), &[]).steps;
    let Some(pb::step::Action::AddLearner(peer)) = &steps[0].action else { panic!("{steps:?}") };
    let retired = || world.heartbeat(3, Vec::new(), &[(7, peer.id)]).retired.len();
    world.leader.cancel(GroupId(7)).unwrap().unwrap();
    assert_eq!(retired(), 0);
    world.pass(Duration::from_secs(14));
    assert_eq!(retired(), 0);
    world.pass(Duration::from_secs(2));
    assert_eq!(retired(), 1);
}

#[test]
fn of_two_removals_at_once_only_so_many_pass_as_can_be_done_without() {
    let world = World::new(4);
    for store in [1, 2, 4] {
        world.heartbeat(store, Vec::new(), &[]);
    }
    world.heartbeat(3, vec![region(7, 1, &[(11, 1), (12, 2), (13, 3)])], &[]);
    world.group.0.slowness.store(5, Ordering::SeqCst);
    let (first, second) = world.run(async { tokio::join!(world.leader.remove_store(1), world.leader.remove_store(2)) });
    assert_eq!(first.unwrap(), Ok(()));
    let why = second.unwrap().unwrap_err();
    assert!(matches!(why, RemovalRefused::TooFewStores { left: 2, wanted: 3, .. }), "{why}");
    let offline = |store: &&pb::Store| store.state() == pb::StoreState::Offline;
    assert_eq!(world.leader.records().read().stores.values().filter(offline).count(), 1);
}

#[test]
fn a_region_whose_leader_leads_no_more_has_none_until_another_reports() {
    let world = World::new(2);
    let report = || vec![region(7, 1, &[(11, 1), (12, 2)])];
    let leader = || {
        let term = world.leader.term().unwrap();
        let led = [1, 2].map(|store| term.view.store(NodeId(store)).unwrap().leader_count());
        (term.view.region(GroupId(7)).unwrap().leader, led, term.view.leaderless().count())
    };
    world.heartbeat(1, report(), &[]);
    world.heartbeat(2, Vec::new(), &[(7, 12)]);
    assert_eq!(leader(), (Some(NodeId(1)), [1, 0], 0), "another one's word does not count");
    world.heartbeat(1, Vec::new(), &[(7, 11)]);
    assert_eq!(leader(), (None, [0, 0], 1));
    let explained = {
        let term = world.leader.term().unwrap();
        crate::explain::region::explain(&term.view, &term.policy, GroupId(7), world.leader.now()).unwrap()
    };
    assert!(explained.to_string().contains("it has no leader"), "{explained}");
    world.heartbeat(2, report(), &[]);
    assert_eq!(leader(), (Some(NodeId(2)), [0, 1], 0));
}

#[test]
fn a_look_at_the_figures_begins_nothing() {
    let world = World::new(1);
    assert!(world.leader.known().is_some());
    world.group.0.term.store(2, Ordering::SeqCst);
    // What the leader before has replicated is not applied here yet.
    *world.group.0.news.lock() = region(7, 1, &[(11, 1)]).region;
    assert!(world.leader.known().is_none());
    assert!(world.leader.term().is_err(), "the records lag");
    world.run(world.leader.settle()).unwrap();
    assert!(world.leader.known().is_none());
    assert!(world.leader.term().unwrap().view.region(GroupId(7)).is_some());
    assert!(world.leader.known().is_some());
}

#[test]
fn stores_that_are_gone_are_told_to_nobody() {
    let world = World::new(3);
    world.run(world.leader.set_state(2, pb::StoreState::Tombstone)).unwrap();
    let told: Vec<u64> = world.heartbeat(1, Vec::new(), &[]).stores.iter().map(|store| store.id).collect();
    assert_eq!(told, [1, 3]);
}

#[test]
fn the_pace_of_snapshots_is_told_with_every_heartbeat() {
    let world = World::new(1);
    let told = || world.heartbeat(1, Vec::new(), &[]).snapshot_bytes_per_sec;
    assert_eq!(told(), 100 << 20);
    let slower = |policy: Policy| Ok::<_, Status>(Policy { snap_io_max_bytes_per_sec: 5 << 20, ..policy });
    world.run(world.leader.change_policy(slower)).unwrap();
    assert_eq!(told(), 5 << 20);
}

/// What a store says is as it was is only taken as that where the view has it so; it is told what to do all the same.
#[test]
fn regions_that_did_not_change_need_not_be_told_again() {
    let world = World::new(3);
    let report = || vec![region(7, 1, &[(11, 1), (12, 2), (13, 3)])];
    let unchanged = |store: u64, conf_version: u64| {
        let incarnation = world.leader.records().read().stores[&store].incarnation;
        let unchanged = vec![pb::Unchanged { region_id: 7, conf_version, version: 1 }];
        let request = pb::HeartbeatRequest { store_id: store, incarnation, unchanged, ..Default::default() };
        world.run(world.leader.heartbeat(request)).unwrap()
    };
    let answer = unchanged(1, 1);
    assert!(answer.takes_unchanged && answer.tell_again == [7], "it has not been told in this term");
    assert_eq!(world.heartbeat(1, report(), &[]).tell_again, [0; 0]);
    world.pass(Duration::from_secs(3));
    assert_eq!(unchanged(1, 1).tell_again, [0; 0]);
    let heard = world.leader.term().unwrap().view.region(GroupId(7)).unwrap().heard;
    assert_eq!(heard, Some(world.leader.now()), "the leader has been heard of");
    assert_eq!(unchanged(1, 2).tell_again, [7], "of another epoch");
    assert_eq!(unchanged(2, 1).tell_again, [7], "another store leads it");
    let steps = vec![Step::TransferLeader { to: NodeId(2) }];
    let operator = operator(&world, 7, steps);
    world.leader.term().unwrap().begin(operator, world.leader.now()).unwrap();
    let answer = unchanged(1, 1);
    assert_eq!((answer.steps.len(), &answer.tell_again[..]), (1, &[7][..]), "what is done to it shows in reports only");
    let to = answer.steps[0].action.clone();
    assert!(matches!(to, Some(pb::step::Action::TransferToStore(2))), "{to:?}");
}
