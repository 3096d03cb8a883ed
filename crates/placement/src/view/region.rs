//! A region as its leader last reported it.

use std::time::Duration;

use base::{GroupId, NodeId, Time};

use crate::model::{Epoch, Key, Peer};
use crate::view::store::REGION_WEIGHT_MIN_BYTES;

/// Peers, keys to split at: more is refused.
pub const PEERS_MAX: usize = 16;
pub const SPLIT_KEYS_MAX: usize = 64;
/// A region is hot when it was so in this many reports, and it cools as slowly.
pub const HOT_REPORTS_MIN: u8 = 3;
const HOT_REPORTS_MAX: u8 = 6;
/// Bytes per second, read and written, below which no region is hot.
pub const HOT_FLOW_MIN: u64 = 256 << 10;
/// A hot region carries so many times what regions carry on average.
pub const HOT_FLOW_FACTOR: u64 = 4;

/// A request costs as much as so many bytes, however few it carries.
pub const REQUEST_BYTES: u64 = 256;

/// What bytes and requests per second come to.
pub(super) fn flow(read_bytes: u64, write_bytes: u64, requests: u64) -> u64 {
    read_bytes.saturating_add(write_bytes).saturating_add(requests.saturating_mul(REQUEST_BYTES))
}

/// A replica that does not answer its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownPeer {
    pub store: NodeId,
    pub since: Time,
}

/// What a region's leader reports: every minute, and when something has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionReport {
    pub id: GroupId,
    pub start: Key,
    pub end: Key,
    pub epoch: Epoch,
    pub peers: Vec<Peer>,
    pub leader: Option<NodeId>,
    pub down: Vec<DownPeer>,
    /// Stores whose replica is behind: it takes a snapshot, or catches up.
    pub pending: Vec<NodeId>,
    pub bytes: u64,
    pub keys: u64,
    pub read_bytes_per_sec: u64,
    pub write_bytes_per_sec: u64,
    pub read_keys_per_sec: u64,
    pub write_keys_per_sec: u64,
    /// Reads and single writes.
    pub requests_per_sec: u64,
    /// Where it wants to be split: ascending, within the region.
    pub split_keys: Vec<Key>,
    /// It is about to become part of a neighbour, or to go on after all: it takes no steps until then.
    pub frozen: bool,
    /// Its size is not known yet.
    pub unmeasured: bool,
    /// A store may have something left of a region that it took in: it is not merged itself before that is gone.
    pub remembers: bool,
}

/// With three peers, short keys and its places in the view's indexes about half a kilobyte: a million take 0.5 GB.
#[derive(Clone, Debug)]
pub struct Region {
    pub id: GroupId,
    pub start: Key,
    pub end: Key,
    pub epoch: Epoch,
    pub peers: Box<[Peer]>,
    pub leader: Option<NodeId>,
    pub down: Box<[DownPeer]>,
    pub pending: Box<[NodeId]>,
    pub bytes: u64,
    pub keys: u64,
    pub read_bytes_per_sec: u64,
    pub write_bytes_per_sec: u64,
    pub read_keys_per_sec: u64,
    pub write_keys_per_sec: u64,
    pub requests_per_sec: u64,
    pub split_keys: Box<[Key]>,
    pub frozen: bool,
    pub unmeasured: bool,
    pub remembers: bool,
    /// The last report; `None` while it is only known from PD's own state.
    pub heard: Option<Time>,
    /// Since when it has its range, as far as this view knows.
    pub version_since: Time,
    pub(super) hot_reports: u8,
}

/// How soon a checker is to look at a region: the lower, the sooner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// One more loss and it stands still, or it stands still already.
    NoSpare,
    /// A replica is down.
    Down,
    /// Half done: a learner.
    Leftover,
}

impl Urgency {
    pub const ALL: [Urgency; 3] = [Urgency::NoSpare, Urgency::Down, Urgency::Leftover];
}

impl Region {
    pub(super) fn new(report: RegionReport, heard: Option<Time>, version_since: Time, hot_reports: u8) -> Region {
        Region {
            id: report.id,
            start: report.start,
            end: report.end,
            epoch: report.epoch,
            peers: report.peers.into(),
            leader: report.leader,
            down: report.down.into(),
            pending: report.pending.into(),
            bytes: report.bytes,
            keys: report.keys,
            read_bytes_per_sec: report.read_bytes_per_sec,
            write_bytes_per_sec: report.write_bytes_per_sec,
            read_keys_per_sec: report.read_keys_per_sec,
            write_keys_per_sec: report.write_keys_per_sec,
            requests_per_sec: report.requests_per_sec,
            split_keys: report.split_keys.into(),
            frozen: report.frozen,
            unmeasured: report.unmeasured,
            remembers: report.remembers,
            heard,
            version_since,
            hot_reports,
        }
    }

    /// As its leader would report it again.
    pub fn to_report(&self) -> RegionReport {
        RegionReport {
            id: self.id,
            start: self.start.clone(),
            end: self.end.clone(),
            epoch: self.epoch,
            peers: self.peers.to_vec(),
            leader: self.leader,
            down: self.down.to_vec(),
            pending: self.pending.to_vec(),
            bytes: self.bytes,
            keys: self.keys,
            read_bytes_per_sec: self.read_bytes_per_sec,
            write_bytes_per_sec: self.write_bytes_per_sec,
            read_keys_per_sec: self.read_keys_per_sec,
            write_keys_per_sec: self.write_keys_per_sec,
            requests_per_sec: self.requests_per_sec,
            split_keys: self.split_keys.to_vec(),
            frozen: self.frozen,
            unmeasured: self.unmeasured,
            remembers: self.remembers,
        }
    }

    pub fn peer(&self, store: NodeId) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.store == store)
    }

    pub fn voters(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| !peer.learner)
    }

    pub fn learners(&self) -> impl Iterator<Item = &Peer> {
        self.peers.iter().filter(|peer| peer.learner)
    }

    /// Whether its leader counts the replica there among those that answer and have caught up.
    pub fn is_well_in(&self, store: NodeId) -> bool {
        !self.pending.contains(&store) && self.down.iter().all(|down| down.store != store)
    }

    /// How long its leader has gone without an answer from there.
    pub fn down_for(&self, store: NodeId, now: Time) -> Option<Duration> {
        self.down.iter().find(|down| down.store == store).map(|down| now.since(down.since))
    }

    /// Bytes per second, read and written; each request counts [`REQUEST_BYTES`] besides.
    pub fn flow(&self) -> u64 {
        flow(self.read_bytes_per_sec, self.write_bytes_per_sec, self.requests_per_sec)
    }

    /// Reports in a row, six at most, in which it carried much.
    pub fn hot_degree(&self) -> u8 {
        self.hot_reports
    }

    /// What it counts for where bytes are balanced.
    pub fn weight_bytes(&self) -> u64 {
        self.bytes.saturating_add(REGION_WEIGHT_MIN_BYTES)
    }

    pub fn is_hot(&self) -> bool {
        self.hot_reports >= HOT_REPORTS_MIN
    }

    pub(super) fn urgency(&self) -> Option<Urgency> {
        let voters = self.voters().count();
        let well = self.voters().filter(|peer| self.is_well_in(peer.store)).count();
        if !self.down.is_empty() {
            Some(if well <= voters / 2 + 1 { Urgency::NoSpare } else { Urgency::Down })
        } else if self.peers.iter().any(|peer| peer.learner) {
            Some(Urgency::Leftover)
        } else {
            None
        }
    }

    /// Whether only figures differ between this and the report.
    pub(super) fn has_shape_of(&self, report: &RegionReport) -> bool {
        self.epoch == report.epoch
            && self.leader == report.leader
            && *self.peers == *report.peers
            && *self.down == *report.down
            && *self.pending == *report.pending
            && *self.split_keys == *report.split_keys
            && (self.frozen, self.unmeasured) == (report.frozen, report.unmeasured)
            && self.remembers == report.remembers
            && self.start == report.start
            && self.end == report.end
    }

    pub(super) fn warm(&mut self, hot: bool) {
        self.hot_reports =
            if hot { (self.hot_reports + 1).min(HOT_REPORTS_MAX) } else { self.hot_reports.saturating_sub(1) };
    }
}
