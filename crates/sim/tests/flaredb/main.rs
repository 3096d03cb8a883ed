//! FlareDB as processes: a placement driver, stores, and clients through the public API.

mod cluster;
#[path = "../common/machine.rs"]
mod machine;
mod merges;
mod placement;
mod raw;
mod splits;
mod stores;
