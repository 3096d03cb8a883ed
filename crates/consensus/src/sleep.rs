//! Groups that have nothing to do sleep: no ticks, no heartbeats. A node with ten thousand of them, most of which are idle,
//! would do nothing else.
//!
//! ```text
//!  leader: idle for HostConfig::sleep_after, all it knows of is everywhere ── Sleep{term, commit} ──▶ followers
//!            sleeps                                                            sleep, if they hold just that
//!  either wakes with the first message or request of its group
//!  the leader's node is gone, or came back as another life ──▶ followers wake and ask for votes at once
//!  a member's node is gone or comes back                   ──▶ the leader wakes and finds out what it lacks
//! ```
//! Why that is safe: a sleeping leader has no lease (a read wakes it, and costs a round), and a sleeping follower has
//! promised nothing that its vote could break; all else is as if messages came late. Why it does not sleep for ever: as long
//! as anything can be wrong (a leader that is none any more, a member that lacks something) somebody of the group is
//! awake, and whoever is awake speaks, which wakes the others. A follower that missed `Sleep`, or lacks something, calls the
//! leader before it loses patience (`Wake`): the leader shows itself, fills in what lacks, and says it again.
//!
//! Members on nodes that are gone ([`crate::liveness`]) do not keep a group awake: with one node down for hours all groups
//! of the others would be. The leader remembers whom it left behind, and wakes when that node is there again.

use std::collections::BTreeSet;

use base::{NodeId, PeerId, Time};
use raft::ProgressState;

use crate::group::Group;
use crate::liveness::Liveness;
use crate::ready::Effects;
use crate::wire::Body;

/// A group that sleeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asleep {
    /// On a leader: peers that are on nodes that are gone.
    missing: BTreeSet<PeerId>,
}

/// Why a group wakes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waking {
    /// Something is asked of it.
    Called,
    /// The node that its leader is on is gone, or has forgotten that it leads.
    Orphaned,
}

impl Group {
    pub fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    /// Something was asked of this group, or changed in it.
    pub fn stir(&mut self) {
        self.stirred = self.now;
    }

    /// While it sleeps, its peers are heard of through their nodes.
    pub fn is_vouched_for(&self, peer: PeerId) -> Option<bool> {
        self.asleep.as_ref().map(|asleep| !asleep.missing.contains(&peer))
    }

    /// Whether a sleeping leader left a peer on this node behind.
    pub fn misses(&self, node: NodeId) -> bool {
        let missing = self.asleep.iter().flat_map(|asleep| &asleep.missing);
        missing.into_iter().any(|peer| self.node_of(*peer) == Some(node))
    }

    pub fn wake(&mut self, why: Waking) {
        let Some(asleep) = self.asleep.take() else { return };
        self.woken = self.now;
        self.align_ticks();
        if self.is_leader() {
            // The round that shows it to the others goes out in this turn.
            self.last_round = Time::ZERO;
            self.raw.raft.election_elapsed = 0;
            let peers = self.raw.raft.prs().iter().map(|(id, _)| PeerId(*id));
            let vouched: Vec<PeerId> = peers.filter(|peer| !asleep.missing.contains(peer)).collect();
            self.heard.extend(vouched.into_iter().map(|peer| (peer, self.now)));
        } else if why == Waking::Orphaned {
            let term = self.term();
            self.raw.raft.become_follower(term, PeerId::NONE.0);
            self.pin_election_timeout();
            // It bore the silence asleep.
            self.raw.raft.election_elapsed = self.timing.election_subticks;
            self.vote_guard_until = self.now;
        } else {
            self.raw.raft.election_elapsed = 0;
            self.vote_guard_until = self.vote_guard_until.max(self.now + self.timing.vote_guard);
        }
    }

    /// On a leader, at a tick: goes to sleep if there is nothing to do.
    pub fn try_sleep(&mut self, liveness: &Liveness, effects: &mut Effects) {
        let Some(after) = self.config.sleep_after else { return };
        let shown = self.reads.lease_from.is_some_and(|from| from >= self.woken);
        if !self.is_leader() || self.now.since(self.stirred) < after || !shown || !self.is_at_rest() {
            return;
        }
        let last = self.log.last();
        let (mut missing, mut others) = (BTreeSet::new(), Vec::new());
        for (id, progress) in self.raw.raft.prs().iter().filter(|(id, _)| **id != self.peer.0) {
            let peer = PeerId(*id);
            if !self.node_of(peer).is_some_and(|node| liveness.is_there(node)) {
                missing.insert(peer);
                continue;
            }
            // By itself since then, not through its node: that may have another peer by now.
            let heard = self.heard.get(&peer).is_some_and(|heard| *heard > self.woken);
            if !heard || progress.matched != last || progress.state != ProgressState::Replicate {
                return;
            }
            others.push(peer);
        }
        // One that lacks a quorum must find out that it does not lead any more.
        let voters = &self.membership.voters;
        let there = voters.iter().filter(|peer| !missing.contains(peer)).count();
        if there < voters.len() / 2 + 1 {
            return;
        }
        others.sort_unstable();
        let (term, commit) = (self.term(), self.committed());
        others.into_iter().for_each(|peer| self.send(peer, Body::Sleep { term, commit }, effects));
        self.reads.forget_rounds();
        self.asleep = Some(Asleep { missing });
    }

    /// The leader sleeps, and this peer may.
    pub fn told_to_sleep(&mut self, from: PeerId, term: u64, commit: u64, liveness: &Liveness) {
        let vouched = self.node_of(from).is_some_and(|node| liveness.is_there(node));
        let agrees = from == self.leader() && term == self.term() && commit == self.committed();
        if self.config.sleep_after.is_some() && vouched && agrees && !self.is_leader() && self.is_at_rest() {
            self.asleep = Some(Asleep::default());
        }
    }

    /// On a follower that is awake, at a tick: the leader has said nothing for a while.
    pub fn call_leader(&mut self, effects: &mut Effects) {
        let (leader, patience) = (self.leader(), self.config.election_timeout() / 2);
        let heard = self.heard.get(&leader).copied().unwrap_or(self.woken).max(self.called);
        if self.config.sleep_after.is_some() && !leader.is_none() && self.now.since(heard) >= patience {
            self.called = self.now;
            self.send(leader, Body::Wake, effects);
        }
    }

    /// Whether nothing is under way here.
    fn is_at_rest(&self) -> bool {
        let (committed, last) = (self.committed(), self.log.last());
        let growing = |member: &crate::membership::Member| {
            !member.successor.is_none() || (member.promote_when_ready && !self.membership.voters.contains(&member.peer))
        };
        self.applied == committed
            && committed == last
            && self.raw.raft.raft_log.last_index() == last
            && self.held == 0
            && self.installing.is_none()
            && self.proposals.is_empty()
            && self.reads.is_idle()
            && self.transfers.is_empty()
            && self.snapshots.is_empty()
            && !self.transferring()
            && !self.stall.is_on()
            && !self.hashes.are_open()
            && !self.membership.is_joint()
            && !self.raw.raft.has_pending_conf()
            && !(self.is_leader() && self.membership.members.values().any(growing))
    }
}
