//! Receiving a backup's stream from a server: all of it, checked as it comes.
//!
//! Snapshot and Changes differ in their messages alone. What arrives is believed at the end: when the SHA-256 that ends it
//! fits, and the stream's own frames, checksums and counts do.

use std::time::{Duration, Instant};

use proto::admin::{ChangesRequest, ChangesResponse};
use proto::content::FAMILIES;
use proto::etcdserverpb::{SnapshotRequest, SnapshotResponse};
use proto::snapshot::{Content, FILE_DIGEST_BYTES, Reader, STALE};
use rpc::client::WINDOW_BYTES;
use sha2::{Digest, Sha256};
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::progress::Progress;
use crate::connect::{self, Client};
use crate::failure::Failure;

/// Shorter waits are put off.
const PACE_STEP: Duration = Duration::from_millis(2);
/// What a stream that fell behind its pace may make up for.
const PACE_BURST: Duration = Duration::from_millis(100);
/// A server may send ahead what comes in 20 ms, and not less than this.
const AHEAD_BYTES_PER_MIB: u32 = (1 << 20) / 50;
const WINDOW_BYTES_MIN: u32 = 256 << 10;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The whole store; `stale`: as far as the node that is asked knows of it, which may be cut off.
    Everything { stale: bool },
    /// What changed since a revision of a cluster.
    Since { revision: i64, cluster: u64 },
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

/// How fast a stream is taken. The server waits for whoever takes slowly.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Zero: as fast as it comes.
    pub mib_per_second: u32,
}

impl Pace {
    /// What the server may send ahead: little, so that it works as evenly as the stream is taken.
    fn window_bytes(self) -> u32 {
        match self.mib_per_second {
            0 => WINDOW_BYTES,
            rate => rate.saturating_mul(AHEAD_BYTES_PER_MIB).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES),
        }
    }

    /// When the next bytes are due, `bytes` having been taken now that those before were due at `due`. A stream that stood
    /// still does not make up for it in a burst.
    fn after(self, due: Instant, now: Instant, bytes: usize) -> Instant {
        let span = match self.mib_per_second {
            0 => Duration::ZERO,
            rate => Duration::from_secs_f64(bytes as f64 / (f64::from(rate) * f64::from(1 << 20))),
        };
        due.max(now.checked_sub(PACE_BURST).unwrap_or(now)) + span
    }
}

/// Receives a stream; `take` gets its bytes, without the digest at its end. Ctrl-C and SIGTERM end it, with an error.
pub async fn receive(
    client: &Client,
    wanted: Wanted,
    pace: Pace,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Received, Failure> {
    let (endpoint, channel) = client.narrow_channel(pace.window_bytes()).await?;
    let received = receive_from(client, (&endpoint, channel), wanted, pace, &mut take).await;
    if received.is_err() {
        client.turn_away_from(&endpoint);
    }
    received
}

async fn receive_from(
    client: &Client,
    (endpoint, channel): (&str, tonic::transport::Channel),
    wanted: Wanted,
    pace: Pace,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<Received, Failure> {
    let timed_out = |_| Failure::timed_out(endpoint);
    let refused = |status: Status| of_status(endpoint, wanted, &status);
    let mut messages = match wanted {
        Wanted::Everything { stale } => {
            let mut request = Request::new(SnapshotRequest {});
            if stale {
                request.metadata_mut().insert(STALE, MetadataValue::from_static("true"));
            }
            let opened = client.within(connect::maintenance(channel).snapshot(request)).await;
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
    let (mut written, mut due) = (0, Instant::now());
    // One for all: what comes while nobody listens is lost.
    let mut stopped = std::pin::pin!(stopped());
    loop {
        let next = tokio::select! {
            next = client.within(messages.next()) => next.map_err(timed_out)?,
            () = &mut stopped => return Err(interrupted()),
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
        due = pace.after(due, Instant::now(), blob.len());
        let early = due.saturating_duration_since(Instant::now());
        if early > PACE_STEP {
            tokio::select! {
                () = tokio::time::sleep(early) => {}
                () = &mut stopped => return Err(interrupted()),
            }
        }
    }
    if last.len() < FILE_DIGEST_BYTES || hasher.finalize()[..] != last[..] {
        return Err(arrived_damaged("its SHA-256 does not fit"));
    }
    let content = reader.finish().map_err(|why| arrived_damaged(&why.0))?;
    let since = match wanted {
        Wanted::Everything { .. } => None,
        Wanted::Since { revision, .. } => Some(revision),
    };
    if content.header.since != since {
        return Err(arrived_damaged("it is not what was asked for"));
    }
    Ok(Received { content, digest: last.try_into().expect("just looked at") })
}

fn interrupted() -> Failure {
    Failure::local("interrupted; nothing was saved")
}

/// What to do when changes cannot be had.
const FULL_NEEDED: &str = "a full backup is needed: snapshot save, without --incremental";

fn of_status(endpoint: &str, wanted: Wanted, status: &Status) -> Failure {
    let failure = Failure::of_status(endpoint, status);
    let Wanted::Since { revision, .. } = wanted else { return failure };
    let text = match status.code() {
        Code::OutOfRange if status.message().contains("compacted") => {
            format!("{endpoint}: the history since revision {revision} was compacted")
        }
        Code::OutOfRange => {
            format!(
                "{endpoint}: the cluster has not come to revision {revision}; was it restored from an older backup?"
            )
        }
        Code::FailedPrecondition => failure.text,
        _ => return failure,
    };
    Failure::new(failure.kind, text).advise(FULL_NEEDED)
}

/// Whether a failure says that changes cannot be had, but a full backup can.
pub fn needs_full(failure: &Failure) -> bool {
    failure.advice.as_deref() == Some(FULL_NEEDED)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_that_stood_still_does_not_make_up_for_it() {
        let pace = Pace { mib_per_second: 10 };
        let began = Instant::now();
        let mut due = began;
        for _ in 0..10 {
            due = pace.after(due, began, 1 << 20);
        }
        assert_eq!(due - began, Duration::from_secs(1));
        let later = began + Duration::from_secs(60);
        assert_eq!(pace.after(due, later, 1 << 20), later);
        assert_eq!(Pace { mib_per_second: 0 }.after(due, began, 1 << 30), due);
    }
}
