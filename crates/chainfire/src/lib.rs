//! Floor 5: Chainfire, a replicated key-value store that speaks the etcd v3 API.
//!
//! | room | its subject |
//! |---|---|
//! | [`machine`] | the state machine: what committed commands do to keys, history and leases |
//! | [`read`] | what readers see of it: ranges, counts, history, checksums |
//! | [`event`], [`watch`] | what changed, and who is told |
//! | [`lessor`] | the leader's clock of leases |
//! | [`command`], [`error`] | what lies in the log; what clients are told when it does not work out |
//! | [`api`] | the RPCs and HTTP pages |
//! | [`store`], [`housekeeping`], [`server`] | the parts put together; what goes on by itself; the process |
//! | [`progress`] | lines that say how replication goes |
//! | [`live`], [`reload`] | settings that change while the node runs; SIGHUP |
//! | [`space`] | a disk that is full |
//! | [`corruption`] | replicas compared |
//! | [`restore`] | a saved snapshot becomes what a new cluster begins with |
//! | [`offline`] | what is done to the folder of a stopped node: check, repair, recover |
//! | [`config`], [`etcd_flags`], [`metrics`] | how it is told what to do, and tells how it goes |
//!
//! The life of a put and of a get are told in [`api`]; consensus is one floor down, in the `consensus` crate, and reaches
//! this one through [`consensus::StateMachine`] and [`node::GroupHandle`].
//!
//! `machine`, `read`, `watch` and `lessor` take time as an argument and draw no numbers: the simulator runs them as they are.

pub mod api;
pub mod command;
pub mod config;
pub mod corruption;
pub mod error;
pub mod etcd_flags;
pub mod event;
pub mod housekeeping;
pub mod lessor;
pub mod live;
pub mod machine;
pub mod metrics;
#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
pub mod offline;
pub mod progress;
pub mod read;
pub mod reload;
pub mod restore;
pub mod server;
pub mod space;
pub mod store;
pub mod watch;
