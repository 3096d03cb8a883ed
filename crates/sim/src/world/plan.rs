//! What a seed stands for: the size of the cluster, the bounds of its hosts, the faults that may strike and how often,
//! the mix of what clients do. Drawn once, at the beginning.
//!
//! Each seed switches some faults off altogether: a world in which everything fails all the time gets so little done
//! that many a bug never finds its moment.

use std::time::Duration;

use base::{NodeId, Rng};
use consensus::HostConfig;

pub use crate::physics::{MS, SECOND};

/// Nodes that there may be, joiners included.
pub const NODES_MAX: usize = 7;

/// Drawn from a seed.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub founders: usize,
    pub groups: u64,
    pub clients: usize,
    pub watchers: usize,
    pub keys: u64,
    /// Values have at most this size.
    pub value_bytes_max: u64,
    /// A client rests up to this long between two calls.
    pub rest_max: u64,
    /// How long faults strike.
    pub faulty: u64,
    /// The mean time between two faults.
    pub fault_every: u64,
    pub faults: Faults,
    pub host: HostConfig,
    /// A one-way trip of a message takes between these, unless it is late.
    pub trip: (u64, u64),
    /// A sync of the disk takes between these, unless the disk is slow.
    pub sync: (u64, u64),
    /// One step of an applier takes up to this long, and takes at most so many bytes.
    pub apply_max: u64,
    pub apply_bytes_max: u64,
    /// Between two looks of the flusher.
    pub flush_every: u64,
    /// Bytes of a snapshot that travel in a second.
    pub bulk_bytes_per_second: u64,
    /// How much longer than its deadline a client waits.
    pub patience: u64,
    /// A request's deadline.
    pub deadline: u64,
    /// Reads by the leader's lease, of a hundred.
    pub lease_reads_percent: u64,
    /// Reads that go to any node, of a hundred; the others go to where the leader is thought to be.
    pub scattered_percent: u64,
    /// Whether clients compact the history.
    pub compaction: bool,
    /// Whether clients use leases.
    pub leases: bool,
}

/// Which faults may strike at all. Zero or false switches one off.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Messages lost, of a thousand; repeated; late (and so overtaken).
    pub loss_permille: u64,
    pub repeat_permille: u64,
    pub late_permille: u64,
    pub partitions: bool,
    pub one_way: bool,
    pub pauses: bool,
    pub crashes: bool,
    pub slow_disk: bool,
    /// Clocks run fast or slow by up to this many permille.
    pub drift_permille: u64,
    pub transfers: bool,
    pub membership: bool,
    /// Logs damaged or lost, members rebuilt.
    pub lost_logs: bool,
    /// Disks that return from nothing for a while; and disks without room, which take no new entries.
    pub stalled_disks: bool,
    pub full_disks: bool,
    /// Leaders' disks that are slow for long. Only by itself.
    pub slow_leaders: bool,
    /// A state machine that does something else than the others.
    pub diverging: bool,
    /// Of a hundred tender moments (see [`super::fault::Moment`]), how many are struck.
    pub moments_percent: u64,
}

impl Plan {
    pub fn new(seed: u64, long: bool) -> Plan {
        let mut rng = Rng::new(seed ^ 0x0005_EED0_F0A0_410D);
        let groups = if rng.percent(15) { 3 } else { 1 };
        let founders = if groups == 1 && rng.percent(25) { 5 } else { 3 };
        let mut host = HostConfig::new(NodeId(0), seed);
        host.tick_interval = Duration::from_millis(100);
        host.election_intervals = [4, 6, 10][rng.below(3) as usize];
        let drowsy = base::rng::mix(seed ^ 0x51EE) % 1_000;
        host.sleep_after = (drowsy < 400).then(|| Duration::from_millis(drowsy));
        host.lazy_commits = base::rng::mix(seed ^ 0x1A2F).is_multiple_of(2);
        host.proposals_max = if rng.percent(10) { 4 } else { 20_000 };
        host.entry_bytes_max = [64, 1 << 10, 256 << 10][rng.below(3) as usize];
        host.reads_max = if rng.percent(10) { 4 } else { 50_000 };
        host.apply_lag_entries_max = if rng.percent(20) { 8 } else { 5_000 };
        host.cache_bytes_max = [0, 2 << 10, 1 << 20][rng.below(3) as usize];
        host.inflight_messages_max = [2, 16, 256][rng.below(3) as usize];
        host.message_bytes_max = [256, 4 << 10, 1 << 20][rng.below(3) as usize];
        host.log_entries_kept = [3, 30, 10_000][rng.below(3) as usize];
        let slow_network = rng.percent(30);
        let slow_appliers = rng.percent(25);
        Plan {
            seed,
            founders,
            groups,
            clients: rng.between(3, 8) as usize,
            watchers: rng.between(1, 4) as usize,
            keys: rng.between(2, 9),
            value_bytes_max: if rng.percent(20) { 2_000 } else { 40 },
            rest_max: rng.between(10, 60) * MS,
            faulty: if long { rng.between(30, 120) } else { rng.between(8, 16) } * SECOND,
            fault_every: rng.between(300, 2_000) * MS,
            faults: Faults {
                diverging: base::rng::mix(seed ^ 0xD1) % 100 < 30,
                ..Faults::new(&mut rng).with_disks(seed)
            },
            host,
            trip: if slow_network { (2 * MS, 40 * MS) } else { (MS / 5, 5 * MS) },
            sync: if rng.percent(20) { (MS, 20 * MS) } else { (MS / 5, 3 * MS) },
            apply_max: if slow_appliers { 30 * MS } else { MS },
            apply_bytes_max: if slow_appliers { 200 } else { 64 << 10 },
            flush_every: rng.between(50, 1_500) * MS,
            bulk_bytes_per_second: rng.between(20 << 10, 4 << 20),
            patience: 200 * MS,
            deadline: rng.between(1_000, 5_000) * MS,
            lease_reads_percent: rng.below(101),
            scattered_percent: rng.below(101),
            compaction: rng.percent(40),
            leases: rng.percent(40),
        }
    }

    pub fn election_timeout(&self) -> u64 {
        u64::try_from(self.host.election_timeout().as_nanos()).expect("an election timeout is seconds")
    }

    pub fn tick(&self) -> u64 {
        u64::try_from(self.host.tick_interval.as_nanos()).expect("a tick is milliseconds")
    }
}

impl Faults {
    fn new(rng: &mut Rng) -> Faults {
        let mut maybe = |percent: u64, most: u64| if rng.percent(percent) { 1 + rng.below(most) } else { 0 };
        Faults {
            loss_permille: maybe(50, 100),
            repeat_permille: maybe(50, 100),
            late_permille: maybe(50, 100),
            partitions: maybe(60, 1) > 0,
            one_way: maybe(50, 1) > 0,
            pauses: maybe(50, 1) > 0,
            crashes: maybe(65, 1) > 0,
            slow_disk: maybe(40, 1) > 0,
            drift_permille: maybe(70, 50),
            transfers: maybe(40, 1) > 0,
            membership: maybe(45, 1) > 0,
            lost_logs: maybe(35, 1) > 0,
            diverging: false,
            moments_percent: maybe(60, 20),
            stalled_disks: false,
            full_disks: false,
            slow_leaders: false,
        }
    }

    /// Nothing but leaders' disks that stall.
    pub fn only_stalls() -> Faults {
        Faults { stalled_disks: true, ..Faults::default() }
    }

    /// Nothing but leaders' disks that are slow.
    pub fn only_slow_leaders() -> Faults {
        Faults { slow_leaders: true, ..Faults::default() }
    }

    pub fn is_only_stalls(&self) -> bool {
        let Faults { partitions, pauses, crashes, membership, lost_logs, .. } = *self;
        let others = partitions || pauses || crashes || membership || lost_logs || self.full_disks || self.transfers;
        self.stalled_disks && !others && self.loss_permille == 0 && self.drift_permille == 0
    }

    fn with_disks(self, seed: u64) -> Faults {
        let mut rng = Rng::new(seed ^ 0x00D1_5C0F_FA17);
        Faults { stalled_disks: rng.percent(25), full_disks: rng.percent(25), ..self }
    }
}
