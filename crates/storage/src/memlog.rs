//! The in-memory twin of the segmented log, for the simulator and for tests of the floors above.
//!
//! It keeps two images: *live*, what readers see, and *durable*, what a power cut leaves. `stage` changes the live
//! image and `sync` makes what was staged durable; `write` does both. `crash` keeps the durable image and, of the
//! batches staged after it, as many whole ones as luck would have it (a torn one is cut off when a log is opened).
//!
//! Faults that outlast a crash are planted with `corrupt` and `lose`; `reopen` then answers as opening a damaged
//! [`crate::seglog`] does, and `wipe` makes room for the next incarnation. `fail_writes` makes writes fail.

use std::collections::{BTreeMap, VecDeque};

use base::{GroupId, Rng};
use parking_lot::Mutex;

use crate::log::{GroupWrite, HardState, LogBatch, LogEntry, LogError, LogStart, LogState, LogStats, LogStore, Place};

#[derive(Default)]
pub struct MemLog {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    live: Image,
    durable: Image,
    /// Batches in the live image that are not in the durable one.
    staged: VecDeque<LogBatch>,
    /// Of the last batch staged; the first has 1.
    number: u64,
    failed: Option<LogError>,
    damage: Option<LogError>,
    /// Entries whose bytes are damaged.
    damaged: Vec<(GroupId, u64)>,
    stats: LogStats,
}

impl MemLog {
    pub fn new() -> MemLog {
        MemLog::default()
    }

    /// Applies a batch to what readers see; returns its number. A batch that does not follow from the log panics.
    pub fn stage(&self, batch: &LogBatch) -> Result<u64, LogError> {
        let inner = &mut *self.inner.lock();
        if let Some(failed) = &inner.failed {
            return Err(failed.clone());
        }
        inner.live.apply(batch);
        inner.staged.push_back(batch.clone());
        inner.number += 1;
        Ok(inner.number)
    }

    /// Makes everything staged durable.
    pub fn sync(&self) -> Result<(), LogError> {
        self.sync_to(u64::MAX)
    }

    /// Makes the batches up to this number durable.
    pub fn sync_to(&self, number: u64) -> Result<(), LogError> {
        let inner = &mut *self.inner.lock();
        if let Some(failed) = &inner.failed {
            return Err(failed.clone());
        }
        inner.stats.syncs += 1;
        while inner.number - (inner.staged.len() as u64) < number {
            let Some(batch) = inner.staged.pop_front() else { break };
            inner.stats.entries_written += batch.groups.iter().map(|write| write.entries.len() as u64).sum::<u64>();
            inner.durable.apply(&batch);
        }
        Ok(())
    }

    /// The power goes: what was not synced is gone, but for whole batches that happened to reach the disk.
    pub fn crash(&self, rng: &mut Rng) {
        let inner = &mut *self.inner.lock();
        let kept = rng.below(inner.staged.len() as u64 + 1) as usize;
        for batch in inner.staged.drain(..).take(kept) {
            inner.durable.apply(&batch);
        }
        inner.live = inner.durable.clone();
        inner.failed = None;
    }

    /// What opening the log says: its damage, if any was planted.
    pub fn reopen(&self) -> Result<(), LogError> {
        self.inner.lock().damage.clone().map_or(Ok(()), Err)
    }

    /// Damages an entry on disk: reading it fails from here on, and so does opening the log.
    pub fn corrupt(&self, group: GroupId, index: u64) {
        let inner = &mut *self.inner.lock();
        inner.damaged.push((group, index));
        inner.damage = Some(damaged(group, index));
    }

    /// Makes the log shorter than it was: opening it fails.
    pub fn lose(&self) {
        self.inner.lock().damage = Some(LogError::Lost { why: "a test took its end away".to_owned() });
    }

    /// Writes and syncs fail with this from here on, until it is taken back or the log crashes.
    pub fn fail_writes(&self, error: Option<LogError>) {
        self.inner.lock().failed = error;
    }

    /// A copy of what is on the disk.
    pub fn copy(&self) -> MemLog {
        let durable = self.inner.lock().durable.clone();
        let inner = Inner { live: durable.clone(), durable, ..Inner::default() };
        MemLog { inner: Mutex::new(inner) }
    }

    /// Empties the log, as a new incarnation of the data folder does.
    pub fn wipe(&self) {
        *self.inner.lock() = Inner::default();
    }
}

impl LogStore for MemLog {
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        self.stage(batch)?;
        self.sync()
    }

    fn idle(&self) -> Result<(), LogError> {
        self.inner.lock().failed.clone().map_or(Ok(()), Err)
    }

    fn groups(&self) -> Vec<GroupId> {
        self.inner.lock().live.groups.keys().copied().collect()
    }

    fn state(&self, group: GroupId) -> Option<LogState> {
        self.inner.lock().live.groups.get(&group).map(Group::state)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogError> {
        let inner = self.inner.lock();
        let log = inner.live.group(group)?;
        if index == log.start.index { Ok(log.start.term) } else { Ok(log.entry(group, index)?.term) }
    }

    fn read(&self, group: GroupId, low: u64, high: u64, bytes_max: u64) -> Result<Vec<LogEntry>, LogError> {
        let inner = self.inner.lock();
        let log = inner.live.group(group)?;
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut taken = 0;
        for index in low..high {
            let entry = log.entry(group, index)?;
            taken += entry.data.len() as u64;
            if taken > bytes_max && !entries.is_empty() {
                break;
            }
            if inner.damaged.contains(&(group, index)) {
                return Err(damaged(group, index));
            }
            entries.push(entry.clone());
        }
        Ok(entries)
    }

    fn stats(&self) -> LogStats {
        let inner = self.inner.lock();
        let bytes = |log: &Group| log.entries.iter().map(|entry| entry.data.len() as u64).sum::<u64>();
        LogStats { bytes: inner.live.groups.values().map(bytes).sum(), segments: 1, ..inner.stats.clone() }
    }
}

#[derive(Clone, Default)]
struct Image {
    groups: BTreeMap<GroupId, Group>,
}

#[derive(Clone, Default)]
struct Group {
    start: LogStart,
    hard: HardState,
    entries: VecDeque<LogEntry>,
}

impl Image {
    fn apply(&mut self, batch: &LogBatch) {
        for write in &batch.groups {
            if write.destroy {
                self.groups.remove(&write.group);
            } else {
                self.groups.entry(write.group).or_default().apply(write);
            }
        }
    }

    fn group(&self, group: GroupId) -> Result<&Group, LogError> {
        self.groups.get(&group).ok_or_else(|| LogError::Io(format!("group {group} has no log")))
    }
}

impl Group {
    fn apply(&mut self, write: &GroupWrite) {
        if let Some(start) = write.reset {
            self.start = start;
            self.entries.clear();
        }
        if let Some(to) = write.compact_to.map(|to| to.min(self.last())).filter(|to| *to > self.start.index) {
            let dropped = self.entries.drain(..(to - self.start.index) as usize);
            self.start = dropped.last().map_or(self.start, |entry| LogStart { index: entry.index, term: entry.term });
        }
        if let Some(first) = write.entries.first() {
            assert!(
                first.index > self.start.index && first.index <= self.last() + 1,
                "entry {} of group {} does not join on to its log, which is {}..={}",
                first.index,
                write.group,
                self.start.index,
                self.last()
            );
            self.entries.truncate((first.index - self.start.index - 1) as usize);
        }
        for entry in &write.entries {
            assert_eq!(entry.index, self.last() + 1, "entries of group {} have a gap", write.group);
            self.entries.push_back(entry.clone());
        }
        if let Some(hard) = write.hard {
            self.hard = hard;
        }
    }

    fn last(&self) -> u64 {
        self.start.index + self.entries.len() as u64
    }

    fn state(&self) -> LogState {
        let last_term = self.entries.back().map_or(self.start.term, |entry| entry.term);
        LogState { start: self.start, last: self.last(), last_term, hard: self.hard }
    }

    fn entry(&self, group: GroupId, index: u64) -> Result<&LogEntry, LogError> {
        let Some(at) = index.checked_sub(self.start.index + 1) else {
            return Err(LogError::Compacted { group, index, start: self.start.index });
        };
        self.entries.get(at as usize).ok_or_else(|| {
            LogError::Io(format!("entry {index} of group {group} is asked for, and the last is {}", self.last()))
        })
    }
}

fn damaged(group: GroupId, index: u64) -> LogError {
    let place = Place { file: "memory".to_owned(), offset: index };
    LogError::Corrupt { place, why: format!("the checksum of entry {index} of group {group} differs") }
}
