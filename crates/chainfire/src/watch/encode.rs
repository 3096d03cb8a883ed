//! The wire form of `etcdserverpb.WatchResponse`, written without building the message.
//!
//! A response is a small head (header, watch id, flags) and a payload: the `events` fields. Payload pieces are encoded
//! once per change and shared by all watchers; small ones are copied behind each head, large ones are referred to.
//! [`Responses`] lays responses out one behind the other, each after the five bytes that gRPC puts before a message
//! (no compression, big-endian length), so that the connection can send the whole buffer as it is.
//!
//! Field numbers: WatchResponse header 1, watch_id 2, created 3, canceled 4, compact_revision 5, cancel_reason 6,
//! fragment 7, events 11; ResponseHeader cluster_id 1, member_id 2, revision 3, raft_term 4; Event type 1, kv 2,
//! prev_kv 3.

use bytes::{BufMut, Bytes, BytesMut};

use crate::event::{Event, EventKind};

/// Payloads from this size on are shared instead of copied.
pub const SHARED_BYTES_MIN: usize = 16 * 1024;

/// Encoded responses, ready to be sent in order.
#[derive(Debug, Default)]
pub struct Responses {
    segments: Vec<Bytes>,
    open: BytesMut,
    bytes: usize,
    messages: usize,
    events: usize,
    more: bool,
}

impl Responses {
    /// The gRPC body: each message behind its five-byte prefix, cut anywhere.
    pub fn into_segments(mut self) -> Vec<Bytes> {
        self.seal();
        self.segments
    }

    /// The bare messages, for carriers other than gRPC.
    pub fn into_messages(self) -> Vec<Bytes> {
        let count = self.messages;
        let segments = self.into_segments();
        let mut body = if let [one] = &segments[..] { one.clone() } else { Bytes::from(segments.concat()) };
        let mut messages = Vec::with_capacity(count);
        while body.len() >= PREFIX_BYTES {
            let prefix = body.split_to(PREFIX_BYTES);
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            messages.push(body.split_to(length));
        }
        messages
    }

    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// Encoded bytes, prefixes included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn messages(&self) -> usize {
        self.messages
    }

    pub fn events(&self) -> usize {
        self.events
    }

    /// Whether more can be had at once.
    pub fn more(&self) -> bool {
        self.more
    }

    pub(super) fn set_more(&mut self, more: bool) {
        self.more = more;
    }

    /// A response without events.
    pub(super) fn control(&mut self, head: &Head) {
        self.head(head, 0);
    }

    /// A response with `events` events, whose encoded form is `payload`.
    pub(super) fn events_of(&mut self, head: &Head, payload: &Pieces, events: usize) {
        self.head(head, payload.bytes);
        self.events += events;
        self.bytes += payload.bytes;
        match &payload.whole {
            Some(whole) => {
                self.seal();
                self.segments.push(whole.clone());
            }
            None => payload.list.iter().for_each(|piece| self.open.put_slice(piece)),
        }
    }

    fn head(&mut self, head: &Head, payload_bytes: usize) {
        let length = head.encoded_len() + payload_bytes;
        let copied = if payload_bytes < SHARED_BYTES_MIN { length } else { length - payload_bytes };
        self.open.reserve(PREFIX_BYTES + copied);
        self.open.put_u8(0);
        self.open.put_u32(u32::try_from(length).expect("a response is cut long before 4 GiB"));
        head.encode(&mut self.open);
        self.messages += 1;
        self.bytes += PREFIX_BYTES + length - payload_bytes;
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.segments.push(self.open.split().freeze());
        }
    }
}

const PREFIX_BYTES: usize = 5;

/// Everything of a response but its events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head<'a> {
    /// From [`header_field`].
    pub header: &'a [u8],
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub cancel_reason: &'a str,
    pub fragment: bool,
}

impl Head<'_> {
    fn encoded_len(&self) -> usize {
        let number = |value: i64| if value == 0 { 0 } else { 1 + varint_len(value as u64) };
        let flags = usize::from(self.created) + usize::from(self.canceled) + usize::from(self.fragment);
        let reason = self.cancel_reason.len();
        let reason_bytes = if reason == 0 { 0 } else { 1 + varint_len(reason as u64) + reason };
        self.header.len() + number(self.watch_id) + 2 * flags + number(self.compact_revision) + reason_bytes
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_slice(self.header);
        put_number(out, 2, self.watch_id as u64);
        put_number(out, 3, u64::from(self.created));
        put_number(out, 4, u64::from(self.canceled));
        put_number(out, 5, self.compact_revision as u64);
        if !self.cancel_reason.is_empty() {
            put_bytes(out, 6, self.cancel_reason.as_bytes());
        }
        put_number(out, 7, u64::from(self.fragment));
    }
}

/// The `header` field of a response.
pub(super) fn header_field(cluster_id: u64, member_id: u64, revision: i64, raft_term: u64) -> Bytes {
    let mut header = Vec::with_capacity(48);
    put_number(&mut header, 1, cluster_id);
    put_number(&mut header, 2, member_id);
    put_number(&mut header, 3, revision as u64);
    put_number(&mut header, 4, raft_term);
    let mut field = Vec::with_capacity(header.len() + 2);
    put_bytes(&mut field, 1, &header);
    field.into()
}

/// Appends an event as an element of the `events` field.
pub(super) fn put_event(out: &mut Vec<u8>, event: &Event, with_prev: bool) {
    let prev = if with_prev { event.prev.as_ref() } else { None };
    let field_len = |bytes: &Bytes| 1 + varint_len(bytes.len() as u64) + bytes.len();
    let kind_len = if event.kind == EventKind::Delete { 2 } else { 0 };
    let length = kind_len + field_len(&event.kv) + prev.map_or(0, field_len);
    out.reserve(length + 12);
    out.put_u8(11 << 3 | LENGTH_DELIMITED);
    put_varint(out, length as u64);
    put_number(out, 1, event.kind as u64);
    put_bytes(out, 2, &event.kv);
    if let Some(prev) = prev {
        put_bytes(out, 3, prev);
    }
}

/// A payload in pieces that lie in shared buffers.
#[derive(Debug, Default)]
pub(super) struct Pieces<'a> {
    pub list: Vec<&'a [u8]>,
    pub bytes: usize,
    /// All of it in one buffer, when it is worth sharing.
    whole: Option<Bytes>,
}

impl<'a> Pieces<'a> {
    pub fn push(&mut self, piece: &'a [u8]) {
        self.bytes += piece.len();
        self.list.push(piece);
    }

    /// To be called when all pieces are in.
    pub fn finish(mut self) -> Pieces<'a> {
        if self.bytes >= SHARED_BYTES_MIN {
            self.whole = Some(self.list.concat().into());
        }
        self
    }
}

const LENGTH_DELIMITED: u8 = 2;

/// A varint field; zero is left out, as protobuf wants it.
fn put_number(out: &mut impl BufMut, field: u8, value: u64) {
    if value != 0 {
        out.put_u8(field << 3);
        put_varint(out, value);
    }
}

fn put_bytes(out: &mut impl BufMut, field: u8, bytes: &[u8]) {
    out.put_u8(field << 3 | LENGTH_DELIMITED);
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}
