//! FlareDB as processes: a placement driver, stores, and clients through the public API.

mod any_order;
mod cluster;
mod commands;
// Not all of it is needed here.
#[allow(dead_code)]
#[path = "../processes/disks.rs"]
mod disks;
mod full_disk;
mod labels;
mod leaders;
mod lost;
#[path = "../common/machine.rs"]
mod machine;
mod members;
mod merges;
mod moves;
mod operations;
#[path = "../common/pki.rs"]
mod pki;
mod placement;
mod raw;
mod receiving;
mod scrubbing;
mod secure;
mod service;
mod splits;
mod stalled_disk;
mod standalone;
mod stores;
// Not all of it is needed here.
#[allow(dead_code)]
#[path = "../processes/tell.rs"]
mod tell;
