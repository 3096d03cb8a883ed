//! The placement driver's records as a stream ([`proto::snapshot`]), for a member that needs all of them.

use std::sync::Arc;

use bytes::Bytes;
use consensus::{MachineError, Mark, SnapshotSink, SnapshotSource};
use proto::snapshot::{Header, PAYLOAD_BYTES_MAX, Reader, Writer};
use storage::{FamilyId, Install, View};

use crate::machine::FAMILIES;

/// Streams what a view shows.
pub fn stream(view: Arc<dyn View>, mark: Mark, membership: Bytes) -> Stream {
    Stream { view, mark, membership, at: At::Begin, pending: Vec::new(), writer: Writer::default() }
}

pub struct Stream {
    view: Arc<dyn View>,
    mark: Mark,
    membership: Bytes,
    at: At,
    pending: Vec<u8>,
    writer: Writer,
}

enum At {
    Begin,
    /// The family under way and its next key.
    Data(usize, Vec<u8>),
    End,
}

impl SnapshotSource for Stream {
    fn mark(&self) -> Mark {
        self.mark
    }

    fn membership(&self) -> Bytes {
        self.membership.clone()
    }

    fn bytes_total(&self) -> u64 {
        0
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        if let At::Begin = self.at {
            self.at = At::Data(0, Vec::new());
            let Mark { index, term, hash } = self.mark;
            let membership = self.membership.clone();
            let header = Header { raft_index: index, raft_term: term, hash, revision: 0, since: None, membership };
            return Ok(Some(self.writer.header(&header)));
        }
        self.fill()?;
        if !self.pending.is_empty() {
            let rest = self.pending.split_off(self.pending.len().min(PAYLOAD_BYTES_MAX));
            let payload = std::mem::replace(&mut self.pending, rest);
            return Ok(Some(self.writer.data(&payload)));
        }
        if let At::End = self.at {
            return Ok(None);
        }
        self.at = At::End;
        Ok(Some(self.writer.trailer()))
    }
}

impl Stream {
    fn fill(&mut self) -> Result<(), MachineError> {
        while self.pending.len() < PAYLOAD_BYTES_MAX
            && let At::Data(family, from) = &self.at
            && *family < FAMILIES.len()
        {
            let (family, id) = (*family, family_id(*family));
            let mut walk = self.view.scan(id, from, None);
            while walk.valid() && self.pending.len() < PAYLOAD_BYTES_MAX {
                self.writer.put_pair(&mut self.pending, id.0, walk.key(), walk.value());
                walk.advance();
            }
            let next = if walk.valid() {
                At::Data(family, walk.key().to_vec())
            } else {
                walk.status()?;
                At::Data(family + 1, Vec::new())
            };
            drop(walk);
            self.at = next;
        }
        Ok(())
    }
}

fn family_id(index: usize) -> FamilyId {
    FamilyId(u8::try_from(index).expect("a handful of families"))
}

/// Stages a stream in an engine; nothing of it is believed before its end has come.
pub struct Receiver {
    install: Box<dyn Install>,
    reader: Reader,
}

impl Receiver {
    pub fn new(install: Box<dyn Install>) -> Receiver {
        Receiver { install, reader: Reader::new(family_id(FAMILIES.len()).0) }
    }

    /// The staged content, after a successful `finish`.
    pub fn install(&mut self) -> &mut dyn Install {
        &mut *self.install
    }
}

impl SnapshotSink for Receiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        self.reader.feed(&chunk);
        while let Some(pair) = self.reader.pair().map_err(|why| MachineError::BadSnapshot(why.0))? {
            self.install.put(FamilyId(pair.family), pair.key, pair.value)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<Mark, MachineError> {
        let header = self.reader.finish().map_err(|why| MachineError::BadSnapshot(why.0))?.header;
        self.install.finish()?;
        Ok(Mark { index: header.raft_index, term: header.raft_term, hash: header.hash })
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
