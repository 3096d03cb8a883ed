//! Many groups on three hosts, most of which have nothing to do: they sleep, wake when something is asked of them, and find
//! out when the node of their leader is gone. The network is a queue, a disk answers at once, and time goes in steps of 10 ms.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::wire::Body;
use consensus::{
    CreateGroup, Event, Host, HostConfig, Input, Mark, Member, Membership, Message, Output, Refusal, Role,
};
use storage::LogStore as _;
use storage::memlog::MemLog;

const GROUPS: u64 = 40;
const NODES: [u64; 3] = [1, 2, 3];
const STEP: Duration = Duration::from_millis(10);
const SLEEP_AFTER: Duration = Duration::from_millis(500);
/// In which all groups of a node that is gone have leaders again: 1.5 s of silence, and one election.
const FAILOVER: u64 = 1_600;

struct Node {
    host: Host,
    inbox: Vec<Input>,
}

struct World {
    now: Time,
    logs: BTreeMap<u64, Arc<MemLog>>,
    nodes: BTreeMap<u64, Node>,
    /// Messages between these are lost.
    cut: Vec<(u64, u64)>,
    /// The next so many messages of this kind are lost.
    lose_sleeps: usize,
    /// Since it was last set to nothing: bodies by kind.
    sent: BTreeMap<&'static str, usize>,
    marks: BTreeMap<(u64, u64), u64>,
    refused: Vec<u64>,
    why: Vec<(u64, Refusal)>,
    read: Vec<(u64, bool)>,
    life: u64,
}

fn peer(node: u64, group: u64) -> PeerId {
    PeerId(group * 10 + node)
}

impl World {
    fn new() -> World {
        let logs = NODES.into_iter().map(|node| (node, Arc::new(MemLog::new()))).collect();
        let mut world = World {
            now: Time::from_millis(5_000),
            logs,
            nodes: BTreeMap::new(),
            cut: Vec::new(),
            lose_sleeps: 0,
            sent: BTreeMap::new(),
            marks: BTreeMap::new(),
            refused: Vec::new(),
            why: Vec::new(),
            read: Vec::new(),
            life: 0,
        };
        NODES.into_iter().for_each(|node| world.start(node, true));
        world
    }

    fn start(&mut self, node: u64, fresh: bool) {
        self.start_as(node, fresh, 0);
    }

    /// With peers that are others by `apart`.
    fn start_as(&mut self, node: u64, fresh: bool, apart: u64) {
        self.life += 1;
        let config = HostConfig { sleep_after: Some(SLEEP_AFTER), ..HostConfig::new(NodeId(node), 77 * self.life) };
        let mut inbox = Vec::new();
        for group in 1..=GROUPS {
            let members = NODES.map(|node| Member { node: NodeId(node), peer: peer(node, group), ..Member::default() });
            let index = self.marks.get(&(node, group)).copied().unwrap_or(1);
            let log = &self.logs[&node];
            let term = if index == 1 { 1 } else { log.term(GroupId(group), index).unwrap() };
            inbox.push(Input::Create(CreateGroup {
                group: GroupId(group),
                peer: PeerId(peer(node, group).0 + apart),
                mark: Mark { index, term, hash: 0 },
                membership: Membership::founding(ClusterId(1), members.to_vec()).into(),
                fresh,
            }));
        }
        self.nodes.insert(node, Node { host: Host::new(config, self.logs[&node].clone(), self.now), inbox });
    }

    fn run(&mut self, ms: u64) {
        let until = self.now + Duration::from_millis(ms);
        while self.now < until {
            self.now = self.now + STEP;
            // Until nobody has anything to say any more.
            for _ in 0..100 {
                let busy: Vec<u64> = NODES.into_iter().filter(|node| self.has_work(*node)).collect();
                if busy.is_empty() {
                    break;
                }
                busy.into_iter().for_each(|node| self.turn(node));
            }
        }
    }

    fn has_work(&self, node: u64) -> bool {
        let node = self.nodes.get(&node);
        node.is_some_and(|node| !node.inbox.is_empty() || node.host.next_turn() <= self.now)
    }

    fn turn(&mut self, id: u64) {
        let node = self.nodes.get_mut(&id).unwrap();
        let inputs = std::mem::take(&mut node.inbox);
        for output in node.host.turn(self.now, inputs) {
            self.carry_out(id, output);
        }
    }

    fn carry_out(&mut self, id: u64, output: Output) {
        match output {
            Output::Persist { number, batch } => {
                self.logs[&id].write(&batch).unwrap();
                self.nodes.get_mut(&id).unwrap().inbox.push(Input::Persisted { number });
            }
            Output::Send { to, message } => self.send(id, to.0, message),
            Output::Committed { group, last, .. } => {
                self.marks.insert((id, group.0), last);
                let applied = Input::Applied { group, index: last, hashes: Vec::new() };
                self.nodes.get_mut(&id).unwrap().inbox.push(applied);
            }
            Output::Refused { seqs, why, .. } => {
                self.why.extend(seqs.iter().map(|seq| (*seq, why)));
                self.refused.extend(seqs);
            }
            Output::ReadReady { seqs, valid_until, .. } => {
                self.read.extend(seqs.into_iter().map(|seq| (seq, valid_until.is_some())));
            }
            Output::Event(Event::BadMessage { why, .. }) => panic!("{why}"),
            _ => {}
        }
    }

    fn send(&mut self, from: u64, to: u64, message: Message) {
        let kind = match &message.body {
            Body::Alive { .. } => "alive",
            Body::Sleep { .. } => "sleep",
            _ => "other",
        };
        *self.sent.entry(kind).or_default() += 1;
        if kind == "sleep" && self.lose_sleeps > 0 {
            self.lose_sleeps -= 1;
            return;
        }
        if self.cut.contains(&(from, to)) {
            return;
        }
        let message = Message::decode(message.encode()).expect("what is said is understood");
        if let Some(node) = self.nodes.get_mut(&to) {
            node.inbox.push(Input::Message(message));
        }
    }

    fn leader(&self, group: u64) -> Option<u64> {
        let leads = |node: &&u64| {
            let host = self.nodes.get(node).map(|node| &node.host);
            host.and_then(|host| host.status(GroupId(group))).is_some_and(|status| status.role == Role::Leader)
        };
        let term = |node: &u64| self.nodes[node].host.status(GroupId(group)).unwrap().term;
        NODES.iter().filter(leads).max_by_key(|node| term(node)).copied()
    }

    fn all_led(&self) -> bool {
        (1..=GROUPS).all(|group| self.leader(group).is_some_and(|leader| self.nodes.contains_key(&leader)))
    }

    /// Asserts that nothing but the nodes' own word is heard for a second.
    fn assert_all_sleep(&mut self) {
        self.sent.clear();
        self.run(1_000);
        assert_eq!(self.sent.get("other").copied().unwrap_or(0) + self.sent.get("sleep").copied().unwrap_or(0), 0);
        let pairs = self.nodes.len() * (NODES.len() - 1);
        assert!((2 * pairs..=3 * pairs).contains(&self.sent["alive"]), "{:?}", self.sent);
    }

    fn propose(&mut self, node: u64, group: u64, seq: u64) {
        let deadline = self.now + Duration::from_secs(5);
        let propose = Input::Propose { group: GroupId(group), seq, command: Bytes::from_static(b"x"), deadline };
        self.nodes.get_mut(&node).unwrap().inbox.push(propose);
    }

    fn ask(&mut self, node: u64, group: u64, seq: u64) {
        let deadline = self.now + Duration::from_secs(5);
        self.nodes.get_mut(&node).unwrap().inbox.push(Input::Read { group: GroupId(group), seq, deadline });
    }

    fn committed(&self, node: u64, group: u64) -> u64 {
        self.nodes[&node].host.status(GroupId(group)).unwrap().committed
    }
}

#[test]
fn idle_groups_are_silent_and_wake_when_they_are_called() {
    let mut world = World::new();
    world.run(5_000);
    assert!(world.all_led());
    world.assert_all_sleep();
    for group in 1..=GROUPS {
        let leader = world.leader(group).unwrap();
        let host = &world.nodes[&leader].host;
        let status = host.status(GroupId(group)).unwrap();
        assert!(status.followers.iter().all(|(.., heard)| *heard), "their nodes vouch for them: {status:?}");
        assert!(host.lease(GroupId(group)).valid_until == Time::ZERO, "no lease in sleep");
    }
    // Through a follower and through the leader.
    let leader = world.leader(7).unwrap();
    let follower = NODES.into_iter().find(|node| *node != leader).unwrap();
    let before = world.committed(leader, 7);
    world.propose(follower, 7, 1);
    world.run(300);
    assert_eq!(NODES.map(|node| world.committed(node, 7)), [before + 1; 3]);
    world.ask(leader, 8, 2);
    world.ask(follower, 9, 3);
    world.run(50);
    world.read.sort_unstable();
    assert_eq!(world.read.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), [2, 3]);
    assert!(world.refused.is_empty());
    world.run(2_000);
    world.assert_all_sleep();
}

#[test]
fn all_groups_of_a_node_that_is_gone_have_leaders_at_once_and_the_others_sleep_on() {
    for gone in NODES {
        let mut world = World::new();
        world.run(5_000);
        world.assert_all_sleep();
        let led = (1..=GROUPS).filter(|group| world.leader(*group) == Some(gone)).count();
        assert!(led > 0, "node {gone} leads none");
        let terms = |world: &World| {
            let leaders = (1..=GROUPS).map(|group| (group, world.leader(group).unwrap()));
            leaders.map(|(group, leader)| world.nodes[&leader].host.status(GroupId(group)).unwrap().term).sum::<u64>()
        };
        let before = terms(&world);
        world.nodes.remove(&gone);
        world.sent.clear();
        world.run(FAILOVER);
        assert!(world.all_led(), "{led} were led by {gone}");
        assert_eq!(terms(&world), before + led as u64, "one election each, and none of the others");
        assert!(world.sent["other"] <= 25 * led, "{led} elected with {:?}", world.sent);
        // With two of three all is quiet again; the one that comes back is filled in.
        world.run(500);
        world.assert_all_sleep();
        let missing = |world: &World| {
            let leaders = (1..=GROUPS).map(|group| (group, world.leader(group).unwrap()));
            let statuses = leaders.map(|(group, leader)| world.nodes[&leader].host.status(GroupId(group)).unwrap());
            statuses.filter(|status| status.followers.iter().any(|(.., heard)| !heard)).count()
        };
        assert_eq!(missing(&world), GROUPS as usize, "who is gone is not called there");
        for group in 1..=GROUPS {
            let leader = world.leader(group).unwrap();
            world.propose(leader, group, group);
        }
        world.run(3_000);
        world.assert_all_sleep();
        world.start(gone, false);
        world.run(4_000);
        for group in 1..=GROUPS {
            let all = NODES.map(|node| world.committed(node, group));
            assert_eq!(all, [all[0]; 3], "group {group}");
        }
        assert_eq!(missing(&world), 0);
        world.assert_all_sleep();
        assert!(world.refused.is_empty());
    }
}

#[test]
fn a_leader_that_forgot_that_it_leads_is_replaced_though_its_node_is_there() {
    let mut world = World::new();
    world.run(5_000);
    world.assert_all_sleep();
    world.start(1, false);
    // Long before the silence would tell: it is another life.
    world.run(2_200);
    assert!(world.all_led());
    world.run(3_000);
    world.assert_all_sleep();
}

#[test]
fn a_lost_word_is_said_again() {
    let mut world = World::new();
    world.lose_sleeps = 3 * GROUPS as usize;
    world.run(15_000);
    assert!(world.all_led());
    world.assert_all_sleep();
}

#[test]
fn a_node_that_hears_nobody_loses_its_groups_and_reads_nothing() {
    let mut world = World::new();
    world.run(5_000);
    world.assert_all_sleep();
    let alone = world.leader(1).unwrap();
    let others: Vec<u64> = NODES.into_iter().filter(|node| *node != alone).collect();
    world.cut = others.iter().flat_map(|other| [(alone, *other), (*other, alone)]).collect();
    world.run(FAILOVER);
    let leads = |world: &World, group| others.contains(&world.leader(group).unwrap());
    assert!((1..=GROUPS).all(|group| leads(&world, group)));
    world.ask(alone, 1, 5);
    world.run(6_000);
    assert!(world.read.is_empty(), "a read without a quorum");
    assert_eq!(world.refused, [5]);
    world.cut.clear();
    world.run(6_000);
    world.assert_all_sleep();
}

#[test]
fn a_partition_of_one_direction_leaves_a_leader() {
    let mut world = World::new();
    world.run(5_000);
    let leader = world.leader(1).unwrap();
    let follower = NODES.into_iter().find(|node| *node != leader).unwrap();
    for cut in [(leader, follower), (follower, leader)] {
        world.cut = vec![cut];
        for second in 0..20 {
            world.run(1_000);
            let seq = 100 + second;
            let leader = world.leader(1).expect("there is always one");
            world.propose(leader, 1, seq);
        }
        world.cut.clear();
        world.run(8_000);
        world.assert_all_sleep();
        let all = NODES.map(|node| world.committed(node, 1));
        assert_eq!(all, [all[0]; 3]);
    }
}

#[test]
fn a_node_does_not_vouch_for_peers_that_it_has_no_more() {
    let mut world = World::new();
    world.run(5_000);
    world.assert_all_sleep();
    world.start_as(1, false, 100_000);
    world.run(8_000);
    for group in 1..=GROUPS {
        let leader = world.leader(group).expect("two of three are there");
        let status = world.nodes[&leader].host.status(GroupId(group)).unwrap();
        let gone = status.followers.iter().find(|(known, ..)| *known == peer(1, group)).expect("it is a member");
        assert!(!gone.2, "group {group}: nobody has heard of it");
    }
}

#[test]
fn a_killed_node_is_missed_sooner_when_its_connections_are_broken() {
    let mut world = World::new();
    world.run(5_000);
    world.assert_all_sleep();
    world.nodes.remove(&1);
    for node in world.nodes.values_mut() {
        node.inbox.push(Input::Unreachable { node: NodeId(1) });
    }
    world.run(1_200);
    assert!(world.all_led());
    // A broken connection alone says nothing: the node is heard.
    let leaders: Vec<u64> = (1..=GROUPS).map(|group| world.leader(group).unwrap()).collect();
    world.nodes.get_mut(&2).unwrap().inbox.push(Input::Unreachable { node: NodeId(3) });
    world.run(3_000);
    assert_eq!((1..=GROUPS).map(|group| world.leader(group).unwrap()).collect::<Vec<_>>(), leaders);
}

/// Whoever asked through a replica that is taken away is told whether it was in vain.
#[test]
fn a_replica_that_goes_says_what_was_never_sent() {
    let mut world = World::new();
    world.run(5_000);
    let leader = world.leader(3).unwrap();
    let follower = NODES.into_iter().find(|node| *node != leader).unwrap();
    // It is no member any more, and does not know it: the leader takes nothing from it.
    let change = consensus::MembershipChange::Remove { node: NodeId(follower) };
    world.cut = vec![(leader, follower)];
    let deadline = world.now + Duration::from_secs(5);
    let input = Input::Change { group: GroupId(3), seq: 50, change, deadline };
    world.nodes.get_mut(&leader).unwrap().inbox.push(input);
    world.run(500);
    world.cut.clear();
    let before = world.committed(leader, 3);
    world.propose(follower, 3, 51);
    world.run(100);
    assert_eq!((world.committed(leader, 3), world.refused.len()), (before, 0), "it waits");
    world.nodes.get_mut(&follower).unwrap().inbox.push(Input::Destroy { group: GroupId(3) });
    world.run(10);
    assert_eq!(world.why, [(51, Refusal::NoGroup)]);
    // What the leader may have got is another thing.
    let (leader, group) = (world.leader(5).unwrap(), 5);
    let follower = NODES.into_iter().find(|node| *node != leader && *node != follower).unwrap();
    world.ask(follower, group, 60);
    world.run(50);
    world.cut = vec![(leader, follower)];
    world.propose(follower, group, 61);
    world.run(50);
    world.nodes.get_mut(&follower).unwrap().inbox.push(Input::Destroy { group: GroupId(group) });
    world.run(10);
    assert_eq!(world.why.last(), Some(&(61, Refusal::Stopping)));
}
