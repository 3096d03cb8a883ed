//! What every actor of the world shares, and what may happen in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base::{GroupId, Rng};
use bytes::Bytes;

use super::bug::Bug;
use super::ground::Heard;
use super::ledger::Ledger;
use super::plan::Plan;
use super::transfer::Transfer;
use crate::physics::net::Net;
use crate::physics::queue::{Queue, Who};
use crate::physics::trace::Trace;

/// Something that will happen.
#[derive(Debug)]
pub enum Happening {
    /// The host's thread wakes up.
    Turn(Who),
    /// The disk ends what it was writing.
    Synced(Who),
    /// The applier of a group takes its next step.
    Apply(Who, GroupId),
    /// The applier lets go of a group that was taken away.
    Drop(Who, GroupId),
    /// The flusher looks whether it is time.
    Flush(Who),
    /// A message's bytes arrive at a place.
    Arrive { at: usize, bytes: Bytes },
    /// A step of a snapshot under way.
    Transfer { number: u64 },
    /// A sleeper wakes.
    Wake { who: Who, number: u64 },
    /// A task of a node that was paused goes on.
    Resume { task: u64 },
    /// A question arrives.
    Asked { call: u64 },
    /// Its answer arrives.
    Heard { call: u64, heard: Heard },
    /// Nobody waits for it any longer.
    GiveUp { call: u64 },
    /// A client, having rested, does its next thing.
    Client { client: usize },
    /// An answer of the placement driver arrives once more.
    Again { at: usize, number: usize },
    /// The next fault.
    Fault,
    /// The next step that nobody planned.
    Odd,
    /// The placement driver is gone for long.
    Outage,
    /// A fault ends.
    End(Ending),
    /// A node comes up.
    Start { at: usize },
    /// The overseer looks at everything.
    Look,
    /// All faults end for good.
    Heal,
    /// After healing: has everything come to rest?
    Settle,
}

/// Which fault ends.
#[derive(Clone, Copy, Debug)]
pub enum Ending {
    Partition { number: u64 },
    SlowDisk { at: usize },
    Outage,
}

pub struct Stage {
    pub now: u64,
    pub clock: Arc<AtomicU64>,
    pub plan: Plan,
    pub queue: Queue<Happening>,
    pub net: Net,
    pub trace: Trace,
    pub ledger: Ledger,
    pub bug: Option<Bug>,
    pub rng: Rng,
    /// For identities. Never the same twice in a world.
    names: Rng,
    /// Faults are over for good.
    pub healed: bool,
    /// The placement driver is gone for long: whoever crashes stays away. So many calls were answered when that began.
    pub outage: Option<u64>,
    /// Snapshots that leave in this step, with their numbers.
    pub outgoing: Vec<(u64, Transfer)>,
    /// Processes that have ended in this step.
    pub fallen: Vec<Who>,
}

impl Stage {
    pub fn new(plan: Plan, bug: Option<Bug>, print: bool) -> Stage {
        let mut rng = Rng::new(plan.seed);
        Stage {
            now: 0,
            clock: Arc::default(),
            queue: Queue::default(),
            net: Net::new(rng.fork(1), plan.trip, plan.faults.fates),
            trace: Trace::new(print),
            ledger: Ledger::default(),
            bug,
            names: rng.fork(2),
            rng: rng.fork(3),
            plan,
            healed: false,
            outage: None,
            outgoing: Vec::new(),
            fallen: Vec::new(),
        }
    }

    pub fn advance(&mut self, time: u64) {
        self.now = time;
        self.clock.store(time, Ordering::Relaxed);
        self.ledger.at(time);
    }

    /// A number that was never drawn before.
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

    pub fn note(&mut self, who: u64, word: &'static str, numbers: &[(&'static str, u64)]) {
        self.trace.note(self.now, who, word, numbers);
    }

    pub fn say(&self, who: u64, text: impl FnOnce() -> String) {
        self.trace.say(self.now, who, text);
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }
}
