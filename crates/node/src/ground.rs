//! What programs with groups stand on: a process on the nodes of this crate, the simulator on nodes of its own. What such a
//! program decides is the same code on both.
//!
//! | trait | in a process |
//! |---|---|
//! | [`Replicated`]: one group | [`GroupHandle`] |
//! | [`Ground`]: a node with many groups, and the tasks and timers of its process | [`ManyNode`] |
//!
//! Tasks wait for what these give them and for nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, NodeId, Time};
use bytes::Bytes;
use consensus::{
    CreateGroup, GroupStatus, MachineError, Membership, MembershipChange, Outcome, Refusal, Role, StateMachine,
};

use crate::driver::DriverStats;
use crate::handle::{GroupHandle, ReadGrant};
use crate::identity::Identity;
use crate::many::ManyNode;

/// Something that comes to an end by itself.
pub type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// One group as its user sees it; see [`GroupHandle`].
pub trait Replicated: Send + Sync {
    fn id(&self) -> GroupId;
    /// As of the last turn.
    fn status(&self) -> Arc<GroupStatus>;
    fn membership(&self) -> Arc<Membership>;
    fn now(&self) -> Time;
    /// Replicates a command and waits until this node has applied it.
    fn propose(&self, command: Bytes) -> Later<Result<Outcome, Refusal>>;
    /// Ends when the change is applied here.
    fn change(&self, change: MembershipChange) -> Later<Result<Membership, Refusal>>;
    fn transfer(&self, to: Option<NodeId>) -> Later<Result<(), Refusal>>;
    /// Waits until this node has applied everything that was committed before the call.
    fn read(&self) -> Later<Result<ReadGrant, Refusal>>;
    /// Whether this node may answer for the group's state.
    fn is_sound(&self) -> bool;
    /// Whether this replica's state is not what most have.
    fn differs(&self) -> bool;
    /// Takes no new entries from the leader while held.
    fn hold_group(&self, held: bool);
    /// Of snapshots to others, as a count that grows.
    fn snapshot_bytes_sent(&self) -> u64;
    /// Whether a read done under `grant` and finished by now is linearizable.
    fn still_valid(&self, grant: &ReadGrant) -> bool;

    fn is_leader(&self) -> bool {
        self.status().role == Role::Leader
    }

    fn term(&self) -> u64 {
        self.status().term
    }
}

/// What a state machine may tell the node that carries it, about its own group or another one.
pub trait Controls: Send + Sync {
    /// See [`consensus::Input::HoldChanges`]. It is in force before anything that is asked of the node afterwards.
    fn hold_changes(&self, group: GroupId, held: bool);
    /// See [`consensus::Input::Vouch`].
    fn vouch(&self, group: GroupId, index: u64, term: u64);
}

/// A node with many groups; see [`ManyNode`].
pub trait Ground: Send + Sync {
    fn identity(&self) -> Identity;
    /// Puts a group on this node. `changes_held`: see [`consensus::Input::HoldChanges`]. The error: state and log do not go
    /// together, and nothing has happened.
    fn create(
        &self,
        create: CreateGroup,
        machine: Box<dyn StateMachine>,
        changes_held: bool,
    ) -> Result<Arc<dyn Replicated>, MachineError>;
    fn controls(&self) -> Arc<dyn Controls>;
    /// Takes away the logs of groups that nothing here knows of. To be called before any group is created.
    fn destroy_others(&self, known: &dyn Fn(GroupId) -> bool);
    /// Takes a group away, with its log. Its state is the caller's to remove, afterwards.
    fn destroy(&self, group: GroupId);
    /// Has a group's peer on this node ask for votes, if it knows of no leader.
    fn campaign(&self, group: GroupId);
    /// Where another node is to be found.
    fn set_address(&self, node: NodeId, addresses: Vec<String>);
    /// Asks another node. The outer error says that no answer came.
    fn call(
        &self,
        node: NodeId,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Later<Result<Result<Bytes, Refusal>, String>>;
    /// Bytes a second that snapshots may be sent with, from now on; zero: as fast as it goes. A node whose snapshots take no
    /// time has no use for it.
    fn pace_snapshots(&self, _bytes_per_sec: u64) {}
    fn stats(&self) -> Arc<DriverStats>;
    /// Of the data folder's file system: bytes free, and in all.
    fn room(&self) -> Option<(u64, u64)>;
    /// On a clock that only goes forward.
    fn now(&self) -> Time;
    fn spawn(&self, task: Later<()>);
    fn sleep(&self, span: Duration) -> Later<()>;
    /// Does what takes long where it holds nobody up.
    fn aside(&self, work: Box<dyn FnOnce() + Send>) -> Later<()>;
}

impl Replicated for GroupHandle {
    fn id(&self) -> GroupId {
        GroupHandle::id(self)
    }

    fn status(&self) -> Arc<GroupStatus> {
        GroupHandle::status(self)
    }

    fn membership(&self) -> Arc<Membership> {
        GroupHandle::membership(self)
    }

    fn now(&self) -> Time {
        GroupHandle::now(self)
    }

    fn propose(&self, command: Bytes) -> Later<Result<Outcome, Refusal>> {
        Box::pin(GroupHandle::propose(self, command))
    }

    fn change(&self, change: MembershipChange) -> Later<Result<Membership, Refusal>> {
        Box::pin(GroupHandle::change(self, change))
    }

    fn transfer(&self, to: Option<NodeId>) -> Later<Result<(), Refusal>> {
        Box::pin(GroupHandle::transfer(self, to))
    }

    fn read(&self) -> Later<Result<ReadGrant, Refusal>> {
        Box::pin(GroupHandle::read(self))
    }

    fn is_sound(&self) -> bool {
        GroupHandle::is_sound(self)
    }

    fn differs(&self) -> bool {
        GroupHandle::differs(self)
    }

    fn hold_group(&self, held: bool) {
        GroupHandle::hold_group(self, held);
    }

    fn snapshot_bytes_sent(&self) -> u64 {
        GroupHandle::snapshot_bytes_sent(self)
    }

    fn still_valid(&self, grant: &ReadGrant) -> bool {
        GroupHandle::still_valid(self, grant)
    }

    fn is_leader(&self) -> bool {
        GroupHandle::is_leader(self)
    }

    fn term(&self) -> u64 {
        GroupHandle::term(self)
    }
}

impl Ground for ManyNode {
    fn identity(&self) -> Identity {
        ManyNode::identity(self)
    }

    fn create(
        &self,
        create: CreateGroup,
        machine: Box<dyn StateMachine>,
        changes_held: bool,
    ) -> Result<Arc<dyn Replicated>, MachineError> {
        Ok(Arc::new(ManyNode::create(self, create, machine, changes_held)?))
    }

    fn controls(&self) -> Arc<dyn Controls> {
        ManyNode::controls(self)
    }

    fn destroy_others(&self, known: &dyn Fn(GroupId) -> bool) {
        ManyNode::destroy_others(self, known);
    }

    fn destroy(&self, group: GroupId) {
        ManyNode::destroy(self, group);
    }

    fn campaign(&self, group: GroupId) {
        ManyNode::campaign(self, group);
    }

    fn set_address(&self, node: NodeId, addresses: Vec<String>) {
        ManyNode::set_address(self, node, addresses);
    }

    fn call(
        &self,
        node: NodeId,
        method: u8,
        body: Bytes,
        timeout: Duration,
    ) -> Later<Result<Result<Bytes, Refusal>, String>> {
        let transport = self.transport().clone();
        Box::pin(async move { transport.call(node, method, body, timeout).await })
    }

    fn pace_snapshots(&self, bytes_per_sec: u64) {
        self.transport().pace_snapshots(bytes_per_sec);
    }

    fn stats(&self) -> Arc<DriverStats> {
        ManyNode::stats(self)
    }

    fn room(&self) -> Option<(u64, u64)> {
        crate::disk::room(self.folder())
    }

    fn now(&self) -> Time {
        crate::clock::now()
    }

    fn spawn(&self, task: Later<()>) {
        tokio::spawn(task);
    }

    fn sleep(&self, span: Duration) -> Later<()> {
        Box::pin(tokio::time::sleep(span))
    }

    fn aside(&self, work: Box<dyn FnOnce() + Send>) -> Later<()> {
        let done = tokio::task::spawn_blocking(work);
        // The runtime stops, or the work has panicked: its own channels say that nothing came of it.
        Box::pin(async move { drop(done.await) })
    }
}
