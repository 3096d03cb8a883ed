//! Operators that people ask for. They pass the same filters and the same safety as planned ones; what passes by itself
//! (rates, a store that is busy) does not stop them, because people may have a reason to hurry.

use base::{GroupId, NodeId, PeerId};

use crate::model::{Cause, Key, Operator, Step};
use crate::plan::filter::{self, Ask};
use crate::plan::merge;
use crate::plan::round::{Blocker, Round};
use crate::view::{Region, SPLIT_KEYS_MAX};

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    TransferLeader { to: NodeId },
    MovePeer { from: NodeId, to: NodeId },
    AddPeer { to: NodeId },
    RemovePeer { from: NodeId },
    Split { keys: Vec<Key> },
    Merge { into: GroupId },
}

/// Why it is not done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    #[error("there is no store {0}")]
    UnknownStore(NodeId),
    #[error("region {region} has no replica in store {store}; it has some in {held}", held = listed(.held))]
    NoReplica { region: u64, store: NodeId, held: Vec<NodeId> },
    #[error("the leader is in store {0} already")]
    LeadsAlready(NodeId),
    #[error("store {store} cannot {what}: {why}")]
    Unfit { store: NodeId, what: &'static str, why: String },
    #[error("keys to split at must ascend and lie within the region, behind its first key, {SPLIT_KEYS_MAX} at most")]
    Keys,
    #[error("there is no region {0}")]
    UnknownRegion(GroupId),
    #[error("region {region} cannot become part of region {into}: {why}")]
    Apart { region: GroupId, into: GroupId, why: String },
    #[error("{0}")]
    Blocked(String),
}

fn listed(stores: &[NodeId]) -> String {
    stores.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl From<Blocker> for Refused {
    fn from(blocker: Blocker) -> Refused {
        Refused::Blocked(blocker.to_string())
    }
}

/// The operator that does it, checked as planned ones are.
pub fn operator(round: &mut Round<'_>, region: &Region, wanted: &Wanted) -> Result<Operator, Refused> {
    if let Some(blocker) = round.blocker(region) {
        return Err(blocker.into());
    }
    let steps = match wanted {
        Wanted::TransferLeader { to } => {
            holds(region, *to)?;
            if region.leader == Some(*to) {
                return Err(Refused::LeadsAlready(*to));
            }
            let store = known(round, *to)?;
            let verdict = filter::judge_leader(round, region, store);
            verdict.map_err(|why| Refused::Unfit { store: *to, what: "lead", why: why.to_string() })?;
            vec![Step::TransferLeader { to: *to }]
        }
        Wanted::MovePeer { from, to } => {
            holds(region, *from)?;
            may_take(round, region, *to, Some(*from))?;
            let mut steps = vec![Step::AddLearner { store: *to, peer: PeerId::NONE }, Step::Promote { store: *to }];
            steps.extend(round.leave(region, *from, Some(*to))?);
            steps
        }
        Wanted::AddPeer { to } => {
            may_take(round, region, *to, None)?;
            vec![Step::AddLearner { store: *to, peer: PeerId::NONE }, Step::Promote { store: *to }]
        }
        Wanted::RemovePeer { from } => {
            holds(region, *from)?;
            round.leave(region, *from, None)?
        }
        Wanted::Split { keys } => {
            let within = |key: &Key| *key > region.start && (region.end.is_empty() || *key < region.end);
            let good = (1..=SPLIT_KEYS_MAX).contains(&keys.len()) && keys.is_sorted_by(|a, b| a < b);
            if !good || !keys.iter().all(within) {
                return Err(Refused::Keys);
            }
            vec![Step::Split { keys: keys.clone() }]
        }
        Wanted::Merge { into } => {
            let into = round.view.region(*into).ok_or(Refused::UnknownRegion(*into))?;
            if let Some(blocker) = round.blocker(into) {
                return Err(blocker.into());
            }
            let apart = |why| Refused::Apart { region: region.id, into: into.id, why };
            merge::steps(round, region, into).map_err(apart)?
        }
    };
    let reason = "asked for by people".to_owned();
    let (cause, rejected) = (Cause::Admin, Vec::new());
    let operator = Operator { region: region.id, epoch: region.epoch, cause, steps, reason, rejected };
    round.push(operator.clone())?;
    Ok(operator)
}

fn known<'r, 'a>(round: &'r Round<'a>, store: NodeId) -> Result<&'r crate::plan::round::StoreNow<'a>, Refused> {
    round.store(store).ok_or(Refused::UnknownStore(store))
}

fn holds(region: &Region, store: NodeId) -> Result<(), Refused> {
    if region.peer(store).is_some() {
        return Ok(());
    }
    let held = region.peers.iter().map(|peer| peer.store).collect();
    Err(Refused::NoReplica { region: region.id.0, store, held })
}

fn may_take(round: &Round<'_>, region: &Region, to: NodeId, leaving: Option<NodeId>) -> Result<(), Refused> {
    let store = known(round, to)?;
    let ask = Ask { region, leaving, isolation_min: 0 };
    filter::judge_asked(round, &ask, store).map_err(|why| Refused::Unfit {
        store: to,
        what: "take the replica",
        why: why.to_string(),
    })
}
