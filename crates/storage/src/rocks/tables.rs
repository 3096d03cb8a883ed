//! Table files that are written outside a database, and become part of one later.

use std::path::PathBuf;

use rust_rocksdb::{Options, SstFileWriter};

use super::failed;
use crate::engine::EngineError;

/// The table files of one family. Dropped from the top down: the writer borrows the options.
pub(super) struct TableWriter {
    table: Option<SstFileWriter<'static>>,
    options: Box<Options>,
    pub files: Vec<PathBuf>,
    /// Bytes in the open table, of keys and values; with so many it is closed.
    bytes: u64,
    bytes_max: u64,
}

impl TableWriter {
    /// What it writes goes to the disk bit by bit: left to the kernel it would go all at once when it is synced, and whoever syncs
    /// a small write meanwhile, as a log does, would wait for it.
    pub fn new(mut options: Options, bytes_max: u64) -> TableWriter {
        options.set_bytes_per_sync(1 << 20);
        options.set_strict_bytes_per_sync(true);
        TableWriter { table: None, options: Box::new(options), files: Vec::new(), bytes: 0, bytes_max }
    }

    /// Whether it takes pairs.
    pub fn is_open(&self) -> bool {
        self.table.is_some()
    }

    pub fn open(&mut self, path: PathBuf) -> Result<(), EngineError> {
        // SAFETY: the options lie on the heap, are never replaced, and are dropped after the writer.
        let options: &'static Options = unsafe { &*std::ptr::from_ref(&*self.options) };
        let mut table = SstFileWriter::create(options);
        table.open(&path).map_err(failed)?;
        self.table = Some(table);
        self.files.push(path);
        self.bytes = 0;
        Ok(())
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        let table = self.table.as_mut().expect("opened before the first pair");
        table.put(key, value).map_err(failed)?;
        self.bytes += (key.len() + value.len()) as u64;
        if self.bytes >= self.bytes_max { self.close() } else { Ok(()) }
    }

    pub fn close(&mut self) -> Result<(), EngineError> {
        match self.table.take() {
            Some(mut table) => table.finish().map_err(failed),
            None => Ok(()),
        }
    }
}
