//! The gossip port: accepts connections, greets, and passes on what is said on them.
//!
//! Those that have not greeted yet are few at a time, and the oldest gives way to the next: who only occupies places cannot
//! keep members out, which need a place for milliseconds. Each member has one connection; a second one takes its place.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base::PeerId;
use gossip::Identity;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::secure::{self, Secure};
use super::wire::{self, Greeting, Hello};
use super::{Arrival, Common};
use crate::clock;
use crate::refused::Why;

/// Connections that have not greeted yet.
const STRANGERS_MAX: usize = 128;
/// Connections of members.
const MEMBERS_MAX: usize = 2 * gossip::MEMBERS_MAX;
const LOGGED_MAX: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A member says something far more often.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const ACCEPT_AGAIN: Duration = Duration::from_millis(10);

pub struct Door {
    common: Arc<Common>,
    inbox: mpsc::Sender<Arrival>,
    rooms: Mutex<Rooms>,
    /// Each failure of each address is logged once.
    logged: Mutex<BTreeSet<(IpAddr, String)>>,
}

#[derive(Default)]
struct Rooms {
    next: u64,
    strangers: BTreeMap<u64, AbortHandle>,
    members: BTreeMap<(PeerId, Arc<str>), (u64, AbortHandle)>,
}

impl Door {
    pub fn new(common: Arc<Common>, inbox: mpsc::Sender<Arrival>) -> Arc<Door> {
        Arc::new(Door { common, inbox, rooms: Mutex::default(), logged: Mutex::default() })
    }

    /// Accepts until it is dropped.
    pub async fn accept(self: Arc<Door>, listener: TcpListener) {
        loop {
            // An error concerns the connection that failed, or passes (too many open files).
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            };
            let mut rooms = self.rooms.lock();
            let id = rooms.next;
            rooms.next += 1;
            let (door, place) = (self.clone(), Place { door: self.clone(), id });
            let task = tokio::spawn(async move {
                let _place = place;
                door.serve(id, stream, from.ip()).await;
            });
            rooms.strangers.insert(id, task.abort_handle());
            let oldest = (rooms.strangers.len() > STRANGERS_MAX).then(|| rooms.strangers.pop_first()).flatten();
            drop(rooms);
            if let Some((_, oldest)) = oldest {
                self.common.refused.count(Why::TooMany);
                oldest.abort();
            }
        }
    }

    async fn serve(&self, id: u64, stream: TcpStream, from: IpAddr) {
        let greeted = timeout(HANDSHAKE_TIMEOUT, self.greet(id, stream)).await;
        let why = match greeted {
            Ok(Ok(Some((stream, identity)))) => match self.listen(stream, &identity).await {
                Ok(()) => return,
                Err(why) => why,
            },
            Ok(Ok(None)) => return,
            Err(_) => return self.common.refused.count(Why::TooSlow),
            Ok(Err(why)) => why,
        };
        if why.kind() != io::ErrorKind::InvalidData {
            return;
        }
        let why = rpc::tls_words::of_io(&why);
        let mut logged = self.logged.lock();
        if logged.len() < LOGGED_MAX && logged.insert((from, why.clone())) {
            tracing::warn!(
                target: "chainfire_gossip",
                "Closed a connection on the gossip port, addr={from} why={why} code=CF3202"
            );
        }
    }

    /// `None`: the other side was not let in, and knows why.
    async fn greet(&self, id: u64, stream: TcpStream) -> io::Result<Option<(Secure, Identity)>> {
        let (mut secure, identity) = self.first_words(stream).await.inspect_err(|error| {
            // All else is an end: whoever only asks who is here leaves early.
            if error.kind() == io::ErrorKind::InvalidData {
                self.common.refused.count(Why::Malformed);
            }
        })?;
        let vouched = self.common.vouch(&secure, &identity, &identity.about.raft_address);
        let verdict = match &vouched {
            Err(_) => wire::WRONG_NAME,
            Ok(()) if !identity.is_of(self.common.me().about.cluster) => wire::WRONG_CLUSTER,
            Ok(()) if !self.let_in(id, &identity) => wire::BUSY,
            Ok(()) => wire::WELCOME,
        };
        match verdict {
            wire::WELCOME => {}
            wire::BUSY => self.common.refused.count(Why::TooMany),
            _ => self.common.refused.count(Why::NotAMember),
        }
        wire::write(&mut secure.stream, &[verdict]).await?;
        vouched.map_err(|why| invalid(&why))?;
        Ok((verdict == wire::WELCOME).then_some((secure, identity)))
    }

    /// Says who this node is, and hears who the other side claims to be.
    async fn first_words(&self, stream: TcpStream) -> io::Result<(Secure, Identity)> {
        stream.set_nodelay(true)?;
        let mut secure = secure::accept(stream, self.common.certificates.as_ref()).await?;
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&clock::random_u64().to_le_bytes());
        nonce[8..].copy_from_slice(&clock::random_u64().to_le_bytes());
        let me = self.common.me();
        wire::write(&mut secure.stream, &Greeting { nonce, identity: (*me).clone() }.encode()).await?;
        let hello =
            wire::read(&mut secure.stream, wire::SMALL_BYTES_MAX).await.map_err(|error| match error.kind() {
                io::ErrorKind::InvalidData if secure.certificate.is_none() => {
                    invalid("its bytes are not ours; does it speak TLS, which this node does not?")
                }
                _ => error,
            })?;
        let hello = Hello::decode(&hello).filter(|hello| hello.nonce == nonce);
        let Hello { identity, .. } = hello.ok_or_else(|| invalid("its bytes are not ours"))?;
        Ok((secure, identity))
    }

    /// Moves a connection from the strangers to the members, if there is room.
    fn let_in(&self, id: u64, identity: &Identity) -> bool {
        let member = (identity.peer, identity.address.clone());
        let mut rooms = self.rooms.lock();
        if rooms.members.len() >= MEMBERS_MAX && !rooms.members.contains_key(&member) {
            return false;
        }
        let Some(task) = rooms.strangers.remove(&id) else { return false };
        let before = rooms.members.insert(member, (id, task));
        drop(rooms);
        if let Some((_, before)) = before {
            before.abort();
        }
        true
    }

    async fn listen(&self, mut secure: Secure, identity: &Identity) -> io::Result<()> {
        loop {
            let read = timeout(SILENCE_MAX, wire::read(&mut secure.stream, gossip::MESSAGE_BYTES_MAX)).await;
            let Ok(message) = read else { return Ok(()) };
            let message = message?;
            let sender = gossip::sender(&message).ok_or_else(|| invalid("a message that cannot be decoded"))?;
            let same = |id: &Identity| (id.address.clone(), id.peer, id.about.node);
            if same(&sender) != same(identity) {
                // A node that was named by its cluster in the meantime greets again.
                return if sender.peer == identity.peer { Ok(()) } else { Err(invalid("a message of somebody else")) };
            }
            // Whoever is not heard because too much waits is asked again.
            if self.inbox.try_send(Arrival::Message(message)).is_err() {
                self.common.count_dropped();
            }
        }
    }

    fn leave(&self, id: u64) {
        let mut rooms = self.rooms.lock();
        let mut gone: Vec<AbortHandle> = rooms.strangers.remove(&id).into_iter().collect();
        gone.extend(rooms.members.extract_if(.., |_, (other, _)| *other == id).map(|(_, (_, task))| task));
        drop(rooms);
        drop(gone);
    }
}

/// A connection's place; given back however the connection ends.
struct Place {
    door: Arc<Door>,
    id: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.leave(self.id);
    }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
