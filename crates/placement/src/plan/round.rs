//! One round of planning: the stores with everything that is on its way to and from them, and what the round has planned.
//!
//! Operators under way count as if they were done, so that no round sends a second helping to a store that is only still
//! waiting for the first; what a round plans counts at once for the rest of it.
//!
//! # Invariants
//! 1. A region gets at most one operator, and none while [`Round::blocker`] names a reason.
//! 2. [`Round::push`] is the only way into the plan: it checks safety and counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use base::rng::mix;
use base::{GroupId, NodeId, Time};
use serde::Serialize;

use crate::model::{Cause, Class, Operator, REJECTED_MAX, Rejected, Step, shown};
use crate::plan::domain::{Domains, Path};
use crate::plan::filter::{self, Ask, Fit, Rejection};
use crate::plan::safety;
use crate::policy::{Policy, format_span};
use crate::view::{Health, Region, Store, StoreState, View};

/// (region, store) pairs judged in one round by checkers, and by each scheduler. A pair takes about 100 ns.
pub const JUDGED_BY_CHECKERS_MAX: u64 = 1_000_000;
pub const JUDGED_BY_SCHEDULER_MAX: u64 = 300_000;

/// Why a region is left alone, or why what it needs cannot be had.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "blocker")]
pub enum Blocker {
    /// An operator is under way.
    Busy {
        region: u64,
    },
    NotReported,
    StaleReport {
        #[serde(serialize_with = "seconds")]
        age: Duration,
    },
    NoLeader,
    /// Too few voters answer: nothing can be changed, by anyone but people.
    NoQuorum {
        well: usize,
        voters: usize,
    },
    /// A step would leave too few healthy voters.
    Unsafe {
        #[serde(serialize_with = "shown")]
        step: String,
        well: usize,
        voters: usize,
    },
    /// No store may take the replica.
    NoCandidate {
        rejected: Vec<Rejected>,
    },
    /// The leader has to move first, and no other voter may lead.
    NoLeaderCandidate {
        rejected: Vec<Rejected>,
    },
    /// So many operators of this kind are in flight already.
    Limit {
        setting: &'static str,
        limit: u32,
    },
    RemoveRate {
        store: u64,
        max: u32,
    },
}

impl Blocker {
    pub fn name(&self) -> &'static str {
        match self {
            Blocker::Busy { .. } => "busy",
            Blocker::NotReported => "not-reported",
            Blocker::StaleReport { .. } => "stale-report",
            Blocker::NoLeader => "no-leader",
            Blocker::NoQuorum { .. } => "no-quorum",
            Blocker::Unsafe { .. } => "unsafe",
            Blocker::NoCandidate { .. } => "no-candidate",
            Blocker::NoLeaderCandidate { .. } => "no-leader-candidate",
            Blocker::Limit { .. } => "limit",
            Blocker::RemoveRate { .. } => "remove-rate",
        }
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Blocker::Busy { region } => write!(f, "an operator on region {region} is under way"),
            Blocker::NotReported => f.write_str("its leader has not reported since this PD began to lead"),
            Blocker::StaleReport { age } => write!(f, "its last report is {} old", format_span(*age)),
            Blocker::NoLeader => f.write_str("it has no leader"),
            Blocker::NoQuorum { well, voters } => {
                write!(f, "only {well} of {voters} voters answer: without a majority nothing can be changed")
            }
            Blocker::Unsafe { step, well, voters } => {
                write!(f, "to {step} would leave {well} healthy voters of {voters}, too few")
            }
            Blocker::NoCandidate { rejected } => {
                f.write_str("no store can take the replica")?;
                list(f, rejected)
            }
            Blocker::NoLeaderCandidate { rejected } => {
                f.write_str("no other voter may lead")?;
                list(f, rejected)
            }
            Blocker::Limit { setting, limit } => write!(f, "{setting} ({limit}) is reached"),
            Blocker::RemoveRate { store, max } => {
                write!(f, "{max} replicas were taken from store {store} within a minute (store-remove-limit)")
            }
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, rejected: &[Rejected]) -> fmt::Result {
    for (index, Rejected { store, reason }) in rejected.iter().enumerate() {
        write!(f, "{} store {store}: {reason}", if index == 0 { ":" } else { ";" })?;
    }
    Ok(())
}

fn seconds<S: serde::Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(span.as_secs())
}

/// A store, with what is on its way.
#[derive(Debug)]
pub struct StoreNow<'a> {
    pub store: &'a Store,
    pub state: StoreState,
    pub health: Health,
    pub path: Path,
    /// Leaders, replicas and their weight when all that is planned is done.
    pub leaders: i64,
    pub regions: i64,
    pub weight_bytes: i64,
    /// Bytes per second of the regions led here, of the writes to replicas here.
    pub led_flow: i64,
    pub write_flow: i64,
    pub adds_lately: u32,
    pub removes_lately: u32,
    /// Learners on their way to it.
    pub arriving: u32,
    /// Of these, planned for but not seen in the store's own figures yet.
    arriving_bytes: i64,
    /// Why it takes no replica at all; kept by [`Round`].
    pub refused: Option<Rejection>,
    high_space_ratio: f64,
    low_space_ratio: f64,
}

impl StoreNow<'_> {
    pub fn id(&self) -> NodeId {
        self.store.id()
    }

    pub fn snapshots(&self) -> u32 {
        self.store.report.receiving_snapshots.max(self.arriving).max(self.store.report.sending_snapshots)
    }

    pub fn pending(&self) -> u32 {
        self.store.pending_peers().max(self.arriving)
    }

    /// Replicas per minute that it may take in, and that may be taken from it.
    pub fn add_limit(&self, policy: &Policy) -> u32 {
        self.store.meta.add_limit.unwrap_or(policy.store_add_limit)
    }

    pub fn remove_limit(&self, policy: &Policy) -> u32 {
        self.store.meta.remove_limit.unwrap_or(policy.store_remove_limit)
    }

    pub fn is_up(&self) -> bool {
        self.state == StoreState::Up && self.health == Health::Connected
    }

    /// Used share of the disk, with what is on its way and `more_bytes`. 1 when it has not reported.
    pub fn used_ratio(&self, more_bytes: i64) -> f64 {
        self.store.report.used_ratio_with(self.arriving_bytes + more_bytes)
    }

    /// How full of regions it is, beside others, with so many bytes of weight and on the disk more. Bytes per weight while the
    /// disk has room; steeper once it fills (high-space-ratio), steeper still once it is full (low-space-ratio).
    pub fn region_score(&self, more_weight_bytes: i64, more_bytes: i64) -> f64 {
        let bytes = (self.weight_bytes + more_weight_bytes).max(0) as f64;
        let (used, high, low) = (self.used_ratio(more_bytes), self.high_space_ratio, self.low_space_ratio);
        let filling = ((used - high) / (low - high)).clamp(0.0, 1.0);
        let full = ((used - low) / (1.0 - low)).clamp(0.0, 1.0);
        bytes * (1.0 + 9.0 * filling + 90.0 * full) / self.store.meta.region_weight.max(f64::MIN_POSITIVE)
    }

    pub fn leader_score(&self, more_leaders: i64) -> f64 {
        (self.leaders + more_leaders).max(0) as f64 / self.store.meta.leader_weight.max(f64::MIN_POSITIVE)
    }
}

/// Counts of one round, for status pages and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RoundStats {
    /// False when the view had not heard enough to plan by.
    pub ready: bool,
    pub regions_checked: u64,
    /// (region, store) pairs judged.
    pub judged: u64,
    /// Regions that need something and cannot have it, by the blocker's name.
    pub blocked: BTreeMap<&'static str, u64>,
}

pub struct Round<'a> {
    pub view: &'a View,
    pub policy: &'a Policy,
    pub now: Time,
    number: u64,
    stores: Vec<StoreNow<'a>>,
    levels: usize,
    /// Stores that take replicas, ascending by score.
    usable: Vec<usize>,
    /// Failure domains with a store that took replicas when the round began.
    open_paths: Vec<Path>,
    planned: BTreeSet<GroupId>,
    counts: BTreeMap<Class, u32>,
    pub operators: Vec<Operator>,
    pub stats: RoundStats,
}

impl<'a> Round<'a> {
    pub fn new(view: &'a View, policy: &'a Policy, now: Time, number: u64) -> Round<'a> {
        let mut domains = Domains::new(&policy.location_labels);
        let stores = view.stores().map(|store| StoreNow {
            store,
            state: store.meta.state,
            health: store.health(now, policy),
            path: domains.path(&store.meta),
            leaders: store.leader_count() as i64,
            regions: store.region_count() as i64,
            weight_bytes: signed(store.region_weight_bytes()),
            led_flow: signed(store.led_flow_bytes_per_sec()),
            write_flow: signed(store.write_flow_bytes_per_sec()),
            adds_lately: store.adds_lately(now),
            removes_lately: store.removes_lately(now),
            arriving: 0,
            arriving_bytes: 0,
            refused: None,
            high_space_ratio: policy.high_space_ratio,
            low_space_ratio: policy.low_space_ratio,
        });
        let stores = stores.collect();
        let mut round = Round {
            view,
            policy,
            now,
            number,
            stores,
            levels: domains.levels(),
            usable: Vec::new(),
            open_paths: Vec::new(),
            planned: BTreeSet::new(),
            counts: BTreeMap::new(),
            operators: Vec::new(),
            stats: RoundStats { ready: view.is_ready(policy, now), ..RoundStats::default() },
        };
        for flight in view.flights() {
            *round.counts.entry(flight.operator.cause.class()).or_default() += 1;
            if let Some(region) = view.region(flight.operator.region) {
                round.foresee(region, &flight.operator.steps[flight.step.min(flight.operator.steps.len())..]);
            }
        }
        round.judge_stores();
        round
    }

    /// A number that is the same for the same round and `salt`, and spread over all 64 bits.
    pub fn dice(&self, salt: u64) -> u64 {
        mix(mix(self.number) ^ mix(salt.wrapping_add(1)))
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn stores(&self) -> &[StoreNow<'a>] {
        &self.stores
    }

    pub fn index(&self, store: NodeId) -> Option<usize> {
        self.stores.binary_search_by_key(&store, StoreNow::id).ok()
    }

    pub fn store(&self, store: NodeId) -> Option<&StoreNow<'a>> {
        self.index(store).map(|index| &self.stores[index])
    }

    /// Plans as if the store were in this state.
    pub fn suppose(&mut self, store: NodeId, state: StoreState) {
        if let Some(index) = self.index(store) {
            self.stores[index].state = state;
            self.judge_stores();
        }
    }

    /// Stores that take replicas, ascending by score, as indexes into [`Round::stores`].
    pub fn usable(&self) -> &[usize] {
        &self.usable
    }

    pub fn open_paths(&self) -> &[Path] {
        &self.open_paths
    }

    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Where the region's other voters are.
    pub fn paths_without(&self, region: &Region, leaving: Option<NodeId>) -> impl Iterator<Item = Path> {
        let rest = region.voters().filter(move |peer| Some(peer.store) != leaving);
        rest.filter_map(|peer| self.store(peer.store)).map(|store| store.path)
    }

    /// Whether the replica answers, has caught up, and stands in a store that is heard of.
    pub fn is_well(&self, region: &Region, store: NodeId) -> bool {
        let differs = |now: &StoreNow<'_>| region.peer(store).is_some_and(|peer| now.store.differs(region.id, peer.id));
        region.is_well_in(store)
            && self.store(store).is_some_and(|now| {
                now.health == Health::Connected && now.state != StoreState::Tombstone && !differs(now)
            })
    }

    /// Whether nothing is the matter with the region: as many voters as wanted, all well and in stores that stay, and no
    /// merge under way.
    pub fn is_sound(&self, region: &Region) -> bool {
        let sound = |store| self.is_well(region, store) && self.store(store).is_some_and(StoreNow::is_up);
        !region.frozen
            && region.peers.len() == self.policy.max_replicas as usize
            && region.peers.iter().all(|peer| !peer.learner && sound(peer.store))
    }

    /// Why nothing may be planned for the region, whatever it needs.
    pub fn blocker(&self, region: &Region) -> Option<Blocker> {
        if self.planned.contains(&region.id) || self.view.is_busy(region.id) {
            let source = self.view.taking_in(region.id).unwrap_or(region.id);
            return Some(Blocker::Busy { region: source.0 });
        }
        let Some(heard) = region.heard else { return Some(Blocker::NotReported) };
        let age = self.now.since(heard);
        if age > self.policy.region_report_timeout {
            return Some(Blocker::StaleReport { age });
        }
        let (well, voters) = safety::standing(self, region);
        if well * 2 <= voters {
            return Some(Blocker::NoQuorum { well, voters });
        }
        // A leader that PD does not hear of may not get its orders.
        if !region.leader.is_some_and(|leader| self.is_well(region, leader)) {
            return Some(Blocker::NoLeader);
        }
        None
    }

    /// The limit of the class, when it is reached.
    pub fn limit(&self, cause: Cause) -> Option<Blocker> {
        let policy = self.policy;
        let (setting, limit) = match cause.class() {
            Class::Replica => ("replica-schedule-limit", policy.replica_schedule_limit),
            Class::Split => ("split-schedule-limit", policy.split_schedule_limit),
            Class::Merge => ("merge-schedule-limit", policy.merge_schedule_limit),
            Class::Leader => ("leader-schedule-limit", policy.leader_schedule_limit),
            Class::Region => ("region-schedule-limit", policy.region_schedule_limit),
            Class::Hot => ("hot-region-schedule-limit", policy.hot_region_schedule_limit),
            Class::Evict | Class::Admin => return None,
        };
        (self.in_flight(cause.class()) >= limit).then_some(Blocker::Limit { setting, limit })
    }

    /// Operators of the class under way or planned.
    pub fn in_flight(&self, class: Class) -> u32 {
        self.counts.get(&class).copied().unwrap_or(0)
    }

    /// Whether the replica may be taken from the store at this pace. A store that is down feels nothing.
    pub fn may_leave(&self, store: NodeId) -> Result<(), Blocker> {
        let Some(now) = self.store(store).filter(|now| !matches!(now.health, Health::Down(_))) else { return Ok(()) };
        let max = now.remove_limit(self.policy);
        if now.removes_lately >= max { Err(Blocker::RemoveRate { store: store.0, max }) } else { Ok(()) }
    }

    /// The best store for a replica, and those that were passed over.
    pub fn select(&mut self, ask: &Ask<'_>) -> Result<(NodeId, Fit, Vec<Rejected>), Blocker> {
        self.stats.judged += self.usable.len() as u64;
        let mut best: Option<(NodeId, Fit)> = None;
        let mut rejected = Vec::new();
        for store in self.usable.iter().map(|index| &self.stores[*index]) {
            match filter::judge_replica(self, ask, store) {
                // In ascending order of scores: among equals the first stands.
                Ok(fit) if best.is_none_or(|(_, best)| fit.isolation > best.isolation) => {
                    best = Some((store.id(), fit))
                }
                Ok(_) => {}
                Err(reason) if rejected.len() < REJECTED_MAX => rejected.push(Rejected { store: store.id(), reason }),
                Err(_) => {}
            }
        }
        self.add_refused(&mut rejected);
        match best {
            Some((store, fit)) => Ok((store, fit, rejected)),
            None => Err(Blocker::NoCandidate { rejected }),
        }
    }

    /// Fills the list up with stores that take no replica at all.
    pub fn add_refused(&self, rejected: &mut Vec<Rejected>) {
        let refused =
            self.stores.iter().filter_map(|store| Some(Rejected { store: store.id(), reason: store.refused? }));
        rejected.extend(refused.take(REJECTED_MAX.saturating_sub(rejected.len())));
    }

    /// The voter with the fewest leaders that may lead the region, other than `except`.
    pub fn select_leader(&self, region: &Region, except: NodeId) -> Result<(NodeId, Vec<Rejected>), Blocker> {
        let mut best: Option<(f64, NodeId)> = None;
        let mut rejected = Vec::new();
        for store in region.voters().filter(|peer| peer.store != except).filter_map(|peer| self.store(peer.store)) {
            match filter::judge_leader(self, region, store) {
                Ok(()) => {
                    let score = store.leader_score(0);
                    if best.is_none_or(|(lowest, _)| score < lowest) {
                        best = Some((score, store.id()));
                    }
                }
                Err(reason) => rejected.push(Rejected { store: store.id(), reason }),
            }
        }
        match best {
            Some((_, store)) => Ok((store, rejected)),
            None => Err(Blocker::NoLeaderCandidate { rejected }),
        }
    }

    /// Steps that take the replica in `leaving` out of the region: the leader moves first. `arriving` may lead when nobody
    /// else can; it is a voter by then.
    pub fn leave(&self, region: &Region, leaving: NodeId, arriving: Option<NodeId>) -> Result<Vec<Step>, Blocker> {
        let peer = region.peer(leaving).map(|peer| peer.id).unwrap_or_default();
        let remove = Step::Remove { store: leaving, peer };
        if region.leader != Some(leaving) {
            return Ok(vec![remove]);
        }
        let to = match self.select_leader(region, leaving) {
            Ok((to, _)) => to,
            Err(blocker) => {
                let able =
                    |to: &NodeId| self.store(*to).is_some_and(|to| filter::judge_leader_store(self, to).is_none());
                arriving.filter(able).ok_or(blocker)?
            }
        };
        Ok(vec![Step::TransferLeader { to }, remove])
    }

    /// Puts an operator into the plan, when that is safe.
    pub fn push(&mut self, operator: Operator) -> Result<(), Blocker> {
        let Some(region) = self.view.region(operator.region) else { return Err(Blocker::NotReported) };
        safety::check(self, region, &operator.steps)?;
        self.planned.insert(operator.region);
        self.planned.extend(operator.merges_into());
        *self.counts.entry(operator.cause.class()).or_default() += 1;
        for store in operator.stores_added() {
            if let Some(index) = self.index(store) {
                self.stores[index].adds_lately += 1;
            }
        }
        for store in operator.stores_removed() {
            if let Some(index) = self.index(store) {
                self.stores[index].removes_lately += 1;
            }
        }
        self.foresee(region, &operator.steps);
        for store in operator.stores_added().chain(operator.stores_removed()) {
            self.rejudge(store);
        }
        self.operators.push(operator);
        Ok(())
    }

    /// Notes what a region cannot have.
    pub fn blocked(&mut self, blocker: &Blocker) {
        *self.stats.blocked.entry(blocker.name()).or_default() += 1;
    }

    /// Counts the steps as if they were done.
    fn foresee(&mut self, region: &Region, steps: &[Step]) {
        let mut leader = region.leader;
        let (weight, bytes) = (signed(region.weight_bytes()), signed(region.bytes));
        for step in steps {
            match step {
                // A learner that is there and catches up is counted by the view.
                Step::AddLearner { store, .. } => {
                    let there = region.peer(*store).is_some();
                    if let Some(index) = self.index(*store) {
                        let now = &mut self.stores[index];
                        now.arriving += 1;
                        if !there {
                            now.regions += 1;
                            now.weight_bytes += weight;
                            now.arriving_bytes += bytes;
                            now.write_flow += signed(region.write_bytes_per_sec);
                        }
                    }
                }
                Step::Remove { store, .. } => {
                    if let Some(index) = self.index(*store) {
                        let now = &mut self.stores[index];
                        now.regions -= 1;
                        now.weight_bytes -= weight;
                        now.arriving_bytes -= bytes;
                        now.write_flow -= signed(region.write_bytes_per_sec);
                    }
                }
                Step::TransferLeader { to } => {
                    for (store, sign) in [(leader, -1), (Some(*to), 1)] {
                        if let Some(index) = store.and_then(|store| self.index(store)) {
                            self.stores[index].leaders += sign;
                            self.stores[index].led_flow += sign * signed(region.flow());
                        }
                    }
                    leader = Some(*to);
                }
                Step::Promote { .. } | Step::Split { .. } | Step::Merge { .. } => {}
            }
        }
    }

    fn judge_stores(&mut self) {
        for index in 0..self.stores.len() {
            self.stores[index].refused = filter::judge_store(self, &self.stores[index]);
        }
        let score = |index: &usize| self.stores[*index].region_score(0, 0);
        let mut usable: Vec<_> = (0..self.stores.len()).filter(|index| self.stores[*index].refused.is_none()).collect();
        usable.sort_by(|a, b| score(a).total_cmp(&score(b)).then(a.cmp(b)));
        self.open_paths = usable.iter().map(|index| self.stores[*index].path).collect();
        self.open_paths.sort_unstable();
        self.open_paths.dedup();
        self.usable = usable;
    }

    /// Puts one store into its place again after its figures have changed. A round only ever sends more.
    fn rejudge(&mut self, store: NodeId) {
        let Some(index) = self.index(store) else { return };
        let Some(place) = self.usable.iter().position(|usable| *usable == index) else { return };
        self.usable.remove(place);
        self.stores[index].refused = filter::judge_store(self, &self.stores[index]);
        if self.stores[index].refused.is_none() {
            let score = self.stores[index].region_score(0, 0);
            let before = |other: &usize| {
                self.stores[*other].region_score(0, 0).total_cmp(&score).then(other.cmp(&index)).is_lt()
            };
            let place = self.usable.partition_point(before);
            self.usable.insert(place, index);
        }
    }
}

pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
