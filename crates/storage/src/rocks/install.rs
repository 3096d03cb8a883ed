//! Receiving a full replacement: pairs become table files as they come, and at the end the files become a
//! database of their own in `incoming/`, made durable and closed. Memory stays at one block, index and filter
//! under construction per family, whatever the size.
//!
//! Nothing takes effect before [`super::swap`] decides for it. An install that is dropped undecided, or
//! overtaken by another, leaves nothing behind.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rust_rocksdb::{DB, IngestExternalFileOptions};

use super::options::Blueprint;
use super::tables::TableWriter;
use super::{failed, failed_io, swap};
use crate::engine::{EngineError, FamilyId, Install};

/// Bytes of keys and values in a table.
const TABLE_BYTES: u64 = 128 << 20;

/// The one place where installs are staged.
pub(super) struct Staging {
    pub dir: PathBuf,
    pub blueprint: Blueprint,
    /// The number of the install that owns `incoming/`; held while files are created or deleted there.
    owner: Mutex<u64>,
}

impl Staging {
    pub fn new(dir: PathBuf, blueprint: Blueprint) -> Staging {
        Staging { dir, blueprint, owner: Mutex::new(0) }
    }

    /// Takes the staging folder over from whatever install had it.
    pub fn begin(self: &Arc<Self>) -> Result<RocksInstall, EngineError> {
        let mut owner = self.owner.lock();
        swap::prepare(&self.dir).map_err(failed_io)?;
        *owner += 1;
        let writers =
            self.blueprint.families.iter().map(|spec| TableWriter::new(self.blueprint.family(spec), TABLE_BYTES));
        Ok(RocksInstall { number: *owner, writers: writers.collect(), stage: Stage::Receiving, staging: self.clone() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Receiving,
    /// An error left it without use.
    Failed,
    Finished,
    /// The staging folder is no longer this install's to delete.
    Decided,
}

pub(super) struct RocksInstall {
    staging: Arc<Staging>,
    number: u64,
    writers: Vec<TableWriter>,
    stage: Stage,
}

impl RocksInstall {
    /// Whether this is what `staging` holds, complete.
    pub fn is_ready(&self, staging: &Arc<Staging>) -> bool {
        Arc::ptr_eq(&self.staging, staging) && self.stage == Stage::Finished && *staging.owner.lock() == self.number
    }

    /// Leaves the staging folder to the swap.
    pub fn decided(&mut self) {
        self.stage = Stage::Decided;
    }

    /// Runs a step of the reception; once one has failed, or another install has taken over, so does every other.
    fn step(&mut self, step: impl FnOnce(&mut Self) -> Result<(), EngineError>) -> Result<(), EngineError> {
        if self.stage != Stage::Receiving {
            return Err(EngineError::Failed("this install takes no more pairs".into()));
        }
        let done = step(self);
        if done.is_err() {
            self.stage = Stage::Failed;
        }
        done
    }

    fn build(&mut self) -> Result<(), EngineError> {
        for writer in &mut self.writers {
            writer.close()?;
        }
        let owner = self.staging.owner.lock();
        check_owner(*owner, self.number)?;
        let blueprint = &self.staging.blueprint;
        let mut database = blueprint.database(None);
        database.set_disable_auto_compactions(true);
        let db = DB::open_cf_descriptors(&database, swap::staged_database(&self.staging.dir), blueprint.descriptors())
            .map_err(failed)?;
        let mut ingest = IngestExternalFileOptions::default();
        ingest.set_move_files(true);
        ingest.set_snapshot_consistency(false);
        ingest.set_fill_cache(false);
        ingest.set_verify_checksums_before_ingest(true);
        for (spec, writer) in blueprint.families.iter().zip(&mut self.writers) {
            let files = std::mem::take(&mut writer.files);
            if !files.is_empty() {
                let family = db.cf_handle(spec.name).expect("every family was opened");
                db.ingest_external_file_cf_opts(&family, &ingest, files).map_err(failed)?;
            }
        }
        drop(db);
        swap::sync_staged(&self.staging.dir).map_err(failed_io)
    }
}

fn check_owner(owner: u64, number: u64) -> Result<(), EngineError> {
    if owner == number { Ok(()) } else { Err(EngineError::Failed("another install has taken over".into())) }
}

impl Install for RocksInstall {
    fn put(&mut self, family: FamilyId, key: &[u8], value: &[u8]) -> Result<(), EngineError> {
        self.step(|install| {
            let at = usize::from(family.0);
            if !install.writers[at].is_open() {
                let owner = install.staging.owner.lock();
                check_owner(*owner, install.number)?;
                let name = format!("{}-{}.sst", family.0, install.writers[at].files.len());
                install.writers[at].open(swap::staged_tables(&install.staging.dir).join(name))?;
            }
            install.writers[at].put(key, value)
        })
    }

    fn finish(&mut self) -> Result<(), EngineError> {
        self.step(RocksInstall::build)?;
        self.stage = Stage::Finished;
        Ok(())
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

impl Drop for RocksInstall {
    fn drop(&mut self) {
        let owner = self.staging.owner.lock();
        if self.stage != Stage::Decided && *owner == self.number {
            // What cannot be deleted here is deleted when the folder is opened or received into again.
            let _ = swap::discard(&self.staging.dir);
        }
    }
}
