//! What a store finds when it looks at its regions, once a second: what the placement driver is to be told, and what is to be
//! looked after here. One walk for all of it, and for a region of which nothing has changed little more than that it is seen:
//! a store may have ten thousand, of which most have nothing to do.
//!
//! ```text
//!  each region ─┬─ not led ─────────────────────────────▶ others
//!               └─ led ─┬─ as it was told ──────────────▶ unchanged
//!                       └─ new, changed, or asked for ──▶ led: its range, members, size, rates, …
//! ```
//! What was told counts as known only as long as every heartbeat is answered, and by a placement driver that knows of it: it names
//! those of which it wants to hear all again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::{GroupId, PeerId, Time};
use bytes::Bytes;
use consensus::{GroupStatus, Role};
use proto::placement as pb;

use crate::alone::Silent;
use crate::load::Seen;
use crate::region::RegionState;
use crate::store::{Measured, Region, Store};

/// A peer that lacks more entries than this has not caught up.
const PENDING_ENTRIES: u64 = 64;

/// What one look has found.
#[derive(Default)]
pub struct Survey {
    pub heartbeat: pb::HeartbeatRequest,
    /// Members of regions led here that are not heard of.
    pub silent: Vec<Silent>,
    /// Regions here that know no leader.
    pub leaderless: Vec<Region>,
    /// Regions led here whose size is not known any more.
    pub unmeasured: Vec<Region>,
}

/// What the placement driver knows.
pub struct Surveyor {
    told: BTreeMap<GroupId, Told>,
    /// When the store began to tell.
    began: Time,
}

/// A region as it was told.
struct Told {
    status: Arc<GroupStatus>,
    state: Arc<RegionState>,
    measured: Option<Arc<Measured>>,
    rates: pb::Rates,
    cut: Option<Bytes>,
    snapshot_bytes: u64,
}

impl Surveyor {
    pub fn new(now: Time) -> Surveyor {
        Surveyor { told: BTreeMap::new(), began: now }
    }

    /// `limits`: what is too much for one region. `split_bytes`: what is too large; zero: unknown.
    pub fn look(&mut self, store: &Store, limits: pb::LoadSplit, split_bytes: u64) -> Survey {
        let identity = store.node.identity();
        let mut found = Survey::default();
        let mut load = store.load.observe(limits, store.node.now());
        let sizes = store.sizes();
        store.walk(|region| {
            let (id, status, state) = (region.id(), region.handle.status(), region.state());
            let leads = status.role == Role::Leader;
            let seen =
                Seen { id, version: state.version, start: &state.start, led: leads, traffic: &region.cell.traffic };
            let (rates, cut) = load.see(&seen);
            let replica = || pb::Replica { region_id: id.0, peer_id: region.peer.0 };
            if region.handle.differs() {
                found.heartbeat.differing.push(replica());
            }
            if leads {
                found.note_silent(region, &status);
            } else if status.leader.is_none() {
                found.leaderless.push(region.clone());
            }
            if !leads || state.version == 0 {
                found.heartbeat.others.push(replica());
                self.told.remove(&id);
                return;
            }
            let measured = sizes.get(&id).filter(|measured| measured.version == state.version).cloned();
            if split_bytes > 0 && measured.as_ref().is_none_or(|known| known.is_outdated(region, split_bytes)) {
                found.unmeasured.push(region.clone());
            }
            let snapshot_bytes = region.handle.snapshot_bytes_sent();
            let now = Told { status, state, measured, rates, cut, snapshot_bytes };
            if self.told.get(&id).is_some_and(|told| told.is(&now)) {
                let (conf_version, version) = (now.state.conf_version, now.state.version);
                found.heartbeat.unchanged.push(pb::Unchanged { region_id: id.0, conf_version, version });
            } else {
                found.heartbeat.led.push(now.report(region));
                self.told.insert(id, now);
            }
        });
        drop(sizes);
        load.end();
        self.forget_what_went(&found.heartbeat);
        let (available, capacity) = store.node.room().unwrap_or_default();
        let heartbeat = &mut found.heartbeat;
        let leader_count = (heartbeat.led.len() + heartbeat.unchanged.len()) as u64;
        heartbeat.stats = Some(pb::StoreStats {
            capacity_bytes: capacity,
            available_bytes: available,
            region_count: leader_count + heartbeat.others.len() as u64,
            leader_count,
            slow: store.node.stats().is_slow(),
            rates: Some(store.load.total()),
            full: store.space.is_full(),
            sending_snapshots: u32::try_from(store.node.stats().snapshots_sending.load(Ordering::Relaxed)).unwrap_or(0),
            uptime_seconds: store.node.now().since(self.began).as_secs(),
        });
        (heartbeat.store_id, heartbeat.incarnation) = (identity.node.0, identity.peer.0);
        found
    }

    /// The placement driver's answer.
    pub fn answered(&mut self, answer: &pb::HeartbeatResponse) {
        if !answer.takes_unchanged {
            self.told.clear();
        }
        for region in &answer.tell_again {
            self.told.remove(&GroupId(*region));
        }
    }

    /// A heartbeat, or a part of it, was not answered: nobody knows what the placement driver has got.
    pub fn unanswered(&mut self) {
        self.told.clear();
    }

    fn forget_what_went(&mut self, heartbeat: &pb::HeartbeatRequest) {
        let there = heartbeat.led.len() + heartbeat.unchanged.len();
        if self.told.len() == there {
            return;
        }
        let led = heartbeat.led.iter().filter_map(|report| report.region.as_ref()).map(|region| region.id);
        let there: HashSet<u64> = led.chain(heartbeat.unchanged.iter().map(|told| told.region_id)).collect();
        self.told.retain(|id, _| there.contains(&id.0));
    }
}

impl Survey {
    fn note_silent(&mut self, region: &Region, status: &GroupStatus) {
        let mut silent = silent(status).peekable();
        if silent.peek().is_none() {
            return;
        }
        let membership = region.handle.membership();
        let known = |peer| Some(Silent { region: region.id(), peer, node: membership.node_of(peer)? });
        self.silent.extend(silent.filter_map(known));
    }
}

impl Told {
    /// A status or a state that has not been published anew is the same one.
    fn is(&self, other: &Told) -> bool {
        let measured = match (&self.measured, &other.measured) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        measured
            && Arc::ptr_eq(&self.status, &other.status)
            && Arc::ptr_eq(&self.state, &other.state)
            && self.rates == other.rates
            && self.cut == other.cut
            && self.snapshot_bytes == other.snapshot_bytes
    }

    fn report(&self, region: &Region) -> pb::RegionReport {
        let (status, state) = (&self.status, &self.state);
        let membership = region.handle.membership();
        let behind = status.followers.iter().filter(|(_, known, reached)| *reached && is_behind(status, *known));
        let given = behind.clone().fold(0, |given: u64, (_, known, _)| given.wrapping_add(*known));
        let is_member = |peer: PeerId| membership.by_peer(peer).is_some();
        let size = self.measured.as_ref().map(|measured| &measured.size);
        let too_large = size.map(|size| size.cuts.clone()).unwrap_or_default();
        let split_keys = if too_large.is_empty() { self.cut.clone().into_iter().collect() } else { too_large };
        pb::RegionReport {
            region: Some(state.describe(region.id())),
            down: silent(status).map(|peer| peer.0).collect(),
            pending: behind.map(|(peer, ..)| *peer).filter(|peer| is_member(*peer)).map(|peer| peer.0).collect(),
            measured: size.is_some(),
            frozen: state.frozen.is_some(),
            remembers: !state.merged.is_empty(),
            bytes: size.map(|size| size.bytes).unwrap_or_default(),
            keys: size.map(|size| size.keys).unwrap_or_default(),
            split_keys,
            rates: Some(self.rates),
            progress: given.wrapping_add(self.snapshot_bytes),
        }
    }
}

fn silent(status: &GroupStatus) -> impl Iterator<Item = PeerId> {
    let silent = status.followers.iter().filter(|(peer, _, reached)| *peer != status.peer && !reached);
    silent.map(|(peer, ..)| *peer)
}

/// Whether a peer that has so much of the log lacks something. Under steady writes one that has caught up is always a moment
/// behind; one that has nothing is behind in the shortest log, and so is one that the log no longer reaches back to.
fn is_behind(status: &GroupStatus, known: u64) -> bool {
    known < status.committed.saturating_sub(PENDING_ENTRIES).max(1) || known + 1 < status.first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_nothing_is_behind_in_the_shortest_log() {
        let behind =
            |first, committed, known| is_behind(&GroupStatus { first, committed, ..Default::default() }, known);
        assert!(behind(1, 9, 0));
        assert!(!behind(1, 9, 1));
        // The log begins behind what it has: it needs a snapshot.
        assert!(behind(9, 40, 7));
        assert!(!behind(9, 40, 8));
        // A log that was cut off at its end.
        assert!(!behind(41, 40, 40));
        assert!(behind(1, 1000, 935));
        assert!(!behind(1, 1000, 936));
    }
}
