//! One client's stream: requests go in, notes come from the dispatcher, encoded responses come out.
//!
//! Two sides meet in the inbox: whoever reads the client's requests ([`WatchStream::submit`]) and the dispatcher put
//! things in, and the one task that writes to the client ([`WatchStream::next`]) takes them out and does all the work.
//! So the watchers of a stream belong to one thread at a time, and neither side waits for the other longer than an
//! append takes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use super::encode::Responses;
use super::hub::WatchHub;
use super::worker::Worker;

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Create(CreateWatch),
    /// The client may not watch what it asked for: answers with `created` and `canceled` set, watch id −1 and the
    /// reason.
    Refuse {
        reason: String,
    },
    Cancel {
        watch_id: i64,
    },
    /// Report progress once all watchers are caught up.
    Progress,
}

/// `WatchCreateRequest` in etcd's conventions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateWatch {
    /// Zero: the stream draws one.
    pub watch_id: i64,
    pub key: Bytes,
    pub range_end: Bytes,
    /// Zero: what comes next.
    pub start_revision: i64,
    pub prev_kv: bool,
    pub progress_notify: bool,
    pub fragment: bool,
    /// Leaves out puts.
    pub no_put: bool,
    /// Leaves out deletes.
    pub no_delete: bool,
}

/// The stream was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the watch stream is closed")]
pub struct Closed;

/// See the file header. Dropping it ends all its watchers.
pub struct WatchStream {
    hub: Arc<WatchHub>,
    shared: Arc<StreamShared>,
    worker: Mutex<Worker>,
}

impl WatchStream {
    pub(super) fn new(hub: Arc<WatchHub>, shared: Arc<StreamShared>, position: i64) -> WatchStream {
        WatchStream { worker: Mutex::new(Worker::new(position)), hub, shared }
    }

    /// Hands in a request; waits while too many wait already.
    pub async fn submit(&self, command: Command) -> Result<(), Closed> {
        let mut command = Some(command);
        poll_fn(|context| {
            let mut inbox = self.shared.inbox.lock();
            if inbox.closed {
                return Poll::Ready(Err(Closed));
            }
            if inbox.commands.len() >= self.hub.options.commands_per_stream_max {
                inbox.room = Some(context.waker().clone());
                return Poll::Pending;
            }
            inbox.commands.extend(command.take());
            let waker = inbox.waker.take();
            drop(inbox);
            waker.into_iter().for_each(Waker::wake);
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Hands in a request, or gives it back when too many wait already or the stream is closed.
    pub fn try_submit(&self, command: Command) -> Result<(), Command> {
        let mut inbox = self.shared.inbox.lock();
        if inbox.closed || inbox.commands.len() >= self.hub.options.commands_per_stream_max {
            return Err(command);
        }
        inbox.commands.push_back(command);
        let waker = inbox.waker.take();
        drop(inbox);
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// The next responses, at least one; waits for them. May read from the store, about one response's worth.
    pub async fn next(&self) -> Result<Responses, Closed> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// What can be sent at once; empty when there is nothing.
    pub fn poll(&self) -> Responses {
        self.worker.lock().turn(&self.hub, &self.shared)
    }

    /// Ends the stream: `next` and `submit` return [`Closed`].
    pub fn close(&self) {
        let wakers = {
            let mut inbox = self.shared.inbox.lock();
            inbox.closed = true;
            [inbox.waker.take(), inbox.room.take()]
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Result<Responses, Closed>> {
        loop {
            if self.shared.inbox.lock().closed {
                return Poll::Ready(Err(Closed));
            }
            let responses = self.poll();
            if !responses.is_empty() {
                return Poll::Ready(Ok(responses));
            }
            if responses.more() {
                // Work without words to say, such as reading a past in which nothing matches: others may run between.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let mut inbox = self.shared.inbox.lock();
            if !inbox.has_work() {
                inbox.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
        }
    }
}

impl Drop for WatchStream {
    fn drop(&mut self) {
        self.close();
        self.worker.lock().end(&self.hub, &self.shared);
        self.hub.forget(self.shared.number);
    }
}

/// A pass holds something for a range of the stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Note {
    pub pass: u64,
    /// Which of the pass's packets.
    pub packet: u32,
    /// The stream's number for the range.
    pub group: u32,
}

/// The part of a stream that others reach.
pub(super) struct StreamShared {
    number: u64,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    notes: Vec<Note>,
    /// Notes were dropped and will be until the worker has seen this.
    lost: bool,
    commands: VecDeque<Command>,
    progress_due: bool,
    retry: bool,
    closed: bool,
    /// Of the task that waits for responses.
    waker: Option<Waker>,
    /// Of the task that waits for room for a command.
    room: Option<Waker>,
}

impl Inbox {
    fn has_work(&self) -> bool {
        !self.notes.is_empty()
            || self.lost
            || !self.commands.is_empty()
            || self.progress_due
            || self.retry
            || self.closed
    }
}

/// Each of these returns who is to be woken.
impl StreamShared {
    pub fn new(number: u64) -> StreamShared {
        StreamShared { number, inbox: Mutex::default() }
    }

    pub fn number(&self) -> u64 {
        self.number
    }

    pub fn leave(&self, note: Note, notes_max: usize) -> Option<Waker> {
        let mut inbox = self.inbox.lock();
        if inbox.lost {
            return None;
        }
        if inbox.notes.len() >= notes_max {
            inbox.notes = Vec::new();
            inbox.lost = true;
        } else {
            inbox.notes.push(note);
        }
        inbox.waker.take()
    }

    pub fn lose_notes(&self) -> Option<Waker> {
        let mut inbox = self.inbox.lock();
        inbox.notes = Vec::new();
        inbox.lost = true;
        inbox.waker.take()
    }

    pub fn progress_is_due(&self) -> Option<Waker> {
        let mut inbox = self.inbox.lock();
        inbox.progress_due = true;
        inbox.waker.take()
    }

    pub fn retry(&self) -> Option<Waker> {
        let mut inbox = self.inbox.lock();
        inbox.retry = true;
        inbox.waker.take()
    }

    /// For the worker: requests, and whether progress is due.
    pub fn take_commands(&self) -> (VecDeque<Command>, bool) {
        let mut inbox = self.inbox.lock();
        inbox.retry = false;
        let taken = (std::mem::take(&mut inbox.commands), std::mem::take(&mut inbox.progress_due));
        let room = inbox.room.take();
        drop(inbox);
        room.into_iter().for_each(Waker::wake);
        taken
    }

    /// For the worker: whether notes were lost, and those that were not, if it `wants` them.
    pub fn take_notes(&self, wants: bool, notes: &mut Vec<Note>) -> bool {
        let mut inbox = self.inbox.lock();
        let lost = std::mem::take(&mut inbox.lost);
        if wants || lost {
            std::mem::swap(&mut inbox.notes, notes);
        }
        lost
    }
}
