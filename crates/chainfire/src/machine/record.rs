//! A record: the encoded `mvccpb.KeyValue`, which is both how a version lies in the store and how it goes to a client.
//!
//! Records are written here with their fields in the order of their numbers and zero fields left out, so that equal
//! versions are equal bytes on every replica. Reading borrows; nothing is copied to look at a revision.

use bytes::{BufMut, Bytes};
use consensus::MachineError;

use super::layout::damaged;

/// A record's fields, borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record<'a> {
    pub key: &'a [u8],
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    pub value: &'a [u8],
    pub lease: i64,
}

impl<'a> Record<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<Record<'a>, MachineError> {
        parse(bytes).ok_or_else(|| damaged("record", bytes))
    }

    /// Appends the encoded form.
    pub fn write(&self, out: &mut impl BufMut) {
        bytes_field(out, 1, self.key);
        int_field(out, 2, self.create_revision);
        int_field(out, 3, self.mod_revision);
        int_field(out, 4, self.version);
        bytes_field(out, 5, self.value);
        int_field(out, 6, self.lease);
    }

    /// The encoded form.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.bytes_max());
        self.write(&mut out);
        out.into()
    }

    /// An upper bound of the encoded form's size.
    pub fn bytes_max(&self) -> usize {
        self.key.len() + self.value.len() + 6 + 2 * 5 + 4 * 10
    }
}

/// The key of a record, without a look at the rest: it is the first field.
pub fn key_of(record: &[u8]) -> Result<&[u8], MachineError> {
    let key = record.strip_prefix(&[0x0A]).and_then(take_varint).and_then(|(length, rest)| {
        let length = usize::try_from(length).ok()?;
        rest.get(..length)
    });
    key.ok_or_else(|| damaged("record", record))
}

/// The key of a record, as a part of the same memory.
pub fn shared_key(record: &Bytes) -> Result<Bytes, MachineError> {
    Ok(record.slice_ref(key_of(record)?))
}

/// Appends a protobuf varint.
pub fn varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The size of a protobuf varint.
pub fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends an integer field (of a number below 16), unless it is zero.
pub fn int_field(out: &mut impl BufMut, number: u8, value: i64) {
    if value != 0 {
        out.put_u8(number << 3);
        varint(out, value as u64);
    }
}

/// Appends a bytes field (of a number below 16), unless it is empty.
pub fn bytes_field(out: &mut impl BufMut, number: u8, value: &[u8]) {
    if !value.is_empty() {
        message_field(out, number, value);
    }
}

/// Appends an embedded message (of a field number below 16), also when it is empty.
pub fn message_field(out: &mut impl BufMut, number: u8, value: &[u8]) {
    out.put_u8(number << 3 | 2);
    varint(out, value.len() as u64);
    out.put_slice(value);
}

/// Splits a varint off the front.
pub fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (place, byte) in bytes.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * place);
        if byte & 0x80 == 0 {
            return Some((value, &bytes[place + 1..]));
        }
    }
    None
}

fn parse(mut rest: &[u8]) -> Option<Record<'_>> {
    let mut record = Record::default();
    while let Some((&tag, after)) = rest.split_first() {
        let (number, after) = take_varint(after)?;
        rest = after;
        match tag {
            0x0A | 0x2A => {
                let (part, after) = rest.split_at_checked(usize::try_from(number).ok()?)?;
                rest = after;
                if tag == 0x0A {
                    record.key = part;
                } else {
                    record.value = part;
                }
            }
            0x10 => record.create_revision = number as i64,
            0x18 => record.mod_revision = number as i64,
            0x20 => record.version = number as i64,
            0x30 => record.lease = number as i64,
            _ => return None,
        }
    }
    Some(record)
}

#[cfg(test)]
mod tests {
    use base::Rng;
    use prost::Message as _;
    use proto::mvccpb::KeyValue;

    use super::*;

    #[test]
    fn records_are_protobuf() {
        let mut rng = Rng::new(3);
        for _ in 0..5_000 {
            let bytes = |rng: &mut Rng| -> Vec<u8> {
                let length = [0, 1, 5, 127, 128, 300][rng.below(6) as usize];
                (0..length).map(|_| rng.next_u64() as u8).collect()
            };
            let number = |rng: &mut Rng| {
                let shift = rng.below(64);
                if rng.percent(20) { 0 } else { (rng.next_u64() >> shift) as i64 }
            };
            let (key, value) = (bytes(&mut rng), bytes(&mut rng));
            let record = Record {
                key: &key,
                create_revision: number(&mut rng),
                mod_revision: number(&mut rng),
                version: number(&mut rng),
                value: &value,
                lease: number(&mut rng),
            };
            let mut ours = Vec::new();
            record.write(&mut ours);
            assert!(ours.len() <= record.bytes_max());
            assert_eq!(key_of(&ours).ok(), (!key.is_empty()).then_some(&key[..]));
            let theirs = KeyValue {
                key: key.clone().into(),
                create_revision: record.create_revision,
                mod_revision: record.mod_revision,
                version: record.version,
                value: value.clone().into(),
                lease: record.lease,
            };
            assert_eq!(ours, theirs.encode_to_vec());
            assert_eq!(Record::read(&ours).unwrap(), record);
        }
    }

    #[test]
    fn noise_is_damage() {
        let mut rng = Rng::new(4);
        for _ in 0..50_000 {
            let noise: Vec<u8> = (0..rng.below(30)).map(|_| rng.next_u64() as u8).collect();
            let _ = Record::read(&noise);
        }
        assert!(Record::read(&[0x0A, 5, 1]).is_err());
        assert!(Record::read(&[0xFF; 12]).is_err());
    }

    #[test]
    fn varint_sizes() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::MAX >> 1, u64::MAX] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(take_varint(&out), Some((value, &[][..])));
        }
    }
}
