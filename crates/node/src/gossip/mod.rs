//! Gossip on a port of its own: the sockets, the clock and the thread around [`gossip::Gossip`].
//!
//! It runs from the moment the node starts, also while the node belongs to no cluster, and tells people ([`View`]: status,
//! metrics, log) who is alive, where, in which version and role. It finds addresses for a node that joins
//! ([`crate::founding`]). It never changes who is a member.
//!
//! # The life of a message
//! ```text
//!  other member ─▶ door: TLS, greeting, is it who it says? ─▶ inbox ─▶ run: Gossip::turn ─▶ links ─▶ other members
//!                                                                       │
//!                                  log lines, View for status and metrics ◀─ events
//! ```
//! All of it happens on one thread with a runtime of its own: nothing that clients ask for holds up an answer to a probe.
//!
//! # Rooms
//! [`wire`] what is said on a connection · [`secure`] TLS · [`door`] those who come here · [`link`] those this node goes to ·
//! [`run`] the loop around the machine, and the addresses it begins with.
//!
//! # Security
//! Off loopback there is no gossip without certificates. With them each side's certificate must name the node that it
//! claims to be (as on the Raft port), and a connection carries only messages of the identity that has greeted on it. TLS
//! keeps messages from being read, changed or played again; on loopback without it, a number drawn per connection keeps
//! whole connections from being played again. Identities carry the cluster's id, and nothing of another cluster's is
//! taken in.
//!
//! # Bounds
//! Connections, greeted or not (the rest is refused and counted); bytes of a message; messages that wait to be read or sent
//! (the rest is dropped and counted); members; silence.

mod door;
mod link;
mod run;
mod secure;
pub mod wire;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use base::ClusterId;
use bytes::Bytes;
use gossip::{Identity, Member, State, Stats};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::clock;
use crate::node::Shell;
use crate::refused::{Refused, RefusedStats};
use crate::tls::{self, Certificates};
use crate::transport::{Transport, bare_address};

use secure::Secure;

/// What came in and waits for the machine.
const INBOX_MAX: usize = 1024;
/// Saying good-bye takes at most this.
const FAREWELL: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipOptions {
    pub listen: SocketAddr,
    /// Whether the node does not start when it cannot listen there; otherwise it goes on without gossip, and says so.
    pub required: bool,
}

/// What this node knows of all, itself included, as of the moment.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// This node first.
    pub members: Vec<Member>,
    pub stats: Stats,
    /// Messages that found no place in a queue.
    pub dropped: u64,
    /// Connections that this node did not take.
    pub refused: RefusedStats,
}

impl View {
    /// Raft addresses of members of a cluster that may know more.
    pub fn raft_addresses(&self) -> Vec<String> {
        let others = self.members.iter().skip(1).filter(|member| member.state == State::Alive);
        let in_a_cluster = others.filter(|member| member.identity.about.cluster != ClusterId::default());
        in_a_cluster.map(|member| member.identity.about.raft_address.clone()).filter(|at| !at.is_empty()).collect()
    }
}

/// The latest [`View`]; empty without gossip.
pub type SharedView = Arc<ArcSwap<View>>;

/// Running gossip; its thread ends with [`Gossiping::stop`], or with the process.
pub struct Gossiping {
    farewell: Mutex<Option<oneshot::Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What happens on connections, for the loop.
enum Arrival {
    Message(Bytes),
    Refused(Arc<str>),
    /// Who was found at an address that this node begins with.
    Met {
        seed: String,
        found: Result<Identity, String>,
    },
}

/// What the tasks of the port share.
struct Common {
    me: ArcSwap<Identity>,
    certificates: Option<Arc<Certificates>>,
    transport: Transport,
    dropped: AtomicU64,
    refused: Refused,
}

impl Common {
    fn me(&self) -> Arc<Identity> {
        self.me.load_full()
    }

    fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether the other side may be who it claims to be: its certificate names the node, by number or by an address under
    /// which the cluster knows it (`address` stands for one that is not known yet); the peer is nobody else's; and its
    /// gossip is at a place of its own, so that nobody speaks for the place of another.
    fn vouch(&self, secure: &Secure, claimed: &Identity, address: &str) -> Result<(), String> {
        let node = claimed.about.node;
        let directory = self.transport.directory();
        directory.owns(node, claimed.peer)?;
        let Some(certificate) = &secure.certificate else { return Ok(()) };
        directory.standing(certificate, node, address)?;
        let host = tls::host_of(&claimed.address);
        let agreed = directory.addresses(node).unwrap_or_default();
        let own = tls::is_loopback(host)
            || tls::names_host(certificate, host)
            || agreed.iter().any(|address| tls::host_of(address) == host);
        own.then_some(()).ok_or_else(|| format!("certificate verify failed: it does not name {host}, where it gossips"))
    }
}

/// Under which address the others find this node's gossip: where it listens, or if that is everywhere, on the host of its
/// Raft address.
pub(crate) fn advertised(listen: SocketAddr, advertise_peer: &str) -> String {
    if !listen.ip().is_unspecified() {
        return listen.to_string();
    }
    at_port(tls::host_of(advertise_peer), listen.port())
}

/// Where a member's gossip is to be expected: one port above its Raft port.
fn expected_at(raft_address: &str) -> Option<String> {
    let (_, port) = bare_address(raft_address).rsplit_once(':')?;
    Some(at_port(tls::host_of(raft_address), port.parse::<u16>().ok()?.checked_add(1)?))
}

fn at_port(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Gossiping {
    pub(crate) fn start(
        listener: TcpListener,
        shell: Arc<Shell>,
        certificates: Option<Arc<Certificates>>,
        view: SharedView,
    ) -> Result<Gossiping, String> {
        let listen = listener.local_addr().map_err(|error| error.to_string())?;
        listener.set_nonblocking(true).map_err(|error| error.to_string())?;
        let address = advertised(listen, &shell.config.advertise_peer);
        let about = run::about(&shell);
        let me = Identity::new(&address, shell.identity().peer, clock::unix_ms(), about)
            .ok_or_else(|| format!("{address:?} is no address that others could be told"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let common = Arc::new(Common {
            me: ArcSwap::from_pointee(me),
            certificates,
            transport: shell.transport.clone(),
            dropped: AtomicU64::new(0),
            refused: Refused::default(),
        });
        let (farewell, leave) = oneshot::channel();
        tracing::info!(target: "chainfire_gossip", "Listening for gossip, addr={listen}");
        let run = move || {
            runtime.block_on(run::run(listener, shell, common, view, leave));
            // A look-up of a host name may still be under way.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name("gossip".to_owned()).spawn(run);
        let thread = thread.map_err(|error| error.to_string())?;
        Ok(Gossiping { farewell: Mutex::new(Some(farewell)), thread: Mutex::new(Some(thread)) })
    }

    /// Says good-bye to the others, so that they see that this node has left rather than died.
    pub fn stop(&self) {
        drop(self.farewell.lock().take());
        if let Some(thread) = self.thread.lock().take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
