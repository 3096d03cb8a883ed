//! What the leading member knows beyond the records: what it has heard from stores, and the operators under way.
//!
//! It is memory of one term. A new leader begins with the records alone, hears the stores for a while, and plans nothing
//! before it has heard most regions ([`View::is_ready`]); what was left half done it sees in the regions themselves.
//!
//! ```text
//!  heartbeat ─▶ view ─┬─ regions that are new or changed ─▶ proposed, so that records keep up
//!                     ├─ the operator of each region led there ─▶ its next step, in the answer
//!                     └─ peers that are members of nothing ─▶ to be taken away, in the answer
//!  every second ─▶ stuck operators are ended · plan ─▶ operators begun · emptied stores become tombstones
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base::{GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::{Refusal, Role};
use node::Replicated;
use parking_lot::{Mutex, MutexGuard};
use prost::Message as _;
use proto::placement as pb;
use proto::placement::command::What;
use rpc::{Code, Status};

use crate::counters::Counters;
use crate::machine::{self, Records, SharedRecords};
use crate::model::{Epoch, Operator, Peer, Step};
use crate::plan::round::Round;
use crate::strays::Strays;
use crate::view::{DownPeer, InFlight, Progress, RegionReport, StoreMeta, StoreRates, StoreReport, StoreState};
use crate::{Plan, Policy, View, plan};

const ROUND_EVERY: Duration = Duration::from_secs(1);
/// Operators that ended, kept for people.
const ENDED_MAX: usize = 1000;
/// So long after a new leader has begun, and after an operator has ended, no replica is taken away that a step which was handed
/// out before may be about to make a member.
const RETIRE_AFTER: Duration = Duration::from_secs(15);

/// A store that was heard of so lately is alive.
const COPY_HEARD_WITHIN: Duration = Duration::from_secs(5);
/// One that was not for so long gives its address to a newcomer.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// One per member; only the leader's has anything in it. Whoever needs both locks takes the term's before the records'.
pub struct Leader {
    handle: Arc<dyn Replicated>,
    records: SharedRecords,
    /// The policy while nobody has set one.
    defaults: Policy,
    term: Mutex<Option<Term>>,
    pub counters: Arc<Counters>,
}

/// All that is heard and planned in one term.
pub struct Term {
    number: u64,
    pub view: View,
    pub policy: Policy,
    round: u64,
    next_operator: u64,
    ended: VecDeque<Ended>,
    /// What comes of the splits under way.
    splits: BTreeMap<GroupId, pb::SplitStep>,
    /// How far the steps under way have come, in the words of the regions' leaders.
    progress: BTreeMap<GroupId, u64>,
    strays: Strays,
    /// Peers that operators were to add which have ended since, and when that was.
    added: BTreeMap<PeerId, Time>,
    began: Time,
    counters: Arc<Counters>,
}

/// An operator that is over.
#[derive(Clone, Debug)]
pub struct Ended {
    pub flight: InFlight,
    pub ended_unix_s: u64,
    pub took: Duration,
    pub outcome: String,
}

impl Leader {
    pub fn new(
        handle: impl Replicated + 'static,
        records: SharedRecords,
        defaults: Policy,
        counters: Arc<Counters>,
    ) -> Arc<Leader> {
        let handle = Arc::new(handle);
        Arc::new(Leader { handle, records, defaults, term: Mutex::default(), counters })
    }

    /// The policy that the records hold.
    pub fn policy(&self) -> Result<Policy, Status> {
        policy_of(&self.records.read(), &self.defaults)
    }

    pub fn records(&self) -> &SharedRecords {
        &self.records
    }

    pub fn now(&self) -> Time {
        self.handle.now()
    }

    /// What this member knows as the leader; an error if it does not lead.
    pub fn term(&self) -> Result<parking_lot::MappedMutexGuard<'_, Term>, Status> {
        let status = self.handle.status();
        if status.role != Role::Leader {
            return Err(Status::unavailable("no leader elected: this member of the placement driver does not lead"));
        }
        let mut known = self.term.lock();
        if known.as_ref().is_none_or(|known| known.number != status.term) {
            let counters = self.counters.clone();
            *known = Some(Term::new(status.term, &self.records.read(), &self.defaults, self.now(), counters)?);
        }
        Ok(MutexGuard::map(known, |known| known.as_mut().expect("just set")))
    }

    /// Plans, for as long as the process runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            tokio::time::sleep(ROUND_EVERY).await;
            if self.handle.is_leader()
                && let Err(why) = self.plan_once().await
            {
                tracing::warn!(target: "placement_schedule", "failed to schedule operator, why={why} code=CF8001");
            }
        }
    }

    /// Waits until the records hold all that was replicated before this term; what is heard is held against them.
    pub async fn settle(&self) -> Result<(), Status> {
        let term = self.handle.term();
        if self.term.lock().as_ref().is_some_and(|known| known.number == term) {
            return Ok(());
        }
        self.handle.read().await.map(drop).map_err(of_refusal)
    }

    /// One round of it.
    pub async fn plan_once(&self) -> Result<(), Status> {
        self.settle().await?;
        let (planned, emptied) = {
            let mut term = self.term()?;
            let now = self.now();
            term.policy = policy_of(&self.records.read(), &self.defaults)?;
            for store in self.records.read().stores.values() {
                term.view.put_store(meta_of(store), now);
            }
            term.end_stuck(now);
            (term.plan(now), term.emptied(now))
        };
        for store in emptied {
            tracing::info!(target: "placement_store", "Store is empty and removed, store_id={store}");
            let state = pb::StoreState::Tombstone as i32;
            self.propose(What::SetState(pb::SetStoreState { store_id: store.0, state })).await?;
            let record = self.records.read().stores.get(&store.0).cloned();
            if let Some(record) = record {
                self.term()?.view.put_store(meta_of(&record), self.now());
            }
        }
        for operator in planned {
            // What has changed meanwhile is planned anew in the next round.
            self.begin(operator).await?;
        }
        Ok(())
    }

    /// Begins an operator, if the region is still as it was planned for; its number.
    pub async fn begin(&self, mut operator: Operator) -> Result<Option<u64>, Status> {
        let ids_wanted = self.term()?.ids_for(&operator);
        let first = if ids_wanted > 0 { self.allocate(ids_wanted).await? } else { 0 };
        let mut term = self.term()?;
        // Heartbeats may have come in between.
        let is_as_planned = term.view.region(operator.region).is_some_and(|region| region.epoch == operator.epoch);
        if !is_as_planned || term.ids_for(&operator) != ids_wanted {
            return Ok(None);
        }
        let mut ids = first..first + u64::from(ids_wanted);
        let mut draw = move || ids.next().expect("so many were counted");
        operator.draw_peers(|| PeerId(draw()));
        term.prepare_split(&operator, draw);
        Ok(term.begin(operator, self.now()))
    }

    /// Ends the operator of a region because people want it; what it was.
    pub fn cancel(&self, region: GroupId) -> Result<Option<InFlight>, Status> {
        let mut term = self.term()?;
        let flight = term.view.end(region);
        term.end(flight.clone(), "cancelled: asked for by people", self.now());
        Ok(flight)
    }

    /// Replicates a change of the policy, which is made of what the policy is by then; what it is now.
    pub async fn change_policy<E: From<Status>>(
        &self,
        change: impl Fn(Policy) -> Result<Policy, E>,
    ) -> Result<Policy, E> {
        const TRIES: usize = 8;
        for _ in 0..TRIES {
            let from = self.records.read().policy.clone();
            let policy = change(self.policy()?)?;
            let to = policy.to_json().to_string().into();
            match self.propose(What::ChangePolicy(pb::ChangePolicy { from, to })).await {
                Ok(_) => {
                    self.term()?.policy = self.policy()?;
                    return Ok(policy);
                }
                Err(status) if status.message == machine::POLICY_CHANGED => {}
                Err(status) => return Err(status.into()),
            }
        }
        Err(Status::unavailable(machine::POLICY_CHANGED).into())
    }

    /// Replicates what people want of a store.
    pub async fn set_store(&self, set: pb::SetStore) -> Result<(), Status> {
        let id = set.store_id;
        self.propose(What::SetStore(set)).await?;
        let mut term = self.term()?;
        if let Some(record) = self.records.read().stores.get(&id) {
            term.view.put_store(meta_of(record), self.now());
        }
        Ok(())
    }

    /// The first of so many ids that follow on one another.
    pub async fn allocate(&self, count: u32) -> Result<u64, Status> {
        let body = self.propose(What::Allocate(pb::AllocateIdsRequest { count })).await?;
        let response = pb::AllocateIdsResponse::decode(body);
        response.map(|response| response.first).map_err(|_| Status::internal("an outcome of a later version"))
    }

    /// Replicates a command; a refusal by the records is an error with its words.
    pub async fn propose(&self, what: What) -> Result<Bytes, Status> {
        let command = pb::Command { what: Some(what) }.encode_to_vec();
        let outcome = self.handle.propose(command.into()).await.map_err(of_refusal)?;
        let code = match outcome.code {
            0 => return Ok(outcome.body),
            machine::ALREADY_EXISTS => Code::AlreadyExists,
            machine::FAILED_PRECONDITION => Code::FailedPrecondition,
            machine::NOT_FOUND => Code::NotFound,
            _ => Code::Internal,
        };
        Err(Status::new(code, String::from_utf8_lossy(&outcome.body).into_owned()))
    }

    pub async fn register(&self, mut request: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
        let about = format!("incarnation={:x} addr={}", request.incarnation, request.client_url);
        let asked = request.store_id;
        self.settle().await?;
        request.silent_stores = self.silent()?;
        if request.lost {
            self.can_do_without(&request)?;
        }
        let lost = request.lost;
        let registered = match self.alive_elsewhere(&request)? {
            Some(address) => Err(Status::new(
                Code::AlreadyExists,
                format!("a store with the same data folder is alive at {address}: one of the two is a copy"),
            )),
            None => self.propose(What::Register(request)).await,
        };
        let body = registered.inspect_err(|why| {
            self.counters.refused();
            tracing::warn!(
                target: "placement_store",
                "Did not register a store, store_id={asked} {about} why={} code=CF8002",
                why.message
            );
        })?;
        let response =
            pb::RegisterResponse::decode(body).map_err(|_| Status::internal("an outcome of a later version"))?;
        if lost {
            tracing::warn!(
                target: "placement_store",
                "A store's data is damaged, and what it held is made anew, store_id={} {about} code=CF8011",
                response.store_id
            );
        } else {
            tracing::info!(target: "placement_store", "Registered a store, store_id={} {about}", response.store_id);
        }
        for lost in response.stores.iter().filter(|store| store.replaced_by == response.store_id) {
            tracing::warn!(
                target: "placement_store",
                "A silent store has lost its place, and what it holds is made anew, store_id={} replaced_by={} code=CF8010",
                lost.id,
                lost.replaced_by
            );
        }
        if let Ok(mut term) = self.term() {
            let now = self.now();
            for store in self.records.read().stores.values() {
                term.view.put_store(meta_of(store), now);
            }
            if !lost {
                term.view.hear_store(NodeId(response.store_id), now);
            }
        }
        Ok(response)
    }

    pub async fn heartbeat(&self, request: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        let id = NodeId(request.store_id);
        self.settle().await?;
        self.check_store(&request)?;
        self.counters.heartbeat();
        check_regions(&request)?;
        let changed: Vec<pb::Region> = {
            let records = self.records.read();
            let regions = request.led.iter().filter_map(|report| report.region.as_ref());
            regions.filter(|region| records.regions.get(&region.id) != Some(*region)).cloned().collect()
        };
        if !changed.is_empty() {
            self.propose(What::Save(pb::SaveRegions { regions: changed })).await?;
        }
        let mut term = self.term()?;
        let now = self.now();
        let steps = term.hear(id, &request, now);
        let records = self.records.read();
        Ok(pb::HeartbeatResponse {
            stores: records.stores.values().cloned().collect(),
            steps,
            retired: term.retired(&request, &records, now),
            region_split_bytes: term.policy.split_bytes(),
            load_split: Some(pb::LoadSplit {
                requests_per_sec: term.policy.load_split_requests_per_sec,
                bytes_per_sec: term.policy.load_split_bytes_per_sec,
                time_ms: term.policy.load_split_time.as_millis() as u64,
            }),
            full_stores: term.view.stores().filter(|store| store.report.full).map(|store| store.id().0).collect(),
        })
    }

    /// Whether each region with a voter in a store has a majority of others that are well.
    fn can_do_without(&self, request: &pb::RegisterRequest) -> Result<(), Status> {
        let (term, now) = (self.term()?, self.now());
        let records = self.records.read();
        let store = records.stores.values().find(|store| store.incarnation == request.incarnation);
        let Some(store) = store.filter(|store| store.state() != pb::StoreState::Tombstone) else { return Ok(()) };
        if !term.view.is_ready(&term.policy, now) {
            return Err(Status::unavailable("the placement driver has not heard of most regions yet"));
        }
        let id = NodeId(store.id);
        let round = Round::new(&term.view, &term.policy, now, 0);
        for region in term.view.store(id).into_iter().flat_map(|store| store.regions()) {
            let Some(region) = term.view.region(region) else { continue };
            let voters = region.voters().count();
            if region.peer(id).is_none_or(|peer| peer.learner) {
                continue;
            }
            if voters == 1 {
                let why = format!("region {} has its only replica there", region.id);
                return Err(Status::new(Code::FailedPrecondition, why));
            }
            let well = region.voters().filter(|peer| peer.store != id && round.is_well(region, peer.store)).count();
            if well * 2 <= voters {
                let why = format!("of the {voters} voters of region {} only {well} others are well", region.id);
                return Err(Status::unavailable(why));
            }
        }
        Ok(())
    }

    /// Stores that this leader has not heard of for long.
    fn silent(&self) -> Result<Vec<u64>, Status> {
        let (term, now) = (self.term()?, self.now());
        let silent = term.view.stores().filter(|store| store.silent_for(now) >= SILENT_AFTER);
        Ok(silent.map(|store| store.id().0).collect())
    }

    /// Where a store with the same data folder has been heard of lately, if that is not where this one is.
    fn alive_elsewhere(&self, request: &pb::RegisterRequest) -> Result<Option<String>, Status> {
        let (term, now) = (self.term()?, self.now());
        let records = self.records.read();
        let twin = records.stores.values().find(|store| store.incarnation == request.incarnation);
        let twin = twin.filter(|twin| (&twin.client_url, &twin.peer_url) != (&request.client_url, &request.peer_url));
        let Some(twin) = twin else { return Ok(None) };
        let store = term.view.store(NodeId(twin.id));
        if store.is_some_and(|store| store.reported && store.silent_for(now) < COPY_HEARD_WITHIN) {
            return Ok(Some(twin.client_url.clone()));
        }
        if now.since(term.began) < COPY_HEARD_WITHIN {
            return Err(Status::unavailable("it is not known yet whether another store has the same data folder"));
        }
        Ok(None)
    }

    fn check_store(&self, request: &pb::HeartbeatRequest) -> Result<(), Status> {
        let records = self.records.read();
        match records.stores.get(&request.store_id) {
            Some(store) if store.incarnation != request.incarnation => Err(Status::new(
                Code::FailedPrecondition,
                format!("duplicate store_id {}: it belongs to another data folder", request.store_id),
            )),
            Some(store) if store.state() == pb::StoreState::Tombstone => {
                Err(Status::new(Code::FailedPrecondition, format!("store {} was removed", request.store_id)))
            }
            Some(store) if store.replaced_by != 0 => {
                let why = format!(
                    "store {} was silent, and store {} has its place and address since; start it anew, under addresses of its \
                     own, and it is taken in again",
                    request.store_id, store.replaced_by
                );
                Err(Status::new(Code::FailedPrecondition, why))
            }
            Some(_) => Ok(()),
            None => Err(Status::new(Code::NotFound, format!("there is no store {}", request.store_id))),
        }
    }
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
            strays: Strays::default(),
            added: BTreeMap::new(),
            began: now,
            counters,
        })
    }

    /// Takes a heartbeat in; the steps that the store is to do.
    fn hear(&mut self, id: NodeId, request: &pb::HeartbeatRequest, now: Time) -> Vec<pb::Step> {
        let stats = request.stats.unwrap_or_default();
        let report = StoreReport {
            capacity_bytes: stats.capacity_bytes,
            available_bytes: stats.available_bytes,
            slow: stats.slow,
            rates: store_rates(stats.rates.unwrap_or_default()),
            full: stats.full,
            ..StoreReport::default()
        };
        // A store that has registered is known; one that has not was refused before.
        let _ = self.view.report_store(id, report, now);
        let differing = request.differing.iter().map(|replica| (GroupId(replica.region_id), PeerId(replica.peer_id)));
        self.view.report_differing(id, differing);
        let mut steps = Vec::new();
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
            let down = reported.down.iter().filter_map(|peer| store_of(*peer));
            report.down = down.map(|store| DownPeer { store, since: since(store) }).collect();
            report.pending = reported.pending.iter().filter_map(|peer| store_of(*peer)).collect();
            report.split_keys = reported.split_keys.iter().map(|key| key.as_ref().into()).collect();
            (report.frozen, report.unmeasured) = (reported.frozen, !reported.measured);
            report.bytes = reported.bytes;
            report.keys = reported.keys;
            let rates = reported.rates.unwrap_or_default();
            (report.read_bytes_per_sec, report.read_keys_per_sec) = (rates.read_bytes, rates.read_keys);
            (report.write_bytes_per_sec, report.write_keys_per_sec) = (rates.write_bytes, rates.write_keys);
            report.requests_per_sec = rates.requests;
            let id = report.id;
            match self.view.report_region(report, now) {
                Ok(heard) => {
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
                    tracing::debug!(target: "placement_region", "A region's report was left out, region={id} why={why}");
                    continue;
                }
            }
            self.note_progress(id, reported.progress, now);
            let step = self.view.flight(id).and_then(InFlight::current_step);
            let split = self.splits.get(&id);
            steps.extend(step.and_then(|step| step_for(region, step, split)));
        }
        steps
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
    fn ids_for(&self, operator: &Operator) -> u32 {
        let peers = self.view.region(operator.region).map_or(0, |region| region.peers.len());
        let of_step = |step: &Step| match step {
            Step::Split { keys } => keys.len() * (1 + peers),
            _ => 0,
        };
        let all = operator.stores_added().count() + operator.steps.iter().map(of_step).sum::<usize>();
        u32::try_from(all).unwrap_or(u32::MAX)
    }

    /// Names what is to come of a split.
    fn prepare_split(&mut self, operator: &Operator, mut draw: impl FnMut() -> u64) {
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
    fn retired(&mut self, request: &pb::HeartbeatRequest, records: &Records, now: Time) -> Vec<pb::Replica> {
        let is_gone = |replica: &&pb::Replica| {
            let Some(region) = records.regions.get(&replica.region_id) else { return false };
            let member = region.peers.iter().any(|peer| peer.id == replica.peer_id);
            let id = GroupId(replica.region_id);
            let heard = self.view.region(id).is_some_and(|region| region.heard.is_some());
            let awaited = self.view.flight(id).is_some_and(|flight| {
                flight
                    .operator
                    .steps
                    .iter()
                    .any(|step| matches!(step, Step::AddLearner { peer, .. } if peer.0 == replica.peer_id))
            });
            let added = self.added.get(&PeerId(replica.peer_id));
            let awaited = awaited || added.is_some_and(|ended| now.since(*ended) < RETIRE_AFTER);
            !member && heard && !awaited && now.since(self.began) >= RETIRE_AFTER
        };
        let mut retired: Vec<pb::Replica> = request.others.iter().filter(is_gone).copied().collect();
        let unknown = request.others.iter().filter(|replica| {
            !records.regions.contains_key(&replica.region_id) && self.view.region(GroupId(replica.region_id)).is_none()
        });
        let unknown = unknown.map(|replica| (GroupId(replica.region_id), PeerId(replica.peer_id)));
        let store = NodeId(request.store_id);
        for (region, peer) in self.strays.hear(store, unknown, now) {
            tracing::info!(
                target: "placement_store",
                "A replica of a region that is no more goes, store_id={store} region={region} peer={peer}"
            );
            retired.push(pb::Replica { region_id: region.0, peer_id: peer.0 });
        }
        retired
    }

    fn plan(&mut self, now: Time) -> Vec<Operator> {
        self.strays.look(&self.view, now);
        if !self.view.is_ready(&self.policy, now) {
            return Vec::new();
        }
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

    fn begin(&mut self, operator: Operator, now: Time) -> Option<u64> {
        let (region, cause, reason) = (operator.region, operator.cause, operator.reason.clone());
        let id = self.next_operator;
        match self.view.begin(id, operator, now) {
            Ok(()) => {
                self.next_operator += 1;
                self.counters.begun(cause);
                tracing::info!(
                    target: "placement_schedule",
                    "Operator begun, operator={id:x} region={region} cause={} reason={reason}",
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

    fn end_stuck(&mut self, now: Time) {
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

    fn end(&mut self, flight: Option<InFlight>, outcome: &str, now: Time) {
        let Some(flight) = flight else { return };
        self.splits.remove(&flight.operator.region);
        self.added.retain(|_, ended| now.since(*ended) < RETIRE_AFTER);
        for step in &flight.operator.steps {
            if let Step::AddLearner { peer, .. } = step {
                self.added.insert(*peer, now);
            }
        }
        self.progress.remove(&flight.operator.region);
        self.counters.ended(flight.operator.cause, outcome);
        let took = now.since(flight.started);
        tracing::info!(
            target: "placement_schedule",
            "Operator ended, operator={:x} region={} cause={} took={}ms outcome={outcome}",
            flight.id,
            flight.operator.region,
            flight.operator.cause.name(),
            took.as_millis()
        );
        if self.ended.len() == ENDED_MAX {
            self.ended.pop_front();
        }
        let ended_unix_s = unix_s();
        self.ended.push_back(Ended { flight, ended_unix_s, took, outcome: outcome.to_owned() });
    }

    /// Stores that were to be emptied and are.
    fn emptied(&self, now: Time) -> Vec<NodeId> {
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

/// What makes no sense is not replicated.
fn check_regions(request: &pb::HeartbeatRequest) -> Result<(), Status> {
    const KEY_BYTES_MAX: usize = 64 << 10;
    let good = |region: &pb::Region| {
        let ordered = region.end.is_empty() || region.start < region.end;
        let short = region.start.len() <= KEY_BYTES_MAX && region.end.len() <= KEY_BYTES_MAX;
        let own = region.peers.iter().any(|peer| peer.store_id == request.store_id);
        ordered && short && own && region.id > 0 && region.peers.len() <= crate::view::PEERS_MAX
    };
    let regions = request.led.iter().map(|report| report.region.as_ref());
    if regions.into_iter().all(|region| region.is_some_and(good)) {
        return Ok(());
    }
    Err(Status::invalid_argument("a region's report makes no sense"))
}

fn policy_of(records: &Records, defaults: &Policy) -> Result<Policy, Status> {
    if records.policy.is_empty() {
        return Ok(defaults.clone());
    }
    let value = serde_json::from_slice(&records.policy).map_err(|error| Status::internal(error.to_string()))?;
    let mut policy = defaults.merged(&value).map_err(|error| Status::internal(error.to_string()))?;
    policy.end_pauses(unix_s());
    Ok(policy)
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Those that people have set before those that it brings along.
pub fn labels_of(store: &pb::Store) -> BTreeMap<String, String> {
    let both = store.labels.iter().chain(&store.labels_set);
    both.map(|(name, value)| (name.clone(), value.clone())).collect()
}

pub fn meta_of(store: &pb::Store) -> StoreMeta {
    let state = match store.state() {
        pb::StoreState::Up => StoreState::Up,
        pb::StoreState::Offline => StoreState::Offline,
        pb::StoreState::Tombstone => StoreState::Tombstone,
    };
    StoreMeta {
        state,
        labels: labels_of(store),
        leader_weight: store.leader_weight.unwrap_or(1.0),
        region_weight: store.region_weight.unwrap_or(1.0),
        add_limit: store.add_limit,
        remove_limit: store.remove_limit,
        lost: store.replaced_by != 0 || store.given_up,
        ..StoreMeta::new(NodeId(store.id))
    }
}

fn store_rates(rates: pb::Rates) -> StoreRates {
    StoreRates {
        read_bytes: rates.read_bytes,
        read_keys: rates.read_keys,
        write_bytes: rates.write_bytes,
        write_keys: rates.write_keys,
        requests: rates.requests,
    }
}

fn report_of(region: &pb::Region, leader: Option<NodeId>) -> RegionReport {
    let peer = |peer: &pb::Peer| Peer { id: PeerId(peer.id), store: NodeId(peer.store_id), learner: peer.learner };
    RegionReport {
        id: GroupId(region.id),
        start: region.start.as_ref().into(),
        end: region.end.as_ref().into(),
        epoch: Epoch { conf_version: region.conf_version, version: region.version },
        peers: region.peers.iter().map(peer).collect(),
        leader,
        ..RegionReport::default()
    }
}

/// A step as the region's leader is asked for it; `None`: it only has to wait.
fn step_for(region: &pb::Region, step: &Step, split: Option<&pb::SplitStep>) -> Option<pb::Step> {
    let holds = |store: NodeId| region.peers.iter().any(|peer| peer.store_id == store.0);
    let action = match step {
        Step::AddLearner { store, .. } if holds(*store) => return None,
        Step::AddLearner { store, peer } => {
            pb::step::Action::AddLearner(pb::Peer { id: peer.0, store_id: store.0, learner: true })
        }
        Step::Promote { store } => pb::step::Action::PromoteStore(store.0),
        Step::Remove { store, .. } => pb::step::Action::RemoveStore(store.0),
        Step::TransferLeader { to } => pb::step::Action::TransferToStore(to.0),
        Step::Split { .. } => pb::step::Action::Split(split?.clone()),
        Step::Merge { into, into_epoch } => {
            pb::step::Action::Merge(pb::MergeStep { into: into.0, into_version: into_epoch.version })
        }
        // Nothing reports what would lead to this yet.
        Step::LeaveJoint => return None,
    };
    Some(pb::Step {
        region_id: region.id,
        conf_version: region.conf_version,
        version: region.version,
        action: Some(action),
    })
}

pub fn of_refusal(why: Refusal) -> Status {
    match why {
        Refusal::Busy => Status::resource_exhausted(why.to_string()),
        Refusal::TimedOut => Status::deadline_exceeded(),
        _ => Status::unavailable(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(progress: u64) -> pb::HeartbeatRequest {
        let peers = [(11, 1, false), (12, 2, true)];
        let peer = |(id, store_id, learner)| pb::Peer { id, store_id, learner };
        let region =
            pb::Region { id: 7, conf_version: 2, version: 1, peers: peers.map(peer).into(), ..pb::Region::default() };
        let led = pb::RegionReport { region: Some(region), pending: vec![12], progress, ..pb::RegionReport::default() };
        pb::HeartbeatRequest { store_id: 1, led: vec![led], ..pb::HeartbeatRequest::default() }
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
    fn what_a_step_may_yet_make_a_member_is_not_taken_away() {
        let policy = Policy::default();
        let mut now = Time::ZERO + RETIRE_AFTER;
        let mut records = Records::default();
        let region = pb::Region {
            id: 7,
            conf_version: 1,
            version: 1,
            peers: vec![pb::Peer { id: 11, store_id: 1, learner: false }],
            ..pb::Region::default()
        };
        records.regions.insert(7, region.clone());
        let mut term = Term::new(1, &Records::default(), &policy, Time::ZERO, Arc::default()).unwrap();
        for store in [1, 2] {
            term.view.put_store(StoreMeta::new(NodeId(store)), now);
        }
        let led = pb::RegionReport { region: Some(region), ..pb::RegionReport::default() };
        term.hear(NodeId(1), &pb::HeartbeatRequest { store_id: 1, led: vec![led], ..Default::default() }, now);
        let others = vec![pb::Replica { region_id: 7, peer_id: 12 }];
        let report = pb::HeartbeatRequest { store_id: 2, others: others.clone(), ..pb::HeartbeatRequest::default() };
        let epoch = term.view.region(GroupId(7)).unwrap().epoch;
        let steps = vec![Step::AddLearner { store: NodeId(2), peer: PeerId(12) }, Step::Promote { store: NodeId(2) }];
        let (region, cause, rejected) = (GroupId(7), crate::model::Cause::MissingReplica, Vec::new());
        term.begin(Operator { region, epoch, cause, steps, reason: String::new(), rejected }, now);
        assert_eq!(term.retired(&report, &records, now), [], "it is about to be added");
        now = now + policy.operator_no_progress_timeout;
        term.end_stuck(now);
        assert!(term.view.flight(region).is_none());
        assert_eq!(term.retired(&report, &records, now), [], "the region's leader may be at it");
        now = now + RETIRE_AFTER;
        assert_eq!(term.retired(&report, &records, now), others);
    }
}
