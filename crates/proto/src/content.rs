//! Whether the pairs of a backup make sense: what can be said of them without restoring them.
//!
//! The digests of a stream ([`crate::snapshot`]) say that it is what the server sent. This says that what the server sent
//! can be used: every record decodes and stands under its own key, no revision lies beyond the header's, the counts that
//! are stored fit what is there, every attachment to a lease has its key, and the changes of an incremental backup follow
//! on one another without a gap. Memory stays the same whatever the size, so of the links between versions only their
//! direction is looked at; replaying changes onto a state, as a restore does, checks each of them.
//!
//! | family | key | value |
//! |---|---|---|
//! | 0 `kv` | user key | the encoded `mvccpb.KeyValue` |
//! | 1 `old` | escaped user key ended by `00 01`, 8 revision | 8 revision from which on nobody needs it, then a record or nothing |
//! | 2 `rev` | 8 revision, user key | 1 kind (0 put, 1 delete), 4 place, 8 revision of the version before, then for a put its record |
//! | 3 `meta` | `a` alarm, `b` count, `c` compacted, `g` swept, `k` attachment, `l` lease, `m` state, `n` membership | see `chainfire/src/machine/layout.rs` |
//!
//! The layout is the state machine's; a test there (`tests/machine/backups.rs`) holds the two together.

use prost::Message as _;

use crate::mvccpb::KeyValue;
use crate::snapshot::{BadSnapshot, Header, Pair};

/// How many families there are.
pub const FAMILIES: u8 = 4;

const KV: u8 = 0;
const OLD: u8 = 1;
const REV: u8 = 2;
const META: u8 = 3;
const STATE_BYTES: usize = 1 + 24 + 8;

/// What was found, and by the end must fit together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub keys: u64,
    /// Superseded versions and signs that lie outside of the history.
    pub old: u64,
    /// Changes in the history.
    pub changes: u64,
    pub leases: u64,
    /// Keys that hang on leases.
    pub attached: u64,
    /// The revision below which the history is gone; `None` in changes and where nothing was compacted.
    pub compacted: Option<i64>,
}

/// Looks at every pair of a stream as it comes.
#[derive(Debug, Default)]
pub struct Check {
    counts: Counts,
    /// Live keys with a lease.
    leased: u64,
    /// Live keys as the stored counts have them.
    counted: u64,
    /// The revision of the last change.
    last_change: i64,
    has_state: bool,
}

impl Check {
    /// # Errors
    /// The pair makes no sense in the stream that `header` opened.
    pub fn pair(&mut self, header: &Header, pair: Pair<'_>) -> Result<(), BadSnapshot> {
        let fine = match (pair.family, header.since) {
            (KV, None) => self.live(header, pair),
            (OLD, None) => self.old(header, pair),
            (REV, since) => self.change(header, since, pair),
            (META, None) => self.meta(header, pair),
            (META, Some(_)) if pair.key.first() == Some(&b'l') => self.meta(header, pair),
            _ => None,
        };
        fine.ok_or_else(|| {
            let key: String = pair.key.iter().take(48).flat_map(|byte| byte.escape_ascii()).map(char::from).collect();
            BadSnapshot(format!("a pair of family {} makes no sense: key {key}", pair.family))
        })
    }

    /// # Errors
    /// The pairs, each of which made sense, contradict one another.
    pub fn finish(self, header: &Header) -> Result<Counts, BadSnapshot> {
        let why = if header.since.is_some_and(|since| self.last_change.max(since) != header.revision) {
            "changes are missing at its end"
        } else if header.since.is_none() && !self.has_state && header.raft_index != 0 {
            "it does not say where it stands"
        } else if header.since.is_none() && self.counted != self.counts.keys {
            "its keys are not as many as it counts"
        } else if header.since.is_none() && self.leased != self.counts.attached {
            "keys and leases contradict each other"
        } else {
            return Ok(self.counts);
        };
        Err(BadSnapshot(why.to_owned()))
    }

    fn live(&mut self, header: &Header, pair: Pair<'_>) -> Option<()> {
        let record = record(pair.value, pair.key)?;
        self.counts.keys += 1;
        self.leased += u64::from(record.lease != 0);
        (record.mod_revision <= header.revision).then_some(())
    }

    fn old(&mut self, header: &Header, pair: Pair<'_>) -> Option<()> {
        let (stem, revision) = pair.key.split_last_chunk::<8>()?;
        let (needed_before, rest) = pair.value.split_first_chunk::<8>()?;
        let (revision, needed_before) = (i64::from_be_bytes(*revision), i64::from_be_bytes(*needed_before));
        self.counts.old += 1;
        if !stem.ends_with(&[0, 1]) || revision > header.revision || needed_before < revision {
            return None;
        }
        let fits = rest.is_empty() || KeyValue::decode(rest).is_ok_and(|record| record.mod_revision == revision);
        fits.then_some(())
    }

    fn change(&mut self, header: &Header, since: Option<i64>, pair: Pair<'_>) -> Option<()> {
        let (revision, key) = pair.key.split_first_chunk::<8>()?;
        let (kind, rest) = pair.value.split_first()?;
        let (_place, rest) = rest.split_first_chunk::<4>()?;
        let (previous, rest) = rest.split_first_chunk::<8>()?;
        let (revision, previous) = (i64::from_be_bytes(*revision), i64::from_be_bytes(*previous));
        let last = since.map_or(self.last_change, |since| self.last_change.max(since));
        // Every revision changed something. A whole state's history may begin anywhere.
        let follows = (revision == last && self.counts.changes > 0)
            || Some(revision) == last.checked_add(1)
            || (since.is_none() && self.counts.changes == 0);
        self.counts.changes += 1;
        self.last_change = revision;
        if !follows || revision > header.revision || !(0..revision).contains(&previous) || key.is_empty() {
            return None;
        }
        let fits = match kind {
            0 => record(rest, key).is_some_and(|record| record.mod_revision == revision),
            1 => rest.is_empty(),
            _ => false,
        };
        fits.then_some(())
    }

    fn meta(&mut self, header: &Header, pair: Pair<'_>) -> Option<()> {
        let Pair { key, value, .. } = pair;
        let fits = match (*key.first()?, key.len(), value.len()) {
            (b'a', 13, 0) | (b'g', 1, 8) => true,
            (b'b', _, 4) => {
                self.counted += u64::from(u32::from_le_bytes(value.try_into().ok()?));
                true
            }
            (b'c', 1, 8) => {
                let compacted = i64::from_le_bytes(value.try_into().ok()?);
                self.counts.compacted = Some(compacted);
                compacted <= header.revision
            }
            (b'k', 10.., 0) => {
                self.counts.attached += 1;
                true
            }
            (b'l', 9, 16) => {
                self.counts.leases += 1;
                true
            }
            (b'm', 1, STATE_BYTES) => {
                self.has_state = true;
                let mark = [header.raft_index, header.raft_term, header.hash].map(u64::to_le_bytes).concat();
                value[1..25] == mark && value[25..] == header.revision.to_le_bytes()
            }
            (b'n', 1, _) => value == &header.membership[..],
            _ => false,
        };
        fits.then_some(())
    }
}

/// A record that stands under its own key.
fn record(bytes: &[u8], key: &[u8]) -> Option<KeyValue> {
    let record = KeyValue::decode(bytes).ok()?;
    let KeyValue { create_revision, mod_revision, version, .. } = record;
    let fits = record.key == key && !key.is_empty() && version > 0 && create_revision > 0;
    (fits && create_revision <= mod_revision).then_some(record)
}
