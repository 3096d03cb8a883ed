//! Live records of keys that were written lately.
//!
//! Each put needs the version that it replaces: it goes to `old`, to the watchers, and gives birth and version number.
//! Reading it back from the engine is a third of a put's cost, and what is written once is often written again, so the
//! machine remembers it. Only the machine's own writes and reads come here; the answers are those that the engine
//! would give, whatever is remembered and whatever is not.
//!
//! A table of groups of four places, a key's group chosen by its hash. A full group gives up its places in turn, and so
//! do all groups in turn when the records together grow beyond [`BYTES_MAX`]. The table doubles while it is small, so
//! that a small store costs little.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use super::record::Record;

/// Bytes of records and their bookkeeping, at most.
const BYTES_MAX: usize = 64 << 20;
/// A bigger record is not remembered.
const RECORD_BYTES_MAX: usize = 16 << 10;
/// What a place and an allocation add to a record, about.
const OVERHEAD_BYTES: usize = 64;
const WAYS: usize = 4;
const GROUPS_MIN: usize = 256;
const GROUPS_MAX: usize = 1 << 16;

/// What is remembered.
#[derive(Debug, Default)]
pub struct Recent {
    /// A power of two of them, or none.
    groups: Vec<[Place; WAYS]>,
    records: usize,
    bytes: usize,
    /// The place that is given up next when all is full.
    hand: usize,
}

#[derive(Clone, Debug, Default)]
struct Place {
    hash: u64,
    /// Empty when the place is free.
    record: Bytes,
}

impl Recent {
    /// The live version of a key, if it is remembered.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        let hash = xxh3_64(key);
        let group = self.groups.get(self.group(hash))?;
        group.iter().find(|place| place.holds(hash, key)).map(|place| place.record.clone())
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
        let group = &mut self.groups[index];
        let place = group
            .iter()
            .position(|place| place.holds(hash, key))
            .or_else(|| group.iter().position(|place| place.record.is_empty()))
            .unwrap_or(self.hand % WAYS);
        self.hand = self.hand.wrapping_add(1);
        self.set(index, place, Place { hash, record });
        while self.bytes > BYTES_MAX {
            self.hand = self.hand.wrapping_add(1);
            let group = (self.hand / WAYS) & (self.groups.len() - 1);
            self.set(group, self.hand % WAYS, Place::default());
        }
    }

    pub fn remove(&mut self, key: &[u8]) {
        let hash = xxh3_64(key);
        let index = self.group(hash);
        if let Some(group) = self.groups.get(index)
            && let Some(place) = group.iter().position(|place| place.holds(hash, key))
        {
            self.set(index, place, Place::default());
        }
    }

    fn group(&self, hash: u64) -> usize {
        hash as usize & self.groups.len().wrapping_sub(1)
    }

    fn set(&mut self, group: usize, place: usize, new: Place) {
        let weight = |place: &Place| if place.record.is_empty() { 0 } else { place.record.len() + OVERHEAD_BYTES };
        let place = &mut self.groups[group][place];
        self.bytes = self.bytes + weight(&new) - weight(place);
        self.records = self.records + usize::from(!new.record.is_empty()) - usize::from(!place.record.is_empty());
        *place = new;
    }

    fn grow(&mut self) {
        let size = (self.groups.len() * 2).max(GROUPS_MIN);
        let before = std::mem::replace(&mut self.groups, vec![Default::default(); size]);
        (self.records, self.bytes) = (0, 0);
        for place in before.into_iter().flatten().filter(|place| !place.record.is_empty()) {
            let index = self.group(place.hash);
            // A group splits in two, so that there is always room.
            if let Some(free) = self.groups[index].iter().position(|place| place.record.is_empty()) {
                self.set(index, free, place);
            }
        }
    }
}

impl Place {
    fn holds(&self, hash: u64, key: &[u8]) -> bool {
        self.hash == hash && !self.record.is_empty() && Record::read(&self.record).is_ok_and(|record| record.key == key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use base::Rng;

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
        let places = recent.groups.iter().flatten().filter(|place| !place.record.is_empty());
        assert_eq!(
            (places.clone().count(), places.map(|p| p.record.len() + OVERHEAD_BYTES).sum()),
            (recent.records, recent.bytes)
        );
    }
}
