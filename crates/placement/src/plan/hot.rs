//! Hot regions: those that carry much more than the average are spread apart.
//!
//! Two loads, in bytes per second: what a store *leads* (reads and writes of the regions led there: its CPU) and what is
//! *written* to its replicas (its disk). The store with the highest load gives one of its hot regions away: its leadership to
//! another voter, or its replica to another store. As everywhere, only if the store remains no lower than the other
//! becomes, so a single region that is hotter than all the rest stays where it is: that one must be split.

use base::{GroupId, NodeId, PeerId};

use crate::model::{Cause, Operator, REJECTED_MAX, Rejected, Step};
use crate::plan::domain::isolation;
use crate::plan::filter::{self, Ask, Rejection};
use crate::plan::round::{JUDGED_BY_SCHEDULER_MAX, Round, StoreNow, signed};
use crate::policy::Scheduler;
use crate::view::Region;

/// Hot regions looked at in a round.
const HOT_REGIONS_MAX: usize = 100_000;
/// Hot regions of one store that are tried.
const TRIES_PER_STORE: usize = 16;
/// A load this much above the average, in percent, is worth a move.
const TOLERANCE_PERCENT: i64 = 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    Led,
    Written,
}

pub fn run(round: &mut Round<'_>) {
    if !round.policy.is_on(Scheduler::BalanceHotRegion) {
        return;
    }
    let hot: Vec<GroupId> = round.view.hot_regions().take(HOT_REGIONS_MAX).collect();
    let judged_max = round.stats.judged + JUDGED_BY_SCHEDULER_MAX;
    for load in [Load::Led, Load::Written] {
        let mut of_store = by_store(round, &hot, load);
        while round.limit(Cause::HotRegion).is_none() && round.stats.judged < judged_max {
            let open = (0..of_store.len()).filter(|index| !of_store[*index].is_empty());
            let Some(from) = open.max_by_key(|index| (of(&round.stores()[*index], load), std::cmp::Reverse(*index)))
            else {
                break;
            };
            if of(&round.stores()[from], load) * 100 <= average(round, load) * (100 + TOLERANCE_PERCENT) {
                break;
            }
            let (_, region) = of_store[from].remove(0);
            let Some(region) = round.view.region(region).filter(|region| round.blocker(region).is_none()) else {
                continue;
            };
            let operator = match load {
                Load::Led => hand_over(round, region, from),
                Load::Written => move_away(round, region, from),
            };
            if let Some(operator) = operator
                && let Err(blocker) = round.push(operator)
            {
                round.blocked(&blocker);
            }
        }
    }
}

/// Each store's hottest regions, the hottest first.
fn by_store(round: &Round<'_>, hot: &[GroupId], load: Load) -> Vec<Vec<(u64, GroupId)>> {
    let mut found = vec![Vec::new(); round.stores().len()];
    for region in hot.iter().filter_map(|region| round.view.region(*region)) {
        for peer in region.voters().filter(|peer| load == Load::Written || region.leader == Some(peer.store)) {
            if let Some(index) = round.index(peer.store) {
                found[index].push((flow(region, load), region.id));
            }
        }
    }
    for regions in &mut found {
        regions.sort_unstable_by(|a, b| b.cmp(a));
        regions.truncate(TRIES_PER_STORE);
    }
    found
}

fn flow(region: &Region, load: Load) -> u64 {
    if load == Load::Led { region.flow() } else { region.write_bytes_per_sec }
}

fn of(store: &StoreNow<'_>, load: Load) -> i64 {
    if load == Load::Led { store.led_flow } else { store.write_flow }
}

fn average(round: &Round<'_>, load: Load) -> i64 {
    let up: Vec<_> = round.stores().iter().filter(|store| store.is_up()).map(|store| of(store, load)).collect();
    up.iter().sum::<i64>() / up.len().max(1) as i64
}

/// Whether the higher of two loads falls and does not become the lower by it.
fn is_better(from: &StoreNow<'_>, to: &StoreNow<'_>, region: &Region, load: Load) -> bool {
    let flow = signed(flow(region, load));
    flow > 0 && of(from, load) - flow >= of(to, load) + flow
}

fn hand_over(round: &mut Round<'_>, region: &Region, from: usize) -> Option<Operator> {
    let from = &round.stores()[from];
    let mut best: Option<(i64, NodeId)> = None;
    let mut rejected = Vec::new();
    for store in region.voters().filter_map(|peer| round.store(peer.store)).filter(|store| store.id() != from.id()) {
        let better = is_better(from, store, region, Load::Led);
        let verdict = filter::judge_leader(round, region, store);
        match verdict.and(if better { Ok(()) } else { Err(Rejection::NotBetter) }) {
            Ok(()) if best.is_none_or(|(lowest, _)| store.led_flow < lowest) => {
                best = Some((store.led_flow, store.id()))
            }
            Ok(()) => {}
            Err(reason) => rejected.push(Rejected { store: store.id(), reason }),
        }
    }
    let (_, to) = best?;
    Some(operator(round, region, from.id(), to, Load::Led, vec![Step::TransferLeader { to }], rejected))
}

fn move_away(round: &mut Round<'_>, region: &Region, from: usize) -> Option<Operator> {
    let source = &round.stores()[from];
    let leaving = source.id();
    if !round.is_sound(region) || round.may_leave(leaving).is_err() {
        return None;
    }
    let has = isolation(&source.path, round.paths_without(region, Some(leaving)), round.levels());
    let ask = Ask { region, leaving: Some(leaving), isolation_min: has };
    let mut best: Option<(i64, NodeId)> = None;
    let mut rejected = Vec::new();
    for store in round.usable().iter().map(|index| &round.stores()[*index]) {
        let better = is_better(source, store, region, Load::Written);
        let verdict = filter::judge_replica(round, &ask, store);
        match verdict.and(if better { Ok(()) } else { Err(Rejection::NotBetter) }) {
            Ok(()) if best.is_none_or(|(lowest, _)| store.write_flow < lowest) => {
                best = Some((store.write_flow, store.id()));
            }
            Ok(()) => {}
            Err(reason) if rejected.len() < REJECTED_MAX => rejected.push(Rejected { store: store.id(), reason }),
            Err(_) => {}
        }
    }
    let judged = round.usable().len() as u64;
    let operator = best.and_then(|(_, to)| {
        let mut steps = vec![Step::AddLearner { store: to, peer: PeerId::NONE }, Step::Promote { store: to }];
        steps.extend(round.leave(region, leaving, Some(to)).ok()?);
        Some(operator(round, region, leaving, to, Load::Written, steps, rejected))
    });
    round.stats.judged += judged;
    operator
}

fn operator(
    round: &Round<'_>,
    region: &Region,
    from: NodeId,
    to: NodeId,
    load: Load,
    steps: Vec<Step>,
    rejected: Vec<Rejected>,
) -> Operator {
    let kib = |store| round.store(store).map_or(0, |store| of(store, load) >> 10);
    let what = if load == Load::Led { "leads" } else { "is written" };
    let reason = format!(
        "store {from} {what} {} KiB/s, store {to} {} KiB/s; this region makes {} KiB/s of it",
        kib(from),
        kib(to),
        flow(region, load) >> 10
    );
    Operator { region: region.id, epoch: region.epoch, cause: Cause::HotRegion, steps, reason, rejected }
}
