//! A disk that does not return, one that is slower than the others', and one without room, as the group bears them.
//!
//! *Stalled.* A leader sends entries before its own disk has them, so with a disk that stands still it goes on leading: the
//! others acknowledge, and nothing is ever applied or answered here. So a persist that is out for longer than
//! [`crate::HostConfig::disk_stall`] makes a leader hand over to the follower that is furthest. If nobody has taken over
//! after an election timeout, it steps down all the same. Until the disk is back this peer neither asks for votes nor
//! takes leadership from another. The age is counted from turn to turn, with the turn's own time.
//!
//! *Slow.* What a leader's own disk does not have is not applied, even if a quorum has it. So a write of a leader that took
//! [`crate::HostConfig::disk_slow`] or longer, and was done when a quorum of others had done it already, counts as held up by
//! this disk alone; when more than a third of the time goes on that, by [`HELD_UP_MAX`] in all, the leader hands over. Where all
//! disks are slow the others are not ahead, and leadership stays.
//!
//! *Without room.* While a minority has no room, its members do as if new entries were lost on the way: they acknowledge
//! nothing and keep their place, elections and reads of the leader go on, and with room they are sent what they missed.
//! Who is a minority is decided on the floors above ([`crate::Input::Hold`]).

use std::time::Duration;

use base::{PeerId, Time};
use raft::eraftpb::{Message, MessageType};

use crate::api::Event;
use crate::group::Group;
use crate::ready::Effects;

/// What became of leadership since the disk stands still.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stall {
    since: Option<Time>,
}

impl Stall {
    pub fn is_on(self) -> bool {
        self.since.is_some()
    }
}

/// A leader whose disk alone has held its writes up for so long hands over.
const HELD_UP_MAX: Duration = Duration::from_secs(2);
/// One part in so many of the time that has passed is forgiven.
const BORNE: u32 = 3;

/// How much of a leader's time its own disk has cost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slowness {
    term: u64,
    held_up: Duration,
    counted: Time,
}

impl Slowness {
    /// A slow write in this term, which began at `since`, has come back; whether that was once too often. Writes that were under way
    /// at the same time count as one.
    fn add(&mut self, term: u64, since: Time, held_up: Duration, now: Time) -> bool {
        if self.term != term {
            *self = Slowness { term, held_up: Duration::ZERO, counted: since };
        }
        let passed = now.since(self.counted);
        self.counted = now;
        self.held_up = self.held_up.saturating_sub(passed / BORNE) + held_up.min(passed);
        let much = self.held_up >= HELD_UP_MAX;
        if much {
            self.held_up = Duration::ZERO;
        }
        much
    }
}

impl Group {
    /// A slow write of entries up to `last`, which began at `since`, has come back; to be told when all that has come from the
    /// others meanwhile is known.
    pub fn wrote_slowly(&mut self, last: u64, since: Time, effects: &mut Effects) {
        if !self.is_leader() || self.membership.voters.len() < 2 {
            return;
        }
        let progress = self.raw.raft.prs();
        let has = |peer: &&PeerId| **peer != self.peer && progress.get(peer.0).is_some_and(|of| of.matched >= last);
        let ahead = self.membership.voters.iter().filter(has).count() > self.membership.voters.len() / 2;
        let took = self.now.since(since);
        let held_up = if ahead { took } else { Duration::ZERO };
        let (term, now) = (self.term(), self.now);
        if self.slowness.add(term, since, held_up, now) && !self.transferring() && self.begin_transfer(None).is_ok() {
            let write_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            effects.event(Event::DiskSlow { group: self.id, write_ms });
        }
    }

    /// Told at every turn whether the disk stands still, and for how long it has.
    pub fn stall(&mut self, stalled: Option<Duration>, effects: &mut Effects) {
        let Some(age) = stalled else {
            self.stall = Stall::default();
            return;
        };
        let begins = !self.stall.is_on();
        let since = *self.stall.since.get_or_insert(self.now);
        if begins {
            let stalled_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            effects.event(Event::DiskStalled { group: self.id, stalled_ms });
        }
        // The only voter has nobody to hand over to.
        if !self.is_leader() || self.membership.voters.len() < 2 || self.installing.is_some() {
            return;
        }
        if begins {
            // If nobody can take over now, somebody may be elected in a moment.
            let _ = self.begin_transfer(None);
        } else if self.now.since(since) >= self.config.election_timeout() {
            let term = self.term();
            self.raw.raft.become_follower(term, PeerId::NONE.0);
            self.pin_election_timeout();
        }
    }

    /// Whether a message asks for what the disk cannot do.
    pub fn refuses_for_disk(&self, kind: MessageType, message: &Message) -> bool {
        let adds = match kind {
            MessageType::MsgAppend => !message.entries.is_empty(),
            MessageType::MsgSnapshot => true,
            _ => false,
        };
        (self.paused && adds) || (self.stall.is_on() && kind == MessageType::MsgTimeoutNow)
    }
}
