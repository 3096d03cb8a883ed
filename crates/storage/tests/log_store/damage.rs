//! Damage of every kind at every place: what comes out is an explicit error or exactly what was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Rng;
use storage::seglog::{SegLog, SegLogOptions};
use storage::{LogError, LogStore};

use crate::content::{Content, content, whole};
use crate::disk::SimDisk;
use crate::operations::Operations;
use crate::suite::small;

type Files = BTreeMap<String, Vec<u8>>;

fn options() -> SegLogOptions {
    SegLogOptions { segment_bytes: 1500, ..small() }
}

/// A log of a few segments, some of them in their second life; also the files as they were some batches before.
fn sample(seed: u64, stopped: bool) -> (Files, Files, Content) {
    let disk = SimDisk::new();
    let mut operations = Operations::new(seed);
    operations.groups = 3;
    operations.entry_bytes_max = 30;
    operations.shrink_percent = 6;
    let log = SegLog::open_on(Arc::new(disk.clone()), options()).unwrap();
    let mut older = Files::new();
    for step in 0..90 {
        log.write(&operations.batch()).unwrap();
        if step % 7 == 0 {
            log.idle().unwrap();
        }
        if step == 83 {
            older = disk.files();
        }
    }
    let killed = disk.files();
    drop(log);
    (if stopped { disk.files() } else { killed }, older, operations.content())
}

/// What opening and reading these files comes to: true when it is all there, false when that is refused.
fn survives(files: &Files, expected: &Content, at: &str) -> bool {
    let outcome = SegLog::open_on(Arc::new(SimDisk::with_files(files)), options()).and_then(|log| content(&log));
    match outcome {
        Ok(found) => {
            assert_eq!(found, *expected, "{at}: opened, and holds something else");
            true
        }
        Err(LogError::Corrupt { .. } | LogError::Lost { .. }) => false,
        Err(other) => panic!("{at}: {other:?}"),
    }
}

fn is_segment(name: &str) -> bool {
    name.starts_with("segment-")
}

#[test]
fn a_flipped_byte_is_an_error_or_does_no_harm() {
    let mut rng = Rng::new(3);
    let (mut refused, mut harmless) = (0, 0);
    for (seed, stopped) in [(1, true), (2, false), (3, true)] {
        let (files, _, expected) = sample(seed, stopped);
        assert!(survives(&files, &expected, "undamaged"));
        assert!(files.keys().filter(|name| is_segment(name)).count() > 2, "{:?}", files.keys());
        for (name, bytes) in &files {
            for at in 0..bytes.len() {
                let mut damaged = files.clone();
                damaged.get_mut(name).unwrap()[at] ^= 1 << rng.below(8);
                match survives(&damaged, &expected, &format!("seed {seed}, {name}, byte {at}")) {
                    true => harmless += 1,
                    false => refused += 1,
                }
            }
        }
    }
    assert!(refused > 5_000 && harmless > 1_000, "{refused} refused, {harmless} harmless");
}

/// Within a record, every flipped byte is refused, the padding included.
#[test]
fn no_flipped_byte_of_a_record_does_no_harm() {
    let disk = SimDisk::new();
    let log = SegLog::open_on(Arc::new(disk.clone()), SegLogOptions { segment_bytes: 1 << 20, ..options() }).unwrap();
    let mut operations = Operations::new(5);
    for _ in 0..20 {
        log.write(&operations.batch()).unwrap();
    }
    let used = log.recovery().bytes;
    assert_eq!(used, 0, "a fresh log was scanned");
    drop(log);
    let files = disk.files();
    let log = SegLog::open_on(Arc::new(SimDisk::with_files(&files)), options()).unwrap();
    let used = log.recovery().bytes as usize;
    let name = files.keys().find(|name| is_segment(name)).unwrap();
    let harmless: usize = (0..used)
        .filter(|at| {
            let mut damaged = files.clone();
            damaged.get_mut(name).unwrap()[*at] ^= 0x10;
            survives(&damaged, &operations.content(), &format!("byte {at}"))
        })
        .count();
    assert_eq!(harmless, 0, "of {used} bytes");
}

#[test]
fn a_byte_that_changes_under_an_open_log_is_never_read() {
    let (files, _, expected) = sample(4, true);
    let disk = SimDisk::with_files(&files);
    let log = SegLog::open_on(Arc::new(disk.clone()), options()).unwrap();
    let mut refused = 0;
    for (name, bytes) in files.iter().filter(|(name, _)| is_segment(name)) {
        for at in 0..bytes.len() {
            disk.flip(name, at, 0x04);
            match content(&log) {
                Ok(found) => assert_eq!(found, expected, "{name}, byte {at}"),
                Err(LogError::Corrupt { place, .. }) => {
                    assert_eq!(place.file, *name);
                    refused += 1;
                }
                Err(other) => panic!("{other:?}"),
            }
            disk.flip(name, at, 0x04);
        }
    }
    assert!(refused > 300, "{refused}");
    assert_eq!(whole(&log), expected);
}

#[test]
fn a_file_cut_off_anywhere_is_an_error_or_does_no_harm() {
    for (seed, stopped) in [(1, true), (2, false)] {
        let (files, _, expected) = sample(seed, stopped);
        let mut refused = 0;
        for (name, bytes) in &files {
            for length in 0..bytes.len() {
                let mut damaged = files.clone();
                damaged.get_mut(name).unwrap().truncate(length);
                if !survives(&damaged, &expected, &format!("seed {seed}, {name} cut to {length}")) {
                    refused += 1;
                }
            }
        }
        assert!(refused > 1_000, "{refused}");
    }
}

#[test]
fn a_range_of_zeroes_or_noise_is_an_error_or_does_no_harm() {
    let mut rng = Rng::new(6);
    let (files, _, expected) = sample(6, true);
    for (name, bytes) in files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
        for round in 0..400 {
            let mut damaged = files.clone();
            let from = rng.below(bytes.len() as u64) as usize;
            let to = (from + rng.between(1, 600) as usize).min(bytes.len());
            for byte in &mut damaged.get_mut(name).unwrap()[from..to] {
                *byte = if round % 2 == 0 { 0 } else { rng.next_u64() as u8 };
            }
            survives(&damaged, &expected, &format!("{name}, {from}..{to}"));
        }
    }
}

#[test]
fn a_missing_or_older_file_is_an_error_or_does_no_harm() {
    let (mut refused, mut rounds) = (0, 0);
    for seed in 10..30 {
        let (files, older, expected) = sample(seed, seed % 2 == 0);
        for name in files.keys() {
            let mut damaged = files.clone();
            damaged.remove(name);
            let kept = survives(&damaged, &expected, &format!("seed {seed}, without {name}"));
            assert!(!kept || !is_segment(name) || name == files.keys().find(|name| is_segment(name)).unwrap());
            refused += u32::from(!kept);
            if let Some(old) = older.get(name) {
                let mut damaged = files.clone();
                damaged.insert(name.clone(), old.clone());
                refused += u32::from(!survives(&damaged, &expected, &format!("seed {seed}, older {name}")));
            }
            rounds += 1;
        }
        let mut bare = files.clone();
        bare.retain(|name, _| !is_segment(name));
        assert!(!survives(&bare, &expected, "no segments at all"));
    }
    assert!(refused > rounds / 2, "{refused} of {rounds}");
}

#[test]
fn an_unknown_format_is_not_called_damage() {
    let (mut files, _, _) = sample(1, true);
    let mark = files.get_mut("mark").unwrap();
    for slot in [0, 512, 1024] {
        mark[slot + 8] = 9;
        let crc = crc32fast::hash(&mark[slot + 8..slot + 32]);
        mark[slot + 4..slot + 8].copy_from_slice(&crc.to_le_bytes());
    }
    match SegLog::open_on(Arc::new(SimDisk::with_files(&files)), options()) {
        Err(LogError::Io(why)) => assert!(why.contains("format 9"), "{why}"),
        other => panic!("{:?}", other.err()),
    }
}

/// Runs a scrub over an open log; whether it found nothing.
fn scrubbed_whole(log: &SegLog) -> bool {
    let mut scrub = log.begin_scrub();
    loop {
        match log.scrub_step(&mut scrub) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(LogError::Corrupt { .. }) => return false,
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// What an opening would refuse, a scrub of the open log finds: every byte of every record, while the log goes on.
#[test]
fn a_scrub_finds_a_flipped_byte_in_an_open_log() {
    let (files, _, _) = sample(21, true);
    let disk = SimDisk::with_files(&files);
    let log = SegLog::open_on(Arc::new(disk.clone()), options()).unwrap();
    assert!(scrubbed_whole(&log));
    let mut rng = Rng::new(3);
    let (mut found, mut open) = (0, 0);
    for (name, bytes) in disk.files().iter().filter(|(name, _)| is_segment(name)) {
        for at in 0..bytes.len() {
            if !rng.percent(7) {
                continue;
            }
            let mut flipped = disk.files();
            flipped.get_mut(name).unwrap()[at] ^= 1 << rng.below(8);
            let refused = SegLog::open_on(Arc::new(SimDisk::with_files(&flipped)), options()).is_err();
            disk.overwrite(name, at, flipped[name][at]);
            let whole = scrubbed_whole(&log);
            disk.overwrite(name, at, bytes[at]);
            assert!(!refused || !whole, "{name} at {at}: an opening refuses what a scrub passes over");
            found += usize::from(!whole);
            open += usize::from(!refused);
        }
    }
    println!("{found} flips found, {open} in ground that holds nothing");
    assert!(found > 100);
    assert!(log.damage().is_some(), "it is remembered");
}

#[test]
fn a_scrub_goes_on_beside_the_writer() {
    let disk = SimDisk::new();
    let mut operations = Operations::new(4);
    operations.groups = 2;
    operations.entry_bytes_max = 60;
    operations.shrink_percent = 10;
    let log = SegLog::open_on(Arc::new(disk), options()).unwrap();
    let mut scrub = log.begin_scrub();
    let mut passes = 0;
    for step in 0..2000 {
        log.write(&operations.batch()).unwrap();
        if step % 5 == 0 {
            log.idle().unwrap();
        }
        if log.scrub_step(&mut scrub).unwrap().is_none() {
            passes += 1;
            scrub = log.begin_scrub();
        }
    }
    assert!(passes > 20, "{passes}");
}

/// A sector that cannot be read is damage, wherever it is met: at an opening, by a read of an entry, by a scrub.
#[test]
fn a_sector_that_cannot_be_read_is_damage() {
    let (files, _, expected) = sample(5, true);
    for (name, bytes) in &files {
        for at in (0..bytes.len()).step_by(97) {
            let disk = SimDisk::with_files(&files);
            disk.lose_sector(name, at);
            match SegLog::open_on(Arc::new(disk), options()) {
                Err(LogError::Corrupt { place, .. }) => assert_eq!(place.file, *name, "byte {at}"),
                Ok(log) => assert!(!is_segment(name) && whole(&log) == expected, "byte {at} of {name} is not missed"),
                Err(error) => panic!("byte {at} of {name}: {error:?}"),
            }
        }
    }
    let open = |name: &str, at: usize| {
        let disk = SimDisk::with_files(&files);
        let log = SegLog::open_on(Arc::new(disk.clone()), options()).unwrap();
        disk.lose_sector(name, at);
        log
    };
    let (mut by_read, mut by_scrub) = (0, 0);
    for (name, bytes) in files.iter().filter(|(name, _)| is_segment(name)) {
        for at in (0..bytes.len()).step_by(97) {
            let log = open(name, at);
            match content(&log) {
                Ok(found) => assert_eq!(found, expected),
                Err(error) => {
                    assert!(matches!(error, LogError::Corrupt { .. }), "{error:?}");
                    assert_eq!(log.damage(), Some(error));
                    by_read += 1;
                }
            }
            let log = open(name, at);
            let mut scrub = log.begin_scrub();
            let ended = std::iter::from_fn(|| log.scrub_step(&mut scrub).transpose()).find_map(Result::err);
            assert_eq!(log.damage(), ended);
            by_scrub += usize::from(ended.is_some());
        }
    }
    assert!(by_read > 0 && by_scrub > 0, "{by_read} {by_scrub}");
}

/// What a read would still be given from the cache: a scrub asks the disk.
#[test]
fn damage_beneath_the_cache_is_found_by_a_scrub() {
    let (files, _, expected) = sample(5, true);
    let disk = SimDisk::with_files(&files);
    let log = SegLog::open_on(Arc::new(disk.clone()), options()).unwrap();
    let name = files.keys().find(|name| is_segment(name)).expect("there are segments");
    disk.rot(name, files[name].len() / 4);
    assert_eq!(whole(&log), expected, "the cache is whole");
    let mut scrub = log.begin_scrub();
    while let Ok(Some(_)) = log.scrub_step(&mut scrub) {}
    assert!(matches!(log.damage(), Some(LogError::Corrupt { .. })));
}
