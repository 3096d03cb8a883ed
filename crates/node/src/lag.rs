//! Followers that are behind, in the leader's log: when one begins to lag, from time to time while it does, and when it has
//! caught up. Who looks for replication lag in the log looks for these lines; the gauge beside them is
//! `chainfire_raft_follower_lag_entries`.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{NodeId, Time};
use consensus::{GroupStatus, Membership, Role};

/// One that is in touch lags when it misses so many entries; one that is not, when it misses any.
const LAG_ENTRIES: u64 = 1000;
const SAY_EVERY: Duration = Duration::from_secs(10);
/// A new leader has not heard of anybody yet, and a moment is no lag.
const FOR_AT_LEAST: Duration = Duration::from_secs(1);

/// The followers that are behind.
#[derive(Default)]
pub struct Lag(BTreeMap<NodeId, Behind>);

struct Behind {
    since: Time,
    said: Option<Time>,
}

/// A line worth saying.
#[derive(Debug, PartialEq, Eq)]
pub enum Say {
    Behind { node: NodeId, entries: u64, reached: bool },
    CaughtUp { node: NodeId },
}

impl Lag {
    /// Compares what the leader has with what its followers have. Says nothing on other nodes.
    pub fn look(&mut self, now: Time, status: &GroupStatus, membership: &Membership) -> Vec<Say> {
        if status.role != Role::Leader {
            self.0.clear();
            return Vec::new();
        }
        let mut say = Vec::new();
        self.0.retain(|node, _| membership.members.contains_key(node));
        for (peer, known, reached) in status.followers.iter().filter(|(peer, ..)| *peer != status.peer) {
            let Some(node) = membership.node_of(*peer) else { continue };
            let entries = status.last.saturating_sub(*known);
            let bound = if *reached { LAG_ENTRIES } else { 1 };
            if entries >= bound {
                let behind = self.0.entry(node).or_insert(Behind { since: now, said: None });
                let due = behind.said.is_none_or(|said| now.since(said) >= SAY_EVERY);
                if due && now.since(behind.since) >= FOR_AT_LEAST {
                    behind.said = Some(now);
                    say.push(Say::Behind { node, entries, reached: *reached });
                }
            } else if *reached && entries < LAG_ENTRIES / 10 {
                // As near as one that is in touch always is.
                if self.0.remove(&node).is_some_and(|behind| behind.said.is_some()) {
                    say.push(Say::CaughtUp { node });
                }
            }
        }
        say
    }
}

impl Say {
    pub fn aloud(&self) {
        match self {
            Say::Behind { node, entries, reached } => tracing::warn!(
                target: "chainfire_raft",
                "A follower is behind, node={node} lag={entries} reached={reached}"
            ),
            Say::CaughtUp { node } => {
                tracing::info!(target: "chainfire_raft", "A follower has caught up, node={node}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use base::PeerId;
    use consensus::Member;

    use super::*;

    fn leader(known: u64, reached: bool) -> GroupStatus {
        GroupStatus {
            role: Role::Leader,
            last: 5000,
            followers: vec![(PeerId(72), known, reached)],
            ..Default::default()
        }
    }

    #[test]
    fn it_is_said_when_it_begins_goes_on_and_ends() {
        let member = Member { node: NodeId(7), peer: PeerId(72), ..Default::default() };
        let membership = Membership { members: [(NodeId(7), member)].into(), ..Default::default() };
        let mut lag = Lag::default();
        let mut look =
            |at_s: u64, status: &GroupStatus| lag.look(Time::ZERO + Duration::from_secs(at_s), status, &membership);
        let behind = |entries, reached| vec![Say::Behind { node: NodeId(7), entries, reached }];
        assert_eq!(look(0, &leader(4500, true)), []);
        assert_eq!(look(1, &leader(3000, true)), []);
        assert_eq!(look(2, &leader(3000, true)), behind(2000, true));
        assert_eq!(look(3, &leader(2000, true)), []);
        assert_eq!(look(12, &leader(2000, true)), behind(3000, true));
        // Neither near enough, nor as far as one that begins to lag.
        assert_eq!(look(13, &leader(4500, true)), []);
        assert_eq!(look(14, &leader(5000, false)), []);
        assert_eq!(look(15, &leader(5000, true)), [Say::CaughtUp { node: NodeId(7) }]);
        // A moment is not worth a word.
        assert_eq!(look(16, &leader(4999, false)), []);
        assert_eq!(look(17, &leader(5000, true)), []);
        assert_eq!(look(18, &leader(4999, false)), []);
        assert_eq!(look(19, &leader(4999, false)), behind(1, false));
        // Whoever leads next begins anew.
        assert_eq!(look(20, &GroupStatus::default()), []);
        assert_eq!(look(21, &leader(4999, false)), []);
        assert_eq!(look(22, &leader(4999, false)), behind(1, false));
    }
}
