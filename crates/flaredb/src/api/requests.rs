//! Requests under watch: how many, how they ended, how long they took; and the lines on them.
//!
//! * `WARN flaredb_service: Slow request, method=Put latency=312ms region=7 leader=2 outcome=OK` of every request that took
//!   `log.slow_request_ms` or longer, so many a second at most ([`node::slow`]). One that failed says why, beginning with
//!   `context deadline exceeded` where time ran out; one whose caller went away has the outcome `Canceled`.
//! * `INFO flaredb_service: Handled query, rows=1000, latency=50ms` of a scan, the first and then every ten seconds.
//!
//! Where the region is not here, `region=elsewhere` stands for it: the line of the store that has it says more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use node::metrics::calls::{Methods, Running};
use node::slow::SlowRequests;
use prost::Message as _;
use proto::flaredb as pb;
use rpc::{Code, Status};

use super::{BATCH, COMPARE_AND_SWAP, DELETE, GET, METHODS, PUT, SCAN};
use crate::store::Store;

const QUERY_SAID_EVERY_MS: u64 = 10_000;

pub struct Requests {
    methods: Arc<Methods>,
    pub slow: SlowRequests,
    /// Zero: no request is slow.
    slow_from: Duration,
    started: Instant,
    query_said_ms: AtomicU64,
}

impl Requests {
    pub fn new(slow_from: Duration) -> Requests {
        Requests {
            methods: Methods::new(&METHODS),
            slow: SlowRequests::default(),
            slow_from,
            started: Instant::now(),
            query_said_ms: AtomicU64::new(0),
        }
    }

    pub fn methods(&self) -> &Methods {
        &self.methods
    }

    fn say_query(&self, rows: impl FnOnce() -> usize, took: Duration) {
        let now_ms = 1 + self.started.elapsed().as_millis() as u64;
        let last_ms = self.query_said_ms.load(Ordering::Relaxed);
        let due = last_ms == 0 || now_ms >= last_ms + QUERY_SAID_EVERY_MS;
        let claim = || self.query_said_ms.compare_exchange(last_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        if due && claim().is_ok() {
            let rows = rows();
            tracing::info!(target: "flaredb_service", "Handled query, rows={rows}, latency={}ms", took.as_millis());
        }
    }
}

/// A request from its arrival until it is answered, or until nobody waits for it any more.
pub struct Watched {
    requests: Arc<Requests>,
    store: Arc<Store>,
    running: Running,
    number: u16,
    message: Bytes,
    /// Why it failed.
    why: String,
}

impl Watched {
    pub fn begin(requests: &Arc<Requests>, store: &Arc<Store>, number: u16, message: &Bytes) -> Watched {
        let (requests, store) = (requests.clone(), store.clone());
        let running = requests.methods.begin(number);
        Watched { requests, store, running, number, message: message.clone(), why: "the caller went away".to_owned() }
    }

    /// It is about to be answered.
    pub fn ends(&mut self, answer: &Result<Bytes, Status>) {
        match answer {
            Ok(body) => {
                self.running.ends(Code::Ok.number());
                self.why.clear();
                if self.number == SCAN {
                    let rows = || pb::ScanResponse::decode(body.clone()).map_or(0, |response| response.pairs.len());
                    self.requests.say_query(rows, self.running.took());
                }
            }
            Err(status) => {
                self.running.ends(status.code.number());
                let ran_out = status.code == Code::DeadlineExceeded;
                self.why = format!("{}{}", if ran_out { "context deadline exceeded: " } else { "" }, status.message);
            }
        }
    }

    fn tell_if_slow(&self) {
        let (limit, took) = (self.requests.slow_from, self.running.took());
        if limit.is_zero() || took < limit {
            return;
        }
        let Some(left_out) = self.requests.slow.note(self.requests.started.elapsed().as_secs()) else { return };
        let (method, latency, outcome) = (self.running.method(), took.as_millis(), self.running.code());
        let place = match self.place() {
            Some((region, leader)) => format!("region={region} leader={leader}"),
            None => "region=elsewhere".to_owned(),
        };
        let why = if self.why.is_empty() { String::new() } else { format!(" why={}", self.why) };
        let left_out = if left_out > 0 { format!(" left_out={left_out}") } else { String::new() };
        tracing::warn!(
            target: "flaredb_service",
            "Slow request, method={method} latency={latency}ms {place} outcome={outcome}{why}{left_out}"
        );
    }

    /// The region here that the request is about, and the store that leads it.
    fn place(&self) -> Option<(base::GroupId, base::NodeId)> {
        let message = self.message.clone();
        let key = match self.number {
            GET => pb::GetRequest::decode(message).ok()?.key,
            PUT => pb::PutRequest::decode(message).ok()?.key,
            DELETE => pb::DeleteRequest::decode(message).ok()?.key,
            COMPARE_AND_SWAP => pb::CompareAndSwapRequest::decode(message).ok()?.key,
            BATCH => pb::BatchRequest::decode(message).ok()?.mutations.first()?.key.clone(),
            SCAN => pb::ScanRequest::decode(message).ok()?.start,
            _ => return None,
        };
        let region = self.store.region_at(&key)?;
        Some((region.id(), region.handle.status().leader_node))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.tell_if_slow();
    }
}
