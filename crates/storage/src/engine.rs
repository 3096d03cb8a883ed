//! What a state machine needs of its store: ordered families, atomic batches, consistent views, a durable
//! mark, and a crash-safe way to replace everything by a received snapshot.
//!
//! The life of a byte: `write` puts it into memory, visible to every later `view`; `flush` (or the engine's own
//! flushing, always of all families together) makes a prefix of the writes durable. After a crash the engine
//! holds exactly such a prefix: never a half batch, never one family ahead of another.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::batch::WriteBatch;

/// A store whose files can be read again, to see whether the disk still holds what was written. A pass holds nothing of the
/// store between two steps. What is damaged is remembered by the store.
pub trait Scrubbed: Send + Sync + 'static {
    type Pass: Send;

    fn begin_pass(&self) -> Result<(Self::Pass, Extent), EngineError>;

    /// How many bytes it read, a piece at most; `None` when the pass is over.
    fn step(&self, pass: &mut Self::Pass) -> Result<Option<u64>, EngineError>;
}

/// What a pass will read.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub bytes: u64,
    /// Files that have no checksum.
    pub unchecked: u64,
}

/// A column family, as an index into the specs the engine was opened with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FamilyId(pub u8);

/// Whether a pair may be dropped at a watermark.
pub type Droppable = fn(key: &[u8], value: &[u8], watermark: u64) -> bool;

/// How one column family is kept.
#[derive(Clone, Copy, Debug)]
pub struct FamilySpec {
    pub name: &'static str,
    /// Physical clean-up: says whether a pair may be dropped while its file is rewritten, given the watermark
    /// last set with [`Engine::set_watermark`]. Must only ever say so of pairs that no reader can reach; when
    /// they vanish, if ever, is not part of the state.
    pub droppable: Option<Droppable>,
    /// Whether point reads of absent keys are frequent, so that a bloom filter pays.
    pub bloom: bool,
    /// Whether new keys are greater than all before them.
    pub sequential: bool,
}

/// Sizes and counters, for metrics and `Status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Bytes on disk, memory tables included.
    pub total_bytes: u64,
    /// Estimated bytes of live data.
    pub live_bytes: u64,
    /// Milliseconds that writes have been stalled in all.
    pub stall_ms: u64,
    /// Stalls begun.
    pub stalls: u64,
    /// Bytes in memory tables and caches.
    pub memory_bytes: u64,
    /// Memory tables written to files.
    pub flushes: u64,
    /// Files merged: how often, how long in all, and how many bytes went in and came out.
    pub compactions: u64,
    pub compaction_ms: u64,
    pub compaction_read_bytes: u64,
    pub compaction_written_bytes: u64,
    /// Merges under way.
    pub compactions_running: u64,
    /// Estimated bytes that wait to be merged.
    pub compaction_pending_bytes: u64,
    /// Files that were not merged once; many of them hold writes back.
    pub level0_files: u64,
    /// Full memory tables that wait to be written to a file.
    pub memtables_waiting: u64,
    /// Bytes that are in no file yet.
    pub memtable_bytes: u64,
    /// Deletions among them, which have given no room back so far.
    pub deletions_in_memory: u64,
}

/// Something an operator may want to read about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// Writes are held back because flushes or compactions are behind; `stopped`: altogether.
    StallBegan {
        family: String,
        stopped: bool,
    },
    StallEnded {
        duration_ms: u64,
    },
    /// A flush or compaction failed; writes are refused until RocksDB has recovered by itself or is opened again.
    BackgroundError {
        during: &'static str,
        message: String,
    },
    /// RocksDB has recovered from a background error by itself; there is room on the disk again, for instance.
    Recovered,
    SlowCompaction {
        family: String,
        duration_ms: u64,
        bytes_read: u64,
        bytes_written: u64,
    },
}

/// Less than this is quickly written, and table files of its own are not worth having.
const LARGE_RANGE_BYTES: u64 = 4 << 20;

pub trait Engine: Send + Sync {
    /// Applies a batch: all of it or nothing, visible to every later view. Not synced.
    fn write(&self, batch: &WriteBatch) -> Result<(), EngineError>;

    /// A consistent view of everything written so far. Cheap; holding one long keeps old data on disk.
    fn view(&self) -> Arc<dyn View>;

    /// Reads one key as of the last write.
    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// As [`Engine::get`], if that takes no look at the disk; `None`: it may.
    fn get_in_memory(&self, family: FamilyId, key: &[u8]) -> Result<Option<Option<Bytes>>, EngineError> {
        self.get(family, key).map(Some)
    }

    /// Makes everything written before the call durable. Writes go on meanwhile. Files that hold more deletions than anything
    /// else are merged soon after, which gives the room of what was deleted back.
    fn flush(&self) -> Result<(), EngineError>;

    /// Reads one key as it would be after a power cut now.
    fn durable_get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Sets the watermark handed to the families' `droppable`.
    fn set_watermark(&self, watermark: u64);

    /// Rewrites files to give space back. Never blocks reads or writes; may take long.
    fn reclaim(&self) -> Result<(), EngineError>;

    /// Begins to receive a complete replacement of the content. Reads and writes go on until `commit`.
    /// One at a time: beginning another abandons the first.
    fn begin_install(&self) -> Result<Box<dyn Install>, EngineError>;

    /// Replaces the content by what `install` received, durably. Views taken before must have been dropped or
    /// are waited for; reading in them ends with [`EngineError::Replaced`] from here on. [`EngineError::Held`]: one was not
    /// let go of, nothing has changed, and the same may be tried again. A crash at any point leaves either the old
    /// content or the new one.
    fn commit_install(&self, install: &mut dyn Install) -> Result<(), EngineError>;

    /// Begins files of pairs for [`Engine::replace_range`], in a folder that is there.
    fn begin_tables(&self, family: FamilyId, folder: &Path) -> Result<Box<dyn Tables>, EngineError>;

    /// Replaces the content of `from..to`, durably, by the tables in a folder, whose pairs lie in that range, and which stay. After an
    /// error or a crash the range is as it was, or empty, or as it is to be, and the same may be done again. Nobody else writes to
    /// the range meanwhile. Views keep what they show.
    fn replace_range(&self, family: FamilyId, from: &[u8], to: &[u8], folder: &Path) -> Result<(), EngineError>;

    /// Whether a range of so many bytes is better replaced by [`Engine::replace_range`] than written over.
    fn is_large_range(&self, bytes: u64) -> bool {
        bytes >= LARGE_RANGE_BYTES
    }

    fn stats(&self) -> EngineStats;

    /// Whether a write may have to wait, because flushes or compactions are behind.
    fn is_stalled(&self) -> bool {
        false
    }
}

/// An immutable, consistent picture of an engine.
pub trait View: Send + Sync {
    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// A cursor over `from..to` (`to` `None`: to the end of the family), standing on the first pair.
    fn scan(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_>;

    /// A cursor over `from..to` that runs backwards, standing on the last pair.
    fn scan_back(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_>;
}

/// Walks pairs in the direction its scan was opened with. `key` and `value` may be called only while `valid`.
pub trait Cursor {
    fn valid(&self) -> bool;
    fn key(&self) -> &[u8];
    fn value(&self) -> &[u8];
    fn advance(&mut self);
    /// Moves to the first pair at or beyond `key` in the cursor's direction (forwards only ever forwards).
    fn seek(&mut self, key: &[u8]);
    /// The error that ended the walk, if one did. To be asked once `valid` is false.
    fn status(&self) -> Result<(), EngineError>;
}

/// The receiving end of a full replacement. Pairs come in any order of families, ordered by key within each.
pub trait Install: Send {
    fn put(&mut self, family: FamilyId, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
    /// Makes what was received durable and complete; it takes effect with [`Engine::commit_install`].
    fn finish(&mut self) -> Result<(), EngineError>;
    /// For the engine that made it.
    fn as_any(&mut self) -> &mut dyn std::any::Any;
}

/// Takes the pairs of table files, in the order of their keys.
pub trait Tables: Send {
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), EngineError>;
    /// All have come. The files are durable, and have their names in the folder.
    fn finish(self: Box<Self>) -> Result<(), EngineError>;
}

/// An engine's failure decides one of three things: the disk is full (the node refuses writes and goes on), a replacement is
/// under way (what was tried is tried again), or the engine cannot be trusted (the node stops).
#[derive(Clone, Debug, thiserror::Error)]
pub enum EngineError {
    #[error("no space left for the state: {0}")]
    NoSpace(String),
    #[error("state store is damaged: {0}")]
    Corrupt(String),
    #[error("state store failed: {0}")]
    Failed(String),
    /// Of a reader: what it reads is about to be replaced.
    #[error("the state is being replaced")]
    Replaced,
    /// Of a replacement: a reader has not let go of the old content yet.
    #[error("a view of the old state is still held")]
    Held,
}

/// A view in which nothing can be read: it answers everything with the reason.
pub struct NoView(pub EngineError);

impl View for NoView {
    fn get(&self, _: FamilyId, _: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Err(self.0.clone())
    }

    fn scan(&self, _: FamilyId, _: &[u8], _: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        Box::new(NoCursor(&self.0))
    }

    fn scan_back(&self, _: FamilyId, _: &[u8], _: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        Box::new(NoCursor(&self.0))
    }
}

struct NoCursor<'a>(&'a EngineError);

impl Cursor for NoCursor<'_> {
    fn valid(&self) -> bool {
        false
    }

    fn key(&self) -> &[u8] {
        unreachable!("asked only while valid")
    }

    fn value(&self) -> &[u8] {
        unreachable!("asked only while valid")
    }

    fn advance(&mut self) {}

    fn seek(&mut self, _: &[u8]) {}

    fn status(&self) -> Result<(), EngineError> {
        Err(self.0.clone())
    }
}
