//! How followers learn what is committed.
//!
//! The raft crate would tell all of them at once, with an append that carries nothing and that each answers: as many messages
//! again as the entries took. Here the next append carries it, and heartbeats do; where none is under way it is told by a
//! message that needs no answer:
//!
//! * at once, where followers serve reads and watches;
//! * with [`crate::HostConfig::lazy_commits`] at the next tick, but at once to whoever waits for it: its client's command, or the
//!   index of a read.
//!
//! A message that is lost is made good by the next heartbeat.

use base::PeerId;
use raft::ProgressState;
use raft::eraftpb::{self, MessageType};

use crate::group::Group;
use crate::ready::Effects;
use crate::wire::Body;

/// On a leader, of each follower that was told something.
#[derive(Default)]
pub(crate) struct Commits {
    followers: Vec<Follower>,
    /// A tick has come.
    pub due: bool,
}

struct Follower {
    peer: PeerId,
    /// What is committed, as far as it was told.
    told: u64,
    /// It waits for this.
    wanted: u64,
}

impl Commits {
    pub fn reset(&mut self) {
        self.followers = Vec::new();
    }

    /// What a message of the raft crate says by the way.
    pub fn sent(&mut self, message: &eraftpb::Message) {
        let told = match message.get_msg_type() {
            MessageType::MsgAppend => message.commit.min(message.index + message.entries.len() as u64),
            MessageType::MsgHeartbeat => message.commit,
            _ => return,
        };
        let follower = self.follower(PeerId(message.to));
        follower.told = follower.told.max(told);
    }

    fn is_waited_for(&self) -> bool {
        self.followers.iter().any(|follower| follower.wanted > follower.told)
    }

    fn follower(&mut self, peer: PeerId) -> &mut Follower {
        let at = self.followers.iter().position(|follower| follower.peer == peer).unwrap_or_else(|| {
            self.followers.push(Follower { peer, told: 0, wanted: 0 });
            self.followers.len() - 1
        });
        &mut self.followers[at]
    }
}

impl Group {
    /// On a leader: somebody waits for this entry at a peer. One that is no member is told nothing, nor remembered.
    pub fn want_commit(&mut self, peer: PeerId, index: u64) {
        if self.raw.raft.prs().get(peer.0).is_some() {
            let follower = self.commits.follower(peer);
            follower.wanted = follower.wanted.max(index);
        }
    }

    /// At the end of a turn: on a leader, tells followers what they do not know.
    pub fn tell_commits(&mut self, effects: &mut Effects) {
        let due = std::mem::take(&mut self.commits.due) || !self.config.lazy_commits;
        if !self.is_leader() || self.is_asleep() || !(due || self.commits.is_waited_for()) {
            return;
        }
        let (term, committed) = (self.term(), self.committed());
        let mut telling = Vec::new();
        for (id, progress) in self.raw.raft.prs().iter() {
            // Never more than it has acknowledged: up to there its log is this one.
            let commit = progress.matched.min(committed);
            if *id == self.peer.0 || progress.state != ProgressState::Replicate {
                continue;
            }
            let follower = self.commits.follower(PeerId(*id));
            if commit > follower.told && (due || follower.wanted > follower.told) {
                follower.told = commit;
                telling.push((follower.peer, commit));
            }
        }
        telling.sort_unstable();
        for (peer, commit) in telling {
            self.send(peer, Body::Committed { term, commit }, effects);
        }
    }

    /// The leader says what is committed of what this peer has acknowledged.
    pub fn told_commit(&mut self, from: PeerId, term: u64, commit: u64) {
        if from == self.leader() && term == self.term() && !self.is_leader() && self.installing.is_none() {
            let log = &mut self.raw.raft.raft_log;
            log.commit_to(commit.min(log.last_index()));
            self.waiting.told = true;
        }
    }
}
