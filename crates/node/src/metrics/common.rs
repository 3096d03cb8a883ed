//! Families that every program has, each under the program's own prefix: `chainfire_log_bytes`, `flaredb_log_bytes`.

use storage::engine::EngineStats;
use storage::log::LogStats;

use super::page::Page;
use super::{by_powers, get, labels};
use crate::driver::DriverStats;
use crate::heal::What;
use crate::refused::{RefusedStats, Why};
use crate::scrub::ScrubProgress;
use crate::tls::{FileKind, TlsStats};

/// A page, and the prefix of what is put on it.
pub struct Common<'a> {
    pub page: &'a mut Page,
    pub prefix: &'static str,
}

impl Common<'_> {
    fn name(&self, rest: &str) -> String {
        format!("{}_{rest}", self.prefix)
    }

    fn gauge(&mut self, rest: &str, help: &str, value: impl std::fmt::Display) {
        let name = self.name(rest);
        self.page.gauge(&name, help, value);
    }

    fn counter(&mut self, rest: &str, help: &str, value: impl std::fmt::Display) {
        let name = self.name(rest);
        self.page.counter(&name, help, value);
    }

    pub fn snapshots(&mut self, driver: &DriverStats) {
        let (sent, installed) = (get(&driver.snapshots_sent), get(&driver.snapshots_installed));
        self.counter("snapshots_sent_total", "Whole states sent to members that lagged.", sent);
        self.counter("snapshots_installed_total", "Whole states received and put in place.", installed);
        self.gauge("snapshot_index", "Index of the last state received; 0 for none.", get(&driver.snapshot_index));
        let sending = get(&driver.snapshots_sending);
        self.gauge("snapshots_sending", "Whole states on their way to other members.", sending);
    }

    /// `room`: free and total bytes.
    pub fn disk(&mut self, room: Option<(u64, u64)>) {
        if let Some((free, total)) = room {
            self.gauge("disk_capacity_bytes", "Size of the disk under the data folder.", total);
            self.gauge("disk_available_bytes", "What is free on it.", free);
        }
    }

    /// On the Raft port.
    pub fn peers_refused(&mut self, refused: &RefusedStats) {
        let help = "Connections on the Raft port that were not taken, by why.";
        self.connections_refused("network_peer_connections_refused_total", help, refused);
    }

    /// On a port for other nodes.
    pub fn connections_refused(&mut self, rest: &str, help: &str, refused: &RefusedStats) {
        let refused = Why::ALL.map(|why| (labels(&[("why", why.name())]), refused.of(why)));
        let name = self.name(rest);
        self.page.counters(&name, help, refused);
    }

    pub fn certificates(&mut self, tls: &TlsStats) {
        let (lists, files): (Vec<_>, Vec<_>) = tls.files.iter().partition(|file| file.kind == FileKind::Crl);
        let expiry = files.iter().map(|file| (labels(&[("file", file.kind.name())]), file.expires_s));
        let name = self.name("tls_expiry_timestamp_seconds");
        self.page.gauges(&name, "When a certificate expires, as Unix time.", expiry);
        if let Some(due_s) = lists.iter().map(|list| list.expires_s).min() {
            let help = "When the next revocation list is due, as Unix time.";
            self.gauge("tls_crl_next_update_timestamp_seconds", help, due_s);
        }
        let help = "Times that changed certificates were taken into use.";
        self.counter("tls_reloads_total", help, tls.reloads);
        let help = "Times that changed certificates were refused.";
        self.counter("tls_failed_reloads_total", help, tls.failed_reloads);
    }

    pub fn log(&mut self, log: &LogStats, driver: &DriverStats) {
        self.gauge("log_bytes", "Size of the Raft log's files.", log.bytes);
        self.gauge("log_segments", "Files of the Raft log.", log.segments);
        self.counter("log_entries_written_total", "Entries written to the Raft log.", log.entries_written);
        self.counter("log_syncs_total", "Syncs of the Raft log, those of its marks included.", log.syncs);
        self.counter("log_write_stalls_total", "Log writes that took a second and more.", get(&driver.write_stalls));
        let help =
            "Times that a group's leadership was handed over because this node's disk was slower than the others'.";
        self.counter("slow_disk_handovers_total", help, get(&driver.slow_handovers));
    }

    /// Damage looked for.
    pub fn scrub(&mut self, scrub: &ScrubProgress) {
        self.gauge("scrub_running", "Whether a pass is under way.", u8::from(scrub.running));
        self.gauge("scrub_pass_bytes", "Bytes to be read by the pass under way or the last.", scrub.bytes_total);
        self.gauge("scrub_pass_bytes_done", "Bytes of them read so far.", scrub.bytes_done);
        self.counter("scrub_bytes_total", "Bytes read by scrubs.", scrub.bytes_read);
        self.counter("scrub_passes_total", "Passes that came to an end.", scrub.passes);
        self.counter("scrub_findings_total", "Passes that found damage.", scrub.findings);
        self.gauge("scrub_unchecked_files", "Files of the state without a checksum.", scrub.unchecked);
        self.gauge("scrub_last_end_time_seconds", "When a pass last ended; 0: never.", scrub.ended_unix_s);
        self.counter("scrub_failures_total", "Passes that were broken off.", scrub.failures);
        let help = "When a pass last had read all, and found no damage; 0: never.";
        self.gauge("scrub_last_whole_time_seconds", help, scrub.whole_unix_s);
        let help = "How often a pass begins by itself; 0: it does not.";
        self.gauge("scrub_interval_seconds", help, scrub.interval_s);
    }

    /// By what was damaged, in seconds since 1970; zero for never.
    pub fn last_repairs(&mut self, last: impl IntoIterator<Item = (What, u64)>) {
        let last = last.into_iter().map(|(what, at)| (labels(&[("what", what.name())]), at));
        let name = self.name("last_repair_time_seconds");
        self.page.gauges(&name, "When this process was last rebuilt; 0: never.", last);
    }

    /// What the driver and the applier took.
    pub fn durations(&mut self, driver: &DriverStats) {
        let name = self.name("log_write_duration_seconds");
        self.page.histogram(&name, "Writes of the Raft log with their fsync.", &by_powers(&driver.syncs));
        let name = self.name("raft_apply_duration_seconds");
        let help = "Batches of committed entries put into the state.";
        self.page.histogram(&name, help, &by_powers(&driver.applies));
    }

    pub fn engine(&mut self, engine: &EngineStats) {
        let seconds = |ms: u64| ms as f64 / 1e3;
        self.gauge("store_bytes", "Size of the store on disk.", engine.total_bytes);
        self.gauge("store_live_bytes", "Estimated size of the live data in it.", engine.live_bytes);
        self.gauge("rocksdb_memory_bytes", "Memory of RocksDB's tables and caches.", engine.memory_bytes);
        let stalled = seconds(engine.stall_ms);
        self.counter("rocksdb_stall_seconds_total", "Time that RocksDB held writes back.", stalled);
        self.counter("rocksdb_stalls_total", "Times that RocksDB held writes back.", engine.stalls);
        self.counter("rocksdb_flushes_total", "Memory tables written to files.", engine.flushes);
        self.counter("rocksdb_compactions_total", "Merges of files.", engine.compactions);
        let merging = seconds(engine.compaction_ms);
        self.counter("rocksdb_compaction_seconds_total", "Time that merges of files took.", merging);
        let (read, written) = (engine.compaction_read_bytes, engine.compaction_written_bytes);
        self.counter("rocksdb_compaction_read_bytes_total", "Bytes read by merges.", read);
        self.counter("rocksdb_compaction_written_bytes_total", "Bytes written by merges.", written);
        self.gauge("rocksdb_compactions_running", "Merges of files under way.", engine.compactions_running);
        let pending = engine.compaction_pending_bytes;
        self.gauge("rocksdb_compaction_pending_bytes", "Estimated bytes that wait to be merged.", pending);
        self.gauge("rocksdb_level0_files", "Files that were not merged once.", engine.level0_files);
        let waiting = engine.memtables_waiting;
        self.gauge("rocksdb_memtables_waiting", "Full memory tables that wait to be written to a file.", waiting);
    }
}
