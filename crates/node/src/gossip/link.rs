//! Connections to other members, one for each address that something was sent to of late.
//!
//! A message that cannot be sent soon is worthless: what does not fit into a link's short queue is dropped, and so is what
//! waited while there was no connection. A connection that the other side closes is opened again at once, and if nobody
//! listens there any more, the process there has died: that is told at once too ([`Arrival::Refused`]).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use gossip::Identity;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::secure::{self, Secure};
use super::wire::{self, Greeting, Hello};
use super::{Arrival, Common};
use crate::clock;

/// Messages that wait for one member.
const QUEUE_MAX: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
const COMPLAIN_AT: u32 = 2;
const RETRY_MIN: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A link that nothing was sent on for this long ends.
const IDLE_MAX: Duration = Duration::from_secs(60);

pub struct Links {
    common: Arc<Common>,
    inbox: mpsc::Sender<Arrival>,
    links: BTreeMap<Arc<str>, (mpsc::Sender<Bytes>, JoinHandle<()>)>,
}

/// Why there is no connection.
pub enum Failure {
    /// Nobody listens there.
    Refused,
    Other(String),
}

impl Links {
    pub fn new(common: Arc<Common>, inbox: mpsc::Sender<Arrival>) -> Links {
        Links { common, inbox, links: BTreeMap::new() }
    }

    pub fn send(&mut self, to: Arc<str>, message: Bytes) {
        if self.links.get(&to).is_none_or(|(sender, _)| sender.is_closed()) {
            // Ended ones go: there are never more than members were known within a minute.
            self.links.retain(|_, (sender, _)| !sender.is_closed());
            let (sender, receiver) = mpsc::channel(QUEUE_MAX);
            let link = Link { common: self.common.clone(), inbox: self.inbox.clone(), to: to.clone() };
            let task = tokio::spawn(link.run(receiver));
            self.links.insert(to.clone(), (sender, task));
        }
        if self.links[&to].0.try_send(message).is_err() {
            self.common.count_dropped();
        }
    }

    /// This node is somebody else now, and has to greet again.
    pub fn greet_again(&mut self) {
        for (_, task) in std::mem::take(&mut self.links).into_values() {
            task.abort();
        }
    }

    /// Sends what waits, at most for so long, and closes everything.
    pub async fn finish(self, within: Duration) {
        let deadline = tokio::time::Instant::now() + within;
        for (sender, mut task) in self.links.into_values() {
            drop(sender);
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
            }
        }
    }
}

struct Link {
    common: Arc<Common>,
    inbox: mpsc::Sender<Arrival>,
    to: Arc<str>,
}

impl Link {
    async fn run(self, mut queue: mpsc::Receiver<Bytes>) {
        let mut retry = RETRY_MIN;
        let mut said = String::new();
        let mut failures = 0;
        let mut connect_now = false;
        loop {
            let mut first = None;
            if !connect_now {
                let Ok(Some(message)) = timeout(IDLE_MAX, queue.recv()).await else { return };
                first = Some(message);
            }
            match connect(&self.common, &self.to).await {
                Ok(secure) => {
                    (retry, connect_now) = (RETRY_MIN, true);
                    said.clear();
                    failures = 0;
                    let since = clock::now();
                    if self.carry(secure, first, &mut queue).await.is_none() {
                        return;
                    }
                    // Two who are told apart by nothing take each other's place over there.
                    if clock::now().since(since) < RETRY_MAX {
                        tokio::time::sleep(RETRY_MAX).await;
                    }
                    continue;
                }
                Err(Failure::Refused) => {
                    // A full inbox means that there is enough to think about.
                    let _ = self.inbox.try_send(Arrival::Refused(self.to.clone()));
                }
                Err(Failure::Other(why)) => {
                    failures += 1;
                    // Once is what a process that just dies or starts looks like.
                    if failures >= COMPLAIN_AT && why != said {
                        tracing::warn!(
                            target: "chainfire_gossip",
                            "Failed to connect to a member for gossip, addr={} why={why} code=CF3201",
                            self.to
                        );
                        said = why;
                    }
                }
            }
            connect_now = false;
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(RETRY_MAX);
            while queue.try_recv().is_ok() {
                self.common.count_dropped();
            }
            if queue.is_closed() {
                return;
            }
        }
    }

    /// Writes until the connection breaks. `None`: nothing more is to be sent.
    async fn carry(&self, secure: Secure, first: Option<Bytes>, queue: &mut mpsc::Receiver<Bytes>) -> Option<()> {
        let (mut reader, mut writer) = tokio::io::split(secure.stream);
        let mut next = first;
        let mut byte = [0];
        loop {
            if let Some(message) = next.take() {
                match timeout(WRITE_TIMEOUT, wire::write(&mut writer, &message)).await {
                    Ok(Ok(())) => {}
                    _ => return Some(()),
                }
            }
            tokio::select! {
                message = queue.recv() => next = Some(message?),
                // Nothing is said in this direction: this is the end, or nonsense.
                _ = reader.read(&mut byte) => return Some(()),
                () = tokio::time::sleep(IDLE_MAX) => return None,
            }
        }
    }
}

/// A connection to a member, on which this node has been welcomed.
async fn connect(common: &Common, to: &str) -> Result<Secure, Failure> {
    let connecting = async {
        let (mut secure, greeting) = reach(common, to).await?;
        let hello = Hello { nonce: greeting.nonce, identity: (*common.me()).clone() };
        let answered = async {
            wire::write(&mut secure.stream, &hello.encode()).await?;
            wire::read(&mut secure.stream, wire::SMALL_BYTES_MAX).await
        };
        let verdict = answered.await.map_err(other)?;
        match wire::refusal(&verdict) {
            Some(why) => Err(Failure::Other(why.to_owned())),
            None => Ok(secure),
        }
    };
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| Err(Failure::Other("timeout".to_owned())))
}

/// Who is at an address.
pub async fn look(common: &Common, at: &str) -> Result<Identity, Failure> {
    let looking = timeout(CONNECT_TIMEOUT, reach(common, at)).await;
    let (_, greeting) = looking.unwrap_or_else(|_| Err(Failure::Other("timeout".to_owned())))?;
    Ok(greeting.identity)
}

async fn reach(common: &Common, address: &str) -> Result<(Secure, Greeting), Failure> {
    let stream = TcpStream::connect(address).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::TimedOut => Failure::Other("timeout".to_owned()),
        _ => Failure::Other(error.to_string()),
    })?;
    stream.set_nodelay(true).map_err(other)?;
    let mut secure = secure::open(stream, common.certificates.as_ref()).await.map_err(other)?;
    let bytes = wire::read(&mut secure.stream, wire::SMALL_BYTES_MAX).await.map_err(other)?;
    let greeting = Greeting::decode(&bytes)
        .ok_or_else(|| Failure::Other("the other side does not speak this protocol".to_owned()))?;
    common.vouch(&secure, &greeting.identity, address).map_err(Failure::Other)?;
    if !greeting.identity.is_of(common.me().about.cluster) {
        return Err(Failure::Other("the node there belongs to another cluster".to_owned()));
    }
    Ok((secure, greeting))
}

fn other(error: io::Error) -> Failure {
    Failure::Other(rpc::tls_words::of_io(&error))
}
