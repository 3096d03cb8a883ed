//! Replacing what lies in a range: it goes, pairs become table files as they come, in `ranges/` of the data folder, and RocksDB
//! takes them over as they are, where they belong: mostly at the bottom, never to be merged again.
//!
//! ```text
//!  begin ─▶ what lies in the range is deleted; that is flushed, and merged down, or the new tables would have to lie above it
//!  put ───▶ ranges/7-0.sst 7-1.sst …
//!  commit ▶ the files are linked into the database (durable with its manifest)
//! ```
//! Where nothing lies in the range there is nothing to merge. What a crash leaves in `ranges/` goes when the folder is opened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rust_rocksdb::{CompactOptions, IngestExternalFileOptions};

use super::tables::TableWriter;
use super::{RocksEngine, failed, failed_io};
use crate::batch::WriteBatch;
use crate::engine::{Engine as _, EngineError, FamilyId, RangeInstall};

const RANGES: &str = "ranges";

pub(super) struct RocksRange<'a> {
    engine: &'a RocksEngine,
    family: FamilyId,
    from: Vec<u8>,
    to: Vec<u8>,
    /// What its files are called, but for their number.
    prefix: PathBuf,
    writer: TableWriter,
    written: Vec<PathBuf>,
}

/// Deletes what is left of ranges that were not replaced.
pub(super) fn discard(dir: &Path) -> Result<(), EngineError> {
    match fs::remove_dir_all(dir.join(RANGES)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed_io(error)),
        _ => Ok(()),
    }
}

impl<'a> RocksRange<'a> {
    pub fn begin(
        engine: &'a RocksEngine,
        family: FamilyId,
        from: &[u8],
        to: &[u8],
    ) -> Result<RocksRange<'a>, EngineError> {
        empty(engine, family, from, to)?;
        let folder = engine.staging.dir.join(RANGES);
        fs::create_dir_all(&folder).map_err(failed_io)?;
        let number = engine.ranges.fetch_add(1, Ordering::Relaxed);
        let blueprint = &engine.staging.blueprint;
        Ok(RocksRange {
            engine,
            family,
            from: from.to_vec(),
            to: to.to_vec(),
            prefix: folder.join(number.to_string()),
            writer: TableWriter::new(blueprint.family(&blueprint.families[usize::from(family.0)])),
            written: Vec::new(),
        })
    }
}

fn empty(engine: &RocksEngine, family: FamilyId, from: &[u8], to: &[u8]) -> Result<(), EngineError> {
    let holds_something = {
        let view = engine.view();
        let walk = view.scan(family, from, Some(to));
        walk.status()?;
        walk.valid()
    };
    if holds_something {
        let mut batch = WriteBatch::new();
        batch.delete_range(family, from, to);
        engine.write(&batch)?;
    }
    // What is in memory of the range, word of what was deleted before too, would else be flushed while the files are taken over,
    // and nobody could write meanwhile.
    engine.flush()?;
    if holds_something {
        let store = engine.store()?;
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        store.db.compact_range_cf_opt(&store.family(family), Some(from), Some(to), &options);
    }
    Ok(())
}

impl RangeInstall for RocksRange<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if key < &*self.from || key >= &*self.to {
            return Err(EngineError::Failed("a pair does not belong to the range that is replaced".into()));
        }
        if !self.writer.is_open() {
            let mut path = self.prefix.clone().into_os_string();
            path.push(format!("-{}.sst", self.written.len()));
            self.written.push(path.clone().into());
            self.writer.open(path.into())?;
        }
        self.writer.put(key, value)
    }

    fn commit(mut self: Box<Self>) -> Result<(), EngineError> {
        self.writer.close()?;
        let files = std::mem::take(&mut self.writer.files);
        if files.is_empty() {
            return Ok(());
        }
        let mut ingest = IngestExternalFileOptions::default();
        ingest.set_move_files(true);
        ingest.set_fill_cache(false);
        // Views that are taken meanwhile must not see the pairs come.
        let _view = self.engine.view();
        let store = self.engine.store()?;
        let done = store.db.ingest_external_file_cf_opts(&store.family(self.family), &ingest, files);
        done.map_err(|error| self.engine.events.noted(failed(error)))
    }
}

/// Taken over or not, the files are not needed any more.
impl Drop for RocksRange<'_> {
    fn drop(&mut self) {
        for path in &self.written {
            let _ = fs::remove_file(path);
        }
    }
}
