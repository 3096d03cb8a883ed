//! The Maintenance service but for its snapshots (`backup`), and gRPC's health check.

use std::sync::Arc;

use base::NodeId;
use bytes::Bytes;
use consensus::Role;
use proto::etcdserverpb as pb;
use proto::health;
use rpc::Status;

use super::header::{decode, encode};
use super::kv::blocking;
use super::{Api, ETCD_VERSION, refused, status_of};
use crate::command::Command;
use crate::error::ApiError;

impl Api {
    pub(super) fn status(&self) -> Result<Bytes, Status> {
        let group = self.handle.status();
        let stats = self.stores.get().map(|store| store.reader.stats()).unwrap_or_default();
        let applied = self.stores.get().map_or(0, |store| store.reader.current().mark.index);
        let mut errors = Vec::new();
        if group.leader.is_none() {
            errors.push(ApiError::NoLeader.text().to_owned());
        }
        errors.extend(self.alarms().into_iter().map(|(kind, member)| {
            format!(
                "memberID:{member} alarm:{} ",
                pb::AlarmType::try_from(kind).map_or("UNKNOWN", |kind| kind.as_str_name())
            )
        }));
        encode(&pb::StatusResponse {
            header: Some(self.header_now()),
            version: ETCD_VERSION.to_owned(),
            db_size: stats.engine.total_bytes as i64,
            leader: group.leader_node.0,
            // The status is as of the last turn; what was applied since was committed.
            raft_index: group.committed.max(applied),
            raft_term: group.term,
            raft_applied_index: applied,
            errors,
            db_size_in_use: stats.engine.live_bytes as i64,
            is_learner: group.role == Role::Learner,
            storage_version: ETCD_VERSION.to_owned(),
            db_size_quota: self.live.quota_bytes() as i64,
            ..Default::default()
        })
    }

    pub(super) async fn alarm(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::AlarmRequest = decode(message)?;
        let command = Command::Alarm { action: request.action, member: request.member_id, kind: request.alarm };
        if request.action == pb::alarm_request::AlarmAction::Get as i32 {
            self.linearize().await?;
        }
        self.propose(command.encode()).await
    }

    /// Gives space back in the background; nothing waits for it.
    pub(super) async fn defragment(self: Arc<Self>) -> Result<Bytes, Status> {
        self.store()?.reclaim();
        encode(&pb::DefragmentResponse { header: Some(self.header_now()) })
    }

    pub(super) fn hash(&self) -> Result<Bytes, Status> {
        let view = self.current()?;
        encode(&pb::HashResponse { header: Some(self.header(view.revision)), hash: view.hash() })
    }

    pub(super) async fn hash_kv(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::HashKvRequest = decode(message)?;
        let view = self.current()?;
        let revision = view.revision;
        let hashed = blocking(move || view.hash_kv(request.revision).map_err(status_of)).await?;
        encode(&pb::HashKvResponse {
            header: Some(self.header(revision)),
            hash: hashed.hash,
            compact_revision: hashed.compacted,
            hash_revision: hashed.revision,
        })
    }

    pub(super) async fn move_leader(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MoveLeaderRequest = decode(message)?;
        if request.target_id == 0 {
            return Err(status_of(ApiError::BadLeaderTransferee));
        }
        self.handle.transfer(Some(NodeId(request.target_id))).await.map_err(refused)?;
        encode(&pb::MoveLeaderResponse { header: Some(self.header_now()) })
    }

    /// Every version so far keeps the same files: there is nothing to go back to.
    pub(super) fn downgrade(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::DowngradeRequest = decode(message)?;
        let cancel = request.action == pb::downgrade_request::DowngradeAction::Cancel as i32;
        Err(status_of(if cancel { ApiError::NoInflightDowngrade } else { ApiError::InvalidDowngradeTargetVersion }))
    }

    pub(super) fn health_check(&self) -> Result<Bytes, Status> {
        use health::health_check_response::ServingStatus;
        let serving = !self.handle.status().leader.is_none();
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        encode(&health::HealthCheckResponse { status: status as i32 })
    }

    pub(super) fn alarms(&self) -> Vec<(i32, u64)> {
        self.stores.get().map(|store| store.reader.current().alarms.to_vec()).unwrap_or_default()
    }
}
