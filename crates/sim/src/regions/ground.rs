//! What production code stands on in a simulated process: [`Ground`] and [`Replicated`] that put down what they are asked for,
//! and a world that carries it out when it sees fit ([`Out`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::{
    CreateGroup, GroupStatus, Input, MachineError, Membership, MembershipChange, Outcome, Refusal, StateMachine,
};
use flaredb::api::Raw;
use flaredb::store::Store;
use node::many::check_log;
use node::waiters::{Answer, Waiters};
use node::{Controls, DriverStats, Ground, Identity, Later, ReadGrant, Replicated};
use parking_lot::Mutex;
use proto::{flaredb as raw, placement as pb};
use storage::LogStore;
use storage::memlog::MemLog;
use tokio::sync::oneshot;

use crate::physics::clock::Clock;
use crate::physics::queue::Who;

/// A group's requests end within this, on the node's own clock.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// One life of a process, as the code in it sees its node.
pub struct Process {
    pub who: Who,
    identity: Mutex<Identity>,
    clock: Clock,
    /// The world's time.
    now: Arc<AtomicU64>,
    log: Arc<MemLog>,
    groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    addresses: Mutex<BTreeMap<NodeId, String>>,
    next_seq: AtomicU64,
    /// It does not look at the clock before it reads under a lease, nor afterwards: for a planted bug.
    credulous: bool,
    pub out: Mutex<Out>,
}

/// What a process has asked for and nobody has carried out yet.
#[derive(Default)]
pub struct Out {
    pub inputs: Vec<Input>,
    pub machines: BTreeMap<GroupId, Box<dyn StateMachine>>,
    pub tasks: Vec<Later<()>>,
    /// On the node's own clock, in nanoseconds.
    pub sleeps: Vec<(u64, oneshot::Sender<()>)>,
    pub calls: Vec<Call>,
    pub replies: Vec<(u64, Heard)>,
    /// The node is a store of the cluster from here on.
    pub begun: bool,
    pub store: Option<(Arc<Store>, Arc<Raw>)>,
    /// The process ends by itself, and says why.
    pub ended: Option<String>,
    /// A store put a group on, in these words, or took it away.
    pub created: Vec<(GroupId, PeerId, bool)>,
    pub destroyed: Vec<GroupId>,
}

/// A question on its way.
pub struct Call {
    pub to: To,
    pub timeout: u64,
    pub reply: oneshot::Sender<Heard>,
}

#[derive(Clone)]
pub enum To {
    /// Another store, by its id and where it was said to be.
    Store { node: NodeId, address: Option<String>, method: u8, body: Bytes },
    /// A member of the placement driver, by its number. `passed_on`: by a member that does not lead.
    Pd { member: usize, question: Question, passed_on: bool },
    /// A store's API, by its place.
    Api { at: usize, request: Request },
}

#[derive(Clone)]
pub enum Question {
    Register(pb::RegisterRequest),
    Heartbeat(pb::HeartbeatRequest),
    Allocate(u32),
    Locate(Bytes),
}

#[derive(Clone, Debug)]
pub enum Request {
    Get(raw::GetRequest),
    Put(raw::PutRequest),
    CompareAndSwap(raw::CompareAndSwapRequest),
    Scan(raw::ScanRequest),
}

/// What came of a question.
#[derive(Clone, Debug)]
pub enum Heard {
    /// No answer came.
    Lost,
    Refused(Refusal),
    Failed(rpc::Status),
    Answer(Bytes),
    Found(raw::GetResponse),
    Put(raw::PutResponse),
    Swapped(raw::CompareAndSwapResponse),
    Scanned(raw::ScanResponse),
}

/// A group as its process shares it.
pub struct Group {
    pub id: GroupId,
    pub waiters: Waiters,
    status: Mutex<Arc<GroupStatus>>,
    membership: Mutex<Arc<Membership>>,
    /// It is about to be taken away.
    pub gone: AtomicBool,
    /// Its state here is not to be trusted.
    pub differs: AtomicBool,
    pub snapshot_bytes_sent: AtomicU64,
}

impl Group {
    pub fn publish(&self, status: GroupStatus) {
        *self.status.lock() = Arc::new(status);
    }

    pub fn publish_membership(&self, membership: Arc<Membership>) {
        *self.membership.lock() = membership;
    }
}

impl Process {
    pub fn new(
        who: Who,
        identity: Identity,
        clock: Clock,
        now: Arc<AtomicU64>,
        log: Arc<MemLog>,
        first_seq: u64,
        credulous: bool,
    ) -> Arc<Process> {
        Arc::new(Process {
            who,
            identity: Mutex::new(identity),
            clock,
            now,
            log,
            groups: Mutex::default(),
            addresses: Mutex::default(),
            next_seq: AtomicU64::new(first_seq),
            credulous,
            out: Mutex::default(),
        })
    }

    pub fn now(&self) -> Time {
        self.clock.at(self.now.load(Ordering::Relaxed))
    }

    /// The folder is this store's from now on, and the host runs.
    pub fn begin(&self, cluster: ClusterId, node: NodeId) {
        let mut identity = self.identity.lock();
        let renamed = ![NodeId::default(), node].contains(&identity.node);
        let wished = if renamed && identity.wished == NodeId::default() { identity.node } else { identity.wished };
        *identity = Identity { cluster, node, voted: true, wished, ..*identity };
        self.out.lock().begun = true;
    }

    pub fn identity(&self) -> Identity {
        *self.identity.lock()
    }

    pub fn group(&self, id: GroupId) -> Option<Arc<Group>> {
        self.groups.lock().get(&id).cloned()
    }

    /// Makes a group known that is about to be created.
    pub fn declare(self: &Arc<Self>, id: GroupId, membership: &Membership) -> Handle {
        let first_seq = self.next_seq.fetch_add(1 << 32, Ordering::Relaxed);
        let group = Arc::new(Group {
            id,
            waiters: Waiters::new(first_seq),
            status: Mutex::default(),
            membership: Mutex::new(Arc::new(membership.clone())),
            gone: AtomicBool::new(false),
            differs: AtomicBool::new(false),
            snapshot_bytes_sent: AtomicU64::new(0),
        });
        self.groups.lock().insert(id, group.clone());
        Handle { group, process: self.clone() }
    }

    pub fn handle(self: &Arc<Self>, group: Arc<Group>) -> Handle {
        Handle { group, process: self.clone() }
    }

    /// The host has let go of it.
    pub fn forget(&self, id: GroupId) {
        if let Some(group) = self.groups.lock().remove(&id) {
            group.waiters.close();
        }
    }

    pub fn address(&self, node: NodeId) -> Option<String> {
        self.addresses.lock().get(&node).cloned()
    }

    pub fn sleep(&self, span: Duration) -> Later<()> {
        let (wake, woken) = oneshot::channel();
        self.out.lock().sleeps.push((span.as_nanos() as u64, wake));
        Box::pin(async move { drop(woken.await) })
    }

    /// Asks, and waits for what comes of it.
    pub fn ask(&self, to: To, timeout: Duration) -> Later<Heard> {
        let (reply, heard) = oneshot::channel();
        self.out.lock().calls.push(Call { to, timeout: timeout.as_nanos() as u64, reply });
        Box::pin(async move { heard.await.unwrap_or(Heard::Lost) })
    }
}

/// The ground of a store, which needs to share itself.
pub struct Floor(pub Arc<Process>);

impl Controls for Floor {
    fn hold_changes(&self, group: GroupId, held: bool) {
        self.0.out.lock().inputs.push(Input::HoldChanges { group, held });
    }

    fn vouch(&self, group: GroupId, index: u64, term: u64) {
        self.0.out.lock().inputs.push(Input::Vouch { group, index, term });
    }
}

impl Ground for Floor {
    fn identity(&self) -> Identity {
        self.0.identity()
    }

    fn create(
        &self,
        create: CreateGroup,
        machine: Box<dyn StateMachine>,
        changes_held: bool,
    ) -> Result<Arc<dyn Replicated>, MachineError> {
        check_log(&*self.0.log, &create)?;
        let handle = self.0.declare(create.group, &create.membership);
        let mut out = self.0.out.lock();
        out.created.push((create.group, create.peer, create.fresh));
        out.machines.insert(create.group, machine);
        let held = changes_held.then_some(Input::HoldChanges { group: create.group, held: true });
        out.inputs.extend([Input::Create(create)].into_iter().chain(held));
        Ok(Arc::new(handle))
    }

    fn controls(&self) -> Arc<dyn Controls> {
        Arc::new(Floor(self.0.clone()))
    }

    fn destroy_others(&self, known: &dyn Fn(GroupId) -> bool) {
        self.0.log.groups().into_iter().filter(|group| !known(*group)).for_each(|group| self.destroy(group));
    }

    fn destroy(&self, group: GroupId) {
        if let Some(group) = self.0.group(group) {
            group.gone.store(true, Ordering::SeqCst);
        }
        let mut out = self.0.out.lock();
        out.destroyed.push(group);
        out.inputs.push(Input::Destroy { group });
    }

    fn campaign(&self, group: GroupId) {
        self.0.out.lock().inputs.push(Input::Campaign { group });
    }

    fn set_address(&self, node: NodeId, addresses: Vec<String>) {
        if let Some(address) = addresses.into_iter().next() {
            self.0.addresses.lock().insert(node, address);
        }
    }

    fn call(
        &self,
        node: NodeId,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Later<Result<Result<Bytes, Refusal>, String>> {
        let address = self.0.address(node);
        let asked = self.0.ask(To::Store { node, address, method, body }, timeout);
        Box::pin(async move {
            match asked.await {
                Heard::Answer(body) => Ok(Ok(body)),
                Heard::Refused(why) => Ok(Err(why)),
                other => Err(format!("{other:?}")),
            }
        })
    }

    fn stats(&self) -> Arc<DriverStats> {
        Arc::default()
    }

    fn room(&self) -> Option<(u64, u64)> {
        Some((60 << 30, 100 << 30))
    }

    fn now(&self) -> Time {
        self.0.now()
    }

    fn spawn(&self, task: Later<()>) {
        self.0.out.lock().tasks.push(task);
    }

    fn sleep(&self, span: Duration) -> Later<()> {
        self.0.sleep(span)
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) -> Later<()> {
        work();
        Box::pin(std::future::ready(()))
    }
}

/// A group's handle.
#[derive(Clone)]
pub struct Handle {
    group: Arc<Group>,
    process: Arc<Process>,
}

impl Handle {
    fn ask(&self, input: impl FnOnce(GroupId, u64, Time) -> Input) -> Later<Result<Answer, Refusal>> {
        let (seq, receiver) = self.group.waiters.client();
        let deadline = self.process.now() + REQUEST_TIMEOUT;
        self.process.out.lock().inputs.push(input(self.group.id, seq, deadline));
        Box::pin(async move {
            match receiver.await {
                Ok(Answer::Refused(why)) => Err(why),
                Ok(answer) => Ok(answer),
                Err(_) => Err(Refusal::Stopping),
            }
        })
    }
}

impl Replicated for Handle {
    fn id(&self) -> GroupId {
        self.group.id
    }

    fn status(&self) -> Arc<GroupStatus> {
        self.group.status.lock().clone()
    }

    fn membership(&self) -> Arc<Membership> {
        self.group.membership.lock().clone()
    }

    fn now(&self) -> Time {
        self.process.now()
    }

    fn propose(&self, command: Bytes) -> Later<Result<Outcome, Refusal>> {
        if !self.is_sound() {
            return Box::pin(std::future::ready(Err(Refusal::NoLeader)));
        }
        let asked = self.ask(|group, seq, deadline| Input::Propose { group, seq, command, deadline });
        Box::pin(async move {
            match asked.await? {
                Answer::Outcome(outcome, _) => Ok(outcome),
                _ => Err(Refusal::Stopping),
            }
        })
    }

    fn change(&self, change: MembershipChange) -> Later<Result<Membership, Refusal>> {
        if !self.is_sound() {
            return Box::pin(std::future::ready(Err(Refusal::NoLeader)));
        }
        let asked = self.ask(|group, seq, deadline| Input::Change { group, seq, change, deadline });
        Box::pin(async move {
            match asked.await? {
                Answer::Outcome(outcome, _) => Ok(Membership::decode(&outcome.body).unwrap_or_default()),
                _ => Err(Refusal::Stopping),
            }
        })
    }

    fn transfer(&self, to: Option<NodeId>) -> Later<Result<(), Refusal>> {
        let asked = self.ask(|group, seq, deadline| Input::Transfer { group, seq, to, deadline });
        Box::pin(async move {
            match asked.await? {
                Answer::Transferred => Ok(()),
                _ => Err(Refusal::Stopping),
            }
        })
    }

    fn is_sound(&self) -> bool {
        !self.differs()
    }

    fn differs(&self) -> bool {
        self.group.differs.load(Ordering::SeqCst)
    }

    fn hold_group(&self, held: bool) {
        self.process.out.lock().inputs.push(Input::Hold { group: self.group.id, held });
    }

    fn snapshot_bytes_sent(&self) -> u64 {
        self.group.snapshot_bytes_sent.load(Ordering::Relaxed)
    }

    fn read(&self) -> Later<Result<ReadGrant, Refusal>> {
        if !self.is_sound() {
            return Box::pin(std::future::ready(Err(Refusal::NoLeader)));
        }
        let now = if self.process.credulous { Time::ZERO } else { self.process.now() };
        if let Some(grant) = self.group.waiters.lease_grant(now) {
            return Box::pin(std::future::ready(Ok(grant)));
        }
        let (seq, receiver) = self.group.waiters.reader();
        let deadline = self.process.now() + REQUEST_TIMEOUT;
        self.process.out.lock().inputs.push(Input::Read { group: self.group.id, seq, deadline });
        Box::pin(async move { receiver.await.unwrap_or(Err(Refusal::Stopping)) })
    }

    fn still_valid(&self, grant: &ReadGrant) -> bool {
        self.is_sound() && (self.process.credulous || grant.valid_until.is_none_or(|until| self.process.now() < until))
    }
}
