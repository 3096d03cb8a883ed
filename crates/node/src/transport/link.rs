//! The messages to one other node.
//!
//! While the socket takes what there is, the sender writes to it directly, without another thread. What is left over
//! waits in the pipe for the link's thread. When the connection breaks, it is thrown away: it is stale by the time there
//! is another one.

use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use base::NodeId;
use bytes::Bytes;
use consensus::Input;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::pipe::Pipe;
use super::{Transport, frame};

/// Bytes that may wait for one node.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// A node that is just starting is not worth a line.
const COMPLAIN_AT: u32 = 3;
/// One that stays away is mentioned about once a minute.
const COMPLAIN_EVERY: u32 = 64;
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A write that makes no progress for this long means that nobody reads: the connection is given up.
const STALL_TIMEOUT: Duration = Duration::from_secs(5);

pub struct Link {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    pipe: Option<Pipe>,
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

    /// False: nothing of it was sent, nor will be.
    pub fn send(&self, payloads: &[Bytes]) -> bool {
        let bytes = payloads.iter().map(|payload| payload.len() + frame::HEADER).sum();
        let mut out = Vec::with_capacity(bytes);
        payloads.iter().for_each(|payload| frame::put(&mut out, payload));
        let mut state = self.state.lock();
        let Some(pipe) = &mut state.pipe else { return false };
        if pipe.waiting_bytes() > 0 && pipe.waiting_bytes() + out.len() > QUEUE_BYTES_MAX {
            return false;
        }
        match pipe.push(&out) {
            Ok(()) if pipe.waiting_bytes() == 0 => return true,
            Ok(()) => {}
            Err(_) => state.pipe = None,
        }
        self.wake.notify_one();
        true
    }

    /// The other node has come here: if it was away, it is back. Connects again now, unless the connection stands. A
    /// connection that is only written to would notice its end at the second message.
    pub fn nudge(&self) {
        let mut state = self.state.lock();
        if state.pipe.as_mut().is_some_and(Pipe::is_closed) {
            state.pipe = None;
        }
        if state.pipe.is_none() {
            self.wake.notify_one();
        }
    }

    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.pipe = None;
        self.wake.notify_one();
    }

    fn run(&self, node: NodeId, transport: &Transport) {
        let mut retry = RETRY_MIN;
        let mut failures = 0;
        while !self.state.lock().closed {
            match transport.connect(node, frame::Purpose::Messages) {
                Ok((pipe, _)) => {
                    retry = RETRY_MIN;
                    if failures >= COMPLAIN_AT {
                        tracing::info!(target: "chainfire_network", "Connected to peer, node={node}");
                    }
                    failures = 0;
                    self.carry(pipe);
                }
                Err(error) => {
                    failures += 1;
                    if failures % COMPLAIN_EVERY == COMPLAIN_AT {
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
    fn carry(&self, pipe: Pipe) {
        set_user_timeout(pipe.socket(), STALL_TIMEOUT);
        // Waiting for the socket goes on while the pipe is the sender's.
        let Ok(socket) = pipe.socket().try_clone() else { return };
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        state.pipe = Some(pipe);
        loop {
            match &mut state.pipe {
                None => return,
                Some(pipe) if pipe.waiting_bytes() == 0 => self.wake.wait(&mut state),
                Some(_) => {
                    let room = MutexGuard::unlocked(&mut state, || wait_for_room(socket.as_raw_fd(), STALL_TIMEOUT));
                    if let Some(pipe) = &mut state.pipe
                        && (!room || pipe.flush_now().is_err())
                    {
                        state.pipe = None;
                    }
                }
            }
        }
    }
}

/// Whether the socket takes something, or has failed, within the time.
fn wait_for_room(socket: RawFd, timeout: Duration) -> bool {
    let mut wanted = libc::pollfd { fd: socket, events: libc::POLLOUT, revents: 0 };
    // SAFETY: the caller holds the socket open, and there is one entry.
    unsafe { libc::poll(&raw mut wanted, 1, timeout.as_millis() as libc::c_int) > 0 }
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
