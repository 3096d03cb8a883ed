//! How nodes talk, on the Raft port: frames over TCP, one one-way connection per pair and direction for all
//! messages of all groups, and short two-way ones for snapshots and calls.
//!
//! Every connection begins with a [`frame::Hello`] that names the cluster, the sender and the purpose, and a
//! [`frame::Welcome`]. What is not ours is closed at once and logged once per address.
//!
//! With certificates ([`crate::tls`]) every connection is TLS, both sides show theirs, and each must name the node that its
//! owner claims to be; how far that is certain decides what it may do ([`directory`]). A connection's messages are those of
//! the peer that has greeted, and calls are told who asks.
//!
//! * `pipe`: a connection, plain or TLS.
//! * `link`: outgoing messages. The driver writes to the socket itself while it takes what there is; what does not fit waits
//!   in a bounded queue for the link's own thread, which also connects and reconnects.
//! * `listener`: accepts; a thread per connection reads, checks and hands over.
//! * [`directory`]: who the others are, and what their certificates vouch for.
//! * `call`: questions with an answer (who are you, come in, keep this lease alive), each method a number.
//! * `stream`: snapshots, in chunks, off the message connection so that they do not hold heartbeats up.
//!
//! Left out, and why: gRPC. Its framing and scheduling cost more than the messages; this is the house's own wire
//! and no client speaks it.

mod call;
pub mod directory;
pub mod frame;
mod link;
mod listener;
mod pipe;
mod stream;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base::{ClusterId, NodeId, PeerId};
use bytes::Bytes;
use consensus::wire::Body;
use consensus::{Input, Membership, Message, Refusal};
use parking_lot::{Mutex, RwLock};

use crate::applier::Work;
use crate::inbox::Inbox;
use crate::pace::Pace;
use crate::refused::{Refused, RefusedStats, Why};
use crate::tls::{self, Certificates, Program};
use directory::Directory;
use frame::{Hello, Purpose, Welcome};
use link::Link;
use pipe::{Pipe, Traffic};

pub use consensus::membership::bare_address;
pub use directory::{Caller, Standing};
pub use listener::Listening;

/// Connecting and shaking hands take at most this.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REFUSALS_MAX: usize = 64;
/// Nodes whose bytes are counted: more than there can be members, so that none is left out for others that came and went.
const COUNTED_MAX: usize = 256;

pub type CallFuture = Pin<Box<dyn Future<Output = Result<Bytes, Refusal>> + Send>>;

/// Answers calls of other nodes (and of this one to itself). Methods below 16 are the shell's.
pub trait CallService: Send + Sync {
    /// Whoever asks may be anybody with a member's certificate: see [`Standing`].
    fn call(&self, caller: &Caller, method: u8, body: Bytes) -> CallFuture;

    /// Whether the members that this node knows know a peer that it does not know itself.
    fn is_known_to_others(&self, _peer: PeerId) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(std::future::ready(false))
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    me: RwLock<Me>,
    peers: Peers,
    directory: RwLock<Directory>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    pool: Mutex<BTreeMap<String, Vec<Pipe>>>,
    service: OnceLock<Arc<dyn CallService>>,
    inbox: Arc<Inbox<Input>>,
    work: Arc<Inbox<Work>>,
    staged: StagedSnapshots,
    runtime: tokio::runtime::Handle,
    /// `None`: plain TCP, on loopback.
    certificates: Option<Arc<Certificates>>,
    /// Why nodes at these addresses turned this one away, or were turned away; until they take it.
    refusals: Mutex<BTreeMap<String, String>>,
    /// Connections that this node did not take.
    turned_away: Refused,
    traffic: Mutex<BTreeMap<NodeId, Arc<Traffic>>>,
    /// Of the snapshots that are sent, taken together.
    snapshot_pace: Pace,
}

pub type StagedSnapshots = Arc<Mutex<std::collections::HashMap<u64, Box<dyn consensus::SnapshotSink>>>>;

/// Whose the peer ids of messages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peers {
    /// A node has one, its folder's, in its one group.
    OnePerNode,
    /// A node has another one in each of its groups; each group knows which are whose.
    OnePerGroup,
}

/// Who speaks.
#[derive(Clone, Debug, Default)]
pub struct Me {
    pub node: NodeId,
    pub peer: PeerId,
    /// Zero while this node belongs to none: it then talks to everyone.
    pub cluster: ClusterId,
    /// `host:port` under which the others reach this node.
    pub address: String,
}

impl Transport {
    pub(crate) fn new(
        me: Me,
        peers: Peers,
        inbox: Arc<Inbox<Input>>,
        work: Arc<Inbox<Work>>,
        staged: StagedSnapshots,
        runtime: tokio::runtime::Handle,
        certificates: Option<Arc<Certificates>>,
    ) -> Transport {
        Transport(Arc::new(Inner {
            me: RwLock::new(me),
            peers,
            directory: RwLock::new(Directory::of(program_of(certificates.as_ref()))),
            links: Mutex::default(),
            pool: Mutex::default(),
            service: OnceLock::new(),
            inbox,
            work,
            staged,
            runtime,
            certificates,
            refusals: Mutex::default(),
            turned_away: Refused::default(),
            traffic: Mutex::default(),
            snapshot_pace: Pace::default(),
        }))
    }

    /// Bytes a second that snapshots may be sent with, from now on; zero: as fast as it goes.
    pub fn pace_snapshots(&self, bytes_per_sec: u64) {
        self.0.snapshot_pace.set(bytes_per_sec);
    }

    /// Connections that this node did not take.
    pub fn turned_away(&self) -> RefusedStats {
        self.0.turned_away.stats()
    }

    fn count_turned_away(&self, why: Why) {
        self.0.turned_away.count(why);
    }

    /// Where a node that is not agreed upon says that it is, so that it can be answered.
    fn hear(&self, caller: &Caller) {
        if self.address(caller.node).is_none() {
            self.0.directory.write().hear(caller.node, &caller.address);
        }
    }

    fn is_known_to_others(&self, peer: PeerId) -> bool {
        self.0.service.get().is_some_and(|service| self.0.runtime.block_on(service.is_known_to_others(peer)))
    }

    /// Who would not have to do with this node, and why, one sentence each.
    pub fn refusals(&self) -> Vec<String> {
        self.0.refusals.lock().iter().map(|(address, why)| format!("{address}: {why}")).collect()
    }

    /// Bytes sent to each node and received from it since this process began, before encryption.
    pub fn traffic(&self) -> Vec<(NodeId, u64, u64)> {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.0.traffic.lock().iter().map(|(node, seen)| (*node, get(&seen.sent), get(&seen.received))).collect()
    }

    /// Counts a connection's bytes as a node's.
    fn count(&self, pipe: &Pipe, node: NodeId) {
        let mut traffic = self.0.traffic.lock();
        if traffic.len() < COUNTED_MAX || traffic.contains_key(&node) {
            pipe.count(traffic.entry(node).or_default().clone());
        }
    }

    pub fn set_service(&self, service: Arc<dyn CallService>) {
        assert!(self.0.service.set(service).is_ok(), "the service is set once");
    }

    pub fn me(&self) -> Me {
        self.0.me.read().clone()
    }

    pub fn set_me(&self, me: Me) {
        *self.0.me.write() = me;
    }

    /// Where a node is to be found.
    pub fn address(&self, node: NodeId) -> Option<Vec<String>> {
        self.0.directory.read().addresses(node)
    }

    /// Everybody who is agreed upon but this node, with addresses.
    pub fn others(&self) -> Vec<(NodeId, Vec<String>)> {
        let me = self.me().node;
        let directory = self.0.directory.read();
        directory.agreed().filter(|(node, _)| *node != me).map(|(node, addresses)| (node, addresses.to_vec())).collect()
    }

    /// Where the configuration says that a node is.
    pub fn set_address(&self, node: NodeId, addresses: Vec<String>) {
        self.0.directory.write().agree(node, addresses);
    }

    pub fn peers(&self) -> Peers {
        self.0.peers
    }

    /// Whether a message is its sender's own.
    fn is_of(&self, caller: &Caller, message: &Message) -> bool {
        let peer_is_right = self.0.peers == Peers::OnePerGroup || message.from == caller.peer;
        message.from_node == caller.node && peer_is_right
    }

    pub fn directory(&self) -> parking_lot::RwLockReadGuard<'_, Directory> {
        self.0.directory.read()
    }

    /// Takes over the addresses of an agreed membership, connects to its nodes, and lets go of those that left.
    /// Where nodes have many groups, none of these decides about nodes.
    pub fn learn(&self, membership: &Membership) {
        if self.0.peers == Peers::OnePerGroup {
            return;
        }
        let me = self.me().node;
        self.0.directory.write().learn(membership);
        for member in membership.members.values().filter(|member| member.node != me) {
            self.link(member.node);
        }
        let mut links = self.0.links.lock();
        for node in &membership.removed {
            if let Some(link) = links.remove(node) {
                link.close();
            }
        }
    }

    /// Sends messages, in order per node. Never waits; what cannot be sent, because a node is not connected or its queue is
    /// full, is dropped. Of that, what clients have asked for is returned.
    pub fn send(&self, messages: Vec<(NodeId, Message)>) -> Vec<Message> {
        let mut per_node: BTreeMap<NodeId, (Vec<Bytes>, Vec<Message>)> = BTreeMap::new();
        for (node, message) in messages {
            let (frames, asked_for) = per_node.entry(node).or_default();
            frames.push(message.encode());
            if matches!(message.body, Body::Forward { .. } | Body::ForwardChange { .. }) {
                asked_for.push(message);
            }
        }
        let mut unsent = Vec::new();
        for (node, (frames, asked_for)) in per_node {
            if !self.link(node).send(&frames) {
                unsent.extend(asked_for);
            }
        }
        unsent
    }

    /// A node has connected to this one: so it can be reached.
    fn nudge(&self, node: NodeId) {
        if let Some(link) = self.0.links.lock().get(&node) {
            link.nudge();
        }
    }

    pub fn close(&self) {
        for link in std::mem::take(&mut *self.0.links.lock()).into_values() {
            link.close();
        }
    }

    fn link(&self, node: NodeId) -> Arc<Link> {
        self.0.links.lock().entry(node).or_insert_with(|| Link::start(node, self.clone())).clone()
    }

    /// Connects to one of a node's addresses and shakes hands.
    fn connect(&self, node: NodeId, purpose: Purpose) -> Result<(Pipe, Welcome), String> {
        let addresses = self.address(node).ok_or_else(|| format!("no address of node {node} is known"))?;
        let mut failure = String::new();
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        for address in addresses {
            match self.connect_to(&address, purpose, deadline) {
                Ok((_, welcome)) if welcome.node != node && purpose != Purpose::Call => {
                    failure = format!("addr={}: node {} answers there", bare_address(&address), welcome.node);
                }
                Ok(connected) => return Ok(connected),
                Err(error) => failure = format!("addr={}: {error}", bare_address(&address)),
            }
        }
        Err(failure)
    }

    /// All of it is done by the deadline, or not.
    fn connect_to(&self, address: &str, purpose: Purpose, deadline: Instant) -> Result<(Pipe, Welcome), String> {
        let bare = bare_address(address);
        let stream = reach(bare, deadline)?;
        let left = time_left(deadline).min(HANDSHAKE_TIMEOUT);
        let tuned = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(left)));
        tuned.and_then(|()| stream.set_write_timeout(Some(left))).map_err(|error| error.to_string())?;
        let wrong = |error: std::io::Error| rpc::tls_words::of_io(&error);
        let mut pipe = Pipe::open(stream, self.0.certificates.as_ref()).map_err(wrong)?;
        let me = self.me();
        let hello = Hello { purpose, cluster: me.cluster, node: me.node, peer: me.peer, address: me.address };
        frame::write(&mut pipe, &hello.encode()).map_err(wrong)?;
        let reply = frame::read(&mut pipe, frame::SMALL_BYTES_MAX).map_err(wrong)?;
        let welcome = Welcome::decode(&reply).ok_or("the other side does not speak this protocol")?;
        if let Some(why) = welcome.refusal() {
            let mut refusals = self.0.refusals.lock();
            if refusals.len() < REFUSALS_MAX {
                refusals.insert(bare.to_owned(), why.to_owned());
            }
            return Err(why.to_owned());
        }
        if let Some(certificate) = pipe.certificate() {
            let program = program_of(self.0.certificates.as_ref());
            let vouched = tls::names_member(program, certificate, welcome.node, [bare])
                .map_err(|why| format!("certificate verify failed: {why}"))?;
            vouched.ok_or_else(|| {
                let (name, host) = (program.name_of(welcome.node), tls::host_of(bare));
                format!("certificate verify failed: it names neither {name} nor {host}")
            })?;
        }
        self.0.directory.read().owns(welcome.node, welcome.peer)?;
        self.0.refusals.lock().remove(bare);
        self.count(&pipe, welcome.node);
        Ok((pipe, welcome))
    }

    /// This node, as those see it that it calls.
    fn myself(&self) -> Caller {
        let Me { node, peer, address, .. } = self.me();
        Caller { node, peer, address, standing: Standing::Member }
    }
}

/// Whose certificates members show each other, where they show any.
fn program_of(certificates: Option<&Arc<Certificates>>) -> Program {
    certificates.map(|certificates| certificates.options().program).unwrap_or_default()
}

/// A TCP connection to the first of a host's addresses that takes one.
fn reach(bare: &str, deadline: Instant) -> Result<TcpStream, String> {
    let sockets: Vec<SocketAddr> = bare.to_socket_addrs().map_err(|error| error.to_string())?.collect();
    let mut failure = "no such host".to_owned();
    for socket in sockets {
        match TcpStream::connect_timeout(&socket, time_left(deadline).min(CONNECT_TIMEOUT)) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                failure = match error.kind() {
                    std::io::ErrorKind::HostUnreachable => format!("unreachable: {error}"),
                    std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
                    std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => "timeout".to_owned(),
                    _ => error.to_string(),
                }
            }
        }
    }
    Err(failure)
}

/// Never nothing: sockets take that for "no limit".
fn time_left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
