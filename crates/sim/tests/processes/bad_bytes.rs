//! Bytes that are not ours, on both ports: the connection is closed, the log says so once, nobody else notices.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use base::Rng;

use crate::client;
use crate::cluster::{CLIENT_PORT, Cluster, PEER_PORT, is_etcd};
use crate::durability::{Writers, assert_holds};
use crate::tell::{figure, skipped};

const MAGIC: &[u8] = b"CNTR\x01";
const FOR_MESSAGES: u8 = 1;
const STRANGER_PEER: u64 = 4712;
/// The ways in which bytes can be not ours, each with a line of its own.
const REASONS_MAX: usize = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_raft_port_is_closed_and_logged_once() {
    if is_etcd() {
        return skipped("garbage_on_the_raft_port", "etcd speaks HTTP there");
    }
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let status = cluster.client(leader).status().await.unwrap();
    let header = status.header.unwrap();
    let writers = Writers::start(&cluster.endpoints(), 1, "beside-garbage");
    let address = (cluster.nodes[leader].address, PEER_PORT).into();
    let mut rng = Rng::new(7);

    let mut random = vec![0; 4096];
    random.iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
    let huge = [&u32::MAX.to_le_bytes()[..], &[1, 2, 3, 4], b"and nothing of it"].concat();
    let client_hello = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &random[..505]].concat();
    let strangers = [
        random.clone(),
        huge,
        client_hello,
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        framed(b"no greeting of anyone's"),
        framed(&[MAGIC, &[99][..], &[0; 24]].concat()),
        wrong_checksum(hello(FOR_MESSAGES, header.cluster_id)),
    ];
    for bytes in &strangers {
        assert_closes(address, &[bytes]);
    }
    // Who knows the greeting and the cluster's id can still say nothing that does harm.
    let greeting = hello(FOR_MESSAGES, header.cluster_id);
    assert_closes(address, &[&greeting, &framed(&random[..200])]);
    assert_closes(address, &[&greeting, &[0xff; 64]]);
    assert_closes(address, &[&hello(FOR_MESSAGES, header.cluster_id ^ 1)]);
    for _ in 0..300 {
        let mut message = vec![0; 33 + rng.below(60) as usize];
        message.iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
        message[0] = rng.below(10) as u8;
        // Sender and receiver as they might be, so that the rest is looked at.
        message[1..9].copy_from_slice(&1u64.to_le_bytes());
        message[9..17].copy_from_slice(&STRANGER_PEER.to_le_bytes());
        send_and_leave(address, &[&greeting, &framed(&message)]);
    }

    tokio::time::sleep(Duration::from_millis(500)).await;
    let acknowledged = writers.finish().await;
    assert!(acknowledged.len() > 100, "writes went on beside it");
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
    let after = cluster.client(leader).status().await.unwrap();
    assert_eq!((after.raft_term, after.leader), (status.raft_term, status.leader), "strangers cannot cause elections");
    let log = cluster.log(leader);
    let lines = log.matches("Closed a connection on the Raft port").count();
    assert!((1..=REASONS_MAX).contains(&lines), "one line per reason for one address's garbage, not {lines}");
    for index in 0..3 {
        assert!(!cluster.log(index).contains("panicked"), "a thread panicked");
    }
    cluster.assert_equal_hashes().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_the_client_port_is_closed() {
    let cluster = Cluster::start(1).await;
    let address = (cluster.nodes[0].address, CLIENT_PORT).into();
    let mut rng = Rng::new(11);
    let mut random = vec![0; 4096];
    random.iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A frame that announces 16 MiB; headers on stream 0; a continuation of nothing; headers that are no HPACK.
    let frames: [&[u8]; 4] = [
        &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        &[0, 0, 1, 1, 4, 0, 0, 0, 0, 0x82],
        &[0, 0, 1, 9, 4, 0, 0, 0, 1, 0x82],
        &[0, 0, 4, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff],
    ];
    for frame in frames {
        assert_closes(address, &[preface, &settings, frame]);
    }
    if !is_etcd() {
        assert_closes(address, &[&random]);
        assert_closes(address, &[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &random[..505]]);
        assert_closes(address, &[b"GET / HTTP/1.1\r\nno colon here\r\n\r\n"]);
        assert_closes(address, &[format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000)).as_bytes()]);
    }
    for _ in 0..300 {
        let mut frame =
            vec![0, 0, rng.below(64) as u8, rng.below(12) as u8, rng.next_u64() as u8, 0, 0, 0, rng.below(8) as u8];
        frame.extend((0..frame[2]).map(|_| rng.next_u64() as u8));
        send_and_leave(address, &[preface, &settings, &frame, &frame]);
    }
    let client = cluster.client(0);
    client.put("still", "there").await.unwrap();
    assert_eq!(client.get("still").await.unwrap().count, 1);
    assert!(!cluster.log(0).contains("panicked"), "a thread panicked");
}

/// Connections that say a byte and then nothing: they are shut out in time, and cost others little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_connections_harm_nobody_and_are_closed() {
    if is_etcd() {
        return skipped("slow_connections", "etcd keeps them");
    }
    const PER_PORT: usize = 300;
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let calm = latency(&cluster.client(leader)).await;
    let address = cluster.nodes[leader].address;
    let open = |port| -> Vec<TcpStream> { (0..PER_PORT).map(|number| half_open(address, port, number)).collect() };
    let (clients, peers) = (open(CLIENT_PORT), open(PEER_PORT));
    let opened = Instant::now();
    let busy = latency(&cluster.client(leader)).await;
    figure(format_args!(
        "slow connections: put p50 {} µs without, {} µs with {} of them",
        calm.as_micros(),
        busy.as_micros(),
        2 * PER_PORT
    ));
    assert!(
        busy < calm * 4 + Duration::from_millis(20),
        "puts take {busy:?} beside slow connections, {calm:?} without"
    );
    // A node that comes back finds the leader's Raft port open to it.
    let follower = (leader + 1) % 3;
    cluster.kill(follower);
    cluster.spawn(follower);
    cluster.wait_until_serving(follower).await;

    let deadline = opened + Duration::from_secs(20);
    let mut open: Vec<TcpStream> = clients.into_iter().chain(peers).collect();
    while !open.is_empty() {
        open.retain_mut(|stream| !is_closed(stream));
        assert!(Instant::now() < deadline, "{} slow connections are still open after 20 s", open.len());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    cluster.client(leader).put("after", "1").await.unwrap();
}

async fn latency(client: &client::Client) -> Duration {
    let mut taken = Vec::new();
    for number in 0..100 {
        let began = Instant::now();
        client.put("latency", &number.to_string()).await.unwrap();
        taken.push(began.elapsed());
    }
    taken.sort();
    taken[taken.len() / 2]
}

/// Says something that could become a request, but does not.
fn half_open(address: Ipv4Addr, port: u16, number: usize) -> TcpStream {
    let beginnings: [&[u8]; 4] = [b"P", b"GET /health HTTP/1.1\r\nHost:", b"\x20", b""];
    let mut stream = TcpStream::connect((address, port)).unwrap();
    stream.write_all(beginnings[number % beginnings.len()]).unwrap();
    stream.set_nonblocking(true).unwrap();
    stream
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(why) => return why.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Sends the parts; the other side must close within a few seconds, whatever it says before.
fn assert_closes(address: SocketAddr, parts: &[&[u8]]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    for part in parts {
        // It may have closed already.
        let _ = stream.write_all(part);
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => {}
            Err(why) if matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("not closed after {:?}", parts.last().map(|part| &part[..part.len().min(40)]));
            }
            Err(_) => return,
        }
    }
}

fn send_and_leave(address: SocketAddr, parts: &[&[u8]]) {
    let mut stream = TcpStream::connect(address).unwrap();
    for part in parts {
        let _ = stream.write_all(part);
    }
}

/// A greeting as nodes send it: purpose, cluster, node, peer.
fn hello(purpose: u8, cluster: u64) -> Vec<u8> {
    let numbers = [cluster, 4711, STRANGER_PEER].map(u64::to_le_bytes).concat();
    framed(&[MAGIC, &[purpose], &numbers].concat())
}

/// Length, checksum, payload.
fn framed(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_le_bytes();
    [&length[..], &crc32fast::hash(payload).to_le_bytes(), payload].concat()
}

fn wrong_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[5] ^= 1;
    frame
}
