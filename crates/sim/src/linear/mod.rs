//! Was that history linearizable? A checker for key-value histories of real or simulated clients.
//!
//! A history is linearizable when every operation can be given one moment between its call and its answer such that,
//! done one by one at these moments, each gives the answer that it gave. Two checks look at it:
//!
//! * [`search`] looks for such moments key by key (a history over independent keys is linearizable exactly if it is
//!   so for each key), after Wing and Gong, with Lowe's memory of configurations visited. It trusts nothing but the
//!   answers. Revisions in them only cut the search short: along any valid order they never fall.
//! * [`order`] takes the store's revisions at their word and checks in one pass what the search by keys cannot see:
//!   that one order of revisions fits all keys, all times and what each range found at its revision.
//!
//! Operations of unknown outcome are what makes the search hard: each may take effect at any later time. The search
//! tries them last, and only where the very next operation could tell the difference.
//!
//! Left out: transactions over several keys (the model is one register per key; a range is checked as one get per
//! key, and as a whole by [`order`]); a starting content other than nothing.

pub mod history;
mod model;
mod order;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

pub use history::{Call, Found, Operation, Outcome};

/// What the checker found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    Violation {
        explanation: String,
    },
    /// The search met its limits. Callers count this as a failure.
    Unknown {
        why: String,
    },
}

/// How far the search may go. The steps make it repeatable, the time makes it end.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Configurations visited per key.
    pub steps_max: u64,
    /// For the whole history.
    pub time_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { steps_max: 2_000_000, time_max: Duration::from_secs(60) }
    }
}

/// Judges a history.
#[allow(clippy::disallowed_methods, reason = "the limit in time guards against histories that would take for ever")]
pub fn check(history: &[Operation], limits: Limits) -> Verdict {
    if let Err(explanation) = well_formed(history).and_then(|()| order::check(history)) {
        return Verdict::Violation { explanation };
    }
    let deadline = Instant::now() + limits.time_max;
    let mut unknown = None;
    for (key, steps) in model::partition(history) {
        match steps.and_then(|steps| search::search(&key, &steps, limits.steps_max, deadline)) {
            Ok(search::End::Found) => {}
            Ok(search::End::GaveUp(why)) => {
                unknown.get_or_insert(why);
            }
            Err(explanation) => return Verdict::Violation { explanation },
        }
    }
    unknown.map_or(Verdict::Linearizable, |why| Verdict::Unknown { why })
}

/// Refuses histories that cannot have been recorded rightly.
fn well_formed(history: &[Operation]) -> Result<(), String> {
    let mut busy: BTreeMap<u64, BTreeSet<(u64, u64)>> = BTreeMap::new();
    for operation in history {
        let fits = match (operation.end, &operation.outcome) {
            (Some(end), Some(_)) => end >= operation.start,
            (None, None) => true,
            _ => false,
        };
        if !fits {
            return Err(format!("not a history: end and outcome do not fit in {}", show(operation)));
        }
        if let Some(end) = operation.end {
            busy.entry(operation.client).or_default().insert((operation.start, end));
        }
    }
    for (client, calls) in busy {
        let overlap = calls.iter().zip(calls.iter().skip(1)).find(|(earlier, later)| later.0 < earlier.1);
        if let Some((earlier, later)) = overlap {
            return Err(format!("not a history: client {client} called at {} while busy since {}", later.0, earlier.0));
        }
    }
    Ok(())
}

/// One line about an operation, for explanations.
fn show(operation: &Operation) -> String {
    let call = match &operation.call {
        Call::Put { key, value } => format!("put {key} = {value}"),
        Call::Get { key } => format!("get {key}"),
        Call::Range { from, to } => format!("range {from}..{to}"),
        Call::Delete { key } => format!("delete {key}"),
        Call::Cas { key, expect, value } => format!("cas {key} = {value} if modified at {expect}"),
    };
    let answer = operation.outcome.as_ref().map_or("outcome unknown".to_owned(), |outcome| {
        let found: Vec<String> =
            outcome.found.iter().map(|found| format!("{} = {} @{}", found.key, found.value, found.modified)).collect();
        let done = match operation.call {
            Call::Delete { .. } | Call::Cas { .. } if outcome.done => "done ",
            Call::Delete { .. } | Call::Cas { .. } => "not done ",
            _ => "",
        };
        format!("{done}[{}] at revision {}", found.join(", "), outcome.revision)
    });
    let end = operation.end.map_or("…".to_owned(), |end| end.to_string());
    format!("{}..{end} client {}: {call} → {answer}", operation.start, operation.client)
}

#[cfg(test)]
mod tests;
