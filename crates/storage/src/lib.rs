//! Floor 1: what lies on disk. Two traits, and for each a production store, an in-memory twin with faults,
//! and one conformance suite that both must pass.
//!
//! * [`LogStore`] ([`log`]): the Raft logs of all groups of a node in one segmented file set. Its `write` is
//!   the house's only fsync on the way of a write.
//! * [`Engine`] ([`engine`]): the state machines' ordered key space, in column families. Writes are atomic
//!   but not synced, because the log is the durability; `flush` makes everything so far durable, and the log
//!   may be cut only below what was flushed.
//!
//! The twins ([`memlog`], [`memengine`]) keep a live and a durable image; `crash` throws the live one away and
//! keeps of the unsynced rest only what a power cut might have left. The simulator runs the production code of
//! the floors above on them.
//!
//! Absences: nothing here spawns a task or reads a clock. RocksDB runs its own background threads.

pub mod batch;
pub mod engine;
pub mod log;
pub mod memengine;
pub mod memlog;
#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
#[cfg(feature = "rocks")]
pub mod rocks;
pub mod seglog;

pub use batch::WriteBatch;
pub use engine::{Cursor, Engine, EngineError, FamilyId, FamilySpec, Install, Tables, View};
pub use log::{GroupWrite, HardState, LogBatch, LogEntry, LogError, LogState, LogStore};
