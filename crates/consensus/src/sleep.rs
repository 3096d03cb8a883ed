//! Groups that have nothing to do sleep: no ticks, no heartbeats. A node with ten thousand of them, most of which are idle,
//! would do nothing else.
//!
//! ```text
//!  leader: idle for HostConfig::sleep_after, all it knows of is everywhere ── Sleep{term, commit} ──▶ followers
//!            sleeps                                                            sleep, if they hold just that
//!  either wakes with the first message or request of its group
//!  the leader's node is gone, or came back as another life ──▶ followers wake, and one of them asks for votes at once
//!  a member's node comes back                              ──▶ the leader wakes and finds out what it lacks
//! ```
//! When a node goes, thousands of groups lose their leader in the same moment. Of each, only one follower asks for votes at once
//! ([`Group::is_first_heir`]): two would take each other's. The rest wait as long as for any silent leader. Whoever was not asked
//! for anything sleeps again as soon as all is in its place.
//!
//! Why that is safe: a sleeping leader has no lease (a read wakes it, and costs a round), and a sleeping follower has
//! promised nothing that its vote could break; all else is as if messages came late. Why it does not sleep for ever: as long
//! as anything can be wrong (a leader that is none any more, a member that lacks something) somebody of the group is
//! awake, and whoever is awake speaks, which wakes the others. A follower that missed `Sleep`, or lacks something, calls the
//! leader before it loses patience (`Wake`): the leader shows itself, fills in what lacks, and says it again.
//!
//! Members on nodes that are gone ([`crate::liveness`]) do not keep a group awake, nor do they wake it as they go: with one
//! node down for hours all groups of the others would be. The leader remembers whom it left behind, and wakes when that node is
//! there again, or when too few are left.

use std::collections::BTreeSet;

use base::rng::mix;
use base::{NodeId, PeerId, Time};
use raft::ProgressState;
use raft::eraftpb::MessageType;

use crate::group::Group;
use crate::liveness::{Liveness, News};
use crate::ready::Effects;
use crate::wire::{Body, Message};

/// A group that sleeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asleep {
    /// On a leader: peers that are on nodes that are gone.
    missing: BTreeSet<PeerId>,
}

impl Group {
    pub fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    /// Something was asked of this group: it stays awake for a while.
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

    /// Something was asked of this group, or came for it.
    pub fn wake(&mut self) {
        let Some(asleep) = self.rise() else { return };
        self.raw.raft.election_elapsed = 0;
        if self.is_leader() {
            // The round that shows it to the others goes out in this turn.
            self.last_round = Time::ZERO;
            let peers = self.raw.raft.prs().iter().map(|(id, _)| PeerId(*id));
            let vouched: Vec<PeerId> = peers.filter(|peer| !asleep.missing.contains(peer)).collect();
            self.heard.extend(vouched.into_iter().map(|peer| (peer, self.now)));
        } else {
            self.vote_guard_until = self.vote_guard_until.max(self.now + self.timing.vote_guard);
        }
    }

    /// What news of a node means to this group; whether anything.
    pub fn learn_of(&mut self, node: NodeId, news: News, liveness: &Liveness) -> bool {
        let led_there = !self.is_leader() && self.node_of(self.leader()) == Some(node);
        match news {
            News::Gone | News::Reborn if led_there && !self.has_heard_leader() => {
                self.orphan(self.is_first_heir(node, liveness));
            }
            News::Gone if self.is_leader() && self.can_spare(node) => {}
            News::Gone | News::Reborn if self.is_leader() && self.is_asleep() => self.wake(),
            News::There if self.misses(node) => self.wake(),
            _ => return false,
        }
        true
    }

    /// A sleeping follower that is asked for its vote takes that for what it is if it hears nothing of the leader's node either:
    /// it would be told so in a moment, and the candidate would have to begin again.
    pub fn hear_candidate(&mut self, message: &Message, liveness: &Liveness) {
        let Body::Raft(raft) = &message.body else { return };
        // It has not been checked yet: its type may be none that there is.
        let asks = [MessageType::MsgRequestVote, MessageType::MsgRequestPreVote]
            .map(|kind| kind as i32)
            .contains(&raft.msg_type);
        let leader_node = self.node_of(self.leader());
        let silent = || leader_node.is_some_and(|node| liveness.is_silent(node, self.now));
        if asks && self.is_asleep() && !self.is_leader() && silent() {
            self.orphan(false);
        }
    }

    /// The leader's node is gone, or does not know that it leads. While it slept this peer bore the silence, and has acknowledged
    /// nothing that a lease could rest on: the leader had none when it sent its peers to sleep.
    fn orphan(&mut self, campaigns: bool) {
        self.rise();
        let term = self.term();
        self.raw.raft.become_follower(term, PeerId::NONE.0);
        self.pin_election_timeout();
        self.raw.raft.election_elapsed = if campaigns { self.timing.election_subticks_max() } else { 0 };
        self.vote_guard_until = self.now;
    }

    /// Whether of all that could follow this leader it is up to this peer. All should think of the same one, and the stores should
    /// share the groups evenly; but if they differ it costs time, no more.
    fn is_first_heir(&self, gone: NodeId, liveness: &Liveness) -> bool {
        let rank = |peer: &PeerId| mix(self.id.0 ^ mix(peer.0));
        let stays = |peer: &&PeerId| {
            let there = |node| node != gone && liveness.is_there(node);
            **peer == self.peer || self.node_of(**peer).is_some_and(there)
        };
        self.membership.voters.iter().filter(stays).min_by_key(|peer| rank(peer)) == Some(&self.peer)
    }

    /// Whether the leader has shown itself since this peer woke.
    fn has_heard_leader(&self) -> bool {
        !self.is_asleep() && self.heard.get(&self.leader()).is_some_and(|heard| *heard > self.woken)
    }

    /// On a sleeping leader: goes on without the peers on a node, if a quorum is left.
    fn can_spare(&mut self, node: NodeId) -> bool {
        let gone: Vec<PeerId> = self.membership.members.get(&node).map(|it| it.peer).into_iter().collect();
        let Some(asleep) = &mut self.asleep else { return false };
        asleep.missing.extend(gone);
        let there = self.membership.voters.iter().filter(|peer| !asleep.missing.contains(peer)).count();
        there > self.membership.voters.len() / 2
    }

    fn rise(&mut self) -> Option<Asleep> {
        let asleep = self.asleep.take()?;
        self.woken = self.now;
        self.align_ticks();
        Some(asleep)
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
        if there <= voters.len() / 2 {
            return;
        }
        others.sort_unstable();
        let (term, commit) = (self.term(), self.committed());
        others.into_iter().for_each(|peer| self.send(peer, Body::Sleep { term, commit }, effects));
        self.reads.forget_rounds();
        self.fall_asleep(Asleep { missing });
    }

    /// The leader sleeps, and this peer may.
    pub fn told_to_sleep(&mut self, from: PeerId, term: u64, commit: u64, liveness: &Liveness) {
        let vouched = self.node_of(from).is_some_and(|node| liveness.is_there(node));
        let agrees = from == self.leader() && term == self.term() && commit == self.committed();
        if self.config.sleep_after.is_some() && vouched && agrees && !self.is_leader() && self.is_at_rest() {
            self.fall_asleep(Asleep::default());
        }
    }

    fn fall_asleep(&mut self, asleep: Asleep) {
        self.asleep = Some(asleep);
        self.log.shed();
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
