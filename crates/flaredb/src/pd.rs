//! The placement driver as a store sees it: asked for itself, for its clients' keys, and told how the store does.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use proto::placement as pb;
use rpc::client::router::{Asked, Locate};
use rpc::client::{PlacementDriver, Tls};
use tonic::Status;

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
    members: Arc<PlacementDriver>,
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
    /// `addresses`: URLs, at least one. `tls`: with the store's own certificate.
    pub fn new(addresses: Vec<String>, tls: Option<Tls>) -> PdClient {
        PdClient { members: Arc::new(PlacementDriver::new(addresses, tls)), heartbeats: Mutex::default() }
    }

    /// Members of the placement driver beside those that the configuration names.
    pub fn learn(&self, members: &[String]) {
        self.members.learn(members);
    }

    pub fn stats(&self) -> PdStats {
        let Heartbeats { answered, failed, last } = *self.heartbeats.lock();
        PdStats { answered, failed, age: last.map(|last| last.elapsed()) }
    }
}

impl Placement for PdClient {
    fn addresses(&self) -> String {
        self.members.addresses().join(", ")
    }

    fn register(&self, request: pb::RegisterRequest) -> Asking<'_, pb::RegisterResponse> {
        Box::pin(self.members.ask(move |mut client| {
            let request = request.clone();
            Box::pin(async move { client.register(request).await })
        }))
    }

    fn heartbeat(&self, request: pb::HeartbeatRequest) -> Asking<'_, pb::HeartbeatResponse> {
        let asked = self.members.ask(move |mut client| {
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
        self.members.clone().region_at(key)
    }
}
