//! Header compression (RFC 7541), as much of it as a gRPC server needs.
//!
//! Decoding is complete. A client sends the same headers with every call, so after the first call a block is a handful
//! of indexes into the dynamic table, whose entries carry what their name means ([`Name`]): looking at a request
//! costs neither an allocation nor a comparison of strings.
//!
//! Encoding puts two fields, `content-type: application/grpc` and `grpc-status: 0`, into the peer's table and sends
//! everything else as plain literals.
//!
//! Left out: Huffman coding of what is sent, and a table size of our own choosing (the default of 4,096 bytes
//! stands).

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::Bytes;

use super::huffman;
use crate::Status;
use crate::status::NOTHING_DONE;

/// What we let the peer's encoder use: the protocol's default.
const TABLE_BYTES_MAX: usize = 4096;
/// Every field counts for this much more than its text.
const FIELD_OVERHEAD_BYTES: usize = 32;

/// A header field.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: Bytes,
    pub(super) value: Bytes,
    pub(super) meaning: Name,
}

/// What a field's name says, settled once when the field comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Method,
    Path,
    Scheme,
    Authority,
    ContentType,
    GrpcTimeout,
    GrpcEncoding,
    /// The protocol's business, of no interest to a call.
    Ignored,
    /// The caller's own.
    Metadata,
    /// Must not occur in a request.
    Malformed,
}

impl Name {
    fn of(name: &[u8]) -> Name {
        match name {
            b":method" => Name::Method,
            b":path" => Name::Path,
            b":scheme" => Name::Scheme,
            b":authority" => Name::Authority,
            b"content-type" => Name::ContentType,
            b"grpc-timeout" => Name::GrpcTimeout,
            b"grpc-encoding" => Name::GrpcEncoding,
            b"te" | b"user-agent" | b"accept-encoding" | b"content-length" => Name::Ignored,
            b"" | b"connection" | b"transfer-encoding" | b"keep-alive" | b"proxy-connection" | b"upgrade" => {
                Name::Malformed
            }
            _ if name.starts_with(b"grpc-") => Name::Ignored,
            _ if name.iter().all(|&byte| byte > b' ' && byte < 0x7f && byte != b':' && !byte.is_ascii_uppercase()) => {
                Name::Metadata
            }
            _ => Name::Malformed,
        }
    }
}

/// The block cannot be understood. The table is out of step with the peer's: the connection must end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BadBlock;

/// The peer's table, and how to read blocks with it.
#[derive(Default)]
pub(super) struct Decoder {
    /// Newest first.
    table: VecDeque<Field>,
    table_bytes: usize,
    table_bytes_max: Option<usize>,
}

impl Decoder {
    /// Hands the fields of a block to `sink` in order.
    ///
    /// # Errors
    /// The block is malformed.
    pub(super) fn decode(&mut self, block: &[u8], sink: &mut impl FnMut(&Field)) -> Result<(), BadBlock> {
        let mut input = block;
        let mut first = true;
        while let Some(&byte) = input.first() {
            if byte & 0x80 != 0 {
                let index = integer(&mut input, 7)?;
                sink(self.at(index)?);
            } else if byte & 0x40 != 0 {
                let field = self.literal(&mut input, 6)?;
                sink(&field);
                self.insert(field);
            } else if byte & 0x20 != 0 {
                let size = integer(&mut input, 5)?;
                if !first || size > TABLE_BYTES_MAX {
                    return Err(BadBlock);
                }
                self.table_bytes_max = Some(size);
                self.evict(size);
                continue;
            } else {
                sink(&self.literal(&mut input, 4)?);
            }
            first = false;
        }
        Ok(())
    }

    fn literal(&self, input: &mut &[u8], prefix_bits: u32) -> Result<Field, BadBlock> {
        let (name, meaning) = match integer(input, prefix_bits)? {
            0 => {
                let name = string(input)?;
                let meaning = Name::of(&name);
                (name, meaning)
            }
            index => {
                let known = self.at(index)?;
                (known.name.clone(), known.meaning)
            }
        };
        Ok(Field { name, value: string(input)?, meaning })
    }

    fn at(&self, index: usize) -> Result<&Field, BadBlock> {
        let index = index.checked_sub(1).ok_or(BadBlock)?;
        match STATIC.get(index) {
            Some(field) => Ok(field),
            None => self.table.get(index - STATIC.len()).ok_or(BadBlock),
        }
    }

    fn insert(&mut self, field: Field) {
        let bytes = field_bytes(&field);
        let bytes_max = self.table_bytes_max.unwrap_or(TABLE_BYTES_MAX);
        self.evict(bytes_max.saturating_sub(bytes));
        if bytes <= bytes_max {
            self.table_bytes += bytes;
            self.table.push_front(field);
        }
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.table_bytes > bytes_max {
            let oldest = self.table.pop_back().expect("an empty table has no bytes");
            self.table_bytes -= field_bytes(&oldest);
        }
    }
}

/// What a field counts for in limits.
pub(super) fn field_bytes(field: &Field) -> usize {
    field.name.len() + field.value.len() + FIELD_OVERHEAD_BYTES
}

fn integer(input: &mut &[u8], prefix_bits: u32) -> Result<usize, BadBlock> {
    let mask = (1usize << prefix_bits) - 1;
    let (&first, mut rest) = input.split_first().ok_or(BadBlock)?;
    let mut value = usize::from(first) & mask;
    if value == mask {
        for shift in (0..28).step_by(7) {
            let (&byte, after) = rest.split_first().ok_or(BadBlock)?;
            rest = after;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *input = rest;
                return Ok(value);
            }
        }
        return Err(BadBlock);
    }
    *input = rest;
    Ok(value)
}

fn string(input: &mut &[u8]) -> Result<Bytes, BadBlock> {
    let packed = input.first().ok_or(BadBlock)? & 0x80 != 0;
    let length = integer(input, 7)?;
    let (text, rest) = input.split_at_checked(length).ok_or(BadBlock)?;
    *input = rest;
    if !packed {
        return Ok(Bytes::copy_from_slice(text));
    }
    let mut out = Vec::with_capacity(length * 8 / 5);
    huffman::decode(text, &mut out).ok_or(BadBlock)?;
    Ok(Bytes::from(out))
}

/// What lies in the peer's decoding table because we put it there.
#[derive(Default)]
pub(super) struct Encoder {
    /// In the order they were inserted.
    inserted: Vec<Known>,
    /// The peer wants a smaller table: to be said at the start of the next block.
    resize: Option<usize>,
    /// The peer's table is too small to be worth the bookkeeping.
    plain: bool,
}

/// Fields that are worth a place in the peer's table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    ContentTypeGrpc,
    GrpcStatusOk,
}

impl Encoder {
    /// The peer's `SETTINGS_HEADER_TABLE_SIZE`.
    pub(super) fn set_table_bytes_max(&mut self, bytes: usize) {
        if bytes < TABLE_BYTES_MAX {
            self.plain = bytes < 256;
            self.resize = Some(if self.plain { 0 } else { bytes });
            if self.plain {
                self.inserted.clear();
            }
        }
    }

    /// The head of every answer to a gRPC call.
    pub(super) fn response_head(&mut self, out: &mut Vec<u8>) {
        self.start(out);
        out.push(0x80 | 8); // :status: 200
        self.known(Known::ContentTypeGrpc, out);
    }

    pub(super) fn trailers_ok(&mut self, out: &mut Vec<u8>) {
        self.start(out);
        self.known(Known::GrpcStatusOk, out);
    }

    /// Trailers of a failed call; with `alone`, the head comes with them.
    pub(super) fn trailers_failed(&mut self, alone: bool, status: &Status, text_bytes_max: usize, out: &mut Vec<u8>) {
        if alone {
            self.response_head(out);
        } else {
            self.start(out);
        }
        literal(b"grpc-status", status.code.number().to_string().as_bytes(), out);
        let mut text = status.encoded_message();
        text.truncate(text_bytes_max);
        if !text.is_empty() {
            literal(b"grpc-message", &text, out);
        }
        if status.nothing_done {
            literal(NOTHING_DONE.as_bytes(), b"1", out);
        }
    }

    /// The head of a plain HTTP answer.
    pub(super) fn http_head<'a>(
        &mut self,
        status: u16,
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        out: &mut Vec<u8>,
    ) {
        self.start(out);
        literal(b":status", status.to_string().as_bytes(), out);
        for (name, value) in fields {
            literal(name, value, out);
        }
    }

    fn start(&mut self, out: &mut Vec<u8>) {
        if let Some(bytes) = self.resize.take() {
            put_integer(bytes, 5, 0x20, out);
        }
    }

    fn known(&mut self, field: Known, out: &mut Vec<u8>) {
        if let Some(place) = self.inserted.iter().position(|&known| known == field) {
            return put_integer(STATIC.len() + self.inserted.len() - place, 7, 0x80, out);
        }
        let (name, value): (&[u8], &[u8]) = match field {
            Known::ContentTypeGrpc => (b"content-type", b"application/grpc"),
            Known::GrpcStatusOk => (b"grpc-status", b"0"),
        };
        if self.plain {
            return literal(name, value, out);
        }
        self.inserted.push(field);
        out.push(0x40);
        put_string(name, out);
        put_string(value, out);
    }
}

fn literal(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(0);
    put_string(name, out);
    put_string(value, out);
}

fn put_string(text: &[u8], out: &mut Vec<u8>) {
    put_integer(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}

fn put_integer(mut value: usize, prefix_bits: u32, flags: u8, out: &mut Vec<u8>) {
    let mask = (1usize << prefix_bits) - 1;
    if value < mask {
        return out.push(flags | value as u8);
    }
    out.push(flags | mask as u8);
    value -= mask;
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

static STATIC: LazyLock<Vec<Field>> = LazyLock::new(|| {
    STATIC_TEXTS
        .iter()
        .map(|&(name, value)| Field {
            name: Bytes::from_static(name.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
            meaning: Name::of(name.as_bytes()),
        })
        .collect()
});

/// RFC 7541, appendix A.
#[rustfmt::skip]
const STATIC_TEXTS: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, BadBlock> {
        let mut fields = Vec::new();
        decoder.decode(block, &mut |field| {
            fields.push(format!("{}: {}", str(&field.name), str(&field.value)));
        })?;
        Ok(fields)
    }

    fn str(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn requests_of_the_rfc_with_huffman_coding() {
        let mut decoder = Decoder::default();
        let first =
            [0x82, 0x86, 0x84, 0x41, 0x8c, 0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        let common = [":method: GET", ":scheme: http", ":path: /", ":authority: www.example.com"];
        assert_eq!(decoded(&mut decoder, &first).unwrap(), common);
        let second = [0x82, 0x86, 0x84, 0xbe, 0x58, 0x86, 0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
        assert_eq!(decoded(&mut decoder, &second).unwrap()[3..], [common[3], "cache-control: no-cache"]);
        assert_eq!(decoder.table_bytes, 110);
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
        for round in 0..3 {
            if round == 2 {
                encoder.set_table_bytes_max(0);
            }
            let mut block = Vec::new();
            encoder.response_head(&mut block);
            let head = decoded(&mut decoder, &block).unwrap();
            assert_eq!(head, [":status: 200", "content-type: application/grpc"]);
            block.clear();
            encoder.trailers_ok(&mut block);
            assert_eq!(block.len() == 1, round == 1, "the second time, one byte does");
            assert_eq!(decoded(&mut decoder, &block).unwrap(), ["grpc-status: 0"]);
            block.clear();
            let failed = Status::unimplemented("x".repeat(300));
            encoder.trailers_failed(true, &failed, 200, &mut block);
            let fields = decoded(&mut decoder, &block).unwrap();
            assert_eq!(fields[2..], ["grpc-status: 12".to_owned(), format!("grpc-message: {}", "x".repeat(200))]);
            block.clear();
            encoder.trailers_failed(false, &Status::unavailable("").with_nothing_done(), 200, &mut block);
            assert_eq!(decoded(&mut decoder, &block).unwrap(), ["grpc-status: 14", "centra-nothing-done: 1"]);
        }
    }

    #[test]
    fn the_table_stays_within_its_bounds() {
        let mut decoder = Decoder::default();
        for n in 0..1000u32 {
            let mut block = vec![0x40];
            put_string(format!("name-{n}").as_bytes(), &mut block);
            put_string(&[b'v'; 100], &mut block);
            decoded(&mut decoder, &block).unwrap();
        }
        assert!(decoder.table_bytes <= TABLE_BYTES_MAX && decoder.table.len() > 20);
        decoded(&mut decoder, &[0x20]).unwrap();
        assert!(decoder.table.is_empty());
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for block in [&[0x80][..], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &[0xbe], &[0x40, 0x05, b'a'], &[0x82, 0x20]] {
            assert_eq!(decoded(&mut Decoder::default(), block), Err(BadBlock), "{block:x?}");
        }
        let mut state = 1u64;
        for _ in 0..20_000 {
            let mut block = Vec::new();
            for _ in 0..24 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                block.push((state >> 56) as u8);
            }
            // Whatever comes of it, it does not panic.
            let _ = Decoder::default().decode(&block, &mut |_| ());
        }
    }

    #[test]
    fn names_are_judged() {
        assert_eq!(Name::of(b"token"), Name::Metadata);
        for bad in [&b"Token"[..], b"a b", b":other", b"connection", b""] {
            assert_eq!(Name::of(bad), Name::Malformed);
        }
    }
}
