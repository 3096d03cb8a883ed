//! The Huffman code of header strings (RFC 7541, appendix B), decoding only: the few headers a server sends
//! are kept in the peer's table and cost one byte each, so packing them gains nothing.
//!
//! The code is canonical: within one length, codes follow the order of the symbols. So the lengths alone define it.
//! Decoding looks at the next nine bits, which settles every symbol that occurs in ordinary headers; longer codes are
//! found by comparing with the first code of each length.

use std::sync::LazyLock;

/// Decodes `input`, appending to `out`.
///
/// # Errors
/// `None` when the input holds the end-of-string symbol or ends in anything but less than a byte of ones.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let tables = &*TABLES;
    let mut bits: u64 = 0;
    let mut count: u32 = 0;
    let mut rest = input.iter();
    loop {
        while count <= 56 {
            let Some(&byte) = rest.next() else { break };
            bits = bits << 8 | u64::from(byte);
            count += 8;
        }
        if count == 0 {
            return Some(());
        }
        // The next 30 bits, filled up with ones: the padding of a well-formed string.
        let window = match count {
            30.. => (bits >> (count - 30)) as u32 & CODE_MASK,
            _ => ((bits << (30 - count)) as u32 | ((1 << (30 - count)) - 1)) & CODE_MASK,
        };
        let (symbol, length) = match tables.quick[(window >> (30 - QUICK_BITS)) as usize] {
            (symbol, length) if length > 0 => (symbol, u32::from(length)),
            _ => match tables.slow(window) {
                Some(found) => found,
                // All ones: padding, if what is left of it is shorter than a byte.
                None => return (count < 8).then_some(()),
            },
        };
        if length > count {
            return (count < 8 && window == CODE_MASK).then_some(());
        }
        out.push(symbol);
        count -= length;
        bits &= (1 << count) - 1;
    }
}

const QUICK_BITS: u32 = 9;
const LENGTH_MAX: usize = 30;
const CODE_MASK: u32 = (1 << LENGTH_MAX) - 1;

struct Tables {
    /// Symbol and length by the next nine bits; length zero where the code is longer.
    quick: [(u8, u8); 1 << QUICK_BITS],
    /// Symbols in the order of their codes.
    symbols: [u8; 256],
    /// For each length that occurs: the length, its first code moved to the left of 30 bits, the place of its first
    /// symbol, and how many symbols have it.
    lengths: Vec<(u32, u32, usize, usize)>,
}

impl Tables {
    fn slow(&self, window: u32) -> Option<(u8, u32)> {
        let &(length, first, place, symbols) = self.lengths.iter().rev().find(|&&(_, first, ..)| window >= first)?;
        let offset = ((window - first) >> (LENGTH_MAX as u32 - length)) as usize;
        (offset < symbols).then(|| (self.symbols[place + offset], length))
    }
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let mut tables = Tables { quick: [(0, 0); 1 << QUICK_BITS], symbols: [0; 256], lengths: Vec::new() };
    let (mut code, mut place) = (0u32, 0usize);
    for length in 1..=LENGTH_MAX as u32 {
        code <<= 1;
        let first = place;
        for symbol in (0..=255u8).filter(|&symbol| u32::from(LENGTHS[usize::from(symbol)]) == length) {
            if place == first {
                tables.lengths.push((length, code << (LENGTH_MAX as u32 - length), place, 0));
            }
            if length <= QUICK_BITS {
                let from = (code << (QUICK_BITS - length)) as usize;
                tables.quick[from..from + (1 << (QUICK_BITS - length))].fill((symbol, length as u8));
            }
            tables.symbols[place] = symbol;
            tables.lengths.last_mut().expect("pushed with the first symbol").3 += 1;
            place += 1;
            code += 1;
        }
    }
    tables
});

/// The length of each byte's code, in bits. End-of-string has 30, all ones.
#[rustfmt::skip]
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes by the same lengths, independently of the decoding tables.
    fn encode(input: &[u8]) -> Vec<u8> {
        let mut order: Vec<u8> = (0..=255).collect();
        order.sort_by_key(|&symbol| (LENGTHS[usize::from(symbol)], symbol));
        let mut codes = [0u32; 256];
        let mut code = 0u32;
        for pair in order.windows(2) {
            let [from, to] = [pair[0], pair[1]].map(|symbol| LENGTHS[usize::from(symbol)]);
            code = (code + 1) << (to - from);
            codes[usize::from(pair[1])] = code;
        }
        let mut bits: String = input
            .iter()
            .map(|&b| format!("{:0width$b}", codes[usize::from(b)], width = usize::from(LENGTHS[usize::from(b)])))
            .collect();
        while !bits.len().is_multiple_of(8) {
            bits.push('1');
        }
        bits.as_bytes()
            .chunks(8)
            .map(|byte| u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 2).unwrap())
            .collect()
    }

    fn decoded(input: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(input, &mut out).map(|()| out)
    }

    #[test]
    fn examples_of_the_rfc() {
        let hex = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&hex).unwrap(), b"www.example.com");
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).unwrap(), b"no-cache");
    }

    #[test]
    fn every_byte_and_every_pair_come_back() {
        for a in 0..=255u8 {
            for b in (0..=255u8).step_by(7) {
                assert_eq!(decoded(&encode(&[a, b, a])).unwrap(), [a, b, a]);
            }
        }
    }

    #[test]
    fn bad_padding_and_end_of_string_are_refused() {
        assert_eq!(decoded(&[0xff]), None, "eight bits of padding");
        assert_eq!(decoded(&[0xff; 4]), None, "end of string");
        assert_eq!(decoded(&[0b0000_0000]), None, "padding of zeroes: five bits make a '0', three are left over");
        assert_eq!(decoded(&[0b0000_0111]).unwrap(), b"0");
        assert_eq!(decoded(&[]).unwrap(), b"");
    }
}
