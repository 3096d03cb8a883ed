//! The placement driver as a store sees it: somewhere to ask, at one of several addresses. Whoever answers is asked again;
//! after a failure the next one is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::placement as pb;
use rpc::client::{PlacementClient, Tls};
use rpc::server::BoxFuture;
use tonic::transport::Channel;
use tonic::{Code, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Cheap to share by reference.
pub struct PdClient {
    addresses: Vec<String>,
    /// For `https://`; with the store's own certificate.
    tls: Option<Tls>,
    /// The address in use.
    current: AtomicUsize,
    channel: Mutex<Option<Channel>>,
}

impl PdClient {
    /// `addresses`: URLs, at least one.
    pub fn new(addresses: Vec<String>, tls: Option<Tls>) -> PdClient {
        assert!(!addresses.is_empty(), "the configuration has one");
        PdClient { addresses, tls, current: AtomicUsize::new(0), channel: Mutex::default() }
    }

    pub fn addresses(&self) -> String {
        self.addresses.join(", ")
    }

    pub async fn register(&self, request: pb::RegisterRequest) -> Result<pb::RegisterResponse, Status> {
        self.ask(|mut client| {
            let request = request.clone();
            Box::pin(async move { client.register(request).await })
        })
        .await
    }

    pub async fn heartbeat(&self, request: pb::HeartbeatRequest) -> Result<pb::HeartbeatResponse, Status> {
        self.ask(|mut client| {
            let request = request.clone();
            Box::pin(async move { client.heartbeat(request).await })
        })
        .await
    }

    pub async fn get_region(&self, request: pb::GetRegionRequest) -> Result<pb::GetRegionResponse, Status> {
        self.ask(|mut client| {
            let request = request.clone();
            Box::pin(async move { client.get_region(request).await })
        })
        .await
    }

    /// Asks each address once at most, until one answers.
    async fn ask<T>(
        &self,
        call: impl Fn(PlacementClient<Channel>) -> BoxFuture<Result<tonic::Response<T>, Status>>,
    ) -> Result<T, Status> {
        let mut failure = Status::unavailable("no placement driver is known");
        for _ in 0..self.addresses.len() {
            let asked = async {
                let channel = self.connect().await?;
                call(PlacementClient::new(channel)).await
            };
            match tokio::time::timeout(CALL_TIMEOUT, asked).await {
                Ok(Ok(answer)) => return Ok(answer.into_inner()),
                Ok(Err(status)) if !is_of_the_way(&status) => return Err(status),
                Ok(Err(status)) => failure = status,
                Err(_) => failure = Status::deadline_exceeded("context deadline exceeded"),
            }
            self.channel.lock().take();
            self.current.fetch_add(1, Ordering::Relaxed);
        }
        Err(failure)
    }

    async fn connect(&self) -> Result<Channel, Status> {
        if let Some(channel) = &*self.channel.lock() {
            return Ok(channel.clone());
        }
        let address = &self.addresses[self.current.load(Ordering::Relaxed) % self.addresses.len()];
        let connected = rpc::client::connect(address, CONNECT_TIMEOUT, self.tls.as_ref()).await;
        let channel = connected.map_err(|why| Status::unavailable(format!("{address}: {why}")))?;
        *self.channel.lock() = Some(channel.clone());
        Ok(channel)
    }
}

/// Whether another address may do better.
fn is_of_the_way(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
