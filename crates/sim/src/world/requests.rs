//! The part of a node that clients talk to: commands go to the host, reads wait for their index, are done by a worker
//! on a view of the state, and are answered only if what allowed them still holds.

use base::{GroupId, NodeId, Time};
use bytes::Bytes;
use consensus::{Input, MembershipChange, Refusal};
use proto::etcdserverpb::{RangeRequest, RangeResponse};

use super::bug::Bug;
use super::fault::Moment;
use super::node::Node;
use super::plan::MS;
use super::queue::Happening;
use super::stage::Stage;
use super::work::{Answer, found};

/// What a client asks a node for.
#[derive(Clone, Debug)]
pub enum Request {
    Command {
        group: GroupId,
        command: Bytes,
    },
    /// `by_lease`: without asking the host, if its lease holds.
    Read {
        group: GroupId,
        range: RangeRequest,
        by_lease: bool,
    },
    Change {
        group: GroupId,
        change: MembershipChange,
    },
    Transfer {
        group: GroupId,
        to: Option<NodeId>,
    },
}

/// A read on its way through a node.
#[derive(Clone, Debug)]
pub struct Reading {
    group: GroupId,
    range: RangeRequest,
    deadline: Time,
    /// Until when its index is good, if not for ever.
    valid_until: Option<Time>,
    answer: Option<Answer>,
}

impl Node {
    pub fn request(&mut self, stage: &mut Stage, seq: u64, request: Request) {
        let deadline = self.now(stage) + std::time::Duration::from_nanos(stage.plan.deadline);
        let now = self.now(stage);
        match request {
            Request::Command { group, command } => {
                stage.note(self.id.0, "command", &[("group", group.0), ("seq", seq), ("bytes", command.len() as u64)]);
                self.ask(stage, seq, Input::Propose { group, seq, command, deadline });
            }
            Request::Change { group, change } => {
                stage.note(self.id.0, "change", &[("group", group.0), ("seq", seq)]);
                let node = self.id.0;
                stage.trace.say(stage.now, node, || format!("{change:?}"));
                self.ask(stage, seq, Input::Change { group, seq, change, deadline });
            }
            Request::Transfer { group, to } => {
                stage.note(self.id.0, "transfer", &[("group", group.0), ("seq", seq), ("to", to.map_or(0, |to| to.0))]);
                self.ask(stage, seq, Input::Transfer { group, seq, to, deadline });
            }
            Request::Read { group, range, by_lease } => {
                let Some(running) = &mut self.running else { return stage.answer(seq, Answer::Broken) };
                let Some(replica) = running.replicas.get(&group) else {
                    return stage.answer(seq, Answer::Refused(Refusal::NoGroup));
                };
                let condemned = self.condemned;
                if condemned && !stage.has(Bug::ServeInQuarantine) {
                    return stage.answer(seq, Answer::Refused(Refusal::NoLeader));
                }
                let reading = Reading { group, range, deadline, valid_until: None, answer: None };
                running.readings.insert(seq, reading);
                let lease = replica.lease;
                let holds = now < lease.valid_until;
                let believed = stage.has(Bug::ServePastLease) && lease.valid_until > Time::ZERO;
                if by_lease && (holds || believed) {
                    stage.note(self.id.0, "read-by-lease", &[("group", group.0), ("seq", seq), ("index", lease.index)]);
                    self.read_at(stage, group, seq, lease.index, Some(lease.valid_until));
                } else if let Some(index) = replica.read_index.filter(|_| condemned || stage.has(Bug::ReuseReadContext))
                {
                    self.read_at(stage, group, seq, index, None);
                } else {
                    stage.note(self.id.0, "read", &[("group", group.0), ("seq", seq)]);
                    self.ask(stage, seq, Input::Read { group, seq, deadline });
                }
            }
        }
    }

    /// The read may be done once `index` is applied.
    pub fn read_at(&mut self, stage: &mut Stage, group: GroupId, seq: u64, index: u64, valid_until: Option<Time>) {
        let Some(replica) = self.replica(group) else { return };
        replica.read_index = Some(index);
        if replica.applied >= index {
            self.read_soon(stage, seq, valid_until);
        } else {
            replica.reads.entry(index).or_default().push((seq, valid_until));
        }
    }

    /// A worker takes the read up.
    pub fn read_soon(&mut self, stage: &mut Stage, seq: u64, valid_until: Option<Time>) {
        let who = self.who();
        let Some(running) = &mut self.running else { return };
        if let Some(reading) = running.readings.get_mut(&seq) {
            reading.valid_until = valid_until;
            // A worker may be late. Between what allowed a read and the read itself lies the moment in which a lease runs
            // out.
            let delay = if stage.rng.percent(2) { stage.rng.below(400 * MS) } else { stage.rng.below(MS) };
            if valid_until.is_some() {
                stage.moments.push((who.at, Moment::ReadGranted));
            }
            stage.after(delay, Happening::Read { who, seq });
        }
    }

    /// A worker reads.
    pub fn read(&mut self, stage: &mut Stage, seq: u64) {
        let who = self.who();
        let Some(running) = &mut self.running else { return };
        if self.condemned && !stage.has(Bug::ServeInQuarantine) && running.readings.remove(&seq).is_some() {
            return stage.answer(seq, Answer::Refused(Refusal::NoLeader));
        }
        let Some(reading) = running.readings.get_mut(&seq) else { return };
        let Some(replica) = running.replicas.get(&reading.group) else { return };
        let view = replica.reader.current();
        stage.ledger.speaks(reading.group, replica.peer, "reads for a client");
        let answer = match view.range(&reading.range) {
            Ok(answer) => answer,
            Err(error) => return stage.ledger.fail(|| format!("a read failed: {error:?}")),
        };
        let revision = view.revision;
        drop(view);
        let response = match <RangeResponse as prost::Message>::decode(answer.body.as_slice()) {
            Ok(response) => response,
            Err(error) => return stage.ledger.fail(|| format!("an answer cannot be decoded: {error}")),
        };
        reading.answer = Some(Answer::Found { revision: revision as u64, found: found(&response) });
        let delay = stage.rng.below(MS / 5);
        stage.after(delay, Happening::ReadDone { who, seq });
    }

    /// The worker answers, if it still may.
    pub fn read_done(&mut self, stage: &mut Stage, seq: u64) {
        let now = self.now(stage);
        let Some(running) = &mut self.running else { return };
        let Some(mut reading) = running.readings.remove(&seq) else { return };
        let expired = reading.valid_until.is_some_and(|until| now >= until);
        if expired && !stage.has(Bug::ServePastLease) {
            stage.note(self.id.0, "read-expired", &[("seq", seq)]);
            let (group, deadline) = (reading.group, reading.deadline);
            reading.answer = None;
            running.readings.insert(seq, reading);
            running.ended.remove(&seq);
            return self.ask(stage, seq, Input::Read { group, seq, deadline });
        }
        stage.note(self.id.0, "read-done", &[("seq", seq)]);
        if let Some(answer) = reading.answer {
            let peer = running.replicas.get(&reading.group).map(|replica| replica.peer).unwrap_or_default();
            // Until it is found out, what it says is wrong, and is not looked at.
            let astray = stage.ledger.is_astray(reading.group, peer);
            stage.answer(seq, if astray { Answer::Broken } else { answer });
        }
    }
}
