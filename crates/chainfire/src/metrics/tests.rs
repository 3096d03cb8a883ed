use std::collections::BTreeMap;

use base::{NodeId, PeerId};
use consensus::Member;
use node::metrics::reference::{mistakes, table};
use node::refused::{Refused, Why};
use node::tls::{Expiry, FileKind};
use storage::engine::EngineStats;

use super::*;
use crate::config::reference::current;

/// A page without what differs between processes and versions, and of the methods only one.
fn stable(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("process_") && !line.contains("build_info{"));
    let lines = lines.filter(|line| !line.starts_with("grpc_server_") || line.contains("\"Put\""));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_page_of_a_leader_and_its_reference() {
    let metrics = Arc::new(Metrics::default());
    metrics.write_done(Duration::from_micros(100));
    metrics.write_done(Duration::from_micros(4_500));
    metrics.write_done(Duration::from_secs(11));
    metrics.write_failed();
    let put = METHODS.iter().find(|(_, path)| path.ends_with("/Put")).unwrap().0;
    metrics.call(put).done(0);
    metrics.call(put).done(8);
    drop(metrics.call(put));
    let driver = DriverStats::default();
    driver.turns.store(7, Ordering::Relaxed);
    driver.leader_changes.store(1, Ordering::Relaxed);
    driver.syncs.nanos.store(2_000_000, Ordering::Relaxed);
    driver.syncs.buckets[3].store(2, Ordering::Relaxed);
    driver.syncs.buckets[17].store(1, Ordering::Relaxed);
    driver.applies.add(Duration::from_micros(300));
    driver.snapshot_index.store(4, Ordering::Relaxed);
    metrics.round_trip(NodeId(2), Duration::from_micros(700));
    metrics.round_trip(NodeId(9), Duration::from_micros(700));
    let turned_away = Refused::default();
    turned_away.count(Why::TooSlow);
    let member =
        |node, peer| Member { node: NodeId(node), peer: PeerId(peer), role: MemberRole::Voter, ..Default::default() };
    let membership = Membership {
        members: BTreeMap::from([(NodeId(1), member(1, 0xa1)), (NodeId(2), member(2, 0xb2))]),
        ..Default::default()
    };
    let group = GroupStatus {
        peer: PeerId(0xa1),
        term: 3,
        role: Role::Leader,
        leader: PeerId(0xa1),
        leader_node: NodeId(1),
        first: 2,
        last: 20,
        committed: 19,
        applied: 18,
        durable: 5,
        regained: 2,
        inherited_last: 2,
        led_since: base::Time::ZERO,
        followers: vec![(PeerId(0xa1), 20, true), (PeerId(0xb2), 12, true), (PeerId(0xc3), 0, false)],
        pending_proposals: 1,
    };
    let engine = EngineStats {
        total_bytes: 4096,
        live_bytes: 1024,
        stall_ms: 2500,
        stalls: 2,
        memory_bytes: 77,
        ..EngineStats::default()
    };
    let text = metrics.render(&Sources {
        driver: &driver,
        health: &Health::default(),
        scrub: ScrubProgress { passes: 2, bytes_read: 11, ..Default::default() },
        group: &group,
        membership: &membership,
        log: &LogStats { bytes: 64, segments: 1, syncs: 3, entries_written: 20 },
        traffic: vec![(NodeId(1), 1, 1), (NodeId(2), 300, 40), (NodeId(9), 5, 6)],
        peers_refused: turned_away.stats(),
        gossip: &Default::default(),
        tls: Some(TlsStats {
            files: [
                (FileKind::Certificate, 1_900_000_000),
                (FileKind::Ca, 2_000_000_000),
                (FileKind::Crl, 1_800_000_000),
            ]
            .map(|(kind, expires_s)| Expiry { kind, path: Default::default(), expires_s })
            .to_vec(),
            reloads: 2,
            failed_reloads: 1,
        }),
        store: Some(StoreStats { engine, revision: 15, compacted: -1, keys: 9 }),
        watch: Some(WatchStats { streams: 1, watchers: 2, events_sent: 3, ..Default::default() }),
        server: ServerStats { connections_open: 4, connections_accepted: 5, ..Default::default() },
        quota_bytes: 8192,
        slow_requests: 6,
        reloads: ReloadStats { done: 3, failed: 1, last_failed: true, read_unix_s: 1_700_000_000 },
        disk: Some((1 << 30, 4 << 30)),
    });
    current("docs/reference/metrics.md", &document(&text));
    let golden = include_str!("golden.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(base::crate_folder!().join("src/metrics/golden.txt"), stable(&text)).unwrap();
        return;
    }
    assert_eq!(stable(&text), golden);
    well_formed(&text);
}

/// docs/reference/metrics.md, from the help texts of a page that has everything.
fn document(page: &str) -> String {
    format!(
        "# Metrics\n\n\
         Made from the page itself (`curl http://NODE:2379/metrics`): change the help texts in\n\
         `crates/chainfire/src/metrics/` and `crates/node/src/metrics/`. A histogram has `_bucket`, `_sum` and `_count`.\n\
         FlareDB's stores have [their own](metrics-flaredb.md), and so has the\n\
         [placement driver](metrics-placement-driver.md).\n\n{}",
        table(page)
    )
}

#[test]
fn the_page_of_a_node_without_a_cluster() {
    let text = Arc::new(Metrics::default()).render(&Sources {
        driver: &DriverStats::default(),
        health: &Health::default(),
        scrub: ScrubProgress::default(),
        group: &GroupStatus::default(),
        membership: &Membership::default(),
        log: &LogStats::default(),
        traffic: vec![(NodeId(2), 300, 40)],
        peers_refused: RefusedStats::default(),
        gossip: &Default::default(),
        tls: None,
        store: None,
        watch: None,
        server: ServerStats::default(),
        quota_bytes: 0,
        slow_requests: 0,
        reloads: ReloadStats::default(),
        disk: None,
    });
    well_formed(&text);
    assert!(text.contains("\nchainfire_has_leader 0\n"));
    assert!(!text.contains("etcd_server_quota_backend_bytes"), "a limit of zero would always be reached");
}

fn well_formed(text: &str) {
    assert_eq!(mistakes(text, &[]), Vec::<String>::new());
}

#[test]
fn methods_are_numbered_by_their_place() {
    for (place, (number, path)) in METHODS.iter().enumerate() {
        assert_eq!(usize::from(*number), place, "{path}");
    }
}
