//! Every kind of fault at every call that changes the disk: nothing acknowledged is lost, nothing is invented, and
//! a log that failed for good says so ever after.

use std::sync::Arc;

use base::Rng;
use storage::seglog::{SegLog, SegLogOptions};
use storage::{LogError, LogStore};

use crate::content::{Content, whole};
use crate::disk::{Fault, SimDisk};
use crate::operations::Operations;
use crate::suite::small;

fn options() -> SegLogOptions {
    SegLogOptions { segment_bytes: 1200, ..small() }
}

/// What a run left behind.
struct Ended {
    /// The content that was acknowledged, and the one if what was under way counts as well.
    allowed: [Content; 2],
    error: Option<LogError>,
    opened: bool,
    retried: bool,
}

/// Writes batches until one fails for good.
fn run(disk: &SimDisk, seed: u64) -> Ended {
    let mut operations = Operations::new(seed);
    let mut allowed = [operations.content(), operations.content()];
    let mut retried = false;
    let log = match SegLog::open_on(Arc::new(disk.clone()), options()) {
        Ok(log) => log,
        Err(error) => return Ended { allowed, error: Some(error), opened: false, retried },
    };
    for step in 0..40 {
        let batch = operations.batch();
        allowed[1] = operations.content();
        let mut outcome = log.write(&batch);
        if outcome == Err(LogError::NoSpace) {
            let shown = whole(&log);
            outcome = log.write(&batch);
            if outcome.is_ok() {
                assert_eq!(shown, allowed[0]);
                retried = true;
            }
        }
        if outcome.is_ok() {
            allowed[0] = operations.content();
            assert_eq!(whole(&log), allowed[0]);
            if step % 3 == 0 {
                outcome = log.idle();
                if outcome == Err(LogError::NoSpace) {
                    outcome = log.idle();
                    retried |= outcome.is_ok();
                }
            }
        }
        if let Err(error) = outcome {
            // What readers see is what was acknowledged, or what failed only after it was synced.
            assert!(allowed.contains(&whole(&log)));
            assert_eq!(log.write(&batch), Err(error.clone()));
            assert_eq!(log.idle(), Err(error.clone()));
            return Ended { allowed, error: Some(error), opened: true, retried };
        }
    }
    Ended { allowed, error: None, opened: true, retried }
}

/// Opens what is left, checks it, writes on, and checks again after a power cut.
fn check_left(disk: &SimDisk, ended: &Ended, rng: &mut Rng, at: &str) {
    let log = SegLog::open_on(Arc::new(disk.clone()), options()).unwrap_or_else(|error| panic!("{at}: {error}"));
    let found = whole(&log);
    assert!(ended.allowed.contains(&found), "{at}: something was lost or invented");
    // What an opening has shown stays, even if the power goes at once.
    let again = SegLog::open_on(Arc::new(disk.power_cut(rng)), options()).unwrap();
    assert_eq!(whole(&again), found, "{at}: lost after it was shown");
    let addition = crate::suite::batch(vec![crate::suite::entries(99, vec![crate::suite::entry(1, 1, "after")])]);
    log.write(&addition).unwrap();
    let found = whole(&log);
    let again = SegLog::open_on(Arc::new(disk.power_cut(rng)), options()).unwrap();
    assert_eq!(whole(&again), found, "{at}: lost after writing on");
}

fn every_call(fault: Fault) -> (u32, u32) {
    let (mut failed, mut retried) = (0, 0);
    for seed in 1..=3 {
        let calm = SimDisk::new();
        assert_eq!(run(&calm, seed).error, None);
        for call in 1..=calm.calls() {
            let disk = SimDisk::new();
            disk.fail_at(call, fault);
            let ended = run(&disk, seed);
            assert!(fault != Fault::Full || ended.error.is_none() || !ended.opened, "no room at call {call} is final");
            failed += u32::from(ended.error.is_some());
            retried += u32::from(ended.retried);
            let mut rng = Rng::new(call);
            let at = format!("{fault:?} at call {call}, seed {seed}");
            check_left(&disk.restart(), &ended, &mut rng, &format!("{at}, restarted"));
            for cut in 0..3 {
                check_left(&disk.power_cut(&mut rng), &ended, &mut rng, &format!("{at}, power cut {cut}"));
            }
        }
    }
    (failed, retried)
}

#[test]
fn a_failing_call() {
    let (failed, _) = every_call(Fault::Fails);
    assert!(failed > 100, "{failed}");
}

#[test]
fn a_failing_sync() {
    let (failed, _) = every_call(Fault::SyncFails);
    assert!(failed > 100, "{failed}");
}

/// A full disk does an open log no harm, whatever call it refuses: the same batch is written when there is room.
#[test]
fn a_full_disk() {
    let (failed, retried) = every_call(Fault::Full);
    assert!(retried > 100 && failed > 0, "{failed} failed, {retried} retried");
}

#[test]
fn a_short_write_is_completed() {
    assert_eq!(every_call(Fault::Short), (0, 0));
}

#[test]
fn a_machine_that_stops() {
    let (failed, _) = every_call(Fault::Stops);
    assert!(failed > 100, "{failed}");
}
