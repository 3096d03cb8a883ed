//! Where regions lie in a store's engine.
//!
//! | family | key | value |
//! |---|---|---|
//! | `raw` | the key as clients know it, behind one byte 1 | the value |
//! | `region` | region id (8, big-endian), `s` | [`RegionState`] but for the membership |
//! | `region` | region id, `m` | the membership, encoded |
//! | `region` | region id, `p` | this store's peer in it (8, little-endian); not replicated |
//! | `region` | region id, `t` | the last peer that was here and is gone for good; not replicated |
//! | `region` | region id, `x` | this store lacks what the region has taken in ([`super::merge`]); not replicated |
//!
//! The byte before raw keys is there so that every range has an end that can be written down.

use base::{GroupId, NodeId, PeerId};
use bytes::{Buf, BufMut, Bytes};
use consensus::{MachineError, Mark};
use storage::{FamilyId, FamilySpec};

use super::{Frozen, Merged, RegionState};

pub const RAW: FamilyId = FamilyId(0);
pub const REGION: FamilyId = FamilyId(1);

/// What the engine must be opened with.
pub const FAMILIES: [FamilySpec; 2] = [
    FamilySpec { name: "raw", droppable: None, bloom: true, sequential: false },
    FamilySpec { name: "region", droppable: None, bloom: true, sequential: false },
];

const RAW_PREFIX: u8 = 1;
const STATE_VERSION: u8 = 1;
/// With what merges have left or are about to do.
const STATE_VERSION_MERGING: u8 = 2;
const STATE: u8 = b's';
const MEMBERSHIP: u8 = b'm';
const PEER: u8 = b'p';
const RETIRED: u8 = b't';
const LACKING: u8 = b'x';
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

pub fn lacking_key(region: GroupId) -> [u8; RECORD_KEY_BYTES] {
    record_key(region, LACKING)
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

/// 1 version, 24 mark, 8 range version, 8 members' version, 4 length of the start, start, end. While the region is frozen or
/// remembers what it has taken in, version 2: 4 length of the end before it, and behind it 1 whether it is frozen, if so 8
/// each index, term, hash, members' version, target, its version, 4 length of its start, start; 1 how many were taken in,
/// for each 8 id, 8 into, 8 version, 1 how many peers, for each 8 store, 8 peer.
pub fn write_state(state: &RegionState) -> Vec<u8> {
    let merging = state.frozen.is_some() || !state.merged.is_empty();
    let mut out = Vec::with_capacity(45 + state.start.len() + state.end.len());
    let put_key = |out: &mut Vec<u8>, key: &Bytes| {
        out.put_u32_le(u32::try_from(key.len()).expect("keys are bounded"));
        out.put_slice(key);
    };
    out.put_u8(if merging { STATE_VERSION_MERGING } else { STATE_VERSION });
    out.put_slice(&state.mark.encode());
    out.put_u64_le(state.version);
    out.put_u64_le(state.conf_version);
    put_key(&mut out, &state.start);
    if !merging {
        out.put_slice(&state.end);
        return out;
    }
    put_key(&mut out, &state.end);
    out.put_u8(state.frozen.is_some().into());
    if let Some(frozen) = &state.frozen {
        let Frozen { at, term, hash, conf_version, target, target_version, target_start } = frozen;
        let numbers = [*at, *term, *hash, *conf_version, target.0, *target_version];
        numbers.iter().for_each(|number| out.put_u64_le(*number));
        put_key(&mut out, target_start);
    }
    out.put_u8(u8::try_from(state.merged.len()).expect("they are bounded"));
    for Merged { source, into, version, peers } in &state.merged {
        [source.0, into.0, *version].iter().for_each(|number| out.put_u64_le(*number));
        out.put_u8(u8::try_from(peers.len()).expect("members are bounded"));
        for (node, peer) in peers {
            out.put_u64_le(node.0);
            out.put_u64_le(peer.0);
        }
    }
    out
}

pub fn read_state(mut bytes: Bytes, membership: Bytes) -> Result<RegionState, MachineError> {
    let damaged = || MachineError::Damaged("the state of a region makes no sense".to_owned());
    if bytes.len() < 45 {
        return Err(damaged());
    }
    let merging = match bytes.get_u8() {
        STATE_VERSION => false,
        STATE_VERSION_MERGING => true,
        _ => return Err(MachineError::TooNew("a later version of flaredb wrote this data folder".to_owned())),
    };
    let mark = Mark::decode(&bytes.split_to(Mark::BYTES)).ok_or_else(damaged)?;
    let (version, conf_version) = (bytes.get_u64_le(), bytes.get_u64_le());
    let start = take_key(&mut bytes).ok_or_else(damaged)?;
    let state = RegionState { mark, start, version, conf_version, membership, ..RegionState::default() };
    if !merging {
        return Ok(RegionState { end: bytes, ..state });
    }
    take_merging(bytes, state).ok_or_else(damaged)
}

/// What version 2 has behind the start.
fn take_merging(mut bytes: Bytes, mut state: RegionState) -> Option<RegionState> {
    state.end = take_key(&mut bytes)?;
    if bytes.try_get_u8().ok()? == 1 {
        let mut numbers = [0; 6];
        for number in &mut numbers {
            *number = bytes.try_get_u64_le().ok()?;
        }
        let [at, term, hash, conf_version, target, target_version] = numbers;
        let target_start = take_key(&mut bytes)?;
        let target = GroupId(target);
        state.frozen = Some(Frozen { at, term, hash, conf_version, target, target_version, target_start });
    }
    let number = |bytes: &mut Bytes| bytes.try_get_u64_le().ok();
    for _ in 0..bytes.try_get_u8().ok()? {
        let (source, into) = (GroupId(number(&mut bytes)?), GroupId(number(&mut bytes)?));
        let version = number(&mut bytes)?;
        let mut peers = Vec::new();
        for _ in 0..bytes.try_get_u8().ok()? {
            peers.push((NodeId(number(&mut bytes)?), PeerId(number(&mut bytes)?)));
        }
        state.merged.push(Merged { source, into, version, peers });
    }
    bytes.is_empty().then_some(state)
}

fn take_key(bytes: &mut Bytes) -> Option<Bytes> {
    let length = bytes.try_get_u32_le().ok()? as usize;
    (length <= bytes.len()).then(|| bytes.split_to(length))
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
            ..RegionState::default()
        };
        let bytes = Bytes::from(write_state(&state));
        assert_eq!(bytes[0], STATE_VERSION, "where nothing is merged it is as it always was");
        let frozen = Frozen {
            at: 7,
            term: 3,
            hash: 8,
            conf_version: 5,
            target: GroupId(6),
            target_version: 9,
            target_start: Bytes::from_static(b"b\xff"),
        };
        let peers = vec![(NodeId(1), PeerId(2)), (NodeId(3), PeerId(4))];
        let taken = Merged { source: GroupId(11), into: GroupId(12), version: 13, peers };
        let merging =
            RegionState { frozen: Some(frozen.clone()), merged: vec![taken.clone(), taken.clone()], ..state.clone() };
        let thawed = RegionState { merged: vec![taken], ..state.clone() };
        let frozen = RegionState { frozen: Some(frozen), ..state.clone() };
        for state in [&state, &merging, &thawed, &frozen] {
            let bytes = Bytes::from(write_state(state));
            assert_eq!(&read_state(bytes.clone(), state.membership.clone()).unwrap(), state);
            for length in 0..bytes.len() {
                let part = read_state(bytes.slice(..length), state.membership.clone());
                assert!(part.is_err() || part.unwrap() != *state, "{length}");
            }
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
