//! The placement driver as its clients see it: somewhere to ask, at one of several addresses. Whoever answers is asked again;
//! after a failure the next one is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use proto::placement as pb;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use super::router::{Asked, Locate};
use super::{PlacementClient, Tls, connect};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Learnt addresses beyond this are not looked at.
const LEARNT_MAX: usize = 16;

/// Cheap to share by reference.
pub struct PlacementDriver {
    /// Those that it was made with; then those that it was told of.
    addresses: RwLock<Vec<String>>,
    given: usize,
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
        let given = addresses.len();
        let (current, channel) = (AtomicUsize::new(0), Mutex::default());
        PlacementDriver { addresses: RwLock::new(addresses), given, tls, current, channel }
    }

    /// Those that it was made with come first.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.read().clone()
    }

    /// All members, as one of them says: they are asked beside those that it was made with.
    pub fn learn(&self, members: &[String]) {
        let known = self.addresses.read();
        let (given, learnt) = known.split_at(self.given);
        let is_new = |member: &&String| !given.iter().any(|given| bare(given) == bare(member));
        let members: Vec<&String> = members.iter().filter(is_new).take(LEARNT_MAX).collect();
        if learnt.iter().eq(members.iter().copied()) {
            return;
        }
        let all = given.iter().chain(members).cloned().collect();
        drop(known);
        *self.addresses.write() = all;
    }

    /// Asks each address once at most, until one answers.
    ///
    /// # Errors
    /// What the leader said, or why the last of them was no way to it.
    pub async fn ask<T>(&self, call: impl Fn(PlacementClient<Channel>) -> Asked<Response<T>>) -> Result<T, Status> {
        let mut failure = Status::unavailable("no placement driver is known");
        let addresses = self.addresses().len();
        for _ in 0..addresses {
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
        let address = {
            let all = self.addresses.read();
            all[self.current.load(Ordering::Relaxed) % all.len()].clone()
        };
        let connected = connect(&address, CONNECT_TIMEOUT, self.tls.as_ref()).await;
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

/// Without scheme and closing slash.
fn bare(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/')
}

/// Whether another address may do better: nobody who leads the placement driver has answered.
pub fn is_of_the_way(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_that_are_told_of_are_asked_beside_those_that_were_given() {
        let pd = PlacementDriver::new(vec!["http://pd1:2379".to_owned()], None);
        let learnt = |members: &[&str]| {
            pd.learn(&members.iter().map(|member| (*member).to_owned()).collect::<Vec<_>>());
            pd.addresses()
        };
        assert_eq!(learnt(&["http://pd1:2379/", "http://pd2:2379"]), ["http://pd1:2379", "http://pd2:2379"]);
        assert_eq!(learnt(&["http://pd3:2379"]), ["http://pd1:2379", "http://pd3:2379"], "who is gone is forgotten");
        assert_eq!(learnt(&[]), ["http://pd1:2379"]);
    }
}
