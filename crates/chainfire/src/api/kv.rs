//! The KV service.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcdserverpb as pb;
use rpc::Status;
use rpc::server::{Answer, RequestStream, ResponseSink};

use super::header::decode;
use super::slow::between_ms;
use super::{Api, check, status_of};
use crate::command::{self, Kind};
use crate::error::ApiError;
use crate::machine::txn::{has_puts, is_serializable, only_reads};
use crate::read::{RangePages, StateView};

/// Ranges of up to so many keys, and of so many bytes as it seems, are read on the connection's own thread; larger ones on
/// a thread for blocking work.
const KEYS_INLINE_MAX: i64 = 1_000;
const BYTES_INLINE_MAX: i64 = 1 << 20;
/// How often a put is mentioned.
const PUT_SAID_EVERY_MS: u64 = 10_000;
/// About how much one message of a RangeStream carries.
const PAGE_BYTES: usize = 512 << 10;

impl Api {
    pub(super) fn range(self: &Arc<Self>, message: Bytes) -> Answer {
        let request: pb::RangeRequest = match decode(message) {
            Ok(request) => request,
            Err(error) => return Answer::Ready(Err(error)),
        };
        if let Err(error) = check::range(&request) {
            return Answer::Ready(Err(status_of(error)));
        }
        if !self.is_short(&request) {
            return Answer::later(self.clone().range_apart(request));
        }
        if request.serializable {
            return Answer::Ready(self.read_now(&request));
        }
        // Under the leader's lease the answer is at hand.
        if let Some(grant) = self.handle.lease_read() {
            let answer = self.read_now(&request);
            if self.handle.still_valid(&grant) {
                return Answer::Ready(answer);
            }
        }
        Answer::later(self.clone().range_linearizable(request))
    }

    pub(super) fn put(self: &Arc<Self>, message: Bytes) -> Answer {
        let checked = self.sized(&message).and_then(|()| {
            let request: pb::PutRequest = decode(message.clone())?;
            check::put(&request).map_err(status_of)?;
            self.room()
        });
        self.replicate(Kind::Put, checked, &message)
    }

    pub(super) fn delete_range(self: &Arc<Self>, message: Bytes) -> Answer {
        let checked = self.sized(&message).and_then(|()| {
            let request: pb::DeleteRangeRequest = decode(message.clone())?;
            check::delete_range(&request).map_err(status_of)
        });
        self.replicate(Kind::DeleteRange, checked, &message)
    }

    pub(super) fn txn(self: &Arc<Self>, message: Bytes) -> Answer {
        let checked = self.sized(&message).and_then(|()| {
            let request: pb::TxnRequest = decode(message.clone())?;
            check::txn(&request, self.live.txn_ops_max()).map_err(status_of)?;
            if has_puts(&request) {
                self.room()?;
            }
            Ok(only_reads(&request).then_some(request))
        });
        match checked {
            Ok(Some(reading)) => Answer::later(self.clone().read_txn(reading)),
            checked => self.replicate(Kind::Txn, checked.map(|_| ()), &message),
        }
    }

    /// A transaction that only reads costs no entry in the log; like a range it may be asked of any node, and a
    /// serializable one needs no quorum.
    async fn read_txn(self: Arc<Self>, request: pb::TxnRequest) -> Result<Bytes, Status> {
        let serializable = is_serializable(&request);
        let began = Instant::now();
        loop {
            let grant = if serializable { None } else { Some(self.linearize().await?) };
            let granted = Instant::now();
            let turn = self.large.turn().await;
            let turned = Instant::now();
            let (api, asked) = (self.clone(), request.clone());
            let answer = turn.make(move |caller| {
                let view = api.current()?.while_asked(caller);
                Ok(api.behind_header(view.revision, &view.txn(&asked).map_err(status_of)?))
            });
            let answer = answer.await;
            if grant.is_none_or(|grant| self.handle.still_valid(&grant)) {
                self.note_slow("Txn", began.elapsed(), || read_parts(began, granted, turned));
                return answer.and_then(|answer| self.large.hold(answer));
            }
        }
    }

    pub(super) fn compact(self: &Arc<Self>, message: Bytes) -> Answer {
        let checked = decode::<pb::CompactionRequest>(message.clone()).map(|_| ());
        self.replicate(Kind::Compact, checked, &message)
    }

    pub(super) async fn range_stream(
        self: Arc<Self>,
        mut requests: RequestStream,
        mut responses: ResponseSink,
    ) -> Result<(), Status> {
        let Some(message) = requests.next().await else { return Ok(()) };
        let request: pb::RangeRequest = decode(message?)?;
        check::range(&request).map_err(status_of)?;
        if !request.serializable {
            self.linearize().await?;
        }
        let api = self.clone();
        let begun = blocking(move || RangePages::new(&*api.current()?, request).map_err(status_of));
        let mut pages = begun.await?;
        let revision = pages.revision;
        loop {
            let api = self.clone();
            let (page, back) = blocking(move || {
                let view = api.current()?;
                let page = pages.next(&view, PAGE_BYTES).map_err(status_of)?;
                Ok((page, pages))
            })
            .await?;
            pages = back;
            let Some(page) = page else { return Ok(()) };
            // Only the last message carries the header.
            let answer = if page.last { self.behind_header(revision, &page.body) } else { page.body.into() };
            responses.send(wrap(&answer)).await?;
            if page.last {
                return Ok(());
            }
        }
    }

    fn sized(&self, message: &Bytes) -> Result<(), Status> {
        let fits = message.len() <= self.limits.request_bytes_max;
        if fits { Ok(()) } else { Err(status_of(ApiError::RequestTooLarge)) }
    }

    fn room(&self) -> Result<(), Status> {
        if self.disk_full.load(Ordering::Relaxed) { Err(status_of(ApiError::NoSpace)) } else { Ok(()) }
    }

    fn replicate(self: &Arc<Self>, kind: Kind, checked: Result<(), Status>, message: &Bytes) -> Answer {
        if let Err(error) = checked {
            return Answer::Ready(Err(error));
        }
        let command = command::raw(kind, message);
        let api = self.clone();
        Answer::later(async move {
            let (answer, way) = api.propose_traced(command).await;
            if kind == Kind::Put && answer.is_ok() {
                api.say_put(way.took);
            }
            api.note_slow(kind.name(), way.took, || api.write_parts(way));
            answer
        })
    }

    /// Whether a range takes so little time that another thread would cost more.
    fn is_short(&self, request: &pb::RangeRequest) -> bool {
        if request.range_end.is_empty() {
            return true;
        }
        if request.revision != 0 || request.sort_order != 0 || request.sort_target != 0 {
            return false;
        }
        // The index counts; keys are only read at the ends of the range.
        let keys = if request.count_only { KEYS_INLINE_MAX } else { request.limit };
        let bytes_per_key = self.range_bytes_per_key.load(Ordering::Relaxed) as i64;
        (1..=KEYS_INLINE_MAX).contains(&keys) && keys.saturating_mul(bytes_per_key) <= BYTES_INLINE_MAX
    }

    fn read_now(&self, request: &pb::RangeRequest) -> Result<Bytes, Status> {
        self.read_range(&*self.current()?, request)
    }

    fn read_range(&self, view: &StateView, request: &pb::RangeRequest) -> Result<Bytes, Status> {
        let answer = view.range(request).map_err(status_of)?;
        if let Some(now) = answer.body.len().checked_div(answer.returned) {
            let before = self.range_bytes_per_key.load(Ordering::Relaxed);
            self.range_bytes_per_key.store((before * 3 + now as u64) / 4, Ordering::Relaxed);
        }
        Ok(self.behind_header(view.revision, &answer.body))
    }

    /// A line for the first and then every ten seconds; slow ones are [`Api::note_slow`]'s.
    fn say_put(&self, took: Duration) {
        let now_ms = 1 + self.started.elapsed().as_millis() as u64;
        let last_ms = self.put_said_ms.load(Ordering::Relaxed);
        let due = last_ms == 0 || now_ms >= last_ms + PUT_SAID_EVERY_MS;
        let claim = || self.put_said_ms.compare_exchange(last_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        if due && claim().is_ok() {
            tracing::info!(target: "chainfire_api", "Handled put request, latency={}ms", took.as_millis());
        }
    }

    async fn range_linearizable(self: Arc<Self>, request: pb::RangeRequest) -> Result<Bytes, Status> {
        let began = Instant::now();
        loop {
            let grant = self.linearize().await?;
            let granted = Instant::now();
            let answer = self.read_now(&request);
            if self.handle.still_valid(&grant) {
                self.note_slow("Range", began.elapsed(), || read_parts(began, granted, granted));
                return answer;
            }
        }
    }

    async fn range_apart(self: Arc<Self>, request: pb::RangeRequest) -> Result<Bytes, Status> {
        let began = Instant::now();
        loop {
            let grant = if request.serializable { None } else { Some(self.linearize().await?) };
            let granted = Instant::now();
            let turn = self.large.turn().await;
            let turned = Instant::now();
            let (api, asked) = (self.clone(), request.clone());
            let answer = turn.make(move |caller| api.read_range(&api.current()?.while_asked(caller), &asked)).await;
            // The view was taken after the grant and before the answer; a lease that ended since proves nothing.
            if grant.is_none_or(|grant| self.handle.still_valid(&grant)) {
                self.note_slow("Range", began.elapsed(), || read_parts(began, granted, turned));
                return answer.and_then(|answer| self.large.hold(answer));
            }
        }
    }
}

/// Where the time of a read went, see [`super::slow`].
fn read_parts(began: Instant, granted: Instant, turned: Instant) -> String {
    let (grant, turn, read) =
        (between_ms(began, granted), between_ms(granted, turned), between_ms(turned, Instant::now()));
    format!("grant={grant}ms turn={turn}ms read={read}ms")
}

/// Runs what may read much from the disk on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Status::internal("a read failed")))
}

/// `RangeStreamResponse { range_response = 1 }` around an encoded response.
fn wrap(response: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(response.len() + 6);
    out.push(1 << 3 | 2);
    prost::encoding::encode_varint(response.len() as u64, &mut out);
    out.extend_from_slice(response);
    out.into()
}
