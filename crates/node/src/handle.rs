//! One Raft group as the threads of floor 5 see it: propose, read, change membership, hand over, look.
//!
//! All calls may be made on any node: what only the leader can do is forwarded by the floors below. Each ends
//! within the request timeout, in an answer or a refusal that says whether it may yet take effect.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::{Event, GroupStatus, Input, Membership, MembershipChange, Outcome, Refusal, Role};
use tokio::sync::broadcast;

use crate::clock;
use crate::gossip::{SharedView, View};
use crate::group::Group;
use crate::heal::Health;
use crate::identity::Identity;
use crate::inbox::Inbox;
use crate::stages::StageTimes;
use crate::transport::Transport;
use crate::waiters::{Answer, ReadAnswer};

/// Inputs that may wait for the driver before new requests are refused.
const INBOX_MAX: usize = 100_000;
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// A cluster that can elect a leader has done so within this many election timeouts, almost always.
const UNLED_ELECTIONS: u32 = 5;

/// A point from which a read is linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadGrant {
    /// What this node had applied at least when the grant was given.
    pub index: u64,
    /// When the leader's lease ends under which it was given; a read that ends later must be done again.
    pub valid_until: Option<Time>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct GroupHandle {
    pub(crate) group: Arc<Group>,
    pub(crate) node: Arc<Shared>,
}

/// What all groups of a node have in common.
pub(crate) struct Shared {
    pub identity: ArcSwap<Identity>,
    pub inbox: Arc<Inbox<Input>>,
    /// Of all groups.
    pub events: broadcast::Sender<Event>,
    pub transport: Transport,
    pub request_timeout: Duration,
    pub election_timeout: Duration,
    pub gossip: SharedView,
    /// What this node waits for, or why it takes no part.
    pub waits_for: ArcSwapOption<String>,
    /// Set when the cluster goes on without this node, see [`crate::outcast`].
    pub left_out: AtomicBool,
    /// See [`GroupHandle::hold`].
    pub held: Arc<AtomicBool>,
    pub health: Arc<Health>,
}

impl Shared {
    /// Whether this node belongs to a cluster yet; before, nobody could answer.
    fn belongs(&self) -> bool {
        self.identity.load().cluster != ClusterId::default()
    }
}

impl GroupHandle {
    /// The group's id.
    pub fn id(&self) -> GroupId {
        self.group.id
    }

    /// Replicates a command and waits until this node has applied it.
    pub fn propose(&self, command: Bytes) -> impl Future<Output = Result<Outcome, Refusal>> + Send + 'static {
        let proposed = self.propose_traced(command);
        async move { proposed.await.map(|(outcome, _)| outcome) }
    }

    /// As [`GroupHandle::propose`]; with an index for [`GroupHandle::stages`].
    pub fn propose_traced(
        &self,
        command: Bytes,
    ) -> impl Future<Output = Result<(Outcome, u64), Refusal>> + Send + 'static {
        let asked = self
            .may_answer()
            .and_then(|()| self.ask(|group, seq, deadline| Input::Propose { group, seq, command, deadline }));
        async move {
            match asked?.await {
                Ok(Answer::Outcome(outcome, index)) => Ok((outcome, index)),
                other => Err(refusal(other)),
            }
        }
    }

    /// Where the time of a command went that was asked for at `asked`, see [`Stages::of`].
    pub fn stages(&self, asked: Time, index: Option<u64>) -> StageTimes {
        self.group.stages.as_ref().map(|stages| stages.of(asked, index)).unwrap_or_default()
    }

    /// Asks a node for a sign of life; how long that took.
    pub async fn ping(&self, node: NodeId) -> Result<Duration, String> {
        let asked = clock::now();
        let answer = self.node.transport.call(node, crate::founding::PING, Bytes::new(), PING_TIMEOUT).await?;
        answer.map_err(|why| format!("refused: {why:?}"))?;
        Ok(clock::now().since(asked))
    }

    /// Changes the membership; ends when the change is applied here.
    pub fn change(
        &self,
        change: MembershipChange,
    ) -> impl Future<Output = Result<Membership, Refusal>> + Send + 'static {
        let asked = self
            .may_answer()
            .and_then(|()| self.ask(|group, seq, deadline| Input::Change { group, seq, change, deadline }));
        async move {
            match asked?.await {
                Ok(Answer::Outcome(outcome, _)) => Ok(Membership::decode(&outcome.body).unwrap_or_default()),
                other => Err(refusal(other)),
            }
        }
    }

    /// Hands leadership to `to`, or to the follower that is furthest.
    pub fn transfer(&self, to: Option<NodeId>) -> impl Future<Output = Result<(), Refusal>> + Send + 'static {
        let asked = self.ask(|group, seq, deadline| Input::Transfer { group, seq, to, deadline });
        async move {
            match asked?.await {
                Ok(Answer::Transferred) => Ok(()),
                other => Err(refusal(other)),
            }
        }
    }

    /// Waits until this node has applied everything that was committed before the call. On a leader with a valid
    /// lease that is at once.
    pub fn read(&self) -> impl Future<Output = Result<ReadGrant, Refusal>> + Send + 'static {
        let now = clock::now();
        let asked = match self.lease_read() {
            Some(grant) => Ok(Err(grant)),
            None => self.may_answer().and_then(|()| self.ask_to_read(now).map(Ok)),
        };
        async move {
            match asked? {
                Err(grant) => Ok(grant),
                Ok(receiver) => receiver.await.unwrap_or(Err(Refusal::Stopping)),
            }
        }
    }

    /// The grant that a leader with a valid lease can give on the spot.
    pub fn lease_read(&self) -> Option<ReadGrant> {
        self.group.waiters.lease_grant(clock::now()).filter(|_| self.is_sound())
    }

    /// Whether a read done under `grant` and finished by now is linearizable.
    pub fn still_valid(&self, grant: &ReadGrant) -> bool {
        self.is_sound() && grant.valid_until.is_none_or(|until| clock::now() < until)
    }

    /// As of the last turn.
    pub fn status(&self) -> Arc<GroupStatus> {
        self.group.status.load_full()
    }

    pub fn is_leader(&self) -> bool {
        self.group.status.load().role == Role::Leader
    }

    /// The term as of the last turn.
    pub fn term(&self) -> u64 {
        self.group.status.load().term
    }

    /// Bytes of this group's snapshots that went out since the process began.
    pub fn snapshot_bytes_sent(&self) -> u64 {
        self.group.snapshot_bytes_sent.load(Ordering::Relaxed)
    }

    /// Whether this replica's state is not what most have: nothing is answered from it.
    pub fn differs(&self) -> bool {
        self.group.differs.load(Ordering::SeqCst)
    }

    /// As [`GroupHandle::hold`], for this group alone.
    pub fn hold_group(&self, held: bool) {
        self.node.inbox.push(Input::Hold { group: self.group.id, held });
    }

    /// What keeps this node from its cluster, one sentence each; empty when all is well.
    pub fn notes(&self) -> Vec<String> {
        let waits_for = self.node.waits_for.load_full().map(|why| (*why).clone());
        waits_for.into_iter().chain(self.node.transport.refusals()).collect()
    }

    pub fn membership(&self) -> Arc<Membership> {
        self.group.membership.load_full()
    }

    /// While held, this node takes no new entries and no snapshot from the leader, and so answers nothing that needs them:
    /// its disk is full, and the others are enough.
    pub fn hold(&self, held: bool) {
        if self.node.held.swap(held, Ordering::SeqCst) != held {
            self.node.inbox.push(Input::Hold { group: self.group.id, held });
        }
    }

    /// Asks the leader's node, which may be this one, something that only a leader knows. [`Refusal::Unanswered`]: what it was asked
    /// to do may be done.
    pub fn call_leader(
        &self,
        method: u8,
        body: Bytes,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send + 'static {
        let (shared, group) = (self.node.clone(), self.group.clone());
        let unled = if self.is_left_out() { Refusal::Removed } else { Refusal::NoLeader };
        async move {
            let leader = group.status.load().leader_node;
            if leader == NodeId::default() {
                return Err(unled);
            }
            if leader == shared.identity.load().node {
                return shared.transport.call_here(method, body).await;
            }
            let mut events = shared.events.subscribe();
            tokio::select! {
                answer = shared.transport.call_or_refuse(leader, method, body, shared.request_timeout) => answer,
                // Whoever still waits for the old one would wait for a node that is gone, perhaps.
                () = group.succeeded(leader, &mut events) => Err(Refusal::Unanswered),
            }
        }
    }

    /// Who is alive, as members tell one another; empty without gossip.
    pub fn gossip(&self) -> Arc<View> {
        self.node.gossip.load_full()
    }

    /// Asks any node; this one too.
    pub fn call_node(
        &self,
        node: NodeId,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> impl Future<Output = Result<Bytes, Refusal>> + Send + 'static {
        let shared = self.node.clone();
        async move {
            if node == shared.identity.load().node {
                return shared.transport.call_here(method, body).await;
            }
            shared.transport.call_or_refuse(node, method, body, timeout).await
        }
    }

    pub fn health(&self) -> &Health {
        &self.node.health
    }

    /// Whose hashes differ from one another without a majority, once for each time that it was found. Unlike an event it
    /// waits until it is asked for.
    pub fn take_unclear(&self) -> Option<Arc<Vec<PeerId>>> {
        self.group.unclear.swap(None)
    }

    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.node.events.subscribe()
    }

    pub fn node(&self) -> NodeId {
        self.node.identity.load().node
    }

    /// Zero until the node belongs to a cluster.
    pub fn cluster(&self) -> ClusterId {
        self.node.identity.load().cluster
    }

    pub fn peer(&self) -> PeerId {
        self.node.identity.load().peer
    }

    pub fn now(&self) -> Time {
        clock::now()
    }

    pub fn request_timeout(&self) -> Duration {
        self.node.request_timeout
    }

    /// The silence after which a leader is missed, at the earliest.
    pub fn election_timeout(&self) -> Duration {
        self.node.election_timeout
    }

    /// Whether this node may answer for the group's state.
    pub fn is_sound(&self) -> bool {
        !self.node.health.is_quarantined() && !self.group.differs.load(Ordering::SeqCst)
    }

    /// Whether the state holds all that this node may have answered from before the process began. An engine that lost its end
    /// to a damaged file opens at an older moment, which is no error to it; the log brings the rest. How much of the log was
    /// committed, a killed node knows only by half: a leader tells the rest, for which is waited as long as there may well be one.
    pub fn is_replayed(&self) -> bool {
        let group = &self.group;
        if group.replayed.load(Ordering::Relaxed) {
            return true;
        }
        let status = group.status.load();
        let waited = || clock::now().since(group.since) >= self.node.election_timeout * UNLED_ELECTIONS;
        let replayed = status.peer != PeerId::NONE
            && status.applied >= status.regained
            && (status.applied >= status.inherited_last || waited());
        group.replayed.fetch_or(replayed, Ordering::Relaxed);
        replayed
    }

    fn ask(
        &self,
        input: impl FnOnce(GroupId, u64, Time) -> Input,
    ) -> Result<tokio::sync::oneshot::Receiver<Answer>, Refusal> {
        let shared = &self.node;
        self.takes_requests(shared.held.load(Ordering::Relaxed) && !self.is_leader())?;
        let (seq, receiver) = self.group.waiters.client();
        shared.inbox.push(input(self.group.id, seq, clock::now() + shared.request_timeout));
        Ok(receiver)
    }

    fn ask_to_read(&self, now: Time) -> Result<tokio::sync::oneshot::Receiver<ReadAnswer>, Refusal> {
        let shared = &self.node;
        self.takes_requests(shared.held.load(Ordering::Relaxed))?;
        let (seq, receiver) = self.group.waiters.reader();
        shared.inbox.push(Input::Read { group: self.group.id, seq, deadline: now + shared.request_timeout });
        Ok(receiver)
    }

    fn takes_requests(&self, held: bool) -> Result<(), Refusal> {
        match () {
            () if !self.node.belongs() => Err(Refusal::NoLeader),
            () if held => Err(Refusal::Held),
            () if self.node.inbox.len() >= INBOX_MAX => Err(Refusal::Busy),
            () => Ok(()),
        }
    }

    /// Whether it is of use to ask the others from here.
    fn may_answer(&self) -> Result<(), Refusal> {
        match () {
            () if !self.is_sound() => Err(Refusal::NoLeader),
            () if self.is_left_out() => Err(Refusal::Removed),
            () => Ok(()),
        }
    }

    /// Whether the cluster goes on without this node, as far as it knows.
    pub fn is_left_out(&self) -> bool {
        self.node.left_out.load(Ordering::Relaxed)
    }
}

fn refusal(answer: Result<Answer, tokio::sync::oneshot::error::RecvError>) -> Refusal {
    match answer {
        Ok(Answer::Refused(why)) => why,
        // The sender is dropped only when the node stops.
        _ => Refusal::Stopping,
    }
}
