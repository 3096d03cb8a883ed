//! A client of one endpoint: the generated stubs with a time limit on every call.
//!
//! The connection is made when it is first needed and again after it broke, so a client outlives its server's restarts.

use std::error::Error as _;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use proto::etcdserverpb as pb;
use rpc::client::{AdminClient, ClusterClient, KvClient, LeaseClient, MaintenanceClient, WatchClient};
use tonic::transport::{Channel, ClientTlsConfig};
use tonic::{Response, Status};

/// Calls that are answered by a healthy server take far less.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Client {
    channel: Channel,
    timeout: Duration,
}

impl Client {
    /// `address` is `http://host:port` or `host:port`.
    pub fn new(address: &str) -> Client {
        Client::with_timeout(address, CALL_TIMEOUT)
    }

    pub fn with_timeout(address: &str, timeout: Duration) -> Client {
        let channel = rpc::client::endpoint(address, timeout.min(Duration::from_secs(2))).unwrap().connect_lazy();
        Client { channel, timeout }
    }

    /// One that knows the server by its CA, and shows a certificate if it has one.
    pub fn secure(address: &str, tls: ClientTlsConfig, timeout: Duration) -> Client {
        let endpoint = rpc::client::endpoint(address, timeout.min(Duration::from_secs(2))).unwrap();
        Client { channel: endpoint.tls_config(tls).unwrap().connect_lazy(), timeout }
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel()).max_decoding_message_size(rpc::client::RESPONSE_BYTES_MAX)
    }

    pub fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel())
    }

    pub fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel()).max_decoding_message_size(rpc::client::RESPONSE_BYTES_MAX)
    }

    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    pub fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel())
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel())
    }

    /// Waits for a call of one of the stubs, but not for ever.
    pub async fn within<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer within the client's time")),
        }
    }

    pub async fn put(&self, key: &str, value: &str) -> Result<pb::PutResponse, Status> {
        self.put_request(put(key, value)).await
    }

    pub async fn put_request(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        self.within(self.kv().put(request)).await
    }

    /// Linearizable.
    pub async fn get(&self, key: &str) -> Result<pb::RangeResponse, Status> {
        self.range(pb::RangeRequest { key: bytes(key), ..Default::default() }).await
    }

    pub async fn prefix(&self, prefix: &str) -> Result<pb::RangeResponse, Status> {
        self.range(pb::RangeRequest { key: bytes(prefix), range_end: end_of(prefix), ..Default::default() }).await
    }

    pub async fn range(&self, request: pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        self.within(self.kv().range(request)).await
    }

    pub async fn delete(&self, key: &str) -> Result<pb::DeleteRangeResponse, Status> {
        let request = pb::DeleteRangeRequest { key: bytes(key), ..Default::default() };
        self.within(self.kv().delete_range(request)).await
    }

    pub async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        self.within(self.kv().txn(request)).await
    }

    /// Answered by the endpoint itself, leader or not.
    pub async fn status(&self) -> Result<pb::StatusResponse, Status> {
        self.within(self.maintenance().status(pb::StatusRequest::default())).await
    }

    /// Of our own admin service.
    pub async fn admin_status(&self) -> proto::admin::StatusResponse {
        self.within(self.admin().status(proto::admin::StatusRequest {})).await.unwrap()
    }

    pub async fn members(&self) -> Result<Vec<pb::Member>, Status> {
        let request = pb::MemberListRequest { linearizable: true };
        self.within(self.cluster().member_list(request)).await.map(|answer| answer.members)
    }

    /// Of the whole history up to a revision; zero is the present one.
    pub async fn hash_kv(&self, revision: i64) -> Result<pb::HashKvResponse, Status> {
        self.within(self.maintenance().hash_kv(pb::HashKvRequest { revision })).await
    }
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: bytes(key), value: bytes(value), ..Default::default() }
}

/// Whether a call failed before anything of it was sent.
pub fn was_never_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The range end of a prefix, whose last byte must not be 0xff.
pub fn end_of(prefix: &str) -> Bytes {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut().expect("a prefix") += 1;
    end.into()
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The revision in an answer's header.
pub fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

/// A short text for `Err(status)`, `Ok` for none: what failures of assertions show.
pub fn outcome<T>(result: &Result<T, Status>) -> String {
    match result {
        Ok(_) => "Ok".to_owned(),
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}
