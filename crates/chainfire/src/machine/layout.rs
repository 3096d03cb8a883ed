//! Where everything lies in the engine: the column families and the keys of the `meta` family.
//!
//! | family | key | value |
//! |---|---|---|
//! | 0 `kv` | user key | record: the encoded `mvccpb.KeyValue` of the live version |
//! | 1 `old` | ordered(user key), 8 revision | 8 revision from which on nobody needs this, then the record of that version, or nothing: a signpost |
//! | 2 `rev` | 8 revision, user key | 1 kind (0 put, 1 delete), 4 place within the revision, 8 mod revision of the version before (0: none), then for a put its record |
//! | 3 `meta` | see below | |
//!
//! Numbers in keys and in `old` and `rev` values are big-endian; `ordered` is [`base::codec::put_ordered`].
//!
//! `rev` is the history, written in its own order: every change from the compacted revision on, with what it left, and
//! where the version before is to be found. A version that is neither live nor in `rev` any more, but can still be
//! read, because it was superseded after the compacted revision, lies in `old` until that too is compacted. Versions get
//! there when they are superseded, if they are older than the compacted revision then, and else by the sweep that follows
//! a compaction ([`super::sweep`]).
//!
//! Reading in the past follows the links in `rev` back from the live version. Signposts in `old` make the way short:
//! there is one at each [`SIGNPOST_EVERY`]th version of a key, and one at each deletion, from where no live version leads
//! back. A read at a revision begins at the first signpost above it.
//!
//! | `meta` key | value | absence means |
//! |---|---|---|
//! | `a`, 4 kind, 8 member | empty | this alarm is not raised |
//! | `b`, user key | 4 (little-endian): live keys from this one up to the next `b` | see [`super::count`] |
//! | `c` | 8 compacted revision | never compacted |
//! | `g` | 8 revision before which `rev` is swept | never swept |
//! | `k`, 8 lease id, user key | empty | the key is not attached to the lease |
//! | `l`, 8 lease id | 8 TTL, 8 remaining TTL (seconds) | no such lease |
//! | `m` | 1 version of this layout, 24 mark, 8 revision | nothing was ever applied |
//! | `n` | encoded membership | the group was never founded |
//!
//! The mark, the revision and the buckets describe the whole store and are written once per batch; they, the membership
//! and what the sweep does stand outside the rolling hash. All else is inside.

use base::codec::{put_ordered, put_u64};
use consensus::{MachineError, Mark};
use storage::{FamilyId, FamilySpec};

pub const KV: FamilyId = FamilyId(0);
pub const OLD: FamilyId = FamilyId(1);
pub const REV: FamilyId = FamilyId(2);
pub const META: FamilyId = FamilyId(3);

/// What the engine must be opened with.
pub const FAMILIES: [FamilySpec; 4] = [
    FamilySpec { name: "kv", droppable: None, bloom: true, sequential: false },
    FamilySpec { name: "old", droppable: Some(old_is_droppable), bloom: false, sequential: false },
    FamilySpec { name: "rev", droppable: None, bloom: false, sequential: true },
    FamilySpec { name: "meta", droppable: None, bloom: true, sequential: false },
];

pub const ALARM: u8 = b'a';
pub const BUCKET: u8 = b'b';
pub const COMPACTED: &[u8] = b"c";
pub const ATTACHED: u8 = b'k';
pub const SWEPT: &[u8] = b"g";
pub const LEASE: u8 = b'l';
pub const STATE: &[u8] = b"m";
pub const MEMBERSHIP: &[u8] = b"n";

const LAYOUT_VERSION: u8 = 2;
const STATE_BYTES: usize = 1 + Mark::BYTES + 8;

/// A version whose number this divides gets a signpost: more would cost writes, fewer would cost reads in the past.
pub const SIGNPOST_EVERY: i64 = 32;

/// The kinds in `rev` values.
const REV_PUT: u8 = 0;
const REV_DELETE: u8 = 1;

/// Writes the key of a version in `old` over `out`.
pub fn old_key(out: &mut Vec<u8>, key: &[u8], revision: i64) {
    out.clear();
    put_ordered(out, key);
    put_u64(out, revision as u64);
}

/// Writes a value of `old` over `out`: of a signpost without a record.
pub fn old_value(out: &mut Vec<u8>, needed_before: i64, record: Option<&[u8]>) {
    out.clear();
    put_u64(out, needed_before as u64);
    out.extend_from_slice(record.unwrap_or_default());
}

/// A value of `old`, read.
#[derive(Clone, Copy, Debug)]
pub struct Old<'a> {
    /// No read at or above this revision needs it: that is where the version was superseded.
    pub needed_before: i64,
    /// `None`: this is a signpost.
    pub record: Option<&'a [u8]>,
}

impl<'a> Old<'a> {
    pub fn read(value: &'a [u8]) -> Result<Old<'a>, MachineError> {
        let (head, record) = value.split_first_chunk::<8>().ok_or_else(|| damaged("old", value))?;
        let record = (!record.is_empty()).then_some(record);
        Ok(Old { needed_before: i64::from_be_bytes(*head), record })
    }
}

/// The user key, encoded, and the revision of a key of `old`.
pub fn read_old_key(key: &[u8]) -> Result<(&[u8], i64), MachineError> {
    let (stem, tail) = key.split_last_chunk::<8>().ok_or_else(|| damaged("old", key))?;
    Ok((stem, i64::from_be_bytes(*tail)))
}

/// Writes the key of a key's change at a revision over `out`; with an empty `key`, where the revision begins.
pub fn rev_key(out: &mut Vec<u8>, revision: i64, key: &[u8]) {
    out.clear();
    put_u64(out, revision as u64);
    out.extend_from_slice(key);
}

/// Where a revision begins in `rev`.
pub fn rev_start(revision: i64) -> [u8; 8] {
    revision.to_be_bytes()
}

/// Writes a value of `rev` over `out`. A put has a record.
pub fn rev_value(out: &mut Vec<u8>, place: u32, previous: i64, record: Option<&[u8]>) {
    out.clear();
    out.push(if record.is_some() { REV_PUT } else { REV_DELETE });
    out.extend_from_slice(&place.to_be_bytes());
    put_u64(out, previous as u64);
    out.extend_from_slice(record.unwrap_or_default());
}

/// A pair of `rev`, read.
#[derive(Clone, Copy, Debug)]
pub struct Rev<'a> {
    pub revision: i64,
    pub key: &'a [u8],
    /// The order of changes within the revision.
    pub place: u32,
    /// The mod revision of the version that this change replaced; zero when there was none.
    pub previous: i64,
    /// What a put left; `None` for a delete.
    pub record: Option<&'a [u8]>,
}

impl<'a> Rev<'a> {
    pub fn read(key: &'a [u8], value: &'a [u8]) -> Result<Rev<'a>, MachineError> {
        let parts = || {
            let (revision, user_key) = key.split_first_chunk::<8>()?;
            let (kind, rest) = value.split_first()?;
            let (place, rest) = rest.split_first_chunk::<4>()?;
            let (previous, record) = rest.split_first_chunk::<8>()?;
            let record = match *kind {
                REV_PUT => Some(record),
                REV_DELETE if record.is_empty() => None,
                _ => return None,
            };
            Some(Rev {
                revision: i64::from_be_bytes(*revision),
                key: user_key,
                place: u32::from_be_bytes(*place),
                previous: i64::from_be_bytes(*previous),
                record,
            })
        };
        parts().ok_or_else(|| damaged("rev", key))
    }

    pub fn is_delete(&self) -> bool {
        self.record.is_none()
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
        Some(&version) if version != LAYOUT_VERSION => {
            let why = format!("the store has layout {version}, this program knows {LAYOUT_VERSION}");
            return Err(MachineError::TooNew(why));
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
    value.split_first_chunk::<8>().is_some_and(|(needed_before, _)| u64::from_be_bytes(*needed_before) <= watermark)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_kind_comes_back() {
        let mut key = Vec::new();
        old_key(&mut key, b"a\0b", 77);
        assert_eq!(read_old_key(&key).unwrap(), (&b"a\0\xFFb\0\x01"[..], 77));
        let mut value = Vec::new();
        old_value(&mut value, 9, Some(b"record"));
        let old = Old::read(&value).unwrap();
        assert_eq!((old.needed_before, old.record), (9, Some(&b"record"[..])));
        old_value(&mut value, 9, None);
        assert_eq!(Old::read(&value).unwrap().record, None);
        rev_key(&mut key, 9, b"user");
        for record in [None, Some(&b"record"[..])] {
            rev_value(&mut value, 3, 5, record);
            let rev = Rev::read(&key, &value).unwrap();
            assert_eq!((rev.revision, rev.key, rev.place, rev.previous), (9, &b"user"[..], 3, 5));
            assert_eq!((rev.record, rev.is_delete()), (record, record.is_none()));
        }
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
        assert!(read_old_key(&[1; 7]).is_err());
        assert!(Rev::read(&[0; 3], &[0; 20]).is_err());
        assert!(Rev::read(&rev_start(1), &[0; 12]).is_err());
        assert!(Rev::read(&rev_start(1), &[2; 13]).is_err());
        assert!(Lease::read(1, &[0; 15]).is_err());
        assert!(read_alarm_key(&[0; 12]).is_err());
        let mut state = state_value(&Mark::default(), 1);
        state[0] = 9;
        assert!(read_state(&state).unwrap_err().to_string().contains("layout 9"));
    }

    #[test]
    fn only_the_unreachable_is_droppable() {
        let mut value = Vec::new();
        old_value(&mut value, 5, Some(b"record"));
        assert!(old_is_droppable(b"", &value, 5));
        assert!(!old_is_droppable(b"", &value, 4));
    }
}
