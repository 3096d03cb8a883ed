//! What a request may ask for, before anything is proposed: etcd's rules and etcd's words.
//!
//! The largest of a transaction's compares, success and failure operations counts against the limit; nested transactions
//! share what is left. Within one branch no key may be put twice, nor put and deleted; branches of which only one can
//! happen do not disturb one another.

use std::collections::BTreeSet;

use bytes::Bytes;
use pb::request_op::Request;
use proto::etcdserverpb as pb;

use crate::error::ApiError;

/// Transactions within transactions.
pub const TXN_DEPTH_MAX: usize = 8;

pub fn range(request: &pb::RangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    let order = pb::range_request::SortOrder::try_from(request.sort_order);
    let target = pb::range_request::SortTarget::try_from(request.sort_target);
    if order.is_err() || target.is_err() { Err(ApiError::InvalidSortOption) } else { Ok(()) }
}

pub fn put(request: &pb::PutRequest) -> Result<(), ApiError> {
    if request.key.is_empty() {
        return Err(ApiError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(ApiError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(ApiError::LeaseProvided);
    }
    Ok(())
}

pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), ApiError> {
    if request.key.is_empty() { Err(ApiError::EmptyKey) } else { Ok(()) }
}

pub fn txn(request: &pb::TxnRequest, ops_max: usize) -> Result<(), ApiError> {
    operations(request, ops_max, 1)?;
    let mut keys = Keys::default();
    duplicates(&request.success, &mut keys)?;
    let mut keys = Keys::default();
    duplicates(&request.failure, &mut keys)
}

fn operations(request: &pb::TxnRequest, ops_max: usize, depth: usize) -> Result<(), ApiError> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max || depth > TXN_DEPTH_MAX {
        return Err(ApiError::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(ApiError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(op)) => range(op)?,
            Some(Request::RequestPut(op)) => put(op)?,
            Some(Request::RequestDeleteRange(op)) => delete_range(op)?,
            Some(Request::RequestTxn(op)) => operations(op, ops_max - ops, depth + 1)?,
            // An empty operation: etcd calls it a missing key.
            None => return Err(ApiError::KeyNotFound),
        }
    }
    Ok(())
}

/// What one branch writes.
#[derive(Default)]
struct Keys {
    puts: BTreeSet<Bytes>,
    deletes: Vec<(Bytes, Bytes)>,
}

impl Keys {
    fn put(&mut self, key: &Bytes) -> Result<(), ApiError> {
        let deleted = self.deletes.iter().any(|(from, to)| contains(from, to, key));
        if deleted || !self.puts.insert(key.clone()) { Err(ApiError::DuplicateKey) } else { Ok(()) }
    }

    fn delete(&mut self, from: &Bytes, to: &Bytes) -> Result<(), ApiError> {
        if self.puts.iter().any(|key| contains(from, to, key)) {
            return Err(ApiError::DuplicateKey);
        }
        self.deletes.push((from.clone(), to.clone()));
        Ok(())
    }
}

fn duplicates(ops: &[pb::RequestOp], keys: &mut Keys) -> Result<(), ApiError> {
    for op in ops {
        match &op.request {
            Some(Request::RequestPut(op)) => keys.put(&op.key)?,
            Some(Request::RequestDeleteRange(op)) => keys.delete(&op.key, &op.range_end)?,
            Some(Request::RequestTxn(op)) => {
                // Either branch may happen beside what surrounds the transaction, but not both.
                let mut branches = [Keys::default(), Keys::default()];
                for (ops, own) in [&op.success, &op.failure].into_iter().zip(&mut branches) {
                    duplicates(ops, own)?;
                }
                let [success, failure] = branches;
                let puts: BTreeSet<Bytes> = success.puts.union(&failure.puts).cloned().collect();
                for key in &puts {
                    keys.put(key)?;
                }
                // Within one nested transaction a put of one branch may meet a delete of the other.
                for (from, to) in success.deletes.iter().chain(&failure.deletes) {
                    if keys.puts.iter().any(|key| !puts.contains(key) && contains(from, to, key)) {
                        return Err(ApiError::DuplicateKey);
                    }
                    keys.deletes.push((from.clone(), to.clone()));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Etcd's ranges: no end is one key, one zero byte is everything from the key on.
fn contains(from: &Bytes, to: &Bytes, key: &Bytes) -> bool {
    if to.is_empty() {
        return key == from;
    }
    key >= from && (to.as_ref() == [0] || key < to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(request: Request) -> pb::RequestOp {
        pb::RequestOp { request: Some(request) }
    }

    fn put_op(key: &'static str) -> pb::RequestOp {
        op(Request::RequestPut(pb::PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete_op(key: &'static str, end: &'static str) -> pb::RequestOp {
        let request = pb::DeleteRangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
        op(Request::RequestDeleteRange(request))
    }

    fn branch(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
        pb::TxnRequest { success, ..Default::default() }
    }

    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        op(Request::RequestTxn(pb::TxnRequest { success, failure, ..Default::default() }))
    }

    #[test]
    fn duplicates_are_seen_within_a_branch_only() {
        let duplicate = Err(ApiError::DuplicateKey);
        assert_eq!(txn(&branch(vec![put_op("a"), put_op("b")]), 128), Ok(()));
        assert_eq!(txn(&branch(vec![put_op("a"), put_op("a")]), 128), duplicate);
        assert_eq!(txn(&branch(vec![put_op("a"), delete_op("a", "")]), 128), duplicate);
        assert_eq!(txn(&branch(vec![delete_op("a", "c"), put_op("b")]), 128), duplicate);
        assert_eq!(txn(&branch(vec![delete_op("a", "c"), delete_op("b", "d")]), 128), Ok(()));
        assert_eq!(txn(&branch(vec![delete_op("b", "\0"), put_op("a")]), 128), Ok(()));
        let both = pb::TxnRequest { success: vec![put_op("a")], failure: vec![put_op("a")], ..Default::default() };
        assert_eq!(txn(&both, 128), Ok(()));
        assert_eq!(txn(&branch(vec![nested(vec![put_op("a")], vec![put_op("a")])]), 128), Ok(()));
        assert_eq!(txn(&branch(vec![put_op("a"), nested(vec![], vec![put_op("a")])]), 128), duplicate);
        assert_eq!(txn(&branch(vec![nested(vec![put_op("a")], vec![delete_op("a", "")])]), 128), Ok(()));
    }

    #[test]
    fn operations_are_counted_and_checked() {
        let many = |count| branch((0..count).map(|_| delete_op("k", "")).collect());
        assert_eq!(txn(&many(128), 128), Ok(()));
        assert_eq!(txn(&many(129), 128), Err(ApiError::TooManyOps));
        let mut deep = branch(vec![]);
        for _ in 0..TXN_DEPTH_MAX {
            deep = branch(vec![op(Request::RequestTxn(deep))]);
        }
        assert_eq!(txn(&deep, 128), Err(ApiError::TooManyOps));
        let shared = branch(vec![delete_op("a", ""), nested(vec![delete_op("b", ""); 2], vec![])]);
        assert_eq!(txn(&shared, 3), Err(ApiError::TooManyOps));
        assert_eq!(txn(&shared, 4), Ok(()));
        assert_eq!(txn(&branch(vec![put_op("")]), 128), Err(ApiError::EmptyKey));
    }

    #[test]
    fn single_requests() {
        let base = pb::PutRequest { key: "k".into(), ..Default::default() };
        assert_eq!(put(&pb::PutRequest::default()), Err(ApiError::EmptyKey));
        let valued = pb::PutRequest { ignore_value: true, value: "v".into(), ..base.clone() };
        assert_eq!(put(&valued), Err(ApiError::ValueProvided));
        assert_eq!(put(&pb::PutRequest { ignore_lease: true, lease: 1, ..base }), Err(ApiError::LeaseProvided));
        assert_eq!(range(&pb::RangeRequest::default()), Err(ApiError::EmptyKey));
        let sorted = pb::RangeRequest { key: "k".into(), sort_order: 9, ..Default::default() };
        assert_eq!(range(&sorted), Err(ApiError::InvalidSortOption));
    }
}
