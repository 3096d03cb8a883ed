//! One HTTP/2 connection without input and output: bytes go in, [`Event`]s come out; answers go in, bytes come out.
//!
//! The life of a unary call: HEADERS opens a [`Stream`] → DATA fills its assembler → END_STREAM makes an
//! [`Event::Unary`] → [`Session::respond`] appends head, message and trailers to the output and forgets the stream. What
//! does not fit the peer's windows is kept in the stream and goes out in [`Session::pump`], streams taking turns frame
//! by frame.
//!
//! Invariants:
//! - A stream is in the table from its HEADERS until its last frame was appended to the output, or it was reset.
//! - A stream with something to send and an open window is in `ready` (`queued` says so).
//! - `held` is what all streams keep of requests not handed over yet; it is bounded.
//! - Every byte of DATA is given back to the connection's window at once, to the stream's window when the handler took
//!   the message it belongs to.

mod receive;

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::frame::{self, HEAD_BYTES, Head, PAYLOAD_BYTES_MAX, Reason, flag, kind, put_headers, put_reset};
use super::held::{Held, HeldByAll};
use super::hpack::{Decoder, Encoder};
use super::output::Output;
use super::stream_state::{Inbound, Stream};
use crate::Status;
use crate::server::metadata::Metadata;
use crate::server::service::Method;
use crate::server::stream::{Bell, Channel};

/// The bounds of a session.
#[derive(Clone, Copy, Debug)]
pub(in crate::server) struct Limits {
    pub message_bytes_max: usize,
    pub streams_max: usize,
    pub header_bytes_max: usize,
    pub http_body_bytes_max: usize,
    /// Requests that are not complete or not taken, over all streams.
    pub held_bytes_max: usize,
    /// The same over all connections.
    pub held_bytes_by_all_max: usize,
    pub stream_window_bytes: u32,
    pub connection_window_bytes: u32,
}

/// Something for the driver to do.
pub(super) enum Event {
    Unary {
        stream: u32,
        method: u16,
        metadata: Metadata,
        deadline: Option<Instant>,
        message: Bytes,
    },
    Streaming {
        stream: u32,
        method: u16,
        metadata: Metadata,
        deadline: Option<Instant>,
        channel: Arc<Channel>,
    },
    Http {
        stream: u32,
        request: Box<http::Request<Bytes>>,
        channel: Arc<Channel>,
    },
    /// A call was turned away: too many are open on this connection.
    Refused,
    /// The stream is gone; the call in this slot must be dropped.
    Gone {
        slot: usize,
        stream: u32,
    },
}

/// The connection must end.
#[derive(Debug)]
pub(super) struct Fatal {
    pub(super) reason: Reason,
    pub(super) text: &'static str,
}

/// What [`Session::feed`] needs from outside.
pub(super) struct Surroundings<'a> {
    pub(super) resolve: &'a dyn Fn(&str) -> Option<Method>,
    pub(super) now: Instant,
    pub(super) bell: &'a Arc<Bell>,
}

/// Output beyond this waits in the streams.
const OUTPUT_BYTES_MAX: usize = 512 << 10;
const WINDOW_BYTES_MAX: i64 = 0x7fff_ffff;
const DEFAULT_WINDOW_BYTES: u32 = 65_535;
/// Frames that cost us more than the peer, per refill.
const PATIENCE_MAX: u32 = 10_000;
/// A message that waits for its handler counts for this much more than its bytes.
pub(in crate::server) const MESSAGE_OVERHEAD_BYTES: usize = 64;
const STATUS_TEXT_BYTES_MAX: usize = 8 << 10;

pub(super) struct Session {
    limits: Limits,
    decoder: Decoder,
    encoder: Encoder,
    streams: HashMap<u32, Stream, BuildHasherDefault<StreamHasher>>,
    /// Streams that have something to send and may.
    ready: VecDeque<u32>,
    pub(super) events: VecDeque<Event>,
    pub(super) out: Output,
    last_stream: u32,
    /// A header block that goes on in CONTINUATION frames: its HEADERS frame and what came so far.
    block: Option<(Head, Vec<u8>)>,
    send_window: i64,
    peer_stream_window: i64,
    peer_payload_bytes_max: usize,
    /// DATA received and not given back to the connection's window.
    unacknowledged: u32,
    held: Held,
    patience: u32,
    settings_seen: bool,
    /// No stream is opened any more.
    refusing: bool,
    pub(super) ping_acknowledged: bool,
}

impl Session {
    /// A session whose peer has said its preface. Our settings lie in the output.
    pub(super) fn new(limits: Limits, held_by_all: HeldByAll) -> Session {
        let mut out = Output::default();
        let settings = [
            (3, limits.streams_max as u32),
            (4, limits.stream_window_bytes),
            (5, PAYLOAD_BYTES_MAX as u32),
            (6, limits.header_bytes_max as u32),
        ];
        frame::put_settings(&settings, out.tail());
        let more = limits.connection_window_bytes.saturating_sub(DEFAULT_WINDOW_BYTES);
        if more > 0 {
            frame::put_window_update(0, more, out.tail());
        }
        Session {
            limits,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            streams: HashMap::default(),
            ready: VecDeque::new(),
            events: VecDeque::new(),
            out,
            last_stream: 0,
            block: None,
            send_window: i64::from(DEFAULT_WINDOW_BYTES),
            peer_stream_window: i64::from(DEFAULT_WINDOW_BYTES),
            peer_payload_bytes_max: PAYLOAD_BYTES_MAX,
            unacknowledged: 0,
            held: Held::new(held_by_all),
            patience: PATIENCE_MAX,
            settings_seen: false,
            refusing: false,
            ping_acknowledged: false,
        }
    }

    /// Takes the complete frames at the front of `input` and says how many bytes they were.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub(super) fn feed(&mut self, input: &[u8], around: &Surroundings) -> Result<usize, Fatal> {
        let mut used = 0;
        while let Some(head) = Head::parse(&input[used..]) {
            if head.length > PAYLOAD_BYTES_MAX {
                return Err(Fatal { reason: Reason::FrameSize, text: "frame too large" });
            }
            let from = used + HEAD_BYTES;
            let Some(payload) = input.get(from..from + head.length) else { break };
            self.frame(head, payload, around)?;
            used = from + head.length;
        }
        Ok(used)
    }

    /// Answers a unary call. A stream that is gone is ignored.
    pub(super) fn respond(&mut self, id: u32, result: Result<Bytes, Status>) {
        let message = match result {
            Ok(message) => message,
            Err(status) => return self.fail(id, &status),
        };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        put_headers(id, false, self.out.tail(), |out| self.encoder.response_head(out));
        stream.head_sent = true;
        stream.slot = None;
        stream.load(message);
        let whole = (5 + stream.piece.len()) as i64;
        if self.out.len() < OUTPUT_BYTES_MAX && whole <= stream.send_window.min(self.send_window) {
            while stream.left() > 0 {
                let bytes = stream.left().min(self.peer_payload_bytes_max);
                stream.put_data(id, bytes, &mut self.out);
            }
            self.send_window -= whole;
            put_headers(id, true, self.out.tail(), |out| self.encoder.trailers_ok(out));
            self.forget(id);
        } else {
            stream.end = Some(Ok(()));
            self.queue(id);
        }
    }

    /// A streaming call came to its end: what its handler sent goes out, then the status.
    pub(super) fn finish(&mut self, id: u32, result: Result<(), Status>) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.end = Some(result);
            stream.slot = None;
            self.queue(id);
        }
    }

    /// Ends a call with a status at once; what is queued for it is dropped.
    pub(super) fn fail(&mut self, id: u32, status: &Status) {
        let Some(stream) = self.streams.get(&id) else { return };
        let alone = !stream.head_sent;
        let open = !matches!(stream.inbound, Inbound::Ended);
        let raw = stream.raw;
        put_headers(id, true, self.out.tail(), |out| match raw {
            true if alone => self.encoder.http_head(status.code.http_status(), std::iter::empty(), out),
            _ => self.encoder.trailers_failed(alone, status, STATUS_TEXT_BYTES_MAX, out),
        });
        if open {
            put_reset(id, Reason::NoError, self.out.tail());
        }
        self.forget(id);
    }

    /// The handler of a streaming call has sent or taken something.
    pub(super) fn touched(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Some(channel) = &stream.channel else { return };
        channel.clear_touched();
        let taken = channel.taken();
        stream.held_bytes = stream.held_bytes.saturating_sub(taken);
        self.held.give_back(taken);
        stream.unacknowledged += taken as i64;
        stream.open_window(id, self.limits.stream_window_bytes, &mut self.out);
        self.queue(id);
    }

    /// Moves what the streams have to send into the output, as far as windows and the output's bound allow.
    pub(super) fn pump(&mut self) {
        while self.out.len() < OUTPUT_BYTES_MAX {
            let Some(id) = self.ready.pop_front() else { return };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            stream.queued = false;
            if stream.left() == 0
                && let Some(message) = stream.channel.as_ref().and_then(|channel| channel.pull())
            {
                stream.load(message);
            }
            if stream.raw && !stream.head_sent {
                let head = stream.channel.as_ref().and_then(|channel| channel.take_http_head());
                let Some((status, fields)) = head else { continue };
                let fields = fields.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
                put_headers(id, false, self.out.tail(), |out| self.encoder.http_head(status, fields, out));
                stream.head_sent = true;
            }
            if stream.left() > 0 {
                if self.send_window <= 0 {
                    stream.queued = true;
                    self.ready.push_front(id);
                    return;
                }
                let window = stream.send_window.min(self.send_window).max(0) as usize;
                let bytes = stream.left().min(self.peer_payload_bytes_max).min(window);
                if bytes > 0 {
                    stream.put_data(id, bytes, &mut self.out);
                    self.send_window -= bytes as i64;
                    self.queue(id);
                }
                continue;
            }
            match stream.end.take() {
                Some(Ok(())) => self.close(id),
                Some(Err(status)) => self.fail(id, &status),
                None => {}
            }
        }
    }

    /// Tells where the driver keeps a stream's call, so that it can be dropped with the stream.
    pub(super) fn attach(&mut self, id: u32, slot: usize) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.slot = Some(slot);
        }
    }

    pub(super) fn is_open(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    /// Whether [`Session::pump`] could go on, the output having room again.
    pub(super) fn may_pump(&self) -> bool {
        !self.ready.is_empty() && self.send_window > 0
    }

    pub(super) fn streams_open(&self) -> usize {
        self.streams.len()
    }

    /// Streams whose request was whole: those that end without the caller's doing.
    pub(super) fn unary_open(&self) -> bool {
        self.streams.values().any(|stream| stream.channel.is_none() || stream.raw)
    }

    pub(super) fn stream_ids(&self) -> Vec<u32> {
        self.streams.keys().copied().collect()
    }

    /// First half of a graceful end: asks the peer to open no more streams; those under way are still taken.
    pub(super) fn announce_end(&mut self) {
        frame::put_goaway(WINDOW_BYTES_MAX as u32, Reason::NoError, "", self.out.tail());
    }

    /// Second half: streams from here on are ignored, which tells the peer that it may try them elsewhere.
    pub(super) fn refuse_streams(&mut self) {
        self.refusing = true;
        frame::put_goaway(self.last_stream, Reason::NoError, "", self.out.tail());
    }

    /// The last words to a peer that broke the protocol.
    pub(super) fn say_fatal(&mut self, fatal: &Fatal) {
        frame::put_goaway(self.last_stream, fatal.reason, fatal.text, self.out.tail());
    }

    pub(super) fn ping(&mut self) {
        self.ping_acknowledged = false;
        frame::put_ping(false, b"chainfir", self.out.tail());
    }

    /// To be called about once a second: cheap frames are suspicious by their rate.
    pub(super) fn refill_patience(&mut self) {
        self.patience = PATIENCE_MAX;
    }

    /// Drops everything; handlers learn of it.
    pub(super) fn close_all(&mut self) {
        for id in self.stream_ids() {
            self.forget(id);
        }
    }

    /// The call ended well and everything is sent.
    fn close(&mut self, id: u32) {
        let Some(stream) = self.streams.get(&id) else { return };
        if stream.raw {
            frame::put_head(0, kind::DATA, flag::END_STREAM, id, self.out.tail());
        } else {
            put_headers(id, true, self.out.tail(), |out| self.encoder.trailers_ok(out));
        }
        if !matches!(stream.inbound, Inbound::Ended) {
            put_reset(id, Reason::NoError, self.out.tail());
        }
        self.forget(id);
    }

    fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
        {
            stream.queued = true;
            self.ready.push_back(id);
        }
    }

    fn forget(&mut self, id: u32) {
        let Some(stream) = self.streams.remove(&id) else { return };
        self.held.give_back(stream.held_bytes);
        if let Some(channel) = stream.channel {
            channel.close();
        }
        if let Some(slot) = stream.slot {
            self.events.push_back(Event::Gone { slot, stream: id });
        }
    }

    fn lose_patience(&mut self) -> Result<(), Fatal> {
        self.patience = self
            .patience
            .checked_sub(1)
            .ok_or(Fatal { reason: Reason::EnhanceYourCalm, text: "too many frames without use" })?;
        Ok(())
    }
}

/// Stream numbers are spread well enough by themselves.
#[derive(Default)]
struct StreamHasher(u64);

impl Hasher for StreamHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("streams are numbered by u32");
    }

    fn write_u32(&mut self, stream: u32) {
        self.0 = u64::from(stream).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
