//! A group's log as raft and the applier see it: the log store plus the entries that are not on disk yet.
//!
//! The raft crate forgets an entry as soon as it was handed to the host, and reads it back through [`LogView`].
//! So the host first puts the entry here ([`LogReader::append`]) and then lets the disk have it. The cache keeps
//! every entry that is not synced, and of the synced ones the latest, up to a bound in bytes; older ones
//! are read from the store.
//!
//! Invariants, each with its assert:
//! * indexes in the cache have no gaps, and the last is the log's last;
//! * an entry that is not synced is never evicted;
//! * nothing at or below the start is ever given out.
//!
//! What all groups of a host keep is bounded too: the host counts it ([`Totals`]), and has groups let go of what is synced
//! ([`LogReader::shed`]). A group that falls asleep lets go of it by itself: whoever is there has it all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use base::{GroupId, PeerId};
use bytes::Bytes;
use parking_lot::Mutex;
use raft::eraftpb::{ConfState, Entry as RaftEntry, EntryType, HardState as RaftHardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use storage::log::{HardState, LogStart};
use storage::{LogEntry, LogError, LogStore};

use crate::entry::EntryData;
use crate::machine::{Entry, Payload};
use crate::totals::Totals;

/// What [`LogEntry::kind`] means here: the raft crate's entry types.
pub const KIND_NORMAL: u8 = 0;
pub const KIND_CONF_CHANGE: u8 = 2;

/// Sizes of the log are remembered once per this many bytes, for cutting it by size.
const SIZE_MARK_BYTES: u64 = 64 << 10;

/// Shared by the host, the raft crate and the applier.
pub struct LogReader {
    group: GroupId,
    store: Arc<dyn LogStore>,
    cache_bytes_max: usize,
    totals: Arc<Totals>,
    state: Mutex<State>,
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.totals.cached(self.state.get_mut().cache_bytes, 0);
    }
}

#[derive(Default)]
struct State {
    start: LogStart,
    last: u64,
    last_term: u64,
    /// Everything up to here is synced.
    synced: u64,
    cache: VecDeque<LogEntry>,
    cache_bytes: usize,
    /// (index, bytes appended before it in this life), coarse.
    sizes: VecDeque<(u64, u64)>,
    appended_bytes: u64,
    hard: HardState,
    conf: ConfState,
    /// Encoded memberships (and who waits for them) of committed entries that are not applied yet.
    memberships: BTreeMap<u64, (Bytes, Option<(PeerId, u64)>)>,
    snapshots: BTreeMap<u64, Snapshot>,
    snapshots_wanted: BTreeMap<u64, u64>,
}

impl LogReader {
    pub(crate) fn open(
        group: GroupId,
        store: Arc<dyn LogStore>,
        conf: ConfState,
        cache_bytes_max: usize,
        totals: Arc<Totals>,
    ) -> Arc<LogReader> {
        let log = store.state(group).unwrap_or_default();
        let state = State {
            start: log.start,
            last: log.last,
            last_term: log.last_term,
            synced: log.last,
            hard: log.hard,
            conf,
            ..State::default()
        };
        Arc::new(LogReader { group, store, cache_bytes_max, totals, state: Mutex::new(state) })
    }

    /// Committed entries `first..=last`, as many as fit in `bytes_max`, at least one.
    pub fn read(&self, first: u64, last: u64, bytes_max: u64) -> Result<Vec<Entry>, LogError> {
        let raw = self.raw(first, last + 1, bytes_max)?;
        let state = self.state.lock();
        raw.into_iter()
            .map(|entry| {
                let (index, term) = (entry.index, entry.term);
                let payload = match state.memberships.get(&index) {
                    Some((membership, done)) => Payload::Membership { membership: membership.clone(), done: *done },
                    None => match EntryData::decode(entry.data) {
                        Some(EntryData::Commands(commands)) => Payload::Commands(commands),
                        Some(EntryData::Empty) => Payload::Nothing,
                        // A membership record that was not taken up (no entry in the map) changes nothing.
                        Some(EntryData::Membership(_)) => Payload::Nothing,
                        None if entry.kind == KIND_CONF_CHANGE => Payload::Nothing,
                        None => {
                            let why = format!("entry {index} of group {} cannot be decoded", self.group);
                            return Err(LogError::Corrupt { place: Default::default(), why });
                        }
                    },
                };
                Ok(Entry { index, term, payload })
            })
            .collect()
    }

    pub fn last(&self) -> u64 {
        self.state.lock().last
    }

    pub fn first(&self) -> u64 {
        self.state.lock().start.index + 1
    }

    pub(crate) fn hard(&self) -> HardState {
        self.state.lock().hard
    }

    pub(crate) fn start(&self) -> LogStart {
        self.state.lock().start
    }

    /// Takes entries that are about to be written. The first may lie at or below the last index.
    pub(crate) fn append(&self, entries: &[LogEntry]) {
        let Some(first) = entries.first() else { return };
        let mut state = self.state.lock();
        let before = state.cache_bytes;
        assert!(first.index > state.start.index && first.index <= state.last + 1, "the log has no gaps");
        state.cut_suffix(first.index);
        for entry in entries {
            assert_eq!(entry.index, state.last + 1, "the log has no gaps");
            state.appended_bytes += entry.data.len() as u64;
            if state.sizes.back().is_none_or(|(_, at)| state.appended_bytes - at >= SIZE_MARK_BYTES) {
                let mark = (entry.index, state.appended_bytes);
                state.sizes.push_back(mark);
            }
            state.cache.push_back(entry.clone());
            state.cache_bytes += weight(entry);
            state.last = entry.index;
            state.last_term = entry.term;
        }
        state.evict(self.cache_bytes_max);
        self.totals.cached(before, state.cache_bytes);
    }

    /// Lets go of all that can be read from the store.
    pub(crate) fn shed(&self) {
        let mut state = self.state.lock();
        let before = state.cache_bytes;
        state.evict(0);
        state.cache.shrink_to_fit();
        self.totals.cached(before, state.cache_bytes);
    }

    pub(crate) fn set_hard(&self, hard: HardState) {
        self.state.lock().hard = hard;
    }

    pub(crate) fn set_conf(&self, conf: ConfState) {
        self.state.lock().conf = conf;
    }

    /// Everything up to `index` is on disk (unless a later append has replaced it).
    pub(crate) fn synced(&self, index: u64) {
        let mut state = self.state.lock();
        state.synced = state.synced.max(index.min(state.last));
        let before = state.cache_bytes;
        state.evict(self.cache_bytes_max);
        self.totals.cached(before, state.cache_bytes);
    }

    /// The log begins after `start`, empty.
    pub(crate) fn reset(&self, start: LogStart) {
        let mut state = self.state.lock();
        state.start = start;
        state.last = start.index;
        state.last_term = start.term;
        state.synced = start.index;
        state.cache.clear();
        self.totals.cached(state.cache_bytes, 0);
        state.cache_bytes = 0;
        state.sizes.clear();
        state.memberships.clear();
        state.snapshots.clear();
    }

    /// Forgets entries up to `index`; the disk follows with the next batch.
    pub(crate) fn compact(&self, index: u64) -> Result<(), LogError> {
        let term = self.term_of(index)?;
        let mut state = self.state.lock();
        if index > state.start.index {
            assert!(index <= state.last, "only what exists is cut");
            state.start = LogStart { index, term };
            let before = state.cache_bytes;
            while state.cache.front().is_some_and(|entry| entry.index <= index) {
                state.pop_front();
            }
            self.totals.cached(before, state.cache_bytes);
            while state.sizes.front().is_some_and(|(at, _)| *at <= index) {
                state.sizes.pop_front();
            }
        }
        Ok(())
    }

    /// The smallest index above which at most `bytes` were appended in this life.
    pub(crate) fn index_for_bytes(&self, bytes: u64) -> u64 {
        let state = self.state.lock();
        let Some(keep_from) = state.appended_bytes.checked_sub(bytes).filter(|keep_from| *keep_from > 0) else {
            return 0;
        };
        state.sizes.iter().take_while(|(_, at)| *at <= keep_from).last().map_or(0, |(index, _)| *index)
    }

    pub(crate) fn membership_committed(&self, index: u64, membership: Bytes, done: Option<(PeerId, u64)>) {
        self.state.lock().memberships.insert(index, (membership, done));
    }

    pub(crate) fn applied(&self, index: u64) {
        let mut state = self.state.lock();
        if state.memberships.first_key_value().is_some_and(|(at, _)| *at <= index) {
            state.memberships = state.memberships.split_off(&(index + 1));
        }
    }

    /// Which peers need a snapshot, and the index it must reach.
    pub(crate) fn take_snapshots_wanted(&self) -> BTreeMap<u64, u64> {
        std::mem::take(&mut self.state.lock().snapshots_wanted)
    }

    pub(crate) fn offer_snapshot(&self, to: PeerId, snapshot: Snapshot) {
        self.state.lock().snapshots.insert(to.0, snapshot);
    }

    pub(crate) fn withdraw_snapshot(&self, to: PeerId) {
        self.state.lock().snapshots.remove(&to.0);
    }

    pub(crate) fn term_of(&self, index: u64) -> Result<u64, LogError> {
        let state = self.state.lock();
        if index == state.last {
            return Ok(state.last_term);
        }
        if index == state.start.index {
            return Ok(state.start.term);
        }
        let compacted = LogError::Compacted { group: self.group, index, start: state.start.index };
        if index < state.start.index || index > state.last {
            return Err(compacted);
        }
        if let Some(entry) = state.cached(index) {
            return Ok(entry.term);
        }
        drop(state);
        self.store.term(self.group, index)
    }

    fn raw(&self, low: u64, high: u64, bytes_max: u64) -> Result<Vec<LogEntry>, LogError> {
        let state = self.state.lock();
        if low <= state.start.index {
            return Err(LogError::Compacted { group: self.group, index: low, start: state.start.index });
        }
        assert!(high <= state.last + 1 && low < high, "only what exists is read: {low}..{high} of {}", state.last);
        let cached_from = state.cache.front().map_or(state.last + 1, |entry| entry.index);
        if low < cached_from {
            let high = high.min(cached_from);
            drop(state);
            return self.store.read(self.group, low, high, bytes_max);
        }
        let mut bytes = 0;
        let entries = state.cache.range((low - cached_from) as usize..(high - cached_from) as usize);
        let fits = |entry: &&LogEntry| {
            bytes += entry.data.len() as u64;
            entry.index == low || bytes <= bytes_max
        };
        Ok(entries.take_while(fits).cloned().collect())
    }
}

impl State {
    fn cached(&self, index: u64) -> Option<&LogEntry> {
        let first = self.cache.front()?.index;
        self.cache.get(usize::try_from(index.checked_sub(first)?).ok()?)
    }

    fn cut_suffix(&mut self, from: u64) {
        while self.cache.back().is_some_and(|entry| entry.index >= from) {
            let entry = self.cache.pop_back().expect("just seen");
            self.cache_bytes -= weight(&entry);
        }
        while self.sizes.back().is_some_and(|(index, _)| *index >= from) {
            self.sizes.pop_back();
        }
        self.last = from - 1;
        self.synced = self.synced.min(from - 1);
    }

    fn pop_front(&mut self) {
        if let Some(entry) = self.cache.pop_front() {
            self.cache_bytes -= weight(&entry);
        }
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.cache_bytes > bytes_max && self.cache.front().is_some_and(|entry| entry.index <= self.synced) {
            self.pop_front();
        }
    }
}

/// What an entry takes in memory, in bytes, by and large.
fn weight(entry: &LogEntry) -> usize {
    size_of::<LogEntry>() + entry.data.len()
}

/// The raft crate's view of a [`LogReader`].
pub struct LogView(pub(crate) Arc<LogReader>);

impl Storage for LogView {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let state = self.0.state.lock();
        let hard = RaftHardState { term: state.hard.term, vote: state.hard.vote, commit: state.hard.commit };
        Ok(RaftState::new(hard, state.conf.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<RaftEntry>> {
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut entries = Vec::new();
        let mut bytes: u64 = 0;
        let mut next = low;
        while next < high {
            let part = self.0.raw(next, high, bytes_max.saturating_sub(bytes)).map_err(to_raft_error)?;
            next += part.len() as u64;
            for entry in part {
                bytes = bytes.saturating_add(entry.data.len() as u64);
                if !entries.is_empty() && bytes > bytes_max {
                    return Ok(entries);
                }
                entries.push(to_raft(entry));
            }
        }
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        self.0.term_of(index).map_err(to_raft_error)
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.0.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.0.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let mut state = self.0.state.lock();
        let usable = |snapshot: &&Snapshot| {
            let index = snapshot.get_metadata().index;
            index >= request_index && index >= state.start.index
        };
        match state.snapshots.get(&to).filter(usable).cloned() {
            Some(snapshot) => Ok(snapshot),
            None => {
                let index_min = request_index.max(state.start.index);
                state.snapshots_wanted.insert(to, index_min);
                Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}

/// Damage is fatal in the raft crate: the node stops and is rebuilt. Only compaction is an answer.
fn to_raft_error(error: LogError) -> raft::Error {
    match error {
        LogError::Compacted { .. } => raft::Error::Store(StorageError::Compacted),
        other => raft::Error::Store(StorageError::Other(Box::new(other))),
    }
}

fn to_raft(entry: LogEntry) -> RaftEntry {
    let kind = if entry.kind == KIND_CONF_CHANGE { EntryType::EntryConfChangeV2 } else { EntryType::EntryNormal };
    RaftEntry {
        entry_type: kind as i32,
        term: entry.term,
        index: entry.index,
        data: entry.data.into(),
        ..RaftEntry::default()
    }
}

/// Takes an entry that the raft crate wants written, without copying its data.
pub(crate) fn from_raft(entry: RaftEntry) -> LogEntry {
    let conf = entry.entry_type == EntryType::EntryConfChangeV2 as i32
        || entry.entry_type == EntryType::EntryConfChange as i32;
    let kind = if conf { KIND_CONF_CHANGE } else { KIND_NORMAL };
    LogEntry { index: entry.index, term: entry.term, kind, data: entry.data.into() }
}
