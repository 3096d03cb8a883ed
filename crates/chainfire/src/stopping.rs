//! A stop that would leave no quorum waits for the others first.
//!
//! A loop over the nodes that restarts one after the other knows nothing of how far the one before has come. So a node that
//! is told to stop asks the leader whether the others are a quorum without it, each of them up and caught up, and waits
//! until they are, [`WAIT_MAX`] at most. A second signal ends the wait. Where waiting cannot help, nobody waits: alone or one
//! of two, without a leader, or when the quorum is lost anyway.

use std::time::{Duration, Instant};

use base::NodeId;
use bytes::{Buf, Bytes};
use consensus::{GroupStatus, Membership};
use node::GroupHandle;

use crate::api::leader::DISPENSABLE;

/// A service manager waits longer.
const WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// A voter that lacks more entries than this is not there yet.
const LAG_ENTRIES_MAX: u64 = 1_000;

/// Returns when this node may stop, or has waited long enough.
pub async fn wait_for_a_quorum_of_others(handle: &GroupHandle) {
    let since = Instant::now();
    let mut said = false;
    while !may_stop(handle).await {
        if since.elapsed() >= WAIT_MAX {
            tracing::warn!(target: "chainfire_raft", "Stopping all the same: the cluster is left without a quorum code=CF4141");
            return;
        }
        if !said {
            said = true;
            tracing::warn!(
                target: "chainfire_raft",
                "Waiting before the stop: without this node there is no quorum until other members are up and have caught \
                 up, longest_ms={} code=CF4140",
                WAIT_MAX.as_millis()
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn may_stop(handle: &GroupHandle) -> bool {
    let membership = handle.membership();
    let votes = membership.voters.contains(&handle.peer());
    if !votes || membership.voters.len() < 3 {
        return true;
    }
    let body = Bytes::copy_from_slice(&handle.node().0.to_le_bytes());
    match tokio::time::timeout(ANSWER_WITHIN, handle.call_leader(DISPENSABLE, body)).await {
        Ok(Ok(mut answer)) => answer.try_get_i64_le().is_ok_and(|yes| yes == 1),
        // No leader: there is nothing to lose.
        Ok(Err(_)) | Err(_) => true,
    }
}

/// On the leader: whether the others are a quorum without `node`, or are none even with it.
pub fn is_dispensable(node: NodeId, status: &GroupStatus, membership: &Membership) -> bool {
    let quorum = membership.voters.len() / 2 + 1;
    let stands = |peer: &base::PeerId| {
        *peer == status.peer
            || status.followers.iter().any(|(follower, matched, heard)| {
                follower == peer && *heard && matched + LAG_ENTRIES_MAX >= status.committed
            })
    };
    let others = membership.voters.iter().filter(|peer| membership.node_of(**peer) != Some(node));
    let standing = others.filter(|peer| stands(peer)).count();
    standing >= quorum || standing + 1 < quorum
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, PeerId};
    use consensus::{Member, Role};

    use super::*;

    fn dispensable(node: u64, voters: u64, followers: &[(u64, u64, bool)]) -> bool {
        let member = |node| Member { node: NodeId(node), peer: PeerId(100 + node), ..Member::default() };
        let membership = Membership::founding(ClusterId(1), (1..=voters).map(member).collect());
        let followers = followers.iter().map(|(node, matched, heard)| (PeerId(100 + node), *matched, *heard)).collect();
        let status =
            GroupStatus { peer: PeerId(101), role: Role::Leader, committed: 5_000, followers, ..Default::default() };
        is_dispensable(NodeId(node), &status, &membership)
    }

    #[test]
    fn who_may_stop() {
        // Node 1 leads.
        assert!(dispensable(2, 3, &[(2, 5_000, true), (3, 4_990, true)]));
        assert!(dispensable(1, 3, &[(2, 5_000, true), (3, 4_990, true)]));
        assert!(!dispensable(2, 3, &[(2, 5_000, true), (3, 5_000, false)]), "3 is down");
        assert!(!dispensable(2, 3, &[(2, 5_000, true), (3, 10, true)]), "3 is far behind");
        assert!(!dispensable(1, 3, &[(2, 5_000, true), (3, 10, true)]));
        assert!(dispensable(3, 3, &[(2, 5_000, true), (3, 5_000, false)]), "3 is down and stops nothing");
        assert!(dispensable(2, 5, &[(2, 5_000, true), (3, 0, false), (4, 0, false), (5, 0, false)]), "lost anyway");
    }
}
