//! The server against a client that we did not write: tonic's.

mod common;

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{SNAPSHOT_CHUNKS, eventually, start};
use proto::etcdserverpb as pb;
use rpc::client::{KvClient, LeaseClient, MaintenanceClient, WatchClient};
use rpc::server::ServerConfig;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

fn put(value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest { key: Bytes::from_static(b"key"), value: value.into(), ..Default::default() }
}

fn range(wait_ms: i64) -> pb::RangeRequest {
    pb::RangeRequest { limit: wait_ms, ..Default::default() }
}

fn create(responses: i64) -> pb::WatchRequest {
    let create = pb::WatchCreateRequest { start_revision: responses, ..Default::default() };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }
}

#[tokio::test]
async fn unary_calls_and_their_failures() {
    let running = start(ServerConfig::default()).await;
    let mut kv = KvClient::new(running.channel().await);
    for _ in 0..3 {
        let answer = kv.put(put("hello")).await.unwrap().into_inner();
        assert_eq!(answer.prev_kv.unwrap().value, "hello");
    }
    assert_eq!(kv.range(range(5)).await.unwrap().into_inner().count, 5);
    let failed = kv.range(pb::RangeRequest { revision: 1, ..range(0) }).await.unwrap_err();
    assert_eq!(failed.code(), Code::OutOfRange);
    assert_eq!(failed.message(), "etcdserver: mvcc: required revision has been compacted");
    let unknown = kv.compact(pb::CompactionRequest::default()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented);
    assert_eq!(unknown.message(), "unknown method Compact for service etcdserverpb.KV");
    assert_eq!(running.server.stats().connections_open, 1);
}

#[tokio::test]
async fn metadata_reaches_the_service() {
    let running = start(ServerConfig::default()).await;
    let mut kv = KvClient::new(running.channel().await);
    for round in 0..3 {
        let mut request = tonic::Request::new(put("metadata"));
        request.metadata_mut().insert("token", format!("secret-{round}").parse().unwrap());
        let answer = kv.put(request).await.unwrap().into_inner();
        assert_eq!(answer.prev_kv.unwrap().value, format!("secret-{round}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_calls_at_once_on_one_connection() {
    let running = start(ServerConfig::default()).await;
    let kv = KvClient::new(running.channel().await);
    let mut tasks = Vec::new();
    for n in 0..1000i64 {
        let mut kv = kv.clone();
        tasks.push(tokio::spawn(async move {
            for round in 0..5 {
                assert_eq!(kv.range(range(n % 7)).await.unwrap().into_inner().count, n % 7);
                let value = Bytes::from(vec![n as u8; (n * round) as usize]);
                assert_eq!(kv.put(put(value.clone())).await.unwrap().into_inner().prev_kv.unwrap().value, value);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(running.server.stats().calls_started, 10_000);
    assert_eq!(running.server.stats().connections_accepted, 1);
}

#[tokio::test]
async fn large_messages_pass_and_larger_ones_are_refused() {
    let running = start(ServerConfig::default()).await;
    let mut kv = KvClient::new(running.channel().await);
    let value = Bytes::from((0..1_500_000u32).map(|n| (n % 251) as u8).collect::<Vec<u8>>());
    for _ in 0..4 {
        assert_eq!(kv.put(put(value.clone())).await.unwrap().into_inner().prev_kv.unwrap().value, value);
        let refused = kv.put(put(vec![0; 3 << 20])).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert_eq!(
            refused.message(),
            format!("grpc: received message larger than max ({} vs. 2097152)", (3 << 20) + 10)
        );
    }
}

#[tokio::test]
async fn a_slow_reader_holds_up_nobody_and_costs_little() {
    let running = start(ServerConfig::default()).await;
    let channel = running.channel().await;
    let mut stream =
        MaintenanceClient::new(channel.clone()).snapshot(pb::SnapshotRequest {}).await.unwrap().into_inner();
    let mut kv = KvClient::new(channel);
    let sent = || running.service.chunks_sent.load(SeqCst);
    // The client's stream window (4 MiB), the outbox and the sockets take some; then the handler waits.
    eventually("some is sent", || sent() > 100).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stalled = sent();
    assert!(stalled < SNAPSHOT_CHUNKS / 4, "{stalled} chunks were taken from the handler though nobody reads");
    for _ in 0..100 {
        kv.put(put("while the snapshot waits")).await.unwrap();
    }
    assert!(sent() <= stalled + 16);
    let mut expected = 0;
    while let Some(chunk) = stream.message().await.unwrap() {
        assert_eq!(chunk.remaining_bytes, expected);
        assert!(chunk.blob.len() == 32 << 10 && chunk.blob.iter().all(|&byte| byte == expected as u8));
        expected += 1;
    }
    assert_eq!(expected, SNAPSHOT_CHUNKS);
}

#[tokio::test]
async fn streams_in_both_directions() {
    let running = start(ServerConfig::default()).await;
    let channel = running.channel().await;
    let mut kv = KvClient::new(channel.clone());
    let mut streams = Vec::new();
    for _ in 0..50 {
        let (requests, receiver) = mpsc::channel(4);
        let mut watch = WatchClient::new(channel.clone());
        let responses = watch.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
        streams.push((requests, responses));
    }
    for round in [1, 30, 1000] {
        for (requests, responses) in &mut streams {
            requests.send(create(round)).await.unwrap();
            for watch_id in 0..round {
                assert_eq!(responses.message().await.unwrap().unwrap().watch_id, watch_id);
            }
        }
        kv.put(put("in between")).await.unwrap();
    }
    // Half-closing ends the stream well; dropping it ends the handler too.
    let dropped = streams.split_off(25);
    for (requests, mut responses) in streams {
        drop(requests);
        assert!(responses.message().await.unwrap().is_none());
    }
    drop(dropped);
    eventually("all handlers ended", || running.service.streams_ended.load(SeqCst) == 50).await;
}

#[tokio::test]
async fn a_caller_that_sends_more_than_is_answered_is_held_back() {
    let running = start(ServerConfig::default()).await;
    let (requests, receiver) = mpsc::channel(1);
    let mut lease = LeaseClient::new(running.channel().await);
    let mut responses = lease.lease_keep_alive(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    let sender = tokio::spawn(async move {
        for id in 0..300_000 {
            if requests.send(pb::LeaseKeepAliveRequest { id }).await.is_err() {
                break;
            }
        }
    });
    for expected in 0..300_000 {
        assert_eq!(responses.message().await.unwrap().unwrap().id, expected);
    }
    sender.await.unwrap();
}

#[tokio::test]
async fn deadlines_and_cancelled_calls_end_the_handler() {
    let running = start(ServerConfig::default()).await;
    let mut kv = KvClient::new(running.channel().await);
    let mut request = tonic::Request::new(range(60_000));
    request.set_timeout(Duration::from_millis(150));
    let begun = Instant::now();
    kv.range(request).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    eventually("the handler was dropped", || running.service.ranges_dropped.load(SeqCst) == 1).await;

    let cancelled = tokio::time::timeout(Duration::from_millis(50), kv.range(range(60_000))).await;
    assert!(cancelled.is_err());
    eventually("the cancelled one too", || running.service.ranges_dropped.load(SeqCst) == 2).await;
    assert_eq!(kv.range(range(1)).await.unwrap().into_inner().count, 1);
}

#[tokio::test]
async fn a_stopping_server_finishes_what_it_has_begun() {
    let running = start(ServerConfig::default()).await;
    let channel = running.channel().await;
    let (requests, receiver) = mpsc::channel(1);
    let mut watch = WatchClient::new(channel.clone());
    let mut responses = watch.watch(ReceiverStream::new(receiver)).await.unwrap().into_inner();
    requests.send(create(1)).await.unwrap();
    responses.message().await.unwrap().unwrap();
    let mut kv = KvClient::new(channel);
    let slow = tokio::spawn(async move { kv.range(range(400)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.server.stop();
    let ended = responses.message().await.unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: server stopped"));
    assert_eq!(slow.await.unwrap().unwrap().into_inner().count, 400);
    tokio::time::timeout(Duration::from_secs(5), running.task).await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(running.address).await.is_err(), "nobody listens any more");
}

/// gRPC for Go, where it is installed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcdctl_is_understood() {
    let running = start(ServerConfig::default()).await;
    let endpoint = running.address.to_string();
    let etcdctl = |arguments: &[&str]| {
        let output = std::process::Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &endpoint, "--command-timeout", "5s"])
            .args(arguments)
            .output();
        let Ok(output) = output else { return None };
        Some(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let Some(put) = etcdctl(&["put", "key", "value"]) else {
        println!("etcdctl is not installed: nothing to test");
        return;
    };
    assert!(put.starts_with("OK"), "{put}");
    let unknown = etcdctl(&["compact", "5"]).unwrap();
    assert!(unknown.contains("Unimplemented desc = unknown method Compact for service etcdserverpb.KV"), "{unknown}");
    let failed = etcdctl(&["get", "key", "--rev", "1"]).unwrap();
    assert!(failed.contains("required revision has been compacted"), "{failed}");
}
