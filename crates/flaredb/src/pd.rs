//! The placement driver as a store sees it: somewhere to ask, at one of several addresses. Whoever answers is asked again;
//! after a failure the next one is.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use placement::router::{Asked, Locate};
use proto::placement as pb;
use rpc::client::{PlacementClient, Tls};
use rpc::server::BoxFuture;
use tonic::transport::Channel;
use tonic::{Code, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What a store asks the placement driver for by itself.
pub trait Placement: Send + Sync {
    /// In words.
    fn addresses(&self) -> String;
    fn register(&self, request: pb::RegisterRequest) -> Asking<'_, pb::RegisterResponse>;
    fn heartbeat(&self, request: pb::HeartbeatRequest) -> Asking<'_, pb::HeartbeatResponse>;
}

/// A question under way.
pub type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send + 'a>>;

/// Cheap to share by reference.
pub struct PdClient {
    addresses: Vec<String>,
    /// For `https://`; with the store's own certificate.
    tls: Option<Tls>,
    /// The address in use.
    current: AtomicUsize,
    channel: Mutex<Option<Channel>>,
    heartbeats: Mutex<Heartbeats>,
}

#[derive(Default)]
struct Heartbeats {
    answered: u64,
    failed: u64,
    last: Option<Instant>,
}

/// How the placement driver does, as this store sees it.
#[derive(Clone, Copy, Debug, Default)]
pub struct PdStats {
    /// Heartbeats.
    pub answered: u64,
    pub failed: u64,
    /// Since the last one was answered; none was so far.
    pub age: Option<Duration>,
}

impl PdClient {
    /// `addresses`: URLs, at least one.
    pub fn new(addresses: Vec<String>, tls: Option<Tls>) -> PdClient {
        assert!(!addresses.is_empty(), "the configuration has one");
        let (current, channel, heartbeats) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        PdClient { addresses, tls, current, channel, heartbeats }
    }

    pub fn stats(&self) -> PdStats {
        let Heartbeats { answered, failed, last } = *self.heartbeats.lock();
        PdStats { answered, failed, age: last.map(|last| last.elapsed()) }
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

impl Placement for PdClient {
    fn addresses(&self) -> String {
        self.addresses.join(", ")
    }

    fn register(&self, request: pb::RegisterRequest) -> Asking<'_, pb::RegisterResponse> {
        Box::pin(self.ask(move |mut client| {
            let request = request.clone();
            Box::pin(async move { client.register(request).await })
        }))
    }

    fn heartbeat(&self, request: pb::HeartbeatRequest) -> Asking<'_, pb::HeartbeatResponse> {
        let asked = self.ask(move |mut client| {
            let request = request.clone();
            Box::pin(async move { client.heartbeat(request).await })
        });
        Box::pin(async move {
            let answer = asked.await;
            let mut heartbeats = self.heartbeats.lock();
            match &answer {
                Ok(_) => {
                    heartbeats.answered += 1;
                    heartbeats.last = Some(Instant::now());
                }
                Err(_) => heartbeats.failed += 1,
            }
            answer
        })
    }
}

impl Locate for PdClient {
    fn region_at(self: Arc<Self>, key: Bytes) -> Asked<pb::GetRegionResponse> {
        Box::pin(async move {
            self.ask(|mut client| {
                let request = pb::GetRegionRequest { key: key.clone() };
                Box::pin(async move { client.get_region(request).await })
            })
            .await
        })
    }
}

/// Whether another address may do better: nobody who leads the placement driver has answered.
pub(crate) fn is_of_the_way(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
