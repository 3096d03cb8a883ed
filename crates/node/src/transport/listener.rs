//! The Raft port: accepts connections, a thread for each.
//!
//! Those that have not greeted yet are few at a time ([`Lobby`]), and have little time: who only occupies places cannot keep
//! members out, which need one for milliseconds. Whoever has greeted may do what its [`Standing`] allows. Keep-alive finds
//! out about those that vanished without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{ClusterId, NodeId, PeerId};
use consensus::{Input, Message};
use parking_lot::Mutex;
use rpc::plain_http;

use super::frame::{self, Hello, Purpose, Welcome};
use super::pipe::Pipe;
use super::{Caller, HANDSHAKE_TIMEOUT, Me, Peers, Standing, Transport};
use crate::pace;
use crate::refused::Why;
use crate::tls;

/// Connections that have greeted; every other node needs three at most at a time, and calls share a few.
const CONNECTIONS_MAX: usize = 512;
/// Connections that have not.
const LOBBY_MAX: usize = 128;
/// Threads at such connections, those included that were dismissed and have not noticed yet.
const GREETING_MAX: usize = 2 * LOBBY_MAX;
const BREATH: Duration = Duration::from_millis(1);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A peer whose machine is gone is noticed after about half a minute.
const KEEPALIVE_IDLE_S: libc::c_int = 15;
const KEEPALIVE_INTERVAL_S: libc::c_int = 5;
const KEEPALIVE_PROBES: libc::c_int = 3;
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
    lobby: Mutex<Lobby>,
    greeting: AtomicUsize,
    open: AtomicUsize,
    /// Whose messages come in, and from where.
    speakers: Mutex<BTreeMap<PeerId, Speaker>>,
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
            lobby: Mutex::default(),
            greeting: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            speakers: Mutex::default(),
            strangers: Mutex::default(),
            foreign: Mutex::default(),
        });
        let usher = door.clone();
        std::thread::Builder::new().name("raft-lobby".to_owned()).spawn(move || usher.show_out())?;
        std::thread::Builder::new().name("raft-listen".to_owned()).spawn(move || door.accept(&listener))?;
        Ok(Listening { address, stop })
    }
}

impl Door {
    fn accept(self: Arc<Door>, listener: &TcpListener) {
        loop {
            // In a flood the rest waits in the kernel, where it costs less.
            while self.greeting.load(Ordering::SeqCst) >= GREETING_MAX && !self.stop.load(Ordering::SeqCst) {
                std::thread::sleep(BREATH);
            }
            let accepted = listener.accept();
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // An error concerns the connection that failed, or passes (too many open files).
            let Ok((stream, from)) = accepted else {
                std::thread::sleep(std::time::Duration::from_millis(10));
                continue;
            };
            let Ok(guest) = stream.try_clone() else {
                self.transport.count_turned_away(Why::TooMany);
                continue;
            };
            let (guest, displaced) = self.lobby.lock().enter(from.ip(), guest);
            if displaced.is_some() {
                self.transport.count_turned_away(Why::TooMany);
            }
            let door = self.clone();
            let serve = move || door.serve(guest, stream, from.ip());
            self.greeting.fetch_add(1, Ordering::SeqCst);
            if std::thread::Builder::new().name("raft-peer".to_owned()).spawn(serve).is_err() {
                self.greeting.fetch_sub(1, Ordering::SeqCst);
                self.lobby.lock().leave(guest);
                self.transport.count_turned_away(Why::TooMany);
            }
        }
    }

    /// Sends those away that take too long to greet.
    fn show_out(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            std::thread::sleep(LOOK_EVERY);
            for _ in 0..self.lobby.lock().show_out(Instant::now()) {
                self.transport.count_turned_away(Why::TooSlow);
            }
        }
    }

    fn serve(&self, guest: u64, stream: TcpStream, from: IpAddr) {
        let greeted = self.greet(stream);
        self.greeting.fetch_sub(1, Ordering::SeqCst);
        self.lobby.lock().leave(guest);
        let outcome = match greeted {
            Ok(Some((pipe, purpose, caller))) => {
                let full = self.open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX;
                let outcome = self.admit(pipe, purpose, &caller, full);
                self.open.fetch_sub(1, Ordering::SeqCst);
                outcome
            }
            Ok(None) => return,
            Err(error) => Err(error),
        };
        let Err(error) = outcome else { return };
        if error.kind() != io::ErrorKind::InvalidData {
            return;
        }
        let why = rpc::tls_words::of_io(&error);
        let mut strangers = self.strangers.lock();
        if strangers.len() < STRANGERS_MAX && strangers.insert((from, why.clone())) {
            tracing::warn!(
                target: "chainfire_network",
                "Closed a connection on the Raft port, addr={from} why={why} code=CF3101"
            );
        }
    }

    /// `None`: the other side was not let in, and knows why.
    fn greet(&self, stream: TcpStream) -> io::Result<Option<(Pipe, Purpose, Caller)>> {
        let (mut pipe, hello) = self.first_words(stream).inspect_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => self.transport.count_turned_away(Why::Malformed),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => self.transport.count_turned_away(Why::TooSlow),
            // It has gone, or had to leave the lobby, which has counted it.
            _ => {}
        })?;
        let me = self.transport.me();
        let strange = hello.cluster.0 != 0 && me.cluster.0 != 0 && hello.cluster != me.cluster;
        // Whoever belongs to no cluster may ask, but not take part.
        let outside = hello.purpose != Purpose::Call && (me.cluster.0 == 0 || hello.cluster != me.cluster);
        let vouched = self.transport.directory().vouch(pipe.certificate(), &hello);
        let status = match &vouched {
            Err(_) => frame::WRONG_NAME,
            Ok(_) if outside && me.cluster.0 == 0 => frame::NO_CLUSTER,
            Ok(_) if strange || outside => frame::WRONG_CLUSTER,
            Ok(caller) if hello.purpose != Purpose::Call && !self.may_take_part(caller) => frame::NOT_A_MEMBER,
            Ok(_) => frame::WELCOME,
        };
        if status == frame::WELCOME {
            return Ok(Some((pipe, hello.purpose, vouched.map_err(invalid)?)));
        }
        self.transport.count_turned_away(Why::NotAMember);
        // Who this node is, is told to those only that are who they claim to be.
        let me = if vouched.is_ok() { me } else { Me::default() };
        frame::write(&mut pipe, &welcome(status, &me))?;
        if strange && vouched.is_ok() {
            self.turned_away(&hello);
        }
        vouched.map(|_| None).map_err(invalid)
    }

    /// What the other side says first.
    fn first_words(&self, stream: TcpStream) -> io::Result<(Pipe, Hello)> {
        stream.set_nodelay(true)?;
        keep_alive(&stream);
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let certificates = self.transport.0.certificates.as_ref();
        if certificates.is_none() && speaks_tls(&stream)? {
            return Err(invalid(
                "the other side speaks TLS, and this node does not: either both name certificates in their configuration, or neither"
                    .to_owned(),
            ));
        }
        if certificates.is_some() && speaks_http(&stream)? {
            return Err(turn_away(stream));
        }
        let mut pipe = Pipe::accept(stream, certificates)?;
        let hello = Hello::decode(&frame::read(&mut pipe, frame::SMALL_BYTES_MAX)?)
            .ok_or_else(|| invalid("its bytes are not ours".to_owned()))?;
        Ok((pipe, hello))
    }

    /// Whether a caller's messages count. One that this node does not know may have become a member while this node was
    /// away; the others will know.
    fn may_take_part(&self, caller: &Caller) -> bool {
        // Where nodes have many groups, who they are is told to all of them in advance.
        if self.transport.peers() == Peers::OnePerGroup {
            return caller.standing == Standing::Member;
        }
        caller.standing != Standing::Stranger || self.transport.is_known_to_others(caller.peer)
    }

    fn admit(&self, mut pipe: Pipe, purpose: Purpose, caller: &Caller, full: bool) -> io::Result<()> {
        let speaks = if purpose == Purpose::Messages && !full { self.speaks(caller, &pipe) } else { Some(0) };
        let status = match speaks {
            None => frame::COPY,
            _ if full => frame::BUSY,
            _ => frame::WELCOME,
        };
        frame::write(&mut pipe, &welcome(status, &self.transport.me()))?;
        if status != frame::WELCOME {
            self.transport.count_turned_away(if full { Why::TooMany } else { Why::NotAMember });
            return Ok(());
        }
        self.transport.count(&pipe, caller.node);
        self.transport.hear(caller);
        match purpose {
            Purpose::Messages => {
                self.transport.nudge(caller.node);
                let ended = self.messages(pipe, caller);
                self.falls_silent(caller, speaks);
                ended
            }
            Purpose::Snapshot => {
                pace::step_back();
                self.transport.receive_snapshot(pipe, caller)
            }
            Purpose::Call => self.transport.answer_calls(pipe, caller),
        }
    }

    /// A number for the caller's connection. `None`: the same data folder speaks from another address already, so one of
    /// the two is a copy. The one that is where the members know it goes before the other.
    fn speaks(&self, caller: &Caller, pipe: &Pipe) -> Option<u64> {
        let agreed = self.transport.address(caller.node).unwrap_or_default();
        let socket = pipe.socket().try_clone().ok()?;
        let mut speakers = self.speakers.lock();
        let before = speakers.get(&caller.peer);
        if let Some(before) = before.filter(|before| !caller.is_at(&before.address)) {
            let at_home = agreed.iter().any(|address| caller.is_at(address));
            tracing::error!(
                target: "chainfire_network",
                "Refused a second node with the data folder of another: one of them is a copy, stop it and empty its folder, \
                 node={} addr={} other={} code=CF4112",
                caller.node,
                caller.address,
                before.address
            );
            if !at_home {
                return None;
            }
            // It may have gone by itself.
            let _ = before.socket.shutdown(Shutdown::Both);
        }
        let connection = before.map_or(0, |before| before.connection) + 1;
        speakers.insert(caller.peer, Speaker { address: caller.address.clone(), connection, socket });
        Some(connection)
    }

    fn falls_silent(&self, caller: &Caller, connection: Option<u64>) {
        let mut speakers = self.speakers.lock();
        if speakers.get(&caller.peer).is_some_and(|speaker| Some(speaker.connection) == connection) {
            speakers.remove(&caller.peer);
        }
    }

    /// Said once per node, however often it comes.
    fn turned_away(&self, hello: &Hello) {
        let mut foreign = self.foreign.lock();
        if foreign.len() < STRANGERS_MAX && foreign.insert((hello.cluster, hello.node)) {
            tracing::warn!(
                target: "chainfire_network",
                "Refused a node of another cluster, node={} addr={} cluster={} ours={}; where one of the two clusters was \
                 founded by mistake, stop what is in it, empty its data folder, add it to the other one, and start it with \
                 `bootstrap = false` code=CF4110",
                hello.node,
                hello.address,
                hello.cluster,
                self.transport.me().cluster
            );
        }
    }

    fn messages(&self, pipe: Pipe, caller: &Caller) -> io::Result<()> {
        pipe.socket().set_read_timeout(None)?;
        let mut reader = BufReader::with_capacity(READ_BYTES, pipe);
        loop {
            let mut batch = Vec::new();
            loop {
                let bytes = frame::read(&mut reader, frame::BYTES_MAX)?;
                let message =
                    Message::decode(bytes).ok_or_else(|| invalid("a message that cannot be decoded".to_owned()))?;
                if !self.transport.is_of(caller, &message) {
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

struct Speaker {
    address: String,
    connection: u64,
    socket: TcpStream,
}

/// Connections that have not greeted yet.
#[derive(Default)]
struct Lobby {
    next: u64,
    guests: BTreeMap<u64, Guest>,
}

struct Guest {
    from: IpAddr,
    since: Instant,
    socket: TcpStream,
}

impl Lobby {
    /// A guest's number, and the one that had to leave for it: the oldest from the address that has the most here.
    fn enter(&mut self, from: IpAddr, socket: TcpStream) -> (u64, Option<u64>) {
        let displaced = if self.guests.len() >= LOBBY_MAX { self.longest_of_the_most() } else { None };
        if let Some(number) = displaced {
            self.dismiss(number);
        }
        let number = self.next;
        self.next += 1;
        self.guests.insert(number, Guest { from, since: Instant::now(), socket });
        (number, displaced)
    }

    fn leave(&mut self, number: u64) {
        self.guests.remove(&number);
    }

    /// Dismisses those who are here for too long; how many they were.
    fn show_out(&mut self, now: Instant) -> usize {
        let late = |guest: &Guest| now.saturating_duration_since(guest.since) > HANDSHAKE_TIMEOUT;
        let numbers: Vec<u64> =
            self.guests.iter().filter(|(_, guest)| late(guest)).map(|(number, _)| *number).collect();
        numbers.iter().for_each(|number| self.dismiss(*number));
        numbers.len()
    }

    /// Its thread is at the socket, and ends with it.
    fn dismiss(&mut self, number: u64) {
        if let Some(guest) = self.guests.remove(&number) {
            // It may have gone by itself.
            let _ = guest.socket.shutdown(Shutdown::Both);
        }
    }

    fn longest_of_the_most(&self) -> Option<u64> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for guest in self.guests.values() {
            *counts.entry(guest.from).or_default() += 1;
        }
        let most = counts.into_iter().max_by_key(|(_, count)| *count)?.0;
        self.guests.iter().find(|(_, guest)| guest.from == most).map(|(number, _)| *number)
    }
}

fn welcome(status: u8, me: &Me) -> bytes::Bytes {
    Welcome { status, cluster: me.cluster, node: me.node, peer: me.peer }.encode()
}

/// Has the kernel ask now and then whether the other side is still there.
fn keep_alive(stream: &TcpStream) {
    let options = [
        (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, KEEPALIVE_PROBES),
    ];
    for (level, option, value) in options {
        // SAFETY: each of the options takes an int, which `value` is. A kernel without one only notices later.
        unsafe {
            libc::setsockopt(
                stream.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            );
        }
    }
}

/// Whether the other side begins as TLS does.
fn speaks_tls(stream: &TcpStream) -> io::Result<bool> {
    const HANDSHAKE: u8 = 0x16;
    let mut first = [0];
    Ok(stream.peek(&mut first)? == 1 && first[0] == HANDSHAKE)
}

/// Whether it begins as HTTP does. What has not come yet is not waited for.
fn speaks_http(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0; 4];
    let count = stream.peek(&mut first)?;
    Ok(plain_http::begins(&first[..count]))
}

/// Tells a client of plain HTTP that it is wrong here.
fn turn_away(mut stream: TcpStream) -> io::Error {
    let tell = |stream: &mut TcpStream| {
        let mut request = vec![0; plain_http::PLAIN_BYTES_MAX];
        let count = stream.read(&mut request)?;
        stream.write_all(&plain_http::answer(&request[..count], tls::FOR_MEMBERS))?;
        stream.shutdown(Shutdown::Write)?;
        // Closing with bytes unread would take the answer back.
        stream.set_read_timeout(Some(plain_http::PLAIN_PATIENCE))?;
        stream.read(&mut request)
    };
    // However it ends, the connection is closed.
    let _ = tell(&mut stream);
    invalid("a client of plain HTTP; it was told that this port is for members".to_owned())
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn holds_frame(buffer: &[u8]) -> bool {
    let Some((length, _)) = buffer.split_first_chunk::<4>() else { return false };
    buffer.len() >= frame::HEADER + u32::from_le_bytes(*length) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection from an address of its own, and this end of it.
    fn connect() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn who_occupies_the_lobby_gives_way() {
        let mut lobby = Lobby::default();
        let (member, crowd) = ("10.0.0.1".parse().unwrap(), "10.6.6.6".parse().unwrap());
        let (_near, far) = connect();
        let (first, _) = lobby.enter(member, far.try_clone().unwrap());
        let crowding: Vec<u64> = (1..LOBBY_MAX).map(|_| lobby.enter(crowd, far.try_clone().unwrap()).0).collect();
        let (_, displaced) = lobby.enter(crowd, far.try_clone().unwrap());
        assert_eq!(displaced, Some(crowding[0]), "the oldest of the crowd, and not the member, which came before");
        assert!(lobby.guests.contains_key(&first));
        assert_eq!(lobby.guests.len(), LOBBY_MAX);
    }

    #[test]
    fn who_is_not_taken_is_counted_by_why() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let me = Me { node: NodeId(1), peer: PeerId(11), cluster: ClusterId(5), address: "127.0.0.1:2380".to_owned() };
        let (inbox, work, staged) = (Arc::default(), Arc::default(), Arc::default());
        let transport = Transport::new(me, Peers::OnePerNode, inbox, work, staged, runtime.handle().clone(), None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let _listening = Listening::start(listener, transport.clone()).unwrap();
        let say = |payload: &[u8]| {
            let mut stream = TcpStream::connect(address).unwrap();
            frame::write(&mut stream, payload).unwrap();
            // Until the other side hangs up, however it does that.
            let _ = io::Read::read_to_end(&mut stream, &mut Vec::new());
        };
        say(b"nonsense");
        let hello = |cluster| Hello {
            purpose: Purpose::Messages,
            cluster: ClusterId(cluster),
            node: NodeId(2),
            peer: PeerId(12),
            address: "127.0.0.2:2380".to_owned(),
        };
        say(&hello(6).encode());
        say(&hello(7).encode());
        // Whoever only looks whether somebody listens is not refused.
        drop(TcpStream::connect(address).unwrap());
        assert_eq!(Why::ALL.map(|why| transport.turned_away().of(why)), [0, 0, 2, 1]);
    }

    #[test]
    fn who_takes_too_long_is_shown_out() {
        let mut lobby = Lobby::default();
        let (near, far) = connect();
        lobby.enter("10.0.0.1".parse().unwrap(), far);
        assert_eq!(lobby.show_out(Instant::now()), 0);
        assert_eq!(lobby.show_out(Instant::now() + HANDSHAKE_TIMEOUT * 2), 1);
        assert_eq!(io::Read::read(&mut &near, &mut [0]).unwrap(), 0, "its connection has ended");
    }
}
