use std::sync::atomic::Ordering;
use std::time::Duration;

use base::{PeerId, Time};
use node::metrics::reference::{mistakes, table};
use node::refused::{Refused, Why};
use node::tls::{Expiry, FileKind};

use super::*;
use crate::merge_stats::{GivenUp, MergeStats};

fn full() -> String {
    let requests = Methods::new(&["Get", "Put"]);
    requests.begin(1).ends(0);
    let driver = DriverStats::default();
    driver.turns.store(7, Ordering::Relaxed);
    let turned_away = Refused::default();
    turned_away.count(Why::NotAMember);
    let merged = MergeStats::default();
    merged.begun();
    merged.over(Some(GivenUp::MembersMissing), Duration::from_secs(6));
    merged.frozen_since(Some(Time::from_millis(1500)));
    page(&Sources {
        requests: &requests,
        forwarded: 3,
        reads_refused: 6,
        slow_requests: 2,
        regions: RegionCounts {
            held: 5,
            led: 2,
            leaderless: 1,
            apply_lag: 4,
            followers: BTreeMap::from([(NodeId(2), (10, 0)), (NodeId(3), (99, 2))]),
        },
        merges: merged.read(Time::from_millis(9000)),
        pd: PdStats { answered: 20, failed: 1, age: Some(Duration::from_millis(1500)) },
        driver: &driver,
        log: &LogStats { bytes: 64, segments: 1, syncs: 3, entries_written: 20 },
        engine: &EngineStats { total_bytes: 4096, stall_ms: 2500, compaction_ms: 1500, ..EngineStats::default() },
        scrub: ScrubProgress::default(),
        repaired: Some((What::State, 1_700_000_000)),
        disk: Some((1 << 30, 4 << 30)),
        full: false,
        traffic: vec![(NodeId(2), 300, 40)],
        peers_refused: turned_away.stats(),
        server: ServerStats { connections_open: 4, ..ServerStats::default() },
        tls: Some(TlsStats {
            files: [(FileKind::Certificate, 1_900_000_000), (FileKind::Crl, 1_800_000_000)]
                .map(|(kind, expires_s)| Expiry { kind, path: Default::default(), expires_s })
                .to_vec(),
            reloads: 2,
            failed_reloads: 1,
        }),
    })
}

#[test]
fn the_page_keeps_to_the_format_and_says_what_it_was_told() {
    let text = full();
    assert_eq!(mistakes(&text, &[]), Vec::<String>::new());
    for line in [
        "flaredb_requests_total{method=\"Put\",code=\"OK\"} 1",
        "flaredb_slow_requests_total 2",
        "flaredb_reads_refused_total 6",
        "flaredb_regions 5",
        "flaredb_raft_follower_lag_entries{peer=\"3\"} 99",
        "flaredb_raft_follower_silent_regions{peer=\"3\"} 2",
        "flaredb_disk_available_bytes 1073741824",
        "flaredb_rocksdb_stall_seconds_total 2.5",
        "flaredb_rocksdb_compaction_seconds_total 1.5",
        "flaredb_merges_begun_total 1",
        "flaredb_merges_given_up_total{why=\"members-missing\"} 1",
        "flaredb_merge_frozen_duration_seconds_sum 6",
        "flaredb_merge_frozen_seconds 7.5",
        "flaredb_pd_heartbeat_age_seconds 1.5",
        "flaredb_tls_expiry_timestamp_seconds{file=\"cert\"} 1900000000",
        "flaredb_network_peer_sent_bytes_total{peer=\"2\"} 300",
        "flaredb_network_peer_connections_refused_total{why=\"not_a_member\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

/// `UPDATE=1 cargo test --release --workspace reference` writes it anew.
#[test]
fn reference_of_the_metrics_is_current() {
    let wanted = format!(
        "# Metrics of FlareDB's stores\n\n\
         Made from the page itself (`curl http://STORE:2379/metrics`): change the help texts in\n\
         `crates/flaredb/src/metrics/` and `crates/node/src/metrics/`. A histogram has `_bucket`, `_sum` and `_count`.\n\
         What concerns the cluster is on the page of the [placement driver](metrics-placement-driver.md).\n\n{}",
        table(&full())
    );
    let file = base::crate_folder!().join("../../docs/reference/metrics-flaredb.md");
    if std::env::var_os("UPDATE").is_some() {
        return std::fs::write(file, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(found == wanted, "{} is not current; UPDATE=1 cargo test --release --workspace reference", file.display());
}

#[test]
fn followers_are_counted_by_store_where_a_region_is_led() {
    let status = |role, followers: &[(u64, u64, bool)]| GroupStatus {
        peer: PeerId(1),
        leader: PeerId(1),
        role,
        last: 100,
        committed: 90,
        applied: 88,
        followers: followers.iter().map(|(peer, known, heard)| (PeerId(*peer), *known, *heard)).collect(),
        ..GroupStatus::default()
    };
    let mut counts = RegionCounts::default();
    let store_of = |peer: PeerId| Some(NodeId(peer.0 % 10));
    counts.add(&status(Role::Leader, &[(1, 100, true), (12, 95, true), (13, 40, false)]), store_of);
    counts.add(&status(Role::Leader, &[(1, 100, true), (22, 99, true), (23, 100, false)]), store_of);
    counts.add(&status(Role::Follower, &[]), store_of);
    let followers = BTreeMap::from([(NodeId(2), (5, 0)), (NodeId(3), (60, 2))]);
    assert_eq!(counts, RegionCounts { held: 3, led: 2, leaderless: 0, apply_lag: 2, followers });
}
