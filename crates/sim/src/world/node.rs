//! A simulated node: what lies on its disk, and, while it runs, the production host and state machines with the threads
//! that production gives them (host, log writer, an applier per group, workers for reads), each played by events.
//!
//! The disk outlives the process. A crash throws away what was not synced, and a start builds everything
//! anew from what is left, as the production driver does. A log that cannot be opened, or is shorter than it was,
//! makes the node begin again as a new incarnation: new peers, nothing on the disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use base::{GroupId, NodeId, PeerId, Rng, Time};
use chainfire::machine::{Identity, Machine};
use chainfire::read::Reader;
use consensus::{
    CreateGroup, Host, HostConfig, Input, LeaderLease, LogReader, Mark, Membership, SnapshotSink, SnapshotSource,
    StateMachine,
};
use storage::memengine::MemEngine;
use storage::memlog::MemLog;
use storage::{LogBatch, LogStore};

use super::bug::Bug;
use super::forgetful::Forgetful;
use super::queue::{Happening, Who};
use super::requests::Reading;
use super::stage::Stage;
use super::watch::Tap;
use crate::physics::clock::Clock;
use crate::physics::shadow::Shadow;

/// Where founded groups begin.
pub const FOUNDED: Mark = Mark { index: 1, term: 1, hash: base::hash::START };

pub struct Node {
    /// Its place in the world.
    pub at: usize,
    /// The label that people use: the place, counted from 1.
    pub id: NodeId,
    pub clock: Clock,
    /// Counts starts; what was planned for an earlier life is dropped.
    pub life: u32,
    pub paused_until: u64,
    pub slow_disk: bool,
    /// Its disk returns from nothing before this.
    pub stalled_until: u64,
    /// Its disk has no room for new entries.
    pub full: bool,
    pub disk: Disk,
    pub running: Option<Running>,
    /// In use: member, or about to be.
    pub enlisted: bool,
    /// Its log is damaged, which it will find when it starts.
    pub damaged: bool,
    /// Its state machine in this group will skip the next command.
    pub strays: Option<GroupId>,
    /// It has decided to give its folder up when it starts.
    pub condemned: bool,
    pub crashes: u64,
    /// Snapshots put in place.
    pub installs: u64,
    /// Times that a host found its replica wrong.
    pub quarantines: u64,
}

/// What survives the process.
pub struct Disk {
    pub log: Arc<MemLog>,
    pub shares: BTreeMap<GroupId, Share>,
    /// Nothing was ever voted or acknowledged under these peers.
    pub fresh: bool,
    rng: Rng,
}

/// A group's part of the disk.
pub struct Share {
    pub peer: PeerId,
    pub engine: Arc<MemEngine>,
    /// What the ledger knows to have been durable; the state machine must not come up behind it.
    pub durable: u64,
}

/// A running process.
pub struct Running {
    pub host: Host,
    pub inbox: Vec<Input>,
    /// When the host's thread wakes.
    turn_at: Option<u64>,
    /// It is busy until then.
    pub busy_until: u64,
    pub writer: Writer,
    pub replicas: BTreeMap<GroupId, Replica>,
    /// What was asked of the host and has not come to an end.
    pub open: BTreeSet<u64>,
    /// What has.
    pub ended: BTreeSet<u64>,
    pub readings: BTreeMap<u64, Reading>,
}

/// The thread that owns the log.
#[derive(Default)]
pub struct Writer {
    pub waiting: VecDeque<(u64, LogBatch)>,
    pub syncing: Option<Syncing>,
}

/// A write under way.
pub struct Syncing {
    /// The host's number of the last batch in it.
    pub number: u64,
    /// The log's number of the write.
    pub staged: u64,
    pub batch: LogBatch,
    /// When it began.
    pub since: u64,
}

/// A group on a running node.
pub struct Replica {
    pub peer: PeerId,
    pub machine: Machine,
    pub reader: Reader,
    pub log: Arc<LogReader>,
    pub tap: Arc<Tap>,
    /// Committed ranges that wait for the applier.
    pub committed: VecDeque<(u64, u64)>,
    pub applier_awake: bool,
    pub applied: u64,
    /// Snapshots that wait until enough is applied: (to, index).
    pub builds: Vec<(PeerId, u64)>,
    pub built: BTreeMap<PeerId, (u64, Box<dyn SnapshotSource>)>,
    /// Received and complete, waiting for the host's word.
    pub staged: Option<(u64, Box<dyn SnapshotSink>)>,
    /// To be put in place when the applier has nothing left.
    pub install: Option<(u64, Mark)>,
    /// Reads that wait for an index to be applied.
    pub reads: BTreeMap<u64, Vec<(u64, Option<Time>)>>,
    /// As published after the last turn.
    pub lease: LeaderLease,
    pub membership: Arc<Membership>,
    /// The index a read was last allowed at, for a planted bug.
    pub read_index: Option<u64>,
}

impl Node {
    /// An empty place.
    pub fn new(at: usize, stage: &mut Stage) -> Node {
        let drift = stage.plan.faults.drift_permille;
        let clock = Clock::new(&mut stage.rng, drift);
        let rng = stage.rng.fork(at as u64);
        let disk = Disk { log: Arc::new(MemLog::new()), shares: BTreeMap::new(), fresh: true, rng };
        Node {
            at,
            id: NodeId(at as u64 + 1),
            clock,
            life: 0,
            paused_until: 0,
            slow_disk: false,
            stalled_until: 0,
            full: false,
            disk,
            running: None,
            enlisted: false,
            damaged: false,
            strays: None,
            condemned: false,
            crashes: 0,
            installs: 0,
            quarantines: 0,
        }
    }

    pub fn who(&self) -> Who {
        Who { at: self.at, life: self.life }
    }

    pub fn now(&self, stage: &Stage) -> Time {
        self.clock.at(stage.now)
    }

    pub fn is_paused(&self, stage: &Stage) -> bool {
        self.paused_until > stage.now
    }

    /// A new data folder with new peers.
    pub fn renew(&mut self, stage: &mut Stage) {
        assert!(self.running.is_none(), "a folder is renewed while nothing runs on it");
        self.disk.log.wipe();
        self.disk.fresh = true;
        self.damaged = false;
        self.condemned = false;
        self.strays = None;
        self.disk.shares.iter().for_each(|(group, share)| stage.ledger.gone(*group, share.peer));
        self.disk.shares = stage
            .groups()
            .map(|group| {
                let engine = Arc::new(MemEngine::new(&chainfire::machine::layout::FAMILIES));
                (group, Share { peer: PeerId(stage.name()), engine, durable: 0 })
            })
            .collect();
        self.enlisted = true;
        let peers: Vec<u64> = self.disk.shares.values().map(|share| share.peer.0).collect();
        peers.into_iter().for_each(|peer| stage.note(self.id.0, "new-folder", &[("peer", peer)]));
    }

    /// A founder writes what all founders agreed on.
    pub fn found(&mut self, stage: &mut Stage, memberships: &BTreeMap<GroupId, Membership>) {
        for (group, membership) in memberships {
            let (mut machine, _, _) = self.open_machine(stage, *group);
            if let Err(error) = machine.found(FOUNDED, membership.encode().into()) {
                stage.ledger.fail(|| format!("founding failed: {error}"));
            }
        }
    }

    /// The process starts on what is on the disk.
    pub fn start(&mut self, stage: &mut Stage) {
        let node = self.id.0;
        if self.condemned {
            stage.note(node, "given-up", &[]);
            self.renew(stage);
        } else if let Err(error) = self.disk.log.reopen() {
            stage.trace.say(stage.now, node, || format!("the log is lost: {error}"));
            stage.note(node, "log-lost", &[]);
            self.renew(stage);
        }
        self.life += 1;
        stage.note(self.id.0, "start", &[("life", u64::from(self.life))]);
        let mut config = HostConfig { node: self.id, ..stage.plan.host };
        config.seed ^= base::rng::mix(self.id.0);
        let log: Arc<dyn LogStore> = match stage.bug {
            Some(Bug::ForgetVote) => Arc::new(Forgetful(self.disk.log.clone())),
            _ => self.disk.log.clone(),
        };
        let mut host = Host::new(config, log, self.now(stage));
        let mut inbox = Vec::new();
        let mut machines = Vec::new();
        for (group, share) in &self.disk.shares {
            let (machine, reader, tap) = self.open_machine(stage, *group);
            let mark = machine.mark();
            if mark.index < share.durable {
                let durable = share.durable;
                stage.ledger.fail(|| format!("the state came up at {} though {durable} was durable", mark.index));
            }
            if let Some(why) = Host::mismatch(self.disk.log.as_ref(), *group, mark) {
                stage.ledger.fail(|| format!("state and log do not fit after a crash: {why}"));
            }
            if stage.ledger.is_astray(*group, share.peer) {
                stage.ledger.applied(*group, share.peer, mark);
            }
            let membership: Arc<Membership> = Membership::decode(&machine.membership()).unwrap_or_default().into();
            stage.note(self.id.0, "open", &[("group", group.0), ("peer", share.peer.0), ("applied", mark.index)]);
            inbox.push(Input::Create(CreateGroup {
                group: *group,
                peer: share.peer,
                mark,
                membership: membership.clone(),
                fresh: self.disk.fresh || stage.has(Bug::ForgetVote),
            }));
            machines.push((*group, share.peer, machine, reader, tap, mark, membership));
        }
        self.disk.fresh = false;
        // The groups come to life in the first turn; its outputs follow once their appliers exist.
        let outputs = host.turn(self.now(stage), inbox);
        let mut replicas = BTreeMap::new();
        for (group, peer, machine, reader, tap, mark, membership) in machines {
            tap.begin(&reader);
            let log = host.log_reader(group).expect("the group was created a moment ago");
            let replica = Replica {
                peer,
                machine,
                reader,
                log,
                tap,
                committed: VecDeque::new(),
                applier_awake: false,
                applied: mark.index,
                builds: Vec::new(),
                built: BTreeMap::new(),
                staged: None,
                install: None,
                reads: BTreeMap::new(),
                lease: LeaderLease::default(),
                membership,
                read_index: None,
            };
            replicas.insert(group, replica);
            let first_look = stage.rng.below(stage.plan.flush_every);
            stage.after(first_look, Happening::Flush(self.who(), group));
        }
        self.running = Some(Running {
            host,
            inbox: Vec::new(),
            turn_at: None,
            busy_until: 0,
            writer: Writer::default(),
            replicas,
            open: BTreeSet::new(),
            ended: BTreeSet::new(),
            readings: BTreeMap::new(),
        });
        self.carry_out(stage, outputs);
        self.wake_in(stage, 0);
    }

    /// The process is gone, and with it what was not on disk.
    pub fn crash(&mut self, stage: &mut Stage) {
        let Some(running) = self.running.take() else { return };
        stage.note(self.id.0, "crash", &[("open", running.open.len() as u64)]);
        self.life += 1;
        self.crashes += 1;
        stage.fallen.push(self.at);
        self.paused_until = 0;
        self.full = false;
        stage.ledger.down(self.at);
        drop(running);
        self.disk.log.crash(&mut self.disk.rng);
        for (group, share) in &self.disk.shares {
            share.engine.crash();
            stage.ledger.disks.insert((*group, share.peer), Shadow::read(self.disk.log.as_ref(), *group));
        }
    }

    /// Gives the host something to do.
    pub fn give(&mut self, stage: &mut Stage, input: Input) {
        if let Some(running) = &mut self.running {
            running.inbox.push(input);
            self.wake_in(stage, 0);
        }
    }

    /// The host's thread wakes after `delay`, or when it is done with what it is at.
    pub fn wake_in(&mut self, stage: &mut Stage, delay: u64) {
        let who = self.who();
        let Some(running) = &mut self.running else { return };
        let time = (stage.now + delay).max(running.busy_until);
        if running.turn_at.is_none_or(|planned| time < planned) {
            running.turn_at = Some(time);
            stage.queue.push(time, Happening::Turn(who));
        }
    }

    /// One turn of the host.
    pub fn turn(&mut self, stage: &mut Stage) {
        let now = self.now(stage);
        let Some(running) = &mut self.running else { return };
        if running.turn_at.is_none_or(|planned| planned > stage.now) {
            return;
        }
        let inputs = std::mem::take(&mut running.inbox);
        running.turn_at = None;
        running.busy_until = stage.now + stage.rng.between(10_000, 100_000);
        stage.note(self.id.0, "turn", &[("inputs", inputs.len() as u64)]);
        let outputs = running.host.turn(now, inputs);
        let next = running.host.next_turn().since(now);
        let delay = u64::try_from(next.as_nanos()).unwrap_or(u64::MAX / 4);
        self.publish(stage);
        self.carry_out(stage, outputs);
        let delay = self.clock.world_span(delay) + 1;
        self.wake_in(stage, delay);
    }

    /// What is published after each turn: leases. And what the ledger wants to see.
    fn publish(&mut self, stage: &mut Stage) {
        let Some(running) = &mut self.running else { return };
        for (group, replica) in &mut running.replicas {
            let lease = running.host.lease(*group);
            if lease.valid_until != replica.lease.valid_until {
                stage.ledger.lease(*group, self.at, self.clock.world(lease.valid_until));
            }
            if lease.valid_until > Time::ZERO {
                stage.ledger.speaks(*group, replica.peer, "holds a lease");
            }
            replica.lease = lease;
            let Some(status) = running.host.status(*group) else { continue };
            let leads = status.role == consensus::Role::Leader;
            if leads {
                stage.ledger.leader(*group, status.term, status.peer);
            }
            if status.committed > stage.ledger.committed_index(*group) {
                let membership = running.host.membership(*group).cloned().unwrap_or_default();
                // Whoever has just stepped down, or changed its peers, may have counted under others.
                let steady = leads && membership == replica.membership;
                let index = status.committed;
                let entry =
                    replica.log.read(index, index, u64::MAX).ok().and_then(|entries| entries.into_iter().next());
                let known = entry.filter(|_| steady).map(|entry| (entry.term, &*membership));
                stage.ledger.committed(*group, index, known);
                replica.membership = membership;
            }
        }
    }

    pub fn replica(&mut self, group: GroupId) -> Option<&mut Replica> {
        self.running.as_mut()?.replicas.get_mut(&group)
    }

    fn open_machine(&self, stage: &mut Stage, group: GroupId) -> (Machine, Reader, Arc<Tap>) {
        let share = &self.disk.shares[&group];
        let tap = Arc::new(Tap::new(self.id, stage.has(Bug::DropWatchEvent).then(|| stage.rng.fork(9))));
        let identity = Identity { cluster: super::CLUSTER, member: self.id };
        let (machine, reader) =
            Machine::open(share.engine.clone(), identity, tap.clone()).expect("an engine in memory opens");
        (machine, reader, tap)
    }
}

impl Replica {
    /// Whether a received snapshot waits to be put in place, or to be discarded.
    pub fn is_receiving(&self) -> bool {
        self.staged.is_some() || self.install.is_some()
    }
}
