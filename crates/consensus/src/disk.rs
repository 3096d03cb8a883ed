//! A disk that does not return, and a disk without room, as the group bears them.
//!
//! *Stalled.* A leader sends entries before its own disk has them, so with a disk that stands still it goes on leading: the
//! others acknowledge, and nothing is ever applied or answered here. So a persist that is out for longer than
//! [`crate::HostConfig::disk_stall`] makes a leader hand over to the follower that is furthest. If nobody has taken over
//! after an election timeout, it steps down all the same. Until the disk is back this peer neither asks for votes nor
//! takes leadership from another. The age is counted from turn to turn, with the turn's own time.
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

impl Group {
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
