//! FlareDB's simulator can see: each planted bug is caught within a bounded number of seeds, for what it is, and without one the
//! same seeds pass.

use sim::regions::{Bug, Options, run, run_twice};

/// Runs seeds with a planted bug until one fails, `seeds_max` at most. `words` are what the findings may say.
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
    caught(Bug::AcknowledgeBeforePersist, 20, &["on the disks of"]);
}

#[test]
fn a_flush_that_flushes_nothing_is_caught() {
    caught(
        Bug::FlushNothing,
        60,
        &["on the disks of", "was refused", "differ", "is back", "two leaders", "begins anew", "panic", "cannot"],
    );
}

#[test]
fn serving_what_a_split_has_not_brought_to_disk_is_caught() {
    caught(Bug::ServeUnflushedSplits, 60, &["begins anew"]);
}

#[test]
fn a_merged_region_that_stays_on_disk_is_caught() {
    caught(Bug::KeepMerged, 60, &["was taken away and is back"]);
}

#[test]
fn forgetting_who_was_retired_is_caught() {
    // A late message brings the peer back, or a split whose peer has been here and is gone.
    caught(Bug::ForgetRetired, 100, &["was taken away and is back", "begins anew"]);
}

#[test]
fn a_split_that_keeps_the_version_is_caught() {
    caught(Bug::SplitKeepsVersion, 20, &["its version does not"]);
}

#[test]
fn ids_given_twice_are_caught() {
    caught(Bug::IdsTwice, 100, &["was given twice", "differ after entry"]);
}

#[test]
fn skipping_a_command_is_caught() {
    caught(Bug::SkipCommand, 20, &["differ after entry"]);
}

#[test]
fn peers_that_are_never_retired_are_noticed() {
    caught(Bug::NeverRetire, 20, &["not at rest long after everything was healed"]);
}

#[test]
fn believing_an_impostor_is_caught() {
    // Whichever comes first: that it is seen, or that what it acknowledged is on no disk.
    caught(Bug::BelieveImpostors, 40, &["was given to two data folders", "is committed, and on the disks of 0 of"]);
}

#[test]
fn a_store_that_admits_nobody_is_noticed() {
    caught(Bug::RefuseToAdmit, 20, &["not at rest long after everything was healed"]);
}

#[test]
fn serving_past_a_lease_is_caught() {
    caught(Bug::ServePastLease, 3000, &["before a read that finds"]);
}

#[test]
fn the_same_seeds_pass_without_a_bug() {
    for seed in 0..10 {
        let report = run_twice(seed, Options::default());
        assert_eq!(report.failure, None, "seed {seed}");
    }
}
