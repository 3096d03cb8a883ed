//! Requests that are wrong are refused with etcd's code and text, and the node goes on.

use bytes::{Buf, BufMut, Bytes};
use proto::etcdserverpb::{self as pb, request_op::Request};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::client::{self, Client, bytes, outcome, put};
use crate::cluster::{Cluster, is_etcd};
use crate::history::operation;
use crate::watching::watch;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_refused_in_etcds_words() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    // A follower says the same as the leader.
    for index in [leader, (leader + 1) % 3] {
        let client = cluster.client(index);
        wrong_puts(&client).await;
        wrong_ranges(&client).await;
        wrong_transactions(&client).await;
        wrong_leases(&client).await;
        wrong_compactions(&client).await;
        wrong_memberships(&client, &cluster.peer_url(leader)).await;
        wrong_bytes(&client).await;
        client.put("still", "there").await.unwrap();
    }
    cluster.assert_equal_hashes().await;
}

async fn wrong_puts(client: &Client) {
    refused(client.put("", "value").await, Code::InvalidArgument, "etcdserver: key is not provided");
    let unknown_lease = pb::PutRequest { lease: 4711, ..put("key", "value") };
    refused(client.put_request(unknown_lease).await, Code::NotFound, "etcdserver: requested lease not found");
    let both = pb::PutRequest { ignore_value: true, ..put("key", "value") };
    refused(client.put_request(both).await, Code::InvalidArgument, "etcdserver: value is provided");
    let nothing_to_keep = pb::PutRequest { ignore_value: true, ..put("never-written", "") };
    refused(client.put_request(nothing_to_keep).await, Code::InvalidArgument, "etcdserver: key not found");
    let both = pb::PutRequest { ignore_lease: true, lease: 4711, ..put("key", "value") };
    refused(client.put_request(both).await, Code::InvalidArgument, "etcdserver: lease is provided");

    let large = client.put("large", &"x".repeat(1600 << 10)).await;
    refused(large, Code::InvalidArgument, "etcdserver: request is too large");
    let huge = client.put("huge", &"x".repeat(3 << 20)).await.unwrap_err();
    assert_eq!(huge.code(), Code::ResourceExhausted, "{huge:?}");
    assert!(huge.message().contains("received message larger than max"), "{huge:?}");
    client.put("just-fits", &"x".repeat(1 << 20)).await.unwrap();
}

async fn wrong_ranges(client: &Client) {
    let now = client::revision(&client.put("key", "value").await.unwrap().header);
    let range = |revision| pb::RangeRequest { key: bytes("key"), revision, ..Default::default() };
    refused(
        client.range(range(now + 1000)).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    refused(client.range(pb::RangeRequest::default()).await, Code::InvalidArgument, "etcdserver: key is not provided");
    if !is_etcd() {
        // Not all versions of etcd look.
        let unsorted = pb::RangeRequest { sort_order: 7, ..range(0) };
        refused(client.range(unsorted).await, Code::InvalidArgument, "etcdserver: invalid sort option");
    }
    let delete = client.within(client.kv().delete_range(pb::DeleteRangeRequest::default())).await;
    refused(delete, Code::InvalidArgument, "etcdserver: key is not provided");
    // A range that ends before it begins is empty, not wrong.
    let backwards = pb::RangeRequest { key: bytes("z"), range_end: bytes("a"), ..Default::default() };
    assert_eq!(client.range(backwards).await.unwrap().count, 0);
}

async fn wrong_transactions(client: &Client) {
    let txn = |success: Vec<Request>| pb::TxnRequest {
        success: success.into_iter().map(operation).collect(),
        ..Default::default()
    };
    let puts = |keys: &[&str]| txn(keys.iter().map(|key| Request::RequestPut(put(key, "1"))).collect());
    let twice = "etcdserver: duplicate key given in txn request";
    refused(client.txn(puts(&["a", "b", "a"])).await, Code::InvalidArgument, twice);
    let delete = pb::DeleteRangeRequest { key: bytes("a"), range_end: bytes("c"), ..Default::default() };
    let overlapping = txn(vec![Request::RequestPut(put("b", "1")), Request::RequestDeleteRange(delete)]);
    refused(client.txn(overlapping).await, Code::InvalidArgument, twice);
    refused(client.txn(puts(&["a", ""])).await, Code::InvalidArgument, "etcdserver: key is not provided");
    let many: Vec<String> = (0..129).map(|number| format!("many-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let too_many = "etcdserver: too many operations in txn request";
    refused(client.txn(puts(&many)).await, Code::InvalidArgument, too_many);
    client.txn(puts(&many[..128])).await.unwrap();
    let leased = pb::PutRequest { lease: 4711, ..put("leased", "1") };
    let leased = txn(vec![Request::RequestPut(put("beside-leased", "1")), Request::RequestPut(leased)]);
    refused(client.txn(leased).await, Code::NotFound, "etcdserver: requested lease not found");
    assert!(client.get("beside-leased").await.unwrap().kvs.is_empty(), "half of a transaction took effect");
}

async fn wrong_leases(client: &Client) {
    let revoke = client.within(client.lease().lease_revoke(pb::LeaseRevokeRequest { id: 4711 })).await;
    refused(revoke, Code::NotFound, "etcdserver: requested lease not found");
    let grant = |ttl, id| client.within(client.lease_of(pb::LeaseGrantRequest { ttl, id }));
    refused(grant(9_000_000_001, 0).await, Code::OutOfRange, "etcdserver: too large lease TTL");
    let granted = grant(60, 0).await.unwrap();
    refused(grant(60, granted.id).await, Code::FailedPrecondition, "etcdserver: lease already exists");
    client.within(client.lease().lease_revoke(pb::LeaseRevokeRequest { id: granted.id })).await.unwrap();
    // Neither of these is an error.
    let ask = pb::LeaseTimeToLiveRequest { id: 4711, keys: false };
    assert_eq!(client.within(client.lease().lease_time_to_live(ask)).await.unwrap().ttl, -1);
    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(pb::LeaseKeepAliveRequest { id: 4711 }).await.unwrap();
    let mut stream = client.within(client.lease().lease_keep_alive(ReceiverStream::new(receiver))).await.unwrap();
    let answer = client.within(async { stream.message().await.map(tonic::Response::new) }).await.unwrap().unwrap();
    assert_eq!((answer.id, answer.ttl), (4711, 0));
}

async fn wrong_compactions(client: &Client) {
    let mut now = 0;
    for number in 0..10 {
        now = client::revision(&client.put("compacted", &number.to_string()).await.unwrap().header);
    }
    let compact = |revision| client.within(client.compact(revision));
    let future = "etcdserver: mvcc: required revision is a future revision";
    refused(compact(now + 1000).await, Code::OutOfRange, future);
    compact(now - 2).await.unwrap();
    let gone = "etcdserver: mvcc: required revision has been compacted";
    refused(compact(now - 2).await, Code::OutOfRange, gone);
    refused(compact(now - 3).await, Code::OutOfRange, gone);
    let past = |revision| pb::RangeRequest { key: bytes("compacted"), revision, ..Default::default() };
    refused(client.range(past(now - 3)).await, Code::OutOfRange, gone);
    assert_eq!(client::text(&client.range(past(now - 1)).await.unwrap().kvs[0].value), "8");

    let (_open, mut events) = watch(client, "compacted", 1).await.unwrap();
    let mut last = events.message().await.unwrap().unwrap();
    while !last.canceled {
        assert!(last.events.is_empty(), "compacted events are told");
        last = events.message().await.unwrap().unwrap();
    }
    assert_eq!(last.compact_revision, now - 2);
}

async fn wrong_memberships(client: &Client, taken_url: &str) {
    let remove = client.within(client.cluster().member_remove(pb::MemberRemoveRequest { id: 4711 })).await;
    refused(remove, Code::NotFound, "etcdserver: member not found");
    let promote = client.within(client.cluster().member_promote(pb::MemberPromoteRequest { id: 4711 })).await;
    refused(promote, Code::NotFound, "etcdserver: member not found");
    let add = |url: &str| {
        let request = pb::MemberAddRequest { peer_urls: vec![url.to_owned()], is_learner: true };
        async move { client.within(client.cluster().member_add(request)).await }
    };
    refused(add("not a url").await, Code::InvalidArgument, "etcdserver: given member URLs are invalid");
    refused(add(taken_url).await, Code::FailedPrecondition, "etcdserver: Peer URLs already exists");
    if !is_etcd() {
        // etcd refuses that only on the leader.
        let nobody = client.within(client.maintenance().move_leader(pb::MoveLeaderRequest { target_id: 4711 })).await;
        refused(nobody, Code::FailedPrecondition, "etcdserver: bad leader transferee");
    }
}

/// Messages that are no protobuf, and methods that do not exist.
async fn wrong_bytes(client: &Client) {
    // A length-delimited field that promises more than there is; an impossible wire type; a varint without end.
    let malformed: [&[u8]; 4] =
        [b"\x0a\x7fshort", b"\x0f\x01", b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0a"];
    for method in
        ["/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.KV/Txn", "/etcdserverpb.Lease/LeaseGrant"]
    {
        for bytes in malformed {
            let status = raw(client, method, bytes).await.unwrap_err();
            assert_eq!(status.code(), Code::Internal, "{method} with {bytes:?}: {status:?}");
        }
    }
    for method in ["/etcdserverpb.KV/Steal", "/nobody.Nothing/Never"] {
        assert_eq!(raw(client, method, b"").await.unwrap_err().code(), Code::Unimplemented, "{method}");
    }
    // Transactions within transactions without end.
    let mut nested = pb::TxnRequest::default();
    for _ in 0..90 {
        nested = pb::TxnRequest { success: vec![operation(Request::RequestTxn(nested))], ..Default::default() };
    }
    let answer = client.txn(nested).await;
    assert!(answer.is_err() || is_etcd(), "90 nested transactions were taken");
}

impl Client {
    async fn lease_of(
        &self,
        request: pb::LeaseGrantRequest,
    ) -> Result<tonic::Response<pb::LeaseGrantResponse>, Status> {
        self.lease().lease_grant(request).await
    }

    async fn compact(&self, revision: i64) -> Result<tonic::Response<pb::CompactionResponse>, Status> {
        self.kv().compact(pb::CompactionRequest { revision, physical: false }).await
    }
}

fn refused<T>(answer: Result<T, Status>, code: Code, text: &str) {
    assert_eq!(outcome(&answer), format!("{code:?}: {text}"));
}

/// A unary call whose request is these bytes.
pub async fn raw(client: &Client, method: &'static str, request: &[u8]) -> Result<Bytes, Status> {
    let mut calls = tonic::client::Grpc::new(client.channel());
    calls.ready().await.map_err(|why| Status::from_error(why.into()))?;
    let request = tonic::Request::new(Bytes::copy_from_slice(request));
    let path = tonic::codegen::http::uri::PathAndQuery::from_static(method);
    client.within(calls.unary(request, path, Raw)).await
}

/// Messages as they are on the wire.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}
