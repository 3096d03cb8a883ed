//! Messages of clients: what can be decoded comes back the same after encoding; and keys in their ordered form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::etcdserverpb as pb;

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    match kind % 9 {
        0 => again::<pb::RangeRequest>(bytes),
        1 => again::<pb::PutRequest>(bytes),
        2 => again::<pb::DeleteRangeRequest>(bytes),
        3 => again::<pb::TxnRequest>(bytes),
        4 => again::<pb::CompactionRequest>(bytes),
        5 => again::<pb::WatchRequest>(bytes),
        6 => again::<pb::LeaseGrantRequest>(bytes),
        7 => again::<proto::mvccpb::KeyValue>(bytes),
        _ => ordered(bytes),
    }
});

fn again<M: Message + Default + PartialEq>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert!(M::decode(&message.encode_to_vec()[..]).as_ref() == Ok(&message));
    }
}

fn ordered(bytes: &[u8]) {
    if let Some((raw, rest)) = base::codec::take_ordered(bytes) {
        let mut encoded = Vec::new();
        base::codec::put_ordered(&mut encoded, &raw);
        assert_eq!([&encoded[..], rest].concat(), bytes);
    }
}
