//! FlareDB's store: regions of an ordered key space, each a Raft group, on a node with many groups.
//!
//! ```text
//!  clients ─▶ api ─┬─ a region here covers the key ─▶ node (propose, read) ─▶ region::RegionMachine ─▶ engine
//!                  └─ none does ─▶ rpc::client::Router ─▶ another store
//!  placement driver ◀─ heartbeats, steps ─▶ supervisor ─▶ store: regions come and go, members change
//! ```
//!
//! | room | its subject |
//! |---|---|
//! | [`api`] | what clients get |
//! | [`region`] | a region: its state machine, its records, its snapshot |
//! | [`store`] | which regions are here, and how they come and go |
//! | [`load`] | what the regions carry, and which are to be cut for it |
//! | [`merging`], [`merge_stats`] | how a region's leader brings a merge to its end; how many, and what came of them |
//! | [`supervisor`], [`pd`] | what is told to the placement driver and done for it |
//! | [`survey`] | one look at all regions: what is new to the placement driver, what is to be looked after |
//! | [`alone`] | what a replica does that hears no leader |
//! | [`replication`] | stores that do not take part in what is led here, as lines of the log |
//! | [`heartbeat`] | a heartbeat in as many messages as it needs |
//! | [`known`] | where the other stores are, kept for a start without a placement driver |
//! | [`config`], [`server`] | what it is told, and all of it put together |
//! | [`heal`] | what becomes of a damaged store |
//! | [`blocking`], [`space`] | what waits for the disk, and what becomes of a full one |
//! | [`ready`] | when it is ready, for the service manager |
//! | [`metrics`] | its numbers |
//!
//! Left out so far: time series, which will be another kind of content of a region.

pub mod alone;
pub mod api;
pub mod blocking;
pub mod config;
#[cfg(test)]
mod config_reference;
pub mod heal;
pub mod heartbeat;
pub mod known;
pub mod load;
pub mod merge_stats;
pub mod merging;
pub mod metrics;
#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
pub mod pd;
pub mod ready;
pub mod region;
pub mod replication;
pub mod server;
pub mod space;
pub mod store;
pub mod supervisor;
pub mod survey;
