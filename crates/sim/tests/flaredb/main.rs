//! FlareDB as processes: a placement driver, stores, and clients through the public API.

mod cluster;
mod lost;
#[path = "../common/machine.rs"]
mod machine;
mod merges;
mod operations;
mod placement;
mod raw;
mod splits;
mod stores;
