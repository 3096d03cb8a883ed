//! What is said on a connection of the gossip port, in the frames of the Raft port ([`crate::transport::frame`]):
//!
//! 1. Whoever accepts: [`Greeting`], who it is and a number drawn for this connection.
//! 2. Whoever connects: [`Hello`], who it is and that number. A recorded connection cannot be played again.
//! 3. Whoever accepts: one byte, [`WELCOME`] or why not.
//! 4. Whoever connects: messages ([`gossip::codec`]), each from the identity that has greeted. Nothing comes back.
//!
//! Whoever only wants to know who is there leaves after the first.

use std::io;

use bytes::{Buf, BufMut, Bytes};
use gossip::Identity;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::transport::frame;

const MAGIC: &[u8; 4] = b"CNTG";
const VERSION: u8 = 1;
const NONCE_BYTES: usize = 16;
/// The largest frame of steps 1 to 3.
pub const SMALL_BYTES_MAX: usize = 4096;

pub const WELCOME: u8 = 0;
pub const WRONG_CLUSTER: u8 = 1;
pub const WRONG_NAME: u8 = 2;
pub const BUSY: u8 = 3;

pub type Nonce = [u8; NONCE_BYTES];

/// Steps 1 and 2 look the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub nonce: Nonce,
    pub identity: Identity,
}

pub type Hello = Greeting;

impl Greeting {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.put_slice(MAGIC);
        out.put_u8(VERSION);
        out.put_slice(&self.nonce);
        out.put_slice(&self.identity.encode());
        out
    }

    /// `None` when the bytes are not ours.
    pub fn decode(bytes: &[u8]) -> Option<Greeting> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (version, rest) = rest.split_first()?;
        let (nonce, mut rest) = rest.split_first_chunk()?;
        if magic != MAGIC || *version != VERSION {
            return None;
        }
        let identity = Identity::decode(&mut rest)?;
        (!rest.has_remaining()).then_some(Greeting { nonce: *nonce, identity })
    }
}

/// Why the other side does not let this one in.
pub fn refusal(verdict: &[u8]) -> Option<&'static str> {
    match verdict {
        [WELCOME] => None,
        [WRONG_CLUSTER] => Some("the node there belongs to another cluster"),
        [WRONG_NAME] => Some("tls: bad certificate: ours does not name this node there"),
        [BUSY] => Some("the node there has too many connections"),
        _ => Some("the other side does not speak this protocol"),
    }
}

pub async fn write(stream: &mut (impl AsyncWrite + Unpin), payload: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(frame::HEADER + payload.len());
    frame::put(&mut out, payload);
    stream.write_all(&out).await?;
    stream.flush().await
}

/// Reads one frame. `InvalidData` means that the bytes are not ours or were damaged.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> io::Result<Bytes> {
    let mut bytes = vec![0; frame::HEADER];
    stream.read_exact(&mut bytes).await?;
    let length = u32::from_le_bytes(bytes[..4].try_into().expect("4 bytes")) as usize;
    if length > bytes_max {
        // `frame::read` says so, in the words of the house.
        return frame::read(&mut bytes.as_slice(), bytes_max);
    }
    bytes.resize(frame::HEADER + length, 0);
    stream.read_exact(&mut bytes[frame::HEADER..]).await?;
    frame::read(&mut bytes.as_slice(), bytes_max)
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, NodeId, PeerId};
    use gossip::About;

    use super::*;
    use crate::mutate;

    fn greeting() -> Greeting {
        let about = About { cluster: ClusterId(1), node: NodeId(2), version: "0.1.0".to_owned(), ..About::default() };
        Greeting { nonce: [7; 16], identity: Identity::new("127.0.0.1:2381", PeerId(3), 4, about).unwrap() }
    }

    #[tokio::test]
    async fn greetings_round_trip_in_frames() {
        let mut stream = Vec::new();
        write(&mut stream, &greeting().encode()).await.unwrap();
        let read_back = read(&mut stream.as_slice(), SMALL_BYTES_MAX).await.unwrap();
        assert_eq!(Greeting::decode(&read_back), Some(greeting()));
        assert_eq!(read(&mut stream.as_slice(), 10).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        for at in 0..stream.len() {
            let mut bad = stream.clone();
            bad[at] ^= 0x10;
            assert!(read(&mut bad.as_slice(), SMALL_BYTES_MAX).await.is_err(), "byte {at}");
        }
    }

    #[test]
    fn no_changed_bytes_make_a_decoder_panic() {
        mutate::mutate(12, 100_000, &[greeting().encode(), vec![BUSY]], |bytes| {
            if let Some(greeting) = Greeting::decode(bytes) {
                assert_eq!(Greeting::decode(&greeting.encode()), Some(greeting));
            }
            let _ = refusal(bytes);
        });
    }
}
