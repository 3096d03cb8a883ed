//! The placement driver as its clients see it: somewhere to ask, at one of several addresses. Whoever answers is asked again;
//! after a failure the next one is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::placement as pb;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::router::{Asked, Locate};
use super::{PlacementClient, Tls, connect};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Cheap to share by reference.
pub struct PlacementDriver {
    addresses: Vec<String>,
    /// For `https://`.
    tls: Option<Tls>,
    /// The address in use.
    current: AtomicUsize,
    channel: Mutex<Option<Channel>>,
}

impl PlacementDriver {
    /// `addresses`: URLs of members, at least one.
    pub fn new(addresses: Vec<String>, tls: Option<Tls>) -> PlacementDriver {
        assert!(!addresses.is_empty(), "whoever asks knows whom");
        PlacementDriver { addresses, tls, current: AtomicUsize::new(0), channel: Mutex::default() }
    }

    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Asks each address once at most, until one answers.
    ///
    /// # Errors
    /// What the leader said, or why the last of them was no way to it.
    pub async fn ask<T>(&self, call: impl Fn(PlacementClient<Channel>) -> Asked<Response<T>>) -> Result<T, Status> {
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
        let connected = connect(address, CONNECT_TIMEOUT, self.tls.as_ref()).await;
        let channel = connected.map_err(|why| Status::unavailable(format!("{address}: {why}")))?;
        *self.channel.lock() = Some(channel.clone());
        Ok(channel)
    }
}

impl Locate for PlacementDriver {
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
pub fn is_of_the_way(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}
