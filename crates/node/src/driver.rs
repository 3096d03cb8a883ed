//! The three threads that carry a host: the driver takes turns, the log writer makes things durable, the applier feeds
//! the state machine. They share nothing but queues.
//!
//! The driver publishes the lease and the status after each turn and before it carries the outputs out, so that
//! whoever learns of a commit through an output finds it published.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::{GroupId, NodeId, PeerId};
use consensus::wire::Body;
use consensus::{
    Applied, Event, Host, Input, LogReader, Mark, Membership, Message, Output, SnapshotSink, SnapshotSource,
    StateMachine,
};
use parking_lot::Mutex;
use storage::{LogBatch, LogStore};
use tokio::sync::oneshot;

use crate::clock;
use crate::handle::{ReadGrant, Shared};
use crate::inbox::Inbox;
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

/// Work for the applier.
pub enum Work {
    Host(GroupId, PeerId, Arc<LogReader>),
    Apply { group: GroupId, first: u64, last: u64 },
    BuildSnapshot { group: GroupId, to: PeerId },
    Receiver { group: GroupId, reply: oneshot::Sender<Option<Box<dyn SnapshotSink>>> },
    Install { group: GroupId, staged: u64 },
    Stop,
}

/// What the threads share with the shell.
pub struct Engines {
    pub inbox: Arc<Inbox<Input>>,
    pub work: Arc<Inbox<Work>>,
    pub waiters: Arc<Waiters>,
    pub staged: Arc<Mutex<HashMap<u64, Box<dyn SnapshotSink>>>>,
    pub sources: Arc<Mutex<HashMap<u64, Box<dyn SnapshotSource>>>>,
    pub stop: Arc<AtomicBool>,
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub stats: Arc<DriverStats>,
}

/// Plain counters; rendered as metrics elsewhere.
#[derive(Default)]
pub struct DriverStats {
    pub turns: AtomicU64,
    pub syncs: AtomicU64,
    pub sync_nanos: AtomicU64,
    /// fsyncs by duration: up to 1, 2, 4, 8 … ms (powers of two from 2^-3 ms).
    pub sync_buckets: [AtomicU64; 18],
    pub applied_entries: AtomicU64,
    pub snapshots_sent: AtomicU64,
    pub snapshots_installed: AtomicU64,
    pub leader_changes: AtomicU64,
    pub hash_mismatches: AtomicU64,
}

type Persist = (u64, LogBatch);

/// Takes turns until told to stop. `shared` is the group whose status is published.
pub fn drive(mut host: Host, shared: Arc<Shared>, engines: &Engines, log: &Inbox<Persist>, transport: &Transport) {
    let mut published = clock::now();
    while !engines.stop.load(Ordering::Relaxed) {
        let wait = host.next_turn().since(clock::now());
        let inputs = engines.inbox.take(wait);
        let creates: Vec<(GroupId, PeerId)> = inputs
            .iter()
            .filter_map(|input| match input {
                Input::Create(create) => Some((create.group, create.peer)),
                _ => None,
            })
            .collect();
        let now = clock::now();
        let outputs = host.turn(now, inputs);
        engines.stats.turns.fetch_add(1, Ordering::Relaxed);
        for (group, peer) in creates {
            let reader = host.log_reader(group).expect("just created");
            engines.work.push(Work::Host(group, peer, reader));
        }
        engines.waiters.publish_lease(host.lease(shared.group));
        let eventful = outputs.iter().any(|output| matches!(output, Output::Event(_)));
        if (eventful || now.since(published) >= Duration::from_millis(20))
            && let Some(status) = host.status(shared.group)
        {
            published = now;
            shared.status.store(Arc::new(status));
        }
        carry_out(outputs, &shared, engines, log, transport);
    }
    engines.waiters.close();
}

fn carry_out(outputs: Vec<Output>, shared: &Shared, engines: &Engines, log: &Inbox<Persist>, transport: &Transport) {
    let mut sends: Vec<(NodeId, Message)> = Vec::new();
    let mut work = Vec::new();
    for output in outputs {
        match output {
            Output::Persist { number, batch } => log.push((number, batch)),
            Output::Send { to, message } => sends.push((to, message)),
            Output::Committed { group, first, last } => work.push(Work::Apply { group, first, last }),
            Output::ReadReady { seqs, index, valid_until, .. } => {
                engines.waiters.read_ready(&seqs, ReadGrant { index, valid_until });
            }
            Output::Refused { seqs, why, .. } => seqs.iter().for_each(|seq| engines.waiters.refuse(*seq, why)),
            Output::TransferDone { seq, .. } => engines.waiters.answer(seq, Answer::Transferred),
            Output::BuildSnapshot { group, to, .. } => work.push(Work::BuildSnapshot { group, to }),
            Output::SendSnapshot { to, message, snapshot } => {
                let source = engines.sources.lock().remove(&snapshot);
                engines.stats.snapshots_sent.fetch_add(1, Ordering::Relaxed);
                send_snapshot(to, message, source, engines.inbox.clone(), transport.clone());
            }
            Output::InstallSnapshot { group, staged, .. } => work.push(Work::Install { group, staged }),
            Output::DiscardSnapshot { staged } => drop(engines.staged.lock().remove(&staged)),
            Output::Event(event) => tell(&event, shared, engines),
        }
    }
    if !work.is_empty() {
        engines.work.extend(work);
    }
    transport.send(sends);
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
                "Membership changed (add, promote or remove of a node), index={index} nodes={}",
                nodes.join(",")
            );
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
        Event::BadMessage { from, why, .. } => {
            tracing::warn!(target: "chainfire_network", "Dropped a message, peer={from} why={why}");
        }
    }
    // Nobody may be listening.
    let _ = shared.events.send(event.clone());
}

/// Writes batches until told to stop: whatever waits goes out with one write and one fsync.
pub fn write_log(store: &dyn LogStore, log: &Inbox<Persist>, engines: &Engines) {
    let mut idle = true;
    loop {
        let waiting = log.take(if idle { Duration::from_millis(500) } else { IDLE });
        if waiting.is_empty() {
            if engines.stop.load(Ordering::Relaxed) {
                break;
            }
            if !idle && let Err(error) = store.idle() {
                return (engines.fatal)(error.to_string());
            }
            idle = true;
            continue;
        }
        idle = false;
        let mut number = 0;
        let mut all = LogBatch::default();
        for (next, mut batch) in waiting {
            number = next;
            all.groups.append(&mut batch.groups);
        }
        let begun = Instant::now();
        if let Err(error) = store.write(&all) {
            return (engines.fatal)(error.to_string());
        }
        engines.stats.synced(begun.elapsed());
        engines.inbox.push(Input::Persisted { number });
    }
    // The mark is made durable on the way out; after an error there is nothing left to save.
    let _ = store.idle();
}

impl DriverStats {
    fn synced(&self, took: Duration) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        let eighths = (took.as_micros() / 125) as u64;
        let bucket = (u64::BITS - eighths.leading_zeros()) as usize;
        self.sync_buckets[bucket.min(self.sync_buckets.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }
}

struct Applying {
    peer: PeerId,
    reader: Arc<LogReader>,
    machine: Box<dyn StateMachine>,
    durable: u64,
    flushed: Instant,
    flushing: Arc<AtomicBool>,
}

/// Applies committed entries until told to stop. `machine` gives each group its state machine.
pub fn apply(mut machine: impl FnMut(GroupId) -> Box<dyn StateMachine>, engines: &Engines) {
    let mut groups: HashMap<GroupId, Applying> = HashMap::new();
    let mut asked = Instant::now();
    let mut next_snapshot = 0;
    loop {
        for work in coalesce(engines.work.take(Duration::from_millis(200))) {
            let result = match work {
                Work::Stop => return stop(&mut groups),
                Work::Host(group, peer, reader) => {
                    let machine = machine(group);
                    let flushing = Arc::default();
                    engines.waiters.set_applied(machine.mark().index);
                    let durable = machine.mark().index;
                    groups
                        .insert(group, Applying { peer, reader, machine, durable, flushed: Instant::now(), flushing });
                    Ok(())
                }
                Work::Apply { group, first, last } => match groups.get_mut(&group) {
                    Some(applying) => applying.apply(group, first, last, engines),
                    None => Ok(()),
                },
                Work::BuildSnapshot { group, to } => {
                    next_snapshot += 1;
                    groups.get(&group).map_or(Ok(()), |applying| applying.build(group, to, next_snapshot, engines))
                }
                Work::Receiver { group, reply } => {
                    let sink = groups.get(&group).and_then(|applying| applying.machine.receiver().ok());
                    // The stream may have ended meanwhile.
                    let _ = reply.send(sink);
                    Ok(())
                }
                Work::Install { group, staged } => match groups.get_mut(&group) {
                    Some(applying) => applying.install(group, staged, engines),
                    None => Ok(()),
                },
            };
            if let Err(error) = result {
                return (engines.fatal)(error);
            }
        }
        if asked.elapsed() >= DURABLE_EVERY {
            asked = Instant::now();
            for (group, applying) in &mut groups {
                if let Err(error) = applying.durable(*group, engines) {
                    return (engines.fatal)(error);
                }
            }
        }
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
    fn apply(&mut self, group: GroupId, first: u64, last: u64, engines: &Engines) -> Result<(), String> {
        let mut next = first;
        while next <= last {
            let entries = self.reader.read(next, last, APPLY_BYTES_MAX).map_err(|error| error.to_string())?;
            let mut applied = Applied::default();
            self.machine.apply(&entries, self.peer, &mut applied).map_err(|error| error.to_string())?;
            let reached = entries.last().map_or(last, |entry| entry.index);
            engines.waiters.set_applied(reached);
            engines.stats.applied_entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
            for (seq, outcome) in applied.outcomes {
                engines.waiters.answer(seq, Answer::Outcome(outcome));
            }
            for entry in &entries {
                if let consensus::Payload::Membership { membership, done: Some((origin, seq)) } = &entry.payload
                    && *origin == self.peer
                {
                    engines.waiters.answer(*seq, Answer::Changed(membership.clone()));
                }
            }
            engines.inbox.push(Input::Applied { group, index: reached, hashes: applied.hashes });
            next = reached + 1;
        }
        Ok(())
    }

    fn build(&self, group: GroupId, to: PeerId, snapshot: u64, engines: &Engines) -> Result<(), String> {
        let source = self.machine.snapshot().map_err(|error| error.to_string())?;
        let mark = source.mark();
        let membership = Membership::decode(&source.membership()).unwrap_or_default();
        engines.sources.lock().insert(snapshot, source);
        engines.inbox.push(Input::SnapshotBuilt { group, to, snapshot, mark, membership });
        Ok(())
    }

    fn install(&mut self, group: GroupId, staged: u64, engines: &Engines) -> Result<(), String> {
        let Some(sink) = engines.staged.lock().remove(&staged) else {
            return Err("a staged snapshot vanished".to_owned());
        };
        self.machine.install(sink).map_err(|error| error.to_string())?;
        let mark: Mark = self.machine.mark();
        let membership = Membership::decode(&self.machine.membership()).unwrap_or_default();
        self.durable = mark.index;
        engines.waiters.set_applied(mark.index);
        engines.stats.snapshots_installed.fetch_add(1, Ordering::Relaxed);
        tracing::info!(target: "chainfire_raft", "Applied snapshot, index={}", mark.index);
        engines.inbox.push(Input::Installed { group, mark, membership });
        Ok(())
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
                if let Err(error) = flusher() {
                    fatal(error.to_string());
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
    inbox: Arc<Inbox<Input>>,
    transport: Transport,
) {
    let (group, peer) = (message.group, message.to);
    debug_assert!(matches!(message.body, Body::Raft(_)), "a snapshot travels with raft's own message");
    std::thread::spawn(move || {
        let sent = source.map(|source| transport.send_snapshot(to, &message, source));
        if let Some(Err(error)) = &sent {
            tracing::warn!(target: "chainfire_network", "Snapshot not sent, node={to} why={error}");
        }
        inbox.push(Input::SnapshotSent { group, to: peer, ok: matches!(sent, Some(Ok(()))) });
    });
}
