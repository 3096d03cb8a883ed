//! The wire must not move: numbers and types that clients in every language have compiled in.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use proto::etcdserverpb::{Compare, LeaseGrantRequest, PutRequest, WatchResponse};
use proto::mvccpb::{Event, KeyValue};

/// Fields where a plausible guess would be wrong, and those that came with etcd 3.4 to 3.7.
const TRAPS: &str = "
etcdserverpb.AuthRoleRevokePermissionRequest.key = 2 bytes
etcdserverpb.AuthUserGrantRoleRequest.user = 1 string
etcdserverpb.AuthUserRevokeRoleRequest.name = 1 string
etcdserverpb.Compare.lease = 8 int64
etcdserverpb.Compare.range_end = 64 bytes
etcdserverpb.HashKVResponse.hash = 2 uint32
etcdserverpb.HashKVResponse.hash_revision = 4 int64
etcdserverpb.LeaseGrantRequest.ID = 2 int64
etcdserverpb.LeaseGrantRequest.TTL = 1 int64
etcdserverpb.LeaseGrantResponse.ID = 2 int64
etcdserverpb.LeaseGrantResponse.TTL = 3 int64
etcdserverpb.LeaseTimeToLiveResponse.grantedTTL = 4 int64
etcdserverpb.LeaseTimeToLiveResponse.keys = 5 repeated bytes
etcdserverpb.Member.isLearner = 5 bool
etcdserverpb.Member.peerURLs = 3 repeated string
etcdserverpb.MemberListRequest.linearizable = 1 bool
etcdserverpb.RangeRequest.count_only = 9 bool
etcdserverpb.RangeRequest.max_create_revision = 13 int64
etcdserverpb.RangeResponse.count = 4 int64
etcdserverpb.RangeResponse.more = 3 bool
etcdserverpb.RangeStreamResponse.range_response = 1 message
etcdserverpb.RequestOp.request_txn = 4 message
etcdserverpb.SnapshotResponse.remaining_bytes = 2 uint64
etcdserverpb.SnapshotResponse.version = 4 string
etcdserverpb.StatusResponse.dbSizeInUse = 9 int64
etcdserverpb.StatusResponse.dbSizeQuota = 12 int64
etcdserverpb.StatusResponse.downgradeInfo = 13 message
etcdserverpb.StatusResponse.errors = 8 repeated string
etcdserverpb.StatusResponse.isLearner = 10 bool
etcdserverpb.StatusResponse.storageVersion = 11 string
etcdserverpb.WatchCreateRequest.fragment = 8 bool
etcdserverpb.WatchCreateRequest.watch_id = 7 int64
etcdserverpb.WatchRequest.progress_request = 3 message
etcdserverpb.WatchResponse.events = 11 repeated message
etcdserverpb.WatchResponse.fragment = 7 bool
mvccpb.Event.prev_kv = 3 message
mvccpb.KeyValue.lease = 6 int64
v3electionpb.CampaignRequest.lease = 2 int64
v3electionpb.LeaderKey.rev = 3 int64
v3lockpb.LockResponse.key = 2 bytes
";

#[test]
fn fields_that_trip_implementations() {
    let fields = all_fields();
    for line in TRAPS.trim().lines() {
        let (name, expected) = line.split_once(" = ").unwrap();
        assert_eq!(fields.get(name).map(String::as_str), Some(expected), "{name}");
    }
}

#[test]
fn all_calls_of_etcd_are_there() {
    let set = FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap();
    let mut calls = BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            let streams = |streaming: bool| if streaming { "stream" } else { "one" };
            for method in &service.method {
                let shape = (streams(method.client_streaming()), streams(method.server_streaming()));
                calls.insert(format!("{}.{}/{}", file.package(), service.name(), method.name()), shape);
            }
        }
    }
    let of_etcd = calls.keys().filter(|name| !name.starts_with("centra.") && !name.starts_with("grpc.")).count();
    assert_eq!(of_etcd, 49);
    let streaming: Vec<_> = calls.iter().filter(|(_, shape)| **shape != ("one", "one")).collect();
    assert_eq!(
        streaming,
        [
            (&"centra.chainfire.v1.Admin/Changes".to_owned(), &("one", "stream")),
            (&"etcdserverpb.KV/RangeStream".to_owned(), &("one", "stream")),
            (&"etcdserverpb.Lease/LeaseKeepAlive".to_owned(), &("stream", "stream")),
            (&"etcdserverpb.Maintenance/Snapshot".to_owned(), &("one", "stream")),
            (&"etcdserverpb.Watch/Watch".to_owned(), &("stream", "stream")),
            (&"grpc.health.v1.Health/Watch".to_owned(), &("one", "stream")),
            (&"v3electionpb.Election/Observe".to_owned(), &("one", "stream")),
        ]
    );
}

#[test]
fn encoded_bytes() {
    let compare = Compare { range_end: Bytes::from_static(b"z"), ..Default::default() };
    assert_eq!(compare.encode_to_vec(), [0x82, 0x04, 1, b'z']);
    let events = vec![Event { r#type: 1, ..Default::default() }];
    assert_eq!(WatchResponse { events, ..Default::default() }.encode_to_vec(), [0x5a, 2, 0x08, 1]);
    let grant = LeaseGrantRequest { ttl: 5, id: 7 };
    assert_eq!(grant.encode_to_vec(), [0x08, 5, 0x10, 7]);
    let key_value = KeyValue { lease: -1, ..Default::default() };
    assert_eq!(key_value.encode_to_vec(), [0x30, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
}

#[test]
fn decoding_shares_the_memory() {
    let put = PutRequest { value: Bytes::from(vec![7; 1000]), ..Default::default() };
    let encoded = Bytes::from(put.encode_to_vec());
    let decoded = PutRequest::decode(encoded.clone()).unwrap();
    assert!(encoded.as_ptr_range().contains(&decoded.value.as_ptr()));
}

fn all_fields() -> BTreeMap<String, String> {
    fn add(prefix: &str, message: &DescriptorProto, into: &mut BTreeMap<String, String>) {
        let name = format!("{prefix}.{}", message.name());
        for field in &message.field {
            let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
            let kind = match field.r#type() {
                Type::Bytes => "bytes",
                Type::String => "string",
                Type::Int64 => "int64",
                Type::Uint64 => "uint64",
                Type::Uint32 => "uint32",
                Type::Bool => "bool",
                Type::Double => "double",
                Type::Fixed64 => "fixed64",
                Type::Message => "message",
                Type::Enum => "enum",
                other => panic!("{other:?} is used nowhere in etcd"),
            };
            into.insert(format!("{name}.{}", field.name()), format!("{} {repeated}{kind}", field.number()));
        }
        for nested in &message.nested_type {
            add(&name, nested, into);
        }
    }
    let mut fields = BTreeMap::new();
    for file in FileDescriptorSet::decode(proto::DESCRIPTORS).unwrap().file {
        for message in &file.message_type {
            add(file.package(), message, &mut fields);
        }
    }
    fields
}
