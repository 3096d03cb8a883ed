//! Power cuts at random points, and proof that this test sees a missing sync.

use std::sync::Arc;

use base::Rng;
use storage::LogStore;
use storage::seglog::{SegLog, SegLogOptions};

use crate::content::{content, whole};
use crate::disk::{Fault, SimDisk};
use crate::operations::Operations;
use crate::suite::small;

/// Lives of one log, each ended by a power cut in the midst of things. Says whether what was acknowledged was always
/// there and nothing else was.
fn survives_power_cuts(seed: u64, plant: fn(&SimDisk)) -> bool {
    let mut rng = Rng::new(seed);
    let options = SegLogOptions { segment_bytes: rng.between(500, 3000), ..small() };
    let mut operations = Operations::new(seed);
    let mut disk = SimDisk::new();
    for _ in 0..4 {
        plant(&disk);
        let opened = SegLog::open_on(Arc::new(disk.clone()), options);
        let Ok(log) = opened else { return false };
        if content(&log).ok() != Some(operations.content()) {
            return false;
        }
        disk.fail_at(disk.calls() + rng.between(1, 200), Fault::Stops);
        let allowed = loop {
            let acknowledged = operations.content();
            let batch = operations.batch();
            if log.write(&batch).is_err() {
                break [acknowledged, operations.content()];
            }
            if rng.percent(20) && log.idle().is_err() {
                break [operations.content(), operations.content()];
            }
        };
        disk = disk.power_cut(&mut rng);
        let Ok(log) = SegLog::open_on(Arc::new(disk.clone()), options) else { return false };
        match content(&log) {
            Ok(found) if found == allowed[1] => {}
            // What was under way is gone: write it once more, in other words.
            Ok(found) if found == allowed[0] => {
                operations = Operations::resumed(&log, rng.next_u64());
                assert_eq!(whole(&log), operations.content());
            }
            _ => return false,
        }
    }
    true
}

#[test]
fn nothing_acknowledged_is_lost() {
    for seed in 0..500 {
        assert!(survives_power_cuts(seed, |_| {}), "seed {seed}");
    }
}

#[test]
fn a_missing_sync_is_seen() {
    let seen = (0..50).filter(|seed| !survives_power_cuts(*seed, SimDisk::ignore_syncs)).count();
    assert!(seen > 40, "{seen} of 50");
}

#[test]
fn a_missing_sync_of_names_is_seen() {
    let seen = (0..50).filter(|seed| !survives_power_cuts(*seed, SimDisk::ignore_name_syncs)).count();
    assert!(seen > 25, "{seen} of 50");
}
