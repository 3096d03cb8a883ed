//! The room of what was deleted comes back without anybody's doing.

use std::time::Duration;

use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine, WriteBatch};

use crate::subject::{DATA, FAMILIES};

const KEYS: u32 = 2000;
const VALUE_BYTES: usize = 4096;

#[test]
fn files_of_deletions_are_merged_by_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let engine = RocksEngine::open(folder.path(), &FAMILIES, &RocksOptions::default()).unwrap();
    let mut rng = base::Rng::new(1);
    let mut batch = WriteBatch::new();
    for key in 0..KEYS {
        let value: Vec<u8> = (0..VALUE_BYTES).map(|_| rng.below(256) as u8).collect();
        batch.put(DATA, &key.to_be_bytes(), &value);
    }
    engine.write(&batch).unwrap();
    engine.flush().unwrap();
    let full = engine.stats().total_bytes;
    assert!(full > u64::from(KEYS) * VALUE_BYTES as u64, "{full}");

    let mut batch = WriteBatch::new();
    (1..KEYS).for_each(|key| batch.delete(DATA, &key.to_be_bytes()));
    engine.write(&batch).unwrap();
    assert_eq!(engine.stats().deletions_in_memory, u64::from(KEYS) - 1);
    engine.flush().unwrap();
    assert_eq!(engine.stats().deletions_in_memory, 0);
    let is_back = (0..3000).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        engine.stats().total_bytes <= full / 10
    });
    assert!(is_back, "{} of {full} bytes are left", engine.stats().total_bytes);
    assert!(engine.get(DATA, &0_u32.to_be_bytes()).unwrap().is_some());
}
