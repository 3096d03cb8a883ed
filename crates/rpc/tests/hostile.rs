//! Peers that are slow, odd or ill-meaning, spoken for by raw sockets and a bare HTTP/2 client. After each, the
//! server must still serve others.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Running, start};
use proto::etcdserverpb as pb;
use rpc::client::KvClient;
use rpc::server::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

async fn still_serves(running: &Running) {
    let mut kv = KvClient::new(running.channel().await);
    let put = pb::PutRequest { value: Bytes::from_static(b"alive"), ..Default::default() };
    assert_eq!(kv.put(put).await.unwrap().into_inner().prev_kv.unwrap().value, "alive");
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// Says the preface and these bytes, then reads until the server closes; fails when it does not.
async fn said_goodbye(running: &Running, bytes: &[u8]) -> Vec<u8> {
    let mut io = TcpStream::connect(running.address).await.unwrap();
    let mut seen = Vec::new();
    let talk = async {
        io.write_all(PREFACE).await?;
        io.write_all(bytes).await?;
        io.read_to_end(&mut seen).await
    };
    // A reset while we still write is a goodbye as well.
    let _ = tokio::time::timeout(Duration::from_secs(5), talk).await.expect("the connection was not closed");
    seen
}

/// A page from elsewhere asks for nothing, in whichever protocol its browser speaks; programs are not hindered.
#[tokio::test]
async fn pages_from_elsewhere_are_refused() {
    let running = start(ServerConfig { names: vec!["etcd1.example".to_owned()], ..ServerConfig::default() }).await;
    let here = running.address;
    for (fields, status) in [
        (format!("host: {here}"), 200),
        ("host: any.example\r\nuser-agent: curl/8.0".to_owned(), 200),
        (format!("host: {here}\r\norigin: http://{here}"), 200),
        ("host: etcd1.example:2379\r\nuser-agent: Mozilla/5.0".to_owned(), 200),
        (format!("host: {here}\r\norigin: http://evil.example"), 403),
        ("host: evil.example\r\norigin: http://evil.example".to_owned(), 403),
        ("host: evil.example\r\nuser-agent: Mozilla/5.0".to_owned(), 403),
    ] {
        let mut io = TcpStream::connect(here).await.unwrap();
        let request = format!("GET /health HTTP/1.1\r\n{fields}\r\nconnection: close\r\n\r\n");
        io.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        io.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{fields}: {answer}");
        assert!(!answer.to_lowercase().contains("access-control-allow"), "{answer}");
    }
    let mut kv = KvClient::new(running.channel().await);
    let mut request = tonic::Request::new(pb::PutRequest::default());
    request.metadata_mut().insert("origin", "http://evil.example".parse().unwrap());
    assert_eq!(kv.put(request).await.unwrap_err().code(), tonic::Code::PermissionDenied);
    let mut watch = rpc::client::WatchClient::new(running.channel().await);
    let mut request = tonic::Request::new(tokio_stream::empty());
    request.metadata_mut().insert("origin", "http://evil.example".parse().unwrap());
    let answered = match watch.watch(request).await {
        Ok(answers) => answers.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    };
    assert_eq!(answered.unwrap_err().code(), tonic::Code::PermissionDenied);
    still_serves(&running).await;
}

#[tokio::test]
async fn http1_is_served_beside() {
    let running = start(ServerConfig::default()).await;
    let mut io = TcpStream::connect(running.address).await.unwrap();
    let mut answer = vec![0; 4096];
    for _ in 0..2 {
        io.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let read = io.read(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer[..read]).into_owned();
        assert!(text.starts_with("HTTP/1.1 200 OK") && text.ends_with("{\"health\":\"true\"}"), "{text}");
    }
    let mut io = TcpStream::connect(running.address).await.unwrap();
    io.write_all(b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let _ = io.write_all(&vec![b'x'; 5 << 20]).await;
    let mut text = Vec::new();
    let _ = io.read_to_end(&mut text).await;
    assert!(text.is_empty() || text.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&text));
    still_serves(&running).await;
}

#[tokio::test]
async fn silent_and_slow_beginners_are_dropped() {
    let brief = Duration::from_millis(200);
    let config = ServerConfig { handshake_timeout: brief, header_timeout: brief, ..ServerConfig::default() };
    let running = start(config).await;
    for beginning in [&b""[..], b"PRI * HT", b"GET /health HTTP/1.1\r\nhost:", b"P"] {
        let mut io = TcpStream::connect(running.address).await.unwrap();
        io.write_all(beginning).await.unwrap();
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), io.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "{beginning:?} was waited for");
    }
    still_serves(&running).await;
}

#[tokio::test]
async fn a_peer_that_stopped_answering_is_noticed() {
    let brief = Duration::from_millis(150);
    let config = ServerConfig { keepalive_interval: brief, keepalive_timeout: brief, ..ServerConfig::default() };
    let running = start(config).await;
    let seen = said_goodbye(&running, SETTINGS).await;
    assert!(seen.windows(8).any(|bytes| bytes == b"chainfir"), "it was pinged before");
}

#[tokio::test]
async fn connections_have_a_bound() {
    let running = start(ServerConfig { connections_per_address_max: 2, ..ServerConfig::default() }).await;
    let _first = running.channel().await;
    let second = running.channel().await;
    let mut third = TcpStream::connect(running.address).await.unwrap();
    assert_eq!(third.read(&mut [0; 16]).await.unwrap_or(0), 0, "closed at once");
    drop(second);
    common::eventually("the place is free again", || running.server.stats().connections_open < 2).await;
    still_serves(&running).await;
    assert_eq!(running.server.stats().connections_refused, 1);
}

#[tokio::test]
async fn calls_of_a_connection_have_a_bound() {
    let running = start(ServerConfig { streams_max: 2, ..ServerConfig::default() }).await;
    let mut io = TcpStream::connect(running.address).await.unwrap();
    let get = [0x82, 0x86, 0x84];
    let begun = [1, 3, 5].map(|stream| frame(1, 4, stream, &get)).concat();
    io.write_all(&[PREFACE, SETTINGS, &begun].concat()).await.unwrap();
    common::eventually("the third is refused", || running.server.stats().streams_refused == 1).await;
    still_serves(&running).await;
}

#[tokio::test]
async fn the_oldest_silent_connection_gives_way() {
    let running = start(ServerConfig { silent_max: 2, ..ServerConfig::default() }).await;
    let speaks = running.channel().await;
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(TcpStream::connect(running.address).await.unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(silent[0].read(&mut [0; 16]).await.unwrap_or(0), 0, "the oldest was closed");
    let waits = tokio::time::timeout(std::time::Duration::from_millis(200), silent[2].read(&mut [0; 16])).await;
    assert!(waits.is_err(), "the newest was not");
    drop(speaks);
    still_serves(&running).await;
}

#[tokio::test]
async fn broken_protocol_ends_the_connection() {
    let running = start(ServerConfig::default()).await;
    let get = [0x82, 0x86, 0x84];
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a first frame that is not SETTINGS", frame(6, 0, 0, &[0; 8])),
        ("a frame too large", [SETTINGS, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
        ("DATA on an idle stream", [SETTINGS, &frame(0, 1, 1, b"x")].concat()),
        ("an even stream", [SETTINGS, &frame(1, 5, 2, &get)].concat()),
        ("a bad header block", [SETTINGS, &frame(1, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff])].concat()),
        ("an interrupted header block", [SETTINGS, &frame(1, 1, 1, &get), &frame(6, 0, 0, &[0; 8])].concat()),
        ("a short PING", [SETTINGS, &frame(6, 0, 0, &[0; 7])].concat()),
        ("a push", [SETTINGS, &frame(5, 4, 1, &get)].concat()),
        ("a window of zero", [SETTINGS, &frame(8, 0, 0, &[0; 4])].concat()),
        ("a window beyond the largest", [SETTINGS, &frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])].concat()),
        ("padding beyond the payload", [SETTINGS, &frame(1, 0xd, 1, &[9, 0x82])].concat()),
        ("odd SETTINGS", frame(4, 0, 0, &[0; 5])),
    ];
    for (what, bytes) in cases {
        let seen = said_goodbye(&running, &bytes).await;
        let goaway = seen.windows(2).any(|pair| pair == [7, 0]);
        assert!(goaway, "{what}: no GOAWAY in {seen:?}");
    }
    still_serves(&running).await;
}

#[tokio::test]
async fn floods_end_the_connection() {
    let running = start(ServerConfig::default()).await;
    let post = [0x83, 0x86, 0x84, 0x5f, 16].iter().chain(b"application/grpc").copied().collect::<Vec<u8>>();
    let pings = frame(6, 0, 0, &[0; 8]).repeat(20_000);
    let settings = SETTINGS.repeat(20_000);
    let mut resets = Vec::new();
    for stream in (1..40_001).step_by(2) {
        resets.extend(frame(1, 4, stream, &post));
        resets.extend(frame(3, 0, stream, &[0, 0, 0, 8]));
    }
    let mut empty = frame(1, 4, 1, &[0x82, 0x86, 0x84]);
    empty.extend(frame(0, 0, 1, b"").repeat(20_000));
    let mut continuations = frame(1, 0, 1, &[0x82]);
    continuations.extend(frame(9, 0, 1, b"").repeat(20_000));
    let mut large = frame(1, 0, 1, &[0x82]);
    large.extend(frame(9, 0, 1, &[0x82; 16_000]).repeat(10));
    for flood in [pings, settings, resets, empty, continuations, large] {
        said_goodbye(&running, &[SETTINGS, &flood].concat()).await;
    }
    still_serves(&running).await;
}

#[tokio::test]
async fn noise_does_no_harm() {
    let running = start(ServerConfig::default()).await;
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    for round in 0..60 {
        let mut io = TcpStream::connect(running.address).await.unwrap();
        let mut bytes = if round % 3 == 0 { Vec::new() } else { [PREFACE, SETTINGS].concat() };
        for _ in 0..40 {
            let payload: Vec<u8> = (0..usize::from(next()) / 4).map(|_| next()).collect();
            match round % 3 {
                2 => bytes.extend(frame(next() % 10, next(), u32::from(next() % 8), &payload)),
                _ => bytes.extend(payload),
            }
        }
        let _ = io.write_all(&bytes).await;
        let mut answer = [0; 1024];
        let _ = tokio::time::timeout(Duration::from_millis(20), io.read(&mut answer)).await;
    }
    still_serves(&running).await;
}

/// A bare HTTP/2 client: small pieces, tiny windows, padding-free oddities of gRPC.
async fn bare_call(running: &Running, body: &[u8], piece: usize, window: u32) -> (http::HeaderMap, Vec<u8>) {
    bare_call_of(running, "Put", "10S", body, piece, window).await
}

async fn bare_call_of(
    running: &Running,
    method: &str,
    timeout: &str,
    body: &[u8],
    piece: usize,
    window: u32,
) -> (http::HeaderMap, Vec<u8>) {
    let io = TcpStream::connect(running.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window).header_table_size(0);
    let (mut send, connection) = builder.handshake::<_, Bytes>(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://host/etcdserverpb.KV/{method}"))
        .header("grpc-timeout", timeout)
        .header("content-type", "application/grpc+proto")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut stream) = send.send_request(request, false).unwrap();
    for piece in body.chunks(piece) {
        let _ = stream.send_data(Bytes::copy_from_slice(piece), false);
        tokio::task::yield_now().await;
    }
    let _ = stream.send_trailers(http::HeaderMap::new());
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    let (head, mut answer) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(Ok(data)) = answer.data().await {
        bytes.extend_from_slice(&data);
        answer.flow_control().release_capacity(data.len()).unwrap();
    }
    let trailers = answer.trailers().await.unwrap();
    (trailers.unwrap_or(head.headers), bytes)
}

#[tokio::test]
async fn odd_calls_are_answered_as_grpc_wants() {
    let running = start(ServerConfig::default()).await;
    let put = [0, 0, 0, 0, 7, 0x12, 5, b'a', b'b', b'c', b'd', b'e'];
    for (piece, window) in [(1, 3), (3, 1), (100, 65_535)] {
        let (trailers, bytes) = bare_call(&running, &put, piece, window).await;
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(bytes[..5], [0, 0, 0, 0, bytes.len() as u8 - 5]);
        assert!(bytes.ends_with(b"abcde"));
    }
    let twice = [put, put].concat();
    for (body, code) in [
        (&put[..9], "13"),
        (&[][..], "13"),
        (&twice[..], "13"),
        (&[1, 0, 0, 0, 1, 0][..], "13"),
        (&[0, 0x7f, 0xff, 0xff, 0xff][..], "8"),
        (&[0, 0, 0, 0, 2, 0xff, 0xff][..], "13"),
    ] {
        let (trailers, _) = bare_call(&running, body, 100, 65_535).await;
        assert_eq!(trailers["grpc-status"], code, "{body:?}");
    }
    let wait_a_minute = [0, 0, 0, 0, 4, 0x18, 0xe0, 0xd4, 0x03];
    for (timeout, code, text) in [("100m", "4", "context deadline exceeded"), ("soon", "13", "malformed grpc-timeout")]
    {
        let (trailers, _) = bare_call_of(&running, "Range", timeout, &wait_a_minute, 100, 65_535).await;
        assert_eq!(trailers["grpc-status"], code);
        assert_eq!(trailers["grpc-message"], text);
    }
    still_serves(&running).await;
}

#[tokio::test]
async fn plain_http_over_http2() {
    let running = start(ServerConfig::default()).await;
    let io = TcpStream::connect(running.address).await.unwrap();
    let (mut send, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for (path, length) in [("health", 17), ("large", 1 << 20), ("health", 17)] {
        let request = http::Request::get(format!("http://host/{path}")).body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let mut read = 0;
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            read += data.len();
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        assert_eq!(read, length, "{path}");
    }
}
