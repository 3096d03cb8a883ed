//! Compiles `proto/*.proto` into Rust messages, without protoc, and keeps the descriptors beside them.

use std::{env, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 9] = [
    "mvccpb.proto",
    "authpb.proto",
    "rpc.proto",
    "v3lock.proto",
    "v3election.proto",
    "health.proto",
    "admin.proto",
    "placement.proto",
    "flaredb.proto",
];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=proto");
    let mut set = protox::compile(FILES, ["proto"]).unwrap_or_else(|e| panic!("proto/*.proto: {e:?}"));
    fs::write(out.join("descriptors.bin"), set.encode_to_vec()).expect("OUT_DIR is writable");

    // prost would split the plural of "URL" in two ("peer_ur_ls"). Only Rust sees these names.
    for message in set.file.iter_mut().flat_map(|file| &mut file.message_type) {
        for field in &mut message.field {
            if let Some(stem) = field.name().strip_suffix("URLs") {
                field.name = Some(format!("{stem}_urls"));
            }
        }
    }
    let mut config = prost_build::Config::new();
    // Maps have an order, so that equal messages have equal bytes: replicas compare them.
    config.bytes(["."]).btree_map(["."]).include_file("proto.rs");
    config.compile_fds(set).expect("prost-build accepts descriptors made by protox");
}
