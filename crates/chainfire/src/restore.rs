//! Restoring a snapshot: the state that a new cluster begins with.
//!
//! `chainfire-client snapshot restore` leaves a saved state in an empty data folder ([`RESTORE_FILE`]); `node::seed` says
//! when it is checked, loaded and removed. Loading keeps keys, history, revisions, leases and alarms; what the old cluster
//! was (its mark in the log, its members) goes when the new one is founded.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use consensus::MachineError;
use node::seed::Seed;
use proto::snapshot::RESTORE_FILE;
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine, EngineError};

use crate::machine::{layout, snapshot};

/// How often a long restore says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The seed of a node whose state machine lies in `data_dir`.
pub fn seed(data_dir: &Path, options: RocksOptions) -> Seed {
    let dir = data_dir.to_owned();
    Seed {
        file: RESTORE_FILE,
        check: Box::new(|file| {
            let content = Reading::open(file, "Checking")?.whole(|input| snapshot::inspect(input))?;
            Ok((content.digest >> 64) as u64 ^ content.digest as u64)
        }),
        load: Box::new(move |file| {
            let engine = RocksEngine::open(&dir, &layout::FAMILIES, &options).map_err(|error| error.to_string())?;
            let content = Reading::open(file, "Restoring")?.whole(|input| snapshot::restore(&engine, input))?;
            tracing::info!(
                target: "chainfire_storage",
                "Restored a snapshot, keys={} revision={}",
                content.keys,
                content.header.revision
            );
            Ok(())
        }),
    }
}

/// Empties an engine that holds a state.
pub fn clear(engine: &dyn Engine) -> Result<(), EngineError> {
    if engine.view().get(layout::META, layout::STATE)?.is_none() {
        return Ok(());
    }
    let mut nothing = engine.begin_install()?;
    nothing.finish()?;
    engine.commit_install(nothing)
}

/// A file being read, which says now and then how far it is.
struct Reading {
    file: File,
    path: PathBuf,
    doing: &'static str,
    bytes: u64,
    bytes_total: u64,
    said: Instant,
}

impl Reading {
    fn open(path: &Path, doing: &'static str) -> Result<Reading, String> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes_total, file) = opened.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(Reading { file, path: path.to_owned(), doing, bytes: 0, bytes_total, said: Instant::now() })
    }

    /// Runs what reads the file; an error names it.
    fn whole<T>(mut self, read: impl FnOnce(&mut Reading) -> Result<T, MachineError>) -> Result<T, String> {
        read(&mut self).map_err(|error| match error {
            MachineError::BadSnapshot(why) => {
                format!(
                    "{} is no intact snapshot: {why}; remove it and restore the snapshot again",
                    self.path.display()
                )
            }
            error => format!("cannot restore {}: {error}", self.path.display()),
        })
    }
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.bytes += length as u64;
        if self.said.elapsed() >= SAY_EVERY {
            self.said = Instant::now();
            tracing::info!(
                target: "chainfire_storage",
                "{} a snapshot, mib={} of_mib={}",
                self.doing,
                self.bytes >> 20,
                self.bytes_total >> 20
            );
        }
        Ok(length)
    }
}
