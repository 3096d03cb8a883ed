//! One region: wanted, there, next, in the way.

use std::fmt;

use base::{GroupId, NodeId, Time};
use serde::Serialize;

use crate::model::{Epoch, Operator};
use crate::plan::domain::isolation;
use crate::plan::filter::{self, Ask};
use crate::plan::replica::{self, What};
use crate::plan::round::{Blocker, Round};
use crate::plan::{balance_region, check_region, merge};
use crate::policy::{MIB, Policy, format_span};
use crate::view::{Health, InFlight, Region, View};

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RegionExplanation {
    pub region: u64,
    pub epoch: Epoch,
    pub bytes: u64,
    pub wanted_replicas: u32,
    pub location_labels: Vec<String>,
    pub replicas: Vec<Replica>,
    /// What it lacks, in words.
    pub lacks: Option<String>,
    /// What the checkers would do in a round of its own.
    pub next: Option<Operator>,
    /// What keeps them from it.
    pub blocker: Option<Blocker>,
    pub under_way: Option<UnderWay>,
    pub notes: Vec<String>,
    /// Every store as a place for the replica that is lacking; when none is, for the one in the fullest store.
    pub candidates_for: String,
    pub candidates: Vec<Candidate>,
    /// The voters as leaders.
    pub leaders: Vec<Candidate>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Replica {
    pub store: u64,
    /// `leader`, `voter` or `learner`.
    pub role: &'static str,
    pub health: String,
    /// Values of the location labels, largest domain first; empty where the store has none.
    pub domain: Vec<String>,
    /// How well it is kept apart from the other voters; more is better.
    pub isolation: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct UnderWay {
    pub id: u64,
    pub operator: Operator,
    /// Index of the step that is being done.
    pub step: usize,
    pub running_s: u64,
    pub without_progress_s: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    pub store: u64,
    pub fits: bool,
    pub reason: Option<String>,
    pub isolation: Option<u64>,
    pub score_mib: Option<u64>,
}

/// `None` when the region is not known.
pub fn explain(view: &View, policy: &Policy, region: GroupId, now: Time) -> Option<RegionExplanation> {
    let region = view.region(region)?;
    let mut round = Round::new(view, policy, now, 0);
    let need = replica::need(&round, region);
    let (next, blocker) = match check_region(&mut round, region) {
        Ok(Some(operator)) => match round.push(operator.clone()) {
            Ok(()) => (Some(operator), None),
            Err(blocker) => (None, Some(blocker)),
        },
        Ok(None) => (None, round.blocker(region)),
        Err(blocker) => (None, Some(blocker)),
    };
    // The plan above must not weigh on the candidates.
    let round = Round::new(view, policy, now, 0);
    let (candidates_for, ask, balances) = match need.as_ref().map(|need| need.what) {
        Some(What::Place { leaving: Some(leaving), isolation_min, .. }) => {
            let why = format!("the place of the replica in store {leaving}");
            (why, Ask { region, leaving: Some(leaving), isolation_min }, false)
        }
        Some(What::Place { isolation_min, .. }) => {
            ("one more replica".to_owned(), Ask { region, leaving: None, isolation_min }, false)
        }
        _ => {
            let fullest = fullest(&round, region);
            let isolation_min = fullest.map_or(0, |store| apart(&round, region, store));
            let why = match fullest {
                Some(store) => format!("the place of the replica in store {store}, for the sake of balance"),
                None => "one more replica".to_owned(),
            };
            (why, Ask { region, leaving: fullest, isolation_min }, true)
        }
    };
    let mut notes = notes(&round, region);
    notes.extend(merge::obstacle(&round, region));
    Some(RegionExplanation {
        region: region.id.0,
        epoch: region.epoch,
        bytes: region.bytes,
        wanted_replicas: policy.max_replicas,
        location_labels: policy.location_labels.clone(),
        replicas: region.peers.iter().map(|peer| replica_line(&round, region, peer.store)).collect(),
        lacks: need.map(|need| need.reason),
        next,
        blocker,
        under_way: view.flight(region.id).map(|flight| under_way(flight, now)),
        notes,
        candidates_for,
        candidates: candidates(&round, &ask, balances),
        leaders: leaders(&round, region),
    })
}

fn candidates(round: &Round<'_>, ask: &Ask<'_>, balances: bool) -> Vec<Candidate> {
    let line = |store: &crate::plan::round::StoreNow<'_>| {
        let verdict = filter::judge_replica(round, ask, store).and_then(|fit| {
            let leaving = ask.leaving.filter(|_| balances);
            let against = leaving.and_then(|leaving| balance_region::judge(round, ask.region, leaving, store.id()));
            against.map_or(Ok(fit), Err)
        });
        Candidate {
            store: store.id().0,
            fits: verdict.is_ok(),
            reason: verdict.err().map(|rejection| rejection.to_string()),
            isolation: verdict.ok().map(|fit| fit.isolation),
            score_mib: verdict.ok().map(|fit| (fit.score / MIB as f64) as u64),
        }
    };
    round.stores().iter().filter(|store| store.state != crate::view::StoreState::Tombstone).map(line).collect()
}

fn leaders(round: &Round<'_>, region: &Region) -> Vec<Candidate> {
    let line = |store: &crate::plan::round::StoreNow<'_>| {
        let verdict = filter::judge_leader(round, region, store);
        let reason = verdict.err().map(|rejection| rejection.to_string());
        Candidate { store: store.id().0, fits: verdict.is_ok(), reason, isolation: None, score_mib: None }
    };
    region.voters().filter_map(|peer| round.store(peer.store)).map(line).collect()
}

fn fullest(round: &Round<'_>, region: &Region) -> Option<NodeId> {
    let stores = region.voters().filter_map(|peer| round.store(peer.store));
    stores.max_by(|a, b| a.region_score(0, 0).total_cmp(&b.region_score(0, 0))).map(|store| store.id())
}

fn apart(round: &Round<'_>, region: &Region, store: NodeId) -> u64 {
    let rest = round.paths_without(region, Some(store));
    round.store(store).map_or(0, |now| isolation(&now.path, rest, round.levels()))
}

fn replica_line(round: &Round<'_>, region: &Region, store: NodeId) -> Replica {
    let now = round.store(store);
    let learner = region.peer(store).is_some_and(|peer| peer.learner);
    let role = if region.leader == Some(store) {
        "leader"
    } else if learner {
        "learner"
    } else {
        "voter"
    };
    let mut health = Vec::new();
    match now.map(|now| now.health) {
        None => health.push("its store is not known".to_owned()),
        Some(Health::Connected) => {}
        Some(Health::Disconnected(span)) => health.push(format!("its store is silent for {}", format_span(span))),
        Some(Health::Down(span)) => health.push(format!("its store is down for {}", format_span(span))),
    }
    if let Some(now) = now.filter(|now| now.state != crate::view::StoreState::Up) {
        health.push(format!("its store is {}", now.state));
    }
    if let Some(span) = region.down_for(store, round.now) {
        health.push(format!("no answer to the leader for {}", format_span(span)));
    }
    if region.pending.contains(&store) {
        health.push("catching up".to_owned());
    }
    let value = |label: &String| now.and_then(|now| now.store.meta.labels.get(label)).cloned().unwrap_or_default();
    Replica {
        store: store.0,
        role,
        health: if health.is_empty() { "well".to_owned() } else { health.join(", ") },
        domain: round.policy.location_labels.iter().map(value).collect(),
        isolation: apart(round, region, store),
    }
}

fn notes(round: &Round<'_>, region: &Region) -> Vec<String> {
    let mut notes = Vec::new();
    if !round.stats.ready {
        let (heard, all) = (round.view.heard_regions(), round.view.region_count());
        notes.push(format!("this PD has heard of {heard} of {all} regions and plans nothing yet"));
    }
    if region.is_hot() {
        notes.push(format!("hot: {} KiB/s; only the hot region scheduler moves it", region.flow() >> 10));
    }
    if !region.split_keys.is_empty() {
        notes.push(format!("its leader wants it split at {} keys", region.split_keys.len()));
    }
    notes
}

fn under_way(flight: &InFlight, now: Time) -> UnderWay {
    UnderWay {
        id: flight.id,
        operator: flight.operator.clone(),
        step: flight.step,
        running_s: now.since(flight.started).as_secs(),
        without_progress_s: now.since(flight.progressed).as_secs(),
    }
}

impl fmt::Display for RegionExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "region {} at epoch {}, {} MiB", self.region, self.epoch, self.bytes / MIB)?;
        let labels = self.location_labels.join(", ");
        let apart = if labels.is_empty() { String::new() } else { format!(", apart by {labels}") };
        writeln!(f, "wanted: {} voters{apart}", self.wanted_replicas)?;
        for replica in &self.replicas {
            let Replica { store, role, health, domain, isolation } = replica;
            writeln!(f, "has: {role} in store {store} [{}], isolation {isolation}: {health}", domain.join("/"))?;
        }
        writeln!(f, "lacks: {}", self.lacks.as_deref().unwrap_or("nothing"))?;
        if let Some(flight) = &self.under_way {
            let UnderWay { id, operator, step, running_s, without_progress_s } = flight;
            let at = operator.steps.get(*step).map_or("done".to_owned(), ToString::to_string);
            writeln!(f, "under way: operator {id}, {operator}; at: {at}")?;
            writeln!(f, "  running for {running_s} s, without progress for {without_progress_s} s")?;
        }
        if let Some(operator) = &self.next {
            writeln!(f, "next: {operator}")?;
        }
        if let Some(blocker) = &self.blocker {
            writeln!(f, "in the way: {blocker}")?;
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        writeln!(f, "candidates for {}:", self.candidates_for)?;
        for candidate in &self.candidates {
            match &candidate.reason {
                Some(reason) => writeln!(f, "  store {}: no, {reason}", candidate.store)?,
                None => {
                    let (isolation, score) = (candidate.isolation.unwrap_or(0), candidate.score_mib.unwrap_or(0));
                    writeln!(f, "  store {}: fits, isolation {isolation}, score {score} MiB", candidate.store)?;
                }
            }
        }
        Ok(())
    }
}
