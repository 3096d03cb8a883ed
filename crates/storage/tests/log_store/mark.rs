//! The durable mark: what it still tells after a power cut, and the one window in which it cannot.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Rng;
use storage::seglog::{SegLog, SegLogOptions};
use storage::{LogError, LogStore};

use crate::content::content;
use crate::disk::SimDisk;
use crate::operations::Operations;
use crate::suite::small;

type Files = BTreeMap<String, Vec<u8>>;

fn one_segment() -> SegLogOptions {
    SegLogOptions { segment_bytes: 1 << 20, zero_ahead_bytes: 1 << 14, ..small() }
}

/// What `idle` or an opening has marked, a power cut does not take back, whatever becomes of later marks.
#[test]
fn an_older_copy_of_the_records_is_refused_after_a_power_cut() {
    for seed in 0..200 {
        let disk = SimDisk::new();
        let mut rng = Rng::new(seed);
        let mut operations = Operations::new(seed);
        let mut log = SegLog::open_on(Arc::new(disk.clone()), one_segment()).unwrap();
        let mut older = disk.files();
        for _ in 0..rng.between(1, 6) {
            for _ in 0..rng.between(1, 4) {
                older = disk.files();
                log.write(&operations.batch()).unwrap();
            }
            if rng.percent(50) {
                log.idle().unwrap();
            } else {
                // As killed: nothing is written on the way out.
                std::mem::forget(log);
                log = SegLog::open_on(Arc::new(disk.clone()), one_segment()).unwrap();
            }
        }
        for _ in 0..rng.below(4) {
            log.write(&operations.batch()).unwrap();
        }
        let mut files = disk.power_cut(&mut rng).files();
        older.remove("mark");
        files.extend(older);
        let opened = SegLog::open_on(Arc::new(SimDisk::with_files(&files)), one_segment());
        match opened.map(|log| log.recovery().clone()) {
            Err(LogError::Lost { .. } | LogError::Corrupt { .. }) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
    }
}

/// With the mark far behind, damage before the last record is seen all the same; within the last record it may pass for
/// a torn tail, and nothing else changes.
#[test]
fn without_a_mark_only_the_last_record_is_in_doubt() {
    let disk = SimDisk::new();
    let mut operations = Operations::new(3);
    let log = SegLog::open_on(Arc::new(disk.clone()), one_segment()).unwrap();
    let first_mark = disk.files()["mark"].clone();
    for _ in 0..14 {
        log.write(&operations.batch()).unwrap();
    }
    let before = operations.content();
    log.write(&operations.batch()).unwrap();
    let after = operations.content();
    let mut files = disk.files();
    files.insert("mark".to_owned(), first_mark);
    let open = |files: &Files| SegLog::open_on(Arc::new(SimDisk::with_files(files)), one_segment());
    let found = open(&files).unwrap().recovery().clone();
    assert_eq!((found.mark_behind, found.records), (15, 16));
    let name = files.keys().find(|name| name.starts_with("segment-")).unwrap().clone();
    let (mut refused, mut in_doubt) = (0, 0);
    for at in 0..found.bytes as usize {
        let mut damaged = files.clone();
        damaged.get_mut(&name).unwrap()[at] ^= 0x20;
        match open(&damaged).and_then(|log| content(&log)) {
            Ok(content) if content == after => {}
            Ok(content) => {
                assert_eq!(content, before, "byte {at}");
                in_doubt += 1;
            }
            Err(LogError::Corrupt { .. }) => {
                assert_eq!(in_doubt, 0, "byte {at} comes after the last record's first");
                refused += 1;
            }
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused > 10 * in_doubt && in_doubt > 0, "{refused} refused, {in_doubt} in doubt");
}
