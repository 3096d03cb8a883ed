//! Leaders are spread over the stores by count (by weight where stores have one).
//!
//! A transfer from store `a` to store `b` is planned only if `a` still has no fewer leaders than `b` after it, with a
//! tolerance of 1 % of the average on top. So every transfer lowers the higher of the two, and it ends.

use base::{GroupId, NodeId};

use crate::model::{Cause, Operator, Rejected, Step};
use crate::plan::filter::{self, Rejection};
use crate::plan::round::{JUDGED_BY_SCHEDULER_MAX, Round};
use crate::plan::sample;
use crate::policy::Scheduler;
use crate::view::Region;

/// Regions drawn per store and direction.
const SAMPLES: usize = 24;
const TOLERANCE_PERCENT: f64 = 1.0;

pub fn run(round: &mut Round<'_>) {
    if !round.policy.is_on(Scheduler::BalanceLeader) {
        return;
    }
    let tolerance = tolerance(round);
    let judged_max = round.stats.judged + JUDGED_BY_SCHEDULER_MAX;
    let lowest_first = |round: &Round<'_>| {
        let up = (0..round.stores().len()).filter(|index| round.stores()[*index].is_up());
        let mut order: Vec<_> = up.map(|index| (round.stores()[index].leader_score(0), index)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        order.into_iter().map(|(_, index)| index).collect::<Vec<_>>()
    };
    // The stores with the most leaders give; where nothing more is found, those with the fewest take.
    for giving in [true, false] {
        let mut done = vec![false; round.stores().len()];
        'again: while round.limit(Cause::BalanceLeader).is_none() && round.stats.judged < judged_max {
            let order = lowest_first(round);
            let (Some(&lowest), Some(&highest)) = (order.first(), order.last()) else { break };
            let (lowest, highest) = (round.stores()[lowest].leader_score(1), round.stores()[highest].leader_score(-1));
            let order: Vec<_> = if giving { order.into_iter().rev().collect() } else { order };
            for store in order.into_iter().filter(|index| !done[*index]).collect::<Vec<_>>() {
                let now = &round.stores()[store];
                let apart = if giving { now.leader_score(-1) - lowest } else { highest - now.leader_score(1) };
                if apart < tolerance || round.stats.judged >= judged_max {
                    break 'again;
                }
                let operator = if giving { give(round, store, tolerance) } else { take(round, store, tolerance) };
                if operator.is_some_and(|operator| round.push(operator).is_ok()) {
                    continue 'again;
                }
                done[store] = true;
            }
            break;
        }
    }
}

/// Leaders' score by which two stores may differ for nothing. Below one leader it is none, so that small clusters become even.
pub fn tolerance(round: &Round<'_>) -> f64 {
    let up: Vec<_> = round.stores().iter().filter(|store| store.is_up()).map(|store| store.leader_score(0)).collect();
    (up.iter().sum::<f64>() / (up.len().max(1) as f64) * TOLERANCE_PERCENT / 100.0).floor()
}

fn give(round: &mut Round<'_>, from: usize, tolerance: f64) -> Option<Operator> {
    let store = round.stores()[from].store;
    let drawn = sample(round, &store.leaders, 2 * from as u64, SAMPLES);
    drawn.into_iter().find_map(|region| transfer(round, region, None, tolerance))
}

fn take(round: &mut Round<'_>, to: usize, tolerance: f64) -> Option<Operator> {
    let store = round.stores()[to].store;
    let drawn = sample(round, &store.followers, 2 * to as u64 + 1, SAMPLES);
    drawn.into_iter().find_map(|region| transfer(round, region, Some(store.id()), tolerance))
}

/// The region's leader goes to `to`, or to the voter with the fewest leaders, if that evens things out.
fn transfer(round: &mut Round<'_>, region: GroupId, to: Option<NodeId>, tolerance: f64) -> Option<Operator> {
    let region = round.view.region(region)?;
    if region.is_hot() || round.blocker(region).is_some() {
        return None;
    }
    let from = round.store(region.leader?)?;
    if !from.is_up() {
        return None;
    }
    let mut best: Option<(f64, NodeId)> = None;
    let mut rejected = Vec::new();
    let mut judged = 0;
    for peer in region.voters().filter(|peer| Some(peer.store) != region.leader) {
        let Some(store) = round.store(peer.store) else { continue };
        judged += 1;
        let better = from.leader_score(-1) >= store.leader_score(1) + tolerance;
        let verdict = filter::judge_leader(round, region, store);
        match verdict.and(if better { Ok(()) } else { Err(Rejection::NotBetter) }) {
            Ok(()) if to.is_none_or(|to| to == store.id()) => {
                let score = store.leader_score(1);
                if best.is_none_or(|(lowest, _)| score < lowest) {
                    best = Some((score, store.id()));
                }
            }
            Ok(()) => {}
            Err(reason) => rejected.push(Rejected { store: store.id(), reason }),
        }
    }
    let operator = best.map(|(_, to)| operator(round, region, from.id(), to, rejected));
    round.stats.judged += judged;
    operator
}

fn operator(round: &Round<'_>, region: &Region, from: NodeId, to: NodeId, rejected: Vec<Rejected>) -> Operator {
    let leaders = |store| round.store(store).map_or(0, |store| store.leaders);
    let reason = format!("store {from} has {} leaders, store {to} has {}", leaders(from), leaders(to));
    let (cause, steps) = (Cause::BalanceLeader, vec![Step::TransferLeader { to }]);
    Operator { region: region.id, epoch: region.epoch, cause, steps, reason, rejected }
}
