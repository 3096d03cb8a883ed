//! Everything that a log says about itself, to be compared.

use base::GroupId;
use storage::{LogEntry, LogError, LogState, LogStore};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content(Vec<(GroupId, LogState, Vec<LogEntry>)>);

/// Reads all of a log.
pub fn content(log: &dyn LogStore) -> Result<Content, LogError> {
    let mut all = Vec::new();
    for group in log.groups() {
        let state = log.state(group).expect("a listed group has state");
        let entries = log.read(group, state.start.index + 1, state.last + 1, u64::MAX)?;
        assert_eq!(entries.len() as u64, state.last - state.start.index);
        assert_eq!(log.term(group, state.start.index)?, state.start.term);
        for entry in &entries {
            assert_eq!(log.term(group, entry.index)?, entry.term);
        }
        assert_eq!(log.term(group, state.last)?, state.last_term);
        all.push((group, state, entries));
    }
    Ok(Content(all))
}

/// Reads a log that must be whole.
pub fn whole(log: &dyn LogStore) -> Content {
    content(log).expect("the log is whole")
}
