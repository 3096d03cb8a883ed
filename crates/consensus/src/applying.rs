//! When what is committed goes to the state machine.
//!
//! At once, on a leader, and wherever somebody waits for it: a client whose command it is, a reader, another group, a change of
//! members. With [`crate::HostConfig::lazy_commits`] what came by the way, with further entries, waits for the next tick, or until
//! there is much of it. Where a node has many groups, most of what it applies is of groups that it follows, a few entries at a
//! time, and each time costs as much as several entries do; all that came since the last tick costs it once.
//!
//! ```text
//!  committed on a follower   ▂ ▂▂ ▂   ▂ ▂   ▂▂         handed out in order, a tick later at most
//!  handed out               │      ▆│      ▅│    ▃     before a snapshot is put in place or the leader is another one
//! ```

use crate::api::Output;
use crate::group::Group;
use crate::ready::Effects;

/// So many entries wait at most.
const WAITING_MAX: u64 = 256;

/// Committed entries that are not handed out yet.
#[derive(Default)]
pub(crate) struct Waiting {
    /// The first and the last.
    range: Option<(u64, u64)>,
    /// A reader waits until this is applied.
    read: u64,
    /// The leader has said it at a tick of its own, when nothing more was under way: there is nothing to wait for.
    pub told: bool,
}

impl Group {
    /// These are committed, in order. `awaited`: somebody here waits for one of them.
    pub fn hand_out(&mut self, first: u64, last: u64, awaited: bool, effects: &mut Effects) {
        let from = self.waiting.range.take().map_or(first, |(from, before)| {
            assert_eq!(before + 1, first, "entries are handed out in order");
            from
        });
        self.waiting.range = Some((from, last));
        let waits = self.config.lazy_commits && !self.is_leader() && !awaited && first > self.waiting.read;
        if !waits || last - from >= WAITING_MAX {
            self.hand_out_all(effects);
        }
    }

    pub fn hand_out_all(&mut self, effects: &mut Effects) {
        if let Some((first, last)) = self.waiting.range.take() {
            self.proposals.handed_out(last);
            effects.out.push(Output::Committed { group: self.id, first, last });
        }
    }

    /// A reader here, or another group, waits until this is applied.
    pub fn reads_at(&mut self, index: u64, effects: &mut Effects) {
        self.waiting.read = self.waiting.read.max(index);
        self.hand_out_all(effects);
    }
}
