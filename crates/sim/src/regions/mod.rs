//! A world in which FlareDB's production code runs: stores with many regions and a placement driver, on simulated disks, clocks
//! and networks. One seed is one world, the same to the last step.
//!
//! What runs is what a process runs: the host of `consensus`, the regions' state machines, the store that admits and retires
//! them, the supervisor that reports and takes steps, the API; the placement driver's records, its leader's memory and its
//! planner. What is simulated is what these stand on ([`node::ground`]): the node with its threads, tasks, timers, connections.
//!
//! # The life of a world
//! The placement driver is founded, stores come and register, the first region is begun; clients go to work, faults strike, and
//! steps are taken that nobody planned. Then all is healed, must come to rest within a bounded time, and is judged ([`settle`]).
//! Whatever contradicts itself on the way ends the run at once ([`ledger`]).
//!
//! # Rooms
//! [`plan`] what a seed stands for · [`stage`] what everyone shares, and what may happen · [`node`], [`applier`] a machine and its process ·
//! [`programs`] the two programs · [`ground`], [`tasks`] what production code stands on · [`tripwire`] an engine whose power can
//! be cut · [`transfer`] snapshots · [`calls`] connections · [`work`] clients · [`fault`] what strikes · [`bug`] bugs to plant.
//!
//! # How to read a trace
//! `sim regions --trace SEED` prints every step; nodes are counted from 1, members of the placement driver first. `group`
//! numbers are regions (the placement driver's own is huge). `create` and `open` begin a peer, `take-away`, `destroy` and
//! `gone` end it; `odd` is a step that nobody planned, `again` an old answer of the placement driver, `cut` a power cut
//! within what a store did to its engine.

pub mod applier;
pub mod bug;
pub mod calls;
pub mod fault;
pub mod ground;
pub mod ledger;
pub mod node;
pub mod plan;
pub mod programs;
pub mod settle;
pub mod stage;
pub mod tasks;
pub mod transfer;
pub mod tripwire;
pub mod work;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use base::Time;
use consensus::Role;
use storage::memengine::MemEngine;
use storage::memlog::MemLog;

pub use bug::Bug;
pub use ledger::Failure;
pub use plan::Plan;

use crate::physics::clock::Clock;
use calls::Calls;
use node::{Disk, Kind, Node, PD_GROUP, address_of, new_identity};
use plan::{MS, SECOND};
use settle::Phase;
use stage::{Happening, Stage};
use tasks::Tasks;
use transfer::Transfers;
use tripwire::Tripwire;
use work::Clients;

/// Steps after which a world that never ends is given up.
const STEPS_MAX: u64 = 20_000_000;
const LOOK_EVERY: u64 = 50 * MS;

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Faults for some minutes instead of half a one.
    pub long: bool,
    pub bug: Option<Bug>,
    /// Print every step.
    pub trace: bool,
}

/// What became of a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub failure: Option<Failure>,
    /// Equal for equal runs.
    pub trace_hash: u64,
    pub counts: Counts,
}

/// How much happened, to see that worlds are not idle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub steps: u64,
    /// In the world's time, milliseconds.
    pub lasted_ms: u64,
    /// From healing to rest.
    pub healed_ms: u64,
    pub answered: u64,
    pub unknown: u64,
    pub elections: u64,
    pub crashes: u64,
    pub snapshots: u64,
    pub splits: u64,
    pub merges: u64,
    pub changes: u64,
    pub odd_steps: u64,
    pub lost_stores: u64,
    pub refused: u64,
    /// Ten minutes without a placement driver.
    pub outages: u64,
    /// At the end.
    pub regions: u64,
}

impl Counts {
    pub fn add(&mut self, one: &Counts) {
        self.steps += one.steps;
        self.lasted_ms += one.lasted_ms;
        self.healed_ms = self.healed_ms.max(one.healed_ms);
        self.answered += one.answered;
        self.unknown += one.unknown;
        self.elections += one.elections;
        self.crashes += one.crashes;
        self.snapshots += one.snapshots;
        self.splits += one.splits;
        self.merges += one.merges;
        self.changes += one.changes;
        self.odd_steps += one.odd_steps;
        self.lost_stores += one.lost_stores;
        self.refused += one.refused;
        self.outages += one.outages;
        self.regions += one.regions;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} s of worlds, {} steps: {} calls answered, {} of unknown outcome; {} terms led, {} crashes, {} snapshots \
             installed, {} splits, {} merges, {} membership changes, {} steps that nobody planned, \
             {} stores lost for good, {} times an impostor was refused, {} times ten minutes without a placement driver, \
             {} regions at the end; at rest {} s after healing at the latest",
            self.lasted_ms / 1_000,
            self.steps,
            self.answered,
            self.unknown,
            self.elections,
            self.crashes,
            self.snapshots,
            self.splits,
            self.merges,
            self.changes,
            self.odd_steps,
            self.lost_stores,
            self.refused,
            self.outages,
            self.regions,
            self.healed_ms / 1_000,
        )
    }
}

pub struct World {
    stage: Stage,
    /// Members of the placement driver, stores, and a place for impostors.
    nodes: Vec<Node>,
    tasks: Tasks,
    calls: Calls,
    transfers: Transfers,
    clients: Clients,
    phase: Phase,
    /// Where received snapshots wait; gone with the world.
    folder: PathBuf,
    _folder: Option<tempfile::TempDir>,
    healed_after: u64,
    lost: u64,
    refused: u64,
    odd_steps: u64,
    regions: u64,
    outages: u64,
}

/// Runs a seed once.
pub fn run(seed: u64, options: Options) -> Report {
    let mut world = World::new(seed, options);
    // The production code stops at contradictions in itself; that is a finding like any other.
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ended {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words").to_owned();
        world.stage.ledger.fail(|| format!("panic: {text}"));
    }
    world.report()
}

/// Runs a seed twice; runs that differ are a failure.
pub fn run_twice(seed: u64, options: Options) -> Report {
    let first = run(seed, options);
    let again = run(seed, Options { trace: false, ..options });
    if first.failure.is_none() && first != again {
        let why = format!("not deterministic: traces {:x} and {:x}", first.trace_hash, again.trace_hash);
        return Report { failure: Some(Failure { time: 0, why }), ..first };
    }
    first
}

impl World {
    fn new(seed: u64, options: Options) -> World {
        let plan = Plan::new(seed, options.long);
        let mut stage = Stage::new(plan, options.bug, options.trace);
        stage.say(0, || format!("{:#?}", stage.plan));
        // In memory where that is to be had: what is received is written to files.
        let shared = std::path::Path::new("/dev/shm");
        let folder = if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() };
        let folder = folder.ok();
        let root = folder.as_ref().map_or_else(std::env::temp_dir, |folder| folder.path().to_owned());
        let pds = stage.plan.pds;
        let all = pds + stage.plan.stores + stage.plan.joiners + 1;
        let mut nodes: Vec<Node> = (0..all).map(|at| place(&mut stage, at, &root)).collect();
        let membership = programs::founders(&stage, &mut nodes);
        nodes[..pds].iter_mut().for_each(|node| node.found_pd(&mut stage, &membership));
        stage.ledger.membership(PD_GROUP, &membership);
        let clients = Clients::new(&mut stage);
        for at in 0..pds + stage.plan.stores {
            let moment = stage.rng.below(2 * SECOND);
            stage.after(moment, Happening::Start { at });
        }
        for at in pds + stage.plan.stores..all - 1 {
            let moment = stage.rng.below(stage.plan.faulty);
            stage.after(moment, Happening::Start { at });
        }
        if stage.plan.faults.outage {
            let moment = stage.rng.between(5 * SECOND, stage.plan.faulty - fault::OUTAGE - 10 * SECOND);
            stage.after(moment, Happening::Outage);
        }
        let healed = stage.plan.faulty;
        for (delay, what) in [
            (4 * SECOND, Happening::Fault),
            (3 * SECOND, Happening::Odd),
            (LOOK_EVERY, Happening::Look),
            (healed, Happening::Heal),
        ] {
            stage.after(delay, what);
        }
        World {
            stage,
            nodes,
            tasks: Tasks::default(),
            calls: Calls::default(),
            transfers: Transfers::default(),
            clients,
            phase: Phase::default(),
            folder: root,
            _folder: folder,
            healed_after: 0,
            lost: 0,
            refused: 0,
            odd_steps: 0,
            regions: 0,
            outages: 0,
        }
    }

    fn run(&mut self) {
        while self.phase != Phase::Rest && self.stage.ledger.failure.is_none() {
            let Some((time, what)) = self.stage.queue.pop() else { break };
            self.stage.advance(time);
            self.happen(what);
            self.follow_up();
            if self.stage.trace.steps() > STEPS_MAX {
                self.stage.ledger.fail(|| "this never ends".to_owned());
            }
        }
    }

    fn happen(&mut self, what: Happening) {
        let place = match &what {
            Happening::Turn(who)
            | Happening::Synced(who)
            | Happening::Apply(who, _)
            | Happening::Drop(who, _)
            | Happening::Flush(who)
            | Happening::Wake { who, .. } => {
                if self.nodes[who.at].who() != *who {
                    return;
                }
                Some(who.at)
            }
            Happening::Arrive { at, .. } | Happening::Again { at, .. } => Some(*at),
            _ => None,
        };
        // A paused node does nothing; what would have happened waits.
        if let Some(at) = place
            && self.nodes[at].is_paused(&self.stage)
        {
            let until = self.nodes[at].paused_until;
            return self.stage.queue.push(until, what);
        }
        let stage = &mut self.stage;
        match what {
            Happening::Turn(who) => {
                self.nodes[who.at].turn(stage);
                self.check_commits(who.at);
            }
            Happening::Synced(who) => self.nodes[who.at].synced(stage),
            Happening::Apply(who, group) => {
                self.nodes[who.at].apply(stage, group);
                if group == PD_GROUP {
                    self.check_records(who.at);
                }
            }
            Happening::Drop(who, group) => self.nodes[who.at].let_go(stage, group),
            Happening::Flush(who) => self.nodes[who.at].flush(stage),
            Happening::Arrive { at, bytes } => self.nodes[at].receive(stage, bytes),
            Happening::Transfer { number } => self.transfer(number),
            Happening::Wake { who, number } => {
                let sleeper = self.nodes[who.at].running.as_mut().and_then(|running| running.sleepers.remove(&number));
                // Whoever slept may be gone.
                let _ = sleeper.map(|wake| wake.send(()));
            }
            Happening::Resume { task } => self.tasks.run(task),
            Happening::Asked { call } => self.asked(call),
            Happening::Heard { call, heard } => self.heard(call, heard),
            Happening::GiveUp { call } => self.give_up(call),
            Happening::Client { client } => self.client(client),
            Happening::Again { at, number } => self.again(at, number),
            Happening::Fault => self.fault(),
            Happening::Odd => self.odd(),
            Happening::Outage => self.begin_outage(),
            Happening::End(ending) => self.end_fault(ending),
            Happening::Start { at } => {
                let away = self.nodes[at].kind != Kind::Store && self.stage.outage.is_some();
                if self.nodes[at].running.is_none() && !self.nodes[at].retired && !away {
                    self.plant(at);
                    if self.stage.has(Bug::IdsTwice) && matches!(self.nodes[at].kind, Kind::Pd(_)) {
                        programs::forget_ids(&self.nodes[at]);
                    }
                    self.nodes[at].start(&mut self.stage);
                }
            }
            Happening::Look => self.look(),
            Happening::Heal => {
                self.heal();
                self.stage.after(500 * MS, Happening::Settle);
            }
            Happening::Settle => self.settle(),
        }
    }

    /// What follows from a step: tasks run until none can, and what they put down is carried out.
    fn follow_up(&mut self) {
        loop {
            let mut busy = false;
            for at in 0..self.nodes.len() {
                if self.nodes[at].disk.engine.is_cut() {
                    self.cut(at);
                }
                busy |= self.drain(at);
            }
            for who in std::mem::take(&mut self.stage.fallen) {
                busy = true;
                self.tasks.end(who);
                self.hang_up(who);
            }
            for (number, transfer) in std::mem::take(&mut self.stage.outgoing) {
                self.transfers.under_way.insert(number, transfer);
            }
            while let Some((task, who)) = self.tasks.next_ready() {
                if self.nodes[who.at].who() != who {
                    continue;
                }
                busy = true;
                if self.nodes[who.at].is_paused(&self.stage) {
                    let until = self.nodes[who.at].paused_until;
                    self.stage.queue.push(until, Happening::Resume { task });
                    continue;
                }
                self.tasks.run(task);
                if self.nodes[who.at].disk.engine.is_cut() {
                    break;
                }
            }
            if !busy || self.stage.ledger.failure.is_some() {
                return;
            }
        }
    }

    /// What a leader calls committed lies on the disks of most voters.
    fn check_commits(&mut self, at: usize) {
        for (group, index, term, membership) in self.nodes[at].commits(&self.stage) {
            let has = |peer: &base::PeerId| {
                let shadows = self.nodes.iter().filter_map(|node| node.disk.shadows.get(&group));
                shadows.into_iter().any(|(owner, shadow)| owner == peer && shadow.holds(index, term))
            };
            let counted = membership.map(|all| (all.voters.iter().filter(|peer| has(peer)).count(), all.voters.len()));
            self.stage.ledger.committed(group, index, counted);
        }
    }

    /// A member's records of regions never go back.
    fn check_records(&mut self, at: usize) {
        let Some(running) = &mut self.nodes[at].running else { return };
        let Some(leader) = &running.leader else { return };
        for region in leader.records().read().regions.values() {
            let epoch = (region.version, region.conf_version);
            let known = running.epochs.entry(region.id).or_insert(epoch);
            if epoch.0 < known.0 || epoch.1 < known.1 {
                self.stage
                    .ledger
                    .fail(|| format!("the record of region {} goes back from {known:?} to {epoch:?}", region.id));
            }
            *known = epoch;
        }
    }

    /// Who answers for which keys, at this moment.
    fn look(&mut self) {
        self.stage.after(LOOK_EVERY, Happening::Look);
        let mut all = Vec::new();
        for node in &self.nodes {
            let (Some(running), Some(store), now) = (&node.running, node.store(), node.now(&self.stage)) else {
                continue;
            };
            let Some(host) = &running.host else { continue };
            for region in store.regions() {
                let (lease, state) = (host.lease(region.id()), region.state());
                if state.frozen.is_some() || !region.handle.is_sound() {
                    continue;
                }
                let leads = host.status(region.id()).is_some_and(|status| status.role == Role::Leader);
                let applied = running.replicas.get(&region.id()).is_some_and(|replica| replica.applied >= lease.index);
                if leads && applied && lease.valid_until > Time::ZERO && now < lease.valid_until && state.version > 0 {
                    all.push((state.start.clone(), state.end.clone(), region.id(), node.at));
                }
            }
        }
        self.stage.ledger.answering(all);
    }

    fn report(&self) -> Report {
        let (stage, ledger) = (&self.stage, &self.stage.ledger);
        let counts = Counts {
            steps: stage.trace.steps(),
            lasted_ms: stage.now / MS,
            healed_ms: self.healed_after / MS,
            answered: self.clients.answered,
            unknown: self.clients.unknown,
            elections: ledger.elections,
            crashes: self.nodes.iter().map(|node| node.crashes).sum(),
            snapshots: self.nodes.iter().map(|node| node.installs).sum(),
            splits: ledger.splits,
            merges: ledger.merges,
            changes: ledger.changes,
            odd_steps: self.odd_steps,
            lost_stores: self.lost,
            outages: self.outages,
            refused: self.refused,
            regions: self.regions,
        };
        Report { failure: ledger.failure.clone(), trace_hash: stage.trace.hash(), counts }
    }
}

/// An empty machine.
fn place(stage: &mut Stage, at: usize, root: &std::path::Path) -> Node {
    let clock = Clock::new(&mut stage.rng, stage.plan.faults.drift_permille);
    let pd = at < stage.plan.pds;
    let families: &'static [storage::FamilySpec] =
        if pd { &placement::machine::FAMILIES } else { &flaredb::region::layout::FAMILIES };
    let last = stage.plan.pds + stage.plan.stores + stage.plan.joiners;
    Node {
        at,
        kind: if pd { Kind::Pd(at) } else { Kind::Store },
        clock,
        life: 0,
        paused_until: 0,
        slow_disk: false,
        disk: Disk {
            log: Arc::new(MemLog::new()),
            engine: Tripwire::new(Arc::new(MemEngine::new(families))),
            identity: new_identity(stage),
            incoming: root.join(format!("store-{at}")),
            shadows: BTreeMap::new(),
            rng: stage.rng.fork(at as u64),
        },
        running: None,
        retired: false,
        // Far apart: what the placement driver gives by itself lies behind the highest that anybody has brought along.
        // Far apart: ids that are drawn lie behind the highest that anybody has brought along.
        asks_for: if stage.rng.percent(50) { 1_000_000 * (1 + at as u64) } else { 0 },
        address: address_of(at),
        impostor: (at == last).then(Default::default),
        crashes: 0,
        installs: 0,
    }
}
