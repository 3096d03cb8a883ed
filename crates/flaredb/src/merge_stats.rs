//! What has become of the merges that this store has led, in numbers.
//!
//! A merge is counted as over by the store that leads the frozen region when that shows: it is gone, or goes on as it was. With
//! a change of leaders in between, that is another store than the one that counted its begin.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::Time;
use node::metrics::{Histogram, Observed, get};
use parking_lot::Mutex;

/// A frozen region answers nobody: what clients would notice is told apart.
const FROZEN_BOUNDS_US: [u64; 12] = [
    10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
    60_000_000,
];

/// Why a frozen region is not merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GivenUp {
    MembersMissing,
    MembersChanged,
    TargetRefused,
    /// Or somebody else has given it up there.
    TargetChanged,
}

impl GivenUp {
    pub const ALL: [GivenUp; 4] =
        [GivenUp::MembersMissing, GivenUp::MembersChanged, GivenUp::TargetRefused, GivenUp::TargetChanged];

    pub fn name(self) -> &'static str {
        match self {
            GivenUp::MembersMissing => "members-missing",
            GivenUp::MembersChanged => "members-changed",
            GivenUp::TargetRefused => "target-refused",
            GivenUp::TargetChanged => "target-changed",
        }
    }
}

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GivenUp::MembersMissing => "not all of its members are there in time",
            GivenUp::MembersChanged => "its members have changed",
            GivenUp::TargetRefused => "the neighbour cannot take it in as it is",
            GivenUp::TargetChanged => "the neighbour has changed",
        })
    }
}

pub struct MergeStats {
    begun: AtomicU64,
    done: AtomicU64,
    given_up: [AtomicU64; GivenUp::ALL.len()],
    frozen: Histogram,
    /// Since when the region has been frozen that has been so for longest.
    oldest: Mutex<Option<Time>>,
}

/// As of one moment.
#[derive(Default)]
pub struct Merges {
    pub begun: u64,
    pub done: u64,
    pub given_up: BTreeMap<&'static str, u64>,
    pub frozen: Observed,
    /// Zero: no region that is led here is frozen.
    pub frozen_for: Duration,
}

impl Default for MergeStats {
    fn default() -> MergeStats {
        MergeStats {
            begun: AtomicU64::new(0),
            done: AtomicU64::new(0),
            given_up: Default::default(),
            frozen: Histogram::new(&FROZEN_BOUNDS_US),
            oldest: Mutex::default(),
        }
    }
}

impl MergeStats {
    pub fn begun(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// A region is frozen no more, because it is part of another one (`None`) or goes on as it was.
    pub fn over(&self, why: Option<GivenUp>, frozen: Duration) {
        let count = why.map_or(&self.done, |why| &self.given_up[why as usize]);
        count.fetch_add(1, Ordering::Relaxed);
        self.frozen.observe(frozen);
    }

    pub fn frozen_since(&self, oldest: Option<Time>) {
        *self.oldest.lock() = oldest;
    }

    pub fn read(&self, now: Time) -> Merges {
        Merges {
            begun: get(&self.begun),
            done: get(&self.done),
            given_up: GivenUp::ALL.map(|why| (why.name(), get(&self.given_up[why as usize]))).into(),
            frozen: self.frozen.read(),
            frozen_for: self.oldest.lock().map_or(Duration::ZERO, |since| now.since(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_count_by_what_came_of_the_merge() {
        let stats = MergeStats::default();
        (0..3).for_each(|_| stats.begun());
        stats.over(None, Duration::from_millis(30));
        stats.over(Some(GivenUp::TargetRefused), Duration::from_secs(6));
        stats.frozen_since(Some(Time::from_millis(500)));
        let read = stats.read(Time::from_millis(2500));
        assert_eq!((read.begun, read.done, read.frozen_for), (3, 1, Duration::from_secs(2)));
        let given_up = [("members-changed", 0), ("members-missing", 0), ("target-changed", 0), ("target-refused", 1)];
        assert_eq!(read.given_up, given_up.into());
        let within = |bound: f64| read.frozen.buckets.iter().find(|(at, _)| *at == bound).unwrap().1;
        assert_eq!((within(0.05), within(10.0), read.frozen.beyond), (1, 1, 0));
        stats.frozen_since(None);
        assert_eq!(stats.read(Time::from_millis(2500)).frozen_for, Duration::ZERO);
    }
}
