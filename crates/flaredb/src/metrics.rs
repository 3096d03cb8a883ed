//! A store's numbers, in Prometheus' text format.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use consensus::Role;
use storage::Engine as _;

use crate::store::Store;

/// The page `/metrics`.
pub fn render(store: &Store) -> String {
    let certificates = store.node.certificates();
    let mut out = certificates.map(|certificates| certificates.stats().page("flaredb")).unwrap_or_default();
    let mut gauge = |name: &str, help: &str, kind: &str, value: f64| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
    };
    let regions = store.regions();
    let led = regions.iter().filter(|region| region.handle.status().role == Role::Leader).count();
    let leaderless = regions.iter().filter(|region| region.handle.status().leader.is_none()).count();
    gauge("flaredb_regions", "Regions with a peer on this store.", "gauge", regions.len() as f64);
    gauge("flaredb_region_leaders", "Regions led by this store.", "gauge", led as f64);
    gauge("flaredb_regions_without_leader", "Regions here that know of no leader.", "gauge", leaderless as f64);
    let (available, capacity) = node::disk::room(store.folder()).unwrap_or_default();
    gauge("flaredb_disk_capacity_bytes", "Size of the data folder's file system.", "gauge", capacity as f64);
    gauge("flaredb_disk_available_bytes", "Bytes that are free there.", "gauge", available as f64);
    let engine = store.engine.stats();
    gauge("flaredb_engine_bytes", "Bytes of the state on disk.", "gauge", engine.total_bytes as f64);
    gauge(
        "flaredb_engine_memory_bytes",
        "Bytes of the state's tables and caches in memory.",
        "gauge",
        engine.memory_bytes as f64,
    );
    let stall = engine.stall_ms as f64 / 1e3;
    gauge("flaredb_engine_stall_seconds_total", "Time that writes were held back.", "counter", stall);
    let stats = store.node.stats();
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed) as f64;
    gauge("flaredb_raft_turns_total", "Turns of the driver.", "counter", count(&stats.turns));
    gauge("flaredb_raft_applied_entries_total", "Entries applied.", "counter", count(&stats.applied_entries));
    gauge("flaredb_raft_leader_changes_total", "New leaders, of all regions.", "counter", count(&stats.leader_changes));
    gauge("flaredb_snapshots_sent_total", "Regions sent to other stores.", "counter", count(&stats.snapshots_sent));
    gauge("flaredb_snapshots_installed_total", "Regions received.", "counter", count(&stats.snapshots_installed));
    out
}
