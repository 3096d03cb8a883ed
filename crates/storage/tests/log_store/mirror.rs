//! The mirror: the same random batches go to the segmented log and to its in-memory twin, and after each the two
//! must say the same, through reopenings and power cuts.

use std::sync::Arc;

use base::Rng;
use storage::memlog::MemLog;
use storage::seglog::{SegLog, SegLogOptions};
use storage::{LogBatch, LogStore};

use crate::content::whole;
use crate::disk::SimDisk;
use crate::operations::Operations;
use crate::suite::small;

#[test]
fn the_twins_agree_on_a_disk_that_loses_power() {
    for seed in 0..60 {
        let mut operations = Operations::new(seed);
        let mut rng = Rng::new(seed ^ 0xD15C);
        let segment_bytes = [600, 2048, 9000][rng.below(3) as usize];
        let options = SegLogOptions { segment_bytes, spares_max: rng.below(3) as usize, ..small() };
        let mut disk = SimDisk::new();
        let mut log = SegLog::open_on(Arc::new(disk.clone()), options).unwrap();
        for step in 0..150 {
            let batch = operations.batch();
            log.write(&batch).unwrap();
            if rng.percent(20) {
                log.idle().unwrap();
            }
            if rng.percent(8) {
                disk = if rng.percent(50) { disk.power_cut(&mut rng) } else { disk.restart() };
                log = SegLog::open_on(Arc::new(disk.clone()), options).unwrap();
            }
            agree(&log, &operations.model, &mut rng, &format!("seed {seed} step {step}"));
        }
    }
}

#[test]
fn the_twins_agree_on_a_real_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut operations = Operations::new(7);
    operations.groups = 40;
    let mut rng = Rng::new(8);
    let options = SegLogOptions { segment_bytes: 40_000, zero_ahead_bytes: 4096, ..small() };
    let mut log = SegLog::open(folder.path(), options).unwrap();
    for step in 0..1500 {
        log.write(&operations.batch()).unwrap();
        if rng.percent(5) {
            log.idle().unwrap();
        }
        if rng.percent(2) {
            drop(log);
            log = SegLog::open(folder.path(), options).unwrap();
            assert_eq!(log.recovery().mark_behind, 0);
            agree(&log, &operations.model, &mut rng, &format!("step {step}"));
        }
    }
}

/// What waits for the log is written as one: that must lead to what the batches lead to one by one.
#[test]
fn batches_joined_are_batches_one_by_one() {
    let mut joined = 0;
    for seed in 0..300 {
        let mut operations = Operations::new(seed);
        operations.shrink_percent = [2, 12, 40][seed as usize % 3];
        let mut rng = Rng::new(seed);
        let log = SegLog::open_on(Arc::new(SimDisk::new()), small()).unwrap();
        for step in 0..30 {
            let batches: Vec<LogBatch> = (0..rng.between(1, 6)).map(|_| operations.batch()).collect();
            let writes: usize = batches.iter().map(|batch| batch.groups.len()).sum();
            let all = LogBatch::joined(batches);
            joined += writes - all.groups.len();
            log.write(&all).unwrap();
            agree(&log, &operations.model, &mut rng, &format!("seed {seed} step {step}"));
        }
    }
    assert!(joined > 1000, "only {joined} writes were joined");
}

/// The in-memory twin's own power cut: what was synced stays, and of the rest whole batches in order.
#[test]
fn the_twin_in_memory_keeps_whole_batches_only() {
    let mut kept_counts = [0; 6];
    for seed in 0..200 {
        let mut operations = Operations::new(seed);
        let mut rng = Rng::new(seed);
        let log = MemLog::new();
        let mut contents = vec![operations.content()];
        let synced = rng.below(4);
        let mut number = 0;
        for staged in 0..synced + 5 {
            let batch = operations.batch();
            number = log.stage(&batch).unwrap();
            contents.push(operations.content());
            assert_eq!(whole(&log), operations.content());
            if staged < synced {
                log.sync_to(number).unwrap();
            }
        }
        assert_eq!(number, synced + 5);
        log.crash(&mut rng);
        let kept = contents.iter().rposition(|content| *content == whole(&log)).expect("a prefix of the batches");
        assert!(kept as u64 >= synced);
        kept_counts[kept - synced as usize] += 1;
        log.reopen().unwrap();
    }
    assert!(kept_counts.iter().all(|count| *count > 0), "{kept_counts:?}");
}

fn agree(log: &SegLog, model: &MemLog, rng: &mut Rng, at: &str) {
    assert_eq!(whole(log), whole(model), "{at}");
    for group in log.groups() {
        let state = log.state(group).unwrap();
        let low = rng.between(state.start.index, state.last + 2);
        let high = low + rng.below(5);
        let bytes_max = rng.below(200);
        assert_eq!(log.read(group, low, high, bytes_max), model.read(group, low, high, bytes_max), "{at}");
        assert_eq!(log.term(group, high), model.term(group, high), "{at}");
    }
}
