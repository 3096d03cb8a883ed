//! All groups of a node, and the turn that drives them.
//!
//! A turn costs what the groups cost that it has to do with: those with an input, and those whose tick is due. A group that
//! sleeps (`sleep`) is not among them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, NodeId, Time};
use storage::{GroupWrite, LogBatch, LogStore};

use crate::api::{CreateGroup, GroupStatus, HostConfig, Input, LeaderLease, Output, Refusal};
use crate::group::Group;
use crate::liveness::{Liveness, News};
use crate::log::LogReader;
use crate::machine::Mark;
use crate::membership::Membership;
use crate::proposals::What;
use crate::ready::{Effects, Held};
use crate::totals::Totals;
use crate::wire::{Body, Message};

/// A persist under way.
struct Persisting {
    number: u64,
    since: Time,
    held: Vec<Held>,
}

/// Boxed: a map keeps room for more than it has.
type Groups = BTreeMap<GroupId, Box<Hosted>>;

/// A group, and what the host remembers of it.
struct Hosted {
    group: Group,
    /// Where it stands in the queue of ticks.
    tick: Option<Time>,
    /// The nodes that have a peer in it.
    nodes: Vec<NodeId>,
}

pub struct Host {
    config: HostConfig,
    store: Arc<dyn LogStore>,
    groups: Groups,
    /// When each group that is awake is to tick next.
    ticks: BTreeSet<(Time, GroupId)>,
    liveness: Liveness,
    stalled: bool,
    persists: VecDeque<Persisting>,
    persist_number: u64,
    generation: u64,
    pub(crate) totals: Arc<Totals>,
    /// Where shedding goes on.
    shed_from: GroupId,
    now: Time,
    /// By the last turn.
    touched: BTreeSet<GroupId>,
}

impl Host {
    pub fn new(config: HostConfig, store: Arc<dyn LogStore>, now: Time) -> Host {
        let life = base::rng::mix(config.seed ^ config.node.0 ^ now.as_nanos());
        Host {
            config,
            store,
            groups: BTreeMap::new(),
            ticks: BTreeSet::new(),
            liveness: Liveness::new(config.node, life, now),
            stalled: false,
            persists: VecDeque::new(),
            persist_number: 0,
            generation: 0,
            totals: Arc::default(),
            shed_from: GroupId::default(),
            now,
            touched: BTreeSet::new(),
        }
    }

    /// Why a state machine at `mark` does not go with the log in the store; to be asked before
    /// [`Input::Create`].
    pub fn mismatch(store: &dyn LogStore, group: GroupId, mark: Mark) -> Option<String> {
        Group::mismatch(group, mark, store)
    }

    /// Drains everything that waits, steps every group that was touched, and gathers what all of them must make
    /// durable into one [`Output::Persist`].
    pub fn turn(&mut self, now: Time, inputs: Vec<Input>) -> Vec<Output> {
        self.now = self.now.max(now);
        let mut effects = Effects::default();
        let mut touched = BTreeSet::new();
        self.stall(&inputs, &mut effects, &mut touched);
        self.tick(&mut effects, &mut touched);
        // The disk's answers come first: whatever else happens in this turn may rest on them, and what it holds back must
        // not wait for a persist that is done already.
        for input in &inputs {
            if let Input::Persisted { number } = input {
                self.persisted(*number, &mut effects, &mut touched);
            }
        }
        for input in inputs {
            self.input(input, &mut effects, &mut touched);
        }
        for (id, last, since) in std::mem::take(&mut effects.slow) {
            if let Some(hosted) = self.groups.get_mut(&id) {
                hosted.group.wrote_slowly(last, since, &mut effects);
            }
        }
        self.look_around(&mut effects, &mut touched);
        for id in &touched {
            if let Some(hosted) = self.groups.get_mut(id) {
                hosted.group.finish_turn(&mut effects);
                hosted.settle(*id, &mut self.ticks, &mut self.liveness, self.now);
            }
        }
        self.touched = touched;
        self.persist(&mut effects);
        if self.totals.cached_bytes() > self.config.cache_bytes_max_all {
            self.shed();
        }
        effects.out
    }

    /// Has groups let go of entries in memory, in turn, until half of what all may have is free.
    fn shed(&mut self) {
        let from = self.shed_from;
        for (id, hosted) in self.groups.range(from..).chain(self.groups.range(..from)) {
            if self.totals.cached_bytes() <= self.config.cache_bytes_max_all / 2 {
                break;
            }
            self.shed_from = GroupId(id.0.wrapping_add(1));
            hosted.group.log.shed();
        }
    }

    /// The groups that the last turn had to do with: of the others, status and lease are what they were.
    pub fn touched(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.touched.iter().copied()
    }

    /// When a turn is due even if nothing happens.
    pub fn next_turn(&self) -> Time {
        let tick = self.ticks.first().map_or(self.now + self.config.tick_interval, |(at, _)| *at);
        let look = if self.config.sleep_after.is_some() { self.liveness.due() } else { Time::MAX };
        tick.min(look)
    }

    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
    }

    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        self.groups.get(&group).map(|hosted| hosted.group.status())
    }

    pub fn membership(&self, group: GroupId) -> Option<&Arc<Membership>> {
        self.groups.get(&group).map(|hosted| &hosted.group.membership)
    }

    /// What lets reads be served without asking the host; to be published after each turn, before its outputs are
    /// carried out.
    pub fn lease(&self, group: GroupId) -> LeaderLease {
        self.groups.get(&group).map(|hosted| hosted.group.lease()).unwrap_or_default()
    }

    /// For the group's applier.
    pub fn log_reader(&self, group: GroupId) -> Option<Arc<LogReader>> {
        self.groups.get(&group).map(|hosted| hosted.group.log.clone())
    }

    /// Tells all groups of a disk that stands still, or does no more.
    fn stall(&mut self, inputs: &[Input], effects: &mut Effects, touched: &mut BTreeSet<GroupId>) {
        let stalled = self.stalled(inputs);
        if stalled.is_none() && !self.stalled {
            return;
        }
        self.stalled = stalled.is_some();
        let all: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in all {
            if let Some(group) = touch(&mut self.groups, touched, id, self.now) {
                group.stall(stalled, effects);
            }
        }
    }

    fn tick(&mut self, effects: &mut Effects, touched: &mut BTreeSet<GroupId>) {
        while let Some((_, id)) = self.ticks.first().copied().filter(|(at, _)| *at <= self.now) {
            self.ticks.pop_first();
            let Some(hosted) = self.groups.get_mut(&id) else { continue };
            hosted.tick = None;
            hosted.group.now = self.now;
            hosted.group.tick(effects);
            hosted.group.try_sleep(&self.liveness, effects);
            touched.insert(id);
        }
    }

    /// Who is there, and whom that wakes.
    fn look_around(&mut self, effects: &mut Effects, touched: &mut BTreeSet<GroupId>) {
        if self.config.sleep_after.is_none() {
            return;
        }
        for node in self.liveness.look(self.now, &mut effects.out) {
            self.heard_of(node, News::Gone, touched);
        }
    }

    fn heard_of(&mut self, node: NodeId, news: News, touched: &mut BTreeSet<GroupId>) {
        for id in self.liveness.groups_on(node) {
            let Some(group) = self.groups.get_mut(&id).map(|hosted| &mut hosted.group) else { continue };
            group.now = self.now;
            if group.learn_of(node, news, &self.liveness) {
                touched.insert(id);
            }
        }
    }

    /// How long the disk has been at the oldest persist, if that is too long. What has come back by now counts.
    fn stalled(&self, inputs: &[Input]) -> Option<Duration> {
        let done = inputs.iter().filter_map(|input| match input {
            Input::Persisted { number } => Some(*number),
            _ => None,
        });
        let done = done.max().unwrap_or(0);
        let oldest = self.persists.iter().find(|persist| persist.number > done)?;
        let stalled = self.now.since(oldest.since);
        (stalled >= self.config.disk_stall).then_some(stalled)
    }

    fn input(&mut self, input: Input, effects: &mut Effects, touched: &mut BTreeSet<GroupId>) {
        match input {
            Input::Persisted { .. } => {}
            Input::Create(create) => {
                touched.insert(create.group);
                self.create(&create, effects);
            }
            Input::Campaign { group } => {
                if let Some(group) = touch(&mut self.groups, touched, group, self.now) {
                    group.campaign();
                }
            }
            Input::Destroy { group } => {
                if let Some(mut gone) = self.groups.remove(&group) {
                    gone.group.close(effects);
                    if let Some(at) = gone.tick {
                        self.ticks.remove(&(at, group));
                    }
                    self.liveness.place(group, &gone.nodes, &[], self.now);
                }
                self.totals.set_groups(self.groups.len());
                effects.writes.push(GroupWrite { group, destroy: true, ..GroupWrite::default() });
            }
            Input::Hold { group, held } => {
                if let Some(found) = self.groups.get_mut(&group) {
                    found.group.paused = held;
                }
            }
            Input::HoldChanges { group, held } => {
                if let Some(found) = self.groups.get_mut(&group) {
                    found.group.changes_held = held;
                }
            }
            Input::Vouch { group, index, term } => {
                if let Some(found) = touch(&mut self.groups, touched, group, self.now) {
                    found.vouch(index, term, effects);
                }
            }
            Input::Unreachable { node } => {
                self.liveness.broke(node);
                for id in self.liveness.groups_on(node) {
                    if let Some(hosted) = self.groups.get_mut(&id) {
                        hosted.group.unreachable(node);
                    }
                }
            }
            Input::Unsent(message) => {
                if let Some(group) = touch(&mut self.groups, touched, message.group, self.now) {
                    group.unsent(message, effects);
                }
            }
            Input::Message(Message { from_node, body: Body::Alive { life }, .. }) => {
                if let Some(news) = self.liveness.heard(from_node, life, self.now) {
                    self.heard_of(from_node, news, touched);
                }
            }
            Input::Message(message) => {
                if let Some(group) = self.groups.get_mut(&message.group).map(|hosted| &mut hosted.group) {
                    group.now = self.now;
                    group.hear_candidate(&message, &self.liveness);
                }
                if let Some(group) = touch(&mut self.groups, touched, message.group, self.now) {
                    group.message(message, &self.liveness, effects);
                }
            }
            Input::Propose { group, seq, command, deadline } => match touch(&mut self.groups, touched, group, self.now)
            {
                Some(found) => found.propose(seq, What::Command(command), deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Change { group, seq, change, deadline } => match touch(&mut self.groups, touched, group, self.now) {
                Some(found) => found.propose(seq, What::Change(change), deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Read { group, seq, deadline } => match touch(&mut self.groups, touched, group, self.now) {
                Some(found) => found.read(seq, deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Transfer { group, seq, to, deadline } => match touch(&mut self.groups, touched, group, self.now) {
                Some(found) => found.transfer(seq, to, deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Applied { group, index, hashes } => {
                if let Some(found) = touch(&mut self.groups, touched, group, self.now) {
                    found.applied(index, hashes, effects);
                }
            }
            Input::Durable { group, index } => {
                if let Some(found) = self.groups.get_mut(&group) {
                    found.group.durable(index);
                }
            }
            Input::SnapshotBuilt { group, to, snapshot, mark, membership } => {
                if let Some(found) = touch(&mut self.groups, touched, group, self.now) {
                    found.snapshot_built(to, snapshot, mark, &membership);
                }
            }
            Input::SnapshotSent { group, to, ok } => {
                if let Some(found) = touch(&mut self.groups, touched, group, self.now) {
                    found.snapshot_sent(to, ok);
                }
            }
            Input::SnapshotReceived { message, staged } => {
                match touch(&mut self.groups, touched, message.group, self.now) {
                    Some(found) => found.snapshot_received(message, staged, &self.liveness, effects),
                    None => effects.out.push(Output::DiscardSnapshot { staged }),
                }
            }
            Input::Installed { group, mark, membership } => {
                if let Some(found) = touch(&mut self.groups, touched, group, self.now) {
                    found.installed(mark, membership, effects);
                }
            }
        }
    }

    fn create(&mut self, create: &CreateGroup, effects: &mut Effects) {
        assert!(!self.groups.contains_key(&create.group), "a group is created once");
        self.generation += 1;
        let group = Group::open(
            create,
            self.generation,
            self.config,
            self.store.clone(),
            self.totals.clone(),
            self.now,
            effects,
        );
        self.groups.insert(create.group, Box::new(Hosted { group, tick: None, nodes: Vec::new() }));
        self.totals.set_groups(self.groups.len());
    }

    fn persisted(&mut self, number: u64, effects: &mut Effects, touched: &mut BTreeSet<GroupId>) {
        while self.persists.front().is_some_and(|persist| persist.number <= number) {
            let Persisting { held, since, .. } = self.persists.pop_front().expect("just seen");
            let slow = self.now.since(since) >= self.config.disk_slow;
            for held in held {
                let group = touch(&mut self.groups, touched, held.group, self.now);
                if let Some(group) = group.filter(|group| group.generation == held.generation) {
                    if let Some((last, _)) = held.last
                        && slow
                    {
                        effects.slow.push((held.group, last, since));
                    }
                    group.persisted(held, effects);
                }
            }
        }
    }

    fn persist(&mut self, effects: &mut Effects) {
        let held = std::mem::take(&mut effects.held);
        if effects.writes.is_empty() {
            // These wait for a persist that is under way.
            if let Some(last) = self.persists.back_mut() {
                last.held.extend(held);
            } else {
                assert!(held.is_empty(), "nothing is held when nothing is being persisted");
            }
            return;
        }
        self.persist_number += 1;
        self.persists.push_back(Persisting { number: self.persist_number, since: self.now, held });
        let batch = LogBatch { groups: std::mem::take(&mut effects.writes) };
        effects.out.push(Output::Persist { number: self.persist_number, batch });
    }
}

impl Hosted {
    /// After a turn that had to do with it: when it is to tick next, and where it lies.
    fn settle(&mut self, id: GroupId, ticks: &mut BTreeSet<(Time, GroupId)>, liveness: &mut Liveness, now: Time) {
        let next = (!self.group.is_asleep()).then(|| self.group.next_tick());
        if next != self.tick {
            if let Some(at) = self.tick {
                ticks.remove(&(at, id));
            }
            ticks.extend(next.map(|at| (at, id)));
            self.tick = next;
        }
        if std::mem::take(&mut self.group.moved) {
            let nodes: Vec<NodeId> = self.group.membership.members.keys().copied().collect();
            liveness.place(id, &self.nodes, &nodes, now);
            self.nodes = nodes;
        }
    }
}

/// A group that an input is for. It is awake from then on.
fn touch<'a>(groups: &'a mut Groups, touched: &mut BTreeSet<GroupId>, id: GroupId, now: Time) -> Option<&'a mut Group> {
    let group = &mut groups.get_mut(&id)?.group;
    touched.insert(id);
    group.now = now;
    group.wake();
    Some(group)
}
