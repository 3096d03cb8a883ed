//! The messages to one other node.
//!
//! While the socket takes what there is, the sender writes to it directly, without another thread. What is left over
//! waits in a queue for the link's thread. When the connection breaks, the queue is thrown away: what was in it
//! is stale by the time there is another one.

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use base::NodeId;
use bytes::Bytes;
use consensus::Input;
use parking_lot::{Condvar, Mutex};

use super::{Transport, frame};

/// Bytes that may wait for one node.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A node that is just starting is not worth a line.
const COMPLAIN_AT: u32 = 3;
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

pub struct Link {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    stream: Option<Arc<TcpStream>>,
    queue: VecDeque<Vec<u8>>,
    queued_bytes: usize,
    /// The link's thread is writing: nobody else may.
    writing: bool,
    closed: bool,
}

impl Link {
    pub fn start(node: NodeId, transport: Transport) -> Arc<Link> {
        let link = Arc::new(Link { state: Mutex::default(), wake: Condvar::new() });
        let own = link.clone();
        let run = move || own.run(node, &transport);
        std::thread::Builder::new().name(format!("link-{node}")).spawn(run).expect("threads can be started");
        link
    }

    pub fn send(&self, payloads: &[Bytes]) {
        let bytes = payloads.iter().map(|payload| payload.len() + frame::HEADER).sum();
        let mut out = Vec::with_capacity(bytes);
        payloads.iter().for_each(|payload| frame::put(&mut out, payload));
        let mut state = self.state.lock();
        let Some(stream) = state.stream.clone() else { return };
        if state.queue.is_empty() && !state.writing {
            match write_now(&stream, &out) {
                Ok(written) if written == out.len() => return,
                Ok(written) => drop(out.drain(..written)),
                Err(()) => {
                    state.stream = None;
                    self.wake.notify_one();
                    return;
                }
            }
        } else if state.queued_bytes + out.len() > QUEUE_BYTES_MAX {
            return;
        }
        state.queued_bytes += out.len();
        state.queue.push_back(out);
        self.wake.notify_one();
    }

    /// The other node has come here: if it was away, it is back. Connects again now, unless the connection stands. A
    /// connection that is only written to would notice its end at the second message.
    pub fn nudge(&self) {
        let mut state = self.state.lock();
        if state.stream.as_deref().is_some_and(is_closed) {
            state.stream = None;
        }
        if state.stream.is_none() {
            self.wake.notify_one();
        }
    }

    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.stream = None;
        self.wake.notify_one();
    }

    fn run(&self, node: NodeId, transport: &Transport) {
        let mut retry = RETRY_MIN;
        let mut failures = 0;
        while !self.state.lock().closed {
            match transport.connect(node, frame::Purpose::Messages) {
                Ok((stream, _)) => {
                    retry = RETRY_MIN;
                    if failures >= COMPLAIN_AT {
                        tracing::info!(target: "chainfire_network", "Connected to peer, node={node}");
                    }
                    failures = 0;
                    self.carry(stream);
                }
                Err(error) => {
                    failures += 1;
                    if failures == COMPLAIN_AT {
                        tracing::error!(target: "chainfire_network", "Failed to connect to peer, {error} code=CF3001");
                    }
                }
            }
            transport.0.inbox.push(Input::Unreachable { node });
            let mut state = self.state.lock();
            if !state.closed {
                self.wake.wait_for(&mut state, retry);
            }
            retry = (retry * 2).min(RETRY_MAX);
        }
    }

    /// Writes what waits until the connection breaks.
    fn carry(&self, stream: TcpStream) {
        // A write that makes no progress for this long means that nobody reads: the connection is given up.
        if stream.set_write_timeout(Some(Duration::from_secs(5))).is_err() {
            return;
        }
        set_user_timeout(&stream, Duration::from_secs(5));
        let stream = Arc::new(stream);
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.stream = Some(stream.clone());
        loop {
            while state.queue.is_empty() && state.stream.is_some() {
                self.wake.wait(&mut state);
            }
            if state.stream.is_none() {
                break;
            }
            let waiting = std::mem::take(&mut state.queue);
            state.queued_bytes = 0;
            state.writing = true;
            drop(state);
            let written = waiting.iter().try_for_each(|bytes| (&*stream).write_all(bytes));
            state = self.state.lock();
            state.writing = false;
            if written.is_err() {
                break;
            }
        }
        state.stream = None;
        state.queue.clear();
        state.queued_bytes = 0;
    }
}

/// Writes what the socket takes at once.
fn write_now(stream: &TcpStream, bytes: &[u8]) -> Result<usize, ()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the descriptor is open as long as `stream` lives, and the buffer is valid for its length.
    let sent = unsafe { libc::send(stream.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    if sent >= 0 {
        return Ok(sent as usize);
    }
    let error = std::io::Error::last_os_error();
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(0),
        _ => Err(()),
    }
}

/// Whether the other side has closed the connection. Nothing is ever received on it.
fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = 0_u8;
    let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
    // SAFETY: the descriptor is open as long as `stream` lives, and there is room for the one byte asked for.
    let received = unsafe { libc::recv(stream.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
    received == 0 || (received < 0 && std::io::Error::last_os_error().kind() != std::io::ErrorKind::WouldBlock)
}

/// Makes the kernel give up a connection whose data nobody acknowledges.
fn set_user_timeout(stream: &TcpStream, timeout: Duration) {
    let ms = timeout.as_millis() as libc::c_uint;
    // SAFETY: the option takes an unsigned int, which `ms` is. A kernel without it only notices later.
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_USER_TIMEOUT,
            (&raw const ms).cast(),
            size_of::<libc::c_uint>() as libc::socklen_t,
        );
    }
}
