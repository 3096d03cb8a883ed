//! The operator: adds members, promotes, removes and rebuilds them, and moves leadership about. One change at a time;
//! what became of the last one is seen in the committed membership, not believed from an answer.
//!
//! Care is taken only where a real operator would: no voter is removed while another member is lost, and no log is
//! lost while a removal may still be under way. Otherwise a group could be left without a quorum for good, and
//! rightly so.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, NodeId, PeerId};
use consensus::{Member, MemberRole, Membership, MembershipChange};

use super::World;
use super::plan::{MS, NODES_MAX, SECOND};
use super::queue::{Happening, Who};
use super::requests::Request;
use super::stage::Stage;
use super::work::Answer;

#[derive(Default)]
pub struct Operator {
    /// Under way: what was asked, of whom, when.
    calls: BTreeMap<u64, (Asked, Who, u64)>,
    /// A removal whose outcome is not known may take effect at any time.
    removal_unclear: bool,
    /// Nodes that were removed, and when they are shut down for good.
    leaving: BTreeMap<usize, u64>,
    pub changes_done: u64,
    pub transfers_done: u64,
    pub rebuilt: u64,
}

#[derive(Clone, Debug, PartialEq)]
enum Asked {
    Add,
    Remove,
    Promote,
    Arrive,
    Describe,
    Transfer,
}

impl Operator {
    /// Takes an answer if it is for the operator.
    pub fn answered(&mut self, stage: &mut Stage, seq: u64, answer: &Answer) -> bool {
        let Some((asked, ..)) = self.calls.remove(&seq) else { return false };
        match answer {
            Answer::Done(_) if asked != Asked::Transfer => self.changes_done += 1,
            Answer::Moved => self.transfers_done += 1,
            Answer::Refused(why) if !why.outcome_unknown() => {}
            _ if asked == Asked::Remove => self.removal_unclear = true,
            _ => {}
        }
        stage.note(0, "operator-answer", &[("seq", seq)]);
        true
    }

    fn is_asking(&self, what: &Asked) -> bool {
        self.calls.values().any(|(asked, ..)| asked == what)
    }

    /// Whether a member may lose its log without anything being at stake but its own copy.
    pub fn loss_is_bearable(&self) -> bool {
        !self.removal_unclear && !self.is_asking(&Asked::Remove)
    }
}

impl World {
    /// The operator looks round, and does one thing.
    pub fn operate(&mut self) {
        let pause = if self.stage.healed { 100 * MS } else { self.stage.rng.between(100, 1_500) * MS };
        self.stage.after(pause, Happening::Operate);
        for seq in self.calls_of_the_dead() {
            self.answered(seq, Answer::Broken);
        }
        self.let_go();
        self.announce_arrivals();
        if self.stage.healed {
            return;
        }
        let faults = self.stage.plan.faults.clone();
        let groups = self.stage.plan.groups;
        let group = GroupId(1 + self.stage.rng.below(groups));
        if faults.transfers && self.stage.rng.percent(20) {
            let to = self.stage.rng.below(self.nodes.len() as u64 + 1);
            let to = (to > 0).then_some(NodeId(to));
            self.ask_somebody(group, Asked::Transfer, Request::Transfer { group, to });
        }
        if faults.membership && self.stage.rng.percent(35) {
            self.change_membership(group);
        }
    }

    fn change_membership(&mut self, group: GroupId) {
        let Some(membership) = self.stage.ledger.latest_membership(group).cloned() else { return };
        let members: Vec<&Member> = membership.members.values().collect();
        let change = match self.stage.rng.below(10) {
            0..=3 => return self.add(group, &membership),
            4..=5 => {
                let learners: Vec<_> = members.iter().filter(|member| member.role == MemberRole::Learner).collect();
                let Some(learner) = self.stage.rng.pick(&learners) else { return };
                (Asked::Promote, MembershipChange::Promote { node: learner.node })
            }
            6 => {
                let Some(member) = self.stage.rng.pick(&members) else { return };
                let name = Some(format!("name-{}", self.stage.rng.below(100)));
                let change = MembershipChange::Describe { node: member.node, name, peer_urls: None, client_urls: None };
                (Asked::Describe, change)
            }
            _ => {
                if membership.voters.len() < 3 || !self.everyone_is_whole() {
                    return;
                }
                let Some(member) = self.stage.rng.pick(&members) else { return };
                (Asked::Remove, MembershipChange::Remove { node: member.node })
            }
        };
        self.ask_somebody(group, change.0, Request::Change { group, change: change.1 });
    }

    fn add(&mut self, group: GroupId, membership: &Membership) {
        if membership.members.len() >= NODES_MAX - 1 {
            return;
        }
        let free: Vec<usize> = (0..self.nodes.len())
            .filter(|at| {
                let node = &self.nodes[*at];
                let listed = self.stage.groups().any(|group| self.stage.ledger.is_member(group, node.id));
                if node.enlisted { !membership.members.contains_key(&node.id) && self.is_whole(*at) } else { !listed }
            })
            .filter(|at| !self.operator.leaving.contains_key(at))
            .collect();
        let Some(&at) = self.stage.rng.pick(&free) else { return };
        let node = &mut self.nodes[at];
        if !node.enlisted {
            node.renew(&mut self.stage);
            node.start(&mut self.stage);
        }
        let peer = node.disk.shares[&group].peer;
        // A peer that was removed never comes back: its label may, with another folder.
        if self.stage.ledger.ever_member(group, peer) {
            return;
        }
        let known = self.stage.rng.percent(70);
        let member = Member {
            node: node.id,
            peer: if known { peer } else { PeerId::NONE },
            name: format!("joiner-{}", node.id),
            promote_when_ready: self.stage.rng.percent(60),
            ..Member::default()
        };
        let change = MembershipChange::Add(member);
        self.ask_somebody(group, Asked::Add, Request::Change { group, change });
    }

    /// Members whose folder is not the one the group knows make themselves known: awaited ones, and those that lost
    /// their log.
    fn announce_arrivals(&mut self) {
        for group in self.stage.groups() {
            let Some(membership) = self.stage.ledger.latest_membership(group).cloned() else { continue };
            for at in 0..self.nodes.len() {
                let node = &self.nodes[at];
                let Some(member) = membership.members.get(&node.id).filter(|_| node.enlisted) else { continue };
                let Some(share) = node.disk.shares.get(&group) else { continue };
                if member.peer == share.peer || member.successor == share.peer || node.running.is_none() {
                    continue;
                }
                let (node, peer) = (node.id, share.peer);
                let change = MembershipChange::Arrive { node, peer };
                if self.ask_somebody(group, Asked::Arrive, Request::Change { group, change }) {
                    self.operator.rebuilt += 1;
                }
            }
        }
    }

    /// Shuts down nodes that were removed from every group, after a while in which they may be a nuisance. In the end
    /// also those that were to be added and never were.
    fn let_go(&mut self) {
        let now = self.stage.now;
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let known: Vec<&Membership> =
                self.stage.groups().filter_map(|group| self.stage.ledger.latest_membership(group)).collect();
            let member = known.iter().any(|membership| membership.members.contains_key(&node.id));
            if member && !node.enlisted && !node.disk.shares.is_empty() {
                // A change that nobody waited for any longer has made it a member after all.
                self.nodes[at].enlisted = true;
                self.nodes[at].start(&mut self.stage);
                continue;
            }
            let removed = known.iter().any(|membership| membership.removed.contains(&node.id));
            if !node.enlisted || member || !(removed || self.stage.healed) {
                self.operator.leaving.remove(&at);
                continue;
            }
            let grace = self.stage.rng.between(1, 5) * SECOND;
            let until = *self.operator.leaving.entry(at).or_insert(now + grace);
            if now >= until || self.stage.healed {
                self.operator.leaving.remove(&at);
                self.nodes[at].crash(&mut self.stage);
                self.nodes[at].enlisted = false;
                self.nodes[at].damaged = false;
                self.stage.note(at as u64 + 1, "shut-down", &[]);
            }
        }
    }

    /// Whether the node's folder is the one that its groups know, wherever it is a member.
    fn is_whole(&self, at: usize) -> bool {
        let node = &self.nodes[at];
        self.stage.groups().all(|group| {
            let membership = self.stage.ledger.latest_membership(group);
            let member = membership.and_then(|membership| membership.members.get(&node.id));
            let share = node.disk.shares.get(&group);
            member.is_none_or(|member| share.is_some_and(|share| share.peer == member.peer))
        })
    }

    /// Whether nobody is lost or being replaced, and no change is half done.
    pub fn everyone_is_whole(&self) -> bool {
        let settled = self.stage.groups().all(|group| {
            self.stage.ledger.latest_membership(group).is_some_and(|membership| {
                let members = membership.members.values();
                let awaited: BTreeSet<bool> =
                    members.map(|member| member.peer.is_none() || !member.successor.is_none()).collect();
                !membership.is_joint() && !awaited.contains(&true)
            })
        });
        let sound = |at: usize| !self.nodes[at].damaged && self.nodes[at].strays.is_none() && !self.nodes[at].condemned;
        settled && self.stage.ledger.astray.is_empty() && (0..self.nodes.len()).all(|at| self.is_whole(at) && sound(at))
    }

    /// Asks a running node. False when one is asked for the same already, or none runs.
    fn ask_somebody(&mut self, group: GroupId, asked: Asked, request: Request) -> bool {
        let busy = asked != Asked::Transfer && !self.operator.calls.is_empty();
        let running: Vec<usize> = (0..self.nodes.len())
            .filter(|at| self.nodes[*at].running.is_some() && self.stage.ledger.is_member(group, self.nodes[*at].id))
            .collect();
        let Some(&at) = self.stage.rng.pick(&running) else { return false };
        if busy {
            return false;
        }
        let seq = self.stage.name();
        self.stage.note(0, "operator", &[("seq", seq), ("at", at as u64 + 1), ("what", asked.clone() as u64)]);
        self.operator.calls.insert(seq, (asked, self.nodes[at].who(), self.stage.now));
        let trip = self.stage.net.client_trip();
        self.stage.after(trip, Happening::Request { at, seq, request });
        true
    }

    /// Calls at nodes that have died since, or that never answered.
    fn calls_of_the_dead(&self) -> Vec<u64> {
        let patience = self.stage.plan.deadline + 2 * SECOND;
        let dead = |who: &Who, since: &u64| self.nodes[who.at].who() != *who || self.stage.now > *since + patience;
        let calls = self.operator.calls.iter();
        calls.filter(|(_, (_, who, since))| dead(who, since)).map(|(seq, _)| *seq).collect()
    }
}
