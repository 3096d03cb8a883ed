//! The simulator can see: each planted bug is caught within a bounded number of seeds, and without one the same seeds
//! pass. A bug that slips through here is one that would slip through in earnest.

use sim::world::{Bug, Options, Plan, run, run_twice};

/// Runs seeds with a planted bug until one fails, `seeds_max` at most. `words` are what the findings may say; the first
/// finding must be one of them, so that the bug is caught for what it is.
fn caught(bug: Bug, seeds_max: u64, words: &[&str]) {
    let options = Options { bug: Some(bug), ..Options::default() };
    for seed in 0..seeds_max {
        let Some(failure) = run(seed, options).failure else { continue };
        println!("{bug:?} caught by seed {seed} at {} ms: {}", failure.time / 1_000_000, failure.why);
        let known = words.iter().any(|word| failure.why.contains(word));
        assert!(known, "seed {seed} failed otherwise than expected: {}", failure.why);
        return;
    }
    panic!("{bug:?} went unnoticed in {seeds_max} seeds");
}

#[test]
fn acknowledging_before_persisting_is_caught() {
    caught(Bug::AcknowledgeBeforePersist, 20, &["disks of"]);
}

#[test]
fn skipping_a_term_check_is_caught() {
    caught(
        Bug::SkipTermCheck,
        200,
        &["two leaders", "another entry", "panic", "bad message", "disks of", "linearizable"],
    );
}

#[test]
fn reusing_a_read_context_is_caught() {
    caught(Bug::ReuseReadContext, 50, &["is not linearizable"]);
}

#[test]
fn dropping_a_watch_event_is_caught() {
    caught(Bug::DropWatchEvent, 20, &["was never sent", "claims revision", "was sent"]);
}

#[test]
fn serving_past_the_lease_is_caught() {
    caught(Bug::ServePastLease, 500, &["is not linearizable"]);
}

#[test]
fn forgetting_a_vote_is_caught() {
    caught(Bug::ForgetVote, 1_000, &["two leaders", "another entry"]);
}

#[test]
fn skipping_a_command_is_caught() {
    caught(Bug::SkipCommand, 20, &["differ after entry", "published two things"]);
}

/// In worlds where nothing fails but the disks of leaders.
#[test]
fn ignoring_a_stalled_disk_is_caught() {
    let options = Options { bug: Some(Bug::IgnoreStalls), only_stalls: true, ..Options::default() };
    let found = (0..20).find_map(|seed| run(seed, options).failure.map(|failure| (seed, failure)));
    let (seed, failure) = found.expect("IgnoreStalls went unnoticed in 20 seeds");
    println!("IgnoreStalls caught by seed {seed}: {}", failure.why);
    assert!(failure.why.contains("with a disk that stands still"), "{}", failure.why);
}

#[test]
fn a_leader_whose_disk_stands_still_leads_no_more_within_five_seconds() {
    let mut judged = 0;
    for seed in 0..30 {
        let report = run_twice(seed, Options { only_stalls: true, ..Options::default() });
        assert_eq!(report.failure, None, "seed {seed}");
        judged += report.counts.stalls_judged;
    }
    println!("{judged} leaders' disks stood still");
    assert!(judged > 20, "only {judged} stalls were judged");
}

/// In worlds where nothing fails but the disks of leaders, which are slow.
#[test]
fn ignoring_a_slow_disk_is_caught() {
    let options = Options { bug: Some(Bug::IgnoreSlowDisks), only_slow_leaders: true, ..Options::default() };
    let found = (0..20).find_map(|seed| run(seed, options).failure.map(|failure| (seed, failure)));
    let (seed, failure) = found.expect("IgnoreSlowDisks went unnoticed in 20 seeds");
    println!("IgnoreSlowDisks caught by seed {seed}: {}", failure.why);
    assert!(failure.why.contains("with a disk that is slow"), "{}", failure.why);
}

#[test]
fn a_leader_whose_disk_is_slow_leads_no_more_within_ten_seconds() {
    let mut judged = 0;
    for seed in 0..30 {
        let report = run_twice(seed, Options { only_slow_leaders: true, ..Options::default() });
        assert_eq!(report.failure, None, "seed {seed}");
        judged += report.counts.slow_judged;
    }
    println!("{judged} leaders' disks were slow");
    assert!(judged > 20, "only {judged} were judged");
}

#[test]
fn a_verdict_that_never_comes_is_noticed() {
    caught(Bug::DropVerdict, 100, &["not at rest long after everything was healed"]);
}

#[test]
fn serving_in_quarantine_is_caught() {
    caught(Bug::ServeInQuarantine, 200, &["is quarantined, and yet it reads"]);
}

/// Replicas that go astray are found out by their hashes, quarantined and rebuilt, whoever they are at that moment.
#[test]
fn replicas_that_differ_are_rebuilt() {
    let (mut seeds, mut quarantined) = (0, 0);
    for seed in (0..300).filter(|seed| Plan::new(*seed, false).faults.diverging) {
        let report = run(seed, Options::default());
        assert_eq!(report.failure, None, "seed {seed}");
        seeds += 1;
        quarantined += report.counts.quarantined;
    }
    println!("{quarantined} replicas were quarantined and rebuilt in {seeds} worlds");
    assert!(quarantined > 10, "{quarantined}");
}

#[test]
fn the_same_seeds_pass_without_a_bug() {
    for seed in 0..20 {
        let report = run_twice(seed, Options::default());
        assert_eq!(report.failure, None, "seed {seed}");
    }
}
