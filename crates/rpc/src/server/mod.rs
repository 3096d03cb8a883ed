//! The server side: one listener, gRPC over HTTP/2 and plain HTTP/1.1 on it.
//!
//! The life of a connection: accepted, or refused when too many are open → its first bytes tell HTTP/2 from HTTP/1.1 →
//! it is served by one task until the peer leaves or the server stops. What a call is answered with is the business of the
//! [`Service`].
//!
//! TLS comes in below ([`tls`]): [`Server::serve_connection`] takes any byte stream.
//!
//! Who has connected and says nothing counts as *silent*. Of these there are few enough that places are left for others: the
//! oldest gives way to the next.
//!
//! Bounds: connections in all, per address and silent, the time for the first bytes and for headers, header bytes, streams,
//! message bytes, bytes of unfinished requests, and bytes that wait to be written (`http2::session`).

mod browser;
mod http1;
mod http2;
mod metadata;
mod service;
mod stats;
mod stop;
mod stream;
mod tls;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

pub use browser::names_in;
pub use metadata::Metadata;
pub use service::{Answer, BoxFuture, Call, HttpBody, Kind, Method, Service, http_body};
pub use stats::ServerStats;
pub use stream::{OUTBOX_BYTES_MAX, RequestStream, ResponseSink};
pub use tls::Tls;

use crate::Status;
use http2::PREFACE;
use stats::Counters;
use stop::Stop;

/// The bounds and timings of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The largest request message.
    pub message_bytes_max: usize,
    /// Streams open at once on one connection.
    pub streams_max: usize,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    /// Connections on which nothing was said yet.
    pub silent_max: usize,
    /// From accepting a connection to its first bytes.
    pub handshake_timeout: Duration,
    /// From the first byte of an HTTP/1.1 request to the end of its headers.
    pub header_timeout: Duration,
    pub header_bytes_max: usize,
    pub http_body_bytes_max: usize,
    /// Unfinished requests held for one connection.
    pub held_bytes_max: usize,
    /// … and for all connections together.
    pub held_bytes_by_all_max: usize,
    /// A peer that was silent for so long is pinged …
    pub keepalive_interval: Duration,
    /// … and has so long to answer.
    pub keepalive_timeout: Duration,
    /// How long calls may go on once the server stops.
    pub drain_timeout: Duration,
    /// What streaming calls end with when the server stops.
    pub stopping: Status,
    /// Host names under which browsers may ask, beside addresses and `localhost`.
    pub names: Vec<String>,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            message_bytes_max: 2 << 20,
            streams_max: 65_536,
            connections_max: 20_000,
            connections_per_address_max: 10_000,
            silent_max: 8_000,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            header_bytes_max: 64 << 10,
            http_body_bytes_max: 4 << 20,
            held_bytes_max: 64 << 20,
            held_bytes_by_all_max: 1 << 30,
            keepalive_interval: Duration::from_secs(60),
            keepalive_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(5),
            stopping: Status::unavailable("etcdserver: server stopped"),
            names: Vec::new(),
        }
    }
}

impl ServerConfig {
    fn limits(&self) -> http2::Limits {
        http2::Limits {
            message_bytes_max: self.message_bytes_max,
            streams_max: self.streams_max,
            header_bytes_max: self.header_bytes_max,
            http_body_bytes_max: self.http_body_bytes_max,
            held_bytes_max: self.held_bytes_max,
            held_bytes_by_all_max: self.held_bytes_by_all_max,
            stream_window_bytes: 1 << 20,
            connection_window_bytes: 16 << 20,
        }
    }
}

/// A service and the connections to it.
pub struct Server<S> {
    service: Arc<S>,
    config: Arc<ServerConfig>,
    counters: Arc<Counters>,
    stop: Arc<Stop>,
    open: Mutex<Open>,
    /// A connection was closed.
    closed: Notify,
}

#[derive(Default)]
struct Open {
    connections: usize,
    by_address: HashMap<IpAddr, usize>,
    /// The number of the next connection.
    next: u64,
    /// By number; its task as soon as there is one.
    silent: BTreeMap<u64, Option<AbortHandle>>,
}

impl<S: Service> Server<S> {
    pub fn new(service: Arc<S>, config: ServerConfig) -> Arc<Server<S>> {
        Arc::new(Server {
            service,
            config: Arc::new(config),
            counters: Arc::default(),
            stop: Arc::default(),
            open: Mutex::default(),
            closed: Notify::new(),
        })
    }

    /// Accepts connections, each on a task of the current runtime, until [`Server::stop`]; then waits until the
    /// connections have ended, which the drain timeout bounds. May run for several listeners at once.
    pub async fn serve(self: &Arc<Self>, listener: TcpListener) {
        self.serve_with(listener, None).await;
    }

    /// As [`Server::serve`], over TLS if there is any.
    pub async fn serve_with(self: &Arc<Self>, listener: TcpListener, tls: Option<Arc<Tls>>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.stopped() => break,
            };
            match accepted {
                Ok((io, peer)) => {
                    // A socket that refuses the option is about to fail anyway.
                    let _ = io.set_nodelay(true);
                    if let Some(guest) = self.admit(peer) {
                        let (server, tls, number) = (self.clone(), tls.clone(), guest.number);
                        let task = tokio::spawn(async move {
                            match tls {
                                None => server.welcome(io, peer, Some(number)).await,
                                Some(tls) => {
                                    let patience = server.config.handshake_timeout;
                                    let shaken = tokio::time::timeout(patience, tls.accept(io, peer)).await;
                                    if let Ok(Some(io)) = shaken {
                                        let shown = io.get_ref().1.peer_certificates().map(<[_]>::to_vec);
                                        tls.until_cut(shown, server.welcome(io, peer, Some(number))).await;
                                    }
                                }
                            }
                            drop(guest);
                        });
                        self.attend(number, task.abort_handle());
                    }
                }
                Err(error) => {
                    // Out of file descriptors, most likely: those in use must be given back first.
                    tracing::warn!(target: "chainfire_network", "Cannot accept a connection, reason={error}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        drop(listener);
        loop {
            let closed = self.closed.notified();
            if self.open.lock().connections == 0 {
                return;
            }
            closed.await;
        }
    }

    /// Serves one connection to its end, over whatever carries it.
    pub async fn serve_connection<IO>(&self, io: IO, peer: SocketAddr)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.welcome(io, peer, None).await;
    }

    async fn welcome<IO>(&self, mut io: IO, peer: SocketAddr, number: Option<u64>)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let first = tokio::time::timeout(self.config.handshake_timeout, first_bytes(&mut io)).await;
        let Ok(Ok((is_http2, head))) = first else { return };
        if let Some(number) = number {
            self.open.lock().silent.remove(&number);
        }
        let (service, config, stop) = (self.service.clone(), self.config.clone(), self.stop.clone());
        if is_http2 {
            let input = &head[PREFACE.len()..];
            http2::Driver::new(io, input, service, peer, config, self.counters.clone(), stop).await;
        } else {
            http1::serve(io, head.freeze(), service, peer, config, stop).await;
        }
    }

    /// Stops accepting and asks every connection to end.
    pub fn stop(&self) {
        self.stop.stop();
    }

    pub fn stats(&self) -> ServerStats {
        self.counters.stats()
    }

    fn admit(self: &Arc<Self>, peer: SocketAddr) -> Option<Guest<S>> {
        let mut open = self.open.lock();
        let here = open.by_address.get(&peer.ip()).copied().unwrap_or(0);
        if open.connections >= self.config.connections_max || here >= self.config.connections_per_address_max {
            self.counters.connection_refused();
            return None;
        }
        open.connections += 1;
        open.by_address.insert(peer.ip(), here + 1);
        open.next += 1;
        let number = open.next;
        open.silent.insert(number, None);
        self.counters.connection_accepted();
        Some(Guest { server: self.clone(), address: peer.ip(), number })
    }

    /// The task of a connection, in case that it has to give way: if too many say nothing, the oldest ends.
    fn attend(&self, number: u64, task: AbortHandle) {
        let mut open = self.open.lock();
        if let Some(silent) = open.silent.get_mut(&number) {
            *silent = Some(task);
        }
        let crowded = open.silent.len() > self.config.silent_max;
        let oldest = if crowded { open.silent.pop_first().and_then(|(_, task)| task) } else { None };
        drop(open);
        if let Some(oldest) = oldest {
            oldest.abort();
            self.counters.connection_refused();
        }
    }
}

/// A connection's place among those that are open.
struct Guest<S> {
    server: Arc<Server<S>>,
    address: IpAddr,
    number: u64,
}

impl<S> Drop for Guest<S> {
    fn drop(&mut self) {
        let mut open = self.server.open.lock();
        open.connections -= 1;
        open.silent.remove(&self.number);
        if let Some(here) = open.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                open.by_address.remove(&self.address);
            }
        }
        drop(open);
        self.server.counters.connection_closed();
        self.server.closed.notify_waiters();
    }
}

/// Reads until it is clear whether the peer speaks HTTP/2; returns all that was read.
async fn first_bytes(io: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(bool, BytesMut)> {
    let mut head = BytesMut::with_capacity(4096);
    loop {
        if io.read_buf(&mut head).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let compared = head.len().min(PREFACE.len());
        if head[..compared] != PREFACE[..compared] {
            return Ok((false, head));
        }
        if compared == PREFACE.len() {
            return Ok((true, head));
        }
    }
}
