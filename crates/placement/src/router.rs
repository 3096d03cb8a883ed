//! Requests for raw keys that lie elsewhere, passed on by a store or by the placement driver itself. The placement driver
//! says where; the answer is remembered until it turns out to be wrong. A store that has a later region there says so, and is
//! believed: requests find their way when a region was cut while the placement driver is away.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{GroupId, Time};
use bytes::Bytes;
use node::Later;
use parking_lot::Mutex;
use proto::{flaredb as pb, placement};
use rpc::Status;
use rpc::client::{RawClient, Tls};
use rpc::server::BoxFuture;
use tonic::transport::Channel;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries before a request is given up, and the pause after a failed one.
const TRIES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(100);
const REMEMBERED_MAX: usize = 100_000;
/// The placement driver's word on a region without a leader counts for so long, and is waited for so long.
const WORD_COUNTS: Duration = Duration::from_millis(500);
const WORD_WITHIN: Duration = Duration::from_secs(1);

/// Whether asking twice is the same as asking once. What changes something is asked again only if it was not heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    Safe,
    Never,
}

/// A call under way.
pub type Asked<T> = BoxFuture<Result<T, tonic::Status>>;

/// Whoever knows where keys lie.
pub trait Locate: Send + Sync {
    fn region_at(self: Arc<Self>, key: Bytes) -> Asked<placement::GetRegionResponse>;

    /// On a clock that only goes forward.
    fn now(&self) -> Time {
        node::clock::now()
    }

    fn sleep(&self, span: Duration) -> Later<()> {
        Box::pin(tokio::time::sleep(span))
    }
}

/// Where keys lie, as far as is known.
pub struct Router {
    pd: Arc<dyn Locate>,
    /// For stores at `https://`.
    tls: Option<Tls>,
    /// By the region's start.
    known: Mutex<BTreeMap<Bytes, placement::GetRegionResponse>>,
    channels: Mutex<HashMap<String, Channel>>,
    /// What the placement driver last said of regions that have no leader here, and when; nothing: it said nothing.
    words: Mutex<HashMap<GroupId, (Time, Option<placement::Region>)>>,
    forwarded: AtomicU64,
}

impl Router {
    pub fn new(pd: Arc<dyn Locate>, tls: Option<Tls>) -> Router {
        Router {
            pd,
            tls,
            known: Mutex::default(),
            channels: Mutex::default(),
            words: Mutex::default(),
            forwarded: AtomicU64::new(0),
        }
    }

    /// Requests so far whose keys lay elsewhere.
    pub fn forwarded(&self) -> u64 {
        self.forwarded.load(Ordering::Relaxed)
    }

    /// Asks a store that has the key, and another one if it has not.
    pub async fn forward<T>(
        &self,
        key: &[u8],
        repeat: Repeat,
        ask: impl Fn(RawClient<Channel>, pb::Context) -> Asked<T>,
        error_of: impl Fn(&mut T) -> Option<pb::RegionError>,
    ) -> Result<T, Status> {
        self.forwarded.fetch_add(1, Ordering::Relaxed);
        let mut failure = "it is not known where the key lies".to_owned();
        for attempt in 0..TRIES {
            if attempt > 0 {
                self.pd.sleep(PAUSE).await;
            }
            let found = match self.find(key).await {
                Ok(found) => found,
                Err(status) => {
                    failure = format!("the placement driver does not say where the key lies: {}", status.message());
                    continue;
                }
            };
            let region = found.region.clone().unwrap_or_default();
            let context =
                pb::Context { region_id: region.id, conf_version: region.conf_version, version: region.version };
            // The leader first; any other one knows the way to it.
            let mut stores = found.stores.clone();
            stores.sort_by_key(|store| store.id != found.leader_store);
            let Some(store) = stores.get(attempt as usize % stores.len().max(1)) else { continue };
            let channel = match self.channel(&store.client_url).await {
                Ok(channel) => channel,
                Err(status) => {
                    failure = format!("store {}: {}", store.id, status.message());
                    self.forget(key);
                    continue;
                }
            };
            let client = RawClient::new(channel).max_decoding_message_size(rpc::client::RESPONSE_BYTES_MAX);
            match ask(client, context).await {
                Ok(mut answer) => match error_of(&mut answer) {
                    None => return Ok(answer),
                    Some(error) => {
                        failure = format!("store {} has another region there", store.id);
                        self.correct(key, &found, error);
                    }
                },
                Err(status) if status.code() == tonic::Code::Unavailable && repeat == Repeat::Never => {
                    self.channels.lock().remove(&store.client_url);
                    self.forget(key);
                    let why = format!("store {}: {}; it may yet take effect", store.id, status.message());
                    return Err(Status::new(rpc::Code::DeadlineExceeded, why));
                }
                Err(status) if status.code() == tonic::Code::Unavailable => {
                    failure = format!("store {}: {}", store.id, status.message());
                    self.channels.lock().remove(&store.client_url);
                    self.forget(key);
                }
                Err(status) => {
                    let code = rpc::Code::from_number(status.code() as u32);
                    return Err(Status::new(code, status.message().to_owned()));
                }
            }
        }
        Err(Status::unavailable(failure))
    }

    /// Where the region that covers a key ends; `None`: nowhere.
    pub async fn end_of_region(&self, key: &[u8]) -> Result<Option<Bytes>, Status> {
        let found = self.find(key).await.map_err(|status| Status::unavailable(status.message().to_owned()))?;
        Ok(found.region.map(|region| region.end).filter(|end| !end.is_empty()))
    }

    /// The region that has a key by now, as the placement driver knows it, for one who knows it as `region`.
    pub async fn ask(&self, region: GroupId, key: &[u8]) -> Option<placement::Region> {
        if let Some((at, word)) = self.words.lock().get(&region)
            && self.pd.now().since(*at) < WORD_COUNTS
        {
            return word.clone();
        }
        let word = tokio::select! {
            biased;
            asked = self.pd.clone().region_at(Bytes::copy_from_slice(key)) => asked.ok().and_then(|found| found.region),
            () = self.pd.sleep(WORD_WITHIN) => None,
        };
        let mut words = self.words.lock();
        if words.len() >= REMEMBERED_MAX {
            words.clear();
        }
        words.insert(region, (self.pd.now(), word.clone()));
        word
    }

    async fn find(&self, key: &[u8]) -> Result<placement::GetRegionResponse, tonic::Status> {
        if let Some(known) = self.known_at(key) {
            return Ok(known);
        }
        let found = self.pd.clone().region_at(Bytes::copy_from_slice(key)).await?;
        self.remember(&found);
        Ok(found)
    }

    fn remember(&self, found: &placement::GetRegionResponse) {
        let Some(region) = &found.region else { return };
        let mut known = self.known.lock();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        // What begins in it has become part of it, or goes by another name.
        let end = if region.end.is_empty() { Bound::Unbounded } else { Bound::Excluded(region.end.clone()) };
        let within =
            known.range::<Bytes, _>((Bound::Included(region.start.clone()), end)).map(|(start, _)| start.clone());
        let within: Vec<Bytes> = within.collect();
        within.iter().for_each(|start| drop(known.remove(start)));
        known.insert(region.start.clone(), found.clone());
    }

    /// What was known is wrong, by the word of a store that was asked.
    fn correct(&self, key: &[u8], found: &placement::GetRegionResponse, error: pb::RegionError) {
        self.forget(key);
        if let Some(pb::region_error::Why::StaleEpoch(pb::Regions { regions })) = error.why {
            regions.into_iter().filter_map(|region| as_told(found, region)).for_each(|told| self.remember(&told));
        }
    }

    fn known_at(&self, key: &[u8]) -> Option<placement::GetRegionResponse> {
        let known = self.known.lock();
        let (_, found) = known.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        let end = &found.region.as_ref()?.end;
        (end.is_empty() || key < &end[..]).then(|| found.clone())
    }

    fn forget(&self, key: &[u8]) {
        let mut known = self.known.lock();
        let below = (Bound::Unbounded, Bound::Included(key));
        if let Some(start) = known.range::<[u8], _>(below).next_back().map(|(start, _)| start.clone()) {
            known.remove(&start);
        }
    }

    async fn channel(&self, url: &str) -> Result<Channel, tonic::Status> {
        if let Some(channel) = self.channels.lock().get(url) {
            return Ok(channel.clone());
        }
        let connected = rpc::client::connect(url, CONNECT_TIMEOUT, self.tls.as_ref()).await;
        let channel = connected.map_err(|why| tonic::Status::unavailable(format!("{url}: {why}")))?;
        self.channels.lock().insert(url.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// What a store said of a region, in the placement driver's words: if it is later than what was `found`, and in stores that are
/// known from it.
fn as_told(found: &placement::GetRegionResponse, region: placement::Region) -> Option<placement::GetRegionResponse> {
    let is_later = found.region.as_ref().is_some_and(|known| region.version > known.version);
    let has_it = |store: &&placement::Store| region.peers.iter().any(|peer| peer.store_id == store.id);
    let stores: Vec<placement::Store> = found.stores.iter().filter(has_it).cloned().collect();
    let all_known = !stores.is_empty() && stores.len() == region.peers.len();
    (is_later && all_known).then(|| placement::GetRegionResponse {
        region: Some(region),
        leader_store: found.leader_store,
        stores,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody knows where keys lie.
    struct Away;

    impl Locate for Away {
        fn region_at(self: Arc<Self>, _: Bytes) -> Asked<placement::GetRegionResponse> {
            Box::pin(async { Err(tonic::Status::unavailable("away")) })
        }
    }

    fn region(id: u64, start: &'static str, end: &'static str, version: u64, stores: &[u64]) -> placement::Region {
        let peer = |store: &u64| placement::Peer { id: id * 10 + store, store_id: *store, ..Default::default() };
        let peers = stores.iter().map(peer).collect();
        placement::Region { id, start: start.into(), end: end.into(), version, peers, ..Default::default() }
    }

    /// A router that knows one region of three stores, and what comes of a store's word on another.
    fn told(word: placement::Region) -> (Option<u64>, Option<u64>) {
        let router = Router::new(Arc::new(Away), None);
        let stores = [1, 2, 3].map(|id| placement::Store { id, ..Default::default() }).to_vec();
        let found = region(1, "", "", 5, &[1, 2, 3]);
        let found = placement::GetRegionResponse { region: Some(found), leader_store: 2, stores };
        router.remember(&found);
        let why = Some(pb::region_error::Why::StaleEpoch(pb::Regions { regions: vec![word] }));
        router.correct(b"m", &found, pb::RegionError { why });
        let id_at = |key: &[u8]| router.known_at(key).and_then(|found| Some(found.region?.id));
        (id_at(b"m"), id_at(b"a"))
    }

    #[test]
    fn what_a_region_has_taken_in_is_not_known_apart_any_more() {
        let router = Router::new(Arc::new(Away), None);
        let remember = |region| {
            router.remember(&placement::GetRegionResponse { region: Some(region), ..Default::default() });
        };
        remember(region(1, "", "f", 1, &[1]));
        remember(region(2, "f", "m", 1, &[1]));
        remember(region(3, "m", "", 1, &[1]));
        remember(region(1, "", "m", 2, &[1]));
        let ids = [b"a", b"f", b"m"].map(|key| router.known_at(key).and_then(|found| Some(found.region?.id)));
        assert_eq!(ids, [Some(1), Some(1), Some(3)]);
    }

    #[test]
    fn a_store_is_believed_that_has_a_later_region() {
        assert_eq!(told(region(2, "k", "", 6, &[1, 2, 3])), (Some(2), None), "of the rest nothing is known any more");
        assert_eq!(told(region(1, "", "z", 6, &[1, 3])), (Some(1), Some(1)), "one store has no replica any more");
        assert_eq!(told(region(2, "k", "", 5, &[1, 2, 3])), (None, None), "it is late itself");
        assert_eq!(told(region(2, "k", "", 6, &[1, 2, 4])), (None, None), "it is not known where store 4 is");
    }
}
