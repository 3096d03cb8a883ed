//! What comes from clients, from the log and from files, changed at random: decoders and checks refuse or accept it, and
//! never panic.

#[path = "../../../fuzz/mutate.rs"]
mod mutate;

use bytes::Bytes;
use chainfire::api::check;
use chainfire::command::Command;
use chainfire::machine::snapshot;
use mutate::mutate;
use prost::Message as _;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request;
use proto::snapshot::{Header, Writer};

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
