//! One Raft group on this host: the raft crate's node, and around it what the crate leaves open. This file holds
//! the group's state and its reaction to inputs; what follows from them in the same turn is in `ready.rs`,
//! membership changes are in `change.rs`, the check of raft messages in `check.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use raft::eraftpb::{self, MessageType, Snapshot, SnapshotMetadata};
use raft::{ProgressState, RawNode, SnapshotStatus, StateRole};
use storage::log::{HardState, LogStart};
use storage::{GroupWrite, LogStore};

use crate::api::{CreateGroup, Event, GroupStatus, HostConfig, LeaderLease, Output, Refusal, Role};
use crate::applying::Waiting;
use crate::backoff::Backoff;
use crate::change::Transfer;
use crate::check;
use crate::commits::Commits;
use crate::disk::{Slowness, Stall};
use crate::entry::Commands;
use crate::hashes::Hashes;
use crate::liveness::Liveness;
use crate::log::{LogReader, LogView};
use crate::machine::Mark;
use crate::membership::{ChangeRecord, Membership, MembershipChange};
use crate::proposals::{Proposal, Proposals, What};
use crate::reads::{Read, Reads};
use crate::ready::{Effects, Held, Installing};
use crate::sleep::Asleep;
use crate::timing::Timing;
use crate::totals::Totals;
use crate::wire::{Body, Message};

/// Peers remembered that are no members.
const CONTACTS_MAX: usize = 64;
/// While no leader is found, that is said so often.
/// A group's share of the log, however many there are: what a follower may lack after a moment's absence.
const LOG_BYTES_MIN: u64 = 64 << 10;
const TIMEOUT_SAID_EVERY: Duration = Duration::from_secs(5);

pub(crate) struct Group {
    pub id: GroupId,
    pub peer: PeerId,
    pub generation: u64,
    pub config: HostConfig,
    pub timing: Timing,
    /// Nodes behind peers that the membership does not name (yet), learnt from their messages.
    pub contacts: BTreeMap<PeerId, NodeId>,
    pub raw: RawNode<LogView>,
    pub log: Arc<LogReader>,
    /// As the host's users have it, too.
    pub membership: Arc<Membership>,
    /// When each peer was last heard of.
    pub heard: BTreeMap<PeerId, Time>,
    /// When it was last said that no leader was heard of.
    timeout_said: Time,
    /// When this peer last became the leader.
    pub leader_since: Time,
    pub proposals: Proposals,
    pub totals: Arc<Totals>,
    pub reads: Reads,
    pub transfers: Vec<Transfer>,
    pub now: Time,
    last_subtick: Time,
    pub last_round: Time,
    /// Before this, votes are refused to everyone but a leader's chosen heir.
    pub vote_guard_until: Time,
    /// What the leader last said no to is not sent again before this.
    pub forward_not_before: Time,
    /// How often this peer has campaigned since it last knew a leader.
    campaigns: u32,
    /// (term, leader, role) as last reported.
    pub known: (u64, PeerId, StateRole),
    /// The term that is on disk.
    pub persisted_term: u64,
    /// Readies that wait for a persist.
    pub held: usize,
    /// Of them, those that committed entries wait for: a change of members, and what follows it.
    pub unproven: usize,
    pub applied: u64,
    pub durable: u64,
    /// See [`GroupStatus::regained`].
    regained: u64,
    /// See [`GroupStatus::inherited_last`].
    inherited_last: u64,
    /// No membership change is proposed before this index is committed.
    pub change_barrier: u64,
    /// The last entry that was in the log when this peer became the leader.
    pub inherited: u64,
    /// No membership change is proposed at all.
    pub changes_held: bool,
    pub compact_to: Option<u64>,
    pub installing: Option<Installing>,
    /// New entries are not taken: there is no room for them (`disk.rs`).
    pub paused: bool,
    pub stall: Stall,
    pub slowness: Slowness,
    /// Snapshots being built for or sent to peers: the index the log must be kept from.
    pub snapshots: BTreeMap<PeerId, SnapshotOut>,
    /// Who did not take one.
    pub backoff: Backoff,
    pub hashes: Hashes,
    pub commits: Commits,
    pub waiting: Waiting,
    /// Its members are others than the host knows.
    pub moved: bool,
    pub asleep: Option<Asleep>,
    /// When something was last asked of it, or changed.
    pub stirred: Time,
    /// When it last woke, or began.
    pub woken: Time,
    /// When the leader was last called, because it said nothing.
    pub called: Time,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct SnapshotOut {
    /// Zero while it is being built.
    pub snapshot: u64,
    pub index: u64,
}

impl Group {
    /// The group as it stands after a start. Where the state machine is ahead of the log (it was founded, or a
    /// snapshot was installed and the node stopped before the log followed), the log begins anew at the mark.
    pub fn open(
        create: &CreateGroup,
        generation: u64,
        config: HostConfig,
        store: Arc<dyn LogStore>,
        totals: Arc<Totals>,
        now: Time,
        effects: &mut Effects,
    ) -> Group {
        let CreateGroup { group: id, peer, mark, membership, fresh } = create;
        let timing = Timing::new(&config);
        let conf = membership.conf_state();
        let log = LogReader::open(*id, store, conf, config.cache_bytes_max, totals.clone());
        let mut hard = log.hard();
        let inherited_last = log.last();
        let mut held = 0;
        // Also where the log goes on beyond the mark, but with entries of another past: those were never committed.
        let installed = mark.index > log.last() || log.term_of(mark.index).is_ok_and(|term| term != mark.term);
        if installed {
            let start = LogStart { index: mark.index, term: mark.term };
            log.reset(start);
            if hard.term < mark.term {
                hard = HardState { term: mark.term, vote: 0, commit: mark.index };
            }
            hard.commit = mark.index;
            effects.writes.push(GroupWrite {
                group: *id,
                reset: Some(start),
                hard: Some(hard),
                ..GroupWrite::default()
            });
            effects.held.push(Held::bare(*id, generation, hard.term));
            held = 1;
        }
        hard.commit = hard.commit.max(mark.index).min(log.last());
        log.set_hard(hard);
        let raft_config = raft::Config {
            id: peer.0,
            election_tick: timing.election_subticks,
            heartbeat_tick: timing.election_subticks - 1,
            min_election_tick: timing.election_subticks,
            max_election_tick: timing.election_subticks_max() + 1,
            applied: mark.index,
            max_size_per_msg: config.message_bytes_max,
            max_inflight_msgs: config.inflight_messages_max,
            check_quorum: true,
            pre_vote: true,
            batch_append: true,
            // Told otherwise (`commits`).
            skip_bcast_commit: true,
            max_committed_size_per_ready: 4 << 20,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, LogView(log.clone()), &logger)
            .expect("the configuration is derived and the log was reconciled");
        let known = (raw.raft.term, PeerId::NONE, raw.raft.state);
        let seed = base::rng::mix(config.seed ^ peer.0 ^ now.as_nanos());
        let mut group = Group {
            id: *id,
            peer: *peer,
            generation,
            timing,
            contacts: BTreeMap::new(),
            raw,
            log,
            membership: membership.clone(),
            heard: BTreeMap::new(),
            timeout_said: Time::ZERO,
            leader_since: now,
            proposals: Proposals::new(totals.clone()),
            totals,
            reads: Reads::new(seed),
            transfers: Vec::new(),
            now,
            last_subtick: timing.aligned(now),
            last_round: Time::ZERO,
            vote_guard_until: if *fresh { now } else { now + timing.vote_guard },
            forward_not_before: Time::ZERO,
            campaigns: 0,
            known,
            persisted_term: hard.term,
            held,
            unproven: 0,
            applied: mark.index,
            durable: mark.index,
            regained: hard.commit,
            inherited_last,
            change_barrier: 0,
            inherited: 0,
            changes_held: false,
            compact_to: None,
            installing: None,
            paused: false,
            stall: Stall::default(),
            slowness: Slowness::default(),
            snapshots: BTreeMap::new(),
            backoff: Backoff::default(),
            hashes: Hashes::default(),
            commits: Commits::default(),
            waiting: Waiting::default(),
            moved: true,
            asleep: None,
            stirred: now,
            woken: now,
            called: now,
            config,
        };
        group.pin_election_timeout();
        if group.membership.voters == [group.peer] && !group.membership.is_joint() {
            group.campaign();
        }
        group
    }

    /// Why a state machine that stands at `mark` cannot go with the log in the store; `None` when it can.
    pub fn mismatch(id: GroupId, mark: Mark, store: &dyn LogStore) -> Option<String> {
        let log = store.state(id)?;
        if mark.index < log.start.index {
            return Some(format!("the state ends at {} but the log begins after {}", mark.index, log.start.index));
        }
        None
    }

    pub fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    pub fn transferring(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    pub fn leader(&self) -> PeerId {
        PeerId(self.raw.raft.leader_id)
    }

    pub fn term(&self) -> u64 {
        self.raw.raft.term
    }

    pub fn committed(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    pub fn propose(&mut self, seq: u64, what: What, deadline: Time, effects: &mut Effects) {
        self.stir();
        let (size, bounded) = match &what {
            What::Command(command) => (command.len(), true),
            What::Change(change) => (0, change.is_within_bounds()),
        };
        let (open, open_bytes) = self.totals.proposals();
        let refusal = if self.hashes.is_quarantined() {
            Some(Refusal::NoLeader)
        } else if !bounded || size > crate::wire::MESSAGE_BYTES_MAX / 4 {
            Some(Refusal::TooLarge)
        } else if open >= self.config.proposals_max
            || open_bytes + size > self.config.proposal_bytes_max
            || self.committed().saturating_sub(self.applied) > self.config.apply_lag_entries_max
        {
            Some(Refusal::Busy)
        } else {
            None
        };
        match refusal {
            Some(why) => effects.refuse(self.id, vec![seq], why),
            None => self.proposals.push(Proposal { seq, what, deadline }),
        }
    }

    pub fn read(&mut self, seq: u64, deadline: Time, effects: &mut Effects) {
        self.stir();
        if self.hashes.is_quarantined() {
            effects.refuse(self.id, vec![seq], Refusal::NoLeader);
        } else if self.reads.len() >= self.config.reads_max {
            effects.refuse(self.id, vec![seq], Refusal::Busy);
        } else {
            self.reads.waiting.push(Read { seq, deadline });
        }
    }

    pub fn campaign(&mut self) {
        let may = self.installing.is_none() && !self.stall.is_on() && !self.hashes.is_quarantined();
        if self.leader().is_none() && self.membership.voters.contains(&self.peer) && may {
            // An error only means that there is nothing to campaign for.
            let _ = self.raw.campaign();
            self.campaigns += u32::from(self.is_candidate());
            self.pin_election_timeout();
        }
    }

    pub fn message(&mut self, message: Message, liveness: &Liveness, effects: &mut Effects) {
        if message.to != self.peer || self.is_silent() {
            return;
        }
        let from = message.from;
        let owner = self.membership.node_of(from);
        if owner.is_some_and(|owner| owner != message.from_node) {
            let why = format!("node {} speaks for it, whose it is not", message.from_node);
            return effects.event(Event::BadMessage { group: self.id, from, why });
        }
        if owner.is_none() {
            if self.contacts.len() >= CONTACTS_MAX && !self.contacts.contains_key(&from) {
                self.contacts.pop_first();
            }
            self.contacts.insert(from, message.from_node);
        }
        let calls = matches!(
            message.body,
            Body::Forward { .. } | Body::ForwardChange { .. } | Body::ForwardTransfer { .. } | Body::ReadQuery { .. }
        );
        if calls {
            self.stir();
        }
        match message.body {
            Body::Raft(raft) => self.raft_message(from, *raft, effects),
            Body::Forward { term, data } => self.forwarded(from, term, data, effects),
            Body::ForwardChange { term, record } => self.forwarded_change(from, term, &record, effects),
            Body::ForwardTransfer { term, seq, to } => {
                let target = (to != 0).then_some(NodeId(to));
                let begun = if term == self.term() { self.begin_transfer(target) } else { Err(Refusal::NoLeader) };
                if let Err(why) = begun {
                    self.send(from, Body::ForwardRefused { term, seqs: vec![seq], why }, effects);
                }
            }
            Body::ForwardRefused { term, seqs, why } => self.forward_refused(term, &seqs, why, effects),
            Body::ReadQuery { term, context } => {
                let leads = self.is_leader() && !self.hashes.is_quarantined();
                let taken = leads && term == self.term() && self.reads.push_remote(from, context);
                if !taken {
                    self.send(from, Body::ReadAnswer { context, index: None }, effects);
                }
            }
            Body::ReadAnswer { context, index } => self.read_answer(from, context, index, effects),
            Body::HashReport { index, hash, version } => self.hash_reported(from, index, hash, version, effects),
            Body::HashVerdict { index, hash, version } => self.hash_judged(from, index, hash, version, effects),
            Body::Committed { term, commit } => self.told_commit(from, term, commit),
            Body::Sleep { term, commit } => self.told_to_sleep(from, term, commit, liveness),
            // That it came has woken the group. The other is from node to node.
            Body::Wake | Body::Alive { .. } => {}
        }
    }

    pub fn next_tick(&self) -> Time {
        self.last_subtick + self.timing.subtick
    }

    /// No tick is due for the time before.
    pub fn align_ticks(&mut self) {
        self.last_subtick = self.timing.aligned(self.now);
    }

    pub fn tick(&mut self, effects: &mut Effects) {
        let subticks = self.timing.subticks(self.last_subtick, self.now);
        self.last_subtick = self.last_subtick + self.timing.subtick * u32::try_from(subticks).unwrap_or(u32::MAX);
        self.hand_out_all(effects);
        self.tend_hashes(effects);
        if self.is_silent() {
            return self.expire(effects);
        }
        if self.installing.is_some() {
            return;
        }
        if self.stall.is_on() && !self.is_leader() {
            // Its votes would wait for the disk, and so would all that it could do as a leader.
            return self.expire(effects);
        }
        // After a pause there is no use in more ticks than an election takes.
        for _ in 0..subticks.min(self.timing.election_subticks_max() as u64) {
            let was = self.raw.raft.state;
            self.raw.tick();
            // Whoever campaigns again counts from the beginning again.
            let campaigns = self.is_candidate() && self.raw.raft.election_elapsed == 0;
            self.campaigns += u32::from(campaigns);
            self.pin_election_timeout();
            let again = was != StateRole::Follower && self.now.since(self.timeout_said) < TIMEOUT_SAID_EVERY;
            if campaigns && !again {
                self.timeout_said = self.now;
                effects.event(Event::ElectionTimeout { group: self.id, term: self.term() });
            }
            if campaigns {
                // It has to ask the others before it can lose patience with them.
                break;
            }
        }
        self.expire(effects);
        if self.is_leader() {
            self.commits.due = true;
            self.tend_membership();
        } else {
            self.call_leader(effects);
        }
    }

    pub fn applied(&mut self, index: u64, hashes: Vec<(u64, u64)>, effects: &mut Effects) {
        self.applied = self.applied.max(index);
        self.log.applied(index);
        self.proposals.applied(index);
        self.hashed(hashes, effects);
    }

    /// See [`crate::Input::Vouch`].
    pub fn vouch(&mut self, index: u64, term: u64, effects: &mut Effects) {
        let log = &mut self.raw.raft.raft_log;
        if self.installing.is_none() && index <= log.persisted && self.log.term_of(index) == Ok(term) {
            log.commit_to(index);
            // Another group waits until it is applied.
            self.reads_at(index, effects);
        }
    }

    /// The state up to `index` is durable: decides how far the log is cut.
    pub fn durable(&mut self, index: u64) {
        self.durable = self.durable.max(index);
        let by_count = self.log.last().saturating_sub(self.config.log_entries_kept);
        let share = self.totals.share_of(self.config.log_bytes_kept_all);
        let bytes_kept = self.config.log_bytes_kept.min(share.max(LOG_BYTES_MIN));
        let by_size = self.log.index_for_bytes(bytes_kept);
        let mut cut = self.durable.min(self.applied).min(by_count.max(by_size));
        let far = self.log.index_for_bytes(bytes_kept.saturating_mul(4));
        if let Some(needed) = self.snapshots.values().map(|out| out.index).min() {
            cut = cut.min(needed.max(far));
        }
        // Not for a few entries, unless they are large.
        let start = self.log.start().index;
        let many = cut > start + self.config.log_entries_kept / 16;
        let large = cut > start && self.log.index_for_bytes(bytes_kept.saturating_add(bytes_kept / 4)) > start;
        if (many || large) && self.log.compact(cut).is_ok() {
            self.compact_to = Some(cut);
        }
    }

    pub fn snapshot_built(&mut self, to: PeerId, snapshot: u64, mark: Mark, membership: &Membership) {
        let Some(out) = self.snapshots.get_mut(&to) else { return };
        *out = SnapshotOut { snapshot, index: mark.index };
        let metadata =
            SnapshotMetadata { conf_state: Some(membership.conf_state()), index: mark.index, term: mark.term };
        let data = mark.encode().to_vec();
        self.log.offer_snapshot(to, Snapshot { data, metadata: Some(metadata) });
    }

    pub fn snapshot_sent(&mut self, to: PeerId, ok: bool) {
        self.log.withdraw_snapshot(to);
        if ok {
            self.backoff.taken(to);
        } else {
            self.backoff.refused(to, self.now);
        }
        if self.snapshots.remove(&to).is_some() {
            self.raw.report_snapshot(to.0, if ok { SnapshotStatus::Finish } else { SnapshotStatus::Failure });
        }
    }

    pub fn unreachable(&mut self, node: NodeId) {
        if !self.is_leader() {
            return;
        }
        if let Some(member) = self.membership.members.get(&node) {
            for peer in [member.peer, member.successor] {
                if self.raw.raft.prs().get(peer.0).is_some_and(|pr| pr.state == ProgressState::Replicate) {
                    self.raw.report_unreachable(peer.0);
                }
            }
        }
    }

    /// Ends everything that waits here. Of what was sent to the leader nobody here will learn what became of it.
    pub fn close(&mut self, effects: &mut Effects) {
        let (mut undone, unknown) = self.proposals.drain();
        undone.extend(self.reads.drain());
        undone.extend(self.transfers.drain(..).map(|transfer| transfer.seq));
        for (seqs, why) in [(undone, Refusal::NoGroup), (unknown, Refusal::Stopping)] {
            if !seqs.is_empty() {
                effects.refuse(self.id, seqs, why);
            }
        }
    }

    pub fn lease(&self) -> LeaderLease {
        let valid_until = match self.reads.lease_from {
            Some(from)
                if self.is_leader()
                    && !self.transferring()
                    && !self.reads.lease_void
                    && !self.hashes.is_quarantined() =>
            {
                from + self.timing.lease
            }
            _ => return LeaderLease::default(),
        };
        LeaderLease { index: self.committed(), valid_until }
    }

    pub fn status(&self) -> GroupStatus {
        let raft = &self.raw.raft;
        let learner = !self.membership.voters.contains(&self.peer) && !raft.promotable();
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if learner => Role::Learner,
            StateRole::Follower => Role::Follower,
        };
        let mut followers = Vec::new();
        if role == Role::Leader {
            let others = raft.prs().iter().filter(|(id, _)| **id != self.peer.0);
            followers = others.map(|(id, pr)| (PeerId(*id), pr.matched, self.heard_of(PeerId(*id)))).collect();
            followers.sort_unstable();
        }
        GroupStatus {
            peer: self.peer,
            term: raft.term,
            role,
            leader: self.leader(),
            leader_node: self.node_of(self.leader()).unwrap_or_default(),
            first: self.log.first(),
            last: self.log.last(),
            committed: self.committed(),
            applied: self.applied,
            durable: self.durable,
            regained: self.regained,
            inherited_last: self.inherited_last,
            led_since: self.leader_since,
            followers,
            pending_proposals: self.proposals.len(),
        }
    }

    fn is_candidate(&self) -> bool {
        matches!(self.raw.raft.state, StateRole::PreCandidate | StateRole::Candidate)
    }

    /// The raft crate would draw a timeout of its own at every change of term or role, and have a candidate wait as long for
    /// votes as it did for the leader. But the silence is known by then: two that campaigned at once, or whose messages were
    /// lost, try again soon. Only every other time, so that votes that take longer than that still come in time.
    pub fn pin_election_timeout(&mut self) {
        let timeout = self.timing.election_timeout(self.peer, self.term());
        self.raw.raft.set_randomized_election_timeout(timeout);
        if !self.leader().is_none() {
            self.campaigns = 0;
        } else if self.is_candidate() && self.campaigns % 2 == 1 && self.raw.raft.election_elapsed == 0 {
            self.raw.raft.election_elapsed = timeout - self.timing.patience(self.peer, self.term());
        }
    }

    pub fn send(&self, to: PeerId, body: Body, effects: &mut Effects) {
        if !self.is_silent() {
            self.send_always(to, body, effects);
        }
    }

    /// As [`Group::send`], also when this peer otherwise says nothing.
    pub fn send_always(&self, to: PeerId, body: Body, effects: &mut Effects) {
        if let Some(node) = self.node_of(to) {
            let message = Message { group: self.id, from: self.peer, from_node: self.config.node, to, body };
            effects.out.push(Output::Send { to: node, message });
        }
    }

    /// The node behind a peer, as far as it can be known.
    pub fn node_of(&self, peer: PeerId) -> Option<NodeId> {
        self.membership.node_of(peer).or_else(|| self.contacts.get(&peer).copied())
    }

    fn raft_message(&mut self, from: PeerId, message: eraftpb::Message, effects: &mut Effects) {
        if self.installing.is_some() {
            return;
        }
        if let Err(why) = check::raft_message(&message, from, self.peer, &self.raw.raft) {
            effects.event(Event::BadMessage { group: self.id, from, why });
            return;
        }
        if self.membership.by_peer(from).is_some() {
            self.heard.insert(from, self.now);
        }
        let kind = message.get_msg_type();
        if self.refuses_for_disk(kind, &message) {
            return;
        }
        let asks_for_vote = matches!(kind, MessageType::MsgRequestVote | MessageType::MsgRequestPreVote);
        if asks_for_vote && message.context != check::CAMPAIGN_TRANSFER && self.now < self.vote_guard_until {
            return;
        }
        let rejection = kind == MessageType::MsgAppendResponse && message.reject;
        // A message that the raft crate has no use for (an unknown peer's answer, say) is not an error of ours.
        let _ = self.raw.step(message);
        self.pin_election_timeout();
        if rejection && self.is_leader() {
            self.clamp_progress(from);
        }
        self.waiting.told |= kind == MessageType::MsgHeartbeat;
        let of_leader = matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat | MessageType::MsgSnapshot);
        if of_leader && self.leader() == from {
            self.vote_guard_until = self.now + self.timing.vote_guard;
        }
    }

    /// raft 0.7: a stale rejection may put the next index to or below what the follower is known to have.
    fn clamp_progress(&mut self, peer: PeerId) {
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(peer.0)
            && progress.next_idx <= progress.matched
        {
            progress.next_idx = progress.matched + 1;
        }
    }

    /// What was forwarded was not taken: it goes back to waiting, or ends.
    fn forward_refused(&mut self, term: u64, seqs: &[u64], why: Refusal, effects: &mut Effects) {
        self.forward_not_before = self.now + self.timing.subtick;
        let mut ended = self.proposals.refused(term, seqs, why);
        let transfers = self.transfers.extract_if(.., |transfer| seqs.contains(&transfer.seq));
        ended.extend(transfers.map(|transfer| transfer.seq));
        if !ended.is_empty() {
            effects.refuse(self.id, ended, why);
        }
    }

    /// What clients asked for and never left this host can be sent again: it is as if the leader had not taken it. Of all
    /// else a later message makes up for the loss.
    pub fn unsent(&mut self, message: Message, effects: &mut Effects) {
        if message.from != self.peer {
            return;
        }
        match message.body {
            Body::Forward { term, data } => {
                let seqs: Vec<u64> = Commands::decode(data).map(|own| own.seqs().collect()).unwrap_or_default();
                self.forward_refused(term, &seqs, Refusal::NoLeader, effects);
            }
            Body::ForwardChange { term, record } => {
                let seqs: Vec<u64> = ChangeRecord::decode(&record).map(|own| own.seq).into_iter().collect();
                self.forward_refused(term, &seqs, Refusal::NoLeader, effects);
            }
            _ => {}
        }
    }

    fn forwarded(&mut self, from: PeerId, term: u64, data: Bytes, effects: &mut Effects) {
        let Some(commands) = Commands::decode(data.clone()).filter(|commands| commands.origin == from) else {
            let why = "a forwarded entry cannot be decoded".to_owned();
            return effects.event(Event::BadMessage { group: self.id, from, why });
        };
        let lag = self.committed().saturating_sub(self.applied);
        // Who is no member any more may never learn what became of it.
        let stranger = self.membership.node_of(from).is_none();
        let why = if stranger
            || !self.is_leader()
            || term != self.term()
            || self.transferring()
            || self.hashes.is_quarantined()
        {
            Refusal::NoLeader
        } else if lag > self.config.apply_lag_entries_max {
            Refusal::Busy
        } else if self.raw.propose(Vec::new(), data.into()).is_ok() {
            return self.want_commit(from, self.raw.raft.raft_log.last_index());
        } else {
            Refusal::NoLeader
        };
        self.send(from, Body::ForwardRefused { term, seqs: commands.seqs().collect(), why }, effects);
    }

    fn forwarded_change(&mut self, from: PeerId, term: u64, record: &[u8], effects: &mut Effects) {
        let Some(record) = ChangeRecord::decode(record).filter(|record| record.origin == from) else {
            let why = "a forwarded membership change cannot be decoded".to_owned();
            return effects.event(Event::BadMessage { group: self.id, from, why });
        };
        let seq = record.seq;
        // Only the leader itself decides that a successor has caught up.
        let outcome = if matches!(record.change, MembershipChange::Succeed { .. }) {
            Err(Refusal::UnknownMember)
        } else if self.membership.node_of(from).is_none() || !self.is_leader() || term != self.term() {
            Err(Refusal::NoLeader)
        } else {
            self.propose_change(record)
        };
        match outcome {
            Ok(()) => self.want_commit(from, self.raw.raft.raft_log.last_index()),
            Err(why) => self.send(from, Body::ForwardRefused { term, seqs: vec![seq], why }, effects),
        }
    }

    fn read_answer(&mut self, from: PeerId, context: u64, index: Option<u64>, effects: &mut Effects) {
        let Some(query) = self.reads.end_query(context) else { return };
        match index {
            Some(index) if from == self.leader() => {
                let seqs = query.reads.iter().map(|read| read.seq).collect();
                self.reads_at(index, effects);
                effects.out.push(Output::ReadReady { group: self.id, seqs, index, valid_until: None });
            }
            _ => {
                self.reads.waiting.extend(query.reads);
                self.reads.query_not_before = self.now + self.timing.subtick;
            }
        }
    }

    fn expire(&mut self, effects: &mut Effects) {
        let (never_sent, unknown) = self.proposals.expire(self.now);
        if !never_sent.is_empty() {
            effects.refuse(self.id, never_sent, Refusal::NoLeader);
        }
        if !unknown.is_empty() {
            effects.refuse(self.id, unknown, Refusal::TimedOut);
        }
        self.reads.requeue_queries(self.now - self.timing.heartbeat * 2);
        let reads = self.reads.expire(self.now);
        if !reads.is_empty() {
            let why = if self.leader().is_none() { Refusal::NoLeader } else { Refusal::TimedOut };
            effects.refuse(self.id, reads, why);
        }
        let now = self.now;
        let late: Vec<u64> =
            self.transfers.extract_if(.., |transfer| now >= transfer.deadline).map(|late| late.seq).collect();
        if !late.is_empty() {
            effects.refuse(self.id, late, Refusal::TimedOut);
        }
    }
}

/// For [`Installing`]: what the raft crate gave with a snapshot.
pub(crate) fn snapshot_mark(snapshot: &Snapshot) -> Mark {
    let metadata = snapshot.get_metadata();
    Mark { index: metadata.index, term: metadata.term, hash: 0 }
}
