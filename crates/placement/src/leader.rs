//! The leading member's work: registrations, heartbeats, rounds of planning, each as a change of the records that is replicated
//! and a change of what is known beyond them ([`Term`]).
//!
//! ```text
//!  heartbeat ─▶ regions that are new or changed ─▶ proposed, so that records keep up ─▶ Term::hear ─▶ steps, in the answer
//!  every second ─▶ Term::plan ─▶ ids allocated ─▶ Term::begin · emptied stores become tombstones
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::{Refusal, Role};
use node::Replicated;
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use prost::Message as _;
use proto::placement as pb;
use proto::placement::command::What;
use rpc::{Code, Status};

use crate::Policy;
use crate::counters::Counters;
use crate::explain::forecast::{RemovalRefused, may_remove};
use crate::machine::{self, SharedRecords};
use crate::model::Operator;
use crate::plan::round::Round;
use crate::refusals::Refusal as Refused;
use crate::term::{Term, Wanted, meta_of, policy_of};
use crate::view::InFlight;

const ROUND_EVERY: Duration = Duration::from_secs(1);
/// A store that was heard of so lately is alive.
const COPY_HEARD_WITHIN: Duration = Duration::from_secs(5);
/// A damaged store is let go on the word of stores that were heard of so lately.
const WORD_WITHIN: Duration = Duration::from_secs(3);
/// One that was not for so long gives its address to a newcomer.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// One per member; only the leader's has anything in it. Whoever needs both locks takes the term's before the records'.
pub struct Leader {
    handle: Arc<dyn Replicated>,
    records: SharedRecords,
    /// The policy while nobody has set one.
    defaults: Policy,
    term: Mutex<Option<Term>>,
    /// The last term in which the records held all that was replicated before it.
    settled: AtomicU64,
    removing: tokio::sync::Mutex<()>,
    pub counters: Arc<Counters>,
}

impl Leader {
    pub fn new(
        handle: impl Replicated + 'static,
        records: SharedRecords,
        defaults: Policy,
        counters: Arc<Counters>,
    ) -> Arc<Leader> {
        let handle = Arc::new(handle);
        let (term, removing) = (Mutex::default(), tokio::sync::Mutex::default());
        Arc::new(Leader { handle, records, defaults, term, settled: AtomicU64::new(0), removing, counters })
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

    /// What this member knows as the leader, if it has begun to: asking begins nothing.
    pub fn known(&self) -> Option<MappedMutexGuard<'_, Term>> {
        let status = self.handle.status();
        let known = self.term.lock();
        let is_current = |known: &Term| status.role == Role::Leader && known.number == status.term;
        MutexGuard::try_map(known, |known| known.as_mut().filter(|known| is_current(known))).ok()
    }

    /// What this member knows as the leader; an error if it does not lead, or has not settled in this term.
    pub fn term(&self) -> Result<MappedMutexGuard<'_, Term>, Status> {
        let status = self.handle.status();
        if status.role != Role::Leader {
            return Err(Status::unavailable("no leader elected: this member of the placement driver does not lead"));
        }
        let mut known = self.term.lock();
        if known.as_ref().is_none_or(|known| known.number != status.term) {
            if self.settled.load(Ordering::SeqCst) != status.term {
                return Err(Status::unavailable("this member of the placement driver has just begun to lead"));
            }
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
        loop {
            let term = self.handle.term();
            if self.settled.load(Ordering::SeqCst) == term {
                return Ok(());
            }
            self.handle.read().await.map_err(of_refusal)?;
            if self.handle.term() == term {
                self.settled.store(term, Ordering::SeqCst);
            }
        }
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
            term.note_states(now);
            term.end_hopeless(now);
            term.end_stuck(now);
            (term.plan(now), term.emptied(now))
        };
        for store in emptied {
            tracing::info!(target: "placement_store", "Store is empty and removed, store_id={store}");
            self.set_state(store.0, pb::StoreState::Tombstone).await?;
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
        let mut ids = first..first + u64::from(ids_wanted);
        let taken = self.records.read().taken(ids.clone());
        if let Some(id) = taken {
            tracing::error!(
                target: "placement_schedule",
                "An id that was drawn is in use, and the operator is planned anew, id={id} region={} code=CF8023",
                operator.region
            );
            return Ok(None);
        }
        let mut term = self.term()?;
        // Heartbeats may have come in between.
        let is_as_planned = term.view.region(operator.region).is_some_and(|region| region.epoch == operator.epoch);
        if !is_as_planned || term.ids_for(&operator) != ids_wanted {
            return Ok(None);
        }
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

    /// Begins to empty a store, unless the others could not take what it holds. One at a time, so that each reckons with
    /// those before it.
    pub async fn remove_store(&self, id: u64) -> Result<Result<(), RemovalRefused>, Status> {
        let _alone = self.removing.lock().await;
        // What was proposed before, and given up waiting for, is decided when an entry behind it is applied.
        self.propose(What::Save(pb::SaveRegions::default())).await?;
        {
            let (mut term, now) = (self.term()?, self.now());
            for store in self.records.read().stores.values() {
                term.view.put_store(meta_of(store), now);
            }
            if let Err(why) = may_remove(&term.view, &term.policy, NodeId(id), now) {
                return Ok(Err(why));
            }
        }
        self.set_state(id, pb::StoreState::Offline).await.map(Ok)
    }

    /// Replicates whether a store stays.
    pub async fn set_state(&self, id: u64, state: pb::StoreState) -> Result<(), Status> {
        self.propose(What::SetState(pb::SetStoreState { store_id: id, state: state as i32 })).await?;
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
        let about = format!("incarnation={:016x} addr={}", request.incarnation, request.client_url);
        let asked = request.store_id;
        let (incarnation, address) = (request.incarnation, request.client_url.clone());
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
            // What is not to be decided yet is no refusal.
            if why.code != Code::Unavailable {
                let (address, at) = (address.clone(), self.now());
                let why = why.message.to_string();
                self.counters.refusals.note(Refused { store_id: asked, incarnation, address, why, at });
            }
            tracing::warn!(
                target: "placement_store",
                "Did not register a store, store_id={asked} {about} why={} code=CF8002",
                why.message
            );
        })?;
        let response =
            pb::RegisterResponse::decode(body).map_err(|_| Status::internal("an outcome of a later version"))?;
        self.counters.refusals.forget(incarnation, &address);
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
                term.hear_store(NodeId(response.store_id), now);
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
        let (Wanted { steps, tell_again }, retires) = {
            let (mut term, now) = (self.term()?, self.now());
            let wanted = term.hear(id, &request, now);
            (wanted, !term.retired(&request, &self.records.read(), now).is_empty())
        };
        // Data is deleted on this word, and a leader that was replaced does not know of members that came since.
        if retires {
            self.handle.read().await.map_err(of_refusal)?;
        }
        let (mut term, now) = (self.term()?, self.now());
        let records = self.records.read();
        let retired = if retires { term.retired(&request, &records, now) } else { Vec::new() };
        term.condemn(&retired, now);
        for replica in retired.iter().filter(|replica| !records.regions.contains_key(&replica.region_id)) {
            tracing::info!(
                target: "placement_store",
                "A replica of a region that is no more goes, store_id={id} region={} peer={}",
                replica.region_id,
                replica.peer_id
            );
        }
        let membership = self.handle.membership();
        Ok(pb::HeartbeatResponse {
            stores: records.stores.values().filter(|store| stands(store)).cloned().collect(),
            steps,
            takes_unchanged: true,
            tell_again,
            retired,
            region_split_bytes: term.policy.split_bytes(),
            load_split: Some(pb::LoadSplit {
                requests_per_sec: term.policy.load_split_requests_per_sec,
                bytes_per_sec: term.policy.load_split_bytes_per_sec,
                time_ms: term.policy.load_split_time.as_millis() as u64,
            }),
            snapshot_bytes_per_sec: term.policy.snap_io_max_bytes_per_sec,
            members: membership.members.values().flat_map(|member| member.client_urls.iter().cloned()).collect(),
            full_stores: term.view.stores().filter(|store| store.report.full).map(|store| store.id().0).collect(),
        })
    }

    /// Whether each region with a voter in a store has a majority of others that are well, by what their stores have said
    /// since it began to ask: what they said before may be of a time when it was not damaged, and they were well.
    fn can_do_without(&self, request: &pb::RegisterRequest) -> Result<(), Status> {
        let (mut term, now) = (self.term()?, self.now());
        let records = self.records.read();
        let store = records.stores.values().find(|store| store.incarnation == request.incarnation);
        let Some(store) = store.filter(|store| store.state() != pb::StoreState::Tombstone) else { return Ok(()) };
        if !term.view.is_ready(&term.policy, now) {
            return Err(Status::unavailable("the placement driver has not heard of most regions yet"));
        }
        let id = NodeId(store.id);
        let since = term.asks_since(id, now);
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
            if region.heard.is_none_or(|heard| heard <= since) {
                let why = format!("region {} has not reported since the store was found damaged", region.id);
                return Err(Status::unavailable(why));
            }
            let heard = |store| term.view.store(store).is_some_and(|store| store.silent_for(now) <= WORD_WITHIN);
            let others = region.voters().map(|peer| peer.store).filter(|store| *store != id);
            let well = others.filter(|store| heard(*store) && round.is_well(region, *store)).count();
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
            let why = "it is not known yet whether another store has the same data folder";
            // Not as from a member that does not lead: it may not go on without this one's word.
            return Err(Status::new(Code::Aborted, why));
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

/// Stores that are gone concern nobody: whom an answer leaves out has no address.
fn stands(store: &pb::Store) -> bool {
    store.state() != pb::StoreState::Tombstone
}

/// What makes no sense is not replicated.
pub(crate) fn check_regions(request: &pb::HeartbeatRequest) -> Result<(), Status> {
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

pub fn of_refusal(why: Refusal) -> Status {
    match why {
        Refusal::Busy => Status::resource_exhausted(why.to_string()),
        Refusal::TimedOut => Status::deadline_exceeded(),
        Refusal::Unanswered => Status::new(Code::DeadlineExceeded, why.to_string()),
        _ => Status::unavailable(why.to_string()),
    }
}

#[cfg(test)]
mod tests;
