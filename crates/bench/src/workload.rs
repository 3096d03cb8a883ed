//! What the clients ask for: the key space, one request of each kind, and what a right answer looks like.
//!
//! The key space is the same for all workloads: `keys` keys named `/bench/00000042`, values of `value_bytes` that do not
//! compress. Every request picks its key uniformly from a seeded source, so that two systems are asked the same; from a part of
//! the space for a client that asks those only who have it.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use base::Rng;
use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::{
    Compare, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse, compare,
    request_op,
};

use proto::flaredb;

use crate::wire::BODY_BYTES_MAX;

pub const RANGE: &str = "/etcdserverpb.KV/Range";
pub const PUT: &str = "/etcdserverpb.KV/Put";
pub const TXN: &str = "/etcdserverpb.KV/Txn";
pub const WATCH: &str = "/etcdserverpb.Watch/Watch";
pub const RAW_GET: &str = "/centra.flaredb.v1.Raw/Get";
pub const RAW_PUT: &str = "/centra.flaredb.v1.Raw/Put";
pub const RAW_BATCH: &str = "/centra.flaredb.v1.Raw/Batch";
pub const STATUS: &str = "/etcdserverpb.Maintenance/Status";

/// Puts in one transaction of the loader: below etcd's limit of 128 operations.
const PUTS_PER_TXN_MAX: usize = 100;
/// What a put of the loader takes beside its value, at most.
const PUT_OVERHEAD_BYTES: usize = 64;

/// The keys and values of a run.
#[derive(Clone)]
pub struct KeySpace {
    pub keys: u64,
    pub value_bytes: usize,
    /// Requests for one key are for these only; for any where there are none.
    within: Arc<[Range<u64>]>,
    /// Values are windows into this.
    noise: Bytes,
}

impl KeySpace {
    pub fn new(keys: u64, value_bytes: usize) -> KeySpace {
        let mut rng = Rng::new(7);
        let noise: Vec<u8> = (0..(1 << 20) / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
        KeySpace { keys, value_bytes, within: Arc::default(), noise: noise.into() }
    }

    /// Requests for one key are for these only, which do not overlap.
    pub fn within(&self, ranges: Vec<Range<u64>>) -> KeySpace {
        KeySpace { within: ranges.into(), ..self.clone() }
    }

    /// The number of a key, uniformly.
    fn pick(&self, rng: &mut Rng) -> u64 {
        let count: u64 = self.within.iter().map(|range| range.end - range.start).sum();
        let mut at = rng.below(if count == 0 { self.keys } else { count });
        for range in self.within.iter() {
            let length = range.end - range.start;
            if at < length {
                return range.start + at;
            }
            at -= length;
        }
        at
    }

    /// The number of a key.
    pub fn number(key: &[u8]) -> Option<u64> {
        std::str::from_utf8(key).ok()?.strip_prefix("/bench/")?.parse().ok()
    }

    /// Key number `index`; `keys` itself gives the end of the space.
    pub fn key(&self, index: u64) -> Bytes {
        format!("/bench/{index:08}").into()
    }

    pub fn value(&self, rng: &mut Rng) -> Bytes {
        let start = rng.below((self.noise.len() - self.value_bytes) as u64) as usize;
        self.noise.slice(start..start + self.value_bytes)
    }

    /// One transaction that puts the keys from `first` on, and how many they are.
    pub fn load_txn(&self, first: u64, rng: &mut Rng) -> (Vec<u8>, u64) {
        let count = self.fitting(first);
        let success = (first..first + count).map(|index| put_op(self.put(index, rng))).collect();
        (TxnRequest { success, ..Default::default() }.encode_to_vec(), count)
    }

    /// As [`KeySpace::load_txn`], for FlareDB's raw keys.
    pub fn load_batch(&self, first: u64, rng: &mut Rng) -> (Vec<u8>, u64) {
        let count = self.fitting(first);
        let put = |index| flaredb::Mutation { key: self.key(index), value: Some(self.value(rng)) };
        let mutations = (first..first + count).map(put).collect();
        (flaredb::BatchRequest { context: None, mutations }.encode_to_vec(), count)
    }

    /// How many puts from `first` on go into one request of the loader.
    fn fitting(&self, first: u64) -> u64 {
        let fitting = BODY_BYTES_MAX / (self.value_bytes + PUT_OVERHEAD_BYTES);
        (self.keys - first).min(fitting.clamp(1, PUTS_PER_TXN_MAX) as u64)
    }

    pub fn put(&self, index: u64, rng: &mut Rng) -> PutRequest {
        PutRequest { key: self.key(index), value: self.value(rng), ..Default::default() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    Put,
    Get {
        serializable: bool,
    },
    /// A linearizable range of this many keys.
    Range(u64),
    /// One compare that holds and one put.
    Txn,
    /// A linearizable count of the whole key space.
    Count,
    /// A put to FlareDB's raw keys.
    RawPut,
    /// A linearizable get of one of them.
    RawGet,
}

impl Workload {
    /// The name under which figures are kept.
    pub fn name(self) -> String {
        match self {
            Workload::Put => "put".into(),
            Workload::Get { serializable: false } => "linearizable get".into(),
            Workload::Get { serializable: true } => "serializable get".into(),
            Workload::Range(keys) => format!("range of {keys}"),
            Workload::Txn => "txn".into(),
            Workload::Count => "count".into(),
            Workload::RawPut => "raw put".into(),
            Workload::RawGet => "raw get".into(),
        }
    }

    pub fn method(self) -> &'static str {
        match self {
            Workload::Put => PUT,
            Workload::Get { .. } | Workload::Range(_) | Workload::Count => RANGE,
            Workload::Txn => TXN,
            Workload::RawPut => RAW_PUT,
            Workload::RawGet => RAW_GET,
        }
    }

    /// Writes the next request into `out`.
    pub fn request(self, space: &KeySpace, rng: &mut Rng, out: &mut Vec<u8>) {
        out.clear();
        let encoded = match self {
            Workload::Put => space.put(space.pick(rng), rng).encode(out),
            Workload::RawPut => {
                let (key, value) = (space.key(space.pick(rng)), space.value(rng));
                flaredb::PutRequest { context: None, key, value }.encode(out)
            }
            Workload::RawGet => flaredb::GetRequest { context: None, key: space.key(space.pick(rng)) }.encode(out),
            Workload::Get { serializable } => {
                RangeRequest { key: space.key(space.pick(rng)), serializable, ..Default::default() }.encode(out)
            }
            Workload::Range(keys) => {
                let first = rng.below(space.keys.saturating_sub(keys) + 1);
                let (key, range_end) = (space.key(first), space.key(first + keys));
                RangeRequest { key, range_end, ..Default::default() }.encode(out)
            }
            Workload::Count => {
                let (key, range_end) = (space.key(0), space.key(space.keys));
                RangeRequest { key, range_end, count_only: true, ..Default::default() }.encode(out)
            }
            Workload::Txn => {
                let put = space.put(space.pick(rng), rng);
                let compare = Compare {
                    key: put.key.clone(),
                    target: compare::CompareTarget::Version as i32,
                    result: compare::CompareResult::Greater as i32,
                    target_union: Some(compare::TargetUnion::Version(0)),
                    ..Default::default()
                };
                TxnRequest { compare: vec![compare], success: vec![put_op(put)], failure: vec![] }.encode(out)
            }
        };
        encoded.expect("a Vec grows");
    }

    /// Whether the answer holds what was asked for. Costs a full decoding, so callers check samples.
    pub fn check(self, space: &KeySpace, answer: &[u8]) -> Result<()> {
        let found = match self {
            Workload::Put => return ensure_revision(PutResponse::decode(answer)?.header.map(|h| h.revision)),
            Workload::RawPut => return Ok(flaredb::PutResponse::decode(answer).map(drop)?),
            Workload::RawGet => {
                let value = flaredb::GetResponse::decode(answer)?.value;
                ensure!(value.is_some_and(|value| value.len() == space.value_bytes), "a value has the wrong size");
                return Ok(());
            }
            Workload::Txn => {
                let answer = TxnResponse::decode(answer)?;
                ensure!(answer.succeeded, "the compare of a transaction did not hold");
                return ensure_revision(answer.header.map(|h| h.revision));
            }
            _ => RangeResponse::decode(answer)?,
        };
        let wanted = match self {
            Workload::Get { .. } => 1,
            Workload::Range(keys) => keys,
            _ => {
                ensure!(found.count as u64 == space.keys, "counted {} keys instead of {}", found.count, space.keys);
                0
            }
        };
        ensure!(found.kvs.len() as u64 == wanted, "{} keys came instead of {wanted}", found.kvs.len());
        ensure!(found.kvs.iter().all(|kv| kv.value.len() == space.value_bytes), "a value has the wrong size");
        Ok(())
    }
}

fn put_op(put: PutRequest) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestPut(put)) }
}

fn ensure_revision(revision: Option<i64>) -> Result<()> {
    ensure!(revision.is_some_and(|r| r > 0), "an answer carries no revision");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{etcdserverpb::ResponseHeader, mvccpb::KeyValue};

    #[test]
    fn load_covers_each_key_once_and_fits_the_client() {
        for value_bytes in [256, 1024, 60_000] {
            let space = KeySpace::new(250, value_bytes);
            let mut rng = Rng::new(1);
            let mut keys = Vec::new();
            while (keys.len() as u64) < space.keys {
                let (body, count) = space.load_txn(keys.len() as u64, &mut rng);
                assert!(body.len() <= BODY_BYTES_MAX);
                let puts = TxnRequest::decode(&body[..]).unwrap().success;
                assert_eq!(puts.len() as u64, count);
                for op in puts {
                    let Some(request_op::Request::RequestPut(put)) = op.request else { panic!("not a put") };
                    assert_eq!(put.value.len(), value_bytes);
                    keys.push(put.key);
                }
            }
            assert_eq!(keys, (0..250).map(|i| space.key(i)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn answers_are_checked() {
        let space = KeySpace::new(10, 4);
        let header = Some(ResponseHeader { revision: 3, ..Default::default() });
        let kv = KeyValue { value: Bytes::from_static(b"four"), ..Default::default() };
        let range = |kvs: Vec<KeyValue>, count| RangeResponse { header, kvs, count, ..Default::default() };
        let get = Workload::Get { serializable: false };
        assert!(get.check(&space, &range(vec![kv.clone()], 1).encode_to_vec()).is_ok());
        assert!(get.check(&space, &range(vec![], 0).encode_to_vec()).is_err());
        assert!(Workload::Range(2).check(&space, &range(vec![kv.clone()], 1).encode_to_vec()).is_err());
        assert!(Workload::Count.check(&space, &range(vec![], 9).encode_to_vec()).is_err());
        assert!(Workload::Count.check(&space, &range(vec![], 10).encode_to_vec()).is_ok());
        let txn = |succeeded| TxnResponse { header, succeeded, ..Default::default() }.encode_to_vec();
        assert!(Workload::Txn.check(&space, &txn(true)).is_ok());
        assert!(Workload::Txn.check(&space, &txn(false)).is_err());
        assert!(Workload::Put.check(&space, &PutResponse::default().encode_to_vec()).is_err());
    }
}
