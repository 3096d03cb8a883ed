//! What if: a store is removed, the policy is changed. Counted over the regions as they are, without doing anything.
//!
//! # The estimate of a duration
//! The slowest of: what sources may give and targets may take in per minute (`store-remove-limit`, `store-add-limit`), what
//! snapshots may carry (`snap-io-max-bytes-per-sec` per target), and what may be in flight (`replica-schedule-limit`, a
//! replica taking its bytes at that rate and [`OVERHEAD_S`] seconds besides). It takes the cluster to be otherwise idle.

use std::collections::BTreeMap;
use std::fmt;

use base::{NodeId, Time};
use serde::Serialize;

use crate::explain::{BlockedRegions, Gathered};
use crate::model::{Cause, Rejected, shown};
use crate::plan::filter::{self, Ask, Rejection};
use crate::plan::replica::{self, What};
use crate::plan::round::{Blocker, Round};
use crate::policy::Policy;
use crate::view::{Health, Region, StoreState, View};

/// Seconds that a replica takes beside the transfer of its bytes.
pub const OVERHEAD_S: u64 = 10;
/// Regions for which candidates are looked for when a policy is judged.
const CHECKED_MAX: u64 = 10_000;

/// Why a store may not be removed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RemovalRefused {
    #[error("store {0} is not known")]
    Unknown(NodeId),
    #[error("store {0} is a tombstone already")]
    Tombstone(NodeId),
    #[error(
        "too few stores would remain: {left} that can hold replicas, {wanted} are needed (max-replicas); add a store first{}",
        not_counted(unfit)
    )]
    TooFewStores { left: usize, wanted: u32, unfit: Vec<Rejected> },
}

fn not_counted(unfit: &[Rejected]) -> String {
    let each = unfit.iter().map(|Rejected { store, reason }| format!("; store {store} does not count, {reason}"));
    each.collect()
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemovalForecast {
    pub store: u64,
    /// Why it would be refused.
    #[serde(serialize_with = "shown_if_any")]
    pub refused: Option<RemovalRefused>,
    pub replicas: u64,
    pub leaders: u64,
    pub bytes: u64,
    /// Stores that can take them in.
    pub targets: u64,
    /// Room in these below low-space-ratio.
    pub room_bytes: u64,
    pub blocked: Vec<BlockedRegions>,
    pub estimate: Estimate,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PolicyForecast {
    /// Names of the settings that differ.
    pub changed: Vec<String>,
    /// Regions that need something under the new policy and under the old one, by cause.
    pub regions: BTreeMap<&'static str, u64>,
    pub regions_before: BTreeMap<&'static str, u64>,
    /// Replicas to be made, and their bytes.
    pub replicas: u64,
    pub bytes: u64,
    /// Replicas too many, whose data is deleted.
    pub removed: u64,
    /// So many of its stores a region can lose at once and go on.
    pub spare: u32,
    /// Of so many regions looked at, some cannot have what they need.
    pub checked: u64,
    pub blocked: Vec<BlockedRegions>,
    pub estimate: Estimate,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    pub seconds: u64,
    /// The setting that sets the pace; empty when there is nothing to do.
    pub bound_by: &'static str,
}

/// Whether a store may be taken offline: enough others must be there that can hold replicas. Stores that are down, full or
/// leaving do not count. A store that holds nothing may always go.
pub fn may_remove(view: &View, policy: &Policy, store: NodeId, now: Time) -> Result<(), RemovalRefused> {
    let known = view.store(store).ok_or(RemovalRefused::Unknown(store))?;
    if known.meta.state == StoreState::Tombstone {
        return Err(RemovalRefused::Tombstone(store));
    }
    let round = Round::new(view, policy, now, 0);
    let others = round.stores().iter().filter(|other| other.id() != store && other.state != StoreState::Tombstone);
    let verdicts: Vec<_> = others.map(|other| (other.id(), filter::judge_store_for_long(&round, other))).collect();
    let left = verdicts.iter().filter(|(_, against)| against.is_none()).count();
    if left >= policy.max_replicas as usize || known.region_count() == 0 {
        return Ok(());
    }
    let unfit = verdicts.into_iter().filter_map(|(store, reason)| Some(Rejected { store, reason: reason? })).collect();
    Err(RemovalRefused::TooFewStores { left, wanted: policy.max_replicas, unfit })
}

/// Removing a store. `None` when it is not known.
pub fn remove_store(view: &View, policy: &Policy, store: NodeId, now: Time) -> Option<RemovalForecast> {
    let known = view.store(store)?;
    let mut round = Round::new(view, policy, now, 0);
    round.suppose(store, StoreState::Offline);
    let places = Places::new(&round);
    let mut blocked = Gathered::default();
    for region in known.regions().filter_map(|region| view.region(region)) {
        if let Some(blocker) = places.blocker(&round, region) {
            blocked.add(region.id, &blocker);
        }
    }
    let (replicas, bytes) = (known.region_count() as u64, known.region_bytes());
    Some(RemovalForecast {
        store: store.0,
        refused: may_remove(view, policy, store, now).err(),
        replicas,
        leaders: known.leader_count() as u64,
        bytes,
        targets: places.fit() as u64,
        room_bytes: places.room_bytes(&round),
        blocked: blocked.list(),
        estimate: estimate(policy, replicas, bytes, Some(removed_per_minute(&round, Some(store))), &places, &round),
    })
}

/// Changing the policy from `old` to `new`.
pub fn change_policy(view: &View, old: &Policy, new: &Policy, now: Time) -> PolicyForecast {
    let (before, after) = (Round::new(view, old, now, 0), Round::new(view, new, now, 0));
    let places = Places::new(&after);
    let mut forecast = PolicyForecast {
        changed: changed(old, new),
        regions: BTreeMap::new(),
        regions_before: BTreeMap::new(),
        replicas: 0,
        bytes: 0,
        removed: 0,
        spare: new.max_replicas.saturating_sub(1) / 2,
        checked: 0,
        blocked: Vec::new(),
        estimate: Estimate::default(),
    };
    let mut blocked = Gathered::default();
    for region in view.regions() {
        forecast.removed += (region.voters().count() as u64).saturating_sub(new.max_replicas.into());
        if let Some(need) = replica::need(&before, region) {
            *forecast.regions_before.entry(need.cause.name()).or_default() += 1;
        }
        let Some(need) = replica::need(&after, region) else { continue };
        *forecast.regions.entry(need.cause.name()).or_default() += 1;
        if matches!(need.what, What::Place { .. }) {
            let voters = region.voters().count() as u64;
            let made = u64::from(new.max_replicas).saturating_sub(voters).max(1);
            forecast.replicas += made;
            forecast.bytes += made * region.bytes;
            if forecast.checked < CHECKED_MAX {
                forecast.checked += 1;
                if let Some(blocker) = places.blocker(&after, region) {
                    blocked.add(region.id, &blocker);
                }
            }
        }
    }
    forecast.blocked = blocked.list();
    let moved = forecast.regions.contains_key(Cause::Spread.name());
    let sources = moved.then(|| removed_per_minute(&after, None));
    forecast.estimate = estimate(new, forecast.replicas, forecast.bytes, sources, &places, &after);
    forecast
}

/// How long the rest of an emptying store takes.
pub(super) fn emptying(round: &Round<'_>, store: NodeId) -> Estimate {
    let Some(now) = round.store(store) else { return Estimate::default() };
    // A store that is down is asked for nothing.
    let removed = (!matches!(now.health, Health::Down(_))).then(|| removed_per_minute(round, Some(store)));
    let (replicas, bytes) = (now.store.region_count() as u64, now.store.region_bytes());
    estimate(round.policy, replicas, bytes, removed, &Places::new(round), round)
}

/// Stores as places for replicas, leaving out what passes by itself.
struct Places(Vec<Option<Rejection>>);

impl Places {
    fn new(round: &Round<'_>) -> Places {
        Places(round.stores().iter().map(|store| filter::judge_store_for_long(round, store)).collect())
    }

    fn fit(&self) -> usize {
        self.0.iter().filter(|against| against.is_none()).count()
    }

    /// Replicas that these may take in.
    fn added_per_minute(&self, round: &Round<'_>) -> u64 {
        let fit = round.stores().iter().zip(&self.0).filter(|(_, against)| against.is_none());
        fit.map(|(store, _)| u64::from(store.add_limit(round.policy))).sum()
    }

    fn room_bytes(&self, round: &Round<'_>) -> u64 {
        let fit = round.stores().iter().zip(&self.0).filter(|(_, against)| against.is_none());
        fit.map(|(store, _)| {
            let capacity = store.store.report.capacity_bytes as f64;
            ((round.policy.low_space_ratio - store.used_ratio(0)).max(0.0) * capacity) as u64
        })
        .sum()
    }

    /// Why the region cannot have what it needs, now or later.
    fn blocker(&self, round: &Round<'_>, region: &Region) -> Option<Blocker> {
        let need = replica::need(round, region)?;
        match round.blocker(region) {
            None | Some(Blocker::Busy { .. }) => {}
            lasting => return lasting,
        }
        let What::Place { leaving, learner, isolation_min } = need.what else { return None };
        if learner.is_some() {
            return None;
        }
        let ask = Ask { region, leaving, isolation_min };
        let judge = |(store, against): (&crate::plan::round::StoreNow<'_>, &Option<Rejection>)| {
            let reason = against.or_else(|| filter::judge_place(round, &ask, store))?;
            Some(Rejected { store: store.id(), reason })
        };
        let rejected: Option<Vec<_>> = round.stores().iter().zip(&self.0).map(judge).collect();
        let mut rejected = rejected?;
        rejected.truncate(crate::model::REJECTED_MAX);
        Some(Blocker::NoCandidate { rejected })
    }
}

fn changed(old: &Policy, new: &Policy) -> Vec<String> {
    let (old, new) = (old.to_json(), new.to_json());
    let Some(names) = new.as_object() else { return Vec::new() };
    names.iter().filter(|(name, value)| old.get(name) != Some(value)).map(|(name, _)| name.clone()).collect()
}

/// Replicas that may be taken from one store, or from all.
fn removed_per_minute(round: &Round<'_>, of: Option<NodeId>) -> u64 {
    let stores = round.stores().iter().filter(|store| of.is_none_or(|of| store.id() == of));
    stores.map(|store| u64::from(store.remove_limit(round.policy))).sum()
}

/// `removed`: replicas that may be taken away per minute; `None` when none is taken.
fn estimate(
    policy: &Policy,
    replicas: u64,
    bytes: u64,
    removed: Option<u64>,
    places: &Places,
    round: &Round<'_>,
) -> Estimate {
    let targets = places.fit() as u64;
    if replicas == 0 {
        return Estimate::default();
    }
    let at = |per_minute: u64| (replicas * 60).div_ceil(per_minute.max(1));
    let rate = policy.snap_io_max_bytes_per_sec.max(1);
    let each_s = bytes / replicas / rate + OVERHEAD_S;
    let mut bounds = vec![
        (at(places.added_per_minute(round)), "store-add-limit"),
        (bytes / (targets.max(1) * rate), "snap-io-max-bytes-per-sec"),
        ((replicas * each_s).div_ceil(u64::from(policy.replica_schedule_limit).max(1)), "replica-schedule-limit"),
    ];
    if let Some(removed) = removed {
        bounds.push((at(removed), "store-remove-limit"));
    }
    let (seconds, bound_by) = bounds.into_iter().max_by_key(|(seconds, _)| *seconds).unwrap_or_default();
    Estimate { seconds, bound_by }
}

fn shown_if_any<S: serde::Serializer>(refused: &Option<RemovalRefused>, to: S) -> Result<S::Ok, S::Error> {
    match refused {
        Some(refused) => shown(refused, to),
        None => to.serialize_none(),
    }
}

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bound_by {
            "" => f.write_str("nothing to do"),
            bound_by => {
                let span = crate::policy::format_span(std::time::Duration::from_secs(self.seconds));
                write!(f, "about {span} ({bound_by} sets the pace)")
            }
        }
    }
}

/// What a duration leaves out.
fn without(blocked: &[BlockedRegions]) -> &'static str {
    if blocked.is_empty() { "" } else { ", without what is held up: that waits until it can be done" }
}

impl fmt::Display for RemovalForecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(refused) = &self.refused {
            writeln!(f, "removing store {} would be refused: {refused}", self.store)?;
        }
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        let (replicas, leaders, bytes) = (self.replicas, self.leaders, gib(self.bytes));
        writeln!(f, "to move from store {}: {replicas} replicas of {bytes:.1} GiB, {leaders} lead", self.store)?;
        writeln!(f, "room: {:.1} GiB in {} stores", gib(self.room_bytes), self.targets)?;
        writeln!(f, "duration: {}{}", self.estimate, without(&self.blocked))?;
        self.blocked.iter().try_for_each(|kind| writeln!(f, "held up: {kind}"))
    }
}

impl fmt::Display for PolicyForecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "changes: {}",
            if self.changed.is_empty() { "nothing".to_owned() } else { self.changed.join(", ") }
        )?;
        for (cause, regions) in &self.regions {
            let before = self.regions_before.get(cause).copied().unwrap_or(0);
            writeln!(f, "{cause}: {regions} regions (without the change {before})")?;
        }
        let gib = self.bytes as f64 / (1u64 << 30) as f64;
        writeln!(f, "to make: {} replicas of {gib:.1} GiB", self.replicas)?;
        if self.removed > 0 {
            writeln!(f, "to delete: {} replicas", self.removed)?;
        }
        match self.spare {
            0 => writeln!(f, "then: a region stands still when one of its stores is lost")?,
            spare => writeln!(f, "then: a region goes on without {spare} of its stores")?,
        }
        writeln!(f, "duration: {}{}", self.estimate, without(&self.blocked))?;
        self.blocked.iter().try_for_each(|kind| writeln!(f, "held up: {kind} (of {} looked at)", self.checked))
    }
}
