//! The thread that feeds the state machines with what is committed, and has them build and take in snapshots.
//!
//! ```text
//!  driver ──Work──▶ applier ─▶ StateMachine::apply ─┬─ outcomes ─▶ waiting clients
//!  (does little work itself, under the same lock)   └─ Applied, Durable, SnapshotBuilt, Installed ─▶ driver
//! ```
//!
//! A machine may have to wait for another one of the same node ([`EngineError::Held`]). Its entries are put off, in order,
//! and tried again while the other groups go on.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
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
/// How soon entries that were put off are tried again, and after how long somebody is told of it.
const PUT_OFF_RETRY: Duration = Duration::from_millis(20);
const PUT_OFF_SAY: Duration = Duration::from_secs(10);

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

/// How far [`Applier::apply`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reached {
    All,
    /// From this entry on the disk has no room.
    NoRoom(u64),
    /// From this entry on the machine waits for another group.
    Held(u64),
}

/// Entries that wait for another group.
struct PutOff {
    first: u64,
    last: u64,
    since: Instant,
    said: bool,
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
    /// Groups whose entries are put off.
    put_off: AtomicUsize,
    machines: Mutex<HashMap<GroupId, Box<dyn StateMachine>>>,
    groups: Mutex<HashMap<GroupId, Applying>>,
}

impl Applier {
    /// `work` may also be filled from elsewhere.
    pub fn new(work: Arc<Inbox<Work>>) -> Applier {
        Applier {
            work,
            open: AtomicUsize::new(0),
            put_off: AtomicUsize::new(0),
            machines: Mutex::default(),
            groups: Mutex::default(),
        }
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
        let nothing = |count: &AtomicUsize| count.load(Ordering::SeqCst) == 0;
        nothing(&self.open) && nothing(&self.put_off) && self.work.is_empty()
    }

    pub fn may_wait(&self, group: GroupId) -> bool {
        self.groups.lock().get(&group).is_some_and(|applying| applying.machine.may_wait())
    }

    /// Applies `first..=last` as far as that is possible at once.
    pub fn apply(
        &self,
        group: GroupId,
        first: u64,
        last: u64,
        engines: &Engines,
    ) -> Result<(Vec<Input>, Reached), String> {
        match self.groups.lock().get_mut(&group) {
            Some(applying) => applying.apply(group, first, last, engines),
            None => Ok((Vec::new(), Reached::All)),
        }
    }

    /// As [`Applier::apply`]; waits for room. Says from where on the machine waits for another one.
    fn apply_all(&self, group: GroupId, mut first: u64, last: u64, engines: &Engines) -> Result<Option<u64>, String> {
        let mut said = false;
        loop {
            let (inputs, reached) = self.apply(group, first, last, engines)?;
            engines.inbox.extend(inputs);
            let rest = match reached {
                Reached::All => return Ok(None),
                Reached::Held(rest) => return Ok(Some(rest)),
                Reached::NoRoom(rest) => rest,
            };
            if engines.stop.load(Ordering::Relaxed) {
                return Ok(None);
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
        let mut put_off: BTreeMap<GroupId, PutOff> = BTreeMap::new();
        loop {
            let wait = if put_off.is_empty() { Duration::from_millis(200) } else { PUT_OFF_RETRY };
            let taken = self.work.take(if more { Duration::ZERO } else { wait });
            let counted = taken.iter().filter(|work| !matches!(work, Work::Receiver { .. } | Work::Stop)).count();
            for work in coalesce(taken) {
                let result = match work {
                    Work::Stop => return stop(&mut self.groups.lock()),
                    Work::Host(group, peer, reader) => {
                        self.host(group, peer, reader);
                        Ok(())
                    }
                    Work::Drop(group) => {
                        put_off.remove(&group);
                        self.groups.lock().remove(&group);
                        Ok(())
                    }
                    Work::Apply { group, first, last } => match put_off.get_mut(&group) {
                        Some(waiting) => {
                            assert_eq!(waiting.last + 1, first, "entries come in order");
                            waiting.last = last;
                            Ok(())
                        }
                        None => self.apply_all(group, first, last, engines).map(|rest| {
                            let wait = |first| PutOff { first, last, since: Instant::now(), said: false };
                            put_off.extend(rest.map(|first| (group, wait(first))));
                        }),
                    },
                    // It would be of before entries that were committed when it was asked for.
                    Work::BuildSnapshot { group, to } if put_off.contains_key(&group) => {
                        engines.inbox.push(Input::SnapshotSent { group, to, ok: false });
                        Ok(())
                    }
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
                    Work::Install { group, staged } => {
                        // It holds what they would have come to.
                        put_off.remove(&group);
                        self.install(group, staged, engines)
                    }
                };
                if let Err(error) = result {
                    return (engines.fatal)(error);
                }
            }
            if let Err(error) = self.try_again(&mut put_off, engines) {
                return (engines.fatal)(error);
            }
            self.put_off.store(put_off.len(), Ordering::SeqCst);
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

    /// Tries entries again that were put off.
    fn try_again(&self, put_off: &mut BTreeMap<GroupId, PutOff>, engines: &Engines) -> Result<(), String> {
        let mut done = Vec::new();
        for (group, waiting) in put_off.iter_mut() {
            match self.apply_all(*group, waiting.first, waiting.last, engines)? {
                Some(rest) => waiting.first = rest,
                None => done.push(*group),
            }
            if !waiting.said && waiting.since.elapsed() >= PUT_OFF_SAY {
                waiting.said = true;
                tracing::warn!(
                    target: "chainfire_storage",
                    "Entries wait for what another group of this node is to do, region={group} index={} code=CF4015",
                    waiting.first
                );
            }
        }
        put_off.retain(|group, _| !done.contains(group));
        Ok(())
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
        group.differs.store(!machine.is_sound(), Ordering::SeqCst);
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
    ) -> Result<(Vec<Input>, Reached), String> {
        let mut inputs = Vec::new();
        let mut next = first;
        while next <= last {
            let entries = match self.reader.read(next, last, APPLY_BYTES_MAX) {
                Ok(entries) => entries,
                // Its log may have gone before.
                Err(_) if self.group.gone.load(Ordering::SeqCst) => return Ok((inputs, Reached::All)),
                Err(error) => return Err(error.to_string()),
            };
            let mut applied = Applied::default();
            let begun = clock::now();
            match self.machine.apply(&entries, self.peer, &mut applied) {
                Ok(()) => {}
                Err(MachineError::Engine(EngineError::NoSpace(_))) => return Ok((inputs, Reached::NoRoom(next))),
                Err(MachineError::Engine(EngineError::Held)) => return Ok((inputs, Reached::Held(next))),
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
            if !self.machine.is_sound() {
                self.group.differs.store(true, Ordering::SeqCst);
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
        Ok((inputs, Reached::All))
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
        let differs = !self.machine.is_sound() || self.group.differs.load(Ordering::SeqCst);
        if engines.health.is_quarantined() || differs {
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
