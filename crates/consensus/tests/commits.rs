//! Followers learn what is committed by few messages: counted, and at once where somebody waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::wire::Body;
use consensus::{CreateGroup, Host, HostConfig, Input, Mark, Member, Membership, Output, Role};
use storage::LogStore as _;
use storage::memlog::MemLog;

const GROUP: GroupId = GroupId(1);
const NODES: [u64; 3] = [1, 2, 3];

struct World {
    now: Time,
    nodes: Vec<(Host, Arc<MemLog>, Vec<Input>)>,
    /// Since it was last emptied.
    sent: BTreeMap<&'static str, usize>,
    /// Messages of this kind are lost.
    lost: Option<&'static str>,
}

impl World {
    /// With a leader, and all quiet.
    fn new(lazy_commits: bool) -> World {
        let now = Time::from_millis(5_000);
        let member = |node| Member { node: NodeId(node), peer: PeerId(node), ..Member::default() };
        let nodes = NODES.map(|node| {
            let log = Arc::new(MemLog::new());
            let config = HostConfig { lazy_commits, ..HostConfig::new(NodeId(node), node) };
            let create = CreateGroup {
                group: GROUP,
                peer: PeerId(node),
                mark: Mark { index: 1, term: 1, hash: 0 },
                membership: Membership::founding(ClusterId(1), NODES.map(member).to_vec()),
                fresh: true,
            };
            (Host::new(config, log.clone(), now), log, vec![Input::Create(create)])
        });
        let mut world = World { now, nodes: nodes.into(), sent: BTreeMap::new(), lost: None };
        world.run(3_000);
        world
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = self.now + Duration::from_millis(1);
            self.settle();
        }
    }

    /// Until nobody has anything to say in this moment.
    fn settle(&mut self) {
        while let Some(at) =
            self.nodes.iter().position(|(host, _, inbox)| !inbox.is_empty() || host.next_turn() <= self.now)
        {
            let inputs = std::mem::take(&mut self.nodes[at].2);
            for output in self.nodes[at].0.turn(self.now, inputs) {
                match output {
                    Output::Persist { number, batch } => {
                        self.nodes[at].1.write(&batch).unwrap();
                        self.nodes[at].2.push(Input::Persisted { number });
                    }
                    Output::Committed { group, last, .. } => {
                        self.nodes[at].2.push(Input::Applied { group, index: last, hashes: Vec::new() });
                    }
                    Output::Send { to, message } => {
                        let kind = match &message.body {
                            Body::Committed { .. } => "committed",
                            Body::Raft(raft) if !raft.entries.is_empty() => "entries",
                            Body::Raft(raft) if raft.msg_type == raft::eraftpb::MessageType::MsgAppend as i32 => {
                                "empty append"
                            }
                            Body::Raft(raft)
                                if raft.msg_type == raft::eraftpb::MessageType::MsgAppendResponse as i32 =>
                            {
                                "answer"
                            }
                            _ => "other",
                        };
                        *self.sent.entry(kind).or_default() += 1;
                        if self.lost != Some(kind) {
                            self.nodes[to.0 as usize - 1].2.push(Input::Message(message));
                        }
                    }
                    Output::Refused { why, .. } => panic!("{why}"),
                    _ => {}
                }
            }
        }
    }

    fn leader(&self) -> usize {
        let leads = |(host, ..): &(Host, _, _)| host.status(GROUP).is_some_and(|status| status.role == Role::Leader);
        self.nodes.iter().position(leads).expect("there is a leader")
    }

    /// What it takes to put something, within a moment; and then how many nodes know it.
    fn propose(&mut self, at: usize) -> (BTreeMap<&'static str, usize>, usize) {
        self.sent.clear();
        let deadline = self.now + Duration::from_secs(5);
        self.nodes[at].2.push(Input::Propose { group: GROUP, seq: 1, command: Bytes::from_static(b"x"), deadline });
        self.settle();
        self.sent.remove("other");
        (std::mem::take(&mut self.sent), self.knowing())
    }

    fn knowing(&self) -> usize {
        let committed = |(host, ..): &(Host, _, _)| host.status(GROUP).unwrap().committed;
        let all = self.nodes.iter().map(committed);
        let most = all.clone().max();
        all.filter(|committed| Some(*committed) == most).count()
    }
}

#[test]
fn all_are_told_at_once_and_nobody_answers() {
    let mut world = World::new(false);
    let leader = world.leader();
    for at in [leader, (leader + 1) % 3] {
        let (sent, knowing) = world.propose(at);
        assert_eq!(sent, [("answer", 2), ("committed", 2), ("entries", 2)].into());
        assert_eq!(knowing, 3);
    }
}

#[test]
fn lazily_who_waits_is_told_at_once_and_the_others_by_the_way() {
    let mut world = World::new(true);
    // Not just before a heartbeat.
    world.run(30);
    let leader = world.leader();
    assert_eq!(world.propose(leader), ([("answer", 2), ("entries", 2)].into(), 1), "the next entries will say it");
    let (sent, knowing) = world.propose((leader + 1) % 3);
    assert_eq!((sent, knowing), ([("answer", 2), ("committed", 1), ("entries", 2)].into(), 2));
    // A tick is not far.
    world.run(20);
    assert_eq!((world.sent.get("committed"), world.knowing()), (Some(&1), 3));
    // An answer to a read says an index that the reader has to know of.
    world.propose(leader);
    let deadline = world.now + Duration::from_secs(5);
    world.nodes[(leader + 2) % 3].2.push(Input::Read { group: GROUP, seq: 2, deadline });
    world.settle();
    assert_eq!(world.knowing(), 2);
}

#[test]
fn a_word_that_was_lost_is_made_good_by_the_next_heartbeat() {
    for lazy in [false, true] {
        let mut world = World::new(lazy);
        world.lost = Some("committed");
        let leader = world.leader();
        assert_eq!(world.propose(leader).1, 1);
        world.run(100);
        assert_eq!(world.knowing(), 3);
    }
}
