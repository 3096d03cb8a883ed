//! Which keys a busy region is asked for: a bounded sample, and where to cut so that the load falls apart.
//!
//! # When a cut is worth it
//! A sample is a number of requests, each with the first and the last key that it touched. A cut at key `k` leaves requests
//! on the left, on the right, and some that touch both sides and gain nothing. It is *useful* if a quarter of all lies on
//! each side at least, and a quarter at most touches both.
//! ```text
//!  one hot key               all of it on one side                    no cut
//!  scans over everything     all of them touch both sides             no cut
//!  keys that only grow       a cut in what was is left of what comes  found useful, and useless in the next sample
//! ```
//! For the last one a cut found in one sample has to prove itself in the next one ([`is_useful`]).

use base::Rng;
use bytes::Bytes;

/// Requests kept of a region.
pub const SAMPLES_MAX: usize = 128;
/// Fewer say nothing.
pub const SAMPLES_MIN: usize = 32;
/// Longer keys are cut off: what begins alike so far is not told apart.
const KEY_BYTES_MAX: usize = 256;

/// First and last key of a request.
pub type Touched = (Bytes, Bytes);

/// An even sample of all that was offered since it was last taken.
pub struct Reservoir {
    seen: u64,
    kept: Vec<Touched>,
    rng: Rng,
}

impl Reservoir {
    pub fn new(seed: u64) -> Reservoir {
        Reservoir { seen: 0, kept: Vec::new(), rng: Rng::new(seed) }
    }

    pub fn offer(&mut self, first: &[u8], last: &[u8]) {
        self.seen += 1;
        let short = |key: &[u8]| Bytes::copy_from_slice(&key[..key.len().min(KEY_BYTES_MAX)]);
        if self.kept.len() < SAMPLES_MAX {
            self.kept.push((short(first), short(last)));
            return;
        }
        let place = self.rng.below(self.seen) as usize;
        if let Some(kept) = self.kept.get_mut(place) {
            *kept = (short(first), short(last));
        }
    }

    /// What was kept; the next sample begins.
    pub fn take(&mut self) -> Vec<Touched> {
        self.seen = 0;
        std::mem::take(&mut self.kept)
    }
}

/// The key at which a cut divides the sample best, if one is useful.
pub fn choose(samples: &[Touched], start: &[u8]) -> Option<Bytes> {
    let mut keys: Vec<&Bytes> = samples.iter().map(|(first, _)| first).filter(|key| &key[..] > start).collect();
    keys.sort_unstable();
    keys.dedup();
    let useful = keys.into_iter().filter(|key| is_useful(samples, key));
    useful.min_by_key(|key| divided(samples, key).cost()).cloned()
}

/// Whether a cut there divides the sample.
pub fn is_useful(samples: &[Touched], key: &[u8]) -> bool {
    let Divided { left, right, both } = divided(samples, key);
    samples.len() >= SAMPLES_MIN
        && [left, right].iter().all(|side| side * 4 >= samples.len())
        && both * 4 <= samples.len()
}

struct Divided {
    left: usize,
    right: usize,
    both: usize,
}

impl Divided {
    fn cost(&self) -> usize {
        self.left.abs_diff(self.right) + self.both
    }
}

fn divided(samples: &[Touched], key: &[u8]) -> Divided {
    let left = samples.iter().filter(|(_, last)| &last[..] < key).count();
    let right = samples.iter().filter(|(first, _)| &first[..] >= key).count();
    Divided { left, right, both: samples.len() - left - right }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(requests: impl IntoIterator<Item = (String, String)>) -> Vec<Touched> {
        let mut reservoir = Reservoir::new(7);
        requests.into_iter().for_each(|(first, last)| reservoir.offer(first.as_bytes(), last.as_bytes()));
        reservoir.take()
    }

    fn points(keys: impl IntoIterator<Item = usize>) -> Vec<Touched> {
        sample(keys.into_iter().map(|key| (format!("k{key:05}"), format!("k{key:05}"))))
    }

    #[test]
    fn an_even_load_is_cut_in_the_middle() {
        let samples = points((0..10_000).map(|number| number * 7 % 1000));
        assert_eq!(samples.len(), SAMPLES_MAX);
        let key = choose(&samples, b"").unwrap();
        assert!((&b"k00350"[..]..&b"k00650"[..]).contains(&&key[..]), "{key:?}");
        assert!(is_useful(&points((0..1000).map(|number| number * 13 % 1000)), &key), "another sample says the same");
        assert_eq!(choose(&samples, b"l"), None, "a cut lies within the region");
        assert_eq!(choose(&points(0..SAMPLES_MIN - 1), b""), None, "too few to say");
    }

    #[test]
    fn what_a_cut_cannot_divide_is_left_whole() {
        assert_eq!(choose(&points(std::iter::repeat_n(7, 1000)), b""), None, "one hot key");
        let mostly_one = (0..1000).map(|number| if number % 10 < 8 { 500 } else { number });
        assert_eq!(choose(&points(mostly_one), b""), None, "one hot key among others");
        let scans = (0..1000).map(|number| (format!("a{:03}", number % 7), format!("z{:03}", number % 5)));
        assert_eq!(choose(&sample(scans), b""), None, "scans over everything");
        let long = "k".repeat(2 * KEY_BYTES_MAX);
        let alike = (0..1000).map(|number| (format!("{long}{number}"), format!("{long}{number}")));
        assert_eq!(choose(&sample(alike), b""), None, "keys alike for too long");
    }

    #[test]
    fn a_cut_in_keys_that_only_grow_does_not_prove_itself() {
        let key = choose(&points(0..1000), b"").expect("it looks useful");
        assert!(!is_useful(&points(1000..2000), &key));
    }
}
