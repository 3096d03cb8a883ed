//! What clients get: raw keys over gRPC, health and metrics over HTTP, on one port.
//!
//! # The life of a request
//! its key is looked up among the regions here → if one covers it, any replica answers: a read waits until this replica has
//! applied all that was committed when the request came ([`node::GroupHandle::read`]), a write is proposed and goes to the
//! leader by Raft's own way → the region is looked at again afterwards: what it gave away meanwhile is not answered for.
//!
//! A key that lies elsewhere is asked for elsewhere ([`Router`]), once: a request that comes with a context was routed by
//! whoever sent it, and is told where it should have gone instead.

mod pages;
mod raw;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::flaredb as pb;
use rpc::Status;
use rpc::server::{Answer, BoxFuture, Call, HttpBody, Method, RequestStream, ResponseSink, Service};

pub use placement::router::Router;
pub use raw::VALUE_BYTES_MAX;

use crate::store::Store;

/// The service behind the client port.
pub struct Api {
    pub store: Arc<Store>,
    pub router: Router,
}

const GET: u16 = 0;
const PUT: u16 = 1;
const DELETE: u16 = 2;
const COMPARE_AND_SWAP: u16 = 3;
const BATCH: u16 = 4;
const SCAN: u16 = 5;

impl Service for Api {
    fn resolve(&self, path: &str) -> Option<Method> {
        Some(Method::unary(match path.strip_prefix("/centra.flaredb.v1.Raw/")? {
            "Get" => GET,
            "Put" => PUT,
            "Delete" => DELETE,
            "CompareAndSwap" => COMPARE_AND_SWAP,
            "Batch" => BATCH,
            "Scan" => SCAN,
            _ => return None,
        }))
    }

    fn unary(self: &Arc<Self>, number: u16, _call: Call, message: Bytes) -> Answer {
        let api = self.clone();
        Answer::later(async move {
            match number {
                GET => encoded(api.get(decoded(message)?).await),
                PUT => encoded(api.put(decoded(message)?).await),
                DELETE => encoded(api.delete(decoded(message)?).await),
                COMPARE_AND_SWAP => encoded(api.compare_and_swap(decoded(message)?).await),
                BATCH => encoded(api.batch(decoded(message)?).await),
                SCAN => encoded(api.scan(decoded(message)?).await),
                other => unreachable!("method {other} is not resolved"),
            }
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

    fn http(self: &Arc<Self>, _call: Call, request: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>> {
        let response = pages::answer(&self.store, &request);
        Box::pin(std::future::ready(response))
    }
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
