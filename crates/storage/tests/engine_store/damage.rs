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
