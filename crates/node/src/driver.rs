//! The three threads that carry a host: the driver takes turns, the log writer makes things durable, the applier feeds
//! the state machine. They share nothing but queues.
//!
//! A wake-up costs more than a small write. So when nothing else waits for the driver and the other thread has nothing to do
//! either, the driver writes the log or applies the entries itself; when that took long, it leaves such work to the
//! threads for a while ([`Patience`]).
//!
//! The driver publishes the lease and the status after each turn and before it carries the outputs out, so that
//! whoever learns of a commit through an output finds it published.

use std::any::Any;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::wire::Body;
use consensus::{
    Applied, Event, Host, Input, LogReader, MachineError, Mark, Membership, Message, Output, SnapshotSink,
    SnapshotSource, StateMachine,
};
use parking_lot::{Mutex, MutexGuard};
use storage::{EngineError, LogBatch, LogError, LogStore};
use tokio::sync::oneshot;

use crate::clock;
use crate::handle::{ReadGrant, Shared};
use crate::heal::{Damage, Health, What};
use crate::inbox::Inbox;
use crate::lag::{Lag, Say};
use crate::roll;
use crate::roster::Roster;
use crate::stages::{Durations, Stages};
use crate::transport::Transport;
use crate::waiters::{Answer, Waiters};

/// Bytes of entries applied in one go.
const APPLY_BYTES_MAX: u64 = 4 << 20;
/// The log writer calls a pause of this length idle.
const IDLE: Duration = Duration::from_millis(20);
/// How often the applier asks the state machine how far it is durable.
const DURABLE_EVERY: Duration = Duration::from_secs(2);
/// So many entries, or such a time, without the engine flushing by itself, and it is told to.
const FLUSH_ENTRIES: u64 = 100_000;
const FLUSH_EVERY: Duration = Duration::from_secs(60);

/// Work that took the driver longer than this is left to its thread for a while.
const PATIENCE: Duration = Duration::from_millis(2);
const LEAVE_FOR: Duration = Duration::from_millis(200);
/// How often progress is mentioned.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How a full disk is waited for.
const FULL_RETRY: Duration = Duration::from_millis(100);
const FULL_TRIES_MAX: u32 = 100;
const FULL_FREE_BYTES: u64 = 16 << 20;
/// A log write that takes this long is worth a line.
pub const STALL: Duration = Duration::from_secs(1);
/// A snapshot that was built and never sent is let go of after this.
const SOURCE_KEPT: Duration = Duration::from_secs(60);
/// Entries that the driver applies itself at most.
const INLINE_ENTRIES_MAX: u64 = 4;

/// Work for the applier.
pub enum Work {
    Host(GroupId, PeerId, Arc<LogReader>),
    Apply { group: GroupId, first: u64, last: u64 },
    BuildSnapshot { group: GroupId, to: PeerId },
    Receiver { group: GroupId, reply: oneshot::Sender<Option<Box<dyn SnapshotSink>>> },
    Install { group: GroupId, staged: u64 },
    Stop,
}

/// How long readers have before a snapshot is tried to be put in place again.
const INSTALL_RETRY: Duration = Duration::from_secs(1);

/// A snapshot that waits to be sent, and when it was built.
type BuiltSnapshot = (Instant, Box<dyn SnapshotSource>);

/// What the threads share with the shell.
pub struct Engines {
    pub inbox: Arc<Inbox<Input>>,
    pub work: Arc<Inbox<Work>>,
    pub waiters: Arc<Waiters>,
    pub staged: Arc<Mutex<HashMap<u64, Box<dyn SnapshotSink>>>>,
    pub sources: Arc<Mutex<HashMap<u64, BuiltSnapshot>>>,
    pub stop: Arc<AtomicBool>,
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub health: Arc<Health>,
    pub stats: Arc<DriverStats>,
    pub stages: Arc<Stages>,
    /// The disk has no room for what comes from the leader.
    pub held: Arc<AtomicBool>,
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
        let mut published = clock::now();
        let mut said = (clock::now(), 0);
        let mut lag = Lag::default();
        let mut log_patience = Patience { not_before: Instant::now() };
        let mut apply_patience = Patience { not_before: Instant::now() };
        let mut done: Vec<Input> = Vec::new();
        while !self.engines.stop.load(Ordering::Relaxed) {
            let wait = if done.is_empty() { self.host.next_turn().since(clock::now()) } else { Duration::ZERO };
            let mut inputs = self.engines.inbox.take(wait);
            inputs.append(&mut done);
            let creates: Vec<(GroupId, PeerId)> = inputs
                .iter()
                .filter_map(|input| match input {
                    Input::Create(create) => Some((create.group, create.peer)),
                    _ => None,
                })
                .collect();
            let now = clock::now();
            let outputs = self.host.turn(now, inputs);
            self.engines.stats.turns.fetch_add(1, Ordering::Relaxed);
            self.engines.stages.turn(now);
            for (group, peer) in creates {
                let reader = self.host.log_reader(group).expect("just created");
                self.applier.push(vec![Work::Host(group, peer, reader)]);
            }
            self.engines.waiters.publish_lease(self.host.lease(self.shared.group));
            let eventful = outputs.iter().any(|output| matches!(output, Output::Event(_)));
            if (eventful || now.since(published) >= Duration::from_millis(20))
                && let Some(status) = self.host.status(self.shared.group)
            {
                published = now;
                if now.since(said.0) >= SAY_EVERY && status.committed > said.1 {
                    said = (now, status.committed);
                    tracing::info!(target: "chainfire_storage", "Committed entry, index={}", status.committed);
                }
                lag.look(now, &status, &self.shared.membership.load()).iter().for_each(Say::aloud);
                self.shared.status.store(Arc::new(status));
            }
            let (work, persist) = self.carry_out(now, outputs);
            self.apply(work, &mut apply_patience, &mut done);
            self.persist(persist, &mut log_patience, &mut done);
        }
        self.engines.waiters.close();
    }

    /// Carries outputs out, but for what the applier and the log writer are there for.
    fn carry_out(&self, now: Time, outputs: Vec<Output>) -> (Vec<Work>, Option<Persist>) {
        let engines = &self.engines;
        let mut sends: Vec<(NodeId, Message)> = Vec::new();
        let mut work = Vec::new();
        let mut persist = None;
        for output in outputs {
            match output {
                Output::Persist { number, batch } => persist = Some((number, batch)),
                Output::Send { to, message } => sends.push((to, message)),
                Output::Committed { group, first, last } => {
                    engines.stages.committed(now, last);
                    work.push(Work::Apply { group, first, last });
                }
                Output::ReadReady { seqs, index, valid_until, .. } => {
                    engines.waiters.read_ready(&seqs, ReadGrant { index, valid_until });
                }
                Output::Refused { seqs, why, .. } => seqs.iter().for_each(|seq| engines.waiters.refuse(*seq, why)),
                Output::TransferDone { seq, .. } => engines.waiters.answer(seq, Answer::Transferred),
                Output::BuildSnapshot { group, to, .. } => work.push(Work::BuildSnapshot { group, to }),
                Output::SendSnapshot { to, message, snapshot } => {
                    let source = engines.sources.lock().remove(&snapshot).map(|(_, source)| source);
                    engines.stats.snapshots_sent.fetch_add(1, Ordering::Relaxed);
                    send_snapshot(to, message, source, engines, self.transport.clone());
                }
                Output::InstallSnapshot { group, staged, .. } => work.push(Work::Install { group, staged }),
                Output::DiscardSnapshot { staged } => drop(engines.staged.lock().remove(&staged)),
                Output::Event(event) => tell(&event, &self.shared, engines),
            }
        }
        if !sends.is_empty() {
            self.transport.send(sends);
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
                Ok((inputs, rest)) => {
                    done.extend(inputs);
                    if let Some(first) = rest {
                        // The applier waits for room; the driver must not.
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

fn tell(event: &Event, shared: &Shared, engines: &Engines) {
    match event {
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
            for change in roll::changes(&shared.membership.load(), membership) {
                tracing::info!(target: "chainfire_raft", "{change}");
            }
            // Before the log can be cut behind it, which takes another output.
            let roster = Roster { index: *index, membership: membership.clone() };
            if let Err(error) = roster.save(&engines.dir) {
                tracing::warn!(target: "chainfire_storage", "Who the members are was not kept, why={error} code=CF4011");
            }
            shared.transport.learn(membership);
            shared.membership.store(Arc::new(membership.clone()));
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
            shared.unclear.store(Some(Arc::new(hashes.iter().map(|(peer, _)| *peer).collect())));
        }
        Event::BadMessage { from, why, .. } => {
            tracing::warn!(target: "chainfire_network", "Dropped a message, peer={from} why={why}");
        }
    }
    // Nobody may be listening.
    let _ = shared.events.send(event.clone());
}

/// Writes batches until told to stop: whatever waits goes out with one write and one fsync.
pub fn write_log(store: &dyn LogStore, dir: &Path, log: &LogQueue, engines: &Engines) {
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
        if let Err(error) = write_when_there_is_room(store, dir, &all, engines) {
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
fn write_when_there_is_room(
    store: &dyn LogStore,
    dir: &Path,
    batch: &LogBatch,
    engines: &Engines,
) -> Result<(), LogError> {
    let mut tries_with_room = 0;
    let mut said = false;
    loop {
        match store.write(batch) {
            Err(LogError::NoSpace) if tries_with_room < FULL_TRIES_MAX && !engines.stop.load(Ordering::Relaxed) => {
                if !said {
                    tracing::error!(target: "chainfire_storage", "No space left for the log, nothing is acknowledged code=CF1004");
                }
                said = true;
                let roomy = crate::disk::room(dir).is_none_or(|(free, _)| free > FULL_FREE_BYTES);
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
        if let Some(last) = batch.groups.iter().filter_map(|write| write.entries.last()).next_back() {
            self.stages.synced(now, last.index);
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

    /// How long the log write under way has taken.
    pub fn writing_for(&self) -> Duration {
        match self.write_began_ms.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            began => Duration::from_millis((clock::now().as_nanos() / 1_000_000).saturating_sub(began)),
        }
    }
}

struct Applying {
    peer: PeerId,
    reader: Arc<LogReader>,
    machine: Box<dyn StateMachine>,
    durable: u64,
    flushed: Instant,
    flushing: Arc<AtomicBool>,
    /// Held by the snapshot that is being received or waits to be put in place.
    receiving: Arc<()>,
}

/// A snapshot on its way in. The machine takes one at a time: another one begun would undo it.
struct Receiving {
    sink: Box<dyn SnapshotSink>,
    _alone: Arc<()>,
}

impl SnapshotSink for Receiving {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        self.sink.write(chunk)
    }

    fn finish(&mut self) -> Result<Mark, MachineError> {
        self.sink.finish()
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self.sink.as_any()
    }
}

/// The state machines and the work that waits for them. The applier's thread does it, or the driver when there is little.
pub struct Applier {
    work: Arc<Inbox<Work>>,
    /// Pieces of work that are not done yet.
    open: AtomicUsize,
    machines: Mutex<HashMap<GroupId, Box<dyn StateMachine>>>,
    groups: Mutex<HashMap<GroupId, Applying>>,
}

impl Applier {
    /// `work` may also be filled from elsewhere.
    pub fn new(work: Arc<Inbox<Work>>) -> Applier {
        Applier { work, open: AtomicUsize::new(0), machines: Mutex::default(), groups: Mutex::default() }
    }

    /// The state machine of a group that is about to be created.
    pub fn give(&self, group: GroupId, machine: Box<dyn StateMachine>) {
        self.machines.lock().insert(group, machine);
    }

    fn push(&self, work: Vec<Work>) {
        self.open.fetch_add(work.len(), Ordering::SeqCst);
        self.work.extend(work);
    }

    fn idle(&self) -> bool {
        self.open.load(Ordering::SeqCst) == 0 && self.work.is_empty()
    }

    fn may_wait(&self, group: GroupId) -> bool {
        self.groups.lock().get(&group).is_some_and(|applying| applying.machine.may_wait())
    }

    /// Applies `first..=last` as far as the disk has room: also says from where on it had none.
    fn apply(
        &self,
        group: GroupId,
        first: u64,
        last: u64,
        engines: &Engines,
    ) -> Result<(Vec<Input>, Option<u64>), String> {
        match self.groups.lock().get_mut(&group) {
            Some(applying) => applying.apply(group, first, last, engines),
            None => Ok((Vec::new(), None)),
        }
    }

    /// As [`Applier::apply`]; waits for room.
    fn apply_all(&self, group: GroupId, mut first: u64, last: u64, engines: &Engines) -> Result<(), String> {
        let mut said = false;
        loop {
            let (inputs, rest) = self.apply(group, first, last, engines)?;
            engines.inbox.extend(inputs);
            let Some(rest) = rest else { return Ok(()) };
            if engines.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if !said {
                tracing::error!(target: "chainfire_storage", "No space left for the state, entries wait code=CF1005");
            }
            (said, first) = (true, rest);
            std::thread::sleep(FULL_RETRY);
        }
    }

    /// Applies committed entries until told to stop.
    pub fn run(&self, engines: &Engines) {
        let mut asked = Instant::now();
        let mut next_snapshot = 0;
        let mut more = false;
        loop {
            let taken = self.work.take(if more { Duration::ZERO } else { Duration::from_millis(200) });
            let counted = taken.iter().filter(|work| !matches!(work, Work::Receiver { .. } | Work::Stop)).count();
            for work in coalesce(taken) {
                let result = match work {
                    Work::Stop => return stop(&mut self.groups.lock()),
                    Work::Host(group, peer, reader) => {
                        self.host(group, peer, reader, engines);
                        Ok(())
                    }
                    Work::Apply { group, first, last } => self.apply_all(group, first, last, engines),
                    Work::BuildSnapshot { group, to } => {
                        next_snapshot += 1;
                        let groups = self.groups.lock();
                        groups.get(&group).map_or(Ok(()), |applying| applying.build(group, to, next_snapshot, engines))
                    }
                    Work::Receiver { group, reply } => {
                        let groups = self.groups.lock();
                        let roomy = !engines.held.load(Ordering::Relaxed);
                        let sink = groups.get(&group).filter(|_| roomy).and_then(Applying::receiver);
                        // The stream may have ended meanwhile.
                        let _ = reply.send(sink);
                        Ok(())
                    }
                    Work::Install { group, staged } => self.install(group, staged, engines),
                };
                if let Err(error) = result {
                    return (engines.fatal)(error);
                }
            }
            self.open.fetch_sub(counted, Ordering::SeqCst);
            more = match self.tend() {
                Ok(more) => more,
                Err(error) => return (engines.fatal)(error),
            };
            if asked.elapsed() >= DURABLE_EVERY {
                asked = Instant::now();
                engines.sources.lock().retain(|_, (built, _)| built.elapsed() < SOURCE_KEPT);
                for (group, applying) in self.groups.lock().iter_mut() {
                    if let Err(error) = applying.durable(*group, engines) {
                        return (engines.fatal)(error);
                    }
                }
            }
        }
    }

    /// Puts a snapshot in place, however long readers keep it waiting.
    fn install(&self, group: GroupId, staged: u64, engines: &Engines) -> Result<(), String> {
        let Some(mut sink) = engines.staged.lock().remove(&staged) else {
            return Err("a staged snapshot vanished".to_owned());
        };
        // They hold views of the state that is about to go, and a node that is behind has no use for them.
        engines.sources.lock().clear();
        while !engines.stop.load(Ordering::Relaxed) {
            let mut groups = self.groups.lock();
            let Some(applying) = groups.get_mut(&group) else { break };
            match applying.machine.install(&mut *sink) {
                Ok(()) => {
                    applying.installed(group, engines);
                    break;
                }
                Err(MachineError::Engine(EngineError::Held)) => {
                    tracing::warn!(
                        target: "chainfire_storage",
                        "A received state waits to be put in place, why=a reader has not let go of the old one code=CF4012"
                    );
                }
                Err(error) => return Err(error.to_string()),
            }
            drop(groups);
            std::thread::sleep(INSTALL_RETRY);
        }
        Ok(())
    }

    /// Lets each state machine do a little of its own work; whether any has more. The driver may come in between.
    fn tend(&self) -> Result<bool, String> {
        let mut groups = self.groups.lock();
        let mut more = false;
        for applying in groups.values_mut() {
            more |= match applying.machine.tend() {
                Ok(more) => more,
                // It can wait for room.
                Err(MachineError::Engine(EngineError::NoSpace(_))) => false,
                Err(error) => return Err(error.to_string()),
            };
        }
        MutexGuard::unlock_fair(groups);
        Ok(more)
    }

    fn host(&self, group: GroupId, peer: PeerId, reader: Arc<LogReader>, engines: &Engines) {
        let machine = self.machines.lock().remove(&group).expect("a machine is given before its group is created");
        let index = machine.mark().index;
        engines.waiters.set_applied(index);
        let applying = Applying {
            peer,
            reader,
            machine,
            durable: index,
            flushed: Instant::now(),
            flushing: Arc::default(),
            receiving: Arc::default(),
        };
        self.groups.lock().insert(group, applying);
    }
}

/// Ranges that follow on one another are applied together.
fn coalesce(works: Vec<Work>) -> Vec<Work> {
    let mut out: Vec<Work> = Vec::with_capacity(works.len());
    for work in works {
        if let (Some(Work::Apply { group, last, .. }), Work::Apply { group: next, first, last: end }) =
            (out.last_mut(), &work)
            && group == next
            && *last + 1 == *first
        {
            *last = *end;
            continue;
        }
        out.push(work);
    }
    out
}

fn stop(groups: &mut HashMap<GroupId, Applying>) {
    for applying in groups.values() {
        // The log holds it all; a flush only makes the next start shorter.
        let _ = applying.machine.flusher()();
    }
}

impl Applying {
    fn apply(
        &mut self,
        group: GroupId,
        first: u64,
        last: u64,
        engines: &Engines,
    ) -> Result<(Vec<Input>, Option<u64>), String> {
        let mut inputs = Vec::new();
        let mut next = first;
        while next <= last {
            let entries = self.reader.read(next, last, APPLY_BYTES_MAX).map_err(|error| error.to_string())?;
            let mut applied = Applied::default();
            let begun = clock::now();
            match self.machine.apply(&entries, self.peer, &mut applied) {
                Ok(()) => {}
                Err(MachineError::Engine(EngineError::NoSpace(_))) => return Ok((inputs, Some(next))),
                Err(error) => {
                    if let MachineError::Damaged(_) = &error {
                        engines.health.report(Damage::new(What::State, &error));
                    }
                    return Err(error.to_string());
                }
            }
            let reached = entries.last().map_or(last, |entry| entry.index);
            let now = clock::now();
            engines.stats.applies.add(now.since(begun));
            engines.stages.applied(now, reached);
            engines.waiters.set_applied(reached);
            engines.stats.applied_entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
            // What a quarantined state comes to is nobody's business.
            if !engines.health.is_quarantined() {
                for (seq, outcome) in applied.outcomes {
                    engines.waiters.answer(seq, Answer::Outcome(outcome, reached));
                }
            }
            inputs.push(Input::Applied { group, index: reached, hashes: applied.hashes });
            next = reached + 1;
        }
        Ok((inputs, None))
    }

    /// `None` while another snapshot is on its way in; the sender tries again.
    fn receiver(&self) -> Option<Box<dyn SnapshotSink>> {
        if Arc::strong_count(&self.receiving) > 1 {
            return None;
        }
        let sink = self.machine.receiver().ok()?;
        Some(Box::new(Receiving { sink, _alone: self.receiving.clone() }))
    }

    fn build(&self, group: GroupId, to: PeerId, snapshot: u64, engines: &Engines) -> Result<(), String> {
        if engines.health.is_quarantined() {
            // What is not to be trusted is not handed on.
            engines.inbox.push(Input::SnapshotSent { group, to, ok: false });
            return Ok(());
        }
        let source = self.machine.snapshot().map_err(|error| error.to_string())?;
        let mark = source.mark();
        let membership = Membership::decode(&source.membership()).unwrap_or_default();
        engines.sources.lock().insert(snapshot, (Instant::now(), source));
        engines.inbox.push(Input::SnapshotBuilt { group, to, snapshot, mark, membership });
        Ok(())
    }

    /// The machine stands where the snapshot was taken.
    fn installed(&mut self, group: GroupId, engines: &Engines) {
        let mark: Mark = self.machine.mark();
        let membership = Membership::decode(&self.machine.membership()).unwrap_or_default();
        self.durable = mark.index;
        engines.waiters.set_applied(mark.index);
        engines.stats.snapshots_installed.fetch_add(1, Ordering::Relaxed);
        engines.stats.snapshot_index.store(mark.index, Ordering::Relaxed);
        tracing::info!(target: "chainfire_raft", "Applied snapshot, index={}", mark.index);
        engines.inbox.push(Input::Installed { group, mark, membership });
    }

    fn durable(&mut self, group: GroupId, engines: &Engines) -> Result<(), String> {
        let durable = self.machine.durable().map_err(|error| error.to_string())?;
        if durable > self.durable {
            self.durable = durable;
            self.flushed = Instant::now();
            engines.inbox.push(Input::Durable { group, index: durable });
        }
        let behind = self.machine.mark().index - durable;
        let due = behind >= FLUSH_ENTRIES || (behind > 0 && self.flushed.elapsed() >= FLUSH_EVERY);
        if due && !self.flushing.swap(true, Ordering::SeqCst) {
            self.flushed = Instant::now();
            let flusher = self.machine.flusher();
            let flushing = self.flushing.clone();
            let fatal = engines.fatal.clone();
            std::thread::spawn(move || {
                match flusher() {
                    // The log keeps what is not flushed; the next turn comes when there is room.
                    Ok(()) | Err(MachineError::Engine(EngineError::NoSpace(_))) => {}
                    Err(error) => fatal(error.to_string()),
                }
                flushing.store(false, Ordering::SeqCst);
            });
        }
        Ok(())
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
    std::thread::spawn(move || {
        stats.snapshots_sending.fetch_add(1, Ordering::Relaxed);
        let sent = source.map(|source| transport.send_snapshot(to, &message, source));
        if let Some(Err(error)) = &sent {
            tracing::warn!(target: "chainfire_network", "Snapshot not sent, node={to} why={error}");
        }
        stats.snapshots_sending.fetch_sub(1, Ordering::Relaxed);
        inbox.push(Input::SnapshotSent { group, to: peer, ok: matches!(sent, Some(Ok(()))) });
    });
}
