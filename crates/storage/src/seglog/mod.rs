//! The segmented log: the Raft logs of all groups of a node in one small set of files, one write and one sync per
//! batch.
//!
//! ```text
//! raft/lock                             held as long as the log is open
//! raft/mark                             how far the log was synced, and its salt       (mark)
//! raft/segment-0000000000000007.raft    state │ batch │ batch │ batch │ unused         (record, segments)
//! raft/segment-0000000000000008.raft    state │ batch │ batch │ zeroes
//! raft/spare-0000000000000003.raft      an old segment, to be used again
//! ```
//!
//! The life of a batch. `write` encodes it into one record, checksummed, with the next sequence number (`record`). It
//! goes to the end of the segment in use, over zeroes or over a file's earlier life (`segments`); one sync later it is
//! durable, the mark notes its number (`mark`), the index learns where its entries lie (`index`), and `write`
//! returns. Readers find entries by the index and check each again (`store`). When all entries in the oldest segment
//! have been compacted away, overwritten, or brought forward, the file becomes a spare. An opening follows the
//! records from the oldest segment on and rebuilds the index (`recovery`). Between openings the same chain is followed now
//! and then, to see whether it still holds (`scrub`).
//!
//! Invariants:
//! 1. A record is written only after the record before it was synced. So a record vouches for all before it, and
//!    whatever is unreadable in front of one is damage.
//! 2. Each segment begins with a state record: hard state and extent of every group. So an older segment is needed for
//!    the entries in it alone, and can go with them.
//! 3. Segments go oldest first, and only when no entry in them is kept.
//! 4. Memory follows the disk: the index changes after the sync, by the same function that a replay uses.
//! 5. After a failed sync nothing is written any more.
//!
//! The one window: after a power cut the mark may lie behind the last record. If that very record is damaged as well,
//! the damage passes for a torn tail. [`Recovery`] tells that an opening went through the window.
//!
//! Left out, and why: compression (entries are small, and the consensus floor packs them), a cache of recent entries
//! (the consensus floor has one), a thread (`idle` does the work ahead), io_uring and direct writes (a sync over
//! written ground is one device write already).

pub mod disk;
mod index;
mod mark;
pub mod record;
mod recovery;
mod scrub;
mod segments;
mod store;
mod verify;

pub use recovery::Recovery;
pub use scrub::LogScrub;
pub use store::{SegLog, SegLogOptions};
pub use verify::{LogCheck, verify};
