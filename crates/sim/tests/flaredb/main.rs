//! FlareDB as processes: a placement driver, stores, and clients through the public API.

mod cluster;
mod lost;
#[path = "../common/machine.rs"]
mod machine;
mod merges;
mod operations;
#[path = "../common/pki.rs"]
mod pki;
mod placement;
mod raw;
mod secure;
mod service;
mod splits;
mod stores;
