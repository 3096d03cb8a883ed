//! What follows from a turn's inputs: proposals and reads go out, and what the raft crate has ready is turned into
//! effects.
//!
//! Order is everything here. A leader's messages leave at once; everyone else's wait for the disk, because they
//! promise what it must hold. Entries are committed only when this host has them on disk, and membership is changed
//! in the same moment as raft's configuration: when the entry's commit is seen.
//!
//! A change of members is applied, and so told to anybody, only when it is on disk here that it is committed. Whoever was
//! removed may be taken away on that word, and it may be who had the entry besides this peer: a group of two that became one
//! would ask it for its vote after a power cut, and never be led again.

use std::sync::Arc;

use base::{GroupId, PeerId, Time};
use raft::eraftpb::{self, ConfChangeV2, Entry, EntryType, MessageType};
use raft::{Ready, SnapshotStatus, StateRole};
use storage::log::{HardState, LogStart};
use storage::{GroupWrite, LogEntry};

use crate::api::{Event, Output, Refusal};
use crate::entry::{CommandsBuilder, EntryData};
use crate::group::{Group, SnapshotOut, snapshot_mark};
use crate::liveness::Liveness;
use crate::log::{KIND_NORMAL, from_raft};
use crate::machine::Mark;
use crate::membership::{ChangeRecord, Membership};
use crate::proposals::{Proposal, What};
use crate::wire::{Body, Message};

/// What a turn has gathered so far.
#[derive(Default)]
pub(crate) struct Effects {
    pub out: Vec<Output>,
    pub writes: Vec<GroupWrite>,
    pub held: Vec<Held>,
    /// Writes that came back late (`disk.rs`): the last entry, and when they began.
    pub slow: Vec<(GroupId, u64, Time)>,
}

/// What may happen only when a persist is done.
pub(crate) struct Held {
    pub group: GroupId,
    pub generation: u64,
    /// The ready's number.
    pub ready: u64,
    /// The last entry in it.
    pub last: Option<(u64, u64)>,
    pub term: u64,
    pub messages: Vec<eraftpb::Message>,
    /// The first and the last of the entries that may be applied then.
    pub committed: Option<(u64, u64)>,
}

/// A snapshot that is being put in place.
pub(crate) struct Installing {
    ready: Ready,
    messages: Vec<eraftpb::Message>,
    hard: HardState,
}

impl Held {
    pub fn bare(group: GroupId, generation: u64, term: u64) -> Held {
        Held { group, generation, ready: 0, last: None, term, messages: Vec::new(), committed: None }
    }
}

impl Effects {
    pub fn refuse(&mut self, group: GroupId, seqs: Vec<u64>, why: Refusal) {
        self.out.push(Output::Refused { group, seqs, why });
    }

    pub fn event(&mut self, event: Event) {
        self.out.push(Output::Event(event));
    }

    /// Adds entries to the turn's write of a group, where they follow on one another.
    fn write(&mut self, write: GroupWrite) {
        let apart = match self.writes.last_mut() {
            Some(last) => last.join(write).err(),
            None => Some(write),
        };
        self.writes.extend(apart);
    }
}

impl Group {
    /// Brings a turn to its end: everything that can go out does.
    pub fn finish_turn(&mut self, effects: &mut Effects) {
        self.observe(effects);
        self.flush_proposals(effects);
        self.flush_reads(effects);
        self.drain_readies(effects);
        self.tell_commits(effects);
        if self.is_asleep() || std::mem::take(&mut self.waiting.told) {
            self.hand_out_all(effects);
        }
        self.want_snapshots(effects);
    }

    pub fn persisted(&mut self, held: Held, effects: &mut Effects) {
        self.held -= 1;
        self.persisted_term = self.persisted_term.max(held.term);
        if let Some((index, term)) = held.last
            && self.log.term_of(index) == Ok(term)
        {
            self.log.synced(index);
        }
        if held.ready > 0 {
            self.raw.on_persist_ready(held.ready);
            self.pin_election_timeout();
        }
        self.send_raft(held.messages, effects);
        if let Some((first, last)) = held.committed {
            self.unproven -= 1;
            // A snapshot that came meanwhile has them in it.
            if self.installing.is_none() && last > self.applied {
                self.hand_out(first, last, true, effects);
            }
        }
    }

    /// The staged snapshot is in place: the log begins anew behind it, and its acceptance may be told.
    pub fn installed(&mut self, mark: Mark, membership: Membership, effects: &mut Effects) {
        let Some(Installing { ready, messages, hard }) = self.installing.take() else { return };
        let start = LogStart { index: mark.index, term: mark.term };
        assert_eq!(ready.snapshot().get_metadata().index, mark.index, "what was received is what is installed");
        self.log.reset(start);
        self.log.set_hard(hard);
        self.log.set_conf(membership.conf_state());
        self.membership = Arc::new(membership);
        self.moved = true;
        self.applied = mark.index;
        self.durable = mark.index;
        self.compact_to = None;
        effects.write(GroupWrite { group: self.id, reset: Some(start), hard: Some(hard), ..GroupWrite::default() });
        let number = ready.number();
        self.hold(number, None, messages, effects);
        self.raw.advance_append_async(ready);
        // The state machine holds it durably, which is all that raft means by a persisted snapshot; only the answer
        // waits for the log.
        self.raw.on_persist_ready(number);
        self.raw.advance_apply_to(mark.index);
        let unseen = self.proposals.lose_sight();
        if !unseen.is_empty() {
            effects.refuse(self.id, unseen, Refusal::TimedOut);
        }
        effects.event(Event::Membership { group: self.id, index: mark.index, membership: self.membership.clone() });
    }

    /// Reports changes of leader and role, and what they mean for those who wait.
    fn observe(&mut self, effects: &mut Effects) {
        let (term, leader, role) = (self.term(), self.leader(), self.raw.raft.state);
        let (known_term, known_leader, known_role) = self.known;
        if (term, leader, role) == self.known {
            return;
        }
        self.known = (term, leader, role);
        self.hand_out_all(effects);
        if term != known_term || (role == StateRole::Leader) != (known_role == StateRole::Leader) {
            for (peer, context) in self.reads.reset() {
                self.send(peer, Body::ReadAnswer { context, index: None }, effects);
            }
            self.commits.reset();
            if role == StateRole::Leader {
                self.change_barrier = self.log.last().max(self.raw.raft.raft_log.last_index());
                self.last_round = base::Time::ZERO;
                self.leader_since = self.now;
                // The raft crate notes with each new leader what may hold a change.
                self.inherited = self.raw.raft.pending_conf_index;
                self.hashes.again = true;
            }
            for to in std::mem::take(&mut self.snapshots).into_keys() {
                self.log.withdraw_snapshot(to);
            }
        }
        if leader.is_none() && !known_leader.is_none() {
            effects.event(Event::NoLeader { group: self.id, term });
        }
        if !leader.is_none() && (leader, term) != (known_leader, known_term) {
            self.reads.requeue_queries(base::Time::MAX);
            let node = self.node_of(leader).unwrap_or_default();
            effects.event(Event::Leader { group: self.id, term, leader, node });
            let done = self.transfers.extract_if(.., |transfer| transfer.fulfilled(leader, node));
            for transfer in done {
                effects.out.push(Output::TransferDone { group: self.id, seq: transfer.seq });
            }
        }
    }

    fn flush_proposals(&mut self, effects: &mut Effects) {
        let leader = self.leader();
        let leads = self.is_leader();
        let may_send = if leads { !self.transferring() } else { !leader.is_none() };
        if !self.proposals.has_waiting() || !may_send || self.installing.is_some() || self.now < self.forward_not_before
        {
            return;
        }
        let term = self.term();
        let mut waiting = self.proposals.take_waiting();
        let mut packed: Vec<Proposal> = Vec::new();
        let mut builder = CommandsBuilder::new(self.peer);
        while let Some(proposal) = waiting.pop_front() {
            match &proposal.what {
                What::Command(command) => {
                    builder.push(proposal.seq, command);
                    packed.push(proposal);
                    let more = waiting.front().is_some_and(|next| matches!(next.what, What::Command(_)));
                    if more && builder.bytes() < self.config.entry_bytes_max {
                        continue;
                    }
                    let full = std::mem::replace(&mut builder, CommandsBuilder::new(self.peer)).finish();
                    if leads && self.raw.propose(Vec::new(), full.clone().into()).is_err() {
                        // The raft crate is full for the moment.
                        packed.append(&mut waiting.into());
                        self.proposals.put_back(packed.into());
                        self.forward_not_before = self.now + self.timing.subtick;
                        return;
                    }
                    if !leads {
                        self.send(leader, Body::Forward { term, data: full }, effects);
                    }
                    packed.drain(..).for_each(|proposal| self.proposals.sent(term, proposal));
                }
                What::Change(change) => {
                    let record = ChangeRecord { origin: self.peer, seq: proposal.seq, change: change.clone() };
                    if !leads {
                        self.send(leader, Body::ForwardChange { term, record: record.encode().into() }, effects);
                        self.proposals.sent(term, proposal);
                        continue;
                    }
                    let (seq, outcome) = (proposal.seq, self.propose_change(record));
                    self.proposals.sent(term, proposal);
                    if let Err(why) = outcome {
                        self.forward_not_before = self.now + self.timing.subtick;
                        let ended = self.proposals.refused(term, &[seq], why);
                        if !ended.is_empty() {
                            effects.refuse(self.id, ended, why);
                        }
                    }
                }
            }
        }
    }

    fn flush_reads(&mut self, effects: &mut Effects) {
        if self.installing.is_some() || self.is_asleep() {
            return;
        }
        if !self.is_leader() {
            let leader = self.leader();
            if !leader.is_none() && self.reads.may_query(self.now) {
                let context = self.reads.begin_query(self.now);
                self.send(leader, Body::ReadQuery { term: self.term(), context }, effects);
            }
            return;
        }
        // Before its first commit of the term a leader does not know what is committed. It has no rounds of reads then,
        // whose messages are the heartbeats; without any, a follower that missed the first append would not answer.
        if !self.raw.raft.commit_to_current_term() {
            if self.now.since(self.last_round) >= self.timing.heartbeat {
                self.last_round = self.now;
                self.raw.ping();
            }
            return;
        }
        let asked = !self.reads.waiting.is_empty() || !self.reads.remote_waiting.is_empty();
        let lease = self.lease();
        if asked && self.now < lease.valid_until {
            let seqs: Vec<u64> = std::mem::take(&mut self.reads.waiting).iter().map(|read| read.seq).collect();
            if !seqs.is_empty() {
                let valid_until = Some(lease.valid_until);
                self.reads_at(lease.index, effects);
                effects.out.push(Output::ReadReady { group: self.id, seqs, index: lease.index, valid_until });
            }
            for (peer, context) in std::mem::take(&mut self.reads.remote_waiting) {
                self.want_commit(peer, lease.index);
                self.send(peer, Body::ReadAnswer { context, index: Some(lease.index) }, effects);
            }
        }
        let asked = !self.reads.waiting.is_empty() || !self.reads.remote_waiting.is_empty();
        if asked || self.now.since(self.last_round) >= self.timing.heartbeat {
            self.last_round = self.now;
            let context = self.reads.begin_round(self.now);
            self.raw.read_index(context.to_le_bytes().to_vec());
        }
    }

    fn drain_readies(&mut self, effects: &mut Effects) {
        while self.installing.is_none() && self.raw.has_ready() {
            let mut ready = self.raw.ready();
            let messages = ready.take_messages();
            self.send_raft(messages, effects);
            let held = ready.take_persisted_messages();
            for state in ready.take_read_states() {
                self.round_done(&state.request_ctx, state.index, effects);
            }
            let hard = match ready.hs() {
                Some(hard) => HardState { term: hard.term, vote: hard.vote, commit: hard.commit },
                None => self.log.hard(),
            };
            if !ready.snapshot().is_empty() {
                // The group stands still until the state machine holds the snapshot.
                self.hand_out_all(effects);
                self.installing = Some(Installing { ready, messages: held, hard });
                return;
            }
            self.log.set_hard(hard);
            let entries: Vec<LogEntry> = ready.take_entries().into_iter().map(from_raft).collect();
            self.log.append(&entries);
            let committed = ready.take_committed_entries();
            let (number, must_sync) = (ready.number(), ready.must_sync());
            let last = entries.last().map(|entry| (entry.index, entry.term));
            self.raw.advance_append_async(ready);
            if must_sync {
                let compact_to = self.compact_to.take();
                let write = GroupWrite { group: self.id, compact_to, entries, hard: Some(hard), ..Default::default() };
                effects.write(write);
                self.hold(number, last, held, effects);
            } else if self.held > 0 {
                let held = self.send_unbound(held, effects);
                self.hold(number, None, held, effects);
            } else {
                self.raw.on_persist_ready(number);
                self.send_raft(held, effects);
            }
            self.commit(committed, effects);
            self.pin_election_timeout();
            self.observe(effects);
        }
    }

    fn hold(&mut self, ready: u64, last: Option<(u64, u64)>, messages: Vec<eraftpb::Message>, effects: &mut Effects) {
        self.held += 1;
        let (group, generation, term) = (self.id, self.generation, self.log.hard().term);
        effects.held.push(Held { group, generation, ready, last, term, messages, committed: None });
    }

    /// Answers to heartbeats promise nothing but their term: once that is on disk they need not wait.
    fn send_unbound(&mut self, messages: Vec<eraftpb::Message>, effects: &mut Effects) -> Vec<eraftpb::Message> {
        let unbound = |message: &eraftpb::Message| {
            message.msg_type == MessageType::MsgHeartbeatResponse as i32 && message.term <= self.persisted_term
        };
        let (free, bound) = messages.into_iter().partition(unbound);
        self.send_raft(free, effects);
        bound
    }

    fn commit(&mut self, entries: Vec<Entry>, effects: &mut Effects) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let (first, last) = (first.index, last.index);
        let (mut moves, mut awaited) = (false, false);
        for entry in entries {
            self.proposals.lost_before(entry.term);
            moves |= entry.entry_type != EntryType::EntryNormal as i32;
            if entry.entry_type == EntryType::EntryNormal as i32 {
                awaited |= self.commit_normal(entry, effects);
            } else {
                self.commit_conf_change(entry, effects);
            }
        }
        self.raw.advance_apply_to(last);
        if moves {
            self.hand_out_all(effects);
            let hard = self.log.hard();
            self.log.set_hard(HardState { commit: hard.commit.max(last), ..hard });
            effects.write(GroupWrite { group: self.id, hard: Some(self.log.hard()), ..GroupWrite::default() });
        } else if self.unproven == 0 {
            self.hand_out(first, last, awaited, effects);
            return;
        }
        self.unproven += 1;
        self.held += 1;
        let bare = Held::bare(self.id, self.generation, self.log.hard().term);
        effects.held.push(Held { committed: Some((first, last)), ..bare });
    }

    /// Whether somebody here waits for it.
    fn commit_normal(&mut self, entry: Entry, effects: &mut Effects) -> bool {
        let index = entry.index;
        match EntryData::decode(entry.data.into()) {
            Some(EntryData::Commands(commands)) if commands.origin == self.peer => {
                commands.seqs().for_each(|seq| self.proposals.committed(index, seq));
                true
            }
            Some(EntryData::Membership(record)) => {
                if let Some(record) = ChangeRecord::decode(&record) {
                    Arc::make_mut(&mut self.membership).apply(&record.change);
                    self.membership_changed(index, Some(record), effects);
                }
                true
            }
            // The first of a leader: followers that have it applied may sleep.
            Some(EntryData::Empty) => true,
            _ => false,
        }
    }

    fn commit_conf_change(&mut self, entry: Entry, effects: &mut Effects) {
        let index = entry.index;
        let change = <ConfChangeV2 as prost::Message>::decode(entry.data.as_slice())
            .expect("the leader encoded it and the log is checksummed");
        let conf = self.raw.apply_conf_change(&change).expect("the leader checked it against this configuration");
        let record = if change.context.is_empty() { None } else { ChangeRecord::decode(&change.context) };
        if let Some(record) = &record {
            Arc::make_mut(&mut self.membership).apply(&record.change);
        }
        Arc::make_mut(&mut self.membership).set_peers(&conf);
        self.commits.reset();
        self.log.set_conf(conf);
        self.membership_changed(index, record, effects);
        // A leader hands over before it is removed. But one that comes up after a power cut may lead again before it
        // has seen that its removal is committed, and raft 0.7 stops at a leader that is none of its own peers.
        if self.is_leader() && self.raw.raft.prs().get(self.peer.0).is_none() {
            let term = self.term();
            self.raw.raft.become_follower(term, PeerId::NONE.0);
        }
    }

    fn membership_changed(&mut self, index: u64, record: Option<ChangeRecord>, effects: &mut Effects) {
        let done = record.map(|record| (record.origin, record.seq)).filter(|(origin, _)| !origin.is_none());
        if let Some((origin, seq)) = done
            && origin == self.peer
        {
            self.proposals.committed(index, seq);
        }
        self.moved = true;
        self.log.membership_committed(index, self.membership.encode().into(), done);
        self.backoff.keep(|peer| self.membership.node_of(peer).is_some());
        effects.event(Event::Membership { group: self.id, index, membership: self.membership.clone() });
        self.hashes.again = true;
    }

    fn round_done(&mut self, context: &[u8], index: u64, effects: &mut Effects) {
        let Ok(context) = context.try_into().map(u64::from_le_bytes) else { return };
        let Some(round) = self.reads.end_round(context) else { return };
        if !round.local.is_empty() {
            let seqs = round.local.iter().map(|read| read.seq).collect();
            self.reads_at(index, effects);
            effects.out.push(Output::ReadReady { group: self.id, seqs, index, valid_until: None });
        }
        for (peer, context) in round.remote {
            self.want_commit(peer, index);
            self.send(peer, Body::ReadAnswer { context, index: Some(index) }, effects);
        }
    }

    fn send_raft(&mut self, messages: Vec<eraftpb::Message>, effects: &mut Effects) {
        if self.is_silent() {
            return;
        }
        for mut message in messages {
            let to = PeerId(message.to);
            let Some(node) = self.node_of(to) else { continue };
            if !self.mend_append(&mut message) {
                continue;
            }
            let is_snapshot =
                (message.msg_type == MessageType::MsgSnapshot as i32).then(|| snapshot_mark(message.get_snapshot()));
            let wrap = |raft| {
                let body = Body::Raft(Box::new(raft));
                Message { group: self.id, from: self.peer, from_node: self.config.node, to, body }
            };
            if let Some(mark) = is_snapshot {
                // Meanwhile another may have been built, which is not what the message speaks of.
                let built = self.snapshots.get(&to).filter(|out| out.snapshot != 0 && out.index == mark.index);
                match built.map(|out| out.snapshot) {
                    Some(snapshot) => {
                        effects.out.push(Output::SendSnapshot { to: node, message: wrap(message), snapshot });
                    }
                    None => self.raw.report_snapshot(to.0, SnapshotStatus::Failure),
                }
            } else {
                self.commits.sent(&message);
                let parts = split_append(message, self.config.message_bytes_max);
                effects.out.extend(parts.map(|part| Output::Send { to: node, message: wrap(part) }));
            }
        }
    }

    /// raft 0.7 may batch entries onto an empty append that stands elsewhere: it has to begin where its entries do. `false`:
    /// the message waited for the disk until the log no longer knew the entry before; it is lost on the way, as any may be.
    fn mend_append(&self, message: &mut eraftpb::Message) -> bool {
        let Some(before) = message.entries.first().map(|first| first.index - 1) else { return true };
        if message.msg_type != MessageType::MsgAppend as i32 || message.index == before {
            return true;
        }
        let Ok(term) = self.log.term_of(before) else { return false };
        message.index = before;
        message.log_term = term;
        true
    }

    fn want_snapshots(&mut self, effects: &mut Effects) {
        for (to, index_min) in self.log.take_snapshots_wanted() {
            let to = PeerId(to);
            // One that was built and is asked for again has fallen behind the log's start.
            let building = self.snapshots.get(&to).is_some_and(|out| out.snapshot == 0);
            let may = self.hashes.may_spread() && self.backoff.is_over(to, self.now);
            if self.is_leader() && !building && may {
                self.snapshots.insert(to, SnapshotOut { snapshot: 0, index: self.log.start().index });
                effects.out.push(Output::BuildSnapshot { group: self.id, to, index_min });
            }
        }
    }

    /// A staged snapshot and the message that came with it.
    pub fn snapshot_received(&mut self, message: Message, staged: u64, liveness: &Liveness, effects: &mut Effects) {
        let busy = self.installing.is_some();
        self.message(message, liveness, effects);
        self.observe(effects);
        self.drain_readies(effects);
        match &self.installing {
            Some(installing) if !busy => {
                let mark = snapshot_mark(installing.ready.snapshot());
                effects.out.push(Output::InstallSnapshot { group: self.id, staged, mark });
            }
            _ => effects.out.push(Output::DiscardSnapshot { staged }),
        }
    }

    /// For proposals of the leader's own.
    pub fn propose_record(&mut self, record: &ChangeRecord) -> Result<(), Refusal> {
        let data = EntryData::membership(&record.encode());
        debug_assert_eq!(KIND_NORMAL, EntryType::EntryNormal as u8);
        self.raw.propose(Vec::new(), data.into()).map_err(|_| Refusal::NoLeader)
    }
}

/// raft 0.7 batches all that goes to a peer in one turn into one message, however large: a follower that comes back after
/// a while would be sent its whole window at once, and refuse it. The parts follow on one another, and none is larger than
/// `bytes_max`, unless a single entry is.
fn split_append(message: eraftpb::Message, bytes_max: u64) -> impl Iterator<Item = eraftpb::Message> {
    let mut rest = Some(message);
    std::iter::from_fn(move || {
        let mut part = rest.take()?;
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            bytes += entry.data.len() as u64;
            bytes <= bytes_max
        };
        let many = part.entries.iter().take_while(fits).count().max(1);
        if many < part.entries.len() {
            let entries = part.entries.split_off(many);
            let before = part.entries.last().expect("at least one was left");
            let (index, log_term) = (before.index, before.term);
            // All but the entries is cheap to copy.
            let own = std::mem::take(&mut part.entries);
            rest = Some(eraftpb::Message { index, log_term, entries, ..part.clone() });
            part.entries = own;
        }
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(sizes: &[usize]) -> eraftpb::Message {
        let entry = |(at, size): (usize, &usize)| {
            let (index, term) = (11 + at as u64, 3 + at as u64 / 2);
            Entry { index, term, data: vec![7; *size], ..Entry::default() }
        };
        let entries = sizes.iter().enumerate().map(entry).collect();
        let msg_type = MessageType::MsgAppend as i32;
        eraftpb::Message { msg_type, to: 2, term: 9, index: 10, log_term: 2, commit: 10, entries, ..Default::default() }
    }

    #[test]
    fn parts_of_an_append_follow_on_one_another() {
        for (sizes, expected) in [
            (&[][..], vec![0]),
            (&[100], vec![1]),
            (&[1, 2, 3], vec![3]),
            (&[4, 6, 1, 9, 10, 11, 1, 1], vec![2, 2, 1, 1, 2]),
        ] {
            let whole = append(sizes);
            let parts: Vec<_> = split_append(whole.clone(), 10).collect();
            assert_eq!(parts.iter().map(|part| part.entries.len()).collect::<Vec<_>>(), expected, "{sizes:?}");
            let (mut index, mut term) = (whole.index, whole.log_term);
            for part in &parts {
                assert_eq!((part.index, part.log_term), (index, term), "{sizes:?}");
                assert_eq!((part.term, part.commit, part.to), (whole.term, whole.commit, whole.to));
                if let Some(last) = part.entries.last() {
                    (index, term) = (last.index, last.term);
                }
            }
            assert_eq!(parts.into_iter().flat_map(|part| part.entries).collect::<Vec<_>>(), whole.entries);
        }
    }
}
