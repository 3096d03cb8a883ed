//! RocksDB's MANIFEST, read and checked without RocksDB: the checksums that it keeps of table files.
//!
//! A manifest is a log of version edits in blocks of 32 KiB. Each record is: masked CRC32C (4) of type and payload, length
//! (2), type (1: whole, 2 to 4: first, middle, last part of an edit), payload; what is left of a block and cannot hold a
//! header is zeroes. An edit is a sequence of tags with their fields. Of interest is one, a table file that was
//! added, and of its fields two: the file's number, and the CRC32C of the whole file that RocksDB computed while it wrote
//! it (`Options::set_file_checksum_gen_factory`).
//!
//! A record whose checksum does not fit is damage. An edit with a tag that is not known here is not: a later RocksDB
//! wrote it, and the files in the rest of that edit count as having no checksum.

use std::collections::BTreeMap;

const BLOCK_BYTES: usize = 32 << 10;
const HEADER_BYTES: usize = 7;
const MASK: u32 = 0xa282_ead8;

/// By file number, the CRC32C of the whole file. The error says what is wrong with the manifest; while RocksDB is about to
/// append to it, its end may look cut off.
pub(super) fn table_checksums(manifest: &[u8]) -> Result<BTreeMap<u64, u32>, String> {
    let mut sums = BTreeMap::new();
    let mut edit = Vec::new();
    let mut under_way = false;
    let mut at = 0;
    while at < manifest.len() {
        let left_in_block = BLOCK_BYTES - at % BLOCK_BYTES;
        if left_in_block < HEADER_BYTES {
            at += left_in_block;
            continue;
        }
        let Some(header) = manifest.get(at..at + HEADER_BYTES) else {
            return Err(format!("it is cut off at byte {at}"));
        };
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let kind = header[6];
        if kind == 0 && length == 0 {
            // Nothing was written here yet. RocksDB passes over zeroes wherever they are, and so loses edits unnoticed.
            if manifest[at..].iter().any(|byte| *byte != 0) {
                return Err(format!("there are zeroes at byte {at}, and something behind them"));
            }
            break;
        }
        let end = at + HEADER_BYTES + length;
        if HEADER_BYTES + length > left_in_block {
            return Err(format!("a record at byte {at} reaches beyond its block"));
        }
        let Some(checked) = manifest.get(at + 6..end) else {
            return Err(format!("it is cut off at byte {at}"));
        };
        let masked = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if mask(crc32c::crc32c(checked)) != masked {
            return Err(format!("the checksum of the record at byte {at} differs"));
        }
        let payload = &checked[1..];
        match (kind, under_way) {
            (1, false) => take_edit(payload, &mut sums),
            (2, false) => edit = payload.to_vec(),
            (3, true) => edit.extend_from_slice(payload),
            (4, true) => {
                edit.extend_from_slice(payload);
                take_edit(&edit, &mut sums);
            }
            _ => return Err(format!("a record of kind {kind} at byte {at} is out of order")),
        }
        under_way = matches!(kind, 2 | 3);
        at = end;
    }
    if under_way { Err("it ends within an edit".to_owned()) } else { Ok(sums) }
}

fn mask(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(MASK)
}

/// The tags of an edit, by RocksDB's `version_edit.h`.
fn take_edit(edit: &[u8], sums: &mut BTreeMap<u64, u32>) {
    const SAFE_TO_IGNORE: u64 = 1 << 13;
    let mut fields = Fields(edit);
    // An end that comes too soon is as good as an unknown tag.
    let mut take = || -> Option<()> {
        loop {
            match fields.number()? {
                // Comparator; a column family that is added.
                1 | 201 => drop(fields.text()?),
                // Numbers of logs, files and families; the place in an atomic group.
                2 | 3 | 4 | 9 | 10 | 200 | 203 | 300 => drop(fields.number()?),
                // Level and key where compaction goes on.
                5 => {
                    fields.number()?;
                    fields.text()?;
                }
                // Level and number of a deleted file.
                6 => {
                    fields.number()?;
                    fields.number()?;
                }
                103 => {
                    if let (number, Some(sum)) = fields.table()? {
                        sums.insert(number, sum);
                    }
                }
                202 => {}
                tag if tag > SAFE_TO_IGNORE => drop(fields.text()?),
                _ => return None,
            }
        }
    };
    take();
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// A varint.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }

    /// A table file that was added: its number, and its checksum if it has one of the kind we know.
    fn table(&mut self) -> Option<(u64, Option<u32>)> {
        const END: u64 = 1;
        const CHECKSUM: u64 = 7;
        const CHECKSUM_NAME: u64 = 8;
        let _level = self.number()?;
        let number = self.number()?;
        let _size = self.number()?;
        let (_smallest, _largest) = (self.text()?, self.text()?);
        let (_first_sequence, _last_sequence) = (self.number()?, self.number()?);
        let (mut sum, mut name) = (None, None);
        loop {
            match self.number()? {
                END => break,
                CHECKSUM => sum = self.text()?.try_into().ok().map(u32::from_be_bytes),
                CHECKSUM_NAME => name = Some(self.text()?),
                _ => drop(self.text()?),
            }
        }
        Some((number, sum.filter(|_| name == Some(b"FileChecksumCrc32c"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut checked = vec![kind];
        checked.extend_from_slice(payload);
        let mut out = mask(crc32c::crc32c(&checked)).to_le_bytes().to_vec();
        out.extend_from_slice(&(payload.len() as u16).to_le_bytes());
        out.extend_from_slice(&checked);
        out
    }

    /// An edit that adds file 9 with the checksum 0x00010203, after a comparator and before a tag of the future.
    fn edit() -> Vec<u8> {
        let mut out = vec![1, 1, b'c', 103, 0, 9, 50, 1, b'a', 1, b'z', 3, 4, 7, 4, 0, 1, 2, 3, 8, 18];
        out.extend_from_slice(b"FileChecksumCrc32c");
        out.extend_from_slice(&[1, 0x7f, 103, 0, 10]);
        out
    }

    #[test]
    fn checksums_are_found_in_whole_and_in_parts() {
        let expected = BTreeMap::from([(9, 0x0001_0203)]);
        assert_eq!(table_checksums(&record(1, &edit())), Ok(expected.clone()));
        let (first, rest) = (edit()[..10].to_vec(), edit()[10..].to_vec());
        let parts = [record(2, &first), record(3, &[]), record(4, &rest)].concat();
        assert_eq!(table_checksums(&parts), Ok(expected));
        assert_eq!(table_checksums(&[]), Ok(BTreeMap::new()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let whole = [record(1, &edit()), record(1, &edit())].concat();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(table_checksums(&bytes).is_err(), "bit {bit}");
        }
        let half = whole.len() / 2;
        for length in (1..whole.len()).filter(|length| *length != half) {
            assert!(table_checksums(&whole[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn zeroes_are_seen_unless_nothing_follows() {
        let whole = [record(1, &edit()), record(1, &edit())].concat();
        for from in 0..whole.len() {
            for to in from + 1..whole.len() {
                let mut bytes = whole.clone();
                bytes[from..to].fill(0);
                assert!(bytes == whole || table_checksums(&bytes).is_err(), "from {from} to {to}");
            }
        }
        let preallocated = [&whole[..], &[0; 100]].concat();
        assert_eq!(table_checksums(&preallocated), table_checksums(&whole));
    }

    #[test]
    fn no_edit_makes_the_decoder_panic() {
        let mut rng = base::Rng::new(11);
        for _ in 0..50_000 {
            let mut bytes = edit();
            for _ in 0..1 + rng.below(4) {
                let at = rng.below(bytes.len() as u64) as usize;
                bytes[at] = rng.below(256) as u8;
            }
            bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
            take_edit(&bytes, &mut BTreeMap::new());
        }
    }
}
