//! What comes from clients, from the log and from files, changed at random: decoders and checks refuse or accept it, and
//! never panic.

#[path = "../../../fuzz/mutate.rs"]
mod mutate;

use bytes::Bytes;
use chainfire::api::check;
use chainfire::command::Command;
use chainfire::machine::layout::{self, Lease};
use chainfire::machine::record::{self, Record};
use chainfire::machine::{replay, snapshot};
use consensus::Mark;
use mutate::mutate;
use prost::Message as _;
use proto::content::{Check, FAMILIES};
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request;
use proto::snapshot::{Header, Reader, Writer};
use storage::memengine::MemEngine;

const TXN_OPS_MAX: usize = 128;

fn transaction() -> pb::TxnRequest {
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), lease: 3, ..Default::default() };
    let range = pb::RangeRequest { key: "a".into(), range_end: "b".into(), limit: 7, ..Default::default() };
    let delete = pb::DeleteRangeRequest { key: "c".into(), range_end: vec![0].into(), prev_kv: true };
    let op = |request| pb::RequestOp { request: Some(request) };
    let inner = pb::TxnRequest { success: vec![op(Request::RequestPut(put.clone()))], ..Default::default() };
    pb::TxnRequest {
        compare: vec![pb::Compare { key: "k".into(), result: 1, target: 3, ..Default::default() }],
        success: vec![op(Request::RequestPut(put)), op(Request::RequestRange(range))],
        failure: vec![op(Request::RequestDeleteRange(delete)), op(Request::RequestTxn(inner))],
    }
}

/// Those that are checked beyond their decoding; the coverage-guided target `requests` decodes all that the API does.
#[test]
fn requests() {
    let range = pb::RangeRequest { key: "a".into(), sort_order: 1, sort_target: 2, ..Default::default() };
    let put = pb::PutRequest { key: "a".into(), ignore_lease: true, ..Default::default() };
    let inputs = [transaction().encode_to_vec(), range.encode_to_vec(), put.encode_to_vec()];
    mutate(1, 100_000, &inputs, |bytes| {
        let _ = pb::RangeRequest::decode(bytes).map(|request| check::range(&request));
        let _ = pb::PutRequest::decode(bytes).map(|request| check::put(&request));
        let _ = pb::DeleteRangeRequest::decode(bytes).map(|request| check::delete_range(&request));
        let _ = pb::TxnRequest::decode(bytes).map(|request| check::txn(&request, TXN_OPS_MAX));
    });
}

#[test]
fn commands() {
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    let commands = [
        Command::Put(put),
        Command::DeleteRange(pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true }),
        Command::Txn(transaction()),
        Command::Compact(pb::CompactionRequest { revision: 5, physical: true }),
        Command::LeaseGrant { id: -1, ttl_s: 60 },
        Command::LeaseCheckpoint(vec![(1, 2), (3, 0)]),
        Command::Alarm { action: 1, member: 9, kind: 2 },
        Command::InTerm { term: 3, command: Box::new(Command::LeaseRevoke { id: 7 }) },
    ];
    let inputs: Vec<Vec<u8>> = commands.iter().map(|command| command.encode().to_vec()).collect();
    mutate(2, 100_000, &inputs, |bytes| {
        if let Ok(command) = Command::decode(Bytes::copy_from_slice(bytes)) {
            assert!(Command::decode(command.encode()).as_ref() == Ok(&command));
        }
    });
}

/// Keys and values of the engine, whatever each is taken for.
#[test]
fn stored_pairs() {
    let record = Record { key: b"k", create_revision: 2, mod_revision: 3, version: 2, value: b"v", lease: 7 }.encode();
    let (mut old_key, mut old, mut rev) = (Vec::new(), Vec::new(), Vec::new());
    layout::old_key(&mut old_key, b"k", 3);
    layout::old_value(&mut old, 9, Some(&record));
    layout::rev_value(&mut rev, 1, 2, Some(&record));
    let inputs = [
        record.to_vec(),
        old_key,
        old,
        rev,
        layout::lease_key(7).to_vec(),
        Lease { id: 7, ttl_s: 60, remaining_s: 5 }.value().to_vec(),
        layout::attached_key(7, b"k"),
        layout::alarm_key(1, 9).to_vec(),
        layout::state_value(&Mark { index: 1, term: 2, hash: 3 }, 8).to_vec(),
    ];
    mutate(7, 100_000, &inputs, |bytes| {
        if let Ok(record) = Record::read(bytes) {
            assert_eq!(Record::read(&record.encode()).unwrap(), record);
        }
        let (key, value) = bytes.split_at(bytes.len() / 2);
        let _ = (record::key_of(bytes), record::shared_key(&Bytes::copy_from_slice(bytes)));
        let _ = (layout::read_old_key(bytes), layout::Old::read(bytes));
        let _ = (layout::Rev::read(key, value), layout::Rev::read(&[0; 9], bytes));
        let _ = (layout::read_lease_key(bytes), layout::Lease::read(7, bytes));
        let _ = (layout::read_attached_key(bytes), layout::read_alarm_key(bytes));
        let _ = (layout::read_state(bytes), layout::read_i64(bytes));
    });
}

/// Pairs of any content under good checksums: the coverage-guided target `snapshot` knows nothing of the families.
#[test]
fn snapshots() {
    let pairs = |writer: &mut Writer| {
        let mut data = Vec::new();
        for (family, key) in [(0, "a"), (0, "b"), (1, "c"), (3, "r"), (3, "s")] {
            writer.put_pair(&mut data, family, key.as_bytes(), &[1; 30]);
        }
        data
    };
    let stream = |data: &[u8]| {
        let mut writer = Writer::default();
        pairs(&mut writer);
        [writer.header(&Header::default()), writer.data(data), writer.trailer()].concat()
    };
    let data = pairs(&mut Writer::default());
    mutate(3, 30_000, std::slice::from_ref(&data), |data| {
        let _ = snapshot::inspect(&stream(data)[..]);
    });
    mutate(4, 30_000, &[stream(&data)], |bytes| {
        let _ = snapshot::inspect(bytes);
    });
}

/// Changes of any content under good checksums, looked at as a client does and replayed onto an empty store.
#[test]
fn changes() {
    let header = Header { since: Some(1), revision: 4, ..Header::default() };
    let record = |revision, version, lease| {
        Record { key: b"k", create_revision: 2, mod_revision: revision, version, value: b"v", lease }.encode()
    };
    let changes: [(i64, i64, Option<Bytes>); 3] =
        [(2, 0, Some(record(2, 1, 0))), (3, 2, Some(record(3, 2, 7))), (4, 3, None)];
    let mut data = Vec::new();
    let mut writer = Writer::default();
    for (revision, previous, record) in changes {
        let (mut key, mut value) = (Vec::new(), Vec::new());
        layout::rev_key(&mut key, revision, b"k");
        layout::rev_value(&mut value, 0, previous, record.as_deref());
        writer.put_pair(&mut data, layout::REV.0, &key, &value);
    }
    let lease = Lease { id: 7, ttl_s: 60, remaining_s: 5 };
    writer.put_pair(&mut data, layout::META.0, &layout::lease_key(7), &lease.value());
    let stream = |data: &[u8], pairs: u64| {
        let mut writer = Writer::default();
        // Only their number counts.
        (0..pairs).for_each(|_| writer.put_pair(&mut Vec::new(), 0, b"", b""));
        [writer.header(&header), writer.data(data), writer.trailer()].concat()
    };
    let replayed = |stream: &[u8]| replay::replay(&MemEngine::new(&layout::FAMILIES), stream);
    assert_eq!(replayed(&stream(&data, 4)).unwrap().changes, 3);
    let looked_at = |stream: &[u8]| {
        let (mut reader, mut check) = (Reader::new(FAMILIES), Check::default());
        reader.feed(stream);
        while let Ok(Some((pair, header))) = reader.pair_and_header() {
            check.pair(header, pair).ok()?;
        }
        reader.finish().ok()?;
        check.finish(reader.header()).ok()
    };
    assert_eq!(looked_at(&stream(&data, 4)).unwrap().changes, 3);
    mutate(5, 20_000, std::slice::from_ref(&data), |data| {
        for pairs in 3..=5 {
            let stream = stream(data, pairs);
            let seen = looked_at(&stream);
            // What can be replayed makes sense to a client too.
            if replayed(&stream).is_ok() {
                assert!(seen.is_some());
            }
        }
    });
    mutate(6, 20_000, &[stream(&data, 4)], |bytes| {
        let _ = (replayed(bytes), looked_at(bytes));
    });
}
