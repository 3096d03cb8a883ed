//! Reading: an open database with its family handles, consistent views over it, and cursors.
//!
//! A view is a RocksDB snapshot together with a share in the database, so that the database stays open for as
//! long as a view of it is held. RocksDB's types borrow from one another; the two places here that hold a
//! borrower beside what it borrows from are the only unsafe code of the engine's reading side.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use rust_rocksdb::{ColumnFamily, DB, DBRawIterator, ErrorKind, ReadOptions, ReadTier, Snapshot};

use super::events::Events;
use super::{failed, options::Blueprint};
use crate::engine::{Cursor, EngineError, FamilyId, View};

/// An open database.
pub(super) struct Store {
    /// By `FamilyId`. They point into `db`; handed out only for as long as `self` is borrowed.
    handles: Vec<&'static ColumnFamily>,
    latest: ReadOptions,
    persisted: ReadOptions,
    in_memory: ReadOptions,
    events: Arc<Events>,
    /// It is about to be replaced, and waits for its views to go.
    outdated: AtomicBool,
    pub db: DB,
}

impl Store {
    pub fn new(db: DB, blueprint: &Blueprint, events: Arc<Events>) -> Store {
        let handles = blueprint.families.iter().map(|spec| {
            let handle = db.cf_handle(spec.name).expect("every family was opened");
            // SAFETY: the handle lies in a node of the map inside `db`, which moves with neither `db` nor `Store`
            // and changes only through `&mut DB`, which is never taken. `handles` is dropped with `db` and gives
            // out nothing that outlives a borrow of `self`.
            unsafe { &*std::ptr::from_ref(handle) }
        });
        let handles = handles.collect();
        let mut persisted = ReadOptions::default();
        persisted.set_read_tier(ReadTier::Persisted);
        let mut in_memory = ReadOptions::default();
        in_memory.set_read_tier(ReadTier::BlockCache);
        let (latest, outdated) = (ReadOptions::default(), AtomicBool::new(false));
        Store { handles, latest, persisted, in_memory, events, outdated, db }
    }

    pub fn family(&self, family: FamilyId) -> &ColumnFamily {
        self.handles[usize::from(family.0)]
    }

    pub fn families(&self) -> Vec<&ColumnFamily> {
        self.handles.clone()
    }

    pub fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.get_with(family, key, &self.latest)
    }

    pub fn get_persisted(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.get_with(family, key, &self.persisted)
    }

    /// `None`: it may lie in a table of which not all that is needed is in memory.
    pub fn get_in_memory(&self, family: FamilyId, key: &[u8]) -> Result<Option<Option<Bytes>>, EngineError> {
        match self.db.get_pinned_cf_opt(&self.family(family), key, &self.in_memory) {
            Ok(found) => Ok(Some(found.map(|pinned| Bytes::copy_from_slice(&pinned)))),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            Err(error) => Err(self.events.noted(failed(error))),
        }
    }

    /// Ends all reading in views, or lets it begin again.
    pub fn outdate(&self, outdated: bool) {
        self.outdated.store(outdated, Ordering::Relaxed);
    }

    fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed)
    }

    fn get_with(&self, family: FamilyId, key: &[u8], reads: &ReadOptions) -> Result<Option<Bytes>, EngineError> {
        let found = self.db.get_pinned_cf_opt(&self.family(family), key, reads);
        let found = found.map_err(|error| self.events.noted(failed(error)))?;
        Ok(found.map(|pinned| Bytes::copy_from_slice(&pinned)))
    }
}

/// A consistent view. Dropped from the top down: the options point at the snapshot, the snapshot into the store.
pub(super) struct RocksView {
    reads: ReadOptions,
    snapshot: Snapshot<'static>,
    store: Arc<Store>,
}

impl RocksView {
    pub fn new(store: Arc<Store>) -> RocksView {
        // SAFETY: the database lies on the heap inside the `Arc`, which this view holds until after the snapshot
        // is dropped (fields are dropped in order).
        let db: &'static DB = unsafe { &*std::ptr::from_ref(&store.db) };
        let snapshot = db.snapshot();
        let mut reads = ReadOptions::default();
        reads.set_snapshot(&snapshot);
        RocksView { reads, snapshot, store }
    }

    fn iterate(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> DBRawIterator<'_> {
        let mut reads = ReadOptions::default();
        reads.set_iterate_lower_bound(from);
        if let Some(to) = to {
            reads.set_iterate_upper_bound(to);
        }
        self.snapshot.raw_iterator_cf_opt(&self.store.family(family), reads)
    }
}

impl View for RocksView {
    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if self.store.is_outdated() {
            return Err(EngineError::Replaced);
        }
        self.store.get_with(family, key, &self.reads)
    }

    fn scan(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        let mut iter = self.iterate(family, from, to);
        iter.seek(from);
        Box::new(Forward(iter, &self.store))
    }

    fn scan_back(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        let mut iter = self.iterate(family, from, to);
        iter.seek_to_last();
        Box::new(Backward(iter, &self.store))
    }
}

struct Forward<'a>(DBRawIterator<'a>, &'a Store);
struct Backward<'a>(DBRawIterator<'a>, &'a Store);

macro_rules! cursor {
    ($name:ident, $advance:ident, $seek:ident, $there:tt) => {
        impl Cursor for $name<'_> {
            fn valid(&self) -> bool {
                self.0.valid() && !self.1.is_outdated()
            }

            fn key(&self) -> &[u8] {
                self.0.key().expect("asked only while valid")
            }

            fn value(&self) -> &[u8] {
                self.0.value().expect("asked only while valid")
            }

            fn advance(&mut self) {
                self.0.$advance();
            }

            fn seek(&mut self, key: &[u8]) {
                if self.0.key().is_some_and(|here| !(here $there key)) {
                    self.0.$seek(key);
                }
            }

            fn status(&self) -> Result<(), EngineError> {
                self.0.status().map_err(|error| self.1.events.noted(failed(error)))?;
                // A walk that had come to its end is cut short all the same; it is only done again.
                if self.1.is_outdated() { Err(EngineError::Replaced) } else { Ok(()) }
            }
        }
    };
}

cursor!(Forward, next, seek, >=);
cursor!(Backward, prev, seek_for_prev, <=);
