//! Live records of keys that were written lately.
//!
//! Each put needs the version that it replaces: it goes to `old`, to the watchers, and gives birth and version number.
//! Reading it back from the engine is a third of a put's cost, and what is written once is often written again, so the
//! machine remembers it. Only the machine's own writes and reads come here; the answers are those that the engine
//! would give, whatever is remembered and whatever is not.
//!
//! A table of groups of places, a key's group chosen by its hash. A look at a group takes one cache line for the tags, and
//! one for the record that a tag points at. A full group gives up its places in turn, and so do all groups in turn when
//! the records together grow beyond [`BYTES_MAX`]. The table doubles while it is small, so that a small store costs
//! little.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::record::key_of;

/// Bytes of records and their bookkeeping, at most.
const BYTES_MAX: usize = 64 << 20;
/// A bigger record is not remembered.
const RECORD_BYTES_MAX: usize = 16 << 10;
/// What a place and an allocation add to a record, about.
const OVERHEAD_BYTES: usize = 64;
const WAYS: usize = 8;
const GROUPS_MIN: usize = 128;
const GROUPS_MAX: usize = 1 << 15;

/// What is remembered.
#[derive(Debug, Default)]
pub struct Recent {
    /// A power of two of them, or none.
    groups: Vec<Group>,
    records: usize,
    bytes: usize,
    /// The place that is given up next when all is full.
    hand: usize,
}

#[derive(Clone, Debug, Default)]
struct Group {
    /// The upper halves of the keys' hashes.
    tags: [u32; WAYS],
    /// Empty where the place is free.
    records: [Bytes; WAYS],
}

impl Recent {
    /// The live version of a key, if it is remembered.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        let hash = xxh3_64(key);
        let group = self.groups.get(self.group(hash))?;
        group.find(tag(hash), key).map(|place| group.records[place].clone())
    }

    /// Remembers a live version. The memory of `record` is kept; it should not be a small part of something big.
    pub fn put(&mut self, key: &[u8], record: Bytes) {
        if record.len() > RECORD_BYTES_MAX {
            self.remove(key);
            return;
        }
        if self.records * 2 >= self.groups.len() * WAYS && self.groups.len() < GROUPS_MAX {
            self.grow();
        }
        let hash = xxh3_64(key);
        let index = self.group(hash);
        let group = &self.groups[index];
        let place = group.find(tag(hash), key).or_else(|| group.free()).unwrap_or(self.hand % WAYS);
        self.hand = self.hand.wrapping_add(1);
        self.set(index, place, tag(hash), record);
        while self.bytes > BYTES_MAX {
            self.hand = self.hand.wrapping_add(1);
            let group = (self.hand / WAYS) & (self.groups.len() - 1);
            self.set(group, self.hand % WAYS, 0, Bytes::new());
        }
    }

    pub fn remove(&mut self, key: &[u8]) {
        let hash = xxh3_64(key);
        let index = self.group(hash);
        if let Some(place) = self.groups.get(index).and_then(|group| group.find(tag(hash), key)) {
            self.set(index, place, 0, Bytes::new());
        }
    }

    fn group(&self, hash: u64) -> usize {
        hash as usize & self.groups.len().wrapping_sub(1)
    }

    fn set(&mut self, group: usize, place: usize, tag: u32, record: Bytes) {
        let weight = |record: &Bytes| if record.is_empty() { 0 } else { record.len() + OVERHEAD_BYTES };
        let group = &mut self.groups[group];
        let before = &group.records[place];
        self.bytes = self.bytes + weight(&record) - weight(before);
        self.records = self.records + usize::from(!record.is_empty()) - usize::from(!before.is_empty());
        (group.tags[place], group.records[place]) = (tag, record);
    }

    fn grow(&mut self) {
        let size = (self.groups.len() * 2).max(GROUPS_MIN);
        let before = std::mem::replace(&mut self.groups, vec![Default::default(); size]);
        (self.records, self.bytes) = (0, 0);
        for record in before.into_iter().flat_map(|group| group.records).filter(|record| !record.is_empty()) {
            let hash = xxh3_64(key_of(&record).expect("only records are remembered"));
            let index = self.group(hash);
            // A group splits in two, so that there is always room.
            if let Some(free) = self.groups[index].free() {
                self.set(index, free, tag(hash), record);
            }
        }
    }
}

impl Group {
    fn find(&self, tag: u32, key: &[u8]) -> Option<usize> {
        (0..WAYS).find(|place| {
            // Of a free place the key cannot be read.
            self.tags[*place] == tag && key_of(&self.records[*place]).is_ok_and(|known| known == key)
        })
    }

    fn free(&self) -> Option<usize> {
        self.records.iter().position(Bytes::is_empty)
    }
}

fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base::Rng;

    use super::super::record::Record;
    use super::*;

    #[test]
    fn what_is_remembered_is_what_was_put_last() {
        let mut rng = Rng::new(2);
        let (mut recent, mut truth) = (Recent::default(), BTreeMap::new());
        let mut hits = 0;
        for _ in 0..400_000 {
            let key = format!("key{}", rng.below(20_000)).into_bytes();
            match rng.below(10) {
                0 => {
                    recent.remove(&key);
                    truth.remove(&key);
                }
                1..5 => {
                    let length = if rng.percent(1) { 20_000 } else { rng.below(6_000) as usize };
                    let value = vec![rng.next_u64() as u8; length];
                    let mut bytes = Vec::new();
                    Record { key: &key, value: &value, ..Record::default() }.write(&mut bytes);
                    recent.put(&key, Bytes::from(bytes.clone()));
                    truth.insert(key, Bytes::from(bytes));
                }
                _ => {
                    if let Some(record) = recent.get(&key) {
                        assert_eq!(Some(&record), truth.get(&key));
                        hits += 1;
                    }
                }
            }
            assert!(recent.bytes <= BYTES_MAX);
        }
        assert!(hits > 100_000, "{hits}");
        let records = recent.groups.iter().flat_map(|group| &group.records).filter(|record| !record.is_empty());
        let bytes = records.clone().map(|record| record.len() + OVERHEAD_BYTES).sum();
        assert_eq!((records.count(), bytes), (recent.records, recent.bytes));
    }
}
