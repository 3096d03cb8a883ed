//! What this host's clients wait for: commands and membership changes between the asking and the commit.
//!
//! A proposal *waits* until a leader is known, is then *in flight* under the term of that leader, and ends when an
//! entry that holds it is committed. A leader appends only what was sent to it in its own term, and terms never
//! fall along the log. So when an entry of a later term is committed first, what is in flight under an earlier
//! term can no longer be: it goes back to waiting and is sent again, without the client noticing. What is still
//! not committed at its deadline is refused; only what was in flight has an unknown outcome.
//!
//! The state machine answers what is committed as it applies it, and that may have to wait: until the disk holds what it rests on, or
//! until another group is as far. A snapshot that is put in place meanwhile has it in it, so that it is never applied: it is refused
//! then, its outcome unknown.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use base::Time;
use bytes::Bytes;

use crate::api::Refusal;
use crate::membership::MembershipChange;
use crate::totals::Totals;

#[derive(Clone, Debug)]
pub(crate) enum What {
    Command(Bytes),
    Change(MembershipChange),
}

#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub seq: u64,
    pub what: What,
    pub deadline: Time,
}

pub(crate) struct Proposals {
    waiting: VecDeque<Proposal>,
    in_flight: BTreeMap<u64, (u64, Proposal)>,
    /// Committed, and not applied yet: the entry's index, and what was in it.
    committed: VecDeque<(u64, u64)>,
    /// The state machine has entries up to here, and will come to them if no snapshot does.
    handed_out: u64,
    bytes: usize,
    totals: Arc<Totals>,
    /// No open deadline is earlier than this.
    earliest: Option<Time>,
    /// Nothing is in flight under a term before this one.
    term: u64,
}

impl Proposals {
    pub fn new(totals: Arc<Totals>) -> Proposals {
        Proposals {
            waiting: VecDeque::new(),
            in_flight: BTreeMap::new(),
            committed: VecDeque::new(),
            handed_out: 0,
            bytes: 0,
            totals,
            earliest: None,
            term: 0,
        }
    }

    /// Proposals open in this group.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub fn push(&mut self, proposal: Proposal) {
        self.bytes += proposal.bytes();
        self.totals.proposed((0, 0), (1, proposal.bytes()));
        self.earliest = Some(self.earliest.map_or(proposal.deadline, |time| time.min(proposal.deadline)));
        self.waiting.push_back(proposal);
    }

    pub fn take_waiting(&mut self) -> VecDeque<Proposal> {
        std::mem::take(&mut self.waiting)
    }

    /// Gives back what could not be sent, ahead of what came since.
    pub fn put_back(&mut self, mut proposals: VecDeque<Proposal>) {
        proposals.append(&mut self.waiting);
        self.waiting = proposals;
    }

    /// `term` is the peer's, and so none before that of an entry which it has seen committed.
    pub fn sent(&mut self, term: u64, proposal: Proposal) {
        assert!(term >= self.term, "terms do not fall");
        self.in_flight.insert(proposal.seq, (term, proposal));
    }

    /// The entry at `index`, with this one, is committed. Until it is [applied](Proposals::applied) it may be lost sight of.
    pub fn committed(&mut self, index: u64, seq: u64) {
        if let Some((_, proposal)) = self.in_flight.remove(&seq) {
            self.ended(1, proposal.bytes());
            self.committed.push_back((index, seq));
        }
    }

    /// Entries up to `last` go to the state machine.
    pub fn handed_out(&mut self, last: u64) {
        self.handed_out = last;
    }

    /// The state machine has answered what is in entries up to `last`.
    pub fn applied(&mut self, last: u64) {
        while self.committed.front().is_some_and(|(index, _)| *index <= last) {
            self.committed.pop_front();
        }
    }

    /// An entry of `term` is committed: what is in flight under an earlier term never will be.
    pub fn lost_before(&mut self, term: u64) {
        if term <= self.term {
            return;
        }
        self.term = term;
        let lost: Vec<u64> = self.in_flight.iter().filter(|(_, (sent, _))| *sent < term).map(|(seq, _)| *seq).collect();
        let lost = lost.iter().filter_map(|seq| self.in_flight.remove(seq)).map(|(_, proposal)| proposal);
        let lost = lost.collect();
        self.put_back(lost);
    }

    /// The leader of `term` said that it did not take these. What may be tried again goes back to waiting; the rest is
    /// returned, ended. A refusal that comes late says nothing about what was sent again in a later term.
    pub fn refused(&mut self, term: u64, seqs: &[u64], why: Refusal) -> Vec<u64> {
        let mut again = VecDeque::new();
        let mut ended = Vec::new();
        for seq in seqs {
            if self.in_flight.get(seq).is_none_or(|(sent, _)| *sent != term) {
                continue;
            }
            let Some((_, proposal)) = self.in_flight.remove(seq) else { continue };
            if why == Refusal::NoLeader {
                again.push_back(proposal);
            } else {
                self.ended(1, proposal.bytes());
                ended.push(*seq);
            }
        }
        self.put_back(again);
        ended
    }

    /// A snapshot has taken the place of entries that were never seen, or never applied: what is in flight may be among them. Ends
    /// it, its outcome unknown.
    pub fn lose_sight(&mut self) -> Vec<u64> {
        let in_flight = std::mem::take(&mut self.in_flight);
        self.ended(in_flight.len(), in_flight.values().map(|(_, proposal)| proposal.bytes()).sum());
        let committed = std::mem::take(&mut self.committed).into_iter().map(|(_, seq)| seq);
        committed.chain(in_flight.into_keys()).collect()
    }

    /// Ends everything but what the state machine has, which answers it: (never sent, outcome unknown).
    pub fn drain(&mut self) -> (Vec<u64>, Vec<u64>) {
        self.ended(self.len(), self.bytes);
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|proposal| proposal.seq);
        let unknown = std::mem::take(&mut self.in_flight).into_keys();
        let committed = std::mem::take(&mut self.committed).into_iter();
        let committed = committed.filter(|(index, _)| *index > self.handed_out).map(|(_, seq)| seq);
        (waiting.collect(), committed.chain(unknown).collect())
    }

    /// Ends what is past its deadline: (never sent, outcome unknown).
    pub fn expire(&mut self, now: Time) -> (Vec<u64>, Vec<u64>) {
        if self.earliest.is_none_or(|earliest| now < earliest) {
            return (Vec::new(), Vec::new());
        }
        let mut bytes = 0;
        let mut never_sent = Vec::new();
        self.waiting.retain(|proposal| {
            let keep = now < proposal.deadline;
            if !keep {
                bytes += proposal.bytes();
                never_sent.push(proposal.seq);
            }
            keep
        });
        let mut unknown = Vec::new();
        self.in_flight.retain(|seq, (_, proposal)| {
            let keep = now < proposal.deadline;
            if !keep {
                bytes += proposal.bytes();
                unknown.push(*seq);
            }
            keep
        });
        self.ended(never_sent.len() + unknown.len(), bytes);
        let open = self.waiting.iter().chain(self.in_flight.values().map(|(_, proposal)| proposal));
        self.earliest = open.map(|proposal| proposal.deadline).min();
        (never_sent, unknown)
    }
}

impl Proposals {
    fn ended(&mut self, count: usize, bytes: usize) {
        self.bytes -= bytes;
        self.totals.proposed((count, bytes), (0, 0));
    }
}

impl Drop for Proposals {
    fn drop(&mut self) {
        self.totals.proposed((self.len(), self.bytes), (0, 0));
    }
}

impl Proposal {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Command(command) => command.len() + 64,
            What::Change(_) => 256,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed_up_to_3_of_4() -> Proposals {
        let mut proposals = Proposals::new(Arc::default());
        for seq in 1..=4 {
            let what = What::Command(Bytes::from_static(b"put"));
            proposals.push(Proposal { seq, what, deadline: Time::from_millis(10) });
        }
        proposals.take_waiting().into_iter().for_each(|proposal| proposals.sent(1, proposal));
        (1..=3).for_each(|seq| proposals.committed(10 + seq, seq));
        proposals.handed_out(12);
        proposals.applied(11);
        proposals
    }

    /// The disk stood still, or another group is behind: a snapshot comes that has in it what was to be applied.
    #[test]
    fn what_is_committed_is_open_until_it_is_applied() {
        let mut proposals = committed_up_to_3_of_4();
        assert_eq!(proposals.lose_sight(), [2, 3, 4], "the first was answered");
        assert_eq!((proposals.lose_sight(), proposals.drain()), (vec![], (vec![], vec![])), "once");
    }

    #[test]
    fn what_the_state_machine_has_it_answers_though_the_group_is_closed() {
        assert_eq!(committed_up_to_3_of_4().drain(), (vec![], vec![3, 4]));
    }
}
