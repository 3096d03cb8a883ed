//! What a member has counted since its process began: rounds, operators, heartbeats. Plain numbers, rendered elsewhere.
//!
//! And what it says when regions cannot have what they need: one line once that has lasted, and again now and then.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::Time;
use node::metrics::Histogram;
use node::metrics::histogram::REQUEST_BOUNDS_US;
use parking_lot::Mutex;

use crate::model::Cause;
use crate::plan::RoundStats;
use crate::refusals::Refusals;

/// Blocked regions are mentioned when they have been so for this long, and then this often.
const BLOCKED_SAID_AFTER: Duration = Duration::from_secs(10);
const BLOCKED_SAID_EVERY: Duration = Duration::from_secs(60);
/// Blockers that go away by themselves.
const PASSING: [&str; 4] = ["busy", "not-reported", "limit", "remove-rate"];

pub struct Counters {
    /// How long planning took.
    pub rounds: Histogram,
    pub heartbeats: AtomicU64,
    pub registrations_refused: AtomicU64,
    pub refusals: Refusals,
    operators: Mutex<Operators>,
    blocked: Mutex<Blocked>,
}

#[derive(Default)]
struct Operators {
    begun: BTreeMap<&'static str, u64>,
    ended: BTreeMap<(&'static str, &'static str), u64>,
}

#[derive(Default)]
struct Blocked {
    now: BTreeMap<&'static str, u64>,
    since: Option<Time>,
    said: Option<Time>,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            rounds: Histogram::new(&REQUEST_BOUNDS_US),
            heartbeats: AtomicU64::new(0),
            registrations_refused: AtomicU64::new(0),
            refusals: Refusals::default(),
            operators: Mutex::default(),
            blocked: Mutex::default(),
        }
    }
}

impl Counters {
    pub fn heartbeat(&self) {
        self.heartbeats.fetch_add(1, Ordering::Relaxed);
    }

    pub fn refused(&self) {
        self.registrations_refused.fetch_add(1, Ordering::Relaxed);
    }

    pub fn begun(&self, cause: Cause) {
        *self.operators.lock().begun.entry(cause.name()).or_default() += 1;
    }

    /// `outcome` as it stands among the operators that are over.
    pub fn ended(&self, cause: Cause, outcome: &str) {
        let outcome = outcome_class(outcome);
        *self.operators.lock().ended.entry((cause.name(), outcome)).or_default() += 1;
    }

    /// Operators begun, by cause.
    pub fn operators_begun(&self) -> BTreeMap<&'static str, u64> {
        self.operators.lock().begun.clone()
    }

    /// Operators ended, by cause and outcome.
    pub fn operators_ended(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.operators.lock().ended.clone()
    }

    /// Regions that could not have what they needed in the last round, by what stood in the way.
    pub fn blocked(&self) -> BTreeMap<&'static str, u64> {
        self.blocked.lock().now.clone()
    }

    /// A round is over. What is to be said of it, if anything.
    pub fn round(&self, took: Duration, stats: &RoundStats, now: Time) -> Option<String> {
        self.rounds.observe(took);
        let mut blocked = self.blocked.lock();
        blocked.now = stats.blocked.clone();
        let lasting = stats.blocked.iter().filter(|(why, _)| !PASSING.contains(why));
        let lasting: Vec<String> = lasting.map(|(why, regions)| format!("{why}: {regions}")).collect();
        if lasting.is_empty() {
            (blocked.since, blocked.said) = (None, None);
            return None;
        }
        let since = *blocked.since.get_or_insert(now);
        let due = blocked.said.is_none_or(|said| now.since(said) >= BLOCKED_SAID_EVERY);
        if now.since(since) < BLOCKED_SAID_AFTER || !due {
            return None;
        }
        blocked.said = Some(now);
        Some(lasting.join(", "))
    }
}

fn outcome_class(outcome: &str) -> &'static str {
    match outcome {
        "done" => "done",
        _ if outcome.starts_with("cancelled: no progress") => "no-progress",
        _ => "cancelled",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_said_and_what_passes_is_not() {
        let counters = Counters::default();
        let round = |seconds: u64, blocked: &[(&'static str, u64)]| {
            let stats = RoundStats { blocked: blocked.iter().copied().collect(), ..RoundStats::default() };
            counters.round(Duration::from_millis(1), &stats, Time::from_millis(1000 * seconds))
        };
        assert_eq!(round(0, &[("limit", 9)]), None);
        assert_eq!(round(1, &[("limit", 9), ("no-candidate", 3)]), None);
        assert_eq!(round(5, &[]), None);
        assert_eq!(round(6, &[("no-candidate", 3)]), None, "it begins anew");
        assert_eq!(round(16, &[("no-candidate", 3)]).as_deref(), Some("no-candidate: 3"));
        assert_eq!(round(17, &[("no-candidate", 4)]), None);
        assert_eq!(round(76, &[("no-candidate", 4), ("unsafe", 1)]).as_deref(), Some("no-candidate: 4, unsafe: 1"));
        assert_eq!(counters.blocked().len(), 2);
    }

    #[test]
    fn operators_count_by_how_they_end() {
        let counters = Counters::default();
        counters.begun(Cause::Split);
        counters.ended(Cause::Split, "done");
        counters.ended(Cause::Split, "cancelled: no progress for 600 s with the step: split");
        counters.ended(Cause::Split, "region 3 is part of region 2 by now");
        let ended: Vec<_> = counters.operators_ended().into_keys().map(|(_, outcome)| outcome).collect();
        assert_eq!(ended, ["cancelled", "done", "no-progress"]);
    }
}
