//! A store's numbers, in Prometheus' text format.
//!
//! The parts of a store keep plain counters ([`Sources`]); this file alone gives them names. What the placement driver knows of
//! the stores (which are up, where regions lie) is on its own page.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use base::NodeId;
use consensus::{GroupStatus, Role};
use node::DriverStats;
use node::heal::What;
use node::metrics::calls::Methods;
use node::metrics::common::Common;
use node::metrics::{Page, get, labels, process};
use node::refused::RefusedStats;
use node::scrub::ScrubProgress;
use node::tls::TlsStats;
use rpc::server::ServerStats;
use storage::engine::EngineStats;
use storage::log::LogStats;

use crate::api::Api;
use crate::merge_stats::Merges;
use crate::pd::PdStats;
use crate::store::Store;

/// Where the page's figures come from, as of the moment.
pub struct Sources<'a> {
    pub requests: &'a Methods,
    /// Of these, how many lay elsewhere.
    pub forwarded: u64,
    pub reads_refused: u64,
    pub slow_requests: u64,
    pub regions: RegionCounts,
    pub merges: Merges,
    pub pd: PdStats,
    pub driver: &'a DriverStats,
    pub log: &'a LogStats,
    pub engine: &'a EngineStats,
    pub scrub: ScrubProgress,
    /// What was damaged when this process began the store anew, and when that was.
    pub repaired: Option<(What, u64)>,
    /// (free, total) bytes of the disk under the data folder.
    pub disk: Option<(u64, u64)>,
    /// Whether it has next to no room, and no puts are taken.
    pub full: bool,
    /// Bytes sent to stores and received from them.
    pub traffic: Vec<(NodeId, u64, u64)>,
    /// Connections on the Raft port that were not taken.
    pub peers_refused: RefusedStats,
    pub server: ServerStats,
    /// None without certificates.
    pub tls: Option<TlsStats>,
}

/// The regions here, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionCounts {
    pub held: u64,
    pub led: u64,
    pub leaderless: u64,
    /// Entries that have been committed and not applied here, of the region where these are most.
    pub apply_lag: u64,
    /// By store, of the regions led here: entries that it lacks, of the region where these are most, and regions in which it
    /// is not heard of.
    pub followers: BTreeMap<NodeId, (u64, u64)>,
}

impl RegionCounts {
    pub fn of(store: &Store) -> RegionCounts {
        let mut counts = RegionCounts::default();
        store.walk(|region| {
            let (status, membership) = (region.handle.status(), region.handle.membership());
            counts.add(&status, |peer| membership.node_of(peer));
        });
        counts
    }

    fn add(&mut self, status: &GroupStatus, store_of: impl Fn(base::PeerId) -> Option<NodeId>) {
        self.held += 1;
        self.leaderless += u64::from(status.leader.is_none());
        self.apply_lag = self.apply_lag.max(status.committed.saturating_sub(status.applied));
        if status.role != Role::Leader {
            return;
        }
        self.led += 1;
        for (peer, known, heard) in status.followers.iter().filter(|(peer, ..)| *peer != status.peer) {
            let Some(store) = store_of(*peer) else { continue };
            let (lag, silent) = self.followers.entry(store).or_default();
            *lag = (*lag).max(status.last.saturating_sub(*known));
            *silent += u64::from(!heard);
        }
    }
}

/// The page `/metrics`.
pub fn render(api: &Api) -> String {
    let store = &api.store;
    page(&Sources {
        requests: api.requests.methods(),
        forwarded: api.router.forwarded(),
        reads_refused: store.reads.line.refused() + store.scans.refused(),
        slow_requests: api.requests.slow.seen(),
        regions: RegionCounts::of(store),
        merges: store.merge_stats.read(store.node.now()),
        pd: api.pd.stats(),
        driver: &store.node.stats(),
        log: &api.node.log_stats(),
        engine: &store.engine.stats(),
        scrub: api.scrub.progress(),
        repaired: api.repaired,
        disk: store.node.room(),
        full: store.space.is_full(),
        traffic: api.node.transport().traffic(),
        peers_refused: api.node.transport().turned_away(),
        server: api.server_stats(),
        tls: api.node.certificates().map(|certificates| certificates.stats()),
    })
}

fn page(sources: &Sources) -> String {
    let Sources { regions, driver, log, engine, pd, server, .. } = sources;
    let mut page = Page::default();
    let version = labels(&[("version", env!("CARGO_PKG_VERSION"))]);
    page.gauges("flaredb_build_info", "The version that runs; always 1.", [(version, 1)]);
    sources.requests.add(&mut page, "flaredb");
    let forwarded = sources.forwarded;
    page.counter("flaredb_requests_forwarded_total", "Requests whose keys lay on other stores.", forwarded);
    let refused = sources.reads_refused;
    page.counter("flaredb_reads_refused_total", "Reads that were turned away because too many waited.", refused);
    let slow = sources.slow_requests;
    page.counter("flaredb_slow_requests_total", "Requests that took log.slow_request_ms or longer.", slow);
    page.gauge("flaredb_regions", "Regions with a peer on this store.", regions.held);
    page.gauge("flaredb_region_leaders", "Regions led by this store.", regions.led);
    page.gauge("flaredb_regions_without_leader", "Regions here that know of no leader.", regions.leaderless);
    let help = "Committed entries that are not applied here, of the region that has most of them.";
    page.gauge("flaredb_raft_apply_lag_entries", help, regions.apply_lag);
    followers(&mut page, regions);
    merges(&mut page, &sources.merges);
    page.counter("flaredb_raft_turns_total", "Turns of the consensus host.", get(&driver.turns));
    page.counter(
        "flaredb_raft_applied_entries_total",
        "Entries applied, of all regions.",
        get(&driver.applied_entries),
    );
    page.counter("flaredb_raft_leader_changes_total", "New leaders, of all regions.", get(&driver.leader_changes));
    let mismatches = get(&driver.hash_mismatches);
    page.counter("flaredb_raft_hash_mismatches_total", "Times that a replica was found to differ.", mismatches);
    let mut common = Common { page: &mut page, prefix: "flaredb" };
    common.durations(driver);
    common.log(log, driver);
    common.snapshots(driver);
    common.disk(sources.disk);
    let help = "1 while the disk has next to no room, and no puts are taken.";
    common.page.gauge("flaredb_disk_full", help, u8::from(sources.full));
    common.engine(engine);
    common.scrub(&sources.scrub);
    let at = |what| sources.repaired.map_or(0, |(damaged, at)| if what == damaged { at } else { 0 });
    common.last_repairs([What::Log, What::State].map(|what| (what, at(what))));
    if let Some(tls) = &sources.tls {
        common.certificates(tls);
    }
    page.counter("flaredb_pd_heartbeats_total", "Heartbeats that the placement driver answered.", pd.answered);
    page.counter("flaredb_pd_heartbeat_failures_total", "Heartbeats that nobody answered.", pd.failed);
    if let Some(age) = pd.age {
        let help = "Since the placement driver last answered a heartbeat.";
        page.gauge("flaredb_pd_heartbeat_age_seconds", help, age.as_secs_f64());
    }
    let each = |of: fn(&(NodeId, u64, u64)) -> u64| {
        sources.traffic.iter().map(move |seen| (labels(&[("peer", &seen.0.to_string())]), of(seen)))
    };
    let help = "Bytes sent to a store on the Raft port, before encryption.";
    page.counters("flaredb_network_peer_sent_bytes_total", help, each(|seen| seen.1));
    let help = "Bytes received from a store on the Raft port, after decryption.";
    page.counters("flaredb_network_peer_received_bytes_total", help, each(|seen| seen.2));
    Common { page: &mut page, prefix: "flaredb" }.peers_refused(&sources.peers_refused);
    page.gauge("flaredb_connections_open", "Client connections.", server.connections_open);
    page.counter("flaredb_connections_accepted_total", "Connections taken.", server.connections_accepted);
    page.counter("flaredb_connections_refused_total", "Connections beyond the bounds.", server.connections_refused);
    let help = "Calls beyond those that one connection may have open.";
    page.counter("flaredb_streams_refused_total", help, server.streams_refused);
    process::add(&mut page);
    page.text()
}

fn merges(page: &mut Page, merges: &Merges) {
    page.counter("flaredb_merges_begun_total", "Regions frozen here to become part of a neighbour.", merges.begun);
    page.counter("flaredb_merges_done_total", "Regions that have become part of a neighbour.", merges.done);
    let given_up = merges.given_up.iter().map(|(why, count)| (labels(&[("why", why)]), count));
    page.counters("flaredb_merges_given_up_total", "Frozen regions that went on as they were, by why.", given_up);
    let help = "How long regions were frozen for a merge, and answered nobody, whatever came of it.";
    page.histogram("flaredb_merge_frozen_duration_seconds", help, &merges.frozen);
    let help = "Since the region led here froze that has been frozen longest; 0: none is.";
    page.gauge("flaredb_merge_frozen_seconds", help, merges.frozen_for.as_secs_f64());
}

fn followers(page: &mut Page, regions: &RegionCounts) {
    let each = |of: fn(&(u64, u64)) -> u64| {
        regions.followers.iter().map(move |(store, seen)| (labels(&[("peer", &store.to_string())]), of(seen)))
    };
    let help = "Entries that a store is not known to have, of the region led here where these are most.";
    page.gauges("flaredb_raft_follower_lag_entries", help, each(|seen| seen.0));
    let help = "Regions led here in which a store is not heard of.";
    page.gauges("flaredb_raft_follower_silent_regions", help, each(|seen| seen.1));
}
