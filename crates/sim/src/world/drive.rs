//! Carries out what a host asks for, as the production driver does: in order, each effect where it belongs. The
//! disk syncs what it was given in order, several batches at a time; the network takes messages as bytes.

use base::{GroupId, NodeId, PeerId};
use consensus::wire::Body;
use consensus::{Event, Input, Message, Output, Refusal};

use storage::LogBatch;

use super::bug::Bug;
use super::fault::Moment;
use super::node::{Node, Syncing};
use super::plan::MS;
use super::queue::Happening;
use super::stage::Stage;
use super::work::Answer;

impl Node {
    pub fn carry_out(&mut self, stage: &mut Stage, outputs: Vec<Output>) {
        let committed = outputs.iter().filter_map(|output| match output {
            Output::Committed { group, .. } => Some(*group),
            _ => None,
        });
        let committed: Vec<GroupId> = committed.collect();
        for output in outputs {
            self.carry_out_one(stage, output);
        }
        // With little to do the host's thread does its helpers' work itself.
        let idle = self.running.as_ref().is_some_and(|running| running.inbox.is_empty());
        let inline = idle && stage.rng.percent(30);
        if inline && let [group] = committed[..] {
            self.apply(stage, group);
        }
        self.begin_sync(stage, inline);
    }

    fn carry_out_one(&mut self, stage: &mut Stage, output: Output) {
        let Some(running) = &mut self.running else { return };
        match output {
            Output::Persist { number, batch } => {
                let entries: usize = batch.groups.iter().map(|write| write.entries.len()).sum();
                stage.note(self.id.0, "persist", &[("number", number), ("entries", entries as u64)]);
                running.writer.waiting.push_back((number, batch));
                if stage.has(Bug::AcknowledgeBeforePersist) {
                    self.give(stage, Input::Persisted { number });
                }
            }
            Output::Send { to, message } => self.send(stage, to, &message),
            Output::Committed { group, first, last } => {
                stage.note(self.id.0, "committed", &[("group", group.0), ("first", first), ("last", last)]);
                if let Some(replica) = running.replicas.get_mut(&group) {
                    replica.committed.push_back((first, last));
                }
                self.wake_applier(stage, group);
            }
            Output::ReadReady { group, seqs, index, valid_until } => {
                stage.note(
                    self.id.0,
                    "read-ready",
                    &[("group", group.0), ("index", index), ("reads", seqs.len() as u64)],
                );
                if let Some(replica) = running.replicas.get(&group) {
                    stage.ledger.speaks(group, replica.peer, "allows a read");
                }
                for seq in seqs {
                    self.end(stage, seq);
                    self.read_at(stage, group, seq, index, valid_until);
                }
            }
            Output::Refused { group, seqs, why } => {
                for seq in seqs {
                    stage.note(self.id.0, "refused", &[("group", group.0), ("seq", seq), ("why", why as u64)]);
                    self.end(stage, seq);
                    if !why.outcome_unknown() {
                        stage.ledger.refused(seq);
                    }
                    stage.answer(seq, Answer::Refused(why));
                }
            }
            Output::TransferDone { group, seq } => {
                stage.note(self.id.0, "transfer-done", &[("group", group.0), ("seq", seq)]);
                self.end(stage, seq);
                stage.answer(seq, Answer::Moved);
            }
            Output::BuildSnapshot { group, to, index_min } => {
                stage.note(self.id.0, "build-snapshot", &[("group", group.0), ("to", to.0), ("index", index_min)]);
                if let Some(replica) = running.replicas.get_mut(&group) {
                    replica.builds.retain(|(other, _)| *other != to);
                    replica.builds.push((to, index_min));
                }
                self.build_snapshots(stage, group);
            }
            Output::SendSnapshot { to, message, snapshot } => self.send_snapshot(stage, to, message, snapshot),
            Output::InstallSnapshot { group, staged, mark } => {
                stage.note(self.id.0, "install-snapshot", &[("group", group.0), ("index", mark.index)]);
                if let Some(replica) = running.replicas.get_mut(&group) {
                    replica.install = Some((staged, mark));
                }
                self.wake_applier(stage, group);
            }
            Output::DiscardSnapshot { staged } => {
                stage.note(self.id.0, "discard-snapshot", &[("staged", staged)]);
                for replica in running.replicas.values_mut() {
                    if replica.staged.as_ref().is_some_and(|(number, _)| *number == staged) {
                        replica.staged = None;
                    }
                }
            }
            Output::Event(event) => self.event(stage, event),
        }
    }

    /// Something that was asked of the host has come to its end.
    pub fn end(&mut self, stage: &mut Stage, seq: u64) {
        let Some(running) = &mut self.running else { return };
        if running.open.remove(&seq) {
            running.ended.insert(seq);
        } else if running.ended.contains(&seq) {
            stage.ledger.fail(|| format!("{seq:x} came to an end twice"));
        }
    }

    fn event(&mut self, stage: &mut Stage, event: Event) {
        let node = self.id.0;
        match event {
            Event::Leader { group, term, leader, .. } => {
                stage.note(node, "leader", &[("group", group.0), ("term", term), ("leader", leader.0)]);
                stage.ledger.leader(group, term, leader);
                if self.disk.shares.get(&group).is_some_and(|share| share.peer == leader) {
                    stage.moments.push((self.at, Moment::Leads));
                }
            }
            Event::NoLeader { group, term } => stage.note(node, "no-leader", &[("group", group.0), ("term", term)]),
            Event::ElectionTimeout { group, term } => {
                stage.note(node, "campaign", &[("group", group.0), ("term", term)]);
            }
            Event::Membership { group, index, membership } => {
                let peers = |peers: &[PeerId]| peers.len() as u64;
                let counts = [
                    ("group", group.0),
                    ("index", index),
                    ("voters", peers(&membership.voters)),
                    ("learners", peers(&membership.learners)),
                    ("outgoing", peers(&membership.voters_outgoing)),
                ];
                stage.note(node, "membership", &counts);
                stage.ledger.membership(group, index, (*membership).clone());
                stage.moments.push((self.at, Moment::MembershipChanged));
            }
            Event::HashMismatch { group, peer, index, ours, theirs } => {
                stage.note(node, "hash-mismatch", &[("group", group.0), ("peer", peer.0), ("index", index)]);
                if !stage.ledger.is_astray(group, peer) {
                    let what = || format!("hashes at {index} of group {group}: {ours:x}, {peer} has {theirs:x}");
                    stage.ledger.fail(what);
                }
            }
            Event::Diverged { group, index, .. } => self.quarantined(stage, group, index),
            Event::HashesUnclear { group, index, hashes } => {
                let reports = hashes.len() as u64;
                stage.note(node, "hashes-unclear", &[("group", group.0), ("index", index), ("reports", reports)]);
                // An operator looks, and finds out who it is.
                stage.unclear.push(group);
                // It may have been replaced already, and its last report not.
                if !stage.ledger.strayed.contains(&group) {
                    stage.ledger.fail(|| format!("hashes at {index} of group {group} differ: {hashes:x?}"));
                }
            }
            Event::DiskStalled { group, stalled_ms } => {
                stage.note(node, "disk-stalled", &[("group", group.0), ("ms", stalled_ms)]);
            }
            Event::DiskSlow { group, write_ms } => {
                stage.note(node, "disk-slow", &[("group", group.0), ("ms", write_ms)]);
            }
            Event::BadMessage { group, from, why } => {
                stage.ledger.fail(|| format!("group {group}: a bad message from {from}: {why}"));
            }
        }
    }

    /// The host has found its replica wrong. The shell decides at once, and durably, to give the folder up; it may take a
    /// moment until it does, to hand over for instance.
    fn quarantined(&mut self, stage: &mut Stage, group: GroupId, index: u64) {
        let Some(replica) = self.replica(group) else { return };
        let peer = replica.peer;
        stage.note(self.id.0, "quarantined", &[("group", group.0), ("peer", peer.0), ("index", index)]);
        stage.ledger.quarantine(group, peer);
        self.condemned = true;
        self.quarantines += 1;
        let moment = stage.rng.below(2 * stage.plan.election_timeout());
        stage.after(moment, Happening::GiveUpFolder(self.who()));
    }

    fn send(&mut self, stage: &mut Stage, to: NodeId, message: &Message) {
        let leads = |status: consensus::GroupStatus| status.role == consensus::Role::Leader;
        let host = self.running.as_ref().map(|running| &running.host);
        let handing_over = host.and_then(|host| host.status(message.group)).is_some_and(leads);
        // Refusals may still go out in the turn in which it was deposed.
        let refuses = matches!(message.body, Body::ReadAnswer { index: None, .. } | Body::ForwardRefused { .. });
        if !handing_over && !refuses {
            stage.ledger.speaks(message.group, message.from, "sends a message");
        }
        if let Body::Raft(raft) = &message.body {
            let bytes: usize = raft.entries.iter().map(|entry| entry.data.len()).sum();
            let fits = raft.entries.len() <= 1 || bytes as u64 <= stage.plan.host.message_bytes_max;
            if !fits {
                let entries = raft.entries.len();
                stage
                    .ledger
                    .fail(|| format!("a message carries {bytes} bytes in {entries} entries: more than one may"));
            }
        }
        let bytes = message.encode();
        let at = to.0 as usize - 1;
        stage.note(
            self.id.0,
            "send",
            &[("to", to.0), ("bytes", bytes.len() as u64), ("hash", base::hash::roll(0, &bytes))],
        );
        let node = self.id.0;
        stage.trace.say(stage.now, node, || describe(message));
        if matches!(&message.body, Body::Raft(raft) if raft.msg_type == VOTE && !raft.reject) {
            stage.moments.push((self.at, Moment::Voted));
        }
        // The stream between two nodes repeats nothing; raft's own messages are repeated all the same.
        let mut trips = stage.net.trips(self.at, at);
        if !matches!(message.body, Body::Raft(_)) {
            trips.truncate(1);
        }
        if trips.is_empty() && stage.net.is_cut(self.at, at) && stage.rng.percent(10) {
            self.give(stage, Input::Unreachable { node: to });
        }
        // A connection that does not stand is noticed at once, now and then.
        if trips.is_empty()
            && matches!(message.body, Body::Forward { .. } | Body::ForwardChange { .. })
            && stage.rng.percent(50)
        {
            self.give(stage, Input::Unsent(message.clone()));
        }
        for trip in trips {
            stage.after(trip, Happening::Arrive { at, bytes: bytes.clone() });
        }
    }

    /// A message's bytes have arrived.
    pub fn receive(&mut self, stage: &mut Stage, bytes: bytes::Bytes) {
        let Some(mut message) = Message::decode(bytes) else {
            return stage.ledger.fail(|| "a message did not survive its own encoding".to_owned());
        };
        if stage.has(Bug::DropVerdict) && matches!(message.body, Body::HashVerdict { .. }) {
            return;
        }
        if stage.has(Bug::SkipTermCheck)
            && let Body::Raft(raft) = &mut message.body
            && let Some(status) = self.running.as_ref().and_then(|running| running.host.status(message.group))
        {
            raft.term = raft.term.max(status.term);
        }
        self.give(stage, Input::Message(message));
    }

    /// The disk takes what waits, if it is idle. `inline`: the host waits for it.
    fn begin_sync(&mut self, stage: &mut Stage, inline: bool) {
        let who = self.who();
        let Some(running) = &mut self.running else { return };
        if running.writer.syncing.is_some() || running.writer.waiting.is_empty() {
            return;
        }
        // All that waits goes out with one write and one sync.
        let last = running.writer.waiting.back().map_or(0, |(number, _)| *number);
        let all = LogBatch::joined(running.writer.waiting.drain(..).map(|(_, batch)| batch));
        match self.disk.log.stage(&all) {
            Ok(staged) => running.writer.syncing = Some(Syncing { number: last, staged, batch: all, since: stage.now }),
            Err(error) => return stage.ledger.fail(|| format!("the log refused a write: {error}")),
        }
        let (shortest, longest) = stage.plan.sync;
        let mut delay = stage.rng.between(shortest, longest);
        if self.slow_disk {
            delay += stage.rng.between(20, 600) * MS;
        }
        delay = delay.max(self.stalled_until.saturating_sub(stage.now));
        if stage.has(Bug::AcknowledgeBeforePersist) {
            delay += 200 * MS;
        }
        if inline {
            running.busy_until = running.busy_until.max(stage.now + delay);
        }
        stage.after(delay, Happening::Synced(who));
    }

    /// The disk has synced what it took.
    pub fn synced(&mut self, stage: &mut Stage) {
        if self.stalled_until > stage.now {
            return stage.queue.push(self.stalled_until, Happening::Synced(self.who()));
        }
        let Some(running) = &mut self.running else { return };
        let Some(Syncing { number, staged, batch, .. }) = running.writer.syncing.take() else { return };
        if let Err(error) = self.disk.log.sync_to(staged) {
            return stage.ledger.fail(|| format!("the log failed to sync: {error}"));
        }
        for write in &batch.groups {
            if let Some(share) = self.disk.shares.get(&write.group) {
                stage.ledger.disks.entry((write.group, share.peer)).or_default().apply(write);
            }
        }
        stage.note(self.id.0, "synced", &[("number", number)]);
        if !stage.has(Bug::AcknowledgeBeforePersist) {
            self.give(stage, Input::Persisted { number });
        }
        self.begin_sync(stage, false);
    }

    /// A client's command arrives; it ends at the applier or in a refusal.
    pub fn ask(&mut self, stage: &mut Stage, seq: u64, input: Input) {
        let Some(running) = &mut self.running else { return stage.answer(seq, Answer::Broken) };
        running.open.insert(seq);
        if running.replicas.is_empty() {
            return stage.answer(seq, Answer::Refused(Refusal::NoGroup));
        }
        self.give(stage, input);
    }
}

/// A vote, as the raft crate numbers its messages.
const VOTE: i32 = 6;

/// A message in a few words, for readers of a trace.
fn describe(message: &Message) -> String {
    const KINDS: [&str; 19] = [
        "hup",
        "beat",
        "propose",
        "append",
        "append-response",
        "vote?",
        "vote",
        "snapshot",
        "heartbeat",
        "heartbeat-response",
        "unreachable",
        "snapshot-status",
        "check-quorum",
        "transfer",
        "timeout-now",
        "read-index",
        "read-index-response",
        "pre-vote?",
        "pre-vote",
    ];
    match &message.body {
        Body::Raft(raft) => format!(
            "{} term {} at {} (of term {}) +{} commit {}{}",
            KINDS.get(raft.msg_type as usize).unwrap_or(&"?"),
            raft.term,
            raft.index,
            raft.log_term,
            raft.entries.len(),
            raft.commit,
            if raft.reject { " REJECT" } else { "" },
        ),
        other => format!("{other:?}"),
    }
}
