//! A damaged or missing table file is an error, never a wrong answer.

use std::fs;
use std::path::PathBuf;

use base::Rng;
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine, EngineError};

use crate::subject::*;

/// A closed folder with some content, and its table files.
fn closed() -> (tempfile::TempDir, Vec<PathBuf>) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path(), &RocksOptions::default());
    for at in 0..2000u32 {
        put(&*engine, &[(DATA, &at.to_be_bytes(), &at.to_be_bytes().repeat(20))]);
    }
    engine.flush().unwrap();
    drop(engine);
    let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let tables: Vec<_> = entries.filter(|path| path.extension().is_some_and(|kind| kind == "sst")).collect();
    assert!(!tables.is_empty());
    (dir, tables)
}

#[test]
fn a_flipped_byte_is_never_a_wrong_answer() {
    let mut noticed = 0;
    let mut rng = Rng::new(5);
    let (dir, tables) = closed();
    let whole = fs::read(&tables[0]).unwrap();
    for _ in 0..60 {
        let mut bytes = whole.clone();
        let at = rng.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << rng.below(8);
        fs::write(&tables[0], &bytes).unwrap();
        let engine = match RocksEngine::open(dir.path(), &FAMILIES, &RocksOptions::default()) {
            Ok(engine) => engine,
            Err(error) => {
                assert!(matches!(error, EngineError::Corrupt(_)), "{error}");
                noticed += 1;
                continue;
            }
        };
        let mut damaged = false;
        for key in 0..2000u32 {
            match engine.get(DATA, &key.to_be_bytes()) {
                Ok(value) => assert_eq!(value.unwrap(), key.to_be_bytes().repeat(20)),
                Err(error) => {
                    assert!(matches!(error, EngineError::Corrupt(_)), "{error}");
                    damaged = true;
                }
            }
        }
        let view = engine.view();
        let mut cursor = view.scan(DATA, b"", None);
        let mut pairs = 0u32;
        while cursor.valid() {
            assert_eq!(cursor.key(), pairs.to_be_bytes());
            pairs += 1;
            cursor.advance();
        }
        assert_eq!(cursor.status().is_ok(), pairs == 2000);
        noticed += usize::from(damaged || cursor.status().is_err());
    }
    assert!(noticed > 40, "{noticed} of 60");
}

#[test]
fn a_missing_table_is_noticed_when_the_folder_is_opened() {
    let (dir, tables) = closed();
    fs::remove_file(&tables[0]).unwrap();
    let opened = RocksEngine::open(dir.path(), &FAMILIES, &RocksOptions::default());
    assert!(matches!(opened.map(|_| ()), Err(EngineError::Corrupt(_))));
}

/// Runs a scrub; what it found.
fn scrub(engine: &RocksEngine) -> Result<u64, EngineError> {
    let mut pass = engine.begin_scrub()?;
    assert_eq!(pass.unchecked(), 0, "every file has a checksum");
    let mut read = 0;
    while let Some(bytes) = engine.scrub_step(&mut pass)? {
        read += bytes;
    }
    assert_eq!(read, pass.bytes_total());
    Ok(read)
}

fn flip(path: &std::path::Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    // In place, as a disk would: the open database reads the same file.
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&bytes[at..=at], at as u64).unwrap();
}

#[test]
fn a_scrub_finds_every_flipped_byte_of_an_open_database() {
    let (dir, tables) = closed();
    let engine = RocksEngine::open(dir.path(), &FAMILIES, &RocksOptions::default()).unwrap();
    // Written by flushes and compactions alike, and read into the cache.
    for at in 0..2000u32 {
        engine.get(DATA, &at.to_be_bytes()).unwrap();
    }
    assert!(scrub(&engine).unwrap() > 1000);
    assert_eq!(engine.damage(), None);
    let length = fs::metadata(&tables[0]).unwrap().len() as usize;
    let mut rng = Rng::new(9);
    for at in (0..40).map(|_| rng.below(length as u64) as usize).chain([0, length - 1]) {
        flip(&tables[0], at);
        assert!(matches!(scrub(&engine), Err(EngineError::Corrupt(_))), "byte {at}");
        flip(&tables[0], at);
    }
    assert!(scrub(&engine).is_ok());
    assert!(engine.damage().is_some(), "it is remembered");
}

#[test]
fn a_scrub_finds_a_damaged_manifest_and_files_of_every_origin_have_checksums() {
    let (dir, _) = closed();
    let engine = RocksEngine::open(dir.path(), &FAMILIES, &RocksOptions::default()).unwrap();
    engine.reclaim().unwrap();
    scrub(&engine).unwrap();
    let mut install = engine.begin_install().unwrap();
    (0..500u32).for_each(|at| install.put(DATA, &at.to_be_bytes(), b"installed").unwrap());
    install.finish().unwrap();
    engine.commit_install(&mut *install).unwrap();
    scrub(&engine).unwrap();
    let current = fs::read_to_string(dir.path().join("CURRENT")).unwrap();
    let manifest = dir.path().join(current.trim());
    let length = fs::metadata(&manifest).unwrap().len() as usize;
    for at in [0, 6, length / 2, length - 1] {
        flip(&manifest, at);
        assert!(matches!(scrub(&engine), Err(EngineError::Corrupt(_))), "byte {at}");
        flip(&manifest, at);
    }
    scrub(&engine).unwrap();
}

#[test]
fn a_table_that_is_gone_is_missed_and_one_that_was_compacted_is_not() {
    let (dir, tables) = closed();
    let engine = RocksEngine::open(dir.path(), &FAMILIES, &RocksOptions::default()).unwrap();
    let mut pass = engine.begin_scrub().unwrap();
    engine.reclaim().unwrap();
    while engine.scrub_step(&mut pass).unwrap().is_some() {}
    assert_eq!(engine.damage(), None);
    drop(engine);

    let (dir, _) = if tables[0].exists() { (dir, tables) } else { closed() };
    let engine = RocksEngine::open(dir.path(), &FAMILIES, &RocksOptions::default()).unwrap();
    let table = fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path());
    let table = table.into_iter().find(|path| path.extension().is_some_and(|end| end == "sst")).unwrap();
    fs::remove_file(table).unwrap();
    assert!(matches!(scrub(&engine), Err(EngineError::Corrupt(why)) if why.ends_with("is gone")));
    assert!(engine.damage().is_some());
}

#[test]
fn a_database_whose_current_file_is_gone_is_not_begun_anew() {
    let (dir, tables) = closed();
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let opened = RocksEngine::open(dir.path(), &FAMILIES, &RocksOptions::default());
    assert!(matches!(opened.map(|_| ()), Err(EngineError::Corrupt(_))));
    assert!(tables[0].exists());
}
