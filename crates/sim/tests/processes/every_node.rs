//! Any node takes any request and shows what any other one has written; and each tells over HTTP how it is.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use proto::etcdserverpb as pb;
use tokio_stream::wrappers::ReceiverStream;

use crate::client;
use crate::cluster::{CLIENT_PORT, Cluster, Options, PEER_PORT, command, is_etcd, program};
use crate::tell::skipped;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_takes_every_request() {
    let cluster = Cluster::start(3).await;
    for (writer, reader) in [(0, 1), (1, 2), (2, 0), (1, 0)] {
        let (there, here) = (cluster.client(writer), cluster.client(reader));
        let key = format!("from-{writer}");
        let written = there.put(&key, "1").await.unwrap();
        // Linearizable: no waiting, no second try.
        let read = here.get(&key).await.unwrap();
        assert_eq!(client::text(&read.kvs[0].value), "1");
        assert!(client::revision(&read.header) >= client::revision(&written.header));
        assert_eq!(here.delete(&key).await.unwrap().deleted, 1);
        assert!(there.get(&key).await.unwrap().kvs.is_empty());
    }

    for index in 0..3 {
        leases_work_through(&cluster, index).await;
        let members = cluster.client(index).members().await.unwrap();
        assert_eq!(members.len(), 3);
        let alarm = pb::AlarmRequest::default();
        let client = cluster.client(index);
        assert!(client.within(client.maintenance().alarm(alarm)).await.unwrap().alarms.is_empty());
        client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await.unwrap();
    }
    let compaction = pb::CompactionRequest { revision: 3, physical: true };
    let follower = (cluster.leader().await + 1) % 3;
    let client = cluster.client(follower);
    client.within(client.kv().compact(compaction)).await.unwrap();
    cluster.assert_equal_hashes().await;
}

/// Chainfire's own flags: what a user with one machine types.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_command_is_a_store() {
    if is_etcd() {
        return skipped("one_command_is_a_store", "an etcd has other flags");
    }
    let mut cluster = Cluster::new(1, Options::default());
    let address = cluster.nodes[0].address;
    for _ in 0..2 {
        let mut command = command(&program());
        command.arg("--data-dir").arg(&cluster.nodes[0].data_dir);
        command.args([format!("--api-addr={address}:{CLIENT_PORT}"), format!("--raft-addr={address}:{PEER_PORT}")]);
        cluster.spawn_as(0, command);
        cluster.wait_until_serving(0).await;
        cluster.client(0).put("key", "value").await.unwrap();
        cluster.stop(0).await;
    }
    cluster.spawn_as(0, {
        let mut command = command(&program());
        command.env("CHAINFIRE_STORAGE_DATA_DIR", &cluster.nodes[0].data_dir);
        command.env("CHAINFIRE_NETWORK_API_ADDR", format!("{address}:{CLIENT_PORT}"));
        command.env("CHAINFIRE_NETWORK_RAFT_ADDR", format!("{address}:{PEER_PORT}"));
        command
    });
    cluster.wait_until_serving(0).await;
    assert_eq!(cluster.client(0).get("key").await.unwrap().kvs[0].version, 2);
}

async fn leases_work_through(cluster: &Cluster, index: usize) {
    let client = cluster.client(index);
    let other = cluster.client((index + 1) % 3);
    let grant = pb::LeaseGrantRequest { ttl: 60, id: 0 };
    let granted = client.within(client.lease().lease_grant(grant)).await.unwrap();
    assert_eq!(granted.ttl, 60);
    let key = format!("leased-{index}");
    other.put_request(pb::PutRequest { lease: granted.id, ..client::put(&key, "1") }).await.unwrap();

    let (requests, receiver) = tokio::sync::mpsc::channel(1);
    requests.send(pb::LeaseKeepAliveRequest { id: granted.id }).await.unwrap();
    let stream = client.within(client.lease().lease_keep_alive(ReceiverStream::new(receiver))).await;
    let alive =
        tokio::time::timeout(Duration::from_secs(5), stream.unwrap().message()).await.unwrap().unwrap().unwrap();
    assert_eq!((alive.id, alive.ttl), (granted.id, 60));

    let ask = pb::LeaseTimeToLiveRequest { id: granted.id, keys: true };
    let left = client.within(client.lease().lease_time_to_live(ask)).await.unwrap();
    assert!((55..=60).contains(&left.ttl) && left.granted_ttl == 60, "{left:?}");
    assert_eq!(left.keys, [client::bytes(&key)]);
    let leases = other.within(other.lease().lease_leases(pb::LeaseLeasesRequest {})).await.unwrap().leases;
    assert_eq!(leases.iter().filter(|lease| lease.id == granted.id).count(), 1);

    other.within(other.lease().lease_revoke(pb::LeaseRevokeRequest { id: granted.id })).await.unwrap();
    assert!(client.get(&key).await.unwrap().kvs.is_empty(), "a revoked lease takes its keys along");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_end_by_themselves_and_outlive_their_leader() {
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let client = cluster.client((leader + 1) % 3);
    let grant = |ttl| {
        let client = client.clone();
        async move { client.within(client.lease().lease_grant(pb::LeaseGrantRequest { ttl, id: 0 })).await.unwrap() }
    };
    let (short, long) = (grant(2).await, grant(600).await);
    client.put_request(pb::PutRequest { lease: short.id, ..client::put("short", "1") }).await.unwrap();
    client.put_request(pb::PutRequest { lease: long.id, ..client::put("long", "1") }).await.unwrap();
    let granted = std::time::Instant::now();
    cluster.kill(leader);
    cluster.spawn(leader);
    cluster.wait_until_serving(leader).await;
    loop {
        let gone = client.get("short").await.is_ok_and(|answer| answer.kvs.is_empty());
        if gone {
            break;
        }
        assert!(granted.elapsed() < Duration::from_secs(20), "the lease of 2 s does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(granted.elapsed() >= Duration::from_secs(2), "the lease ended early, after {:?}", granted.elapsed());
    assert_eq!(client.get("long").await.unwrap().kvs.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_version_and_metrics_are_told_over_http() {
    let mut cluster = Cluster::start(3).await;
    cluster.client(1).put("key", "value").await.unwrap();
    for index in 0..3 {
        let address = cluster.nodes[index].address;
        let health = get(address, "/health");
        assert_eq!((health.status, health.body.trim().starts_with(r#"{"health":"true""#)), (200, true), "{health:?}");
        if is_etcd() {
            continue;
        }
        assert_eq!(health.body, r#"{"health":"true","reason":""}"#);
        assert_eq!(get(address, "/health?serializable=true&exclude=NOSPACE").status, 200);
        assert_eq!(get(address, "/livez").body, "ok\n");
        assert_eq!(get(address, "/readyz").body, "ok\n");
        let ready = get(address, "/readyz?verbose").body;
        for check in ["[+]serializable_read ok", "[+]data_corruption ok", "[+]linearizable_read ok"] {
            assert!(ready.lines().any(|line| line == check), "{ready}");
        }
        let version = get(address, "/version").body;
        assert_eq!(version, r#"{"etcdserver":"3.7.0","etcdcluster":"3.7.0","storage":"3.7.0"}"#);
        assert_eq!(get(address, "/nowhere").status, 404);
        assert_eq!(ask(address, "DELETE", "/health").status, 405);
    }
    if is_etcd() {
        return;
    }
    metrics_tell_what_happened(&cluster).await;

    // Two of three are gone: the last one lives, is not ready, and says why.
    let survivor = 0;
    (1..3).for_each(|index| cluster.kill(index));
    let address = cluster.nodes[survivor].address;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while get(address, "/readyz").status != 503 {
        assert!(std::time::Instant::now() < deadline, "a node without a quorum goes on saying that it is ready");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let health = get(address, "/health");
    assert_eq!(health.status, 503);
    assert!(health.body.starts_with(r#"{"health":"false","reason":"#), "{health:?}");
    assert_eq!(get(address, "/livez").status, 200);
    assert_eq!(get(address, "/health?serializable=true").status, 200);
}

async fn metrics_tell_what_happened(cluster: &Cluster) {
    let leader = cluster.leader().await;
    for index in 0..3 {
        let page = get(cluster.nodes[index].address, "/metrics").body;
        let value = |name: &str| {
            let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
            let line = line.unwrap_or_else(|| panic!("node {index} has no metric {name}:\n{page}"));
            line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok()).unwrap()
        };
        assert_eq!(value("etcd_server_has_leader"), 1.0);
        assert_eq!(value("chainfire_has_leader"), 1.0);
        assert_eq!(value("etcd_server_is_leader"), f64::from(u8::from(index == leader)));
        assert_eq!(value("etcd_server_is_learner"), 0.0);
        assert!(value("chainfire_raft_term") >= 1.0);
        assert!(value("etcd_server_proposals_committed_total") >= 1.0);
        assert!(value("etcd_server_proposals_applied_total") >= 1.0);
        assert!(value("etcd_mvcc_db_total_size_in_bytes") >= 0.0);
        for name in [
            "etcd_server_leader_changes_seen_total",
            "etcd_server_proposals_pending",
            "etcd_server_proposals_failed_total",
            "etcd_disk_wal_fsync_duration_seconds_count",
            "etcd_mvcc_db_total_size_in_use_in_bytes",
            "chainfire_write_duration_seconds_count",
        ] {
            value(name);
        }
        let role = if index == leader { "leader" } else { "follower" };
        assert!(page.contains(&format!("chainfire_raft_index{{role=\"{role}\"}}")), "{page}");
        assert!(page.contains("chainfire_write_duration_seconds_bucket{le=\"0.5\"}"), "{page}");
        if index == leader {
            assert_eq!(page.matches("\nchainfire_raft_follower_lag_entries{").count(), 2, "{page}");
        }
        assert_eq!(page.matches("# TYPE chainfire_write_duration_seconds histogram").count(), 1);
    }
}

#[derive(Debug)]
pub struct Page {
    pub status: u16,
    pub body: String,
}

pub fn get(address: Ipv4Addr, path: &str) -> Page {
    ask(address, "GET", path)
}

/// One request over HTTP/1.1; panics when there is no answer.
fn ask(address: Ipv4Addr, method: &str, path: &str) -> Page {
    let mut stream = TcpStream::connect((address, CLIENT_PORT)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Page { status, body: if chunked { joined(body) } else { body.to_owned() } }
}

/// The content of a chunked body.
fn joined(mut body: &str) -> String {
    let mut content = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        content += &rest[..size];
        body = rest[size..].trim_start_matches("\r\n");
    }
    content
}
