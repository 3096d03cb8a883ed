//! Three hosts with one group, and all that they say to one another: counted, and lost where a test wants it.

mod applying;
mod commits;
mod elections;
mod slow_disk;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use consensus::wire::Body;
use consensus::{CreateGroup, Host, HostConfig, Input, Mark, Member, Membership, Output, Role};
use raft::eraftpb::MessageType;
use storage::LogStore as _;
use storage::memlog::MemLog;

const GROUP: GroupId = GroupId(1);
const NODES: [u64; 3] = [1, 2, 3];

struct World {
    now: Time,
    nodes: Vec<(Host, Arc<MemLog>, Vec<Input>)>,
    /// Since it was last emptied.
    sent: BTreeMap<&'static str, usize>,
    /// How often something committed went to each state machine, and up to where.
    handed_out: [usize; 3],
    reached: [u64; 3],
    /// Messages of this kind are lost.
    lost: Option<&'static str>,
    /// Hosts that have stopped.
    stopped: Vec<usize>,
    /// How long each disk takes, in milliseconds; and what has yet to come back from them.
    disks: [u64; 3],
    writing: Vec<(Time, usize, u64)>,
}

impl World {
    /// With a leader, and all quiet.
    fn new(change: impl Fn(&mut HostConfig)) -> World {
        let now = Time::from_millis(5_000);
        let member = |node| Member { node: NodeId(node), peer: PeerId(node), ..Member::default() };
        let nodes = NODES.map(|node| {
            let log = Arc::new(MemLog::new());
            let mut config = HostConfig::new(NodeId(node), node);
            change(&mut config);
            let create = CreateGroup {
                group: GROUP,
                peer: PeerId(node),
                mark: Mark { index: 1, term: 1, hash: 0 },
                membership: Membership::founding(ClusterId(1), NODES.map(member).to_vec()).into(),
                fresh: true,
            };
            (Host::new(config, log.clone(), now), log, vec![Input::Create(create)])
        });
        let mut world = World {
            now,
            nodes: nodes.into(),
            sent: BTreeMap::new(),
            handed_out: [0; 3],
            reached: [1; 3],
            lost: None,
            stopped: Vec::new(),
            disks: [0; 3],
            writing: Vec::new(),
        };
        world.run(3_000);
        world
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now = self.now + Duration::from_millis(1);
            for (_, at, number) in self.writing.extract_if(.., |(done, ..)| *done <= self.now) {
                self.nodes[at].2.push(Input::Persisted { number });
            }
            self.settle();
        }
    }

    fn has_work(&self, at: usize) -> bool {
        let (host, _, inbox) = &self.nodes[at];
        !self.stopped.contains(&at) && (!inbox.is_empty() || host.next_turn() <= self.now)
    }

    /// Until nobody has anything to say in this moment.
    fn settle(&mut self) {
        while let Some(at) = (0..self.nodes.len()).find(|at| self.has_work(*at)) {
            let inputs = std::mem::take(&mut self.nodes[at].2);
            for output in self.nodes[at].0.turn(self.now, inputs) {
                match output {
                    Output::Persist { number, batch } => {
                        self.nodes[at].1.write(&batch).unwrap();
                        match self.disks[at] {
                            0 => self.nodes[at].2.push(Input::Persisted { number }),
                            ms => self.writing.push((self.now + Duration::from_millis(ms), at, number)),
                        }
                    }
                    Output::Committed { group, first, last } => {
                        assert_eq!(first, self.reached[at] + 1, "entries are applied in order, and each once");
                        self.reached[at] = last;
                        self.handed_out[at] += 1;
                        self.nodes[at].2.push(Input::Applied { group, index: last, hashes: Vec::new() });
                    }
                    Output::Send { to, message } => {
                        let kind = kind(&message.body);
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

    fn leader(&self) -> Option<usize> {
        let leads = |at: &usize| self.nodes[*at].0.status(GROUP).is_some_and(|status| status.role == Role::Leader);
        (0..self.nodes.len()).filter(|at| !self.stopped.contains(at)).find(leads)
    }
}

fn kind(body: &Body) -> &'static str {
    let Body::Raft(raft) = body else {
        return if matches!(body, Body::Committed { .. }) { "committed" } else { "other" };
    };
    match MessageType::from_i32(raft.msg_type) {
        Some(MessageType::MsgAppend) if raft.entries.is_empty() => "empty append",
        Some(MessageType::MsgAppend) => "entries",
        Some(MessageType::MsgAppendResponse) => "answer",
        Some(MessageType::MsgRequestPreVote) => "pre-vote",
        Some(MessageType::MsgRequestVote) => "vote",
        _ => "other",
    }
}
