//! A leader whose disk is slower than the others' hands over; where all are slow, or nobody writes, it leads on.

use std::time::Duration;

use bytes::Bytes;
use consensus::Input;

use crate::{GROUP, World};

const WATCHED_MS: u64 = 12_000;

impl World {
    /// Puts something every `every` milliseconds, until another node leads; after how long.
    fn writes_until_replaced(&mut self, leader: usize, every: u64) -> Option<u64> {
        (0..WATCHED_MS / every).map(|round| round * every).find(|_| {
            let deadline = self.now + Duration::from_secs(60);
            self.nodes[leader].2.push(Input::Propose {
                group: GROUP,
                seq: 1,
                command: Bytes::from_static(b"x"),
                deadline,
            });
            self.run(every);
            self.leader() != Some(leader)
        })
    }
}

#[test]
fn a_leader_with_the_slowest_disk_hands_over() {
    for (ms, every) in [(600, 50), (150, 20), (1_500, 100), (600, 1_000)] {
        let mut world = World::new(|_| {});
        let leader = world.leader().unwrap();
        world.disks[leader] = ms;
        let took = world.writes_until_replaced(leader, every);
        assert!(took.is_some_and(|took| took < 10_000), "{ms} ms a write, one every {every} ms: {took:?}");
    }
}

#[test]
fn a_leader_whose_disk_is_not_to_blame_leads_on() {
    // All are as slow; one other is fast; slow, but not so that anybody minds; and hardly anything is written.
    for (own, others, every) in [(600, [600, 650], 50), (600, [0, 650], 50), (90, [0, 0], 20), (400, [0, 0], 2_000)] {
        let mut world = World::new(|_| {});
        let leader = world.leader().unwrap();
        world.disks[leader] = own;
        world.disks[(leader + 1) % 3] = others[0];
        world.disks[(leader + 2) % 3] = others[1];
        assert_eq!(world.writes_until_replaced(leader, every), None, "{own} ms beside {others:?}");
    }
}
