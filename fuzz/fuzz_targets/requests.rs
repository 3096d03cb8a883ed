//! Messages of clients, each that the API decodes: what can be decoded comes back the same after encoding; and keys in their
//! ordered form.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use proto::admin;
use proto::etcdserverpb as pb;

const KINDS: &[fn(&[u8])] = &[
    again::<pb::RangeRequest>,
    again::<pb::PutRequest>,
    again::<pb::DeleteRangeRequest>,
    again::<pb::TxnRequest>,
    again::<pb::CompactionRequest>,
    again::<pb::WatchRequest>,
    again::<pb::LeaseGrantRequest>,
    again::<proto::mvccpb::KeyValue>,
    ordered,
    again::<pb::LeaseRevokeRequest>,
    again::<pb::LeaseKeepAliveRequest>,
    again::<pb::LeaseTimeToLiveRequest>,
    again::<pb::MemberAddRequest>,
    again::<pb::MemberRemoveRequest>,
    again::<pb::MemberUpdateRequest>,
    again::<pb::MemberListRequest>,
    again::<pb::MemberPromoteRequest>,
    again::<pb::AlarmRequest>,
    again::<pb::HashKvRequest>,
    again::<pb::MoveLeaderRequest>,
    again::<pb::DowngradeRequest>,
    again::<admin::MemberAddRequest>,
    again::<admin::MemberPromoteRequest>,
    again::<admin::MemberRemoveRequest>,
    again::<admin::MemberReplaceRequest>,
    again::<admin::ChangesRequest>,
    again::<admin::ScrubRequest>,
];

fuzz_target!(|input: (u8, &[u8])| {
    let (kind, bytes) = input;
    KINDS[usize::from(kind) % KINDS.len()](bytes);
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
