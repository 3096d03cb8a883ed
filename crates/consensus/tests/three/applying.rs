//! What is committed goes to the state machine at once where somebody waits for it, and lazily otherwise.

use std::time::Duration;

use bytes::Bytes;
use consensus::{Input, Role};

use crate::{GROUP, World};

impl World {
    fn put(&mut self, at: usize) {
        let deadline = self.now + Duration::from_secs(5);
        self.nodes[at].2.push(Input::Propose { group: GROUP, seq: 1, command: Bytes::from_static(b"x"), deadline });
        self.run(1);
    }

    /// Ten puts in as many milliseconds: how often each node applied something, the leader first.
    fn ten_puts(&mut self, through: usize) -> [usize; 3] {
        let leader = self.leader().unwrap();
        self.handed_out = [0; 3];
        (0..10).for_each(|_| self.put((leader + through) % 3));
        [0, 1, 2].map(|place| self.handed_out[(leader + place) % 3])
    }

    fn applied(&self, at: usize) -> u64 {
        self.nodes[at].0.status(GROUP).unwrap().applied
    }
}

#[test]
fn all_apply_at_once() {
    let mut world = World::new(|_| {});
    assert_eq!(world.ten_puts(0), [10, 10, 10]);
}

#[test]
fn lazily_followers_apply_once_in_a_tick_what_nobody_waits_for() {
    let mut world = World::new(|config| config.lazy_commits = true);
    let [leader, one, other] = world.ten_puts(0);
    assert!(leader == 10 && one <= 1 && other <= 1, "{leader}, {one}, {other}");
    // Those who wait for it apply it at once; the third node does not.
    let [leader, one, other] = world.ten_puts(1);
    assert!(leader == 10 && one >= 10 && other <= 1, "{leader}, {one}, {other}");
    world.run(40);
    let leader = world.leader().unwrap();
    assert_eq!([0, 1, 2].map(|at| world.applied(at)), [world.applied(leader); 3]);
}

#[test]
fn lazily_a_reader_waits_for_no_tick() {
    let mut world = World::new(|config| config.lazy_commits = true);
    world.run(30);
    let leader = world.leader().unwrap();
    let follower = (leader + 1) % 3;
    for _ in 0..30 {
        world.put(leader);
        let deadline = world.now + Duration::from_secs(5);
        world.nodes[follower].2.push(Input::Read { group: GROUP, seq: 2, deadline });
        world.settle();
        assert_eq!(world.applied(follower), world.applied(leader));
    }
}

#[test]
fn lazily_a_new_leader_has_applied_all_that_it_knows_to_be_committed() {
    let mut world = World::new(|config| config.lazy_commits = true);
    for _ in 0..5 {
        world.ten_puts(0);
        let leader = world.leader().unwrap();
        let deadline = world.now + Duration::from_secs(5);
        world.nodes[leader].2.push(Input::Transfer { group: GROUP, seq: 3, to: None, deadline });
        world.settle();
        let led = world.leader().unwrap();
        let status = world.nodes[led].0.status(GROUP).unwrap();
        assert!(led != leader && status.role == Role::Leader && status.applied == status.committed);
    }
}
