//! Replicas are spread over the stores by bytes, so that all disks fill at one pace.
//!
//! The score of a store is the weight of its regions (bytes, and a little for each), raised once its disk fills
//! (`plan::round`). A replica of weight `w` moves from `a` to `b` only if `score(a - w) ≥ score(b + w) + tolerance`: the
//! higher score falls and nothing overtakes it, so moves come to an end and never turn round. The tolerance is the larger of
//! one average region and 1 % of the average store.
//!
//! A move never brings replicas closer together than they are, and takes only sound regions that are not hot.

use base::{NodeId, PeerId};

use crate::model::{Cause, Operator, REJECTED_MAX, Rejected, Step};
use crate::plan::domain::isolation;
use crate::plan::filter::{self, Ask, Rejection};
use crate::plan::round::{JUDGED_BY_SCHEDULER_MAX, Round, StoreNow, signed};
use crate::plan::sample;
use crate::policy::{MIB, Scheduler};
use crate::view::Region;

/// Regions drawn per store and role: followers first, a leader would have to move before.
const SAMPLES: usize = 16;
const TOLERANCE_PERCENT: f64 = 1.0;

pub fn run(round: &mut Round<'_>) {
    if !round.policy.is_on(Scheduler::BalanceRegion) {
        return;
    }
    let tolerance = tolerance(round);
    let judged_max = round.stats.judged + JUDGED_BY_SCHEDULER_MAX;
    let mut done: Vec<bool> = round.stores().iter().map(|store| !store.is_up()).collect();
    // Every other round starts with stores drawn by lot, so that one that can give nothing does not stand before the others.
    let by_lot = round.number() % 2 == 1;
    while round.limit(Cause::BalanceRegion).is_none() && round.stats.judged < judged_max {
        let lot = |index: usize| round.dice(7_000_000 + index as u64);
        let score = |index: &usize| round.stores()[*index].region_score(0, 0);
        let open = (0..done.len()).filter(|index| !done[*index]);
        let from = if by_lot {
            open.filter(|index| could_give(round, *index, tolerance)).max_by_key(|index| (lot(*index), *index))
        } else {
            open.max_by(|a, b| score(a).total_cmp(&score(b)).then(b.cmp(a)))
        };
        let Some(from) = from else { break };
        if !could_give(round, from, tolerance) {
            // In order of scores: nobody behind it could either.
            break;
        }
        let given = give(round, from, tolerance);
        if given.is_none_or(|operator| round.push(operator).is_err()) {
            done[from] = true;
        }
    }
}

/// Score by which two stores may differ for nothing.
pub fn tolerance(round: &Round<'_>) -> f64 {
    let up: Vec<_> = round.stores().iter().filter(|store| store.is_up()).collect();
    let total: f64 = up.iter().map(|store| store.region_score(0, 0)).sum();
    let regions: i64 = up.iter().map(|store| store.regions.max(0)).sum();
    let of_stores = total / up.len().max(1) as f64 * TOLERANCE_PERCENT / 100.0;
    of_stores.max(total / regions.max(1) as f64)
}

/// Whether the emptiest store that takes replicas is so far below this one that the smallest region might move.
fn could_give(round: &Round<'_>, from: usize, tolerance: f64) -> bool {
    let lowest = round.usable().first().map(|index| round.stores()[*index].region_score(0, 0));
    lowest.is_some_and(|lowest| round.stores()[from].region_score(0, 0) > lowest + tolerance)
}

fn give(round: &mut Round<'_>, from: usize, tolerance: f64) -> Option<Operator> {
    let store = round.stores()[from].store;
    round.may_leave(store.id()).ok()?;
    let mut drawn = sample(round, &store.followers, 3_000_000 + from as u64, SAMPLES);
    drawn.extend(sample(round, &store.leaders, 4_000_000 + from as u64, SAMPLES));
    drawn.into_iter().find_map(|id| {
        let region = round.view.region(id)?;
        if region.is_hot() || !round.is_sound(region) || round.blocker(region).is_some() {
            return None;
        }
        move_one(round, region, from, tolerance)
    })
}

fn move_one(round: &mut Round<'_>, region: &Region, from: usize, tolerance: f64) -> Option<Operator> {
    let source = &round.stores()[from];
    let (leaving, levels) = (source.id(), round.levels());
    let has = isolation(&source.path, round.paths_without(region, Some(leaving)), levels);
    let ask = Ask { region, leaving: Some(leaving), isolation_min: has };
    let mut rejected = Vec::new();
    let mut target = None;
    let mut judged = 0;
    for store in round.usable().iter().map(|index| &round.stores()[*index]) {
        judged += 1;
        if !is_better(source, store, region, tolerance) {
            break;
        }
        match filter::judge_replica(round, &ask, store) {
            Ok(_) => {
                target = Some(store.id());
                break;
            }
            Err(reason) if rejected.len() < REJECTED_MAX => rejected.push(Rejected { store: store.id(), reason }),
            Err(_) => {}
        }
    }
    let operator = target.and_then(|target| operator(round, region, leaving, target, rejected));
    round.stats.judged += judged;
    operator
}

/// Whether the move lowers the higher of the two scores and does not turn them round.
fn is_better(from: &StoreNow<'_>, to: &StoreNow<'_>, region: &Region, tolerance: f64) -> bool {
    let (weight, bytes) = (signed(region.weight_bytes()), signed(region.bytes));
    from.region_score(-weight, -bytes) >= to.region_score(weight, bytes) + tolerance
}

/// The verdict on a move for balance alone, for people who ask.
pub fn judge(round: &Round<'_>, region: &Region, from: NodeId, to: NodeId) -> Option<Rejection> {
    let (from, to) = (round.store(from)?, round.store(to)?);
    (!is_better(from, to, region, tolerance(round))).then_some(Rejection::NotBetter)
}

fn operator(
    round: &Round<'_>,
    region: &Region,
    from: NodeId,
    to: NodeId,
    mut rejected: Vec<Rejected>,
) -> Option<Operator> {
    round.add_refused(&mut rejected);
    let mut steps = vec![Step::AddLearner { store: to, peer: PeerId::NONE }, Step::Promote { store: to }];
    steps.extend(round.leave(region, from, Some(to)).ok()?);
    let score = |store| round.store(store).map_or(0.0, |store| store.region_score(0, 0) / MIB as f64);
    let reason = format!(
        "store {from} has a score of {:.0} MiB, store {to} of {:.0}; this region counts {} MiB",
        score(from),
        score(to),
        region.weight_bytes() / MIB
    );
    let cause = Cause::BalanceRegion;
    Some(Operator { region: region.id, epoch: region.epoch, cause, steps, reason, rejected })
}
