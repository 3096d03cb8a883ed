//! Messages of FlareDB: what clients, stores and the placement driver say to one another, what lies in the logs of regions and
//! of the placement driver, and what that keeps. What can be decoded comes back the same after encoding. (What is made of them
//! is tried beside the crates that do it, which stand on RocksDB.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::{flaredb as pb, placement as pd};

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 23 {
        0 => again::<pb::Command>(bytes),
        1 => again::<pb::Outcome>(bytes),
        2 => again::<pb::GetRequest>(bytes),
        3 => again::<pb::PutRequest>(bytes),
        4 => again::<pb::BatchRequest>(bytes),
        5 => again::<pb::ScanRequest>(bytes),
        6 => again::<pb::ScanResponse>(bytes),
        7 => again::<pb::CompareAndSwapRequest>(bytes),
        8 => again::<pd::HeartbeatRequest>(bytes),
        9 => again::<pd::HeartbeatResponse>(bytes),
        10 => again::<pd::RegisterRequest>(bytes),
        11 => again::<pd::RegisterResponse>(bytes),
        12 => again::<pb::FrozenRequest>(bytes),
        13 => again::<pb::FrozenResponse>(bytes),
        14 => again::<pb::VerdictRequest>(bytes),
        15 => again::<pb::VerdictResponse>(bytes),
        16 => again::<pb::GoneRequest>(bytes),
        17 => again::<pb::GoneResponse>(bytes),
        18 => again::<pd::Command>(bytes),
        19 => again::<pd::Store>(bytes),
        20 => again::<pd::Region>(bytes),
        21 => again::<pd::Founding>(bytes),
        _ => again::<pd::GetRegionResponse>(bytes),
    }
});

/// By their bytes: a number may be none.
fn again<M: Message + Default>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        let encoded = message.encode_to_vec();
        let again = M::decode(&encoded[..]).expect("what was encoded can be decoded");
        assert!(again.encode_to_vec() == encoded);
    }
}
