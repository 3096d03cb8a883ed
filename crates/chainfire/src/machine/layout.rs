//! Where everything lies in the engine: the column families and the keys of the `meta` family.
//!
//! | family | key | value |
//! |---|---|---|
//! | 0 `kv` | user key | record: the encoded `mvccpb.KeyValue` of the live version |
//! | 1 `old` | ordered(user key), 8 mod revision | 8 revision that superseded it, then the record |
//! | 2 `rev` | 8 revision, 4 place within it | 1 kind (0 put, 1 delete), 8 mod revision of the version before (0: none), user key |
//! | 3 `meta` | see below | |
//!
//! Numbers in keys and in `old` and `rev` values are big-endian; `ordered` is [`base::codec::put_ordered`]. A version
//! lives in `kv` until a later put or a delete moves it to `old`; it is live at every revision from its mod revision
//! up to, not including, the one that superseded it. A version superseded at or below the compacted revision can be
//! reached by no reader and goes when the engine rewrites its file. `rev` keeps all changes from the compacted
//! revision on.
//!
//! | `meta` key | value | absence means |
//! |---|---|---|
//! | `a`, 4 kind, 8 member | empty | this alarm is not raised |
//! | `b`, user key | 4 (little-endian): live keys from this one up to the next `b` | see [`super::count`] |
//! | `c` | 8 compacted revision | never compacted |
//! | `k`, 8 lease id, user key | empty | the key is not attached to the lease |
//! | `l`, 8 lease id | 8 TTL, 8 remaining TTL (seconds) | no such lease |
//! | `m` | 1 version of this layout, 24 mark, 8 revision | nothing was ever applied |
//! | `n` | encoded membership | the group was never founded |
//!
//! The mark, the revision and the buckets describe the whole store and are written once per batch; they and the
//! membership stand outside the rolling hash. All else is inside.

use base::codec::{put_ordered, put_u64};
use consensus::{MachineError, Mark};
use storage::{FamilyId, FamilySpec};

pub const KV: FamilyId = FamilyId(0);
pub const OLD: FamilyId = FamilyId(1);
pub const REV: FamilyId = FamilyId(2);
pub const META: FamilyId = FamilyId(3);

/// What the engine must be opened with.
pub const FAMILIES: [FamilySpec; 4] = [
    FamilySpec { name: "kv", droppable: None, bloom: true },
    FamilySpec { name: "old", droppable: Some(old_is_droppable), bloom: false },
    FamilySpec { name: "rev", droppable: None, bloom: false },
    FamilySpec { name: "meta", droppable: None, bloom: true },
];

pub const ALARM: u8 = b'a';
pub const BUCKET: u8 = b'b';
pub const COMPACTED: &[u8] = b"c";
pub const ATTACHED: u8 = b'k';
pub const LEASE: u8 = b'l';
pub const STATE: &[u8] = b"m";
pub const MEMBERSHIP: &[u8] = b"n";

const LAYOUT_VERSION: u8 = 1;
const STATE_BYTES: usize = 1 + Mark::BYTES + 8;

/// The kinds in `rev` values.
pub const REV_PUT: u8 = 0;
pub const REV_DELETE: u8 = 1;

/// Writes the key of a version in `old` over `out`.
pub fn old_key(out: &mut Vec<u8>, key: &[u8], mod_revision: i64) {
    out.clear();
    put_ordered(out, key);
    put_u64(out, mod_revision as u64);
}

/// A pair of `old`, read.
#[derive(Clone, Copy, Debug)]
pub struct Old<'a> {
    pub superseded_at: i64,
    pub record: &'a [u8],
}

impl<'a> Old<'a> {
    pub fn read(value: &'a [u8]) -> Result<Old<'a>, MachineError> {
        let (head, record) = value.split_first_chunk::<8>().ok_or_else(|| damaged("old", value))?;
        Ok(Old { superseded_at: i64::from_be_bytes(*head), record })
    }
}

/// The mod revision at the end of a key of `old`.
pub fn old_key_revision(key: &[u8]) -> Result<i64, MachineError> {
    key.last_chunk::<8>().map(|tail| i64::from_be_bytes(*tail)).ok_or_else(|| damaged("old", key))
}

/// The key of the `sub`th change within a revision.
pub fn rev_key(revision: i64, sub: u32) -> [u8; 12] {
    let mut out = [0; 12];
    out[..8].copy_from_slice(&revision.to_be_bytes());
    out[8..].copy_from_slice(&sub.to_be_bytes());
    out
}

/// Writes a value of `rev` over `out`.
pub fn rev_value(out: &mut Vec<u8>, kind: u8, previous: i64, key: &[u8]) {
    out.clear();
    out.push(kind);
    put_u64(out, previous as u64);
    out.extend_from_slice(key);
}

/// A pair of `rev`, read.
#[derive(Clone, Copy, Debug)]
pub struct Rev<'a> {
    pub revision: i64,
    pub kind: u8,
    /// The mod revision of the version that this change replaced; zero when there was none.
    pub previous: i64,
    pub key: &'a [u8],
}

impl<'a> Rev<'a> {
    pub fn read(key: &[u8], value: &'a [u8]) -> Result<Rev<'a>, MachineError> {
        let (Some((revision, _)), Some((kind, rest))) = (key.split_first_chunk::<8>(), value.split_first()) else {
            return Err(damaged("rev", key));
        };
        let (previous, user_key) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("rev", key))?;
        Ok(Rev {
            revision: i64::from_be_bytes(*revision),
            kind: *kind,
            previous: i64::from_be_bytes(*previous),
            key: user_key,
        })
    }
}

pub fn bucket_key(start: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + start.len());
    out.push(BUCKET);
    out.extend_from_slice(start);
    out
}

pub fn lease_key(id: i64) -> [u8; 9] {
    let mut out = [LEASE; 9];
    out[1..].copy_from_slice(&(id as u64).to_be_bytes());
    out
}

/// The key under which `key` is attached to the lease; with an empty `key`, where the lease's attachments begin.
pub fn attached_key(id: i64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(9 + key.len());
    out.push(ATTACHED);
    put_u64(&mut out, id as u64);
    out.extend_from_slice(key);
    out
}

/// The lease id and the user key of an attachment.
pub fn read_attached_key(key: &[u8]) -> Result<(i64, &[u8]), MachineError> {
    let (id, user_key) =
        key.get(1..).and_then(|rest| rest.split_first_chunk::<8>()).ok_or_else(|| damaged("meta", key))?;
    Ok((u64::from_be_bytes(*id) as i64, user_key))
}

/// The lease id in a lease's key.
pub fn read_lease_key(key: &[u8]) -> Result<i64, MachineError> {
    let id = key.get(1..).and_then(|rest| rest.try_into().ok()).ok_or_else(|| damaged("meta", key))?;
    Ok(u64::from_be_bytes(id) as i64)
}

/// A lease as granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    pub id: i64,
    /// As granted, in seconds.
    pub ttl_s: i64,
    /// What the leader last replicated of the time left, in seconds; zero: the full TTL.
    pub remaining_s: i64,
}

impl Lease {
    pub fn value(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.ttl_s.to_le_bytes());
        out[8..].copy_from_slice(&self.remaining_s.to_le_bytes());
        out
    }

    pub fn read(id: i64, value: &[u8]) -> Result<Lease, MachineError> {
        let number = |at: usize| value.get(at..at + 8).and_then(|part| part.try_into().ok()).map(i64::from_le_bytes);
        match (number(0), number(8)) {
            (Some(ttl_s), Some(remaining_s)) if value.len() == 16 => Ok(Lease { id, ttl_s, remaining_s }),
            _ => Err(damaged("lease", value)),
        }
    }
}

pub fn alarm_key(kind: i32, member: u64) -> [u8; 13] {
    let mut out = [ALARM; 13];
    out[1..5].copy_from_slice(&kind.to_be_bytes());
    out[5..].copy_from_slice(&member.to_be_bytes());
    out
}

/// (kind, member) of an alarm's key.
pub fn read_alarm_key(key: &[u8]) -> Result<(i32, u64), MachineError> {
    if key.len() != 13 {
        return Err(damaged("alarm", key));
    }
    let kind = i32::from_be_bytes(key[1..5].try_into().expect("4 bytes"));
    Ok((kind, u64::from_be_bytes(key[5..].try_into().expect("8 bytes"))))
}

/// The value under [`STATE`].
pub fn state_value(mark: &Mark, revision: i64) -> [u8; STATE_BYTES] {
    let mut out = [0; STATE_BYTES];
    out[0] = LAYOUT_VERSION;
    out[1..1 + Mark::BYTES].copy_from_slice(&mark.encode());
    out[1 + Mark::BYTES..].copy_from_slice(&revision.to_le_bytes());
    out
}

/// The mark and the revision under [`STATE`].
pub fn read_state(value: &[u8]) -> Result<(Mark, i64), MachineError> {
    match value.first() {
        Some(&LAYOUT_VERSION) if value.len() == STATE_BYTES => {}
        Some(&version) if version > LAYOUT_VERSION => {
            return Err(MachineError::Damaged(format!("the store has layout {version}, this program knows 1")));
        }
        _ => return Err(damaged("state", value)),
    }
    let mark = Mark::decode(&value[1..1 + Mark::BYTES]).ok_or_else(|| damaged("state", value))?;
    Ok((mark, i64::from_le_bytes(value[1 + Mark::BYTES..].try_into().expect("8 bytes"))))
}

/// A single number under a key of its own.
pub fn read_i64(value: &[u8]) -> Result<i64, MachineError> {
    value.try_into().map(i64::from_le_bytes).map_err(|_| damaged("number", value))
}

/// An error for bytes that this floor wrote and cannot read.
pub fn damaged(what: &str, bytes: &[u8]) -> MachineError {
    MachineError::Damaged(format!("{what}: {:02x?}", &bytes[..bytes.len().min(32)]))
}

fn old_is_droppable(_key: &[u8], value: &[u8], watermark: u64) -> bool {
    value.split_first_chunk::<8>().is_some_and(|(superseded_at, _)| u64::from_be_bytes(*superseded_at) <= watermark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_kind_comes_back() {
        let mut key = Vec::new();
        old_key(&mut key, b"a\0b", 77);
        assert_eq!(old_key_revision(&key).unwrap(), 77);
        let mut value = Vec::new();
        rev_value(&mut value, REV_DELETE, 5, b"user");
        let rev = Rev::read(&rev_key(9, 3), &value).unwrap();
        assert_eq!((rev.revision, rev.kind, rev.previous, rev.key), (9, REV_DELETE, 5, &b"user"[..]));
        let lease = Lease { id: -4, ttl_s: 60, remaining_s: 7 };
        assert_eq!(Lease::read(read_lease_key(&lease_key(-4)).unwrap(), &lease.value()).unwrap(), lease);
        assert_eq!(read_attached_key(&attached_key(-4, b"k")).unwrap(), (-4, &b"k"[..]));
        assert_eq!(read_alarm_key(&alarm_key(1, 42)).unwrap(), (1, 42));
        let mark = Mark { index: 1, term: 2, hash: 3 };
        assert_eq!(read_state(&state_value(&mark, 8)).unwrap(), (mark, 8));
    }

    #[test]
    fn damage_and_newer_layouts_are_errors() {
        assert!(Old::read(&[1; 7]).is_err());
        assert!(Rev::read(&[0; 3], &[0; 20]).is_err());
        assert!(Rev::read(&rev_key(1, 1), &[0; 8]).is_err());
        assert!(Lease::read(1, &[0; 15]).is_err());
        assert!(read_alarm_key(&[0; 12]).is_err());
        let mut state = state_value(&Mark::default(), 1);
        state[0] = 9;
        assert!(read_state(&state).unwrap_err().to_string().contains("layout 9"));
    }

    #[test]
    fn only_the_unreachable_is_droppable() {
        let mut value = 5_u64.to_be_bytes().to_vec();
        value.extend_from_slice(b"record");
        assert!(old_is_droppable(b"", &value, 5));
        assert!(!old_is_droppable(b"", &value, 4));
    }
}
