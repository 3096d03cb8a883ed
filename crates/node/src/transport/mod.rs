//! How nodes talk, on the Raft port: frames over TCP, one one-way connection per pair and direction for all
//! messages of all groups, and short two-way ones for snapshots and calls.
//!
//! Every connection begins with a [`frame::Hello`] that names the cluster, the sender and the purpose, and a
//! [`frame::Welcome`]. What is not ours is closed at once and logged once per address.
//!
//! With certificates ([`crate::tls`]) every connection is TLS, both sides show theirs, and each must name the node that its
//! owner claims to be. A connection's messages are those of the peer that has greeted.
//!
//! * `pipe`: a connection, plain or TLS.
//! * `link`: outgoing messages. The driver writes to the socket itself while it takes what there is; what does not fit waits
//!   in a bounded queue for the link's own thread, which also connects and reconnects.
//! * `listener`: accepts; a thread per connection reads, checks and hands over.
//! * `call`: questions with an answer (who are you, come in, keep this lease alive), each method a number.
//! * `stream`: snapshots, in chunks, off the message connection so that they do not hold heartbeats up.
//!
//! Left out, and why: gRPC. Its framing and scheduling cost more than the messages; this is the house's own wire
//! and no client speaks it.

mod call;
pub mod frame;
mod link;
mod listener;
mod pipe;
mod stream;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{TcpStream, ToSocketAddrs};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base::{ClusterId, NodeId, PeerId};
use bytes::Bytes;
use consensus::{Input, Membership, Message, Refusal};
use parking_lot::{Mutex, RwLock};

use crate::driver::Work;
use crate::inbox::Inbox;
use crate::tls::{self, Certificates};
use frame::{Hello, Purpose, Welcome};
use link::Link;
use pipe::{Pipe, Traffic};

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
    fn call(&self, method: u8, body: Bytes) -> CallFuture;
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Transport(Arc<Inner>);

struct Inner {
    me: RwLock<Me>,
    addresses: RwLock<BTreeMap<NodeId, Vec<String>>>,
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
    traffic: Mutex<BTreeMap<NodeId, Arc<Traffic>>>,
}

pub type StagedSnapshots = Arc<Mutex<std::collections::HashMap<u64, Box<dyn consensus::SnapshotSink>>>>;

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
    pub fn new(
        me: Me,
        inbox: Arc<Inbox<Input>>,
        work: Arc<Inbox<Work>>,
        staged: StagedSnapshots,
        runtime: tokio::runtime::Handle,
        certificates: Option<Arc<Certificates>>,
    ) -> Transport {
        Transport(Arc::new(Inner {
            me: RwLock::new(me),
            addresses: RwLock::default(),
            links: Mutex::default(),
            pool: Mutex::default(),
            service: OnceLock::new(),
            inbox,
            work,
            staged,
            runtime,
            certificates,
            refusals: Mutex::default(),
            traffic: Mutex::default(),
        }))
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

    /// Where a node is said to be.
    pub fn address(&self, node: NodeId) -> Option<Vec<String>> {
        self.0.addresses.read().get(&node).cloned()
    }

    pub fn set_address(&self, node: NodeId, addresses: Vec<String>) {
        if !addresses.is_empty() {
            self.0.addresses.write().insert(node, addresses);
        }
    }

    /// Takes over the addresses of an agreed membership, connects to its nodes, and lets go of those that left.
    pub fn learn(&self, membership: &Membership) {
        let me = self.me().node;
        for member in membership.members.values().filter(|member| member.node != me) {
            self.set_address(member.node, member.peer_urls.clone());
            self.link(member.node);
        }
        let mut links = self.0.links.lock();
        for node in &membership.removed {
            self.0.addresses.write().remove(node);
            if let Some(link) = links.remove(node) {
                link.close();
            }
        }
    }

    /// Sends messages, in order per node. Never waits; what does not fit into a node's queue is dropped.
    pub fn send(&self, messages: Vec<(NodeId, Message)>) {
        let mut per_node: BTreeMap<NodeId, Vec<Bytes>> = BTreeMap::new();
        for (node, message) in messages {
            per_node.entry(node).or_default().push(message.encode());
        }
        for (node, frames) in per_node {
            self.link(node).send(&frames);
        }
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
        for address in addresses {
            match self.connect_to(&address, purpose) {
                Ok((_, welcome)) if welcome.node != node && purpose != Purpose::Call => {
                    failure = format!("addr={}: node {} answers there", bare_address(&address), welcome.node);
                }
                Ok(connected) => return Ok(connected),
                Err(error) => failure = format!("addr={}: {error}", bare_address(&address)),
            }
        }
        Err(failure)
    }

    fn connect_to(&self, address: &str, purpose: Purpose) -> Result<(Pipe, Welcome), String> {
        let bare = bare_address(address);
        let socket = bare.to_socket_addrs().map_err(|error| error.to_string())?.next().ok_or("no such host")?;
        let stream = TcpStream::connect_timeout(&socket, CONNECT_TIMEOUT).map_err(|error| match error.kind() {
            std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => "timeout".to_owned(),
            _ => error.to_string(),
        })?;
        let tuned = stream.set_nodelay(true).and_then(|()| stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT)));
        tuned.and_then(|()| stream.set_write_timeout(Some(HANDSHAKE_TIMEOUT))).map_err(|error| error.to_string())?;
        let wrong = |error: std::io::Error| tls::words::of_io(&error);
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
        if let Some(certificate) = pipe.certificate()
            && !tls::names_member(certificate, welcome.node, [bare])
        {
            return Err(format!(
                "certificate verify failed: it names neither {} nor {}",
                tls::node_name(welcome.node),
                tls::host_of(bare)
            ));
        }
        self.0.refusals.lock().remove(bare);
        self.count(&pipe, welcome.node);
        Ok((pipe, welcome))
    }

    /// Whether whoever has greeted may be who it claims to be: its certificate names the node, or the address under which
    /// the cluster knows the node; a node that is not known yet may say itself where it is. What it says from there on
    /// is counted as the node's.
    fn vouch(&self, pipe: &Pipe, hello: &Hello) -> Result<(), String> {
        let known = self.address(hello.node).unwrap_or_else(|| vec![hello.address.clone()]);
        let names = |certificate| tls::names_member(certificate, hello.node, known.iter().map(String::as_str));
        if pipe.certificate().is_none_or(names) {
            self.count(pipe, hello.node);
            return Ok(());
        }
        Err(format!(
            "certificate verify failed: it names neither {} nor {}, and so does not belong to node {}",
            tls::node_name(hello.node),
            known.iter().map(|address| tls::host_of(address)).collect::<Vec<_>>().join(", "),
            hello.node
        ))
    }
}

/// `host:port` without the scheme and the path that etcd's URLs carry.
pub fn bare_address(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    bare.split('/').next().unwrap_or(bare)
}
