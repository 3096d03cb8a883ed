//! The state machine: what a group's committed entries are applied to.
//!
//! `apply` takes entries in order, without gaps, and writes data and [`Mark`] in one engine batch (not synced: the
//! log is the durability). It never fails on user input, asks no clock and draws no number: equal entries give
//! equal states on every replica, whatever the batches they came in. An error means that the store cannot be
//! trusted, and stops the node.

use base::PeerId;
use bytes::Bytes;

use crate::entry::Commands;

/// Where a state machine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The last applied entry's index and term.
    pub index: u64,
    pub term: u64,
    /// The rolling hash of all effects up to there ([`base::hash::roll`], one step per entry).
    pub hash: u64,
}

impl Mark {
    pub const BYTES: usize = 24;

    pub fn encode(&self) -> [u8; Mark::BYTES] {
        let mut out = [0; Mark::BYTES];
        out[..8].copy_from_slice(&self.index.to_le_bytes());
        out[8..16].copy_from_slice(&self.term.to_le_bytes());
        out[16..].copy_from_slice(&self.hash.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Mark> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if bytes.len() != Mark::BYTES {
            return None;
        }
        Some(Mark { index: number(0)?, term: number(8)?, hash: number(16)? })
    }
}

/// Rolling hashes are reported and compared at multiples of this index.
pub const HASH_EVERY: u64 = 256;

/// What is hashed, and how. Hashes of different versions are not compared: nobody is given up for an upgrade.
pub const HASH_VERSION: u8 = 1;

/// A committed entry.
#[derive(Clone, Debug)]
pub struct Entry {
    pub index: u64,
    pub term: u64,
    pub payload: Payload,
}

#[derive(Clone, Debug)]
pub enum Payload {
    /// Nothing to do but to move the mark (a leader's first entry).
    Nothing,
    /// Commands, to be applied one after the other.
    Commands(Commands),
    /// The membership after this entry, encoded; to be kept beside the mark. `done` is the proposal that asked
    /// for it, to be answered with these bytes.
    Membership { membership: Bytes, done: Option<(PeerId, u64)> },
}

/// What a command came to. `code` zero is success and `body` the response; any other code is an error of the
/// state machine's own numbering.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub code: u32,
    pub body: Bytes,
}

/// What one call of `apply` came to.
#[derive(Debug, Default)]
pub struct Applied {
    /// Outcomes of what the local peer proposed, by `seq`: of its commands, and of its membership changes, whose
    /// outcome is the encoded membership.
    pub outcomes: Vec<(u64, Outcome)>,
    /// (index, hash) at each multiple of [`HASH_EVERY`] passed.
    pub hashes: Vec<(u64, u64)>,
}

pub trait StateMachine: Send {
    fn mark(&self) -> Mark;

    /// The encoded membership last kept; empty when there never was one.
    fn membership(&self) -> Bytes;

    /// The group is founded: keeps the membership and the mark durably before anything is applied.
    fn found(&mut self, mark: Mark, membership: Bytes) -> Result<(), MachineError>;

    /// Applies entries; `applied.outcomes` gets only what `local` proposed. After [`storage::EngineError::Held`] all is as
    /// before: the entries wait for what happens in another group of this node, and come again.
    fn apply(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) -> Result<(), MachineError>;

    /// Whether the state is what the entries say, as far as the machine itself can know. If not, nothing is answered from it
    /// and nothing handed on.
    fn is_sound(&self) -> bool {
        true
    }

    /// Whether `apply` may have to wait for the disk. To be asked by who must not wait.
    fn may_wait(&self) -> bool {
        false
    }

    /// Whether [`StateMachine::tend`] ever does anything: where there are many machines, those that have no work of their own
    /// are not asked for it again and again.
    fn tends(&self) -> bool {
        false
    }

    /// Does a little of what no command asks for and what changes nothing that can be read, such as giving space back;
    /// whether there is more to do. To be called again and again between the other work.
    fn tend(&mut self) -> Result<bool, MachineError> {
        Ok(false)
    }

    /// The index up to which the state survives a power cut.
    fn durable(&self) -> Result<u64, MachineError>;

    /// A way to make everything applied so far durable, callable from another thread while `apply` goes on.
    fn flusher(&self) -> Box<dyn Fn() -> Result<(), MachineError> + Send>;

    /// A consistent copy of the state as of `mark()`, to be streamed while `apply` goes on.
    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError>;

    /// Stages a snapshot from another replica, callable from another thread while `apply` goes on.
    fn receiver(&self) -> Result<Box<dyn SnapshotSink>, MachineError>;

    /// Puts a staged snapshot in place, crash-safely; afterwards `mark` and `membership` are the snapshot's. After
    /// [`storage::EngineError::Held`] all is as before, and the same may be tried again; so it may after
    /// [`storage::EngineError::NoSpace`]. It may take long, and other machines go on meanwhile.
    fn install(&mut self, staged: &mut dyn SnapshotSink) -> Result<(), MachineError>;
}

/// A copy of the state, in chunks of bounded size whose form is the state machine's own business.
pub trait SnapshotSource: Send {
    fn mark(&self) -> Mark;
    fn membership(&self) -> Bytes;
    /// An estimate, for progress.
    fn bytes_total(&self) -> u64;
    /// The next chunk; `None` when all were given.
    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError>;
}

pub trait SnapshotSink: Send {
    /// Takes the next chunk. An error means that the stream is bad or the disk is: the sink is of no use any more.
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError>;
    /// Checks that the stream is complete and makes it durable.
    fn finish(&mut self) -> Result<Mark, MachineError>;
    /// For the machine that made it.
    fn as_any(&mut self) -> &mut dyn std::any::Any;
}

/// The state machine cannot go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Engine(#[from] storage::EngineError),
    /// Bytes that our own floor wrote make no sense.
    #[error("damaged: {0}")]
    Damaged(String),
    /// A later version of the program wrote it. Nothing is wrong with it.
    #[error("{0}")]
    TooNew(String),
    /// A received snapshot is incomplete or its checksums do not fit.
    #[error("bad snapshot: {0}")]
    BadSnapshot(String),
}
