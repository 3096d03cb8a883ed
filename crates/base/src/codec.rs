//! Ordered key codecs: bytes and numbers written so that comparing the encodings byte by byte gives the same
//! order as comparing the values.
//!
//! A byte string is escaped (`00` becomes `00 FF`) and ended by `00 01`; what follows never disturbs its
//! order, and no encoding is a prefix of another. A number is 8 bytes big-endian.

/// Appends `raw`, escaped and ended.
pub fn put_ordered(out: &mut Vec<u8>, raw: &[u8]) {
    out.reserve(raw.len() + 2);
    let mut rest = raw;
    while let Some(zero) = rest.iter().position(|byte| *byte == 0) {
        out.extend_from_slice(&rest[..=zero]);
        out.push(0xFF);
        rest = &rest[zero + 1..];
    }
    out.extend_from_slice(rest);
    out.extend_from_slice(&[0, 1]);
}

/// Splits an encoding into the byte string at its front and what follows; `None` when it is malformed.
pub fn take_ordered(encoded: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut out = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    loop {
        let zero = rest.iter().position(|byte| *byte == 0)?;
        out.extend_from_slice(&rest[..zero]);
        match rest.get(zero + 1)? {
            0xFF => out.push(0),
            1 => return Some((out, &rest[zero + 2..])),
            _ => return None,
        }
        rest = &rest[zero + 2..];
    }
}

/// Appends a number in big-endian order.
pub fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_be_bytes());
}

/// Splits a big-endian number off the front; `None` when fewer than 8 bytes are left.
pub fn take_u64(encoded: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = encoded.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*head), rest))
}

/// The smallest key greater than every key that starts with `prefix`; `None` when there is none.
pub fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xFF)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn ordered_bytes_round_trip_and_keep_their_order() {
        let mut rng = Rng::new(1);
        let word = |rng: &mut Rng| -> Vec<u8> {
            (0..rng.below(5)).map(|_| [0, 1, 2, 0xFE, 0xFF][rng.below(5) as usize]).collect()
        };
        for _ in 0..20_000 {
            let (a, b) = (word(&mut rng), word(&mut rng));
            let encode = |raw: &[u8]| {
                let mut out = Vec::new();
                put_ordered(&mut out, raw);
                put_u64(&mut out, 9);
                out
            };
            let (ea, eb) = (encode(&a), encode(&b));
            assert_eq!(a.cmp(&b), ea.cmp(&eb), "{a:?} {b:?}");
            let (back, rest) = take_ordered(&ea).unwrap();
            assert_eq!(back, a);
            assert_eq!(take_u64(rest), Some((9, &[][..])));
        }
        assert_eq!(take_ordered(&[0]), None);
        assert_eq!(take_ordered(&[0, 7]), None);
        assert_eq!(take_ordered(b"abc"), None);
    }

    #[test]
    fn prefix_end_is_the_next_sibling() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
