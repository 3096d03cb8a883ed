//! A synthetic cluster that carries operators out: for figures (how long a round takes at a million regions, how many moves
//! make it even, how soon it heals) and for tests.
//!
//! There is no clock in it: a tick is [`TICK`] of the cluster's own time, and whoever wants to know how long a round takes
//! measures the call of [`World::plan`], which changes nothing.
//!
//! In a tick every live store reports, a sixth of the regions say that nothing has changed, one step of every operator under
//! way is carried out, and leaders that died are replaced. A learner is sent its region's bytes, as fast as the policy lets a
//! store send and take snapshots: one stream after the other at either end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Rng, Time};

use crate::model::{Cause, Epoch, Key, Operator, Peer, Step};
use crate::plan::{Plan, plan};
use crate::policy::{MIB, Policy};
use crate::view::{DownPeer, InFlight, Progress, RegionReport, StoreMeta, StoreReport, StoreState, View};

pub const TICK: Duration = Duration::from_secs(10);
/// Regions report once in so many ticks when nothing happens.
const REPORT_TICKS: u64 = 6;

/// What to build.
#[derive(Clone, Debug)]
pub struct Shape {
    pub stores: u64,
    /// Stores are dealt out to racks in turn. The policy's first location label names them.
    pub racks: u64,
    pub regions: u64,
    /// Stores that hold nothing at first.
    pub empty_stores: u64,
    /// On average.
    pub region_bytes: u64,
    pub capacity_bytes: u64,
    pub seed: u64,
}

/// What one round did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Operators begun, by cause.
    pub begun: BTreeMap<&'static str, u64>,
    pub in_flight: usize,
    pub regions_checked: u64,
    pub judged: u64,
}

/// What many rounds came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub rounds: u64,
    /// Replicas moved or made, leaders transferred without a move, and the bytes of the former.
    pub replicas_moved: u64,
    pub leaders_moved: u64,
    pub bytes_moved: u64,
    /// What was waited for came about within the rounds that were allowed.
    pub quiet: bool,
}

/// The least and the most of a store that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    pub leaders: (usize, usize),
    pub regions: (usize, usize),
    pub bytes: (u64, u64),
}

pub struct World {
    pub view: View,
    pub policy: Policy,
    pub now: Time,
    /// Stores that have died, and when.
    dead: BTreeMap<NodeId, Time>,
    capacity_bytes: u64,
    round: u64,
    next_operator: u64,
    next_peer: u64,
    next_region: u64,
    /// Until when each store sends, and until when it takes, what was begun; and when the learner of each region has it all.
    sending: BTreeMap<NodeId, Time>,
    taking: BTreeMap<NodeId, Time>,
    filled: BTreeMap<GroupId, Time>,
    /// Since [`World::run_until`] began.
    moved: Figures,
}

/// The labels that racks and hosts are told by.
pub const RACK: &str = "rack";
pub const HOST: &str = "host";

impl World {
    /// A cluster with its replicas in distinct racks where there are enough of them, drawn with the seed.
    pub fn build(shape: &Shape, policy: Policy) -> World {
        let mut rng = Rng::new(shape.seed);
        let now = Time::from_millis(1_000_000);
        let mut world = World {
            view: View::new(now),
            policy,
            now,
            dead: BTreeMap::new(),
            capacity_bytes: shape.capacity_bytes,
            round: 0,
            next_operator: 1,
            next_peer: 1,
            next_region: shape.regions + 1,
            sending: BTreeMap::new(),
            taking: BTreeMap::new(),
            filled: BTreeMap::new(),
            moved: Figures::default(),
        };
        for store in 1..=shape.stores {
            let meta = StoreMeta::new(NodeId(store)).label(RACK, &format!("r{}", store % shape.racks.max(1)));
            world.add_store(meta.label(HOST, &format!("h{store}")));
        }
        let filled = shape.stores.saturating_sub(shape.empty_stores).max(1);
        let replicas = u64::from(world.policy.max_replicas).min(filled);
        for id in 1..=shape.regions {
            let mut stores = BTreeSet::new();
            let mut racks = BTreeSet::new();
            for attempt in 0.. {
                if stores.len() as u64 == replicas {
                    break;
                }
                let store = 1 + rng.below(filled);
                // Distinct racks, unless a while of looking shows that there are too few.
                if !stores.contains(&store) && (racks.insert(store % shape.racks.max(1)) || attempt > 64) {
                    stores.insert(store);
                }
            }
            let stores: Vec<_> = stores.into_iter().map(NodeId).collect();
            let leader = rng.pick(&stores).copied();
            let peers = stores.iter().map(|store| world.new_peer(*store, false)).collect();
            let report = RegionReport {
                id: GroupId(id),
                start: if id == 1 { Key::default() } else { key(id) },
                end: if id == shape.regions { Key::default() } else { key(id + 1) },
                epoch: Epoch { conf_version: 1, version: 1 },
                peers,
                leader,
                bytes: rng.between(shape.region_bytes / 2, shape.region_bytes + shape.region_bytes / 2 + 1),
                keys: 1_000_000,
                ..RegionReport::default()
            };
            world.report(report);
        }
        world.report_stores();
        world
    }

    pub fn add_store(&mut self, meta: StoreMeta) {
        let id = meta.id;
        self.view.put_store(meta, self.now);
        self.report_store(id);
    }

    /// The next round's plan. Changes nothing.
    pub fn plan(&self) -> Plan {
        plan(&self.view, &self.policy, self.now, self.round)
    }

    /// Begins what was planned.
    pub fn begin(&mut self, plan: Plan) -> Turn {
        self.round += 1;
        let mut turn =
            Turn { regions_checked: plan.stats.regions_checked, judged: plan.stats.judged, ..Turn::default() };
        for mut operator in plan.operators {
            let next_peer = &mut self.next_peer;
            operator.draw_peers(|| {
                *next_peer += 1;
                PeerId(*next_peer)
            });
            let cause = operator.cause;
            self.note(&operator);
            let begun = self.view.begin(self.next_operator, operator, self.now);
            assert!(begun.is_ok(), "what was planned a moment ago can be begun: {begun:?}");
            self.next_operator += 1;
            *turn.begun.entry(cause.name()).or_default() += 1;
        }
        turn.in_flight = self.view.flights().count();
        turn
    }

    /// Lets a tick pass.
    pub fn tick(&mut self) {
        self.now = self.now + TICK;
        self.report_stores();
        let still: Vec<_> = (self.view.regions())
            .filter(|region| region.id.0 % REPORT_TICKS == self.round % REPORT_TICKS)
            .filter_map(|region| Some((region.id, region.epoch, region.leader?)))
            .filter(|(_, _, leader)| !self.dead.contains_key(leader))
            .collect();
        for (region, epoch, leader) in still {
            self.view.unchanged(region, epoch, leader, self.now);
        }
        let flights: Vec<InFlight> = self.view.flights().cloned().collect();
        for flight in flights {
            self.carry_out(&flight);
        }
    }

    /// Rounds and ticks until nothing was planned nor under way for two passes of the patrol, and a little longer than rate
    /// limits look back; at most `rounds_max`. `planned` is handed the world and gives its plan: the place to measure.
    pub fn run_until_quiet(&mut self, rounds_max: u64, planned: impl FnMut(&World) -> Plan) -> Figures {
        let patience = 2 * self.view.region_count() as u64 / crate::plan::PATROL_REGIONS + 8;
        let mut quiet = 0;
        let mut figures = self.run_until(rounds_max, planned, |world| {
            quiet = if world.view.flights().next().is_none() { quiet + 1 } else { 0 };
            quiet > patience
        });
        if figures.quiet {
            figures.rounds = figures.rounds.saturating_sub(patience);
        }
        figures
    }

    /// Rounds and ticks until `done`, asked after every round; at most `rounds_max`.
    pub fn run_until(
        &mut self,
        rounds_max: u64,
        mut planned: impl FnMut(&World) -> Plan,
        mut done: impl FnMut(&World) -> bool,
    ) -> Figures {
        self.moved = Figures::default();
        while self.moved.rounds < rounds_max && !self.moved.quiet {
            let plan = planned(self);
            self.begin(plan);
            self.moved.quiet = done(self);
            self.tick();
            self.moved.rounds += 1;
        }
        self.moved.clone()
    }

    /// Stores die for good. Their regions get other leaders where a majority is left, and all report it.
    pub fn kill(&mut self, stores: &[NodeId]) {
        self.dead.extend(stores.iter().map(|store| (*store, self.now)));
        let touched: BTreeSet<GroupId> =
            stores.iter().filter_map(|store| self.view.store(*store)).flat_map(|store| store.regions()).collect();
        for region in touched {
            self.elect(region);
        }
    }

    /// The stores of one rack.
    pub fn rack(&self, rack: u64) -> Vec<NodeId> {
        let name = format!("r{rack}");
        let stores = self.view.stores().filter(|store| store.meta.labels.get(RACK) == Some(&name));
        stores.map(|store| store.id()).collect()
    }

    pub fn set_state(&mut self, store: NodeId, state: StoreState) {
        if let Some(known) = self.view.store(store) {
            let meta = StoreMeta { state, ..known.meta.clone() };
            self.view.put_store(meta, self.now);
        }
    }

    /// Replicas in stores that are dead.
    pub fn lost_replicas(&self) -> usize {
        self.dead.keys().filter_map(|store| self.view.store(*store)).map(|store| store.region_count()).sum()
    }

    /// Over the stores that live and stay.
    pub fn spread(&self) -> Spread {
        let live = || {
            let stores = self.view.stores().filter(|store| store.meta.state == StoreState::Up);
            stores.filter(|store| !self.dead.contains_key(&store.id()))
        };
        let ends =
            |values: Vec<u64>| (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
        let counts =
            |values: Vec<usize>| (values.iter().min().copied().unwrap_or(0), values.iter().max().copied().unwrap_or(0));
        Spread {
            leaders: counts(live().map(|store| store.leader_count()).collect()),
            regions: counts(live().map(|store| store.region_count()).collect()),
            bytes: ends(live().map(|store| store.region_bytes()).collect()),
        }
    }

    /// Takes a region's report in, and ends its operator when the report says so.
    pub fn report(&mut self, report: RegionReport) {
        let id = report.id;
        match self.view.report_region(report, self.now) {
            Ok(heard) => {
                if matches!(heard.progress, Some(Progress::Finished | Progress::Overtaken)) {
                    self.view.end(id);
                }
            }
            Err(error) => unreachable!("the world reports what is: {error}"),
        }
    }

    fn new_peer(&mut self, store: NodeId, learner: bool) -> Peer {
        self.next_peer += 1;
        Peer { id: PeerId(self.next_peer), store, learner }
    }

    fn report_stores(&mut self) {
        let stores: Vec<_> = self.view.stores().map(|store| store.id()).collect();
        for store in stores {
            self.report_store(store);
        }
    }

    fn report_store(&mut self, store: NodeId) {
        if self.dead.contains_key(&store) {
            return;
        }
        let Some(known) = self.view.store(store) else { return };
        let report = StoreReport {
            capacity_bytes: self.capacity_bytes,
            available_bytes: self.capacity_bytes.saturating_sub(known.region_bytes()),
            ..known.report
        };
        let heard = self.view.report_store(store, report, self.now);
        debug_assert!(heard.is_ok());
    }

    /// A region after deaths: a live leader if a majority lives, and who is down.
    fn elect(&mut self, region: GroupId) {
        let Some(known) = self.view.region(region) else { return };
        let mut report = known.to_report();
        report.down = (report.peers.iter())
            .filter_map(|peer| Some(DownPeer { store: peer.store, since: *self.dead.get(&peer.store)? }))
            .collect();
        let live = |peer: &&Peer| !peer.learner && !self.dead.contains_key(&peer.store);
        let voters = report.peers.iter().filter(|peer| !peer.learner).count();
        let lives = report.leader.is_some_and(|leader| !self.dead.contains_key(&leader));
        let majority = report.peers.iter().filter(live).count() * 2 > voters;
        if majority && !lives {
            report.leader = report.peers.iter().find(live).map(|peer| peer.store);
        }
        // A leader that has lost its majority says so before it steps down.
        if majority || lives {
            self.report(report);
        }
    }

    fn carry_out(&mut self, flight: &InFlight) {
        let id = flight.operator.region;
        let Some(region) = self.view.region(id) else {
            self.view.end(id);
            return;
        };
        let mut report = region.to_report();
        if report.leader.is_none_or(|leader| self.dead.contains_key(&leader)) {
            return;
        }
        match flight.current_step() {
            Some(Step::AddLearner { store, .. } | Step::TransferLeader { to: store })
                if self.dead.contains_key(store) =>
            {
                self.view.end(id);
                return;
            }
            Some(Step::AddLearner { store, peer }) => {
                if report.peers.iter().all(|there| there.store != *store) {
                    report.peers.push(Peer { id: *peer, store: *store, learner: true });
                    report.epoch.conf_version += 1;
                    report.pending.push(*store);
                    self.stream(&report, *store);
                } else if self.filled.get(&id).is_none_or(|filled| *filled <= self.now) {
                    self.filled.remove(&id);
                    report.pending.retain(|pending| pending != store);
                } else {
                    return self.view.note_progress(id, self.now);
                }
            }
            Some(Step::Promote { store }) => {
                for peer in report.peers.iter_mut().filter(|peer| peer.store == *store) {
                    peer.learner = false;
                }
                report.epoch.conf_version += 1;
            }
            Some(Step::Remove { store, .. }) => {
                report.peers.retain(|peer| peer.store != *store);
                report.down.retain(|down| down.store != *store);
                report.pending.retain(|pending| pending != store);
                report.epoch.conf_version += 1;
            }
            Some(Step::TransferLeader { to }) => report.leader = Some(*to),
            Some(Step::Split { keys }) => {
                self.split(report, &keys.clone());
                return;
            }
            Some(Step::Merge { into, .. }) => {
                self.merge(report, *into);
                return;
            }
            None => {}
        }
        self.report(report);
    }

    /// The leader sends a learner all that it has.
    fn stream(&mut self, region: &RegionReport, to: NodeId) {
        let Some(leader) = region.leader else { return };
        let takes = Duration::from_secs_f64(region.bytes as f64 / self.policy.snap_io_max_bytes_per_sec as f64);
        let free = |until: &BTreeMap<NodeId, Time>, store| until.get(&store).copied().unwrap_or_default();
        let begins = self.now.max(free(&self.sending, leader)).max(free(&self.taking, to));
        let ends = begins + takes;
        self.sending.insert(leader, ends);
        self.taking.insert(to, ends);
        self.filled.insert(region.id, ends);
    }

    fn split(&mut self, mut left: RegionReport, keys: &[Key]) {
        left.epoch.version += keys.len() as u64;
        left.split_keys.clear();
        let parts = keys.len() as u64 + 1;
        (left.bytes, left.keys) = (left.bytes / parts, left.keys / parts);
        let ends = keys[1..].iter().cloned().chain([left.end.clone()]);
        let rights: Vec<_> = keys.iter().cloned().zip(ends).collect();
        left.end = keys[0].clone();
        let peers = left.peers.clone();
        self.report(left.clone());
        for (start, end) in rights {
            let peers = peers.iter().map(|peer| self.new_peer(peer.store, peer.learner)).collect();
            let id = GroupId(self.next_region);
            self.next_region += 1;
            self.report(RegionReport { id, start, end, peers, ..left.clone() });
        }
    }

    fn merge(&mut self, source: RegionReport, into: GroupId) {
        let Some(target) = self.view.region(into) else { return };
        let mut report = target.to_report();
        let stores = |peers: &[Peer]| peers.iter().map(|peer| peer.store).collect::<BTreeSet<_>>();
        assert_eq!(stores(&report.peers), stores(&source.peers), "regions merge where their replicas lie side by side");
        report.epoch.version = report.epoch.version.max(source.epoch.version) + 1;
        if !report.end.is_empty() && report.end == source.start {
            report.end = source.end;
        } else {
            report.start = source.start;
        }
        report.bytes += source.bytes;
        report.keys += source.keys;
        self.report(report);
    }

    fn note(&mut self, operator: &Operator) {
        let made = operator.stores_added().count() as u64;
        self.moved.replicas_moved += made;
        self.moved.bytes_moved += made * self.view.region(operator.region).map_or(0, |region| region.bytes);
        if matches!(operator.cause, Cause::BalanceLeader | Cause::EvictLeader | Cause::EvictSlowStore) {
            self.moved.leaders_moved += 1;
        }
    }
}

impl Default for Shape {
    /// 1,000 stores in 20 racks, a million regions of 96 MiB, 50 stores still empty.
    fn default() -> Shape {
        Shape {
            stores: 1000,
            racks: 20,
            regions: 1_000_000,
            empty_stores: 50,
            region_bytes: 96 * MIB,
            capacity_bytes: 1_000_000 * MIB,
            seed: 1,
        }
    }
}

impl Policy {
    /// For [`World`]: racks are told apart, and limits let a large cluster move at the pace of its stores.
    pub fn for_scale() -> Policy {
        Policy {
            location_labels: vec![RACK.to_owned()],
            leader_schedule_limit: 1024,
            replica_schedule_limit: 4096,
            region_schedule_limit: 2048,
            ..Policy::default()
        }
    }
}

/// The start of the region with this id.
pub fn key(id: u64) -> Key {
    id.to_be_bytes().as_slice().into()
}
