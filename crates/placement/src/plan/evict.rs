//! Leaders leave a store: because people ask for it (`evict-leader-stores`), because its disk is full, or because it is slow.
//!
//! A slow disk delays every write it leads, and its followers' quorums do not need it. When many stores are slow at once, the
//! disks are not the reason and moving leaders about would only add to it: then nothing is evicted.

use base::NodeId;

use crate::model::{Cause, Class, Operator, Step};
use crate::plan::round::{Round, StoreNow};
use crate::plan::sample;
use crate::policy::Scheduler;
use crate::view::{Health, StoreState};

/// Evictions in flight per store that gives up its leaders.
pub const EVICTIONS_PER_STORE_MAX: u32 = 64;
/// Slow stores, in percent of all, up to which they are relieved; one always is.
const SLOW_STORES_PERCENT_MAX: usize = 10;

pub fn run(round: &mut Round<'_>) {
    let stores = evicted(round);
    let limit = EVICTIONS_PER_STORE_MAX.saturating_mul(stores.len() as u32);
    for (index, (store, cause)) in stores.into_iter().enumerate() {
        let Some(leaders) = round.view.store(store).map(|store| &store.leaders) else { continue };
        let mut left = EVICTIONS_PER_STORE_MAX;
        for id in sample(round, leaders, 1000 + index as u64, 4 * EVICTIONS_PER_STORE_MAX as usize) {
            if left == 0 || round.in_flight(Class::Evict) >= limit {
                break;
            }
            let Some(region) = round.view.region(id) else { continue };
            if round.blocker(region).is_some() {
                continue;
            }
            match round.select_leader(region, store) {
                Ok((to, rejected)) => {
                    let full = round.store(store).is_some_and(|now| now.store.report.full);
                    let why = match cause {
                        Cause::EvictLeader => "gives up its leaders",
                        _ if full => "has a full disk",
                        _ => "has a slow disk",
                    };
                    let reason = format!("store {store} {why}");
                    let steps = vec![Step::TransferLeader { to }];
                    let operator = Operator { region: id, epoch: region.epoch, cause, steps, reason, rejected };
                    left -= u32::from(round.push(operator).is_ok());
                }
                Err(blocker) => round.blocked(&blocker),
            }
        }
    }
}

/// Stores that give up their leaders, and why.
pub fn evicted(round: &Round<'_>) -> Vec<(NodeId, Cause)> {
    let live = |store: NodeId| round.store(store).is_some_and(|now| now.health == Health::Connected);
    let asked = round.policy.evict_leader_stores.iter().map(|store| NodeId(*store)).filter(|store| live(*store));
    let mut stores: Vec<_> = asked.map(|store| (store, Cause::EvictLeader)).collect();
    let there = round.stores().iter().filter(|now| now.state != StoreState::Tombstone);
    let relieved = |now: &StoreNow<'_>| live(now.id()) && !round.policy.evicts_leaders_of(now.id());
    let full = there.clone().filter(|now| now.store.report.full && relieved(now));
    stores.extend(full.map(|now| (now.id(), Cause::EvictSlowStore)).collect::<Vec<_>>());
    let slow = there.clone().filter(|now| now.store.report.slow && !now.store.report.full);
    let slow: Vec<_> = slow.map(|now| now.id()).collect();
    let few = slow.len() <= (there.count() * SLOW_STORES_PERCENT_MAX / 100).max(1);
    if few && round.policy.is_on(Scheduler::EvictSlowStore) {
        let more = slow.into_iter().filter(|store| live(*store) && !round.policy.evicts_leaders_of(*store));
        stores.extend(more.map(|store| (store, Cause::EvictSlowStore)).collect::<Vec<_>>());
    }
    stores
}
