//! Followers learn what is committed by few messages: counted, and at once where somebody waits for it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use consensus::{Host, Input};

use crate::{GROUP, World};

impl World {
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
    let mut world = World::new(|_| {});
    let leader = world.leader().unwrap();
    for at in [leader, (leader + 1) % 3] {
        let (sent, knowing) = world.propose(at);
        assert_eq!(sent, [("answer", 2), ("committed", 2), ("entries", 2)].into());
        assert_eq!(knowing, 3);
    }
}

#[test]
fn lazily_who_waits_is_told_at_once_and_the_others_by_the_way() {
    let mut world = World::new(|config| config.lazy_commits = true);
    // Not just before a heartbeat.
    world.run(30);
    let leader = world.leader().unwrap();
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
        let mut world = World::new(|config| config.lazy_commits = lazy);
        world.lost = Some("committed");
        let leader = world.leader().unwrap();
        assert_eq!(world.propose(leader).1, 1);
        world.run(100);
        assert_eq!(world.knowing(), 3);
    }
}
