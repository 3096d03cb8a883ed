//! The two ends of a streaming call that its handler holds.
//!
//! Both may be moved to any task or thread. Behind them lies one [`Channel`] per call, shared with the connection's
//! task:
//!
//! ```text
//! handler                     Channel                      connection task
//! RequestStream::next   <──  inbox  (messages)       <──   DATA frames
//! ResponseSink::send    ──>  outbox (messages)       ──>   DATA frames, as far as the peer's windows allow
//! ```
//!
//! Invariants: the inbox holds at most what the stream's window lets the caller send ahead of the handler (the window
//! opens again as messages are taken); the outbox holds at most [`OUTBOX_BYTES_MAX`] and one message. So a caller that
//! does not read makes its own handler wait, and nobody else.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::http2::MESSAGE_OVERHEAD_BYTES;
use crate::Status;

/// Bytes that wait in a call's outbox before [`ResponseSink::send`] waits.
pub const OUTBOX_BYTES_MAX: usize = 256 << 10;

/// The messages that the caller sends.
pub struct RequestStream {
    channel: Arc<Channel>,
}

impl RequestStream {
    /// The next message; `None` once the caller has closed its side. After an error nothing more comes.
    /// Safe to cancel: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Bytes, Status>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Status>>> {
        let mut state = self.channel.state.lock();
        if let Some(message) = state.inbox.pop_front() {
            state.taken_bytes += message.len() + MESSAGE_OVERHEAD_BYTES;
            let tell = state.taken_bytes >= TAKEN_BYTES_TOLD;
            drop(state);
            if tell {
                self.channel.touch();
            }
            return Poll::Ready(Some(Ok(message)));
        }
        if state.closed {
            return Poll::Ready(Some(Err(Status::cancelled())));
        }
        match &mut state.inbox_end {
            Some(end) => Poll::Ready(end.take().map(Err)),
            None => {
                set_waker(&mut state.reader, cx);
                Poll::Pending
            }
        }
    }
}

/// Where the handler puts its answers.
pub struct ResponseSink {
    channel: Arc<Channel>,
}

impl ResponseSink {
    /// Hands over one encoded message; waits while [`OUTBOX_BYTES_MAX`] or more lie before it.
    ///
    /// # Errors
    /// `Cancelled` when the caller is gone. The message is lost when the future is dropped before it is ready.
    pub async fn send(&mut self, message: Bytes) -> Result<(), Status> {
        poll_fn(|cx| self.poll_ready(cx)).await?;
        self.push(message)
    }

    /// Ready when a message may be put without waiting.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let mut state = self.channel.state.lock();
        if state.closed {
            Poll::Ready(Err(Status::cancelled()))
        } else if state.outbox_bytes < OUTBOX_BYTES_MAX {
            Poll::Ready(Ok(()))
        } else {
            set_waker(&mut state.writer, cx);
            Poll::Pending
        }
    }

    /// Hands over a message if there is room; gives it back if there is not.
    ///
    /// # Errors
    /// `Cancelled` when the caller is gone.
    pub fn try_send(&mut self, message: Bytes) -> Result<Option<Bytes>, Status> {
        if self.channel.state.lock().outbox_bytes >= OUTBOX_BYTES_MAX {
            return Ok(Some(message));
        }
        self.push(message).map(|()| None)
    }

    /// Bytes that wait to be written, the peer's windows permitting.
    pub fn queued_bytes(&self) -> usize {
        self.channel.state.lock().outbox_bytes
    }

    /// Ready when the caller is gone.
    pub async fn closed(&mut self) {
        poll_fn(|cx| {
            let mut state = self.channel.state.lock();
            if state.closed {
                return Poll::Ready(());
            }
            set_waker(&mut state.closing, cx);
            Poll::Pending
        })
        .await
    }

    fn push(&mut self, message: Bytes) -> Result<(), Status> {
        let mut state = self.channel.state.lock();
        if state.closed {
            return Err(Status::cancelled());
        }
        state.outbox_bytes += message.len();
        state.outbox.push_back(message);
        drop(state);
        self.channel.touch();
        Ok(())
    }
}

/// Taken bytes are told to the connection in lots of this size, so that its window opens again.
const TAKEN_BYTES_TOLD: usize = 64 << 10;

/// One streaming call, as shared between its handler and the connection.
pub(super) struct Channel {
    stream: u32,
    state: Mutex<State>,
    touched: AtomicBool,
    bell: Arc<Bell>,
}

#[derive(Default)]
struct State {
    inbox: VecDeque<Bytes>,
    /// Set once nothing more comes: `Some(None)` for a clean end.
    inbox_end: Option<Option<Status>>,
    taken_bytes: usize,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    closing: Option<Waker>,
    http_head: Option<(u16, http::HeaderMap)>,
}

impl Channel {
    pub(super) fn new(stream: u32, bell: Arc<Bell>) -> Arc<Channel> {
        Arc::new(Channel { stream, state: Mutex::default(), touched: AtomicBool::new(false), bell })
    }

    pub(super) fn requests(self: &Arc<Self>) -> RequestStream {
        RequestStream { channel: self.clone() }
    }

    pub(super) fn responses(self: &Arc<Self>) -> ResponseSink {
        ResponseSink { channel: self.clone() }
    }

    /// A message from the caller.
    pub(super) fn deliver(&self, message: Bytes) {
        let mut state = self.state.lock();
        state.inbox.push_back(message);
        wake(state.reader.take());
    }

    /// Nothing more comes from the caller.
    pub(super) fn end(&self, error: Option<Status>) {
        let mut state = self.state.lock();
        state.inbox_end.get_or_insert(error);
        wake(state.reader.take());
    }

    /// The call is over: what is queued is dropped, and the handler learns of it.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.outbox = VecDeque::new();
        state.outbox_bytes = 0;
        let State { reader, writer, closing, .. } = &mut *state;
        for waker in [reader, writer, closing] {
            wake(waker.take());
        }
    }

    /// To be called before looking at what the handler did, so that whatever it does afterwards rings again.
    pub(super) fn clear_touched(&self) {
        self.touched.store(false, Ordering::SeqCst);
    }

    /// The next message to be written.
    pub(super) fn pull(&self) -> Option<Bytes> {
        self.state.lock().outbox.pop_front()
    }

    /// So many bytes of pulled messages are on their way.
    pub(super) fn written(&self, bytes: usize) {
        let mut state = self.state.lock();
        state.outbox_bytes = state.outbox_bytes.saturating_sub(bytes);
        if state.outbox_bytes < OUTBOX_BYTES_MAX {
            wake(state.writer.take());
        }
    }

    /// Bytes that the handler has taken since this was last asked.
    pub(super) fn taken(&self) -> usize {
        std::mem::take(&mut self.state.lock().taken_bytes)
    }

    /// Plain HTTP: how the answer begins. To be set before anything is sent.
    pub(super) fn set_http_head(&self, status: u16, fields: http::HeaderMap) {
        self.state.lock().http_head = Some((status, fields));
        self.touch();
    }

    pub(super) fn take_http_head(&self) -> Option<(u16, http::HeaderMap)> {
        self.state.lock().http_head.take()
    }

    fn touch(&self) {
        if !self.touched.swap(true, Ordering::SeqCst) {
            self.bell.ring_for_stream(self.stream);
        }
    }
}

/// How handlers, wherever they run, tell the connection's task which streams to look at.
///
/// While the task is awake it looks at the list by itself before it goes to sleep, so handlers that run inside it
/// do not wake it once more.
#[derive(Default)]
pub(super) struct Bell {
    rung: Mutex<Rung>,
    awake: AtomicBool,
    waker: AtomicWaker,
}

/// Who rang.
#[derive(Default)]
pub(super) struct Rung {
    /// Streams whose handler sent or took something.
    pub(super) streams: Vec<u32>,
    /// Calls whose future wants to be polled, by their slot.
    pub(super) slots: Vec<usize>,
}

impl Rung {
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty() && self.slots.is_empty()
    }
}

impl Bell {
    fn ring_for_stream(&self, stream: u32) {
        self.rung.lock().streams.push(stream);
        self.wake();
    }

    pub(super) fn ring_for_slot(&self, slot: usize) {
        self.rung.lock().slots.push(slot);
        self.wake();
    }

    /// Has the connection's task look around, unless it is awake.
    pub(super) fn wake(&self) {
        if !self.awake.load(Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    pub(super) fn awaken(&self, cx: &Context<'_>) {
        self.awake.store(true, Ordering::SeqCst);
        self.waker.register(cx.waker());
    }

    /// False when something was rung in between: the task must not sleep.
    pub(super) fn sleep(&self) -> bool {
        self.awake.store(false, Ordering::SeqCst);
        self.rung.lock().is_empty()
    }

    /// Takes what was rung; `into` must be empty and lends its memory.
    pub(super) fn collect(&self, into: &mut Rung) {
        debug_assert!(into.is_empty());
        std::mem::swap(into, &mut self.rung.lock());
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn set_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}
