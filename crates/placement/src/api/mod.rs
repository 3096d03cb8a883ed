//! What stores, clients and people get of the placement driver: gRPC and, under `/pd/api/v1`, plain HTTP, on one port.
//!
//! Any member answers. What only the leader knows, a member that does not lead asks of it by a peer call ([`FORWARD`]): the
//! whole request goes there, and the whole answer comes back. Raw keys are no business of the placement driver: requests for
//! them are passed on to the store that has them (`raw`).

mod catalogue;
mod hotspot;
mod http;
mod leadership;
mod members;
mod operators;
mod pages;
mod query;
mod raw;
mod regions;
mod rpc_calls;
mod schedulers;
mod store_settings;
mod verdict;

use std::sync::{Arc, OnceLock};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus::Refusal;
use node::metrics::calls::Methods;
use node::scrub::Scrub;
use node::transport::{CallFuture, CallService, Caller};
use rpc::client::Router;
use rpc::client::Tls;
use rpc::server::{Answer, BoxFuture, Call, HttpBody, Method, RequestStream, ResponseSink, Service};
use rpc::{Code, Status};

use crate::counters::Counters;
use crate::leader::{Leader, of_refusal};
use crate::metrics::{self, NodeSources, Sources};

/// The peer call that carries a request to the leader. In: 1 byte kind (0 gRPC, 1 HTTP), then the request. Out: 4 bytes code
/// (gRPC's, or HTTP's), then the answer or the error's text.
pub const FORWARD: u8 = node::FIRST_METHOD;

const GRPC: u8 = 0;
const HTTP: u8 = 1;

#[cfg(test)]
pub(crate) use self::http::Request;
pub use rpc_calls::{METHODS, region_at};

/// The service behind the client port.
pub struct Api {
    pub leader: Arc<OnceLock<Arc<Leader>>>,
    pub handle: node::GroupHandle,
    router: Router,
    pub counters: Arc<Counters>,
    pub requests: Arc<Methods>,
    scrub: Arc<Scrub>,
    /// What the node tells of itself; `None` while it stops.
    node: OfNode,
}

/// Asks the node for its figures.
pub type OfNode = Box<dyn Fn() -> Option<NodeSources> + Send + Sync>;

impl Api {
    /// `tls`: for stores.
    pub fn new(
        leader: Arc<OnceLock<Arc<Leader>>>,
        handle: node::GroupHandle,
        counters: Arc<Counters>,
        scrub: Arc<Scrub>,
        tls: Option<Tls>,
        node: OfNode,
    ) -> Arc<Api> {
        let requests = Methods::new(&METHODS);
        Arc::new_cyclic(|api| {
            let router = Router::new(Arc::new(raw::Own(api.clone())), tls);
            Api { leader, handle, router, counters, requests, scrub, node }
        })
    }

    /// Answers a gRPC call here, or has the leader answer it.
    async fn answer(&self, number: u16, message: Bytes) -> Result<Bytes, Status> {
        if self.handle.is_leader() || !rpc_calls::needs_leader(number) {
            return self.call(number, message).await;
        }
        let mut request = BytesMut::with_capacity(2 + message.len());
        request.put_u16_le(number);
        request.put_slice(&message);
        match self.forward(GRPC, request.freeze(), false).await? {
            (0, body) => Ok(body),
            (code, why) => Err(Status::new(Code::from_number(code), String::from_utf8_lossy(&why).into_owned())),
        }
    }

    /// `None` while this member belongs to no cluster.
    fn leader(&self) -> Result<&Arc<Leader>, Status> {
        self.leader.get().ok_or_else(|| Status::unavailable("this member of the placement driver waits for the others"))
    }

    /// The page `/metrics`.
    fn metrics(&self) -> String {
        let known = self.leader.get().and_then(|leader| Some((leader.known()?, leader.now())));
        metrics::page(&Sources {
            group: &self.handle.status(),
            membership: &self.handle.membership(),
            counters: &self.counters,
            requests: &self.requests,
            term: known.as_ref().map(|(term, now)| (&**term, *now)),
            node: (self.node)(),
        })
    }

    /// Sends a request to the leader; its answer's code and body. `changes`: it must not be taken for undone if no answer comes.
    async fn forward(&self, kind: u8, request: Bytes, changes: bool) -> Result<(u32, Bytes), Status> {
        let mut body = BytesMut::with_capacity(1 + request.len());
        body.put_u8(kind);
        body.put_slice(&request);
        let asked = self.handle.call_leader(FORWARD, body.freeze()).await;
        let mut answer = asked.map_err(|why| match why {
            Refusal::Unanswered if !changes => of_refusal(Refusal::NoLeader),
            why => of_refusal(why),
        })?;
        let code = answer.try_get_u32_le().map_err(|_| Status::internal("the leader's answer makes no sense"))?;
        Ok((code, answer))
    }

    /// Answers a request that another member has passed on.
    async fn answer_forwarded(&self, mut request: Bytes) -> Result<Bytes, Refusal> {
        let kind = request.try_get_u8().map_err(|_| Refusal::NoGroup)?;
        let (code, body) = match kind {
            GRPC => {
                let number = request.try_get_u16_le().map_err(|_| Refusal::NoGroup)?;
                match self.call(number, request).await {
                    Ok(body) => (0, body),
                    Err(status) => (status.code.number(), Bytes::from(status.message.into_owned())),
                }
            }
            HTTP => {
                let (code, body) = self.http_here(http::Request::decode(request).ok_or(Refusal::NoGroup)?).await;
                (u32::from(code), body.into())
            }
            _ => return Err(Refusal::NoGroup),
        };
        let mut out = BytesMut::with_capacity(4 + body.len());
        out.put_u32_le(code);
        out.put_slice(&body);
        Ok(out.freeze())
    }
}

impl Service for Api {
    fn resolve(&self, path: &str) -> Option<Method> {
        rpc_calls::resolve(path).or_else(|| raw::resolve(path))
    }

    fn unary(self: &Arc<Self>, number: u16, _call: Call, message: Bytes) -> Answer {
        let api = self.clone();
        let passes_on = number >= raw::FIRST;
        // What is passed on is counted where it goes.
        let running = (!passes_on).then(|| self.requests.begin(number));
        Answer::later(async move {
            let answer = if passes_on { api.raw(number, message).await } else { api.answer(number, message).await };
            if let Some(mut running) = running {
                running.ends(answer.as_ref().err().map_or(0, |status| status.code.number()));
            }
            answer
        })
    }

    fn streaming(
        self: &Arc<Self>,
        number: u16,
        _call: Call,
        _requests: RequestStream,
        _responses: ResponseSink,
    ) -> BoxFuture<Result<(), Status>> {
        unreachable!("method {number} is no stream")
    }

    fn http(self: &Arc<Self>, _call: Call, request: ::http::Request<Bytes>) -> BoxFuture<::http::Response<HttpBody>> {
        Box::pin(self.clone().page(request))
    }
}

/// What the other members ask of this one.
pub struct MemberCalls(pub Arc<OnceLock<Arc<Api>>>);

impl CallService for MemberCalls {
    fn call(&self, _caller: &Caller, method: u8, body: Bytes) -> CallFuture {
        match self.0.get() {
            Some(api) if method == FORWARD => {
                let api = api.clone();
                Box::pin(async move { api.answer_forwarded(body).await })
            }
            _ => Box::pin(std::future::ready(Err(Refusal::NoGroup))),
        }
    }
}
