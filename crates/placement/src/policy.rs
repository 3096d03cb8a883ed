//! What is wanted, in the settings that PD's users know: replicas, failure domains, patience, limits, schedulers.
//!
//! In JSON the names are kebab-case. Durations are Go's (`5m0s`; plain numbers are seconds), sizes named `…-size` are in MiB,
//! lists of labels are one text with commas (`zone,rack,host`) or an array. A partial object changes what it names and
//! nothing else ([`Policy::merged`]); an unknown name, a wrong type or a value out of bounds changes nothing at all.
//!
//! | setting | default | what it does |
//! |---|---|---|
//! | `max-replicas` | 3 | voters per region |
//! | `location-labels` | none | store labels that name failure domains, largest first |
//! | `store-disconnected-time` | 20s | silence after which a store is no target and its replicas count as not healthy |
//! | `max-store-down-time` | 5m | silence after which its replicas are made anew elsewhere |
//! | `region-report-timeout` | 3m | age of a region's last report beyond which it is left alone |
//! | `operator-no-progress-timeout` | 10m | an operator without progress for so long is given up |
//! | `region-split-size`, `max-merge-region-size`, `max-merge-region-keys`, `split-merge-interval` | 1024, 64, 500000, 1h | what is large, small, and how long a region rests after a split |
//! | `load-split-requests-per-sec`, `load-split-bytes-per-sec`, `load-split-time` | 3000, 30 MiB, 10s | a region that carries one of them for so long is split, however small it is; 0: never for that |
//! | `high-space-ratio`, `low-space-ratio` | 0.7, 0.8 | used share of a disk from which it counts as filling, as full |
//! | `…-schedule-limit` | leader 4, region 2048, replica 64, merge 8, hot-region 4, split 64 | operators in flight |
//! | `max-snapshot-count`, `max-pending-peer-count` | 64, 64 | per store |
//! | `store-add-limit`, `store-remove-limit` | 15, 15 | replicas per store and minute |
//! | `snap-io-max-bytes-per-sec` | 100 MiB | what a store gives to the snapshots that it sends, taken together; estimates rest on it |
//! | `schedulers` | all four | `balance-leader-scheduler`, … (the suffix may be left out) |
//! | `paused-schedulers` | none | schedulers that rest until a time, in seconds since 1970 |
//! | `evict-leader-stores` | none | stores that give up their leaders |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use base::NodeId;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// Levels of failure domains.
pub const LOCATION_LABELS_MAX: usize = 6;
pub const REPLICAS_MAX: u32 = 9;
const TEXT_BYTES_MAX: usize = 64;
const EVICT_LEADER_STORES_MAX: usize = 1024;

pub const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Policy {
    pub max_replicas: u32,
    #[serde(with = "labels")]
    pub location_labels: Vec<String>,
    #[serde(with = "span")]
    pub store_disconnected_time: Duration,
    #[serde(with = "span")]
    pub max_store_down_time: Duration,
    #[serde(with = "span")]
    pub region_report_timeout: Duration,
    #[serde(with = "span")]
    pub operator_no_progress_timeout: Duration,
    /// MiB.
    pub region_split_size: u64,
    /// MiB.
    pub max_merge_region_size: u64,
    pub max_merge_region_keys: u64,
    #[serde(with = "span")]
    pub split_merge_interval: Duration,
    pub load_split_requests_per_sec: u64,
    pub load_split_bytes_per_sec: u64,
    #[serde(with = "span")]
    pub load_split_time: Duration,
    pub high_space_ratio: f64,
    pub low_space_ratio: f64,
    pub leader_schedule_limit: u32,
    pub region_schedule_limit: u32,
    pub replica_schedule_limit: u32,
    pub merge_schedule_limit: u32,
    pub hot_region_schedule_limit: u32,
    pub split_schedule_limit: u32,
    pub max_snapshot_count: u32,
    pub max_pending_peer_count: u32,
    /// Replicas that a store takes in per minute.
    pub store_add_limit: u32,
    /// Replicas that are taken from a store per minute, while it is not down.
    pub store_remove_limit: u32,
    /// Bytes per second and store.
    pub snap_io_max_bytes_per_sec: u64,
    pub schedulers: BTreeSet<Scheduler>,
    /// Until when, in seconds since 1970. Whoever plans by the policy has removed what is over ([`Policy::end_pauses`]).
    pub paused_schedulers: BTreeMap<Scheduler, u64>,
    /// Store ids.
    pub evict_leader_stores: BTreeSet<u64>,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            max_replicas: 3,
            location_labels: Vec::new(),
            store_disconnected_time: Duration::from_secs(20),
            max_store_down_time: Duration::from_secs(5 * 60),
            region_report_timeout: Duration::from_secs(3 * 60),
            operator_no_progress_timeout: Duration::from_secs(10 * 60),
            region_split_size: 1024,
            max_merge_region_size: 64,
            max_merge_region_keys: 500_000,
            split_merge_interval: Duration::from_secs(3600),
            load_split_requests_per_sec: 3000,
            load_split_bytes_per_sec: 30 * MIB,
            load_split_time: Duration::from_secs(10),
            high_space_ratio: 0.7,
            low_space_ratio: 0.8,
            leader_schedule_limit: 4,
            region_schedule_limit: 2048,
            replica_schedule_limit: 64,
            merge_schedule_limit: 8,
            hot_region_schedule_limit: 4,
            split_schedule_limit: 64,
            max_snapshot_count: 64,
            max_pending_peer_count: 64,
            store_add_limit: 15,
            store_remove_limit: 15,
            snap_io_max_bytes_per_sec: 100 * MIB,
            schedulers: Scheduler::ALL.into(),
            paused_schedulers: BTreeMap::new(),
            evict_leader_stores: BTreeSet::new(),
        }
    }
}

/// The name under which stores give up their leaders, beside the [`Scheduler`]s.
pub const EVICT_LEADER: &str = "evict-leader-scheduler";

/// What moves things about for the sake of balance. Checkers, which repair, cannot be turned off; a limit of zero
/// stops them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheduler {
    BalanceHotRegion,
    BalanceLeader,
    BalanceRegion,
    EvictSlowStore,
}

impl Scheduler {
    pub const ALL: [Scheduler; 4] =
        [Scheduler::BalanceHotRegion, Scheduler::BalanceLeader, Scheduler::BalanceRegion, Scheduler::EvictSlowStore];

    pub fn name(self) -> &'static str {
        match self {
            Scheduler::BalanceHotRegion => "balance-hot-region-scheduler",
            Scheduler::BalanceLeader => "balance-leader-scheduler",
            Scheduler::BalanceRegion => "balance-region-scheduler",
            Scheduler::EvictSlowStore => "evict-slow-store-scheduler",
        }
    }

    /// By its name, with or without `-scheduler`.
    pub fn named(name: &str) -> Option<Scheduler> {
        let name = name.strip_suffix("-scheduler").unwrap_or(name);
        Scheduler::ALL.into_iter().find(|known| known.name().strip_suffix("-scheduler") == Some(name))
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Scheduler {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Scheduler {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Scheduler, D::Error> {
        let name = String::deserialize(from)?;
        Scheduler::named(&name).ok_or_else(|| {
            let known: Vec<_> = Scheduler::ALL.iter().map(|scheduler| scheduler.name()).collect();
            serde::de::Error::custom(format!("unknown scheduler `{name}`, known are {}", known.join(", ")))
        })
    }
}

/// Why a change of the policy was refused. Nothing of it has taken effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    #[error("a JSON object with settings is wanted, such as {{\"max-replicas\": 3}}")]
    NotAnObject,
    #[error("unknown setting `{key}`; the nearest known one is `{nearest}`")]
    Unknown { key: String, nearest: String },
    #[error("setting `{key}`: {why}")]
    Invalid { key: String, why: String },
}

impl Policy {
    /// The policy with the settings of a partial JSON object.
    pub fn merged(&self, patch: &Value) -> Result<Policy, PolicyError> {
        let patch = patch.as_object().ok_or(PolicyError::NotAnObject)?;
        let mut policy = self.clone();
        for (key, value) in patch {
            let Value::Object(mut whole) = policy.to_json() else { return Err(PolicyError::NotAnObject) };
            if !whole.contains_key(key) {
                let nearest = whole.keys().min_by_key(|known| distance(known, key)).cloned().unwrap_or_default();
                return Err(PolicyError::Unknown { key: key.clone(), nearest });
            }
            whole.insert(key.clone(), value.clone());
            policy = serde_json::from_value(Value::Object(whole))
                .map_err(|error| PolicyError::Invalid { key: key.clone(), why: error.to_string() })?;
        }
        policy.validate()?;
        Ok(policy)
    }

    /// The whole policy as a JSON object.
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }

    pub fn validate(&self) -> Result<(), PolicyError> {
        within("max-replicas", u64::from(self.max_replicas), 1, u64::from(REPLICAS_MAX))?;
        let labels = &self.location_labels;
        within("location-labels", labels.len() as u64, 0, LOCATION_LABELS_MAX as u64)?;
        let distinct: BTreeSet<_> = labels.iter().collect();
        let named = |label: &String| (1..=TEXT_BYTES_MAX).contains(&label.len());
        require("location-labels", distinct.len() == labels.len(), "each label once")?;
        require("location-labels", labels.iter().all(named), "labels of 1 to 64 bytes")?;

        let day = 24 * 3600;
        within("store-disconnected-time", self.store_disconnected_time.as_secs(), 3, day)?;
        within("max-store-down-time", self.max_store_down_time.as_secs(), 10, 30 * day)?;
        let in_order = self.store_disconnected_time <= self.max_store_down_time;
        require("store-disconnected-time", in_order, "no longer than max-store-down-time")?;
        within("region-report-timeout", self.region_report_timeout.as_secs(), 10, day)?;
        within("operator-no-progress-timeout", self.operator_no_progress_timeout.as_secs(), 10, day)?;
        within("split-merge-interval", self.split_merge_interval.as_secs(), 0, 365 * day)?;

        within("load-split-requests-per-sec", self.load_split_requests_per_sec, 0, 1 << 40)?;
        within("load-split-bytes-per-sec", self.load_split_bytes_per_sec, 0, 1 << 40)?;
        within("load-split-time", self.load_split_time.as_secs(), 2, day)?;

        within("region-split-size", self.region_split_size, 1, 1 << 20)?;
        within("max-merge-region-size", self.max_merge_region_size, 0, 1 << 20)?;
        let apart = self.max_merge_region_size.saturating_mul(4) <= self.region_split_size;
        require(
            "max-merge-region-size",
            apart,
            "at most a quarter of region-split-size, or regions merge and split in turn",
        )?;
        let ratios =
            0.0 < self.high_space_ratio && self.high_space_ratio < self.low_space_ratio && self.low_space_ratio < 1.0;
        require("low-space-ratio", ratios, "0 < high-space-ratio < low-space-ratio < 1")?;

        for (key, limit) in [
            ("leader-schedule-limit", self.leader_schedule_limit),
            ("region-schedule-limit", self.region_schedule_limit),
            ("replica-schedule-limit", self.replica_schedule_limit),
            ("merge-schedule-limit", self.merge_schedule_limit),
            ("hot-region-schedule-limit", self.hot_region_schedule_limit),
            ("split-schedule-limit", self.split_schedule_limit),
        ] {
            within(key, u64::from(limit), 0, 10_000)?;
        }
        for (key, limit) in [
            ("max-snapshot-count", self.max_snapshot_count),
            ("max-pending-peer-count", self.max_pending_peer_count),
            ("store-add-limit", self.store_add_limit),
            ("store-remove-limit", self.store_remove_limit),
        ] {
            within(key, u64::from(limit), 0, 100_000)?;
        }
        within("snap-io-max-bytes-per-sec", self.snap_io_max_bytes_per_sec, MIB, 1 << 40)?;
        within("evict-leader-stores", self.evict_leader_stores.len() as u64, 0, EVICT_LEADER_STORES_MAX as u64)
    }

    pub fn split_bytes(&self) -> u64 {
        self.region_split_size * MIB
    }

    pub fn merge_bytes(&self) -> u64 {
        self.max_merge_region_size * MIB
    }

    /// Whether two regions that carry so much together would be split for it again, or nearly.
    pub fn is_much(&self, requests_per_sec: u64, bytes_per_sec: u64) -> bool {
        let near = |value: u64, limit: u64| limit > 0 && value >= limit / 2;
        near(requests_per_sec, self.load_split_requests_per_sec) || near(bytes_per_sec, self.load_split_bytes_per_sec)
    }

    pub fn is_on(&self, scheduler: Scheduler) -> bool {
        self.why_off(scheduler).is_none()
    }

    /// Why a scheduler does nothing, in words.
    pub fn why_off(&self, scheduler: Scheduler) -> Option<String> {
        if !self.schedulers.contains(&scheduler) {
            return Some(format!("{scheduler} is off"));
        }
        let until = self.paused_schedulers.get(&scheduler)?;
        Some(format!("{scheduler} is paused until {until} (seconds since 1970)"))
    }

    /// Pauses that are over at `unix_s` are forgotten.
    pub fn end_pauses(&mut self, unix_s: u64) {
        self.paused_schedulers.retain(|_, until| *until > unix_s);
    }

    pub fn evicts_leaders_of(&self, store: NodeId) -> bool {
        self.evict_leader_stores.contains(&store.0)
    }
}

fn within(key: &str, value: u64, low: u64, high: u64) -> Result<(), PolicyError> {
    require(key, (low..=high).contains(&value), &format!("{low} to {high} is allowed, not {value}"))
}

fn require(key: &str, holds: bool, why: &str) -> Result<(), PolicyError> {
    if holds { Ok(()) } else { Err(PolicyError::Invalid { key: key.to_owned(), why: why.to_owned() }) }
}

/// Letters to insert, drop or replace to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Durations as Go writes them.
mod span {
    use super::*;

    pub fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format_span(*span))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Seconds(u64),
            Text(String),
        }
        let wrong = || serde::de::Error::custom("a duration such as 5m0s, 30s or 1h is wanted");
        match Either::deserialize(from).map_err(|_| wrong())? {
            Either::Seconds(seconds) => Ok(Duration::from_secs(seconds)),
            Either::Text(text) => parse_span(&text).ok_or_else(wrong),
        }
    }
}

/// `1h0m0s`, `5m0s`, `20s`, `1.5s`.
pub fn format_span(span: Duration) -> String {
    let (seconds, millis) = (span.as_secs(), span.subsec_millis());
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let rest = if millis == 0 { rest.to_string() } else { format!("{rest}.{millis:03}") };
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

fn parse_span(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let value: f64 = rest[..digits].parse().ok()?;
        let (scale, unit) = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .into_iter()
            .find(|(unit, _)| rest[digits..].starts_with(unit))
            .map(|(unit, scale)| (scale, unit.len()))?;
        seconds += value * scale;
        rest = &rest[digits + unit..];
    }
    if text.trim().is_empty() { None } else { Duration::try_from_secs_f64(seconds).ok() }
}

/// Lists of labels: one text with commas, or an array.
mod labels {
    use super::*;

    pub fn serialize<S: Serializer>(labels: &[String], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&labels.join(","))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Text(String),
            List(Vec<String>),
        }
        let wrong = |_| serde::de::Error::custom("labels such as \"zone,rack,host\" are wanted");
        Ok(match Either::deserialize(from).map_err(wrong)? {
            Either::Text(text) if text.trim().is_empty() => Vec::new(),
            Either::Text(text) => text.split(',').map(|label| label.trim().to_owned()).collect(),
            Either::List(list) => list,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(patch: Value, error: &str) {
        let got = Policy::default().merged(&patch).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(got.contains(error) && (got.is_empty() == error.is_empty()), "{patch}: got `{got}`, wanted `{error}`");
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let patch = json!({
            "max-snapshot-count": 3, "max-pending-peer-count": 16, "max-store-down-time": "30m0s",
            "location-labels": "zone, rack", "schedulers": ["balance-leader"], "evict-leader-stores": [4],
        });
        let policy = Policy::default().merged(&patch).unwrap();
        assert_eq!(policy.max_snapshot_count, 3);
        assert_eq!(policy.max_store_down_time, Duration::from_secs(1800));
        assert_eq!(policy.location_labels, ["zone", "rack"]);
        assert_eq!(policy.schedulers, BTreeSet::from([Scheduler::BalanceLeader]));
        assert!(policy.evicts_leaders_of(NodeId(4)));
        let untouched = Policy { max_pending_peer_count: 16, ..policy.clone() };
        assert_eq!(policy, untouched);
        assert_eq!(policy.merged(&policy.to_json()).unwrap(), policy, "what is written reads back");
        assert_eq!(policy.to_json()["max-store-down-time"], "30m0s");
        assert_eq!(policy.to_json()["schedulers"], json!(["balance-leader-scheduler"]));
    }

    #[test]
    fn wrong_patches_say_what_is_wrong() {
        check(json!({}), "");
        check(json!([1]), "a JSON object");
        check(json!({"max-replica": 3}), "unknown setting `max-replica`; the nearest known one is `max-replicas`");
        check(json!({"max-replicas": 0}), "setting `max-replicas`: 1 to 9 is allowed, not 0");
        check(json!({"max-replicas": "three"}), "setting `max-replicas`: invalid type");
        check(json!({"max-store-down-time": "soon"}), "a duration such as 5m0s");
        check(json!({"store-disconnected-time": "10m"}), "no longer than max-store-down-time");
        check(json!({"low-space-ratio": 0.6}), "0 < high-space-ratio < low-space-ratio < 1");
        check(json!({"max-merge-region-size": 900}), "a quarter of region-split-size");
        check(json!({"location-labels": "a,a"}), "each label once");
        check(json!({"schedulers": ["shuffle"]}), "unknown scheduler `shuffle`");
        check(json!({"low-space-ratio": 0.95, "high-space-ratio": 0.9}), "");
    }

    #[test]
    fn a_paused_scheduler_rests_until_the_pause_is_over() {
        let mut policy = Policy::default().merged(&json!({"paused-schedulers": {"balance-leader": 1000}})).unwrap();
        assert_eq!(policy.merged(&policy.to_json()).unwrap(), policy, "what is written reads back");
        assert!(!policy.is_on(Scheduler::BalanceLeader) && policy.is_on(Scheduler::BalanceRegion));
        assert!(policy.why_off(Scheduler::BalanceLeader).unwrap().contains("paused until 1000"));
        policy.end_pauses(999);
        assert!(!policy.is_on(Scheduler::BalanceLeader));
        policy.end_pauses(1000);
        assert_eq!(policy, Policy::default());
    }

    #[test]
    fn spans_read_as_they_are_written() {
        for (text, ms) in [("5m0s", 300_000), ("20s", 20_000), ("1h0m0s", 3_600_000), ("1.500s", 1500)] {
            assert_eq!(parse_span(text), Some(Duration::from_millis(ms)));
            assert_eq!(format_span(Duration::from_millis(ms)), text);
        }
        assert_eq!(parse_span("250ms"), Some(Duration::from_millis(250)));
        for wrong in ["", "5", "m", "5x", "1..2s", "-5s"] {
            assert_eq!(parse_span(wrong), None, "{wrong}");
        }
    }
}
