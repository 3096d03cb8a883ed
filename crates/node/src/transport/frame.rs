//! Frames: 4 bytes length, 4 bytes CRC32 of the payload, the payload; little-endian. And the two payloads that every
//! connection begins with.

use std::io::{self, Read, Write};

use base::{ClusterId, NodeId, PeerId};
use bytes::{Buf, BufMut, Bytes, BytesMut};

pub const HEADER: usize = 8;
/// The largest frame: a message with its entries.
pub const BYTES_MAX: usize = consensus::wire::MESSAGE_BYTES_MAX;
/// The largest frame before a connection is known to be ours.
pub const SMALL_BYTES_MAX: usize = 4096;

const MAGIC: &[u8; 4] = b"CNTR";
const VERSION: u8 = 1;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Messages = 1,
    Snapshot = 2,
    Call = 3,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub purpose: Purpose,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub peer: PeerId,
    pub address: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub status: u8,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub peer: PeerId,
}

pub const WELCOME: u8 = 0;
pub const WRONG_CLUSTER: u8 = 1;
pub const BUSY: u8 = 2;
/// The certificate does not name the node that its owner claims to be.
pub const WRONG_NAME: u8 = 3;
/// Whoever is asked belongs to no cluster yet.
pub const NO_CLUSTER: u8 = 4;
/// Whoever is asked does not know the node that its owner claims to be, and nobody vouches for it.
pub const NOT_A_MEMBER: u8 = 5;
/// The data folder speaks from another address, too.
pub const COPY: u8 = 6;

/// A member that missed that its cluster was recovered without it meets this first.
pub const OTHER_CLUSTER: &str = "the node there belongs to another cluster; if that was recovered without this node, stop this \
                                 node, empty its data folder, add it with member-add, and start it";

impl Hello {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_u8(self.purpose as u8);
        [self.cluster.0, self.node.0, self.peer.0].into_iter().for_each(|number| out.put_u64_le(number));
        out.put_slice(self.address.as_bytes());
        out.freeze()
    }

    /// `None` when the bytes are not ours.
    pub fn decode(mut bytes: &[u8]) -> Option<Hello> {
        if bytes.len() < 30 || &bytes[..4] != MAGIC || bytes[4] != VERSION {
            return None;
        }
        bytes.advance(5);
        let purpose = match bytes.get_u8() {
            1 => Purpose::Messages,
            2 => Purpose::Snapshot,
            3 => Purpose::Call,
            _ => return None,
        };
        Some(Hello {
            purpose,
            cluster: ClusterId(bytes.get_u64_le()),
            node: NodeId(bytes.get_u64_le()),
            peer: PeerId(bytes.get_u64_le()),
            address: String::from_utf8(bytes.to_vec()).ok().filter(|address| is_printable(address))?,
        })
    }
}

impl Welcome {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(30);
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_u8(self.status);
        [self.cluster.0, self.node.0, self.peer.0].into_iter().for_each(|number| out.put_u64_le(number));
        out.freeze()
    }

    pub fn decode(mut bytes: &[u8]) -> Option<Welcome> {
        if bytes.len() != 30 || &bytes[..4] != MAGIC || bytes[4] != VERSION {
            return None;
        }
        bytes.advance(5);
        Some(Welcome {
            status: bytes.get_u8(),
            cluster: ClusterId(bytes.get_u64_le()),
            node: NodeId(bytes.get_u64_le()),
            peer: PeerId(bytes.get_u64_le()),
        })
    }

    pub fn refusal(&self) -> Option<&'static str> {
        match self.status {
            WELCOME => None,
            WRONG_CLUSTER => Some(OTHER_CLUSTER),
            NO_CLUSTER => Some("the node there belongs to no cluster yet"),
            NOT_A_MEMBER => {
                Some("the node there does not know this one as a member, and no other member vouches for it")
            }
            COPY => Some("a node with the same data folder speaks from another address: one of them is a copy"),
            WRONG_NAME => Some("tls: bad certificate: ours does not name this node"),
            _ => Some("the node there has too many connections"),
        }
    }
}

/// What others say of themselves ends up in the log, and must not look like lines of it.
pub fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Appends a framed payload.
pub fn put(out: &mut Vec<u8>, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    out.extend_from_slice(payload);
}

pub fn write(stream: &mut impl Write, payload: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(HEADER + payload.len());
    put(&mut out, payload);
    stream.write_all(&out)
}

/// Reads one frame. `InvalidData` means that the bytes are not ours or were damaged.
pub fn read(stream: &mut impl Read, bytes_max: usize) -> io::Result<Bytes> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let length = u32::from_le_bytes(header[..4].try_into().expect("4 bytes")) as usize;
    let crc = u32::from_le_bytes(header[4..].try_into().expect("4 bytes"));
    if length > bytes_max {
        return Err(invalid("a frame is larger than any of ours"));
    }
    // Memory is taken as bytes arrive, not as the header promises.
    let mut payload = Vec::with_capacity(length.min(1 << 20));
    if stream.take(length as u64).read_to_end(&mut payload)? < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if crc32fast::hash(&payload) != crc {
        return Err(invalid("a frame's checksum does not fit"));
    }
    Ok(payload.into())
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use base::Rng;

    use super::*;
    use crate::mutate;

    #[test]
    fn greetings_round_trip() {
        let hello = Hello {
            purpose: Purpose::Snapshot,
            cluster: ClusterId(1),
            node: NodeId(2),
            peer: PeerId(3),
            address: "127.0.0.1:2380".to_owned(),
        };
        assert_eq!(Hello::decode(&hello.encode()), Some(hello));
        let welcome = Welcome { status: WELCOME, cluster: ClusterId(1), node: NodeId(2), peer: PeerId(3) };
        assert_eq!(Welcome::decode(&welcome.encode()), Some(welcome));
    }

    #[test]
    fn every_flipped_byte_of_a_frame_is_seen() {
        let mut frame = Vec::new();
        put(&mut frame, b"payload of a message");
        assert_eq!(read(&mut frame.as_slice(), BYTES_MAX).unwrap(), b"payload of a message"[..]);
        for at in 0..frame.len() {
            let mut bad = frame.clone();
            bad[at] ^= 0x10;
            assert!(read(&mut bad.as_slice(), BYTES_MAX).is_err(), "byte {at}");
        }
    }

    #[test]
    fn no_changed_bytes_make_a_decoder_panic() {
        let address = "127.0.0.1:2380".to_owned();
        let (cluster, node, peer) = (ClusterId(1), NodeId(2), PeerId(3));
        let hello = Hello { purpose: Purpose::Call, cluster, node, peer, address }.encode().to_vec();
        let welcome = Welcome { status: BUSY, cluster, node, peer }.encode().to_vec();
        let mut frame = Vec::new();
        put(&mut frame, &hello);
        mutate::mutate(6, 100_000, &[hello, welcome, frame], |mut bytes| {
            if let Some(hello) = Hello::decode(bytes) {
                assert_eq!(Hello::decode(&hello.encode()), Some(hello));
            }
            let _ = Welcome::decode(bytes).map(|welcome| welcome.refusal());
            let _ = read(&mut bytes, SMALL_BYTES_MAX);
        });
    }

    #[test]
    fn no_bytes_make_a_decoder_panic() {
        let mut rng = Rng::new(5);
        for _ in 0..200_000 {
            let mut bytes: Vec<u8> = (0..rng.below(120)).map(|_| rng.next_u64() as u8).collect();
            if rng.percent(50) && bytes.len() > 5 {
                bytes[..4].copy_from_slice(MAGIC);
                bytes[4] = VERSION;
            }
            let _ = (Hello::decode(&bytes), Welcome::decode(&bytes));
            let _ = read(&mut bytes.as_slice(), SMALL_BYTES_MAX);
            if let Some(first) = bytes.first_mut() {
                *first %= 9;
            }
            let _ = consensus::Message::decode(bytes.into());
        }
    }
}
