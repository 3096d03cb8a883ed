//! What changed, as the state machine tells it to those who watch: an [`Event`] per key, gathered per revision.
//!
//! Life of an event: the machine applies a batch of committed entries, writes them to the engine in one go, and then
//! hands the changes of the whole batch to its [`EventSink`] (the watch hub). History read back from the engine for a
//! late watcher has the same shape, so both ways feed the same encoder.
//!
//! Invariants
//! 1. All changes of one revision stand in one [`RevisionEvents`]; nothing ever splits it but a fragmenting watcher's
//!    encoder.
//! 2. Batches are published in apply order, revisions strictly ascend, and a revision that changed no key is absent.
//! 3. `kv` and `prev` are wire bytes (`mvccpb.KeyValue`), shared and never copied on their way to a watcher.

use std::sync::Arc;

use bytes::Bytes;

/// Whether a key was written or removed. The numbers are those of `mvccpb.Event.EventType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Put = 0,
    Delete = 1,
}

/// One key's change at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// The user key, undecorated.
    pub key: Bytes,
    /// The encoded `mvccpb.KeyValue`; of a delete only `key` and `mod_revision` are set.
    pub kv: Bytes,
    /// The encoded `mvccpb.KeyValue` that this change replaced, if there was one.
    pub prev: Option<Bytes>,
}

impl Event {
    /// Bytes held by this event, for bounding buffers.
    pub fn bytes(&self) -> usize {
        self.key.len() + self.kv.len() + self.prev.as_ref().map_or(0, Bytes::len) + size_of::<Event>()
    }
}

/// All changes of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevisionEvents {
    pub revision: i64,
    /// In the order in which the transaction made them.
    pub events: Vec<Event>,
}

impl RevisionEvents {
    /// Bytes held by this revision, for bounding buffers.
    pub fn bytes(&self) -> usize {
        size_of::<RevisionEvents>() + self.events.iter().map(Event::bytes).sum::<usize>()
    }
}

/// What an applied command did to a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseChange {
    Granted {
        id: i64,
        ttl_s: i64,
    },
    Revoked {
        id: i64,
    },
    /// The replicated remaining TTL is this; zero: the full one.
    Checkpointed {
        id: i64,
        remaining_s: i64,
    },
}

/// Where the machine tells of applied changes. Called by the applier, in order, after the engine write of a batch of
/// entries; an implementation must return quickly, since the next batch waits for it.
pub trait EventSink: Send + Sync {
    /// The changes of one applied batch; `revision` is the store's revision after it.
    fn publish(&self, batch: Arc<Vec<RevisionEvents>>, revision: i64);

    /// History below `revision` is gone; a watcher that still needs it must be told.
    fn compacted(&self, revision: i64);

    /// What the batch did to leases, in apply order; not called when it did nothing.
    fn leases(&self, _changes: &[LeaseChange]) {}

    /// A snapshot was installed: what happened up to `revision` was never published and must be read from history.
    fn reset(&self, revision: i64);
}
