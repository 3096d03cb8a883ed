//! Receiving a backup's stream from a server: all of it, checked as it comes.
//!
//! Snapshot and Changes differ in their messages alone. What arrives is believed at the end: when the SHA-256 that ends it
//! fits, and the stream's own frames, checksums and counts do.

use proto::admin::{ChangesRequest, ChangesResponse};
use proto::content::FAMILIES;
use proto::etcdserverpb::{SnapshotRequest, SnapshotResponse};
use proto::snapshot::{Content, FILE_DIGEST_BYTES, Reader};
use sha2::{Digest, Sha256};
use tonic::{Status, Streaming};

use super::progress::Progress;
use crate::connect::{self, Client};
use crate::failure::Failure;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Everything,
    /// What changed since a revision of a cluster.
    Since {
        revision: i64,
        cluster: u64,
    },
}

/// What came, complete.
pub struct Received {
    pub content: Content,
    pub digest: [u8; FILE_DIGEST_BYTES],
}

enum Messages {
    Snapshot(Streaming<SnapshotResponse>),
    Changes(Streaming<ChangesResponse>),
}

impl Messages {
    async fn next(&mut self) -> Result<Option<(bytes::Bytes, u64)>, Status> {
        Ok(match self {
            Messages::Snapshot(stream) => stream.message().await?.map(|part| (part.blob, part.remaining_bytes)),
            Messages::Changes(stream) => stream.message().await?.map(|part| (part.blob, part.remaining_bytes)),
        })
    }
}

/// Receives a stream; `take` gets its bytes, without the digest at its end. Ctrl-C and SIGTERM end it, with an error.
pub async fn receive(
    client: &Client,
    wanted: Wanted,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Received, Failure> {
    let (endpoint, channel) = client.any_channel().await?;
    let received = receive_from(client, &endpoint, channel, wanted, &mut take).await;
    if received.is_err() {
        client.turn_away_from(&endpoint);
    }
    received
}

async fn receive_from(
    client: &Client,
    endpoint: &str,
    channel: tonic::transport::Channel,
    wanted: Wanted,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Received, Failure> {
    let timed_out = |_| Failure::timed_out(endpoint);
    let refused = |status: Status| of_status(endpoint, wanted, &status);
    let mut messages = match wanted {
        Wanted::Everything => {
            let opened = client.within(connect::maintenance(channel).snapshot(SnapshotRequest {})).await;
            Messages::Snapshot(opened.map_err(timed_out)?.map_err(refused)?.into_inner())
        }
        Wanted::Since { revision, cluster } => {
            let request = ChangesRequest { since_revision: revision, cluster_id: cluster };
            let opened = client.within(connect::admin(channel).changes(request)).await;
            Messages::Changes(opened.map_err(timed_out)?.map_err(refused)?.into_inner())
        }
    };
    let arrived_damaged = |why: &str| {
        Failure::local(format!("{endpoint}: the snapshot arrived damaged or cut short; nothing was saved ({why})"))
            .advise("try again")
    };
    let mut progress = Progress::new("saving", 0);
    let mut hasher = Sha256::new();
    let mut reader = Reader::new(FAMILIES);
    // The digest of all before is the last thing in the stream, wherever the chunks are cut.
    let mut last: Vec<u8> = Vec::new();
    let mut written = 0;
    loop {
        let next = tokio::select! {
            next = client.within(messages.next()) => next.map_err(timed_out)?,
            _ = stopped() => return Err(Failure::local("interrupted; nothing was saved")),
        };
        let Some((blob, remaining)) = next.map_err(refused)? else { break };
        last.extend_from_slice(&blob);
        let sure = last.len().saturating_sub(FILE_DIGEST_BYTES);
        hasher.update(&last[..sure]);
        reader.feed(&last[..sure]);
        while reader.pair().map_err(|why| arrived_damaged(&why.0))?.is_some() {}
        take(&last[..sure])?;
        last.drain(..sure);
        written += blob.len() as u64;
        if remaining > 1 {
            progress.expect(written + remaining);
        }
        progress.advance(blob.len() as u64);
    }
    if last.len() < FILE_DIGEST_BYTES || hasher.finalize()[..] != last[..] {
        return Err(arrived_damaged("its SHA-256 does not fit"));
    }
    let content = reader.finish().map_err(|why| arrived_damaged(&why.0))?;
    let since = match wanted {
        Wanted::Everything => None,
        Wanted::Since { revision, .. } => Some(revision),
    };
    if content.header.since != since {
        return Err(arrived_damaged("it is not what was asked for"));
    }
    Ok(Received { content, digest: last.try_into().expect("just looked at") })
}

fn of_status(endpoint: &str, wanted: Wanted, status: &Status) -> Failure {
    let failure = Failure::of_status(endpoint, status);
    match (wanted, status.code()) {
        (Wanted::Since { revision, .. }, tonic::Code::OutOfRange) if status.message().contains("compacted") => {
            Failure::new(failure.kind, format!("{endpoint}: the history since revision {revision} was compacted"))
                .advise("a full backup is needed: snapshot save, without --incremental")
        }
        (Wanted::Since { revision, .. }, tonic::Code::OutOfRange) => {
            Failure::new(failure.kind, format!("{endpoint}: the cluster has not come to revision {revision}"))
                .advise("was it restored from an older backup? a full backup is needed")
        }
        (Wanted::Since { .. }, tonic::Code::FailedPrecondition) => {
            failure.advise("a full backup is needed: snapshot save, without --incremental")
        }
        _ => failure,
    }
}

/// Whether a failure says that changes cannot be had, but a full backup can.
pub fn needs_full(failure: &Failure) -> bool {
    failure.advice.as_ref().is_some_and(|advice| advice.contains("a full backup is needed"))
}

/// Ctrl-C, or what a service manager sends.
pub async fn stopped() {
    let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
    match terminate {
        Ok(mut terminate) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        }
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}
