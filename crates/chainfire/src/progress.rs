//! Lines that say how replication goes, for whoever reads the log: which follower is behind and by how much, that it has
//! caught up, and who leads. And the round trips to the other members, measured for the metrics.
//!
//! The leader tells of its followers when one begins to lag, every [`SAY_EVERY`] while it does, and when it no longer
//! does. Any node names the leader at that pace, so that the last lines of a quiet node's log name it too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{NodeId, PeerId};
use consensus::{GroupStatus, Membership, Role};
use node::GroupHandle;

use crate::announce;
use crate::metrics::Metrics;

const LOOK_EVERY: Duration = Duration::from_secs(1);
const SAY_EVERY: Duration = Duration::from_secs(30);
const PING_EVERY: Duration = Duration::from_secs(5);
/// Entries that a follower may lack without a word; it has caught up when it lacks fewer than a tenth of them.
const LAG_ENTRIES_MAX: u64 = 1_000;

/// Runs as long as the node.
pub fn start(handle: &GroupHandle, metrics: &Arc<Metrics>) {
    tokio::spawn(follow(handle.clone()));
    tokio::spawn(round_trips(handle.clone(), metrics.clone()));
}

async fn follow(handle: GroupHandle) {
    let mut lags = Lags::default();
    let mut said = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        for line in lags.look(&handle.status(), &handle.membership(), Instant::now()) {
            match line {
                Line::Behind { node, entries, heard_of } => tracing::warn!(
                    target: "chainfire_raft",
                    "Follower is behind, peer={node} lag={entries} reachable={heard_of}"
                ),
                Line::CaughtUp { node } => {
                    tracing::info!(target: "chainfire_raft", "Follower has caught up and is no longer behind, peer={node}");
                }
            }
        }
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            let (status, standing) = (handle.status(), announce::standing(&handle));
            let (leader, index) = (status.leader_node, status.committed);
            tracing::info!(target: "chainfire_raft", "{standing}, leader={leader} raft_index={index}");
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Line {
    Behind { node: NodeId, entries: u64, heard_of: bool },
    CaughtUp { node: NodeId },
}

/// The followers that lag, and when that was last said.
#[derive(Default)]
struct Lags(BTreeMap<PeerId, Instant>);

impl Lags {
    fn look(&mut self, status: &GroupStatus, membership: &Membership, now: Instant) -> Vec<Line> {
        if status.role != Role::Leader {
            self.0.clear();
            return Vec::new();
        }
        // One that was removed is nobody's follower.
        self.0.retain(|peer, _| membership.by_peer(*peer).is_some());
        let mut lines = Vec::new();
        for (peer, index, heard_of) in status.followers.iter().filter(|(peer, ..)| *peer != status.peer) {
            let Some(node) = membership.by_peer(*peer).map(|member| member.node) else { continue };
            let entries = status.last.saturating_sub(*index);
            let said = self.0.get(peer).copied();
            match said {
                Some(_) if entries < LAG_ENTRIES_MAX / 10 => {
                    self.0.remove(peer);
                    lines.push(Line::CaughtUp { node });
                }
                Some(said) if now.duration_since(said) < SAY_EVERY => {}
                None if entries <= LAG_ENTRIES_MAX => {}
                _ => {
                    self.0.insert(*peer, now);
                    lines.push(Line::Behind { node, entries, heard_of: *heard_of });
                }
            }
        }
        lines
    }
}

async fn round_trips(handle: GroupHandle, metrics: Arc<Metrics>) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let own = handle.node();
        for node in handle.membership().members.keys().copied().filter(|node| *node != own) {
            // One that does not answer has no round trip; the log tells of it elsewhere.
            if let Ok(took) = handle.ping(node).await {
                metrics.round_trip(node, took);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use consensus::Member;

    use super::*;

    #[test]
    fn a_follower_that_lags_is_told_of_until_it_has_caught_up() {
        let member = |node, peer| Member { node: NodeId(node), peer: PeerId(peer), ..Member::default() };
        let membership = Membership {
            members: BTreeMap::from([(NodeId(1), member(1, 11)), (NodeId(2), member(2, 22))]),
            ..Membership::default()
        };
        let status = |index, role| GroupStatus {
            peer: PeerId(11),
            role,
            last: 10_000,
            followers: vec![(PeerId(11), 0, true), (PeerId(22), index, true), (PeerId(33), 0, false)],
            ..GroupStatus::default()
        };
        let begun = Instant::now();
        let mut lags = Lags::default();
        let mut look =
            |index, role, seconds| lags.look(&status(index, role), &membership, begun + Duration::from_secs(seconds));
        assert!(look(9_000, Role::Leader, 0).is_empty());
        let behind = |entries| vec![Line::Behind { node: NodeId(2), entries, heard_of: true }];
        assert_eq!(look(5_000, Role::Leader, 1), behind(5_000));
        assert!(look(6_000, Role::Leader, 2).is_empty());
        assert_eq!(look(6_000, Role::Leader, 40), behind(4_000));
        assert!(look(9_500, Role::Leader, 41).is_empty());
        assert_eq!(look(9_950, Role::Leader, 42), [Line::CaughtUp { node: NodeId(2) }]);
        assert!(look(9_950, Role::Leader, 43).is_empty());
        assert!(look(0, Role::Follower, 44).is_empty());
    }
}
