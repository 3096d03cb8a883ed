//! What a replicated command holds: what one client's request asks of the state machine, as it lies in the log.
//!
//! | tag | command | payload |
//! |---|---|---|
//! | 1 | Put | the client's `PutRequest`, unchanged |
//! | 2 | DeleteRange | the client's `DeleteRangeRequest`, unchanged |
//! | 3 | Txn | the client's `TxnRequest`, unchanged |
//! | 4 | Compact | the client's `CompactionRequest`, unchanged |
//! | 5 | LeaseGrant | 8 id, 8 TTL in seconds (both signed, little-endian) |
//! | 6 | LeaseRevoke | 8 id |
//! | 7 | LeaseCheckpoint | for each lease: 8 id, 8 remaining TTL in seconds; ordered as the proposer pleases |
//! | 8 | Alarm | 1 action, 8 member, 4 kind (numbers of `etcdserverpb`) |
//! | 9 | InTerm | 8 term, then another command (not 9) |
//!
//! A client's request is carried as it came, so that proposing it copies bytes and decodes nothing. The price: the
//! state machine meets whatever bytes a client sent, and turns those that make no sense into
//! [`ApiError::MalformedCommand`], equally on every replica. A field that a later etcd adds is skipped by protobuf's
//! rules, equally too. A tag that is not in the table is a later version's: replicas of the two versions would come to
//! different states, so the one that does not know it must not go on ([`Command::unknown_tag`]).
//!
//! Left out: validation of what makes sense but is forbidden (an empty key, too many operations). That is the API's,
//! before anything is proposed. The machine refuses only what depends on its state.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message as _;
use proto::etcdserverpb as pb;

use crate::error::ApiError;

const PUT: u8 = 1;
const DELETE_RANGE: u8 = 2;
const TXN: u8 = 3;
const COMPACT: u8 = 4;
const LEASE_GRANT: u8 = 5;
const LEASE_REVOKE: u8 = 6;
const LEASE_CHECKPOINT: u8 = 7;
const ALARM: u8 = 8;
const IN_TERM: u8 = 9;

/// A decoded command.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Put(pb::PutRequest),
    DeleteRange(pb::DeleteRangeRequest),
    Txn(pb::TxnRequest),
    Compact(pb::CompactionRequest),
    /// `id` was drawn by the proposer if the client left it open; `ttl_s` is at least the smallest TTL in force.
    LeaseGrant {
        id: i64,
        ttl_s: i64,
    },
    LeaseRevoke {
        id: i64,
    },
    /// (id, remaining TTL in seconds); zero remaining means the full TTL.
    LeaseCheckpoint(Vec<(i64, i64)>),
    /// `action` and `kind` are numbers of `AlarmRequest.AlarmAction` and `AlarmType`.
    Alarm {
        action: i32,
        member: u64,
        kind: i32,
    },
    /// What a leader proposes on its own clock's word: void in an entry of another term.
    InTerm {
        term: u64,
        command: Box<Command>,
    },
}

impl Command {
    /// The command to carry out in an entry of `term`. Error: `LeaderChanged` for one that is void there.
    pub fn in_term(self, term: u64) -> Result<Command, ApiError> {
        match self {
            Command::InTerm { term: only, command } if only == term => Ok(*command),
            Command::InTerm { .. } => Err(ApiError::LeaderChanged),
            command => Ok(command),
        }
    }

    /// The tag of a command that only a later version can carry out.
    pub fn unknown_tag(bytes: &[u8]) -> Option<u8> {
        let inner = if bytes.first() == Some(&IN_TERM) { bytes.get(1 + size_of::<u64>()) } else { bytes.first() };
        inner.copied().filter(|tag| *tag > IN_TERM)
    }

    /// Reads a command; keys and values share the memory of `bytes`.
    pub fn decode(mut bytes: Bytes) -> Result<Command, ApiError> {
        let malformed = |_| ApiError::MalformedCommand;
        if bytes.is_empty() {
            return Err(ApiError::MalformedCommand);
        }
        let tag = bytes.get_u8();
        let sized = |length: usize| if bytes.len() == length { Ok(()) } else { Err(ApiError::MalformedCommand) };
        Ok(match tag {
            PUT => Command::Put(pb::PutRequest::decode(bytes).map_err(malformed)?),
            DELETE_RANGE => Command::DeleteRange(pb::DeleteRangeRequest::decode(bytes).map_err(malformed)?),
            TXN => Command::Txn(pb::TxnRequest::decode(bytes).map_err(malformed)?),
            COMPACT => Command::Compact(pb::CompactionRequest::decode(bytes).map_err(malformed)?),
            LEASE_GRANT => {
                sized(16)?;
                Command::LeaseGrant { id: bytes.get_i64_le(), ttl_s: bytes.get_i64_le() }
            }
            LEASE_REVOKE => {
                sized(8)?;
                Command::LeaseRevoke { id: bytes.get_i64_le() }
            }
            LEASE_CHECKPOINT => {
                sized(bytes.len() / 16 * 16)?;
                let count = bytes.len() / 16;
                Command::LeaseCheckpoint((0..count).map(|_| (bytes.get_i64_le(), bytes.get_i64_le())).collect())
            }
            ALARM => {
                sized(13)?;
                Command::Alarm {
                    action: i32::from(bytes.get_u8()),
                    member: bytes.get_u64_le(),
                    kind: bytes.get_i32_le(),
                }
            }
            IN_TERM => {
                let term = bytes.try_get_u64_le().map_err(|_| ApiError::MalformedCommand)?;
                if bytes.first() == Some(&IN_TERM) {
                    return Err(ApiError::MalformedCommand);
                }
                Command::InTerm { term, command: Box::new(Command::decode(bytes)?) }
            }
            _ => return Err(ApiError::MalformedCommand),
        })
    }

    /// Writes a command. Where the client's own bytes are at hand, [`raw`] spares the encoding.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        match self {
            Command::Put(request) => return raw(Kind::Put, &request.encode_to_vec()),
            Command::DeleteRange(request) => return raw(Kind::DeleteRange, &request.encode_to_vec()),
            Command::Txn(request) => return raw(Kind::Txn, &request.encode_to_vec()),
            Command::Compact(request) => return raw(Kind::Compact, &request.encode_to_vec()),
            Command::LeaseGrant { id, ttl_s } => {
                out.put_u8(LEASE_GRANT);
                out.put_i64_le(*id);
                out.put_i64_le(*ttl_s);
            }
            Command::LeaseRevoke { id } => {
                out.put_u8(LEASE_REVOKE);
                out.put_i64_le(*id);
            }
            Command::LeaseCheckpoint(remaining) => {
                out.put_u8(LEASE_CHECKPOINT);
                for (id, remaining_s) in remaining {
                    out.put_i64_le(*id);
                    out.put_i64_le(*remaining_s);
                }
            }
            Command::Alarm { action, member, kind } => {
                out.put_u8(ALARM);
                out.put_u8(u8::try_from(*action).unwrap_or(u8::MAX));
                out.put_u64_le(*member);
                out.put_i32_le(*kind);
            }
            Command::InTerm { term, command } => {
                out.put_u8(IN_TERM);
                out.put_u64_le(*term);
                out.put_slice(&command.encode());
            }
        }
        out.freeze()
    }
}

/// The commands that carry a client's request as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Put = PUT as isize,
    DeleteRange = DELETE_RANGE as isize,
    Txn = TXN as isize,
    Compact = COMPACT as isize,
}

impl Kind {
    /// As the API's method is called.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Put => "Put",
            Kind::DeleteRange => "DeleteRange",
            Kind::Txn => "Txn",
            Kind::Compact => "Compact",
        }
    }
}

/// A command made of a client's encoded request.
pub fn raw(kind: Kind, request: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(1 + request.len());
    out.put_u8(kind as u8);
    out.put_slice(request);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use base::Rng;

    use super::*;

    #[test]
    fn commands_come_back() {
        let commands = [
            Command::Put(pb::PutRequest { key: "k".into(), value: "v".into(), lease: 3, ..Default::default() }),
            Command::DeleteRange(pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true }),
            Command::Txn(pb::TxnRequest { compare: vec![pb::Compare::default()], ..Default::default() }),
            Command::Compact(pb::CompactionRequest { revision: 5, physical: true }),
            Command::LeaseGrant { id: -1, ttl_s: 60 },
            Command::LeaseRevoke { id: 7 },
            Command::LeaseCheckpoint(vec![(1, 2), (3, 0)]),
            Command::LeaseCheckpoint(vec![]),
            Command::Alarm { action: 1, member: 9, kind: 2 },
            Command::InTerm { term: 3, command: Box::new(Command::LeaseRevoke { id: 7 }) },
        ];
        for command in commands {
            assert_eq!(Command::decode(command.encode()).as_ref(), Ok(&command));
        }
    }

    #[test]
    fn what_a_later_version_proposed_is_told_from_noise() {
        let nested = |tag| [&[IN_TERM][..], &3_u64.to_le_bytes(), &[tag]].concat();
        assert_eq!(Command::unknown_tag(&[IN_TERM + 1, 1, 2]), Some(IN_TERM + 1));
        assert_eq!(Command::unknown_tag(&nested(99)), Some(99));
        for known in
            [vec![], vec![0], vec![PUT, 0xFF], vec![IN_TERM], vec![IN_TERM, 1, 2], nested(IN_TERM), nested(PUT)]
        {
            assert_eq!(Command::unknown_tag(&known), None, "{known:?}");
        }
    }

    #[test]
    fn noise_is_refused_without_a_panic() {
        let mut rng = Rng::new(5);
        for _ in 0..200_000 {
            let mut bytes: Vec<u8> = (0..rng.below(40)).map(|_| rng.next_u64() as u8).collect();
            if let Some(tag) = bytes.first_mut() {
                *tag %= 10;
            }
            let _ = Command::decode(bytes.into());
        }
        for bad in [&[][..], &[0], &[99], &[LEASE_GRANT, 1], &[LEASE_CHECKPOINT, 0], &[ALARM], &[PUT, 0xFF]] {
            assert_eq!(Command::decode(Bytes::copy_from_slice(bad)), Err(ApiError::MalformedCommand), "{bad:?}");
        }
    }
}
