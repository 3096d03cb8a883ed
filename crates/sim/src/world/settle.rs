//! After the faults: the world has a bounded time to come to rest, and then everything is judged that can only be judged
//! at the end.
//!
//! At rest means: every member of every group is up, is what the membership says, and has applied the same as the
//! others; nothing that was asked is still open; a new write went through, and every member answers a linearizable read.

use std::collections::BTreeMap;

use base::GroupId;
use chainfire::event::EventKind;
use consensus::{MemberRole, StateMachine};
use proto::etcdserverpb::RangeRequest;

use super::World;
use super::plan::{MS, SECOND};
use super::queue::Happening;
use super::requests::Request;
use crate::linear::{self, Limits, Verdict};

/// The time to come to rest, in election timeouts; and what rebuilding a member may take besides.
const PATIENCE_ELECTIONS: u64 = 40;
const PATIENCE_REBUILD: u64 = 20 * SECOND;
/// Commands between two looks, while somebody has yet to be found out.
const FILLERS: usize = 24;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Faults strike, or the dust of the last one settles.
    #[default]
    Unrest,
    /// Members agree; the last writes and reads are under way.
    Probing,
    /// All is done and judged.
    Rest,
}

impl World {
    pub fn settle(&mut self) {
        let healed_at = self.stage.plan.faulty;
        let patience = PATIENCE_ELECTIONS * self.stage.plan.election_timeout() + PATIENCE_REBUILD;
        let unrest = match self.phase {
            Phase::Unrest => self.agreement().and_then(|()| self.nothing_open()),
            Phase::Probing => self.probes_done(),
            Phase::Rest => return,
        };
        match unrest {
            Err(why) if self.stage.now > healed_at + patience => {
                self.stage.ledger.fail(|| format!("not at rest long after everything was healed: {why}"));
                return;
            }
            Err(_) => {}
            Ok(()) if self.phase == Phase::Unrest => {
                self.stage.note(0, "agreed", &[]);
                self.phase = Phase::Probing;
                self.probe_everyone();
            }
            Ok(()) => {
                self.judge();
                self.phase = Phase::Rest;
                return;
            }
        }
        self.go_on_writing();
        self.stage.after(50 * MS, Happening::Settle);
    }

    /// Replicas compare their hashes at every so many entries: who went astray is found out when there are some more. These
    /// do nothing; and there are reads, which a replica that has been found out must not answer.
    fn go_on_writing(&mut self) {
        let Some(&(group, _)) = self.stage.ledger.astray_members().first() else { return };
        let nothing = chainfire::command::Command::LeaseRevoke { id: i64::MAX }.encode();
        for _ in 0..FILLERS {
            let at = self.stage.rng.below(self.nodes.len() as u64) as usize;
            let (seq, delay) = (self.stage.name(), self.stage.rng.below(50 * MS));
            let request = Request::Command { group, command: nothing.clone() };
            self.stage.after(delay, Happening::Request { at, seq, request });
        }
        for at in 0..self.nodes.len() {
            let range = RangeRequest { key: b"k0".as_slice().into(), ..RangeRequest::default() };
            let (seq, delay) = (self.stage.name(), self.stage.rng.below(50 * MS));
            let request = Request::Read { group, range, by_lease: self.stage.rng.percent(50) };
            self.stage.after(delay, Happening::Request { at, seq, request });
        }
    }

    /// Whether all members of all groups stand at the same place.
    fn agreement(&self) -> Result<(), String> {
        for group in self.stage.groups() {
            let membership = self.stage.ledger.latest_membership(group).ok_or("there is no membership")?;
            if membership.is_joint() {
                return Err(format!("group {group} is in the middle of a membership change"));
            }
            let mut marks = BTreeMap::new();
            for member in membership.members.values() {
                let node = &self.nodes[member.node.0 as usize - 1];
                let running = node.running.as_ref().ok_or_else(|| format!("node {} is down", node.id))?;
                let replica = running.replicas.get(&group).ok_or("a group is missing")?;
                let status = running.host.status(group).unwrap_or_default();
                if member.peer != replica.peer || !member.successor.is_none() {
                    return Err(format!("node {} has not been replaced", node.id));
                }
                if member.role == MemberRole::Learner && member.promote_when_ready {
                    return Err(format!("node {} has not been promoted", node.id));
                }
                if status.leader.is_none() {
                    return Err(format!("node {} knows no leader of group {group}", node.id));
                }
                let mark = replica.machine.mark();
                if status.committed != mark.index || status.applied != mark.index || status.last != mark.index {
                    return Err(format!(
                        "node {}, group {group}: last {}, committed {}, applied {}",
                        node.id, status.last, status.committed, mark.index
                    ));
                }
                marks.insert(node.id, mark);
            }
            let mut distinct: Vec<_> = marks.values().map(|mark| (mark.index, mark.term, mark.hash)).collect();
            distinct.dedup();
            if distinct.len() != 1 {
                return Err(format!("members of group {group} stand at {marks:?}"));
            }
        }
        Ok(())
    }

    /// Everything that was asked of a host that still runs must have come to an end.
    fn nothing_open(&self) -> Result<(), String> {
        for node in self.nodes.iter().filter(|node| node.enlisted) {
            let Some(running) = &node.running else { continue };
            if let Some(seq) = running.open.first() {
                return Err(format!("{seq:x} never came to an end on node {}", node.id));
            }
        }
        Ok(())
    }

    fn probe_everyone(&mut self) {
        for group in self.stage.groups() {
            let Some(membership) = self.stage.ledger.latest_membership(group).cloned() else { continue };
            for member in membership.members.values() {
                let at = member.node.0 as usize - 1;
                self.probe(group, at, true);
                self.probe(group, at, false);
            }
        }
    }

    fn probes_done(&self) -> Result<(), String> {
        if self.clients.probes_left > 0 {
            return Err(format!("{} last writes and reads have not been answered", self.clients.probes_left));
        }
        self.agreement()?;
        self.nothing_open()?;
        self.watchers_caught_up()
    }

    /// What can only be judged at the end.
    fn judge(&mut self) {
        self.record_open_calls();
        for group in self.stage.groups() {
            if let Err(why) = self.acknowledged_writes_are_there(group) {
                self.stage.ledger.fail(|| why);
            }
            let limits = Limits { steps_max: 500_000, time_max: std::time::Duration::from_secs(60) };
            let history = self.clients.history.get(&group).map_or(&[][..], Vec::as_slice);
            match linear::check(history, limits) {
                Verdict::Linearizable => {}
                Verdict::Violation { explanation } => {
                    self.stage.ledger.fail(|| format!("group {group} is not linearizable: {explanation}"));
                }
                Verdict::Unknown { why } => self.stage.ledger.fail(|| format!("cannot be checked: {why}")),
            }
        }
    }

    /// Every acknowledged write is in the history that a member has, unless that was compacted away.
    fn acknowledged_writes_are_there(&self, group: GroupId) -> Result<(), String> {
        let membership = self.stage.ledger.latest_membership(group).ok_or("there is no membership")?;
        let members = membership.members.values().map(|member| &self.nodes[member.node.0 as usize - 1]);
        let replicas = members.filter_map(|node| node.running.as_ref()?.replicas.get(&group));
        for replica in replicas {
            let view = replica.reader.current();
            let from = view.compacted.max(1);
            let history = view
                .history(from, view.revision, b"", b"\0", usize::MAX)
                .map_err(|error| format!("history cannot be read: {error:?}"))?;
            let changes: BTreeMap<i64, _> =
                history.revisions.iter().map(|revision| (revision.revision, &revision.events)).collect();
            for ((_, revision), (key, value)) in self.clients.acknowledged.range((group, 0)..=(group, u64::MAX)) {
                let revision = *revision as i64;
                if revision <= from {
                    continue;
                }
                let kind = if value.is_some() { EventKind::Put } else { EventKind::Delete };
                let there = changes
                    .get(&revision)
                    .is_some_and(|events| events.iter().any(|event| event.kind == kind && event.key == key.as_bytes()));
                if !there {
                    return Err(format!("the acknowledged write of {key} at revision {revision} is gone"));
                }
            }
        }
        Ok(())
    }
}
