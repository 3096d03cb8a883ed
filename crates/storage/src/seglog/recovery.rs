//! Opening: a forward scan over all segments that arrives at exactly what was written, or at the reason why not.
//!
//! Records are followed from the first of the oldest segment, sequence by sequence, each checked in full. The chain
//! ends where no record with the next sequence is found, neither in place nor at the beginning of the next segment.
//! What an end means:
//!
//! | found | it is |
//! |---|---|
//! | anywhere behind it a header with a higher sequence | damage: records are written one sync after the other |
//! | the mark lies beyond it, and something is written in its place | damage |
//! | the mark lies beyond it, and nothing is there | loss: a file was cut, removed, or replaced by an older one |
//! | an entry that is kept by the last state but lies in no segment | loss |
//! | a sector that cannot be read | damage |
//! | none of these | the true end; a record that was being written when the power went is cut off |
//!
//! The last record is then written once more, in place, and synced: if the process died between a write and its sync,
//! or after a sync that failed, the operating system may show bytes that no disk has.
//!
//! What cannot be seen: a whole folder, mark included, replaced by an older copy of itself. That is what peer ids
//! are drawn anew for.

use std::io;
use std::sync::Arc;

use crate::log::{LogError, Place};

use super::disk::{Disk, DiskFile, read_full, unreadable, write_all};
use super::index::{Index, Segment};
use super::mark::{MARK, MARK_UNFINISHED, Mark};
use super::record::{ALIGN, Flaw, HEADER_BYTES, Header, Kind, MAGIC, Record, decode_record};
use super::segments::{Current, Segments, parse_name, segment_name};
use super::store::SegLogOptions;

/// What an opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The last record's sequence; zero for a log that was just made.
    pub sequence: u64,
    /// How far the mark lay behind it. Not zero: the opening went through the window.
    pub mark_behind: u64,
    /// A record at the end was begun but not completed, and was cut off.
    pub torn: Option<Place>,
    pub records: u64,
    pub bytes: u64,
}

pub struct Opened {
    pub mark: Mark,
    pub index: Index,
    pub segments: Segments,
    pub recovery: Recovery,
}

pub fn open(disk: Arc<dyn Disk>, options: &SegLogOptions) -> Result<Opened, LogError> {
    let failed = |error: io::Error| LogError::Io(format!("cannot open the log: {error}"));
    let names = disk.list().map_err(failed)?;
    let numbers = |prefix| {
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_name(name, prefix)).collect();
        numbers.sort_unstable();
        numbers
    };
    let ids = segment_ids(&names)?;
    if names.iter().any(|name| name == MARK_UNFINISHED) {
        disk.remove(MARK_UNFINISHED).map_err(failed)?;
    }
    let mark = if names.iter().any(|name| name == MARK) {
        Mark::open(&*disk)?
    } else if !ids.is_empty() || options.must_exist {
        return Err(LogError::Lost { why: format!("the file {MARK} is gone") });
    } else {
        Mark::create(&*disk, options.salt).map_err(failed)?
    };

    let mut segments = Segments::new(disk.clone(), options.segment_bytes, options.zero_ahead_bytes, options.spares_max);
    let (mut scan, tail) = follow(&*disk, &ids, &mark)?;
    if tail.is_none() && options.must_exist {
        return Err(LogError::Lost { why: "there is no record".to_owned() });
    }
    let in_use = tail.as_ref().map_or(0, |tail| tail.segment);
    let unused: Vec<u32> = ids.iter().copied().filter(|id| *id > in_use).collect();
    for id in &unused {
        scan.index.segments.remove(id);
        disk.remove(&segment_name(*id)).map_err(failed)?;
    }
    if !unused.is_empty() {
        disk.sync_names().map_err(failed)?;
    }
    for number in numbers("spare") {
        segments.adopt_spare(number).map_err(failed)?;
    }
    segments.next_id = ids.last().map_or(1, |id| id + 1);
    let mut recovery = Recovery { torn: scan.torn, records: scan.records, bytes: scan.bytes, ..Recovery::default() };
    if let Some(tail) = tail {
        let Segment { file, bytes, .. } = &scan.index.segments[&tail.segment];
        let mut last = vec![0; tail.bytes as usize];
        let lost = |error| unreadable(&segment_name(tail.segment), tail.offset, &error);
        read_full(&**file, &mut last, tail.offset).map_err(lost)?;
        write_all(&**file, &last, tail.offset).and_then(|()| file.sync()).map_err(failed)?;
        recovery.sequence = tail.sequence;
        recovery.mark_behind = tail.sequence - mark.get();
        let end = tail.offset + tail.bytes;
        let (ready, bytes) = (*bytes, (*bytes).max(options.segment_bytes));
        segments.current = Some(Current { id: tail.segment, file: file.clone(), end, ready, bytes });
        scan.index.segments.get_mut(&tail.segment).expect("it was just read").bytes = bytes;
    }
    Ok(Opened { mark, index: scan.index, segments, recovery })
}

/// The numbers of the segments among the names in the folder, in order.
pub fn segment_ids(names: &[String]) -> Result<Vec<u32>, LogError> {
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| parse_name(name, "segment")).collect();
    numbers.sort_unstable();
    let narrow =
        |number| u32::try_from(number).map_err(|_| LogError::Io(format!("segment number {number} is too high")));
    numbers.into_iter().map(narrow).collect()
}

/// Follows all records through all segments, and judges where they end. Reads only.
pub fn follow(disk: &dyn Disk, ids: &[u32], mark: &Mark) -> Result<(Scan, Option<Tail>), LogError> {
    let failed = |error: io::Error| LogError::Io(format!("cannot open the log: {error}"));
    let mut scan = Scan::new(mark.salt());
    for id in ids {
        let file = disk.open(&segment_name(*id)).map_err(failed)?;
        scan.segment(*id, file)?;
    }
    let tail = scan.finish(mark.get())?;
    Ok((scan, tail))
}

/// The last record.
pub struct Tail {
    segment: u32,
    offset: u64,
    bytes: u64,
    pub sequence: u64,
}

/// Where the chain of records ended.
struct Stop {
    segment: u32,
    offset: u64,
    flaw: Flaw,
}

pub struct Scan {
    salt: u64,
    pub index: Index,
    tail: Option<Tail>,
    stop: Option<Stop>,
    pub torn: Option<Place>,
    pub records: u64,
    pub bytes: u64,
}

impl Scan {
    fn new(salt: u64) -> Scan {
        Scan { salt, index: Index::default(), tail: None, stop: None, torn: None, records: 0, bytes: 0 }
    }

    /// Follows the chain through the next segment.
    fn segment(&mut self, id: u32, file: Arc<dyn DiskFile>) -> Result<(), LogError> {
        let failed = |at: u64| move |error: io::Error| unreadable(&segment_name(id), at, &error);
        let bytes = file.bytes().map_err(failed(0))?;
        if bytes > u64::from(u32::MAX) {
            return Err(corrupt(id, 0, "the file is longer than any that was written"));
        }
        let mut window = Window { file: file.clone(), bytes, from: 0, buffer: Vec::new() };
        self.index.segments.insert(id, Segment { file, bytes, live: 0 });
        let (mut offset, salt) = (0, self.salt);
        let flaw = loop {
            let header =
                match Header::decode(window.get(offset, HEADER_BYTES as u64).map_err(failed(offset))?, salt, id.into())
                {
                    Ok(header) => header,
                    Err(flaw) => break flaw,
                };
            let sequence = self.tail.as_ref().map_or(0, |tail| tail.sequence);
            if self.tail.is_some() && header.sequence <= sequence {
                break Flaw::Header;
            }
            if self.tail.is_some() && header.sequence > sequence + 1 {
                return Err(self.gap(id, offset, header.sequence));
            }
            let record = window.get(offset, header.record_bytes()).map_err(failed(offset))?;
            let record = match decode_record(record, salt, id.into()) {
                Ok(record) => record,
                Err(flaw) => break flaw,
            };
            self.record(&record, id, offset)?;
            let bytes = header.record_bytes();
            self.tail = Some(Tail { segment: id, offset, bytes, sequence: header.sequence });
            self.stop = None;
            self.torn = None;
            self.records += 1;
            self.bytes += bytes;
            offset += bytes;
        };
        if let Flaw::Body(_) = flaw {
            self.torn = Some(Place { file: segment_name(id), offset });
        }
        let stop = self.stop.get_or_insert(Stop { segment: id, offset, flaw });
        let due = self.tail.as_ref().map_or(0, |tail| tail.sequence + 1);
        let later = window.later_record(offset + ALIGN as u64, salt, id, due).map_err(failed(offset))?;
        if let Some((at, sequence)) = later {
            let why = format!("no record {due} here, but record {sequence} at byte {at} of {}", segment_name(id));
            return Err(corrupt(stop.segment, stop.offset, &why));
        }
        Ok(())
    }

    /// Applies the record that continues the chain.
    fn record(&mut self, record: &Record<'_>, id: u32, offset: u64) -> Result<(), LogError> {
        let applied = match (record.header.kind, &self.tail) {
            (Kind::State, None) => match &self.stop {
                None => self.index.restore(record),
                // An older segment without a single record: nothing leaves that behind but damage.
                Some(stop) => return Err(corrupt(stop.segment, stop.offset, "the segment's first record is missing")),
            },
            (Kind::State, Some(tail)) if tail.segment != id => self.index.agrees_with(record),
            (Kind::Batch, Some(tail)) if tail.segment == id => self.index.apply(record, id, offset),
            _ => Err("a record is of the wrong kind"),
        };
        applied.map_err(|why| corrupt(id, offset, why))
    }

    /// Why the chain goes on with `sequence` where a lower one is due.
    fn gap(&self, id: u32, offset: u64, sequence: u64) -> LogError {
        let tail = self.tail.as_ref().expect("a gap is one after a record");
        match &self.stop {
            Some(stop) if stop.flaw != Flaw::Blank => {
                let why = format!("no record {} here, but record {sequence} later", tail.sequence + 1);
                corrupt(stop.segment, stop.offset, &why)
            }
            Some(_) if offset == 0 && id > tail.segment + 1 => {
                let why = format!("{} to {} are gone", segment_name(tail.segment + 1), segment_name(id - 1));
                LogError::Lost { why }
            }
            _ => corrupt(id, offset, &format!("record {sequence} follows upon record {}", tail.sequence)),
        }
    }

    /// Judges the end that was reached.
    fn finish(&mut self, mark: u64) -> Result<Option<Tail>, LogError> {
        let tail = self.tail.take();
        let sequence = tail.as_ref().map_or(0, |tail| tail.sequence);
        if mark > sequence {
            return Err(match &self.stop {
                Some(stop) if stop.flaw != Flaw::Blank => {
                    let why = format!("record {} was synced (the mark says {mark}) and is damaged", sequence + 1);
                    corrupt(stop.segment, stop.offset, &why)
                }
                _ => LogError::Lost { why: format!("it ends with record {sequence}, and record {mark} was synced") },
            });
        }
        if let Some((group, index)) = self.index.absent() {
            return Err(LogError::Lost { why: format!("no segment holds entry {index} of group {group}") });
        }
        Ok(tail)
    }
}

fn corrupt(segment: u32, offset: u64, why: &str) -> LogError {
    LogError::Corrupt { place: Place { file: segment_name(segment), offset }, why: why.to_owned() }
}

/// A file, read in large pieces.
struct Window {
    file: Arc<dyn DiskFile>,
    bytes: u64,
    from: u64,
    buffer: Vec<u8>,
}

const WINDOW_BYTES: u64 = 1 << 20;

impl Window {
    /// The bytes from `offset` on, as many as asked for or as the file has.
    fn get(&mut self, offset: u64, bytes: u64) -> io::Result<&[u8]> {
        let end = offset.saturating_add(bytes).min(self.bytes).max(offset);
        if offset < self.from || end > self.from + self.buffer.len() as u64 {
            let wanted = bytes.max(WINDOW_BYTES).min(self.bytes.saturating_sub(offset));
            self.buffer.resize(wanted as usize, 0);
            self.from = offset;
            let read = read_full(&*self.file, &mut self.buffer, offset)?;
            self.buffer.truncate(read);
        }
        let at = (offset - self.from) as usize;
        let to = ((end - self.from) as usize).min(self.buffer.len());
        Ok(self.buffer.get(at..to).unwrap_or(&[]))
    }
    /// The first header from `offset` on whose sequence is higher than `due`: where it lies, and the sequence.
    fn later_record(&mut self, mut offset: u64, salt: u64, segment: u32, due: u64) -> io::Result<Option<(u64, u64)>> {
        while offset + HEADER_BYTES as u64 <= self.bytes {
            let piece = self.get(offset, WINDOW_BYTES)?;
            let mut at = 0;
            while at + HEADER_BYTES <= piece.len() {
                if piece[at..at + MAGIC.len()] == MAGIC
                    && let Ok(header) = Header::decode(&piece[at..], salt, segment.into())
                    && header.sequence > due
                {
                    return Ok(Some((offset + at as u64, header.sequence)));
                }
                at += ALIGN;
            }
            if at == 0 {
                break;
            }
            offset += at as u64;
        }
        Ok(None)
    }
}
