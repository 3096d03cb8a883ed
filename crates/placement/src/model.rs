//! The words of placement: who holds a region (peers), which state of it is meant (epoch), and what is to become of it
//! (an operator: steps in order).
//!
//! A store holds at most one replica of a region, so a step names the store; the peer id behind it is new with every
//! replica and is drawn by whoever begins the operator.
//!
//! JSON shapes: ids of stores and regions are numbers, peer ids and keys are hexadecimal strings (a random 64-bit number does
//! not survive tools that read numbers as floats).

use std::fmt;
use std::sync::Arc;

use base::{GroupId, NodeId, PeerId};
use serde::ser::SerializeSeq as _;
use serde::{Serialize, Serializer};

use crate::plan::filter::Rejection;
use crate::view::Region;

/// A boundary in the ordered key space. Empty as a start: the first key; empty as an end: behind the last one.
pub type Key = Arc<[u8]>;

/// Which state of a region is meant. Both numbers only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Epoch {
    /// Grows with every change of peers.
    pub conf_version: u64,
    /// Grows with every split and merge.
    pub version: u64,
}

impl Epoch {
    /// Whether either number lies behind `other`'s: what it describes is out of date.
    pub fn is_behind(self, other: Epoch) -> bool {
        self.conf_version < other.conf_version || self.version < other.version
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.conf_version, self.version)
    }
}

/// One replica of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Peer {
    #[serde(serialize_with = "hex_peer")]
    pub id: PeerId,
    #[serde(serialize_with = "number")]
    pub store: NodeId,
    pub learner: bool,
}

/// One thing that a region's leader does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "step")]
pub enum Step {
    /// Add a learner. Done when it answers and has caught up, so it also stands for waiting for a learner that is there. The peer is
    /// [`PeerId::NONE`] when it is still to be drawn ([`Operator::draw_peers`]).
    AddLearner {
        #[serde(serialize_with = "number")]
        store: NodeId,
        #[serde(serialize_with = "hex_peer")]
        peer: PeerId,
    },
    /// The learner in the store becomes a voter.
    Promote {
        #[serde(serialize_with = "number")]
        store: NodeId,
    },
    Remove {
        #[serde(serialize_with = "number")]
        store: NodeId,
        #[serde(serialize_with = "hex_peer")]
        peer: PeerId,
    },
    TransferLeader {
        #[serde(serialize_with = "number")]
        to: NodeId,
    },
    /// Cut the region at these keys, in order, all within it.
    Split {
        #[serde(serialize_with = "hex_keys")]
        keys: Vec<Key>,
    },
    /// Become part of a neighbour whose replicas are in the same stores by then.
    Merge {
        #[serde(serialize_with = "number")]
        into: GroupId,
        into_epoch: Epoch,
    },
}

impl Step {
    /// Whether the region, as last reported, shows the step done. `planned` is the epoch that the operator was planned for. A
    /// merge shows in the region being gone, never here.
    pub fn is_done(&self, region: &Region, planned: Epoch) -> bool {
        match self {
            Step::AddLearner { store, .. } => region.peer(*store).is_some() && region.is_well_in(*store),
            Step::Promote { store } => region.peer(*store).is_some_and(|peer| !peer.learner),
            Step::Remove { store, peer } => region.peer(*store).is_none_or(|there| there.id != *peer),
            Step::TransferLeader { to } => region.leader == Some(*to),
            Step::Split { .. } => region.epoch.version > planned.version,
            Step::Merge { .. } => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::AddLearner { store, .. } => write!(f, "add a learner in store {store}"),
            Step::Promote { store } => write!(f, "promote the learner in store {store}"),
            Step::Remove { store, .. } => write!(f, "remove the replica in store {store}"),
            Step::TransferLeader { to } => write!(f, "transfer the leader to store {to}"),
            Step::Split { keys } => write!(f, "split at {} keys", keys.len()),
            Step::Merge { into, .. } => write!(f, "merge into region {into}"),
        }
    }
}

/// Why there is an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A learner that an operator left behind.
    Learner,
    MissingReplica,
    SurplusReplica,
    /// Its state is not what most replicas have.
    DifferingReplica,
    DownReplica,
    OfflineReplica,
    /// Its store has no room.
    FullStore,
    /// Two replicas share a failure domain without need.
    Spread,
    Split,
    Merge,
    EvictLeader,
    EvictSlowStore,
    BalanceLeader,
    BalanceRegion,
    HotRegion,
    /// Asked for by people.
    Admin,
}

impl Cause {
    /// Which limit of the policy counts it.
    pub fn class(self) -> Class {
        match self {
            Cause::Learner
            | Cause::MissingReplica
            | Cause::SurplusReplica
            | Cause::DifferingReplica
            | Cause::DownReplica
            | Cause::OfflineReplica
            | Cause::FullStore
            | Cause::Spread => Class::Replica,
            Cause::Split => Class::Split,
            Cause::Merge => Class::Merge,
            Cause::EvictLeader | Cause::EvictSlowStore => Class::Evict,
            Cause::BalanceLeader => Class::Leader,
            Cause::BalanceRegion => Class::Region,
            Cause::HotRegion => Class::Hot,
            Cause::Admin => Class::Admin,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Cause::Learner => "learner",
            Cause::MissingReplica => "missing-replica",
            Cause::SurplusReplica => "surplus-replica",
            Cause::DifferingReplica => "differing-replica",
            Cause::DownReplica => "down-replica",
            Cause::OfflineReplica => "offline-replica",
            Cause::FullStore => "full-store",
            Cause::Spread => "spread",
            Cause::Split => "split",
            Cause::Merge => "merge",
            Cause::EvictLeader => "evict-leader",
            Cause::EvictSlowStore => "evict-slow-store",
            Cause::BalanceLeader => "balance-leader",
            Cause::BalanceRegion => "balance-region",
            Cause::HotRegion => "hot-region",
            Cause::Admin => "admin",
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Operators that share a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Replica,
    Split,
    Merge,
    Evict,
    Leader,
    Region,
    Hot,
    Admin,
}

/// A store that was passed over, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rejected {
    #[serde(serialize_with = "number")]
    pub store: NodeId,
    #[serde(serialize_with = "shown")]
    pub reason: Rejection,
}

/// Rejected stores kept with an operator; [`crate::explain`] gives them all.
pub const REJECTED_MAX: usize = 16;

/// What a region's leader is to do, in order, one step at a time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operator {
    #[serde(serialize_with = "number")]
    pub region: GroupId,
    /// The region as it was when this was planned; begun on no other.
    pub epoch: Epoch,
    pub cause: Cause,
    pub steps: Vec<Step>,
    /// In plain words, with the figures that decided.
    pub reason: String,
    /// At most [`REJECTED_MAX`].
    pub rejected: Vec<Rejected>,
}

impl Operator {
    /// The first step that the region does not yet show as done, and its index. Steps before a step that is not done are
    /// not looked at again: `from` is where the caller stands.
    pub fn next_step(&self, region: &Region, from: usize) -> Option<(usize, &Step)> {
        self.steps.iter().enumerate().skip(from).find(|(_, step)| !step.is_done(region, self.epoch))
    }

    /// For a line of a log.
    pub fn listed_steps(&self) -> String {
        self.steps.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    /// Draws the peer ids that are still open.
    pub fn draw_peers(&mut self, mut draw: impl FnMut() -> PeerId) {
        for step in &mut self.steps {
            if let Step::AddLearner { peer, .. } = step
                && peer.is_none()
            {
                *peer = draw();
            }
        }
    }

    /// Stores that are to hold a replica which they do not hold yet.
    pub fn stores_added(&self) -> impl Iterator<Item = NodeId> {
        self.steps.iter().filter_map(|step| match step {
            Step::AddLearner { store, .. } => Some(*store),
            _ => None,
        })
    }

    pub fn stores_removed(&self) -> impl Iterator<Item = NodeId> {
        self.steps.iter().filter_map(|step| match step {
            Step::Remove { store, .. } => Some(*store),
            _ => None,
        })
    }

    /// The neighbour that takes the region in.
    pub fn merges_into(&self) -> Option<GroupId> {
        self.steps.iter().find_map(|step| match step {
            Step::Merge { into, .. } => Some(*into),
            _ => None,
        })
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} region {} at {}: ", self.cause, self.region, self.epoch)?;
        for (index, step) in self.steps.iter().enumerate() {
            write!(f, "{}{step}", if index == 0 { "" } else { ", " })?;
        }
        write!(f, " ({})", self.reason)
    }
}

/// What has a plain number in it.
pub(crate) trait Number {
    fn number(&self) -> u64;
}

impl Number for NodeId {
    fn number(&self) -> u64 {
        self.0
    }
}

impl Number for GroupId {
    fn number(&self) -> u64 {
        self.0
    }
}

pub(crate) fn number<S: Serializer>(id: &impl Number, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(id.number())
}

pub(crate) fn shown<S: Serializer>(value: &impl fmt::Display, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(value)
}

fn hex_peer<S: Serializer>(peer: &PeerId, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(peer)
}

fn hex_keys<S: Serializer>(keys: &[Key], to: S) -> Result<S::Ok, S::Error> {
    let mut list = to.serialize_seq(Some(keys.len()))?;
    for key in keys {
        list.serialize_element(&hex(key))?;
    }
    list.end()
}

/// Upper-case hexadecimal, as PD's users know keys.
pub fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use base::Time;

    use super::*;
    use crate::view::{DownPeer, RegionReport, StoreMeta, View};

    #[test]
    fn a_learner_that_does_not_answer_is_not_there_yet() {
        let step = Step::AddLearner { store: NodeId(2), peer: PeerId(12) };
        let is_done = |down: &[u64], pending: &[u64]| {
            let mut view = View::new(Time::ZERO);
            view.put_store(StoreMeta::new(NodeId(1)), Time::ZERO);
            view.put_store(StoreMeta::new(NodeId(2)), Time::ZERO);
            let peer = |store, learner| Peer { id: PeerId(10 + store), store: NodeId(store), learner };
            let down = down.iter().map(|store| DownPeer { store: NodeId(*store), since: Time::ZERO }).collect();
            let pending = pending.iter().map(|store| NodeId(*store)).collect();
            let peers = vec![peer(1, false), peer(2, true)];
            let report = RegionReport { id: GroupId(7), peers, down, pending, ..RegionReport::default() };
            view.report_region(report, Time::ZERO).unwrap();
            step.is_done(view.region(GroupId(7)).unwrap(), Epoch::default())
        };
        assert!(is_done(&[], &[]));
        assert!(!is_done(&[], &[2]));
        assert!(!is_done(&[2], &[]));
    }
}
