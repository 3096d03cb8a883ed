//! Client stubs (tonic) for every service, one module per package, and how to reach a server.
//!
//! A server's address may be written with or without a scheme: `127.0.0.1:2379` means `http://127.0.0.1:2379`.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint, Error};

mod stubs {
    #![allow(clippy::all, missing_docs)]
    include!(concat!(env!("OUT_DIR"), "/stubs.rs"));
}

pub use stubs::centra::chainfire::v1::admin_client::AdminClient;
pub use stubs::etcdserverpb::{
    auth_client::AuthClient, cluster_client::ClusterClient, kv_client::KvClient, lease_client::LeaseClient,
    maintenance_client::MaintenanceClient, watch_client::WatchClient,
};
pub use stubs::grpc::health::v1::health_client::HealthClient;
pub use stubs::v3electionpb::election_client::ElectionClient;
pub use stubs::v3lockpb::lock_client::LockClient;

/// The largest answer a client of ours takes. Servers do not limit what they send.
pub const RESPONSE_BYTES_MAX: usize = i32::MAX as usize;

/// The endpoint at an address, with windows that let one stream use a fast link.
///
/// # Errors
/// The address is not a URI.
pub fn endpoint(address: &str, connect_timeout: Duration) -> Result<Endpoint, Error> {
    let uri = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .http2_keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10)))
}

/// Connects to a server.
///
/// # Errors
/// The address is no URI, nobody listens there, or the time ran out.
pub async fn connect(address: &str, timeout: Duration) -> Result<Channel, Error> {
    endpoint(address, timeout)?.connect().await
}
