//! Every error of the state machine, with the text and the status that etcd's clients know.

use chainfire::command::Command;
use chainfire::error::{ApiError, grpc};
use chainfire::event::EventKind;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request;

use crate::model::Answer;
use crate::world::World;

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

fn txn(success: Vec<Request>) -> Command {
    let success = success.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect();
    Command::Txn(pb::TxnRequest { success, ..Default::default() })
}

fn at(revision: i64) -> pb::RangeRequest {
    pb::RangeRequest { key: "a".into(), revision, ..Default::default() }
}

fn compact(revision: i64) -> Command {
    Command::Compact(pb::CompactionRequest { revision, physical: false })
}

#[track_caller]
fn check<T: std::fmt::Debug>(result: Result<T, ApiError>, code: u32, text: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.grpc_code(), error.text()), (code, text));
}

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";
const NO_LEASE: &str = "etcdserver: requested lease not found";
const NO_KEY: &str = "etcdserver: key not found";
const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

#[test]
fn puts_are_refused_for_what_they_name() {
    let mut world = World::in_memory();
    check(world.one(Command::Put(pb::PutRequest { lease: 9, ..put("a") })), grpc::NOT_FOUND, NO_LEASE);
    let ignore_value = pb::PutRequest { ignore_value: true, ..put("a") };
    let ignore_lease = pb::PutRequest { ignore_lease: true, ..put("a") };
    check(world.one(Command::Put(ignore_value.clone())), grpc::INVALID_ARGUMENT, NO_KEY);
    check(world.one(Command::Put(ignore_lease.clone())), grpc::INVALID_ARGUMENT, NO_KEY);
    check(world.one(txn(vec![Request::RequestPut(ignore_value)])), grpc::INVALID_ARGUMENT, NO_KEY);
    check(world.one(Command::Put(put(""))), grpc::INVALID_ARGUMENT, "etcdserver: key is not provided");
    assert_eq!(world.view().revision, 1);
}

#[test]
fn a_transaction_is_refused_as_a_whole() {
    let mut world = World::in_memory();
    let unknown = pb::PutRequest { lease: 9, ..put("b") };
    let both = vec![Request::RequestPut(put("a")), Request::RequestPut(unknown)];
    check(world.one(txn(both)), grpc::NOT_FOUND, NO_LEASE);
    assert_eq!(world.view().get(b"a").unwrap(), None);
    let future = vec![Request::RequestPut(put("a")), Request::RequestRange(at(2))];
    check(world.one(txn(future)), grpc::OUT_OF_RANGE, FUTURE);
    let sort = pb::RangeRequest { sort_order: 9, ..at(0) };
    check(world.one(txn(vec![Request::RequestRange(sort)])), grpc::INVALID_ARGUMENT, "etcdserver: invalid sort option");
    assert_eq!(world.view().revision, 1);
    for _ in 0..4 {
        world.one(Command::Put(put("a"))).unwrap();
    }
    world.one(compact(4)).unwrap();
    let nested = txn(vec![Request::RequestRange(at(3))]);
    let Command::Txn(inner) = nested else { unreachable!() };
    let outer = txn(vec![Request::RequestPut(put("z")), Request::RequestTxn(inner)]);
    check(world.one(outer), grpc::OUT_OF_RANGE, COMPACTED);
    assert_eq!(world.view().get(b"z").unwrap(), None);
}

#[test]
fn compaction_goes_forwards_and_not_ahead() {
    let mut world = World::in_memory();
    check(world.one(compact(2)), grpc::OUT_OF_RANGE, FUTURE);
    for _ in 0..4 {
        world.one(Command::Put(put("a"))).unwrap();
    }
    world.one(compact(3)).unwrap();
    check(world.one(compact(3)), grpc::OUT_OF_RANGE, COMPACTED);
    check(world.one(compact(2)), grpc::OUT_OF_RANGE, COMPACTED);
    check(world.one(compact(6)), grpc::OUT_OF_RANGE, FUTURE);
    let view = world.view();
    check(view.range(&at(2)), grpc::OUT_OF_RANGE, COMPACTED);
    check(view.range(&at(6)), grpc::OUT_OF_RANGE, FUTURE);
    check(view.history(2, 5, b"a", b"", 100), grpc::OUT_OF_RANGE, COMPACTED);
    assert_eq!(view.range(&at(3)).unwrap().count, 1);
    check(
        view.range(&pb::RangeRequest { sort_target: 5, ..at(0) }),
        grpc::INVALID_ARGUMENT,
        "etcdserver: invalid sort option",
    );
}

#[test]
fn leases_are_granted_once_and_revoked_once() {
    let mut world = World::in_memory();
    let grant = |id, ttl_s| Command::LeaseGrant { id, ttl_s };
    check(world.one(grant(1, 9_000_000_001)), grpc::OUT_OF_RANGE, "etcdserver: too large lease TTL");
    check(world.one(grant(0, 10)), grpc::NOT_FOUND, NO_LEASE);
    world.one(grant(1, 9_000_000_000)).unwrap();
    check(world.one(grant(1, 10)), grpc::FAILED_PRECONDITION, "etcdserver: lease already exists");
    let mut entries = vec![];
    for key in ["c", "a", "b"] {
        entries.push(Command::Put(pb::PutRequest { lease: 1, ..put(key) }));
    }
    world.apply(&[entries]);
    assert_eq!(world.view().lease_keys(1).unwrap(), ["a", "b", "c"]);
    world.one(Command::LeaseRevoke { id: 1 }).unwrap();
    check(world.one(Command::LeaseRevoke { id: 1 }), grpc::NOT_FOUND, NO_LEASE);
    assert_eq!(world.view().revision, 5);
    let told = world.told.revisions.lock();
    let last = told.last().unwrap();
    assert_eq!(last.revision, 5);
    let keys: Vec<_> = last.events.iter().map(|event| (event.kind, event.key.clone())).collect();
    assert_eq!(keys, ["a", "b", "c"].map(|key| (EventKind::Delete, key.into())));
}

#[test]
fn alarms_close_what_they_are_for() {
    let mut world = World::in_memory();
    world.one(Command::Put(put("a"))).unwrap();
    let alarm = |action, kind| Command::Alarm { action, member: 7, kind };
    world.one(alarm(1, 1)).unwrap();
    assert!(world.view().alarmed(1));
    let read = Request::RequestRange(at(0));
    let nested = pb::TxnRequest {
        failure: vec![pb::RequestOp { request: Some(Request::RequestPut(put("b"))) }],
        ..Default::default()
    };
    for refused in [
        Command::Put(put("a")),
        txn(vec![Request::RequestPut(put("a"))]),
        txn(vec![Request::RequestTxn(nested)]),
        Command::LeaseGrant { id: 1, ttl_s: 5 },
    ] {
        check(world.one(refused), grpc::RESOURCE_EXHAUSTED, NO_SPACE);
    }
    world.one(txn(vec![read.clone()])).unwrap();
    let delete = pb::DeleteRangeRequest { key: "a".into(), ..Default::default() };
    world.one(Command::DeleteRange(delete.clone())).unwrap();
    world.one(compact(3)).unwrap();
    world.one(alarm(1, 2)).unwrap();
    for refused in [
        Command::Put(put("a")),
        txn(vec![read]),
        Command::DeleteRange(delete),
        compact(4),
        Command::LeaseGrant { id: 1, ttl_s: 5 },
        Command::LeaseRevoke { id: 1 },
    ] {
        check(world.one(refused), grpc::DATA_LOSS, "etcdserver: corrupt cluster");
    }
    let Answer::Alarm(listed) = world.one(alarm(0, 0)).unwrap() else { unreachable!() };
    assert_eq!(listed.alarms, [1, 2].map(|alarm| pb::AlarmMember { member_id: 7, alarm }));
    world.one(Command::Alarm { action: 2, member: 0, kind: 0 }).unwrap();
    world.one(Command::Put(put("a"))).unwrap();
    check(world.one(alarm(9, 1)), grpc::INVALID_ARGUMENT, "etcdserver: malformed request");
}
