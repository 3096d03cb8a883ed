//! Makes gRPC client stubs for every service of the `proto` crate; the messages stay there.

use prost::Message as _;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let set = prost_types::FileDescriptorSet::decode(proto::DESCRIPTORS).expect("the proto crate wrote them");
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(true)
        .extern_path(".mvccpb", "::proto::mvccpb")
        .extern_path(".authpb", "::proto::authpb")
        .extern_path(".etcdserverpb", "::proto::etcdserverpb")
        .extern_path(".v3lockpb", "::proto::v3lockpb")
        .extern_path(".v3electionpb", "::proto::v3electionpb")
        .extern_path(".grpc.health.v1", "::proto::health")
        .extern_path(".centra.chainfire.v1", "::proto::admin")
        .extern_path(".centra.placement.v1", "::proto::placement")
        .extern_path(".centra.flaredb.v1", "::proto::flaredb")
        .include_file("stubs.rs")
        .compile_fds(set)
        .expect("descriptors made by protox");
}
