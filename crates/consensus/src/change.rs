//! Changes of membership and leadership, as the leader carries them out.
//!
//! One change at a time, learner first. The leader itself brings learners to their place: one that was added to
//! become a voter is promoted when it has caught up, and a successor takes over from the incarnation whose log was
//! lost in one joint change. A leader that is to be removed hands over first.

use base::{NodeId, PeerId, Time};
use raft::ProgressState;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2};

use crate::api::{Output, Refusal};
use crate::group::Group;
use crate::membership::{ChangeRecord, MemberRole, MembershipChange, RaftStep};
use crate::ready::Effects;
use crate::wire::Body;

/// A learner this close to the leader's last entry counts as caught up.
const CAUGHT_UP_ENTRIES: u64 = 64;

/// A transfer that somebody on this host waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub seq: u64,
    pub to: Option<NodeId>,
    /// Who led when it was asked for.
    pub from: PeerId,
    pub deadline: Time,
}

impl Transfer {
    pub fn fulfilled(&self, leader: PeerId, node: NodeId) -> bool {
        self.to.map_or(leader != self.from, |to| to == node)
    }
}

impl Group {
    pub fn transfer(&mut self, seq: u64, to: Option<NodeId>, deadline: Time, effects: &mut Effects) {
        let leader = self.leader();
        if leader.is_none() {
            return effects.refuse(self.id, vec![seq], Refusal::NoLeader);
        }
        if to.is_some() && to == self.node_of(leader) {
            return effects.out.push(Output::TransferDone { group: self.id, seq });
        }
        if self.is_leader() {
            if let Err(why) = self.begin_transfer(to) {
                return effects.refuse(self.id, vec![seq], why);
            }
        } else {
            let to = to.map_or(0, |node| node.0);
            self.send(leader, Body::ForwardTransfer { term: self.term(), seq, to }, effects);
        }
        self.transfers.push(Transfer { seq, to, from: leader, deadline });
    }

    /// On the leader: begins to hand over to `to`, or to the follower that is furthest. While it does it takes no writes, for an
    /// election timeout if the other one does not answer; so one that is known to be silent is refused when it is named.
    pub fn begin_transfer(&mut self, to: Option<NodeId>) -> Result<(), Refusal> {
        if !self.is_leader() {
            return Err(Refusal::NoLeader);
        }
        let target = match to {
            Some(node) => self.membership.members.get(&node).map(|member| member.peer),
            None => self.best_follower(),
        };
        let target = target.filter(|peer| *peer != self.peer && self.membership.voters.contains(peer));
        let target = target.ok_or(Refusal::BadTransferee)?;
        if to.is_some() && !self.heard_of(target) && self.now.since(self.leader_since) >= self.config.election_timeout()
        {
            return Err(Refusal::BadTransferee);
        }
        self.reads.lease_void = true;
        self.reads.lease_from = None;
        self.raw.transfer_leader(target.0);
        Ok(())
    }

    /// On the leader: checks a change and puts it into the log.
    pub fn propose_change(&mut self, record: ChangeRecord) -> Result<(), Refusal> {
        if self.transferring() {
            return Err(Refusal::NoLeader);
        }
        if self.raw.raft.has_pending_conf() || self.committed() < self.change_barrier {
            return Err(Refusal::ChangeInFlight);
        }
        // What the state machine has yet to see of earlier terms may hold changes.
        if self.changes_held || self.applied < self.inherited {
            return Err(Refusal::ChangeInFlight);
        }
        let step = self.membership.plan(&record.change, self.config.learners_max)?;
        if let MembershipChange::Arrive { node, .. } = record.change
            && let Some(member) = self.membership.members.get(&node)
            && !member.peer.is_none()
            && (self.heard_of(member.peer) || self.now.since(self.leader_since) < self.config.election_timeout())
        {
            // Whoever claims to be a member that is alive is a clone, or came back before it was missed.
            return Err(Refusal::DuplicateMember);
        }
        if let MembershipChange::Promote { .. } = record.change
            && let RaftStep::AddVoter(peer) = step
            && !self.caught_up(peer)
        {
            return Err(Refusal::LearnerNotReady);
        }
        let single =
            |kind: ConfChangeType, peer: PeerId| ConfChangeSingle { change_type: kind as i32, node_id: peer.0 };
        let changes = match step {
            RaftStep::None => {
                self.propose_record(&record)?;
                self.change_barrier = self.raw.raft.raft_log.last_index();
                return Ok(());
            }
            RaftStep::AddLearner(peer) => vec![single(ConfChangeType::AddLearnerNode, peer)],
            RaftStep::AddVoter(peer) => vec![single(ConfChangeType::AddNode, peer)],
            RaftStep::Remove(peers) => {
                self.may_remove(&peers)?;
                peers.into_iter().map(|peer| single(ConfChangeType::RemoveNode, peer)).collect()
            }
            RaftStep::NextSuccessor { out, into } => {
                vec![single(ConfChangeType::AddLearnerNode, into), single(ConfChangeType::RemoveNode, out)]
            }
            RaftStep::Swap { out, into } => {
                if out == self.peer {
                    self.begin_transfer(None)?;
                    return Err(Refusal::NoLeader);
                }
                vec![single(ConfChangeType::AddNode, into), single(ConfChangeType::RemoveNode, out)]
            }
        };
        let change = ConfChangeV2 { changes, context: record.encode(), ..ConfChangeV2::default() };
        self.raw.propose_conf_change(Vec::new(), change).map_err(|_| Refusal::NoLeader)?;
        self.change_barrier = self.raw.raft.raft_log.last_index();
        Ok(())
    }

    /// On the leader, at every tick: the next step of changes that go on by themselves.
    pub fn tend_membership(&mut self) {
        if self.transferring() || self.raw.raft.has_pending_conf() || self.committed() < self.change_barrier {
            return;
        }
        if self.membership.is_joint() {
            // The raft crate leaves by itself, unless the leader changed in between. Leaving again is harmless.
            let leave = ConfChangeV2::default();
            if self.raw.propose_conf_change(Vec::new(), leave).is_ok() {
                self.change_barrier = self.raw.raft.raft_log.last_index();
            }
            return;
        }
        let next = self.membership.members.values().find_map(|member| {
            if !member.successor.is_none() {
                let ready = self.caught_up(member.successor);
                return ready.then_some(MembershipChange::Succeed { node: member.node });
            }
            let wants = member.promote_when_ready && member.role == MemberRole::Learner && !member.peer.is_none();
            (wants && self.caught_up(member.peer)).then_some(MembershipChange::Promote { node: member.node })
        });
        if let Some(change) = next {
            // Whatever stands in the way is tried again at the next tick.
            let _ = self.propose_change(ChangeRecord { origin: PeerId::NONE, seq: 0, change });
        }
    }

    /// Whether a peer was heard of within an election timeout. The raft crate's own mark is cleared for all peers at
    /// intervals, and would call the living dead for a moment.
    pub fn heard_of(&self, peer: PeerId) -> bool {
        let patience = self.config.election_timeout();
        let heard = || self.heard.get(&peer).is_some_and(|heard| self.now.since(*heard) < patience);
        peer == self.peer || self.is_vouched_for(peer).unwrap_or_else(heard)
    }

    fn caught_up(&self, peer: PeerId) -> bool {
        let last = self.raw.raft.raft_log.last_index();
        self.raw.raft.prs().get(peer.0).is_some_and(|progress| {
            // One that was away for a while is probed until it acknowledges something new, and an idle group has nothing new.
            let follows = progress.state == ProgressState::Replicate && progress.matched + CAUGHT_UP_ENTRIES >= last;
            self.heard_of(peer) && (follows || progress.matched >= last)
        })
    }

    fn may_remove(&mut self, peers: &[PeerId]) -> Result<(), Refusal> {
        let staying: Vec<PeerId> =
            self.membership.voters.iter().copied().filter(|voter| !peers.contains(voter)).collect();
        let removes_voter = staying.len() < self.membership.voters.len();
        if removes_voter && staying.iter().filter(|peer| self.heard_of(**peer)).count() < staying.len() / 2 + 1 {
            return Err(Refusal::WouldLoseQuorum);
        }
        if peers.contains(&self.peer) {
            self.begin_transfer(None)?;
            return Err(Refusal::NoLeader);
        }
        Ok(())
    }

    fn best_follower(&self) -> Option<PeerId> {
        let voters = self.membership.voters.iter().filter(|peer| **peer != self.peer);
        let progress = voters.filter_map(|peer| {
            let progress = self.raw.raft.prs().get(peer.0)?;
            Some((self.heard_of(*peer), progress.matched, *peer))
        });
        progress.max().map(|(_, _, peer)| peer)
    }
}
