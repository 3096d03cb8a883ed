//! Clients whose every call and answer is written down, for the checker of histories.
//!
//! A client does one thing at a time on one endpoint, and goes to another one after a failure or on a whim. A write without
//! an answer has an unknown outcome and stays in the history, unless it was certainly never sent.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::Rng;
use proto::etcdserverpb::{self as pb, compare, request_op, response_op};
use proto::mvccpb::KeyValue;
use sim::linear::{Call, Found, Operation, Outcome};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::client::{self, Client};

/// Longer than a healthy failover, shorter than a server's own patience.
const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);
const PAUSE_MS_MAX: u64 = 20;
const KEY_PREFIX: &str = "key-";

/// Clients at work.
pub struct Recording {
    shared: Arc<Shared>,
    prefix: String,
    keys: u64,
    rng: Rng,
    clients: Vec<JoinHandle<()>>,
}

/// How single keys are read. Both kinds are recorded as if they were linearizable, and only one of them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "used by one of the test programs that share this file")]
pub enum Reads {
    Linearizable,
    /// From what the node has.
    Serializable,
}

struct Shared {
    began: Instant,
    stop: AtomicBool,
    operations: Mutex<Vec<Operation>>,
}

impl Recording {
    /// Starts clients on empty keys. The seed decides what they ask for, not when.
    pub fn start(endpoints: &[String], clients: u64, keys: u64, seed: u64) -> Recording {
        Recording::start_below(KEY_PREFIX, endpoints, clients, keys, seed)
    }

    /// The same with keys below a prefix, which nobody else writes to.
    pub fn start_below(prefix: &str, endpoints: &[String], clients: u64, keys: u64, seed: u64) -> Recording {
        let shared =
            Arc::new(Shared { began: Instant::now(), stop: AtomicBool::new(false), operations: Mutex::default() });
        let mut recording =
            Recording { shared, prefix: prefix.to_owned(), keys, rng: Rng::new(seed), clients: Vec::new() };
        (0..clients).for_each(|_| recording.add(endpoints, None));
        recording
    }

    /// Another client, who only reads, from one endpoint.
    #[allow(dead_code, reason = "used by one of the test programs that share this file")]
    pub fn read_beside(&mut self, endpoint: &str, reads: Reads) {
        self.add(&[endpoint.to_owned()], Some(reads));
    }

    fn add(&mut self, endpoints: &[String], only: Option<Reads>) {
        let id = self.clients.len() as u64;
        let client = Recorded {
            id,
            prefix: self.prefix.clone(),
            keys: self.keys,
            only,
            endpoints: endpoints.iter().map(|address| Client::with_timeout(address, CALL_TIMEOUT)).collect(),
            rng: self.rng.fork(id),
            modified: BTreeMap::new(),
            writes: 0,
            shared: self.shared.clone(),
        };
        self.clients.push(tokio::spawn(client.work()));
    }

    /// How many calls were answered so far.
    pub fn answered(&self) -> usize {
        let operations = self.shared.operations.lock().unwrap();
        operations.iter().filter(|operation| operation.outcome.is_some()).count()
    }

    pub async fn finish(self) -> Vec<Operation> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut *self.shared.operations.lock().unwrap())
    }
}

struct Recorded {
    id: u64,
    prefix: String,
    keys: u64,
    /// Reads of this kind and nothing else, or everything.
    only: Option<Reads>,
    endpoints: Vec<Client>,
    rng: Rng,
    /// The revision at which this client last saw each key modified.
    modified: BTreeMap<String, u64>,
    writes: u64,
    shared: Arc<Shared>,
}

impl Recorded {
    async fn work(mut self) {
        let mut current = self.rng.below(self.endpoints.len() as u64) as usize;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let call = self.choose();
            let start = self.now();
            let answer = ask(&self.endpoints[current], &call, self.only).await;
            let end = self.now();
            let failed = answer.is_err();
            match answer {
                Ok(outcome) => {
                    self.remember(&call, &outcome);
                    self.record(start, Some(end), call, Some(outcome));
                }
                // A read that failed says nothing.
                Err(_) if matches!(call, Call::Get { .. } | Call::Range { .. }) => {}
                Err(why) if client::was_never_sent(&why) => {}
                Err(_) => self.record(start, None, call, None),
            }
            if failed {
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
            if failed || self.rng.percent(10) {
                current = self.rng.below(self.endpoints.len() as u64) as usize;
            }
            tokio::time::sleep(Duration::from_millis(self.rng.below(PAUSE_MS_MAX))).await;
        }
    }

    fn choose(&mut self) -> Call {
        let key = format!("{}{}", self.prefix, self.rng.below(self.keys));
        if self.only.is_some() {
            return Call::Get { key };
        }
        self.writes += 1;
        let value = format!("{}-{}", self.id, self.writes);
        match self.rng.below(100) {
            0..30 => Call::Put { key, value },
            30..60 => Call::Get { key },
            60..85 => Call::Cas { expect: self.modified.get(&key).copied().unwrap_or(0), key, value },
            85..95 => Call::Delete { key },
            _ => Call::Range { from: self.prefix.clone(), to: client::text(&client::end_of(&self.prefix)) },
        }
    }

    fn remember(&mut self, call: &Call, outcome: &Outcome) {
        match call {
            Call::Put { key, .. } => drop(self.modified.insert(key.clone(), outcome.revision)),
            Call::Cas { key, .. } if outcome.done => drop(self.modified.insert(key.clone(), outcome.revision)),
            Call::Get { key } | Call::Cas { key, .. } | Call::Delete { key } => drop(self.modified.remove(key)),
            Call::Range { .. } => self.modified.clear(),
        }
        self.modified.extend(outcome.found.iter().map(|found| (found.key.clone(), found.modified)));
    }

    fn record(&self, start: u64, end: Option<u64>, call: Call, outcome: Option<Outcome>) {
        self.shared.operations.lock().unwrap().push(Operation { client: self.id, start, end, call, outcome });
    }

    fn now(&self) -> u64 {
        self.shared.began.elapsed().as_nanos() as u64
    }
}

async fn ask(client: &Client, call: &Call, only: Option<Reads>) -> Result<Outcome, Status> {
    match call {
        Call::Put { key, value } => {
            let answer = client.put(key, value).await?;
            Ok(outcome(&answer.header, true, &[]))
        }
        Call::Get { key } => {
            let serializable = only == Some(Reads::Serializable);
            let request = pb::RangeRequest { key: client::bytes(key), serializable, ..Default::default() };
            let answer = client.range(request).await?;
            Ok(outcome(&answer.header, false, &answer.kvs))
        }
        Call::Range { from, to } => {
            let request =
                pb::RangeRequest { key: client::bytes(from), range_end: client::bytes(to), ..Default::default() };
            let answer = client.range(request).await?;
            Ok(outcome(&answer.header, false, &answer.kvs))
        }
        Call::Delete { key } => {
            let answer = client.delete(key).await?;
            Ok(outcome(&answer.header, answer.deleted > 0, &[]))
        }
        Call::Cas { key, expect, value } => {
            let answer = client.txn(compare_and_put(key, *expect, value)).await?;
            let found = match answer.responses.into_iter().next().and_then(|response| response.response) {
                Some(response_op::Response::ResponseRange(range)) => range.kvs,
                _ => Vec::new(),
            };
            Ok(outcome(&answer.header, answer.succeeded, &found))
        }
    }
}

/// Puts if the key was last modified at `expect`, else reads it.
fn compare_and_put(key: &str, expect: u64, value: &str) -> pb::TxnRequest {
    let unchanged = pb::Compare {
        key: client::bytes(key),
        result: compare::CompareResult::Equal as i32,
        target: compare::CompareTarget::Mod as i32,
        target_union: Some(compare::TargetUnion::ModRevision(expect as i64)),
        ..Default::default()
    };
    let read = pb::RangeRequest { key: client::bytes(key), ..Default::default() };
    pb::TxnRequest {
        compare: vec![unchanged],
        success: vec![operation(request_op::Request::RequestPut(client::put(key, value)))],
        failure: vec![operation(request_op::Request::RequestRange(read))],
    }
}

pub fn operation(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn outcome(header: &Option<pb::ResponseHeader>, done: bool, found: &[KeyValue]) -> Outcome {
    let found = found.iter().map(|pair| Found {
        key: client::text(&pair.key),
        value: client::text(&pair.value),
        modified: pair.mod_revision as u64,
    });
    Outcome { revision: client::revision(header) as u64, done, found: found.collect() }
}
