//! The thread that feeds the state machines with what is committed, and has them build and take in snapshots.
//!
//! ```text
//!  driver ──Work──▶ applier ─▶ StateMachine::apply ─┬─ outcomes ─▶ waiting clients
//!  (does little work itself, under the same lock)   └─ Applied, Durable, SnapshotBuilt ─▶ driver
//!                       └──a machine and its snapshot──▶ installer ─▶ StateMachine::install ─▶ Installed ─▶ driver
//! ```
//! While a snapshot is put in place its machine is the installer's, and the other groups go on.
//!
//! One engine holds the states of all groups of a node: it is flushed once for all of them.
//!
//! A machine may have to wait for another one of the same node ([`EngineError::Held`]). Its entries are put off, in order,
//! and tried again while the other groups go on.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base::{GroupId, NodeId, PeerId};
use consensus::{Applied, Input, LogReader, MachineError, Mark, Membership, Role, SnapshotSink, StateMachine};
use parking_lot::{Mutex, MutexGuard};
use storage::EngineError;
use tokio::sync::oneshot;

use crate::clock;
use crate::driver::{Engines, FULL_RETRY};
use crate::group::Group;
use crate::heal::{Damage, What};
use crate::inbox::Inbox;
use crate::pace;
use crate::slots::{Receiving, Sending, Slot, Slots};
use crate::waiters::Answer;

/// Bytes of entries applied in one go.
const APPLY_BYTES_MAX: u64 = 4 << 20;
/// How often the state machine is asked how far it is durable.
const DURABLE_EVERY: Duration = Duration::from_secs(2);
/// So many entries, or such a time, without the engine flushing by itself, and it is told to.
const FLUSH_ENTRIES: u64 = 100_000;
const FLUSH_EVERY: Duration = Duration::from_secs(60);
/// Between two of these at least.
const FLUSH_PAUSE: Duration = Duration::from_secs(5);
/// Groups that are asked how far they are durable before others may come in between.
const ASKED_AT_ONCE: usize = 64;
/// A snapshot that was built and never sent is let go of after this.
const SOURCE_KEPT: Duration = Duration::from_secs(15);
/// Snapshots that may wait to be built; whoever is turned away is asked for again.
const BUILDS_WAITING_MAX: usize = 100_000;
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
    /// One of the snapshots on their way out has come to its end.
    NextSnapshot,
    Receiver {
        group: GroupId,
        /// The peer that it is for, and whose node sends it.
        to: PeerId,
        from: (PeerId, NodeId),
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
    /// Since when something applied has not been durable.
    behind_since: Option<Instant>,
    /// Held by the snapshot that is being received or waits to be put in place.
    receiving: Arc<()>,
}

/// A machine that is to become what a snapshot is.
struct Install {
    group: GroupId,
    applying: Applying,
    sink: Box<dyn SnapshotSink>,
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
    /// Of them, those whose machines have work of their own.
    tended: Mutex<BTreeSet<GroupId>>,
    installs: Inbox<Install>,
    /// Snapshots on their way out, and in.
    sending: Arc<Slots>,
    receiving: Arc<Slots>,
    flushing: Arc<AtomicBool>,
    flushed: Mutex<Instant>,
}

impl Applier {
    /// `work` may also be filled from elsewhere. So many snapshots at a time are sent, and so many received; others wait, or
    /// are asked for again.
    pub fn new(work: Arc<Inbox<Work>>, snapshots_max: usize) -> Applier {
        let freed = work.clone();
        Applier {
            work,
            open: AtomicUsize::new(0),
            put_off: AtomicUsize::new(0),
            machines: Mutex::default(),
            groups: Mutex::default(),
            tended: Mutex::default(),
            installs: Inbox::default(),
            sending: Slots::new(snapshots_max, move || freed.push(Work::NextSnapshot)),
            receiving: Slots::new(snapshots_max, || {}),
            flushing: Arc::default(),
            flushed: Mutex::new(Instant::now()),
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
        let mut builds = VecDeque::new();
        let mut more = false;
        let mut put_off: BTreeMap<GroupId, PutOff> = BTreeMap::new();
        loop {
            let wait = if put_off.is_empty() { Duration::from_millis(200) } else { PUT_OFF_RETRY };
            let taken = self.work.take(if more { Duration::ZERO } else { wait });
            let from_elsewhere = |work: &&Work| matches!(work, Work::Receiver { .. } | Work::NextSnapshot | Work::Stop);
            let counted = taken.len() - taken.iter().filter(from_elsewhere).count();
            for work in coalesce(taken) {
                let result = match work {
                    Work::Stop => return stop(&mut self.groups.lock()),
                    Work::Host(group, peer, reader) => {
                        self.host(group, peer, reader);
                        Ok(())
                    }
                    Work::Drop(group) => {
                        put_off.remove(&group);
                        self.tended.lock().remove(&group);
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
                    Work::BuildSnapshot { group, to } if builds.len() >= BUILDS_WAITING_MAX => {
                        engines.inbox.push(Input::SnapshotSent { group, to, ok: false });
                        Ok(())
                    }
                    Work::BuildSnapshot { group, to } => {
                        builds.push_back((group, to));
                        self.build(&mut builds, &put_off, &mut next_snapshot, engines)
                    }
                    Work::NextSnapshot => self.build(&mut builds, &put_off, &mut next_snapshot, engines),
                    Work::Receiver { group, to, from, reply } => {
                        let groups = self.groups.lock();
                        let crowded = engines.held.load(Ordering::Relaxed) || engines.crowded.load(Ordering::Relaxed);
                        let applying = groups.get(&group).filter(|applying| !crowded && applying.takes(to, from));
                        let sink = applying.and_then(|applying| applying.receiver(&self.receiving));
                        // The stream may have ended meanwhile.
                        let _ = reply.send(sink);
                        Ok(())
                    }
                    Work::Install { group, staged } => {
                        // It holds what they would have come to.
                        put_off.remove(&group);
                        self.hand_over(group, staged, engines)
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
                let old: Vec<_> =
                    engines.sources.lock().extract_if(|_, (built, _)| built.elapsed() >= SOURCE_KEPT).collect();
                drop(old);
                if let Err(error) = self.see_what_is_durable(engines) {
                    return (engines.fatal)(error);
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

    /// Builds snapshots that wait, as many as may be on their way. Of a group whose entries are put off it would be of before
    /// some that were committed when it was asked for.
    fn build(
        &self,
        waiting: &mut VecDeque<(GroupId, PeerId)>,
        put_off: &BTreeMap<GroupId, PutOff>,
        number: &mut u64,
        engines: &Engines,
    ) -> Result<(), String> {
        while !waiting.is_empty()
            && let Some(slot) = self.sending.take()
        {
            let Some((group, to)) = waiting.pop_front() else { break };
            let groups = self.groups.lock();
            let Some(applying) = groups.get(&group) else { continue };
            if applying.group.status.load().role != Role::Leader || put_off.contains_key(&group) {
                // What it has waited for is over. Should it not be, it is asked for again.
                engines.inbox.push(Input::SnapshotSent { group, to, ok: false });
                continue;
            }
            *number += 1;
            applying.build(group, to, *number, slot, engines)?;
        }
        Ok(())
    }

    /// Asks the machines how far they are durable, and has the engine flushed if that is long behind.
    fn see_what_is_durable(&self, engines: &Engines) -> Result<(), String> {
        let is_behind = |applying: &Applying| applying.machine.mark().index > applying.durable;
        let behind: Vec<GroupId> =
            self.groups.lock().iter().filter(|(_, applying)| is_behind(applying)).map(|(group, _)| *group).collect();
        let mut flusher = None;
        for some in behind.chunks(ASKED_AT_ONCE) {
            let mut groups = self.groups.lock();
            for group in some {
                let Some(applying) = groups.get_mut(group) else { continue };
                if applying.see_what_is_durable(*group, engines)? {
                    flusher.get_or_insert_with(|| applying.machine.flusher());
                }
            }
            MutexGuard::unlock_fair(groups);
        }
        let Some(flusher) = flusher.filter(|_| self.flushed.lock().elapsed() >= FLUSH_PAUSE) else { return Ok(()) };
        if self.flushing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        *self.flushed.lock() = Instant::now();
        let (flushing, fatal) = (self.flushing.clone(), engines.fatal.clone());
        std::thread::spawn(move || {
            match flusher() {
                // The log keeps what is not flushed; the next turn comes when there is room.
                Ok(()) | Err(MachineError::Engine(EngineError::NoSpace(_))) => {}
                Err(error) => fatal(error.to_string()),
            }
            flushing.store(false, Ordering::SeqCst);
        });
        Ok(())
    }

    /// Leaves a machine to the installer; all that it was to apply before is done.
    fn hand_over(&self, group: GroupId, staged: u64, engines: &Engines) -> Result<(), String> {
        let Some(sink) = engines.staged.lock().remove(&staged) else {
            return Err("a staged snapshot vanished".to_owned());
        };
        let mut groups = self.groups.lock();
        let Some(applying) = groups.remove(&group) else { return Ok(()) };
        if groups.is_empty() {
            // They hold views of the state that is about to go, and a node that is behind has no use for them.
            let old = std::mem::take(&mut *engines.sources.lock());
            drop(old);
        }
        self.installs.push(Install { group, applying, sink });
        Ok(())
    }

    /// Puts snapshots in place, one after the other, until told to stop.
    pub fn run_installs(&self, engines: &Engines) {
        pace::step_back();
        while !engines.stop.load(Ordering::Relaxed) {
            for install in self.installs.take(Duration::from_millis(200)) {
                if let Err(error) = self.install(install, engines) {
                    return (engines.fatal)(error);
                }
            }
        }
    }

    /// However long readers or a full disk keep it waiting.
    fn install(&self, install: Install, engines: &Engines) -> Result<(), String> {
        let Install { group, mut applying, mut sink } = install;
        let mut said = false;
        loop {
            if engines.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match applying.machine.install(&mut *sink) {
                Ok(()) => break,
                Err(MachineError::Engine(EngineError::Held)) => {
                    tracing::warn!(
                        target: "chainfire_storage",
                        "A received state waits to be put in place, why=a reader has not let go of the old one code=CF4012"
                    );
                }
                Err(MachineError::Engine(EngineError::NoSpace(why))) => {
                    if !said {
                        tracing::error!(
                            target: "chainfire_storage",
                            "A received state waits to be put in place, why=no space left: {why} code=CF4016"
                        );
                    }
                    said = true;
                }
                Err(error) => {
                    if let MachineError::Damaged(_) = &error {
                        engines.health.report(Damage::new(What::State, &error));
                    }
                    return Err(error.to_string());
                }
            }
            std::thread::sleep(INSTALL_RETRY);
        }
        drop(sink);
        let mut groups = self.groups.lock();
        // What takes it away comes behind this, or has been here and found nothing.
        if !applying.group.gone.load(Ordering::SeqCst) {
            applying.installed(group, engines);
            groups.insert(group, applying);
        }
        Ok(())
    }

    /// Lets each state machine do a little of its own work; whether any has more. The driver may come in between.
    fn tend(&self) -> Result<bool, String> {
        let tended = self.tended.lock();
        if tended.is_empty() {
            return Ok(false);
        }
        let mut groups = self.groups.lock();
        let mut more = false;
        for group in tended.iter() {
            let Some(applying) = groups.get_mut(group) else { continue };
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
        if machine.tends() {
            self.tended.lock().insert(id);
        }
        group.differs.store(!machine.is_sound(), Ordering::SeqCst);
        group.waiters.set_applied(index);
        let applying =
            Applying { group, peer, reader, machine, durable: index, behind_since: None, receiving: Arc::default() };
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

    /// Whether a snapshot for that peer, from that one, is this replica's business. A sender that it does not know may have
    /// become a member since.
    fn takes(&self, to: PeerId, (from, node): (PeerId, NodeId)) -> bool {
        let owner = self.group.membership.load().node_of(from);
        to == self.peer && owner.is_none_or(|owner| owner == node)
    }

    /// `None` while another snapshot is on its way in, or too many are; the sender tries again. The machine takes one at a
    /// time: another one begun would undo it.
    fn receiver(&self, slots: &Arc<Slots>) -> Option<Box<dyn SnapshotSink>> {
        if Arc::strong_count(&self.receiving) > 1 {
            return None;
        }
        let slot = slots.take()?;
        let sink = self.machine.receiver().ok()?;
        Some(Box::new(Receiving::new(sink, self.receiving.clone(), slot)))
    }

    fn build(&self, group: GroupId, to: PeerId, snapshot: u64, slot: Slot, engines: &Engines) -> Result<(), String> {
        let differs = !self.machine.is_sound() || self.group.differs.load(Ordering::SeqCst);
        if engines.health.is_quarantined() || differs {
            // What is not to be trusted is not handed on.
            engines.inbox.push(Input::SnapshotSent { group, to, ok: false });
            return Ok(());
        }
        let source = self.machine.snapshot().map_err(|error| error.to_string())?;
        let mark = source.mark();
        let membership = Membership::decode(&source.membership()).unwrap_or_default();
        engines
            .sources
            .lock()
            .insert(snapshot, (Instant::now(), Box::new(Sending::new(source, self.group.clone(), slot))));
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

    /// Whether it is high time for a flush.
    fn see_what_is_durable(&mut self, group: GroupId, engines: &Engines) -> Result<bool, String> {
        let durable = self.machine.durable().map_err(|error| error.to_string())?;
        if durable > self.durable {
            self.durable = durable;
            self.behind_since = None;
            engines.inbox.push(Input::Durable { group, index: durable });
        }
        let behind = self.machine.mark().index - durable;
        if behind == 0 {
            self.behind_since = None;
            return Ok(false);
        }
        let since = self.behind_since.get_or_insert_with(Instant::now);
        Ok(behind >= FLUSH_ENTRIES || since.elapsed() >= FLUSH_EVERY)
    }
}
