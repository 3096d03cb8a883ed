//! The model: one key as a register that knows when it was last modified, and the history cut into keys.
//!
//! Before the search, what reads saw is matched with what was written. That settles many operations of unknown
//! outcome (a value that was seen was written, at the revision seen with it), and finds some violations outright: a
//! value that nobody wrote, or one that was seen at two revisions although it was written once.

use std::collections::BTreeMap;

use super::{Call, Found, Operation, show};

/// A value's number within a key; zero stands for absence.
pub type Value = u32;
pub const ABSENT: Value = 0;

/// An operation on one key.
#[derive(Clone, Debug)]
pub struct Step {
    pub start: u64,
    /// `u64::MAX` when the outcome is unknown.
    pub end: u64,
    pub action: Action,
    /// The revision in the answer, or as found out for a write of unknown outcome; zero when not known.
    pub revision: u64,
    /// The answer came, or an effect was seen: the step has to be placed.
    pub certain: bool,
    /// A put of unknown outcome whose value nobody saw: as good as any other such put.
    pub anonymous: bool,
    pub text: String,
}

/// A value, and the revision at which it was written (zero: not known).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    pub value: Value,
    pub modified: u64,
}

#[derive(Clone, Debug)]
pub enum Action {
    Put {
        value: Value,
    },
    Get {
        found: Seen,
    },
    /// `done` is `None` when the outcome is unknown.
    Delete {
        done: Option<bool>,
    },
    Cas {
        expect: u64,
        /// The value known to have been written at `expect`, if any is.
        expect_value: Option<Value>,
        value: Value,
        swapped: Option<bool>,
        found: Seen,
    },
}

/// The register. `floor` is the highest revision known to have passed; `hot` says that the last step was a write of
/// unknown outcome and revision, so that only a step that can tell its effect may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub seen: Seen,
    pub floor: u64,
    pub hot: bool,
}

impl State {
    pub const START: State = State { seen: Seen { value: ABSENT, modified: 0 }, floor: 0, hot: false };

    /// The state after `step`; `None` when the step cannot be here.
    pub fn after(&self, step: &Step) -> Option<State> {
        if self.hot && !step.certain {
            return None;
        }
        match step.action {
            Action::Put { .. } if self.hot => None,
            Action::Put { value } => self.written(step, value),
            Action::Get { found } => self.observed(found)?.passed(step),
            Action::Delete { done: Some(false) } => (self.seen.value == ABSENT).then_some(*self)?.passed(step),
            Action::Delete { .. } if self.seen.value == ABSENT => None,
            Action::Delete { .. } => self.written(step, ABSENT),
            Action::Cas { expect, found, swapped: Some(false), .. } => {
                if self.matches(expect, None) == Some(true) {
                    return None;
                }
                self.observed(found)?.passed(step)
            }
            Action::Cas { expect, expect_value, value, .. } => {
                if self.matches(expect, expect_value) == Some(false) {
                    return None;
                }
                self.written(step, value)
            }
        }
    }

    /// Whether a compare with `expect` holds; `None` when the register's revision is not known.
    fn matches(&self, expect: u64, expect_value: Option<Value>) -> Option<bool> {
        match (self.seen.value, expect, self.seen.modified) {
            (ABSENT, 0, _) => Some(true),
            (ABSENT, ..) | (_, 0, _) => Some(false),
            (value, _, 0) if expect_value.is_some_and(|expected| expected != value) => Some(false),
            (_, _, 0) => None,
            (_, _, modified) => Some(modified == expect),
        }
    }

    /// A read found this here.
    fn observed(&self, found: Seen) -> Option<State> {
        let known = |revision: u64| revision != 0;
        let fits = self.seen.value == found.value
            && (self.seen.modified == found.modified || !known(self.seen.modified) || !known(found.modified));
        let seen = if known(found.modified) { found } else { self.seen };
        fits.then_some(State { seen, hot: false, ..*self })
    }

    /// The step changed nothing and answered with `step.revision`.
    fn passed(&self, step: &Step) -> Option<State> {
        if step.revision == 0 {
            return Some(State { hot: false, ..*self });
        }
        (self.floor <= step.revision).then_some(State { floor: step.revision, hot: false, ..*self })
    }

    /// The step wrote `value`, at its revision if that is known.
    fn written(&self, step: &Step, value: Value) -> Option<State> {
        let revision = step.revision;
        if revision != 0 && self.floor >= revision {
            return None;
        }
        let modified = if value == ABSENT { 0 } else { revision };
        Some(State { seen: Seen { value, modified }, floor: self.floor.max(revision), hot: !step.certain })
    }
}

/// Cuts a history into its keys. A key whose answers contradict each other already gives the explanation.
pub fn partition(history: &[Operation]) -> BTreeMap<String, Result<Vec<Step>, String>> {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        if let Call::Put { key, .. } | Call::Get { key } | Call::Delete { key } | Call::Cas { key, .. } =
            &operation.call
        {
            keys.entry(key).or_default().push(operation);
        }
        for found in operation.outcome.iter().flat_map(|outcome| &outcome.found) {
            keys.entry(&found.key).or_default();
        }
    }
    for operation in history {
        if let (Call::Range { from, to }, Some(_)) = (&operation.call, &operation.outcome) {
            let inside = keys.range_mut(from.as_str()..).take_while(|(key, _)| **key < to.as_str());
            inside.for_each(|(_, operations)| operations.push(operation));
        }
    }
    keys.into_iter().map(|(key, operations)| (key.to_owned(), steps(key, &operations))).collect()
}

/// What is known of one written value.
#[derive(Default)]
struct Origin {
    number: Value,
    writes: u32,
    /// The revision it was written at; zero while not known.
    revision: u64,
    seen: bool,
}

fn steps(key: &str, operations: &[&Operation]) -> Result<Vec<Step>, String> {
    let mut origins: BTreeMap<&str, Origin> = BTreeMap::new();
    for operation in operations {
        if let Call::Put { value, .. } | Call::Cas { value, .. } = &operation.call {
            if operation.outcome.as_ref().is_some_and(|outcome| !outcome.done) {
                continue;
            }
            let number = Value::try_from(origins.len() + 1).expect("a history has fewer than 2^32 operations");
            let origin = origins.entry(value).or_insert(Origin { number, ..Origin::default() });
            origin.writes += 1;
            origin.revision = operation.outcome.as_ref().map_or(0, |outcome| outcome.revision);
        }
    }
    for operation in operations {
        for found in found_of(operation, key) {
            let Some(origin) = origins.get_mut(found.value.as_str()) else {
                return Err(format!("key {key}: a value that nobody wrote was read: {}", show(operation)));
            };
            origin.seen = true;
            if origin.writes > 1 || found.modified == 0 {
                continue;
            }
            if origin.revision != 0 && origin.revision != found.modified {
                return Err(format!(
                    "key {key}: value {} was written once, yet seen at revisions {} and {} (applied twice?): {}",
                    found.value,
                    origin.revision,
                    found.modified,
                    show(operation)
                ));
            }
            origin.revision = found.modified;
        }
    }
    let at_revision: BTreeMap<u64, Value> = origins
        .values()
        .filter(|origin| origin.writes == 1 && origin.revision != 0)
        .map(|origin| (origin.revision, origin.number))
        .collect();
    let mut steps: Vec<Step> =
        operations.iter().filter_map(|operation| step(operation, key, &origins, &at_revision)).collect();
    steps.sort_by_key(|step| (step.start, step.end));
    Ok(steps)
}

fn found_of<'a>(operation: &'a Operation, key: &'a str) -> impl Iterator<Item = &'a Found> {
    operation.outcome.iter().flat_map(|outcome| &outcome.found).filter(move |found| found.key == key)
}

/// `None` for a read without an answer: it says nothing.
fn step(
    operation: &Operation,
    key: &str,
    origins: &BTreeMap<&str, Origin>,
    at_revision: &BTreeMap<u64, Value>,
) -> Option<Step> {
    let outcome = operation.outcome.as_ref();
    let found = found_of(operation, key).next().map_or(Seen { value: ABSENT, modified: 0 }, |found| Seen {
        value: origins[found.value.as_str()].number,
        modified: found.modified,
    });
    let mut revision = outcome.map_or(0, |outcome| outcome.revision);
    let mut certain = outcome.is_some();
    let mut anonymous = false;
    let mut written = |value: &str, refused: bool| {
        let Some(origin) = origins.get(value).filter(|_| !refused) else { return ABSENT };
        if origin.writes == 1 && origin.seen {
            certain = true;
            revision = origin.revision;
        }
        anonymous = outcome.is_none() && !origin.seen;
        origin.number
    };
    let action = match &operation.call {
        Call::Put { value, .. } => Action::Put { value: written(value, false) },
        Call::Get { .. } | Call::Range { .. } => {
            outcome?;
            Action::Get { found }
        }
        Call::Delete { .. } => Action::Delete { done: outcome.map(|outcome| outcome.done) },
        Call::Cas { expect, value, .. } => {
            let swapped = outcome.map(|outcome| outcome.done);
            let value = written(value, swapped == Some(false));
            anonymous = false;
            Action::Cas { expect: *expect, expect_value: at_revision.get(expect).copied(), value, swapped, found }
        }
    };
    let end = operation.end.unwrap_or(u64::MAX);
    Some(Step { start: operation.start, end, action, revision, certain, anonymous, text: show(operation) })
}
