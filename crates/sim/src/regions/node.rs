//! A simulated machine: what lies on its disk, and, while its process runs, the production host with the threads that
//! production gives it (host, log writer, an applier, a flusher), each played by events. Its process is a store's or a
//! placement driver's ([`super::programs`]).
//!
//! The disk outlives the process. A crash throws away what was not synced or flushed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base::{ClusterId, GroupId, NodeId, PeerId, Rng, Time};
use consensus::wire::Body;
use consensus::{
    CreateGroup, Event, Host, HostConfig, Input, LogReader, Mark, Membership, Message, Output, Role, SnapshotSink,
    SnapshotSource, StateMachine,
};
use flaredb::store::Store;
use node::waiters::Answer;
use node::{Identity, ReadGrant};
use placement::leader::Leader;
use storage::memlog::MemLog;
use storage::{LogBatch, LogStore};

use super::bug::Bug;
use super::ground::{Group, Process};
use super::plan::MS;
use super::stage::{Happening, Stage};
use super::tripwire::Tripwire;
use crate::physics::clock::Clock;
use crate::physics::queue::Who;
use crate::physics::shadow::Shadow;

/// The one group of the placement driver; regions are numbered from below.
pub const PD_GROUP: GroupId = GroupId(1 << 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A member of the placement driver, by its number.
    Pd(usize),
    Store,
}

pub struct Node {
    /// Its place in the world; people count from 1.
    pub at: usize,
    pub kind: Kind,
    pub clock: Clock,
    /// Counts starts and ends; what was planned for an earlier life is dropped.
    pub life: u32,
    pub paused_until: u64,
    pub slow_disk: bool,
    pub disk: Disk,
    pub running: Option<Running>,
    /// It does not come up any more.
    pub retired: bool,
    /// What the store asks for when it has no id.
    pub asks_for: u64,
    /// Under which it says it is reached.
    pub address: String,
    /// It must be refused, and have written nothing by then.
    pub impostor: Option<Impostor>,
    pub crashes: u64,
    pub installs: u64,
}

/// What lay on the disk of somebody who must be refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Impostor {
    /// It claims an id and nothing else: that is refused also while the one that has it is away.
    pub claims_id: bool,
    pub writes: u64,
    pub syncs: u64,
}

/// What survives the process.
pub struct Disk {
    pub log: Arc<MemLog>,
    pub engine: Arc<Tripwire>,
    pub identity: Identity,
    pub incoming: PathBuf,
    /// Whose each group's log is, and what is really in it.
    pub shadows: BTreeMap<GroupId, (PeerId, Shadow)>,
    pub rng: Rng,
}

/// A running process.
pub struct Running {
    pub process: Arc<Process>,
    pub host: Option<Host>,
    turn_at: Option<u64>,
    busy_until: u64,
    writer: Writer,
    pub replicas: BTreeMap<GroupId, Replica>,
    unpublished: BTreeSet<GroupId>,
    pub store: Option<(Arc<Store>, Arc<flaredb::api::Raw>)>,
    pub leader: Option<Arc<Leader>>,
    pub sleepers: BTreeMap<u64, tokio::sync::oneshot::Sender<()>>,
    /// Epochs that the records showed, by region: they only grow.
    pub epochs: BTreeMap<u64, (u64, u64)>,
}

/// The thread that owns the log.
#[derive(Default)]
struct Writer {
    waiting: VecDeque<(u64, LogBatch)>,
    syncing: Option<(u64, u64, LogBatch)>,
}

/// A group on a running node.
pub struct Replica {
    pub peer: PeerId,
    pub group: Arc<Group>,
    pub machine: Box<dyn StateMachine>,
    pub log: Arc<LogReader>,
    pub committed: VecDeque<(u64, u64)>,
    pub awake: bool,
    pub applied: u64,
    pub durable: u64,
    pub builds: Vec<(PeerId, u64)>,
    pub built: BTreeMap<PeerId, (u64, Box<dyn SnapshotSource>)>,
    /// Received and complete, waiting for the host's word.
    pub staged: Option<(u64, Box<dyn SnapshotSink>)>,
    pub install: Option<(u64, Mark)>,
    membership: Arc<Membership>,
    /// Entries wait for what another group of this node is to do.
    pub put_off: bool,
}

/// Groups that come and go with a turn.
enum Change {
    Created(CreateGroup),
    Destroyed(GroupId),
}

impl Change {
    fn of(input: &Input) -> Option<Change> {
        match input {
            Input::Create(create) => Some(Change::Created(create.clone())),
            Input::Destroy { group } => Some(Change::Destroyed(*group)),
            _ => None,
        }
    }
}

impl Replica {
    pub fn is_receiving(&self) -> bool {
        self.staged.is_some() || self.install.is_some()
    }
}

impl Node {
    pub fn who(&self) -> Who {
        Who { at: self.at, life: self.life }
    }

    pub fn label(&self) -> u64 {
        self.at as u64 + 1
    }

    pub fn now(&self, stage: &Stage) -> Time {
        self.clock.at(stage.now)
    }

    pub fn is_paused(&self, stage: &Stage) -> bool {
        self.paused_until > stage.now
    }

    pub fn replica(&mut self, group: GroupId) -> Option<&mut Replica> {
        self.running.as_mut()?.replicas.get_mut(&group)
    }

    pub fn store(&self) -> Option<&Arc<Store>> {
        self.running.as_ref()?.store.as_ref().map(|(store, _)| store)
    }

    /// A process comes up; what it does is the world's to say.
    pub fn rise(&mut self, stage: &mut Stage) -> Arc<Process> {
        self.life += 1;
        stage.note(self.label(), "start", &[("life", u64::from(self.life))]);
        let process = Process::new(
            self.who(),
            self.disk.identity,
            self.clock,
            stage.clock.clone(),
            self.disk.log.clone(),
            stage.name(),
            stage.has(Bug::ServePastLease),
        );
        self.running = Some(Running {
            process: process.clone(),
            host: None,
            turn_at: None,
            busy_until: 0,
            writer: Writer::default(),
            replicas: BTreeMap::new(),
            unpublished: BTreeSet::new(),
            store: None,
            leader: None,
            sleepers: BTreeMap::new(),
            epochs: BTreeMap::new(),
        });
        process
    }

    /// The host's threads start.
    pub fn begin_host(&mut self, stage: &mut Stage) {
        let now = self.now(stage);
        let Some(running) = &mut self.running else { return };
        let identity = running.process.identity();
        self.disk.identity = identity;
        if self.kind == Kind::Store {
            stage.ledger.store(identity.node, identity.peer);
        }
        let mut config = HostConfig { node: identity.node, ..stage.plan.host };
        config.seed ^= base::rng::mix(self.at as u64 + 1) ^ base::rng::mix(u64::from(self.life)).rotate_left(9);
        if self.kind != Kind::Store {
            // One group is not worth it.
            config.sleep_after = None;
        }
        running.host = Some(Host::new(config, self.disk.log.clone(), now));
        let look = stage.rng.below(stage.plan.flush_every);
        stage.after(look, Happening::Flush(self.who()));
        self.wake_in(stage, 0);
    }

    /// The process is gone, and with it what was not on disk.
    pub fn crash(&mut self, stage: &mut Stage) {
        let Some(running) = self.running.take() else { return };
        stage.note(self.label(), "crash", &[("groups", running.replicas.len() as u64)]);
        stage.fallen.push(self.who());
        // What waits there holds on to the process.
        *running.process.out.lock() = Default::default();
        self.life += 1;
        self.crashes += 1;
        self.paused_until = 0;
        drop(running);
        self.disk.log.crash(&mut self.disk.rng);
        self.disk.engine.crash();
        let log = &*self.disk.log;
        let groups: BTreeSet<GroupId> = log.groups().into_iter().collect();
        self.disk.shadows.retain(|group, _| groups.contains(group));
        for (group, (_, shadow)) in &mut self.disk.shadows {
            *shadow = Shadow::read(log, *group);
        }
    }

    pub fn give(&mut self, stage: &mut Stage, input: Input) {
        if let Some(running) = &mut self.running {
            running.process.out.lock().inputs.push(input);
            self.wake_in(stage, 0);
        }
    }

    /// The host's thread wakes after `delay`, or when it is done with what it is at.
    pub fn wake_in(&mut self, stage: &mut Stage, delay: u64) {
        let who = self.who();
        let Some(running) = self.running.as_mut().filter(|running| running.host.is_some()) else { return };
        let time = (stage.now + delay).max(running.busy_until);
        if running.turn_at.is_none_or(|planned| time < planned) {
            running.turn_at = Some(time);
            stage.queue.push(time, Happening::Turn(who));
        }
    }

    /// One turn of the host, as the production driver takes it.
    pub fn turn(&mut self, stage: &mut Stage) {
        let (now, who, label) = (self.now(stage), self.who(), self.label());
        let Some(running) = &mut self.running else { return };
        if running.turn_at.is_none_or(|planned| planned > stage.now) {
            return;
        }
        let Some(host) = &mut running.host else { return };
        let inputs = std::mem::take(&mut running.process.out.lock().inputs);
        running.turn_at = None;
        running.busy_until = stage.now + stage.rng.between(10_000, 100_000);
        stage.note(label, "turn", &[("inputs", inputs.len() as u64)]);
        let coming_and_going: Vec<Change> = inputs.iter().filter_map(Change::of).collect();
        let outputs = host.turn(now, inputs);
        for change in coming_and_going {
            let create = match change {
                Change::Created(create) => create,
                Change::Destroyed(group) => {
                    stage.note(label, "destroy", &[("group", group.0)]);
                    running.unpublished.remove(&group);
                    running.process.forget(group);
                    let delay = stage.rng.below(2 * stage.plan.apply_max);
                    stage.after(delay, Happening::Drop(who, group));
                    continue;
                }
            };
            let machine = running.process.out.lock().machines.remove(&create.group).expect("given before");
            // It may have come and gone within a turn.
            let Some(log) = host.log_reader(create.group) else { continue };
            let group = running.process.group(create.group).expect("whoever creates it has made it known");
            group.differs.store(!machine.is_sound(), Ordering::SeqCst);
            group.waiters.set_applied(create.mark.index);
            let (peer, applied) = (create.peer, create.mark.index);
            stage.note(label, "open", &[("group", create.group.0), ("peer", peer.0), ("applied", applied)]);
            self.disk.shadows.entry(create.group).or_default().0 = peer;
            let replica = Replica {
                peer,
                group,
                machine,
                log,
                committed: VecDeque::new(),
                awake: false,
                applied,
                durable: applied,
                builds: Vec::new(),
                built: BTreeMap::new(),
                staged: None,
                install: None,
                membership: create.membership,
                put_off: false,
            };
            running.replicas.insert(create.group, replica);
        }
        let next = host.next_turn().since(now);
        let delay = u64::try_from(next.as_nanos()).unwrap_or(u64::MAX / 4);
        let eventful = outputs.iter().any(|output| matches!(output, Output::Event(_)));
        self.publish(stage, eventful);
        self.carry_out(stage, outputs);
        let delay = self.clock.world_span(delay) + 1;
        self.wake_in(stage, delay);
    }

    /// Leases at once, the rest not always.
    fn publish(&mut self, stage: &mut Stage, eventful: bool) {
        let Some(running) = &mut self.running else { return };
        let Some(host) = &running.host else { return };
        running.unpublished.extend(host.touched());
        let mut published = Vec::new();
        for id in &running.unpublished {
            let Some(replica) = running.replicas.get(id) else {
                published.push(*id);
                continue;
            };
            replica.group.waiters.publish_lease(host.lease(*id));
            if !eventful && stage.rng.percent(20) {
                continue;
            }
            published.push(*id);
            let Some(status) = host.status(*id) else { continue };
            if status.role == Role::Leader {
                stage.ledger.leader(*id, status.term, status.peer);
            }
            replica.group.publish(status);
        }
        running.unpublished.retain(|id| !published.contains(id));
    }

    /// What leaders have committed: index and term, and with whom they count, if that is certain. The world checks it, for it
    /// knows all disks.
    pub fn commits(&mut self, stage: &Stage) -> Vec<(GroupId, u64, u64, Option<Arc<Membership>>)> {
        let Some(running) = &mut self.running else { return Vec::new() };
        let Some(host) = &running.host else { return Vec::new() };
        let mut found = Vec::new();
        for id in host.touched() {
            let (Some(replica), Some(status)) = (running.replicas.get_mut(&id), host.status(id)) else { continue };
            let membership = host.membership(id).cloned().unwrap_or_default();
            // Whoever has just changed its peers has counted under others.
            let steady = membership == replica.membership;
            replica.membership = membership;
            let index = status.committed;
            if status.role != Role::Leader || index <= stage.ledger.committed_index(id) {
                continue;
            }
            let entry = replica.log.read(index, index, u64::MAX).ok().and_then(|entries| entries.into_iter().next());
            let certain = steady && replica.membership.voters_outgoing.is_empty();
            if let Some(entry) = entry {
                found.push((id, index, entry.term, certain.then(|| replica.membership.clone())));
            }
        }
        found
    }

    fn carry_out(&mut self, stage: &mut Stage, outputs: Vec<Output>) {
        for output in outputs {
            self.carry_out_one(stage, output);
        }
        self.begin_sync(stage);
    }

    fn carry_out_one(&mut self, stage: &mut Stage, output: Output) {
        let label = self.label();
        let Some(running) = &mut self.running else { return };
        match output {
            Output::Persist { number, batch } => {
                stage.note(label, "persist", &[("number", number)]);
                running.writer.waiting.push_back((number, batch));
                if stage.has(Bug::AcknowledgeBeforePersist) {
                    self.give(stage, Input::Persisted { number });
                }
            }
            Output::Send { to, message } => self.send(stage, to, &message),
            Output::Committed { group, first, last } => {
                stage.note(label, "committed", &[("group", group.0), ("first", first), ("last", last)]);
                if let Some(replica) = running.replicas.get_mut(&group) {
                    replica.committed.push_back((first, last));
                }
                self.wake_applier(stage, group);
            }
            Output::ReadReady { group, seqs, index, valid_until } => {
                if let Some(replica) = running.replicas.get(&group) {
                    replica.group.waiters.read_ready(&seqs, ReadGrant { index, valid_until });
                }
            }
            Output::Refused { group, seqs, why } => {
                if let Some(replica) = running.replicas.get(&group) {
                    seqs.iter().for_each(|seq| replica.group.waiters.refuse(*seq, why));
                }
            }
            Output::TransferDone { group, seq } => {
                stage.note(label, "transfer-done", &[("group", group.0)]);
                if let Some(replica) = running.replicas.get(&group) {
                    replica.group.waiters.answer(seq, Answer::Transferred);
                }
            }
            Output::BuildSnapshot { group, to, index_min } => {
                stage.note(label, "build-snapshot", &[("group", group.0), ("to", to.0), ("index", index_min)]);
                if let Some(replica) = running.replicas.get_mut(&group) {
                    replica.builds.retain(|(other, _)| *other != to);
                    replica.builds.push((to, index_min));
                }
                self.build_snapshots(stage, group);
            }
            Output::SendSnapshot { to, message, snapshot } => self.send_snapshot(stage, to, message, snapshot),
            Output::InstallSnapshot { group, staged, mark } => {
                stage.note(label, "install-snapshot", &[("group", group.0), ("index", mark.index)]);
                if let Some(replica) = running.replicas.get_mut(&group) {
                    replica.install = Some((staged, mark));
                }
                self.wake_applier(stage, group);
            }
            Output::DiscardSnapshot { staged } => {
                for replica in running.replicas.values_mut() {
                    if replica.staged.as_ref().is_some_and(|(number, _)| *number == staged) {
                        replica.staged = None;
                    }
                }
            }
            Output::Event(event) => self.event(stage, event),
        }
    }

    fn event(&mut self, stage: &mut Stage, event: Event) {
        let label = self.label();
        match event {
            Event::Leader { group, term, leader, .. } => {
                stage.note(label, "leader", &[("group", group.0), ("term", term), ("peer", leader.0)]);
                stage.ledger.leader(group, term, leader);
            }
            Event::NoLeader { group, term } => stage.note(label, "no-leader", &[("group", group.0), ("term", term)]),
            Event::ElectionTimeout { group, term } => {
                stage.note(label, "campaign", &[("group", group.0), ("term", term)]);
            }
            Event::Membership { group, index, membership } => {
                let voters = membership.voters.len() as u64;
                let learners = membership.learners.len() as u64;
                let numbers = [("group", group.0), ("index", index), ("voters", voters), ("learners", learners)];
                stage.note(label, "membership", &numbers);
                stage.ledger.membership(group, &membership);
                if let Some(replica) = self.replica(group) {
                    replica.group.publish_membership(membership);
                }
            }
            Event::HashMismatch { group, peer, index, .. } => {
                stage.ledger.fail(|| format!("hashes at {index} of {group}: {peer} differs"));
            }
            Event::Diverged { group, index, .. } => {
                stage.ledger.fail(|| format!("a replica of {group} was told at {index} that it differs"));
                if let Some(replica) = self.replica(group) {
                    replica.group.differs.store(true, Ordering::SeqCst);
                }
            }
            Event::HashesUnclear { group, index, .. } => {
                stage.ledger.fail(|| format!("hashes at {index} of {group} differ"));
            }
            Event::DiskStalled { group, stalled_ms } => {
                stage.note(label, "disk-stalled", &[("group", group.0), ("ms", stalled_ms)]);
            }
            Event::DiskSlow { group, write_ms } => {
                stage.note(label, "disk-slow", &[("group", group.0), ("ms", write_ms)]);
            }
            Event::BadMessage { group, from, why } => {
                stage.ledger.fail(|| format!("{group}: a bad message from {from}: {why}"));
            }
        }
    }

    fn send(&mut self, stage: &mut Stage, to: NodeId, message: &Message) {
        let Some(at) = self.place_of(stage, to) else { return };
        let bytes = message.encode();
        let hash = base::hash::roll(0, &bytes);
        stage.note(self.label(), "send", &[("to", at as u64 + 1), ("group", message.group.0), ("hash", hash)]);
        stage.say(self.label(), || format!("{:?}", message.body));
        // The stream between two nodes repeats nothing; raft's own messages are repeated all the same.
        let mut trips = stage.net.trips(self.at, at);
        if !matches!(message.body, Body::Raft(_)) {
            trips.truncate(1);
        }
        if trips.is_empty() && stage.net.is_cut(self.at, at) && stage.rng.percent(10) {
            self.give(stage, Input::Unreachable { node: to });
        }
        for trip in trips {
            stage.after(trip, Happening::Arrive { at, bytes: bytes.clone() });
        }
    }

    /// Where another node is, as far as this one was told.
    pub fn place_of(&self, stage: &Stage, node: NodeId) -> Option<usize> {
        match self.kind {
            Kind::Pd(_) => Some(node.0 as usize - 1).filter(|at| *at < stage.plan.pds),
            Kind::Store => self.running.as_ref()?.process.address(node).as_deref().and_then(place_at),
        }
    }

    pub fn receive(&mut self, stage: &mut Stage, bytes: bytes::Bytes) {
        let Some(message) = Message::decode(bytes) else {
            return stage.ledger.fail(|| "a message did not survive its own encoding".to_owned());
        };
        // Whoever is greeted by another node than it wanted hangs up.
        self.give(stage, Input::Message(message));
    }

    fn begin_sync(&mut self, stage: &mut Stage) {
        let who = self.who();
        let Some(running) = &mut self.running else { return };
        if running.writer.syncing.is_some() || running.writer.waiting.is_empty() {
            return;
        }
        let last = running.writer.waiting.back().map_or(0, |(number, _)| *number);
        let all = LogBatch::joined(running.writer.waiting.drain(..).map(|(_, batch)| batch));
        match self.disk.log.stage(&all) {
            Ok(staged) => running.writer.syncing = Some((last, staged, all)),
            Err(error) => return stage.ledger.fail(|| format!("the log refused a write: {error}")),
        }
        let (shortest, longest) = stage.plan.sync;
        let mut delay = stage.rng.between(shortest, longest);
        if self.slow_disk {
            delay += stage.rng.between(20, 600) * MS;
        }
        if stage.has(Bug::AcknowledgeBeforePersist) {
            delay += 200 * MS;
        }
        stage.after(delay, Happening::Synced(who));
    }

    pub fn synced(&mut self, stage: &mut Stage) {
        let label = self.label();
        let Some(running) = &mut self.running else { return };
        let Some((number, staged, batch)) = running.writer.syncing.take() else { return };
        if let Err(error) = self.disk.log.sync_to(staged) {
            return stage.ledger.fail(|| format!("the log failed to sync: {error}"));
        }
        for write in &batch.groups {
            if let Some((peer, shadow)) = self.disk.shadows.get_mut(&write.group) {
                shadow.apply(write);
                if !write.entries.is_empty() || write.hard.is_some_and(|hard| hard.vote != 0) {
                    stage.ledger.acted(write.group, *peer);
                }
            }
        }
        stage.note(label, "synced", &[("number", number)]);
        if !stage.has(Bug::AcknowledgeBeforePersist) {
            self.give(stage, Input::Persisted { number });
        }
        self.begin_sync(stage);
    }
}

/// The place behind an address.
pub fn place_at(address: &str) -> Option<usize> {
    address.strip_prefix("place-")?.parse().ok()
}

pub fn address_of(at: usize) -> String {
    format!("place-{at}")
}

/// A data folder that belongs to nobody yet.
pub fn new_identity(stage: &mut Stage) -> Identity {
    Identity { node: NodeId(0), peer: PeerId(stage.name()), cluster: ClusterId(0), voted: false, wished: NodeId(0) }
}
