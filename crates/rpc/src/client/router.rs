//! Raw keys of FlareDB, asked of the stores that have them: the library for clients, which the stores and the placement driver
//! use as well where a request came to them that others should have got.
//!
//! The placement driver says where a key lies ([`Locate`]; [`PlacementDriver`](super::PlacementDriver) asks it); the answer is
//! remembered until it turns out to be wrong. A store that has a later region there says so, and is believed: requests find
//! their way when a region was cut while the placement driver is away. The region's leader is asked first, another of its stores
//! after that. Requests carry the region's epoch, so that nobody answers for keys that it has given away; a batch, which may
//! touch several regions, is left to the store of its first key. A store that does not lead any more answers all the same, by
//! way of the one that does: so what is known is asked for anew now and then, if the placement driver is there.
//!
//! ```no_run
//! # async fn example() -> Result<(), rpc::Status> {
//! use std::sync::Arc;
//! use proto::flaredb::{GetRequest, PutRequest};
//! use rpc::client::{PlacementDriver, Router};
//!
//! let pd = PlacementDriver::new(vec!["http://127.0.0.11:2379".to_owned()], None);
//! let keys = Router::new(Arc::new(pd), None);
//! keys.put(PutRequest { key: "greeting".into(), value: "hello".into(), ..Default::default() }).await?;
//! let answer = keys.get(GetRequest { key: "greeting".into(), ..Default::default() }).await?;
//! assert_eq!(answer.value.as_deref(), Some(&b"hello"[..]));
//! # Ok(())
//! # }
//! ```

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use base::{GroupId, Time};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::{flaredb as pb, placement};
use tonic::transport::Channel;

use super::{RESPONSE_BYTES_MAX, RawClient, Tls, connect_watched};
use crate::server::BoxFuture;
use crate::status::NOTHING_DONE;
use crate::{Code, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Tries before a request is given up, and the pause after a failed one: longer than the placement driver takes to elect a leader.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_millis(100);
/// No further try is begun after so long: what waits for a leader waits at a store that has the region, and not here.
const TRY_FOR: Duration = Duration::from_secs(10);
/// A store that calls are under way at and that sends nothing, not even that it is there, for so long is gone.
const SILENT_FOR: Duration = Duration::from_secs(1);
const ECHO_WITHIN: Duration = Duration::from_secs(2);
const REMEMBERED_MAX: usize = 100_000;
/// The placement driver's word on a region without a leader counts for so long, and is waited for so long.
const WORD_COUNTS: Duration = Duration::from_millis(500);
/// Who leads a region counts for so long; the placement driver has so long to say that somebody else does.
const LEADER_COUNTS: Duration = Duration::from_secs(10);
const REFRESH_WITHIN: Duration = Duration::from_millis(100);
const WORD_WITHIN: Duration = Duration::from_secs(1);

/// Whether asking twice is the same as asking once. What changes something is asked again only where nobody can have heard it, or
/// where whoever did says that nothing was done.
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
        static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
        Time::from_nanos(u64::try_from(BEGAN.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn sleep(&self, span: Duration) -> BoxFuture<()> {
        Box::pin(tokio::time::sleep(span))
    }
}

/// A call of one key, asked of the store that has it.
macro_rules! call {
    ($(#[$doc:meta])* $call:ident, $method:ident, $request:ident, $key:expr, $repeat:ident, $response:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// The store's, or that there was no way to one: `Unavailable` where nothing was done, `DeadlineExceeded` where it may yet
        /// take effect.
        pub async fn $call(&self, request: pb::$request) -> Result<pb::$response, Status> {
            let ask = |mut client: RawClient<Channel>, context| -> Asked<pb::$response> {
                let mut request = request.clone();
                request.context = Some(context);
                Box::pin(async move { Ok(client.$method(request).await?.into_inner()) })
            };
            let key: Bytes = $key(&request);
            self.forward(&key, Repeat::$repeat, ask, |response: &mut pb::$response| response.error.take()).await
        }
    };
}

/// Where keys lie, as far as is known.
pub struct Router {
    pd: Arc<dyn Locate>,
    /// For stores at `https://`.
    tls: Option<Tls>,
    /// By the region's start, and when that was said.
    known: Mutex<BTreeMap<Bytes, (Time, placement::GetRegionResponse)>>,
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

    call!(
        /// The value of a key, linearizably.
        get, get, GetRequest, |request: &pb::GetRequest| request.key.clone(), Safe, GetResponse
    );
    call!(
        /// Writes a key.
        put, put, PutRequest, |request: &pb::PutRequest| request.key.clone(), Never, PutResponse
    );
    call!(
        /// Deletes a key, and says whether it was there.
        delete, delete, DeleteRequest, |request: &pb::DeleteRequest| request.key.clone(), Never, DeleteResponse
    );
    call!(
        /// Writes a key if it is as expected, and says what it was.
        compare_and_swap, compare_and_swap, CompareAndSwapRequest, |request: &pb::CompareAndSwapRequest| request.key.clone(), Never, CompareAndSwapResponse
    );
    call!(
        /// The pairs from `start` on that one region has; where it ends before the range does, or the answer is full, the resume
        /// key leads on.
        scan, scan, ScanRequest, |request: &pb::ScanRequest| request.start.clone(), Safe, ScanResponse
    );

    call!(
        /// Mutations of keys that lie in one region.
        batch_of_one,
        batch,
        BatchRequest,
        first_key,
        Never,
        BatchResponse
    );

    /// Mutations of keys of any regions, least keys first: where one region fails, those before are done. The store of the first
    /// key does the rest.
    ///
    /// # Errors
    /// As of one key.
    pub async fn batch(&self, request: pb::BatchRequest) -> Result<pb::BatchResponse, Status> {
        let request = pb::BatchRequest { context: None, ..request };
        let ask = |mut client: RawClient<Channel>, _| -> Asked<pb::BatchResponse> {
            let request = request.clone();
            Box::pin(async move { Ok(client.batch(request).await?.into_inner()) })
        };
        self.forward(&first_key(&request), Repeat::Never, ask, |_| None).await
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
        let asked = self.pd.now();
        let mut failure = Failed::Way("it is not known where the key lies".to_owned());
        for attempt in 0..TRIES {
            if attempt > 0 {
                self.pd.sleep(PAUSE).await;
            }
            if self.pd.now().since(asked) >= TRY_FOR {
                break;
            }
            let found = match self.find(key).await {
                Ok(found) => found,
                Err(status) => {
                    let why = format!("the placement driver does not say where the key lies: {}", status.message());
                    failure.or_way(why);
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
                    failure.or_way(format!("store {}: {}", store.id, status.message()));
                    self.forget(key);
                    continue;
                }
            };
            let client = RawClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX);
            match ask(client, context).await {
                Ok(mut answer) => match error_of(&mut answer) {
                    None => return Ok(answer),
                    Some(error) => {
                        failure = Failed::Word(format!("store {} has another region there", store.id));
                        self.correct(key, &found, error);
                    }
                },
                Err(status) => {
                    // What has a source was not said by the store: its connection broke, or there was none to be had.
                    let broken = status.source().is_some();
                    let nothing_done = status.metadata().contains_key(NOTHING_DONE) || never_sent(&status);
                    let code = Code::from_number(status.code() as u32);
                    if code == Code::Aborted {
                        // The region is not what it was.
                        self.forget(key);
                    }
                    if !broken && code != Code::Unavailable {
                        return Err(Status { nothing_done, ..Status::new(code, status.message().to_owned()) });
                    }
                    self.forget(key);
                    if broken {
                        self.channels.lock().remove(&store.client_url);
                    }
                    let why = format!("store {}: {}", store.id, words_of(&status));
                    // Without the store's word: a batch may be done in part, and a store that stops ends calls under way.
                    if !nothing_done && repeat == Repeat::Never {
                        return Err(Status::new(Code::DeadlineExceeded, format!("{why}; it may yet take effect")));
                    }
                    if broken { failure.or_way(why) } else { failure = Failed::Word(why) }
                }
            }
        }
        let (Failed::Way(why) | Failed::Word(why)) = failure;
        Err(Status::unavailable(why).with_nothing_done())
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
        let ask = || self.pd.clone().region_at(Bytes::copy_from_slice(key));
        let found = match self.known_at(key) {
            None => ask().await?,
            Some((said, known)) => {
                let counts = if known.leader_store == 0 { WORD_COUNTS } else { LEADER_COUNTS };
                if self.pd.now().since(said) < counts {
                    return Ok(known);
                }
                // Nobody else has to ask, and where nobody answers it goes on as it was.
                self.remember(&known);
                let asked = tokio::select! {
                    biased;
                    asked = ask() => asked.ok(),
                    () = self.pd.sleep(REFRESH_WITHIN) => None,
                };
                // A store may have told of a later one than the placement driver has heard of.
                let version = |found: &placement::GetRegionResponse| found.region.as_ref().map(|region| region.version);
                asked.filter(|asked| version(asked) >= version(&known)).unwrap_or(known)
            }
        };
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
        known.insert(region.start.clone(), (self.pd.now(), found.clone()));
    }

    /// What was known is wrong, by the word of a store that was asked.
    fn correct(&self, key: &[u8], found: &placement::GetRegionResponse, error: pb::RegionError) {
        self.forget(key);
        if let Some(pb::region_error::Why::StaleEpoch(pb::Regions { regions })) = error.why {
            regions.into_iter().filter_map(|region| as_told(found, region)).for_each(|told| self.remember(&told));
        }
    }

    /// With when that was said.
    fn known_at(&self, key: &[u8]) -> Option<(Time, placement::GetRegionResponse)> {
        let known = self.known.lock();
        let (_, (said, found)) = known.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        let end = &found.region.as_ref()?.end;
        (end.is_empty() || key < &end[..]).then(|| (*said, found.clone()))
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
        let connected = connect_watched(url, CONNECT_TIMEOUT, self.tls.as_ref(), SILENT_FOR, ECHO_WITHIN).await;
        let channel = connected.map_err(|why| tonic::Status::unavailable(format!("{url}: {why}")))?;
        self.channels.lock().insert(url.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// What a call has failed with so far. What a store has said tells more than that another one was not to be reached.
enum Failed {
    Way(String),
    Word(String),
}

impl Failed {
    fn or_way(&mut self, why: String) {
        if let Failed::Way(known) = self {
            *known = why;
        }
    }
}

/// Whether there was no connection, so that nobody can have heard of the call.
fn never_sent(status: &tonic::Status) -> bool {
    causes(status).any(|cause| cause.is::<tonic::ConnectError>())
}

/// The store's, or those of what lies deepest where the connection broke.
fn words_of(status: &tonic::Status) -> String {
    match causes(status).last() {
        None => status.message().to_owned(),
        Some(cause) => match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => "connection refused".to_owned(),
            _ => format!("the connection broke: {cause}"),
        },
    }
}

fn causes(status: &tonic::Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |cause| (**cause).source())
}

/// The key that decides who is asked.
fn first_key(request: &pb::BatchRequest) -> Bytes {
    request.mutations.iter().map(|mutation| &mutation.key).min().cloned().unwrap_or_default()
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
        let id_at = |key: &[u8]| router.known_at(key).and_then(|(_, found)| Some(found.region?.id));
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
        let ids = [b"a", b"f", b"m"].map(|key| router.known_at(key).and_then(|(_, found)| Some(found.region?.id)));
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
