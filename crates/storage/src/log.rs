//! The Raft logs of all groups of a node: one store, one write and one fsync per batch, for every group in it.
//!
//! The promise: when `write` has returned, everything in the batch survives a power cut. When the store is opened
//! again it holds exactly what was written, or says why not: [`LogError::Corrupt`] names the damaged place and
//! [`LogError::Lost`] says that acknowledged entries are missing. A torn last batch, one whose `write` never
//! returned, is cut off silently; the durable mark of the last synced index tells it apart from a loss. A log
//! is never opened as a shorter log.
//!
//! Who calls what: `write` is called by one thread (the log writer); reads come from others at the same time
//! and see only what has been written.

use std::collections::BTreeMap;
use std::fmt;

use base::GroupId;
use bytes::Bytes;

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// From 1, without gaps.
    pub index: u64,
    pub term: u64,
    /// What the data means; the consensus floor's business.
    pub kind: u8,
    pub data: Bytes,
}

/// What Raft must not forget between restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    pub term: u64,
    /// The peer this one voted for in `term`; zero for none.
    pub vote: u64,
    pub commit: u64,
}

/// A place in a log: the entry there is not kept, only its term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogStart {
    pub index: u64,
    pub term: u64,
}

/// What one group adds to a batch. The parts take effect in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupWrite {
    pub group: GroupId,
    /// Forget the group altogether; all else in this write must be empty.
    pub destroy: bool,
    /// Throw the whole log away and begin after this point (a snapshot was installed).
    pub reset: Option<LogStart>,
    /// Entries up to and including this index may be forgotten; their term is kept for the last of them. A hint:
    /// need not be synced on its own.
    pub compact_to: Option<u64>,
    /// Entries without gaps. The first may lie at or below the last index: everything from it on is replaced.
    pub entries: Vec<LogEntry>,
    pub hard: Option<HardState>,
}

/// What becomes durable together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogBatch {
    pub groups: Vec<GroupWrite>,
}

impl GroupWrite {
    /// Takes a later write of the same group in, where all it does is to go on from here; else gives it back.
    pub fn join(&mut self, later: GroupWrite) -> Result<(), GroupWrite> {
        let only_adds = !later.destroy && later.reset.is_none() && later.compact_to.is_none();
        let follows = match (self.entries.last(), later.entries.first()) {
            (Some(before), Some(after)) => before.index + 1 == after.index,
            _ => true,
        };
        if self.group != later.group || self.destroy || !only_adds || !follows {
            return Err(later);
        }
        self.entries.extend(later.entries);
        self.hard = later.hard.or(self.hard);
        Ok(())
    }
}

impl LogBatch {
    /// Batches that are to be written one after the other, as one: groups go on with the write they have, as far as
    /// possible.
    pub fn joined(batches: impl IntoIterator<Item = LogBatch>) -> LogBatch {
        let mut all = LogBatch::default();
        let mut latest: BTreeMap<GroupId, usize> = BTreeMap::new();
        for write in batches.into_iter().flat_map(|batch| batch.groups) {
            let group = write.group;
            let apart = match latest.get(&group) {
                Some(&at) => all.groups[at].join(write).err(),
                None => Some(write),
            };
            if let Some(apart) = apart {
                latest.insert(group, all.groups.len());
                all.groups.push(apart);
            }
        }
        all
    }
}

/// A group's log as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Where the kept entries begin: the first kept entry has `start.index + 1`.
    pub start: LogStart,
    /// The last entry's index; `start.index` when there is none.
    pub last: u64,
    pub last_term: u64,
    pub hard: HardState,
}

/// Sizes and counters, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    pub bytes: u64,
    pub segments: u64,
    pub syncs: u64,
    pub entries_written: u64,
}

pub trait LogStore: Send + Sync {
    /// Writes and syncs a batch. An error is final: the store must not be written again.
    fn write(&self, batch: &LogBatch) -> Result<(), LogError>;

    /// Tells the store that nothing waits to be written: it may sync its mark and recycle segments.
    fn idle(&self) -> Result<(), LogError>;

    /// All groups that have state, in order.
    fn groups(&self) -> Vec<GroupId>;

    /// `None` for a group that was never written.
    fn state(&self, group: GroupId) -> Option<LogState>;

    /// The term of the entry at `index`, which must lie in `start.index..=last`.
    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogError>;

    /// Entries `low..high` (which must all be kept), as many as fit in `bytes_max`, at least one.
    fn read(&self, group: GroupId, low: u64, high: u64, bytes_max: u64) -> Result<Vec<LogEntry>, LogError>;

    fn stats(&self) -> LogStats;
}

/// Why a log cannot be used. Each is final for this incarnation of the data folder, except `Compacted`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    #[error("corrupted log entry: {place}: {why}")]
    Corrupt { place: Place, why: String },
    #[error("log is shorter than it was: {why}")]
    Lost { why: String },
    #[error("no space left for the log")]
    NoSpace,
    #[error("log: {0}")]
    Io(String),
    #[error("log entry {index} of group {group} is not kept (the log begins after {start})")]
    Compacted { group: GroupId, index: u64, start: u64 },
}

/// Where in the file set damage was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub file: String,
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.file, self.offset)
    }
}
