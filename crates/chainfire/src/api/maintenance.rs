//! The Maintenance service, and gRPC's health check.
//!
//! A snapshot is our own stream (see `machine::snapshot`), padded with zeroes to a multiple of 512 bytes and followed by the
//! SHA-256 of all before it, so that clients' length check holds. It is not a bbolt file; `chainfire-client snapshot
//! restore` reads it.

use std::sync::Arc;
use std::time::Duration;

use base::NodeId;
use bytes::Bytes;
use consensus::{Role, SnapshotSource};
use proto::etcdserverpb as pb;
use proto::health;
use rpc::server::ResponseSink;
use rpc::{Code, Status};
use sha2::{Digest, Sha256};

use super::header::{decode, encode};
use super::kv::blocking;
use super::{Api, ETCD_VERSION, refused, status_of};
use crate::command::Command;
use crate::error::ApiError;
use crate::machine::snapshot;

const SNAPSHOT_CHUNK_BYTES: usize = 32 << 10;
const SNAPSHOT_PAGE_BYTES: usize = 512;
/// A client that takes nothing for so long is let go of: its stream keeps old data on the disk, and a received state from
/// being put in place.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(20);

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
            db_size_quota: self.limits.quota_bytes as i64,
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

    pub(super) async fn snapshot(self: Arc<Self>, mut responses: ResponseSink) -> Result<(), Status> {
        let header = self.header_now();
        let total = self.store()?.reader.stats().engine.live_bytes;
        let mut source = snapshot::stream(self.current()?, total);
        let mut cut = Cut { waiting: Vec::new(), digest: Sha256::new(), sent: 0 };
        loop {
            let (chunk, back) = blocking(move || {
                let chunk = source.next_chunk().map_err(|error| Status::new(Code::Internal, error.to_string()))?;
                Ok((chunk, source))
            })
            .await?;
            source = back;
            let last = chunk.is_none();
            for blob in cut.take(chunk.as_deref().unwrap_or_default(), last) {
                cut.sent += blob.len() as u64;
                // An estimate until the end, but never zero before it.
                let remaining_bytes = if last { 0 } else { total.saturating_sub(cut.sent).max(1) };
                let response = pb::SnapshotResponse {
                    header: Some(header),
                    remaining_bytes,
                    blob: blob.into(),
                    version: ETCD_VERSION.to_owned(),
                };
                let sent = tokio::time::timeout(SNAPSHOT_PATIENCE, responses.send(encode(&response)?)).await;
                sent.unwrap_or_else(|_| Err(Status::new(Code::Aborted, "the client took no data for too long")))?;
            }
            if last {
                return Ok(());
            }
        }
    }

    pub(super) fn alarms(&self) -> Vec<(i32, u64)> {
        self.stores.get().map(|store| store.reader.current().alarms.to_vec()).unwrap_or_default()
    }
}

/// Cuts a stream into blobs of equal size, pads it and adds the digest.
struct Cut {
    waiting: Vec<u8>,
    digest: Sha256,
    sent: u64,
}

impl Cut {
    fn take(&mut self, bytes: &[u8], last: bool) -> Vec<Vec<u8>> {
        self.digest.update(bytes);
        self.waiting.extend_from_slice(bytes);
        let mut blobs = Vec::new();
        if last {
            let length = self.sent as usize + self.waiting.len();
            let padding = vec![0; length.next_multiple_of(SNAPSHOT_PAGE_BYTES) - length];
            self.digest.update(&padding);
            self.waiting.extend_from_slice(&padding);
            let digest = self.digest.finalize_reset();
            self.waiting.extend_from_slice(&digest);
        }
        while self.waiting.len() >= SNAPSHOT_CHUNK_BYTES {
            let rest = self.waiting.split_off(SNAPSHOT_CHUNK_BYTES);
            blobs.push(std::mem::replace(&mut self.waiting, rest));
        }
        if last && !self.waiting.is_empty() {
            blobs.push(std::mem::take(&mut self.waiting));
        }
        blobs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_stream_has_etcds_length_and_digest() {
        for total in [0, 1, 511, 512, 40_000, 100_000] {
            let data: Vec<u8> = (0..total).map(|byte| byte as u8).collect();
            let mut cut = Cut { waiting: Vec::new(), digest: Sha256::new(), sent: 0 };
            let mut all = Vec::new();
            for part in data.chunks(7_000).chain([&[][..]]) {
                for blob in cut.take(part, part.is_empty()) {
                    cut.sent += blob.len() as u64;
                    all.extend(blob);
                }
            }
            assert_eq!(all.len() % 512, 32, "{total}");
            let (content, digest) = all.split_at(all.len() - 32);
            assert_eq!(&content[..total], &data);
            assert_eq!(Sha256::digest(content).as_slice(), digest);
        }
    }
}
