//! Client stubs (tonic) for every service, one module per package, and how to reach a server.
//!
//! A server's address may be written with or without a scheme: `127.0.0.1:2379` means `http://127.0.0.1:2379`. With
//! `https://` the connection is made with TLS ([`Tls`], `connector`).

mod connector;
mod page;
mod placement;
pub mod router;
mod tls;

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Uri;
use tokio::sync::oneshot;
use tonic::transport::{Channel, Endpoint, Error};

mod stubs {
    #![allow(clippy::all, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
}

pub use stubs::centra::chainfire::v1::admin_client::AdminClient;
pub use stubs::centra::flaredb::v1::raw_client::RawClient;
pub use stubs::centra::placement::v1::placement_client::PlacementClient;
pub use stubs::etcdserverpb::{
    auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
pub use stubs::grpc::health::v1::health_client::HealthClient;
pub use stubs::v3electionpb::election_client::ElectionClient;
pub use stubs::v3lockpb::lock_client::LockClient;

pub use connector::{Connection, Connector, connect as connect_stream};
pub use page::{PageAnswer, exchange, page};
pub use placement::{PlacementDriver, is_of_the_way};
pub use router::Router;
pub use tls::{Tls, TlsFiles};

/// The largest answer a client of ours takes. Servers do not limit what they send.
pub const RESPONSE_BYTES_MAX: usize = i32::MAX as usize;

/// What a server may send on one stream ahead of its reader, unless said otherwise.
pub const WINDOW_BYTES: u32 = 4 << 20;
/// Streams whose windows fit into their connection's.
const WINDOWS: u32 = 4;

/// The endpoint at an address, with windows that let one stream use a fast link.
///
/// # Errors
/// The address is not a URI.
pub fn endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint, Error> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * WINDOWS)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10)))
}

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// It could not be made.
    Unreachable(Error),
    /// It was made, and what the server said first was no.
    TurnedAway(String),
    TimedOut,
}

impl fmt::Display for ConnectError {
    /// In a few words, without the address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            ConnectError::TimedOut => return f.write_str("connection timeout"),
            ConnectError::TurnedAway(why) => return f.write_str(why),
            ConnectError::Unreachable(error) => error,
        };
        let mut cause: &(dyn std::error::Error + 'static) = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => f.write_str("connection refused"),
            Some(io::ErrorKind::TimedOut) => f.write_str("connection timeout"),
            _ => write!(f, "{cause}"),
        }
    }
}

/// Connects to a server, with TLS if the address begins with `https://`, and waits for its first word.
///
/// # Errors
/// The address is no URI, nobody listens there, the time ran out, or one side refuses the other: see [`crate::tls_words`].
pub async fn connect(address: &str, timeout: Duration, tls: Option<&Tls>) -> Result<Channel, ConnectError> {
    connect_with(address, timeout, tls, |endpoint| endpoint).await
}

/// As [`connect`]; the server sends at most so many bytes of a stream ahead of its reader, and goes on in pieces of half of that:
/// a reader that takes its time is not served in bursts.
///
/// # Errors
/// As of [`connect`].
pub async fn connect_narrow(
    address: &str,
    timeout: Duration,
    tls: Option<&Tls>,
    window_bytes: u32,
) -> Result<Channel, ConnectError> {
    let window = |endpoint: Endpoint| {
        endpoint
            .initial_stream_window_size(window_bytes)
            .initial_connection_window_size(window_bytes.saturating_mul(WINDOWS))
    };
    connect_with(address, timeout, tls, window).await
}

/// As [`connect`]; a server that has sent nothing for `silent_for` while calls are under way is asked whether it is there, and the
/// connection is broken when it does not say so within `echo_within`: a call that takes long is told from a server that is gone.
///
/// # Errors
/// As of [`connect`].
pub async fn connect_watched(
    address: &str,
    timeout: Duration,
    tls: Option<&Tls>,
    silent_for: Duration,
    echo_within: Duration,
) -> Result<Channel, ConnectError> {
    let watched = |endpoint: Endpoint| endpoint.http2_keep_alive_interval(silent_for).keep_alive_timeout(echo_within);
    connect_with(address, timeout, tls, watched).await
}

async fn connect_with(
    address: &str,
    timeout: Duration,
    tls: Option<&Tls>,
    shape: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, ConnectError> {
    // To tonic it is a plain connection, since the connector takes care of TLS; to the server the request says `https`.
    let secured = address.strip_prefix("https://");
    let plain = secured.map_or_else(|| address.to_owned(), |rest| format!("http://{rest}"));
    let mut endpoint = shape(endpoint(&plain, timeout).map_err(ConnectError::Unreachable)?);
    if secured.is_some() {
        endpoint = endpoint.origin(Uri::try_from(address).unwrap_or_default());
    }
    let (heard, first_word) = oneshot::channel();
    let first = Arc::new(Mutex::new(Some(heard)));
    let connector = Connector { secured: secured.is_some(), tls: tls.cloned(), first };
    let made = async {
        let channel = endpoint.connect_with_connector(connector).await.map_err(ConnectError::Unreachable)?;
        match first_word.await {
            Ok(Err(why)) => Err(ConnectError::TurnedAway(why)),
            // One that was dropped unheard will say why when it is used.
            Ok(Ok(())) | Err(_) => Ok(channel),
        }
    };
    tokio::time::timeout(timeout, made).await.unwrap_or(Err(ConnectError::TimedOut))
}
