//! Serving lagging watchers: they read the past, a chunk at a time, until they stand at the ring's end.
//!
//! A round takes the watchers that are furthest behind and stand close together, reads one chunk of what happened in
//! the hull of their ranges (from the ring as far as it reaches back, else from history), hands each what is its own,
//! and moves all of them behind the chunk. So a thousand watchers that lost their notes together read the past once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::encode::Responses;
use super::history::{HistoryError, select};
use super::hub::WatchHub;
use super::index::RangeIndex;
use super::live::Run;
use super::range::KeyRange;
use super::ring::Encoded;
use super::stream::StreamShared;
use super::worker::{COMPACTED, Worker};
use crate::event::RevisionEvents;

/// Watchers served by one round.
const WATCHERS_MAX: usize = 256;
/// How many revisions the first and the last watcher of a round may stand apart.
const REVISIONS_APART_MAX: i64 = 1_024;
/// Events of the ring looked at in one round.
const EVENTS_SCANNED_MAX: usize = 16_384;

/// What a round reads.
enum Chunk {
    /// Events in ascending order, complete up to the revision.
    Events(Vec<RevisionEvents>, i64),
    /// Watchers that need revisions below this one cannot go on.
    Compacted(i64),
    /// The store's read side has not come as far; try again later.
    NotYet,
    Failed(String),
}

impl Worker {
    /// One round. Returns whether it must wait for the store.
    pub(super) fn catch_up(&mut self, hub: &WatchHub, shared: &StreamShared, out: &mut Responses) -> bool {
        let end = hub.ring.read().last();
        let Some(&(from, _)) = self.lagging.first() else { return false };
        if from > end {
            // All of them wait for revisions that will come as notes.
            for (_, slot) in std::mem::take(&mut self.lagging) {
                self.watchers[slot as usize].as_mut().expect("lagging watchers exist").lagging = false;
            }
            return false;
        }
        let behind = from.saturating_add(REVISIONS_APART_MAX).min(end);
        let slots: Vec<u32> =
            self.lagging.iter().take_while(|(next, _)| *next <= behind).take(WATCHERS_MAX).map(|(_, s)| *s).collect();
        let hull = self.hull(&slots);
        match read_chunk(hub, from, end, &hull) {
            Chunk::Events(revisions, covered) => self.hand_out(&slots, (&revisions, covered), end, hub, out),
            Chunk::Compacted(revision) => {
                let too_late = |slot: &u32| self.watchers[*slot as usize].as_ref().is_some_and(|w| w.next < revision);
                let ended: Vec<u32> = slots.into_iter().filter(too_late).collect();
                for slot in ended {
                    self.cancel(slot, revision, COMPACTED, hub, shared, out);
                }
            }
            Chunk::NotYet => return true,
            Chunk::Failed(why) => {
                for slot in slots {
                    self.cancel(slot, 0, &why, hub, shared, out);
                }
            }
        }
        false
    }

    fn hull(&self, slots: &[u32]) -> KeyRange {
        let mut groups: Vec<u32> = slots.iter().map(|slot| self.group_of(*slot)).collect();
        groups.sort_unstable();
        groups.dedup();
        let ranges = groups.iter().map(|group| &self.groups[*group as usize].as_ref().expect("has watchers").range);
        ranges.cloned().reduce(|a, b| a.hull(&b)).expect("a round has watchers")
    }

    fn group_of(&self, slot: u32) -> u32 {
        self.watchers[slot as usize].as_ref().expect("lagging watchers exist").group
    }

    /// Gives the watchers their own of `revisions`, which are complete up to `covered`; who stands behind `end` then
    /// is live.
    fn hand_out(
        &mut self,
        slots: &[u32],
        (revisions, covered): (&[RevisionEvents], i64),
        end: i64,
        hub: &WatchHub,
        out: &mut Responses,
    ) {
        // Which events (places) go to which group.
        let mut index: RangeIndex<(u32, Vec<u32>)> = RangeIndex::default();
        let mut interests = Vec::new();
        let mut by_group: Vec<(u32, u32)> = slots.iter().map(|slot| (self.group_of(*slot), *slot)).collect();
        by_group.sort_unstable();
        for (group, _) in &by_group {
            if interests.last().is_none_or(|(last, _)| last != group) {
                let range = &self.groups[*group as usize].as_ref().expect("has watchers").range;
                interests.push((*group, index.intern(range, || (*group, Vec::new()))));
            }
        }
        let with_prev = slots.iter().any(|slot| self.watchers[*slot as usize].as_ref().is_some_and(|w| w.prev_kv));
        let mut encoded = Encoded::default();
        let mut found = Vec::new();
        for revision in revisions {
            for event in &revision.events {
                found.clear();
                index.find(&event.key, &mut found);
                if !found.is_empty() {
                    let place = encoded.push(revision.revision, event, with_prev);
                    for id in &found {
                        index.get_mut(*id).expect("found in the index").1.push(place);
                    }
                }
            }
        }
        let header = self.header(covered, hub);
        for (group, interest) in interests {
            let places = std::mem::take(&mut index.get_mut(interest).expect("interned above").1);
            let mut run = Run::new(vec![(&encoded, &places)], covered);
            let first = by_group.partition_point(|(other, _)| *other < group);
            for (_, slot) in by_group[first..].iter().take_while(|(other, _)| *other == group) {
                let watcher = self.watchers[*slot as usize].as_mut().expect("lagging watchers exist");
                self.lagging.remove(&(watcher.next, *slot));
                run.serve(watcher, &header, hub.options.fragment_bytes_max, out);
                watcher.lagging = watcher.next <= end;
                if watcher.lagging {
                    self.lagging.insert((watcher.next, *slot));
                }
            }
        }
    }
}

fn read_chunk(hub: &WatchHub, from: i64, end: i64, hull: &KeyRange) -> Chunk {
    if let Some((revisions, covered)) = read_ring(hub, from, hull) {
        return Chunk::Events(revisions, covered);
    }
    let compact_revision = hub.compact_revision();
    if from < compact_revision {
        return Chunk::Compacted(compact_revision);
    }
    let to = end.min(hub.history().revision());
    if to < from {
        return Chunk::NotYet;
    }
    hub.counters.history_reads.fetch_add(1, Ordering::Relaxed);
    match hub.history().read(from, to, hull, hub.options.response_bytes) {
        Ok(past) => Chunk::Events(past.revisions, past.covered),
        Err(HistoryError::Compacted { revision }) => Chunk::Compacted(revision.max(from + 1)),
        Err(HistoryError::Failed(why)) => Chunk::Failed(why),
    }
}

/// Events in `hull` from the ring, and up to which revision they are complete; `None` when it does not reach back to
/// `from`.
fn read_ring(hub: &WatchHub, from: i64, hull: &KeyRange) -> Option<(Vec<RevisionEvents>, i64)> {
    let mut number = {
        let ring = hub.ring.read();
        if from < ring.covers_from() {
            return None;
        }
        ring.find(from)
    };
    let (mut revisions, mut covered) = (Vec::new(), from - 1);
    let (mut bytes, mut scanned) = (0, 0);
    loop {
        let next = hub.ring.read().get(number).map(Arc::clone);
        let Some(pass) = next else {
            // The end, or the ring has overtaken this walk: what was read is complete as far as it goes.
            return Some((revisions, covered));
        };
        for revision in pass.revisions().filter(|revision| revision.revision >= from) {
            if bytes >= hub.options.response_bytes || scanned >= EVENTS_SCANNED_MAX {
                return Some((revisions, covered));
            }
            scanned += revision.events.len();
            if let Some(selected) = select(revision, hull) {
                bytes += selected.bytes();
                revisions.push(selected);
            }
            covered = revision.revision;
        }
        covered = pass.last;
        number += 1;
    }
}
