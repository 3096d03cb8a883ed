//! Replacing what lies in a range by table files that were written before, outside the database: RocksDB takes them over as they
//! are, where they belong: mostly at the bottom, never to be merged again.
//!
//! ```text
//!  begin_tables ──▶ FOLDER/00000.sst 00001.sst …                     (as slowly as the pairs come)
//!  replace_range ─▶ what lies in the range is deleted; that is flushed, and merged down, or the new tables would lie above it
//!                └▶ the files are linked into the database           (durable with its manifest)
//! ```
//! The folder keeps its files: they are written once, take room once, and whoever was cut off in the middle does it again. To
//! remove them later costs nothing, since the database has them too. Where nothing lies in the range there is nothing to merge.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rust_rocksdb::{CompactOptions, IngestExternalFileOptions};

use super::tables::TableWriter;
use super::{RocksEngine, failed, failed_io};
use crate::batch::WriteBatch;
use crate::engine::{Engine as _, EngineError, FamilyId, Tables};

const EXTENSION: &str = "sst";

pub(super) struct RocksTables {
    folder: PathBuf,
    writer: TableWriter,
}

pub(super) fn begin_tables(engine: &RocksEngine, family: FamilyId, folder: &Path) -> RocksTables {
    let blueprint = &engine.staging.blueprint;
    let options = blueprint.family(&blueprint.families[usize::from(family.0)]);
    RocksTables { folder: folder.to_owned(), writer: TableWriter::new(options) }
}

impl Tables for RocksTables {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if !self.writer.is_open() {
            self.writer.open(self.folder.join(format!("{:05}.{EXTENSION}", self.writer.files.len())))?;
        }
        self.writer.put(key, value)
    }

    fn finish(mut self: Box<Self>) -> Result<(), EngineError> {
        self.writer.close()?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed_io)
    }
}

pub(super) fn replace(
    engine: &RocksEngine,
    family: FamilyId,
    from: &[u8],
    to: &[u8],
    folder: &Path,
) -> Result<(), EngineError> {
    let files = tables_in(folder).map_err(failed_io)?;
    empty(engine, family, from, to)?;
    if files.is_empty() {
        return Ok(());
    }
    let mut ingest = IngestExternalFileOptions::default();
    ingest.set_link_files(true);
    ingest.set_fill_cache(false);
    // Views that are taken meanwhile must not see the pairs come.
    let _view = engine.view();
    let store = engine.store()?;
    let done = store.db.ingest_external_file_cf_opts(&store.family(family), &ingest, files);
    done.map_err(|error| engine.events.noted(failed(error)))
}

/// In the order of their keys.
fn tables_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        files.extend(path.extension().is_some_and(|extension| extension == EXTENSION).then_some(path.clone()));
    }
    files.sort();
    Ok(files)
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
