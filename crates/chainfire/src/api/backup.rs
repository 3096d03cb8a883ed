//! The streams of backups: Maintenance/Snapshot gives the whole store, Admin/Changes what changed since a revision.
//!
//! Both are our own stream ([`proto::snapshot`]; `machine::snapshot` and `machine::changes` make it), cut into blobs, padded
//! with zeroes to a multiple of 512 bytes and followed by the SHA-256 of all before it, so that the length check of etcd's
//! clients holds. It is not a bbolt file; `chainfire-client snapshot restore` reads it.
//!
//! The life of a stream: what was committed before the call is waited for, so that no backup of a node that is cut off
//! passes for a new one → one published view is taken → chunk by chunk is read, digested and cut on a thread that may block,
//! away from those that answer others, and sent when the client has room → the digest ends it. At most one chunk waits, whatever the size of the store. Memory and disk that
//! the view holds are given back when the client is done, or has taken nothing for [`PATIENCE`].
//!
//! Where there is no quorum to ask, Snapshot gives what this node holds to those only who say [`STALE`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use consensus::SnapshotSource;
use proto::admin;
use proto::etcdserverpb as pb;
use proto::snapshot::STALE;
use rpc::server::{Call, RequestStream, ResponseSink};
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
    pub(super) async fn snapshot(self: Arc<Self>, call: Call, responses: ResponseSink) -> Result<(), Status> {
        if call.metadata.get(STALE) != Some(b"true") {
            self.linearize().await?;
        }
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
        self.linearize().await?;
        let view = self.current()?;
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
    let (mut cut, mut given) = (Cut::default(), 0);
    loop {
        let (blobs, last, back) = blocking(move || {
            let chunk = source.next_chunk().map_err(|error| Status::new(Code::Internal, error.to_string()))?;
            let last = chunk.is_none();
            let blobs = cut.take(chunk.as_deref().unwrap_or_default(), last);
            Ok((blobs, last, (source, cut)))
        })
        .await?;
        (source, cut) = back;
        for blob in blobs {
            given += blob.len() as u64;
            // An estimate until the end, but never zero before it.
            let remaining = if last { 0 } else { total.saturating_sub(given).max(1) };
            let sent = tokio::time::timeout(PATIENCE, responses.send(message(blob, remaining)?)).await;
            sent.unwrap_or_else(|_| Err(Status::new(Code::Aborted, "the client took no data for too long")))?;
        }
        if last {
            return Ok(());
        }
    }
}

/// Cuts a stream into blobs of equal size, pads it and adds the digest.
#[derive(Default)]
struct Cut {
    waiting: Vec<u8>,
    digest: Sha256,
    /// Of the stream so far.
    length: usize,
}

impl Cut {
    fn take(&mut self, bytes: &[u8], last: bool) -> Vec<Bytes> {
        self.add(bytes);
        if last {
            self.add(&[0; PAGE_BYTES][..self.length.next_multiple_of(PAGE_BYTES) - self.length]);
            let digest = self.digest.finalize_reset();
            self.waiting.extend_from_slice(&digest);
        }
        let whole = self.waiting.len() - if last { 0 } else { self.waiting.len() % BLOB_BYTES };
        let rest = self.waiting.split_off(whole);
        let blobs = Bytes::from(std::mem::replace(&mut self.waiting, rest));
        (0..whole).step_by(BLOB_BYTES).map(|at| blobs.slice(at..whole.min(at + BLOB_BYTES))).collect()
    }

    fn add(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.waiting.extend_from_slice(bytes);
        self.length += bytes.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_stream_has_etcds_length_and_digest() {
        for total in [0, 1, 511, 512, 40_000, 100_000] {
            let data: Vec<u8> = (0..total).map(|byte| byte as u8).collect();
            let mut cut = Cut::default();
            let mut all = Vec::new();
            for part in data.chunks(7_000).chain([&[][..]]) {
                for blob in cut.take(part, part.is_empty()) {
                    assert!(blob.len() == BLOB_BYTES || part.is_empty());
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
