//! What is really on a disk, kept beside the log from the batches as they are synced: the checker's own idea of
//! durability, which asks neither the host nor the log what they believe.

use std::collections::VecDeque;

use base::GroupId;
use storage::log::{GroupWrite, LogStore};

/// The terms of one group's durable entries.
#[derive(Clone, Debug, Default)]
pub struct Shadow {
    start: u64,
    start_term: u64,
    terms: VecDeque<u64>,
}

impl Shadow {
    /// As found on a disk after a start.
    pub fn read(log: &dyn LogStore, group: GroupId) -> Shadow {
        let Some(state) = log.state(group) else { return Shadow::default() };
        let terms = (state.start.index + 1..=state.last).map(|index| log.term(group, index).unwrap_or(0)).collect();
        Shadow { start: state.start.index, start_term: state.start.term, terms }
    }

    /// A synced write.
    pub fn apply(&mut self, write: &GroupWrite) {
        if write.destroy {
            *self = Shadow::default();
        }
        if let Some(start) = write.reset {
            *self = Shadow { start: start.index, start_term: start.term, terms: VecDeque::new() };
        }
        while write.compact_to.is_some_and(|to| to > self.start) {
            let Some(term) = self.terms.pop_front() else { break };
            self.start += 1;
            self.start_term = term;
        }
        for entry in &write.entries {
            self.terms.truncate((entry.index - self.start - 1) as usize);
            self.terms.push_back(entry.term);
        }
    }

    /// Whether the entry is there, itself or within the state that the log begins behind.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        match index.checked_sub(self.start) {
            None => true,
            Some(0) => self.start_term == term,
            Some(beyond) => self.terms.get(beyond as usize - 1) == Some(&term),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use storage::LogEntry;
    use storage::log::LogStart;

    use super::*;

    fn entries(first: u64, terms: &[u64]) -> GroupWrite {
        let entry = |(index, term): (u64, &u64)| LogEntry { index, term: *term, kind: 0, data: Bytes::new() };
        GroupWrite { entries: (first..).zip(terms).map(entry).collect(), ..GroupWrite::default() }
    }

    #[test]
    fn it_follows_what_is_written() {
        let mut shadow = Shadow::default();
        shadow.apply(&entries(1, &[1, 1, 2]));
        assert!(shadow.holds(3, 2) && !shadow.holds(3, 1) && !shadow.holds(4, 2));
        shadow.apply(&entries(2, &[3]));
        assert!(shadow.holds(1, 1) && shadow.holds(2, 3) && !shadow.holds(3, 2));
        shadow.apply(&GroupWrite { compact_to: Some(1), ..entries(3, &[3]) });
        assert!(shadow.holds(1, 1) && shadow.holds(0, 9) && shadow.holds(3, 3));
        shadow.apply(&GroupWrite { reset: Some(LogStart { index: 7, term: 4 }), ..GroupWrite::default() });
        assert!(shadow.holds(7, 4) && !shadow.holds(7, 3) && shadow.holds(6, 1) && !shadow.holds(8, 4));
    }
}
