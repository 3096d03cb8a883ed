//! The bytes of a snapshot: what the server streams to a backup or to a replica, and what a client checks.
//!
//! A stream is a sequence of frames; a receiver may be given the bytes in any pieces.
//!
//! | bytes | field (numbers little-endian) |
//! |---|---|
//! | 1 | kind: 1 header, 2 data, 3 trailer |
//! | 4 | length of the payload, at most 256 KiB less the frame's own 9 bytes |
//! | … | payload |
//! | 4 | CRC-32C of all before |
//!
//! The header's payload: 8 magic, 4 version, then of the last applied entry 8 Raft index, 8 term and 8 rolling hash, 8
//! revision, then the membership. The payloads of the data frames, put together, are pairs: 1 family, 4 key length, 4
//! value length, key, value; families ascend and so do the keys of each. The trailer: 8 number of pairs, 16 XXH3-128 of
//! all frames before, then zeros that make the whole a multiple of 512 bytes (etcd's clients expect that of a backup,
//! before the SHA-256 that follows it in a saved file).
//!
//! The life of a [`Reader`]: [`Reader::feed`] takes bytes, [`Reader::pair`] gives what is complete of them until there is
//! no more, [`Reader::finish`] says at last whether that was all. Pairs are given before the end has come: nothing may be
//! believed of them until `finish`. A flipped bit, a missing or a repeated frame, a cut, and pairs out of order are all
//! refused.
//!
//! A stream of *changes* is what an incremental backup holds: the same frames, with a magic of its own and, before the
//! membership, 8 bytes more: the revision up to which the changes were known before. Its pairs are the history after that
//! revision, and the leases there were at its end.
//!
//! Left out: what the families hold, but for the one whose pairs are the live keys ([`crate::content`] looks into them).

use std::fmt;

use bytes::Bytes;
use prost::Message as _;
use xxhash_rust::xxh3::Xxh3;

/// The largest frame.
pub const FRAME_BYTES_MAX: usize = 256 << 10;
/// The largest payload of a frame.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - FRAME_OWN_BYTES;
/// The SHA-256 at the end of a saved file.
pub const FILE_DIGEST_BYTES: usize = 32;
/// The name under which a stream waits in an empty data folder for the server that begins with it. What else belongs to
/// the same restore bears a name with the same stem.
pub const RESTORE_FILE: &str = "restore.snapshot";
/// Beside it: the changes to be made to that state before anything begins with it.
pub const CHANGES_FILE: &str = "restore.changes";
/// With the value `true` in the metadata of Maintenance/Snapshot: what the node holds is wanted even when it may lag behind
/// the cluster.
pub const STALE: &str = "chainfire-stale";

const MAGIC: &[u8; 8] = b"CENTRA\x01S";
const MAGIC_CHANGES: &[u8; 8] = b"CENTRA\x01I";
const VERSION: u32 = 1;

const HEADER: u8 = 1;
const DATA: u8 = 2;
const TRAILER: u8 = 3;

const HEAD_BYTES: usize = 5;
const FRAME_OWN_BYTES: usize = HEAD_BYTES + 4;
const HEADER_BYTES: usize = 8 + 4 + 4 * 8;
const TRAILER_BYTES: usize = 8 + 16;
const PAIR_BYTES: usize = 9;
const LIVE_KEYS: u8 = 0;
/// The stream's length is a multiple of this.
const ALIGNMENT: u64 = 512;
/// A longer key or value was not written by us.
const PART_BYTES_MAX: usize = 256 << 20;

/// What a snapshot says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The last entry that was applied.
    pub raft_index: u64,
    pub raft_term: u64,
    /// The rolling hash of all effects up to there.
    pub hash: u64,
    pub revision: i64,
    /// Of changes: the revision after which they begin. `None`: the stream holds a whole state.
    pub since: Option<i64>,
    /// Encoded; who was in the cluster.
    pub membership: Bytes,
}

impl Header {
    /// The id of the cluster that the stream was taken from; zero when the membership does not say.
    pub fn cluster(&self) -> u64 {
        MembershipHead::decode(self.membership.clone()).map_or(0, |head| head.cluster)
    }
}

/// The one field of an encoded membership that concerns a backup.
#[derive(Clone, PartialEq, prost::Message)]
struct MembershipHead {
    #[prost(uint64, tag = "1")]
    cluster: u64,
}

/// What a whole stream was found to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub header: Header,
    /// Live keys.
    pub keys: u64,
    /// Length of the stream.
    pub bytes: u64,
    /// Equal for equal streams.
    pub digest: u128,
}

/// Why a stream was refused, for people: what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadSnapshot(pub String);

impl fmt::Display for BadSnapshot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for BadSnapshot {}

/// Makes the frames of a stream: one header, data, one trailer.
#[derive(Default)]
pub struct Writer {
    pairs: u64,
    bytes: u64,
    digest: Xxh3,
}

impl Writer {
    pub fn header(&mut self, header: &Header) -> Bytes {
        let mut payload = Vec::with_capacity(HEADER_BYTES + 8 + header.membership.len());
        payload.extend_from_slice(if header.since.is_some() { MAGIC_CHANGES } else { MAGIC });
        payload.extend_from_slice(&VERSION.to_le_bytes());
        for number in [header.raft_index, header.raft_term, header.hash] {
            payload.extend_from_slice(&number.to_le_bytes());
        }
        payload.extend_from_slice(&header.revision.to_le_bytes());
        payload.extend(header.since.iter().flat_map(|since| since.to_le_bytes()));
        payload.extend_from_slice(&header.membership);
        self.frame(HEADER, &payload)
    }

    /// Appends a pair to what will be the payloads of data frames.
    pub fn put_pair(&mut self, out: &mut Vec<u8>, family: u8, key: &[u8], value: &[u8]) {
        let length = |part: &[u8]| u32::try_from(part.len()).expect("far below 4 GiB").to_le_bytes();
        out.push(family);
        out.extend_from_slice(&length(key));
        out.extend_from_slice(&length(value));
        out.extend_from_slice(key);
        out.extend_from_slice(value);
        self.pairs += 1;
    }

    /// `payload` is at most [`PAYLOAD_BYTES_MAX`] long and may begin and end within a pair.
    pub fn data(&mut self, payload: &[u8]) -> Bytes {
        self.frame(DATA, payload)
    }

    pub fn trailer(&mut self) -> Bytes {
        let mut payload = Vec::with_capacity(TRAILER_BYTES + ALIGNMENT as usize);
        payload.extend_from_slice(&self.pairs.to_le_bytes());
        payload.extend_from_slice(&self.digest.digest128().to_le_bytes());
        let length = self.bytes + (payload.len() + FRAME_OWN_BYTES) as u64;
        payload.resize(payload.len() + (length.next_multiple_of(ALIGNMENT) - length) as usize, 0);
        self.frame(TRAILER, &payload)
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(payload.len() + FRAME_OWN_BYTES);
        out.push(kind);
        out.extend_from_slice(&u32::try_from(payload.len()).expect("a frame is small").to_le_bytes());
        out.extend_from_slice(payload);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        self.digest.update(&out);
        self.bytes += out.len() as u64;
        out.into()
    }
}

/// A pair of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<'a> {
    pub family: u8,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// Takes a stream in and checks it. An error is final: what comes after it is refused too.
pub struct Reader {
    /// How many families there may be.
    families: u8,
    /// Bytes from the first that is not decoded yet.
    frames: Unread,
    data: Unread,
    expect: Expect,
    header: Header,
    pairs: u64,
    keys: u64,
    bytes: u64,
    last: Option<(u8, Vec<u8>)>,
    digest: Xxh3,
    sum: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Header,
    Data,
    Nothing,
    Failed,
}

impl Reader {
    /// `families`: a pair of a family of that number or above is refused.
    pub fn new(families: u8) -> Reader {
        Reader {
            families,
            frames: Unread::default(),
            data: Unread::default(),
            expect: Expect::Header,
            header: Header::default(),
            pairs: 0,
            keys: 0,
            bytes: 0,
            last: None,
            digest: Xxh3::new(),
            sum: 0,
        }
    }

    /// Takes bytes; [`Reader::pair`] is to be called until it gives `None` before there are more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.frames.push(bytes);
    }

    /// The next pair of what was fed. `None`: more bytes are needed, or the end has come.
    ///
    /// # Errors
    /// The stream is not what a server wrote.
    pub fn pair(&mut self) -> Result<Option<Pair<'_>>, BadSnapshot> {
        Ok(self.pair_and_header()?.map(|(pair, _)| pair))
    }

    /// As [`Reader::pair`], and what the stream says of itself.
    ///
    /// # Errors
    /// The stream is not what a server wrote.
    pub fn pair_and_header(&mut self) -> Result<Option<(Pair<'_>, &Header)>, BadSnapshot> {
        match self.advance() {
            Ok(Some((family, key, value))) => {
                let pair = self.data.before(key + value);
                Ok(Some((Pair { family, key: &pair[..key], value: &pair[key..] }, &self.header)))
            }
            Ok(None) => Ok(None),
            Err(why) => {
                self.expect = Expect::Failed;
                Err(why)
            }
        }
    }

    /// What the stream says of itself; empty until its first frame is complete.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// # Errors
    /// The stream is not complete, or was refused before.
    pub fn finish(&self) -> Result<Content, BadSnapshot> {
        match self.expect {
            Expect::Nothing => {
                let header = self.header.clone();
                Ok(Content { header, keys: self.keys, bytes: self.bytes, digest: self.sum })
            }
            Expect::Failed => Err(bad("it was refused before")),
            _ => Err(bad("it ends too early")),
        }
    }

    /// Moves behind the next pair: its family and the lengths of its key and value.
    fn advance(&mut self) -> Result<Option<(u8, usize, usize)>, BadSnapshot> {
        loop {
            if self.expect == Expect::Failed {
                return Err(bad("it was refused before"));
            }
            if let Some(pair) = self.next_pair()? {
                return Ok(Some(pair));
            }
            if !self.next_frame()? {
                return Ok(None);
            }
        }
    }

    fn next_pair(&mut self) -> Result<Option<(u8, usize, usize)>, BadSnapshot> {
        let unread = self.data.bytes();
        let Some(head) = unread.get(..PAIR_BYTES) else { return Ok(None) };
        let (family, key, value) = (head[0], number(&head[1..5]) as usize, number(&head[5..9]) as usize);
        if key > PART_BYTES_MAX || value > PART_BYTES_MAX || family >= self.families {
            return Err(bad("a pair makes no sense"));
        }
        let length = PAIR_BYTES + key + value;
        let Some(pair) = unread.get(PAIR_BYTES..length) else { return Ok(None) };
        let key_bytes = &pair[..key];
        match &mut self.last {
            Some((last_family, last_key)) => {
                if (*last_family, &last_key[..]) >= (family, key_bytes) {
                    return Err(bad("pairs are out of order"));
                }
                *last_family = family;
                last_key.clear();
                last_key.extend_from_slice(key_bytes);
            }
            None => self.last = Some((family, key_bytes.to_vec())),
        }
        self.pairs += 1;
        self.keys += u64::from(family == LIVE_KEYS);
        self.data.skip(length);
        Ok(Some((family, key, value)))
    }

    /// False: a whole frame is not there.
    fn next_frame(&mut self) -> Result<bool, BadSnapshot> {
        let unread = self.frames.bytes();
        if self.expect == Expect::Nothing && !unread.is_empty() {
            return Err(bad("something follows after the end"));
        }
        let Some(head) = unread.get(..HEAD_BYTES) else { return Ok(false) };
        let (kind, length) = (head[0], number(&head[1..]) as usize);
        if length > PAYLOAD_BYTES_MAX {
            return Err(bad("a frame is too long; was it made by Chainfire?"));
        }
        let Some(frame) = unread.get(..length + FRAME_OWN_BYTES) else { return Ok(false) };
        let (covered, crc) = frame.split_at(length + HEAD_BYTES);
        if crc32c::crc32c(covered).to_le_bytes() != crc {
            return Err(bad("the checksum of a frame does not fit"));
        }
        let payload = &covered[HEAD_BYTES..];
        match (kind, self.expect) {
            (HEADER, Expect::Header) => {
                self.header = decode_header(payload)?;
                self.expect = Expect::Data;
            }
            (DATA, Expect::Data) => self.data.push(payload),
            (TRAILER, Expect::Data) => {
                if payload.len() < TRAILER_BYTES || payload[TRAILER_BYTES..].iter().any(|byte| *byte != 0) {
                    return Err(bad("its end makes no sense"));
                }
                if !self.data.bytes().is_empty() || payload[..8] != self.pairs.to_le_bytes() {
                    return Err(bad("pairs are missing"));
                }
                self.sum = self.digest.digest128();
                if payload[8..TRAILER_BYTES] != self.sum.to_le_bytes() {
                    return Err(bad("the checksum of the whole does not fit"));
                }
                self.expect = Expect::Nothing;
            }
            _ => return Err(bad("a frame is out of place")),
        }
        self.digest.update(frame);
        self.frames.skip(length + FRAME_OWN_BYTES);
        Ok(true)
    }
}

/// Bytes of which a part was read.
#[derive(Default)]
struct Unread {
    all: Vec<u8>,
    read: usize,
}

impl Unread {
    fn push(&mut self, bytes: &[u8]) {
        self.all.drain(..self.read);
        self.read = 0;
        self.all.extend_from_slice(bytes);
    }

    fn bytes(&self) -> &[u8] {
        &self.all[self.read..]
    }

    fn skip(&mut self, length: usize) {
        self.read += length;
    }

    /// The last bytes that were skipped.
    fn before(&self, length: usize) -> &[u8] {
        &self.all[self.read - length..self.read]
    }
}

fn decode_header(payload: &[u8]) -> Result<Header, BadSnapshot> {
    let changes = payload.starts_with(MAGIC_CHANGES);
    let length = HEADER_BYTES + if changes { 8 } else { 0 };
    if payload.len() < length || !(changes || payload.starts_with(MAGIC)) {
        return Err(bad("it was not made by Chainfire"));
    }
    let version = number(&payload[8..12]);
    if version != u64::from(VERSION) {
        return Err(bad(&format!("it has version {version}, this program knows {VERSION}")));
    }
    Ok(Header {
        raft_index: number(&payload[12..20]),
        raft_term: number(&payload[20..28]),
        hash: number(&payload[28..36]),
        revision: number(&payload[36..44]) as i64,
        since: changes.then(|| number(&payload[HEADER_BYTES..length]) as i64),
        membership: Bytes::copy_from_slice(&payload[length..]),
    })
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

fn bad(why: &str) -> BadSnapshot {
    BadSnapshot(why.to_owned())
}
