//! Several members in one small deterministic world: a queue of messages with delays, links that can be cut, processes
//! that die without a word.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, NodeId, PeerId, Rng, Time};
use bytes::Bytes;

use crate::{About, Change, Event, Gossip, Identity, Input, MEMBERS_MAX, Output, Role, Settings, State};

const CLUSTER: ClusterId = ClusterId(0xC1);

struct World {
    now: Time,
    rng: Rng,
    nodes: BTreeMap<u8, Gossip>,
    /// By the time of their arrival: from, to, bytes.
    wire: BTreeMap<(Time, u64), (u8, u8, Bytes)>,
    sent: u64,
    /// Pairs, in both directions, that do not reach each other.
    cut: Vec<(u8, u8)>,
    events: Vec<(Time, u8, Event)>,
    /// Whether a dead process's address refuses connections, as its kernel does.
    kernel_answers: bool,
    loss_percent: u64,
}

fn address(node: u8) -> Arc<str> {
    format!("127.0.0.{node}:2381").into()
}

fn number(address: &str) -> u8 {
    address.strip_prefix("127.0.0.").unwrap().split(':').next().unwrap().parse().unwrap()
}

fn about(node: u8, cluster: ClusterId) -> About {
    let raft_address = format!("127.0.0.{node}:2380");
    About { cluster, node: NodeId(node.into()), role: Role::Follower, raft_address, ..About::default() }
}

impl World {
    fn new(seed: u64) -> World {
        World {
            // Some years after 1970, where generations begin.
            now: Time::from_millis(1 << 37),
            rng: Rng::new(seed),
            nodes: BTreeMap::new(),
            wire: BTreeMap::new(),
            sent: 0,
            cut: Vec::new(),
            events: Vec::new(),
            kernel_answers: false,
            loss_percent: 0,
        }
    }

    /// `count` members that know each other, all joined through the first.
    fn of(count: u8, seed: u64) -> World {
        let mut world = World::new(seed);
        (1..=count).for_each(|node| world.start(node, CLUSTER));
        (2..=count).for_each(|node| world.meet(node, 1));
        world.run(Duration::from_secs(5));
        for node in 1..=count {
            let alive = (1..=count).filter(|other| *other != node && world.state(node, *other) == Some(State::Alive));
            assert_eq!(alive.count(), usize::from(count) - 1, "node {node} of seed {seed}");
        }
        world.events.clear();
        world
    }

    fn start(&mut self, node: u8, cluster: ClusterId) {
        let generation = self.now.as_millis();
        self.start_at(node, cluster, generation);
    }

    fn start_at(&mut self, node: u8, cluster: ClusterId, generation: u64) {
        let me = Identity::new(&address(node), PeerId(node.into()), generation, about(node, cluster)).unwrap();
        let seed = self.rng.next_u64();
        self.nodes.insert(node, Gossip::new(me, Settings::default(), seed, self.now));
    }

    /// What a connection to an address from the configuration brings.
    fn meet(&mut self, node: u8, at: u8) {
        let met = self.nodes[&at].me().clone();
        self.input(node, vec![Input::Met(met)]);
    }

    fn input(&mut self, node: u8, inputs: Vec<Input>) {
        let Some(gossip) = self.nodes.get_mut(&node) else { return };
        for output in gossip.turn(self.now, inputs) {
            match output {
                Output::Event(event) => self.events.push((self.now, node, event)),
                Output::Send { to, bytes } => {
                    let to = number(&to);
                    if self.cut.contains(&(node, to)) || self.rng.percent(self.loss_percent) {
                        continue;
                    }
                    let delay = Duration::from_micros(self.rng.between(100, 5_000));
                    self.wire.insert((self.now + delay, self.sent), (node, to, bytes));
                    self.sent += 1;
                }
            }
        }
    }

    fn run(&mut self, span: Duration) {
        let end = self.now + span;
        loop {
            let timers = self.nodes.iter().filter_map(|(node, gossip)| Some((gossip.next_due()?, *node)));
            let timer = timers.min();
            let message = self.wire.first_key_value().map(|(key, _)| *key);
            match (timer, message) {
                (Some((due, node)), message) if message.is_none_or(|(at, _)| due < at) && due <= end => {
                    self.now = self.now.max(due);
                    self.input(node, Vec::new());
                }
                (_, Some(key)) if key.0 <= end => {
                    self.now = self.now.max(key.0);
                    let (from, to, bytes) = self.wire.remove(&key).unwrap();
                    if self.nodes.contains_key(&to) {
                        self.input(to, vec![Input::Message(bytes)]);
                    } else if self.kernel_answers {
                        self.input(from, vec![Input::Refused { address: address(to) }]);
                    }
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn state(&self, node: u8, other: u8) -> Option<State> {
        let address = address(other);
        self.nodes[&node].members().find(|member| member.identity.address == address).map(|member| member.state)
    }

    fn assert_states(&self, nodes: &[u8], other: u8, state: State) {
        for node in nodes {
            assert_eq!(self.state(*node, other), Some(state), "node {other} in the eyes of node {node}");
        }
    }

    /// When a node first saw a change of another, after this.
    fn seen(&self, node: u8, other: u8, change: Change) -> Option<Time> {
        let address = address(other);
        let is = |(_, by, event): &&(Time, u8, Event)| {
            *by == node && event.change == change && event.member.identity.address == address
        };
        self.events.iter().find(is).map(|(at, _, _)| *at)
    }

    fn cut(&mut self, left: &[u8], right: &[u8]) {
        for (one, other) in left.iter().flat_map(|one| right.iter().map(move |other| (*one, *other))) {
            self.cut.extend([(one, other), (other, one)]);
        }
    }
}

#[test]
fn members_find_each_other_through_one() {
    for seed in 0..20 {
        World::of(7, seed);
    }
}

#[test]
fn a_killed_member_is_suspect_within_two_seconds_and_then_down() {
    let mut worst = Duration::ZERO;
    for seed in 0..200 {
        let mut world = World::of(3, seed);
        let phase = Duration::from_micros(world.rng.below(1_000_000));
        world.run(phase);
        world.nodes.remove(&3);
        let killed = world.now;
        world.run(Duration::from_secs(10));
        for node in [1, 2] {
            let suspect = world.seen(node, 3, Change::Suspect).unwrap().since(killed);
            worst = worst.max(suspect);
            assert!(suspect <= Duration::from_secs(2), "seed {seed}: {suspect:?}");
        }
        world.assert_states(&[1, 2], 3, State::Down);
        assert!(
            world.events.iter().all(|(_, _, event)| event.member.identity.address == address(3)),
            "{:?}",
            world.events
        );
    }
    assert!(worst > Duration::from_millis(400), "a member is probed in turn, not at once: {worst:?}");
}

#[test]
fn where_nobody_listens_a_member_is_suspect_at_once() {
    for count in [2, 5, 9] {
        let mut world = World::of(count, 3);
        world.kernel_answers = true;
        world.nodes.remove(&2);
        let killed = world.now;
        world.run(Duration::from_secs(6));
        let first = (1..=count).filter(|node| *node != 2).map(|node| world.seen(node, 2, Change::Suspect).unwrap());
        let last = first.max().unwrap().since(killed);
        assert!(last <= Duration::from_secs(1), "{count} members: {last:?}");
        world.assert_states(&[1], 2, State::Down);
    }
}

#[test]
fn a_restarted_member_is_another_process() {
    let mut world = World::of(3, 4);
    world.nodes.remove(&3);
    world.run(Duration::from_secs(1));
    world.start(3, CLUSTER);
    world.meet(3, 1);
    world.run(Duration::from_millis(600));
    world.assert_states(&[1, 2], 3, State::Alive);
    assert!(world.seen(1, 3, Change::Up).is_some());
    // Also after it was down for long, and in the place of its older self.
    world.nodes.remove(&3);
    world.run(Duration::from_secs(60));
    world.assert_states(&[1, 2], 3, State::Down);
    world.start(3, CLUSTER);
    world.meet(3, 2);
    world.run(Duration::from_secs(1));
    world.assert_states(&[1, 2], 3, State::Alive);
    assert_eq!(world.nodes[&1].members().count(), 2);
}

#[test]
fn a_clock_that_was_ahead_does_not_keep_a_member_out() {
    let mut world = World::of(3, 5);
    world.nodes.remove(&3);
    world.run(Duration::from_secs(10));
    // 2^36 ms: two years ago.
    let past = world.now.as_millis().saturating_sub(1 << 36);
    world.start_at(3, CLUSTER, past);
    world.meet(3, 1);
    world.run(Duration::from_secs(5));
    world.assert_states(&[1, 2], 3, State::Alive);
    world.assert_states(&[3], 1, State::Alive);
}

#[test]
fn who_stops_in_good_order_has_left() {
    let mut world = World::of(3, 6);
    world.input(3, vec![Input::Leave]);
    world.run(Duration::from_millis(50));
    world.nodes.remove(&3);
    world.run(Duration::from_secs(10));
    world.assert_states(&[1, 2], 3, State::Left);
    assert_eq!(world.seen(1, 3, Change::Suspect), None);
}

#[test]
fn halves_of_a_healed_partition_find_each_other() {
    for (left, right) in [(&[1][..], &[2][..]), (&[1, 2], &[3]), (&[1, 2], &[3, 4]), (&[1], &[2, 3, 4, 5])] {
        let count = (left.len() + right.len()) as u8;
        let mut world = World::of(count, 7);
        world.cut(left, right);
        world.run(Duration::from_secs(30));
        for node in left {
            right.iter().for_each(|other| world.assert_states(&[*node], *other, State::Down));
        }
        world.cut.clear();
        world.run(Duration::from_secs(8));
        for node in 1..=count {
            (1..=count)
                .filter(|other| *other != node)
                .for_each(|other| world.assert_states(&[node], other, State::Alive));
        }
    }
}

#[test]
fn a_member_that_one_cannot_reach_is_seen_through_another() {
    let mut world = World::of(3, 8);
    world.cut(&[1], &[2]);
    world.run(Duration::from_secs(20));
    world.assert_states(&[1], 2, State::Alive);
    world.assert_states(&[2], 1, State::Alive);
}

#[test]
fn lost_messages_alone_bring_nobody_down() {
    let mut world = World::of(5, 9);
    world.loss_percent = 10;
    world.run(Duration::from_secs(120));
    let down = world.events.iter().filter(|(_, _, event)| event.change == Change::Down).count();
    assert_eq!(down, 0, "{:?}", world.events);
}

#[test]
fn members_of_another_cluster_are_not_taken_in() {
    let mut world = World::of(3, 10);
    world.start(9, ClusterId(0xBAD));
    world.start(8, ClusterId(0));
    world.meet(9, 1);
    world.meet(1, 9);
    // Who belongs to no cluster yet talks to both, and carries nothing from one to the other.
    world.meet(8, 1);
    world.meet(8, 9);
    world.run(Duration::from_secs(5));
    world.assert_states(&[1, 2, 3], 8, State::Alive);
    for node in [1, 2, 3] {
        assert_eq!(world.state(node, 9), None);
        assert_eq!(world.state(9, node), None);
    }
    assert!(
        world.nodes[&1].stats().other_cluster + world.nodes[&9].stats().other_cluster > 0
            || world.state(8, 9).is_some()
    );
    // Once it has joined, it forgets the others, and is known under what it says of itself.
    world.input(8, vec![Input::Describe(about(8, CLUSTER))]);
    world.run(Duration::from_secs(2));
    assert_eq!(world.state(8, 9), None);
    world.assert_states(&[8], 1, State::Alive);
    let seen = world.nodes[&1].members().find(|member| member.identity.address == address(8)).unwrap();
    assert_eq!(seen.identity.about.cluster, CLUSTER);
}

#[test]
fn what_a_member_says_of_itself_reaches_all_without_a_suspicion() {
    let mut world = World::of(3, 11);
    for role in [Role::Leader, Role::Follower, Role::Learner] {
        world.input(2, vec![Input::Describe(About { role, ..about(2, CLUSTER) })]);
        world.run(Duration::from_millis(100));
        for node in [1, 3] {
            let seen = world.nodes[&node].members().find(|member| member.identity.address == address(2)).unwrap();
            assert_eq!((seen.identity.about.role, seen.state), (role, State::Alive));
        }
    }
    world.run(Duration::from_secs(10));
    let only = |(_, _, event): &(Time, u8, Event)| event.change == Change::Described;
    assert!(world.events.iter().all(only), "{:?}", world.events);
}

/// What members say of themselves crosses: each is told of the others' news at an address that has news itself.
#[test]
fn members_that_found_a_cluster_at_the_same_time_suspect_nobody() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        (1..=3).for_each(|node| world.start(node, ClusterId::default()));
        (2..=3).for_each(|node| world.meet(node, 1));
        world.run(Duration::from_secs(5));
        world.events.clear();
        for role in [Role::Follower, Role::Leader] {
            let mut nodes = [1, 2, 3];
            nodes.sort_unstable_by_key(|node| base::rng::mix(seed ^ node ^ role as u64));
            for node in nodes {
                world.input(node as u8, vec![Input::Describe(About { role, ..about(node as u8, CLUSTER) })]);
                let apart = world.rng.below(3_000);
                world.run(Duration::from_micros(apart));
            }
            let apart = world.rng.below(100);
            world.run(Duration::from_millis(apart));
        }
        world.run(Duration::from_secs(6));
        let bad: Vec<_> = world.events.iter().filter(|(.., event)| event.change != Change::Described).collect();
        assert!(bad.iter().all(|(.., event)| event.change == Change::Up), "seed {seed}: {bad:?}");
        for (node, other) in [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)] {
            assert_eq!(world.state(node, other), Some(State::Alive), "seed {seed}");
        }
    }
}

#[test]
fn who_was_held_up_blames_nobody() {
    for seed in 0..50 {
        let mut world = World::of(3, seed);
        // Node 1 sleeps when it has just asked: nothing of it happens, and what is sent to it waits in its sockets.
        const PING: u8 = 1;
        while !world.wire.values().any(|(from, _, bytes)| *from == 1 && bytes[1] == PING) {
            world.run(Duration::from_micros(50));
        }
        let sleep = Duration::from_millis(300 + world.rng.below(1_500));
        let sleeper = world.nodes.remove(&1).unwrap();
        let mut waiting = Vec::new();
        let end = world.now + sleep;
        while world.now < end {
            world.run(Duration::from_millis(1));
            let due: Vec<_> = world.wire.extract_if(.., |_, (_, to, _)| *to == 1).collect();
            waiting.extend(due.into_iter().map(|(_, (_, _, bytes))| bytes));
        }
        world.nodes.insert(1, sleeper);
        // It is woken by its timer, and reads only then.
        world.input(1, Vec::new());
        world.run(Duration::from_millis(20));
        world.input(1, waiting.into_iter().map(Input::Message).collect());
        world.run(Duration::from_secs(5));
        for other in [2, 3] {
            assert_eq!(world.seen(1, other, Change::Suspect), None, "seed {seed}, {sleep:?}");
            world.assert_states(&[other], 1, State::Alive);
        }
    }
}

#[test]
fn members_are_bounded() {
    let mut world = World::of(2, 12);
    let me = world.nodes[&1].me().clone();
    let mut messages = Vec::new();
    for stranger in 0..400u32 {
        let host = format!("10.0.{}.{}:2381", stranger / 250, stranger % 250);
        let identity = Identity::new(&host, PeerId(u64::from(stranger) + 100), 1, about(0, CLUSTER)).unwrap();
        let mut other = Gossip::new(identity, Settings::default(), 1, world.now);
        let outputs = other.turn(world.now, vec![Input::Met(me.clone())]);
        let Some(Output::Send { bytes, .. }) = outputs.into_iter().next() else { panic!("an announcement") };
        messages.push(Input::Message(bytes));
    }
    let now = world.now;
    world.nodes.get_mut(&1).unwrap().turn(now, messages);
    assert_eq!(world.nodes[&1].members().count(), MEMBERS_MAX);
    assert!(world.nodes[&1].stats().beyond_members_max > 0);
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let history = |seed| {
        let mut world = World::of(4, seed);
        world.nodes.remove(&2);
        world.run(Duration::from_secs(10));
        (world.sent, world.events)
    };
    assert_eq!(history(13), history(13));
    assert_ne!(history(13).0, history(14).0);
}
