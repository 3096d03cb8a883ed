//! Floor 5: FlareDB's placement driver (PD). It knows where every region's replicas are, and says where they ought to be.
//!
//! # The life of a decision
//! ```text
//!  stores, region leaders ── reports ──▶ View (observed)          Policy (wanted)
//!                                           └──────────┬──────────────┘
//!                                              plan(view, policy, now, round)      a pure function
//!                                                      │
//!                                          Operators (planned): steps, reason, stores passed over
//!                                                      │ the caller gives each an id and begins it in the view
//!        region leader ◀── the next step, with every answer to its report ──┘
//!             └── reports the region as it is: the view sees the step done, or the epoch moved on
//! ```
//! Nobody else moves replicas. What is planned never rests on what was planned before: a PD that starts anew sees the same
//! regions and comes to the same conclusions, and picks up what was left half done.
//!
//! # Rooms
//! [`model`] the words: regions' epochs and peers, operators and steps · [`policy`] what is wanted, as PD's users know the
//! settings · [`view`] what is observed, with the indexes that a round needs · [`mod@plan`] the round: filters, checkers,
//! schedulers · [`explain`] the same filters and checkers, asked by people: why, why not, and what if · [`scale`] a synthetic
//! cluster that carries operators out, for figures and for tests.
//!
//! Around these: [`machine`] what the members agree on, with [`snapshot`] · [`term`] what the leading one has heard, [`leader`] its
//! work · [`counters`] what was counted, with [`metrics`], and [`refusals`] · [`api`] gRPC and HTTP · [`config`], [`server`] the
//! program, and [`recover`], which mends a stopped member.
//!
//! # Invariants
//! 1. The same view, policy, time and round number give the same plan: no clock, no randomness, no order of a hash table.
//! 2. No step of a plan leaves a region with fewer healthy voters than a majority of its voters, and none puts two replicas
//!    of a region into one store (`plan::safety`).
//! 3. One operator per region, planned for one epoch; a region that was not heard of lately is left alone (`plan::round`).
//! 4. A replica joins as a learner, and votes when it has caught up.
//! 5. Every move of a balancing scheduler lowers the higher of the two scores that it touches, below where it was and not
//!    below the other: a cluster at rest comes to rest.
//! 6. Planning and explaining ask the same filters (`plan::filter`), so that they cannot disagree.
//!
//! # Left out, and why
//! No clock, no I/O and no ids: time is an argument, ids of operators, peers and regions are drawn by the caller, which
//! replicates them. Unsafe recovery of a region that has lost its quorum is no plan: people decide it.

pub mod api;
pub mod config;
#[cfg(test)]
mod config_reference;
pub mod counters;
#[cfg(test)]
mod decoders;
pub mod explain;
pub mod leader;
pub mod machine;
pub mod metrics;
pub mod model;
#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
pub mod plan;
pub mod policy;
pub mod recover;
pub mod refusals;
pub mod scale;
pub mod server;
pub mod snapshot;
mod strays;
pub mod term;
pub mod view;

pub use model::{Cause, Epoch, Key, Operator, Peer, Rejected, Step};
pub use plan::{Plan, plan};
pub use policy::{Policy, PolicyError, Scheduler};
pub use view::{DownPeer, Heard, Region, RegionReport, Store, StoreReport, StoreState, View};
