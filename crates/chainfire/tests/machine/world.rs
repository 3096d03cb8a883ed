//! What the tests of the machine share: a machine over an engine of either kind, entries around commands, decoded
//! answers, and a source of random commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base::{ClusterId, NodeId, PeerId, Rng};
use bytes::Bytes;
use chainfire::command::Command;
use chainfire::error::ApiError;
use chainfire::event::{EventKind, EventSink, LeaseChange, RevisionEvents};
use chainfire::machine::{Identity, Machine, layout};
use chainfire::read::{Reader, StateView};
use consensus::entry::{Commands, CommandsBuilder};
use consensus::{Applied, Entry, Payload, StateMachine};
use parking_lot::Mutex;
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::TargetUnion;
use proto::etcdserverpb::request_op::Request;
use proto::mvccpb::KeyValue;
use storage::memengine::MemEngine;
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine, FamilyId};

use crate::model::{Answer, Change, covers};

pub const IDENTITY: Identity = Identity { cluster: ClusterId(0xC0FFEE), member: NodeId(3) };
pub const LOCAL: PeerId = PeerId(77);
pub const TERM: u64 = 5;

/// Records what watchers would be told.
#[derive(Default)]
pub struct Told {
    pub revisions: Mutex<Vec<RevisionEvents>>,
    pub compacted: Mutex<Vec<i64>>,
    pub resets: Mutex<Vec<i64>>,
    /// What the told lease changes come to: id → (TTL, remaining).
    pub leases: Mutex<BTreeMap<i64, (i64, i64)>>,
}

impl EventSink for Told {
    fn publish(&self, batch: Arc<Vec<RevisionEvents>>, revision: i64) {
        assert_eq!(batch.last().unwrap().revision, revision);
        self.revisions.lock().extend(batch.iter().cloned());
    }

    fn compacted(&self, revision: i64) {
        self.compacted.lock().push(revision);
    }

    fn leases(&self, changes: &[LeaseChange]) {
        let mut leases = self.leases.lock();
        for change in changes {
            match *change {
                LeaseChange::Granted { id, ttl_s } => assert_eq!(leases.insert(id, (ttl_s, 0)), None),
                LeaseChange::Revoked { id } => assert!(leases.remove(&id).is_some()),
                LeaseChange::Checkpointed { id, remaining_s } => leases.get_mut(&id).unwrap().1 = remaining_s,
            }
        }
    }

    fn reset(&self, revision: i64) {
        self.resets.lock().push(revision);
    }
}

pub struct World {
    pub engine: Arc<dyn Engine>,
    pub machine: Machine,
    pub reader: Reader,
    pub told: Arc<Told>,
}

impl World {
    pub fn open(engine: Arc<dyn Engine>) -> World {
        let told = Arc::new(Told::default());
        let (machine, reader) = Machine::open(engine.clone(), IDENTITY, told.clone()).unwrap();
        let world = World { engine, machine, reader, told };
        world.read_leases();
        world
    }

    /// What a listener to lease changes begins with, after opening and installing.
    pub fn read_leases(&self) {
        let leases = self.view().leases().unwrap();
        *self.told.leases.lock() =
            leases.into_iter().map(|lease| (lease.id, (lease.ttl_s, lease.remaining_s))).collect();
    }

    pub fn in_memory() -> World {
        World::open(Arc::new(MemEngine::new(&layout::FAMILIES)))
    }

    pub fn view(&self) -> Arc<StateView> {
        self.reader.current()
    }

    /// Applies entries of these commands in one call; the outcomes of all commands in order.
    pub fn apply(&mut self, entries: &[Vec<Command>]) -> Vec<Result<Bytes, ApiError>> {
        let first = self.machine.mark().index + 1;
        let entries: Vec<Entry> = (first..).zip(entries).map(|(index, commands)| entry(index, commands)).collect();
        let mut applied = Applied::default();
        self.machine.apply(&entries, LOCAL, &mut applied).unwrap();
        applied
            .outcomes
            .into_iter()
            .map(|(_, outcome)| match outcome.code {
                0 => Ok(outcome.body),
                code => Err(ApiError::from_code(code).unwrap()),
            })
            .collect()
    }

    pub fn one(&mut self, command: Command) -> Result<Answer, ApiError> {
        let outcome = self.apply(&[vec![command.clone()]]).remove(0);
        outcome.map(|body| decode(&command, body))
    }
}

pub fn entry(index: u64, commands: &[Command]) -> Entry {
    let mut builder = CommandsBuilder::new(LOCAL);
    for (seq, command) in commands.iter().enumerate() {
        builder.push(seq as u64, &command.encode());
    }
    let payload = Payload::Commands(Commands::decode(builder.finish()).unwrap());
    Entry { index, term: TERM, payload }
}

pub fn rocks(dir: &std::path::Path) -> Arc<RocksEngine> {
    let options = RocksOptions { write_buffer_size: 256 << 10, block_cache_size: 4 << 20, ..RocksOptions::default() };
    Arc::new(RocksEngine::open(dir, &layout::FAMILIES, &options).unwrap())
}

/// Everything that a machine's engine holds and that readers can reach, but for what depends on batching.
pub fn content(world: &mut World) -> Vec<(u8, Bytes, Bytes)> {
    while world.machine.tend().unwrap() {}
    let mut out = vec![];
    let (view, shown) = (world.view(), world.engine.view());
    for family in 0..4 {
        let mut walk = shown.scan(FamilyId(family), &[], None);
        while walk.valid() {
            let (key, value) = (walk.key(), walk.value());
            let reachable = match FamilyId(family) {
                layout::OLD => layout::Old::read(value).unwrap().needed_before > view.compacted,
                layout::META => key[0] != layout::BUCKET,
                layout::REV => layout::Rev::read(key, value).unwrap().revision >= view.compacted,
                _ => true,
            };
            if reachable {
                out.push((family, Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            }
            walk.advance();
        }
    }
    out
}

pub fn header() -> pb::ResponseHeader {
    pb::ResponseHeader { cluster_id: IDENTITY.cluster.0, member_id: IDENTITY.member.0, revision: 0, raft_term: TERM }
}

pub fn decode(command: &Command, body: Bytes) -> Answer {
    match command {
        Command::Put(_) => Answer::Put(Message::decode(body).unwrap()),
        Command::DeleteRange(_) => Answer::Delete(Message::decode(body).unwrap()),
        Command::Txn(_) => Answer::Txn(Message::decode(body).unwrap()),
        Command::Compact(_) => Answer::Compact(Message::decode(body).unwrap()),
        Command::LeaseGrant { .. } => Answer::Grant(Message::decode(body).unwrap()),
        Command::LeaseRevoke { .. } => Answer::Revoke(Message::decode(body).unwrap()),
        Command::LeaseCheckpoint(_) => Answer::Checkpoint(Message::decode(body).unwrap()),
        Command::Alarm { .. } => Answer::Alarm(Message::decode(body).unwrap()),
        Command::InTerm { command, .. } => decode(command, body),
    }
}

pub fn changes(revision: &RevisionEvents) -> Vec<Change> {
    let kv = |bytes: &Bytes| KeyValue::decode(bytes.clone()).unwrap();
    let change = |event: &chainfire::event::Event| {
        assert_eq!(kv(&event.kv).key, event.key);
        Change { delete: event.kind == EventKind::Delete, kv: kv(&event.kv), prev: event.prev.as_ref().map(kv) }
    };
    revision.events.iter().map(change).collect()
}

/// What a transaction changes.
#[derive(Default)]
struct Taken {
    put: BTreeSet<Bytes>,
    deleted: Vec<(Bytes, Bytes)>,
}

/// Random commands over few keys, few leases and revisions around those that exist.
pub struct Generator {
    pub rng: Rng,
    pub keys: u64,
}

impl Generator {
    pub fn key(&mut self) -> Bytes {
        match self.rng.below(self.keys) {
            0 => Bytes::from_static(b"\0"),
            1 => Bytes::from_static(b"k\0"),
            2 => Bytes::from_static(b"k\xff\xff"),
            3 => Bytes::from_static(b"\xff"),
            other => format!("k{other:03}").into(),
        }
    }

    /// A key and an end, of every kind.
    pub fn span(&mut self) -> (Bytes, Bytes) {
        match self.rng.below(10) {
            0..4 => (self.key(), Bytes::new()),
            4 => (self.key(), Bytes::from_static(b"\0")),
            5 => (Bytes::from_static(b"\0"), Bytes::from_static(b"\0")),
            6 => (Bytes::from_static(b"k0"), Bytes::from_static(b"k1")),
            _ => (self.key(), self.key()),
        }
    }

    fn value(&mut self) -> Bytes {
        let length = self.rng.below(6) as usize;
        (0..length).map(|_| b'a' + self.rng.below(3) as u8).collect::<Vec<_>>().into()
    }

    pub fn put(&mut self) -> pb::PutRequest {
        let ignore_value = self.rng.percent(10);
        let ignore_lease = self.rng.percent(10);
        pb::PutRequest {
            key: self.key(),
            value: if ignore_value { Bytes::new() } else { self.value() },
            lease: if !ignore_lease && self.rng.percent(25) { 1 + self.rng.below(5) as i64 } else { 0 },
            prev_kv: self.rng.percent(30),
            ignore_value,
            ignore_lease,
        }
    }

    fn delete(&mut self) -> pb::DeleteRangeRequest {
        let (key, range_end) = if self.rng.percent(70) { (self.key(), Bytes::new()) } else { self.span() };
        pb::DeleteRangeRequest { key, range_end, prev_kv: self.rng.percent(50) }
    }

    pub fn range(&mut self, revision: i64) -> pb::RangeRequest {
        let (key, range_end) = self.span();
        let mut some = |percent, bound: i64| {
            if self.rng.percent(percent) { self.rng.below(bound.max(0) as u64 + 3) as i64 } else { 0 }
        };
        pb::RangeRequest {
            key,
            range_end,
            limit: some(40, 6),
            revision: some(50, revision),
            sort_order: some(40, 0) as i32,
            sort_target: some(40, 2) as i32,
            serializable: false,
            keys_only: some(20, 0) > 0,
            count_only: some(10, 0) > 0,
            min_mod_revision: some(10, revision),
            max_mod_revision: some(10, revision),
            min_create_revision: some(10, revision),
            max_create_revision: some(10, revision),
        }
    }

    fn compare(&mut self, revision: i64) -> pb::Compare {
        let number = if self.rng.percent(40) { 0 } else { self.rng.below(revision as u64 + 1) as i64 };
        let (target, union) = match self.rng.below(5) {
            0 => (0, TargetUnion::Version(number % 4)),
            1 => (1, TargetUnion::CreateRevision(number)),
            2 => (2, TargetUnion::ModRevision(number)),
            3 => (3, TargetUnion::Value(self.value())),
            _ => (4, TargetUnion::Lease(number % 5)),
        };
        let (key, range_end) = if self.rng.percent(70) { (self.key(), Bytes::new()) } else { self.span() };
        pb::Compare { result: self.rng.below(4) as i32, target, key, range_end, target_union: Some(union) }
    }

    /// As the API lets them through: no key is put twice, or put and deleted.
    pub fn txn(&mut self, revision: i64, depth: u32) -> pb::TxnRequest {
        self.txn_without(revision, depth, &mut Taken::default())
    }

    fn txn_without(&mut self, revision: i64, depth: u32, taken: &mut Taken) -> pb::TxnRequest {
        let compare = (0..self.rng.below(3)).map(|_| self.compare(revision)).collect();
        let mut branches = [vec![], vec![]];
        for branch in &mut branches {
            for _ in 0..self.rng.below(4) {
                let request = match self.rng.below(if depth > 0 { 11 } else { 10 }) {
                    0..4 => {
                        let put = self.put();
                        let deleted = taken.deleted.iter().any(|(key, end)| covers(&put.key, key, end));
                        if deleted || !taken.put.insert(put.key.clone()) {
                            continue;
                        }
                        Request::RequestPut(put)
                    }
                    4..6 => {
                        let delete = self.delete();
                        if taken.put.iter().any(|put| covers(put, &delete.key, &delete.range_end)) {
                            continue;
                        }
                        taken.deleted.push((delete.key.clone(), delete.range_end.clone()));
                        Request::RequestDeleteRange(delete)
                    }
                    6..10 => Request::RequestRange(self.range(revision)),
                    _ => Request::RequestTxn(self.txn_without(revision, depth - 1, taken)),
                };
                branch.push(pb::RequestOp { request: Some(request) });
            }
        }
        let [success, failure] = branches;
        pb::TxnRequest { compare, success, failure }
    }

    pub fn command(&mut self, revision: i64) -> Command {
        match self.rng.below(100) {
            0..46 => Command::Put(self.put()),
            46..58 => Command::DeleteRange(self.delete()),
            58..78 => Command::Txn(self.txn(revision, 2)),
            78..80 => Command::Compact(pb::CompactionRequest {
                revision: self.rng.below(revision as u64 + 2) as i64,
                physical: false,
            }),
            80..85 => Command::LeaseGrant {
                id: 1 + self.rng.below(5) as i64,
                ttl_s: if self.rng.percent(5) { i64::MAX } else { 60 },
            },
            85..87 => Command::LeaseRevoke { id: 1 + self.rng.below(5) as i64 },
            87 => Command::LeaseCheckpoint(vec![(1, 7), (self.rng.below(9) as i64, 9)]),
            88 => Command::InTerm {
                term: TERM - self.rng.below(2),
                command: Box::new(Command::LeaseRevoke { id: 1 + self.rng.below(5) as i64 }),
            },
            89 => Command::Alarm { action: 1, member: 1 + self.rng.below(2), kind: self.rng.below(3) as i32 },
            90 => Command::Alarm { action: 0, member: 0, kind: self.rng.below(3) as i32 },
            _ => Command::Alarm { action: 2, member: self.rng.below(2), kind: 0 },
        }
    }
}
