//! The last revisions, in passes: what the dispatcher took in one go, with the encoded events that somebody watches.
//!
//! The ring is the only owner of recent events. Streams hold numbers of passes, never the passes, so a slow one pins
//! no memory: when its pass has been dropped it reads history instead. Bounded in bytes, events and passes; the newest
//! pass stays whatever its size.
//!
//! Invariant: passes are numbered without gaps, and together they hold every change of the revisions from
//! `covers_from` to `last`.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::event::{Event, EventKind, RevisionEvents};

use super::encode::{Pieces, put_event};

/// Consecutive revisions that were matched together.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// Parts of published batches: (batch, first, behind the last).
    pub parts: Vec<(Arc<Vec<RevisionEvents>>, usize, usize)>,
    /// Every change up to this revision is in this pass or an earlier one.
    pub last: i64,
    pub events: usize,
    pub bytes: usize,
    pub encoded: Encoded,
    /// For each range with a match, what matched: ascending places in `encoded`.
    pub packets: Vec<Box<[u32]>>,
}

impl Pass {
    pub fn revisions(&self) -> impl Iterator<Item = &RevisionEvents> {
        self.parts.iter().flat_map(|(batch, first, behind)| &batch[*first..*behind])
    }
}

/// Events in wire form, without and (where somebody asks for it) with the previous value.
#[derive(Debug, Default)]
pub(super) struct Encoded {
    slots: Vec<Slot>,
    plain: Vec<u8>,
    with_prev: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    revision: i64,
    kind: EventKind,
    /// Where the event ends in each buffer; it begins where the one before ends.
    plain_end: usize,
    with_prev_end: usize,
}

impl Encoded {
    /// Encodes an event and returns its place.
    pub fn push(&mut self, revision: i64, event: &Event, with_prev: bool) -> u32 {
        put_event(&mut self.plain, event, false);
        if with_prev {
            put_event(&mut self.with_prev, event, true);
        }
        let (plain_end, with_prev_end) = (self.plain.len(), self.with_prev.len());
        self.slots.push(Slot { revision, kind: event.kind, plain_end, with_prev_end });
        u32::try_from(self.slots.len() - 1).expect("a pass holds far fewer than 2^32 events")
    }

    pub fn bytes(&self) -> usize {
        self.plain.len() + self.with_prev.len() + self.slots.len() * size_of::<Slot>()
    }

    pub fn revision(&self, place: u32) -> i64 {
        self.slots[place as usize].revision
    }

    pub fn kind(&self, place: u32) -> EventKind {
        self.slots[place as usize].kind
    }

    pub fn event(&self, place: u32, with_prev: bool) -> &[u8] {
        self.events(place, place, with_prev)
    }

    /// About how much the events at `places` take in a response.
    pub fn bytes_of(&self, places: &[u32]) -> usize {
        places.iter().map(|place| self.event(*place, false).len() + self.event(*place, true).len()).sum()
    }

    /// Appends the events at `places`, neighbours as one piece.
    pub fn pieces<'a>(&'a self, places: &[u32], with_prev: bool, out: &mut Pieces<'a>) {
        let mut at = 0;
        while at < places.len() {
            let mut to = at;
            while to + 1 < places.len() && places[to + 1] == places[to] + 1 {
                to += 1;
            }
            out.push(self.events(places[at], places[to], with_prev));
            at = to + 1;
        }
    }

    fn events(&self, first: u32, last: u32, with_prev: bool) -> &[u8] {
        let before = (first as usize).checked_sub(1).map(|place| self.slots[place]);
        let last = self.slots[last as usize];
        if with_prev {
            &self.with_prev[before.map_or(0, |slot| slot.with_prev_end)..last.with_prev_end]
        } else {
            &self.plain[before.map_or(0, |slot| slot.plain_end)..last.plain_end]
        }
    }
}

/// See the file header.
#[derive(Debug)]
pub(super) struct Ring {
    passes: VecDeque<Arc<Pass>>,
    /// The number of the first pass held.
    first_number: u64,
    covers_from: i64,
    last: i64,
    bytes: usize,
    events: usize,
    limits: RingLimits,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct RingLimits {
    pub bytes_max: usize,
    pub events_max: usize,
    pub passes_max: usize,
}

impl Ring {
    pub fn new(limits: RingLimits) -> Ring {
        Ring { passes: VecDeque::new(), first_number: 0, covers_from: 1, last: 0, bytes: 0, events: 0, limits }
    }

    /// The number that the next pass gets.
    pub fn next_number(&self) -> u64 {
        self.first_number + self.passes.len() as u64
    }

    /// The smallest revision from which on nothing is missing.
    pub fn covers_from(&self) -> i64 {
        self.covers_from
    }

    pub fn last(&self) -> i64 {
        self.last
    }

    pub fn push(&mut self, pass: Arc<Pass>) {
        assert!(pass.last >= self.last, "passes ascend");
        self.last = pass.last;
        self.bytes += pass.bytes;
        self.events += pass.events;
        self.passes.push_back(pass);
        while self.passes.len() > 1
            && (self.bytes > self.limits.bytes_max
                || self.events > self.limits.events_max
                || self.passes.len() > self.limits.passes_max)
        {
            self.drop_first();
        }
    }

    /// Forgets everything: what happened up to `revision` is only in history.
    pub fn reset(&mut self, revision: i64) {
        while !self.passes.is_empty() {
            self.drop_first();
        }
        self.last = self.last.max(revision);
        self.covers_from = self.last + 1;
    }

    pub fn get(&self, number: u64) -> Option<&Arc<Pass>> {
        self.passes.get(usize::try_from(number.checked_sub(self.first_number)?).ok()?)
    }

    /// The number of the first pass that holds changes at or after `revision`.
    pub fn find(&self, revision: i64) -> u64 {
        self.first_number + self.passes.partition_point(|pass| pass.last < revision) as u64
    }

    fn drop_first(&mut self) {
        if let Some(pass) = self.passes.pop_front() {
            self.first_number += 1;
            self.covers_from = pass.last + 1;
            self.bytes -= pass.bytes;
            self.events -= pass.events;
        }
    }
}
