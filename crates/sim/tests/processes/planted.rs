//! Histories are judged, and the judge is judged: a recorded history with a fault planted in it must not pass.

use sim::linear::{self, Call, Limits, Operation, Verdict};

pub fn judge(history: &[Operation]) -> Verdict {
    linear::check(history, Limits::default())
}

/// The same history with a fault planted must not pass.
pub fn planted_faults_are_seen(history: &[Operation]) {
    let (at, puts) = (0..history.len())
        .rev()
        .find_map(|at| puts_in_turn(history, at).filter(|puts| puts.len() >= 2).map(|puts| (at, puts)))
        .expect("some key was read after it was written twice");
    let Call::Put { key, value } = &history[puts[0]].call else { unreachable!("it is a put") };
    let modified = history[puts[0]].outcome.as_ref().map_or(0, |outcome| outcome.revision);
    let mut stale = history.to_vec();
    let found = &mut stale[at].outcome.as_mut().expect("an answered read").found;
    *found = vec![linear::Found { key: key.clone(), value: value.clone(), modified }];
    assert!(matches!(judge(&stale), Verdict::Violation { .. }), "a stale read was not seen");

    let at =
        (0..history.len()).find(|at| nothing_deleted(history, *at)).expect("some key was read before its deletion");
    let mut lost = history.to_vec();
    lost[at].outcome.as_mut().expect("an answered read").found.clear();
    assert!(matches!(judge(&lost), Verdict::Violation { .. }), "a lost write was not seen");
}

/// For an answered get: the puts of its key that were answered before it was called, each called after the one before
/// it was answered.
fn puts_in_turn(history: &[Operation], at: usize) -> Option<Vec<usize>> {
    let key = found_by_get(&history[at])?;
    let before = |put: &usize| {
        let operation = &history[*put];
        matches!(&operation.call, Call::Put { key: written, .. } if written == key)
            && operation.end.is_some_and(|end| end < history[at].start)
    };
    let mut all: Vec<usize> = (0..history.len()).filter(before).collect();
    all.sort_by_key(|put| history[*put].end);
    let mut in_turn: Vec<usize> = Vec::new();
    for put in all {
        if in_turn.last().is_none_or(|last| history[*last].end < Some(history[put].start)) {
            in_turn.push(put);
        }
    }
    Some(in_turn)
}

/// Whether it is an answered get of a key that was put before and that nobody can have deleted since.
fn nothing_deleted(history: &[Operation], at: usize) -> bool {
    let Some(key) = found_by_get(&history[at]) else { return false };
    let Some(put) = puts_in_turn(history, at).and_then(|puts| puts.last().copied()) else { return false };
    !history.iter().any(|operation| {
        let deletes = matches!(&operation.call, Call::Delete { key: deleted } if deleted == key);
        let before = operation.end.is_some_and(|end| end < history[put].start);
        deletes && !before && history[at].end >= Some(operation.start)
    })
}

/// The key of a get that found it.
fn found_by_get(operation: &Operation) -> Option<&String> {
    let Call::Get { key } = &operation.call else { return None };
    operation.outcome.as_ref().filter(|outcome| !outcome.found.is_empty()).map(|_| key)
}
