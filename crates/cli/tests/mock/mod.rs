//! A server of one node that holds keys in a map, for tests of the client: enough of the API to answer every command,
//! and switches for what a real server does only in bad times.

pub mod tls;

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use proto::admin;
use proto::etcdserverpb::{self as pb, request_op::Request, response_op, watch_request::RequestUnion};
use proto::mvccpb::{Event, KeyValue};
use rpc::server::{
    Answer, BoxFuture, Call, HttpBody, Kind, Method, RequestStream, ResponseSink, Server, ServerConfig, Service,
    http_body,
};
use rpc::{Code, Status};
use std::sync::Mutex;
use tokio::sync::Notify;

/// A running mock and how to call the client on it.
pub struct Mock {
    pub endpoint: String,
    pub node: Arc<Node>,
    server: Arc<Server<Node>>,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Default)]
pub struct Node {
    store: Mutex<Store>,
    changed: Notify,
    pub no_leader: AtomicBool,
    pub hangs: AtomicBool,
    pub no_streams: AtomicBool,
    /// What `Snapshot` sends.
    pub snapshot: Mutex<Vec<u8>>,
}

#[derive(Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<Bytes, KeyValue>,
    history: Vec<Event>,
    leases: Vec<i64>,
    members: Vec<admin::Member>,
}

impl Mock {
    pub fn start() -> Mock {
        Mock::start_with(None)
    }

    /// With TLS, if it is told how; then it answers those who speak none as a server of ours does.
    pub fn start_with(tls: Option<Arc<rustls::ServerConfig>>) -> Mock {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let node = Arc::new(Node::default());
        node.store.lock().unwrap().members = [1, 2, 3]
            .map(|node_id| admin::Member {
                node_id,
                peer_id: 0x100 + node_id,
                name: format!("node-{node_id}"),
                peer_urls: vec![format!("127.0.0.{node_id}:2380")],
                client_urls: if node_id == 1 { vec![endpoint.clone()] } else { vec!["http://127.0.0.1:1".into()] },
                ..Default::default()
            })
            .to_vec();
        let server = Server::new(node.clone(), ServerConfig::default());
        let serving = server.clone();
        runtime.spawn(async move {
            match tls {
                Some(config) => tls::serve(serving, listener, config).await,
                None => serving.serve(listener).await,
            }
        });
        Mock { endpoint, node, server, _runtime: runtime }
    }

    pub fn stop(&self) {
        self.server.stop();
    }

    /// Runs the client and returns its exit code, what it printed, and what it complained about.
    pub fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        self.run_with(arguments, "")
    }

    pub fn run_with(&self, arguments: &[&str], stdin: &str) -> (i32, String, String) {
        run(&[&["--endpoint", &self.endpoint], arguments].concat(), &[], stdin)
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, complaint) = self.run(arguments);
        assert_eq!((code, complaint.as_str()), (0, ""), "{arguments:?}");
        out
    }
}

pub fn run(arguments: &[&str], environment: &[(&str, &str)], stdin: &str) -> (i32, String, String) {
    use std::io::Write as _;
    let mut command = Command::new(env!("CARGO_BIN_EXE_chainfire-client"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CHAINFIRE_") || name.starts_with("ETCDCTL_"))
    {
        command.env_remove(name);
    }
    let mut child = command
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

const METHODS: [(&str, Kind); 22] = [
    ("/etcdserverpb.KV/Range", Kind::Unary),
    ("/etcdserverpb.KV/RangeStream", Kind::Streaming),
    ("/etcdserverpb.KV/Put", Kind::Unary),
    ("/etcdserverpb.KV/DeleteRange", Kind::Unary),
    ("/etcdserverpb.KV/Txn", Kind::Unary),
    ("/etcdserverpb.KV/Compact", Kind::Unary),
    ("/etcdserverpb.Watch/Watch", Kind::Streaming),
    ("/etcdserverpb.Lease/LeaseGrant", Kind::Unary),
    ("/etcdserverpb.Lease/LeaseRevoke", Kind::Unary),
    ("/etcdserverpb.Lease/LeaseTimeToLive", Kind::Unary),
    ("/etcdserverpb.Lease/LeaseLeases", Kind::Unary),
    ("/etcdserverpb.Lease/LeaseKeepAlive", Kind::Streaming),
    ("/etcdserverpb.Maintenance/Alarm", Kind::Unary),
    ("/etcdserverpb.Maintenance/Defragment", Kind::Unary),
    ("/etcdserverpb.Maintenance/HashKV", Kind::Unary),
    ("/etcdserverpb.Maintenance/MoveLeader", Kind::Unary),
    ("/etcdserverpb.Maintenance/Snapshot", Kind::Streaming),
    ("/centra.chainfire.v1.Admin/Status", Kind::Unary),
    ("/centra.chainfire.v1.Admin/MemberAdd", Kind::Unary),
    ("/centra.chainfire.v1.Admin/MemberPromote", Kind::Unary),
    ("/centra.chainfire.v1.Admin/MemberRemove", Kind::Unary),
    ("/centra.chainfire.v1.Admin/MemberReplace", Kind::Unary),
];

impl Service for Node {
    fn resolve(&self, path: &str) -> Option<Method> {
        let id = METHODS.iter().position(|(known, _)| *known == path)?;
        Some(Method { id: id as u16, kind: METHODS[id].1 })
    }

    fn unary(self: &Arc<Self>, method: u16, _: Call, message: Bytes) -> Answer {
        let (path, _) = METHODS[usize::from(method)];
        let name = path.rsplit('/').next().unwrap();
        if self.hangs.load(SeqCst) {
            return Answer::later(std::future::pending());
        }
        let admin_status = path == "/centra.chainfire.v1.Admin/Status";
        if self.no_leader.load(SeqCst) && !admin_status {
            return Answer::Ready(Err(Status::unavailable("etcdserver: no leader")));
        }
        Answer::Ready(self.answer(name, message).inspect(|_| self.changed.notify_waiters()))
    }

    fn streaming(
        self: &Arc<Self>,
        method: u16,
        _: Call,
        requests: RequestStream,
        responses: ResponseSink,
    ) -> BoxFuture<Result<(), Status>> {
        let node = self.clone();
        match METHODS[usize::from(method)].0 {
            "/etcdserverpb.Watch/Watch" => Box::pin(node.watch(requests, responses)),
            "/etcdserverpb.Lease/LeaseKeepAlive" => Box::pin(node.keep_alive(requests, responses)),
            "/etcdserverpb.KV/RangeStream" => Box::pin(node.range_stream(requests, responses)),
            _ => Box::pin(node.send_snapshot(responses)),
        }
    }

    fn http(self: &Arc<Self>, _: Call, request: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>> {
        let body = format!("the page {}\n", request.uri().path());
        Box::pin(async move { http::Response::new(http_body(body)) })
    }
}

fn decode<M: Message + Default>(message: Bytes) -> Result<M, Status> {
    M::decode(message).map_err(|error| Status::internal(error.to_string()))
}

impl Node {
    fn answer(&self, name: &str, message: Bytes) -> Result<Bytes, Status> {
        let mut store = self.store.lock().unwrap();
        let encoded = match name {
            "Range" => store.range(&decode(message)?)?.encode_to_vec(),
            "Put" => store.put(&decode(message)?, None).encode_to_vec(),
            "DeleteRange" => store.delete(&decode(message)?, None).encode_to_vec(),
            "Txn" => store.txn(&decode(message)?)?.encode_to_vec(),
            "Compact" => {
                if decode::<pb::CompactionRequest>(message)?.revision > store.revision {
                    return Err(Status::new(
                        Code::OutOfRange,
                        "etcdserver: mvcc: required revision is a future revision",
                    ));
                }
                pb::CompactionResponse { header: store.header() }.encode_to_vec()
            }
            "LeaseGrant" => {
                let request: pb::LeaseGrantRequest = decode(message)?;
                let id = if request.id == 0 { 0x7bad } else { request.id };
                store.leases.push(id);
                pb::LeaseGrantResponse { header: store.header(), id, ttl: request.ttl, ..Default::default() }
                    .encode_to_vec()
            }
            "LeaseRevoke" => {
                let request: pb::LeaseRevokeRequest = decode(message)?;
                if !store.leases.contains(&request.id) {
                    return Err(Status::new(Code::NotFound, "etcdserver: requested lease not found"));
                }
                store.leases.retain(|id| *id != request.id);
                pb::LeaseRevokeResponse { header: store.header() }.encode_to_vec()
            }
            "LeaseTimeToLive" => {
                let id = decode::<pb::LeaseTimeToLiveRequest>(message)?.id;
                let keys: Vec<_> = store.keys.values().filter(|kv| kv.lease == id).map(|kv| kv.key.clone()).collect();
                let ttl = if store.leases.contains(&id) { 55 } else { -1 };
                pb::LeaseTimeToLiveResponse { header: store.header(), id, ttl, granted_ttl: 60, keys }.encode_to_vec()
            }
            "LeaseLeases" => {
                let leases = store.leases.iter().map(|&id| pb::LeaseStatus { id }).collect();
                pb::LeaseLeasesResponse { header: store.header(), leases }.encode_to_vec()
            }
            "Alarm" => {
                let alarms = vec![pb::AlarmMember { member_id: 2, alarm: pb::AlarmType::Nospace as i32 }];
                pb::AlarmResponse { header: store.header(), alarms }.encode_to_vec()
            }
            "Defragment" => pb::DefragmentResponse { header: store.header() }.encode_to_vec(),
            "HashKV" => {
                let (hash, hash_revision) = (0xabcd, store.revision);
                pb::HashKvResponse { header: store.header(), hash, hash_revision, ..Default::default() }.encode_to_vec()
            }
            "MoveLeader" => match decode::<pb::MoveLeaderRequest>(message)?.target_id {
                1..=3 => pb::MoveLeaderResponse { header: store.header() }.encode_to_vec(),
                _ => return Err(Status::new(Code::FailedPrecondition, "etcdserver: bad leader transferee")),
            },
            "Status" => self.admin_status(&store).encode_to_vec(),
            "MemberAdd" => {
                let request: admin::MemberAddRequest = decode(message)?;
                let node_id = if request.node_id == 0 { 77 } else { request.node_id };
                let member =
                    admin::Member { node_id, peer_urls: request.peer_urls, learner: true, ..Default::default() };
                store.members.push(member.clone());
                members(&store, Some(member), "").encode_to_vec()
            }
            "MemberPromote" => {
                let id = decode::<admin::MemberPromoteRequest>(message)?.node_id;
                let Some(member) = store.members.iter_mut().find(|member| member.node_id == id) else {
                    return Err(Status::new(Code::NotFound, "etcdserver: member not found"));
                };
                let note = if member.learner { "" } else { "the member is a voter already" };
                member.learner = false;
                members(&store, None, note).encode_to_vec()
            }
            "MemberRemove" => {
                let id = decode::<admin::MemberRemoveRequest>(message)?.node_id;
                store.members.retain(|member| member.node_id != id);
                members(&store, None, "").encode_to_vec()
            }
            _ => members(&store, None, "").encode_to_vec(),
        };
        Ok(encoded.into())
    }

    fn admin_status(&self, store: &Store) -> admin::StatusResponse {
        admin::StatusResponse {
            cluster_id: 0xc1,
            node_id: 1,
            role: admin::Role::Leader as i32,
            leader_node_id: if self.no_leader.load(SeqCst) { 0 } else { 1 },
            raft_term: 7,
            raft_index: 100 + store.revision as u64,
            revision: store.revision,
            version: "0.1.0".into(),
            members: store.members.clone(),
            ..Default::default()
        }
    }

    async fn watch(self: Arc<Self>, mut requests: RequestStream, mut responses: ResponseSink) -> Result<(), Status> {
        let Some(first) = requests.next().await else { return Ok(()) };
        let Some(RequestUnion::CreateRequest(create)) = decode::<pb::WatchRequest>(first?)?.request_union else {
            return Ok(());
        };
        let header = self.store.lock().unwrap().header();
        let compacted = create.start_revision == 1;
        let created = pb::WatchResponse {
            header,
            created: true,
            canceled: compacted,
            compact_revision: if compacted { 2 } else { 0 },
            ..Default::default()
        };
        let mut next = match create.start_revision {
            0 => header.unwrap().revision + 1,
            revision => revision,
        };
        responses.send(created.encode_to_vec().into()).await?;
        loop {
            let changed = self.changed.notified();
            let (header, events) = {
                let store = self.store.lock().unwrap();
                let wanted = |event: &&Event| {
                    let kv = event.kv.as_ref().unwrap();
                    kv.mod_revision >= next && within(&kv.key, &create.key, &create.range_end)
                };
                let without_prev = |event: &Event| Event {
                    prev_kv: event.prev_kv.clone().filter(|_| create.prev_kv),
                    ..event.clone()
                };
                (store.header(), store.history.iter().filter(wanted).map(without_prev).collect::<Vec<_>>())
            };
            if let Some(last) = events.last() {
                next = last.kv.as_ref().unwrap().mod_revision + 1;
                let response = pb::WatchResponse { header, events, ..Default::default() };
                responses.send(response.encode_to_vec().into()).await?;
            }
            changed.await;
        }
    }

    async fn keep_alive(
        self: Arc<Self>,
        mut requests: RequestStream,
        mut responses: ResponseSink,
    ) -> Result<(), Status> {
        while let Some(message) = requests.next().await {
            let id = decode::<pb::LeaseKeepAliveRequest>(message?)?.id;
            let ttl = if self.store.lock().unwrap().leases.contains(&id) { 60 } else { 0 };
            let response = pb::LeaseKeepAliveResponse { id, ttl, ..Default::default() };
            responses.send(response.encode_to_vec().into()).await?;
        }
        Ok(())
    }

    async fn range_stream(
        self: Arc<Self>,
        mut requests: RequestStream,
        mut responses: ResponseSink,
    ) -> Result<(), Status> {
        if self.no_streams.load(SeqCst) {
            return Err(Status::unimplemented("unknown method RangeStream for service etcdserverpb.KV"));
        }
        let message = requests.next().await.ok_or_else(Status::cancelled)??;
        let whole = self.store.lock().unwrap().range(&decode(message)?)?;
        for kv in whole.kvs {
            let part = pb::RangeResponse { kvs: vec![kv], ..Default::default() };
            let response = pb::RangeStreamResponse { range_response: Some(part) };
            responses.send(response.encode_to_vec().into()).await?;
        }
        Ok(())
    }

    async fn send_snapshot(self: Arc<Self>, mut responses: ResponseSink) -> Result<(), Status> {
        let bytes = self.snapshot.lock().unwrap().clone();
        let mut remaining_bytes = bytes.len() as u64;
        for blob in bytes.chunks(100) {
            remaining_bytes -= blob.len() as u64;
            let blob = Bytes::copy_from_slice(blob);
            let response = pb::SnapshotResponse { remaining_bytes, blob, ..Default::default() };
            responses.send(response.encode_to_vec().into()).await?;
            tokio::time::sleep(Duration::from_micros(10)).await;
        }
        Ok(())
    }
}

fn members(store: &Store, member: Option<admin::Member>, note: &str) -> admin::MembersResponse {
    admin::MembersResponse { member, members: store.members.clone(), note: note.to_owned(), ..Default::default() }
}

fn within(key: &Bytes, from: &Bytes, end: &Bytes) -> bool {
    if end.is_empty() { key == from } else { key >= from && (end == "\0" || key < end) }
}

impl Store {
    fn header(&self) -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { cluster_id: 0xc1, member_id: 1, revision: self.revision, raft_term: 7 })
    }

    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        if request.revision > self.revision {
            return Err(Status::new(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"));
        }
        let within = self.keys.values().filter(|kv| within(&kv.key, &request.key, &request.range_end));
        let mut kvs: Vec<_> = within.cloned().collect();
        let count = kvs.len() as i64;
        if request.sort_order == pb::range_request::SortOrder::Descend as i32 {
            kvs.reverse();
        }
        let limit = if request.limit > 0 { request.limit as usize } else { usize::MAX };
        let more = kvs.len() > limit;
        kvs.truncate(if request.count_only { 0 } else { limit });
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value.clear());
        }
        Ok(pb::RangeResponse { header: self.header(), kvs, more, count })
    }

    fn put(&mut self, request: &pb::PutRequest, at: Option<i64>) -> pb::PutResponse {
        let revision = at.unwrap_or(self.revision + 1);
        self.revision = revision;
        let before = self.keys.get(&request.key).cloned();
        let kv = KeyValue {
            key: request.key.clone(),
            value: request.value.clone(),
            create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
            version: before.as_ref().map_or(1, |kv| kv.version + 1),
            lease: request.lease,
        };
        self.keys.insert(kv.key.clone(), kv.clone());
        self.history.push(Event { r#type: 0, kv: Some(kv), prev_kv: before.clone() });
        pb::PutResponse { header: self.header(), prev_kv: before.filter(|_| request.prev_kv) }
    }

    fn delete(&mut self, request: &pb::DeleteRangeRequest, at: Option<i64>) -> pb::DeleteRangeResponse {
        let gone: Vec<_> =
            self.keys.values().filter(|kv| within(&kv.key, &request.key, &request.range_end)).cloned().collect();
        if !gone.is_empty() {
            self.revision = at.unwrap_or(self.revision + 1);
        }
        for kv in &gone {
            self.keys.remove(&kv.key);
            let tombstone = KeyValue { key: kv.key.clone(), mod_revision: self.revision, ..Default::default() };
            self.history.push(Event { r#type: 1, kv: Some(tombstone), prev_kv: Some(kv.clone()) });
        }
        let deleted = gone.len() as i64;
        pb::DeleteRangeResponse {
            header: self.header(),
            deleted,
            prev_kvs: if request.prev_kv { gone } else { vec![] },
        }
    }

    /// Compares modification revisions and versions for equality only.
    fn txn(&mut self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        use pb::compare::TargetUnion;
        let succeeded = request.compare.iter().all(|compare| {
            let kv = self.keys.get(&compare.key).cloned().unwrap_or_default();
            match &compare.target_union {
                Some(TargetUnion::ModRevision(revision)) => kv.mod_revision == *revision,
                Some(TargetUnion::Version(version)) => kv.version == *version,
                Some(TargetUnion::Value(value)) => kv.value == *value,
                _ => false,
            }
        });
        let revision = Some(self.revision + 1);
        let mut responses = Vec::new();
        for op in if succeeded { &request.success } else { &request.failure } {
            let response = match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => response_op::Response::ResponseRange(self.range(range)?),
                Request::RequestPut(put) => response_op::Response::ResponsePut(self.put(put, revision)),
                Request::RequestDeleteRange(delete) => {
                    response_op::Response::ResponseDeleteRange(self.delete(delete, revision))
                }
                Request::RequestTxn(_) => return Err(Status::unimplemented("nested")),
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        Ok(pb::TxnResponse { header: self.header(), succeeded, responses })
    }
}
