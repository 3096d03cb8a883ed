//! A world in which the production code runs: hosts, state machines and watch hubs as they are, on simulated disks, clocks
//! and networks that fail as real ones do. One seed is one world: who is in it, what fails when, what clients do.
//! The same seed gives the same world to the last step, which is checked by running every seed twice.
//!
//! # The life of a world
//! Founders found their groups; clients, watchers and an operator go to work; faults strike. After [`Plan::faulty`] the world
//! is healed, must come to rest within a bounded time, and is judged ([`settle`]). Whatever contradicts itself on the
//! way ends the run at once ([`ledger`]).
//!
//! # Rooms
//! [`plan`] what a seed stands for · [`queue`] what will happen · [`stage`] what everyone shares · [`node`] a node and its disk ·
//! [`drive`] a host's outputs carried out · [`apply`] appliers and flushers · [`transfer`] snapshots · [`requests`] a node's
//! reads and commands · [`work`] clients · [`watch`] watchers · [`operate`] membership and leadership · [`fault`], [`disks`] what
//! strikes · [`bug`] bugs to plant. The network, clocks, and what is really on disk: [`crate::physics`].
//!
//! # How to read a trace
//! `cargo run --release -p sim -- --trace SEED` prints every step: the time in milliseconds, the node (`-` is the world), a
//! word, and numbers. A step that is a consequence of another stands below it. What to look for:
//!
//! * Start at the end: the failure names a group, an index, a key, a peer or a `seq`; search upwards for that number. A
//!   `seq` begins at `command`, `read` or `change`; a peer at `new-folder` or `open`; an index at `committed` and `applied`.
//! * `astray` is a replica that was made to go wrong, `quarantined` its host's own verdict, `given-up` what follows.
//! * `start`, `crash`, `pause`, `slow-disk`, `disk-stands`, `disk-full`, `log-damaged`, `partition`/`mended`, `heal` are the faults; `campaign`, `leader`,
//!   `no-leader` what they lead to. Between `persist` and `synced` with the same number lies the disk: what is acknowledged in
//!   between is a promise broken.
//! * `send` is followed by the message in words (kind, term, index, entries, commit). A message that has no `turn` of its
//!   receiver after it was lost or is late.
//! * `read-ready` gives the index that a read must wait for; `read-by-lease` reads at once; `read-expired` found its lease gone
//!   and asks again. `read-done` is the moment from which the answer is on its way.
//! * `committed` is the host's word, `applied` the state machine's, with its hash: two nodes with the same group and index and
//!   another hash have parted before.

pub mod apply;
pub mod bug;
pub mod disks;
pub mod drive;
pub mod fault;
mod forgetful;
pub mod ledger;
pub mod node;
pub mod operate;
pub mod plan;
pub mod queue;
pub mod requests;
pub mod settle;
pub mod stage;
pub mod transfer;
pub mod watch;
pub mod work;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use base::ClusterId;
use consensus::{Member, Membership};

pub use bug::Bug;
pub use ledger::Failure;
pub use plan::Plan;

use node::{FOUNDED, Node};
use operate::Operator;
use plan::{MS, NODES_MAX};
use queue::Happening;
use settle::Phase;
use stage::Stage;
use transfer::Transfers;
use watch::Watchers;
use work::Clients;

pub const CLUSTER: ClusterId = ClusterId(0xC1);

/// Steps after which a world that never ends is given up.
const STEPS_MAX: u64 = 20_000_000;

/// How to run a seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Faults for a minute or two instead of some seconds.
    pub long: bool,
    pub bug: Option<Bug>,
    /// Nothing fails but the disks of leaders, which stall.
    pub only_stalls: bool,
    /// Nothing fails but the disks of leaders, which are slow for long.
    pub only_slow_leaders: bool,
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
    pub answered: u64,
    pub unknown: u64,
    pub elections: u64,
    pub crashes: u64,
    pub snapshots: u64,
    pub changes: u64,
    pub transfers: u64,
    pub rebuilt: u64,
    pub quarantined: u64,
    pub events_watched: u64,
    pub watch_connections: u64,
    /// Leaders whose disks stalled for long, and who were seen to lead no more.
    pub stalls_judged: u64,
    /// Leaders whose disks were slow for long, and who were seen to lead no more.
    pub slow_judged: u64,
}

pub struct World {
    stage: Stage,
    nodes: Vec<Node>,
    clients: Clients,
    watchers: Watchers,
    operator: Operator,
    transfers: Transfers,
    phase: Phase,
    stalls_judged: u64,
    slow_judged: u64,
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
        let mut plan = Plan::new(seed, options.long);
        if options.only_stalls {
            plan.faults = plan::Faults::only_stalls();
        }
        if options.only_slow_leaders {
            plan.faults = plan::Faults::only_slow_leaders();
            plan.faulty = disks::SLOW_WORLD;
        }
        if options.bug == Some(Bug::IgnoreStalls) {
            plan.host.disk_stall = std::time::Duration::MAX;
        }
        if options.bug == Some(Bug::IgnoreSlowDisks) {
            plan.host.disk_slow = std::time::Duration::MAX;
        }
        let mut stage = Stage::new(plan, options.bug, options.trace);
        stage.trace.say(0, 0, || format!("{:#?}", stage.plan));
        let mut nodes: Vec<Node> = (0..NODES_MAX).map(|at| Node::new(at, &mut stage)).collect();
        found(&mut stage, &mut nodes);
        let clients = Clients::new(&mut stage);
        let watchers = Watchers::new(&mut stage);
        for (delay, what) in
            [(500 * MS, Happening::Fault), (1_000 * MS, Happening::Operate), (stage.plan.faulty, Happening::Heal)]
        {
            stage.after(delay, what);
        }
        let faults = &stage.plan.faults;
        if faults.stalled_disks || faults.full_disks || faults.slow_leaders {
            stage.after(1_500 * MS, Happening::DiskFault);
        }
        World {
            stage,
            nodes,
            clients,
            watchers,
            operator: Operator::default(),
            transfers: Transfers::default(),
            phase: Phase::default(),
            stalls_judged: 0,
            slow_judged: 0,
        }
    }

    fn run(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].enlisted {
                self.nodes[at].start(&mut self.stage);
            }
        }
        while self.phase != Phase::Rest && self.stage.ledger.failure.is_none() {
            let Some((time, what)) = self.stage.queue.pop() else { break };
            self.stage.now = time;
            self.stage.ledger.at(time);
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
            | Happening::GiveUpFolder(who)
            | Happening::Synced(who)
            | Happening::Apply(who, _)
            | Happening::Flush(who, _)
            | Happening::Dispatch(who, _)
            | Happening::Read { who, .. }
            | Happening::ReadDone { who, .. } => {
                if self.nodes[who.at].who() != *who {
                    return;
                }
                Some(who.at)
            }
            Happening::Arrive { at, .. } | Happening::Request { at, .. } => Some(*at),
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
            Happening::Turn(who) => self.nodes[who.at].turn(stage),
            Happening::Synced(who) => self.nodes[who.at].synced(stage),
            Happening::Apply(who, group) => self.nodes[who.at].apply(stage, group),
            Happening::Flush(who, group) => self.nodes[who.at].flush(stage, group),
            Happening::Dispatch(who, group) => {
                if let Some(replica) = self.nodes[who.at].replica(group) {
                    while replica.tap.hub.dispatch() {}
                }
            }
            Happening::GiveUpFolder(who) => {
                self.nodes[who.at].crash(stage);
                let down = stage.rng.below(300 * MS);
                stage.after(down, Happening::Start { at: who.at });
            }
            Happening::Arrive { at, bytes } => self.nodes[at].receive(stage, bytes),
            Happening::Transfer { number } => self.transfer(number),
            Happening::Request { at, seq, request } => self.nodes[at].request(stage, seq, request),
            Happening::Read { who, seq } => self.nodes[who.at].read(stage, seq),
            Happening::ReadDone { who, seq } => self.nodes[who.at].read_done(stage, seq),
            Happening::Answer { seq, answer } => self.answered(seq, answer),
            Happening::GiveUp { seq } => self.give_up(seq),
            Happening::Client { client } => self.client(client),
            Happening::Watch { watcher } => self.watch(watcher),
            Happening::Fault => self.fault(),
            Happening::DiskFault => self.disk_fault(),
            Happening::JudgeStall { who, group, term } => self.judge_stall(who, group, term),
            Happening::JudgeSlow { who, group, term } => self.judge_slow(who, group, term),
            Happening::End(ending) => self.end_fault(ending),
            Happening::Start { at } => {
                if self.nodes[at].enlisted && self.nodes[at].running.is_none() {
                    self.nodes[at].start(stage);
                }
            }
            Happening::Operate => self.operate(),
            Happening::Heal => {
                self.heal();
                self.stage.after(200 * MS, Happening::Settle);
            }
            Happening::Settle => self.settle(),
        }
    }

    /// What follows from a step for others than the node that took it.
    fn follow_up(&mut self) {
        self.strike_moments();
        for at in std::mem::take(&mut self.stage.fallen) {
            self.hang_up(at);
        }
        for group in std::mem::take(&mut self.stage.unclear) {
            for at in 0..self.nodes.len() {
                let node = &mut self.nodes[at];
                let astray = node.disk.shares.get(&group).map(|share| share.peer);
                if astray.is_some_and(|peer| self.stage.ledger.is_astray(group, peer)) && node.running.is_some() {
                    node.condemned = true;
                    let moment = self.stage.rng.below(500 * MS);
                    self.stage.after(moment, Happening::GiveUpFolder(node.who()));
                }
            }
        }
        for (at, group) in std::mem::take(&mut self.stage.published) {
            if let Some(replica) = self.nodes[at].replica(group) {
                if self.stage.ledger.is_astray(group, replica.peer) {
                    // It stays in the tap: if what was skipped turns out to have been nothing, it was the truth.
                    continue;
                }
                let tap = replica.tap.clone();
                self.watchers.listen(&mut self.stage, group, &tap);
            }
        }
        for (number, transfer) in std::mem::take(&mut self.stage.outgoing) {
            self.transfers.begin(number, transfer);
        }
    }

    fn report(&self) -> Report {
        let stage = &self.stage;
        let counts = Counts {
            steps: stage.trace.steps(),
            lasted_ms: stage.now / MS,
            answered: self.clients.answered,
            unknown: self.clients.unknown,
            elections: stage.ledger.elections(),
            crashes: self.nodes.iter().map(|node| node.crashes).sum(),
            snapshots: self.nodes.iter().map(|node| node.installs).sum(),
            changes: self.operator.changes_done,
            transfers: self.operator.transfers_done,
            rebuilt: self.operator.rebuilt,
            quarantined: self.nodes.iter().map(|node| node.quarantines).sum(),
            events_watched: self.watchers.events,
            watch_connections: self.watchers.reconnects,
            stalls_judged: self.stalls_judged,
            slow_judged: self.slow_judged,
        };
        Report { failure: stage.ledger.failure.clone(), trace_hash: stage.trace.hash(), counts }
    }
}

/// The founders agree on who they are, and write it down.
fn found(stage: &mut Stage, nodes: &mut [Node]) {
    let founders = &mut nodes[..stage.plan.founders];
    founders.iter_mut().for_each(|node| node.renew(stage));
    let mut memberships = BTreeMap::new();
    for group in stage.groups() {
        let members = founders.iter().map(|node| Member {
            node: node.id,
            peer: node.disk.shares[&group].peer,
            name: format!("founder-{}", node.id),
            ..Member::default()
        });
        let membership = Membership::founding(CLUSTER, members.collect());
        stage.ledger.founded(group, FOUNDED.index, membership.clone());
        memberships.insert(group, membership);
    }
    founders.iter_mut().for_each(|node| node.found(stage, &memberships));
}
