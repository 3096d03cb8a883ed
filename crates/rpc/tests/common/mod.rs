//! A service to test the server with: it speaks a few of etcd's methods, in its own way.
//!
//! | method | what it does |
//! |---|---|
//! | KV/Put | echoes key and value as `prev_kv`; the value `metadata` is answered with the header `token` |
//! | KV/Range | waits `limit` ms, then answers `count` = `limit`; `revision` 1 fails with `OutOfRange` |
//! | Watch/Watch | every create request makes `start_revision` responses, numbered in `watch_id` |
//! | Maintenance/Snapshot | sends chunks of 32 KiB, numbered in `remaining_bytes`, until 64 MiB are out |
//! | Lease/LeaseKeepAlive | echoes the id |
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use proto::etcdserverpb::{self as pb, watch_request::RequestUnion};
use proto::mvccpb::KeyValue;
use rpc::server::{
    Answer, BoxFuture, Call, HttpBody, Method, RequestStream, ResponseSink, Server, ServerConfig, Service, http_body,
};
use rpc::{Code, Status};

pub const SNAPSHOT_CHUNKS: u64 = 2048;

#[derive(Default)]
pub struct Echo {
    pub chunks_sent: AtomicU64,
    pub ranges_done: AtomicU64,
    pub ranges_dropped: AtomicU64,
    pub streams_ended: AtomicU64,
}

pub struct Running {
    pub address: SocketAddr,
    pub service: Arc<Echo>,
    pub server: Arc<Server<Echo>>,
    pub task: tokio::task::JoinHandle<()>,
}

pub async fn start(config: ServerConfig) -> Running {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Arc::new(Echo::default());
    let server = Server::new(service.clone(), config);
    let task = tokio::spawn({
        let server = server.clone();
        async move { server.serve(listener).await }
    });
    Running { address, service, server, task }
}

impl Running {
    pub async fn channel(&self) -> tonic::transport::Channel {
        rpc::client::connect(&self.address.to_string(), Duration::from_secs(5), None).await.unwrap()
    }
}

/// Waits until `condition` holds, for ten seconds at most.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came true: {what}");
}

const PUT: u16 = 1;
const RANGE: u16 = 2;
const WATCH: u16 = 3;
const SNAPSHOT: u16 = 4;
const KEEP_ALIVE: u16 = 5;

struct CountDrop(Arc<Echo>, bool);

impl CountDrop {
    fn done(&mut self) {
        self.1 = true;
    }
}

impl Drop for CountDrop {
    fn drop(&mut self) {
        if self.1 { &self.0.ranges_done } else { &self.0.ranges_dropped }.fetch_add(1, SeqCst);
    }
}

/// Counts a streaming handler that ended or was dropped.
struct CountEnd(Arc<Echo>);

impl Drop for CountEnd {
    fn drop(&mut self) {
        self.0.streams_ended.fetch_add(1, SeqCst);
    }
}

impl Service for Echo {
    fn resolve(&self, path: &str) -> Option<Method> {
        match path {
            "/etcdserverpb.KV/Put" => Some(Method::unary(PUT)),
            "/etcdserverpb.KV/Range" => Some(Method::unary(RANGE)),
            "/etcdserverpb.Watch/Watch" => Some(Method::streaming(WATCH)),
            "/etcdserverpb.Maintenance/Snapshot" => Some(Method::streaming(SNAPSHOT)),
            "/etcdserverpb.Lease/LeaseKeepAlive" => Some(Method::streaming(KEEP_ALIVE)),
            _ => None,
        }
    }

    fn unary(self: &Arc<Self>, method: u16, call: Call, message: Bytes) -> Answer {
        if method == PUT {
            let answer = pb::PutRequest::decode(message).map_err(|e| Status::internal(e.to_string())).map(|put| {
                let token = || Bytes::copy_from_slice(call.metadata.get("token").unwrap_or_default());
                let value = if put.value == "metadata" { token() } else { put.value };
                let prev_kv = Some(KeyValue { key: put.key, value, ..Default::default() });
                pb::PutResponse { header: None, prev_kv }.encode_to_vec().into()
            });
            return Answer::Ready(answer);
        }
        let range = pb::RangeRequest::decode(message).unwrap();
        if range.revision == 1 {
            let text = "etcdserver: mvcc: required revision has been compacted";
            return Answer::Ready(Err(Status::new(Code::OutOfRange, text)));
        }
        let mut end = CountDrop(self.clone(), false);
        Answer::later(async move {
            tokio::time::sleep(Duration::from_millis(range.limit as u64)).await;
            end.done();
            Ok(pb::RangeResponse { count: range.limit, ..Default::default() }.encode_to_vec().into())
        })
    }

    fn streaming(
        self: &Arc<Self>,
        method: u16,
        _: Call,
        mut requests: RequestStream,
        mut responses: ResponseSink,
    ) -> BoxFuture<Result<(), Status>> {
        let service = self.clone();
        Box::pin(async move {
            let result = async {
                match method {
                    SNAPSHOT => {
                        for chunk in 0..SNAPSHOT_CHUNKS {
                            let blob = Bytes::from(vec![chunk as u8; 32 << 10]);
                            let response = pb::SnapshotResponse { remaining_bytes: chunk, blob, ..Default::default() };
                            responses.send(response.encode_to_vec().into()).await?;
                            service.chunks_sent.fetch_add(1, SeqCst);
                        }
                    }
                    WATCH => {
                        while let Some(message) = requests.next().await {
                            let request = pb::WatchRequest::decode(message?).unwrap();
                            let Some(RequestUnion::CreateRequest(create)) = request.request_union else { continue };
                            for watch_id in 0..create.start_revision {
                                let response = pb::WatchResponse { watch_id, ..Default::default() };
                                responses.send(response.encode_to_vec().into()).await?;
                            }
                        }
                    }
                    _ => {
                        while let Some(message) = requests.next().await {
                            let id = pb::LeaseKeepAliveRequest::decode(message?).unwrap().id;
                            let response = pb::LeaseKeepAliveResponse { id, ..Default::default() };
                            responses.send(response.encode_to_vec().into()).await?;
                        }
                    }
                }
                Ok(())
            };
            let _guard = CountEnd(service.clone());
            result.await
        })
    }

    fn http(self: &Arc<Self>, _: Call, request: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>> {
        Box::pin(async move {
            let body = match request.uri().path() {
                "/health" => Bytes::from_static(b"{\"health\":\"true\"}"),
                "/large" => Bytes::from(vec![b'x'; 1 << 20]),
                _ => request.into_body(),
            };
            http::Response::new(http_body(body))
        })
    }
}
