//! A database that nobody has open: checked without changing it, and repaired as far as RocksDB can.
//!
//! A check opens the database for reading only, which reads the manifest and misses files that it names, and then reads
//! every block of every table file against its checksum. What RocksDB calls a repair throws the manifest away and makes
//! one of the table files that it can still read. It keeps what it drops in `lost/`, forgets what was deleted but still
//! lay there as a file, and says nothing of either: a repaired database opens, and may hold any part of what it held. A
//! family of which it finds no file is not in that manifest at all; it is made again, empty, as it may have been before.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rust_rocksdb::{DB, Options};

use super::events::Events;
use super::options::{Blueprint, RocksOptions};
use super::view::Store;
use super::{failed, failed_io, swap};
use crate::engine::{EngineError, FamilyId, FamilySpec};

/// Where RocksDB's repair puts the files that it drops.
pub const LOST: &str = "lost";

/// A database in which every checksum is right.
pub struct StateFiles {
    store: Arc<Store>,
    pub files: u64,
    pub bytes: u64,
}

impl StateFiles {
    pub fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.store.get(family, key)
    }
}

/// Reads the whole database in `dir`. `None` when there is none; an error says what is damaged.
pub fn check(dir: &Path, families: &'static [FamilySpec]) -> Result<Option<StateFiles>, EngineError> {
    if swap::is_unfinished(dir).map_err(failed_io)? {
        let why = "a received state is half in place; the next start of the node finishes that";
        return Err(EngineError::Failed(why.to_owned()));
    }
    if !dir.join("CURRENT").try_exists().map_err(failed_io)? {
        return match has_tables(dir).map_err(failed_io)? {
            false => Ok(None),
            true => Err(EngineError::Corrupt("the file CURRENT is gone".to_owned())),
        };
    }
    let options = RocksOptions::default();
    let events = Arc::new(Events::new(options.now, options.slow_compaction_ms));
    let blueprint = Blueprint::new(families, &options);
    let mut options = blueprint.database(None);
    options.create_if_missing(false);
    options.create_missing_column_families(false);
    let db = DB::open_cf_descriptors_read_only(&options, dir, blueprint.descriptors(), false).map_err(failed)?;
    db.verify_checksum().map_err(failed)?;
    let live = db.live_files().map_err(failed)?;
    let (files, bytes) = (live.len() as u64, live.iter().map(|file| file.size as u64).sum());
    Ok(Some(StateFiles { store: Arc::new(Store::new(db, &blueprint, events)), files, bytes }))
}

/// Lets RocksDB make a database of what it can still read. An error if that is nothing.
pub fn repair(dir: &Path, families: &'static [FamilySpec]) -> Result<(), EngineError> {
    DB::repair(&Options::default(), dir).map_err(failed)?;
    if !has_tables(dir).map_err(failed_io)? {
        return Err(EngineError::Corrupt("not one table file can be read".to_owned()));
    }
    let blueprint = Blueprint::new(families, &RocksOptions::default());
    DB::open_cf_descriptors(&blueprint.database(None), dir, blueprint.descriptors()).map(drop).map_err(failed)
}

fn has_tables(dir: &Path) -> std::io::Result<bool> {
    for entry in std::fs::read_dir(dir)? {
        if entry?.path().extension().is_some_and(|kind| kind == "sst") {
            return Ok(true);
        }
    }
    Ok(false)
}
