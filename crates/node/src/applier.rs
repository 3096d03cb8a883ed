//! The thread that feeds the state machines with what is committed, and has them build and take in snapshots.
//!
//! ```text
//!  driver ──Work──▶ applier ─▶ StateMachine::apply ─┬─ outcomes ─▶ waiting clients
//!  (does little work itself, under the same lock)   └─ Applied, Durable, SnapshotBuilt, Installed ─▶ driver
//! ```

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{GroupId, PeerId};
use bytes::Bytes;
use consensus::{Applied, Input, LogReader, MachineError, Mark, Membership, SnapshotSink, StateMachine};
use parking_lot::{Mutex, MutexGuard};
use storage::EngineError;
use tokio::sync::oneshot;

use crate::clock;
use crate::driver::{Engines, FULL_RETRY};
use crate::group::Group;
use crate::heal::{Damage, What};
use crate::inbox::Inbox;
use crate::waiters::Answer;

/// Bytes of entries applied in one go.
const APPLY_BYTES_MAX: u64 = 4 << 20;
/// How often the state machine is asked how far it is durable.
const DURABLE_EVERY: Duration = Duration::from_secs(2);
/// So many entries, or such a time, without the engine flushing by itself, and it is told to.
const FLUSH_ENTRIES: u64 = 100_000;
const FLUSH_EVERY: Duration = Duration::from_secs(60);
/// A snapshot that was built and never sent is let go of after this.
const SOURCE_KEPT: Duration = Duration::from_secs(60);
/// How long readers have before a snapshot is tried to be put in place again.
const INSTALL_RETRY: Duration = Duration::from_secs(1);

/// Work for the applier.
pub(crate) enum Work {
    Host(Arc<Group>, PeerId, Arc<LogReader>),
    /// The group is gone.
    Drop(GroupId),
    Apply {
        group: GroupId,
        first: u64,
        last: u64,
    },
    BuildSnapshot {
        group: GroupId,
        to: PeerId,
    },
    Receiver {
        group: GroupId,
        reply: oneshot::Sender<Option<Box<dyn SnapshotSink>>>,
    },
    Install {
        group: GroupId,
        staged: u64,
    },
    Stop,
}

struct Applying {
    group: Arc<Group>,
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
pub(crate) struct Applier {
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

    pub fn push(&self, work: Vec<Work>) {
        self.open.fetch_add(work.len(), Ordering::SeqCst);
        self.work.extend(work);
    }

    pub fn idle(&self) -> bool {
        self.open.load(Ordering::SeqCst) == 0 && self.work.is_empty()
    }

    pub fn may_wait(&self, group: GroupId) -> bool {
        self.groups.lock().get(&group).is_some_and(|applying| applying.machine.may_wait())
    }

    /// Applies `first..=last` as far as the disk has room: also says from where on it had none.
    pub fn apply(
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
                        self.host(group, peer, reader);
                        Ok(())
                    }
                    Work::Drop(group) => {
                        self.groups.lock().remove(&group);
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

    fn host(&self, group: Arc<Group>, peer: PeerId, reader: Arc<LogReader>) {
        let (id, machines) = (group.id, &self.machines);
        let machine = machines.lock().remove(&id).expect("a machine is given before its group is created");
        let index = machine.mark().index;
        group.waiters.set_applied(index);
        let applying = Applying {
            group,
            peer,
            reader,
            machine,
            durable: index,
            flushed: Instant::now(),
            flushing: Arc::default(),
            receiving: Arc::default(),
        };
        self.groups.lock().insert(id, applying);
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
            let entries = match self.reader.read(next, last, APPLY_BYTES_MAX) {
                Ok(entries) => entries,
                // Its log may have gone before.
                Err(_) if self.group.gone.load(Ordering::SeqCst) => return Ok((inputs, None)),
                Err(error) => return Err(error.to_string()),
            };
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
            if let Some(stages) = &self.group.stages {
                stages.applied(now, reached);
            }
            self.group.waiters.set_applied(reached);
            engines.stats.applied_entries.fetch_add(entries.len() as u64, Ordering::Relaxed);
            // What a quarantined state comes to is nobody's business.
            if !engines.health.is_quarantined() && !self.group.differs.load(Ordering::SeqCst) {
                for (seq, outcome) in applied.outcomes {
                    self.group.waiters.answer(seq, Answer::Outcome(outcome, reached));
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
        if engines.health.is_quarantined() || self.group.differs.load(Ordering::SeqCst) {
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
        self.group.waiters.set_applied(mark.index);
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
