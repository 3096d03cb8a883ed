//! One stream of a session: what it has received and what it has to send.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Buf, Bytes};

use super::frame::{self, kind};
use super::inbound::{Assembler, RequestHead};
use super::output::Output;
use super::session::{Limits, MESSAGE_OVERHEAD_BYTES};
use crate::Status;
use crate::server::metadata::Metadata;
use crate::server::stream::Channel;

pub(super) struct Stream {
    pub(super) inbound: Inbound,
    pub(super) receive_window: i64,
    /// May be negative: bytes given back before their message was taken.
    pub(super) unacknowledged: i64,
    pub(super) send_window: i64,
    pub(super) head_sent: bool,
    pub(super) queued: bool,
    /// Plain HTTP: no message prefixes, no trailers.
    pub(super) raw: bool,
    /// What is left to send of the current message.
    pub(super) prefix: [u8; 5],
    pub(super) prefix_left: usize,
    pub(super) piece: Bytes,
    pub(super) channel: Option<Arc<Channel>>,
    /// How the call ended, once it has.
    pub(super) end: Option<Result<(), Status>>,
    /// Where the driver keeps the call.
    pub(super) slot: Option<usize>,
    pub(super) held_bytes: usize,
}

pub(super) enum Inbound {
    Unary(Box<Unary>),
    Streaming { assembler: Assembler, encoding: Option<Bytes> },
    Http { head: Box<RequestHead>, body: Vec<u8> },
    Ended,
}

pub(super) struct Unary {
    pub(super) method: u16,
    pub(super) metadata: Metadata,
    pub(super) deadline: Option<Instant>,
    pub(super) encoding: Option<Bytes>,
    pub(super) assembler: Assembler,
    pub(super) message: Option<Bytes>,
}

impl Stream {
    pub(super) fn new(limits: &Limits, send_window: i64) -> Stream {
        Stream {
            inbound: Inbound::Ended,
            receive_window: i64::from(limits.stream_window_bytes),
            unacknowledged: 0,
            send_window,
            head_sent: false,
            queued: false,
            raw: false,
            prefix: [0; 5],
            prefix_left: 0,
            piece: Bytes::new(),
            channel: None,
            end: None,
            slot: None,
            held_bytes: 0,
        }
    }

    /// Takes a piece of the request.
    pub(super) fn take(&mut self, content: &[u8], limits: &Limits) -> Result<(), Status> {
        match &mut self.inbound {
            Inbound::Unary(unary) => {
                let Unary { assembler, encoding, message, .. } = &mut **unary;
                let mut several = false;
                assembler.push(content, limits.message_bytes_max, encoding.as_ref(), |complete| {
                    several |= message.replace(complete).is_some();
                })?;
                self.held_bytes = assembler.held_bytes() + message.as_ref().map_or(0, Bytes::len);
                if several { Err(Status::internal("grpc: a unary call has one message")) } else { Ok(()) }
            }
            Inbound::Streaming { assembler, encoding } => {
                let Some(channel) = &self.channel else { return Ok(()) };
                let mut delivered = 0;
                let before = assembler.held_bytes();
                assembler.push(content, limits.message_bytes_max, encoding.as_ref(), |message| {
                    delivered += message.len() + MESSAGE_OVERHEAD_BYTES;
                    channel.deliver(message);
                })?;
                self.unacknowledged -= delivered as i64;
                self.held_bytes = (self.held_bytes + delivered + assembler.held_bytes()).saturating_sub(before);
                Ok(())
            }
            Inbound::Http { body, .. } => {
                if body.len() + content.len() > limits.http_body_bytes_max {
                    return Err(Status::resource_exhausted("the request body is too large"));
                }
                body.extend_from_slice(content);
                self.held_bytes = body.capacity();
                Ok(())
            }
            Inbound::Ended => Ok(()),
        }
    }

    /// Gives bytes back to the stream's window once they are worth a frame.
    pub(super) fn open_window(&mut self, id: u32, window_bytes: u32, out: &mut Output) {
        if self.unacknowledged >= i64::from(window_bytes / 2) && !matches!(self.inbound, Inbound::Ended) {
            frame::put_window_update(id, self.unacknowledged as u32, out.tail());
            self.receive_window += self.unacknowledged;
            self.unacknowledged = 0;
        }
    }

    /// Makes a message the next to be sent.
    pub(super) fn load(&mut self, message: Bytes) {
        if !self.raw {
            let [a, b, c, d] = (message.len() as u32).to_be_bytes();
            self.prefix = [0, a, b, c, d];
            self.prefix_left = 5;
        }
        self.piece = message;
    }

    /// Bytes of the current message that are not sent.
    pub(super) fn left(&self) -> usize {
        self.prefix_left + self.piece.len()
    }

    /// Appends one DATA frame of so many bytes.
    pub(super) fn put_data(&mut self, id: u32, bytes: usize, out: &mut Output) {
        frame::put_head(bytes, kind::DATA, 0, id, out.tail());
        let of_prefix = bytes.min(self.prefix_left);
        let from = 5 - self.prefix_left;
        out.tail().extend_from_slice(&self.prefix[from..from + of_prefix]);
        self.prefix_left -= of_prefix;
        let of_piece = bytes - of_prefix;
        out.put(self.piece.slice(..of_piece));
        self.piece.advance(of_piece);
        self.send_window -= bytes as i64;
        if let Some(channel) = &self.channel {
            channel.written(of_piece);
        }
    }
}
