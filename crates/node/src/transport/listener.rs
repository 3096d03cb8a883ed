//! The Raft port: accepts connections, a thread for each.

use std::collections::BTreeSet;
use std::io::{self, BufReader};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base::{ClusterId, NodeId, PeerId};
use consensus::{Input, Message};
use parking_lot::Mutex;

use super::frame::{self, Hello, Purpose, Welcome};
use super::pipe::Pipe;
use super::{HANDSHAKE_TIMEOUT, Transport};
use crate::tls;

/// Connections in all; every other node needs three at most at a time, and calls share a few.
const CONNECTIONS_MAX: usize = 512;
/// Messages that may wait for the driver; beyond that they are dropped, as a lossy network would.
const WAITING_MAX: usize = 100_000;
const READ_BYTES: usize = 256 << 10;
const STRANGERS_MAX: usize = 1024;

/// A listening Raft port; stops when dropped.
pub struct Listening {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        drop(TcpStream::connect(self.address));
    }
}

struct Door {
    transport: Transport,
    stop: Arc<AtomicBool>,
    open: AtomicUsize,
    /// Addresses that sent what is not ours, and what was wrong; each is logged once.
    strangers: Mutex<BTreeSet<(IpAddr, String)>>,
    /// Nodes of other clusters; each is logged once.
    foreign: Mutex<BTreeSet<(ClusterId, NodeId)>>,
}

impl Listening {
    pub fn start(listener: TcpListener, transport: Transport) -> io::Result<Listening> {
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let door = Arc::new(Door {
            transport,
            stop: stop.clone(),
            open: AtomicUsize::new(0),
            strangers: Mutex::default(),
            foreign: Mutex::default(),
        });
        std::thread::Builder::new().name("raft-listen".to_owned()).spawn(move || door.accept(&listener))?;
        Ok(Listening { address, stop })
    }
}

impl Door {
    fn accept(self: Arc<Door>, listener: &TcpListener) {
        loop {
            let accepted = listener.accept();
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // An error concerns the connection that failed, or passes (too many open files).
            let Ok((stream, from)) = accepted else {
                std::thread::sleep(std::time::Duration::from_millis(10));
                continue;
            };
            if self.open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
                self.open.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let door = self.clone();
            let serve = move || {
                door.serve(stream, from.ip());
                door.open.fetch_sub(1, Ordering::SeqCst);
            };
            if std::thread::Builder::new().name("raft-peer".to_owned()).spawn(serve).is_err() {
                self.open.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn serve(&self, stream: TcpStream, from: IpAddr) {
        let Err(error) = self.converse(stream) else { return };
        if error.kind() != io::ErrorKind::InvalidData {
            return;
        }
        let why = tls::words::of_io(&error);
        let mut strangers = self.strangers.lock();
        if strangers.len() < STRANGERS_MAX && strangers.insert((from, why.clone())) {
            tracing::warn!(
                target: "chainfire_network",
                "Closed a connection on the Raft port, addr={from} why={why} code=CF3101"
            );
        }
    }

    fn converse(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let certificates = self.transport.0.certificates.as_ref();
        if certificates.is_none() && speaks_tls(&stream)? {
            return Err(invalid(
                "the other side speaks TLS, and this node does not: set [network.tls] here".to_owned(),
            ));
        }
        let mut pipe = Pipe::accept(stream, certificates)?;
        let hello = Hello::decode(&frame::read(&mut pipe, frame::SMALL_BYTES_MAX)?)
            .ok_or_else(|| invalid("its bytes are not ours".to_owned()))?;
        let me = self.transport.me();
        let strange = hello.cluster.0 != 0 && me.cluster.0 != 0 && hello.cluster != me.cluster;
        // Whoever belongs to no cluster may ask, but not take part.
        let outside = hello.purpose != Purpose::Call && (me.cluster.0 == 0 || hello.cluster != me.cluster);
        let vouched = self.transport.vouch(&pipe, &hello);
        let status = match &vouched {
            Err(_) => frame::WRONG_NAME,
            Ok(()) if outside && me.cluster.0 == 0 => frame::NO_CLUSTER,
            Ok(()) if strange || outside => frame::WRONG_CLUSTER,
            Ok(()) => frame::WELCOME,
        };
        let welcome = Welcome { status, cluster: me.cluster, node: me.node, peer: me.peer };
        frame::write(&mut pipe, &welcome.encode())?;
        vouched.map_err(invalid)?;
        if status != frame::WELCOME {
            if strange {
                self.turned_away(&hello);
            }
            return Ok(());
        }
        if self.transport.address(hello.node).is_none() && !hello.address.is_empty() {
            self.transport.set_address(hello.node, vec![hello.address]);
        }
        match hello.purpose {
            Purpose::Messages => {
                self.transport.nudge(hello.node);
                self.messages(pipe, hello.peer)
            }
            Purpose::Snapshot => self.transport.receive_snapshot(pipe),
            Purpose::Call => self.transport.answer_calls(pipe),
        }
    }

    /// Said once per node, however often it comes.
    fn turned_away(&self, hello: &Hello) {
        let mut foreign = self.foreign.lock();
        if foreign.len() < STRANGERS_MAX && foreign.insert((hello.cluster, hello.node)) {
            tracing::warn!(
                target: "chainfire_network",
                "Refused a node of another cluster, node={} addr={} cluster={} ours={}; if it is to join this one, empty its \
                 data folder and add it with member-add code=CF4110",
                hello.node,
                hello.address,
                hello.cluster,
                self.transport.me().cluster
            );
        }
    }

    fn messages(&self, pipe: Pipe, peer: PeerId) -> io::Result<()> {
        pipe.socket().set_read_timeout(None)?;
        let mut reader = BufReader::with_capacity(READ_BYTES, pipe);
        loop {
            let mut batch = Vec::new();
            loop {
                let bytes = frame::read(&mut reader, frame::BYTES_MAX)?;
                let message =
                    Message::decode(bytes).ok_or_else(|| invalid("a message that cannot be decoded".to_owned()))?;
                if message.from != peer {
                    return Err(invalid("a message of another peer than the one that greeted".to_owned()));
                }
                batch.push(Input::Message(message));
                if !holds_frame(reader.buffer()) {
                    break;
                }
            }
            if self.stop.load(Ordering::SeqCst) {
                return Ok(());
            }
            if self.transport.0.inbox.len() < WAITING_MAX {
                self.transport.0.inbox.extend(batch);
            }
        }
    }
}

/// Whether the other side begins as TLS does.
fn speaks_tls(stream: &TcpStream) -> io::Result<bool> {
    const HANDSHAKE: u8 = 0x16;
    let mut first = [0];
    Ok(stream.peek(&mut first)? == 1 && first[0] == HANDSHAKE)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn holds_frame(buffer: &[u8]) -> bool {
    let Some((length, _)) = buffer.split_first_chunk::<4>() else { return false };
    buffer.len() >= frame::HEADER + u32::from_le_bytes(*length) as usize
}
