//! Where regions lie in a store's engine.
//!
//! | family | key | value |
//! |---|---|---|
//! | `raw` | the key as clients know it, behind one byte 1 | the value |
//! | `region` | region id (8, big-endian), `s` | [`RegionState`] but for the membership |
//! | `region` | region id, `m` | the membership, encoded |
//! | `region` | region id, `p` | this store's peer in it (8, little-endian); not replicated |
//! | `region` | region id, `t` | the last peer that was here and is gone for good; not replicated |
//!
//! The byte before raw keys is there so that every range has an end that can be written down.

use base::{GroupId, PeerId};
use bytes::{Buf, BufMut, Bytes};
use consensus::{MachineError, Mark};
use storage::{FamilyId, FamilySpec};

use super::RegionState;

pub const RAW: FamilyId = FamilyId(0);
pub const REGION: FamilyId = FamilyId(1);

/// What the engine must be opened with.
pub const FAMILIES: [FamilySpec; 2] = [
    FamilySpec { name: "raw", droppable: None, bloom: true, sequential: false },
    FamilySpec { name: "region", droppable: None, bloom: true, sequential: false },
];

const RAW_PREFIX: u8 = 1;
const STATE_VERSION: u8 = 1;
const STATE: u8 = b's';
const MEMBERSHIP: u8 = b'm';
const PEER: u8 = b'p';
const RETIRED: u8 = b't';
const RECORD_KEY_BYTES: usize = 9;

/// The key of a raw pair.
pub fn raw_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(RAW_PREFIX);
    out.extend_from_slice(key);
    out
}

/// The end of a range of raw keys; an empty one is behind all keys.
pub fn raw_end(end: &[u8]) -> Vec<u8> {
    if end.is_empty() { vec![RAW_PREFIX + 1] } else { raw_key(end) }
}

/// The client's key in a raw pair's.
pub fn client_key(raw: &[u8]) -> &[u8] {
    &raw[1..]
}

pub fn state_key(region: GroupId) -> [u8; RECORD_KEY_BYTES] {
    record_key(region, STATE)
}

pub fn membership_key(region: GroupId) -> [u8; RECORD_KEY_BYTES] {
    record_key(region, MEMBERSHIP)
}

pub fn peer_key(region: GroupId) -> [u8; RECORD_KEY_BYTES] {
    record_key(region, PEER)
}

pub fn retired_key(region: GroupId) -> [u8; RECORD_KEY_BYTES] {
    record_key(region, RETIRED)
}

/// Records that are looked for when a store starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    State,
    Peer,
    Other,
}

/// What a key of the family `region` tells of.
pub fn record(key: &[u8]) -> Option<(GroupId, Record)> {
    let (id, kind) = key.split_first_chunk::<8>()?;
    let record = match kind {
        [STATE] => Record::State,
        [PEER] => Record::Peer,
        _ => Record::Other,
    };
    Some((GroupId(u64::from_be_bytes(*id)), record))
}

fn record_key(region: GroupId, kind: u8) -> [u8; RECORD_KEY_BYTES] {
    let mut out = [kind; RECORD_KEY_BYTES];
    out[..8].copy_from_slice(&region.0.to_be_bytes());
    out
}

/// 1 version, 24 mark, 8 range version, 8 members' version, 4 length of the start, start, end.
pub fn write_state(state: &RegionState) -> Vec<u8> {
    let mut out = Vec::with_capacity(45 + state.start.len() + state.end.len());
    out.put_u8(STATE_VERSION);
    out.put_slice(&state.mark.encode());
    out.put_u64_le(state.version);
    out.put_u64_le(state.conf_version);
    out.put_u32_le(u32::try_from(state.start.len()).expect("keys are bounded"));
    out.put_slice(&state.start);
    out.put_slice(&state.end);
    out
}

pub fn read_state(mut bytes: Bytes, membership: Bytes) -> Result<RegionState, MachineError> {
    let damaged = || MachineError::Damaged("the state of a region makes no sense".to_owned());
    if bytes.len() < 45 {
        return Err(damaged());
    }
    if bytes.get_u8() != STATE_VERSION {
        return Err(MachineError::TooNew("a later version of flaredb wrote this data folder".to_owned()));
    }
    let mark = Mark::decode(&bytes.split_to(Mark::BYTES)).ok_or_else(damaged)?;
    let (version, conf_version) = (bytes.get_u64_le(), bytes.get_u64_le());
    let start = bytes.get_u32_le() as usize;
    if start > bytes.len() {
        return Err(damaged());
    }
    let start = bytes.split_to(start);
    Ok(RegionState { mark, start, end: bytes, version, conf_version, membership })
}

pub fn read_peer(bytes: &[u8]) -> Result<PeerId, MachineError> {
    let number = bytes.try_into().map(u64::from_le_bytes);
    number.map(PeerId).map_err(|_| MachineError::Damaged("the peer of a region makes no sense".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_round_trip_and_nothing_makes_the_decoder_panic() {
        let state = RegionState {
            mark: Mark { index: 7, term: 3, hash: 9 },
            start: Bytes::from_static(b"a"),
            end: Bytes::from_static(b"b\xff"),
            version: 4,
            conf_version: 5,
            membership: Bytes::from_static(b"members"),
        };
        let bytes = Bytes::from(write_state(&state));
        assert_eq!(read_state(bytes.clone(), state.membership.clone()).unwrap(), state);
        for length in 0..bytes.len() {
            let _ = read_state(bytes.slice(..length), Bytes::new());
        }
        let mut long = bytes.to_vec();
        long[41] = 200;
        assert!(read_state(long.into(), Bytes::new()).is_err());
        let mut later = bytes.to_vec();
        later[0] = 9;
        assert!(matches!(read_state(later.into(), Bytes::new()), Err(MachineError::TooNew(_))));
    }

    #[test]
    fn keys_sort_as_their_clients_see_them() {
        let (low, high) = (raw_key(b""), raw_end(b""));
        for key in [&b"\0"[..], b"a", b"\xff\xff"] {
            assert!(raw_key(key) > low && raw_key(key) < high && client_key(&raw_key(key)) == key);
        }
        assert_eq!(record(&peer_key(GroupId(9))), Some((GroupId(9), Record::Peer)));
        assert_eq!(record(&state_key(GroupId(9))), Some((GroupId(9), Record::State)));
        assert_eq!(record(&retired_key(GroupId(9))), Some((GroupId(9), Record::Other)));
        assert_eq!(record(b"short"), None);
    }
}
