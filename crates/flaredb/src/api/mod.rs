//! What clients get: raw keys over gRPC, health and metrics over HTTP, on one port.
//!
//! # The life of a request
//! its key is looked up among the regions here → if one covers it, any replica answers: a read waits until this replica has
//! applied all that was committed when the request came ([`node::GroupHandle::read`]), a write is proposed and goes to the
//! leader by Raft's own way → the region is looked at again afterwards: what it gave away meanwhile is not answered for.
//!
//! A key that lies elsewhere is asked for elsewhere ([`Router`]), once: a request that comes with a context was routed by
//! whoever sent it, and is told where it should have gone instead.

mod door;
mod pages;
mod raw;
mod requests;

use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use node::heal::What;
use node::many::ManyNode;
use node::scrub::Scrub;
use prost::Message;
use proto::flaredb as pb;
use rpc::Status;
use rpc::client::Tls;
use rpc::server::{Answer, Method, Server, ServerStats};

pub use door::{Door, WAITS};
pub use raw::{Raw, VALUE_BYTES_MAX};
pub use requests::Requests;
pub use rpc::client::Router;

use self::requests::Watched;

use crate::pd::PdClient;
use crate::store::Store;

/// The service behind the client port.
pub struct Api {
    pub store: Arc<Store>,
    pub router: Arc<Router>,
    raw: Raw,
    /// For their figures.
    pub node: Arc<ManyNode>,
    pub pd: Arc<PdClient>,
    pub scrub: Arc<Scrub>,
    /// See [`Sources::repaired`](crate::metrics::Sources::repaired).
    pub repaired: Option<(What, u64)>,
    pub requests: Arc<Requests>,
    /// The server that this is behind.
    server: OnceLock<Weak<Server<Door>>>,
}

const GET: u16 = 0;
const PUT: u16 = 1;
const DELETE: u16 = 2;
const COMPARE_AND_SWAP: u16 = 3;
const BATCH: u16 = 4;
const SCAN: u16 = 5;

/// By their numbers.
const METHODS: [&str; 6] = ["Get", "Put", "Delete", "CompareAndSwap", "Batch", "Scan"];

impl Api {
    /// A request that takes `slow_from` or longer is told of; zero: none is. `tls`: for other stores.
    pub fn new(
        store: Arc<Store>,
        node: Arc<ManyNode>,
        pd: Arc<PdClient>,
        tls: Option<Tls>,
        (scrub, repaired): (Arc<Scrub>, Option<(What, u64)>),
        slow_from: Duration,
    ) -> Arc<Api> {
        let (router, requests) = (Arc::new(Router::new(pd.clone(), tls)), Arc::new(Requests::new(slow_from)));
        let raw = Raw { store: store.clone(), router: router.clone() };
        Arc::new(Api { store, router, raw, node, pd, scrub, repaired, requests, server: OnceLock::new() })
    }

    /// The server that is to be counted.
    pub fn behind(&self, server: &Arc<Server<Door>>) {
        // Set once: a store has one server.
        let _ = self.server.set(Arc::downgrade(server));
    }

    pub fn server_stats(&self) -> ServerStats {
        self.server.get().and_then(Weak::upgrade).map(|server| server.stats()).unwrap_or_default()
    }

    async fn answer(&self, number: u16, message: Bytes) -> Result<Bytes, Status> {
        match number {
            GET => encoded(self.raw.get(decoded(message)?).await),
            PUT => encoded(self.raw.put(decoded(message)?).await),
            DELETE => encoded(self.raw.delete(decoded(message)?).await),
            COMPARE_AND_SWAP => encoded(self.raw.compare_and_swap(decoded(message)?).await),
            BATCH => encoded(self.raw.batch(decoded(message)?).await),
            SCAN => encoded(self.raw.scan(decoded(message)?).await),
            other => unreachable!("method {other} is not resolved"),
        }
    }
}

impl Api {
    pub fn unary(self: &Arc<Self>, number: u16, message: Bytes) -> Answer {
        let api = self.clone();
        let mut watched = Watched::begin(&self.requests, &self.store, number, &message);
        Answer::later(async move {
            let answer = api.answer(number, message).await;
            watched.ends(&answer);
            answer
        })
    }
}

fn resolve(path: &str) -> Option<Method> {
    let name = path.strip_prefix("/centra.flaredb.v1.Raw/")?;
    let number = METHODS.iter().position(|method| *method == name)?;
    Some(Method::unary(number as u16))
}

fn decoded<T: Message + Default>(message: Bytes) -> Result<T, Status> {
    T::decode(message).map_err(|_| Status::invalid_argument("the request cannot be decoded"))
}

fn encoded<T: Message>(answer: Result<T, Status>) -> Result<Bytes, Status> {
    answer.map(|answer| answer.encode_to_vec().into())
}

/// What became of a request at one region.
pub enum Missed {
    /// Whoever routed it should try elsewhere.
    Region(pb::RegionError),
    /// It failed.
    Failed(Status),
}

impl From<Status> for Missed {
    fn from(status: Status) -> Missed {
        Missed::Failed(status)
    }
}
