//! One store: what it takes, what it does not and why; what keeps it from emptying.

use std::fmt;
use std::time::Duration;

use base::{NodeId, Time};
use serde::Serialize;

use crate::explain::{BlockedRegions, Gathered, forecast};
use crate::model::Cause;
use crate::plan::filter;
use crate::plan::round::{Round, StoreNow};
use crate::plan::{balance_region, evict, replica};
use crate::policy::{MIB, Policy, Scheduler, format_span};
use crate::view::{Health, InFlight, StoreState, View};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StoreExplanation {
    pub store: u64,
    pub state: StoreState,
    pub health: String,
    pub capacity_bytes: u64,
    pub available_bytes: u64,
    pub leaders: u64,
    pub replicas: u64,
    pub replica_bytes: u64,
    /// Share of leaders and of bytes that it takes, beside a store of weight 1.
    pub leader_weight: f64,
    pub region_weight: f64,
    /// Replicas per minute that it may take in, and that may be taken from it.
    pub add_limit: u32,
    pub remove_limit: u32,
    /// Bytes per second: of the regions led here, and written to the replicas here.
    pub led_flow_bytes_per_sec: u64,
    pub write_flow_bytes_per_sec: u64,
    /// Why a scheduler does nothing.
    pub schedulers_at_rest: Vec<String>,
    /// Its score and the average of the stores that are up, in MiB; balance moves replicas from high to low.
    pub score_mib: u64,
    pub average_score_mib: u64,
    pub tolerance_mib: u64,
    /// Operators under way that bring replicas here, and that take them away.
    pub arriving: u64,
    pub leaving: u64,
    /// Why it takes no replica; empty when it does.
    pub against_replicas: Vec<String>,
    /// Why it takes no leader; empty when it does.
    pub against_leaders: Option<String>,
    pub gives_up_leaders: Option<Cause>,
    /// Whether and why balance sends replicas here or takes them away.
    pub balance: String,
    /// When it is to be emptied.
    pub draining: Option<Draining>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Draining {
    pub why: String,
    pub replicas_left: u64,
    pub bytes_left: u64,
    pub under_way: u64,
    /// Replicas that a round may move at once.
    pub movable: u64,
    /// How long the rest takes, as a forecast has it ([`forecast`]); `None` while nothing of it can be moved.
    pub eta_seconds: Option<u64>,
    pub blocked: Vec<BlockedRegions>,
}

/// `None` when the store is not known.
pub fn explain(view: &View, policy: &Policy, store: NodeId, now: Time) -> Option<StoreExplanation> {
    let mut round = Round::new(view, policy, now, 0);
    let draining = draining(&mut round, store);
    let round = Round::new(view, policy, now, 0);
    let here = round.store(store)?;
    let up: Vec<_> =
        round.stores().iter().filter(|store| store.is_up()).map(|store| store.region_score(0, 0)).collect();
    let average = up.iter().sum::<f64>() / up.len().max(1) as f64;
    let mib = |score: f64| (score / MIB as f64) as u64;
    let flights = |moves: &dyn Fn(&crate::Operator) -> bool| {
        view.flights().filter(|flight| moves(&flight.operator)).count() as u64
    };
    let report = here.store.report;
    Some(StoreExplanation {
        store: store.0,
        state: here.state,
        health: match here.health {
            Health::Connected if !here.store.reported => "not heard of yet".to_owned(),
            Health::Connected => format!("connected, heard of {} s ago", here.store.silent_for(now).as_secs()),
            Health::Disconnected(span) => format!("disconnected, silent for {}", format_span(span)),
            Health::Down(span) => format!("down, silent for {}", format_span(span)),
        },
        capacity_bytes: report.capacity_bytes,
        available_bytes: report.available_bytes,
        leaders: here.store.leader_count() as u64,
        replicas: here.store.region_count() as u64,
        replica_bytes: here.store.region_bytes(),
        leader_weight: here.store.meta.leader_weight,
        region_weight: here.store.meta.region_weight,
        add_limit: here.add_limit(policy),
        remove_limit: here.remove_limit(policy),
        led_flow_bytes_per_sec: here.store.led_flow_bytes_per_sec(),
        write_flow_bytes_per_sec: here.store.write_flow_bytes_per_sec(),
        schedulers_at_rest: Scheduler::ALL.into_iter().filter_map(|scheduler| policy.why_off(scheduler)).collect(),
        score_mib: mib(here.region_score(0, 0)),
        average_score_mib: mib(average),
        tolerance_mib: mib(balance_region::tolerance(&round)),
        arriving: flights(&|operator| operator.stores_added().any(|added| added == store)),
        leaving: flights(&|operator| operator.stores_removed().any(|removed| removed == store)),
        against_replicas: filter::all_against_store(&round, here).iter().map(ToString::to_string).collect(),
        against_leaders: filter::judge_leader_store(&round, here).map(|rejection| rejection.to_string()),
        gives_up_leaders: evict::evicted(&round)
            .into_iter()
            .find(|(evicted, _)| *evicted == store)
            .map(|(_, cause)| cause),
        balance: balance(&round, here, average),
        draining,
    })
}

fn balance(round: &Round<'_>, here: &StoreNow<'_>, average: f64) -> String {
    let (score, tolerance) = (here.region_score(0, 0), balance_region::tolerance(round));
    if let Some(why) = round.policy.why_off(Scheduler::BalanceRegion) {
        return why;
    }
    if let Some(blocker) = round.limit(Cause::BalanceRegion) {
        return blocker.to_string();
    }
    if let Some(rejection) = here.refused {
        return format!("takes nothing: {rejection}");
    }
    if score > average + tolerance {
        let left = round.may_leave(here.id()).err().map_or_else(String::new, |blocker| format!("; {blocker}"));
        format!("above the average: gives replicas{left}")
    } else if score < average - tolerance {
        "below the average: takes replicas, at the pace of its limits".to_owned()
    } else {
        "as full as the others, within the tolerance".to_owned()
    }
}

fn draining(round: &mut Round<'_>, store: NodeId) -> Option<Draining> {
    let (view, now) = (round.view, round.store(store)?);
    let why = match (now.state, now.health) {
        (StoreState::Offline, _) => "it is going offline".to_owned(),
        (StoreState::Tombstone, _) => "it is a tombstone".to_owned(),
        (StoreState::Up, Health::Down(span)) => format!("it is down for {}", format_span(span)),
        _ => return None,
    };
    let known = view.store(store)?;
    let (mut under_way, mut movable) = (0, 0);
    let mut blocked = Gathered::default();
    for region in known.regions().filter_map(|region| view.region(region)) {
        let leaves = |flight: &InFlight| flight.operator.stores_removed().any(|left| left == store);
        if view.flight(region.id).is_some_and(leaves) {
            under_way += 1;
            continue;
        }
        // Whatever else a region is busy with, such as another leader, passes, and it stays where it is.
        // Nothing is put into the plan: each region is asked as if it were first.
        match replica::check(round, region) {
            Ok(Some(_)) => movable += 1,
            Ok(None) => {}
            Err(blocker) => blocked.add(region.id, &blocker),
        }
    }
    let replicas_left = known.region_count() as u64;
    let moves = replicas_left == 0 || under_way + movable > 0;
    Some(Draining {
        why,
        replicas_left,
        bytes_left: known.region_bytes(),
        under_way,
        movable,
        eta_seconds: moves.then(|| forecast::emptying(round, store).seconds),
        blocked: blocked.list(),
    })
}

impl fmt::Display for StoreExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        writeln!(f, "store {}: {}, {}", self.store, self.state, self.health)?;
        let (available, capacity) = (gib(self.available_bytes), gib(self.capacity_bytes));
        writeln!(f, "disk: {available:.1} of {capacity:.1} GiB available")?;
        let (leaders, replicas, bytes) = (self.leaders, self.replicas, gib(self.replica_bytes));
        writeln!(f, "holds: {replicas} replicas of {bytes:.1} GiB, {leaders} of them lead")?;
        let Self { leader_weight, region_weight, add_limit, remove_limit, .. } = self;
        writeln!(
            f,
            "weights: leaders {leader_weight}, regions {region_weight}; a minute: {add_limit} replicas in, {remove_limit} out"
        )?;
        let (led, written) = (self.led_flow_bytes_per_sec >> 10, self.write_flow_bytes_per_sec >> 10);
        writeln!(f, "load: leads {led} KiB/s, is written {written} KiB/s")?;
        for why in &self.schedulers_at_rest {
            writeln!(f, "note: {why}")?;
        }
        writeln!(f, "under way: {} replicas arrive, {} leave", self.arriving, self.leaving)?;
        if self.against_replicas.is_empty() {
            writeln!(f, "takes replicas")?;
        } else {
            writeln!(f, "takes no replicas: {}", self.against_replicas.join("; "))?;
        }
        match &self.against_leaders {
            None => writeln!(f, "takes leaders")?,
            Some(reason) => writeln!(f, "takes no leaders: {reason}")?,
        }
        if let Some(cause) = self.gives_up_leaders {
            writeln!(f, "gives up its leaders ({cause})")?;
        }
        let (score, average, tolerance) = (self.score_mib, self.average_score_mib, self.tolerance_mib);
        writeln!(f, "balance: {} (score {score} MiB, average {average}, tolerance {tolerance})", self.balance)?;
        if let Some(draining) = &self.draining {
            let Draining { why, replicas_left, under_way, movable, eta_seconds, blocked, .. } = draining;
            let eta = eta_seconds.map(|eta| format!(", about {}", format_span(Duration::from_secs(eta))));
            writeln!(
                f,
                "drains, because {why}: {replicas_left} replicas left, {under_way} under way, {movable} movable{}",
                eta.unwrap_or_default()
            )?;
            for kind in blocked {
                writeln!(f, "  held up: {kind}")?;
            }
        }
        Ok(())
    }
}
