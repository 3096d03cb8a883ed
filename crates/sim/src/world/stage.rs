//! What every actor of the world shares: the time, the plan of what will happen, the network, the trace, the ledger.

use base::{GroupId, Rng};

use crate::physics::net::{Fates, Net};
use crate::physics::trace::Trace;

use super::bug::Bug;
use super::fault::Moment;
use super::ledger::Ledger;
use super::plan::Plan;
use super::queue::{Happening, Queue};
use super::transfer::Transfer;
use super::work::Answer;

pub struct Stage {
    pub now: u64,
    pub plan: Plan,
    pub queue: Queue,
    pub net: Net,
    pub trace: Trace,
    pub ledger: Ledger,
    pub bug: Option<Bug>,
    /// For the paces of disks, appliers and workers.
    pub rng: Rng,
    /// For identities: peers, calls, snapshots. Never the same twice in a world.
    names: Rng,
    /// Faults are over for good.
    pub healed: bool,
    /// Tender moments that nodes went through in this step.
    pub moments: Vec<(usize, Moment)>,
    /// Groups whose state machines published something in this step, with their node.
    pub published: Vec<(usize, GroupId)>,
    /// Nodes that crashed in this step.
    pub fallen: Vec<usize>,
    /// Groups in which a leader has found differences that it cannot judge.
    pub unclear: Vec<GroupId>,
    /// Snapshots that leave in this step, with their numbers.
    pub outgoing: Vec<(u64, Transfer)>,
}

impl Stage {
    pub fn new(plan: Plan, bug: Option<Bug>, print: bool) -> Stage {
        let mut rng = Rng::new(plan.seed);
        let faults = &plan.faults;
        let fates = Fates {
            loss_permille: faults.loss_permille,
            repeat_permille: faults.repeat_permille,
            late_permille: faults.late_permille,
        };
        Stage {
            now: 0,
            queue: Queue::default(),
            net: Net::new(rng.fork(1), plan.trip, fates),
            trace: Trace::new(print),
            ledger: Ledger::default(),
            bug,
            names: rng.fork(2),
            rng: rng.fork(3),
            plan,
            healed: false,
            moments: Vec::new(),
            published: Vec::new(),
            fallen: Vec::new(),
            unclear: Vec::new(),
            outgoing: Vec::new(),
        }
    }

    /// A number that was never drawn before (SplitMix64 repeats none of its outputs).
    pub fn name(&mut self) -> u64 {
        loop {
            let name = self.names.next_u64() & (u64::MAX >> 1);
            if name > 1 << 40 {
                return name;
            }
        }
    }

    pub fn after(&mut self, delay: u64, what: Happening) {
        self.queue.push(self.now + delay, what);
    }

    /// An answer leaves for its client.
    pub fn answer(&mut self, seq: u64, answer: Answer) {
        let delay = self.net.client_trip();
        self.after(delay, Happening::Answer { seq, answer });
    }

    pub fn note(&mut self, who: u64, word: &'static str, numbers: &[(&'static str, u64)]) {
        self.trace.note(self.now, who, word, numbers);
    }

    pub fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (1..=self.plan.groups).map(GroupId)
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}
