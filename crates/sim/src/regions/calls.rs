//! Questions between processes, and of clients: connections that carry a question and its answer, or break. Also all else
//! that processes put down for the world to carry out ([`super::ground::Out`]).

use std::collections::BTreeMap;

use base::NodeId;
use prost::Message as _;
use proto::placement as pb;
use tokio::sync::oneshot;

use super::World;
use super::bug::Bug;
use super::ground::{Call, Heard, Out, Question, To};
use super::node::place_at;
use super::programs::{Answering, refused_after};
use super::stage::Happening;
use crate::physics::SECOND;
use crate::physics::queue::Who;

/// Answers of the placement driver that are kept, to arrive again.
const ANSWERS_KEPT: usize = 200;

#[derive(Default)]
pub struct Calls {
    next: u64,
    open: BTreeMap<u64, Open>,
    /// For planted staleness: heartbeats' answers, with the place of their store.
    pub answers: Vec<(usize, pb::HeartbeatResponse)>,
}

struct Open {
    asker: Asker,
    to: To,
    /// Who works on it.
    with: Option<Who>,
}

enum Asker {
    Process(Who, oneshot::Sender<Heard>),
    Client(u64),
}

impl World {
    /// Carries out what a process has put down. True if there was anything.
    pub fn drain(&mut self, at: usize) -> bool {
        let node = &mut self.nodes[at];
        let who = node.who();
        let Some(running) = &mut node.running else { return false };
        let mut out = running.process.out.lock();
        let idle = out.tasks.is_empty()
            && out.sleeps.is_empty()
            && out.calls.is_empty()
            && out.replies.is_empty()
            && out.created.is_empty()
            && out.destroyed.is_empty()
            && out.ended.is_none()
            && !out.begun;
        let waiting = !out.inputs.is_empty();
        if idle {
            drop(out);
            if waiting {
                node.wake_in(&mut self.stage, 0);
            }
            return false;
        }
        let (created, destroyed) = (std::mem::take(&mut out.created), std::mem::take(&mut out.destroyed));
        let Out { tasks, sleeps, calls, replies, begun, store, ended, .. } = &mut *out;
        let (tasks, sleeps, calls) = (std::mem::take(tasks), std::mem::take(sleeps), std::mem::take(calls));
        let (replies, begun, ended) = (std::mem::take(replies), std::mem::take(begun), ended.take());
        if let Some(store) = store.take() {
            running.store = Some(store);
        }
        drop(out);
        for (span, wake) in sleeps {
            let number = self.stage.name();
            running.sleepers.insert(number, wake);
            let delay = node.clock.world_span(span) + 1;
            self.stage.after(delay, Happening::Wake { who, number });
        }
        for (group, peer, fresh) in created {
            self.stage.note(who.at as u64 + 1, "create", &[("group", group.0), ("peer", peer.0)]);
            self.stage.ledger.created(group, peer, fresh);
        }
        for group in destroyed {
            self.stage.note(who.at as u64 + 1, "take-away", &[("group", group.0)]);
        }
        if begun {
            node.begin_host(&mut self.stage);
        }
        if waiting {
            self.nodes[at].wake_in(&mut self.stage, 0);
        }
        for task in tasks {
            self.tasks.spawn(who, task);
        }
        for Call { to, timeout, reply } in calls {
            self.ask(Asker::Process(who, reply), to, timeout);
        }
        for (call, heard) in replies {
            self.reply(at, call, heard);
        }
        if let Some(why) = ended {
            self.ended(at, &why);
        }
        true
    }

    /// A client asks; it hears under the number that is returned.
    pub fn ask_as_client(&mut self, client: u64, to: To, timeout: u64) {
        self.ask(Asker::Client(client), to, timeout);
    }

    fn ask(&mut self, asker: Asker, to: To, timeout: u64) {
        self.calls.next += 1;
        let call = self.calls.next;
        let (from, place) = (from(&asker), self.place_of(&to));
        self.calls.open.insert(call, Open { asker, to, with: None });
        self.stage.after(timeout, Happening::GiveUp { call });
        let trip = match (from, place) {
            // No address is known.
            (_, None) => return self.heard_soon(call, Heard::Lost),
            (Some(from), Some(at)) => self.stage.net.stream_trip(from, at),
            (None, Some(_)) => Some(self.stage.net.client_trip()),
        };
        // What does not arrive is given up in the end.
        if let Some(trip) = trip {
            self.stage.after(trip, Happening::Asked { call });
        }
    }

    fn place_of(&self, to: &To) -> Option<usize> {
        match to {
            To::Store { address, .. } => address.as_deref().and_then(place_at),
            To::Pd { member, .. } => Some(*member),
            To::Api { at, .. } => Some(*at),
        }
    }

    fn heard_soon(&mut self, call: u64, heard: Heard) {
        let delay = refused_after(&mut self.stage);
        self.stage.after(delay, Happening::Heard { call, heard });
    }

    /// A question has arrived.
    pub fn asked(&mut self, call: u64) {
        let Some(open) = self.calls.open.get_mut(&call) else { return };
        let (to, asker) = (open.to.clone(), from(&open.asker));
        let Some(at) = self.place_of(&to) else { return };
        if self.nodes[at].is_paused(&self.stage) {
            let until = self.nodes[at].paused_until;
            return self.stage.queue.push(until, Happening::Asked { call });
        }
        let to = self.believe(asker, to);
        let who = self.nodes[at].who();
        let answering = self.nodes[at].answer(&self.stage, call, to);
        let Some(open) = self.calls.open.get_mut(&call) else { return };
        open.with = Some(who);
        match answering {
            Answering::Nobody => self.heard_soon(call, Heard::Lost),
            Answering::Begun(task) => {
                if let Some(task) = task {
                    self.tasks.spawn(who, task);
                }
            }
            Answering::Elsewhere(to) => {
                open.to = *to;
                let there = self.place_of(&self.calls.open[&call].to.clone());
                if let Some(trip) = there.and_then(|there| self.stage.net.stream_trip(at, there)) {
                    self.stage.after(trip, Happening::Asked { call });
                }
            }
        }
    }

    /// A planted bug: whoever claims a store's id is that store.
    fn believe(&self, asker: Option<usize>, to: To) -> To {
        let believed =
            self.stage.has(Bug::BelieveImpostors) && asker.is_some_and(|at| self.nodes[at].impostor.is_some());
        match to {
            To::Pd { member, question: Question::Register(mut request), passed_on } if believed => {
                let claimed = NodeId(request.store_id);
                let real = self.nodes.iter().find(|node| node.disk.identity.node == claimed && node.impostor.is_none());
                if let Some(real) = real {
                    request.incarnation = real.disk.identity.peer.0;
                    request.peer_url = real.address.clone();
                    request.client_url = format!("http://{}", real.address);
                }
                To::Pd { member, question: Question::Register(request), passed_on }
            }
            to => to,
        }
    }

    /// A process has an answer.
    fn reply(&mut self, at: usize, call: u64, heard: Heard) {
        let Some(open) = self.calls.open.get(&call) else { return };
        let asker = from(&open.asker);
        let refused = matches!(&heard, Heard::Failed(status) if status.code == rpc::Code::AlreadyExists);
        if refused && asker.is_some_and(|at| self.nodes[at].impostor.is_some()) {
            self.stage.note(asker.map_or(0, |at| at as u64 + 1), "refused", &[]);
            self.refused += 1;
        }
        let is_heartbeat = matches!(open.to, To::Pd { question: Question::Heartbeat(_), .. });
        if let (true, Some(asker), Heard::Answer(body)) = (is_heartbeat, asker, &heard) {
            self.keep(asker, body.clone());
        }
        let heard = if is_heartbeat && self.stage.has(Bug::NeverRetire) { without_retired(heard) } else { heard };
        let trip = match asker {
            Some(asker) => self.stage.net.stream_trip(at, asker),
            None => Some(self.stage.net.client_trip()),
        };
        if let Some(trip) = trip {
            self.stage.after(trip, Happening::Heard { call, heard });
        }
    }

    /// Keeps an answer of the placement driver, which may arrive once more, long after.
    fn keep(&mut self, at: usize, body: bytes::Bytes) {
        if !self.stage.plan.faults.stale_answers || self.stage.healed || self.calls.answers.len() >= ANSWERS_KEPT {
            return;
        }
        let Ok(mut answer) = pb::HeartbeatResponse::decode(body) else { return };
        if answer.steps.is_empty() && answer.retired.is_empty() {
            return;
        }
        answer.region_split_bytes = 0;
        let number = self.calls.answers.len();
        self.calls.answers.push((at, answer));
        if self.stage.rng.percent(40) {
            let delay = self.stage.rng.below(30 * SECOND);
            self.stage.after(delay, Happening::Again { at, number });
        }
    }

    pub fn heard(&mut self, call: u64, heard: Heard) {
        let Some(open) = self.calls.open.remove(&call) else { return };
        match open.asker {
            Asker::Process(who, reply) if self.nodes[who.at].who() == who => {
                // It may have stopped waiting.
                let _ = reply.send(heard);
            }
            Asker::Process(..) => {}
            Asker::Client(client) => self.client_heard(client, heard),
        }
    }

    pub fn give_up(&mut self, call: u64) {
        self.heard(call, Heard::Lost);
    }

    /// Connections to a process that is gone break.
    pub fn hang_up(&mut self, who: Who) {
        let broken: Vec<u64> =
            self.calls.open.iter().filter(|(_, open)| open.with == Some(who)).map(|(call, _)| *call).collect();
        broken.into_iter().for_each(|call| self.heard_soon(call, Heard::Lost));
    }
}

/// A planted bug: the answer to a heartbeat names nobody who is to go.
fn without_retired(heard: Heard) -> Heard {
    match heard {
        Heard::Answer(body) => {
            let answer = pb::HeartbeatResponse::decode(body).unwrap_or_default();
            Heard::Answer(pb::HeartbeatResponse { retired: Vec::new(), ..answer }.encode_to_vec().into())
        }
        heard => heard,
    }
}

/// The place of who asks; clients have none.
fn from(asker: &Asker) -> Option<usize> {
    match asker {
        Asker::Process(who, _) => Some(who.at),
        Asker::Client(_) => None,
    }
}
