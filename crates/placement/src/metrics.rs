//! A member's numbers, in Prometheus' text format.
//!
//! What only the leader knows (stores, regions, operators) only the leader exports: a sum over the members counts it once. A
//! dead store cannot tell of its own death, so that `flaredb_store_state` stands here.

use std::collections::BTreeMap;

use consensus::{GroupStatus, Membership, Role};
use node::DriverStats;
use node::heal::What;
use node::metrics::calls::Methods;
use node::metrics::common::Common;
use node::metrics::{Page, get, labels, process};
use node::refused::RefusedStats;
use node::scrub::ScrubProgress;
use node::tls::TlsStats;
use storage::engine::EngineStats;
use storage::log::LogStats;

use crate::counters::Counters;
use crate::term::Term;
use crate::view::{Health, Store, StoreState};

/// Where the page's figures come from, as of the moment.
pub struct Sources<'a> {
    pub group: &'a GroupStatus,
    pub membership: &'a Membership,
    pub counters: &'a Counters,
    pub requests: &'a Methods,
    /// The leader's, and the time.
    pub term: Option<(&'a Term, base::Time)>,
    /// None before the node runs.
    pub node: Option<NodeSources>,
}

/// What the node under the member tells.
pub struct NodeSources {
    pub driver: std::sync::Arc<DriverStats>,
    pub log: LogStats,
    /// None while the member belongs to no cluster.
    pub engine: Option<EngineStats>,
    pub scrub: ScrubProgress,
    /// See [`node::heal::Health::repaired_unix_s`].
    pub repaired: Vec<(What, u64)>,
    pub disk: Option<(u64, u64)>,
    /// Connections on the Raft port that were not taken.
    pub peers_refused: RefusedStats,
    /// None without certificates.
    pub tls: Option<TlsStats>,
}

pub fn page(sources: &Sources) -> String {
    let Sources { group, membership, counters, .. } = sources;
    let mut page = Page::default();
    let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
    page.gauges("placement_build_info", "The version that runs; always 1.", [(version, 1)]);
    let leads = u8::from(group.role == Role::Leader);
    page.gauge("placement_is_leader", "Whether this member leads the placement driver.", leads);
    let has_leader = u8::from(!group.leader.is_none());
    page.gauge("placement_has_leader", "Whether this member knows a leader.", has_leader);
    let members = membership.members.len();
    page.gauge("placement_members", "Members of the placement driver.", members);
    page.gauge("placement_raft_term", "The current term.", group.term);
    page.gauge("placement_raft_index", "Index of the last committed entry.", group.committed);
    page.gauge("placement_raft_applied_index", "Index of the last applied entry.", group.applied);
    let followers = group.followers.iter().filter(|(peer, ..)| *peer != group.peer);
    let lag = followers.filter_map(|(peer, index, _)| {
        let node = membership.node_of(*peer)?;
        Some((labels(&[("peer", &node.to_string())]), group.last.saturating_sub(*index)))
    });
    let help = "Entries of the leader's log that a member is not known to have; told by the leader.";
    page.gauges("placement_raft_follower_lag_entries", help, lag);
    sources.requests.add(&mut page, "placement");
    page.counter("placement_heartbeats_total", "Heartbeats of stores.", get(&counters.heartbeats));
    let refused = get(&counters.registrations_refused);
    page.counter("placement_registrations_refused_total", "Stores that were not let in.", refused);
    let help = "Rounds of planning: how long each took.";
    page.histogram("placement_round_duration_seconds", help, &counters.rounds.read());
    let begun = counters.operators_begun().into_iter().map(|(cause, count)| (labels(&[("cause", cause)]), count));
    page.counters("placement_operators_begun_total", "Operators begun, by cause.", begun);
    let ended = counters.operators_ended().into_iter();
    let ended = ended.map(|((cause, outcome), count)| (labels(&[("cause", cause), ("outcome", outcome)]), count));
    page.counters("placement_operators_ended_total", "Operators that are over, by cause and outcome.", ended);
    if let Some((term, now)) = sources.term {
        stores(&mut page, term, now);
        regions(&mut page, term, now);
        operators(&mut page, term, counters);
    }
    if let Some(node) = &sources.node {
        let mut common = Common { page: &mut page, prefix: "placement" };
        common.durations(&node.driver);
        common.log(&node.log, &node.driver);
        common.snapshots(&node.driver);
        common.disk(node.disk);
        common.peers_refused(&node.peers_refused);
        common.scrub(&node.scrub);
        common.last_repairs(node.repaired.iter().copied());
        if let Some(engine) = &node.engine {
            common.engine(engine);
        }
        if let Some(tls) = &node.tls {
            common.certificates(tls);
        }
    }
    process::add(&mut page);
    page.text()
}

fn stores(page: &mut Page, term: &Term, now: base::Time) {
    let standing = || term.view.stores().filter(|store| store.meta.state != StoreState::Tombstone);
    let each = |of: &dyn Fn(&Store) -> f64| -> Vec<(String, f64)> {
        standing().map(|store| (labels(&[("store_id", &store.id().to_string())]), of(store))).collect()
    };
    let health = |store: &Store| store.health(now, &term.policy);
    let up = |store: &Store| f64::from(u8::from(health(store) == Health::Connected));
    page.gauges("flaredb_store_state", "1 while the store is heard of, 0 otherwise.", each(&up));
    let mut by_state = BTreeMap::from([("up", 0), ("disconnected", 0), ("down", 0), ("offline", 0)]);
    for store in standing() {
        let state = match (store.meta.state, health(store)) {
            (_, Health::Down(_)) => "down",
            (StoreState::Offline, _) => "offline",
            (_, Health::Disconnected(_)) => "disconnected",
            _ => "up",
        };
        *by_state.entry(state).or_default() += 1;
    }
    let by_state = by_state.into_iter().map(|(state, count)| (labels(&[("state", state)]), count));
    page.gauges("placement_stores", "Stores by state, those that were removed left out.", by_state);
    let age = each(&|store| store.silent_for(now).as_secs_f64());
    page.gauges("flaredb_store_heartbeat_age_seconds", "Since a store was last heard of.", age);
    let capacity = each(&|store| store.report.capacity_bytes as f64);
    page.gauges("flaredb_store_capacity_bytes", "Size of the store's file system.", capacity);
    let available = each(&|store| store.report.available_bytes as f64);
    page.gauges("flaredb_store_available_bytes", "Bytes that are free there.", available);
    let held = each(&|store| store.region_count() as f64);
    page.gauges("flaredb_store_regions", "Replicas of regions on the store.", held);
    let led = each(&|store| store.leader_count() as f64);
    page.gauges("flaredb_store_leaders", "Regions led by the store.", led);
    let requests = each(&|store| store.report.rates.requests as f64);
    page.gauges("flaredb_store_requests_per_second", "Reads and single writes, replicas' included.", requests);
    let read = each(&|store| store.report.rates.read_bytes as f64);
    page.gauges("flaredb_store_read_bytes_per_second", "Read for clients by the store.", read);
    let written = each(&|store| store.report.rates.write_bytes as f64);
    page.gauges("flaredb_store_write_bytes_per_second", "Written to replicas on the store.", written);
    let slow = each(&|store| f64::from(u8::from(store.report.slow)));
    page.gauges("flaredb_store_slow", "Whether the store's disk does not answer.", slow);
}

fn regions(page: &mut Page, term: &Term, now: base::Time) {
    let wanted = term.policy.max_replicas as usize;
    let (mut pending, mut down, mut learners) = (0, 0, 0);
    let (mut missing, mut extra, mut leaderless, mut unheard) = (0, 0, 0, 0);
    for region in term.view.regions() {
        pending += region.pending.len();
        down += region.down.len();
        learners += region.peers.iter().filter(|peer| peer.learner).count();
        let voters = region.peers.iter().filter(|peer| !peer.learner).count();
        missing += usize::from(voters < wanted);
        extra += usize::from(voters > wanted);
        leaderless += usize::from(term.view.leader_of(region, now, &term.policy).is_none());
        unheard += usize::from(region.heard.is_none());
    }
    let help = "Replicas that have not caught up with their leaders.";
    page.gauge("flaredb_pending_peers", help, pending);
    page.gauge("flaredb_pending_peers_total", "The same under another name; a gauge, too.", pending);
    page.gauge("flaredb_down_peers", "Replicas that do not answer their leaders.", down);
    page.gauge("flaredb_learner_peers", "Replicas that do not vote yet.", learners);
    let hot = term.view.regions().filter(|region| region.is_hot()).count();
    page.gauge("flaredb_hot_regions", "Regions that carry far more than the average.", hot);
    page.gauge("placement_regions", "Regions of the cluster.", term.view.region_count());
    let unwell =
        [("missing-replica", missing), ("extra-replica", extra), ("leaderless", leaderless), ("not-reported", unheard)];
    let unwell = unwell.map(|(why, count)| (labels(&[("why", why)]), count));
    page.gauges("placement_regions_unwell", "Regions that are not as they should be, by why.", unwell);
}

fn operators(page: &mut Page, term: &Term, counters: &Counters) {
    page.gauge("placement_operators", "Operators under way.", term.view.flights().count());
    let mut under_way: BTreeMap<&'static str, u64> = BTreeMap::new();
    for flight in term.view.flights() {
        *under_way.entry(flight.operator.cause.name()).or_default() += 1;
    }
    let under_way = under_way.into_iter().map(|(cause, count)| (labels(&[("cause", cause)]), count));
    page.gauges("placement_operators_by_cause", "Operators under way, by cause.", under_way);
    let blocked = counters.blocked().into_iter().map(|(why, count)| (labels(&[("why", why)]), count));
    let help = "Regions that could not have what they need in the last round, by what stood in the way.";
    page.gauges("placement_regions_blocked", help, blocked);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use base::{GroupId, NodeId, PeerId, Time};
    use node::metrics::reference::{mistakes, table};
    use node::refused::{Refused, Why};
    use node::tls::{Expiry, FileKind};

    use super::*;
    use crate::Policy;
    use crate::machine::Records;
    use crate::model::{Cause, Epoch, Peer};
    use crate::plan::RoundStats;
    use crate::view::{RegionReport, StoreMeta, StoreReport};

    /// Store 1 is heard of, store 2 was not for 21 s, store 3 was removed; a region on the first two.
    fn term() -> Term {
        let (counters, now) = (Arc::<Counters>::default(), Time::from_millis(21_000));
        let mut term = Term::new(4, &Records::default(), &Policy::default(), Time::ZERO, counters).unwrap();
        for store in 1..=3 {
            term.view.put_store(StoreMeta::new(NodeId(store)), Time::ZERO);
        }
        term.view.put_store(StoreMeta { state: StoreState::Tombstone, ..StoreMeta::new(NodeId(3)) }, now);
        term.view.report_store(NodeId(1), StoreReport { capacity_bytes: 9, ..StoreReport::default() }, now).unwrap();
        let peer = |store| Peer { id: PeerId(store + 10), store: NodeId(store), learner: false };
        let report = RegionReport {
            id: GroupId(7),
            epoch: Epoch { conf_version: 1, version: 1 },
            peers: vec![peer(1), peer(2)],
            leader: Some(NodeId(1)),
            pending: vec![NodeId(2)],
            ..RegionReport::default()
        };
        term.view.report_region(report, now).unwrap();
        term
    }

    fn full() -> String {
        let counters = Counters::default();
        counters.begun(Cause::Split);
        counters.ended(Cause::Split, "done");
        let stats = RoundStats { blocked: BTreeMap::from([("no-candidate", 2)]), ..RoundStats::default() };
        counters.round(Duration::from_millis(3), &stats, Time::ZERO);
        let requests = Methods::new(&["Register", "Heartbeat"]);
        requests.begin(1).ends(0);
        let turned_away = Refused::default();
        turned_away.count(Why::TooMany);
        let term = term();
        page(&Sources {
            group: &GroupStatus { role: Role::Leader, leader: PeerId(1), term: 4, ..GroupStatus::default() },
            membership: &Membership::default(),
            counters: &counters,
            requests: &requests,
            term: Some((&term, Time::from_millis(21_000))),
            node: Some(NodeSources {
                driver: Arc::default(),
                log: LogStats::default(),
                engine: Some(EngineStats::default()),
                scrub: ScrubProgress::default(),
                repaired: What::ALL.map(|what| (what, 0)).to_vec(),
                disk: Some((1, 2)),
                peers_refused: turned_away.stats(),
                tls: Some(TlsStats {
                    files: [(FileKind::Certificate, 1_900_000_000), (FileKind::Crl, 1_800_000_000)]
                        .map(|(kind, expires_s)| Expiry { kind, path: Default::default(), expires_s })
                        .to_vec(),
                    reloads: 2,
                    failed_reloads: 1,
                }),
            }),
        })
    }

    #[test]
    fn the_page_of_a_leader() {
        let text = full();
        // What the runbook asks for as a counter and as a gauge is a gauge.
        assert_eq!(mistakes(&text, &["flaredb_pending_peers_total"]), Vec::<String>::new());
        for line in [
            "placement_is_leader 1",
            "flaredb_store_state{store_id=\"1\"} 1",
            "flaredb_store_state{store_id=\"2\"} 0",
            "placement_stores{state=\"disconnected\"} 1",
            "flaredb_store_heartbeat_age_seconds{store_id=\"2\"} 21",
            "placement_regions 1",
            "placement_regions_unwell{why=\"missing-replica\"} 1",
            "flaredb_pending_peers 1",
            "flaredb_pending_peers_total 1",
            "placement_operators_begun_total{cause=\"split\"} 1",
            "placement_operators_ended_total{cause=\"split\",outcome=\"done\"} 1",
            "placement_regions_blocked{why=\"no-candidate\"} 2",
            "placement_round_duration_seconds_count 1",
            "placement_tls_expiry_timestamp_seconds{file=\"cert\"} 1900000000",
            "placement_requests_total{method=\"Heartbeat\",code=\"OK\"} 1",
            "placement_network_peer_connections_refused_total{why=\"too_many\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("store_id=\"3\""), "tombstones are left out");
    }

    /// `UPDATE=1 cargo test --release --workspace reference` writes it anew.
    #[test]
    fn reference_of_the_metrics_is_current() {
        let wanted = format!(
            "# Metrics of the placement driver\n\n\
             Made from the page itself (`curl http://PD:2379/metrics`): change the help texts in\n\
             `crates/placement/src/metrics.rs` and `crates/node/src/metrics/`. A histogram has `_bucket`, `_sum` and `_count`.\n\
             What concerns stores, regions and operators is exported by the leading member alone; names that begin with\n\
             `flaredb_` are about the stores.\n\n{}",
            table(&full())
        );
        let file = base::crate_folder!().join("../../docs/reference/metrics-placement-driver.md");
        if std::env::var_os("UPDATE").is_some() {
            return std::fs::write(file, wanted).unwrap();
        }
        let found = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            found == wanted,
            "{} is not current; UPDATE=1 cargo test --release --workspace reference",
            file.display()
        );
    }
}
