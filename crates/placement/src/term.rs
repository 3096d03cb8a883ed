//! What the leading member knows beyond the records: what it has heard from stores, and the operators under way.
//!
//! It is memory of one term. A new leader begins with the records alone, hears the stores for a while, and plans nothing
//! before it has heard most regions ([`View::is_ready`]); what was left half done it sees in the regions themselves.
//!
//! ```text
//!  heartbeat ─▶ view ─┬─ the operator of each region led there ─▶ its next step, in the answer
//!                     └─ peers that are members of nothing ─▶ to be taken away, in the answer
//!  every second ─▶ stuck and hopeless operators are ended · plan ─▶ operators to begin · stores that are empty
//! ```

mod words;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base::{GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use proto::placement as pb;
use rpc::Status;

use crate::counters::Counters;
use crate::machine::Records;
use crate::model::{Epoch, Operator, Step};
use crate::strays::Strays;
use crate::view::{DownPeer, Health, InFlight, Progress, ReportError, StoreReport, StoreState};
use crate::{Plan, Policy, Region, Store, View, plan};

use words::{described, report_of, step_for, store_rates};
pub use words::{labels_of, meta_of};

/// Operators that ended, kept for people.
const ENDED_MAX: usize = 1000;
/// A new leader takes no replica away before this has passed, and no leader one that an operator was to add before so much
/// has passed since the operator ended: a step that was handed out may be about to make it a member.
const RETIRE_AFTER: Duration = Duration::from_secs(15);

/// Who asks to be given up asks every second; after such a silence it begins to ask anew.
const ASKS_WITHIN: Duration = Duration::from_secs(10);

/// A replica that its store was told to take away is down for so long, whoever names it as a member: until its leader sees that by
/// itself.
const CONDEMNED_FOR: Duration = Duration::from_secs(60);

/// A region that has not reported another one's keys for so long does so no more.
const OVERLAP_KEPT: Duration = Duration::from_secs(60);

/// All that is heard and planned in one term.
pub struct Term {
    pub number: u64,
    pub view: View,
    pub policy: Policy,
    round: u64,
    next_operator: u64,
    ended: VecDeque<Ended>,
    /// What comes of the splits under way.
    splits: BTreeMap<GroupId, pb::SplitStep>,
    /// How far the steps under way have come, in the words of the regions' leaders.
    progress: BTreeMap<GroupId, u64>,
    /// Replicas that ended operators were to add, and when those ended; the last [`RETIRE_AFTER`].
    added: VecDeque<(Time, GroupId, PeerId)>,
    /// Regions that report keys which another region has: that one, since when, and when last.
    overlaps: BTreeMap<GroupId, (GroupId, Time, Time)>,
    /// Stores that ask to be given up: since when, and when they asked last.
    asking: BTreeMap<NodeId, (Time, Time)>,
    /// The states that stores were last seen in ([`Store::state_name`]), and since when.
    states: BTreeMap<NodeId, (&'static str, Time)>,
    strays: Strays,
    /// Replicas that stores were told to take away, and when last. A step of long ago may make one of them a member after all.
    condemned: BTreeMap<(GroupId, PeerId), Time>,
    pub began: Time,
    counters: Arc<Counters>,
}

/// What is asked of a store that has sent a heartbeat.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub steps: Vec<pb::Step>,
    /// Regions of which it is to tell all the next time.
    pub tell_again: Vec<u64>,
}

/// An operator that is over.
#[derive(Clone, Debug)]
pub struct Ended {
    pub flight: InFlight,
    pub ended_unix_s: u64,
    pub took: Duration,
    pub outcome: String,
}

impl Term {
    pub(crate) fn new(
        number: u64,
        records: &Records,
        defaults: &Policy,
        now: Time,
        counters: Arc<Counters>,
    ) -> Result<Term, Status> {
        let mut view = View::new(now);
        for store in records.stores.values() {
            view.put_store(meta_of(store), now);
        }
        for region in records.regions.values() {
            if let Err(why) = view.restore_region(report_of(region, None)) {
                tracing::warn!(target: "placement_region", "A region's record was left out, region={} why={why} code=CF8003", region.id);
            }
        }
        Ok(Term {
            number,
            view,
            policy: policy_of(records, defaults)?,
            round: 0,
            // Operators of different terms are different ones.
            next_operator: number << 32,
            ended: VecDeque::new(),
            splits: BTreeMap::new(),
            progress: BTreeMap::new(),
            added: VecDeque::new(),
            overlaps: BTreeMap::new(),
            asking: BTreeMap::new(),
            states: BTreeMap::new(),
            strays: Strays::default(),
            condemned: BTreeMap::new(),
            began: now,
            counters,
        })
    }

    /// Takes a heartbeat in; what the store is to do and to tell.
    pub fn hear(&mut self, id: NodeId, request: &pb::HeartbeatRequest, now: Time) -> Wanted {
        let stats = request.stats.unwrap_or_default();
        let report = StoreReport {
            capacity_bytes: stats.capacity_bytes,
            available_bytes: stats.available_bytes,
            slow: stats.slow,
            rates: store_rates(stats.rates.unwrap_or_default()),
            full: stats.full,
            sending_snapshots: stats.sending_snapshots,
            uptime: Duration::from_secs(stats.uptime_seconds),
            ..StoreReport::default()
        };
        // Nobody may have looked at it while it was silent.
        self.note_state(id, now);
        // A store that has registered is known; one that has not was refused before.
        let _ = self.view.report_store(id, report, now);
        self.note_state(id, now);
        let differing = request.differing.iter().map(|replica| (GroupId(replica.region_id), PeerId(replica.peer_id)));
        self.view.report_differing(id, differing);
        // What it has and does not lead, it may have led before.
        for replica in &request.others {
            self.view.leads_no_more(GroupId(replica.region_id), id, now);
        }
        let mut wanted = self.hear_unchanged(id, &request.unchanged, now);
        for reported in &request.led {
            let Some(region) = &reported.region else { continue };
            let mut report = report_of(region, Some(id));
            let store_of =
                |peer: u64| region.peers.iter().find(|known| known.id == peer).map(|peer| NodeId(peer.store_id));
            let before = self.view.region(report.id);
            let since = |store: NodeId| {
                let known = before.and_then(|before| before.down.iter().find(|down| down.store == store));
                known.map_or(now, |down| down.since)
            };
            let condemned = report.peers.iter().filter(|peer| self.condemned.contains_key(&(report.id, peer.id)));
            let down = reported.down.iter().filter_map(|peer| store_of(*peer)).chain(condemned.map(|peer| peer.store));
            let down: BTreeSet<NodeId> = down.collect();
            report.down = down.into_iter().map(|store| DownPeer { store, since: since(store) }).collect();
            report.pending = reported.pending.iter().filter_map(|peer| store_of(*peer)).collect();
            report.split_keys = reported.split_keys.iter().map(|key| key.as_ref().into()).collect();
            (report.frozen, report.unmeasured) = (reported.frozen, !reported.measured);
            report.remembers = reported.remembers;
            report.bytes = reported.bytes;
            report.keys = reported.keys;
            let rates = reported.rates.unwrap_or_default();
            (report.read_bytes_per_sec, report.read_keys_per_sec) = (rates.read_bytes, rates.read_keys);
            (report.write_bytes_per_sec, report.write_keys_per_sec) = (rates.write_bytes, rates.write_keys);
            report.requests_per_sec = rates.requests;
            let id = report.id;
            match self.view.report_region(report, now) {
                Ok(heard) => {
                    self.overlaps.remove(&id);
                    for (other, flight) in heard.replaced {
                        let merged = flight.as_ref().and_then(|flight| flight.operator.merges_into()) == Some(id);
                        let outcome = format!("region {other} is part of region {id} by now");
                        self.end(flight, if merged { "done" } else { &outcome }, now);
                    }
                    self.end_merge_into(id, now);
                    match heard.progress {
                        Some(Progress::Finished) => {
                            let flight = self.view.end(id);
                            self.end(flight, "done", now);
                        }
                        Some(Progress::Overtaken) => {
                            let flight = self.view.end(id);
                            let merges = flight.as_ref().is_some_and(|it| it.operator.merges_into().is_some());
                            let why = if merges { "the merge was given up" } else { "the region's range has changed" };
                            self.end(flight, &format!("cancelled: {why}"), now);
                        }
                        _ => {}
                    }
                }
                Err(why) => {
                    if let ReportError::Overlap { region, other } = why {
                        let known = self.overlaps.entry(region).or_insert((other, now, now));
                        (known.0, known.2) = (other, now);
                    }
                    tracing::debug!(target: "placement_region", "A region's report was left out, region={id} why={why}");
                    wanted.tell_again.push(id.0);
                    continue;
                }
            }
            self.note_progress(id, reported.progress, now);
            let step = self.view.flight(id).and_then(InFlight::current_step);
            let split = self.splits.get(&id);
            wanted.steps.extend(step.and_then(|step| step_for(region, step, split)));
        }
        wanted
    }

    /// Regions that are as they were last reported. What is to be done to one of them is told at once; how far that comes shows
    /// only in whole reports.
    fn hear_unchanged(&mut self, id: NodeId, unchanged: &[pb::Unchanged], now: Time) -> Wanted {
        let mut wanted = Wanted::default();
        for told in unchanged {
            let region = GroupId(told.region_id);
            let epoch = Epoch { conf_version: told.conf_version, version: told.version };
            if !self.view.unchanged(region, epoch, id, now) {
                wanted.tell_again.push(told.region_id);
                continue;
            }
            self.overlaps.remove(&region);
            // One of its members was told to go: it is not as it was.
            let has_condemned =
                |known: &Region| known.peers.iter().any(|it| self.condemned.contains_key(&(region, it.id)));
            if !self.condemned.is_empty() && self.view.region(region).is_some_and(has_condemned) {
                wanted.tell_again.push(told.region_id);
                continue;
            }
            let Some(step) = self.view.flight(region).map(InFlight::current_step) else { continue };
            wanted.tell_again.push(told.region_id);
            let Some(known) = self.view.region(region) else { continue };
            wanted.steps.extend(step.and_then(|step| step_for(&described(known), step, self.splits.get(&region))));
        }
        wanted
    }

    /// A region that is to be merged into this one waits in vain if this one has changed.
    fn end_merge_into(&mut self, into: GroupId, now: Time) {
        let Some(source) = self.view.taking_in(into) else { return };
        let version = self.view.region(into).map(|region| region.epoch.version);
        let planned = self.view.flight(source).and_then(|flight| {
            flight.operator.steps.iter().find_map(|step| match step {
                Step::Merge { into_epoch, .. } => Some(into_epoch.version),
                _ => None,
            })
        });
        if planned != version {
            let flight = self.view.end(source);
            self.end(flight, &format!("cancelled: the range of region {into} has changed"), now);
        }
    }

    /// A learner that is given what it lacks shows as nothing else for as long as that takes.
    fn note_progress(&mut self, region: GroupId, progress: u64, now: Time) {
        let step = self.view.flight(region).and_then(InFlight::current_step);
        if !matches!(step, Some(Step::AddLearner { .. })) {
            self.progress.remove(&region);
            return;
        }
        if self.progress.insert(region, progress).is_some_and(|before| progress > before) {
            self.view.note_progress(region, now);
        }
    }

    /// How many ids an operator takes: of new peers, and of regions with their peers.
    pub fn ids_for(&self, operator: &Operator) -> u32 {
        let peers = self.view.region(operator.region).map_or(0, |region| region.peers.len());
        let of_step = |step: &Step| match step {
            Step::Split { keys } => keys.len() * (1 + peers),
            _ => 0,
        };
        let all = operator.stores_added().count() + operator.steps.iter().map(of_step).sum::<usize>();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// Names what is to come of a split.
    pub fn prepare_split(&mut self, operator: &Operator, mut draw: impl FnMut() -> u64) {
        let Some(region) = self.view.region(operator.region) else { return };
        for step in &operator.steps {
            let Step::Split { keys } = step else { continue };
            let at = keys.iter().map(|key| pb::SplitAt {
                start: Bytes::copy_from_slice(key),
                region_id: draw(),
                peers: region
                    .peers
                    .iter()
                    .map(|peer| pb::Peer { id: draw(), store_id: peer.store.0, learner: peer.learner })
                    .collect(),
            });
            let split = pb::SplitStep { at: at.collect() };
            self.splits.insert(operator.region, split);
        }
    }

    /// Replicas on a store that are members of their regions no more, or whose regions are no more.
    pub fn retired(&mut self, request: &pb::HeartbeatRequest, records: &Records, now: Time) -> Vec<pb::Replica> {
        // Nearly all are members. A store may have many: this is all that is done for these.
        let is_member = |replica: &&pb::Replica| {
            let region = records.regions.get(&replica.region_id);
            region.is_some_and(|region| region.peers.iter().any(|peer| peer.id == replica.peer_id))
        };
        let others: Vec<&pb::Replica> = request.others.iter().filter(|replica| !is_member(replica)).collect();
        let is_gone = |replica: &&&pb::Replica| {
            if !records.regions.contains_key(&replica.region_id) {
                return false;
            }
            let id = GroupId(replica.region_id);
            let heard = self.view.region(id).is_some_and(|region| region.heard.is_some());
            let own = (id, PeerId(replica.peer_id));
            let under_way = self.view.flight(id).is_some_and(|flight| added_by(&flight.operator).any(|it| it == own));
            let lately = self.added.iter().rev().take_while(|(ended, ..)| now.since(*ended) < RETIRE_AFTER);
            let awaited = under_way || lately.into_iter().any(|(_, region, peer)| (*region, *peer) == own);
            heard && !awaited && now.since(self.began) >= RETIRE_AFTER
        };
        let mut retired: Vec<pb::Replica> = others.iter().filter(is_gone).map(|replica| **replica).collect();
        let is_unknown = |replica: &&&pb::Replica| {
            let id = replica.region_id;
            !records.regions.contains_key(&id) && self.view.region(GroupId(id)).is_none()
        };
        let unknown = others.iter().filter(is_unknown);
        let unknown = unknown.map(|replica| (GroupId(replica.region_id), PeerId(replica.peer_id)));
        let strays = self.strays.hear(NodeId(request.store_id), unknown, now);
        retired.extend(strays.iter().map(|(region, peer)| pb::Replica { region_id: region.0, peer_id: peer.0 }));
        retired
    }

    /// A store is about to be told to take these away. It cannot be called back, so nobody is to count on them from now on.
    pub fn condemn(&mut self, replicas: &[pb::Replica], now: Time) {
        self.condemned.retain(|_, told| now.since(*told) < CONDEMNED_FOR);
        let replica = |replica: &pb::Replica| (GroupId(replica.region_id), PeerId(replica.peer_id));
        self.condemned.extend(replicas.iter().map(replica).map(|replica| (replica, now)));
    }

    /// Regions that have reported keys of another region's for so long, and until lately; and that other region.
    pub fn overlaps(&self, lasting: Duration, now: Time) -> impl Iterator<Item = (GroupId, GroupId)> {
        let lasts = move |since: Time, last: Time| last.since(since) >= lasting && now.since(last) < lasting;
        self.overlaps
            .iter()
            .filter(move |(_, (_, since, last))| lasts(*since, *last))
            .map(|(id, (other, ..))| (*id, *other))
    }

    /// Notes that a store asks to be given up; since when it does.
    pub fn asks_since(&mut self, store: NodeId, now: Time) -> Time {
        self.asking.retain(|_, (_, last)| now.since(*last) < ASKS_WITHIN);
        let (since, last) = self.asking.entry(store).or_insert((now, now));
        *last = now;
        *since
    }

    /// Looks what states stores are in; to be called in every round.
    pub fn note_states(&mut self, now: Time) {
        let named = self.view.stores().map(|store| (store.id(), store.state_name(now, &self.policy)));
        named.for_each(|(id, state)| note(&mut self.states, id, state, now));
    }

    /// A store has shown a sign of life. Nobody may have looked at it while it was silent.
    pub fn hear_store(&mut self, id: NodeId, now: Time) {
        self.note_state(id, now);
        self.view.hear_store(id, now);
        self.note_state(id, now);
    }

    fn note_state(&mut self, id: NodeId, now: Time) {
        if let Some(store) = self.view.store(id) {
            note(&mut self.states, id, store.state_name(now, &self.policy), now);
        }
    }

    /// Since when a store is in the state that it is in, as far as this term knows.
    pub fn in_state_since(&self, store: &Store, now: Time) -> Time {
        let known = self.states.get(&store.id()).filter(|(state, _)| *state == store.state_name(now, &self.policy));
        known.map_or(now, |(_, since)| *since)
    }

    pub fn plan(&mut self, now: Time) -> Vec<Operator> {
        self.strays.look(&self.view, now);
        if !self.view.is_ready(&self.policy, now) {
            return Vec::new();
        }
        self.overlaps.retain(|_, (.., last)| now.since(*last) < OVERLAP_KEPT);
        self.round += 1;
        let began = Instant::now();
        let Plan { operators, stats } = plan(&self.view, &self.policy, now, self.round);
        if let Some(blocked) = self.counters.round(began.elapsed(), &stats, now) {
            tracing::warn!(
                target: "placement_schedule",
                "failed to schedule operator, regions cannot have what they need: {blocked}; see explain/region code=CF8020"
            );
        }
        operators
    }

    pub fn begin(&mut self, operator: Operator, now: Time) -> Option<u64> {
        let (region, cause, reason) = (operator.region, operator.cause, operator.reason.clone());
        let steps = operator.listed_steps();
        let id = self.next_operator;
        match self.view.begin(id, operator, now) {
            Ok(()) => {
                self.next_operator += 1;
                self.counters.begun(cause);
                tracing::info!(
                    target: "placement_schedule",
                    "Operator begun, operator={id:x} region={region} cause={} steps={steps} reason={reason}",
                    cause.name()
                );
                Some(id)
            }
            Err(why) => {
                tracing::info!(target: "placement_schedule", "failed to schedule operator, region={region} why={why}");
                None
            }
        }
    }

    /// Ends operators that wait for a store which is gone: in their place one may be planned that does without it. A leader is
    /// handed over anywhere else at no cost, so silence is enough; of a replica's data much may be there already.
    pub fn end_hopeless(&mut self, now: Time) {
        let hopeless = |flight: &InFlight| {
            let (store, from) = match flight.current_step()? {
                Step::TransferLeader { to } => (*to, Health::Disconnected(Duration::ZERO)),
                Step::AddLearner { store, .. } | Step::Promote { store } => (*store, Health::Down(Duration::ZERO)),
                _ => return None,
            };
            let health = self.view.store(store).map(|known| known.health(now, &self.policy));
            health.is_none_or(|health| health >= from).then_some((flight.operator.region, store))
        };
        let hopeless: Vec<_> = self.view.flights().filter_map(hopeless).collect();
        for (region, store) in hopeless {
            let flight = self.view.end(region);
            self.end(flight, &format!("cancelled: store {store} is silent"), now);
        }
    }

    pub fn end_stuck(&mut self, now: Time) {
        let stuck: Vec<GroupId> = self.view.stuck(&self.policy, now).map(|flight| flight.operator.region).collect();
        for region in stuck {
            let flight = self.view.end(region);
            let step = flight.as_ref().and_then(InFlight::current_step);
            let outcome = format!(
                "cancelled: no progress for {} s with the step: {}{}",
                self.policy.operator_no_progress_timeout.as_secs(),
                step.map(ToString::to_string).unwrap_or_default(),
                step.and_then(|step| self.why_stuck(region, step, now))
                    .map(|why| format!("; {why}"))
                    .unwrap_or_default()
            );
            tracing::warn!(target: "placement_schedule", "An operator is given up, region={region} why={outcome} code=CF8004");
            self.end(flight, &outcome, now);
        }
    }

    /// What the step waits for, as far as it shows.
    fn why_stuck(&self, region: GroupId, step: &Step, now: Time) -> Option<String> {
        let region = self.view.region(region)?;
        let silent = |id: NodeId| {
            let silent = self.view.store(id).map(|store| store.silent_for(now))?;
            (silent >= self.policy.store_disconnected_time)
                .then(|| format!("store {id} was last heard of {} s ago", silent.as_secs()))
        };
        let leader = region.leader.map_or_else(|| Some("the region has no leader".to_owned()), silent);
        leader.or_else(|| match step {
            Step::AddLearner { store, .. } | Step::Promote { store } if region.peer(*store).is_none() => {
                Some(silent(*store).unwrap_or_else(|| format!("store {store} does not admit the replica")))
            }
            Step::AddLearner { store, .. } | Step::Promote { store } | Step::TransferLeader { to: store } => {
                let behind = || format!("the replica in store {store} has not caught up");
                silent(*store).or_else(|| (!region.is_well_in(*store)).then(behind))
            }
            _ => None,
        })
    }

    pub fn end(&mut self, flight: Option<InFlight>, outcome: &str, now: Time) {
        let Some(flight) = flight else { return };
        while self.added.front().is_some_and(|(ended, ..)| now.since(*ended) >= RETIRE_AFTER) {
            self.added.pop_front();
        }
        self.added.extend(added_by(&flight.operator).map(|(region, peer)| (now, region, peer)));
        self.splits.remove(&flight.operator.region);
        self.progress.remove(&flight.operator.region);
        self.counters.ended(flight.operator.cause, outcome);
        let took = now.since(flight.started);
        tracing::info!(
            target: "placement_schedule",
            "Operator ended, operator={:x} region={} cause={} steps={} done={} took={}ms outcome={outcome}",
            flight.id,
            flight.operator.region,
            flight.operator.cause.name(),
            flight.operator.listed_steps(),
            flight.step,
            took.as_millis()
        );
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        let ended_unix_s = unix_s();
        self.ended.push_back(Ended { flight, ended_unix_s, took, outcome: outcome.to_owned() });
    }

    /// Stores that were to be emptied and are.
    pub fn emptied(&self, now: Time) -> Vec<NodeId> {
        if !self.view.is_ready(&self.policy, now) {
            return Vec::new();
        }
        let offline = self.view.stores().filter(|store| store.meta.state == StoreState::Offline);
        let awaited =
            |store: NodeId| self.view.flights().any(|flight| flight.operator.stores_added().any(|to| to == store));
        let empty = offline.filter(|store| store.region_count() == 0 && !awaited(store.id()));
        empty.map(|store| store.id()).collect()
    }

    pub fn ended(&self) -> impl Iterator<Item = &Ended> {
        self.ended.iter().rev()
    }
}

/// The replicas that an operator makes.
fn added_by(operator: &Operator) -> impl Iterator<Item = (GroupId, PeerId)> {
    operator.steps.iter().filter_map(|step| match step {
        Step::AddLearner { peer, .. } => Some((operator.region, *peer)),
        _ => None,
    })
}

pub fn policy_of(records: &Records, defaults: &Policy) -> Result<Policy, Status> {
    if records.policy.is_empty() {
        return Ok(defaults.clone());
    }
    let value = serde_json::from_slice(&records.policy).map_err(|error| Status::internal(error.to_string()))?;
    let mut policy = defaults.merged(&value).map_err(|error| Status::internal(error.to_string()))?;
    policy.end_pauses(unix_s());
    Ok(policy)
}

fn note(states: &mut BTreeMap<NodeId, (&'static str, Time)>, id: NodeId, state: &'static str, now: Time) {
    let known = states.entry(id).or_insert((state, now));
    if known.0 != state {
        *known = (state, now);
    }
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    unix_s_ago(Duration::ZERO)
}

/// Of a moment so long ago.
pub fn unix_s_ago(age: Duration) -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.saturating_sub(age).as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::StoreMeta;

    #[test]
    fn who_was_told_to_go_is_down_when_it_becomes_a_member() {
        let mut now = Time::ZERO;
        let mut term = Term::new(1, &Records::default(), &Policy::default(), now, Arc::default()).unwrap();
        for store in [1, 2] {
            term.view.put_store(StoreMeta::new(NodeId(store)), now);
        }
        term.condemn(&[pb::Replica { region_id: 7, peer_id: 12 }], now);
        for down in [true, false] {
            term.hear(NodeId(1), &pb::HeartbeatRequest { led: vec![led(Vec::new(), 0)], ..heartbeat(0) }, now);
            assert_eq!(term.view.region(GroupId(7)).unwrap().is_well_in(NodeId(2)), !down);
            now = now + CONDEMNED_FOR;
            term.condemn(&[], now);
        }
    }

    #[test]
    fn it_is_known_since_when_a_store_is_in_its_state() {
        let policy = Policy::default();
        let mut term = Term::new(1, &Records::default(), &policy, Time::ZERO, Arc::default()).unwrap();
        term.view.put_store(StoreMeta::new(NodeId(1)), Time::ZERO);
        let silent = policy.store_disconnected_time.as_millis() as u64;
        // Looked at every second; heard of at first and at the end.
        for (ms, heard, since) in [
            (0, true, 0),
            (1000, false, 0),
            (silent - 1000, false, 0),
            (silent, false, silent),
            (silent + 1000, false, silent),
            (silent + 2000, true, silent + 2000),
            // It came back before anybody looked again.
            (3 * silent, true, 3 * silent),
        ] {
            let now = Time::from_millis(ms);
            if heard {
                term.hear(NodeId(1), &pb::HeartbeatRequest { store_id: 1, ..pb::HeartbeatRequest::default() }, now);
            }
            term.note_states(now);
            let store = term.view.store(NodeId(1)).unwrap();
            assert_eq!(term.in_state_since(store, now), Time::from_millis(since), "after {ms} ms");
        }
    }

    fn heartbeat(progress: u64) -> pb::HeartbeatRequest {
        pb::HeartbeatRequest { store_id: 1, led: vec![led(vec![12], progress)], ..pb::HeartbeatRequest::default() }
    }

    fn led(pending: Vec<u64>, progress: u64) -> pb::RegionReport {
        let peers = [(11, 1, false), (12, 2, true)];
        let peer = |(id, store_id, learner)| pb::Peer { id, store_id, learner };
        let region =
            pb::Region { id: 7, conf_version: 2, version: 1, peers: peers.map(peer).into(), ..pb::Region::default() };
        pb::RegionReport { region: Some(region), pending, progress, ..pb::RegionReport::default() }
    }

    #[test]
    fn an_operator_is_stuck_only_if_nothing_comes_nearer() {
        let policy = Policy::default();
        let patience = policy.operator_no_progress_timeout;
        let mut now = Time::ZERO;
        let mut term = Term::new(1, &Records::default(), &policy, now, Arc::default()).unwrap();
        for store in [1, 2] {
            term.view.put_store(StoreMeta::new(NodeId(store)), now);
        }
        term.hear(NodeId(1), &heartbeat(0), now);
        let epoch = term.view.region(GroupId(7)).unwrap().epoch;
        let steps = vec![Step::AddLearner { store: NodeId(2), peer: PeerId(12) }, Step::Promote { store: NodeId(2) }];
        let (region, cause, rejected) = (GroupId(7), crate::model::Cause::MissingReplica, Vec::new());
        term.begin(Operator { region, epoch, cause, steps, reason: String::new(), rejected }, now);
        for step in 1..=10 {
            now = now + patience / 2;
            term.hear(NodeId(1), &heartbeat(step), now);
            term.end_stuck(now);
            assert!(term.view.flight(region).is_some(), "it has come nearer {step} times");
        }
        for left in [true, true, false] {
            assert_eq!(term.view.flight(region).is_some(), left);
            now = now + patience / 2;
            term.hear(NodeId(1), &heartbeat(10), now);
            term.end_stuck(now);
        }
        assert!(term.ended().next().unwrap().outcome.contains("no progress"));
    }

    #[test]
    fn an_operator_that_waits_for_a_store_that_is_gone_ends() {
        let policy = Policy::default();
        let (disconnected, down) = (policy.store_disconnected_time, policy.max_store_down_time);
        let store = NodeId(2);
        for (step, patience) in [
            (Step::TransferLeader { to: store }, disconnected),
            (Step::AddLearner { store, peer: PeerId(12) }, down),
            (Step::Promote { store }, down),
        ] {
            let begun = Time::ZERO;
            let mut term = Term::new(1, &Records::default(), &policy, begun, Arc::default()).unwrap();
            for store in [1, 2] {
                term.view.put_store(StoreMeta::new(NodeId(store)), begun);
            }
            term.hear(NodeId(1), &heartbeat(0), begun);
            let region = GroupId(7);
            let epoch = term.view.region(region).unwrap().epoch;
            let (cause, steps) = (crate::model::Cause::BalanceLeader, vec![step]);
            term.begin(Operator { region, epoch, cause, steps, reason: String::new(), rejected: Vec::new() }, begun);
            for (after, left) in [(patience - Duration::from_millis(1), true), (patience, false)] {
                term.hear(NodeId(1), &heartbeat(0), begun + after);
                term.end_hopeless(begun + after);
                assert_eq!(term.view.flight(region).is_some(), left, "{after:?}");
            }
            assert_eq!(term.ended().next().unwrap().outcome, "cancelled: store 2 is silent");
        }
    }
}
