//! Floor 2: consensus. One [`Host`] holds all Raft groups of a node; Chainfire runs it with one group, a FlareDB
//! store with thousands.
//!
//! # The life of a proposal
//! ```text
//!  client ── Propose ─▶ turn ──▶ waits ──▶ leader here?  ── yes ─▶ packed with its neighbours into one entry
//!                                             │ no                          │
//!                                             └─ Forward{term} to the leader ┘
//!            Persist (one write, one fsync, all groups) ◀── turn ──▶ Send to followers, before our own fsync
//!            Persisted ─▶ turn ◀─ acknowledgements      ──▶ Committed{first, last}
//!            applier reads the log, applies, answers the clients whose commands carry this peer's origin
//! ```
//! The answer is given where the question was asked: the origin's own applier meets the command in the log. A command
//! that provably was lost with an old leader is sent again to the next one, unnoticed ([`proposals`]).
//!
//! # Rooms
//! [`api`] the seam: inputs, outputs, bounds · [`host`] the turn over all groups · `group` one group's state and
//! inputs · `ready` what follows in the same turn: order of messages, disk and commits · `change` membership and
//! leadership · `commits` how followers learn what is committed · `applying` when it goes to the state machine ·
//! `backoff` who took no snapshot · `hashes` replicas compared, and a quarantine · `proposals`, `reads` who waits for what, and the leader's
//! lease · [`log`] the log as raft sees it · `check` raft messages before they are believed · `disk` a disk that stands
//! still, or is full · `sleep`, `liveness` groups that have nothing to do, and nodes that vouch for one another ·
//! [`entry`], [`membership`], [`wire`] what is written and said · [`machine`] what is applied to ·
//! [`timing`] patience · [`recover`] a replica alone, offline.
//!
//! # Invariants
//! 1. Nothing is acknowledged, voted or answered before the persist that it rests on is done (`ready`).
//! 2. A lease starts when a round that a quorum acknowledged was *sent*, and is shorter than any voter's patience;
//!    a voter that heard a leader refuses votes for that long, whatever raft thinks (`group`).
//! 3. A read context is used once (`reads`).
//! 4. One membership change at a time, learner first (`change`).
//! 5. A group that sleeps has no lease, and answers nothing before it woke (`sleep`).
//! 6. A group stands still while a snapshot is put in place; state first, then the log (`ready`).
//!
//! # Left out, and why
//! No clock and no randomness: time comes with the turn, election timeouts are a pure function of (seed, peer, term).
//! No I/O: effects are outputs. The raft crate's lease reads (they check no clock), its forwarding of proposals and reads
//! (it cannot tell what became of them) and its conf change v1 are not used.

pub mod api;
mod applying;
mod backoff;
mod change;
mod check;
mod commits;
mod disk;
pub mod entry;
mod group;
mod hashes;
pub mod host;
mod liveness;
pub mod log;
pub mod machine;
pub mod membership;
mod proposals;
mod reads;
mod ready;
pub mod recover;
mod sleep;
pub mod timing;
mod totals;
pub mod wire;

pub use api::{CreateGroup, Event, GroupStatus, HostConfig, Input, LeaderLease, Output, Refusal, Role};
pub use host::Host;
pub use log::LogReader;
pub use machine::{
    Applied, Entry, HASH_EVERY, MachineError, Mark, Outcome, Payload, SnapshotSink, SnapshotSource, StateMachine,
};
pub use membership::{Member, MemberRole, Membership, MembershipChange};
pub use wire::Message;
