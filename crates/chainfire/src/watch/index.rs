//! Who is interested in a key: exact keys by hash, ranges by an interval structure, so that an event finds its
//! watchers without walking all of them.
//!
//! An interest is a distinct range with a value of the caller's; equal ranges share one. Ranges with an end stand in
//! [`Intervals`]: an array sorted by start that is read as a balanced tree, each node knowing the greatest end below
//! it, plus a short list of latecomers that is merged in when it grows. No shape of the input makes it deep or large:
//! a lookup costs O((1 + hits) · log n) comparisons, an insert O(256) moves on average.

use std::collections::HashMap;

use bytes::Bytes;

use super::range::{KeyRange, RangeEnd};

/// The number of an interest; numbers of removed interests are used again.
pub type InterestId = u32;

/// A map from ranges to values that is asked by key.
pub struct RangeIndex<T> {
    interests: Vec<Option<(KeyRange, T)>>,
    free: Vec<InterestId>,
    exact: HashMap<Bytes, InterestId>,
    ranges: HashMap<KeyRange, InterestId>,
    intervals: Intervals,
}

impl<T> Default for RangeIndex<T> {
    fn default() -> Self {
        RangeIndex {
            interests: Vec::new(),
            free: Vec::new(),
            exact: HashMap::new(),
            ranges: HashMap::new(),
            intervals: Intervals::default(),
        }
    }
}

impl<T> RangeIndex<T> {
    /// The interest in this very range, made with `new` if there is none yet.
    pub fn intern(&mut self, range: &KeyRange, new: impl FnOnce() -> T) -> InterestId {
        let known = match range.end {
            RangeEnd::Single => self.exact.get(&range.start),
            _ => self.ranges.get(range),
        };
        if let Some(id) = known {
            return *id;
        }
        let entry = Some((range.clone(), new()));
        let id = match self.free.pop() {
            Some(id) => {
                self.interests[id as usize] = entry;
                id
            }
            None => {
                self.interests.push(entry);
                u32::try_from(self.interests.len() - 1).expect("watchers are bounded far below 2^32")
            }
        };
        match &range.end {
            RangeEnd::Single => {
                self.exact.insert(range.start.clone(), id);
            }
            end => {
                let end = match end {
                    RangeEnd::Before(end) => Some(end.clone()),
                    _ => None,
                };
                self.ranges.insert(range.clone(), id);
                self.intervals.insert(Interval { start: range.start.clone(), end, id });
            }
        }
        id
    }

    /// Forgets an interest.
    pub fn remove(&mut self, id: InterestId) {
        let Some((range, _)) = self.interests.get_mut(id as usize).and_then(Option::take) else { return };
        match range.end {
            RangeEnd::Single => {
                self.exact.remove(&range.start);
            }
            _ => {
                self.ranges.remove(&range);
                self.intervals.remove(&range.start, id);
            }
        }
        self.free.push(id);
    }

    pub fn get_mut(&mut self, id: InterestId) -> Option<&mut T> {
        self.interests.get_mut(id as usize)?.as_mut().map(|(_, value)| value)
    }

    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.ranges.is_empty()
    }

    /// How many interests are not in a single key.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Appends the interests in `key` to `out`, each once.
    pub fn find(&self, key: &[u8], out: &mut Vec<InterestId>) {
        if let Some(id) = self.exact.get(key) {
            out.push(*id);
        }
        self.intervals.find(key, out);
    }
}

struct Interval {
    start: Bytes,
    /// `None` is without end.
    end: Option<Bytes>,
    id: InterestId,
}

impl Interval {
    fn contains(&self, key: &[u8]) -> bool {
        &self.start[..] <= key && self.end.as_ref().is_none_or(|end| key < &end[..])
    }
}

/// See the file header. `sorted` and `greatest_end` run in parallel; the tree over `low..high` has its root in the
/// middle, and `greatest_end` of the root covers the whole slice.
#[derive(Default)]
struct Intervals {
    sorted: Vec<Interval>,
    greatest_end: Vec<Option<Bytes>>,
    latecomers: Vec<Interval>,
    /// Removed intervals that still stand in `sorted`.
    dead: usize,
}

impl Intervals {
    fn insert(&mut self, interval: Interval) {
        self.latecomers.push(interval);
        if self.latecomers.len() > 64 + self.sorted.len() / 256 {
            self.merge();
        }
    }

    fn remove(&mut self, start: &Bytes, id: InterestId) {
        if let Some(at) = self.latecomers.iter().position(|interval| interval.id == id) {
            self.latecomers.swap_remove(at);
            return;
        }
        let first = self.sorted.partition_point(|interval| interval.start < *start);
        let found = self.sorted[first..].iter().position(|interval| interval.id == id);
        let at = first + found.expect("an interval is in one of the two lists from insert to remove");
        // An empty interval: it contains no key and stays in order until the next merge drops it.
        let dead = &mut self.sorted[at];
        dead.end = Some(Bytes::new());
        dead.id = DEAD;
        // `greatest_end` may be too great from here on, which costs time but no truth.
        self.dead += 1;
        if self.dead > 64 + self.sorted.len() / 4 {
            self.merge();
        }
    }

    fn merge(&mut self) {
        self.sorted.retain(|interval| interval.id != DEAD);
        self.dead = 0;
        self.sorted.append(&mut self.latecomers);
        self.sorted.sort_by(|a, b| a.start.cmp(&b.start));
        self.greatest_end = vec![None; self.sorted.len()];
        self.measure(0, self.sorted.len());
    }

    /// Fills in `greatest_end` for `low..high` and returns it (`Some(empty)` for an empty slice).
    fn measure(&mut self, low: usize, high: usize) -> Option<Bytes> {
        if low >= high {
            return Some(Bytes::new());
        }
        let middle = low + (high - low) / 2;
        let (left, right) = (self.measure(low, middle), self.measure(middle + 1, high));
        let own = self.sorted[middle].end.clone();
        let greatest = match (left, right, own) {
            (Some(a), Some(b), Some(c)) => Some(a.max(b).max(c)),
            _ => None,
        };
        self.greatest_end[middle] = greatest.clone();
        greatest
    }

    fn find(&self, key: &[u8], out: &mut Vec<InterestId>) {
        out.extend(self.latecomers.iter().filter(|interval| interval.contains(key)).map(|interval| interval.id));
        self.find_sorted(0, self.sorted.len(), key, out);
    }

    fn find_sorted(&self, low: usize, high: usize, key: &[u8], out: &mut Vec<InterestId>) {
        if low >= high {
            return;
        }
        let middle = low + (high - low) / 2;
        if self.greatest_end[middle].as_ref().is_some_and(|end| &end[..] <= key) {
            return;
        }
        self.find_sorted(low, middle, key, out);
        let interval = &self.sorted[middle];
        if &interval.start[..] <= key {
            if interval.contains(key) {
                out.push(interval.id);
            }
            self.find_sorted(middle + 1, high, key, out);
        }
    }
}

const DEAD: InterestId = InterestId::MAX;

#[cfg(test)]
mod tests {
    use base::Rng;

    use super::*;

    /// Against a plain list of ranges, under random inserts and removes.
    #[test]
    fn finds_what_a_walk_finds() {
        for seed in 0..60 {
            let mut rng = Rng::new(seed);
            let mut index = RangeIndex::default();
            let mut model: Vec<(InterestId, KeyRange)> = Vec::new();
            let key = |rng: &mut Rng| {
                let length = 1 + rng.below(3);
                Bytes::from((0..length).map(|_| b'a' + rng.below(6) as u8).collect::<Vec<_>>())
            };
            for step in 0..1_500 {
                if rng.percent(if step < 900 { 70 } else { 30 }) {
                    let end = match rng.below(4) {
                        0 => Bytes::new(),
                        1 if rng.percent(20) => Bytes::from_static(&[0]),
                        _ => key(&mut rng),
                    };
                    let Some(range) = KeyRange::from_wire(key(&mut rng), end) else { continue };
                    let id = index.intern(&range, || ());
                    match model.iter().find(|(_, known)| *known == range) {
                        Some((known, _)) => assert_eq!(*known, id),
                        None => model.push((id, range)),
                    }
                } else if !model.is_empty() {
                    let (id, _) = model.swap_remove(rng.below(model.len() as u64) as usize);
                    index.remove(id);
                    assert!(index.get_mut(id).is_none());
                }
                let probe = key(&mut rng);
                let mut found = Vec::new();
                index.find(&probe, &mut found);
                found.sort_unstable();
                let mut expected: Vec<_> =
                    model.iter().filter(|(_, range)| range.contains(&probe)).map(|(id, _)| *id).collect();
                expected.sort_unstable();
                assert_eq!(found, expected, "seed {seed} step {step} key {probe:?}");
                assert_eq!(index.is_empty(), model.is_empty());
            }
        }
    }
}
