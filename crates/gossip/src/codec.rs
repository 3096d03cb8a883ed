//! The bytes of a message:
//!
//! | bytes | |
//! |---|---|
//! | 1 | version |
//! | 1 | kind, see [`kind`] |
//! | identity | the sender, in full |
//! | 2 | the sender's incarnation |
//! | key | the receiver |
//! | 1 | number of the probe; kinds 1 to 6 |
//! | key | of whom a detour speaks; kinds 3 to 6 |
//! | 2, members | what the sender knows of others, big-endian count; not in kinds 7 and 10 |
//!
//! and of a member: 1 state, 2 incarnation, its identity in full.
//!
//! [`vet`] looks at a message before `foca` does: it refuses what is malformed or of another cluster as a whole, and leaves out
//! members of other clusters that a sender without one may mention.

use base::ClusterId;
use bytes::{Buf, BufMut};
use foca::{Codec, Header, Member, Message, State};

use crate::identity::Identity;

/// The largest message, and what a sender fills at most with news of others.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;
const VERSION: u8 = 1;

mod kind {
    pub const PING: u8 = 1;
    pub const ACK: u8 = 2;
    pub const PING_REQ: u8 = 3;
    pub const INDIRECT_PING: u8 = 4;
    pub const INDIRECT_ACK: u8 = 5;
    pub const FORWARDED_ACK: u8 = 6;
    pub const ANNOUNCE: u8 = 7;
    pub const FEED: u8 = 8;
    pub const GOSSIP: u8 = 9;
    pub const TURN_UNDEAD: u8 = 10;
}

/// Who a message claims to be from. `None` when it is none of ours.
pub fn sender(mut bytes: &[u8]) -> Option<Identity> {
    take_header(&mut bytes).map(|header| header.src)
}

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    Malformed,
    OtherCluster,
    /// There are as many members as can be kept.
    Full,
}

/// The message as far as it may be taken by a member of `cluster`. `admits` says whether there is room for a member.
pub(crate) fn vet(
    bytes: &[u8],
    cluster: ClusterId,
    mut admits: impl FnMut(&Identity) -> bool,
) -> Result<Vec<u8>, Refused> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Refused::Malformed);
    }
    let mut rest = bytes;
    let header = take_header(&mut rest).ok_or(Refused::Malformed)?;
    if !header.src.is_of(cluster) {
        return Err(Refused::OtherCluster);
    }
    if !admits(&header.src) {
        return Err(Refused::Full);
    }
    let mut out = bytes[..bytes.len() - rest.len()].to_vec();
    if matches!(header.message, Message::Announce | Message::TurnUndead) {
        return if rest.is_empty() { Ok(out) } else { Err(Refused::Malformed) };
    }
    let count = rest.try_get_u16().map_err(|_| Refused::Malformed)?;
    let mut kept: u16 = 0;
    let at = out.len();
    out.put_u16(0);
    for _ in 0..count {
        let before = rest;
        let member = take_member(&mut rest).ok_or(Refused::Malformed)?;
        if member.id().is_of(cluster) && admits(member.id()) {
            out.extend_from_slice(&before[..before.len() - rest.len()]);
            kept += 1;
        }
    }
    out[at..at + 2].copy_from_slice(&kept.to_be_bytes());
    if rest.is_empty() { Ok(out) } else { Err(Refused::Malformed) }
}

/// The codec that `foca` uses.
pub(crate) struct Wire;

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The message has no room for it.
    NoRoom,
    Malformed,
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WireError::NoRoom => "no room in the message",
            WireError::Malformed => "not a message of ours",
        })
    }
}

impl std::error::Error for WireError {}

impl Codec<Identity> for Wire {
    type Error = WireError;

    fn encode_header(&mut self, header: &Header<Identity>, buf: impl BufMut) -> Result<(), WireError> {
        let mut out = Vec::with_capacity(512);
        out.put_u8(VERSION);
        let (kind, probe, other) = parts(&header.message).ok_or(WireError::Malformed)?;
        out.put_u8(kind);
        out.put_slice(&header.src.encode());
        out.put_u16_le(header.src_incarnation);
        out.put_slice(&header.dst.encode_key());
        if let Some(probe) = probe {
            out.put_u8(probe);
        }
        if let Some(other) = other {
            out.put_slice(&other.encode_key());
        }
        put(&out, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<Identity>, WireError> {
        whole(buf, take_header)
    }

    fn encode_member(&mut self, member: &Member<Identity>, buf: impl BufMut) -> Result<(), WireError> {
        let mut out = Vec::with_capacity(256);
        out.put_u8(match member.state() {
            State::Alive => 0,
            State::Suspect => 1,
            State::Down => 2,
        });
        out.put_u16_le(member.incarnation());
        out.put_slice(&member.id().encode());
        put(&out, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<Identity>, WireError> {
        whole(buf, take_member)
    }
}

fn put(bytes: &[u8], mut buf: impl BufMut) -> Result<(), WireError> {
    if buf.remaining_mut() < bytes.len() {
        return Err(WireError::NoRoom);
    }
    buf.put_slice(bytes);
    Ok(())
}

/// `foca` promises that what it gives to decode lies in one piece.
fn whole<T>(mut buf: impl Buf, take: impl Fn(&mut &[u8]) -> Option<T>) -> Result<T, WireError> {
    let mut bytes = buf.chunk();
    let before = bytes.len();
    let taken = take(&mut bytes).ok_or(WireError::Malformed)?;
    let length = before - bytes.len();
    buf.advance(length);
    Ok(taken)
}

/// Kind, number of the probe, of whom it speaks.
fn parts(message: &Message<Identity>) -> Option<(u8, Option<u8>, Option<&Identity>)> {
    Some(match message {
        Message::Ping(probe) => (kind::PING, Some(*probe), None),
        Message::Ack(probe) => (kind::ACK, Some(*probe), None),
        Message::PingReq { target, probe_number } => (kind::PING_REQ, Some(*probe_number), Some(target)),
        Message::IndirectPing { origin, probe_number } => (kind::INDIRECT_PING, Some(*probe_number), Some(origin)),
        Message::IndirectAck { target, probe_number } => (kind::INDIRECT_ACK, Some(*probe_number), Some(target)),
        Message::ForwardedAck { origin, probe_number } => (kind::FORWARDED_ACK, Some(*probe_number), Some(origin)),
        Message::Announce => (kind::ANNOUNCE, None, None),
        Message::Feed => (kind::FEED, None, None),
        Message::Gossip => (kind::GOSSIP, None, None),
        Message::TurnUndead => (kind::TURN_UNDEAD, None, None),
        Message::Broadcast => return None,
    })
}

fn take_header(bytes: &mut &[u8]) -> Option<Header<Identity>> {
    if bytes.try_get_u8().ok()? != VERSION {
        return None;
    }
    let kind = bytes.try_get_u8().ok()?;
    let src = Identity::decode(bytes)?;
    let src_incarnation = bytes.try_get_u16_le().ok()?;
    let dst = Identity::decode_key(bytes)?;
    let message = match kind {
        kind::ANNOUNCE => Message::Announce,
        kind::FEED => Message::Feed,
        kind::GOSSIP => Message::Gossip,
        kind::TURN_UNDEAD => Message::TurnUndead,
        kind::PING | kind::ACK => {
            let probe = bytes.try_get_u8().ok()?;
            if kind == kind::PING { Message::Ping(probe) } else { Message::Ack(probe) }
        }
        kind::PING_REQ | kind::INDIRECT_PING | kind::INDIRECT_ACK | kind::FORWARDED_ACK => {
            let probe_number = bytes.try_get_u8().ok()?;
            let other = Identity::decode_key(bytes)?;
            match kind {
                kind::PING_REQ => Message::PingReq { target: other, probe_number },
                kind::INDIRECT_PING => Message::IndirectPing { origin: other, probe_number },
                kind::INDIRECT_ACK => Message::IndirectAck { target: other, probe_number },
                _ => Message::ForwardedAck { origin: other, probe_number },
            }
        }
        _ => return None,
    };
    Some(Header { src, src_incarnation, dst, message })
}

fn take_member(bytes: &mut &[u8]) -> Option<Member<Identity>> {
    let state = match bytes.try_get_u8().ok()? {
        0 => State::Alive,
        1 => State::Suspect,
        2 => State::Down,
        _ => return None,
    };
    let incarnation = bytes.try_get_u16_le().ok()?;
    Some(Member::new(Identity::decode(bytes)?, incarnation, state))
}

#[cfg(test)]
mod tests {
    use base::{NodeId, PeerId};

    use super::*;
    use crate::identity::{About, Role};
    use crate::mutate;

    fn identity(host: u8, cluster: u64) -> Identity {
        let about = About {
            cluster: ClusterId(cluster),
            node: NodeId(u64::from(host)),
            role: Role::Leader,
            raft_address: format!("127.0.0.{host}:2380"),
            client_urls: vec![format!("http://127.0.0.{host}:2379")],
            version: "0.1.0".to_owned(),
        };
        Identity::new(&format!("127.0.0.{host}:2381"), PeerId(u64::from(host)), 7, about).unwrap()
    }

    fn message(src: Identity, message: Message<Identity>, members: &[Member<Identity>]) -> Vec<u8> {
        let bare = matches!(message, Message::Announce | Message::TurnUndead);
        let mut out = Vec::new();
        Wire.encode_header(&Header { src, src_incarnation: 3, dst: identity(2, 0), message }, &mut out).unwrap();
        if !bare {
            out.put_u16(members.len() as u16);
            members.iter().for_each(|member| Wire.encode_member(member, &mut out).unwrap());
        }
        out
    }

    fn all() -> Vec<Vec<u8>> {
        let (other, probe_number) = (identity(3, 5), 9);
        let members = [Member::new(identity(3, 5), 2, State::Suspect), Member::new(identity(4, 0), 0, State::Down)];
        let kinds = [
            Message::Ping(1),
            Message::Ack(2),
            Message::PingReq { target: other.clone(), probe_number },
            Message::IndirectPing { origin: other.clone(), probe_number },
            Message::IndirectAck { target: other.clone(), probe_number },
            Message::ForwardedAck { origin: other, probe_number },
            Message::Announce,
            Message::Feed,
            Message::Gossip,
            Message::TurnUndead,
        ];
        kinds.into_iter().map(|kind| message(identity(1, 5), kind, &members)).collect()
    }

    #[test]
    fn messages_round_trip() {
        for bytes in all() {
            let header = take_header(&mut &bytes[..]).unwrap();
            assert_eq!(*header.src.about, *identity(1, 5).about);
            let mut again = Vec::new();
            Wire.encode_header(&header, &mut again).unwrap();
            assert!(bytes.starts_with(&again));
            assert_eq!(vet(&bytes, ClusterId(5), |_| true).unwrap(), bytes);
            assert_eq!(sender(&bytes), Some(identity(1, 5)));
        }
    }

    #[test]
    fn what_is_of_another_cluster_is_left_out_or_refused() {
        let members = [(3, 5), (4, 6), (5, 0)].map(|(host, cluster)| Member::alive(identity(host, cluster)));
        let bytes = message(identity(1, 0), Message::Gossip, &members);
        let kept = message(identity(1, 0), Message::Gossip, &[members[0].clone(), members[2].clone()]);
        assert_eq!(vet(&bytes, ClusterId(5), |_| true).unwrap(), kept);
        assert_eq!(vet(&bytes, ClusterId(0), |_| true).unwrap(), bytes);
        let none = message(identity(1, 0), Message::Gossip, &[]);
        assert_eq!(vet(&bytes, ClusterId(5), |id| id.address == identity(1, 0).address).unwrap(), none);
        assert_eq!(vet(&bytes, ClusterId(5), |_| false), Err(Refused::Full));
        let strange = message(identity(1, 6), Message::Announce, &[]);
        assert_eq!(vet(&strange, ClusterId(5), |_| true), Err(Refused::OtherCluster));
    }

    #[test]
    fn no_room_leaves_nothing_behind() {
        let mut small = Vec::new();
        let member = Member::alive(identity(1, 5));
        assert_eq!(Wire.encode_member(&member, (&mut small).limit(20)), Err(WireError::NoRoom));
        assert!(small.is_empty());
    }

    #[test]
    fn texts_are_printable_and_bounded() {
        let about = |text: &str| About { raft_address: text.to_owned(), ..About::default() };
        let told = |text: &str| Identity::new("h:1", PeerId(1), 1, about(text)).unwrap().about.raft_address.clone();
        assert_eq!(told("127.0.0.1:2380"), "127.0.0.1:2380");
        assert_eq!(told("a\nb"), "");
        assert_eq!(told(&"x".repeat(256)), "");
        for address in ["", "host", ":1", "h:99999", "a b:1", "h:1\n"] {
            assert!(Identity::new(address, PeerId(1), 1, About::default()).is_none(), "{address:?}");
        }
        let urls = vec!["http://h:1".to_owned(); 9];
        let largest = Identity::new("h:1", PeerId(1), 1, About { client_urls: urls, ..About::default() }).unwrap();
        assert_eq!(largest.about.client_urls.len(), 4);
        assert!(largest.encode().len() <= crate::identity::BYTES_MAX);
    }

    #[test]
    fn no_changed_bytes_make_a_decoder_panic() {
        mutate::mutate(11, 300_000, &all(), |bytes| {
            if let Ok(kept) = vet(bytes, ClusterId(5), |_| true) {
                assert!(sender(&kept).unwrap().is_of(ClusterId(5)));
                assert_eq!(vet(&kept, ClusterId(5), |_| true), Ok(kept.clone()));
            }
            if let Some(identity) = Identity::decode(&mut &bytes[..]) {
                let again = identity.encode();
                let back = Identity::decode(&mut &again[..]).unwrap();
                assert_eq!(back, identity);
                assert_eq!(back.about, identity.about);
            }
        });
    }
}
