//! Raw keys asked of the placement driver, for clients that know no other address: passed on to a store of the key's region,
//! its leader first. The store does the rest, also where a batch touches several regions.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use prost::Message as _;
use proto::{flaredb as pb, placement};
use rpc::Status;
use rpc::client::RawClient;
use rpc::client::router::{Asked, Locate, Repeat};
use rpc::server::Method;
use tonic::transport::Channel;

use super::Api;
use super::rpc_calls::{GET_REGION, decoded};

/// Methods below are the placement driver's own.
pub const FIRST: u16 = 64;
const GET: u16 = FIRST;
const PUT: u16 = FIRST + 1;
const DELETE: u16 = FIRST + 2;
const COMPARE_AND_SWAP: u16 = FIRST + 3;
const BATCH: u16 = FIRST + 4;
const SCAN: u16 = FIRST + 5;

pub fn resolve(path: &str) -> Option<Method> {
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

/// The placement driver that is asked, as whoever knows where keys lie.
pub struct Own(pub Weak<Api>);

impl Locate for Own {
    fn region_at(self: Arc<Self>, key: Bytes) -> Asked<placement::GetRegionResponse> {
        let api = self.0.clone();
        Box::pin(async move {
            let api = api.upgrade().ok_or_else(|| tonic::Status::unavailable("the placement driver is stopping"))?;
            let request = placement::GetRegionRequest { key };
            let answer = api.answer(GET_REGION, request.encode_to_vec().into()).await;
            let answer = answer.map_err(|status| tonic::Status::unavailable(status.message))?;
            placement::GetRegionResponse::decode(answer)
                .map_err(|_| tonic::Status::internal("the leader's answer makes no sense"))
        })
    }
}

/// Hands a request to a store, without a context: the store routes it if it has to.
macro_rules! pass {
    ($api:expr, $message:expr, $request:ident, $key:expr, $repeat:ident, $call:ident, $response:ident) => {{
        let mut request: pb::$request = decoded($message)?;
        request.context = None;
        let key: Bytes = $key(&request);
        let ask = |mut client: RawClient<Channel>, _| -> Asked<pb::$response> {
            let request = request.clone();
            Box::pin(async move { Ok(client.$call(request).await?.into_inner()) })
        };
        let answer = $api.router.forward(&key, Repeat::$repeat, ask, |_: &mut pb::$response| None).await?;
        Ok(answer.encode_to_vec().into())
    }};
}

impl Api {
    pub(super) async fn raw(&self, number: u16, message: Bytes) -> Result<Bytes, Status> {
        match number {
            GET => pass!(self, message, GetRequest, |r: &pb::GetRequest| r.key.clone(), Safe, get, GetResponse),
            PUT => pass!(self, message, PutRequest, |r: &pb::PutRequest| r.key.clone(), Never, put, PutResponse),
            DELETE => {
                pass!(
                    self,
                    message,
                    DeleteRequest,
                    |r: &pb::DeleteRequest| r.key.clone(),
                    Never,
                    delete,
                    DeleteResponse
                )
            }
            COMPARE_AND_SWAP => pass!(
                self,
                message,
                CompareAndSwapRequest,
                |r: &pb::CompareAndSwapRequest| r.key.clone(),
                Never,
                compare_and_swap,
                CompareAndSwapResponse
            ),
            BATCH => {
                let first =
                    |r: &pb::BatchRequest| r.mutations.first().map(|first| first.key.clone()).unwrap_or_default();
                pass!(self, message, BatchRequest, first, Never, batch, BatchResponse)
            }
            SCAN => pass!(self, message, ScanRequest, |r: &pb::ScanRequest| r.start.clone(), Safe, scan, ScanResponse),
            other => unreachable!("method {other} is not resolved"),
        }
    }
}
