//! Disks that stand still, disks that are slow for long, and disks that are full.
//!
//! A stalled disk returns from nothing until it is over: what was being synced stays unsynced, and a host that waits for it
//! waits. Leaders are struck first. After [`LEADS_MAX`] of it the node must not lead any more in the term in which it was
//! struck, and, when nothing else fails in this world, somebody else must.
//!
//! A leader whose disk is slow, while the others' are not, must not lead any more after [`SLOW_LEADS_MAX`]. That is judged in
//! worlds where nothing else fails; in the others, disks are slow for a moment (`fault`).
//!
//! A full disk takes no new entries ([`consensus::Input::Hold`]), on any one node at a time, so that a quorum has room.

use base::GroupId;
use consensus::{Input, Role};

use super::World;
use super::node::Node;
use super::plan::{MS, SECOND};
use super::queue::{Ending, Happening, Who};
use super::stage::Stage;

/// So long may a leader lead whose disk stands still.
pub const LEADS_MAX: u64 = 5 * SECOND;
/// And one whose disk is slow.
pub const SLOW_LEADS_MAX: u64 = 10 * SECOND;
/// Worlds of slow disks are faulty for so long.
pub const SLOW_WORLD: u64 = 40 * SECOND;

impl World {
    /// A disk stalls or fills up, and the next time is planned.
    pub fn disk_fault(&mut self) {
        if self.stage.healed {
            return;
        }
        let faults = &self.stage.plan.faults;
        let (stalls, fulls, slow_leaders) = (faults.stalled_disks, faults.full_disks, faults.slow_leaders);
        let pause = self.stage.rng.between(2_000, 9_000) * MS;
        self.stage.after(pause, Happening::DiskFault);
        let any = self.stage.rng.below(self.nodes.len() as u64) as usize;
        if slow_leaders {
            return self.strike_slow_leader();
        }
        let heads = self.stage.rng.percent(50);
        if stalls && (heads || !fulls) {
            let aimed = self.stage.rng.percent(80);
            let leading = self.nodes.iter().position(|node| !leads(node).is_empty());
            self.strike_stall(leading.filter(|_| aimed).unwrap_or(any));
        } else if fulls && self.nodes[any].running.is_some() && !self.nodes.iter().any(|node| node.full) {
            self.hold(any, true);
            let span = self.stage.rng.between(500, 6_000) * MS;
            self.stage.after(span, Happening::End(Ending::FullDisk { at: any }));
        }
    }

    fn strike_stall(&mut self, at: usize) {
        let others = self.nodes.iter().any(|node| node.stalled_until > self.stage.now);
        if others || self.nodes[at].running.is_none() {
            return;
        }
        let span = self.stage.rng.between(6_000, 9_000) * MS;
        self.nodes[at].stalled_until = self.stage.now + span;
        self.stage.note(at as u64 + 1, "disk-stands", &[("ms", span / MS)]);
        let who = self.nodes[at].who();
        for (group, term) in leads(&self.nodes[at]) {
            self.stage.after(LEADS_MAX, Happening::JudgeStall { who, group, term });
        }
    }

    fn strike_slow_leader(&mut self) {
        let struck = self.nodes.iter().any(|node| node.slow_disk);
        let Some(at) = self.nodes.iter().position(|node| !leads(node).is_empty()).filter(|_| !struck) else { return };
        self.nodes[at].slow_disk = true;
        self.stage.note(at as u64 + 1, "slow-disk", &[]);
        self.stage.after(SLOW_LEADS_MAX + SECOND, Happening::End(Ending::SlowDisk { at }));
        let who = self.nodes[at].who();
        for (group, term) in leads(&self.nodes[at]) {
            self.stage.after(SLOW_LEADS_MAX, Happening::JudgeSlow { who, group, term });
        }
    }

    pub fn judge_slow(&mut self, who: Who, group: GroupId, term: u64) {
        let node = &self.nodes[who.at];
        if node.who() != who || !node.slow_disk {
            return;
        }
        self.slow_judged += 1;
        let voters = self.stage.ledger.latest_membership(group).map_or(0, |membership| membership.voters.len());
        if voters > 2 && self.stage.ledger.latest_term(group) == term {
            self.stage.ledger.fail(|| format!("{} leads group {group} with a disk that is slow", node.id));
        }
    }

    pub fn hold(&mut self, at: usize, held: bool) {
        if self.nodes[at].full == held {
            return;
        }
        self.nodes[at].full = held;
        self.stage.note(at as u64 + 1, if held { "disk-full" } else { "disk-roomy" }, &[]);
        for group in self.stage.groups() {
            self.nodes[at].give(&mut self.stage, Input::Hold { group, held });
        }
    }

    /// Nobody can tell that a disk stands still before something has to be written: from then on it is [`LEADS_MAX`].
    pub fn judge_stall(&mut self, who: Who, group: GroupId, term: u64) {
        let node = &self.nodes[who.at];
        let (Some(running), false) = (&node.running, node.is_paused(&self.stage)) else { return };
        if node.who() != who || node.stalled_until <= self.stage.now {
            return;
        }
        let begun = running.writer.syncing.as_ref().map_or(self.stage.now, |syncing| syncing.since);
        if begun + LEADS_MAX > self.stage.now {
            let due = (begun + LEADS_MAX).max(self.stage.now + 100 * MS);
            return self.stage.queue.push(due, Happening::JudgeStall { who, group, term });
        }
        self.stalls_judged += 1;
        // A host that waits for its disk knows nothing; what counts is whether the others went on.
        let blocked = running.busy_until > self.stage.now;
        let leads = running.host.status(group).is_some_and(|status| status.role == Role::Leader && status.term == term);
        if leads && !blocked {
            self.stage.ledger.fail(|| format!("{} leads group {group} with a disk that stands still", node.id));
        }
        let voters = self.stage.ledger.latest_membership(group).map_or(0, |membership| membership.voters.len());
        if self.stage.plan.faults.is_only_stalls() && voters > 2 && self.stage.ledger.latest_term(group) == term {
            self.stage.ledger.fail(|| format!("nobody leads group {group} while the disk of {} stands still", node.id));
        }
    }
}

impl Node {
    /// The disk moves again.
    pub fn stall_ends(&mut self, stage: &mut Stage) {
        if self.stalled_until <= stage.now {
            return;
        }
        self.stalled_until = stage.now;
        let who = self.who();
        if let Some(running) = &mut self.running {
            running.busy_until = running.busy_until.min(stage.now);
            stage.queue.push(stage.now, Happening::Synced(who));
            self.wake_in(stage, 0);
        }
    }
}

/// The groups that a node leads, with their terms.
fn leads(node: &Node) -> Vec<(GroupId, u64)> {
    let Some(running) = &node.running else { return Vec::new() };
    let statuses = running.host.groups().filter_map(|group| Some((group, running.host.status(group)?)));
    statuses.filter(|(_, status)| status.role == Role::Leader).map(|(group, status)| (group, status.term)).collect()
}
