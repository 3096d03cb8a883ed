//! What is observed: stores, regions, and the operators under way. Fed by reports, read by [`crate::plan()`].
//!
//! # Cost
//! A million regions do not let themselves be walked in every round, so the view keeps what a round wants to know:
//! ```text
//!  attention   (urgency, region)   replicas down, half-done changes      checkers look here first
//!  splits, hot  region             wanted splits; regions that carry much
//!  store        leaders, followers, learners · bytes · flows · pending   schedulers draw from here
//!  by_start     key → region       neighbours, overlaps
//! ```
//! A report that brings new figures only costs a few additions ([`View::report_region`]); "nothing has changed" costs one
//! look-up ([`View::unchanged`]). What is not in these indexes (a changed policy, labels) the rounds find by patrol.
//!
//! # Invariants
//! 1. Counters of a store are sums over the regions that are in the view.
//! 2. No two regions overlap: a report with a higher version drives out what it covers, one with a lower is refused.
//! 3. A region's epoch never goes back.
//! 4. What has not reported since the view began is known, but not heard of: nothing is planned for it.

mod flight;
mod region;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use base::{GroupId, NodeId, PeerId, Time};

pub use flight::{InFlight, Progress};
pub use region::{
    DownPeer, HOT_FLOW_FACTOR, HOT_FLOW_MIN, HOT_REPORTS_MIN, PEERS_MAX, REQUEST_BYTES, Region, RegionReport,
    SPLIT_KEYS_MAX, Urgency,
};
pub use store::{Health, REGION_WEIGHT_MIN_BYTES, Store, StoreMeta, StoreRates, StoreReport, StoreState};

use crate::model::{Epoch, Key, Operator, Step};
use crate::policy::Policy;

/// A view is ready when this share of its regions has reported, in percent.
const HEARD_PERCENT_MIN: usize = 90;

#[derive(Clone, Debug, Default)]
pub struct View {
    started: Time,
    stores: BTreeMap<NodeId, Store>,
    regions: BTreeMap<GroupId, Box<Region>>,
    by_start: BTreeMap<Key, GroupId>,
    attention: BTreeSet<(Urgency, GroupId)>,
    splits: BTreeSet<GroupId>,
    hot: BTreeSet<GroupId>,
    flights: BTreeMap<GroupId, InFlight>,
    /// Regions that a neighbour is being merged into, and the neighbour.
    taking_in: BTreeMap<GroupId, GroupId>,
    leaderless: BTreeMap<GroupId, Time>,
    heard_regions: usize,
    total_bytes: u64,
    total_flow: u64,
}

/// What a report brought about.
#[derive(Debug, Default)]
pub struct Heard {
    /// Regions that the reported one has taken the place of, with the operators that died with them.
    pub replaced: Vec<(GroupId, Option<InFlight>)>,
    /// How the region's own operator does.
    pub progress: Option<Progress>,
}

/// Why a report was not taken in. The view is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    #[error("region {region} is at epoch {known} by now")]
    StaleEpoch { region: GroupId, known: Epoch },
    #[error("region {region} overlaps with region {other}, which is newer")]
    Overlap { region: GroupId, other: GroupId },
    #[error("store {0} is not known")]
    UnknownStore(NodeId),
    #[error("the report makes no sense: {0}")]
    Malformed(&'static str),
}

/// Why an operator was not begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeginError {
    #[error("region {0} is not known")]
    UnknownRegion(GroupId),
    #[error("store {0} is not known")]
    UnknownStore(NodeId),
    #[error("region {region} is at epoch {known} by now")]
    StaleEpoch { region: GroupId, known: Epoch },
    #[error("region {0} has an operator under way")]
    Busy(GroupId),
}

impl View {
    pub fn new(now: Time) -> View {
        View { started: now, ..View::default() }
    }

    /// Adds a store or changes what is agreed about it.
    pub fn put_store(&mut self, meta: StoreMeta, now: Time) {
        self.stores
            .entry(meta.id)
            .and_modify(|store| store.meta = meta.clone())
            .or_insert_with(|| Store::new(meta, now));
    }

    /// Forgets a store that holds nothing. False when it still holds replicas.
    pub fn remove_store(&mut self, store: NodeId) -> bool {
        let empty = self.stores.get(&store).is_none_or(|store| store.region_count() == 0);
        if empty {
            self.stores.remove(&store);
        }
        empty
    }

    pub fn report_store(&mut self, store: NodeId, report: StoreReport, now: Time) -> Result<(), ReportError> {
        let store = self.stores.get_mut(&store).ok_or(ReportError::UnknownStore(store))?;
        store.report = report;
        store.reported = true;
        store.heard = now;
        Ok(())
    }

    /// The replicas in a store that are not what most are, all of them.
    pub fn report_differing(&mut self, store: NodeId, differing: impl Iterator<Item = (GroupId, PeerId)>) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.differing = differing.collect();
        }
    }

    /// A store has shown a sign of life.
    pub fn hear_store(&mut self, store: NodeId, now: Time) {
        if let Some(store) = self.stores.get_mut(&store) {
            store.heard = now;
        }
    }

    /// A region as PD's own state has it: known, not heard of.
    pub fn restore_region(&mut self, report: RegionReport) -> Result<Heard, ReportError> {
        self.take_in(report, None, self.started)
    }

    pub fn report_region(&mut self, report: RegionReport, now: Time) -> Result<Heard, ReportError> {
        self.take_in(report, Some(now), now)
    }

    /// A store has a replica of the region and does not lead it. Who does has yet to report, if anybody does.
    pub fn leads_no_more(&mut self, region: GroupId, store: NodeId, now: Time) {
        if self.regions.get(&region).is_none_or(|known| known.leader != Some(store)) {
            return;
        }
        let Some(mut known) = self.regions.remove(&region) else { return };
        self.uncount(&known);
        known.leader = None;
        self.count(&known);
        self.regions.insert(region, known);
        self.leaderless.insert(region, now);
    }

    /// Regions whose leader has given up leading, and since when; nobody has reported as their leader since.
    pub fn leaderless(&self) -> impl Iterator<Item = (GroupId, Time)> {
        self.leaderless.iter().map(|(region, since)| (*region, *since))
    }

    /// Who leads a region, as far as is known: a store that has fallen silent does not, and who has followed it would have reported.
    pub fn leader_of(&self, region: &Region, now: Time, policy: &Policy) -> Option<NodeId> {
        let is_heard = |store: &Store| store.silent_for(now) < policy.store_disconnected_time;
        region.leader.filter(|leader| self.store(*leader).is_some_and(is_heard))
    }

    /// The leader says that its last report still holds. False when the view knows another epoch or leader: it must report.
    pub fn unchanged(&mut self, region: GroupId, epoch: Epoch, leader: NodeId, now: Time) -> bool {
        let Some(region) = self.regions.get_mut(&region) else { return false };
        let holds = region.epoch == epoch && region.leader == Some(leader) && region.heard.is_some();
        if holds {
            region.heard = Some(now);
        }
        holds
    }

    /// Forgets a region; its operator, if any, ends with it.
    pub fn remove_region(&mut self, region: GroupId) -> Option<InFlight> {
        if let Some(region) = self.regions.remove(&region) {
            self.uncount(&region);
        }
        self.end(region)
    }

    /// Begins an operator under the caller's `id`.
    pub fn begin(&mut self, id: u64, operator: Operator, now: Time) -> Result<(), BeginError> {
        let region = self.region(operator.region).ok_or(BeginError::UnknownRegion(operator.region))?;
        if region.epoch != operator.epoch {
            return Err(BeginError::StaleEpoch { region: operator.region, known: region.epoch });
        }
        if self.is_busy(operator.region) {
            return Err(BeginError::Busy(operator.region));
        }
        let step = operator.next_step(region, 0).map_or(operator.steps.len(), |(index, _)| index);
        if let Some((into, epoch)) = operator.steps.iter().find_map(|step| match step {
            Step::Merge { into, into_epoch } => Some((*into, *into_epoch)),
            _ => None,
        }) {
            let target = self.region(into).ok_or(BeginError::UnknownRegion(into))?;
            if target.epoch != epoch {
                return Err(BeginError::StaleEpoch { region: into, known: target.epoch });
            }
            if self.is_busy(into) {
                return Err(BeginError::Busy(into));
            }
        }
        for store in operator.stores_added().chain(operator.stores_removed()) {
            if !self.stores.contains_key(&store) {
                return Err(BeginError::UnknownStore(store));
            }
        }

        if let Some(into) = operator.merges_into() {
            self.taking_in.insert(into, operator.region);
        }
        for store in operator.stores_added() {
            if let Some(store) = self.stores.get_mut(&store) {
                store.note_add(now);
            }
        }
        for store in operator.stores_removed() {
            if let Some(store) = self.stores.get_mut(&store) {
                store.note_remove(now);
            }
        }
        self.flights.insert(
            operator.region,
            InFlight { id, operator, started: now, progressed: now, step, done: vec![now; step] },
        );
        Ok(())
    }

    /// Ends the region's operator, finished or not.
    pub fn end(&mut self, region: GroupId) -> Option<InFlight> {
        let flight = self.flights.remove(&region)?;
        if let Some(into) = flight.operator.merges_into() {
            self.taking_in.remove(&into);
        }
        Some(flight)
    }

    /// The step under way came nearer (a snapshot's bytes, a learner's index), though nothing shows in the region yet.
    pub fn note_progress(&mut self, region: GroupId, now: Time) {
        if let Some(flight) = self.flights.get_mut(&region) {
            flight.progressed = now;
        }
    }

    pub fn region(&self, region: GroupId) -> Option<&Region> {
        self.regions.get(&region).map(|region| &**region)
    }

    /// In the order of their ids, from `from` on.
    pub fn regions_from(&self, from: GroupId) -> impl Iterator<Item = &Region> {
        self.regions.range(from..).map(|(_, region)| &**region)
    }

    pub fn regions(&self) -> impl Iterator<Item = &Region> {
        self.regions.values().map(|region| &**region)
    }

    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// The least and the greatest region id.
    pub fn region_id_span(&self) -> Option<(GroupId, GroupId)> {
        Some((*self.regions.first_key_value()?.0, *self.regions.last_key_value()?.0))
    }

    /// The region that holds `key`.
    pub fn region_at(&self, key: &[u8]) -> Option<&Region> {
        let (_, id) = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        self.region(*id).filter(|region| region.end.is_empty() || key < &*region.end)
    }

    /// In the order of their keys, from the one that covers the key on.
    pub fn regions_behind<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Region> {
        let first = self.region_at(key).map_or(key, |region| &region.start[..]);
        let behind = self.by_start.range::<[u8], _>((Bound::Included(first), Bound::Unbounded));
        behind.filter_map(|(_, id)| self.region(*id))
    }

    /// The regions before and behind, where the key space has no gap.
    pub fn neighbours(&self, region: &Region) -> (Option<&Region>, Option<&Region>) {
        let before = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&*region.start))).next_back();
        let before = before.and_then(|(_, id)| self.region(*id)).filter(|before| before.end == region.start);
        let behind = if region.end.is_empty() { None } else { self.by_start.get(&region.end) };
        (before, behind.and_then(|id| self.region(*id)))
    }

    pub fn store(&self, store: NodeId) -> Option<&Store> {
        self.stores.get(&store)
    }

    pub fn stores(&self) -> impl Iterator<Item = &Store> {
        self.stores.values()
    }

    pub fn flight(&self, region: GroupId) -> Option<&InFlight> {
        self.flights.get(&region)
    }

    pub fn flights(&self) -> impl Iterator<Item = &InFlight> {
        self.flights.values()
    }

    /// Operators without progress for too long; the caller ends them and says so.
    pub fn stuck(&self, policy: &Policy, now: Time) -> impl Iterator<Item = &InFlight> {
        self.flights.values().filter(move |flight| flight.is_stuck(policy, now))
    }

    /// The region that is being merged into this one.
    pub fn taking_in(&self, region: GroupId) -> Option<GroupId> {
        self.taking_in.get(&region).copied()
    }

    pub fn is_busy(&self, region: GroupId) -> bool {
        self.flights.contains_key(&region) || self.taking_in.contains_key(&region)
    }

    /// Approximate bytes of all regions, each counted once.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// Bytes per second, read and written, of all regions.
    pub fn total_flow(&self) -> u64 {
        self.total_flow
    }

    /// Regions that have reported since the view began.
    pub fn heard_regions(&self) -> usize {
        self.heard_regions
    }

    /// Whether enough was heard to plan by: nine regions of ten, or as long has passed as a store may be silent.
    pub fn is_ready(&self, policy: &Policy, now: Time) -> bool {
        self.heard_regions * 100 >= self.regions.len() * HEARD_PERCENT_MIN
            || now.since(self.started) >= policy.max_store_down_time
    }

    /// Regions that need a look, of one urgency, from `from` on and round to it.
    pub(crate) fn attention(&self, urgency: Urgency, from: GroupId) -> impl Iterator<Item = GroupId> {
        let first = (urgency, GroupId(0));
        let last = (urgency, GroupId(u64::MAX));
        let from = (urgency, from);
        self.attention.range(from..=last).chain(self.attention.range(first..from)).map(|(_, region)| *region)
    }

    pub(crate) fn wanted_splits(&self) -> impl Iterator<Item = GroupId> {
        self.splits.iter().copied()
    }

    pub(crate) fn hot_regions(&self) -> impl Iterator<Item = GroupId> {
        self.hot.iter().copied()
    }

    fn take_in(&mut self, report: RegionReport, heard: Option<Time>, now: Time) -> Result<Heard, ReportError> {
        self.vet(&report)?;
        let id = report.id;
        let hot = is_hot(&report, self.total_flow, self.regions.len());
        let mut outcome = Heard::default();
        let known = self.regions.get(&id).map(|known| (known.epoch, known.has_shape_of(&report)));
        if let Some((epoch, _)) = known
            && report.epoch.is_behind(epoch)
        {
            return Err(ReportError::StaleEpoch { region: id, known: epoch });
        }
        if let (Some((_, true)), Some(heard)) = (known, heard) {
            self.take_figures(&report, heard, hot);
        } else {
            let overlapped = self.overlapped(&report)?;
            for other in overlapped {
                let flight = self.remove_region(other);
                outcome.replaced.push((other, flight));
            }
            let old = self.regions.remove(&id);
            if let Some(old) = &old {
                self.uncount(old);
            }
            let kept = old.as_ref().filter(|old| old.epoch.version == report.epoch.version);
            let since = kept.map_or(now, |old| old.version_since);
            let mut region = Box::new(Region::new(report, heard, since, old.as_ref().map_or(0, |old| old.hot_reports)));
            region.warm(hot);
            self.count(&region);
            self.regions.insert(id, region);
        }
        if let (Some(flight), Some(region)) = (self.flights.get_mut(&id), self.regions.get(&id)) {
            outcome.progress = Some(flight.advance(region, now));
        }
        Ok(outcome)
    }

    fn vet(&self, report: &RegionReport) -> Result<(), ReportError> {
        let malformed = |what| Err(ReportError::Malformed(what));
        if !report.end.is_empty() && report.start >= report.end {
            return malformed("its range is empty");
        }
        if report.peers.is_empty() || report.peers.len() > PEERS_MAX {
            return malformed("1 to 16 peers are possible");
        }
        for (index, peer) in report.peers.iter().enumerate() {
            if report.peers[..index].iter().any(|other| other.store == peer.store) {
                return malformed("two peers are in one store");
            }
            if !self.stores.contains_key(&peer.store) {
                return Err(ReportError::UnknownStore(peer.store));
            }
        }
        let held_by = |store: NodeId| report.peers.iter().any(|peer| peer.store == store);
        let named = report.leader.iter().chain(report.down.iter().map(|down| &down.store)).chain(&report.pending);
        if !named.copied().all(held_by) {
            return malformed("a store is named that holds no peer");
        }
        if report.split_keys.len() > SPLIT_KEYS_MAX
            || !report.split_keys.is_sorted_by(|a, b| a < b)
            || report
                .split_keys
                .iter()
                .any(|key| *key <= report.start || (!report.end.is_empty() && *key >= report.end))
        {
            return malformed("keys to split at must ascend, within the region, 64 at most");
        }
        Ok(())
    }

    /// Other regions that the reported range covers in part or whole; refused if one of them is as new.
    fn overlapped(&self, report: &RegionReport) -> Result<Vec<GroupId>, ReportError> {
        let mut found = Vec::new();
        let before = self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&*report.start))).next_back();
        let from_start = self.by_start.range::<[u8], _>((Bound::Included(&*report.start), Bound::Unbounded));
        let within = from_start.take_while(|(start, _)| report.end.is_empty() || **start < report.end);
        for (_, other) in before.into_iter().chain(within) {
            let Some(region) = self.region(*other) else { continue };
            let apart = !region.end.is_empty() && region.end <= report.start;
            if apart || region.id == report.id {
                continue;
            }
            if region.epoch.version >= report.epoch.version {
                return Err(ReportError::Overlap { region: report.id, other: region.id });
            }
            found.push(region.id);
        }
        Ok(found)
    }

    /// Figures alone have changed.
    fn take_figures(&mut self, report: &RegionReport, heard: Time, hot: bool) {
        let Some(region) = self.regions.get_mut(&report.id) else { return };
        self.heard_regions += usize::from(region.heard.is_none());
        region.heard = Some(heard);
        let was_hot = region.is_hot();
        region.warm(hot);
        if was_hot && !region.is_hot() {
            self.hot.remove(&region.id);
        } else if !was_hot && region.is_hot() {
            self.hot.insert(region.id);
        }
        region.keys = report.keys;
        (region.read_keys_per_sec, region.write_keys_per_sec) = (report.read_keys_per_sec, report.write_keys_per_sec);
        let new = (report.bytes, report.read_bytes_per_sec, report.write_bytes_per_sec, report.requests_per_sec);
        let known = (region.bytes, region.read_bytes_per_sec, region.write_bytes_per_sec, region.requests_per_sec);
        if known == new {
            return;
        }
        self.total_bytes = store::shifted(self.total_bytes, region.bytes, -1).saturating_add(report.bytes);
        self.total_flow = store::shifted(self.total_flow, region.flow(), -1);
        for peer in &region.peers {
            if let Some(store) = self.stores.get_mut(&peer.store) {
                store.count_figures(region, -1);
            }
        }
        (region.bytes, region.read_bytes_per_sec, region.write_bytes_per_sec, region.requests_per_sec) = new;
        self.total_flow = self.total_flow.saturating_add(region.flow());
        for peer in &region.peers {
            if let Some(store) = self.stores.get_mut(&peer.store) {
                store.count_figures(region, 1);
            }
        }
    }

    fn count(&mut self, region: &Region) {
        for peer in &region.peers {
            if let Some(store) = self.stores.get_mut(&peer.store) {
                store.count(region, 1);
            }
        }
        self.by_start.insert(region.start.clone(), region.id);
        if let Some(urgency) = region.urgency() {
            self.attention.insert((urgency, region.id));
        }
        if !region.split_keys.is_empty() {
            self.splits.insert(region.id);
        }
        if region.is_hot() {
            self.hot.insert(region.id);
        }
        self.heard_regions += usize::from(region.heard.is_some());
        self.total_bytes = self.total_bytes.saturating_add(region.bytes);
        self.total_flow = self.total_flow.saturating_add(region.flow());
    }

    fn uncount(&mut self, region: &Region) {
        self.leaderless.remove(&region.id);
        for peer in &region.peers {
            if let Some(store) = self.stores.get_mut(&peer.store) {
                store.count(region, -1);
            }
        }
        self.by_start.remove(&region.start);
        if let Some(urgency) = region.urgency() {
            self.attention.remove(&(urgency, region.id));
        }
        self.splits.remove(&region.id);
        self.hot.remove(&region.id);
        self.heard_regions -= usize::from(region.heard.is_some());
        self.total_bytes = store::shifted(self.total_bytes, region.bytes, -1);
        self.total_flow = store::shifted(self.total_flow, region.flow(), -1);
    }
}

fn is_hot(report: &RegionReport, total_flow: u64, regions: usize) -> bool {
    let flow = region::flow(report.read_bytes_per_sec, report.write_bytes_per_sec, report.requests_per_sec);
    let average = total_flow / (regions.max(1) as u64);
    flow >= HOT_FLOW_MIN && (flow >= average.saturating_mul(HOT_FLOW_FACTOR) || regions < HOT_FLOW_FACTOR as usize)
}
