//! What hosts say to one another, and its bytes. The codec checks everything it reads; the transport frames,
//! checksums and authenticates, and is floor 4's business.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind |
//! | 8, 8, 8, 8 | group, from, the sender's node, to (little-endian) |
//! | rest | the body, by kind |
//!
//! Messages of the raft crate travel as opaque bytes of its own encoding.

use base::{GroupId, NodeId, PeerId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use raft::eraftpb;

use crate::api::Refusal;

/// The largest body that is decoded; a snapshot's content does not travel in messages.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
const HEADER: usize = 33;
const REFUSED_SEQS_MAX: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    pub group: GroupId,
    pub from: PeerId,
    /// So that a peer that does not know the membership yet can answer.
    pub from_node: NodeId,
    pub to: PeerId,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A message of the raft crate.
    Raft(Box<eraftpb::Message>),
    /// To the leader of `term`: append this entry data (commands of the sender's clients).
    Forward { term: u64, data: Bytes },
    /// To the leader of `term`: propose this membership change (an encoded [`crate::membership::ChangeRecord`]).
    ForwardChange { term: u64, record: Bytes },
    /// To the leader of `term`: begin a transfer.
    ForwardTransfer { term: u64, seq: u64, to: u64 },
    /// From who was taken for the leader of `term`: these, forwarded in that term, were not appended and never will be.
    ForwardRefused { term: u64, seqs: Vec<u64>, why: Refusal },
    /// To the leader: at which index is a read linearizable?
    ReadQuery { term: u64, context: u64 },
    /// The answer; `None` when the asked is no leader.
    ReadAnswer { context: u64, index: Option<u64> },
    /// What the sender's state machine hashed to at a fixed index.
    HashReport { index: u64, hash: u64, version: u8 },
    /// From the leader to a peer that reported something else: what a majority of the voters has come to.
    HashVerdict { index: u64, hash: u64, version: u8 },
    /// From node to node, of no group and no peer: the sender is there, in this life of it (`liveness`).
    Alive { life: u64 },
    /// From the leader of `term`: of what the receiver has acknowledged in it, this is committed (`commits`).
    Committed { term: u64, commit: u64 },
    /// From the leader of `term`, with all entries up to `commit` in place: nothing more comes until something happens
    /// (`sleep`).
    Sleep { term: u64, commit: u64 },
    /// To the leader, which has said nothing for long: it sleeps, and the sender does not.
    Wake,
}

impl Message {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER + self.body_bytes_estimate());
        out.put_u8(self.kind());
        out.put_u64_le(self.group.0);
        out.put_u64_le(self.from.0);
        out.put_u64_le(self.from_node.0);
        out.put_u64_le(self.to.0);
        match &self.body {
            Body::Raft(message) => message.encode(&mut out).expect("a BytesMut grows as needed"),
            Body::Forward { term, data } | Body::ForwardChange { term, record: data } => {
                out.put_u64_le(*term);
                out.put_slice(data);
            }
            Body::ForwardTransfer { term, seq, to } => {
                [*term, *seq, *to].into_iter().for_each(|number| out.put_u64_le(number));
            }
            Body::ForwardRefused { term, seqs, why } => {
                out.put_u64_le(*term);
                out.put_u8(refusal_code(*why));
                seqs.iter().for_each(|seq| out.put_u64_le(*seq));
            }
            Body::ReadQuery { term, context } => {
                out.put_u64_le(*term);
                out.put_u64_le(*context);
            }
            Body::ReadAnswer { context, index } => {
                out.put_u64_le(*context);
                out.put_u8(u8::from(index.is_some()));
                out.put_u64_le(index.unwrap_or(0));
            }
            Body::HashReport { index, hash, version } | Body::HashVerdict { index, hash, version } => {
                out.put_u64_le(*index);
                out.put_u64_le(*hash);
                out.put_u8(*version);
            }
            Body::Alive { life } => out.put_u64_le(*life),
            Body::Committed { term, commit } | Body::Sleep { term, commit } => {
                [*term, *commit].into_iter().for_each(|number| out.put_u64_le(number))
            }
            Body::Wake => {}
        }
        out.freeze()
    }

    /// `None` when the bytes make no sense. Raft messages are checked further before they are stepped.
    pub fn decode(mut bytes: Bytes) -> Option<Message> {
        if bytes.len() < HEADER || bytes.len() > MESSAGE_BYTES_MAX {
            return None;
        }
        let kind = bytes.get_u8();
        let group = GroupId(bytes.get_u64_le());
        let from = PeerId(bytes.get_u64_le());
        let from_node = NodeId(bytes.get_u64_le());
        let to = PeerId(bytes.get_u64_le());
        let exactly = |length: usize| (bytes.len() == length).then_some(());
        let body = match kind {
            1 => Body::Raft(Box::new(eraftpb::Message::decode(bytes).ok()?)),
            2 | 3 => {
                let term = bytes.try_get_u64_le().ok()?;
                if kind == 2 {
                    Body::Forward { term, data: bytes }
                } else {
                    Body::ForwardChange { term, record: bytes }
                }
            }
            4 => {
                exactly(24)?;
                Body::ForwardTransfer { term: bytes.get_u64_le(), seq: bytes.get_u64_le(), to: bytes.get_u64_le() }
            }
            5 => {
                let term = bytes.try_get_u64_le().ok()?;
                let why = refusal_from(bytes.try_get_u8().ok()?)?;
                if !bytes.len().is_multiple_of(8) || bytes.len() / 8 > REFUSED_SEQS_MAX {
                    return None;
                }
                let seqs = bytes.chunks_exact(8).map(|mut raw| raw.get_u64_le()).collect();
                Body::ForwardRefused { term, seqs, why }
            }
            6 => {
                exactly(16)?;
                Body::ReadQuery { term: bytes.get_u64_le(), context: bytes.get_u64_le() }
            }
            7 => {
                exactly(17)?;
                let context = bytes.get_u64_le();
                let present = bytes.get_u8() == 1;
                let index = bytes.get_u64_le();
                Body::ReadAnswer { context, index: present.then_some(index) }
            }
            8 | 9 => {
                exactly(17)?;
                let (index, hash, version) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u8());
                if kind == 8 {
                    Body::HashReport { index, hash, version }
                } else {
                    Body::HashVerdict { index, hash, version }
                }
            }
            10 => {
                exactly(8)?;
                Body::Alive { life: bytes.get_u64_le() }
            }
            11 => {
                exactly(16)?;
                Body::Sleep { term: bytes.get_u64_le(), commit: bytes.get_u64_le() }
            }
            12 => {
                exactly(0)?;
                Body::Wake
            }
            13 => {
                exactly(16)?;
                Body::Committed { term: bytes.get_u64_le(), commit: bytes.get_u64_le() }
            }
            _ => return None,
        };
        Some(Message { group, from, from_node, to, body })
    }

    fn kind(&self) -> u8 {
        match self.body {
            Body::Raft(_) => 1,
            Body::Forward { .. } => 2,
            Body::ForwardChange { .. } => 3,
            Body::ForwardTransfer { .. } => 4,
            Body::ForwardRefused { .. } => 5,
            Body::ReadQuery { .. } => 6,
            Body::ReadAnswer { .. } => 7,
            Body::HashReport { .. } => 8,
            Body::HashVerdict { .. } => 9,
            Body::Alive { .. } => 10,
            Body::Sleep { .. } => 11,
            Body::Wake => 12,
            Body::Committed { .. } => 13,
        }
    }

    fn body_bytes_estimate(&self) -> usize {
        match &self.body {
            Body::Raft(message) => 64 + message.entries.iter().map(|entry| entry.data.len() + 32).sum::<usize>(),
            Body::Forward { data, .. } | Body::ForwardChange { record: data, .. } => 8 + data.len(),
            Body::ForwardRefused { seqs, .. } => 9 + seqs.len() * 8,
            _ => 32,
        }
    }
}

const REFUSALS: [Refusal; 18] = [
    Refusal::NoLeader,
    Refusal::TimedOut,
    Refusal::Busy,
    Refusal::TooLarge,
    Refusal::NoGroup,
    Refusal::Stopping,
    Refusal::Damaged,
    Refusal::ChangeInFlight,
    Refusal::UnknownMember,
    Refusal::DuplicateMember,
    Refusal::LearnerNotReady,
    Refusal::NotALearner,
    Refusal::TooManyLearners,
    Refusal::WouldLoseQuorum,
    Refusal::BadTransferee,
    Refusal::Held,
    Refusal::Removed,
    Refusal::Unanswered,
];

pub fn refusal_code(why: Refusal) -> u8 {
    REFUSALS.iter().position(|known| *known == why).expect("every refusal is in the table") as u8
}

pub fn refusal_from(code: u8) -> Option<Refusal> {
    REFUSALS.get(usize::from(code)).copied()
}
