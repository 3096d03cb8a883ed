//! The record: how one batch lies on disk, and the one decoder of bytes that come from there.
//!
//! | bytes | field (numbers little-endian) |
//! |---|---|
//! | 4 | magic, `CFR1` |
//! | 4 | CRC of the 32 bytes that follow |
//! | 8 | sequence: one more than the record before it |
//! | 8 | segment: the file that the record was written for |
//! | 4 + 4 | length of the meta section; length of the data section |
//! | 4 | CRC of the meta section |
//! | 1 + 3 | kind (1 batch, 2 state); zeroes |
//! | … | meta: one part per group, each entry's term, length and CRC among them |
//! | … | data: for each entry its kind (1 byte) and its data, in the order of the meta section |
//! | 0–7 | zeroes up to a multiple of 8 |
//!
//! A part is: group (8), shape (1), flags (1), zeroes (2), number of entries (4); then what the shape brings
//! (reset and compact: index and term of the new start; kept: these and the last index), the hard state if its
//! flag is set (term, vote, commit), the first entry's index if there are entries, and for each entry term (8),
//! length with the kind (4) and CRC (4).
//!
//! Every byte lies under exactly one CRC, or must be zero (padding). Each CRC begins from a value that no other place
//! shares: header and meta from the log's salt and the segment, an entry's from salt, group, index and term. So
//! neither a record of an earlier use of the file nor an entry from elsewhere can pass for what is looked for,
//! and nobody who does not know the salt can forge a record within an entry.

use base::GroupId;
use base::rng::mix;

use crate::log::{HardState, LogStart};

pub const HEADER_BYTES: usize = 40;
/// Records begin at multiples of this.
pub const ALIGN: usize = 8;
/// The largest record: positions are kept in 32 bits.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;
/// What an entry takes beside its data when it is the only one of its part.
pub const ENTRY_OVERHEAD: u64 = (PART_BYTES + 8 + ENTRY_BYTES) as u64;

/// The first bytes of every record.
pub const MAGIC: [u8; 4] = *b"CFR1";
const PART_BYTES: usize = 16;
const ENTRY_BYTES: usize = 16;
const FLAG_HARD: u8 = 1;
const FLAG_MOVED: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Changes to groups, to be applied in order.
    Batch,
    /// What is kept of every group; the first record of each segment.
    State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub sequence: u64,
    pub meta_bytes: u32,
    pub data_bytes: u32,
    meta_crc: u32,
}

/// Why there is no record at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The file ends or holds zeroes.
    Blank,
    /// No header that belongs to this log and segment.
    Header,
    /// The header is good; what follows is not.
    Body(&'static str),
}

/// What a part does to the extent of its group's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Same,
    Destroy,
    Reset(LogStart),
    Compact(LogStart),
    /// In a state record: the log reaches from the start to this last index.
    Kept(LogStart, u64),
}

/// A part without its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartHead {
    pub group: GroupId,
    pub shape: Shape,
    /// The entries are copies of entries that the log holds already, brought forward from an older segment.
    pub moved: bool,
    pub hard: Option<HardState>,
    /// The first entry's index, if there are entries.
    pub first: u64,
    pub count: u32,
}

impl PartHead {
    pub fn meta_bytes(&self) -> usize {
        let shape = match self.shape {
            Shape::Same | Shape::Destroy => 0,
            Shape::Reset(_) | Shape::Compact(_) => 16,
            Shape::Kept(..) => 24,
        };
        let hard = if self.hard.is_some() { 24 } else { 0 };
        let entries = if self.count > 0 { 8 + self.count as usize * ENTRY_BYTES } else { 0 };
        PART_BYTES + shape + hard + entries
    }
}

/// A decoded record, borrowing from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub header: Header,
    meta: &'a [u8],
}

/// One group's part of a record.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    pub head: PartHead,
    metas: &'a [u8],
    /// Where the first entry's kind and data lie, from the beginning of the record.
    data_at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryMeta {
    pub term: u64,
    /// Of kind and data.
    pub bytes: u32,
    pub crc: u32,
    /// Where kind and data lie, from the beginning of the record.
    pub at: u64,
}

/// Decodes and checks the record at the front of `bytes`, every CRC included. Never panics; takes no memory.
pub fn decode_record(bytes: &[u8], salt: u64, segment: u64) -> Result<Record<'_>, Flaw> {
    let header = Header::decode(bytes, salt, segment)?;
    let meta_end = HEADER_BYTES + header.meta_bytes as usize;
    let data_end = meta_end + header.data_bytes as usize;
    if bytes.len() < data_end {
        return Err(Flaw::Body("the record is cut off"));
    }
    let meta = &bytes[HEADER_BYTES..meta_end];
    if crc(seal(salt, segment), meta) != header.meta_crc {
        return Err(Flaw::Body("the checksum of the meta section differs"));
    }
    let padding = &bytes[data_end..bytes.len().min(header.record_bytes() as usize)];
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Flaw::Body("the padding is not zero"));
    }
    let record = Record { header, meta };
    let mut walk = record.parts();
    for part in walk.by_ref() {
        for (index, entry) in (part.head.first..).zip(part.entries()) {
            let end = entry.at.saturating_add(u64::from(entry.bytes));
            if entry.bytes == 0 || end > data_end as u64 {
                return Err(Flaw::Body("an entry reaches beyond its record"));
            }
            if entry_crc(salt, part.head.group, index, entry.term, &bytes[entry.at as usize..end as usize]) != entry.crc
            {
                return Err(Flaw::Body("the checksum of an entry differs"));
            }
        }
    }
    if !walk.rest.is_empty() || walk.data_at != data_end as u64 {
        return Err(Flaw::Body("the meta section makes no sense"));
    }
    Ok(record)
}

/// The CRC that guards an entry's kind and data.
pub fn entry_crc(salt: u64, group: GroupId, index: u64, term: u64, kind_and_data: &[u8]) -> u32 {
    // Each factor is odd, so that no two of the three numbers can be exchanged unnoticed.
    let place = group.0.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ index.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ term;
    crc(mix(salt ^ place) as u32, kind_and_data)
}

impl Header {
    /// Decodes and checks a header; its lengths can be trusted, what follows it cannot.
    pub fn decode(bytes: &[u8], salt: u64, segment: u64) -> Result<Header, Flaw> {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(if bytes.iter().all(|byte| *byte == 0) { Flaw::Blank } else { Flaw::Header });
        };
        if header[..4] != MAGIC {
            return Err(if header.iter().all(|byte| *byte == 0) { Flaw::Blank } else { Flaw::Header });
        }
        let kind = match header[36] {
            1 => Kind::Batch,
            2 => Kind::State,
            _ => return Err(Flaw::Header),
        };
        if u64_at(header, 16) != segment || crc(seal(salt, segment), &header[8..]) != u32_at(header, 4) {
            return Err(Flaw::Header);
        }
        Ok(Header {
            kind,
            sequence: u64_at(header, 8),
            meta_bytes: u32_at(header, 24),
            data_bytes: u32_at(header, 28),
            meta_crc: u32_at(header, 32),
        })
    }

    /// The bytes from this record's beginning to the next one's.
    pub fn record_bytes(&self) -> u64 {
        (HEADER_BYTES as u64 + u64::from(self.meta_bytes) + u64::from(self.data_bytes)).next_multiple_of(ALIGN as u64)
    }
}

impl<'a> Record<'a> {
    pub fn parts(&self) -> Parts<'a> {
        Parts { rest: self.meta, data_at: (HEADER_BYTES + self.meta.len()) as u64 }
    }
}

/// Walks the parts of a record; stops early where they make no sense.
pub struct Parts<'a> {
    rest: &'a [u8],
    data_at: u64,
}

impl<'a> Iterator for Parts<'a> {
    type Item = Part<'a>;

    fn next(&mut self) -> Option<Part<'a>> {
        let mut rest = self.rest;
        let fixed = take(&mut rest, PART_BYTES)?;
        let count = u32_at(fixed, 12);
        let (tag, flags) = (fixed[8], fixed[9]);
        let shape = match tag {
            0 => Shape::Same,
            1 => Shape::Destroy,
            2 => Shape::Reset(take_start(&mut rest)?),
            3 => Shape::Compact(take_start(&mut rest)?),
            4 => Shape::Kept(take_start(&mut rest)?, take_u64(&mut rest)?),
            _ => return None,
        };
        if flags & !(FLAG_HARD | FLAG_MOVED) != 0 {
            return None;
        }
        let hard = if flags & FLAG_HARD != 0 {
            Some(HardState { term: take_u64(&mut rest)?, vote: take_u64(&mut rest)?, commit: take_u64(&mut rest)? })
        } else {
            None
        };
        let first = if count > 0 { take_u64(&mut rest)? } else { 0 };
        first.checked_add(u64::from(count))?;
        let metas = take(&mut rest, (count as usize).checked_mul(ENTRY_BYTES)?)?;
        let head =
            PartHead { group: GroupId(u64_at(fixed, 0)), shape, moved: flags & FLAG_MOVED != 0, hard, first, count };
        let part = Part { head, metas, data_at: self.data_at };
        self.rest = rest;
        self.data_at += part.data_bytes();
        Some(part)
    }
}

impl<'a> Part<'a> {
    pub fn entries(&self) -> impl Iterator<Item = EntryMeta> + use<'a> {
        let mut at = self.data_at;
        self.metas.chunks_exact(ENTRY_BYTES).map(move |meta| {
            let entry = EntryMeta { term: u64_at(meta, 0), bytes: u32_at(meta, 8), crc: u32_at(meta, 12), at };
            at += u64::from(entry.bytes);
            entry
        })
    }

    fn data_bytes(&self) -> u64 {
        self.metas.chunks_exact(ENTRY_BYTES).map(|meta| u64::from(u32_at(meta, 8))).sum()
    }
}

/// Builds a record in a buffer that is used again and again: `begin`, then for each part `part` and its entries,
/// then `close`; `seal` when its place is known.
#[derive(Default)]
pub struct RecordWriter {
    bytes: Vec<u8>,
    meta_at: usize,
    meta_end: usize,
    data_end: usize,
}

impl RecordWriter {
    /// Begins a record whose parts' `meta_bytes` add up to this.
    pub fn begin(&mut self, meta_bytes: usize) {
        self.bytes.clear();
        self.bytes.resize(HEADER_BYTES + meta_bytes, 0);
        self.meta_at = HEADER_BYTES;
        self.meta_end = HEADER_BYTES + meta_bytes;
    }

    pub fn part(&mut self, head: &PartHead) {
        let (tag, start, last) = match head.shape {
            Shape::Same => (0, None, None),
            Shape::Destroy => (1, None, None),
            Shape::Reset(start) => (2, Some(start), None),
            Shape::Compact(start) => (3, Some(start), None),
            Shape::Kept(start, last) => (4, Some(start), Some(last)),
        };
        let hard = if head.hard.is_some() { FLAG_HARD } else { 0 };
        let moved = if head.moved { FLAG_MOVED } else { 0 };
        self.meta(&head.group.0.to_le_bytes());
        self.meta(&[tag, hard | moved, 0, 0]);
        self.meta(&head.count.to_le_bytes());
        for number in start.iter().flat_map(|start| [start.index, start.term]).chain(last) {
            self.meta(&number.to_le_bytes());
        }
        for number in head.hard.iter().flat_map(|hard| [hard.term, hard.vote, hard.commit]) {
            self.meta(&number.to_le_bytes());
        }
        if head.count > 0 {
            self.meta(&head.first.to_le_bytes());
        }
    }

    pub fn entry(&mut self, salt: u64, group: GroupId, index: u64, term: u64, kind: u8, data: &[u8]) {
        let at = self.bytes.len();
        self.bytes.push(kind);
        self.bytes.extend_from_slice(data);
        let crc = entry_crc(salt, group, index, term, &self.bytes[at..]);
        let bytes = u32::try_from(self.bytes.len() - at).expect("the caller has bounded the record");
        let mut meta = [0; ENTRY_BYTES];
        meta[..8].copy_from_slice(&term.to_le_bytes());
        meta[8..12].copy_from_slice(&bytes.to_le_bytes());
        meta[12..].copy_from_slice(&crc.to_le_bytes());
        self.meta(&meta);
    }

    /// Ends parts and entries; returns the record's size.
    pub fn close(&mut self) -> u64 {
        assert_eq!(self.meta_at, self.meta_end, "the meta section is as long as announced");
        self.data_end = self.bytes.len();
        self.bytes.resize(self.data_end.next_multiple_of(ALIGN), 0);
        self.bytes.len() as u64
    }

    /// Fills in the header. May be repeated for another place.
    pub fn seal(&mut self, salt: u64, segment: u64, sequence: u64, kind: Kind) -> &[u8] {
        let length = |bytes: usize| u32::try_from(bytes).expect("the caller has bounded the record").to_le_bytes();
        let meta_crc = crc(seal(salt, segment), &self.bytes[HEADER_BYTES..self.meta_end]);
        let header = &mut self.bytes[..HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC);
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..24].copy_from_slice(&segment.to_le_bytes());
        header[24..28].copy_from_slice(&length(self.meta_end - HEADER_BYTES));
        header[28..32].copy_from_slice(&length(self.data_end - self.meta_end));
        header[32..36].copy_from_slice(&meta_crc.to_le_bytes());
        header[36] = match kind {
            Kind::Batch => 1,
            Kind::State => 2,
        };
        let header_crc = crc(seal(salt, segment), &header[8..]);
        header[4..8].copy_from_slice(&header_crc.to_le_bytes());
        &self.bytes
    }

    /// The sealed record, without checking it once more.
    pub fn record(&self) -> Record<'_> {
        let header = &self.bytes[..HEADER_BYTES];
        Record {
            header: Header {
                kind: if header[36] == 1 { Kind::Batch } else { Kind::State },
                sequence: u64_at(header, 8),
                meta_bytes: u32_at(header, 24),
                data_bytes: u32_at(header, 28),
                meta_crc: u32_at(header, 32),
            },
            meta: &self.bytes[HEADER_BYTES..self.meta_end],
        }
    }

    /// Gives memory back after an unusually large record.
    pub fn shrink(&mut self, bytes: usize) {
        if self.bytes.capacity() > bytes {
            self.bytes.clear();
            self.bytes.shrink_to(bytes);
        }
    }

    /// Bytes of the meta section as they are. For a fuzzer that puts nonsense under good checksums; all others have
    /// [`RecordWriter::part`] and [`RecordWriter::entry`].
    pub fn meta(&mut self, bytes: &[u8]) {
        let end = self.meta_at + bytes.len();
        assert!(end <= self.meta_end, "the meta section is as long as announced");
        self.bytes[self.meta_at..end].copy_from_slice(bytes);
        self.meta_at = end;
    }
}

/// The value that the CRCs of a segment's headers begin from.
fn seal(salt: u64, segment: u64) -> u32 {
    mix(salt ^ segment.wrapping_mul(0xA24B_AED4_963E_E407)) as u32
}

fn crc(initial: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(initial);
    hasher.update(bytes);
    hasher.finalize()
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (front, back) = rest.split_at_checked(bytes)?;
    *rest = back;
    Some(front)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest, 8).map(|bytes| u64_at(bytes, 0))
}

fn take_start(rest: &mut &[u8]) -> Option<LogStart> {
    Some(LogStart { index: take_u64(rest)?, term: take_u64(rest)? })
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use base::Rng;

    use super::*;

    const SALT: u64 = 0x5A17;

    fn sample(rng: &mut Rng) -> RecordWriter {
        let shapes = [
            Shape::Same,
            Shape::Destroy,
            Shape::Reset(LogStart { index: 7, term: 2 }),
            Shape::Compact(LogStart { index: 8, term: 3 }),
            Shape::Kept(LogStart { index: 9, term: 4 }, 12),
        ];
        let heads: Vec<PartHead> = (0..rng.between(1, 4))
            .map(|group| PartHead {
                group: GroupId(group),
                shape: *rng.pick(&shapes).unwrap(),
                moved: rng.percent(30),
                hard: rng.percent(50).then_some(HardState { term: 5, vote: 6, commit: 7 }),
                first: 0,
                count: rng.below(4) as u32,
            })
            .map(|head| PartHead { first: if head.count > 0 { 13 } else { 0 }, ..head })
            .collect();
        let mut writer = RecordWriter::default();
        writer.begin(heads.iter().map(PartHead::meta_bytes).sum());
        for head in &heads {
            writer.part(head);
            for index in 0..u64::from(head.count) {
                let data = vec![index as u8; rng.below(40) as usize];
                writer.entry(SALT, head.group, head.first + index, 3, 1, &data);
            }
        }
        writer.close();
        writer.seal(SALT, 4, 99, Kind::Batch);
        let decoded: Vec<PartHead> = writer.record().parts().map(|part| part.head).collect();
        assert_eq!(decoded, heads);
        writer
    }

    #[test]
    fn what_is_written_is_decoded_and_every_flipped_byte_is_found() {
        let mut rng = Rng::new(1);
        for _ in 0..50 {
            let writer = sample(&mut rng);
            let good = decode_record(&writer.bytes, SALT, 4).unwrap();
            assert_eq!(good.header, writer.record().header);
            assert_eq!(good.header.record_bytes(), writer.bytes.len() as u64);
            for at in 0..writer.data_end {
                let mut bad = writer.bytes.clone();
                bad[at] ^= 1 << rng.below(8);
                assert!(decode_record(&bad, SALT, 4).is_err(), "byte {at} of {}", bad.len());
                assert!(decode_record(&writer.bytes[..at], SALT, 4).is_err(), "cut at {at}");
            }
            assert_eq!(decode_record(&writer.bytes, SALT, 5).unwrap_err(), Flaw::Header);
            assert_eq!(decode_record(&writer.bytes, SALT + 1, 4).unwrap_err(), Flaw::Header);
        }
    }

    #[test]
    fn an_entry_does_not_pass_for_another() {
        let crc = entry_crc(SALT, GroupId(1), 2, 3, b"data");
        assert_ne!(crc, entry_crc(SALT, GroupId(2), 2, 3, b"data"));
        assert_ne!(crc, entry_crc(SALT, GroupId(1), 3, 3, b"data"));
        assert_ne!(crc, entry_crc(SALT, GroupId(1), 3, 2, b"data"));
        assert_ne!(crc, entry_crc(SALT + 1, GroupId(1), 2, 3, b"data"));
    }

    /// What a fuzzer would do: arbitrary bytes, and arbitrary meta sections under good checksums.
    #[test]
    fn arbitrary_bytes_are_refused_without_a_panic() {
        let mut rng = Rng::new(2);
        for _ in 0..20_000 {
            let bytes: Vec<u8> =
                (0..rng.below(200)).map(|_| rng.next_u64() as u8 & [0xFF, 3][rng.below(2) as usize]).collect();
            assert!(decode_record(&bytes, SALT, 4).is_err());
            let mut writer = RecordWriter::default();
            writer.begin(bytes.len());
            writer.meta(&bytes);
            writer.close();
            writer.seal(SALT, 4, 1, Kind::Batch);
            if let Ok(record) = decode_record(&writer.bytes, SALT, 4) {
                assert!(record.parts().flat_map(|part| part.entries()).count() <= bytes.len());
            }
        }
        assert_eq!(decode_record(&[], SALT, 4).unwrap_err(), Flaw::Blank);
        assert_eq!(decode_record(&[0; 99], SALT, 4).unwrap_err(), Flaw::Blank);
    }
}
