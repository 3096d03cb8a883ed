//! The clients: each does one thing at a time at a node it chooses, and writes down when it asked, when it was answered
//! and what it was told. Every value is written once, so that a value seen names the write it came from.
//!
//! A client that gets no answer in time, or whose node dies, does not know what became of its command; it writes down
//! just that, and goes on.

use std::collections::BTreeMap;

use base::{GroupId, Rng};
use chainfire::command::{self, Command, Kind};
use consensus::{Outcome, Refusal};
use prost::Message as _;
use proto::etcdserverpb as pb;

use super::World;
use super::plan::{MS, Plan};
use super::queue::Happening;
use super::requests::Request;
use super::stage::Stage;
use crate::linear::{self, Found, Operation};

/// What comes back.
#[derive(Clone, Debug)]
pub enum Answer {
    Done(Outcome),
    Found {
        revision: u64,
        found: Vec<Found>,
    },
    Refused(Refusal),
    /// Leadership has moved.
    Moved,
    /// The connection was refused or broke.
    Broken,
}

pub struct Clients {
    clients: Vec<Client>,
    /// What is under way.
    pub calls: BTreeMap<u64, Call>,
    /// What was done, group by group.
    pub history: BTreeMap<GroupId, Vec<Operation>>,
    /// Acknowledged writes, to be found in the store's history at the end: (group, revision) → key and value.
    pub acknowledged: BTreeMap<(GroupId, u64), (String, Option<String>)>,
    pub answered: u64,
    pub unknown: u64,
    /// Last writes and reads that have not been answered.
    pub probes_left: usize,
}

struct Client {
    rng: Rng,
    count: u64,
    /// The node that served it last.
    favourite: usize,
    /// What it last saw of each key: when it was modified.
    seen: BTreeMap<(GroupId, String), u64>,
    /// What comes next with its lease.
    lease: LeaseStep,
    /// One of those that come at the end and have one thing to do, until it is done.
    probe: Option<Probe>,
}

/// The last write, or a last read of everything, at one member.
#[derive(Clone, Copy, Debug)]
struct Probe {
    group: GroupId,
    at: usize,
    write: bool,
}

pub struct Call {
    client: usize,
    group: GroupId,
    pub at: usize,
    start: u64,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    KeyValue(linear::Call),
    Compact,
    Lease(LeaseStep),
}

/// A client grants a lease, attaches a key, revokes the lease and finds the key gone. Anything unclear on the way, and it
/// begins with another lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaseStep {
    Grant(i64),
    Attach(i64),
    Revoke(i64),
    Check(i64),
}

impl LeaseStep {
    fn group(self, groups: u64) -> GroupId {
        let (LeaseStep::Grant(id) | LeaseStep::Attach(id) | LeaseStep::Revoke(id) | LeaseStep::Check(id)) = self;
        GroupId(1 + id as u64 % groups)
    }
}

impl Clients {
    pub fn new(stage: &mut Stage) -> Clients {
        let plan = stage.plan.clone();
        let clients = (0..plan.clients).map(|client| {
            let delay = stage.rng.below(500 * MS);
            stage.after(delay, Happening::Client { client });
            let favourite = stage.rng.below(plan.founders as u64) as usize;
            Client::new(stage, favourite)
        });
        Clients {
            clients: clients.collect(),
            calls: BTreeMap::new(),
            history: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            answered: 0,
            unknown: 0,
            probes_left: 0,
        }
    }
}

impl World {
    /// A client does its next thing.
    pub fn client(&mut self, client: usize) {
        let stage = &mut self.stage;
        let this = &mut self.clients.clients[client];
        if let Some(probe) = this.probe {
            let what = What::KeyValue(this.probing(client, probe.write));
            return self.call(client, probe.group, probe.at, what);
        }
        if stage.healed {
            return;
        }
        let group = GroupId(1 + this.rng.below(stage.plan.groups));
        let at = if this.rng.percent(stage.plan.scattered_percent) {
            this.rng.below(self.nodes.len() as u64) as usize
        } else {
            this.favourite
        };
        if !self.nodes[at].enlisted {
            this.favourite = this.rng.below(self.nodes.len() as u64) as usize;
            return stage.after(MS, Happening::Client { client });
        }
        let what = this.next(client, group, &stage.plan);
        // A lease stays in its group.
        let group = if let What::Lease(step) = &what { step.group(stage.plan.groups) } else { group };
        self.call(client, group, at, what);
    }

    /// A client that writes something, or reads everything linearizably, at one node, until it has done so.
    pub fn probe(&mut self, group: GroupId, at: usize, write: bool) {
        let probing = Client { probe: Some(Probe { group, at, write }), ..Client::new(&mut self.stage, at) };
        let client = self.clients.clients.len();
        self.clients.clients.push(probing);
        self.clients.probes_left += 1;
        self.stage.after(0, Happening::Client { client });
    }

    fn call(&mut self, client: usize, group: GroupId, at: usize, what: What) {
        let stage = &mut self.stage;
        let seq = stage.name();
        let by_lease = stage.rng.percent(stage.plan.lease_reads_percent);
        let request = request(group, &what, by_lease, self.clients.clients[client].seen_revision(group));
        self.clients.calls.insert(seq, Call { client, group, at, start: stage.now, what });
        let trip = stage.net.client_trip();
        stage.after(trip, Happening::Request { at, seq, request });
        let patience = stage.plan.deadline + stage.plan.patience + stage.rng.below(stage.plan.patience);
        stage.after(patience, Happening::GiveUp { seq });
    }

    /// An answer has reached its client.
    pub fn answered(&mut self, seq: u64, answer: Answer) {
        if self.operator.answered(&mut self.stage, seq, &answer) {
            return;
        }
        let Some(call) = self.clients.calls.remove(&seq) else { return };
        let this = &mut self.clients.clients[call.client];
        match &answer {
            Answer::Broken => this.favourite = this.rng.below(self.nodes.len() as u64) as usize,
            Answer::Refused(_) if this.rng.percent(50) => {
                this.favourite = this.rng.below(self.nodes.len() as u64) as usize;
            }
            Answer::Refused(_) | Answer::Moved => {}
            Answer::Done(_) | Answer::Found { .. } => {
                this.favourite = call.at;
                self.clients.answered += 1;
                if this.probe.take().is_some() {
                    self.clients.probes_left -= 1;
                }
            }
        }
        let client = call.client;
        self.record(call, Some(answer));
        let rest = rest(&mut self.stage);
        self.stage.after(rest, Happening::Client { client });
    }

    /// A client has waited long enough, or its connection broke while a node had its request.
    pub fn give_up(&mut self, seq: u64) {
        let Some(call) = self.clients.calls.remove(&seq) else { return };
        let client = call.client;
        self.clients.clients[client].favourite = self.stage.rng.below(self.nodes.len() as u64) as usize;
        self.record(call, None);
        let rest = rest(&mut self.stage);
        self.stage.after(rest, Happening::Client { client });
    }

    /// All connections to a node break.
    pub fn hang_up(&mut self, at: usize) {
        let broken: Vec<u64> =
            self.clients.calls.iter().filter(|(_, call)| call.at == at).map(|(seq, _)| *seq).collect();
        for seq in broken {
            let delay = self.stage.net.client_trip();
            self.stage.after(delay, Happening::GiveUp { seq });
        }
    }

    /// Whoever is still waiting at the end does not know: a replica that went astray does not answer, and what it was asked
    /// may have happened.
    pub fn record_open_calls(&mut self) {
        for call in std::mem::take(&mut self.clients.calls).into_values() {
            self.record(call, None);
        }
    }

    /// Writes down what became of a call; `None`: nobody knows.
    fn record(&mut self, call: Call, answer: Option<Answer>) {
        let Call { client, group, start, what, .. } = call;
        let end = self.stage.now;
        let this = &mut self.clients.clients[client];
        let call = match what {
            What::KeyValue(call) => call,
            What::Compact => return,
            What::Lease(step) => {
                let fresh = self.stage.name() as i64;
                if let Err(why) = this.lease_went(step, fresh, answer) {
                    self.stage.ledger.fail(|| why);
                }
                return;
            }
        };
        let is_read = matches!(call, linear::Call::Get { .. } | linear::Call::Range { .. });
        let outcome = match answer {
            None => None,
            // Refused for certain: it has not happened. The connection was refused: neither.
            Some(Answer::Refused(why)) if !why.outcome_unknown() => return,
            Some(Answer::Broken) => return,
            Some(Answer::Refused(_) | Answer::Moved) => None,
            Some(Answer::Found { revision, found }) => Some(linear::Outcome { revision, done: false, found }),
            Some(Answer::Done(outcome)) => match outcome_of(&call, &outcome) {
                Ok(outcome) => Some(outcome),
                Err(why) => return self.stage.ledger.fail(|| format!("{call:?}: {why}")),
            },
        };
        if outcome.is_none() {
            self.clients.unknown += 1;
            if is_read {
                return;
            }
        }
        if let Some(outcome) = &outcome {
            for found in &outcome.found {
                this.seen.insert((group, found.key.clone()), found.modified);
            }
            let written = match &call {
                linear::Call::Put { key, value } | linear::Call::Cas { key, value, .. } => Some((key, Some(value))),
                linear::Call::Delete { key } => Some((key, None)),
                linear::Call::Get { .. } | linear::Call::Range { .. } => None,
            };
            if let Some((key, value)) = written.filter(|_| outcome.done) {
                this.seen.insert((group, key.clone()), if value.is_some() { outcome.revision } else { 0 });
                self.clients.acknowledged.insert((group, outcome.revision), (key.clone(), value.cloned()));
            }
        }
        let end = outcome.is_some().then_some(end);
        let operation = Operation { client: client as u64, start, end, call, outcome };
        self.clients.history.entry(group).or_default().push(operation);
    }
}

/// How long a client rests.
fn rest(stage: &mut Stage) -> u64 {
    1 + stage.rng.below(stage.plan.rest_max)
}

impl Client {
    fn new(stage: &mut Stage, favourite: usize) -> Client {
        Client {
            rng: stage.rng.fork(favourite as u64),
            count: 0,
            favourite,
            seen: BTreeMap::new(),
            lease: LeaseStep::Grant(stage.name() as i64),
            probe: None,
        }
    }

    fn probing(&mut self, client: usize, write: bool) -> linear::Call {
        self.count += 1;
        if write {
            linear::Call::Put { key: "k0".to_owned(), value: format!("{client}-{}", self.count) }
        } else {
            linear::Call::Range { from: "k".to_owned(), to: "l".to_owned() }
        }
    }

    fn next(&mut self, client: usize, group: GroupId, plan: &Plan) -> What {
        if plan.leases && self.rng.percent(15) {
            return What::Lease(self.lease);
        }
        if plan.compaction && self.rng.percent(2) {
            return What::Compact;
        }
        self.count += 1;
        let key = format!("k{}", self.rng.below(plan.keys));
        let mut value = format!("{client}-{}", self.count);
        let padding = self.rng.below(plan.value_bytes_max) as usize;
        value.extend(std::iter::repeat_n('.', padding));
        What::KeyValue(match self.rng.below(20) {
            0..=6 => linear::Call::Put { key, value },
            7..=11 => linear::Call::Get { key },
            12..=13 => linear::Call::Range { from: "k".to_owned(), to: "l".to_owned() },
            14..=15 => linear::Call::Delete { key },
            _ => {
                let expect = self.seen.get(&(group, key.clone())).copied().unwrap_or_default();
                linear::Call::Cas { key, expect, value }
            }
        })
    }

    fn seen_revision(&self, group: GroupId) -> u64 {
        let of_group = self.seen.iter().filter(|((of, _), _)| *of == group);
        of_group.map(|(_, modified)| *modified).max().unwrap_or_default()
    }

    /// What becomes of the lease after a step. The error says what must not be.
    fn lease_went(&mut self, step: LeaseStep, fresh: i64, answer: Option<Answer>) -> Result<(), String> {
        let done = matches!(&answer, Some(Answer::Done(outcome)) if outcome.code == 0);
        self.lease = match (step, done) {
            (LeaseStep::Grant(id), true) => LeaseStep::Attach(id),
            (LeaseStep::Attach(id), true) => LeaseStep::Revoke(id),
            (LeaseStep::Revoke(id), true) => LeaseStep::Check(id),
            _ => LeaseStep::Grant(fresh),
        };
        match (step, answer) {
            (LeaseStep::Check(id), Some(Answer::Found { found, .. })) if !found.is_empty() => {
                Err(format!("lease {id:x} was revoked, and its key is still there"))
            }
            // Each step follows on one that was acknowledged, so the lease is there.
            (step, Some(Answer::Done(outcome))) if outcome.code != 0 => {
                Err(format!("{step:?} failed with {:?}", chainfire::error::ApiError::from_code(outcome.code)))
            }
            _ => Ok(()),
        }
    }
}

fn lease_key(id: i64) -> String {
    format!("lease/{id:x}")
}

fn range(from: &str, to: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: from.to_owned().into(), range_end: to.to_owned().into(), ..pb::RangeRequest::default() }
}

/// What goes over the wire.
fn request(group: GroupId, what: &What, by_lease: bool, seen_revision: u64) -> Request {
    let read = |range| Request::Read { group, range, by_lease };
    let put = |key: &str, value: &str| pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..pb::PutRequest::default()
    };
    let command = match what {
        What::KeyValue(linear::Call::Get { key }) => return read(range(key, "")),
        What::KeyValue(linear::Call::Range { from, to }) => return read(range(from, to)),
        What::KeyValue(linear::Call::Put { key, value }) => command::raw(Kind::Put, &put(key, value).encode_to_vec()),
        What::KeyValue(linear::Call::Delete { key }) => {
            let request = pb::DeleteRangeRequest { key: key.clone().into(), ..pb::DeleteRangeRequest::default() };
            command::raw(Kind::DeleteRange, &request.encode_to_vec())
        }
        What::KeyValue(linear::Call::Cas { key, expect, value }) => {
            let compare = pb::Compare {
                result: pb::compare::CompareResult::Equal as i32,
                target: pb::compare::CompareTarget::Mod as i32,
                key: key.clone().into(),
                target_union: Some(pb::compare::TargetUnion::ModRevision(*expect as i64)),
                ..pb::Compare::default()
            };
            let op = |request| pb::RequestOp { request: Some(request) };
            let request = pb::TxnRequest {
                compare: vec![compare],
                success: vec![op(pb::request_op::Request::RequestPut(put(key, value)))],
                failure: vec![op(pb::request_op::Request::RequestRange(range(key, "")))],
            };
            command::raw(Kind::Txn, &request.encode_to_vec())
        }
        What::Compact => {
            let revision = (seen_revision / 2) as i64;
            let request = pb::CompactionRequest { revision, ..pb::CompactionRequest::default() };
            command::raw(Kind::Compact, &request.encode_to_vec())
        }
        What::Lease(LeaseStep::Grant(id)) => Command::LeaseGrant { id: *id, ttl_s: 600 }.encode(),
        What::Lease(LeaseStep::Attach(id)) => {
            let request = pb::PutRequest { lease: *id, ..put(&lease_key(*id), "") };
            command::raw(Kind::Put, &request.encode_to_vec())
        }
        What::Lease(LeaseStep::Revoke(id)) => Command::LeaseRevoke { id: *id }.encode(),
        What::Lease(LeaseStep::Check(id)) => return read(range(&lease_key(*id), "")),
    };
    Request::Command { group, command }
}

/// What the answer to a command says. The error tells what it must not say.
fn outcome_of(call: &linear::Call, outcome: &Outcome) -> Result<linear::Outcome, String> {
    if outcome.code != 0 {
        return Err(format!("failed with {:?}", chainfire::error::ApiError::from_code(outcome.code)));
    }
    let revision = |header: Option<pb::ResponseHeader>| header.map_or(0, |header| header.revision as u64);
    let body = outcome.body.clone();
    let undecodable = |error: prost::DecodeError| format!("the answer cannot be decoded: {error}");
    Ok(match call {
        linear::Call::Delete { .. } => {
            let response = pb::DeleteRangeResponse::decode(body).map_err(undecodable)?;
            linear::Outcome { revision: revision(response.header), done: response.deleted > 0, found: Vec::new() }
        }
        linear::Call::Cas { .. } => {
            let response = pb::TxnResponse::decode(body).map_err(undecodable)?;
            let found = match response.responses.first().and_then(|response| response.response.as_ref()) {
                Some(pb::response_op::Response::ResponseRange(response)) => found(response),
                _ => Vec::new(),
            };
            linear::Outcome { revision: revision(response.header), done: response.succeeded, found }
        }
        _ => {
            let response = pb::PutResponse::decode(body).map_err(undecodable)?;
            linear::Outcome { revision: revision(response.header), done: true, found: Vec::new() }
        }
    })
}

/// Key-values as the checker knows them.
pub fn found(response: &pb::RangeResponse) -> Vec<Found> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let pairs = response.kvs.iter();
    pairs
        .map(|pair| Found { key: text(&pair.key), value: text(&pair.value), modified: pair.mod_revision as u64 })
        .collect()
}
