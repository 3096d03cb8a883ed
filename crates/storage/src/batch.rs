//! A write batch: puts and deletes over column families, kept as one run of bytes, so that it is cheap to
//! fill, to hash (the rolling hash covers exactly these bytes) and to hand to either engine.
//!
//! | bytes | field |
//! |---|---|
//! | 1 | kind: 1 put, 2 delete, 3 delete range |
//! | 1 | column family |
//! | 4 | key length (little-endian) |
//! | 4 | value length; for a range, the length of its exclusive end |
//! | … | key, then value |

use crate::engine::FamilyId;

const HEADER: usize = 10;

/// One operation of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    Put {
        family: FamilyId,
        key: &'a [u8],
        value: &'a [u8],
    },
    Delete {
        family: FamilyId,
        key: &'a [u8],
    },
    /// Deletes `from..to`.
    DeleteRange {
        family: FamilyId,
        from: &'a [u8],
        to: &'a [u8],
    },
}

/// Operations that take effect together, in order.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    bytes: Vec<u8>,
    count: usize,
}

impl WriteBatch {
    pub fn new() -> WriteBatch {
        WriteBatch::default()
    }

    pub fn put(&mut self, family: FamilyId, key: &[u8], value: &[u8]) {
        self.push(1, family, key, value);
    }

    pub fn delete(&mut self, family: FamilyId, key: &[u8]) {
        self.push(2, family, key, &[]);
    }

    pub fn delete_range(&mut self, family: FamilyId, from: &[u8], to: &[u8]) {
        self.push(3, family, from, to);
    }

    /// Adds all of another batch behind what is there.
    pub fn append(&mut self, other: &WriteBatch) {
        self.bytes.extend_from_slice(&other.bytes);
        self.count += other.count;
    }

    /// The number of operations.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The serialized operations so far; a suffix of it, from an earlier `bytes().len()` on, is what was added
    /// since.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }

    pub fn ops(&self) -> impl Iterator<Item = Op<'_>> {
        let mut rest = self.bytes.as_slice();
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let (header, body) = rest.split_at(HEADER);
            let family = FamilyId(header[1]);
            let length = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes")) as usize;
            let (key, body) = body.split_at(length(2));
            let (value, body) = body.split_at(length(6));
            rest = body;
            Some(match header[0] {
                1 => Op::Put { family, key, value },
                2 => Op::Delete { family, key },
                3 => Op::DeleteRange { family, from: key, to: value },
                kind => unreachable!("a batch is only ever written here, yet holds kind {kind}"),
            })
        })
    }

    fn push(&mut self, kind: u8, family: FamilyId, key: &[u8], value: &[u8]) {
        let length = |part: &[u8]| u32::try_from(part.len()).expect("keys and values stay far below 4 GiB");
        self.bytes.reserve(HEADER + key.len() + value.len());
        self.bytes.extend_from_slice(&[kind, family.0]);
        self.bytes.extend_from_slice(&length(key).to_le_bytes());
        self.bytes.extend_from_slice(&length(value).to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_in_order() {
        let mut batch = WriteBatch::new();
        batch.put(FamilyId(1), b"k", b"v");
        batch.delete(FamilyId(2), b"");
        batch.delete_range(FamilyId(0), b"a", b"z");
        assert_eq!(batch.len(), 3);
        assert_eq!(
            batch.ops().collect::<Vec<_>>(),
            [
                Op::Put { family: FamilyId(1), key: b"k", value: b"v" },
                Op::Delete { family: FamilyId(2), key: b"" },
                Op::DeleteRange { family: FamilyId(0), from: b"a", to: b"z" },
            ]
        );
    }
}
