//! A member goes, for a while or for good, only when the others are a quorum without it.
//!
//! *A stop* that would leave no quorum waits for the others first. A loop over the nodes that restarts one after the other
//! knows nothing of how far the one before has come. So a node that is told to stop asks the leader whether the others are a
//! quorum without it, each of them up and caught up, and waits until they are, [`WAIT_MAX`] at most. A second signal ends
//! the wait. Where waiting cannot help, nobody waits: alone or one of two, when no leader comes, or when the quorum is lost
//! anyway.
//!
//! *A member that gives its data up* ([`crate::heal`]) asks the same, and waits for as long as it takes: what it has acknowledged
//! goes with it. The leader answers when the others have what was committed when it was asked, and lets one go at a time:
//! whom it let go does not count as standing for [`Leaves::kept`], after which it is not heard any more if it went. A leader
//! that is younger than that lets nobody go, because the one before it may have.

use std::time::{Duration, Instant};

use base::{NodeId, PeerId, Time};
use bytes::{Buf, Bytes};
use consensus::{GroupStatus, Membership, Role};
use parking_lot::Mutex;

use crate::founding::{DISPENSABLE, LEAVE};
use crate::handle::GroupHandle;
use crate::heal::LEAVE_COUNTS;

/// A service manager waits longer.
const WAIT_MAX: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(200);
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Others that lag have so long to get what was committed when leave was asked for.
const CATCH_UP: Duration = Duration::from_millis(1_500);
const CATCH_UP_LOOK: Duration = Duration::from_millis(20);
/// A voter that lacks more entries than this is not there yet.
const LAG_ENTRIES_MAX: u64 = 1_000;

/// Returns when this node may stop, or has waited long enough.
pub async fn wait_for_a_quorum_of_others(handle: &GroupHandle) {
    let since = Instant::now();
    let (mut said, mut unled) = (false, None);
    loop {
        match may_stop(handle).await {
            Some(true) => return,
            Some(false) => unled = None,
            // One that takes over needs this node, perhaps.
            None if unled.get_or_insert_with(Instant::now).elapsed() >= handle.election_timeout() * 2 => return,
            None => {}
        }
        if since.elapsed() >= WAIT_MAX {
            tracing::warn!(target: "chainfire_raft", "Stopping all the same: the cluster is left without a quorum code=CF4141");
            return;
        }
        if !said && unled.is_none() {
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

/// `None`: there is nobody to ask.
async fn may_stop(handle: &GroupHandle) -> Option<bool> {
    let membership = handle.membership();
    let votes = membership.voters.contains(&handle.peer());
    if !votes || membership.voters.len() < 3 {
        return Some(true);
    }
    let body = Bytes::copy_from_slice(&handle.node().0.to_le_bytes());
    match tokio::time::timeout(ANSWER_WITHIN, handle.call_leader(DISPENSABLE, body)).await {
        Ok(Ok(mut answer)) => Some(answer.try_get_i64_le().is_ok_and(|yes| yes == 1)),
        Ok(Err(_)) | Err(_) => None,
    }
}

/// On the leader: whether the others are a quorum without `node`, or are none even with it.
pub(crate) fn is_dispensable(node: NodeId, status: &GroupStatus, membership: &Membership) -> bool {
    let quorum = membership.voters.len() / 2 + 1;
    let needed = status.committed.saturating_sub(LAG_ENTRIES_MAX);
    let others = membership.voters.iter().filter(|peer| membership.node_of(**peer) != Some(node));
    let standing = others.filter(|peer| stands(status, **peer, needed)).count();
    standing >= quorum || standing + 1 < quorum
}

/// As the leader sees it.
fn stands(status: &GroupStatus, peer: PeerId, needed: u64) -> bool {
    let followers = &status.followers;
    peer == status.peer
        || followers.iter().any(|(follower, matched, heard)| *follower == peer && *heard && *matched >= needed)
}

/// Asks the leader whether this node may give its data up. No answer is no leave.
pub(crate) async fn ask_for_leave(handle: &GroupHandle) -> bool {
    let body = Bytes::copy_from_slice(&handle.peer().0.to_le_bytes());
    handle.call_leader(LEAVE, body).await.is_ok_and(|mut answer| answer.try_get_i64_le().is_ok_and(|yes| yes == 1))
}

/// On the leader: whom it has let go.
#[derive(Default)]
pub(crate) struct Leaves(Mutex<Term>);

/// What was granted in one term.
#[derive(Default)]
struct Term {
    term: u64,
    granted: Vec<(PeerId, Time)>,
}

impl Leaves {
    /// The answer to [`LEAVE`].
    pub async fn ask(&self, handle: &GroupHandle, peer: PeerId) -> bool {
        let needed = handle.status().committed;
        let began = Instant::now();
        loop {
            let timeout = handle.election_timeout();
            if self.grant(&handle.status(), &handle.membership(), peer, needed, timeout, handle.now()) {
                tracing::warn!(target: "chainfire_raft", "A member may give its data up, peer={peer} code=CF4142");
                return true;
            }
            if began.elapsed() >= CATCH_UP {
                return false;
            }
            tokio::time::sleep(CATCH_UP_LOOK).await;
        }
    }

    /// How long a leave is to be reckoned with: until it has lapsed, and whoever went is missed.
    fn kept(election_timeout: Duration) -> Duration {
        LEAVE_COUNTS + election_timeout * 3
    }

    fn grant(
        &self,
        status: &GroupStatus,
        membership: &Membership,
        peer: PeerId,
        needed: u64,
        election_timeout: Duration,
        now: Time,
    ) -> bool {
        let kept = Leaves::kept(election_timeout);
        let mut known = self.0.lock();
        if status.role != Role::Leader || membership.is_joint() {
            return false;
        }
        if known.term != status.term {
            *known = Term { term: status.term, granted: Vec::new() };
        }
        known.granted.retain(|(_, at)| now.since(*at) < kept);
        let gone = |voter: &PeerId| known.granted.iter().any(|(granted, _)| granted == voter);
        let others = membership.voters.iter().filter(|voter| **voter != peer && !gone(voter));
        let standing = others.filter(|voter| stands(status, **voter, needed)).count();
        // The leader before it may have let another go.
        let settled = now.since(status.led_since) >= kept;
        let granted = peer != status.peer && settled && standing > membership.voters.len() / 2;
        if granted {
            known.granted.retain(|(before, _)| *before != peer);
            known.granted.push((peer, now));
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use base::ClusterId;
    use consensus::Member;

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

    #[test]
    fn one_goes_at_a_time_and_only_from_a_majority() {
        let timeout = Duration::from_secs(1);
        let kept = Leaves::kept(timeout);
        let member = |node| Member { node: NodeId(node), peer: PeerId(100 + node), ..Member::default() };
        let members = |voters: u64| Membership::founding(ClusterId(1), (1..=voters).map(member).collect());
        let began = Time::ZERO + Duration::from_secs(100);
        let leader = |term, since: Duration, followers: &[(u64, u64, bool)]| {
            let followers =
                followers.iter().map(|(node, matched, heard)| (PeerId(100 + node), *matched, *heard)).collect();
            let led_since = began + since;
            let (peer, role) = (PeerId(101), Role::Leader);
            GroupStatus { peer, role, term, committed: 50, led_since, followers, ..Default::default() }
        };
        let leader_from_the_start = |followers: &[(u64, u64, bool)]| leader(1, Duration::ZERO, followers);
        let all = leader_from_the_start(&[(2, 50, true), (3, 50, true)]);
        let leaves = Leaves::default();
        let ask = |status: &GroupStatus, node: u64, at: Duration| {
            leaves.grant(status, &members(3), PeerId(100 + node), 50, timeout, began + at)
        };
        assert!(!ask(&all, 2, Duration::ZERO), "the leader before it may have let another go");
        assert!(!ask(&leader_from_the_start(&[(2, 50, true), (3, 49, true)]), 2, kept), "3 lacks an entry");
        assert!(!ask(&leader_from_the_start(&[(2, 50, true), (3, 50, false)]), 2, kept), "3 is down");
        assert!(!ask(&all, 1, kept), "the leader hands over first");
        assert!(ask(&all, 2, kept));
        assert!(!ask(&all, 3, kept), "2 is about to go");
        assert!(ask(&all, 2, kept * 3 / 2), "2 asks again");
        assert!(!ask(&all, 3, kept * 2));
        assert!(ask(&all, 3, kept * 5 / 2), "2 did not go: it is heard");
        assert!(!ask(&leader(2, kept * 2, &[(2, 50, true), (3, 50, true)]), 2, kept * 5 / 2), "another term");

        let two = leader_from_the_start(&[(2, 50, true)]);
        let leaves = Leaves::default();
        for at in [Duration::ZERO, kept * 2] {
            assert!(!leaves.grant(&two, &members(2), PeerId(102), 50, timeout, began + at), "never of two");
        }
        let follower = GroupStatus { role: Role::Follower, ..all };
        assert!(!leaves.grant(&follower, &members(3), PeerId(102), 50, timeout, began + kept * 3));
    }
}
