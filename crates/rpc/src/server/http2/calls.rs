//! The futures of a connection's calls.
//!
//! Each call has a slot; a slot keeps its waker for the next call that comes to live in it, so that starting a call
//! allocates nothing. A waker puts its slot on the connection's [`Bell`] once, however often it is woken. A wake that comes
//! late, meant for an earlier call of the slot, costs one needless poll.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;

use crate::Status;
use crate::server::service::BoxFuture;
use crate::server::stream::Bell;

pub(super) enum CallFuture {
    Unary(BoxFuture<Result<Bytes, Status>>),
    Streaming(BoxFuture<Result<(), Status>>),
}

/// How a call came out.
pub(super) enum Done {
    Unary(Result<Bytes, Status>),
    Streaming(Result<(), Status>),
}

pub(super) struct Calls {
    slots: Vec<Slot>,
    free: Vec<usize>,
    bell: Arc<Bell>,
}

struct Slot {
    /// The stream of the call in it; zero when free.
    stream: u32,
    future: Option<CallFuture>,
    ringer: Arc<Ringer>,
    waker: Waker,
}

struct Ringer {
    slot: usize,
    rung: AtomicBool,
    bell: Arc<Bell>,
}

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.bell.ring_for_slot(self.slot);
        }
    }
}

impl Calls {
    pub(super) fn new(bell: Arc<Bell>) -> Calls {
        Calls { slots: Vec::new(), free: Vec::new(), bell }
    }

    /// Takes a call in and returns its slot. It has not been polled.
    pub(super) fn insert(&mut self, stream: u32, future: CallFuture) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            let slot = self.slots.len();
            let ringer = Arc::new(Ringer { slot, rung: AtomicBool::new(false), bell: self.bell.clone() });
            let waker = Waker::from(ringer.clone());
            self.slots.push(Slot { stream: 0, future: None, ringer, waker });
            slot
        });
        let place = &mut self.slots[slot];
        place.stream = stream;
        place.future = Some(future);
        slot
    }

    /// Polls the call in a slot, if there is one. A call that is done leaves its slot.
    pub(super) fn poll(&mut self, slot: usize) -> Option<(u32, Done)> {
        let place = &mut self.slots[slot];
        place.ringer.rung.store(false, Ordering::Release);
        let cx = &mut Context::from_waker(&place.waker);
        let done = match place.future.as_mut()? {
            CallFuture::Unary(future) => future.as_mut().poll(cx).map(Done::Unary),
            CallFuture::Streaming(future) => future.as_mut().poll(cx).map(Done::Streaming),
        };
        let Poll::Ready(done) = done else { return None };
        let stream = place.stream;
        self.remove(slot, stream);
        Some((stream, done))
    }

    /// Drops the call of this stream, if it still lives in the slot.
    pub(super) fn remove(&mut self, slot: usize, stream: u32) {
        let place = &mut self.slots[slot];
        if place.stream == stream && place.future.take().is_some() {
            place.stream = 0;
            self.free.push(slot);
        }
    }
}
