//! The index: where every kept entry of every group lies, all of it in memory.
//!
//! It changes only by applying records, and the same function applies a record that was just written and one that is
//! found again at the opening: what was in force before a crash is what a replay arrives at.
//!
//! Invariants:
//! 1. A group's entry `start.index + 1 + i` is `positions[i]`.
//! 2. `live` of a segment is the sum of `weight` over all positions in it, so that a segment with zero can be freed.
//! 3. During a replay a position may be *absent*: a state record announced the entry, and it lay in a segment that was
//!    freed since. A later record must then drop or move it: an entry still absent at the end is lost.
//!
//! A position takes 24 bytes. Left out: a cache of entries (the consensus floor keeps the recent ones).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use base::GroupId;

use crate::log::{HardState, LogError, LogStart, LogState};

use super::disk::DiskFile;
use super::record::{ENTRY_OVERHEAD, Part, PartHead, Record, Shape};

/// Where an entry's kind and data lie, and what they must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub term: u64,
    pub segment: u32,
    pub offset: u32,
    /// Of kind and data.
    pub bytes: u32,
    pub crc: u32,
}

impl Position {
    /// Segments are numbered from 1.
    const ABSENT: Position = Position { term: 0, segment: 0, offset: 0, bytes: 0, crc: 0 };

    /// What keeping the entry costs.
    pub fn weight(&self) -> u64 {
        u64::from(self.bytes) + ENTRY_OVERHEAD
    }

    /// The byte after the entry.
    pub fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.bytes)
    }
}

#[derive(Clone, Debug, Default)]
pub struct GroupLog {
    pub start: LogStart,
    pub hard: HardState,
    positions: VecDeque<Position>,
}

impl GroupLog {
    pub fn last(&self) -> u64 {
        self.start.index + self.positions.len() as u64
    }

    pub fn position(&self, index: u64) -> Option<Position> {
        let at = index.checked_sub(self.start.index + 1)?;
        self.positions.get(usize::try_from(at).ok()?).copied()
    }

    /// The kept entries from `index` on, or from the first.
    pub fn positions_from(&self, index: u64) -> impl Iterator<Item = (u64, &Position)> {
        let first = index.clamp(self.start.index + 1, self.last() + 1);
        (first..).zip(self.positions.range((first - self.start.index - 1) as usize..))
    }

    /// The term at `index`, if `index` is the start or a kept entry.
    pub fn term(&self, index: u64) -> Option<u64> {
        if index == self.start.index { Some(self.start.term) } else { self.position(index).map(|entry| entry.term) }
    }

    pub fn state(&self) -> LogState {
        let last_term = self.positions.back().map_or(self.start.term, |entry| entry.term);
        LogState { start: self.start, last: self.last(), last_term, hard: self.hard }
    }

    /// Applies a part (that does not destroy the group) of a record at `offset` of `segment`. `tally` hears by how
    /// much the weight of what is kept in a segment changes.
    pub fn apply(
        &mut self,
        part: &Part<'_>,
        segment: u32,
        offset: u64,
        tally: &mut impl FnMut(u32, i64),
    ) -> Result<(), &'static str> {
        let head = part.head;
        match head.shape {
            Shape::Reset(start) => {
                release(self.positions.iter(), tally);
                self.positions = VecDeque::new();
                self.start = start;
            }
            Shape::Compact(start) => {
                let count = start.index.checked_sub(self.start.index).filter(|_| start.index <= self.last());
                let count = count.ok_or("a log is compacted beyond its ends")? as usize;
                release(self.positions.iter().take(count), tally);
                self.positions.drain(..count);
                if self.positions.capacity() > 64 && self.positions.capacity() / 4 > self.positions.len() {
                    self.positions.shrink_to(self.positions.len() * 2);
                }
                self.start = start;
            }
            Shape::Same => {}
            Shape::Destroy | Shape::Kept(..) => return Err("a part is of the wrong shape"),
        }
        if let Some(hard) = head.hard {
            self.hard = hard;
        }
        if head.count == 0 {
            return Ok(());
        }
        if head.first <= self.start.index || head.first > self.last() + 1 {
            return Err("entries do not join on to their log");
        }
        let first = (head.first - self.start.index - 1) as usize;
        let end = first + head.count as usize;
        if head.moved {
            if end > self.positions.len() {
                return Err("entries are moved that do not exist");
            }
            release(self.positions.range(first..end), tally);
        } else {
            release(self.positions.range(first..), tally);
            self.positions.truncate(first);
        }
        let mut live = 0;
        for (at, entry) in (first..).zip(part.entries()) {
            let place = u32::try_from(offset + entry.at).map_err(|_| "a segment is too long")?;
            let position = Position { term: entry.term, segment, offset: place, bytes: entry.bytes, crc: entry.crc };
            live += position.weight() as i64;
            if head.moved {
                self.positions[at] = position;
            } else {
                self.positions.push_back(position);
            }
        }
        tally(segment, live);
        Ok(())
    }
}

/// A segment as the index sees it.
pub struct Segment {
    pub file: Arc<dyn DiskFile>,
    /// The file's length, or what it is to become.
    pub bytes: u64,
    /// The weight of the entries in it that are kept.
    pub live: u64,
}

#[derive(Default)]
pub struct Index {
    pub groups: BTreeMap<GroupId, GroupLog>,
    pub segments: BTreeMap<u32, Segment>,
}

impl Index {
    /// Applies a batch record that lies at `offset` of `segment`. An error means that the record does not follow
    /// from those before it.
    pub fn apply(&mut self, record: &Record<'_>, segment: u32, offset: u64) -> Result<(), &'static str> {
        record.parts().try_for_each(|part| self.apply_part(&part, segment, offset))
    }

    /// Begins with a state record: nothing but what it says is known, and every entry is absent.
    pub fn restore(&mut self, record: &Record<'_>) -> Result<(), &'static str> {
        for part in record.parts() {
            let (start, last, hard) = kept(&part.head)?;
            let absent = usize::try_from(last - start.index).map_err(|_| "a log is longer than memory")?;
            let positions = std::iter::repeat_n(Position::ABSENT, absent).collect();
            self.groups.insert(part.head.group, GroupLog { start, hard, positions });
        }
        Ok(())
    }

    /// Checks that a state record says what the records before it led to.
    pub fn agrees_with(&self, record: &Record<'_>) -> Result<(), &'static str> {
        let mut ours = self.state_heads();
        for part in record.parts() {
            if ours.next() != Some(part.head) {
                return Err("a state record differs from the records before it");
            }
        }
        if ours.next().is_some() { Err("a state record lacks a group") } else { Ok(()) }
    }

    /// The parts of a state record.
    pub fn state_heads(&self) -> impl Iterator<Item = PartHead> {
        self.groups.iter().map(|(group, log)| PartHead {
            group: *group,
            shape: Shape::Kept(log.start, log.last()),
            moved: false,
            hard: Some(log.hard),
            first: 0,
            count: 0,
        })
    }

    /// The first entry that no segment holds.
    pub fn absent(&self) -> Option<(GroupId, u64)> {
        self.groups.iter().find_map(|(group, log)| {
            let at = log.positions.iter().position(|entry| *entry == Position::ABSENT)?;
            Some((*group, log.start.index + 1 + at as u64))
        })
    }

    pub fn group(&self, group: GroupId) -> Result<&GroupLog, LogError> {
        self.groups.get(&group).ok_or_else(|| LogError::Io(format!("group {group} has no log")))
    }

    /// Takes out the segments at the old end that nothing lives in.
    pub fn take_dead(&mut self) -> Vec<(u32, Segment)> {
        let mut dead = Vec::new();
        while self.segments.len() > 1 {
            match self.segments.first_entry() {
                Some(oldest) if oldest.get().live == 0 => dead.push(oldest.remove_entry()),
                _ => break,
            }
        }
        dead
    }

    fn apply_part(&mut self, part: &Part<'_>, segment: u32, offset: u64) -> Result<(), &'static str> {
        let Index { groups, segments } = self;
        let mut tally = |segment: u32, weight: i64| {
            if let Some(segment) = segments.get_mut(&segment) {
                segment.live = segment.live.checked_add_signed(weight).expect("no more is dropped than was kept");
            }
        };
        if part.head.shape == Shape::Destroy {
            if let Some(log) = groups.remove(&part.head.group) {
                release(log.positions.iter(), &mut tally);
            }
            return Ok(());
        }
        groups.entry(part.head.group).or_default().apply(part, segment, offset, &mut tally)
    }
}

/// What a part of a state record says.
fn kept(head: &PartHead) -> Result<(LogStart, u64, HardState), &'static str> {
    match (head.shape, head.hard) {
        (Shape::Kept(start, last), Some(hard)) if last >= start.index && head.count == 0 => Ok((start, last, hard)),
        _ => Err("a state record makes no sense"),
    }
}

/// Tells the weight of positions that are no longer kept, run by run.
fn release<'a>(positions: impl Iterator<Item = &'a Position>, tally: &mut impl FnMut(u32, i64)) {
    let (mut segment, mut weight) = (0, 0);
    for position in positions {
        if position.segment != segment {
            tally(segment, -weight);
            (segment, weight) = (position.segment, 0);
        }
        weight += position.weight() as i64;
    }
    tally(segment, -weight);
}
