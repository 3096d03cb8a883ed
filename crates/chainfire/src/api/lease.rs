//! The Lease service. Granting and revoking are replicated; how long a lease has left only the leader knows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus::Refusal;
use proto::etcdserverpb as pb;
use rpc::Status;
use rpc::server::{RequestStream, ResponseSink};

use super::header::{decode, encode};
use super::leader::{REMAINING, RENEW};
use super::{Api, refused, status_of};
use crate::command::Command;
use crate::error::ApiError;

const LEADER_POLL: Duration = Duration::from_millis(20);

impl Api {
    pub(super) async fn lease_grant(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::LeaseGrantRequest = decode(message)?;
        let store = self.store()?;
        let ttl_s = store.lessor.lock().ttl_s(request.ttl).ok_or_else(|| status_of(ApiError::LeaseTtlTooLarge))?;
        let id = if request.id == 0 { (node::clock::random_u64() >> 1) as i64 } else { request.id };
        self.propose(Command::LeaseGrant { id, ttl_s }.encode()).await
    }

    pub(super) async fn lease_revoke(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::LeaseRevokeRequest = decode(message)?;
        self.propose(Command::LeaseRevoke { id: request.id }.encode()).await
    }

    pub(super) async fn lease_keep_alive(
        self: Arc<Self>,
        mut requests: RequestStream,
        mut responses: ResponseSink,
    ) -> Result<(), Status> {
        while let Some(message) = requests.next().await {
            let request: pb::LeaseKeepAliveRequest = decode(message?)?;
            let mut answer = self.ask_leader(RENEW, request.id).await?;
            let ttl = answer.try_get_i64_le().map_err(|_| Status::internal("a short answer from the leader"))?;
            let header = Some(self.header_now());
            responses.send(encode(&pb::LeaseKeepAliveResponse { header, id: request.id, ttl })?).await?;
        }
        Ok(())
    }

    pub(super) async fn lease_time_to_live(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::LeaseTimeToLiveRequest = decode(message)?;
        self.linearize().await?;
        let mut answer = self.ask_leader(REMAINING, request.id).await?;
        let view = self.current()?;
        let lease = view.lease(request.id).map_err(status_of)?;
        let mut response = pb::LeaseTimeToLiveResponse {
            header: Some(self.header(view.revision)),
            id: request.id,
            ttl: -1,
            ..Default::default()
        };
        if let (Some(lease), true) = (lease, answer.len() >= 8) {
            response.ttl = answer.get_i64_le();
            if response.ttl >= 0 {
                response.granted_ttl = lease.ttl_s;
                if request.keys {
                    response.keys = view.lease_keys(request.id).map_err(status_of)?;
                }
            }
        }
        encode(&response)
    }

    pub(super) async fn lease_leases(self: Arc<Self>) -> Result<Bytes, Status> {
        self.linearize().await?;
        let view = self.current()?;
        let leases = view.leases().map_err(status_of)?.into_iter().map(|lease| pb::LeaseStatus { id: lease.id });
        let header = Some(self.header(view.revision));
        encode(&pb::LeaseLeasesResponse { header, leases: leases.collect() })
    }

    async fn ask_leader(&self, method: u8, id: i64) -> Result<Bytes, Status> {
        let mut body = BytesMut::with_capacity(8);
        body.put_i64_le(id);
        let body = body.freeze();
        let deadline = Instant::now() + self.handle.request_timeout();
        loop {
            match self.handle.call_leader(method, body.clone()).await {
                // An election, or a leader that has not counted its leases yet: clients are to notice neither.
                Err(Refusal::NoLeader | Refusal::Unanswered) if Instant::now() < deadline => {
                    tokio::time::sleep(LEADER_POLL).await
                }
                answer => return answer.map_err(refused),
            }
        }
    }
}
