//! Latencies, counted in buckets whose width grows with the value.
//!
//! Each power of two is cut into 64 buckets, so a quantile is exact to 1/64 of its value at any magnitude, recording is
//! one increment, and two histograms add up. Values are nanoseconds; below 64 ns they are exact.
//!
//! Left out: removal and decay. A histogram covers one measured window and is thrown away.

use std::time::Duration;

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
/// Values from `2^41` ns (36 minutes) on share the last bucket.
const MAGNITUDES: usize = 36;
const BUCKETS: usize = SUB * MAGNITUDES;

#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    largest_ns: u64,
}

impl Histogram {
    pub fn new() -> Histogram {
        Histogram { counts: vec![0; BUCKETS], total: 0, largest_ns: 0 }
    }

    pub fn record(&mut self, latency: Duration) {
        let value = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(value)] += 1;
        self.total += 1;
        self.largest_ns = self.largest_ns.max(value);
    }

    pub fn add(&mut self, other: &Histogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.total += other.total;
        self.largest_ns = self.largest_ns.max(other.largest_ns);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// The smallest latency that at least `share` (0 to 1) of all recorded ones do not exceed; zero when empty.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(middle(index).min(self.largest_ns));
            }
        }
        Duration::ZERO
    }
}

/// Values below `SUB` have a bucket each; above, the magnitude picks a row and the next six bits the place in it.
fn bucket(value: u64) -> usize {
    if value < SUB as u64 {
        return value as usize;
    }
    let magnitude = 63 - value.leading_zeros();
    let row = (magnitude - SUB_BITS + 1) as usize;
    let place = (value >> (magnitude - SUB_BITS)) as usize & (SUB - 1);
    (row * SUB + place).min(BUCKETS - 1)
}

/// The value in the middle of a bucket.
fn middle(index: usize) -> u64 {
    let (row, place) = (index / SUB, index % SUB);
    if row == 0 {
        return place as u64;
    }
    let width = 1u64 << (row - 1);
    (SUB + place) as u64 * width + width / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_falls_in_a_bucket_close_to_it() {
        let mut value = 1u64;
        while value < 1 << 40 {
            for near in [value - 1, value, value + 1, value + value / 3] {
                let found = middle(bucket(near));
                assert!(found.abs_diff(near) * 64 <= near.max(1), "{near} was taken for {found}");
            }
            value *= 2;
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn buckets_are_ordered() {
        let mut last = 0;
        for value in (0..200_000).chain((0..40).map(|p| 1u64 << p).skip(18)) {
            assert!(bucket(value) >= last);
            last = bucket(value);
        }
    }

    #[test]
    fn quantiles_of_a_known_row() {
        let mut histogram = Histogram::new();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        let close = |found: Duration, micros: u64| {
            let found = found.as_micros() as u64;
            assert!(found.abs_diff(micros) <= micros / 60 + 1, "{found} is not near {micros}");
        };
        close(histogram.quantile(0.5), 500);
        close(histogram.quantile(0.99), 990);
        close(histogram.quantile(1.0), 1000);
        close(histogram.quantile(0.0), 1);
        assert_eq!(histogram.quantile(1.0), Duration::from_millis(1));
    }

    #[test]
    fn sums_count_both_and_empty_is_zero() {
        let (mut a, mut b) = (Histogram::new(), Histogram::new());
        assert_eq!(a.quantile(0.99), Duration::ZERO);
        a.record(Duration::from_millis(1));
        b.record(Duration::from_millis(100));
        a.add(&b);
        assert_eq!(a.count(), 2);
        assert!(a.quantile(1.0) >= Duration::from_millis(99));
    }
}
