//! The replica checker: as many voters as wanted, in stores that live and stay, as far apart as the stores allow.
//!
//! In this order, because one operator at a time is all a region gets:
//! ```text
//!  too many voters       remove one               the dead first, then the one worst placed
//!  a voter that differs  replace it; with no other place for it, take it out, and the region has too few
//!  a voter down          replace it               ┐ learner, promote, then remove; a learner that an earlier
//!  … leaves, or is full    replace it             ├ operator left behind takes the place of a new one
//!  too few voters        add one                  ┘
//!  a learner left over   remove it
//!  two too close         move one                 only in a region that is otherwise sound
//! ```
//! A replica is down when its store has been silent towards PD, or it towards its leader, for `max-store-down-time`.

use base::{NodeId, PeerId};

use crate::model::{Cause, Operator, Rejected, Step};
use crate::plan::domain::{best_isolation, isolation};
use crate::plan::filter::{Ask, Rejection};
use crate::plan::round::{Blocker, Round};
use crate::policy::format_span;
use crate::view::{Health, Region, StoreState};

/// What a region lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Need {
    pub cause: Cause,
    pub what: What,
    /// In plain words.
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Remove(NodeId),
    /// A replica somewhere, in exchange for `leaving` if given. `learner` is one that is there and may take the place.
    Place {
        leaving: Option<NodeId>,
        learner: Option<NodeId>,
        isolation_min: u64,
    },
}

pub fn check(round: &mut Round<'_>, region: &Region) -> Result<Option<Operator>, Blocker> {
    let Some(need) = need(round, region) else { return Ok(None) };
    if let Some(blocker) = round.blocker(region).or_else(|| round.limit(need.cause)) {
        return Err(blocker);
    }
    let operator = |reason, steps, rejected| Operator {
        region: region.id,
        epoch: region.epoch,
        cause: need.cause,
        steps,
        reason,
        rejected,
    };
    match need.what {
        What::Remove(store) => {
            if need.cause == Cause::SurplusReplica {
                round.may_leave(store)?;
            }
            Ok(Some(operator(need.reason, round.leave(region, store, None)?, Vec::new())))
        }
        What::Place { leaving, learner, isolation_min } => {
            if let Some(leaving) = leaving {
                round.may_leave(leaving)?;
            }
            let (store, peer, choice, rejected) = match learner {
                Some(store) => {
                    if let Some(reason) = out_of_reach(round, region, store) {
                        return Err(Blocker::NoCandidate { rejected: vec![Rejected { store, reason }] });
                    }
                    let peer = region.peer(store).map_or(PeerId::NONE, |peer| peer.id);
                    (store, peer, "has a learner already".to_owned(), Vec::new())
                }
                None => {
                    let found = round.select(&Ask { region, leaving, isolation_min });
                    let (store, fit, rejected) = match (found, leaving) {
                        (Err(Blocker::NoCandidate { rejected }), Some(leaving))
                            if need.cause == Cause::DifferingReplica && do_without(round, region, leaving) =>
                        {
                            let reason = format!("{}; there is no other place, so it leaves first", need.reason);
                            return Ok(Some(operator(reason, round.leave(region, leaving, None)?, rejected)));
                        }
                        (found, _) => found?,
                    };
                    let choice = format!("isolation {}, score {:.0} MiB", fit.isolation, fit.score / MIB);
                    (store, PeerId::NONE, choice, rejected)
                }
            };
            let mut steps = vec![Step::AddLearner { store, peer }, Step::Promote { store }];
            if let Some(leaving) = leaving {
                steps.extend(round.leave(region, leaving, Some(store))?);
            }
            Ok(Some(operator(format!("{}; store {store}: {choice}", need.reason), steps, rejected)))
        }
    }
}

const MIB: f64 = (1 << 20) as f64;

/// What the region lacks; `None` when it is as wanted.
pub fn need(round: &Round<'_>, region: &Region) -> Option<Need> {
    let wanted = round.policy.max_replicas as usize;
    let voters = region.voters().count();
    if voters > wanted {
        let store = surplus(round, region);
        let reason = format!("{voters} voters, {wanted} wanted; the one in store {store} can best be spared");
        return Some(Need { cause: Cause::SurplusReplica, what: What::Remove(store), reason });
    }
    let lost = region.learners().find_map(|peer| Some((peer.store, ailment(round, region, peer.store)?)));
    if let Some((store, (_, why))) = lost {
        let reason = format!("the learner in store {store} is of no use: {why}");
        return Some(Need { cause: Cause::Learner, what: What::Remove(store), reason });
    }
    let learner = region.learners().next().map(|peer| peer.store);
    let place = |leaving| What::Place { leaving, learner, isolation_min: 0 };
    let ailing = region.voters().filter_map(|peer| Some((peer.store, ailment(round, region, peer.store)?)));
    // The dead before the leaving; the leader, which has to be moved first, last.
    if let Some((store, (cause, why))) =
        ailing.min_by_key(|(store, (cause, _))| (*cause, region.leader == Some(*store)))
    {
        return Some(Need { cause, what: place(Some(store)), reason: why });
    }
    if voters < wanted {
        let reason = format!("{voters} voters, {wanted} wanted");
        return Some(Need { cause: Cause::MissingReplica, what: place(None), reason });
    }
    if let Some(store) = learner {
        let reason = format!("all {wanted} voters are well, the learner in store {store} is left over");
        return Some(Need { cause: Cause::Learner, what: What::Remove(store), reason });
    }
    spread(round, region)
}

/// Why a learner cannot catch up at present; should that last, it ails.
fn out_of_reach(round: &Round<'_>, region: &Region, store: NodeId) -> Option<Rejection> {
    let health = round.store(store).map_or(Health::Connected, |now| now.health);
    if health != Health::Connected {
        return Some(Rejection::Silent(health));
    }
    region.down_for(store, round.now).map(|_| Rejection::DoesNotAnswer)
}

/// Whether the others are several, and all of them well.
fn do_without(round: &Round<'_>, region: &Region, leaving: NodeId) -> bool {
    let mut others = region.voters().map(|peer| peer.store).filter(|store| *store != leaving);
    region.voters().count() > 2 && others.all(|store| round.is_well(region, store))
}

/// Why a replica there has to be replaced.
fn ailment(round: &Round<'_>, region: &Region, store: NodeId) -> Option<(Cause, String)> {
    let Some(now) = round.store(store) else {
        return Some((Cause::DownReplica, format!("store {store} is not known")));
    };
    if region.peer(store).is_some_and(|peer| now.store.differs(region.id, peer.id)) {
        let why = format!("the replica in store {store} is not what most replicas are");
        return Some((Cause::DifferingReplica, why));
    }
    if now.state == StoreState::Tombstone {
        return Some((Cause::DownReplica, format!("store {store} is a tombstone")));
    }
    if let Health::Down(span) = now.health {
        return Some((Cause::DownReplica, format!("store {store} is down, silent for {}", format_span(span))));
    }
    if let Some(span) = region.down_for(store, round.now).filter(|span| *span >= round.policy.max_store_down_time) {
        let why = format!("the replica in store {store} has not answered its leader for {}", format_span(span));
        return Some((Cause::DownReplica, why));
    }
    if now.state == StoreState::Offline {
        return Some((Cause::OfflineReplica, format!("store {store} is going offline")));
    }
    // Until it has room again.
    now.store.report.full.then(|| (Cause::FullStore, format!("the disk of store {store} is full")))
}

/// The voter that can best be spared.
fn surplus(round: &Round<'_>, region: &Region) -> NodeId {
    let rank = |store: NodeId| {
        let now = round.store(store);
        let apart = now.map_or(0, |now| isolation(&now.path, round.paths_without(region, Some(store)), round.levels()));
        let score = now.map_or(f64::MAX, |now| now.region_score(0, 0));
        (
            ailment(round, region, store).is_none(),
            round.is_well(region, store),
            region.leader == Some(store),
            apart,
            std::cmp::Reverse(score.to_bits()),
            store,
        )
    };
    region.voters().map(|peer| peer.store).min_by_key(|store| rank(*store)).unwrap_or_default()
}

/// A replica that could be kept further apart from the others than it is.
fn spread(round: &Round<'_>, region: &Region) -> Option<Need> {
    let levels = round.levels();
    if levels == 0 || !round.is_sound(region) {
        return None;
    }
    let best_possible = 100_u64.pow(levels as u32 - 1) * (region.peers.len() as u64 - 1);
    let mut best: Option<(u64, bool, NodeId, u64)> = None;
    for peer in region.voters() {
        let rest: Vec<_> = round.paths_without(region, Some(peer.store)).collect();
        let has = isolation(&round.store(peer.store)?.path, rest.iter().copied(), levels);
        if has == best_possible {
            continue;
        }
        let could = best_isolation(round.open_paths(), &rest, levels);
        let gain = (could.saturating_sub(has), region.leader != Some(peer.store), peer.store, has);
        if gain.0 > 0 && best.is_none_or(|best| (gain.0, gain.1) > (best.0, best.1)) {
            best = Some(gain);
        }
    }
    let (gain, _, store, has) = best?;
    let what = What::Place { leaving: Some(store), learner: None, isolation_min: has + 1 };
    let reason =
        format!("the replica in store {store} is too close to the others (isolation {has}, {} possible)", has + gain);
    Some(Need { cause: Cause::Spread, what, reason })
}
