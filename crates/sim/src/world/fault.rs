//! What strikes: crashes, pauses, partitions, slow disks, lost logs. Each kind only if the seed allows it; each ends by itself,
//! and all of them for good when the world is healed.

use storage::log::LogStore;

use super::World;
use super::plan::{MS, SECOND};
use super::queue::{Ending, Happening};
use crate::physics::net;

/// When a fault does the most harm. Nodes tell of such moments as they go through them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// A vote has left.
    Voted,
    /// A term has a new leader, this node.
    Leads,
    /// A membership change was committed here.
    MembershipChanged,
    /// A snapshot was put in place.
    Installed,
    /// A read was allowed, for as long as the lease holds, and has not been done.
    ReadGranted,
}

impl World {
    /// Strikes at tender moments, now and then.
    pub fn strike_moments(&mut self) {
        for (at, moment) in std::mem::take(&mut self.stage.moments) {
            let faults = &self.stage.plan.faults;
            let (crashes, pauses, partitions) = (faults.crashes, faults.pauses, faults.partitions);
            let percent = match moment {
                Moment::ReadGranted => faults.moments_percent.div_ceil(10),
                Moment::Voted => faults.moments_percent * 2,
                Moment::Leads | Moment::MembershipChanged | Moment::Installed => faults.moments_percent,
            };
            if self.stage.healed || !self.stage.rng.percent(percent) {
                continue;
            }
            match (moment, self.stage.rng.below(3)) {
                (Moment::ReadGranted, _) if pauses => self.strike_pause(at),
                (Moment::Leads, 0) if pauses => self.strike_pause(at),
                (Moment::Leads, 1) if partitions => self.strike_isolation(at),
                (Moment::ReadGranted, _) => {}
                _ if crashes && self.nodes[at].running.is_some() => {
                    self.nodes[at].crash(&mut self.stage);
                    let down = self.stage.rng.below(30 * MS);
                    self.stage.after(down, Happening::Start { at });
                }
                _ => {}
            }
        }
    }

    /// One fault strikes, and the next is planned.
    pub fn fault(&mut self) {
        if self.stage.healed {
            return;
        }
        let pause = 1 + self.stage.rng.below(2 * self.stage.plan.fault_every);
        self.stage.after(pause, Happening::Fault);
        let faults = self.stage.plan.faults.clone();
        let at = self.stage.rng.below(self.nodes.len() as u64) as usize;
        if faults.diverging && self.stage.rng.percent(40) {
            self.strike_state(at);
        }
        match self.stage.rng.below(10) {
            0..=2 if faults.crashes => self.strike_crash(at),
            3..=4 if faults.pauses => self.strike_pause(at),
            5..=6 if faults.partitions => self.strike_partition(faults.one_way),
            7 if faults.slow_disk => self.strike_slow_disk(at),
            8 if faults.lost_logs => self.strike_lost_log(at),
            9 if faults.crashes && self.stage.rng.percent(30) => {
                // The power goes for all.
                (0..self.nodes.len()).for_each(|at| self.strike_crash(at));
            }
            _ => {}
        }
    }

    fn strike_crash(&mut self, at: usize) {
        if self.nodes[at].running.is_none() {
            return;
        }
        self.nodes[at].crash(&mut self.stage);
        let down = match self.stage.rng.below(3) {
            0 => self.stage.rng.below(50 * MS),
            1 => self.stage.rng.below(self.stage.plan.election_timeout() * 2),
            _ => self.stage.rng.below(8 * SECOND),
        };
        self.stage.after(down, Happening::Start { at });
    }

    fn strike_pause(&mut self, at: usize) {
        if self.nodes[at].running.is_none() || self.nodes[at].is_paused(&self.stage) {
            return;
        }
        let span = self.stage.plan.election_timeout() * self.stage.rng.between(1, 50) / 10;
        self.nodes[at].paused_until = self.stage.now + span;
        self.stage.note(at as u64 + 1, "pause", &[("ms", span / MS)]);
    }

    fn strike_partition(&mut self, one_way: bool) {
        let nodes = self.nodes.len();
        let one_way = one_way && self.stage.rng.percent(40);
        let links = net::partition(&mut self.stage.rng, nodes, one_way);
        let count = links.len() as u64;
        let number = self.stage.net.cut(links);
        self.stage.note(0, "partition", &[("number", number), ("links", count)]);
        let span = self.stage.rng.between(100, 6_000) * MS;
        self.stage.after(span, Happening::End(Ending::Partition { number }));
    }

    /// One node alone against the rest.
    fn strike_isolation(&mut self, at: usize) {
        let others = (0..self.nodes.len()).filter(|other| *other != at);
        let links = others.flat_map(|other| [(at, other), (other, at)]).collect();
        let number = self.stage.net.cut(links);
        self.stage.note(at as u64 + 1, "isolated", &[("number", number)]);
        let span = self.stage.plan.election_timeout() * self.stage.rng.between(5, 40) / 10;
        self.stage.after(span, Happening::End(Ending::Partition { number }));
    }

    fn strike_slow_disk(&mut self, at: usize) {
        self.nodes[at].slow_disk = true;
        self.stage.note(at as u64 + 1, "slow-disk", &[]);
        let span = self.stage.rng.between(500, 5_000) * MS;
        self.stage.after(span, Happening::End(Ending::SlowDisk { at }));
    }

    /// A node dies, and its log is damaged, cut short, or gone when it comes up again. Only one at a time, and only
    /// where a quorum of whole voters is left.
    fn strike_lost_log(&mut self, at: usize) {
        let enough = self.stage.groups().all(|group| {
            self.stage.ledger.latest_membership(group).is_some_and(|membership| membership.voters.len() >= 3)
        });
        if !self.nodes[at].enlisted || !enough || !self.everyone_is_whole() || !self.operator.loss_is_bearable() {
            return;
        }
        if self.nodes[at].running.is_some() {
            self.nodes[at].crash(&mut self.stage);
            let down = self.stage.rng.below(3 * SECOND);
            self.stage.after(down, Happening::Start { at });
        }
        let node = &mut self.nodes[at];
        let Some(group) = node.disk.log.groups().first().copied() else { return };
        let last = node.disk.log.state(group).map_or(0, |state| state.last);
        node.damaged = true;
        if self.stage.rng.percent(50) {
            node.disk.log.lose()
        } else {
            node.disk.log.corrupt(group, last)
        }
        self.stage.note(at as u64 + 1, "log-damaged", &[("last", last)]);
    }

    /// A running replica will skip a command that the others do. Only one at a time, and only where a quorum of whole
    /// voters is left.
    fn strike_state(&mut self, at: usize) {
        let group = base::GroupId(1 + self.stage.rng.below(self.stage.plan.groups));
        let enough = self.stage.groups().all(|group| {
            self.stage.ledger.latest_membership(group).is_some_and(|membership| membership.voters.len() >= 3)
        });
        let pending = self.nodes.iter().any(|node| node.strays.is_some());
        let bearable = enough && !pending && self.everyone_is_whole() && self.operator.loss_is_bearable();
        let node = &mut self.nodes[at];
        if node.running.is_some() && node.enlisted && bearable {
            node.strays = Some(group);
            self.stage.note(at as u64 + 1, "strays-next", &[("group", group.0)]);
        }
    }

    pub fn end_fault(&mut self, ending: Ending) {
        match ending {
            Ending::Partition { number } => {
                self.stage.net.mend(number);
                self.stage.note(0, "mended", &[("number", number)]);
            }
            Ending::SlowDisk { at } => self.nodes[at].slow_disk = false,
            Ending::FullDisk { at } => self.hold(at, false),
        }
    }

    /// All faults end: whatever is down comes up, whatever is slow becomes quick.
    pub fn heal(&mut self) {
        self.stage.note(0, "heal", &[]);
        self.stage.healed = true;
        self.stage.net.heal();
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            node.slow_disk = false;
            node.stall_ends(&mut self.stage);
            node.strays = None;
            node.paused_until = node.paused_until.min(self.stage.now);
            if node.enlisted && node.running.is_none() {
                node.start(&mut self.stage);
            }
            self.hold(at, false);
        }
    }
}
