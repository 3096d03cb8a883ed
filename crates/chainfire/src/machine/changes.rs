//! What changed since a revision, as a stream: for incremental backups.
//!
//! `rev` holds every change in order of revision with the record it left: a redo log. The stream
//! ([`proto::snapshot`], of changes) is that part of it, as it lies in the store, and then the leases there are at its end.
//! What has no revision is not in it: alarms, how far was compacted, the membership. Which keys hang on which lease
//! follows from the records; a lease that was granted and ended between two backups is known by its id alone.
//!
//! One published view gives all of it, so the stream ends at one revision, and neither writes nor compactions under way
//! change it. It can begin at the compacted revision at the earliest; before that the history is gone.

use std::sync::Arc;

use bytes::Bytes;
use consensus::{MachineError, Mark, SnapshotSource};
use proto::snapshot::{Header, PAYLOAD_BYTES_MAX, Writer};

use super::layout::{LEASE, META, REV, rev_start};
use crate::error::ApiError;
use crate::read::StateView;

/// A stream of what a view knows to have changed.
pub struct ChangesStream {
    view: Arc<StateView>,
    since: i64,
    stage: Stage,
    /// Pairs that do not yet fill a frame.
    pending: Vec<u8>,
    writer: Writer,
}

enum Stage {
    Begin,
    /// The next key in `rev`.
    History(Vec<u8>),
    /// The next key in `meta`.
    Leases(Vec<u8>),
    Trailer,
    End,
}

/// Streams the changes after the revision `since`. Errors: `Compacted` when some of them are gone, `FutureRevision` when
/// the view has not come so far.
pub fn stream(view: Arc<StateView>, since: i64) -> Result<ChangesStream, ApiError> {
    if since < 0 || since.saturating_add(1) < view.compacted {
        return Err(ApiError::Compacted);
    }
    if since > view.revision {
        return Err(ApiError::FutureRevision);
    }
    Ok(ChangesStream { view, since, stage: Stage::Begin, pending: Vec::new(), writer: Writer::default() })
}

impl SnapshotSource for ChangesStream {
    fn mark(&self) -> Mark {
        self.view.mark
    }

    fn membership(&self) -> Bytes {
        self.view.membership.clone()
    }

    /// Not known before the end.
    fn bytes_total(&self) -> u64 {
        0
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        if let Stage::Begin = self.stage {
            self.stage = Stage::History(rev_start(self.since + 1).to_vec());
            let Mark { index, term, hash } = self.view.mark;
            let (revision, membership) = (self.view.revision, self.view.membership.clone());
            let since = Some(self.since);
            let header = Header { raft_index: index, raft_term: term, hash, revision, since, membership };
            return Ok(Some(self.writer.header(&header)));
        }
        self.fill()?;
        if !self.pending.is_empty() {
            let rest = self.pending.split_off(self.pending.len().min(PAYLOAD_BYTES_MAX));
            let payload = std::mem::replace(&mut self.pending, rest);
            return Ok(Some(self.writer.data(&payload)));
        }
        if let Stage::End = self.stage {
            return Ok(None);
        }
        self.stage = Stage::End;
        Ok(Some(self.writer.trailer()))
    }
}

impl ChangesStream {
    /// Gathers pairs until a frame is full or there are no more.
    fn fill(&mut self) -> Result<(), MachineError> {
        while self.pending.len() < PAYLOAD_BYTES_MAX {
            let (family, from, to) = match &self.stage {
                Stage::History(from) => (REV, from, None),
                Stage::Leases(from) => (META, from, Some(&[LEASE + 1][..])),
                _ => return Ok(()),
            };
            let mut walk = self.view.view.scan(family, from, to);
            while walk.valid() && self.pending.len() < PAYLOAD_BYTES_MAX {
                self.writer.put_pair(&mut self.pending, family.0, walk.key(), walk.value());
                walk.advance();
            }
            let rest = walk.valid().then(|| walk.key().to_vec());
            walk.status()?;
            drop(walk);
            self.stage = match (rest, family) {
                (Some(key), REV) => Stage::History(key),
                (Some(key), _) => Stage::Leases(key),
                (None, REV) => Stage::Leases(vec![LEASE]),
                (None, _) => Stage::Trailer,
            };
        }
        Ok(())
    }
}
