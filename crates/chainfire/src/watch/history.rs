//! Where a watcher reads what the ring of recent revisions does not hold (any more).

use super::range::KeyRange;
use crate::error::ApiError;
use crate::event::RevisionEvents;
use crate::read::Reader;

/// The store's past, as the watch hub needs it. The answers of one implementation never go back: a revision once
/// covered stays covered until it is compacted.
pub trait History: Send + Sync {
    /// The revision up to which `read` sees everything.
    fn revision(&self) -> i64;

    /// Revisions below this one are gone. A watcher may still start at it.
    fn compacted(&self) -> i64;

    /// Changes in `range` with `from <= revision <= to`: whole revisions in ascending order, each with only its
    /// events in the range. Stops when it holds about `bytes_max` bytes or has looked long enough, but never short of
    /// the first revision; says how far it came.
    fn read(&self, from: i64, to: i64, range: &KeyRange, bytes_max: usize) -> Result<Past, HistoryError>;
}

/// A part of history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    pub revisions: Vec<RevisionEvents>,
    /// Nothing is missing up to this revision, which is at least the first one asked for.
    pub covered: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HistoryError {
    /// `from` lies below the compact revision.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted { revision: i64 },
    /// The store cannot be read. The watcher ends with these words.
    #[error("{0}")]
    Failed(String),
}

/// The events of a revision that lie in `range`, if any do.
pub fn select(revision: &RevisionEvents, range: &KeyRange) -> Option<RevisionEvents> {
    let events: Vec<_> = revision.events.iter().filter(|event| range.contains(&event.key)).cloned().collect();
    (!events.is_empty()).then_some(RevisionEvents { revision: revision.revision, events })
}

impl History for Reader {
    fn revision(&self) -> i64 {
        self.current().revision
    }

    fn compacted(&self) -> i64 {
        self.current().compacted
    }

    fn read(&self, from: i64, to: i64, range: &KeyRange, bytes_max: usize) -> Result<Past, HistoryError> {
        let view = self.current();
        let (key, end) = range.to_wire();
        match view.history(from, to, key, end, bytes_max) {
            Ok(part) => Ok(Past { revisions: part.revisions, covered: part.next - 1 }),
            Err(ApiError::Compacted) => Err(HistoryError::Compacted { revision: view.compacted }),
            Err(error) => Err(HistoryError::Failed(error.to_string())),
        }
    }
}
