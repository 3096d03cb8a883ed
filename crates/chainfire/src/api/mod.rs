//! The etcd v3 API (and our own admin service) over one group.
//!
//! # The life of a put
//! `rpc` hands over the message's bytes → the method table says which room answers (`kv`) → [`check`] refuses what makes no
//! sense, with etcd's words → the bytes, unchanged, are proposed as a command → the state machine of this node
//! answers with the encoded response, which goes out as it is.
//!
//! # The life of a linearizable get
//! The leader under its lease answers on the spot; else a read grant is awaited ([`node::GroupHandle::read`]) → the current
//! [`StateView`] → the answer's bytes behind a header.
//!
//! Any node answers any request. What only the leader knows (how long a lease has left) is asked of it through
//! [`node::GroupHandle::call_leader`], which comes in at [`leader::LeaderCalls`].
//!
//! | room | answers |
//! |---|---|
//! | `kv` | Range, RangeStream, Put, DeleteRange, Txn, Compact |
//! | `watch`, `lease`, `cluster`, `maintenance`, `admin` | the services of these names |
//! | `backup` | the streams of backups: Maintenance/Snapshot and Admin/Changes |
//! | `http` | /health, /livez, /readyz, /version, /metrics |
//! | `check`, `header`, `refusal` | what they share |

mod admin;
mod backup;
pub mod check;
mod cluster;
mod header;
mod http_pages;
mod kv;
mod large;
pub mod leader;
mod lease;
mod maintenance;
mod refusal;
mod slow;
mod watch;

pub use large::LargeAnswers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use bytes::Bytes;
use node::GroupHandle;
use node::scrub::Scrub;
use rpc::Status;
use rpc::server::{Answer, BoxFuture, Call, HttpBody, Method, RequestStream, ResponseSink, Service};

use crate::error::ApiError;
use crate::live::Live;
use crate::metrics::Metrics;
use crate::read::StateView;
use crate::store::{Store, Stores};
pub(crate) use refusal::{refused, status_of};

/// The version of etcd whose wire and behaviour this is.
pub const ETCD_VERSION: &str = "3.7.0";

/// Bounds that the API enforces.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    pub request_bytes_max: usize,
}

/// The service behind the client port.
pub struct Api {
    pub handle: GroupHandle,
    pub stores: Arc<Stores>,
    pub limits: ApiLimits,
    /// Those that may change while the node runs.
    pub live: Arc<Live>,
    pub slow: Arc<node::slow::SlowRequests>,
    pub metrics: Arc<Metrics>,
    pub scrub: Arc<Scrub>,
    pub sources: Arc<dyn Fn() -> String + Send + Sync>,
    pub started: Instant,
    pub large: LargeAnswers,
    /// About how many bytes a key takes in the answers to ranges of late.
    pub range_bytes_per_key: AtomicU64,
    /// When a put was last mentioned in the log, in milliseconds after `started`; zero: never.
    pub put_said_ms: AtomicU64,
    /// Set while this node's disk has no room for more.
    pub disk_full: Arc<AtomicBool>,
}

macro_rules! methods {
    ($($name:ident = $number:literal, $kind:ident, $path:literal;)*) => {
        /// The methods by number.
        mod method {
            $(pub const $name: u16 = $number;)*
        }

        fn resolve(path: &str) -> Option<Method> {
            match path {
                $($path => Some(Method::$kind(method::$name)),)*
                _ => None,
            }
        }

        /// (number, path) of every method, for metrics.
        pub const METHODS: &[(u16, &str)] = &[$(($number, $path),)*];
    };
}

methods! {
    RANGE = 0, unary, "/etcdserverpb.KV/Range";
    PUT = 1, unary, "/etcdserverpb.KV/Put";
    DELETE_RANGE = 2, unary, "/etcdserverpb.KV/DeleteRange";
    TXN = 3, unary, "/etcdserverpb.KV/Txn";
    COMPACT = 4, unary, "/etcdserverpb.KV/Compact";
    RANGE_STREAM = 5, streaming, "/etcdserverpb.KV/RangeStream";
    WATCH = 6, streaming, "/etcdserverpb.Watch/Watch";
    LEASE_GRANT = 7, unary, "/etcdserverpb.Lease/LeaseGrant";
    LEASE_REVOKE = 8, unary, "/etcdserverpb.Lease/LeaseRevoke";
    LEASE_KEEP_ALIVE = 9, streaming, "/etcdserverpb.Lease/LeaseKeepAlive";
    LEASE_TIME_TO_LIVE = 10, unary, "/etcdserverpb.Lease/LeaseTimeToLive";
    LEASE_LEASES = 11, unary, "/etcdserverpb.Lease/LeaseLeases";
    MEMBER_ADD = 12, unary, "/etcdserverpb.Cluster/MemberAdd";
    MEMBER_REMOVE = 13, unary, "/etcdserverpb.Cluster/MemberRemove";
    MEMBER_UPDATE = 14, unary, "/etcdserverpb.Cluster/MemberUpdate";
    MEMBER_LIST = 15, unary, "/etcdserverpb.Cluster/MemberList";
    MEMBER_PROMOTE = 16, unary, "/etcdserverpb.Cluster/MemberPromote";
    ALARM = 17, unary, "/etcdserverpb.Maintenance/Alarm";
    STATUS = 18, unary, "/etcdserverpb.Maintenance/Status";
    DEFRAGMENT = 19, unary, "/etcdserverpb.Maintenance/Defragment";
    HASH = 20, unary, "/etcdserverpb.Maintenance/Hash";
    HASH_KV = 21, unary, "/etcdserverpb.Maintenance/HashKV";
    SNAPSHOT = 22, streaming, "/etcdserverpb.Maintenance/Snapshot";
    MOVE_LEADER = 23, unary, "/etcdserverpb.Maintenance/MoveLeader";
    DOWNGRADE = 24, unary, "/etcdserverpb.Maintenance/Downgrade";
    HEALTH_CHECK = 25, unary, "/grpc.health.v1.Health/Check";
    ADMIN_STATUS = 26, unary, "/centra.chainfire.v1.Admin/Status";
    ADMIN_MEMBER_ADD = 27, unary, "/centra.chainfire.v1.Admin/MemberAdd";
    ADMIN_MEMBER_PROMOTE = 28, unary, "/centra.chainfire.v1.Admin/MemberPromote";
    ADMIN_MEMBER_REMOVE = 29, unary, "/centra.chainfire.v1.Admin/MemberRemove";
    ADMIN_MEMBER_REPLACE = 30, unary, "/centra.chainfire.v1.Admin/MemberReplace";
    ADMIN_CHANGES = 31, streaming, "/centra.chainfire.v1.Admin/Changes";
    ADMIN_SCRUB = 32, unary, "/centra.chainfire.v1.Admin/Scrub";
}

impl Service for Api {
    fn resolve(&self, path: &str) -> Option<Method> {
        resolve(path)
    }

    fn unary(self: &Arc<Self>, number: u16, call: Call, message: Bytes) -> Answer {
        let counted = self.metrics.call(number);
        // The KV service tells of its slow requests itself: it knows where their time went.
        let unknown = if number > method::COMPACT { Some((self.clone(), Instant::now())) } else { None };
        match self.answer(number, &call, message) {
            Answer::Ready(result) => {
                counted.done(code(&result));
                Answer::Ready(result)
            }
            Answer::Later(future) => Answer::later(async move {
                let result = future.await;
                counted.done(code(&result));
                if let Some((api, began)) = unknown {
                    api.note_slow(slow::method_name(METHODS[usize::from(number)].1), began.elapsed(), String::new);
                }
                result
            }),
        }
    }

    fn streaming(
        self: &Arc<Self>,
        number: u16,
        call: Call,
        requests: RequestStream,
        responses: ResponseSink,
    ) -> BoxFuture<Result<(), Status>> {
        let counted = self.metrics.call(number);
        if let Err(error) = self.has_leader(&call) {
            counted.done(error.code.number());
            return Box::pin(std::future::ready(Err(error)));
        }
        let api = self.clone();
        let running: BoxFuture<Result<(), Status>> = match number {
            method::WATCH => Box::pin(api.watch(call, requests, responses)),
            method::LEASE_KEEP_ALIVE => Box::pin(api.lease_keep_alive(requests, responses)),
            method::RANGE_STREAM => Box::pin(api.range_stream(requests, responses)),
            method::SNAPSHOT => Box::pin(api.snapshot(call, responses)),
            method::ADMIN_CHANGES => Box::pin(api.changes(requests, responses)),
            other => unreachable!("method {other} is in the table but in no room"),
        };
        Box::pin(async move {
            let result = running.await;
            counted.done(code(&result));
            result
        })
    }

    fn http(self: &Arc<Self>, _call: Call, request: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>> {
        Box::pin(self.clone().page(request))
    }
}

/// The gRPC code that a call ends with.
fn code<T>(result: &Result<T, Status>) -> u32 {
    result.as_ref().err().map_or(0, |error| error.code.number())
}

impl Api {
    /// The answer to a unary call, from the room that its number names.
    fn answer(self: &Arc<Self>, number: u16, call: &Call, message: Bytes) -> Answer {
        if let Err(error) = self.has_leader(call) {
            return Answer::Ready(Err(error));
        }
        match number {
            method::RANGE => self.range(message),
            method::PUT => self.put(message),
            method::DELETE_RANGE => self.delete_range(message),
            method::TXN => self.txn(message),
            method::COMPACT => self.compact(message),
            method::LEASE_GRANT => Answer::later(self.clone().lease_grant(message)),
            method::LEASE_REVOKE => Answer::later(self.clone().lease_revoke(message)),
            method::LEASE_TIME_TO_LIVE => Answer::later(self.clone().lease_time_to_live(message)),
            method::LEASE_LEASES => Answer::later(self.clone().lease_leases()),
            method::MEMBER_ADD => Answer::later(self.clone().member_add(message)),
            method::MEMBER_REMOVE => Answer::later(self.clone().member_remove(message)),
            method::MEMBER_UPDATE => Answer::later(self.clone().member_update(message)),
            method::MEMBER_LIST => Answer::later(self.clone().member_list(message)),
            method::MEMBER_PROMOTE => Answer::later(self.clone().member_promote(message)),
            method::ALARM => Answer::later(self.clone().alarm(message)),
            method::STATUS => Answer::Ready(self.status()),
            method::DEFRAGMENT => Answer::later(self.clone().defragment()),
            method::HASH => Answer::Ready(self.hash()),
            method::HASH_KV => Answer::later(self.clone().hash_kv(message)),
            method::MOVE_LEADER => Answer::later(self.clone().move_leader(message)),
            method::DOWNGRADE => Answer::Ready(self.downgrade(message)),
            method::HEALTH_CHECK => Answer::Ready(self.health_check()),
            method::ADMIN_STATUS => Answer::Ready(self.admin_status()),
            method::ADMIN_MEMBER_ADD => Answer::later(self.clone().admin_member_add(message)),
            method::ADMIN_MEMBER_PROMOTE => Answer::later(self.clone().admin_member_promote(message)),
            method::ADMIN_MEMBER_REMOVE => Answer::later(self.clone().admin_member_remove(message)),
            method::ADMIN_MEMBER_REPLACE => Answer::later(self.clone().admin_member_replace(message)),
            method::ADMIN_SCRUB => Answer::Ready(self.admin_scrub(message)),
            other => unreachable!("method {other} is in the table but in no room"),
        }
    }

    /// Clients that demand a leader get an error at once when there is none.
    fn has_leader(&self, call: &Call) -> Result<(), Status> {
        let demanded = call.metadata.get("hasleader") == Some(b"true");
        if demanded && self.handle.status().leader.is_none() {
            return Err(status_of(ApiError::NoLeader));
        }
        Ok(())
    }

    /// The store; there is none while this node belongs to no cluster, and none for anybody once it is quarantined.
    fn store(&self) -> Result<Arc<Store>, Status> {
        let sound = !self.handle.health().is_quarantined();
        self.stores.get().filter(|_| sound).ok_or_else(|| status_of(ApiError::NoLeader))
    }

    fn current(&self) -> Result<Arc<StateView>, Status> {
        let store = self.store()?;
        if !self.handle.is_replayed() {
            return Err(Status::unavailable("etcdserver: this node still applies its log; ask again, or ask another"));
        }
        let view = store.reader.current();
        if view.is_readable() { Ok(view) } else { Err(status_of(ApiError::NoLeader)) }
    }

    /// Waits until everything that was committed before the call can be read here.
    async fn linearize(&self) -> Result<node::ReadGrant, Status> {
        self.handle.read().await.map_err(refused)
    }

    /// Proposes a command and takes its outcome's body.
    async fn propose(&self, command: Bytes) -> Result<Bytes, Status> {
        self.propose_traced(command).await.0
    }

    /// As [`Api::propose`]; with how long it took.
    async fn propose_traced(&self, command: Bytes) -> (Result<Bytes, Status>, slow::Way) {
        let began = Instant::now();
        let proposed = self.handle.propose_traced(command).await;
        let took = began.elapsed();
        match proposed {
            Ok((outcome, index)) => {
                self.metrics.write_done(took);
                (Self::body(outcome), slow::Way { took, index: Some(index) })
            }
            Err(why) => {
                self.metrics.write_failed();
                (Err(refused(why)), slow::Way { took, index: None })
            }
        }
    }

    fn body(outcome: consensus::Outcome) -> Result<Bytes, Status> {
        match ApiError::from_code(outcome.code) {
            Some(error) => Err(status_of(error)),
            None if outcome.code != 0 => Err(Status::internal("an outcome of a later version")),
            None => Ok(outcome.body),
        }
    }
}
