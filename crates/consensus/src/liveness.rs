//! Which other nodes are there, so that groups that have nothing to do need not ask one by one.
//!
//! Every [`EVERY`] a node tells each neighbour (a node that has a peer in one of its groups) that it is there, with one message
//! for all groups; one that has said nothing for [`PATIENCE`] counts as gone, and one that nothing can be sent to besides sooner:
//! a process that was killed breaks its connections. The message names the sender's life: a process that was started again is
//! there, but knows of nothing that its earlier life had promised.
//!
//! What follows from it is decided per group (`sleep`). It is never a reason to answer or to vote, only one to keep still
//! or to look: a wrong guess costs time, not safety.
//!
//! A node that stood still itself (stopped, or starved) has heard nobody meanwhile, and holds that against no one: the gap
//! between two turns is added to what it knows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};

use crate::api::Output;
use crate::wire::{Body, Message};

pub const EVERY: Duration = Duration::from_millis(500);
pub const PATIENCE: Duration = Duration::from_millis(1500);
/// With a node to which the connection is broken: more than one message of it is missing.
const PATIENCE_WITH_BROKEN: Duration = Duration::from_millis(1100);

/// What was learnt of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// It says nothing any more.
    Gone,
    /// It was gone, or never heard of.
    There,
    /// It is another life of it.
    Reborn,
}

struct Neighbour {
    groups: BTreeSet<GroupId>,
    heard: Time,
    /// Zero when it was never heard of.
    life: u64,
    there: bool,
    /// Nothing could be sent to it since it was last heard.
    broken: bool,
}

impl Neighbour {
    fn patience(&self) -> Duration {
        if self.broken { PATIENCE_WITH_BROKEN } else { PATIENCE }
    }
}

pub(crate) struct Liveness {
    me: NodeId,
    life: u64,
    neighbours: BTreeMap<NodeId, Neighbour>,
    next: Time,
    looked: Time,
}

impl Liveness {
    /// `life` is another number in every life of the process.
    pub fn new(me: NodeId, life: u64, now: Time) -> Liveness {
        Liveness { me, life: life.max(1), neighbours: BTreeMap::new(), next: now, looked: now }
    }

    pub fn is_there(&self, node: NodeId) -> bool {
        self.neighbours.get(&node).is_some_and(|neighbour| neighbour.there)
    }

    /// Whether more than one of its messages is missing, though it may not count as gone yet.
    pub fn is_silent(&self, node: NodeId, now: Time) -> bool {
        let spoke = |neighbour: &Neighbour| neighbour.there && now.since(neighbour.heard) < PATIENCE - EVERY;
        !self.neighbours.get(&node).is_some_and(spoke)
    }

    /// The connection to it is broken.
    pub fn broke(&mut self, node: NodeId) {
        if let Some(neighbour) = self.neighbours.get_mut(&node) {
            neighbour.broken = true;
        }
    }

    /// Groups that have a peer on this neighbour.
    pub fn groups_on(&self, node: NodeId) -> Vec<GroupId> {
        self.neighbours.get(&node).map(|neighbour| neighbour.groups.iter().copied().collect()).unwrap_or_default()
    }

    /// A group lies on these nodes from now on, and on those before no more.
    pub fn place(&mut self, group: GroupId, before: &[NodeId], after: &[NodeId], now: Time) {
        for node in before.iter().filter(|node| !after.contains(node)) {
            if let Some(neighbour) = self.neighbours.get_mut(node) {
                neighbour.groups.remove(&group);
                if neighbour.groups.is_empty() {
                    self.neighbours.remove(node);
                }
            }
        }
        for node in after.iter().filter(|node| !before.contains(node) && **node != self.me) {
            let new = || Neighbour { groups: BTreeSet::new(), heard: now, life: 0, there: false, broken: false };
            self.neighbours.entry(*node).or_insert_with(new).groups.insert(group);
        }
    }

    /// A neighbour says that it is there.
    pub fn heard(&mut self, node: NodeId, life: u64, now: Time) -> Option<News> {
        let neighbour = self.neighbours.get_mut(&node)?;
        let (was_there, known) = (neighbour.there, neighbour.life);
        (neighbour.there, neighbour.life, neighbour.heard, neighbour.broken) = (true, life, now, false);
        if known != 0 && known != life {
            return Some(News::Reborn);
        }
        (!was_there).then_some(News::There)
    }

    /// When [`Liveness::look`] is due.
    pub fn due(&self) -> Time {
        let there = self.neighbours.values().filter(|neighbour| neighbour.there);
        there.map(|neighbour| neighbour.heard + neighbour.patience()).fold(self.next, Time::min)
    }

    /// Speaks to all, if it is time; who has gone. To be called at every turn, after what was heard.
    pub fn look(&mut self, now: Time, out: &mut Vec<Output>) -> Vec<NodeId> {
        let pause = now.since(self.looked);
        self.looked = now;
        let mut gone = Vec::new();
        for (node, neighbour) in &mut self.neighbours {
            if pause > EVERY {
                neighbour.heard = (neighbour.heard + pause).min(now);
            }
            if neighbour.there && now.since(neighbour.heard) >= neighbour.patience() {
                neighbour.there = false;
                gone.push(*node);
            }
        }
        if now >= self.next {
            self.next = now + EVERY;
            for to in self.neighbours.keys() {
                let body = Body::Alive { life: self.life };
                let (group, from, to_peer) = (GroupId(0), PeerId::NONE, PeerId::NONE);
                let message = Message { group, from, from_node: self.me, to: to_peer, body };
                out.push(Output::Send { to: *to, message });
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(10_000 + ms)
    }

    #[test]
    fn a_neighbour_comes_and_goes_and_comes_again() {
        let mut liveness = Liveness::new(ME, 7, at(0));
        assert_eq!(liveness.heard(OTHER, 3, at(0)), None, "it has no group here");
        liveness.place(GroupId(5), &[], &[ME, OTHER], at(0));
        assert!(!liveness.is_there(OTHER));
        assert_eq!(liveness.heard(OTHER, 3, at(10)), Some(News::There));
        assert_eq!(liveness.heard(OTHER, 3, at(20)), None);
        assert!(liveness.is_there(OTHER));
        let mut out = Vec::new();
        for ms in (0..=1500).step_by(100) {
            assert!(liveness.look(at(ms), &mut out).is_empty(), "at {ms}");
        }
        assert_eq!(out.len(), 4, "one every half second");
        assert_eq!(liveness.due(), at(1520));
        assert_eq!(liveness.look(at(1520), &mut out), [OTHER]);
        assert!(!liveness.is_there(OTHER));
        assert_eq!(liveness.heard(OTHER, 3, at(1600)), Some(News::There));
        assert_eq!(liveness.heard(OTHER, 4, at(1700)), Some(News::Reborn));
        liveness.place(GroupId(5), &[ME, OTHER], &[], at(1700));
        assert_eq!(liveness.heard(OTHER, 4, at(1800)), None);
    }

    #[test]
    fn who_stood_still_holds_it_against_nobody() {
        let mut liveness = Liveness::new(ME, 7, at(0));
        liveness.place(GroupId(5), &[], &[OTHER], at(0));
        liveness.heard(OTHER, 3, at(0));
        assert!(liveness.look(at(10), &mut Vec::new()).is_empty());
        assert!(liveness.look(at(60_000), &mut Vec::new()).is_empty());
        assert!(liveness.look(at(60_400), &mut Vec::new()).is_empty());
        let gone: Vec<NodeId> =
            (60_500..63_000).step_by(100).flat_map(|ms| liveness.look(at(ms), &mut Vec::new())).collect();
        assert_eq!(gone, [OTHER]);
    }
}
