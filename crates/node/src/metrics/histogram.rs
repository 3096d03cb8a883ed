//! Durations, counted where they happen: two relaxed additions, no lock and no clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::get;
use super::page::Observed;
use crate::stages::Durations;

/// Fine where requests should be, coarse beyond; 0.5 s is what alerts on slow writes ask for.
pub const REQUEST_BOUNDS_US: [u64; 26] = [
    100, 200, 300, 500, 750, 1_000, 1_500, 2_000, 3_000, 4_000, 5_000, 6_000, 8_000, 10_000, 15_000, 20_000, 30_000,
    50_000, 75_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
];

pub struct Histogram {
    bounds_us: &'static [u64],
    /// One more than bounds.
    buckets: Vec<AtomicU64>,
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn new(bounds_us: &'static [u64]) -> Histogram {
        let buckets = (0..=bounds_us.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds_us, buckets, sum_us: AtomicU64::new(0) }
    }

    pub fn observe(&self, took: Duration) {
        let us = took.as_micros() as u64;
        let bucket = self.bounds_us.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    pub fn read(&self) -> Observed {
        let counts: Vec<u64> = self.buckets.iter().map(get).collect();
        let buckets = self.bounds_us.iter().zip(&counts).map(|(bound, count)| (*bound as f64 / 1e6, *count)).collect();
        Observed { buckets, beyond: counts[self.bounds_us.len()], sum_seconds: get(&self.sum_us) as f64 / 1e6 }
    }
}

/// Buckets up to 0.125 ms, and twice as much each time; the last has no bound.
pub fn by_powers(durations: &Durations) -> Observed {
    let counts: Vec<u64> = durations.buckets.iter().map(get).collect();
    let (beyond, bounded) = counts.split_last().expect("there are buckets");
    let bound = |power: usize| 0.000_125 * (1u64 << power) as f64;
    let buckets = bounded.iter().enumerate().map(|(power, count)| (bound(power), *count)).collect();
    Observed { buckets, beyond: *beyond, sum_seconds: get(&durations.nanos) as f64 / 1e9 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_the_bucket_that_holds_them() {
        let histogram = Histogram::new(&[10, 20]);
        for us in [5, 10, 11, 20, 21] {
            histogram.observe(Duration::from_micros(us));
        }
        let seen = histogram.read();
        assert_eq!((seen.buckets, seen.beyond), (vec![(0.000_01, 2), (0.000_02, 2)], 1));
        assert!((seen.sum_seconds - 67e-6).abs() < 1e-12);
    }
}
