//! The room on the disk, and the quota.
//!
//! Two lines are drawn through a disk's free bytes ([`node::disk::Room`]). Below the upper one it counts as full; between the two there is
//! still room for a while; below the lower one only what gives space back may still be written. Nobody waits for the
//! operating system to say that there is no room: by then flushes and compactions would fail, and there would be none for
//! deletes and alarms. For the worst case a file of some megabytes, the ballast, is given up.
//!
//! What follows is the whole group's matter, and the leader decides it: members whose disks are full tell it.
//!
//! | whose disk is full | what happens |
//! |---|---|
//! | a follower's, others are a quorum | it goes on down to the lower line, then takes nothing new ([`GroupHandle::hold`]) until there is room; the others go on |
//! | the leader's, others are a quorum | it hands over, and is a follower then |
//! | so many that the others who are up are no quorum | all of these raise NOSPACE: puts are refused everywhere, reads and deletes go on |
//!
//! An alarm goes with its reason: the member lowers its own, and the leader that of a member that has not been heard
//! to be full for a while, such as one that is down.
//!
//! The quota is each member's own: one member that exceeds it raises NOSPACE for all, as in etcd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base::{NodeId, PeerId};
use bytes::{Buf, Bytes};
use consensus::{Membership, Role};
use node::GroupHandle;
use node::disk::{Ballast, Room};
use parking_lot::Mutex;
use proto::etcdserverpb::{AlarmType, alarm_request::AlarmAction};
use tokio::task::JoinHandle;

use crate::api::leader::{DISK_FULL, DISK_ROOMY, OVER_QUOTA};
use crate::command::Command;
use crate::housekeeping::{Rules, ready};
use crate::store::Stores;

/// A disk can lose much room in little time; looking costs a microsecond.
const TICK: Duration = Duration::from_millis(25);
/// The upper line.
const FREE_BYTES_MIN: u64 = 128 << 20;
/// A member that is full says so this often, and is believed for so long.
const REPORT_EVERY: Duration = Duration::from_millis(200);
const REPORT_COUNTS: Duration = Duration::from_secs(2);
/// A member that has said nothing for so long does not hold an alarm up any more.
const ALARM_COUNTS: Duration = Duration::from_secs(10);
/// The leader's word counts for so long when it cannot be asked again.
const VERDICT_COUNTS: Duration = Duration::from_secs(5);
/// A leader that is younger than this has not heard of everyone who is up.
const LEADER_SETTLES: Duration = Duration::from_secs(2);
/// Between two attempts to hand over.
const HAND_OVER_EVERY: Duration = Duration::from_secs(2);
const REPORTS_MAX: usize = 256;
const NOSPACE: i32 = AlarmType::Nospace as i32;

/// What the leader makes of a full disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The others are a quorum.
    Minority,
    /// Without the full ones there is no quorum: all stop taking more.
    Quorum,
}

/// On the leader: who has said lately that its disk is full, or that its quota is exceeded.
#[derive(Default)]
pub struct Reports {
    members: Mutex<BTreeMap<NodeId, Report>>,
    /// Since when this node leads.
    led: Mutex<Option<Instant>>,
}

#[derive(Clone, Copy)]
struct Report {
    full: Option<Instant>,
    any: Instant,
}

impl Reports {
    /// A member's call; the answer is 1 when a quorum is full, else 0.
    pub fn take(&self, method: u8, node: NodeId, handle: &GroupHandle) -> i64 {
        if method == DISK_ROOMY {
            self.roomy(node);
        } else {
            self.note(node, method == DISK_FULL, Instant::now());
        }
        i64::from(self.judge(handle, Instant::now()) == Verdict::Quorum)
    }

    fn note(&self, node: NodeId, full: bool, now: Instant) {
        let mut reports = self.members.lock();
        if reports.len() >= REPORTS_MAX && !reports.contains_key(&node) {
            return;
        }
        let report = reports.entry(node).or_insert(Report { full: None, any: now });
        report.any = now;
        if full {
            report.full = Some(now);
        }
    }

    fn roomy(&self, node: NodeId) {
        if let Some(report) = self.members.lock().get_mut(&node) {
            report.full = None;
        }
    }

    fn lead(&self, since: Option<Instant>) {
        *self.led.lock() = since;
    }

    fn judge(&self, handle: &GroupHandle, now: Instant) -> Verdict {
        let settled = self.led.lock().is_some_and(|since| now - since >= LEADER_SETTLES);
        let silent = if settled { handle.status().followers.clone() } else { Vec::new() };
        let silent: Vec<PeerId> = silent.into_iter().filter(|(_, _, heard)| !heard).map(|(peer, _, _)| peer).collect();
        self.verdict(&handle.membership(), &silent, now)
    }

    /// Who is down has no room to offer.
    fn verdict(&self, membership: &Membership, silent: &[PeerId], now: Instant) -> Verdict {
        let reports = self.members.lock();
        let full =
            |node: NodeId| reports.get(&node).and_then(|report| report.full).is_some_and(|at| now - at < REPORT_COUNTS);
        let roomy = membership
            .voters
            .iter()
            .filter(|peer| !silent.contains(peer) && membership.node_of(**peer).is_none_or(|node| !full(node)));
        if roomy.count() > membership.voters.len() / 2 { Verdict::Minority } else { Verdict::Quorum }
    }

    /// Whether a member has been heard of as having a reason for its alarm.
    fn has_reason(&self, node: NodeId, now: Instant) -> bool {
        self.members.lock().get(&node).is_some_and(|report| now - report.any < ALARM_COUNTS)
    }
}

/// Watches the disk and the quota as long as the node runs.
pub async fn keep(handle: GroupHandle, stores: Arc<Stores>, rules: Rules) {
    let store = ready(&stores).await;
    let ballast = Ballast::new(&rules.data_dir);
    let mut keeper = Keeper {
        handle,
        rules,
        room: Room::default(),
        verdict: None,
        heard: None,
        asked: None,
        asking: Later::default(),
        led: None,
        handed: None,
    };
    let mut alarm = Later::default();
    // Why the alarm was raised. A restart forgets it; what the quota does not explain was the disk.
    let mut raised_for_disk = None;
    let mut said_full = false;
    loop {
        tokio::time::sleep(TICK).await;
        if let Some((free, total)) = node::disk::room(&keeper.rules.data_dir) {
            keeper.room.update(free, total, FREE_BYTES_MIN);
            ballast.adjust(free, total, FREE_BYTES_MIN);
        }
        let quota = keeper.rules.live.quota_bytes();
        let over_quota = quota > 0 && store.reader.stats().engine.total_bytes > quota;
        let member = keeper.handle.node().0;
        let alarms = store.reader.current().alarms.clone();
        let raised = alarms.contains(&(NOSPACE, member));
        keeper.decide(over_quota, raised).await;
        let full = keeper.room.full;
        if full && !said_full {
            tracing::error!(
                target: "chainfire_storage",
                "Disk full, this member leads no more and stops taking writes if a quorum is full code=CF4130"
            );
        } else if !full && said_full {
            tracing::info!(target: "chainfire_storage", "Disk has room again");
        }
        said_full = full;

        let for_disk = *raised_for_disk.get_or_insert(!over_quota);
        let quorum_full = full && keeper.verdict == Some(Verdict::Quorum);
        let action = if !raised && (over_quota || quorum_full) {
            raised_for_disk = Some(!over_quota);
            tracing::error!(
                target: "chainfire_storage",
                "No space left, writes are refused, quota_exceeded={over_quota} disk_full={full} code=CF1002"
            );
            Some((AlarmAction::Activate, member))
        } else if raised && for_disk && !over_quota && !quorum_full && (!full || keeper.verdict.is_some()) {
            Some((AlarmAction::Deactivate, member))
        } else {
            let others = alarms.iter().filter(|(kind, other)| *kind == NOSPACE && *other != member);
            let stale = others.map(|(_, other)| *other).find(|other| keeper.may_lower(NodeId(*other), over_quota));
            stale.map(|other| (AlarmAction::Deactivate, other))
        };
        if let Some((AlarmAction::Deactivate, member)) = alarm.take().await.flatten() {
            tracing::info!(target: "chainfire_storage", "There is space again, writes are taken, alarm_of={member}");
        }
        if let Some((action, member)) = action.filter(|_| alarm.is_idle()) {
            // What is refused is tried again at a later look.
            let command = Command::Alarm { action: action as i32, member, kind: NOSPACE };
            let proposed = keeper.handle.propose(command.encode());
            alarm.begin(async move { proposed.await.ok().map(|_| (action, member)) });
        }
    }
}

struct Keeper {
    handle: GroupHandle,
    rules: Rules,
    room: Room,
    /// The leader's word on this node's full disk, while it is full and a leader can be asked.
    verdict: Option<Verdict>,
    /// When the leader last gave it, when it was last asked, and since when this node leads.
    heard: Option<Instant>,
    asked: Option<Instant>,
    asking: Later<Option<Verdict>>,
    led: Option<Instant>,
    handed: Option<Instant>,
}

impl Keeper {
    /// Tells the leader, hears its verdict, and does what follows for this node.
    /// `raised`: this node's alarm is; as long as it is, it takes part, so that it can lower it.
    async fn decide(&mut self, over_quota: bool, raised: bool) {
        let now = Instant::now();
        let node = self.handle.node();
        let leads = self.handle.status().role == Role::Leader;
        self.led = if leads { self.led.or(Some(now)) } else { None };
        self.rules.reports.lead(self.led);
        if leads {
            if over_quota || self.room.full {
                self.rules.reports.note(node, self.room.full, now);
            }
            if !self.room.full {
                self.rules.reports.roomy(node);
            }
            let verdict = self.rules.reports.judge(&self.handle, now);
            self.verdict = self.room.full.then_some(verdict);
            let due = self.handed.is_none_or(|at| now - at >= HAND_OVER_EVERY);
            if self.verdict == Some(Verdict::Minority) && due {
                self.handed = Some(now);
                tracing::warn!(target: "chainfire_raft", "Handing leadership over, the disk of this member is full code=CF4131");
                // Whoever is furthest takes it; if nobody can, it is tried again.
                drop(tokio::spawn(self.handle.transfer(None)));
            }
        } else if self.room.full || over_quota {
            if let Some(verdict) = self.asking.take().await {
                match verdict.filter(|_| self.room.full) {
                    Some(verdict) => (self.verdict, self.heard) = (Some(verdict), self.asked),
                    // One question without an answer changes nothing yet.
                    None if self.room.full && self.heard.is_some_and(|at| now - at < VERDICT_COUNTS) => {}
                    None => self.verdict = None,
                }
            }
            if self.asking.is_idle() && self.asked.is_none_or(|at| now - at >= REPORT_EVERY) {
                self.asked = Some(now);
                let method = if self.room.full { DISK_FULL } else { OVER_QUOTA };
                let body = Bytes::copy_from_slice(&node.0.to_le_bytes());
                let asked = tokio::time::timeout(REPORT_COUNTS, self.handle.call_leader(method, body));
                self.asking.begin(async move {
                    let quorum = asked.await.ok()?.ok()?.try_get_i64_le().ok()?;
                    Some(if quorum == 1 { Verdict::Quorum } else { Verdict::Minority })
                });
            }
        } else if !self.room.full && self.verdict.take().is_some() {
            // So that it is not counted as full any longer. If this gets lost, its last report ages.
            let body = Bytes::copy_from_slice(&node.0.to_le_bytes());
            drop(tokio::spawn(self.handle.call_leader(DISK_ROOMY, body)));
        }
        let quorum_full = self.room.full && self.verdict == Some(Verdict::Quorum);
        // This node's own clients are refused at once; the alarm takes its way through the log.
        self.rules.disk_full.store(quorum_full, Ordering::Relaxed);
        self.handle.hold(!leads && !raised && self.room.critical && self.verdict == Some(Verdict::Minority));
    }

    /// On a leader of some standing: another member's alarm has lost its reason.
    fn may_lower(&self, node: NodeId, over_quota: bool) -> bool {
        let now = Instant::now();
        let stands = self.led.is_some_and(|since| now - since >= ALARM_COUNTS);
        stands && !over_quota && !self.rules.reports.has_reason(node, now)
    }
}

/// Something that is under way while the watcher goes on watching. One at a time.
struct Later<T>(Option<JoinHandle<T>>);

impl<T> Default for Later<T> {
    fn default() -> Later<T> {
        Later(None)
    }
}

impl<T: Send + 'static> Later<T> {
    fn begin(&mut self, work: impl Future<Output = T> + Send + 'static) {
        self.0 = Some(tokio::spawn(work));
    }

    /// Nothing is under way, and nothing waits to be taken.
    fn is_idle(&self) -> bool {
        self.0.is_none()
    }

    /// What it came to, if it is over. Does not wait.
    async fn take(&mut self) -> Option<T> {
        let done = self.0.take_if(|work| work.is_finished())?;
        // One that panicked has said so.
        done.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, PeerId};
    use consensus::Member;

    use super::*;

    fn membership(voters: u64) -> Membership {
        let member = |node| Member { node: NodeId(node), peer: PeerId(100 + node), ..Member::default() };
        Membership::founding(ClusterId(1), (1..=voters).map(member).collect())
    }

    #[tokio::test]
    async fn what_is_under_way_keeps_nobody_waiting() {
        let mut later = Later::default();
        assert!(later.is_idle());
        let (answer, asked) = tokio::sync::oneshot::channel();
        later.begin(async move { asked.await.unwrap_or(0) });
        for _ in 0..3 {
            assert_eq!(tokio::time::timeout(TICK, later.take()).await, Ok(None), "the watcher goes on");
            assert!(!later.is_idle(), "and asks no second time");
        }
        answer.send(7).unwrap();
        let taken = loop {
            match later.take().await {
                Some(taken) => break taken,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(taken, 7);
        assert!(later.is_idle());
    }

    #[test]
    fn a_quorum_is_full_when_the_others_are_none() {
        let now = Instant::now();
        for (voters, fulls, expected) in [
            (1, 1, Verdict::Quorum),
            (2, 1, Verdict::Quorum),
            (3, 1, Verdict::Minority),
            (3, 2, Verdict::Quorum),
            (5, 2, Verdict::Minority),
            (5, 3, Verdict::Quorum),
        ] {
            let reports = Reports::default();
            (1..=fulls).for_each(|node| reports.note(NodeId(node), true, now));
            assert_eq!(reports.verdict(&membership(voters), &[], now), expected, "{fulls} of {voters}");
            assert_eq!(
                reports.verdict(&membership(voters), &[], now + REPORT_COUNTS),
                Verdict::Minority,
                "a report ages"
            );
        }
    }

    #[test]
    fn who_is_down_has_no_room_to_offer() {
        let now = Instant::now();
        let reports = Reports::default();
        reports.note(NodeId(1), true, now);
        assert_eq!(reports.verdict(&membership(3), &[PeerId(102)], now), Verdict::Quorum);
        assert_eq!(reports.verdict(&membership(5), &[PeerId(102)], now), Verdict::Minority);
    }

    #[test]
    fn a_quota_that_is_exceeded_fills_no_disk_but_keeps_its_alarm() {
        let now = Instant::now();
        let reports = Reports::default();
        reports.note(NodeId(1), false, now);
        reports.note(NodeId(2), false, now);
        assert_eq!(reports.verdict(&membership(3), &[], now), Verdict::Minority);
        assert!(reports.has_reason(NodeId(1), now) && !reports.has_reason(NodeId(3), now));
        assert!(!reports.has_reason(NodeId(1), now + ALARM_COUNTS));
    }
}
