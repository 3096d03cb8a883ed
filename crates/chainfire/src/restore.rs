//! Restoring a backup: the state that a new cluster begins with.
//!
//! What waits in an otherwise empty data folder, left there by `chainfire-client snapshot restore` or by unpacking a
//! backup archive with `tar`:
//!
//! | file | |
//! |---|---|
//! | `restore.snapshot` | the state of a full backup: the mark of a restored folder |
//! | `restore.changes` | what incremental backups add to it; may be absent |
//! | `restore.sha256` | the manifest of an archive ([`proto::manifest`]); may be absent |
//!
//! `node::seed` says when they are checked, loaded and removed. Checking reads all of each: digests, frames, order. Loading
//! keeps keys, history, revisions, leases and alarms; what the old cluster was (its mark in the log, its members) goes
//! when the new one is founded.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use consensus::MachineError;
use node::seed::Seed;
use proto::manifest::{MANIFEST_BYTES_MAX, MANIFEST_FILE, Manifest};
use proto::snapshot::{CHANGES_FILE, FRAME_BYTES_MAX, RESTORE_FILE, Reader};
use sha2::{Digest, Sha256};
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine, EngineError};

use crate::machine::{layout, replay, snapshot};

/// How often a long restore says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// The seed of a node whose state machine lies in `data_dir`.
pub fn seed(data_dir: &Path, options: RocksOptions) -> Seed {
    let dir = data_dir.to_owned();
    Seed {
        file: RESTORE_FILE,
        check: Box::new(check),
        load: Box::new(move |file| {
            let engine = RocksEngine::open(&dir, &layout::FAMILIES, &options).map_err(|error| error.to_string())?;
            let content = Reading::open(file, "Restoring")?.whole(|input| snapshot::restore(&engine, input))?;
            tracing::info!(
                target: "chainfire_storage",
                "Restored a snapshot, keys={} revision={}",
                content.keys,
                content.header.revision
            );
            let changes = file.with_file_name(CHANGES_FILE);
            if changes.exists() {
                let done = Reading::open(&changes, "Replaying")?.whole(|input| replay::replay(&engine, input))?;
                tracing::info!(
                    target: "chainfire_storage",
                    "Replayed incremental backups, changes={} revision={} unknown_leases={}",
                    done.changes,
                    done.revision,
                    done.unknown_leases
                );
            }
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
    engine.commit_install(&mut *nothing)
}

/// Reads all files of a restore from end to end; a number that is the same for the same state.
fn check(file: &Path) -> Result<u64, String> {
    let manifest = manifest(file)?;
    let mut reading = Reading::open(file, "Checking")?;
    let content = reading.whole(|input| snapshot::inspect(input))?;
    reading.fits(manifest.as_ref(), RESTORE_FILE)?;
    let mut state = content.digest;
    let changes = file.with_file_name(CHANGES_FILE);
    if changes.exists() {
        let follows = content.header.revision;
        let content = Reading::open(&changes, "Checking")?.whole(|input| inspect_changes(input))?;
        if content.header.since != Some(follows) {
            return Err(format!(
                "{} does not follow on revision {follows} of the state beside it; restore the backup again",
                changes.display()
            ));
        }
        state ^= content.digest.rotate_left(1);
    }
    Ok((state >> 64) as u64 ^ state as u64)
}

fn inspect_changes(mut from: impl Read) -> Result<proto::snapshot::Content, MachineError> {
    let bad = |why: String| MachineError::BadSnapshot(why);
    let mut reader = Reader::new(u8::try_from(layout::FAMILIES.len()).expect("a handful of families"));
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let length = from.read(&mut buffer).map_err(|error| bad(format!("it cannot be read: {error}")))?;
        if length == 0 {
            return reader.finish().map_err(|why| bad(why.0));
        }
        reader.feed(&buffer[..length]);
        while reader.pair().map_err(|why| bad(why.0))?.is_some() {}
    }
}

/// The manifest beside a restored state, if it came in an archive.
fn manifest(file: &Path) -> Result<Option<Manifest>, String> {
    let path = file.with_file_name(MANIFEST_FILE);
    let too_long = |length: u64| length > MANIFEST_BYTES_MAX as u64;
    let text = match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(found) if too_long(found.len()) => Err("it is too long".to_owned()),
        Ok(_) => fs::read(&path).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let manifest = text.and_then(|text| Manifest::decode(&text));
    manifest.map(Some).map_err(|why| format!("{} is no manifest: {why}; unpack the backup again", path.display()))
}

/// A file being read, which says now and then how far it is.
struct Reading {
    file: File,
    path: PathBuf,
    doing: &'static str,
    bytes: u64,
    bytes_total: u64,
    digest: Sha256,
    said: Instant,
}

impl Reading {
    fn open(path: &Path, doing: &'static str) -> Result<Reading, String> {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (bytes_total, file) = opened.map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let digest = Sha256::new();
        Ok(Reading { file, path: path.to_owned(), doing, bytes: 0, bytes_total, digest, said: Instant::now() })
    }

    /// Runs what reads the file; an error names it.
    fn whole<T>(&mut self, read: impl FnOnce(&mut Reading) -> Result<T, MachineError>) -> Result<T, String> {
        read(self).map_err(|error| match error {
            MachineError::BadSnapshot(why) => {
                format!(
                    "{} is no intact snapshot: {why}; remove it and restore the snapshot again",
                    self.path.display()
                )
            }
            error => format!("cannot restore {}: {error}", self.path.display()),
        })
    }

    /// Whether what was read is what a manifest says.
    fn fits(self, manifest: Option<&Manifest>, name: &str) -> Result<(), String> {
        let found: [u8; 32] = self.digest.finalize().into();
        match manifest.map(|manifest| manifest.digest(name)) {
            None => Ok(()),
            Some(Some(digest)) if *digest == found => Ok(()),
            Some(_) => Err(format!(
                "{} is no intact snapshot: it does not fit the SHA-256 in {MANIFEST_FILE} beside it; unpack the backup again",
                self.path.display()
            )),
        }
    }
}

impl Read for Reading {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.digest.update(&buffer[..length]);
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
