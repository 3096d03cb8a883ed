//! All groups of a node, and the turn that drives them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, Time};
use storage::{GroupWrite, LogBatch, LogStore};

use crate::api::{CreateGroup, GroupStatus, HostConfig, Input, LeaderLease, Output, Refusal};
use crate::group::Group;
use crate::log::LogReader;
use crate::machine::Mark;
use crate::membership::Membership;
use crate::proposals::What;
use crate::ready::{Effects, Held};
use crate::totals::Totals;

/// A persist under way.
struct Persisting {
    number: u64,
    since: Time,
    held: Vec<Held>,
}

pub struct Host {
    config: HostConfig,
    store: Arc<dyn LogStore>,
    groups: BTreeMap<GroupId, Group>,
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
        Host {
            config,
            store,
            groups: BTreeMap::new(),
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
        let stalled = self.stalled(&inputs);
        for (id, group) in &mut self.groups {
            group.now = self.now;
            group.stall(stalled, &mut effects);
            let due = group.tick_due(self.now);
            if due {
                group.tick(self.now, &mut effects);
            }
            if due || stalled.is_some() {
                touched.insert(*id);
            }
        }
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
        for id in &touched {
            if let Some(group) = self.groups.get_mut(id) {
                group.finish_turn(&mut effects);
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
        for (id, group) in self.groups.range(from..).chain(self.groups.range(..from)) {
            if self.totals.cached_bytes() <= self.config.cache_bytes_max_all / 2 {
                break;
            }
            self.shed_from = GroupId(id.0.wrapping_add(1));
            group.log.shed();
        }
    }

    /// The groups that the last turn had to do with: of the others, status and lease are what they were.
    pub fn touched(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.touched.iter().copied()
    }

    /// When a turn is due even if nothing happens.
    pub fn next_turn(&self) -> Time {
        self.groups.values().map(Group::next_tick).min().unwrap_or(self.now + self.config.tick_interval)
    }

    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.groups.keys().copied()
    }

    pub fn status(&self, group: GroupId) -> Option<GroupStatus> {
        self.groups.get(&group).map(Group::status)
    }

    pub fn membership(&self, group: GroupId) -> Option<&Membership> {
        self.groups.get(&group).map(|group| &group.membership)
    }

    /// What lets reads be served without asking the host; to be published after each turn, before its outputs are
    /// carried out.
    pub fn lease(&self, group: GroupId) -> LeaderLease {
        self.groups.get(&group).map(Group::lease).unwrap_or_default()
    }

    /// For the group's applier.
    pub fn log_reader(&self, group: GroupId) -> Option<Arc<LogReader>> {
        self.groups.get(&group).map(|group| group.log.clone())
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
                if let Some(group) = touch(&mut self.groups, touched, group) {
                    group.campaign();
                }
            }
            Input::Destroy { group } => {
                if let Some(mut gone) = self.groups.remove(&group) {
                    gone.close(effects);
                }
                self.totals.set_groups(self.groups.len());
                effects.writes.push(GroupWrite { group, destroy: true, ..GroupWrite::default() });
            }
            Input::Hold { group, held } => {
                if let Some(found) = self.groups.get_mut(&group) {
                    found.paused = held;
                }
            }
            Input::Unreachable { node } => self.groups.values_mut().for_each(|group| group.unreachable(node)),
            Input::Unsent(message) => {
                if let Some(group) = touch(&mut self.groups, touched, message.group) {
                    group.unsent(message, effects);
                }
            }
            Input::Message(message) => {
                if let Some(group) = touch(&mut self.groups, touched, message.group) {
                    group.message(message, effects);
                }
            }
            Input::Propose { group, seq, command, deadline } => match touch(&mut self.groups, touched, group) {
                Some(found) => found.propose(seq, What::Command(command), deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Change { group, seq, change, deadline } => match touch(&mut self.groups, touched, group) {
                Some(found) => found.propose(seq, What::Change(change), deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Read { group, seq, deadline } => match touch(&mut self.groups, touched, group) {
                Some(found) => found.read(seq, deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Transfer { group, seq, to, deadline } => match touch(&mut self.groups, touched, group) {
                Some(found) => found.transfer(seq, to, deadline, effects),
                None => effects.refuse(group, vec![seq], Refusal::NoGroup),
            },
            Input::Applied { group, index, hashes } => {
                if let Some(found) = touch(&mut self.groups, touched, group) {
                    found.applied(index, hashes, effects);
                }
            }
            Input::Durable { group, index } => {
                if let Some(found) = self.groups.get_mut(&group) {
                    found.durable(index);
                }
            }
            Input::SnapshotBuilt { group, to, snapshot, mark, membership } => {
                if let Some(found) = touch(&mut self.groups, touched, group) {
                    found.snapshot_built(to, snapshot, mark, &membership);
                }
            }
            Input::SnapshotSent { group, to, ok } => {
                if let Some(found) = touch(&mut self.groups, touched, group) {
                    found.snapshot_sent(to, ok);
                }
            }
            Input::SnapshotReceived { message, staged } => match touch(&mut self.groups, touched, message.group) {
                Some(found) => found.snapshot_received(message, staged, effects),
                None => effects.out.push(Output::DiscardSnapshot { staged }),
            },
            Input::Installed { group, mark, membership } => {
                if let Some(found) = touch(&mut self.groups, touched, group) {
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
        self.groups.insert(create.group, group);
        self.totals.set_groups(self.groups.len());
    }

    fn persisted(&mut self, number: u64, effects: &mut Effects, touched: &mut BTreeSet<GroupId>) {
        while self.persists.front().is_some_and(|persist| persist.number <= number) {
            let Persisting { held, .. } = self.persists.pop_front().expect("just seen");
            for held in held {
                let group = touch(&mut self.groups, touched, held.group);
                if let Some(group) = group.filter(|group| group.generation == held.generation) {
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

fn touch<'a>(
    groups: &'a mut BTreeMap<GroupId, Group>,
    touched: &mut BTreeSet<GroupId>,
    id: GroupId,
) -> Option<&'a mut Group> {
    let group = groups.get_mut(&id)?;
    touched.insert(id);
    Some(group)
}
