//! Two of the three threads that carry a host: the driver takes turns, the log writer makes things durable; the third is the
//! [applier](crate::applier). They share nothing but queues.
//!
//! A wake-up costs more than a small write. So when nothing else waits for the driver and the other thread has nothing to do
//! either, the driver writes the log or applies the entries itself; when that took long, it leaves such work to the
//! threads for a while ([`Patience`]).
//!
//! The driver publishes the lease and the status after each turn and before it carries the outputs out, so that
//! whoever learns of a commit through an output finds it published.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{GroupId, NodeId, PeerId, Time};
use consensus::wire::Body;
use consensus::{Event, Host, Input, Message, Output, SnapshotSink, SnapshotSource};
use parking_lot::Mutex;
use storage::{LogBatch, LogError, LogStore};

use crate::applier::{Applier, Reached, Work};
use crate::clock;
use crate::group::{Group, Groups};
use crate::handle::{ReadGrant, Shared};
use crate::heal::{Damage, Health, What};
use crate::inbox::Inbox;
use crate::lag::{Lag, Say};
use crate::pace;
use crate::roll;
use crate::roster::Roster;
use crate::stages::Durations;
use crate::transport::{Peers, Transport};
use crate::waiters::Answer;

/// The log writer calls a pause of this length idle.
const IDLE: Duration = Duration::from_millis(20);

/// Work that took the driver longer than this is left to its thread for a while.
const PATIENCE: Duration = Duration::from_millis(2);
const LEAVE_FOR: Duration = Duration::from_millis(200);
/// How often progress is mentioned.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// A turn is taken this often, even if none of the groups has anything to do: others tell by it that the driver lives.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(1);
/// How a full disk is waited for.
pub const FULL_RETRY: Duration = Duration::from_millis(100);
const FULL_TRIES_MAX: u32 = 100;
const FULL_FREE_BYTES: u64 = 16 << 20;
/// A log write that takes this long is worth a line.
pub const STALL: Duration = Duration::from_secs(1);
/// A disk counts as slow for so long after leadership was last handed over for it.
const SLOW_FOR: Duration = Duration::from_secs(60);
/// Entries that the driver applies itself at most.
const INLINE_ENTRIES_MAX: u64 = 4;

/// A snapshot that waits to be sent, and when it was built.
type BuiltSnapshot = (Instant, Box<dyn SnapshotSource>);

/// What the threads share with the shell.
pub struct Engines {
    pub inbox: Arc<Inbox<Input>>,
    pub work: Arc<Inbox<Work>>,
    pub groups: Arc<Groups>,
    pub staged: Arc<Mutex<HashMap<u64, Box<dyn SnapshotSink>>>>,
    pub sources: Arc<Mutex<HashMap<u64, BuiltSnapshot>>>,
    pub stop: Arc<AtomicBool>,
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub health: Arc<Health>,
    pub stats: Arc<DriverStats>,
    /// The disk has no room for what comes from the leader.
    pub held: Arc<AtomicBool>,
    /// It has none for snapshots.
    pub crowded: AtomicBool,
    /// The data folder.
    pub dir: PathBuf,
}

/// Plain counters; rendered as metrics elsewhere.
#[derive(Default)]
pub struct DriverStats {
    pub turns: AtomicU64,
    /// Writes of the log, fsync included.
    pub syncs: Durations,
    /// Batches put into the state.
    pub applies: Durations,
    /// When the log write under way began, on the node's own clock; zero when there is none.
    pub write_began_ms: AtomicU64,
    /// Log writes that took a second and more.
    pub write_stalls: AtomicU64,
    /// When leadership was last handed over because the disk was slow, on the node's own clock; zero: never.
    slow_ms: AtomicU64,
    pub slow_handovers: AtomicU64,
    pub applied_entries: AtomicU64,
    pub snapshots_sent: AtomicU64,
    pub snapshots_installed: AtomicU64,
    /// Of the last snapshot that was put in place.
    pub snapshot_index: AtomicU64,
    /// Snapshots on their way out.
    pub snapshots_sending: AtomicU64,
    pub leader_changes: AtomicU64,
    pub hash_mismatches: AtomicU64,
}

type Persist = (u64, LogBatch);

/// What waits to be written, and how much of it is not done yet.
#[derive(Default)]
pub struct LogQueue {
    waiting: Inbox<Persist>,
    open: AtomicUsize,
    /// Something was written without the log writer's knowledge.
    unmarked: AtomicBool,
}

/// Whether the driver should do a kind of work itself.
struct Patience {
    not_before: Instant,
}

impl Patience {
    fn allows(&self) -> bool {
        Instant::now() >= self.not_before
    }

    fn spent(&mut self, begun: Instant) {
        let now = Instant::now();
        if now - begun > PATIENCE {
            self.not_before = now + LEAVE_FOR;
        }
    }
}

/// How often a group's status is published, while it is not eventful.
const PUBLISH_EVERY: Duration = Duration::from_millis(20);

/// What the driver remembers of a group between turns.
struct Seen {
    group: Arc<Group>,
    published: Time,
    /// Its status is to be published when that may be.
    waits: bool,
    /// When progress was last mentioned, and how far it was.
    said: (Time, u64),
    lag: Lag,
}

/// The driver's own things.
pub struct Driver {
    pub host: Host,
    pub shared: Arc<Shared>,
    pub engines: Arc<Engines>,
    pub store: Arc<dyn LogStore>,
    pub log: Arc<LogQueue>,
    pub applier: Arc<Applier>,
    pub transport: Transport,
}

impl Driver {
    /// Takes turns until told to stop.
    pub fn run(mut self) {
        let mut seen: BTreeMap<GroupId, Seen> = BTreeMap::new();
        // Groups whose status may be newer than what was published, and when it is due.
        let mut unpublished: VecDeque<(Time, GroupId)> = VecDeque::new();
        let mut log_patience = Patience { not_before: Instant::now() };
        let mut apply_patience = Patience { not_before: Instant::now() };
        let mut done: Vec<Input> = Vec::new();
        while !self.engines.stop.load(Ordering::Relaxed) {
            let wait = if done.is_empty() { self.host.next_turn().since(clock::now()) } else { Duration::ZERO };
            let wait = wait.min(SIGN_OF_LIFE_EVERY);
            let mut inputs = self.engines.inbox.take(wait);
            inputs.append(&mut done);
            let creates: Vec<(GroupId, PeerId)> = inputs
                .iter()
                .filter_map(|input| match input {
                    Input::Create(create) => Some((create.group, create.peer)),
                    _ => None,
                })
                .collect();
            let destroys: Vec<GroupId> = inputs
                .iter()
                .filter_map(|input| match input {
                    Input::Destroy { group } => Some(*group),
                    _ => None,
                })
                .collect();
            let now = clock::now();
            let outputs = self.host.turn(now, inputs);
            self.engines.stats.turns.fetch_add(1, Ordering::Relaxed);
            for (id, peer) in creates {
                let reader = self.host.log_reader(id).expect("just created");
                let group = self.engines.groups.get(id).expect("whoever creates it has made it known");
                seen.insert(
                    id,
                    Seen {
                        group: group.clone(),
                        published: Time::ZERO,
                        waits: false,
                        said: (now, 0),
                        lag: Lag::default(),
                    },
                );
                self.applier.push(vec![Work::Host(group, peer, reader)]);
            }
            let eventful = outputs.iter().any(|output| matches!(output, Output::Event(_)));
            for id in self.host.touched() {
                let Some(seen) = seen.get_mut(&id) else { continue };
                seen.group.turn(now);
                seen.group.waiters.publish_lease(self.host.lease(id));
                if eventful || now.since(seen.published) >= PUBLISH_EVERY {
                    self.publish(now, seen);
                } else if !seen.waits {
                    seen.waits = true;
                    unpublished.push_back((now + PUBLISH_EVERY, id));
                }
            }
            while let Some((_, id)) = unpublished.front().copied().filter(|(at, _)| *at <= now) {
                unpublished.pop_front();
                if let Some(seen) = seen.get_mut(&id)
                    && seen.waits
                {
                    self.publish(now, seen);
                }
            }
            let (work, persist) = self.carry_out(now, outputs, &seen);
            // After that: who waits for a group that went has been told whether it was asked for in vain.
            for id in destroys {
                seen.remove(&id);
                self.engines.groups.remove(id);
                self.applier.push(vec![Work::Drop(id)]);
            }
            self.apply(work, &mut apply_patience, &mut done);
            self.persist(persist, &mut log_patience, &mut done);
        }
        self.engines.groups.close();
    }

    /// Publishes where a group stands.
    fn publish(&self, now: Time, seen: &mut Seen) {
        let group = &seen.group;
        let Some(status) = self.host.status(group.id) else { return };
        (seen.published, seen.waits) = (now, false);
        if now.since(seen.said.0) >= SAY_EVERY && status.committed > seen.said.1 {
            seen.said = (now, status.committed);
            tracing::info!(target: "chainfire_storage", "Committed entry, index={}", status.committed);
        }
        seen.lag.look(now, &status, &group.membership.load()).iter().for_each(Say::aloud);
        group.status.store(Arc::new(status));
    }

    /// Carries outputs out, but for what the applier and the log writer are there for.
    fn carry_out(
        &self,
        now: Time,
        outputs: Vec<Output>,
        seen: &BTreeMap<GroupId, Seen>,
    ) -> (Vec<Work>, Option<Persist>) {
        let engines = &self.engines;
        let mut sends: Vec<(NodeId, Message)> = Vec::new();
        let mut work = Vec::new();
        let mut persist = None;
        let group = |id: GroupId| seen.get(&id).map(|seen| &seen.group);
        for output in outputs {
            match output {
                Output::Persist { number, batch } => persist = Some((number, batch)),
                Output::Send { to, message } => sends.push((to, message)),
                Output::Committed { group: id, first, last } => {
                    if let Some(stages) = group(id).and_then(|group| group.stages.as_ref()) {
                        stages.committed(now, last);
                    }
                    work.push(Work::Apply { group: id, first, last });
                }
                Output::ReadReady { group: id, seqs, index, valid_until } => {
                    if let Some(group) = group(id) {
                        group.waiters.read_ready(&seqs, ReadGrant { index, valid_until });
                    }
                }
                Output::Refused { group: id, seqs, why } => {
                    // One that is not here has nobody who waits.
                    if let Some(group) = group(id) {
                        seqs.iter().for_each(|seq| group.waiters.refuse(*seq, why));
                    }
                }
                Output::TransferDone { group: id, seq } => {
                    if let Some(group) = group(id) {
                        group.waiters.answer(seq, Answer::Transferred);
                    }
                }
                Output::BuildSnapshot { group, to, .. } => work.push(Work::BuildSnapshot { group, to }),
                Output::SendSnapshot { to, message, snapshot } => {
                    let source = engines.sources.lock().remove(&snapshot).map(|(_, source)| source);
                    engines.stats.snapshots_sent.fetch_add(1, Ordering::Relaxed);
                    send_snapshot(to, message, source, engines, self.transport.clone());
                }
                Output::InstallSnapshot { group, staged, .. } => work.push(Work::Install { group, staged }),
                Output::DiscardSnapshot { staged } => drop(engines.staged.lock().remove(&staged)),
                Output::Event(event) => {
                    if let Some(group) = group(event.group()) {
                        tell(&event, group, &self.shared, engines);
                    }
                }
            }
        }
        if !sends.is_empty() {
            let unsent = self.transport.send(sends);
            if !unsent.is_empty() {
                engines.inbox.extend(unsent.into_iter().map(Input::Unsent));
            }
        }
        (work, persist)
    }

    fn apply(&self, work: Vec<Work>, patience: &mut Patience, done: &mut Vec<Input>) {
        if let [Work::Apply { group, first, last }] = work[..]
            && last - first < INLINE_ENTRIES_MAX
            && patience.allows()
            && self.engines.inbox.is_empty()
            && self.applier.idle()
            && !self.applier.may_wait(group)
        {
            let begun = Instant::now();
            match self.applier.apply(group, first, last, &self.engines) {
                Ok((inputs, reached)) => {
                    done.extend(inputs);
                    if let Reached::NoRoom(first) | Reached::Held(first) = reached {
                        // The applier waits; the driver must not.
                        self.applier.push(vec![Work::Apply { group, first, last }]);
                    }
                }
                Err(error) => (self.engines.fatal)(error),
            }
            patience.spent(begun);
        } else if !work.is_empty() {
            self.applier.push(work);
        }
    }

    fn persist(&self, persist: Option<Persist>, patience: &mut Patience, done: &mut Vec<Input>) {
        let Some((number, batch)) = persist else { return };
        let nothing_open = self.log.open.load(Ordering::SeqCst) == 0;
        if nothing_open && patience.allows() && done.is_empty() && self.engines.inbox.is_empty() {
            let (begun, since) = (Instant::now(), self.engines.stats.write_begins());
            match self.store.write(&batch) {
                Ok(()) => {}
                // The log writer waits for room; the driver must not.
                Err(LogError::NoSpace) => {
                    self.engines.stats.write_given_up();
                    return self.leave_to_writer(number, batch);
                }
                Err(error) => return (self.engines.fatal)(error.to_string()),
            }
            self.engines.synced(since, &batch);
            self.log.unmarked.store(true, Ordering::SeqCst);
            patience.spent(begun);
            done.push(Input::Persisted { number });
        } else {
            self.leave_to_writer(number, batch);
        }
    }

    fn leave_to_writer(&self, number: u64, batch: LogBatch) {
        self.log.open.fetch_add(1, Ordering::SeqCst);
        self.log.waiting.push((number, batch));
    }
}

fn tell(event: &Event, group: &Group, shared: &Shared, engines: &Engines) {
    match event {
        // What is news where there is one group is noise where there are thousands.
        Event::Leader { term, node, .. } if shared.transport.peers() == Peers::OnePerGroup => {
            engines.stats.leader_changes.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(target: "chainfire_raft", "Leader elected, region={} term={term} leader={node}", group.id);
        }
        Event::NoLeader { .. } | Event::ElectionTimeout { .. } if shared.transport.peers() == Peers::OnePerGroup => {}
        Event::Membership { index, membership, .. } if shared.transport.peers() == Peers::OnePerGroup => {
            for change in roll::changes(&group.membership.load(), membership) {
                tracing::info!(target: "chainfire_raft", "{change} region={} index={index}", group.id);
            }
            group.membership.store(membership.clone());
        }
        Event::Leader { term, node, .. } => {
            engines.stats.leader_changes.fetch_add(1, Ordering::Relaxed);
            tracing::info!(target: "chainfire_raft", "Leader elected, term={term} leader={node}");
        }
        Event::NoLeader { term, .. } => tracing::warn!(target: "chainfire_raft", "No leader elected, term={term}"),
        Event::ElectionTimeout { term, .. } => {
            tracing::warn!(target: "chainfire_raft", "Election timeout, no heartbeat from leader, term={term}");
        }
        Event::Membership { index, membership, .. } => {
            let nodes: Vec<String> = membership.members.keys().map(ToString::to_string).collect();
            tracing::info!(
                target: "chainfire_raft",
                "Membership changed, index={index} nodes={}",
                nodes.join(",")
            );
            for change in roll::changes(&group.membership.load(), membership) {
                tracing::info!(target: "chainfire_raft", "{change}");
            }
            // Before the log can be cut behind it, which takes another output.
            let roster = Roster { index: *index, membership: (**membership).clone() };
            if let Err(error) = roster.save(&engines.dir) {
                tracing::warn!(target: "chainfire_storage", "Who the members are was not kept, why={error} code=CF4011");
            }
            shared.transport.learn(membership);
            group.membership.store(membership.clone());
        }
        Event::HashMismatch { peer, index, ours, theirs, .. } => {
            engines.stats.hash_mismatches.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                target: "chainfire_raft",
                "Replicas differ, peer={peer} index={index} ours={ours:x} theirs={theirs:x} code=CF2001"
            );
        }
        Event::DiskStalled { stalled_ms, .. } => {
            tracing::warn!(
                target: "chainfire_storage",
                "Disk stall detected, this node leads no more until a log write returns, duration={stalled_ms}ms code=CF4120"
            );
        }
        Event::DiskSlow { write_ms, .. } => {
            // With many groups, not a line for each.
            if engines.stats.disk_was_slow() {
                tracing::warn!(
                    target: "chainfire_storage",
                    "Disk slow, this node hands leadership over to one whose disk is faster, write={write_ms}ms code=CF4122"
                );
            }
        }
        Event::Diverged { index, ours, theirs, .. } if shared.transport.peers() == Peers::OnePerGroup => {
            group.differs.store(true, Ordering::SeqCst);
            tracing::error!(
                target: "chainfire_raft",
                "This replica differs from most and answers nothing any more, region={} index={index} ours={ours:x} \
                 theirs={theirs:x} code=CF2003",
                group.id
            );
        }
        Event::Diverged { index, ours, theirs, .. } => {
            let why = format!("its state after entry {index} hashes to {ours:x}, and most have {theirs:x}");
            engines.health.report(Damage::new(What::Differs, why));
        }
        Event::HashesUnclear { index, hashes, .. } => {
            let all: Vec<String> = hashes.iter().map(|(peer, hash)| format!("{peer}:{hash:x}")).collect();
            tracing::error!(
                target: "chainfire_raft",
                "Replicas differ and no majority agrees, nobody is rebuilt: find out which is right and restore it, \
                 index={index} hashes={} code=CF4005",
                all.join(",")
            );
            group.unclear.store(Some(Arc::new(hashes.iter().map(|(peer, _)| *peer).collect())));
        }
        Event::BadMessage { from, why, .. } => {
            tracing::warn!(target: "chainfire_network", "Dropped a message, peer={from} why={why}");
        }
    }
    // Nobody may be listening.
    let _ = shared.events.send(event.clone());
}

/// Writes batches until told to stop: whatever waits goes out with one write and one fsync.
pub fn write_log(store: &dyn LogStore, log: &LogQueue, engines: &Engines) {
    let mut idle = true;
    loop {
        let waiting = log.waiting.take(if idle { Duration::from_millis(500) } else { IDLE });
        let written = waiting.len();
        if waiting.is_empty() {
            if engines.stop.load(Ordering::Relaxed) {
                break;
            }
            let unmarked = log.unmarked.swap(false, Ordering::SeqCst);
            if !idle || unmarked {
                match store.idle() {
                    // What it would have done can wait for room.
                    Ok(()) | Err(LogError::NoSpace) => {}
                    Err(error) => return (engines.fatal)(error.to_string()),
                }
            }
            idle = true;
            continue;
        }
        idle = false;
        let number = waiting.last().map_or(0, |(number, _)| *number);
        let all = LogBatch::joined(waiting.into_iter().map(|(_, batch)| batch));
        let begun = engines.stats.write_begins();
        if let Err(error) = write_when_there_is_room(store, &all, engines) {
            return (engines.fatal)(error.to_string());
        }
        engines.synced(begun, &all);
        engines.inbox.push(Input::Persisted { number });
        log.open.fetch_sub(written, Ordering::SeqCst);
    }
    // The mark is made durable on the way out; after an error there is nothing left to save.
    let _ = store.idle();
}

/// A full disk stops acknowledging, not the node: the batch is tried again until there is room. An error that stays when
/// there is room is final.
fn write_when_there_is_room(store: &dyn LogStore, batch: &LogBatch, engines: &Engines) -> Result<(), LogError> {
    let mut tries_with_room = 0;
    let mut said = false;
    loop {
        match store.write(batch) {
            Err(LogError::NoSpace) if tries_with_room < FULL_TRIES_MAX && !engines.stop.load(Ordering::Relaxed) => {
                if !said {
                    tracing::error!(target: "chainfire_storage", "No space left for the log, nothing is acknowledged code=CF1004");
                }
                said = true;
                let roomy = crate::disk::room(&engines.dir).is_none_or(|(free, _)| free > FULL_FREE_BYTES);
                tries_with_room += u32::from(roomy);
                std::thread::sleep(FULL_RETRY);
            }
            other => return other,
        }
    }
}

impl Engines {
    /// A batch of the log whose writing began then is durable.
    fn synced(&self, begun: Time, batch: &LogBatch) {
        let now = clock::now();
        self.stats.write_ended(now.since(begun));
        for write in &batch.groups {
            let group = write.entries.last().and_then(|last| Some((self.groups.get(write.group)?, last.index)));
            if let Some((group, index)) = group
                && let Some(stages) = &group.stages
            {
                stages.synced(now, index);
            }
        }
    }
}

impl DriverStats {
    fn write_begins(&self) -> Time {
        let now = clock::now();
        self.write_began_ms.store((now.as_nanos() / 1_000_000).max(1), Ordering::Relaxed);
        now
    }

    /// It was refused.
    fn write_given_up(&self) {
        self.write_began_ms.store(0, Ordering::Relaxed);
    }

    fn write_ended(&self, took: Duration) {
        self.write_given_up();
        if took >= STALL {
            self.write_stalls.fetch_add(1, Ordering::Relaxed);
            let ms = took.as_millis();
            tracing::warn!(target: "chainfire_storage", "Disk stall ended, a log write has returned, duration={ms}ms");
        }
        self.syncs.add(took);
    }

    /// Leadership of a group is handed over for it. Whether this is worth a line.
    fn disk_was_slow(&self) -> bool {
        self.slow_handovers.fetch_add(1, Ordering::Relaxed);
        let now = clock::now();
        let before = self.slow_ms.swap((now.as_nanos() / 1_000_000).max(1), Ordering::Relaxed);
        before == 0 || now.since(Time::from_millis(before)) >= STALL
    }

    /// Whether the disk stands still, or was so slow lately that leadership was handed over for it.
    pub fn is_slow(&self) -> bool {
        let lately = |at: u64| at != 0 && clock::now().since(Time::from_millis(at)) < SLOW_FOR;
        self.writing_for() >= STALL || lately(self.slow_ms.load(Ordering::Relaxed))
    }

    /// How long the log write under way has taken.
    pub fn writing_for(&self) -> Duration {
        match self.write_began_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_millis((clock::now().as_nanos() / 1_000_000).saturating_sub(began)),
        }
    }
}

fn send_snapshot(
    to: NodeId,
    message: Message,
    source: Option<Box<dyn SnapshotSource>>,
    engines: &Engines,
    transport: Transport,
) {
    let (inbox, stats) = (engines.inbox.clone(), engines.stats.clone());
    let (group, peer) = (message.group, message.to);
    debug_assert!(matches!(message.body, Body::Raft(_)), "a snapshot travels with raft's own message");
    let send = move || {
        pace::step_back();
        stats.snapshots_sending.fetch_add(1, Ordering::Relaxed);
        let sent = source.map(|source| transport.send_snapshot(to, &message, source));
        if let Some(Err(error)) = &sent {
            tracing::warn!(target: "chainfire_network", "Snapshot not sent, node={to} why={error}");
        }
        stats.snapshots_sending.fetch_sub(1, Ordering::Relaxed);
        inbox.push(Input::SnapshotSent { group, to: peer, ok: matches!(sent, Some(Ok(()))) });
    };
    std::thread::Builder::new().name("snapshot-send".to_owned()).spawn(send).expect("threads can be started");
}
