//! How many keys are live in a range, without walking it.
//!
//! The key space is cut into buckets of at most [`BUCKET_KEYS_MAX`] live keys. A count is the sum of the whole buckets
//! of a range and a walk through the two at its edges. The buckets are kept in memory (about 100 bytes for 90 keys)
//! and persisted, each under its first key (`b` in [`super::layout`]): a batch writes those whose count it changed, and
//! opening reads them all without touching the keys.
//!
//! The first bucket begins with the empty key and is always there; a bucket reaches up to the next one's first key. A
//! bucket that grew too big is cut up by walking it; one that is nearly empty is joined to its neighbour. Where the
//! cuts lie depends on how commands were batched, so that it differs between replicas: nothing outside can see it, and
//! it stands outside the rolling hash.
//!
//! The index is persistent in the other sense as well: buckets lie in blocks behind `Arc`s, so that every published
//! view keeps its own counts, and a batch copies the blocks that it changes and nothing else.

use std::sync::Arc;

use bytes::Bytes;
use consensus::MachineError;
use storage::{View, WriteBatch};

use super::layout::{self, BUCKET, KV, META, damaged};
use super::source::Source;

/// A bucket with more keys is cut up.
pub const BUCKET_KEYS_MAX: u32 = 128;
/// Into buckets of this many.
const BUCKET_KEYS_CUT: u32 = 64;
/// A bucket with fewer keys is joined to a neighbour, if both together stay at or below the size of a cut.
const BUCKET_KEYS_MIN: u32 = 16;
/// Buckets in a block, at most.
const BLOCK_BUCKETS_MAX: usize = 256;

/// The counts at one moment. Cloning copies a pointer.
#[derive(Clone, Debug)]
pub struct CountIndex {
    /// Never empty, and no block is.
    blocks: Arc<Vec<Block>>,
}

#[derive(Clone, Debug)]
struct Block {
    /// First keys, ascending.
    starts: Arc<Vec<Bytes>>,
    counts: Arc<Vec<u32>>,
    total: u64,
}

/// Where a bucket stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    block: usize,
    bucket: usize,
}

impl Default for CountIndex {
    fn default() -> CountIndex {
        CountIndex::from_buckets(vec![(Bytes::new(), 0)])
    }
}

impl CountIndex {
    /// Reads the persisted buckets.
    pub fn load(view: &dyn View) -> Result<CountIndex, MachineError> {
        let mut buckets = Vec::new();
        let mut walk = view.scan(META, &[BUCKET], Some(&[BUCKET + 1]));
        while walk.valid() {
            let count = walk.value().try_into().map(u32::from_le_bytes).map_err(|_| damaged("bucket", walk.value()))?;
            buckets.push((Bytes::copy_from_slice(&walk.key()[1..]), count));
            walk.advance();
        }
        walk.status()?;
        match buckets.first() {
            None => Ok(CountIndex::default()),
            Some((first, _)) if first.is_empty() => Ok(CountIndex::from_buckets(buckets)),
            Some((first, _)) => Err(damaged("first bucket", first)),
        }
    }

    fn from_buckets(buckets: Vec<(Bytes, u32)>) -> CountIndex {
        let blocks = buckets.chunks(BLOCK_BUCKETS_MAX / 2).map(|part| {
            let (starts, counts) = part.iter().cloned().unzip();
            Block::new(starts, counts)
        });
        CountIndex { blocks: Arc::new(blocks.collect()) }
    }

    /// All live keys.
    pub fn total(&self) -> u64 {
        self.blocks.iter().map(|block| block.total).sum()
    }

    /// Live keys in `from..to` as of `view`, which must be the one that these counts were published with.
    pub fn count(&self, view: &dyn View, from: &[u8], to: Option<&[u8]>) -> Result<u64, MachineError> {
        if to.is_some_and(|to| to <= from) {
            return Ok(0);
        }
        let first = self.place(from);
        // The bucket in which the range ends, and where it begins; past the last one for an open range.
        let (last, last_start) = match to {
            Some(to) => {
                let last = self.place(to);
                (last, self.start(last))
            }
            None => (Place { block: self.blocks.len(), bucket: 0 }, &[][..]),
        };
        let from_edge = self.start(first) == from || first == (Place { block: 0, bucket: 0 }) && from == [0];
        if first == last {
            return walk_count(view, from, to);
        }
        let head = match self.next(first) {
            _ if from_edge => u64::from(self.count_of(first)),
            next => walk_count(view, from, next.map(|next| self.start(next)))?,
        };
        let tail = match to {
            Some(to) if to > last_start => walk_count(view, last_start, Some(to))?,
            _ => 0,
        };
        Ok(head + self.sum_between(first, last) + tail)
    }

    /// Where the bucket that a key lies in ends; `None` for the last one.
    pub fn bucket_end(&self, key: &[u8]) -> Option<&[u8]> {
        self.next(self.place(key)).map(|next| self.start(next))
    }

    /// Takes over what a batch did to the key set: keys that came (+1) and went (-1), in order. `source` must show the
    /// store after the batch. The buckets touched are added to `batch`.
    pub fn settle<'d>(
        &mut self,
        changes: impl Iterator<Item = (&'d Bytes, i32)>,
        source: &Source<'_>,
        batch: &mut WriteBatch,
    ) -> Result<(), MachineError> {
        let mut touched: Vec<Bytes> = Vec::new();
        let mut here: Option<(Place, Option<Bytes>)> = None;
        for (key, change) in changes {
            let place = match &here {
                Some((place, end)) if end.as_ref().is_none_or(|end| key < end) => *place,
                _ => {
                    let place = self.place(key);
                    touched.push(self.blocks[place.block].starts[place.bucket].clone());
                    here = Some((place, self.next(place).map(|next| self.start_bytes(next))));
                    place
                }
            };
            self.add(place, change)?;
        }
        for start in touched {
            let place = self.place(&start);
            if self.start(place) != start {
                continue; // Joined to its neighbour, which was persisted then.
            }
            let count = self.count_of(place);
            if count > BUCKET_KEYS_MAX {
                self.cut(place, source, batch)?;
            } else if count < BUCKET_KEYS_MIN && self.join(place, batch) {
                continue;
            } else {
                batch.put(META, &layout::bucket_key(&start), &count.to_le_bytes());
            }
        }
        Ok(())
    }

    fn add(&mut self, place: Place, change: i32) -> Result<(), MachineError> {
        let block = &mut Arc::make_mut(&mut self.blocks)[place.block];
        let count = &mut Arc::make_mut(&mut block.counts)[place.bucket];
        let sum = count.checked_add_signed(change);
        *count = sum.ok_or_else(|| damaged("count of bucket", &block.starts[place.bucket]))?;
        block.total = block.total.saturating_add_signed(i64::from(change));
        Ok(())
    }

    /// Cuts a bucket into several by walking it.
    fn cut(&mut self, place: Place, source: &Source<'_>, batch: &mut WriteBatch) -> Result<(), MachineError> {
        let start = self.start_bytes(place);
        let end = self.next(place).map(|next| self.start_bytes(next));
        let mut pieces = vec![(start.clone(), 0_u32)];
        let mut left = self.count_of(place);
        let mut walk = source.walk(KV, &start, end.as_deref());
        while walk.valid() {
            let (_, count) = pieces.last_mut().expect("begins with one");
            // The last piece keeps the remainder, so that none is born nearly empty.
            if *count >= BUCKET_KEYS_CUT && left >= BUCKET_KEYS_CUT / 2 {
                pieces.push((Bytes::copy_from_slice(walk.key()), 1));
            } else {
                *count += 1;
            }
            left = left.saturating_sub(1);
            walk.advance();
        }
        walk.status()?;
        for (start, count) in &pieces {
            batch.put(META, &layout::bucket_key(start), &count.to_le_bytes());
        }
        let blocks = Arc::make_mut(&mut self.blocks);
        let block = &mut blocks[place.block];
        let (starts, counts) = pieces.into_iter().unzip::<_, _, Vec<_>, Vec<_>>();
        Arc::make_mut(&mut block.starts).splice(place.bucket..=place.bucket, starts);
        Arc::make_mut(&mut block.counts).splice(place.bucket..=place.bucket, counts);
        block.total = block.counts.iter().map(|count| u64::from(*count)).sum();
        if block.starts.len() > BLOCK_BUCKETS_MAX {
            let parts = block.starts.chunks(BLOCK_BUCKETS_MAX / 2).zip(block.counts.chunks(BLOCK_BUCKETS_MAX / 2));
            let parts: Vec<Block> =
                parts.map(|(starts, counts)| Block::new(starts.to_vec(), counts.to_vec())).collect();
            blocks.splice(place.block..=place.block, parts);
        }
        Ok(())
    }

    /// Joins a bucket to a neighbour, if one is small enough.
    fn join(&mut self, place: Place, batch: &mut WriteBatch) -> bool {
        let count = self.count_of(place);
        let fits = |index: &CountIndex, other: Place| count + index.count_of(other) <= BUCKET_KEYS_CUT;
        let pair = match (self.previous(place), self.next(place)) {
            (Some(previous), _) if fits(self, previous) => (previous, place),
            (_, Some(next)) if fits(self, next) => (place, next),
            _ => return false,
        };
        let (kept, gone) = pair;
        let moved = self.count_of(gone);
        batch.delete(META, &layout::bucket_key(self.start(gone)));
        let sum = self.count_of(kept) + moved;
        batch.put(META, &layout::bucket_key(self.start(kept)), &sum.to_le_bytes());
        let blocks = Arc::make_mut(&mut self.blocks);
        let block = &mut blocks[kept.block];
        Arc::make_mut(&mut block.counts)[kept.bucket] = sum;
        block.total += u64::from(moved);
        let block = &mut blocks[gone.block];
        block.total -= u64::from(moved);
        Arc::make_mut(&mut block.starts).remove(gone.bucket);
        Arc::make_mut(&mut block.counts).remove(gone.bucket);
        if block.starts.is_empty() {
            blocks.remove(gone.block);
        }
        true
    }

    /// The bucket that a key lies in.
    fn place(&self, key: &[u8]) -> Place {
        let block = self.blocks.partition_point(|block| &block.starts[0][..] <= key).saturating_sub(1);
        let bucket = self.blocks[block].starts.partition_point(|start| &start[..] <= key).saturating_sub(1);
        Place { block, bucket }
    }

    fn start(&self, place: Place) -> &[u8] {
        &self.blocks[place.block].starts[place.bucket]
    }

    fn start_bytes(&self, place: Place) -> Bytes {
        self.blocks[place.block].starts[place.bucket].clone()
    }

    fn count_of(&self, place: Place) -> u32 {
        self.blocks[place.block].counts[place.bucket]
    }

    fn next(&self, place: Place) -> Option<Place> {
        if place.bucket + 1 < self.blocks[place.block].starts.len() {
            Some(Place { bucket: place.bucket + 1, ..place })
        } else {
            (place.block + 1 < self.blocks.len()).then_some(Place { block: place.block + 1, bucket: 0 })
        }
    }

    fn previous(&self, place: Place) -> Option<Place> {
        if place.bucket > 0 {
            Some(Place { bucket: place.bucket - 1, ..place })
        } else {
            let block = place.block.checked_sub(1)?;
            Some(Place { block, bucket: self.blocks[block].starts.len() - 1 })
        }
    }

    /// Live keys of the buckets after `first` and before `last`.
    fn sum_between(&self, first: Place, last: Place) -> u64 {
        let sum = |counts: &[u32]| counts.iter().map(|count| u64::from(*count)).sum::<u64>();
        if first.block == last.block {
            return sum(&self.blocks[first.block].counts[first.bucket + 1..last.bucket]);
        }
        let head = sum(&self.blocks[first.block].counts[first.bucket + 1..]);
        let middle: u64 = self.blocks[first.block + 1..last.block].iter().map(|block| block.total).sum();
        let tail = self.blocks.get(last.block).map_or(0, |block| sum(&block.counts[..last.bucket]));
        head + middle + tail
    }
}

impl Block {
    fn new(starts: Vec<Bytes>, counts: Vec<u32>) -> Block {
        let total = counts.iter().map(|count| u64::from(*count)).sum();
        Block { starts: Arc::new(starts), counts: Arc::new(counts), total }
    }
}

fn walk_count(view: &dyn View, from: &[u8], to: Option<&[u8]>) -> Result<u64, MachineError> {
    let mut count = 0;
    let mut walk = view.scan(KV, from, to);
    while walk.valid() {
        count += 1;
        walk.advance();
    }
    walk.status()?;
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use base::Rng;
    use storage::Engine;
    use storage::memengine::MemEngine;

    use super::super::source::{Overlays, Staged};
    use super::*;

    /// A key set kept in an engine, with an index that must agree with a plain set.
    struct Check {
        engine: MemEngine,
        index: CountIndex,
        keys: BTreeSet<Bytes>,
    }

    impl Check {
        fn apply(&mut self, changes: &[(Bytes, bool)]) {
            let mut overlays = Overlays::default();
            let mut batch = WriteBatch::new();
            for (key, live) in changes {
                let existed = self.engine.get(KV, key).unwrap().is_some();
                overlays.kv.insert(key.clone(), Staged { existed, now: live.then(Bytes::new) });
                if *live {
                    self.keys.insert(key.clone());
                    batch.put(KV, key, b"");
                } else {
                    self.keys.remove(key);
                    batch.delete(KV, key);
                }
            }
            let view = self.engine.view();
            let before = self.index.clone();
            let source = Source::staged(&*view, &before, &overlays);
            let changes = overlays.kv.iter().filter_map(|(key, staged)| match (staged.existed, staged.now.is_some()) {
                (false, true) => Some((key, 1)),
                (true, false) => Some((key, -1)),
                _ => None,
            });
            self.index.settle(changes, &source, &mut batch).unwrap();
            self.engine.write(&batch).unwrap();
        }

        fn compare(&self, rng: &mut Rng) {
            let view = self.engine.view();
            let loaded = CountIndex::load(&*view).unwrap();
            assert_eq!(self.index.total(), self.keys.len() as u64);
            let buckets = |index: &CountIndex| -> Vec<(Bytes, u32)> {
                let all = index.blocks.iter();
                all.flat_map(|block| block.starts.iter().cloned().zip(block.counts.iter().copied())).collect()
            };
            assert_eq!(buckets(&loaded), buckets(&self.index));
            for block in self.index.blocks.iter() {
                assert!(!block.starts.is_empty() && block.starts.len() <= BLOCK_BUCKETS_MAX);
                assert!(block.counts.iter().all(|count| *count <= BUCKET_KEYS_MAX));
                assert_eq!(block.total, block.counts.iter().map(|count| u64::from(*count)).sum::<u64>());
            }
            for _ in 0..20 {
                let (from, to) = (key(rng, 60_000), rng.percent(80).then(|| key(rng, 60_000)));
                let truth = self.keys.iter().filter(|key| **key >= from && to.as_ref().is_none_or(|to| *key < to));
                let counted = self.index.count(&*view, &from, to.as_deref()).unwrap();
                assert_eq!(counted, truth.count() as u64, "{from:?} {to:?}");
            }
            let all = self.index.count(&*view, &[0], None).unwrap();
            assert_eq!(all, self.keys.len() as u64);
        }
    }

    fn key(rng: &mut Rng, bound: u64) -> Bytes {
        format!("key{:05}", rng.below(bound)).into()
    }

    #[test]
    fn counts_agree_with_a_plain_set_through_growth_and_decay() {
        let mut rng = Rng::new(11);
        let mut check =
            Check { engine: MemEngine::new(&layout::FAMILIES), index: CountIndex::default(), keys: BTreeSet::new() };
        check.compare(&mut rng);
        for round in 0..120 {
            let growing = (round / 30) % 2 == 0;
            let size = [1, 10, 300, 2_000][rng.below(4) as usize];
            let mut changes: Vec<_> = (0..size)
                .map(|_| (key(&mut rng, 60_000), if growing { rng.percent(95) } else { rng.percent(15) }))
                .collect();
            if !growing && rng.percent(30) {
                let from = key(&mut rng, 60_000);
                changes.extend(check.keys.range(from..).take(9_000).map(|key| (key.clone(), false)));
            }
            check.apply(&changes);
            check.compare(&mut rng);
        }
        let rest: Vec<_> = check.keys.iter().map(|key| (key.clone(), false)).collect();
        check.apply(&rest);
        check.compare(&mut rng);
        assert_eq!(check.index.total(), 0);
        assert_eq!(check.index.blocks.len(), 1);
    }
}
