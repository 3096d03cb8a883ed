//! A planted bug: a log that does not remember votes over a restart.

use std::sync::Arc;

use base::GroupId;
use storage::log::{LogStats, LogStore};
use storage::memlog::MemLog;
use storage::{LogBatch, LogEntry, LogError, LogState};

pub struct Forgetful(pub Arc<MemLog>);

impl LogStore for Forgetful {
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        self.0.write(batch)
    }

    fn idle(&self) -> Result<(), LogError> {
        self.0.idle()
    }

    fn groups(&self) -> Vec<GroupId> {
        self.0.groups()
    }

    fn state(&self, group: GroupId) -> Option<LogState> {
        let mut state = self.0.state(group)?;
        state.hard.vote = 0;
        Some(state)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogError> {
        self.0.term(group, index)
    }

    fn read(&self, group: GroupId, low: u64, high: u64, bytes_max: u64) -> Result<Vec<LogEntry>, LogError> {
        self.0.read(group, low, high, bytes_max)
    }

    fn stats(&self) -> LogStats {
        self.0.stats()
    }
}
