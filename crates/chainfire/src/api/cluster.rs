//! The Cluster service: membership in etcd's words. Member ids are node ids.

use std::sync::Arc;

use base::NodeId;
use bytes::Bytes;
use consensus::{Member, MemberRole, Membership, MembershipChange};
use proto::etcdserverpb as pb;
use rpc::Status;

use super::header::{decode, encode};
use super::{Api, refused, status_of};
use crate::error::ApiError;

/// The members are no part of the store: their answers tell none of its revisions.
const NO_REVISION: i64 = 0;

impl Api {
    pub(super) async fn member_add(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberAddRequest = decode(message)?;
        check_urls(&request.peer_urls)?;
        let node = NodeId(node::clock::random_u64() >> 1);
        let member =
            Member { node, peer_urls: request.peer_urls, promote_when_ready: !request.is_learner, ..Member::default() };
        let membership = self.handle.change(MembershipChange::Add(member)).await.map_err(refused)?;
        let member = membership.members.get(&node).map(to_wire);
        encode(&pb::MemberAddResponse { header: Some(self.header(NO_REVISION)), member, members: all(&membership) })
    }

    pub(super) async fn member_remove(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberRemoveRequest = decode(message)?;
        let change = MembershipChange::Remove { node: NodeId(request.id) };
        let membership = self.handle.change(change).await.map_err(refused)?;
        encode(&pb::MemberRemoveResponse { header: Some(self.header(NO_REVISION)), members: all(&membership) })
    }

    pub(super) async fn member_update(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberUpdateRequest = decode(message)?;
        check_urls(&request.peer_urls)?;
        let change = MembershipChange::Describe {
            node: NodeId(request.id),
            name: None,
            peer_urls: Some(request.peer_urls),
            client_urls: None,
        };
        let membership = self.handle.change(change).await.map_err(refused)?;
        encode(&pb::MemberUpdateResponse { header: Some(self.header(NO_REVISION)), members: all(&membership) })
    }

    pub(super) async fn member_list(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberListRequest = decode(message)?;
        if request.linearizable {
            self.linearize().await?;
        }
        encode(&pb::MemberListResponse {
            header: Some(self.header(NO_REVISION)),
            members: all(&self.handle.membership()),
        })
    }

    pub(super) async fn member_promote(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberPromoteRequest = decode(message)?;
        let change = MembershipChange::Promote { node: NodeId(request.id) };
        let membership = self.handle.change(change).await.map_err(refused)?;
        encode(&pb::MemberPromoteResponse { header: Some(self.header(NO_REVISION)), members: all(&membership) })
    }
}

fn all(membership: &Membership) -> Vec<pb::Member> {
    membership.members.values().map(to_wire).collect()
}

fn to_wire(member: &Member) -> pb::Member {
    pb::Member {
        id: member.node.0,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        // A learner on its way to vote is to etcd's clients what it will be.
        is_learner: member.role == MemberRole::Learner && !member.promote_when_ready,
    }
}

/// Peer URLs as etcd wants them: `http(s)://host:port`.
pub(super) fn check_urls(urls: &[String]) -> Result<(), Status> {
    let good = |url: &String| {
        let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        let printable = url.bytes().all(|byte| byte.is_ascii_graphic());
        let port = rest
            .and_then(|rest| rest.rsplit_once(':'))
            .and_then(|(host, port)| (!host.is_empty()).then(|| port.parse::<u16>().ok()).flatten());
        printable && port.is_some() && url.len() <= consensus::membership::TEXT_BYTES_MAX
    };
    let known = !urls.is_empty() && urls.len() <= consensus::membership::URLS_MAX && urls.iter().all(good);
    if known { Ok(()) } else { Err(status_of(ApiError::MemberBadUrls)) }
}
