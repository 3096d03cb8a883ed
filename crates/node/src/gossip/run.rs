//! The loop around the machine: what came in and the time go in, messages and news come out.
//!
//! *Where it begins.* Every member of Raft and every initial member that is not known to be alive is looked for at its
//! expected gossip address (one port above its Raft port); if nobody is there, it is asked at its Raft address where it
//! gossips. Found or not, this is done less and less often, up to every five seconds.
//!
//! *What it says of itself* is looked up every 200 ms; a change makes its identity a revision newer.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::{ClusterId, Time};
use bytes::Bytes;
use consensus::Role as RaftRole;
use gossip::{About, Change, Event, Gossip, Identity, Input, Member, Output, Role, Settings, State};
use tokio::sync::{mpsc, oneshot};

use super::door::Door;
use super::link::{self, Failure, Links};
use super::{Arrival, Common, FAREWELL, INBOX_MAX, SharedView, View, expected_at};
use crate::clock;
use crate::founding;
use crate::node::Shell;
use crate::transport::bare_address;

/// How often the world is looked at without being told.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
const SEED_PERIOD_MIN: Duration = Duration::from_millis(400);
const SEED_PERIOD_MAX: Duration = Duration::from_secs(5);
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// What is taken from the inbox for one turn.
const TURN_MAX: usize = 64;

pub async fn run(
    listener: TcpListener,
    shell: Arc<Shell>,
    common: Arc<Common>,
    view: SharedView,
    leave: oneshot::Receiver<()>,
) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(why) => {
            tracing::error!(target: "chainfire_gossip", "Gossip does not run, why={why} code=CF3203");
            return;
        }
    };
    let (sender, mut inbox) = mpsc::channel(INBOX_MAX);
    let accepting = tokio::spawn(Door::new(common.clone(), sender.clone()).accept(listener));
    let me = (*common.me()).clone();
    let mut looped = Loop {
        machine: Gossip::new(me, Settings::default(), clock::random_u64(), clock::now()),
        links: Links::new(common.clone(), sender.clone()),
        seeds: Seeds { common: common.clone(), shell: shell.clone(), inbox: sender, tries: BTreeMap::new() },
        started: clock::now(),
        shell,
        common,
        view,
    };
    let mut look = tokio::time::interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tokio::pin!(leave);
    loop {
        let mut inputs = Vec::new();
        let due = looped.machine.next_due();
        tokio::select! {
            biased;
            _ = &mut leave => break,
            Some(arrival) = inbox.recv() => {
                looped.take(arrival, &mut inputs);
                while inputs.len() < TURN_MAX && let Ok(arrival) = inbox.try_recv() {
                    looped.take(arrival, &mut inputs);
                }
            }
            _ = look.tick() => looped.look(&mut inputs),
            () = sleep_until(due) => {
                // The sockets first: an answer may have come while this node was held up.
                tokio::task::yield_now().await;
                while inputs.len() < TURN_MAX && let Ok(arrival) = inbox.try_recv() {
                    looped.take(arrival, &mut inputs);
                }
            }
        }
        looped.turn(inputs);
    }
    accepting.abort();
    looped.turn(vec![Input::Leave]);
    looped.links.finish(FAREWELL).await;
}

async fn sleep_until(due: Option<Time>) {
    match due {
        Some(due) => tokio::time::sleep(due.since(clock::now())).await,
        None => std::future::pending().await,
    }
}

struct Loop {
    machine: Gossip,
    links: Links,
    seeds: Seeds,
    started: Time,
    shell: Arc<Shell>,
    common: Arc<Common>,
    view: SharedView,
}

impl Loop {
    fn take(&mut self, arrival: Arrival, inputs: &mut Vec<Input>) {
        match arrival {
            Arrival::Message(bytes) => inputs.push(Input::Message(bytes)),
            Arrival::Refused(address) => inputs.push(Input::Refused { address }),
            Arrival::Met { seed, found } => {
                self.seeds.looked_for(&seed, &found);
                inputs.extend(found.ok().map(Input::Met));
            }
        }
    }

    fn look(&mut self, inputs: &mut Vec<Input>) {
        inputs.push(Input::Describe(about(&self.shell)));
        self.seeds.look(self.machine.members(), &self.machine.me().address);
    }

    fn turn(&mut self, inputs: Vec<Input>) {
        let outputs = self.machine.turn(clock::now(), inputs);
        let me = self.machine.me();
        let before = self.common.me();
        if *me != *before {
            let again = (before.about.cluster, before.about.node) != (me.about.cluster, me.about.node);
            self.common.me.store(Arc::new(me.clone()));
            if again {
                self.links.greet_again();
            }
        }
        for output in outputs {
            match output {
                Output::Send { to, bytes } => self.links.send(to, bytes),
                Output::Event(event) => say(&event),
            }
        }
        let own = Member { identity: self.machine.me().clone(), state: State::Alive, since: self.started };
        self.view.store(Arc::new(View {
            members: std::iter::once(own).chain(self.machine.members().cloned()).collect(),
            stats: self.machine.stats(),
            dropped: self.common.dropped.load(Ordering::Relaxed),
            refused: self.common.refused.stats(),
        }));
    }
}

/// What this node says of itself at the moment.
pub fn about(shell: &Shell) -> About {
    let identity = shell.identity();
    let known = shell.handle.membership().by_peer(identity.peer).is_some();
    let role = match shell.handle.status().role {
        _ if identity.cluster == ClusterId::default() || !known => Role::Waiting,
        // An election is no news worth telling.
        RaftRole::Follower | RaftRole::Candidate => Role::Follower,
        RaftRole::Leader => Role::Leader,
        RaftRole::Learner => Role::Learner,
    };
    About {
        cluster: identity.cluster,
        node: identity.node,
        role,
        raft_address: bare_address(&shell.config.advertise_peer).to_owned(),
        client_urls: shell.config.client_urls.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
    .bounded()
}

fn say(Event { member, change }: &Event) {
    let Identity { address, about, .. } = &member.identity;
    let (node, role, version) = (about.node, about.role.name(), &about.version);
    match change {
        Change::Up => tracing::info!(
            target: "chainfire_gossip",
            "Member is alive, node={node} addr={address} role={role} version={version}"
        ),
        Change::Suspect => {
            tracing::info!(target: "chainfire_gossip", "Member is suspect, node={node} addr={address}");
        }
        Change::Down => tracing::warn!(target: "chainfire_gossip", "Member is down, node={node} addr={address}"),
        Change::Left => tracing::info!(target: "chainfire_gossip", "Member has left, node={node} addr={address}"),
        Change::Described => tracing::debug!(
            target: "chainfire_gossip",
            "Member says of itself, node={node} addr={address} role={role} version={version}"
        ),
        Change::Forgotten => {
            tracing::info!(target: "chainfire_gossip", "Member is forgotten, node={node} addr={address}");
        }
    }
}

/// Raft addresses of members that are not known to be alive.
struct Seeds {
    common: Arc<Common>,
    shell: Arc<Shell>,
    inbox: mpsc::Sender<Arrival>,
    tries: BTreeMap<String, Try>,
}

struct Try {
    next: Time,
    pause: Duration,
    /// Somebody is looking.
    under_way: bool,
    said: String,
}

impl Seeds {
    fn look<'a>(&mut self, members: impl Iterator<Item = &'a Member>, own: &str) {
        let met: Vec<&str> = members
            .filter(|member| matches!(member.state, State::Alive | State::Suspect))
            .map(|member| member.identity.about.raft_address.as_str())
            .collect();
        let mut wanted: Vec<String> = self.shell.known_addresses();
        wanted.iter_mut().for_each(|address| *address = bare_address(address).to_owned());
        wanted.retain(|address| !met.contains(&address.as_str()));
        self.tries.retain(|address, attempt| attempt.under_way || wanted.contains(address));
        let now = clock::now();
        for address in wanted {
            let first = || Try { next: now, pause: SEED_PERIOD_MIN, under_way: false, said: String::new() };
            let attempt = self.tries.entry(address.clone()).or_insert_with(first);
            if attempt.under_way || attempt.next > now {
                continue;
            }
            attempt.under_way = true;
            let (common, own) = (self.common.clone(), own.to_owned());
            let inbox = self.inbox.clone();
            tokio::spawn(async move {
                let found = find(&common, &address, &own).await;
                // The loop ends before its inbox does.
                let _ = inbox.send(Arrival::Met { seed: address, found }).await;
            });
        }
    }

    fn looked_for(&mut self, seed: &str, found: &Result<Identity, String>) {
        let Some(attempt) = self.tries.get_mut(seed) else { return };
        attempt.under_way = false;
        attempt.next = clock::now() + attempt.pause;
        attempt.pause = (attempt.pause * 2).min(SEED_PERIOD_MAX);
        if let Err(why) = found
            && attempt.said != *why
        {
            tracing::debug!(target: "chainfire_gossip", "No gossip with a member yet, addr={seed} why={why}");
            attempt.said.clone_from(why);
        }
    }
}

/// Who gossips for the node with this Raft address.
async fn find(common: &Common, raft_address: &str, own: &str) -> Result<Identity, String> {
    let expected = expected_at(raft_address).filter(|expected| expected != own);
    if let Some(expected) = &expected {
        match link::look(common, expected).await {
            // Not someone else who has that port.
            Ok(identity) if identity.about.raft_address == raft_address || resolves_to_other(raft_address) => {
                return Ok(identity);
            }
            Err(Failure::Other(why)) if why.contains("certificate") || why.contains("cluster") => return Err(why),
            _ => {}
        }
    }
    let asked = common.transport.call_address(raft_address.to_owned(), founding::GOSSIPS_AT, Bytes::new(), ASK_TIMEOUT);
    let answer = asked.await?.map_err(|why| why.to_string())?;
    let told = String::from_utf8(answer.to_vec()).map_err(|_| "an answer that cannot be decoded")?;
    if told.is_empty() || Some(&told) == expected.as_ref() || told == own {
        return Err("it does not gossip".to_owned());
    }
    link::look(common, &told).await.map_err(|why| match why {
        Failure::Refused => "connection refused".to_owned(),
        Failure::Other(why) => why,
    })
}

/// A host name may stand for an address that the member calls otherwise.
fn resolves_to_other(raft_address: &str) -> bool {
    raft_address.parse::<std::net::SocketAddr>().is_err()
}
