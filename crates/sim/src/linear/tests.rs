//! Good histories pass, bad ones are caught, whether or not answers tell revisions.

use base::Rng;

use super::*;

/// Tiny histories: `client start end call → outcome`.
struct Story(Vec<Operation>);

impl Story {
    fn new() -> Story {
        Story(Vec::new())
    }

    fn put(mut self, client: u64, span: (u64, u64), key: &str, value: &str, revision: u64) -> Story {
        let call = Call::Put { key: key.into(), value: value.into() };
        let outcome = Outcome { revision, done: true, found: vec![] };
        self.0.push(Operation { client, start: span.0, end: Some(span.1), call, outcome: Some(outcome) });
        self
    }

    fn lost(mut self, client: u64, start: u64, call: Call) -> Story {
        self.0.push(Operation { client, start, end: None, call, outcome: None });
        self
    }

    fn lost_put(self, client: u64, start: u64, key: &str, value: &str) -> Story {
        self.lost(client, start, Call::Put { key: key.into(), value: value.into() })
    }

    fn get(mut self, client: u64, span: (u64, u64), key: &str, found: Option<(&str, u64)>, revision: u64) -> Story {
        let found = found
            .map(|(value, modified)| Found { key: key.into(), value: value.into(), modified })
            .into_iter()
            .collect();
        let outcome = Outcome { revision, done: false, found };
        let call = Call::Get { key: key.into() };
        self.0.push(Operation { client, start: span.0, end: Some(span.1), call, outcome: Some(outcome) });
        self
    }

    fn range(mut self, client: u64, span: (u64, u64), found: &[(&str, &str, u64)], revision: u64) -> Story {
        let found = found.iter().map(|(key, value, modified)| Found {
            key: (*key).into(),
            value: (*value).into(),
            modified: *modified,
        });
        let outcome = Outcome { revision, done: false, found: found.collect() };
        let call = Call::Range { from: "a".into(), to: "z".into() };
        self.0.push(Operation { client, start: span.0, end: Some(span.1), call, outcome: Some(outcome) });
        self
    }

    fn delete(mut self, client: u64, span: (u64, u64), key: &str, done: bool, revision: u64) -> Story {
        let outcome = Outcome { revision, done, found: vec![] };
        let call = Call::Delete { key: key.into() };
        self.0.push(Operation { client, start: span.0, end: Some(span.1), call, outcome: Some(outcome) });
        self
    }

    fn cas(mut self, client: u64, span: (u64, u64), expect: u64, value: &str, done: bool, revision: u64) -> Story {
        let call = Call::Cas { key: "k".into(), expect, value: value.into() };
        let outcome = Outcome { revision, done, found: vec![] };
        self.0.push(Operation { client, start: span.0, end: Some(span.1), call, outcome: Some(outcome) });
        self
    }

    /// The same story told by clients that know no header revisions.
    fn without_revisions(mut self) -> Story {
        self.0.iter_mut().filter_map(|operation| operation.outcome.as_mut()).for_each(|outcome| outcome.revision = 0);
        self
    }

    fn passes(self) {
        assert_eq!(check(&self.0, Limits::default()), Verdict::Linearizable);
    }

    fn fails(self, word: &str) {
        match check(&self.0, Limits::default()) {
            Verdict::Violation { explanation } => assert!(explanation.contains(word), "{explanation}"),
            other => panic!("not caught: {other:?}"),
        }
    }
}

#[test]
fn plain_and_concurrent_histories_pass() {
    Story::new().passes();
    let story = || {
        Story::new()
            .put(1, (1, 5), "k", "a", 2)
            .get(2, (2, 3), "k", None, 1)
            .get(2, (4, 9), "k", Some(("a", 2)), 2)
            .cas(1, (6, 12), 2, "b", true, 3)
            .cas(3, (6, 12), 2, "c", false, 2)
    };
    // The refused cas read nothing at all, though the key was there.
    story().fails("");
    Story::new()
        .put(1, (1, 5), "k", "a", 2)
        .delete(2, (4, 9), "k", true, 3)
        .delete(2, (10, 11), "k", false, 3)
        .cas(1, (12, 13), 0, "b", true, 4)
        .get(2, (12, 20), "k", Some(("b", 4)), 4)
        .passes();
}

#[test]
fn a_stale_read_is_caught() {
    let story =
        || Story::new().put(1, (1, 2), "k", "a", 2).put(1, (3, 4), "k", "b", 3).get(2, (5, 6), "k", Some(("a", 2)), 2);
    story().fails("backwards");
    story().without_revisions().fails("no order fits");
    // The header claims to be recent, the content is old.
    let mut lying = story();
    lying.0[2].outcome.as_mut().unwrap().revision = 3;
    lying.fails("old value");
    // While the second put runs, either may be read; but not the new one and then the old one.
    let racing =
        || Story::new().put(1, (1, 2), "k", "a", 2).put(1, (3, 9), "k", "b", 3).get(2, (4, 5), "k", Some(("a", 2)), 2);
    racing().passes();
    racing().without_revisions().passes();
    racing().get(3, (1, 3), "k", Some(("b", 3)), 3).without_revisions().fails("no order fits");
    let turning = Story::new()
        .put(1, (1, 2), "k", "a", 0)
        .put(1, (3, 9), "k", "b", 0)
        .get(2, (4, 5), "k", Some(("b", 0)), 0)
        .get(2, (6, 7), "k", Some(("a", 0)), 0);
    turning.fails("no order fits");
}

#[test]
fn a_lost_update_is_caught() {
    let story = || {
        Story::new()
            .put(1, (1, 2), "k", "a", 2)
            .get(2, (1, 2), "k", Some(("a", 2)), 2)
            .cas(2, (3, 6), 2, "b", true, 3)
            .cas(3, (3, 6), 2, "c", true, 4)
    };
    story().fails("no order fits");
    story().without_revisions().fails("no order fits");
    Story::new().put(1, (1, 2), "k", "a", 2).get(2, (3, 4), "k", None, 2).fails("no order fits");
}

#[test]
fn a_value_nobody_wrote_is_caught() {
    Story::new().get(1, (1, 2), "k", Some(("ghost", 2)), 2).fails("nobody wrote");
    let refused = Story::new().put(1, (1, 2), "k", "a", 2).cas(1, (3, 4), 0, "b", false, 2).get(
        2,
        (5, 6),
        "k",
        Some(("b", 3)),
        3,
    );
    refused.fails("nobody wrote");
}

#[test]
fn reordering_is_caught() {
    let swapped = Story::new().put(1, (1, 2), "a", "1", 3).put(1, (3, 4), "b", "2", 2);
    swapped.fails("backwards");
    Story::new().put(1, (1, 5), "a", "1", 2).put(2, (1, 5), "b", "2", 2).fails("two writes have revision 2");
    // Two reads see two writes in opposite order.
    let story = Story::new()
        .put(1, (1, 20), "k", "a", 0)
        .put(2, (1, 20), "k", "b", 0)
        .get(3, (2, 3), "k", Some(("a", 0)), 0)
        .get(3, (4, 5), "k", Some(("b", 0)), 0)
        .get(4, (6, 7), "k", Some(("a", 0)), 0);
    story.fails("no order fits");
}

#[test]
fn double_application_is_caught() {
    Story::new().put(1, (1, 2), "k", "a", 2).get(2, (3, 4), "k", Some(("a", 3)), 3).fails("applied twice");
    let story = Story::new()
        .lost_put(1, 1, "k", "a")
        .get(2, (3, 4), "k", Some(("a", 2)), 2)
        .delete(2, (5, 6), "k", true, 3)
        .get(2, (7, 8), "k", Some(("a", 4)), 4);
    story.fails("applied twice");
    let story = Story::new()
        .lost_put(1, 1, "k", "a")
        .get(2, (3, 4), "k", Some(("a", 0)), 0)
        .delete(2, (5, 6), "k", true, 0)
        .get(2, (7, 8), "k", Some(("a", 0)), 0);
    story.fails("no order fits");
}

#[test]
fn unknown_outcomes_may_take_effect_late_or_never() {
    let late =
        |seen: Option<(&str, u64)>| {
            Story::new()
                .lost_put(1, 1, "k", "late")
                .put(2, (2, 3), "k", "a", 2)
                .get(2, (4, 5), "k", Some(("a", 2)), 2)
                .get(2, (6, 7), "k", seen, if seen == Some(("a", 2)) { 2 } else { 3 })
        };
    late(Some(("a", 2))).passes();
    late(Some(("late", 3))).passes();
    late(None).fails("no order fits");
    // It cannot take effect before it was called.
    let early = Story::new().get(2, (1, 2), "k", Some(("b", 2)), 2).lost_put(1, 3, "k", "b");
    early.fails("no order fits");
    // Only a put of unknown outcome explains what this delete says.
    Story::new().lost_put(1, 1, "k", "x").delete(2, (5, 6), "k", true, 3).passes();
    Story::new().lost_put(1, 7, "k", "x").delete(2, (5, 6), "k", true, 3).fails("no order fits");
    let lost_delete = Call::Delete { key: "k".into() };
    Story::new().put(1, (1, 2), "k", "a", 2).lost(3, 2, lost_delete).get(2, (5, 6), "k", None, 3).passes();
    let lost_cas = |expect| Call::Cas { key: "k".into(), expect, value: "c".into() };
    let seen = Some(("c", 3));
    Story::new().put(1, (1, 2), "k", "a", 2).lost(3, 2, lost_cas(2)).get(2, (5, 6), "k", seen, 3).passes();
    Story::new().put(1, (1, 2), "k", "a", 2).lost(3, 2, lost_cas(7)).get(2, (5, 6), "k", seen, 3).fails("no order");
}

#[test]
fn a_range_is_one_moment() {
    let story = |found: &[(&str, &str, u64)], revision| {
        Story::new().put(1, (1, 2), "a", "1", 2).put(1, (3, 4), "b", "2", 3).range(2, (1, 9), found, revision)
    };
    story(&[("a", "1", 2), ("b", "2", 3)], 3).passes();
    story(&[("a", "1", 2)], 2).passes();
    story(&[], 1).passes();
    story(&[("b", "2", 3)], 3).fails("no order fits");
    story(&[("b", "2", 3)], 2).fails("cannot be");
}

#[test]
fn what_is_no_history_is_refused() {
    let mut story = Story::new().put(1, (5, 6), "k", "a", 2);
    story.0[0].end = None;
    story.fails("not a history");
    Story::new().put(1, (1, 5), "k", "a", 2).put(1, (3, 6), "k", "b", 3).fails("busy");
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the time it takes is what is tested")]
fn twenty_thousand_operations_take_little_time() {
    for (revisions, keys) in [(true, 20), (false, 20), (true, 1)] {
        let history = simulate(7, 20_000, 10, keys, revisions);
        let began = Instant::now();
        assert_eq!(check(&history, Limits::default()), Verdict::Linearizable);
        let spent = began.elapsed();
        assert!(spent < Duration::from_secs(10), "{spent:?} with revisions {revisions}, {keys} keys");

        // The same with one stale read in the middle.
        let mut bad = history;
        let middle = bad.len() / 2;
        let stale = |operation: &Operation| matches!(operation.call, Call::Get { .. }) && operation.outcome.is_some();
        let at = (middle..bad.len()).find(|at| stale(&bad[*at])).unwrap();
        bad[at].outcome.as_mut().unwrap().found.clear();
        assert!(written_before(&bad, at), "the read found something before");
        let verdict = check(&bad, Limits::default());
        assert!(matches!(verdict, Verdict::Violation { .. }), "{verdict:?}");
    }
}

/// Whether the key of the get at `at` had certainly been written by then; nothing is ever deleted here.
fn written_before(history: &[Operation], at: usize) -> bool {
    let Call::Get { key } = &history[at].call else { return false };
    history[..at].iter().any(|operation| {
        matches!(&operation.call, Call::Put { key: written, .. } if written == key)
            && operation.end.is_some_and(|end| end < history[at].start)
    })
}

/// A history of a correct store: clients that call, take effect at a moment in between, and sometimes never hear.
fn simulate(seed: u64, operations: usize, clients: u64, keys: u64, revisions: bool) -> Vec<Operation> {
    let mut rng = Rng::new(seed);
    let mut store: BTreeMap<String, (String, u64)> = BTreeMap::new();
    let mut revision = 1;
    let mut history = Vec::new();
    let mut free = vec![0_u64; clients as usize];
    // (moment, start, end, client): carried out in order of the moment.
    let mut calls = Vec::new();
    for _ in 0..operations {
        let client = (0..free.len()).min_by_key(|at| free[*at]).unwrap();
        let start = free[client] + 1 + rng.below(50);
        let moment = start + rng.below(1000);
        let end = moment + rng.below(1000);
        free[client] = end + 1;
        calls.push((moment, start, end, client as u64));
    }
    calls.sort_unstable();
    for (number, (_, start, end, client)) in calls.into_iter().enumerate() {
        let key = format!("k{}", rng.below(keys));
        let value = format!("v{number}");
        let before = store.get(&key).cloned();
        let found = before
            .iter()
            .map(|(value, modified)| Found { key: key.clone(), value: value.clone(), modified: *modified })
            .collect();
        let (call, done, found) = match rng.below(4) {
            0 => (Call::Put { key: key.clone(), value: value.clone() }, true, vec![]),
            1 => {
                let guess = before.as_ref().map_or(0, |(_, modified)| *modified);
                let expect = if rng.percent(70) { guess } else { guess.saturating_sub(1) };
                let done = expect == guess;
                (Call::Cas { key: key.clone(), expect, value: value.clone() }, done, if done { vec![] } else { found })
            }
            _ => (Call::Get { key: key.clone() }, false, found),
        };
        let unknown = rng.percent(5);
        let effective = !unknown || rng.percent(50);
        if done && effective {
            revision += 1;
            store.insert(key, (value, revision));
        }
        let outcome = Outcome { revision: if revisions { revision } else { 0 }, done, found };
        let (end, outcome) = if unknown { (None, None) } else { (Some(end), Some(outcome)) };
        history.push(Operation { client, start, end, call, outcome });
    }
    history
}
