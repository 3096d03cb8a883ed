//! What a stream brings in: the head of the request, and messages cut out of DATA frames.
//!
//! A gRPC message is one byte (compressed or not), four bytes of length and the message. Messages are copied out of the
//! read buffer, once: a shared slice would keep the whole buffer alive as long as the message lives.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::hpack::{Field, Name, field_bytes};
use crate::{Code, Status};

/// A request's header fields, sorted by what they mean.
#[derive(Default)]
pub(super) struct RequestHead {
    pub(super) method: Option<Bytes>,
    pub(super) path: Option<Bytes>,
    scheme: bool,
    pub(super) authority: Option<Bytes>,
    pub(super) content_type: Option<Bytes>,
    pub(super) timeout: Option<Result<Duration, BadTimeout>>,
    /// The caller compresses with this.
    pub(super) encoding: Option<Bytes>,
    pub(super) metadata: Vec<(Bytes, Bytes)>,
    bytes: usize,
    malformed: bool,
    regular_seen: bool,
}

/// `grpc-timeout` is not what the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadTimeout;

impl RequestHead {
    pub(super) fn add(&mut self, field: &Field) {
        self.bytes += field_bytes(field);
        let value = || field.value.clone();
        let pseudo = matches!(field.meaning, Name::Method | Name::Path | Name::Scheme | Name::Authority);
        self.malformed |= pseudo && self.regular_seen;
        self.regular_seen |= !pseudo;
        let repeated = match field.meaning {
            Name::Method => self.method.replace(value()).is_some(),
            Name::Path => self.path.replace(value()).is_some(),
            Name::Scheme => std::mem::replace(&mut self.scheme, true),
            Name::Authority => self.authority.replace(value()).is_some(),
            Name::ContentType => self.content_type.replace(value()).is_some(),
            Name::GrpcTimeout => self.timeout.replace(timeout(&field.value)).is_some(),
            Name::GrpcEncoding => {
                if field.value != "identity" {
                    self.encoding = Some(value());
                }
                false
            }
            Name::Ignored => false,
            Name::Metadata => {
                self.metadata.push((field.name.clone(), value()));
                false
            }
            Name::Malformed => true,
        };
        self.malformed |= repeated;
    }

    /// What the fields count for in the limit on their size.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_well_formed(&self) -> bool {
        !self.malformed && self.method.is_some() && self.path.is_some() && self.scheme
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.content_type.as_ref().is_some_and(|kind| {
            kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        })
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
fn timeout(text: &[u8]) -> Result<Duration, BadTimeout> {
    let (unit, digits) = text.split_last().ok_or(BadTimeout)?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(BadTimeout);
    }
    let count = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Ok(Duration::from_secs(count * 3600)),
        b'M' => Ok(Duration::from_secs(count * 60)),
        b'S' => Ok(Duration::from_secs(count)),
        b'm' => Ok(Duration::from_millis(count)),
        b'u' => Ok(Duration::from_micros(count)),
        b'n' => Ok(Duration::from_nanos(count)),
        _ => Err(BadTimeout),
    }
}

/// When a call must have ended.
pub(super) fn deadline(now: Instant, timeout: Duration) -> Option<Instant> {
    now.checked_add(timeout)
}

const PREFIX_BYTES: usize = 5;
/// Room made at once for a message that is announced but not there.
const ROOM_BYTES_MAX: usize = 64 << 10;

/// Cuts messages out of a stream's bytes.
#[derive(Default)]
pub(super) struct Assembler {
    prefix: [u8; PREFIX_BYTES],
    prefix_filled: usize,
    body: Vec<u8>,
}

impl Assembler {
    /// Takes the next bytes of the stream and hands over each message that they complete.
    ///
    /// # Errors
    /// The message is larger than `message_bytes_max`, or compressed.
    pub(super) fn push(
        &mut self,
        mut input: &[u8],
        message_bytes_max: usize,
        encoding: Option<&Bytes>,
        mut sink: impl FnMut(Bytes),
    ) -> Result<(), Status> {
        while !input.is_empty() {
            if self.prefix_filled < PREFIX_BYTES {
                let part = input.len().min(PREFIX_BYTES - self.prefix_filled);
                self.prefix[self.prefix_filled..self.prefix_filled + part].copy_from_slice(&input[..part]);
                self.prefix_filled += part;
                input = &input[part..];
                if self.prefix_filled < PREFIX_BYTES {
                    return Ok(());
                }
                self.check_prefix(message_bytes_max, encoding)?;
            }
            let length = self.length();
            if self.body.is_empty() && input.len() >= length {
                let (message, rest) = input.split_at(length);
                sink(Bytes::copy_from_slice(message));
                input = rest;
                self.prefix_filled = 0;
                continue;
            }
            if self.body.capacity() == 0 {
                self.body.reserve_exact(length.min(ROOM_BYTES_MAX));
            }
            let part = input.len().min(length - self.body.len());
            self.body.extend_from_slice(&input[..part]);
            input = &input[part..];
            if self.body.len() == length {
                sink(Bytes::from(std::mem::take(&mut self.body)));
                self.prefix_filled = 0;
            }
        }
        // An empty message has no bytes after its prefix.
        if self.prefix_filled == PREFIX_BYTES && self.length() == 0 {
            sink(Bytes::new());
            self.prefix_filled = 0;
        }
        Ok(())
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_messages(&self) -> bool {
        self.prefix_filled == 0
    }

    /// Memory held for an incomplete message.
    pub(super) fn held_bytes(&self) -> usize {
        self.body.capacity()
    }

    fn length(&self) -> usize {
        let [_, length @ ..] = self.prefix;
        u32::from_be_bytes(length) as usize
    }

    fn check_prefix(&self, message_bytes_max: usize, encoding: Option<&Bytes>) -> Result<(), Status> {
        if self.length() > message_bytes_max {
            let text = format!("grpc: received message larger than max ({} vs. {message_bytes_max})", self.length());
            return Err(Status::new(Code::ResourceExhausted, text));
        }
        match (self.prefix[0], encoding) {
            (0, _) => Ok(()),
            (1, Some(encoding)) => {
                let name = String::from_utf8_lossy(encoding);
                let text = format!("grpc: Decompressor is not installed for grpc-encoding \"{name}\"");
                Err(Status::unimplemented(text))
            }
            (1, None) => Err(Status::internal("grpc: compressed flag set with identity or empty encoding")),
            (flag, _) => Err(Status::internal(format!("grpc: received unexpected payload format {flag}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for message in messages {
            out.push(0);
            out.extend_from_slice(&(message.len() as u32).to_be_bytes());
            out.extend_from_slice(message);
        }
        out
    }

    #[test]
    fn messages_come_whole_however_they_are_cut() {
        let messages: [&[u8]; 4] = [b"first", b"", &[7; 300], b"last"];
        let bytes = framed(&messages);
        for cut in 1..bytes.len() {
            let mut assembler = Assembler::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(cut) {
                assembler.push(piece, 1000, None, |message| seen.push(message)).unwrap();
            }
            assert_eq!(seen, messages, "pieces of {cut}");
            assert!(assembler.is_between_messages());
        }
    }

    #[test]
    fn large_and_compressed_messages_are_refused() {
        let push =
            |bytes: &[u8], encoding: Option<&Bytes>| Assembler::default().push(bytes, 4, encoding, |_| ()).unwrap_err();
        let large = push(&[0, 0, 0, 0, 5], None);
        assert_eq!(large.to_string(), "ResourceExhausted: grpc: received message larger than max (5 vs. 4)");
        assert_eq!(push(&[1, 0, 0, 0, 1], None).code, Code::Internal);
        assert_eq!(push(&[1, 0, 0, 0, 1], Some(&Bytes::from_static(b"gzip"))).code, Code::Unimplemented);
        assert_eq!(push(&[9, 0, 0, 0, 1], None).code, Code::Internal);
    }

    #[test]
    fn timeouts_are_read() {
        assert_eq!(timeout(b"5S"), Ok(Duration::from_secs(5)));
        assert_eq!(timeout(b"4999912u"), Ok(Duration::from_micros(4_999_912)));
        assert_eq!(timeout(b"99999999H"), Ok(Duration::from_secs(99_999_999 * 3600)));
        for bad in [&b"S"[..], b"", b"5", b"123456789S", b"-1S", b"5s"] {
            assert_eq!(timeout(bad), Err(BadTimeout));
        }
    }
}
