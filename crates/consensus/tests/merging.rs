//! What a merge of two groups asks of consensus: members that stay as they are, and entries known from elsewhere to be
//! committed.

use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId, Time};
use consensus::entry::CommandsBuilder;
use consensus::wire::Body;
use consensus::{
    CreateGroup, Event, Host, HostConfig, Input, Mark, Member, MemberRole, Membership, MembershipChange, Message,
    Output, Refusal, Role,
};
use raft::eraftpb::{self, MessageType};
use storage::LogStore;
use storage::memlog::MemLog;

const GROUP: GroupId = GroupId(1);

fn membership(members: u64) -> Membership {
    let member = |number| Member {
        node: NodeId(number),
        peer: PeerId(10 + number),
        name: format!("n{number}"),
        role: MemberRole::Voter,
        ..Member::default()
    };
    Membership::founding(ClusterId(5), (1..=members).map(member).collect())
}

struct World {
    host: Host,
    store: Arc<MemLog>,
    now: Time,
    applied: u64,
    /// The last change of members.
    moved: u64,
}

impl World {
    fn new(members: u64) -> World {
        let (store, now) = (Arc::new(MemLog::new()), Time::from_millis(1000));
        let host = Host::new(HostConfig::new(NodeId(1), 7), store.clone(), now);
        let create = CreateGroup {
            group: GROUP,
            peer: PeerId(11),
            mark: Mark { index: 1, term: 1, hash: 0 },
            membership: membership(members).into(),
            fresh: true,
        };
        let mut world = World { host, store, now, applied: 1, moved: 0 };
        world.turns(vec![Input::Create(create)]);
        world
    }

    /// Turns until nothing comes of them any more; the disk and the state machine do what they are asked to.
    fn turns(&mut self, mut inputs: Vec<Input>) -> Vec<Output> {
        let mut all = Vec::new();
        for _ in 0..20 {
            self.now = self.now + Duration::from_millis(10);
            let outputs = self.host.turn(self.now, std::mem::take(&mut inputs));
            for output in &outputs {
                match output {
                    Output::Persist { number, batch } => {
                        self.store.write(batch).unwrap();
                        inputs.push(Input::Persisted { number: *number });
                    }
                    Output::Event(Event::Membership { index, .. }) => self.moved = *index,
                    Output::Committed { group, last, .. } => {
                        let known = self.store.state(GROUP).unwrap().hard.commit;
                        assert!(known >= self.moved || *last < self.moved, "a power cut would undo what was applied");
                        self.applied = *last;
                        inputs.push(Input::Applied { group: *group, index: *last, hashes: Vec::new() });
                    }
                    _ => {}
                }
            }
            all.extend(outputs);
        }
        all
    }

    fn add(&mut self, seq: u64) -> Option<Refusal> {
        let member = Member { node: NodeId(9), peer: PeerId(19), name: "n9".to_owned(), ..Member::default() };
        let deadline = self.now + Duration::from_secs(5);
        let change = Input::Change { group: GROUP, seq, change: MembershipChange::Add(member), deadline };
        let refused = self.turns(vec![change]).into_iter().find_map(|output| match output {
            Output::Refused { seqs, why, .. } if seqs == [seq] => Some(why),
            _ => None,
        });
        assert_eq!(refused.is_none(), self.host.membership(GROUP).unwrap().members.contains_key(&NodeId(9)));
        refused
    }
}

#[test]
fn held_members_do_not_change() {
    let mut world = World::new(1);
    assert_eq!(world.host.status(GROUP).unwrap().role, Role::Leader);
    world.turns(vec![Input::HoldChanges { group: GROUP, held: true }]);
    assert_eq!(world.add(1), Some(Refusal::ChangeInFlight));
    world.turns(vec![Input::HoldChanges { group: GROUP, held: false }]);
    assert_eq!(world.add(2), None);
}

/// Who was removed is taken away on that word, and may be who could prove it.
#[test]
fn a_change_of_members_is_applied_when_it_is_on_disk_that_it_is_committed() {
    let mut world = World::new(1);
    assert_eq!(world.add(1), None);
    let moved = world.moved;
    assert!(moved > 1 && world.applied >= moved && world.store.state(GROUP).unwrap().hard.commit >= moved);
    // What follows it at once waits for it.
    let deadline = world.now + Duration::from_secs(60);
    let remove = Input::Change { group: GROUP, seq: 2, change: MembershipChange::Remove { node: NodeId(9) }, deadline };
    let put = |seq| Input::Propose { group: GROUP, seq, command: "put".into(), deadline };
    world.turns(vec![put(3), remove, put(4)]);
    assert!(world.moved > moved);
    assert_eq!(world.applied, world.host.status(GROUP).unwrap().committed);
}

/// What it has yet to apply may be what holds the members.
#[test]
fn a_leader_that_has_not_applied_what_was_there_before_changes_nothing() {
    let (store, now) = (Arc::new(MemLog::new()), Time::from_millis(1000));
    let mut host = Host::new(HostConfig::new(NodeId(1), 7), store.clone(), now);
    let create = CreateGroup {
        group: GROUP,
        peer: PeerId(11),
        mark: Mark { index: 1, term: 1, hash: 0 },
        membership: membership(1).into(),
        fresh: true,
    };
    let mut inputs = vec![Input::Create(create.clone())];
    for round in 0..10 {
        if round == 5 {
            let deadline = now + Duration::from_secs(60);
            inputs.push(Input::Propose { group: GROUP, seq: 5, command: "put".into(), deadline });
        }
        let outputs = host.turn(now + Duration::from_millis(round * 10), std::mem::take(&mut inputs));
        for output in outputs {
            if let Output::Persist { number, batch } = output {
                store.write(&batch).unwrap();
                inputs.push(Input::Persisted { number });
            }
        }
    }
    let last = host.status(GROUP).unwrap().last;
    assert!(last >= 3);
    // Another life: the state machine stands where it stood.
    let mut world = World {
        host: Host::new(HostConfig::new(NodeId(1), 8), store.clone(), now),
        store,
        now: now + Duration::from_secs(1),
        applied: 1,
        moved: 0,
    };
    let mut inputs = vec![Input::Create(create)];
    for _ in 0..10 {
        world.now = world.now + Duration::from_millis(10);
        for output in world.host.turn(world.now, std::mem::take(&mut inputs)) {
            if let Output::Persist { number, batch } = output {
                world.store.write(&batch).unwrap();
                inputs.push(Input::Persisted { number });
            }
        }
    }
    assert_eq!(world.host.status(GROUP).unwrap().role, Role::Leader);
    assert_eq!(world.add(1), Some(Refusal::ChangeInFlight));
    world.turns(vec![Input::Applied { group: GROUP, index: last, hashes: Vec::new() }]);
    assert_eq!(world.add(2), None);
}

#[test]
fn what_is_vouched_for_is_committed_if_it_is_there() {
    let mut world = World::new(3);
    let entry = |index: u64| {
        let mut commands = CommandsBuilder::new(PeerId(12));
        commands.push(index, b"put");
        eraftpb::Entry { index, term: 2, data: commands.finish().to_vec(), ..Default::default() }
    };
    let append = eraftpb::Message {
        msg_type: MessageType::MsgAppend as i32,
        from: 12,
        to: 11,
        term: 2,
        log_term: 1,
        index: 1,
        commit: 1,
        entries: (2..=4).map(entry).collect(),
        ..Default::default()
    };
    let body = Body::Raft(Box::new(append));
    let message = Message { group: GROUP, from: PeerId(12), from_node: NodeId(2), to: PeerId(11), body };
    world.turns(vec![Input::Message(message)]);
    assert_eq!((world.host.status(GROUP).unwrap().last, world.applied), (4, 1));
    let vouch = |index, term| Input::Vouch { group: GROUP, index, term };
    for nothing in [vouch(5, 2), vouch(3, 1), vouch(1, 1), vouch(0, 0)] {
        world.turns(vec![nothing]);
        assert_eq!(world.applied, 1);
    }
    world.turns(vec![vouch(3, 2)]);
    assert_eq!(world.applied, 3);
    world.turns(vec![vouch(2, 2), vouch(4, 2)]);
    assert_eq!(world.applied, 4);
}
