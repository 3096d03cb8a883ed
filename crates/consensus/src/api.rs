//! The seam: what goes into a turn and what comes out.
//!
//! ```text
//! fn turn(&mut self, now: Time, inputs: Vec<Input>) -> Vec<Output>
//! ```
//!
//! The host never waits: the disk, the network and the state machine are effects. Outputs are carried out in
//! order by the driver (production) or the world (simulator), and their results come back as inputs of a later
//! turn. Proposals and reads carry a `seq` that the caller draws, unique for the life of the process and not
//! shared with an earlier life of the same peer (start at random, count up).

use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use storage::LogBatch;

use crate::machine::Mark;
use crate::membership::{Membership, MembershipChange};
use crate::wire::Message;

/// What a turn is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// From another peer.
    Message(Message),
    /// Replicate a command. Ends in an outcome at the applier of this host, or in [`Output::Refused`].
    Propose { group: GroupId, seq: u64, command: Bytes, deadline: Time },
    /// Change who is in the group. Ends like a proposal.
    Change { group: GroupId, seq: u64, change: MembershipChange, deadline: Time },
    /// Ask for an index at which a read is linearizable. Ends in [`Output::ReadReady`] or [`Output::Refused`].
    Read { group: GroupId, seq: u64, deadline: Time },
    /// The batch of [`Output::Persist`] with this number, and all before it, is on disk.
    Persisted { number: u64 },
    /// The state machine has applied up to `index`. `hashes` are the rolling hashes at the fixed indexes passed.
    Applied { group: GroupId, index: u64, hashes: Vec<(u64, u64)> },
    /// The state machine's state up to `index` survives a power cut: the log may be cut there.
    Durable { group: GroupId, index: u64 },
    /// A group comes to live on this host.
    Create(CreateGroup),
    /// Ask for votes at once, if this peer may vote and knows no leader: a founder need not wait for a timeout.
    Campaign { group: GroupId },
    /// A group leaves this host for good: its log is forgotten.
    Destroy { group: GroupId },
    /// Hand leadership to `to`, or to the best follower. Ends in [`Output::TransferDone`] or a refusal.
    Transfer { group: GroupId, seq: u64, to: Option<NodeId>, deadline: Time },
    /// The snapshot asked for by [`Output::BuildSnapshot`] stands ready under `snapshot`.
    SnapshotBuilt { group: GroupId, to: PeerId, snapshot: u64, mark: Mark, membership: Membership },
    /// [`Output::BuildSnapshot`] or [`Output::SendSnapshot`] came to an end.
    SnapshotSent { group: GroupId, to: PeerId, ok: bool },
    /// A complete, verified snapshot lies staged under `staged`; `message` is what came with it.
    SnapshotReceived { message: Message, staged: u64 },
    /// [`Output::InstallSnapshot`] was carried out: the state machine stands at `mark`.
    Installed { group: GroupId, mark: Mark, membership: Membership },
    /// Nothing reaches this node at present.
    Unreachable { node: NodeId },
    /// This message of [`Output::Send`] was not sent, not even in part, and never will be. Not every lost one is told of.
    Unsent(Message),
    /// Take no new entries from the leader until told otherwise: the disk has no room for them. A leader takes no notice.
    Hold { group: GroupId, held: bool },
    /// Propose no membership change until told otherwise: somebody counts on the members as they are.
    HoldChanges { group: GroupId, held: bool },
    /// It is known from elsewhere that this entry is committed, and with it all before it. Nothing comes of it where this
    /// peer does not have it on disk.
    Vouch { group: GroupId, index: u64, term: u64 },
}

/// How a group starts on a host: from what its state machine holds; its log is read from the log store.
#[derive(Clone, Debug)]
pub struct CreateGroup {
    pub group: GroupId,
    /// This host's peer in the group.
    pub peer: PeerId,
    /// Where the state machine stands, durably.
    pub mark: Mark,
    /// The membership as of `mark`. Empty for a peer that waits to be added.
    pub membership: Arc<Membership>,
    /// True when this peer has never voted nor acknowledged anything: it may vote at once.
    pub fresh: bool,
}

/// What a turn asks for.
#[derive(Clone, Debug)]
pub enum Output {
    /// Make this durable with one write and one fsync, then answer [`Input::Persisted`]. In order.
    Persist { number: u64, batch: LogBatch },
    /// Send to another peer. May be lost or delayed. What is raft's own may be repeated as well, all else comes at most once: a
    /// command that was forwarded twice would be in the log twice.
    Send { to: NodeId, message: Message },
    /// Entries up to `last` (from `first` on) are committed: read them with the group's
    /// [`crate::LogReader`], apply, answer [`Input::Applied`]. In order, without gaps.
    Committed { group: GroupId, first: u64, last: u64 },
    /// Once the state machine has applied `index`, a read is linearizable; with `valid_until`, only if the clock
    /// has not passed it when the read is done (else ask again).
    ReadReady { group: GroupId, seqs: Vec<u64>, index: u64, valid_until: Option<Time> },
    /// What was asked under these `seqs` was not done, for `why`. [`Refusal::outcome_unknown`] tells whether it
    /// may yet be.
    Refused { group: GroupId, seqs: Vec<u64>, why: Refusal },
    /// The leadership asked for by [`Input::Transfer`] has moved.
    TransferDone { group: GroupId, seq: u64 },
    /// A follower needs the state: take a snapshot at or beyond `index_min`, answer [`Input::SnapshotBuilt`].
    BuildSnapshot { group: GroupId, to: PeerId, index_min: u64 },
    /// Stream the snapshot to the node, `message` last; answer [`Input::SnapshotSent`].
    SendSnapshot { to: NodeId, message: Message, snapshot: u64 },
    /// Let the applier finish what it has, put the staged snapshot in place, answer [`Input::Installed`].
    InstallSnapshot { group: GroupId, staged: u64, mark: Mark },
    /// A staged snapshot is of no use any more.
    DiscardSnapshot { staged: u64 },
    /// Something that people or the node shell want to know.
    Event(Event),
}

/// Something that happened, for log lines, metrics and the shell's own bookkeeping.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A leader is known (this peer when `leader` is its own).
    Leader { group: GroupId, term: u64, leader: PeerId, node: NodeId },
    /// No leader is known any more.
    NoLeader { group: GroupId, term: u64 },
    /// No word from a leader for an election timeout; this peer asks for votes.
    ElectionTimeout { group: GroupId, term: u64 },
    /// The membership is now this. Emitted when the change is committed.
    Membership { group: GroupId, index: u64, membership: Arc<Membership> },
    /// `peer` has come to `theirs`, and a majority of the voters to `ours`. It is told so.
    HashMismatch { group: GroupId, peer: PeerId, index: u64, ours: u64, theirs: u64 },
    /// The disk has not returned from a write for so long. This peer gives leadership up, and asks for none until it does.
    DiskStalled { group: GroupId, stalled_ms: u64 },
    /// This leader's disk held its writes up for long, though most others had written them: it hands over. The last write
    /// took so long.
    DiskSlow { group: GroupId, write_ms: u64 },
    /// This peer's state is not what a majority of the voters has come to (`theirs`). It says nothing any more, or, if it
    /// leads, hands over first: its data is to be given up, and rebuilt from the others.
    Diverged { group: GroupId, index: u64, ours: u64, theirs: u64 },
    /// Replicas differ and no value has a majority: nobody can say who is right. Told once, by the leader.
    HashesUnclear { group: GroupId, index: u64, hashes: Vec<(PeerId, u64)> },
    /// A peer sent something that this version cannot make sense of.
    BadMessage { group: GroupId, from: PeerId, why: String },
}

impl Event {
    pub fn group(&self) -> GroupId {
        match self {
            Event::Leader { group, .. }
            | Event::NoLeader { group, .. }
            | Event::ElectionTimeout { group, .. }
            | Event::Membership { group, .. }
            | Event::HashMismatch { group, .. }
            | Event::DiskStalled { group, .. }
            | Event::DiskSlow { group, .. }
            | Event::Diverged { group, .. }
            | Event::HashesUnclear { group, .. }
            | Event::BadMessage { group, .. } => *group,
        }
    }
}

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no leader elected")]
    NoLeader,
    /// Said by a node that its cluster goes on without.
    #[error("this member was removed from its cluster")]
    Removed,
    /// The time ran out while the outcome was open.
    #[error("request timed out")]
    TimedOut,
    #[error("too many requests")]
    Busy,
    #[error("request is too large")]
    TooLarge,
    #[error("no such group on this node")]
    NoGroup,
    /// The leader went, or was not to be reached, after it was asked.
    #[error("the leader did not answer: whether it was done is not known; look, and ask again if it was not")]
    Unanswered,
    /// The node or its replica ended while the outcome was open.
    #[error("the node is stopping")]
    Stopping,
    #[error("the log is damaged or shorter than it was; the member must be rebuilt")]
    Damaged,
    #[error("a membership change is in flight; try again when it is done")]
    ChangeInFlight,
    #[error("member not found")]
    UnknownMember,
    #[error("member or peer address already exists")]
    DuplicateMember,
    #[error("the learner has not caught up with the leader")]
    LearnerNotReady,
    #[error("the member is a voter already")]
    NotALearner,
    #[error("too many learners")]
    TooManyLearners,
    #[error("the change would leave no quorum")]
    WouldLoseQuorum,
    #[error("leadership cannot go to that member")]
    BadTransferee,
    #[error("the disk of this member is full and it takes nothing new; ask another")]
    Held,
}

impl Refusal {
    /// Whether what was asked for may yet take effect; if not, asking again is safe.
    pub fn outcome_unknown(self) -> bool {
        matches!(self, Refusal::TimedOut | Refusal::Unanswered | Refusal::Stopping)
    }
}

/// The bounds and timings of a host. Derived, validated: code uses only this.
#[derive(Clone, Copy, Debug)]
pub struct HostConfig {
    pub node: NodeId,
    /// For election timeouts. Any number; equal seeds give equal runs.
    pub seed: u64,
    /// One heartbeat per interval; elections after `election_intervals` of silence.
    pub tick_interval: Duration,
    pub election_intervals: u32,
    /// Proposals waiting for their commit, of all groups together.
    pub proposals_max: usize,
    pub proposal_bytes_max: usize,
    /// Commands are packed into entries of at most this size (a larger command gets its own).
    pub entry_bytes_max: usize,
    /// Reads waiting for their index.
    pub reads_max: usize,
    /// Committed entries that the state machine may lag behind before proposals are refused.
    pub apply_lag_entries_max: u64,
    /// Entries of a group kept in memory for followers and the applier …
    pub cache_bytes_max: usize,
    /// … and of all groups together.
    pub cache_bytes_max_all: usize,
    /// Messages in flight to one follower, and the size of each (a larger entry gets its own): together what a connection
    /// that stands still leaves in memory.
    pub inflight_messages_max: usize,
    pub message_bytes_max: u64,
    /// Log entries kept behind the durable index for followers that lag.
    pub log_entries_kept: u64,
    /// … but no more than this many bytes of them (four times as many while a follower needs a snapshot) …
    pub log_bytes_kept: u64,
    /// … and no more than a group's share of this.
    pub log_bytes_kept_all: u64,
    pub learners_max: usize,
    /// A write of the log that takes longer than this counts as stalled.
    pub disk_stall: Duration,
    /// One of a leader that takes longer than this, while most others are done with theirs, is held against its disk (`disk`).
    pub disk_slow: Duration,
    /// Groups that had nothing to do for this long sleep (`sleep`): for hosts with many. Without it none does, and nodes do not
    /// tell one another that they are there. All hosts of a cluster should agree.
    pub sleep_after: Option<Duration>,
    /// Followers that do not wait for it learn what is committed with what comes next, or at the next tick (`commits`), and
    /// have it applied a tick later at most (`applying`): for hosts with many groups whose followers serve nobody.
    pub lazy_commits: bool,
}

impl HostConfig {
    pub fn new(node: NodeId, seed: u64) -> HostConfig {
        HostConfig {
            node,
            seed,
            tick_interval: Duration::from_millis(100),
            election_intervals: 10,
            proposals_max: 20_000,
            proposal_bytes_max: 128 << 20,
            entry_bytes_max: 256 << 10,
            reads_max: 50_000,
            apply_lag_entries_max: 5_000,
            cache_bytes_max: 32 << 20,
            cache_bytes_max_all: 128 << 20,
            inflight_messages_max: 64,
            message_bytes_max: 256 << 10,
            log_entries_kept: 10_000,
            log_bytes_kept: 64 << 20,
            log_bytes_kept_all: 2 << 30,
            learners_max: 8,
            disk_stall: Duration::from_secs(2),
            disk_slow: Duration::from_millis(100),
            sleep_after: None,
            lazy_commits: false,
        }
    }

    /// The silence after which a follower asks for votes, at the earliest.
    pub fn election_timeout(&self) -> Duration {
        self.tick_interval * self.election_intervals
    }
}

/// A group as seen from this host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupStatus {
    pub peer: PeerId,
    pub term: u64,
    pub role: Role,
    /// Zero when none is known.
    pub leader: PeerId,
    pub leader_node: NodeId,
    pub first: u64,
    pub last: u64,
    pub committed: u64,
    pub applied: u64,
    pub durable: u64,
    /// How far the log was known to be committed when this peer began: it may have answered from that much before.
    pub regained: u64,
    /// Where the log ended when this peer began: how far it may have answered from before, at most.
    pub inherited_last: u64,
    /// On the leader: since when it has led in this term.
    pub led_since: Time,
    /// As the leader sees its followers: peer, last index known there, recently heard of.
    pub followers: Vec<(PeerId, u64, bool)>,
    pub pending_proposals: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    #[default]
    Follower,
    Candidate,
    Leader,
    Learner,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
            Role::Learner => "learner",
        }
    }
}

/// What lets the leader answer reads without a round: until `valid_until`, no other leader can have committed
/// anything, so a read at `index` (the committed index) is linearizable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaderLease {
    pub index: u64,
    pub valid_until: Time,
}
