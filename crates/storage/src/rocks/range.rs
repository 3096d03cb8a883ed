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
//!
//! To take a file over RocksDB reads it, for the checksum that it keeps of it. While it writes one it lets go of its pages, so that
//! it would read it from the disk, as fast as that goes, and whoever syncs a small write meanwhile, as a log does for every one,
//! would wait. So the pages are held ([`Held`]) until the file is complete.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::ptr;

use rust_rocksdb::{CompactOptions, IngestExternalFileOptions};

use super::tables::TableWriter;
use super::{RocksEngine, failed, failed_io};
use crate::batch::WriteBatch;
use crate::engine::{Engine as _, EngineError, FamilyId, Tables};

const EXTENSION: &str = "sst";

/// Bytes of keys and values in a table.
const TABLE_BYTES: u64 = 64 << 20;
/// Room for what a file has beside them: an index, a filter, properties.
const HELD_BYTES_MAX: usize = 2 * TABLE_BYTES as usize;
/// Pages are taken hold of whenever so much more was put.
const HOLD_EVERY_BYTES: usize = 256 << 10;

pub(super) struct RocksTables {
    folder: PathBuf,
    writer: TableWriter,
    held: Option<Held>,
    /// Bytes that were put since pages were taken hold of.
    put: usize,
}

/// The pages of a file that grows, mapped: what is mapped stays in memory as long as there is room for it.
struct Held {
    file: File,
    at: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: the mapping is the file's, not a thread's.
unsafe impl Send for Held {}

impl Held {
    /// `None`: it cannot be mapped, and all goes on more slowly.
    fn begin(path: &Path) -> Option<Held> {
        let file = File::open(path).ok()?;
        // SAFETY: a new mapping, of a file that is open; nothing is ever read through it.
        let at = unsafe {
            libc::mmap(ptr::null_mut(), HELD_BYTES_MAX, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        (at != libc::MAP_FAILED).then_some(Held { file, at, bytes: 0 })
    }

    /// Takes hold of what has been written since.
    fn grow(&mut self) {
        const PAGE: usize = 4096;
        let length = self.file.metadata().map_or(0, |file| file.len() as usize).min(HELD_BYTES_MAX);
        let whole = length - length % PAGE;
        if whole > self.bytes {
            // SAFETY: the range lies within the mapping and within the file. A kernel that does not know this refuses.
            unsafe { libc::madvise(self.at.byte_add(self.bytes), whole - self.bytes, libc::MADV_POPULATE_READ) };
            self.bytes = whole;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and nobody has a reference into it.
        unsafe { libc::munmap(self.at, HELD_BYTES_MAX) };
    }
}

pub(super) fn begin_tables(engine: &RocksEngine, family: FamilyId, folder: &Path) -> RocksTables {
    let blueprint = &engine.staging.blueprint;
    let options = blueprint.family(&blueprint.families[usize::from(family.0)]);
    RocksTables { folder: folder.to_owned(), writer: TableWriter::new(options, TABLE_BYTES), held: None, put: 0 }
}

impl Tables for RocksTables {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        if !self.writer.is_open() {
            let path = self.folder.join(format!("{:05}.{EXTENSION}", self.writer.files.len()));
            self.writer.open(path.clone())?;
            self.held = Held::begin(&path);
        }
        self.writer.put(key, value)?;
        self.put += key.len() + value.len();
        if self.put >= HOLD_EVERY_BYTES {
            self.put = 0;
            self.held.iter_mut().for_each(Held::grow);
        }
        Ok(())
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
    // The checksum that is kept of a file is that of what lies there by now.
    ingest.set_verify_checksums_before_ingest(true);
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
