//! Plain counters of a server, for whoever renders metrics.

use std::sync::atomic::{AtomicU64, Ordering};

use super::http2::HeldByAll;

/// As of the moment they were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    pub connections_open: u64,
    pub connections_accepted: u64,
    /// Turned away because too many were open, in all or from their address.
    pub connections_refused: u64,
    /// Calls turned away because too many were open on their connection.
    pub streams_refused: u64,
    /// gRPC calls handed to the service.
    pub calls_started: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    accepted: AtomicU64,
    closed: AtomicU64,
    refused: AtomicU64,
    streams_refused: AtomicU64,
    calls: AtomicU64,
    /// Bytes of requests in flight.
    pub(super) held: HeldByAll,
}

impl Counters {
    pub(super) fn connection_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connection_closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn connection_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stream_refused(&self) {
        self.streams_refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn call_started(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stats(&self) -> ServerStats {
        let closed = self.closed.load(Ordering::Relaxed);
        let accepted = self.accepted.load(Ordering::Relaxed);
        ServerStats {
            connections_open: accepted.saturating_sub(closed),
            connections_accepted: accepted,
            connections_refused: self.refused.load(Ordering::Relaxed),
            streams_refused: self.streams_refused.load(Ordering::Relaxed),
            calls_started: self.calls.load(Ordering::Relaxed),
        }
    }
}
