//! Floor 0: the messages that Chainfire, FlareDB and its placement driver speak, generated from `proto/*.proto`.
//!
//! The wire is that of etcd 3.7 (packages, names, numbers and types are theirs and must not move: clients in every
//! language have them compiled in) plus one admin service of our own. `bytes` fields are [`bytes::Bytes`], so that
//! decoding a message which itself lies in a `Bytes` shares its memory instead of copying keys and values.
//!
//! Beside the messages, [`snapshot`]: the bytes of a saved snapshot, which the server writes and clients check; [`content`]:
//! whether the pairs in it make sense; [`manifest`]: what a backup archive says of itself.
//!
//! Left out: service stubs. They need an RPC library, which lives on floor 4 (`rpc`); [`DESCRIPTORS`] is what they are
//! made from.

pub mod content;
pub mod manifest;
pub mod snapshot;

#[allow(clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/proto.rs"));
}

/// Users, roles, permissions.
pub use generated::authpb;
/// Our own admin service (`centra.chainfire.v1`).
pub use generated::centra::chainfire::v1 as admin;
/// FlareDB's raw keys (`centra.flaredb.v1`).
pub use generated::centra::flaredb::v1 as flaredb;
/// What stores and clients ask of a placement driver (`centra.placement.v1`).
pub use generated::centra::placement::v1 as placement;
/// etcd's API: KV, Watch, Lease, Cluster, Maintenance, Auth.
pub use generated::etcdserverpb;
/// gRPC's health check (`grpc.health.v1`).
pub use generated::grpc::health::v1 as health;
/// Key-values and events.
pub use generated::mvccpb;
/// Elections among clients.
pub use generated::v3electionpb;
/// Locks.
pub use generated::v3lockpb;

/// All of the above as an encoded `google.protobuf.FileDescriptorSet`, services included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
