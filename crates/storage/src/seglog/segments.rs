//! The segment files: where the next record goes, how room is made ahead of it, and what becomes of a file that
//! is no longer needed.
//!
//! | name | what it is |
//! |---|---|
//! | `segment-<number>.raft` | records, in the order of the numbers (16 hex digits, never used twice) |
//! | `spare-<number>.raft` | a file that waits to become a segment |
//!
//! The life of a file: `idle` creates a spare and fills it with zeroes, a chunk per call. When the segment in use is
//! full the spare is renamed, and the name made durable before anything is written. The first record is the state
//! record, which makes everything older superfluous but the entries themselves. When none of these is kept in it, the
//! file becomes a spare again as it is: its old records carry the old segment number and cannot be mistaken for new
//! ones.
//!
//! Zeroes are written ahead so that a sync has only data to write, no change of the file's length or extents: that
//! is what a sync costs most. Where no spare is ready the segment in use is filled a chunk at a time, before the
//! record and under the same sync.

use std::io;
use std::sync::Arc;

use super::disk::{Disk, DiskFile, write_all};

/// A file that `idle` fills gets this much per call.
const SPARE_CHUNK_BYTES: u64 = 2 << 20;

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

pub fn segment_name(id: u32) -> String {
    format!("segment-{id:016x}.raft")
}

pub fn spare_name(number: u64) -> String {
    format!("spare-{number:016x}.raft")
}

/// The number in a name with this prefix.
pub fn parse_name(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?.strip_prefix('-')?.strip_suffix(".raft")?;
    u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16)
}

/// The segment that is written to.
pub struct Current {
    pub id: u32,
    pub file: Arc<dyn DiskFile>,
    /// Where the next record goes.
    pub end: u64,
    /// The file holds written bytes up to here.
    pub ready: u64,
    /// The file is to become this long.
    pub bytes: u64,
}

pub struct Spare {
    number: u64,
    file: Arc<dyn DiskFile>,
    /// Holds written, synced bytes up to here.
    ready: u64,
}

pub struct Segments {
    pub disk: Arc<dyn Disk>,
    pub segment_bytes: u64,
    pub ahead_bytes: u64,
    pub spares_max: usize,
    /// `None` only until the first segment of a log was made.
    pub current: Option<Current>,
    pub next_id: u32,
    spares: Vec<Spare>,
    next_spare: u64,
}

impl Segments {
    pub fn new(disk: Arc<dyn Disk>, segment_bytes: u64, ahead_bytes: u64, spares_max: usize) -> Segments {
        Segments {
            disk,
            segment_bytes,
            ahead_bytes,
            spares_max,
            current: None,
            next_id: 1,
            spares: Vec::new(),
            next_spare: 1,
        }
    }

    /// Takes over a spare found at the opening; removes it if there are enough.
    pub fn adopt_spare(&mut self, number: u64) -> io::Result<()> {
        self.next_spare = self.next_spare.max(number + 1);
        let file = self.disk.open(&spare_name(number))?;
        let ready = file.bytes()?;
        if self.spares.len() >= self.spares_max || ready > self.segment_bytes {
            return self.disk.remove(&spare_name(number));
        }
        self.spares.push(Spare { number, file, ready });
        Ok(())
    }

    /// Whether the segment in use has its first record; true before there is any.
    pub fn is_begun(&self) -> bool {
        self.current.as_ref().is_none_or(|current| current.end > 0)
    }

    /// Whether the segment in use can take `bytes` more.
    pub fn has_room(&self, bytes: u64) -> bool {
        self.current.as_ref().is_some_and(|current| current.end + bytes <= current.bytes)
    }

    /// Sees to it that the next `bytes` lie on written ground, which may need space. Leaves the log as it was.
    pub fn prepare(&mut self, bytes: u64) -> io::Result<()> {
        let ahead_bytes = self.ahead_bytes;
        let current = self.current.as_mut().expect("a segment is in use");
        let end = current.end + bytes;
        if end > current.ready {
            let ahead = (current.ready + ahead_bytes).min(current.bytes).max(end);
            write_zeroes(&*current.file, current.ready, ahead)?;
            current.ready = ahead;
        }
        Ok(())
    }

    /// Writes a record at the end of the segment in use and syncs it.
    pub fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let current = self.current.as_ref().expect("a segment is in use");
        write_all(&*current.file, record, current.end)
    }

    pub fn sync(&mut self) -> io::Result<()> {
        self.current.as_ref().expect("a segment is in use").file.sync()
    }

    /// Finds a spare with written ground for a first record of `bytes`, which may need space. Leaves the log as it
    /// was.
    pub fn prepare_next(&mut self, bytes: u64) -> io::Result<()> {
        if self.spares.is_empty() {
            self.create_spare()?;
        }
        let best = (0..self.spares.len()).max_by_key(|at| self.spares[*at].ready).expect("there is a spare");
        let last = self.spares.len() - 1;
        self.spares.swap(best, last);
        let spare = &mut self.spares[last];
        if spare.ready < bytes {
            write_zeroes(&*spare.file, spare.ready, bytes)?;
            spare.ready = bytes;
        }
        Ok(())
    }

    /// Makes the spare of `prepare_next` the segment in use; its name is not durable yet. Leaves the log as it was if it fails.
    pub fn begin_next(&mut self) -> io::Result<()> {
        let spare = self.spares.last().expect("prepare_next was called");
        let id = self.next_id;
        self.disk.rename(&spare_name(spare.number), &segment_name(id))?;
        self.next_id += 1;
        let spare = self.spares.pop().expect("it was looked at above");
        let bytes = self.segment_bytes.max(spare.ready);
        self.current = Some(Current { id, file: spare.file, end: 0, ready: spare.ready, bytes });
        Ok(())
    }

    /// The segment in use is to become so long at least.
    pub fn lengthen(&mut self, bytes: u64) {
        let current = self.current.as_mut().expect("a segment is in use");
        current.bytes = current.bytes.max(bytes);
    }

    /// Keeps a segment's file as a spare, or removes it. `reusable` says that nobody reads it any more.
    pub fn retire(&mut self, id: u32, file: Arc<dyn DiskFile>, bytes: u64, reusable: bool) -> io::Result<()> {
        if !reusable || bytes > self.segment_bytes || self.spares.len() >= self.spares_max {
            return self.disk.remove(&segment_name(id));
        }
        let number = self.next_spare;
        self.next_spare += 1;
        self.disk.rename(&segment_name(id), &spare_name(number))?;
        let ready = file.bytes()?;
        self.spares.push(Spare { number, file, ready });
        Ok(())
    }

    /// Fills the spare a little further, synced, if the next segment is not ready yet.
    pub fn fill_spare(&mut self) -> io::Result<()> {
        if self.spares_max == 0 || self.spares.iter().any(|spare| spare.ready >= self.segment_bytes) {
            return Ok(());
        }
        if self.spares.is_empty() {
            self.create_spare()?;
        }
        let spare = self.spares.last_mut().expect("there is a spare");
        let ready = (spare.ready + SPARE_CHUNK_BYTES).min(self.segment_bytes);
        write_zeroes(&*spare.file, spare.ready, ready)?;
        spare.file.sync()?;
        spare.ready = ready;
        Ok(())
    }

    /// The bytes of all spares.
    pub fn spare_bytes(&self) -> u64 {
        self.spares.iter().map(|spare| spare.ready).sum()
    }

    fn create_spare(&mut self) -> io::Result<()> {
        let number = self.next_spare;
        let file = self.disk.create(&spare_name(number))?;
        self.next_spare += 1;
        self.spares.push(Spare { number, file, ready: 0 });
        Ok(())
    }
}

fn write_zeroes(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let mut at = from;
    while at < to {
        let bytes = (to - at).min(ZEROES.len() as u64);
        write_all(file, &ZEROES[..bytes as usize], at)?;
        at += bytes;
    }
    Ok(())
}
