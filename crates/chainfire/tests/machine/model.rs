//! The reference: a store as one would explain it. Every revision is a whole map of its own; nothing is shared, indexed
//! or cleaned up, so that there is nothing in it to get wrong.

use std::collections::BTreeMap;

use bytes::Bytes;
use chainfire::command::Command;
use chainfire::error::ApiError;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::compare::{CompareTarget, TargetUnion};
use proto::etcdserverpb::request_op::Request;
use proto::etcdserverpb::response_op::Response;
use proto::mvccpb::KeyValue;

pub type Map = BTreeMap<Bytes, KeyValue>;

/// One key's change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub delete: bool,
    pub kv: KeyValue,
    pub prev: Option<KeyValue>,
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    Put(pb::PutResponse),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compact(pb::CompactionResponse),
    Grant(pb::LeaseGrantResponse),
    Revoke(pb::LeaseRevokeResponse),
    Checkpoint(pb::LeaseCheckpointResponse),
    Alarm(pb::AlarmResponse),
}

#[derive(Clone, Debug)]
pub struct Model {
    /// By revision; the first real one is 1.
    pub maps: Vec<Map>,
    pub changes: Vec<Vec<Change>>,
    pub compacted: i64,
    /// id → (TTL, remaining).
    pub leases: BTreeMap<i64, (i64, i64)>,
    pub alarms: Vec<(i32, u64)>,
}

struct Work {
    map: Map,
    changes: Vec<Change>,
    revision: i64,
}

impl Model {
    pub fn new() -> Model {
        Model {
            maps: vec![Map::new(); 2],
            changes: vec![vec![]; 2],
            compacted: -1,
            leases: BTreeMap::new(),
            alarms: vec![],
        }
    }

    pub fn revision(&self) -> i64 {
        self.maps.len() as i64 - 1
    }

    pub fn now(&self) -> &Map {
        self.maps.last().unwrap()
    }

    pub fn lease_keys(&self, id: i64) -> Vec<Bytes> {
        self.now().values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect()
    }

    pub fn apply(&mut self, command: &Command, header: pb::ResponseHeader) -> Result<Answer, ApiError> {
        let in_term = command.clone().in_term(header.raft_term)?;
        let command = &in_term;
        let raised = |kind| self.alarms.iter().any(|alarm| alarm.0 == kind);
        let (nospace, corrupt) = (raised(1), raised(2));
        if corrupt && !matches!(command, Command::Alarm { .. } | Command::LeaseCheckpoint(_)) {
            return Err(ApiError::Corrupt);
        }
        let mut work = Work { map: self.now().clone(), changes: vec![], revision: self.revision() + 1 };
        let mut answer = match command {
            Command::InTerm { .. } => unreachable!("taken apart above"),
            Command::Put(_) | Command::LeaseGrant { .. } if nospace => return Err(ApiError::NoSpace),
            Command::Txn(request) if nospace && puts(request) => return Err(ApiError::NoSpace),
            Command::Put(request) => {
                self.check_put(request)?;
                Answer::Put(work.put(request))
            }
            Command::DeleteRange(request) => Answer::Delete(work.delete(request)),
            Command::Txn(request) => {
                let path = self.decide(request);
                self.check(request, &mut path.iter())?;
                Answer::Txn(self.execute(request, &mut path.iter(), &mut work))
            }
            Command::Compact(request) => {
                if request.revision <= self.compacted {
                    return Err(ApiError::Compacted);
                }
                if request.revision > self.revision() {
                    return Err(ApiError::FutureRevision);
                }
                self.compacted = request.revision;
                Answer::Compact(pb::CompactionResponse::default())
            }
            Command::LeaseGrant { id, ttl_s } => {
                if *ttl_s > 9_000_000_000 {
                    return Err(ApiError::LeaseTtlTooLarge);
                }
                if self.leases.contains_key(id) {
                    return Err(ApiError::LeaseExists);
                }
                self.leases.insert(*id, (*ttl_s, 0));
                Answer::Grant(pb::LeaseGrantResponse { id: *id, ttl: *ttl_s, ..Default::default() })
            }
            Command::LeaseRevoke { id } => {
                self.leases.remove(id).ok_or(ApiError::LeaseNotFound)?;
                for key in self.lease_keys(*id) {
                    work.delete_key(&key);
                }
                Answer::Revoke(pb::LeaseRevokeResponse::default())
            }
            Command::LeaseCheckpoint(remaining) => {
                for (id, remaining) in remaining {
                    if let Some(lease) = self.leases.get_mut(id) {
                        lease.1 = *remaining;
                    }
                }
                Answer::Checkpoint(pb::LeaseCheckpointResponse::default())
            }
            Command::Alarm { action, member, kind } => {
                let covers =
                    |alarm: &(i32, u64)| (*kind == 0 || alarm.0 == *kind) && (*member == 0 || alarm.1 == *member);
                let named: Vec<_> = match action {
                    0 => self.alarms.iter().copied().filter(|alarm| *kind == 0 || alarm.0 == *kind).collect(),
                    1 if *kind == 0 => vec![],
                    1 => {
                        self.alarms.push((*kind, *member));
                        self.alarms.sort();
                        self.alarms.dedup();
                        vec![(*kind, *member)]
                    }
                    _ => {
                        let named = self.alarms.iter().copied().filter(covers).collect();
                        self.alarms.retain(|alarm| !covers(alarm));
                        named
                    }
                };
                let alarms = named.into_iter().map(|(kind, member)| pb::AlarmMember { member_id: member, alarm: kind });
                Answer::Alarm(pb::AlarmResponse { alarms: alarms.collect(), ..Default::default() })
            }
        };
        if !work.changes.is_empty() {
            self.maps.push(work.map);
            self.changes.push(work.changes);
        }
        let header = Some(pb::ResponseHeader { revision: self.revision(), ..header });
        match &mut answer {
            Answer::Put(answer) => answer.header = header,
            Answer::Delete(answer) => answer.header = header,
            Answer::Txn(answer) => answer.header = header,
            Answer::Compact(answer) => answer.header = header,
            Answer::Grant(answer) => answer.header = header,
            Answer::Revoke(answer) => answer.header = header,
            Answer::Checkpoint(answer) => answer.header = header,
            Answer::Alarm(answer) => answer.header = header,
        }
        Ok(answer)
    }

    pub fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, ApiError> {
        self.check_revision(request.revision)?;
        Ok(self.range_of(self.now(), self.revision(), request))
    }

    fn check_revision(&self, revision: i64) -> Result<(), ApiError> {
        if revision > self.revision() {
            return Err(ApiError::FutureRevision);
        }
        if revision > 0 && revision < self.compacted {
            return Err(ApiError::Compacted);
        }
        Ok(())
    }

    fn range_of(&self, map: &Map, revision: i64, request: &pb::RangeRequest) -> pb::RangeResponse {
        let past = request.revision > 0 && request.revision < revision;
        let map = if past { &self.maps[request.revision as usize] } else { map };
        let mut kvs: Vec<KeyValue> = within(map, &request.key, &request.range_end).cloned().collect();
        let count = kvs.len() as i64;
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        if request.sort_order == 0 && filters == [0; 4] {
            kvs.truncate(limit.saturating_add(1));
        }
        kvs.retain(|kv| {
            (filters[0] == 0 || kv.mod_revision >= filters[0])
                && (filters[1] == 0 || kv.mod_revision <= filters[1])
                && (filters[2] == 0 || kv.create_revision >= filters[2])
                && (filters[3] == 0 || kv.create_revision <= filters[3])
        });
        let compare = |a: &KeyValue, b: &KeyValue| match request.sort_target {
            0 => a.key.cmp(&b.key),
            1 => a.version.cmp(&b.version),
            2 => a.create_revision.cmp(&b.create_revision),
            3 => a.mod_revision.cmp(&b.mod_revision),
            _ => a.value.cmp(&b.value),
        };
        kvs.sort_by(|a, b| if request.sort_order == 2 { compare(b, a) } else { compare(a, b) });
        let more = kvs.len() > limit;
        kvs.truncate(limit);
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        if request.count_only {
            return pb::RangeResponse { count, ..Default::default() };
        }
        pb::RangeResponse { kvs, more, count, ..Default::default() }
    }

    fn check_put(&self, request: &pb::PutRequest) -> Result<(), ApiError> {
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(ApiError::LeaseNotFound);
        }
        if (request.ignore_lease || request.ignore_value) && !self.now().contains_key(&request.key) {
            return Err(ApiError::KeyNotFound);
        }
        Ok(())
    }

    fn decide(&self, request: &pb::TxnRequest) -> Vec<bool> {
        let succeeded = request.compare.iter().all(|compare| self.holds(compare));
        let mut path = vec![succeeded];
        for op in branch(request, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &op.request {
                path.extend(self.decide(nested));
            }
        }
        path
    }

    fn holds(&self, compare: &pb::Compare) -> bool {
        let mut kvs: Vec<KeyValue> = within(self.now(), &compare.key, &compare.range_end).cloned().collect();
        if kvs.is_empty() {
            if compare.target == CompareTarget::Value as i32 {
                return false;
            }
            kvs.push(KeyValue::default());
        }
        kvs.iter().all(|kv| {
            let order = match compare.target_union.as_ref().unwrap() {
                TargetUnion::Version(version) => kv.version.cmp(version),
                TargetUnion::CreateRevision(revision) => kv.create_revision.cmp(revision),
                TargetUnion::ModRevision(revision) => kv.mod_revision.cmp(revision),
                TargetUnion::Value(value) => kv.value.cmp(value),
                TargetUnion::Lease(lease) => kv.lease.cmp(lease),
            };
            match compare.result {
                0 => order.is_eq(),
                1 => order.is_gt(),
                2 => order.is_lt(),
                _ => order.is_ne(),
            }
        })
    }

    fn check(&self, request: &pb::TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<(), ApiError> {
        for op in branch(request, *path.next().unwrap()) {
            match op.request.as_ref().unwrap() {
                Request::RequestRange(request) => self.check_revision(request.revision)?,
                Request::RequestPut(request) => self.check_put(request)?,
                Request::RequestDeleteRange(_) => {}
                Request::RequestTxn(nested) => self.check(nested, path)?,
            }
        }
        Ok(())
    }

    fn execute(
        &self,
        request: &pb::TxnRequest,
        path: &mut std::slice::Iter<'_, bool>,
        work: &mut Work,
    ) -> pb::TxnResponse {
        let succeeded = *path.next().unwrap();
        let mut responses = vec![];
        for op in branch(request, succeeded) {
            let response = match op.request.as_ref().unwrap() {
                Request::RequestRange(request) => {
                    let answer = self.range_of(&work.map, work.now(), request);
                    Response::ResponseRange(pb::RangeResponse { header: revision(work.now()), ..answer })
                }
                Request::RequestPut(request) => {
                    let answer = work.put(request);
                    Response::ResponsePut(pb::PutResponse { header: revision(work.now()), ..answer })
                }
                Request::RequestDeleteRange(request) => {
                    let answer = work.delete(request);
                    Response::ResponseDeleteRange(pb::DeleteRangeResponse { header: revision(work.now()), ..answer })
                }
                Request::RequestTxn(nested) => {
                    let answer = self.execute(nested, path, work);
                    Response::ResponseTxn(pb::TxnResponse { header: revision(0), ..answer })
                }
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        pb::TxnResponse { header: None, succeeded, responses }
    }
}

impl Work {
    fn now(&self) -> i64 {
        if self.changes.is_empty() { self.revision - 1 } else { self.revision }
    }

    fn put(&mut self, request: &pb::PutRequest) -> pb::PutResponse {
        let prev = self.map.get(&request.key).cloned();
        let before = prev.clone().unwrap_or_default();
        let kv = KeyValue {
            key: request.key.clone(),
            create_revision: if prev.is_some() { before.create_revision } else { self.revision },
            mod_revision: self.revision,
            version: before.version + 1,
            value: if request.ignore_value { before.value } else { request.value.clone() },
            lease: if request.ignore_lease { before.lease } else { request.lease },
        };
        self.map.insert(request.key.clone(), kv.clone());
        self.changes.push(Change { delete: false, kv, prev: prev.clone() });
        pb::PutResponse { header: None, prev_kv: prev.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let gone: Vec<KeyValue> = within(&self.map, &request.key, &request.range_end).cloned().collect();
        for kv in &gone {
            self.delete_key(&kv.key);
        }
        pb::DeleteRangeResponse {
            header: None,
            deleted: gone.len() as i64,
            prev_kvs: if request.prev_kv { gone } else { vec![] },
        }
    }

    fn delete_key(&mut self, key: &Bytes) {
        let prev = self.map.remove(key);
        let kv = KeyValue { key: key.clone(), mod_revision: self.revision, ..Default::default() };
        self.changes.push(Change { delete: true, kv, prev });
    }
}

pub fn covers(key: &Bytes, from: &Bytes, end: &Bytes) -> bool {
    match &end[..] {
        [] => key == from,
        [0] => key >= from,
        _ => key >= from && key < end,
    }
}

fn within<'a>(map: &'a Map, key: &'a Bytes, end: &'a Bytes) -> impl Iterator<Item = &'a KeyValue> {
    map.values().filter(move |kv| covers(&kv.key, key, end))
}

fn branch(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn puts(request: &pb::TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|op| match op.request.as_ref().unwrap() {
        Request::RequestPut(_) => true,
        Request::RequestTxn(nested) => puts(nested),
        _ => false,
    })
}

fn revision(revision: i64) -> Option<pb::ResponseHeader> {
    Some(pb::ResponseHeader { revision, ..Default::default() })
}
