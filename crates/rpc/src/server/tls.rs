//! TLS below HTTP: the handshake, and a word for clients that come without.
//!
//! The configuration is asked for at every connection, so that certificates can be changed while the server runs.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::tls_words::of_io;

/// Where the configuration of the moment comes from.
pub struct Tls {
    pub config: Box<dyn Fn() -> Arc<ServerConfig> + Send + Sync>,
    /// Who was complained about, why, and when: one line per address, reason and minute.
    said: Mutex<BTreeMap<(IpAddr, String), Instant>>,
}

const SAY_EVERY: Duration = Duration::from_secs(60);
const SAID_MAX: usize = 256;
/// The first byte of a TLS connection: a handshake record.
const HANDSHAKE: u8 = 0x16;
const ADVICE: &str = "this port speaks TLS: use https:// and the cluster's CA";
/// Bytes of a plain request that are read and thrown away before the connection is closed.
const PLAIN_BYTES_MAX: usize = 64 << 10;
const PLAIN_PATIENCE: Duration = Duration::from_secs(1);

impl Tls {
    pub fn new(config: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static) -> Tls {
        Tls { config: Box::new(config), said: Mutex::default() }
    }

    /// `None`: the client was no client of this port, and was told so.
    pub(super) async fn accept(&self, io: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let mut first = [0];
        if io.peek(&mut first).await.is_ok_and(|count| count == 1 && first[0] != HANDSHAKE) {
            self.complain(from, "a client without TLS; it was told to use https://");
            turn_away(io).await;
            return None;
        }
        match TlsAcceptor::from((self.config)()).accept(io).await {
            Ok(stream) => Some(stream),
            // Whoever only looks whether the port is open says nothing.
            Err(error)
                if error.kind() == io::ErrorKind::UnexpectedEof || error.kind() == io::ErrorKind::ConnectionReset =>
            {
                None
            }
            Err(error) => {
                self.complain(from, &of_io(&error));
                None
            }
        }
    }

    fn complain(&self, from: SocketAddr, why: &str) {
        let mut said = self.said.lock();
        said.retain(|_, when| when.elapsed() < SAY_EVERY);
        if said.len() < SAID_MAX && said.insert((from.ip(), why.to_owned()), Instant::now()).is_none() {
            tracing::warn!(target: "chainfire_network", "TLS handshake failed, addr={from} why={why} code=CF3104");
        }
    }
}

/// Tells a client of plain HTTP what it should do, in the protocol that it speaks.
async fn turn_away(mut io: TcpStream) {
    let mut request = vec![0; 4096];
    let Ok(Ok(length)) = tokio::time::timeout(PLAIN_PATIENCE, io.read(&mut request)).await else { return };
    let answer = if request[..length].starts_with(b"PRI ") { go_away() } else { bad_request() };
    if io.write_all(&answer).await.is_err() || io.shutdown().await.is_err() {
        return;
    }
    // Closing with bytes unread would take the answer back.
    let mut rest = io.take(PLAIN_BYTES_MAX as u64);
    let mut sink = tokio::io::sink();
    let drain = tokio::io::copy(&mut rest, &mut sink);
    // However it ends, the connection is closed.
    let _ = tokio::time::timeout(PLAIN_PATIENCE, drain).await;
}

fn bad_request() -> Vec<u8> {
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{ADVICE}\n",
        ADVICE.len() + 1
    )
    .into_bytes()
}

/// HTTP/2: our settings, then GOAWAY with INADEQUATE_SECURITY and the advice as debug data.
fn go_away() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const INADEQUATE_SECURITY: u32 = 0xc;
    let mut out = SETTINGS.to_vec();
    let length = 8 + ADVICE.len();
    out.extend_from_slice(&[0, 0, length as u8, 7, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    out.extend_from_slice(ADVICE.as_bytes());
    out
}
