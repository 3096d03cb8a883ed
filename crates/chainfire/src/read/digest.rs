//! HashKV: a checksum by which replicas compare their whole content at a revision, versions and deletions included.
//!
//! It covers what a reader may still reach, in an order that does not depend on where it lies: for each key in order,
//! its versions that were put at or before the revision and are live somewhere above the compacted one; then the
//! deletions since. Physical clean-up and later writes leave it as it is; a compaction changes it, which is why it is
//! only compared between replicas with the same compacted revision.

use consensus::MachineError;

use crate::machine::layout::{self, KV, OLD, Old, REV_DELETE, Rev};
use crate::machine::record::Record;
use crate::machine::source::Source;

/// A checksum and what it is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvHash {
    /// CRC-32C.
    pub hash: u32,
    /// The compacted revision it was made under; -1 when nothing was ever compacted.
    pub compacted: i64,
    /// The revision up to which was hashed.
    pub revision: i64,
}

pub fn hash_kv(source: &Source<'_>, compacted: i64, at: i64) -> Result<KvHash, MachineError> {
    let mut hash = 0;
    let mut add = |record: &[u8]| {
        hash = crc32c::crc32c_append(hash, &(record.len() as u64).to_le_bytes());
        hash = crc32c::crc32c_append(hash, record);
    };
    let mut live = source.walk(KV, &[], None);
    let mut old = source.walk(OLD, &[], None);
    while live.valid() || old.valid() {
        let old_first = old.valid() && {
            let record = Record::read(Old::read(old.value())?.record)?;
            !live.valid() || record.key <= live.key()
        };
        if old_first {
            let version = Old::read(old.value())?;
            if version.superseded_at > compacted && layout::old_key_revision(old.key())? <= at {
                add(version.record);
            }
            old.advance();
        } else {
            if Record::read(live.value())?.mod_revision <= at {
                add(live.value());
            }
            live.advance();
        }
    }
    live.status()?;
    old.status()?;
    let mut changes = source.changes(compacted.max(0));
    while changes.valid() {
        let change = Rev::read(changes.key(), changes.value())?;
        if change.revision > at {
            break;
        }
        if change.kind == REV_DELETE {
            add(changes.key());
            add(change.key);
        }
        changes.advance();
    }
    changes.status()?;
    Ok(KvHash { hash, compacted, revision: at })
}
