//! The store gives every write a revision of its own, and tells in every answer which revision it stands at. If that
//! is true, the revisions are the order, and one pass over the history checks it, over all keys at once:
//!
//! * no revision belongs to two writes;
//! * what was answered before something else was called has no higher revision, and a strictly lower one if that
//!   other was a write;
//! * what a get or a range found at a revision is what the writes up to there had left: for each key the last known
//!   one, or one of unknown outcome after it.

use std::collections::BTreeMap;

use super::{Call, Found, Operation, Outcome, show};

pub fn check(history: &[Operation]) -> Result<(), String> {
    let writes = writes(history)?;
    real_time(history)?;
    let mut by_key: BTreeMap<&str, BTreeMap<u64, (&Operation, Option<&str>)>> = BTreeMap::new();
    for (revision, operation) in writes {
        let (key, value) = match &operation.call {
            Call::Put { key, value } | Call::Cas { key, value, .. } => (key, Some(value.as_str())),
            Call::Delete { key } => (key, None),
            Call::Get { .. } | Call::Range { .. } => continue,
        };
        by_key.entry(key).or_default().insert(revision, (operation, value));
    }
    history.iter().try_for_each(|operation| found_fits(operation, &by_key))
}

/// All writes that took effect at a known revision.
fn writes(history: &[Operation]) -> Result<BTreeMap<u64, &Operation>, String> {
    let mut writes = BTreeMap::new();
    for operation in history {
        if let Some(outcome) = known(operation)
            && wrote(operation, outcome)
            && let Some(other) = writes.insert(outcome.revision, operation)
        {
            return Err(format!(
                "two writes have revision {}:\n    {}\n    {}",
                outcome.revision,
                show(other),
                show(operation)
            ));
        }
    }
    Ok(writes)
}

/// Revisions agree with time.
fn real_time(history: &[Operation]) -> Result<(), String> {
    let mut by_start: Vec<&Operation> = history.iter().filter(|operation| known(operation).is_some()).collect();
    let mut by_end = by_start.clone();
    by_start.sort_by_key(|operation| operation.start);
    by_end.sort_by_key(|operation| operation.end);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<(u64, &Operation)> = None;
    for operation in by_start {
        while let Some(before) = ended.next_if(|before| before.end.is_some_and(|end| end < operation.start)) {
            let revision = before.outcome.as_ref().map_or(0, |outcome| outcome.revision);
            if highest.is_none_or(|(high, _)| revision > high) {
                highest = Some((revision, before));
            }
        }
        let Some((high, before)) = highest else { continue };
        let Some(outcome) = known(operation) else { continue };
        if outcome.revision < high || (outcome.revision == high && wrote(operation, outcome)) {
            return Err(format!(
                "time went backwards: first\n    {}\nthen, called after that was answered,\n    {}",
                show(before),
                show(operation)
            ));
        }
    }
    Ok(())
}

/// A read found what the known writes had left at its revision, or something written after them by a write of
/// unknown outcome.
fn found_fits(
    operation: &Operation,
    writes: &BTreeMap<&str, BTreeMap<u64, (&Operation, Option<&str>)>>,
) -> Result<(), String> {
    let Some(outcome) = known(operation).filter(|outcome| !wrote(operation, outcome)) else { return Ok(()) };
    let (from, to) = match &operation.call {
        Call::Get { key } | Call::Cas { key, .. } => (key.clone(), format!("{key}\0")),
        Call::Range { from, to } => (from.clone(), to.clone()),
        Call::Put { .. } | Call::Delete { .. } => return Ok(()),
    };
    let mut found: BTreeMap<&str, &Found> = BTreeMap::new();
    for pair in &outcome.found {
        let inside = pair.key >= from && pair.key < to;
        if !inside || pair.modified > outcome.revision || found.insert(&pair.key, pair).is_some() {
            return Err(format!("an answer holds {} = {}, which cannot be: {}", pair.key, pair.value, show(operation)));
        }
    }
    let keys = writes.range(from.as_str()..).take_while(|(key, _)| **key < to.as_str());
    for (key, writes) in keys {
        let Some((revision, (write, value))) = writes.range(..=outcome.revision).next_back() else { continue };
        let fits = match found.get(key) {
            // Absent: the last known write deleted it, or a delete of unknown outcome came after.
            None => true,
            Some(pair) if pair.modified == 0 => true,
            Some(pair) if pair.modified == *revision => *value == Some(pair.value.as_str()),
            Some(pair) => pair.modified > *revision,
        };
        if !fits {
            return Err(format!("an old value was read: after\n    {}\ncame\n    {}", show(write), show(operation)));
        }
    }
    Ok(())
}

/// The outcome, if it tells a revision.
fn known(operation: &Operation) -> Option<&Outcome> {
    operation.outcome.as_ref().filter(|outcome| outcome.revision != 0)
}

fn wrote(operation: &Operation, outcome: &Outcome) -> bool {
    match operation.call {
        Call::Put { .. } => true,
        Call::Delete { .. } | Call::Cas { .. } => outcome.done,
        Call::Get { .. } | Call::Range { .. } => false,
    }
}
