//! The engines under test behind one handle that can have its power cut, and the families they keep.

use std::path::Path;
use std::sync::Arc;

use base::Rng;
use storage::memengine::MemEngine;
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Cursor, Engine, FamilyId, FamilySpec, View, WriteBatch};
use tempfile::TempDir;

pub const DATA: FamilyId = FamilyId(0);
pub const INDEX: FamilyId = FamilyId(1);
/// A pair of this family may be dropped once the watermark has passed the number that its value begins with.
pub const OLD: FamilyId = FamilyId(2);
pub const ALL: [FamilyId; 3] = [DATA, INDEX, OLD];

pub static FAMILIES: [FamilySpec; 3] = [
    FamilySpec { name: "data", droppable: None, bloom: true, sequential: false },
    FamilySpec { name: "index", droppable: None, bloom: false, sequential: true },
    FamilySpec { name: "old", droppable: Some(is_droppable), bloom: false, sequential: false },
];

fn is_droppable(_key: &[u8], value: &[u8], watermark: u64) -> bool {
    value.first_chunk::<8>().is_some_and(|head| u64::from_be_bytes(*head) < watermark)
}

/// An engine whose power can be cut.
pub trait Subject {
    fn engine(&self) -> Arc<dyn Engine>;
    /// Everything not durable is lost; `engine` gives the restarted one.
    fn cut_power(&mut self);
    /// A chance for the engine to flush by itself.
    fn rest(&self, rng: &mut Rng);
}

pub struct Mem(pub Arc<MemEngine>);

impl Mem {
    pub fn new() -> Mem {
        Mem(Arc::new(MemEngine::new(&FAMILIES)))
    }
}

impl Subject for Mem {
    fn engine(&self) -> Arc<dyn Engine> {
        self.0.clone()
    }

    fn cut_power(&mut self) {
        self.0.crash();
    }

    fn rest(&self, rng: &mut Rng) {
        self.0.maybe_flush(rng);
    }
}

pub struct Rocks {
    engine: Option<Arc<RocksEngine>>,
    options: RocksOptions,
    pub dir: TempDir,
}

impl Rocks {
    /// With memory tables so small that RocksDB flushes by itself.
    pub fn new() -> Rocks {
        let dir = tempfile::tempdir().unwrap();
        let options = RocksOptions {
            write_buffer_size: 64 << 10,
            block_cache_size: 8 << 20,
            slow_compaction_ms: 0,
            ..RocksOptions::default()
        };
        let engine = Some(open(dir.path(), &options));
        Rocks { engine, options, dir }
    }

    pub fn rocksdb(&self) -> Arc<RocksEngine> {
        self.engine.clone().unwrap()
    }
}

pub fn open(dir: &Path, options: &RocksOptions) -> Arc<RocksEngine> {
    Arc::new(RocksEngine::open(dir, &FAMILIES, options).unwrap())
}

impl Subject for Rocks {
    fn engine(&self) -> Arc<dyn Engine> {
        self.rocksdb()
    }

    /// Closing writes nothing, so that it is what a killed process leaves.
    fn cut_power(&mut self) {
        let last = Arc::into_inner(self.engine.take().unwrap());
        drop(last.expect("nobody else holds the engine when the power is cut"));
        self.engine = Some(open(self.dir.path(), &self.options));
    }

    fn rest(&self, _: &mut Rng) {}
}

pub type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// All that is left of a cursor's way.
pub fn walk(mut cursor: Box<dyn Cursor + '_>) -> Pairs {
    let mut pairs = Vec::new();
    while cursor.valid() {
        pairs.push((cursor.key().to_vec(), cursor.value().to_vec()));
        cursor.advance();
    }
    cursor.status().unwrap();
    pairs
}

/// Everything a view shows, by family; read in both directions.
pub fn dump(view: &dyn View) -> Vec<Pairs> {
    ALL.iter()
        .map(|family| {
            let forward = walk(view.scan(*family, b"", None));
            let mut backward = walk(view.scan_back(*family, b"", None));
            backward.reverse();
            assert_eq!(forward, backward);
            forward
        })
        .collect()
}

/// Writes a few puts at once.
pub fn put(engine: &dyn Engine, pairs: &[(FamilyId, &[u8], &[u8])]) {
    let mut batch = WriteBatch::new();
    for (family, key, value) in pairs {
        batch.put(*family, key, value);
    }
    engine.write(&batch).unwrap();
}
