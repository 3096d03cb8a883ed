//! Following the chain of records while the log is in use, to see whether the disk still holds it.
//!
//! A pass goes through the segments as they were when it began, oldest first, and checks every record in full, as an
//! opening does ([`super::recovery`]): records follow one another by their sequence, from segment to segment, up to the
//! last one that was synced. It only reads, and it asks the writer for nothing but where that last record ends. A
//! segment that is retired under way stays readable until the pass lets go of it.
//!
//! A step reads one record, or at most [`PIECE_BYTES`] where records are small; who calls decides the pace. What the operating
//! system has cached of a segment is dropped before it is read, and again after: the disk is what is asked about. (All
//! that is looked at is synced, and so can be dropped.)

use std::sync::Arc;

use crate::log::{LogError, Place};

use super::disk::{DiskFile, read_full, unreadable};
use super::record::{Flaw, HEADER_BYTES, Header, decode_record};
use super::segments::segment_name;
use super::store::SegLog;

/// Records that fit in this much are read together.
pub const PIECE_BYTES: u64 = 1 << 20;

/// A pass over the segments of a log.
pub struct LogScrub {
    /// Still to come, the next one last.
    segments: Vec<(u32, Arc<dyn DiskFile>, Option<u64>)>,
    offset: u64,
    /// The sequence of the next record; `None` before the first.
    due: Option<u64>,
    /// Where the records of the segment before ended.
    ended: Option<(u32, u64)>,
    bytes_total: u64,
}

impl SegLog {
    pub fn begin_scrub(&self) -> LogScrub {
        let mut segments = self.written();
        segments.reverse();
        let bytes = |file: &Arc<dyn DiskFile>, end: &Option<u64>| end.unwrap_or_else(|| file.bytes().unwrap_or(0));
        let bytes_total = segments.iter().map(|(_, file, end)| bytes(file, end)).sum();
        LogScrub { segments, offset: 0, due: None, ended: None, bytes_total }
    }

    /// One step of a pass: how many bytes it read; `None` when the pass is over. `Corrupt` is damage, and is remembered
    /// ([`SegLog::damage`]).
    pub fn scrub_step(&self, scrub: &mut LogScrub) -> Result<Option<u64>, LogError> {
        scrub.step(self.salt()).map_err(|error| self.noted(error))
    }
}

impl LogScrub {
    /// Bytes of all segments, what is not written in them included.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    fn step(&mut self, salt: u64) -> Result<Option<u64>, LogError> {
        let Some((id, file, end)) = self.segments.last().cloned() else { return Ok(None) };
        if end == Some(self.offset) {
            self.next_segment(id);
            return Ok(Some(0));
        }
        if self.offset == 0 {
            file.forget_cached();
        }
        let bytes = end.map_or(PIECE_BYTES, |end| PIECE_BYTES.min(end.saturating_sub(self.offset)));
        let mut piece = read_piece(&*file, self.offset, bytes, id)?;
        if let Ok(header) = Header::decode(&piece, salt, id.into())
            && header.record_bytes() > piece.len() as u64
        {
            piece = read_piece(&*file, self.offset, header.record_bytes(), id)?;
        }
        let mut taken = 0;
        let flaw = loop {
            let rest = &piece[taken..];
            if end == Some(self.offset + taken as u64) || (taken > 0 && rest.len() < HEADER_BYTES) {
                break None;
            }
            match Header::decode(rest, salt, id.into()) {
                Ok(header) if taken > 0 && header.record_bytes() > rest.len() as u64 => break None,
                Ok(header) if self.due.is_some_and(|due| due != header.sequence) => break Some(Flaw::Header),
                Ok(header) => match decode_record(rest, salt, id.into()) {
                    Ok(_) => {
                        self.due = Some(header.sequence + 1);
                        taken += header.record_bytes() as usize;
                    }
                    Err(flaw) => break Some(flaw),
                },
                Err(flaw) => break Some(flaw),
            }
        };
        let at = self.offset;
        self.offset += taken as u64;
        match flaw {
            // A later step meets the flaw at its beginning.
            _ if taken > 0 => {}
            None => {}
            Some(Flaw::Body(why)) if end.is_some() => return Err(corrupt(id, at, why)),
            Some(_) if at == 0 => {
                return Err(match self.ended {
                    Some((before, ended)) => corrupt(before, ended, "records before the next segment are missing"),
                    None => corrupt(id, 0, "the segment's first record is missing"),
                });
            }
            Some(_) if end.is_some() => return Err(corrupt(id, at, "a record that was synced is missing")),
            // The end of the segment, unless the next one says otherwise. Part of a record may lie there, for which the disk
            // had no room: it went to the next segment.
            Some(_) => self.next_segment(id),
        }
        Ok(Some(piece.len() as u64))
    }

    fn next_segment(&mut self, id: u32) {
        if let Some((_, file, _)) = self.segments.pop() {
            file.forget_cached();
        }
        self.ended = Some((id, self.offset));
        self.offset = 0;
    }
}

fn read_piece(file: &dyn DiskFile, offset: u64, bytes: u64, id: u32) -> Result<Vec<u8>, LogError> {
    let mut piece = vec![0; bytes as usize];
    let read = read_full(file, &mut piece, offset).map_err(|error| unreadable(&segment_name(id), offset, &error))?;
    piece.truncate(read);
    Ok(piece)
}

fn corrupt(segment: u32, offset: u64, why: &str) -> LogError {
    LogError::Corrupt { place: Place { file: segment_name(segment), offset }, why: why.to_owned() }
}
