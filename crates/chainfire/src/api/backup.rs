//! The streams of backups: Maintenance/Snapshot gives the whole store, Admin/Changes what changed since a revision.
//!
//! Both are our own stream ([`proto::snapshot`]; `machine::snapshot` and `machine::changes` make it), cut into blobs, padded
//! with zeroes to a multiple of 512 bytes and followed by the SHA-256 of all before it, so that the length check of etcd's
//! clients holds. It is not a bbolt file; `chainfire-client snapshot restore` reads it.
//!
//! The life of a stream: one published view is taken → chunk by chunk is read on a thread that may block, and sent when
//! the client has room → the digest ends it. At most one chunk waits, whatever the size of the store. Memory and disk that
//! the view holds are given back when the client is done, or has taken nothing for [`PATIENCE`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use consensus::SnapshotSource;
use proto::admin;
use proto::etcdserverpb as pb;
use rpc::server::{RequestStream, ResponseSink};
use rpc::{Code, Status};
use sha2::{Digest, Sha256};

use super::header::{decode, encode};
use super::kv::blocking;
use super::{Api, ETCD_VERSION, status_of};
use crate::error::ApiError;
use crate::machine::{changes, snapshot};

const BLOB_BYTES: usize = 32 << 10;
const PAGE_BYTES: usize = 512;
/// A client that takes nothing for so long is let go of: its stream keeps old data on the disk, and a received state from
/// being put in place.
const PATIENCE: Duration = Duration::from_secs(20);

impl Api {
    pub(super) async fn snapshot(self: Arc<Self>, responses: ResponseSink) -> Result<(), Status> {
        let header = self.header_now();
        let total = self.store()?.reader.stats().engine.live_bytes;
        let source = snapshot::stream(self.current()?, total);
        send(Box::new(source), responses, |blob, remaining_bytes| {
            let version = ETCD_VERSION.to_owned();
            encode(&pb::SnapshotResponse { header: Some(header), remaining_bytes, blob, version })
        })
        .await
    }

    pub(super) async fn changes(
        self: Arc<Self>,
        mut requests: RequestStream,
        responses: ResponseSink,
    ) -> Result<(), Status> {
        let message = requests.next().await.ok_or_else(|| Status::new(Code::InvalidArgument, "no request came"))??;
        let request: admin::ChangesRequest = decode(message)?;
        let (since, own) = (request.since_revision, self.handle.cluster().0);
        if request.cluster_id != 0 && request.cluster_id != own {
            let text = format!(
                "the revision is one of cluster {:016x}, but this is cluster {own:016x}: its changes do not follow on that",
                request.cluster_id
            );
            return Err(Status::new(Code::FailedPrecondition, text));
        }
        let mut view = self.current()?;
        if since > view.revision {
            // This node may lag behind.
            drop(view);
            self.linearize().await?;
            view = self.current()?;
        }
        let revision = view.revision;
        let source = changes::stream(view, since).map_err(|error| match error {
            // etcd's words; the client knows what they mean here.
            error @ (ApiError::Compacted | ApiError::FutureRevision) => status_of(error),
            error => Status::internal(error.to_string()),
        })?;
        send(Box::new(source), responses, |blob, remaining_bytes| {
            encode(&admin::ChangesResponse { blob, remaining_bytes, revision })
        })
        .await
    }
}

/// Sends a source to its end; `message` makes a response of a blob and the bytes that remain after it.
async fn send(
    mut source: Box<dyn SnapshotSource>,
    mut responses: ResponseSink,
    message: impl Fn(Bytes, u64) -> Result<Bytes, Status>,
) -> Result<(), Status> {
    let total = source.bytes_total();
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
            let remaining = if last { 0 } else { total.saturating_sub(cut.sent).max(1) };
            let sent = tokio::time::timeout(PATIENCE, responses.send(message(blob.into(), remaining)?)).await;
            sent.unwrap_or_else(|_| Err(Status::new(Code::Aborted, "the client took no data for too long")))?;
        }
        if last {
            return Ok(());
        }
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
            let padding = vec![0; length.next_multiple_of(PAGE_BYTES) - length];
            self.digest.update(&padding);
            self.waiting.extend_from_slice(&padding);
            let digest = self.digest.finalize_reset();
            self.waiting.extend_from_slice(&digest);
        }
        while self.waiting.len() >= BLOB_BYTES {
            let rest = self.waiting.split_off(BLOB_BYTES);
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
