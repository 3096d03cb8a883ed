//! The state as a stream of bytes ([`proto::snapshot`]): for a replica that needs all of it, and for backups.
//!
//! A chunk of [`SnapshotStream`] is one frame. A stream is taken from one published view, so that the machine goes on
//! meanwhile; what no reader can reach is left out. A receiver stages the pairs as they come and believes nothing before
//! the end has come: what is not whole is refused, and so is a state that contradicts its header.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use consensus::{MachineError, Mark, SnapshotSink, SnapshotSource};
use proto::snapshot::{Content, FRAME_BYTES_MAX, Header, PAYLOAD_BYTES_MAX, Reader, Writer};
use storage::{Engine, FamilyId, Install};

use super::layout::{self, FAMILIES, META, OLD, Old};
use crate::read::StateView;

/// A stream of what a view shows.
pub struct SnapshotStream {
    view: Arc<StateView>,
    bytes_total: u64,
    stage: Stage,
    /// Pairs that do not yet fill a frame.
    pending: Vec<u8>,
    writer: Writer,
}

enum Stage {
    Begin,
    /// The family under way and its next key.
    Data(usize, Vec<u8>),
    End,
}

/// Streams a view; `bytes_total` is an estimate for progress.
pub fn stream(view: Arc<StateView>, bytes_total: u64) -> SnapshotStream {
    SnapshotStream { view, bytes_total, stage: Stage::Begin, pending: Vec::new(), writer: Writer::default() }
}

impl SnapshotSource for SnapshotStream {
    fn mark(&self) -> Mark {
        self.view.mark
    }

    fn membership(&self) -> Bytes {
        self.view.membership.clone()
    }

    fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        if let Stage::Begin = self.stage {
            self.stage = Stage::Data(0, Vec::new());
            let Mark { index, term, hash } = self.view.mark;
            let (revision, membership) = (self.view.revision, self.view.membership.clone());
            let since = None;
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

impl SnapshotStream {
    /// Gathers pairs until a frame is full or there are no more.
    fn fill(&mut self) -> Result<(), MachineError> {
        while self.pending.len() < PAYLOAD_BYTES_MAX
            && let Stage::Data(family, from) = &self.stage
            && *family < FAMILIES.len()
        {
            let family = *family;
            let id = FamilyId(u8::try_from(family).expect("a handful of families"));
            let mut walk = self.view.view.scan(id, from, None);
            while walk.valid() && self.pending.len() < PAYLOAD_BYTES_MAX {
                let (key, value) = (walk.key(), walk.value());
                if id != OLD || Old::read(value)?.needed_before > self.view.compacted {
                    self.writer.put_pair(&mut self.pending, id.0, key, value);
                }
                walk.advance();
            }
            let next = if walk.valid() {
                Stage::Data(family, walk.key().to_vec())
            } else {
                walk.status()?;
                Stage::Data(family + 1, Vec::new())
            };
            drop(walk);
            self.stage = next;
        }
        Ok(())
    }
}

/// Takes a stream in, checks it, and stages it in an engine, if it has one.
pub struct SnapshotReceiver {
    install: Option<Box<dyn Install>>,
    reader: Reader,
    /// What `meta` holds of mark and revision.
    state: Option<(Mark, i64)>,
    /// An error was returned: no use going on.
    failed: bool,
}

impl SnapshotReceiver {
    /// Receives into `install`, or only checks the stream.
    pub fn new(install: Option<Box<dyn Install>>) -> SnapshotReceiver {
        let families = u8::try_from(FAMILIES.len()).expect("a handful of families");
        SnapshotReceiver { install, reader: Reader::new(families), state: None, failed: false }
    }

    /// The staged content, after a successful `finish`.
    pub(super) fn install(&mut self) -> Result<&mut dyn Install, MachineError> {
        match &mut self.install {
            Some(install) => Ok(&mut **install),
            None => Err(bad("nothing is staged")),
        }
    }

    fn take_in(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(bad("it was refused before"));
        }
        self.reader.feed(bytes);
        while let Some(pair) = self.reader.pair().map_err(|why| bad(&why.0))? {
            let family = FamilyId(pair.family);
            if family == META && pair.key == layout::STATE {
                self.state = Some(layout::read_state(pair.value)?);
            }
            if let Some(install) = &mut self.install {
                install.put(family, pair.key, pair.value)?;
            }
        }
        self.failed = false;
        Ok(())
    }

    fn complete(&mut self) -> Result<Content, MachineError> {
        if self.failed {
            return Err(bad("it was refused before"));
        }
        let content = self.reader.finish().map_err(|why| bad(&why.0))?;
        let Header { raft_index: index, raft_term: term, hash, revision, since, .. } = content.header;
        if let Some(since) = since {
            return Err(bad(&format!("it holds changes since revision {since} alone, and no state to make them to")));
        }
        if self.state.unwrap_or((Mark::default(), 1)) != (Mark { index, term, hash }, revision) {
            return Err(bad("its header contradicts its content"));
        }
        if let Some(install) = &mut self.install {
            install.finish()?;
        }
        Ok(content)
    }
}

impl SnapshotSink for SnapshotReceiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        self.take_in(&chunk)
    }

    fn finish(&mut self) -> Result<Mark, MachineError> {
        let Header { raft_index: index, raft_term: term, hash, .. } = self.complete()?.header;
        Ok(Mark { index, term, hash })
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Checks a stream from end to end without keeping anything of it.
pub fn inspect(from: impl Read) -> Result<Content, MachineError> {
    pour(from, &mut SnapshotReceiver::new(None))
}

/// Replaces an engine's content by a stream's, after checking all of it. The engine must not be in use by a machine;
/// one is opened on it afterwards and founded anew, if the group that the snapshot was taken from is not to go on.
pub fn restore(engine: &dyn Engine, from: impl Read) -> Result<Content, MachineError> {
    let mut receiver = SnapshotReceiver::new(Some(engine.begin_install()?));
    let content = pour(from, &mut receiver)?;
    engine.commit_install(receiver.install()?)?;
    Ok(content)
}

fn pour(mut from: impl Read, receiver: &mut SnapshotReceiver) -> Result<Content, MachineError> {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let length = from.read(&mut buffer).map_err(|error| bad(&format!("it cannot be read: {error}")))?;
        if length == 0 {
            return receiver.complete();
        }
        receiver.take_in(&buffer[..length])?;
    }
}

fn bad(why: &str) -> MachineError {
    MachineError::BadSnapshot(why.into())
}
