//! TLS below HTTP: the handshake, and a word for clients that come without.
//!
//! The configuration is asked for at every connection, so that certificates can be changed while the server runs.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::plain_http;
use crate::tls_words::of_io;

/// Where the configuration of the moment comes from.
pub struct Tls {
    pub config: Box<dyn Fn() -> Arc<ServerConfig> + Send + Sync>,
    watched: Option<Box<Watched>>,
    /// Who was complained about, why, and when: one line per address, reason and minute.
    said: Mutex<BTreeMap<(IpAddr, String), Instant>>,
}

/// Told of each connection: what the client showed, and whom to notify for it to be cut. What comes back is dropped when the
/// connection has ended.
type Watched = dyn Fn(Option<&[CertificateDer<'static>]>, Arc<Notify>) -> Box<dyn Any + Send> + Send + Sync;

const SAY_EVERY: Duration = Duration::from_secs(60);
const SAID_MAX: usize = 256;
/// The first byte of a TLS connection: a handshake record.
const HANDSHAKE: u8 = 0x16;
const ADVICE: &str = "this port speaks TLS: use https:// and the cluster's CA";

impl Tls {
    pub fn new(config: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static) -> Tls {
        Tls { config: Box::new(config), watched: None, said: Mutex::default() }
    }

    /// With somebody who cuts connections when their certificates are not good any more.
    pub fn watched(
        mut self,
        watched: impl Fn(Option<&[CertificateDer<'static>]>, Arc<Notify>) -> Box<dyn Any + Send> + Send + Sync + 'static,
    ) -> Tls {
        self.watched = Some(Box::new(watched));
        self
    }

    /// Serves a connection until it has ended or is to be cut.
    pub(super) async fn until_cut(
        &self,
        shown: Option<Vec<CertificateDer<'static>>>,
        serving: impl Future<Output = ()>,
    ) {
        let Some(watched) = &self.watched else { return serving.await };
        let cut = Arc::new(Notify::new());
        let _standing = watched(shown.as_deref(), cut.clone());
        tokio::select! {
            biased;
            () = serving => {}
            () = cut.notified() => {}
        }
    }

    /// `None`: the client was no client of this port, and was told so.
    pub(super) async fn accept(&self, io: TcpStream, from: SocketAddr) -> Option<TlsStream<TcpStream>> {
        let mut first = [0];
        if io.peek(&mut first).await.is_ok_and(|count| count == 1 && first[0] != HANDSHAKE) {
            self.complain(from, "a client without TLS; it was told to use https://");
            plain_http::turn_away(io, ADVICE).await;
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
