//! Random batches that follow from the log they are written to, and the content they lead to.

use base::{GroupId, Rng};
use storage::log::LogStart;
use storage::memlog::MemLog;
use storage::{GroupWrite, HardState, LogBatch, LogEntry, LogStore};

use crate::content::{Content, whole};

/// Draws batches; its own log is what they add up to.
pub struct Operations {
    pub rng: Rng,
    pub model: MemLog,
    pub groups: u64,
    pub entry_bytes_max: u64,
    /// How often, of a hundred writes, a group is compacted; a sixth of that, destroyed or reset.
    pub shrink_percent: u64,
    term: u64,
}

impl Operations {
    pub fn new(seed: u64) -> Operations {
        Operations {
            rng: Rng::new(seed),
            model: MemLog::new(),
            groups: 4,
            entry_bytes_max: 60,
            shrink_percent: 25,
            term: 1,
        }
    }

    /// The content after all batches drawn so far.
    pub fn content(&self) -> Content {
        whole(&self.model)
    }

    pub fn batch(&mut self) -> LogBatch {
        let mut batch = LogBatch::default();
        if self.rng.percent(10) {
            self.term += 1;
        }
        for _ in 0..self.rng.between(1, 4) {
            let group = GroupId(self.rng.between(1, self.groups + 1));
            let mut write = self.write(group);
            if write.destroy && self.rng.percent(50) {
                self.push(&mut batch, write);
                write = self.write(group);
            }
            self.push(&mut batch, write);
        }
        batch
    }

    fn push(&mut self, batch: &mut LogBatch, write: GroupWrite) {
        let single = LogBatch { groups: vec![write] };
        self.model.write(&single).expect("the model does not fail");
        batch.groups.extend(single.groups);
    }

    fn write(&mut self, group: GroupId) -> GroupWrite {
        let known = self.model.state(group);
        let state = known.unwrap_or_default();
        let rng = &mut self.rng;
        let mut write = GroupWrite { group, ..GroupWrite::default() };
        if known.is_some() && rng.percent(self.shrink_percent / 6) {
            write.destroy = true;
            return write;
        }
        let (mut start, mut last) = (state.start.index, state.last);
        if rng.percent(self.shrink_percent / 6) {
            let index = state.last + rng.below(10);
            write.reset = Some(LogStart { index, term: self.term });
            (start, last) = (index, index);
        }
        if rng.percent(self.shrink_percent) {
            write.compact_to = Some(rng.between(start, last + 3));
            start = start.max(write.compact_to.unwrap_or(0).min(last));
        }
        if rng.percent(80) {
            let first = if rng.percent(15) { rng.between(start + 1, last + 2) } else { last + 1 };
            for index in first..first + rng.below(5) {
                let bytes =
                    if rng.percent(3) { self.entry_bytes_max * 20 } else { rng.below(self.entry_bytes_max + 1) };
                let data = (0..bytes).map(|_| rng.next_u64() as u8).collect::<Vec<_>>().into();
                write.entries.push(LogEntry { index, term: self.term, kind: rng.below(3) as u8, data });
            }
        }
        if rng.percent(50) {
            write.hard = Some(HardState { term: self.term, vote: rng.below(4), commit: rng.below(last + 1) });
        }
        write
    }
}

impl Operations {
    /// Goes on from what a log holds.
    pub fn resumed(log: &dyn LogStore, seed: u64) -> Operations {
        let mut operations = Operations::new(seed);
        for group in log.groups() {
            let state = log.state(group).expect("a listed group has state");
            let entries = log.read(group, state.start.index + 1, state.last + 1, u64::MAX).expect("the log is whole");
            operations.term = operations.term.max(state.last_term).max(state.hard.term);
            let write =
                GroupWrite { group, reset: Some(state.start), entries, hard: Some(state.hard), ..Default::default() };
            operations.push(&mut LogBatch::default(), write);
        }
        operations
    }
}
