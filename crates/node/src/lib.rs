//! Floor 4: the shell around a [`consensus::Host`]. It owns what the floors below must not touch: the clock, threads,
//! sockets, the data folder and the process. Chainfire runs one group in it, a FlareDB store will run thousands.
//!
//! # The threads of a node
//! ```text
//!  RPC threads ──propose/read──▶ inbox ─▶ DRIVER: host.turn ─┬─ Persist ──▶ LOG WRITER: one write, one fsync ─▶ inbox
//!  peers' reader threads ─message─▶ ┘                        ├─ Send ─────▶ peer links (written by the driver itself
//!                                                            │              while the socket takes it)
//!                                                            └─ Committed ▶ APPLIER: state machine ─▶ waiting clients
//! ```
//! Each arrow is a batch: whoever wakes takes all that waits. Between a put and its answer lie four hops.
//!
//! # Rooms
//! [`driver`] and [`applier`] the three threads · [`handle`] what floor 5 holds in its hands · [`group`] what the threads share
//! of each group, with [`waiters`], who waits for what ·
//! [`ground`] what programs stand on, as traits · [`tls`] certificates · [`gossip`] who is alive, on a thread and a port of its own · [`transport`] frames, links, listener,
//! calls, snapshot streams · [`identity`] who a data folder is · [`founding`] how a cluster begins and how a member comes
//! (back) to it · [`refused`] connections that were not taken, counted · [`roll`] who came and went, in words · [`outcast`] how one finds that it was left out · [`heal`] what
//! becomes of a damaged member, with [`scrub`], which finds damage, [`standin`], [`roster`] and [`rebuilds`] · [`seed`] a state to begin with ·
//! [`recovery`] a stopped node's folder mended · [`room`] what every node has · [`node`] all of it put together · [`many`] a
//! node with many groups · [`stages`] where
//! time went · [`lag`] followers that are behind · [`service`] and [`announce`] what the service manager is told ·
//! [`stopping`] who may go, and when · [`restart`] the process anew · [`program`] how a program begins and ends, with
//! [`options`], what all are told in the same words, [`reload`], the same while it runs, and [`start_error`], why it did
//! not · [`metrics`] what every page of metrics is made of · [`slow`] lines on slow requests · [`storage_log`] what disk and
//! engine say of themselves · [`clock`], [`logging`].
//!
//! # Invariants
//! 1. An fsync error stops the process; nothing is retried on a bad disk. What is damaged is never served, and is
//!    rebuilt from the others ([`heal`]).
//! 2. A peer id belongs to one incarnation of one data folder, for ever ([`identity`]).
//! 3. Every queue has a bound; what does not fit is refused or (between peers) dropped, which Raft bears.

pub mod announce;
pub(crate) mod applier;
pub mod clock;
pub mod disk;
pub(crate) mod driver;
pub mod founding;
pub mod gossip;
pub mod ground;
pub(crate) mod group;
pub mod handle;
pub mod heal;
pub mod identity;
pub(crate) mod inbox;
pub(crate) mod lag;
pub mod logging;
pub mod many;
pub mod metrics;
#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
pub mod node;
pub mod options;
pub(crate) mod outcast;
pub(crate) mod pace;
pub mod program;
pub mod rebuilds;
pub mod recovery;
pub mod refused;
pub mod reload;
pub mod restart;
pub(crate) mod roll;
pub(crate) mod room;
pub mod roster;
pub mod scrub;
pub mod seed;
pub mod service;
mod slots;
pub mod slow;
pub mod stages;
pub(crate) mod standin;
pub mod start_error;
pub mod stopping;
pub mod storage_log;
pub mod tls;
pub mod transport;
pub mod waiters;

pub use driver::{DriverStats, STALL};
pub use founding::FIRST_METHOD;
pub use gossip::GossipOptions;
pub use ground::{Controls, Ground, Later, Replicated};
pub use handle::{GroupHandle, ReadGrant};
pub use identity::{Folder, Identity, IdentityError};
pub use node::{InitialMember, Node, NodeConfig, StartError};
