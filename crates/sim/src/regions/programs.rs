//! The two programs, started as their servers start them, on simulated ground: a store that registers, begins and is
//! supervised; a member of the placement driver that answers and plans.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::{CreateGroup, Input, Mark, Member, Membership, StateMachine};
use flaredb::api::{Raw, Router};
use flaredb::merging;
use flaredb::pd::{Asking, Placement};
use flaredb::store::Store;
use flaredb::supervisor::{self, About, StoreCalls};
use node::transport::{CallService as _, Caller, Standing};
use node::{Ground, Identity, Later, Replicated};
use placement::leader::Leader;
use placement::machine::PlacementMachine;
use prost::Message as _;
use proto::placement as pb;
use rpc::client::router::{Asked, Locate};
use storage::{Engine, LogStore as _};

use super::bug::Bug;
use super::ground::{Floor, Heard, Process, Question, Request, To};
use super::node::{Kind, Node, PD_GROUP};
use super::stage::Stage;
use crate::physics::MS;

/// The placement driver's members are a cluster of their own; stores belong to the cluster that it names.
pub const CLUSTER: ClusterId = ClusterId(0xC2);

/// As the production client has it.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const ROUND_EVERY: Duration = Duration::from_secs(1);

/// The placement driver as a store's process asks it.
pub struct Link {
    process: Arc<Process>,
    members: usize,
    current: AtomicUsize,
}

impl Link {
    pub fn new(process: Arc<Process>, members: usize) -> Link {
        Link { process, members, current: AtomicUsize::new(0) }
    }

    /// Asks each member once at most, until one answers.
    pub async fn ask<T: prost::Message + Default>(&self, question: Question) -> Result<T, tonic::Status> {
        let mut failure = tonic::Status::unavailable("no placement driver is known");
        for _ in 0..self.members {
            let member = self.current.load(Ordering::Relaxed) % self.members;
            let to = To::Pd { member, question: question.clone(), passed_on: false };
            match self.process.ask(to, CALL_TIMEOUT).await {
                Heard::Answer(body) => {
                    return T::decode(body).map_err(|_| tonic::Status::internal("an answer cannot be decoded"));
                }
                Heard::Failed(status) if !is_of_the_way(&status) => {
                    let code = tonic::Code::from_i32(status.code.number() as i32);
                    return Err(tonic::Status::new(code, status.message.into_owned()));
                }
                Heard::Failed(status) => failure = tonic::Status::unavailable(status.message.into_owned()),
                _ => failure = tonic::Status::deadline_exceeded("context deadline exceeded"),
            }
            self.current.fetch_add(1, Ordering::Relaxed);
        }
        Err(failure)
    }
}

fn is_of_the_way(status: &rpc::Status) -> bool {
    matches!(
        status.code,
        rpc::Code::Unavailable | rpc::Code::DeadlineExceeded | rpc::Code::Cancelled | rpc::Code::Unknown
    )
}

impl Placement for Link {
    fn addresses(&self) -> String {
        "the placement driver".to_owned()
    }

    fn register(&self, request: pb::RegisterRequest) -> Asking<'_, pb::RegisterResponse> {
        Box::pin(self.ask(Question::Register(request)))
    }

    fn heartbeat(&self, request: pb::HeartbeatRequest) -> Asking<'_, pb::HeartbeatResponse> {
        Box::pin(self.ask(Question::Heartbeat(request)))
    }
}

impl Locate for Link {
    fn region_at(self: Arc<Self>, key: Bytes) -> Asked<pb::GetRegionResponse> {
        Box::pin(async move { self.ask(Question::Locate(key)).await })
    }

    fn now(&self) -> Time {
        self.process.now()
    }

    fn sleep(&self, span: Duration) -> Later<()> {
        self.process.sleep(span)
    }
}

impl Node {
    pub fn start(&mut self, stage: &mut Stage) {
        if let Err(error) = self.disk.log.reopen() {
            return stage.ledger.fail(|| format!("a log cannot be opened: {error}"));
        }
        let process = self.rise(stage);
        match self.kind {
            Kind::Store => self.start_store(stage, process),
            Kind::Pd(_) => self.start_pd(stage, process),
        }
    }

    fn start_store(&mut self, stage: &mut Stage, process: Arc<Process>) {
        let identity = process.identity();
        let about = About {
            store_id: if identity.node.0 == 0 { self.asks_for } else { identity.node.0 },
            client_url: format!("http://{}", self.address),
            peer_url: self.address.clone(),
            labels: Default::default(),
        };
        let engine: Arc<dyn Engine> = self.disk.engine.clone();
        let link = Arc::new(Link::new(process.clone(), stage.plan.pds));
        let running = run_store(process.clone(), link, about, engine, self.disk.incoming.clone());
        process.out.lock().tasks.push(Box::pin(running));
    }

    fn start_pd(&mut self, stage: &mut Stage, process: Arc<Process>) {
        let engine: Arc<dyn Engine> = self.disk.engine.clone();
        let machine = match PlacementMachine::open(engine, CLUSTER) {
            Ok(machine) => machine,
            Err(error) => return stage.ledger.fail(|| format!("records cannot be opened: {error}")),
        };
        let membership = Membership::decode(&machine.membership()).unwrap_or_default();
        let records = machine.records();
        let handle = process.declare(PD_GROUP, &membership);
        let peer = process.identity().peer;
        let fresh = self.disk.log.state(PD_GROUP).is_none();
        let create = CreateGroup { group: PD_GROUP, peer, mark: machine.mark(), membership: membership.into(), fresh };
        {
            let mut out = process.out.lock();
            out.machines.insert(PD_GROUP, Box::new(machine));
            out.inputs.push(Input::Create(create));
            out.begun = true;
        }
        let leader = Leader::new(handle.clone(), records, stage.plan.policy.clone(), Arc::default());
        if let Some(running) = &mut self.running {
            running.leader = Some(leader.clone());
        }
        let ground = Floor(process.clone());
        let planning = async move {
            loop {
                ground.sleep(ROUND_EVERY).await;
                if handle.is_leader() {
                    // It says why not, and tries again.
                    let _ = leader.plan_once().await;
                }
            }
        };
        process.out.lock().tasks.push(Box::pin(planning));
    }

    /// The members of the placement driver agree on who they are.
    pub fn found_pd(&mut self, stage: &mut Stage, membership: &Membership) {
        let engine: Arc<dyn Engine> = self.disk.engine.clone();
        let mark = Mark { index: 1, term: 1, hash: base::hash::START };
        let founded = PlacementMachine::open(engine, CLUSTER)
            .and_then(|mut machine| machine.found(mark, membership.encode().into()));
        if let Err(error) = founded {
            stage.ledger.fail(|| format!("the placement driver was not founded: {error}"));
        }
    }

    /// A question has arrived: the task that answers it, or who should be asked instead.
    pub fn answer(&mut self, stage: &Stage, call: u64, to: To) -> Answering {
        let Some(running) = &self.running else { return Answering::Nobody };
        let process = running.process.clone();
        let reply = move |heard: Heard| process.out.lock().replies.push((call, heard));
        match to {
            To::Pd { question, passed_on, .. } => {
                let Some(leader) = running.leader.clone() else { return Answering::Nobody };
                let Some(group) = running.process.group(PD_GROUP) else { return Answering::Nobody };
                let status = running.process.handle(group).status();
                if status.role != consensus::Role::Leader && !matches!(question, Question::Allocate(_)) {
                    let there = status.leader_node;
                    let known = there.0 > 0 && there != running.process.identity().node;
                    if passed_on || !known {
                        reply(Heard::Failed(rpc::Status::unavailable("no leader elected")));
                        return Answering::Begun(None);
                    }
                    let member = there.0 as usize - 1;
                    return Answering::Elsewhere(Box::new(To::Pd { member, question, passed_on: true }));
                }
                Answering::Begun(Some(Box::pin(async move { reply(ask_leader(&leader, question).await) })))
            }
            To::Store { node, method, body, .. } => {
                let Some((store, _)) = &running.store else { return Answering::Nobody };
                if store.id() != node {
                    return Answering::Nobody;
                }
                if stage.has(Bug::RefuseToAdmit) && self.at == stage.plan.pds + 1 {
                    reply(Heard::Refused(consensus::Refusal::UnknownMember));
                    return Answering::Begun(None);
                }
                let caller =
                    Caller { node: NodeId(0), peer: PeerId(0), address: String::new(), standing: Standing::Member };
                let called = StoreCalls(store.clone()).call(&caller, method, body);
                Answering::Begun(Some(Box::pin(async move {
                    reply(called.await.map_or_else(Heard::Refused, Heard::Answer));
                })))
            }
            To::Api { request, .. } => {
                let Some((_, api)) = running.store.clone() else { return Answering::Nobody };
                Answering::Begun(Some(Box::pin(async move { reply(ask_api(&api, request).await) })))
            }
        }
    }
}

/// What becomes of a question that has arrived.
pub enum Answering {
    /// Nobody listens there.
    Nobody,
    Begun(Option<Later<()>>),
    Elsewhere(Box<To>),
}

async fn ask_leader(leader: &Leader, question: Question) -> Heard {
    let body = match question {
        Question::Register(request) => leader.register(request).await.map(|answer| answer.encode_to_vec()),
        Question::Heartbeat(request) => leader.heartbeat(request).await.map(|answer| answer.encode_to_vec()),
        Question::Locate(key) => placement::api::region_at(leader, &key).map(|answer| answer.encode_to_vec()),
        Question::Allocate(count) => {
            leader.allocate(count).await.map(|first| pb::AllocateIdsResponse { first }.encode_to_vec())
        }
    };
    body.map_or_else(Heard::Failed, |body| Heard::Answer(body.into()))
}

async fn ask_api(api: &Raw, request: Request) -> Heard {
    let heard = match request {
        Request::Get(request) => api.get(request).await.map(Heard::Found),
        Request::Put(request) => api.put(request).await.map(Heard::Put),
        Request::CompareAndSwap(request) => api.compare_and_swap(request).await.map(Heard::Swapped),
        Request::Scan(request) => api.scan(request).await.map(Heard::Scanned),
    };
    heard.unwrap_or_else(Heard::Failed)
}

async fn run_store(
    process: Arc<Process>,
    link: Arc<Link>,
    about: About,
    engine: Arc<dyn Engine>,
    incoming: std::path::PathBuf,
) {
    let ground: Arc<dyn Ground> = Arc::new(Floor(process.clone()));
    let registered = match supervisor::register(&*ground, &*link, &about).await {
        Ok(registered) => registered,
        Err(why) => {
            process.out.lock().ended = Some(why);
            return;
        }
    };
    let (store, born) = Store::new(ground, engine, incoming);
    store.learn(&registered.stores);
    process.begin(ClusterId(registered.cluster_id), NodeId(registered.store_id));
    // Requests are answered from here on; those of clients are not passed on, for they say what they expect.
    let router = Arc::new(Router::new(link.clone(), None));
    let api = Arc::new(Raw { store: store.clone(), router });
    process.out.lock().store = Some((store.clone(), api));
    if let Err(why) = store.begin(born, registered.found.as_ref()) {
        process.out.lock().ended = Some(format!("failed to begin: {why}"));
        return;
    }
    process.out.lock().tasks.push(Box::pin(merging::attend(store.clone(), link.clone())));
    supervisor::supervise(store, link).await;
}

/// The founders of the placement driver.
pub fn founders(stage: &Stage, nodes: &mut [Node]) -> Membership {
    let pds = &mut nodes[..stage.plan.pds];
    for (number, node) in pds.iter_mut().enumerate() {
        node.disk.identity =
            Identity { node: NodeId(number as u64 + 1), cluster: CLUSTER, voted: true, ..node.disk.identity };
    }
    let members = pds.iter().map(|node| Member {
        node: node.disk.identity.node,
        peer: node.disk.identity.peer,
        ..Member::default()
    });
    Membership::founding(CLUSTER, members.collect())
}

/// A planted bug: what a member of the placement driver gave last is forgotten when it comes up.
pub fn forget_ids(node: &Node) {
    let meta = placement::machine::META;
    let Ok(Some(state)) = node.disk.engine.inner.get(meta, b"m") else { return };
    let Some((mark, next)) = state.split_at_checked(Mark::BYTES) else { return };
    let next = u64::from_le_bytes(next.try_into().unwrap_or_default());
    let mut batch = storage::WriteBatch::new();
    batch.put(meta, b"m", &[mark, &next.saturating_sub(12).max(1).to_le_bytes()].concat());
    // It is in memory: it cannot fail.
    let _ = node.disk.engine.inner.write(&batch);
    let _ = node.disk.engine.inner.flush();
}

/// How long a question to whoever does not listen takes to fail.
pub fn refused_after(stage: &mut Stage) -> u64 {
    stage.rng.between(MS / 5, 3 * MS)
}

/// Regions are numbered by the placement driver, far below its own group.
pub fn is_region(group: GroupId) -> bool {
    group < PD_GROUP
}
