//! HashKV: a checksum by which replicas compare their whole content at a revision, versions and deletions included.
//!
//! It covers what a reader may still reach, in an order that does not depend on where it lies: the keys as they were at
//! the compacted revision, then every change since. Physical clean-up and later writes leave it as it is; a compaction
//! changes it, which is why it is only compared between replicas with the same compacted revision.

use consensus::MachineError;

use crate::machine::layout::Rev;
use crate::machine::source::{Source, Span};

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

/// A checksum of all keys as they were at a revision, wherever they lie, and of [`hash_kv`]. Of a key that has not changed
/// since, it covers what a reader of the present is given.
pub fn digest(source: &Source<'_>, compacted: i64, at: i64) -> Result<u64, MachineError> {
    let mut keys = 0;
    source.visit(&Span::Many(&[], None), Some(at), &mut |record| {
        keys = crc32c::crc32c_append(keys, &(record.len() as u64).to_le_bytes());
        keys = crc32c::crc32c_append(keys, record);
        Ok(true)
    })?;
    let history = hash_kv(source, compacted, at)?.hash;
    Ok(u64::from(keys) << 32 | u64::from(history))
}

pub fn hash_kv(source: &Source<'_>, compacted: i64, at: i64) -> Result<KvHash, MachineError> {
    let mut hash = 0;
    let mut add = |record: &[u8]| {
        hash = crc32c::crc32c_append(hash, &(record.len() as u64).to_le_bytes());
        hash = crc32c::crc32c_append(hash, record);
    };
    if compacted > 0 {
        source.visit(&Span::Many(&[], None), Some(compacted), &mut |record| {
            add(record);
            Ok(true)
        })?;
    }
    let mut changes = source.changes(compacted.max(0) + 1);
    while changes.valid() {
        if Rev::read(changes.key(), changes.value())?.revision > at {
            break;
        }
        add(changes.key());
        add(changes.value());
        changes.advance();
    }
    changes.status()?;
    Ok(KvHash { hash, compacted, revision: at })
}
