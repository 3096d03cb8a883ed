//! The store: one writer, many readers.
//!
//! `write` encodes a batch into one record, writes and syncs it, notes the mark, and only then lets the index (and so
//! every reader) know. Readers take positions under a shared lock and read the files without one; a file is used
//! again only when no reader holds it.
//!
//! Entries are brought forward when the segments take more than twice what is kept in them, and a few on top: the
//! entries of the oldest segment ride along with batches, or fill a record of their own in `idle`.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use base::GroupId;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use crate::log::{GroupWrite, LogBatch, LogEntry, LogError, LogStart, LogState, LogStats, LogStore, Place};

use super::disk::{Disk, DiskFile, OsDisk, read_full, unreadable};
use super::index::{GroupLog, Index, Position, Segment};
use super::mark::Mark;
use super::record::{HEADER_BYTES, Kind, PartHead, RECORD_BYTES_MAX, RecordWriter, Shape, entry_crc};
use super::recovery::{self, Recovery};
use super::segments::{Segments, segment_name};

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct SegLogOptions {
    /// The length of a segment. One that must hold a larger record becomes longer.
    pub segment_bytes: u64,
    /// Zeroes written ahead at a time where no spare was ready.
    pub zero_ahead_bytes: u64,
    /// Files kept for use as segments.
    pub spares_max: usize,
    /// Segments beyond twice the kept data that may lie about before entries are brought forward.
    pub slack_segments: u64,
    /// Entries brought forward by one call of `idle`; with a batch at least a sixteenth of this.
    pub moved_bytes_max: u64,
    /// Any number that others cannot know; kept with the log when it is made, and not used otherwise.
    pub salt: u64,
    /// Whether a folder without a log is a loss, and not the place for a fresh one.
    pub must_exist: bool,
}

impl SegLogOptions {
    pub fn new(salt: u64) -> SegLogOptions {
        SegLogOptions {
            segment_bytes: 64 << 20,
            zero_ahead_bytes: 1 << 20,
            spares_max: 2,
            slack_segments: 3,
            moved_bytes_max: 1 << 20,
            salt,
            must_exist: false,
        }
    }
}

/// The Raft logs of all groups of a node, in a folder of segment files.
pub struct SegLog {
    options: SegLogOptions,
    salt: u64,
    recovery: Recovery,
    index: RwLock<Index>,
    writer: Mutex<Writer>,
    syncs: AtomicU64,
    entries_written: AtomicU64,
    spare_bytes: AtomicU64,
    damage: OnceLock<LogError>,
}

struct Writer {
    segments: Segments,
    mark: Mark,
    /// Of the last record.
    sequence: u64,
    record: RecordWriter,
    state: RecordWriter,
    heads: Vec<PartHead>,
    moved_to: MovedTo,
    /// Segments that nobody needs any more and that are still there, oldest first.
    dead: VecDeque<(u32, Segment)>,
    failed: Option<LogError>,
}

/// How far the entries of a segment have been brought forward: none that is kept lies before this.
#[derive(Clone, Copy, Debug, Default)]
struct MovedTo {
    segment: u32,
    group: GroupId,
    index: u64,
}

/// Entries of one group that are brought forward, next to one another.
struct Moved {
    head: PartHead,
    positions: Vec<Position>,
    /// Kind and data of each, one after the other.
    data: Vec<u8>,
}

/// Whether the log stands as before.
enum Failure {
    /// Nothing was done: the same may be tried again.
    Harmless(LogError),
    Final(LogError),
}

/// Buffers grow to what a batch needs, and are given back beyond this.
const BUFFER_BYTES_KEPT: usize = 4 << 20;
/// A segment is at least this many times as long as its state record.
const STATE_SHARE: u64 = 8;
/// Positions looked at by one search for entries to bring forward.
const LOOKS_MAX: u64 = 100_000;

impl SegLog {
    /// Opens the log in `folder`, which belongs to it alone, or makes one. `Corrupt` and `Lost` say that the folder
    /// must never be used again under the same peer id; `Io` with "in use" that another process has it open.
    pub fn open(folder: &Path, options: SegLogOptions) -> Result<SegLog, LogError> {
        let disk = OsDisk::open(folder).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => LogError::Io(format!("{} is in use by another process", folder.display())),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogError::NoSpace,
            _ => LogError::Io(format!("cannot open {}: {error}", folder.display())),
        })?;
        SegLog::open_on(Arc::new(disk), options)
    }

    /// Opens the log on any disk.
    pub fn open_on(disk: Arc<dyn Disk>, options: SegLogOptions) -> Result<SegLog, LogError> {
        let recovery::Opened { mark, index, segments, recovery } = recovery::open(disk, &options)?;
        let writer = Writer {
            segments,
            mark,
            sequence: recovery.sequence,
            record: RecordWriter::default(),
            state: RecordWriter::default(),
            heads: Vec::new(),
            moved_to: MovedTo::default(),
            dead: VecDeque::new(),
            failed: None,
        };
        let log = SegLog {
            options,
            salt: writer.mark.salt(),
            recovery,
            index: RwLock::new(index),
            syncs: AtomicU64::new(0),
            entries_written: AtomicU64::new(0),
            spare_bytes: AtomicU64::new(writer.segments.spare_bytes()),
            damage: OnceLock::new(),
            writer: Mutex::new(writer),
        };
        {
            let writer = &mut *log.writer.lock();
            if writer.segments.current.is_none() {
                log.begin_segment(writer, 0).map_err(Failure::into_error)?;
            }
            let noted = writer.mark.note(writer.sequence).and_then(|()| writer.mark.prepare());
            noted.and_then(|()| writer.mark.sync()).map_err(|error| broken(&error))?;
        }
        Ok(log)
    }

    /// What the opening found.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// What was found damaged since the opening, by a read or a scrub. The log must not be used again under the same
    /// peer id.
    pub fn damage(&self) -> Option<LogError> {
        self.damage.get().cloned()
    }

    pub(super) fn noted(&self, error: LogError) -> LogError {
        if let LogError::Corrupt { .. } | LogError::Lost { .. } = &error {
            self.damage.get_or_init(|| error.clone());
        }
        error
    }

    pub(super) fn salt(&self) -> u64 {
        self.salt
    }

    /// The segments, oldest first, and of the one in use where its last synced record ends.
    pub(super) fn written(&self) -> Vec<(u32, Arc<dyn DiskFile>, Option<u64>)> {
        let writer = self.writer.lock();
        let current = writer.segments.current.as_ref().map(|current| (current.id, current.end));
        let index = self.index.read();
        let segments = index.segments.iter();
        let written = segments.map(|(id, segment)| {
            let end = current.filter(|(current, _)| current == id).map(|(_, end)| end);
            (*id, segment.file.clone(), end)
        });
        written.collect()
    }

    fn commit(&self, writer: &mut Writer, batch: &LogBatch, moved_bytes_max: u64) -> Result<(), Failure> {
        let (moved, moved_to) = self.pick_moved(writer.moved_to, moved_bytes_max).map_err(Failure::Final)?;
        if batch.groups.is_empty() && moved.is_empty() {
            writer.moved_to = moved_to;
            return Ok(());
        }
        let entries = self.encode(writer, batch, &moved).map_err(Failure::Harmless)?;
        let bytes = writer.record.close();
        if !writer.segments.is_begun() || !writer.segments.has_room(bytes) {
            self.begin_segment(writer, bytes)?;
        }
        writer.segments.prepare(bytes).map_err(harmless_if_full)?;
        let current = writer.segments.current.as_ref().expect("a segment is in use");
        let (segment, offset) = (current.id, current.end);
        let sealed = writer.record.seal(self.salt, segment.into(), writer.sequence + 1, Kind::Batch);
        writer.segments.append(sealed).map_err(harmless_if_full)?;
        self.synced(writer, bytes)?;
        writer.moved_to = moved_to;
        self.entries_written.fetch_add(entries, Ordering::Relaxed);
        let mut index = self.index.write();
        index.apply(&writer.record.record(), segment, offset).expect("the batch was checked against the index");
        let dead = index.take_dead();
        drop(index);
        writer.dead.extend(dead);
        while let Some((id, Segment { file, bytes, .. })) = writer.dead.front() {
            let reusable = Arc::strong_count(file) == 1;
            match writer.segments.retire(*id, file.clone(), *bytes, reusable) {
                // The batch is written. The next one tries again, and younger segments wait: an opening wants no gaps.
                Err(error) if broken(&error) == LogError::NoSpace => break,
                retired => retired.map_err(final_error)?,
            }
            writer.dead.pop_front();
        }
        self.spare_bytes.store(writer.segments.spare_bytes(), Ordering::Relaxed);
        writer.record.shrink(BUFFER_BYTES_KEPT);
        Ok(())
    }

    /// Makes the record that was just written count.
    fn synced(&self, writer: &mut Writer, bytes: u64) -> Result<(), Failure> {
        writer.segments.sync().map_err(final_error)?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        writer.segments.current.as_mut().expect("a segment is in use").end += bytes;
        writer.sequence += 1;
        match writer.mark.note(writer.sequence) {
            // The record is durable, and the next one vouches for it. Until then a kill is as a power cut.
            Err(error) if broken(&error) == LogError::NoSpace => Ok(()),
            noted => noted.map_err(final_error),
        }
    }

    /// Begins a segment with the state record, with room for a record of `bytes` after it. What a full disk refuses is tried
    /// again from where it stood, with the file that has become a segment already.
    fn begin_segment(&self, writer: &mut Writer, bytes: u64) -> Result<(), Failure> {
        let index = self.index.read();
        writer.state.begin(index.state_heads().map(|head| head.meta_bytes()).sum());
        index.state_heads().for_each(|head| writer.state.part(&head));
        drop(index);
        let state_bytes = writer.state.close();
        let length = (state_bytes * STATE_SHARE).max(state_bytes + bytes);
        if length > u64::from(u32::MAX) {
            return Err(Failure::Harmless(LogError::Io(format!("a state record of {state_bytes} bytes is too large"))));
        }
        if writer.segments.is_begun() {
            writer.segments.prepare_next(state_bytes).map_err(harmless_if_full)?;
            writer.segments.begin_next().map_err(harmless_if_full)?;
            writer.segments.disk.sync_names().map_err(final_error)?;
        }
        writer.segments.lengthen(length);
        writer.segments.prepare(state_bytes).map_err(harmless_if_full)?;
        let current = writer.segments.current.as_ref().expect("a segment was just begun");
        let (id, file, length) = (current.id, current.file.clone(), current.bytes);
        let sealed = writer.state.seal(self.salt, id.into(), writer.sequence + 1, Kind::State);
        writer.segments.append(sealed).map_err(harmless_if_full)?;
        self.synced(writer, state_bytes)?;
        writer.state.shrink(BUFFER_BYTES_KEPT);
        self.index.write().segments.insert(id, Segment { file, bytes: length, live: 0 });
        Ok(())
    }

    /// Encodes moved entries and a batch into one record; says how many entries the batch has. A batch that does not
    /// follow from the log is a programmer's error and panics.
    fn encode(&self, writer: &mut Writer, batch: &LogBatch, moved: &[Moved]) -> Result<u64, LogError> {
        let Writer { record, heads, .. } = writer;
        heads.clear();
        let index = self.index.read();
        let ascending = batch.groups.windows(2).all(|pair| pair[0].group < pair[1].group);
        let mut seen = BTreeSet::new();
        for (at, write) in batch.groups.iter().enumerate() {
            let repeated = !ascending && !seen.insert(write.group);
            let before = index.groups.get(&write.group);
            let head = if repeated {
                head_of(write, before_write(before, &batch.groups[..at], write.group).as_ref())
            } else {
                head_of(write, before)
            };
            heads.push(head);
        }
        drop(index);
        let moved_data: usize = moved.iter().map(|moved| moved.data.len()).sum();
        let entries = batch.groups.iter().flat_map(|write| &write.entries);
        let data: usize = moved_data + entries.map(|entry| 1 + entry.data.len()).sum::<usize>();
        let meta = moved.iter().map(|moved| &moved.head).chain(&*heads).map(PartHead::meta_bytes).sum::<usize>();
        if (HEADER_BYTES + meta + data) as u64 > RECORD_BYTES_MAX {
            return Err(LogError::Io(format!("a batch of {data} bytes is too large")));
        }
        record.begin(meta);
        for moved in moved {
            record.part(&moved.head);
            let mut rest = moved.data.as_slice();
            for (index, position) in (moved.head.first..).zip(&moved.positions) {
                let (entry, after) = rest.split_at(position.bytes as usize);
                record.entry(self.salt, moved.head.group, index, position.term, entry[0], &entry[1..]);
                rest = after;
            }
        }
        for (head, write) in heads.iter().zip(&batch.groups) {
            record.part(head);
            for entry in &write.entries {
                record.entry(self.salt, write.group, entry.index, entry.term, entry.kind, &entry.data);
            }
        }
        Ok(heads.iter().map(|head| u64::from(head.count)).sum())
    }

    /// Reads entries of the oldest segment, if it is time to bring them forward; also says how far it has looked.
    fn pick_moved(&self, from: MovedTo, bytes_max: u64) -> Result<(Vec<Moved>, MovedTo), LogError> {
        let index = self.index.read();
        let (Some((&oldest, segment)), Some((_, current))) =
            (index.segments.first_key_value(), index.segments.last_key_value())
        else {
            return Ok((Vec::new(), from));
        };
        let kept: u64 = index.segments.values().map(|segment| segment.live).sum();
        let taken: u64 = index.segments.values().map(|segment| segment.bytes).sum();
        let slack = (self.options.slack_segments + 1) * self.options.segment_bytes.max(current.bytes);
        if index.segments.len() == 1 || taken <= 2 * kept + slack {
            return Ok((Vec::new(), from));
        }
        let file = segment.file.clone();
        let mut to = if from.segment == oldest { from } else { MovedTo { segment: oldest, ..MovedTo::default() } };
        let mut moved: Vec<Moved> = Vec::new();
        let (mut budget, mut looks) = (bytes_max, LOOKS_MAX);
        'groups: for (group, log) in index.groups.range(to.group..) {
            let first = if *group == to.group { to.index } else { 0 };
            let mut open = false;
            for (at, position) in log.positions_from(first) {
                if budget == 0 || looks == 0 {
                    (to.group, to.index) = (*group, at);
                    break 'groups;
                }
                looks -= 1;
                if position.segment != oldest {
                    open = false;
                    continue;
                }
                budget = budget.saturating_sub(position.weight());
                if !open {
                    let shape = Shape::Same;
                    let head = PartHead { group: *group, shape, moved: true, hard: None, first: at, count: 0 };
                    moved.push(Moved { head, positions: Vec::new(), data: Vec::new() });
                    open = true;
                }
                let run = moved.last_mut().expect("it was just opened");
                run.head.count += 1;
                run.positions.push(*position);
            }
        }
        drop(index);
        for run in &mut moved {
            for (index, position) in (run.head.first..).zip(&run.positions) {
                let at = run.data.len();
                run.data.resize(at + position.bytes as usize, 0);
                self.fetch(&*file, position.offset, &mut run.data[at..], oldest)?;
                self.check(&run.data[at..], run.head.group, index, position)?;
            }
        }
        Ok((moved, to))
    }

    fn fetch(&self, file: &dyn DiskFile, offset: u32, into: &mut [u8], segment: u32) -> Result<(), LogError> {
        let read = read_full(file, into, offset.into())
            .map_err(|error| self.noted(unreadable(&segment_name(segment), offset.into(), &error)))?;
        if read < into.len() {
            let place = Place { file: segment_name(segment), offset: u64::from(offset) + read as u64 };
            let why = "the file ends within an entry".to_owned();
            return Err(self.noted(LogError::Corrupt { place, why }));
        }
        Ok(())
    }

    fn check(&self, entry: &[u8], group: GroupId, index: u64, position: &Position) -> Result<(), LogError> {
        if entry_crc(self.salt, group, index, position.term, entry) != position.crc {
            let place = Place { file: segment_name(position.segment), offset: position.offset.into() };
            let why = format!("the checksum of entry {index} of group {group} differs");
            return Err(self.noted(LogError::Corrupt { place, why }));
        }
        Ok(())
    }
}

impl LogStore for SegLog {
    /// `NoSpace` leaves the log as it was, unless a sync says so: it can be tried again, and fails for good if it must not be.
    /// Every other error is repeated by all later calls.
    fn write(&self, batch: &LogBatch) -> Result<(), LogError> {
        let writer = &mut *self.writer.lock();
        let bytes: usize = batch.groups.iter().flat_map(|write| &write.entries).map(|entry| entry.data.len()).sum();
        let moved_bytes_max = (bytes as u64).max(self.options.moved_bytes_max / 16).min(RECORD_BYTES_MAX / 4);
        writer.guarded(|writer| self.commit(writer, batch, moved_bytes_max))
    }

    /// Syncs the mark, fills a spare a little further, and brings a few entries forward. Two or three syncs at most.
    fn idle(&self) -> Result<(), LogError> {
        let writer = &mut *self.writer.lock();
        writer.guarded(|writer| {
            self.commit(writer, &LogBatch::default(), self.options.moved_bytes_max)?;
            writer.mark.prepare().map_err(harmless_if_full)?;
            writer.mark.sync().map_err(final_error)?;
            let filled = writer.segments.fill_spare().map_err(harmless_if_full);
            self.spare_bytes.store(writer.segments.spare_bytes(), Ordering::Relaxed);
            filled
        })
    }

    fn groups(&self) -> Vec<GroupId> {
        self.index.read().groups.keys().copied().collect()
    }

    fn state(&self, group: GroupId) -> Option<LogState> {
        self.index.read().groups.get(&group).map(GroupLog::state)
    }

    fn term(&self, group: GroupId, index: u64) -> Result<u64, LogError> {
        let known = self.index.read();
        let log = known.group(group)?;
        log.term(index).ok_or_else(|| not_kept(group, index, log))
    }

    fn read(&self, group: GroupId, low: u64, high: u64, bytes_max: u64) -> Result<Vec<LogEntry>, LogError> {
        // What lies next to one another is read at once: each run is its first entry's number, file and bytes.
        let mut positions: Vec<Position> = Vec::new();
        let mut runs: Vec<(usize, Arc<dyn DiskFile>, usize)> = Vec::new();
        let known = self.index.read();
        let log = known.group(group)?;
        let mut taken = 0;
        for index in low..high {
            let position = log.position(index).ok_or_else(|| not_kept(group, index, log))?;
            let bytes = u64::from(position.bytes) - 1;
            taken += bytes;
            if taken > bytes_max && !positions.is_empty() {
                break;
            }
            match (positions.last(), runs.last_mut()) {
                (Some(last), Some(run)) if last.segment == position.segment && last.end() == position.offset.into() => {
                    run.2 += position.bytes as usize;
                }
                _ => {
                    let file = known.segments[&position.segment].file.clone();
                    runs.push((positions.len(), file, position.bytes as usize));
                }
            }
            positions.push(position);
        }
        drop(known);
        let mut entries = Vec::with_capacity(positions.len());
        for (first, file, bytes) in runs {
            let mut run = vec![0; bytes];
            self.fetch(&*file, positions[first].offset, &mut run, positions[first].segment)?;
            let run = Bytes::from(run);
            let mut at = 0;
            while at < bytes {
                let position = &positions[entries.len()];
                let index = low + entries.len() as u64;
                let entry = run.slice(at..at + position.bytes as usize);
                self.check(&entry, group, index, position)?;
                entries.push(LogEntry { index, term: position.term, kind: entry[0], data: entry.slice(1..) });
                at += position.bytes as usize;
            }
        }
        Ok(entries)
    }

    fn stats(&self) -> LogStats {
        let index = self.index.read();
        LogStats {
            bytes: index.segments.values().map(|segment| segment.bytes).sum::<u64>()
                + self.spare_bytes.load(Ordering::Relaxed),
            segments: index.segments.len() as u64,
            syncs: self.syncs.load(Ordering::Relaxed),
            entries_written: self.entries_written.load(Ordering::Relaxed),
        }
    }
}

impl Drop for SegLog {
    fn drop(&mut self) {
        let writer = self.writer.get_mut();
        if writer.failed.is_none() {
            // Nobody is left to tell; without it the next opening has a smaller mark, and says so.
            let _ = writer.mark.prepare().and_then(|()| writer.mark.sync());
        }
    }
}

impl Writer {
    /// Runs what writes, unless something failed for good before; remembers if this does.
    fn guarded(&mut self, run: impl FnOnce(&mut Writer) -> Result<(), Failure>) -> Result<(), LogError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        run(self).map_err(|failure| {
            if let Failure::Final(error) = &failure {
                self.failed = Some(error.clone());
            }
            failure.into_error()
        })
    }
}

impl Failure {
    fn into_error(self) -> LogError {
        match self {
            Failure::Harmless(error) | Failure::Final(error) => error,
        }
    }
}

/// Checks a group's write against its log before it, and says what it does.
fn head_of(write: &GroupWrite, before: Option<&GroupLog>) -> PartHead {
    let group = write.group;
    let same = PartHead { group, shape: Shape::Same, moved: false, hard: write.hard, first: 0, count: 0 };
    if write.destroy {
        let rest_is_empty =
            write.reset.is_none() && write.compact_to.is_none() && write.entries.is_empty() && write.hard.is_none();
        assert!(rest_is_empty, "group {group} is destroyed and written at once");
        return PartHead { shape: Shape::Destroy, ..same };
    }
    let before = before.map(GroupLog::state).zip(before);
    let (mut start, mut last) = before.map_or((0, 0), |(state, _)| (state.start.index, state.last));
    let shape = match (write.reset, write.compact_to, before) {
        (Some(reset), ..) => {
            (start, last) = (reset.index, reset.index);
            Shape::Reset(reset)
        }
        (None, Some(to), Some((_, log))) if to.min(last) > start => {
            start = to.min(last);
            let term = log.term(start).expect("an index between start and last has a term");
            Shape::Compact(LogStart { index: start, term })
        }
        _ => Shape::Same,
    };
    let first = write.entries.first().map_or(0, |entry| entry.index);
    for (index, entry) in (first..).zip(&write.entries) {
        assert_eq!(entry.index, index, "entries of group {group} have a gap");
    }
    assert!(
        write.entries.is_empty() || (first > start && first <= last + 1),
        "entry {first} of group {group} does not join on to its log, which is {start}..={last}"
    );
    let count = u32::try_from(write.entries.len()).expect("a batch is bounded");
    PartHead { shape, first, count, ..same }
}

/// The log of a group as the earlier writes of the same batch leave it. (Seldom: a group destroyed and made again.)
fn before_write(before: Option<&GroupLog>, earlier: &[GroupWrite], group: GroupId) -> Option<GroupLog> {
    let mut log = before.cloned();
    for write in earlier.iter().filter(|write| write.group == group) {
        let head = head_of(write, log.as_ref());
        if head.shape == Shape::Destroy {
            log = None;
            continue;
        }
        let mut record = RecordWriter::default();
        record.begin(head.meta_bytes());
        record.part(&head);
        for entry in &write.entries {
            record.entry(0, group, entry.index, entry.term, entry.kind, &[]);
        }
        record.close();
        record.seal(0, 0, 0, Kind::Batch);
        let log = log.get_or_insert_default();
        for part in record.record().parts() {
            log.apply(&part, u32::MAX, 0, &mut |_, _| {}).expect("the write was checked");
        }
    }
    log
}

fn not_kept(group: GroupId, index: u64, log: &GroupLog) -> LogError {
    if index <= log.start.index {
        LogError::Compacted { group, index, start: log.start.index }
    } else {
        LogError::Io(format!("entry {index} of group {group} is asked for, and the last is {}", log.last()))
    }
}

fn broken(error: &io::Error) -> LogError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => LogError::NoSpace,
        _ => LogError::Io(error.to_string()),
    }
}

fn final_error(error: io::Error) -> Failure {
    Failure::Final(broken(&error))
}

/// For what is done before the sync: what a full disk refused there is as if it had never been tried.
fn harmless_if_full(error: io::Error) -> Failure {
    match broken(&error) {
        LogError::NoSpace => Failure::Harmless(LogError::NoSpace),
        error => Failure::Final(error),
    }
}
