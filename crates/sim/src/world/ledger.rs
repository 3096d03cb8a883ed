//! What must hold at every moment, whoever leads and whatever fails. Nodes report here what they do; the first
//! contradiction ends the run.
//!
//! | checked | when |
//! |---|---|
//! | one leader per term | a host names a leader |
//! | equal entry per index | an applier reads an entry |
//! | equal rolling hash per index | an applier has applied up to it, unless it was made to go astray |
//! | who went astray, and nobody else, is quarantined, and then says nothing | a host says so, and whenever it speaks |
//! | a command is in the log once | an applier reads an entry |
//! | what was refused is not applied, what was answered is not answered again | an outcome comes |
//! | committed means on a quorum's disks | an index is committed that never was before |
//! | quorums of successive memberships meet | a membership is committed |
//! | two leaders never may both serve reads | a host has published its lease |
//! | nobody goes back | a state machine has moved |
//!
//! Linearizability, watches and convergence are checked at the end ([`super::settle`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::{GroupId, NodeId, PeerId};
use consensus::{Entry, Mark, Membership, Payload};

use crate::physics::shadow::Shadow;

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In the world's time, nanoseconds.
    pub time: u64,
    pub why: String,
}

#[derive(Default)]
pub struct Ledger {
    pub failure: Option<Failure>,
    now: u64,
    leaders: BTreeMap<(GroupId, u64), PeerId>,
    hashes: HashMap<(GroupId, u64), (u64, PeerId)>,
    entries: HashMap<(GroupId, u64), (u64, u64)>,
    /// (group, origin, seq) → the index it was committed at.
    commands: HashMap<(GroupId, PeerId, u64), u64>,
    /// Not done, and never to be: what clients were told.
    refused: BTreeSet<u64>,
    /// Highest index known to be committed.
    committed: BTreeMap<GroupId, u64>,
    memberships: BTreeMap<GroupId, BTreeMap<u64, Membership>>,
    /// By node: until when, in the world's time, it may serve reads.
    leases: BTreeMap<(GroupId, usize), u64>,
    /// Replicas that were made to do something else than the others, and whose state shows it.
    pub astray: BTreeSet<(GroupId, PeerId)>,
    /// Groups in which anybody ever did.
    pub strayed: BTreeSet<GroupId>,
    hashes_astray: HashMap<(GroupId, u64), (u64, PeerId)>,
    /// Those of them that their hosts have quarantined.
    pub quarantined: BTreeSet<(GroupId, PeerId)>,
    /// By peer, the log it had synced; kept for peers whose log was lost, which had it when it counted.
    pub disks: BTreeMap<(GroupId, PeerId), Shadow>,
}

impl Ledger {
    pub fn at(&mut self, now: u64) {
        self.now = now;
    }

    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(Failure { time: self.now, why: why() });
        }
    }

    /// A group begins, with what its founders agreed on as its first entry.
    pub fn founded(&mut self, group: GroupId, index: u64, membership: Membership) {
        self.committed.insert(group, index);
        self.membership(group, index, membership);
    }

    pub fn leader(&mut self, group: GroupId, term: u64, leader: PeerId) {
        let first = *self.leaders.entry((group, term)).or_insert(leader);
        if first != leader {
            self.fail(|| format!("two leaders in term {term} of group {group}: {first} and {leader}"));
        }
    }

    /// An applier of `peer` has read an entry from its log.
    pub fn entry(&mut self, group: GroupId, peer: PeerId, entry: &Entry) {
        let content = match &entry.payload {
            Payload::Nothing => 0,
            Payload::Commands(commands) => base::hash::roll(1, commands.data()),
            Payload::Membership { membership, .. } => base::hash::roll(2, membership),
        };
        let fingerprint = (entry.term, content);
        match self.entries.get(&(group, entry.index)) {
            Some(known) if *known != fingerprint => {
                let index = entry.index;
                self.fail(|| format!("peer {peer} has another entry {index} of group {group} than others"));
            }
            Some(_) => return,
            None => {
                self.entries.insert((group, entry.index), fingerprint);
            }
        }
        if let Payload::Commands(commands) = &entry.payload {
            for seq in commands.seqs() {
                let before = self.commands.insert((group, commands.origin, seq), entry.index);
                if let Some(before) = before.filter(|before| *before != entry.index) {
                    let index = entry.index;
                    self.fail(|| format!("command {seq:x} is in the log of group {group} twice: {before} and {index}"));
                }
            }
        }
    }

    /// The state machine of `peer` stands at `mark`.
    pub fn applied(&mut self, group: GroupId, peer: PeerId, mark: Mark) {
        if self.is_astray(group, peer) {
            // It may have come back: what it skipped was nothing, or it was lost in a crash, or a snapshot came.
            self.hashes_astray.insert((group, mark.index), (mark.hash, peer));
            if self.hashes.get(&(group, mark.index)).is_some_and(|(hash, _)| *hash == mark.hash) {
                self.astray.remove(&(group, peer));
            }
            return;
        }
        if let Some((hash, peer)) = self.hashes_astray.get(&(group, mark.index))
            && *hash == mark.hash
        {
            self.astray.remove(&(group, *peer));
        }
        let (hash, first) = *self.hashes.entry((group, mark.index)).or_insert((mark.hash, peer));
        if hash != mark.hash {
            let index = mark.index;
            self.fail(|| format!("peers {first} and {peer} differ after entry {index} of group {group}"));
        }
    }

    /// A replica is made to go wrong from here on. What it came to before, it came to in another way.
    pub fn goes_astray(&mut self, group: GroupId, peer: PeerId) {
        self.hashes_astray.retain(|(of, _), (_, known)| (*of, *known) != (group, peer));
        self.astray.insert((group, peer));
    }

    pub fn is_astray(&self, group: GroupId, peer: PeerId) -> bool {
        self.astray.contains(&(group, peer))
    }

    /// A host has quarantined its replica.
    pub fn quarantine(&mut self, group: GroupId, peer: PeerId) {
        if !self.is_astray(group, peer) {
            self.fail(|| format!("peer {peer} of group {group} is quarantined, and has done nothing wrong"));
        }
        self.quarantined.insert((group, peer));
    }

    /// A host lets something out that others may rely on.
    pub fn speaks(&mut self, group: GroupId, peer: PeerId, what: &str) {
        if self.quarantined.contains(&(group, peer)) {
            self.fail(|| format!("peer {peer} of group {group} is quarantined, and yet it {what}"));
        }
    }

    /// An incarnation is gone for good.
    pub fn gone(&mut self, group: GroupId, peer: PeerId) {
        self.astray.remove(&(group, peer));
    }

    /// Members that went astray and stand as if nothing were wrong.
    pub fn astray_members(&self) -> Vec<(GroupId, PeerId)> {
        let listed = |group: &GroupId, peer: &PeerId| {
            self.latest_membership(*group).is_some_and(|membership| membership.by_peer(*peer).is_some())
        };
        self.astray.iter().filter(|(group, peer)| listed(group, peer)).copied().collect()
    }

    /// A client was told that its command was not and will not be done.
    pub fn refused(&mut self, seq: u64) {
        self.refused.insert(seq);
    }

    pub fn outcome(&mut self, seq: u64) {
        if self.refused.contains(&seq) {
            self.fail(|| format!("command {seq:x} was refused, yet it was applied"));
        }
    }

    /// A host says that `index` is committed. `known` is the entry's term and the leader's membership, unless that just
    /// changed.
    pub fn committed(&mut self, group: GroupId, index: u64, known: Option<(u64, &Membership)>) {
        let highest = self.committed.entry(group).or_default();
        if index <= *highest {
            return;
        }
        *highest = index;
        let Some((term, membership)) = known else { return };
        for voters in [&membership.voters, &membership.voters_outgoing] {
            let holds = |peer: &&PeerId| self.disks.get(&(group, **peer)).is_some_and(|disk| disk.holds(index, term));
            let holding = voters.iter().filter(holds).count();
            if !voters.is_empty() && holding <= voters.len() / 2 {
                let of = voters.len();
                self.fail(|| format!("entry {index} of group {group} is committed, but on {holding} disks of {of}"));
                return;
            }
        }
    }

    /// The highest index that is known to be committed.
    pub fn committed_index(&self, group: GroupId) -> u64 {
        self.committed.get(&group).copied().unwrap_or_default()
    }

    pub fn membership(&mut self, group: GroupId, index: u64, membership: Membership) {
        let known = self.memberships.entry(group).or_default();
        match known.get(&index) {
            Some(first) if *first != membership => {
                let why = format!("two memberships at entry {index} of group {group}: {first:?}, {membership:?}");
                self.fail(|| why);
                return;
            }
            Some(_) => return,
            None => {
                known.insert(index, membership);
            }
        }
        let before = known.range(..index).next_back().map(|(_, before)| before);
        let after = known.range(index + 1..).next().map(|(_, after)| after);
        let this = &known[&index];
        let apart = before.is_some_and(|before| !quorums_meet(before, this))
            || after.is_some_and(|after| !quorums_meet(this, after));
        if apart {
            self.fail(|| format!("quorums before and after entry {index} of group {group} need not meet"));
        }
    }

    /// The latest membership that is known to be committed.
    pub fn latest_membership(&self, group: GroupId) -> Option<&Membership> {
        self.memberships.get(&group)?.last_key_value().map(|(_, membership)| membership)
    }

    /// Whether the node is in the latest of them.
    pub fn is_member(&self, group: GroupId, node: NodeId) -> bool {
        self.latest_membership(group).is_some_and(|membership| membership.members.contains_key(&node))
    }

    /// Whether the peer was in any membership that was ever committed.
    pub fn ever_member(&self, group: GroupId, peer: PeerId) -> bool {
        let known = self.memberships.get(&group);
        known.is_some_and(|known| known.values().any(|membership| membership.by_peer(peer).is_some()))
    }

    /// Terms in which somebody led, in all groups.
    pub fn elections(&self) -> u64 {
        self.leaders.len() as u64
    }

    /// The highest term that has had a leader.
    pub fn latest_term(&self, group: GroupId) -> u64 {
        self.leaders.range((group, 0)..=(group, u64::MAX)).next_back().map_or(0, |((_, term), _)| *term)
    }

    /// A node may serve reads of the group until `until`.
    pub fn lease(&mut self, group: GroupId, at: usize, until: u64) {
        if until <= self.now {
            self.leases.remove(&(group, at));
            return;
        }
        self.leases.insert((group, at), until);
        let now = self.now;
        let other = self.leases.iter().find(|((of, node), until)| *of == group && *node != at && **until > now);
        if let Some(((_, other), _)) = other {
            let other = *other;
            self.fail(|| format!("nodes {} and {} both hold a lease of group {group}", at + 1, other + 1));
        }
    }

    /// A node is down: its workers serve nothing.
    pub fn down(&mut self, at: usize) {
        self.leases.retain(|(_, node), _| *node != at);
    }
}

/// Whether any quorum under `before` shares a member with any quorum under `after`.
fn quorums_meet(before: &Membership, after: &Membership) -> bool {
    let meets = |a: &[PeerId], b: &[PeerId]| {
        let common = a.iter().filter(|peer| b.contains(peer)).count();
        let quorum = |voters: &[PeerId]| voters.len() / 2 + 1;
        // The two smallest quorums with as few common members as possible.
        let outside_b = a.len() - common;
        let outside_a = b.len() - common;
        let needs = |quorum: usize, outside: usize| quorum.saturating_sub(outside);
        needs(quorum(a), outside_b) + needs(quorum(b), outside_a) > common
    };
    // A joint quorum holds a quorum of each half, so it is enough that one pair of halves must meet.
    let halves = |membership: &Membership| {
        let mut halves = vec![membership.voters.clone()];
        if membership.is_joint() {
            halves.push(membership.voters_outgoing.clone());
        }
        halves
    };
    halves(before).iter().any(|a| halves(after).iter().any(|b| meets(a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(voters: &[u64], outgoing: &[u64]) -> Membership {
        let peers = |raw: &[u64]| raw.iter().copied().map(PeerId).collect();
        Membership { voters: peers(voters), voters_outgoing: peers(outgoing), ..Membership::default() }
    }

    #[test]
    fn quorums_that_need_not_meet_are_found() {
        let three = voters(&[1, 2, 3], &[]);
        assert!(quorums_meet(&three, &three));
        assert!(quorums_meet(&three, &voters(&[1, 2, 3, 4], &[])));
        assert!(quorums_meet(&three, &voters(&[1, 2], &[])));
        assert!(!quorums_meet(&three, &voters(&[1, 2, 4], &[])));
        assert!(!quorums_meet(&three, &voters(&[1, 2, 3, 4, 5], &[])));
        assert!(quorums_meet(&three, &voters(&[1, 2, 4], &[1, 2, 3])));
        assert!(quorums_meet(&voters(&[1, 2, 4], &[1, 2, 3]), &voters(&[1, 2, 4], &[])));
        assert!(!quorums_meet(&voters(&[1], &[]), &voters(&[2], &[])));
    }
}
