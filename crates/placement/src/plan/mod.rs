//! The round: a pure function from what is observed and what is wanted to operators.
//!
//! ```text
//!  Round::new      stores with everything on its way
//!  checkers        wanted splits, attention list, stores that are down or leave, then a patrol over a window of regions:
//!                    replica (learner, surplus, down, offline, missing, spread) → split → merge
//!  schedulers      evict leaders → balance leaders → hot regions → balance regions
//!  filter · safety every candidate and every operator passes through these, whoever proposes it
//! ```
//! # What a round costs
//! A million regions are not walked. A round looks at the regions that call for it, at those of stores that are down or
//! leave, and at a window of [`PATROL_REGIONS`] that moves with the round's number, so that a changed policy or label reaches
//! all of them in time. Checkers and schedulers each judge a bounded number of candidates; where a bound cuts a round short,
//! the next one starts elsewhere.
//!
//! # How to read a checker
//! `need` says what a region lacks, from the region and the stores alone; `check` turns the need into an operator or a
//! [`Blocker`]. [`crate::explain`] calls both.

pub mod admin;
pub mod balance_leader;
pub mod balance_region;
pub mod domain;
pub mod evict;
pub mod filter;
pub mod hot;
pub mod merge;
pub mod replica;
pub mod round;
pub mod safety;
pub mod split;

use std::collections::BTreeSet;

use base::{GroupId, Time};

pub use round::{Blocker, Round, RoundStats};

use crate::model::{Cause, Operator};
use crate::policy::Policy;
use crate::view::{Health, Region, StoreState, Urgency, View};

/// Regions that the patrol looks at in a round, about.
pub const PATROL_REGIONS: u64 = 16_384;
/// Regions of each kind that call for attention and are looked at in a round.
const ATTENTION_REGIONS_MAX: usize = 16_384;
/// Regions looked at per store that is down or leaves.
const STORE_REGIONS_MAX: usize = 2_048;

/// What a round has come to.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    pub operators: Vec<Operator>,
    pub stats: RoundStats,
}

/// One round. The same arguments give the same plan. `number` says which round it is: it moves the patrol's window and where
/// schedulers draw their samples, so it should grow by one from round to round.
pub fn plan(view: &View, policy: &Policy, now: Time, number: u64) -> Plan {
    let mut round = Round::new(view, policy, now, number);
    if round.stats.ready {
        run_checkers(&mut round);
        evict::run(&mut round);
        balance_leader::run(&mut round);
        hot::run(&mut round);
        balance_region::run(&mut round);
    }
    Plan { operators: round.operators, stats: round.stats }
}

/// What the checkers want to do with one region: the first of them that finds something. A replica that cannot be had does not
/// keep a region from being cut: it would only grow meanwhile.
pub fn check_region(round: &mut Round<'_>, region: &Region) -> Result<Option<Operator>, Blocker> {
    let blocked = match replica::check(round, region) {
        Ok(Some(operator)) => return Ok(Some(operator)),
        Ok(None) => None,
        Err(blocker) => Some(blocker),
    };
    match (split::check(round, region), blocked) {
        (Ok(Some(operator)), _) => Ok(Some(operator)),
        (_, Some(blocker)) | (Err(blocker), None) => Err(blocker),
        (Ok(None), None) => merge::check(round, region),
    }
}

fn run_checkers(round: &mut Round<'_>) {
    let view = round.view;
    let mut seen = BTreeSet::new();
    let somewhere = somewhere(round);
    for region in view.wanted_splits() {
        if round.limit(Cause::Split).is_some() {
            break;
        }
        if seen.insert(region) && !visit(round, region) {
            return;
        }
    }
    for urgency in Urgency::ALL {
        for region in view.attention(urgency, somewhere).take(ATTENTION_REGIONS_MAX) {
            if seen.insert(region) && !visit(round, region) {
                return;
            }
        }
    }
    let down_first = [true, false];
    for down in down_first {
        for store in view.stores() {
            let is_down = matches!(store.health(round.now, round.policy), Health::Down(_));
            let leaves = store.meta.state == StoreState::Offline || store.report.full;
            if (down && is_down) || (!down && !is_down && leaves) {
                let all = [&store.leaders, &store.followers, &store.learners];
                let from_here = all.iter().flat_map(|set| set.range(somewhere..));
                let from_start = all.iter().flat_map(|set| set.range(..somewhere));
                for region in from_here.chain(from_start).take(STORE_REGIONS_MAX) {
                    if seen.insert(*region) && !visit(round, *region) {
                        return;
                    }
                }
            }
        }
    }
    patrol(round, &mut seen);
}

/// A window of region ids as wide as holds [`PATROL_REGIONS`] on average; windows of consecutive rounds lie side by side.
fn patrol(round: &mut Round<'_>, seen: &mut BTreeSet<GroupId>) {
    let view = round.view;
    let Some((GroupId(first), GroupId(last))) = view.region_id_span() else { return };
    let span = u128::from(last - first) + 1;
    let width = (u128::from(PATROL_REGIONS) * span).div_ceil(view.region_count().max(1) as u128).max(1);
    let windows = span.div_ceil(width);
    let from = first + ((u128::from(round.number()) % windows) * width) as u64;
    let end = u128::from(from) + width;
    for region in view.regions_from(GroupId(from)).take_while(|region| u128::from(region.id.0) < end) {
        if seen.insert(region.id) && !visit(round, region.id) {
            return;
        }
    }
}

/// Looks at one region. False when the round has done its share of work.
fn visit(round: &mut Round<'_>, region: GroupId) -> bool {
    let view = round.view;
    if let Some(region) = view.region(region)
        && !view.is_busy(region.id)
    {
        round.stats.regions_checked += 1;
        let outcome = check_region(round, region);
        if let Err(blocker) = outcome.and_then(|operator| operator.map_or(Ok(()), |operator| round.push(operator))) {
            round.blocked(&blocker);
        }
    }
    round.stats.judged < round::JUDGED_BY_CHECKERS_MAX
}

/// A region id that is another one every round.
fn somewhere(round: &Round<'_>) -> GroupId {
    let (first, last) = round.view.region_id_span().unwrap_or_default();
    GroupId(first.0 + base::Rng::new(round.dice(0)).below((last.0 - first.0).saturating_add(1)))
}

/// Up to `count` members of a set of regions, side by side from a place drawn with `salt`.
fn sample(round: &Round<'_>, regions: &BTreeSet<GroupId>, salt: u64, count: usize) -> Vec<GroupId> {
    let (Some(first), Some(last)) = (regions.first(), regions.last()) else { return Vec::new() };
    let from = GroupId(first.0 + base::Rng::new(round.dice(salt)).below((last.0 - first.0).saturating_add(1)));
    regions.range(from..).chain(regions.range(..from)).take(count).copied().collect()
}
