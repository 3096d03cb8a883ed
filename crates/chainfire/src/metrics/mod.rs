//! The page at `/metrics`: our own names, etcd's main names beside them, and the process's figures.
//!
//! The parts below keep plain counters ([`Sources`]) and know nothing of metrics; this file alone gives them names. What
//! happens per request is counted here ([`Metrics`]) with two relaxed additions, no lock and no clock.
//!
//! Under etcd's name `etcd_disk_backend_commit_duration_seconds` stands what comes closest here: the time in which a batch
//! of entries is put into the state, which is not synced on the way of a write. etcd calls some counters gauges
//! (`etcd_server_proposals_committed_total`); here they are counters.

mod healing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::NodeId;
use consensus::{GroupStatus, MemberRole, Membership, Role};
use gossip::State;
use node::DriverStats;
use node::heal::Health;
use node::metrics::calls::{CANCELED, Calls};
use node::metrics::common::Common;
use node::metrics::histogram::REQUEST_BOUNDS_US;
use node::metrics::{Histogram, Observed, Page, by_powers, get, labels, process};
use node::refused::RefusedStats;
use node::scrub::ScrubProgress;
use node::tls::TlsStats;
use parking_lot::Mutex;
use rpc::server::ServerStats;
use storage::log::LogStats;

use crate::api::{ETCD_VERSION, METHODS};
use crate::live::ReloadStats;
use crate::read::StoreStats;
use crate::watch::WatchStats;

/// Counted where requests are answered.
pub struct Metrics {
    writes: Histogram,
    writes_failed: AtomicU64,
    calls: Vec<Calls>,
    /// By the node at the other end.
    round_trips: Mutex<BTreeMap<NodeId, Histogram>>,
}

/// Where the page's other figures come from, as of the moment.
pub struct Sources<'a> {
    pub driver: &'a DriverStats,
    pub health: &'a Health,
    pub scrub: ScrubProgress,
    pub group: &'a GroupStatus,
    pub membership: &'a Membership,
    pub log: &'a LogStats,
    /// Bytes sent to nodes and received from them.
    pub traffic: Vec<(NodeId, u64, u64)>,
    /// Connections on the Raft port that were not taken.
    pub peers_refused: RefusedStats,
    pub gossip: &'a node::gossip::View,
    /// None without certificates.
    pub tls: Option<TlsStats>,
    /// None while the node belongs to no cluster.
    pub store: Option<StoreStats>,
    /// None while the node belongs to no cluster.
    pub watch: Option<WatchStats>,
    pub server: ServerStats,
    /// Zero: unlimited.
    pub quota_bytes: u64,
    pub slow_requests: u64,
    pub reloads: ReloadStats,
    /// (free, total) bytes of the disk under the data folder.
    pub disk: Option<(u64, u64)>,
}

/// A call under way. Dropped before it is done, it counts as canceled: whoever asked went away.
pub struct CallCount {
    metrics: Arc<Metrics>,
    method: u16,
    code: u32,
}

impl CallCount {
    /// The call has ended with this gRPC code.
    pub fn done(mut self, code: u32) {
        self.code = code;
    }
}

impl Drop for CallCount {
    fn drop(&mut self) {
        if let Some(calls) = self.metrics.calls.get(usize::from(self.method)) {
            calls.ended(self.code);
        }
    }
}

impl Default for Metrics {
    fn default() -> Metrics {
        let calls = METHODS.iter().map(|_| Calls::default()).collect();
        Metrics {
            writes: Histogram::new(&REQUEST_BOUNDS_US),
            writes_failed: AtomicU64::new(0),
            calls,
            round_trips: Mutex::default(),
        }
    }
}

impl Metrics {
    /// A write was replicated and applied, whatever its outcome, in this time.
    pub fn write_done(&self, took: Duration) {
        self.writes.observe(took);
    }

    /// A write was refused, or nobody knows what became of it.
    pub fn write_failed(&self) {
        self.writes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Another member has answered in this time.
    pub fn round_trip(&self, node: NodeId, took: Duration) {
        let mut trips = self.round_trips.lock();
        trips.entry(node).or_insert_with(|| Histogram::new(&ROUND_TRIP_BOUNDS_US)).observe(took);
    }

    /// A call of a method, by its number, begins.
    pub fn call(self: &Arc<Metrics>, method: u16) -> CallCount {
        if let Some(calls) = self.calls.get(usize::from(method)) {
            calls.started.fetch_add(1, Ordering::Relaxed);
        }
        CallCount { metrics: self.clone(), method, code: CANCELED }
    }

    /// The page.
    pub fn render(&self, sources: &Sources) -> String {
        let mut page = Page::default();
        self.ours(&mut page, sources);
        self.etcds(&mut page, sources);
        self.grpc(&mut page);
        process::add(&mut page);
        page.text()
    }

    fn ours(&self, page: &mut Page, sources: &Sources) {
        let Sources { driver, log, server, .. } = sources;
        let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
        page.gauges("chainfire_build_info", "The version that runs; always 1.", [(version, 1)]);
        let help = "From a write's arrival to its answer.";
        page.histogram("chainfire_write_duration_seconds", help, &self.writes.read());
        let slow = sources.slow_requests;
        page.counter("chainfire_slow_requests_total", "Requests that took log.slow_request_ms or longer.", slow);
        raft(page, sources);
        let mut common = Common { page, prefix: "chainfire" };
        common.snapshots(driver);
        common.disk(sources.disk);
        reloads(page, &sources.reloads);
        Common { page, prefix: "chainfire" }.log(log, driver);
        traffic(page, sources);
        Common { page, prefix: "chainfire" }.peers_refused(&sources.peers_refused);
        gossip(page, sources.gossip);
        if let Some(tls) = &sources.tls {
            Common { page, prefix: "chainfire" }.certificates(tls);
        }
        if let Some(store) = &sources.store {
            state(page, store);
        }
        if let Some(watch) = &sources.watch {
            watching(page, watch);
        }
        healing::add(page, sources.health, &sources.scrub);
        page.gauge("chainfire_connections_open", "Client connections.", server.connections_open);
        page.counter("chainfire_connections_accepted_total", "Connections taken.", server.connections_accepted);
        page.counter(
            "chainfire_connections_refused_total",
            "Connections beyond the bounds.",
            server.connections_refused,
        );
        page.counter(
            "chainfire_streams_refused_total",
            "Calls beyond those that one connection may have open.",
            server.streams_refused,
        );
    }

    fn etcds(&self, page: &mut Page, sources: &Sources) {
        let Sources { driver, group, membership, .. } = sources;
        let me = membership.by_peer(group.peer);
        let learner = me.is_some_and(|member| member.role == MemberRole::Learner);
        let id = labels(&[("server_id", &me.map(|member| format!("{:x}", member.node.0)).unwrap_or_default())]);
        page.gauges("etcd_server_id", "The member's id; always 1.", [(id, 1)]);
        let version = labels(&[("server_version", ETCD_VERSION)]);
        page.gauges("etcd_server_version", "The version of etcd that this behaves like; always 1.", [(version, 1)]);
        page.gauge("etcd_server_has_leader", "Whether a leader is known.", u8::from(!group.leader.is_none()));
        page.gauge("etcd_server_is_leader", "Whether this member leads.", u8::from(group.role == Role::Leader));
        page.gauge("etcd_server_is_learner", "Whether this member is a learner.", u8::from(learner));
        let changes = get(&driver.leader_changes);
        page.counter("etcd_server_leader_changes_seen_total", "Leaders that this process has seen come.", changes);
        page.counter("etcd_server_proposals_committed_total", "Index of the last committed entry.", group.committed);
        page.counter("etcd_server_proposals_applied_total", "Index of the last applied entry.", group.applied);
        page.gauge("etcd_server_proposals_pending", "Proposals that wait for their commit.", group.pending_proposals);
        let failed = get(&self.writes_failed);
        page.counter("etcd_server_proposals_failed_total", "Proposals refused or timed out.", failed);
        // Without a limit there is nothing that could be used up.
        if sources.quota_bytes > 0 {
            page.gauge("etcd_server_quota_backend_bytes", "The store's largest size.", sources.quota_bytes);
        }
        let help = "Writes of the Raft log with their fsync.";
        page.histogram("etcd_disk_wal_fsync_duration_seconds", help, &by_powers(&driver.syncs));
        let help = "Batches of committed entries put into the state.";
        page.histogram("etcd_disk_backend_commit_duration_seconds", help, &by_powers(&driver.applies));
        let trips = self.round_trips.lock();
        let known = trips.iter().filter(|(node, _)| membership.members.contains_key(node));
        let trips: Vec<(String, Observed)> =
            known.map(|(node, seen)| (labels(&[("To", &format!("{:x}", node.0))]), seen.read())).collect();
        let help = "A question to another member and its answer.";
        let trips = trips.iter().map(|(labels, seen)| (labels.clone(), seen));
        page.histograms("etcd_network_peer_round_trip_time_seconds", help, trips);
        if let Some(store) = &sources.store {
            let engine = &store.engine;
            page.gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the store.", engine.total_bytes);
            page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Live data in the store.", engine.live_bytes);
        }
    }

    fn grpc(&self, page: &mut Page) {
        let all = || METHODS.iter().zip(&self.calls);
        let started = all().map(|((_, path), calls)| (labels(&method(path)), get(&calls.started)));
        page.counters("grpc_server_started_total", "Calls begun.", started);
        let done = all().flat_map(|((_, path), calls)| {
            calls.by_code().map(move |(code, count)| {
                let [name, service, kind] = method(path);
                (labels(&[("grpc_code", code), name, service, kind]), count)
            })
        });
        page.counters("grpc_server_handled_total", "Calls ended, by code.", done);
    }
}

fn gossip(page: &mut Page, view: &node::gossip::View) {
    let count = |state| view.members.iter().filter(|member| member.state == state).count();
    let members = State::ALL.map(|state| (labels(&[("state", state.name())]), count(state)));
    page.gauges("chainfire_gossip_members", "Nodes that gossip knows, this one included, by state.", members);
    let node::gossip::View { stats, dropped, refused: connections, .. } = view;
    page.counter("chainfire_gossip_messages_received_total", "Gossip messages taken in.", stats.received);
    page.counter("chainfire_gossip_messages_sent_total", "Gossip messages sent.", stats.sent);
    page.counter("chainfire_gossip_messages_dropped_total", "Gossip messages that found no place in a queue.", dropped);
    let refused = [
        (labels(&[("why", "malformed")]), stats.malformed),
        (labels(&[("why", "other_cluster")]), stats.other_cluster),
        (labels(&[("why", "too_many_members")]), stats.beyond_members_max),
    ];
    page.counters("chainfire_gossip_messages_refused_total", "Gossip messages refused.", refused);
    let help = "Connections on the gossip port that were not taken, by why.";
    let mut common = Common { page, prefix: "chainfire" };
    common.connections_refused("gossip_connections_refused_total", help, connections);
    page.counter("chainfire_gossip_renewals_total", "Times that others took this node for dead.", stats.renewals);
    page.counter("chainfire_gossip_late_total", "Times that this node's gossip was held up.", stats.late);
}

/// Of the members that there are; those that left take their figures with them.
fn traffic(page: &mut Page, sources: &Sources) {
    let Sources { membership, group, traffic, .. } = sources;
    let others = membership.members.values().filter(|member| member.peer != group.peer).map(|member| member.node);
    let counted = others.filter_map(|node| traffic.iter().find(|(counted, ..)| *counted == node));
    let counted: Vec<_> =
        counted.map(|(node, sent, received)| (labels(&[("peer", &node.to_string())]), sent, received)).collect();
    let sent = counted.iter().map(|(labels, sent, _)| (labels.clone(), sent));
    let help = "Bytes sent to a member on the Raft port, before encryption.";
    page.counters("chainfire_network_peer_sent_bytes_total", help, sent);
    let received = counted.iter().map(|(labels, _, received)| (labels.clone(), received));
    let help = "Bytes received from a member on the Raft port, after decryption.";
    page.counters("chainfire_network_peer_received_bytes_total", help, received);
}

fn raft(page: &mut Page, sources: &Sources) {
    let Sources { driver, group, membership, .. } = sources;
    let role = labels(&[("role", group.role.name())]);
    page.gauges("chainfire_raft_index", "Index of the last committed entry.", [(role, group.committed)]);
    page.gauge("chainfire_raft_term", "The current term.", group.term);
    page.gauge("chainfire_has_leader", "Whether a leader is known.", u8::from(!group.leader.is_none()));
    page.gauge("chainfire_raft_first_index", "Index of the first entry kept.", group.first);
    page.gauge("chainfire_raft_last_index", "Index of the last entry.", group.last);
    page.gauge("chainfire_raft_applied_index", "Index of the last applied entry.", group.applied);
    page.gauge("chainfire_raft_durable_index", "Index up to which the state survives a power cut.", group.durable);
    let peer = |peer: &base::PeerId| match membership.by_peer(*peer) {
        Some(member) => member.node.to_string(),
        None => peer.to_string(),
    };
    let followers = || group.followers.iter().filter(|(id, ..)| *id != group.peer);
    let lag = followers().map(|(id, index, _)| (labels(&[("peer", &peer(id))]), group.last.saturating_sub(*index)));
    let help = "Entries of the leader's log that a follower is not known to have; told by the leader.";
    page.gauges("chainfire_raft_follower_lag_entries", help, lag);
    let active = followers().map(|(id, _, active)| (labels(&[("peer", &peer(id))]), u8::from(*active)));
    page.gauges("chainfire_raft_follower_active", "Whether the leader has heard of a follower lately.", active);
    let mismatches = get(&driver.hash_mismatches);
    page.counter("chainfire_raft_hash_mismatches_total", "Times that a replica was found to differ.", mismatches);
    page.counter("chainfire_raft_turns_total", "Turns of the consensus host.", get(&driver.turns));
    let applied = get(&driver.applied_entries);
    page.counter("chainfire_raft_applied_entries_total", "Entries applied by this process.", applied);
}

fn state(page: &mut Page, store: &StoreStats) {
    let engine = &store.engine;
    page.gauge("chainfire_keys", "Live keys.", store.keys);
    page.gauge("chainfire_revision", "The store's revision.", store.revision);
    page.gauge("chainfire_compact_revision", "The compacted revision; -1 for none.", store.compacted);
    Common { page, prefix: "chainfire" }.engine(engine);
}

fn watching(page: &mut Page, watch: &WatchStats) {
    page.gauge("chainfire_watch_streams", "Open watch streams.", watch.streams);
    page.gauge("chainfire_watchers", "Watchers on them.", watch.watchers);
    page.gauge("chainfire_watchers_lagging", "Watchers that read the past.", watch.watchers_lagging);
    page.gauge("chainfire_watch_batches_waiting", "Applied batches not yet dispatched.", watch.batches_waiting);
    page.counter("chainfire_watch_events_sent_total", "Events sent.", watch.events_sent);
    page.counter("chainfire_watch_responses_sent_total", "Responses sent.", watch.responses_sent);
    page.counter(
        "chainfire_watch_fall_backs_total",
        "Times that a slow stream fell back to reading.",
        watch.fall_backs,
    );
    page.counter("chainfire_watch_history_reads_total", "Reads of the past for watchers.", watch.history_reads);
    page.counter("chainfire_watch_streams_refused_total", "Watch streams beyond the bound.", watch.streams_refused);
    page.counter("chainfire_watchers_refused_total", "Watchers beyond the bounds.", watch.watchers_refused);
}

fn reloads(page: &mut Page, reloads: &ReloadStats) {
    let ok = u8::from(!reloads.last_failed);
    page.gauge("chainfire_config_last_reload_successful", "Whether the last reading of the configuration worked.", ok);
    page.gauge(
        "chainfire_config_read_timestamp_seconds",
        "When the configuration in force was read, in seconds since 1970.",
        reloads.read_unix_s,
    );
    page.counter("chainfire_config_reloads_total", "Times that the configuration was read again.", reloads.done);
    page.counter(
        "chainfire_config_reloads_failed_total",
        "Times that it was not understood and the old one stayed.",
        reloads.failed,
    );
}

/// (method, service, type), as labels.
fn method(path: &'static str) -> [(&'static str, &'static str); 3] {
    let (service, name) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let kind = match name {
        "Watch" | "LeaseKeepAlive" => "bidi_stream",
        "RangeStream" | "Snapshot" => "server_stream",
        _ => "unary",
    };
    [("grpc_method", name), ("grpc_service", service), ("grpc_type", kind)]
}

/// etcd's bounds.
const ROUND_TRIP_BOUNDS_US: [u64; 16] = [
    100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 51_200, 102_400, 204_800, 409_600, 819_200, 1_638_400,
    3_276_800,
];

#[cfg(test)]
mod tests;
