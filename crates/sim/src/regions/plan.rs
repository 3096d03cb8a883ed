//! What a seed stands for: the size of the cluster, the policy, the faults that may strike and how often. Drawn once, at the
//! beginning; each seed switches some faults off altogether.

use std::time::Duration;

use base::{NodeId, Rng};
use consensus::HostConfig;
use placement::Policy;

use crate::physics::net::Fates;
pub use crate::physics::{MS, SECOND};

/// Drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Members of the placement driver.
    pub pds: usize,
    pub stores: usize,
    /// Stores that come later.
    pub joiners: usize,
    pub clients: usize,
    pub keys: u64,
    pub value_bytes_max: u64,
    /// A client rests up to this long between two calls.
    pub rest_max: u64,
    /// How long faults strike.
    pub faulty: u64,
    /// The mean time between two faults, and between two steps that nobody planned.
    pub fault_every: u64,
    pub odd_every: u64,
    pub faults: Faults,
    pub host: HostConfig,
    pub policy: Policy,
    /// A one-way trip of a message takes between these, unless it is late.
    pub trip: (u64, u64),
    /// A sync of the log takes between these, unless the disk is slow.
    pub sync: (u64, u64),
    /// One step of an applier takes up to this long.
    pub apply_max: u64,
    /// Between two looks of a node's flusher.
    pub flush_every: u64,
    /// Bytes of a snapshot that travel in a second.
    pub bulk_bytes_per_second: u64,
    /// How long a client waits for an answer.
    pub patience: u64,
}

/// Which faults may strike at all.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub fates: Fates,
    pub partitions: bool,
    pub pauses: bool,
    pub crashes: bool,
    /// Crashes within the steps of what a store does to its engine.
    pub cuts: bool,
    pub slow_disk: bool,
    /// Clocks run fast or slow by up to this many permille.
    pub drift_permille: u64,
    /// Members of the placement driver crash; all of them are gone for long.
    pub pd_crashes: bool,
    pub pd_gone: bool,
    /// All of them are gone for ten minutes.
    pub outage: bool,
    /// Answers of the placement driver arrive again, long after.
    pub stale_answers: bool,
    /// A store is gone for good.
    pub lost_store: bool,
    /// Cloned folders, folders that claim another store's id or address.
    pub impostors: bool,
    /// Steps that nobody planned: splits, members added, promoted, removed, leaders moved.
    pub odd_splits: bool,
    pub odd_members: bool,
    pub odd_transfers: bool,
    /// Merges, as the policy has them and as nobody planned them.
    pub merges: bool,
}

impl Plan {
    pub fn new(seed: u64, long: bool) -> Plan {
        let mut rng = Rng::new(seed ^ 0x00F1_A2ED_B000_0001);
        let mut host = HostConfig::new(NodeId(0), seed);
        host.tick_interval = Duration::from_millis(300);
        host.election_intervals = [4, 6][rng.below(2) as usize];
        host.entry_bytes_max = [1 << 10, 256 << 10][rng.below(2) as usize];
        host.cache_bytes_max = [0, 64 << 10, 1 << 20][rng.below(3) as usize];
        host.log_entries_kept = [3, 20, 10_000][rng.below(3) as usize];
        let big = rng.percent(25);
        let faults = Faults::new(&mut rng);
        let out = if faults.outage { super::fault::OUTAGE } else { 0 };
        let seconds = Duration::from_secs;
        let drowsy = rng.below(4_000);
        host.sleep_after = (drowsy < 2_500).then(|| Duration::from_millis(500 + drowsy));
        host.lazy_commits = !base::rng::mix(seed ^ 0x1A2F).is_multiple_of(4);
        let policy = Policy {
            store_disconnected_time: seconds(rng.between(3, 8)),
            max_store_down_time: seconds(rng.between(10, 25)),
            region_report_timeout: seconds(30),
            operator_no_progress_timeout: seconds(rng.between(10, 20)),
            region_split_size: if faults.merges { 4 } else { 1 },
            max_merge_region_size: u64::from(faults.merges),
            split_merge_interval: seconds(rng.between(1, 12)),
            store_add_limit: 1_000,
            store_remove_limit: 1_000,
            ..Policy::default()
        };
        Plan {
            seed,
            pds: if rng.percent(60) { 3 } else { 1 },
            stores: rng.between(3, 6) as usize,
            joiners: usize::from(rng.percent(40)),
            clients: rng.between(2, 6) as usize,
            keys: rng.between(16, 48),
            value_bytes_max: if big { 200 << 10 } else { 60 },
            rest_max: rng.between(30, 200) * MS,
            faulty: if long { rng.between(90, 240) } else { rng.between(25, 60) } * SECOND + out,
            fault_every: rng.between(800, 4_000) * MS,
            odd_every: rng.between(700, 4_000) * MS,
            faults,
            host,
            policy,
            trip: if rng.percent(25) { (2 * MS, 40 * MS) } else { (MS / 5, 5 * MS) },
            sync: if rng.percent(20) { (MS, 20 * MS) } else { (MS / 5, 3 * MS) },
            apply_max: if rng.percent(25) { 60 * MS } else { MS },
            flush_every: rng.between(100, 6_000) * MS,
            bulk_bytes_per_second: rng.between(64 << 10, 8 << 20),
            patience: 6 * SECOND,
        }
    }
}

impl Faults {
    fn new(rng: &mut Rng) -> Faults {
        let faults = Faults::drawn(rng);
        // Who comes while the original is silent is the original, moved, or takes its place: that is to be seen without.
        let steady = faults.impostors && rng.percent(60);
        let kept = |fault: bool| fault && !steady;
        Faults {
            partitions: kept(faults.partitions),
            pauses: kept(faults.pauses),
            pd_crashes: kept(faults.pd_crashes),
            pd_gone: kept(faults.pd_gone),
            outage: kept(faults.outage),
            ..faults
        }
    }

    fn drawn(rng: &mut Rng) -> Faults {
        let mut maybe = |percent: u64, most: u64| if rng.percent(percent) { 1 + rng.below(most) } else { 0 };
        Faults {
            fates: Fates { loss_permille: maybe(40, 80), repeat_permille: maybe(40, 80), late_permille: maybe(40, 80) },
            partitions: maybe(50, 1) > 0,
            pauses: maybe(40, 1) > 0,
            crashes: maybe(65, 1) > 0,
            cuts: maybe(50, 1) > 0,
            slow_disk: maybe(30, 1) > 0,
            drift_permille: maybe(60, 50),
            pd_crashes: maybe(50, 1) > 0,
            pd_gone: maybe(30, 1) > 0,
            outage: maybe(8, 1) > 0,
            stale_answers: maybe(50, 1) > 0,
            lost_store: maybe(25, 1) > 0,
            impostors: maybe(40, 1) > 0,
            odd_splits: maybe(80, 1) > 0,
            odd_members: maybe(50, 1) > 0,
            odd_transfers: maybe(50, 1) > 0,
            merges: maybe(65, 1) > 0,
        }
    }
}
