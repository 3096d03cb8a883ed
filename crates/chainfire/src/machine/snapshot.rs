//! The state as a stream of bytes: for a replica that needs all of it, and for backups.
//!
//! The stream is a sequence of frames; a chunk of [`SnapshotSource`] is one frame, but a receiver may be given the bytes
//! in any pieces.
//!
//! | bytes | field (numbers little-endian) |
//! |---|---|
//! | 1 | kind: 1 header, 2 data, 3 trailer |
//! | 4 | length of the payload, at most 256 KiB less the frame's own 9 bytes |
//! | … | payload |
//! | 4 | CRC-32C of all before |
//!
//! The header's payload: 8 magic, 4 version, 24 mark, 8 revision, then the membership. The payloads of the data frames,
//! put together, are pairs: 1 family, 4 key length, 4 value length, key, value; families ascend and so do the keys of
//! each. The trailer: 8 number of pairs, 16 XXH3-128 of all frames before, then zeros that make the whole a multiple of
//! 512 bytes (etcd's clients expect that of a backup, before the checksum which they append).
//!
//! A stream is taken from one published view, so that the machine goes on meanwhile; what no reader can reach is left
//! out. A receiver stages the pairs as they come and believes nothing before the trailer has come: a flipped bit, a
//! missing or a repeated frame, a cut, pairs out of order and a state that contradicts the header are all refused.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use consensus::{MachineError, Mark, SnapshotSink, SnapshotSource};
use storage::{Engine, FamilyId, Install};
use xxhash_rust::xxh3::Xxh3;

use super::layout::{self, FAMILIES, KV, META, OLD, Old};
use crate::read::StateView;

const MAGIC: &[u8; 8] = b"CENTRA\x01S";
const VERSION: u32 = 1;

const HEADER: u8 = 1;
const DATA: u8 = 2;
const TRAILER: u8 = 3;

/// The largest frame.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;
const FRAME_BYTES: usize = 9;
const PAYLOAD_BYTES_MAX: usize = CHUNK_BYTES_MAX - FRAME_BYTES;
const HEADER_BYTES: usize = 8 + 4 + Mark::BYTES + 8;
const TRAILER_BYTES: usize = 8 + 16;
const PAIR_BYTES: usize = 9;
/// The stream's length is a multiple of this.
const ALIGNMENT: u64 = 512;
/// A longer key or value was not written by us.
const PART_BYTES_MAX: usize = 256 << 20;

/// A stream of what a view shows.
pub struct SnapshotStream {
    view: Arc<StateView>,
    bytes_total: u64,
    stage: Stage,
    /// Pairs that do not yet fill a frame.
    pending: Vec<u8>,
    pairs: u64,
    bytes: u64,
    digest: Xxh3,
}

enum Stage {
    Begin,
    /// The family under way and its next key.
    Data(usize, Vec<u8>),
    End,
}

/// Streams a view; `bytes_total` is an estimate for progress.
pub fn stream(view: Arc<StateView>, bytes_total: u64) -> SnapshotStream {
    SnapshotStream {
        view,
        bytes_total,
        stage: Stage::Begin,
        pending: Vec::new(),
        pairs: 0,
        bytes: 0,
        digest: Xxh3::new(),
    }
}

impl SnapshotSource for SnapshotStream {
    fn mark(&self) -> Mark {
        self.view.mark
    }

    fn membership(&self) -> Bytes {
        self.view.membership.clone()
    }

    fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        if let Stage::Begin = self.stage {
            self.stage = Stage::Data(0, Vec::new());
            let mut payload = Vec::with_capacity(HEADER_BYTES + self.view.membership.len());
            payload.extend_from_slice(MAGIC);
            payload.extend_from_slice(&VERSION.to_le_bytes());
            payload.extend_from_slice(&self.view.mark.encode());
            payload.extend_from_slice(&self.view.revision.to_le_bytes());
            payload.extend_from_slice(&self.view.membership);
            return Ok(Some(self.frame(HEADER, &payload)));
        }
        self.fill()?;
        if !self.pending.is_empty() {
            let rest = self.pending.split_off(self.pending.len().min(PAYLOAD_BYTES_MAX));
            let payload = std::mem::replace(&mut self.pending, rest);
            return Ok(Some(self.frame(DATA, &payload)));
        }
        if let Stage::End = self.stage {
            return Ok(None);
        }
        self.stage = Stage::End;
        let mut payload = Vec::with_capacity(TRAILER_BYTES + ALIGNMENT as usize);
        payload.extend_from_slice(&self.pairs.to_le_bytes());
        payload.extend_from_slice(&self.digest.digest128().to_le_bytes());
        let length = self.bytes + (payload.len() + FRAME_BYTES) as u64;
        payload.resize(payload.len() + (length.next_multiple_of(ALIGNMENT) - length) as usize, 0);
        Ok(Some(self.frame(TRAILER, &payload)))
    }
}

impl SnapshotStream {
    /// Gathers pairs until a frame is full or there are no more.
    fn fill(&mut self) -> Result<(), MachineError> {
        while self.pending.len() < PAYLOAD_BYTES_MAX
            && let Stage::Data(family, from) = &self.stage
            && *family < FAMILIES.len()
        {
            let family = *family;
            let id = FamilyId(u8::try_from(family).expect("a handful of families"));
            let mut walk = self.view.view.scan(id, from, None);
            while walk.valid() && self.pending.len() < PAYLOAD_BYTES_MAX {
                let (key, value) = (walk.key(), walk.value());
                if id != OLD || Old::read(value)?.superseded_at > self.view.compacted {
                    let length = |part: &[u8]| u32::try_from(part.len()).expect("far below 4 GiB").to_le_bytes();
                    self.pending.push(id.0);
                    self.pending.extend_from_slice(&length(key));
                    self.pending.extend_from_slice(&length(value));
                    self.pending.extend_from_slice(key);
                    self.pending.extend_from_slice(value);
                    self.pairs += 1;
                }
                walk.advance();
            }
            let next = if walk.valid() {
                Stage::Data(family, walk.key().to_vec())
            } else {
                walk.status()?;
                Stage::Data(family + 1, Vec::new())
            };
            drop(walk);
            self.stage = next;
        }
        Ok(())
    }

    fn frame(&mut self, kind: u8, payload: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(payload.len() + FRAME_BYTES);
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

/// What a snapshot says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub mark: Mark,
    pub revision: i64,
    pub membership: Bytes,
    /// Live keys.
    pub keys: u64,
    /// Length of the stream.
    pub bytes: u64,
}

/// Takes a stream in, checks it, and stages it in an engine, if it has one.
pub struct SnapshotReceiver {
    install: Option<Box<dyn Install>>,
    /// Bytes of a frame that is not complete yet.
    frames: Vec<u8>,
    /// Bytes of a pair that is not complete yet.
    data: Vec<u8>,
    stage: Expect,
    info: SnapshotInfo,
    pairs: u64,
    last: Option<(u8, Vec<u8>)>,
    /// What `meta` holds of mark and revision.
    state: Option<(Mark, i64)>,
    digest: Xxh3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Header,
    Data,
    Nothing,
    /// An error was returned: no use going on.
    Failed,
}

impl SnapshotReceiver {
    /// Receives into `install`, or only checks the stream.
    pub fn new(install: Option<Box<dyn Install>>) -> SnapshotReceiver {
        SnapshotReceiver {
            install,
            frames: Vec::new(),
            data: Vec::new(),
            stage: Expect::Header,
            info: SnapshotInfo::default(),
            pairs: 0,
            last: None,
            state: None,
            digest: Xxh3::new(),
        }
    }

    /// What was received; complete after `finish`.
    pub fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// The staged content, after a successful `finish`.
    pub(super) fn take_install(&mut self) -> Result<Box<dyn Install>, MachineError> {
        self.install.take().ok_or_else(|| bad("nothing is staged"))
    }

    fn take_in(&mut self, bytes: &[u8]) -> Result<(), MachineError> {
        self.info.bytes += bytes.len() as u64;
        self.frames.extend_from_slice(bytes);
        let mut frames = std::mem::take(&mut self.frames);
        let mut at = 0;
        while let Some(head) = frames.get(at..at + 5) {
            let (kind, length) = (head[0], u32::from_le_bytes(head[1..].try_into().expect("4 bytes")) as usize);
            if length > PAYLOAD_BYTES_MAX {
                return Err(bad("a frame is too long"));
            }
            let Some(frame) = frames.get(at..at + length + FRAME_BYTES) else { break };
            let (covered, crc) = frame.split_at(length + 5);
            if crc32c::crc32c(covered).to_le_bytes() != crc {
                return Err(bad("the checksum of a frame does not fit"));
            }
            match (kind, self.stage) {
                (HEADER, Expect::Header) => self.header(&covered[5..])?,
                (DATA, Expect::Data) => self.pairs_in(&covered[5..])?,
                (TRAILER, Expect::Data) => self.trailer(&covered[5..])?,
                _ => return Err(bad("a frame is out of place")),
            }
            self.digest.update(frame);
            at += frame.len();
        }
        frames.drain(..at);
        if self.stage == Expect::Nothing && !frames.is_empty() {
            return Err(bad("something follows after the end"));
        }
        self.frames = frames;
        Ok(())
    }

    fn header(&mut self, payload: &[u8]) -> Result<(), MachineError> {
        if payload.len() < HEADER_BYTES || &payload[..8] != MAGIC {
            return Err(bad("not a snapshot"));
        }
        let version = u32::from_le_bytes(payload[8..12].try_into().expect("4 bytes"));
        if version != VERSION {
            return Err(bad(&format!("it has version {version}, this program knows {VERSION}")));
        }
        self.info.mark = Mark::decode(&payload[12..12 + Mark::BYTES]).ok_or_else(|| bad("no mark"))?;
        self.info.revision = i64::from_le_bytes(payload[36..44].try_into().expect("8 bytes"));
        self.info.membership = Bytes::copy_from_slice(&payload[HEADER_BYTES..]);
        self.stage = Expect::Data;
        Ok(())
    }

    fn pairs_in(&mut self, payload: &[u8]) -> Result<(), MachineError> {
        self.data.extend_from_slice(payload);
        let data = std::mem::take(&mut self.data);
        let mut rest = &data[..];
        while let Some(head) = rest.get(..PAIR_BYTES) {
            let length = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("4 bytes")) as usize;
            let (key, value) = (length(1), length(5));
            if key > PART_BYTES_MAX || value > PART_BYTES_MAX || usize::from(head[0]) >= FAMILIES.len() {
                return Err(bad("a pair makes no sense"));
            }
            let Some(pair) = rest.get(PAIR_BYTES..PAIR_BYTES + key + value) else { break };
            self.pair(head[0], &pair[..key], &pair[key..])?;
            rest = &rest[PAIR_BYTES + key + value..];
        }
        self.data = rest.to_vec();
        Ok(())
    }

    fn pair(&mut self, family: u8, key: &[u8], value: &[u8]) -> Result<(), MachineError> {
        match &mut self.last {
            Some((last_family, last_key)) => {
                if (*last_family, &last_key[..]) >= (family, key) {
                    return Err(bad("pairs are out of order"));
                }
                *last_family = family;
                last_key.clear();
                last_key.extend_from_slice(key);
            }
            None => self.last = Some((family, key.to_vec())),
        }
        self.pairs += 1;
        let family = FamilyId(family);
        self.info.keys += u64::from(family == KV);
        if family == META && key == layout::STATE {
            self.state = Some(layout::read_state(value)?);
        }
        if let Some(install) = &mut self.install {
            install.put(family, key, value)?;
        }
        Ok(())
    }

    fn trailer(&mut self, payload: &[u8]) -> Result<(), MachineError> {
        if payload.len() < TRAILER_BYTES || payload[TRAILER_BYTES..].iter().any(|byte| *byte != 0) {
            return Err(bad("its end makes no sense"));
        }
        if !self.data.is_empty() || payload[..8] != self.pairs.to_le_bytes() {
            return Err(bad("pairs are missing"));
        }
        if payload[8..TRAILER_BYTES] != self.digest.digest128().to_le_bytes() {
            return Err(bad("the checksum of the whole does not fit"));
        }
        self.stage = Expect::Nothing;
        Ok(())
    }
}

impl SnapshotSink for SnapshotReceiver {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        if self.stage == Expect::Failed {
            return Err(bad("it was refused before"));
        }
        let done = self.take_in(&chunk);
        if done.is_err() {
            self.stage = Expect::Failed;
        }
        done
    }

    fn finish(&mut self) -> Result<Mark, MachineError> {
        if self.stage != Expect::Nothing {
            return Err(bad("it ends too early"));
        }
        if self.state.unwrap_or((Mark::default(), 1)) != (self.info.mark, self.info.revision) {
            return Err(bad("its header contradicts its content"));
        }
        if let Some(install) = &mut self.install {
            install.finish()?;
        }
        Ok(self.info.mark)
    }

    fn as_any(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Checks a stream from end to end without keeping anything of it.
pub fn inspect(from: impl Read) -> Result<SnapshotInfo, MachineError> {
    let mut receiver = SnapshotReceiver::new(None);
    pour(from, &mut receiver)?;
    Ok(receiver.info)
}

/// Replaces an engine's content by a stream's, after checking all of it. The engine must not be in use by a machine;
/// one is opened on it afterwards and founded anew, if the group that the snapshot was taken from is not to go on.
pub fn restore(engine: &dyn Engine, from: impl Read) -> Result<SnapshotInfo, MachineError> {
    let mut receiver = SnapshotReceiver::new(Some(engine.begin_install()?));
    pour(from, &mut receiver)?;
    engine.commit_install(receiver.take_install()?)?;
    Ok(receiver.info)
}

fn pour(mut from: impl Read, receiver: &mut SnapshotReceiver) -> Result<(), MachineError> {
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    loop {
        let length = from.read(&mut buffer).map_err(|error| bad(&format!("it cannot be read: {error}")))?;
        if length == 0 {
            return receiver.finish().map(|_| ());
        }
        receiver.write(Bytes::copy_from_slice(&buffer[..length]))?;
    }
}

fn bad(why: &str) -> MachineError {
    MachineError::BadSnapshot(why.into())
}
