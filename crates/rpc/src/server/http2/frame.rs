//! Frames (RFC 9113, section 4): nine bytes of head, and the small control frames.

pub(super) const HEAD_BYTES: usize = 9;

/// The largest frame we take; the protocol's default, which no client exceeds unasked.
pub(super) const PAYLOAD_BYTES_MAX: usize = 16_384;

pub(super) mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub(super) mod flag {
    pub const END_STREAM: u8 = 0x1;
    pub const ACK: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Error codes of RST_STREAM and GOAWAY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Reason {
    NoError = 0,
    Protocol = 1,
    FlowControl = 3,
    FrameSize = 6,
    RefusedStream = 7,
    Compression = 9,
    EnhanceYourCalm = 11,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Head {
    /// `None` while fewer than nine bytes are there.
    pub(super) fn parse(input: &[u8]) -> Option<Head> {
        let &[a, b, c, kind, flags, stream @ ..] = input.first_chunk::<HEAD_BYTES>()?;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        Some(Head { length, kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff })
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// The payload without its padding. `None` when there is more padding than payload.
pub(super) fn unpadded(head: Head, payload: &[u8]) -> Option<&[u8]> {
    if !head.has(flag::PADDED) {
        return Some(payload);
    }
    let (&padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(padding))?)
}

pub(super) fn put_head(length: usize, kind: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [e, f, g, h] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, e, f, g, h]);
}

/// Puts a HEADERS frame around what `block` appends.
pub(super) fn put_headers(stream: u32, end_stream: bool, out: &mut Vec<u8>, block: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    let flags = flag::END_HEADERS | if end_stream { flag::END_STREAM } else { 0 };
    put_head(0, kind::HEADERS, flags, stream, out);
    block(out);
    let length = out.len() - at - HEAD_BYTES;
    debug_assert!(length <= PAYLOAD_BYTES_MAX, "callers bound what they put");
    out[at..at + 3].copy_from_slice(&(length as u32).to_be_bytes()[1..]);
}

pub(super) fn put_reset(stream: u32, reason: Reason, out: &mut Vec<u8>) {
    put_head(4, kind::RST_STREAM, 0, stream, out);
    out.extend_from_slice(&(reason as u32).to_be_bytes());
}

pub(super) fn put_goaway(last_stream: u32, reason: Reason, text: &str, out: &mut Vec<u8>) {
    put_head(8 + text.len(), kind::GOAWAY, 0, 0, out);
    out.extend_from_slice(&last_stream.to_be_bytes());
    out.extend_from_slice(&(reason as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn put_window_update(stream: u32, bytes: u32, out: &mut Vec<u8>) {
    put_head(4, kind::WINDOW_UPDATE, 0, stream, out);
    out.extend_from_slice(&bytes.to_be_bytes());
}

pub(super) fn put_ping(ack: bool, payload: &[u8; 8], out: &mut Vec<u8>) {
    put_head(8, kind::PING, if ack { flag::ACK } else { 0 }, 0, out);
    out.extend_from_slice(payload);
}

pub(super) fn put_settings(settings: &[(u16, u32)], out: &mut Vec<u8>) {
    put_head(settings.len() * 6, kind::SETTINGS, 0, 0, out);
    for (id, value) in settings {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}
