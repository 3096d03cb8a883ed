//! What a saved snapshot holds, as far as a client must know it: enough to say whether it is intact and what is in it.
//!
//! The file is the server's stream of its state, then the SHA-256 of it. The stream is a sequence of frames:
//!
//! | bytes | field (numbers little-endian) |
//! |---|---|
//! | 1 | kind: 1 header, 2 data, 3 trailer |
//! | 4 | length of the payload, less than 256 KiB |
//! | … | payload |
//! | 4 | CRC-32C of all before |
//!
//! The header begins with 8 bytes of magic, 4 version, then Raft index, term and rolling hash (8 each) and the revision
//! (8). The data payloads, put together, are pairs: 1 family, 4 key length, 4 value length, key, value; family zero holds
//! the live keys. The trailer begins with the number of pairs (8).

/// The SHA-256 at the end of the file.
pub const DIGEST_BYTES: usize = 32;

const MAGIC: &[u8; 8] = b"CENTRA\x01S";
const VERSION: u32 = 1;
const FRAME_HEAD_BYTES: usize = 5;
const FRAME_BYTES_MAX: usize = 256 << 10;
const PAIR_HEAD_BYTES: usize = 9;
const LIVE_KEYS: u8 = 0;

/// What a snapshot says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub raft_index: u64,
    pub raft_term: u64,
    pub revision: i64,
    /// Live keys.
    pub keys: u64,
}

/// Reads a stream in pieces of any size and keeps nothing of it but the count.
#[derive(Default)]
pub struct Reader {
    waiting: Vec<u8>,
    content: Content,
    header_seen: bool,
    pairs: u64,
    /// The head of a pair, as far as it has come.
    pair_head: Vec<u8>,
    /// Bytes of the current pair's key and value that are still to come.
    pair_left: u64,
    /// From the trailer.
    pairs_expected: Option<u64>,
}

impl Reader {
    /// # Errors
    /// Say what is wrong with the stream.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), &'static str> {
        self.waiting.extend_from_slice(bytes);
        let waiting = std::mem::take(&mut self.waiting);
        let mut rest = &waiting[..];
        while let Some((head, after)) = rest.split_at_checked(FRAME_HEAD_BYTES) {
            let length = number(&head[1..]) as usize;
            if length > FRAME_BYTES_MAX {
                return Err("a frame is too large; was it made by Chainfire?");
            }
            let Some((payload, after)) = after.split_at_checked(length) else { break };
            let Some((crc, after)) = after.split_at_checked(4) else { break };
            if u64::from(crc32c::crc32c(&rest[..FRAME_HEAD_BYTES + length])) != number(crc) {
                return Err("a checksum does not fit");
            }
            self.frame(head[0], payload)?;
            rest = after;
        }
        self.waiting = rest.to_vec();
        Ok(())
    }

    /// # Errors
    /// The stream is not complete.
    pub fn finish(self) -> Result<Content, &'static str> {
        match self.pairs_expected {
            Some(pairs) if pairs == self.pairs && self.waiting.is_empty() => Ok(self.content),
            _ => Err("it ends too early"),
        }
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Result<(), &'static str> {
        match kind {
            _ if self.pairs_expected.is_some() => Err("something follows its end"),
            1 if !self.header_seen => {
                if payload.len() < 44 || payload[..8] != MAGIC[..] {
                    return Err("it was not made by Chainfire");
                }
                if number(&payload[8..12]) != u64::from(VERSION) {
                    return Err("it was made by another version of Chainfire");
                }
                self.content.raft_index = number(&payload[12..20]);
                self.content.raft_term = number(&payload[20..28]);
                self.content.revision = number(&payload[36..44]) as i64;
                self.header_seen = true;
                Ok(())
            }
            2 if self.header_seen => {
                self.pairs(payload);
                Ok(())
            }
            3 if self.header_seen && payload.len() >= 8 && self.pair_left == 0 && self.pair_head.is_empty() => {
                self.pairs_expected = Some(number(&payload[..8]));
                Ok(())
            }
            _ => Err("its frames are out of order"),
        }
    }

    fn pairs(&mut self, mut payload: &[u8]) {
        while !payload.is_empty() {
            let skipped = self.pair_left.min(payload.len() as u64) as usize;
            payload = &payload[skipped..];
            self.pair_left -= skipped as u64;
            if self.pair_left > 0 || payload.is_empty() {
                return;
            }
            let part = payload.len().min(PAIR_HEAD_BYTES - self.pair_head.len());
            self.pair_head.extend_from_slice(&payload[..part]);
            payload = &payload[part..];
            if self.pair_head.len() == PAIR_HEAD_BYTES {
                self.pairs += 1;
                self.content.keys += u64::from(self.pair_head[0] == LIVE_KEYS);
                self.pair_left = number(&self.pair_head[1..5]) + number(&self.pair_head[5..9]);
                self.pair_head.clear();
            }
        }
    }
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![kind];
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        out.extend_from_slice(payload);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    fn stream() -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend_from_slice(&VERSION.to_le_bytes());
        for number in [70u64, 3, 0xabc, 42] {
            header.extend_from_slice(&number.to_le_bytes());
        }
        let mut pairs = Vec::new();
        for (family, key, value) in [(0u8, "a", "one"), (0, "b", ""), (2, "rev", "x")] {
            pairs.push(family);
            pairs.extend_from_slice(&(key.len() as u32).to_le_bytes());
            pairs.extend_from_slice(&(value.len() as u32).to_le_bytes());
            pairs.extend_from_slice(key.as_bytes());
            pairs.extend_from_slice(value.as_bytes());
        }
        let cut = 12;
        [frame(1, &header), frame(2, &pairs[..cut]), frame(2, &pairs[cut..]), frame(3, &3u64.to_le_bytes())].concat()
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Content, &'static str> {
        let mut reader = Reader::default();
        bytes.chunks(piece).try_for_each(|piece| reader.feed(piece))?;
        reader.finish()
    }

    #[test]
    fn a_stream_is_read_in_any_pieces() {
        let expected = Content { raft_index: 70, raft_term: 3, revision: 42, keys: 2 };
        for piece in [1, 7, 10_000] {
            assert_eq!(read(&stream(), piece), Ok(expected));
        }
    }

    #[test]
    fn every_flipped_byte_and_every_cut_is_seen() {
        let intact = stream();
        for at in 0..intact.len() {
            let mut flipped = intact.clone();
            flipped[at] ^= 0x40;
            assert!(read(&flipped, 64).is_err(), "byte {at}");
            assert!(read(&intact[..at], 64).is_err(), "cut at {at}");
        }
        assert!(read(&[&intact[..], &intact[..]].concat(), 64).is_err());
    }
}
