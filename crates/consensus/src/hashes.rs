//! Whether the replicas' states are the same, and what becomes of one that is not.
//!
//! Every state machine hashes what it writes, entry by entry, and reports the hash at each multiple of
//! [`crate::machine::HASH_EVERY`] to the leader. The leader compares: whoever reports something else than what a majority of
//! the voters has come to is told so (a *verdict*: index and hash), looks at what it had itself, and is
//! *quarantined* if that differs. From then on it says nothing: no vote, no acknowledgement, no answer. Its log is in order,
//! but what it would build on it is not; the shell gives its data up and has it rebuilt ([`Event::Diverged`]).
//!
//! A leader that finds itself in the minority hands over first, to one that agrees with the majority, and goes on
//! replicating until it has, or for an election timeout at most; but it serves no read and takes no proposal.
//!
//! Where no value has a majority nobody is judged. If that stays so when all voters have reported, or for
//! [`UNCLEAR_ELECTIONS`] election timeouts, it is told once ([`Event::HashesUnclear`]); and until it is told the leader
//! sends its state to nobody, lest it become the majority that way. From then on it is for people to decide, and whom
//! they empty is filled by the leader.
//!
//! Bounds: [`OWN_MAX`] hashes of this replica, [`OTHERS_MAX`] reports of all others. A report or a verdict that is lost is
//! made good by the next: a hash that differs goes on differing.

use std::collections::BTreeMap;

use base::{PeerId, Time};

use crate::api::{Event, Refusal};
use crate::group::Group;
use crate::machine::HASH_VERSION;
use crate::membership::Membership;
use crate::ready::Effects;
use crate::wire::Body;

/// Hashes of this replica that are remembered for comparison.
const OWN_MAX: usize = 64;
const OTHERS_MAX: usize = OWN_MAX * 8;
/// Election timeouts for which a comparison may stay open before that is told.
const UNCLEAR_ELECTIONS: u32 = 10;

#[derive(Default)]
pub(crate) struct Hashes {
    own: BTreeMap<u64, u64>,
    others: BTreeMap<(u64, PeerId), u64>,
    /// On a leader: since when there are differences without a majority, and whether that was told.
    unclear: Option<(Time, bool)>,
    /// The leader is another one, or the members are: to be compared anew.
    pub again: bool,
    /// This replica's state is wrong, since then.
    quarantined: Option<Time>,
}

impl Hashes {
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.is_some()
    }

    /// Whether a comparison has still to come to an end.
    pub fn are_open(&self) -> bool {
        self.quarantined.is_some() || self.unclear.is_some()
    }

    /// Hashes of this replica that others report otherwise.
    fn disputed(&self) -> Vec<(u64, u64)> {
        let mut disputed: Vec<(u64, u64)> = Vec::new();
        for ((index, _), theirs) in &self.others {
            let ours = self.own.get(index).filter(|ours| *ours != theirs);
            if let Some(ours) = ours.filter(|_| disputed.last().is_none_or(|(last, _)| last != index)) {
                disputed.push((*index, *ours));
            }
        }
        disputed
    }

    /// Whether this replica's state may become another's.
    pub fn may_spread(&self) -> bool {
        self.quarantined.is_none() && self.unclear.is_none_or(|(_, told)| told)
    }
}

impl Group {
    /// Whether this peer says nothing any more: it is quarantined and does not lead (any more).
    pub fn is_silent(&self) -> bool {
        self.hashes.is_quarantined() && !self.is_leader()
    }

    /// The state machine has passed these indexes. Most of what is applied passes none, and leaves nothing to compare.
    pub fn hashed(&mut self, hashes: Vec<(u64, u64)>, effects: &mut Effects) {
        if hashes.is_empty() {
            return;
        }
        let leader = self.leader();
        for (index, hash) in hashes {
            if !leader.is_none() && leader != self.peer {
                self.send(leader, Body::HashReport { index, hash, version: HASH_VERSION }, effects);
            }
            self.hashes.own.insert(index, hash);
            while self.hashes.own.len() > OWN_MAX {
                self.hashes.own.pop_first();
            }
        }
        self.compare_hashes(effects);
    }

    pub fn hash_reported(&mut self, from: PeerId, index: u64, hash: u64, version: u8, effects: &mut Effects) {
        // Another version of the program may hash otherwise.
        if version == HASH_VERSION {
            self.hashes.others.insert((index, from), hash);
            while self.hashes.others.len() > OTHERS_MAX {
                self.hashes.others.pop_first();
            }
            self.compare_hashes(effects);
        }
    }

    /// The leader says what most have come to.
    pub fn hash_judged(&mut self, from: PeerId, index: u64, right: u64, version: u8, effects: &mut Effects) {
        if from != self.leader() || version != HASH_VERSION {
            return;
        }
        if let Some(&ours) = self.hashes.own.get(&index).filter(|ours| **ours != right) {
            self.quarantine(index, ours, right, None, effects);
        }
    }

    /// At every tick.
    pub fn tend_hashes(&mut self, effects: &mut Effects) {
        if !self.is_leader() {
            self.hashes.unclear = None;
            return;
        }
        if std::mem::take(&mut self.hashes.again) {
            self.compare_hashes(effects);
        }
        let patience = self.config.election_timeout();
        if self.hashes.quarantined.is_some_and(|since| self.now.since(since) >= patience) {
            // Nobody took over; the others elect one when they hear nothing more.
            let term = self.term();
            self.raw.raft.become_follower(term, PeerId::NONE.0);
        }
        if let Some((since, false)) = self.hashes.unclear
            && self.now.since(since) >= patience * UNCLEAR_ELECTIONS
            && let Some(index) = self.compare_hashes(effects)
        {
            self.tell_unclear(index, effects);
        }
    }

    /// On the leader, when there is a new hash or report, or those who count are others: compares what is there, and says at which
    /// index that came to nothing, if at one.
    fn compare_hashes(&mut self, effects: &mut Effects) -> Option<u64> {
        let (&oldest, _) = self.hashes.own.first_key_value()?;
        self.hashes.others = self.hashes.others.split_off(&(oldest, PeerId(0)));
        if !self.is_leader() || self.hashes.is_quarantined() {
            return None;
        }
        let mut unclear = None;
        let mut complete = false;
        for (index, ours) in self.hashes.disputed() {
            let reports = self.hashes.others.range((index, PeerId(0))..=(index, PeerId(u64::MAX)));
            let mut reports: BTreeMap<PeerId, u64> = reports.map(|((_, peer), hash)| (*peer, *hash)).collect();
            // Who is a member no longer has been replaced.
            reports.retain(|peer, _| self.membership.by_peer(*peer).is_some());
            if reports.values().all(|hash| *hash == ours) {
                continue;
            }
            reports.insert(self.peer, ours);
            let Some(right) = majority(&self.membership, &reports) else {
                unclear = Some(index);
                complete |= voters(&self.membership).all(|voter| reports.contains_key(voter));
                continue;
            };
            for (&peer, &theirs) in reports.iter().filter(|(peer, hash)| **hash != right && **peer != self.peer) {
                // Judged once; what it reports next is another matter.
                self.hashes.others.remove(&(index, peer));
                effects.event(Event::HashMismatch { group: self.id, peer, index, ours: right, theirs });
                self.send(peer, Body::HashVerdict { index, hash: right, version: HASH_VERSION }, effects);
            }
            if ours != right {
                let heir = reports.iter().find(|(peer, hash)| **hash == right && self.membership.voters.contains(peer));
                self.quarantine(index, ours, right, heir.map(|(peer, _)| *peer), effects);
                return None;
            }
        }
        self.hashes.unclear = unclear.map(|_| self.hashes.unclear.unwrap_or((self.now, false)));
        if let Some(index) = unclear.filter(|_| complete) {
            self.tell_unclear(index, effects);
        }
        unclear
    }

    fn tell_unclear(&mut self, index: u64, effects: &mut Effects) {
        if let Some((_, told @ false)) = &mut self.hashes.unclear {
            *told = true;
            let reports = self.hashes.others.range((index, PeerId(0))..=(index, PeerId(u64::MAX)));
            let mut hashes: Vec<(PeerId, u64)> = reports.map(|((_, peer), hash)| (*peer, *hash)).collect();
            hashes.extend(self.hashes.own.get(&index).map(|own| (self.peer, *own)));
            effects.event(Event::HashesUnclear { group: self.id, index, hashes });
        }
    }

    /// What this replica holds is wrong.
    fn quarantine(&mut self, index: u64, ours: u64, right: u64, heir: Option<PeerId>, effects: &mut Effects) {
        if self.hashes.is_quarantined() {
            return;
        }
        self.hashes.quarantined = Some(self.now);
        effects.event(Event::Diverged { group: self.id, index, ours, theirs: right });
        for (peer, context) in self.reads.reset() {
            self.send_always(peer, Body::ReadAnswer { context, index: None }, effects);
        }
        let reads = self.reads.drain();
        if !reads.is_empty() {
            effects.refuse(self.id, reads, Refusal::NoLeader);
        }
        if self.is_leader() {
            let heir = heir.and_then(|peer| self.membership.node_of(peer));
            // Without an heir it steps down after an election timeout.
            let _ = self.begin_transfer(heir).or_else(|_| self.begin_transfer(None));
            self.reads.lease_void = true;
        }
    }
}

fn voters(membership: &Membership) -> impl Iterator<Item = &PeerId> {
    membership.voters.iter().chain(&membership.voters_outgoing)
}

/// The hash that more than half of the voters report, of both halves while there are two.
fn majority(membership: &Membership, reports: &BTreeMap<PeerId, u64>) -> Option<u64> {
    let of = |voters: &[PeerId]| {
        let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
        for hash in voters.iter().filter_map(|voter| reports.get(voter)) {
            *counts.entry(*hash).or_default() += 1;
        }
        counts.into_iter().find(|(_, count)| *count > voters.len() / 2).map(|(hash, _)| hash)
    };
    let right = of(&membership.voters)?;
    let agreed = membership.voters_outgoing.is_empty() || of(&membership.voters_outgoing) == Some(right);
    agreed.then_some(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(voters: &[u64], outgoing: &[u64]) -> Membership {
        let peers = |raw: &[u64]| raw.iter().copied().map(PeerId).collect();
        Membership { voters: peers(voters), voters_outgoing: peers(outgoing), ..Membership::default() }
    }

    fn reports(reports: &[(u64, u64)]) -> BTreeMap<PeerId, u64> {
        reports.iter().map(|(peer, hash)| (PeerId(*peer), *hash)).collect()
    }

    #[test]
    fn only_a_majority_of_voters_is_right() {
        let three = membership(&[1, 2, 3], &[]);
        assert_eq!(majority(&three, &reports(&[(1, 7), (2, 7), (3, 8)])), Some(7));
        assert_eq!(majority(&three, &reports(&[(1, 7), (2, 7)])), Some(7));
        assert_eq!(majority(&three, &reports(&[(1, 7), (2, 8)])), None, "one of two that are heard, of three");
        assert_eq!(majority(&three, &reports(&[(1, 7), (2, 8), (3, 9)])), None);
        assert_eq!(majority(&three, &reports(&[(1, 7), (4, 8), (5, 8), (6, 8)])), None, "learners do not count");
        assert_eq!(majority(&membership(&[1, 2], &[]), &reports(&[(1, 7), (2, 8)])), None);
        assert_eq!(majority(&membership(&[1], &[]), &reports(&[(1, 7), (2, 8)])), Some(7), "a learner may be wrong");
        let joint = membership(&[1, 2, 4], &[1, 2, 3]);
        assert_eq!(majority(&joint, &reports(&[(1, 7), (2, 7)])), Some(7));
        assert_eq!(majority(&joint, &reports(&[(1, 7), (4, 7), (2, 8), (3, 8)])), None, "halves that disagree");
    }
}
