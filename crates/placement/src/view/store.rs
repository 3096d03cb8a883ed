//! A store as PD sees it: what is agreed (state, labels), what it reported, and counters over the regions it holds.
//!
//! `Up`, `Offline` and `Tombstone` are agreed and kept. *Disconnected* and *down* are not states: they follow from how long
//! ago the store was last heard of, so they are asked for with the time ([`Store::health`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};
use serde::Serialize;

use crate::policy::Policy;
use crate::view::region::Region;

/// Adds and removes are counted over this span.
pub const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Every region counts at least this much, so that empty ones are spread as well.
pub const REGION_WEIGHT_MIN_BYTES: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum StoreState {
    #[default]
    Up,
    /// It is being emptied; it becomes a tombstone when its last replica has left.
    Offline,
    Tombstone,
}

impl fmt::Display for StoreState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What PD's replicated state says of a store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreMeta {
    pub id: NodeId,
    pub state: StoreState,
    pub labels: BTreeMap<String, String>,
    /// Share of leaders and of bytes that it takes, beside a store of weight 1. Above zero.
    pub leader_weight: f64,
    pub region_weight: f64,
    /// Replicas per minute that it takes in, and that are taken from it; `None`: as the policy says.
    pub add_limit: Option<u32>,
    pub remove_limit: Option<u32>,
    /// Another store has its place: it is down, however short its silence.
    pub lost: bool,
}

impl StoreMeta {
    pub fn new(id: NodeId) -> StoreMeta {
        StoreMeta {
            id,
            state: StoreState::Up,
            labels: BTreeMap::new(),
            leader_weight: 1.0,
            region_weight: 1.0,
            add_limit: None,
            remove_limit: None,
            lost: false,
        }
    }

    pub fn label(mut self, key: &str, value: &str) -> StoreMeta {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// What a store says of itself, every ten seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreReport {
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    /// Snapshots under way.
    pub sending_snapshots: u32,
    pub receiving_snapshots: u32,
    /// Its disk answers slowly.
    pub slow: bool,
    pub rates: StoreRates,
    /// Its disk has next to no room, and it takes no puts.
    pub full: bool,
    /// How long it serves since it was started.
    pub uptime: Duration,
}

impl StoreReport {
    /// How much of its disk is in use, 0 to 1; of one that has not said, all.
    pub fn used_ratio(&self) -> f64 {
        self.used_ratio_with(0)
    }

    /// The same, with so many bytes more.
    pub fn used_ratio_with(&self, more_bytes: i64) -> f64 {
        if self.capacity_bytes == 0 {
            return 1.0;
        }
        let used = self.capacity_bytes.saturating_sub(self.available_bytes) as i64;
        (used + more_bytes).max(0) as f64 / self.capacity_bytes as f64
    }
}

/// Per second: what it has read for clients, and written to the replicas on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreRates {
    pub read_bytes: u64,
    pub read_keys: u64,
    pub write_bytes: u64,
    pub write_keys: u64,
    pub requests: u64,
}

/// How long ago a store was last heard of, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Connected,
    Disconnected(Duration),
    Down(Duration),
}

#[derive(Clone, Debug)]
pub struct Store {
    pub meta: StoreMeta,
    pub report: StoreReport,
    /// Whether it has reported since this view began.
    pub reported: bool,
    /// When it was last heard of; when it was first known, if never.
    pub(super) heard: Time,
    /// Regions by the role that they have here.
    pub(crate) leaders: BTreeSet<GroupId>,
    pub(crate) followers: BTreeSet<GroupId>,
    pub(crate) learners: BTreeSet<GroupId>,
    pub(super) pending_peers: u32,
    /// Replicas here whose state is not what most have.
    pub(super) differing: BTreeMap<GroupId, PeerId>,
    /// Sums over the replicas here. Weight: every region counts at least [`REGION_WEIGHT_MIN_BYTES`].
    pub(super) region_bytes: u64,
    pub(super) region_weight_bytes: u64,
    pub(super) led_bytes: u64,
    /// Bytes per second, read and written, of the regions led here.
    pub(super) led_flow: u64,
    /// Bytes per second written to the replicas here.
    pub(super) write_flow: u64,
    adds: VecDeque<Time>,
    removes: VecDeque<Time>,
}

impl Store {
    pub(super) fn new(meta: StoreMeta, now: Time) -> Store {
        Store {
            meta,
            report: StoreReport::default(),
            reported: false,
            heard: now,
            leaders: BTreeSet::new(),
            followers: BTreeSet::new(),
            learners: BTreeSet::new(),
            pending_peers: 0,
            differing: BTreeMap::new(),
            region_bytes: 0,
            region_weight_bytes: 0,
            led_bytes: 0,
            led_flow: 0,
            write_flow: 0,
            adds: VecDeque::new(),
            removes: VecDeque::new(),
        }
    }

    pub fn id(&self) -> NodeId {
        self.meta.id
    }

    /// `None`: not since this view began.
    pub fn last_heard(&self) -> Option<Time> {
        self.reported.then_some(self.heard)
    }

    /// Since it was last heard of; since it is known, if never.
    pub fn silent_for(&self, now: Time) -> Duration {
        now.since(self.heard)
    }

    pub fn health(&self, now: Time, policy: &Policy) -> Health {
        match now.since(self.heard) {
            silent if self.meta.lost => Health::Down(silent),
            silent if silent >= policy.max_store_down_time => Health::Down(silent),
            silent if silent >= policy.store_disconnected_time => Health::Disconnected(silent),
            _ => Health::Connected,
        }
    }

    /// Up, Disconnected, Down, Offline or Tombstone: what is agreed and how long it is silent, in one word.
    pub fn state_name(&self, now: Time, policy: &Policy) -> &'static str {
        match (self.meta.state, self.health(now, policy)) {
            (StoreState::Tombstone, _) => "Tombstone",
            (_, Health::Down(_)) => "Down",
            (StoreState::Offline, _) => "Offline",
            (_, Health::Disconnected(_)) => "Disconnected",
            (StoreState::Up, Health::Connected) => "Up",
        }
    }

    pub fn leader_count(&self) -> usize {
        self.leaders.len()
    }

    /// Replicas of any role.
    pub fn region_count(&self) -> usize {
        self.leaders.len() + self.followers.len() + self.learners.len()
    }

    /// Approximate bytes of all replicas here.
    pub fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// Approximate bytes of the regions led here.
    pub fn led_bytes(&self) -> u64 {
        self.led_bytes
    }

    pub fn region_weight_bytes(&self) -> u64 {
        self.region_weight_bytes
    }

    /// Replicas here that their leaders call behind.
    pub fn pending_peers(&self) -> u32 {
        self.pending_peers
    }

    /// Whether the store says of its replica that its state is not what most have.
    pub fn differs(&self, region: GroupId, peer: PeerId) -> bool {
        self.differing.get(&region) == Some(&peer)
    }

    pub fn led_flow_bytes_per_sec(&self) -> u64 {
        self.led_flow
    }

    pub fn write_flow_bytes_per_sec(&self) -> u64 {
        self.write_flow
    }

    /// All regions with a replica here.
    pub fn regions(&self) -> impl Iterator<Item = GroupId> {
        self.leaders.iter().chain(&self.followers).chain(&self.learners).copied()
    }

    /// Replicas that were sent here within the last minute.
    pub fn adds_lately(&self, now: Time) -> u32 {
        lately(&self.adds, now)
    }

    pub fn removes_lately(&self, now: Time) -> u32 {
        lately(&self.removes, now)
    }

    pub(super) fn note_add(&mut self, now: Time) {
        note(&mut self.adds, now);
    }

    pub(super) fn note_remove(&mut self, now: Time) {
        note(&mut self.removes, now);
    }

    /// Counts the region in (`sign` 1) or out (-1), its place among the indexes included.
    pub(super) fn count(&mut self, region: &Region, sign: i8) {
        let id = self.id();
        let Some(peer) = region.peer(id) else { return };
        let index = match (region.leader == Some(id), peer.learner) {
            (true, _) => &mut self.leaders,
            (false, false) => &mut self.followers,
            (false, true) => &mut self.learners,
        };
        if sign > 0 {
            index.insert(region.id);
        } else {
            index.remove(&region.id);
        }
        let pending = u32::from(region.pending.contains(&id));
        self.pending_peers = shifted(u64::from(self.pending_peers), u64::from(pending), sign) as u32;
        self.count_figures(region, sign);
    }

    /// Sizes and rates alone.
    pub(super) fn count_figures(&mut self, region: &Region, sign: i8) {
        self.region_bytes = shifted(self.region_bytes, region.bytes, sign);
        self.region_weight_bytes = shifted(self.region_weight_bytes, region.weight_bytes(), sign);
        self.write_flow = shifted(self.write_flow, region.write_bytes_per_sec, sign);
        if region.leader == Some(self.id()) {
            self.led_bytes = shifted(self.led_bytes, region.bytes, sign);
            self.led_flow = shifted(self.led_flow, region.flow(), sign);
        }
    }
}

/// Sums cannot fall below zero: what is taken out was put in.
pub(super) fn shifted(sum: u64, by: u64, sign: i8) -> u64 {
    if sign > 0 { sum.saturating_add(by) } else { sum.saturating_sub(by) }
}

fn lately(times: &VecDeque<Time>, now: Time) -> u32 {
    times.iter().rev().take_while(|time| now.since(**time) < RATE_WINDOW).count() as u32
}

fn note(times: &mut VecDeque<Time>, now: Time) {
    while times.front().is_some_and(|first| now.since(*first) >= RATE_WINDOW) {
        times.pop_front();
    }
    times.push_back(now);
}
