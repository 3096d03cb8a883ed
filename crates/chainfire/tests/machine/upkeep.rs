//! What the machine looks after by itself: signposts for reads in the past, the sweep after a compaction, and alarms of
//! members that left.

use std::sync::Arc;

use base::NodeId;
use bytes::Bytes;
use chainfire::command::Command;
use chainfire::machine::layout;
use consensus::{Applied, Entry, Member, Membership, Payload, StateMachine};
use proto::etcdserverpb as pb;
use storage::memengine::MemEngine;
use storage::{Engine, FamilyId};

use crate::world::{LOCAL, TERM, World};

fn put(key: &'static str, value: impl ToString) -> Command {
    Command::Put(pb::PutRequest { key: key.into(), value: value.to_string().into(), ..Default::default() })
}

fn compact(revision: i64) -> Command {
    Command::Compact(pb::CompactionRequest { revision, physical: false })
}

fn keys(engine: &dyn Engine, family: FamilyId) -> Vec<Bytes> {
    let view = engine.view();
    let mut walk = view.scan(family, &[], None);
    let mut keys = vec![];
    while walk.valid() {
        keys.push(Bytes::copy_from_slice(walk.key()));
        walk.advance();
    }
    keys
}

/// The value that `key` had at a revision.
fn value_at(world: &World, key: &'static str, revision: i64) -> Option<String> {
    let request = pb::RangeRequest { key: key.into(), revision, ..Default::default() };
    let answer = world.view().range(&request).unwrap();
    let response: pb::RangeResponse = prost::Message::decode(&answer.body[..]).unwrap();
    response.kvs.first().map(|pair| String::from_utf8(pair.value.to_vec()).unwrap())
}

#[test]
fn a_key_that_is_put_often_has_signposts() {
    let mut world = World::in_memory();
    for number in 2..=300 {
        world.one(put("k", number)).unwrap();
    }
    let signs: Vec<i64> =
        keys(&*world.engine, layout::OLD).iter().map(|key| layout::read_old_key(key).unwrap().1).collect();
    // The version is one less than the revision.
    assert_eq!(signs, (1..=9).map(|sign| 1 + sign * layout::SIGNPOST_EVERY).collect::<Vec<_>>());
    for revision in 2..=300 {
        assert_eq!(value_at(&world, "k", revision), Some(revision.to_string()));
    }
}

#[test]
fn a_sweep_leaves_what_can_still_be_read() {
    let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
    let mut world = World::open(engine.clone());
    // More changes than one step takes, most of them of versions from before the compaction.
    const KEYS: usize = 700;
    let names: Vec<&'static str> = (0..KEYS).map(|number| &*format!("k{number:04}").leak()).collect();
    for name in &names {
        world.one(put(name, "first")).unwrap();
    }
    let compacted = world.view().revision;
    for name in &names[..KEYS - 100] {
        world.one(put(name, "second")).unwrap();
    }
    world.one(compact(compacted)).unwrap();
    assert!(world.machine.tend().unwrap(), "one step is not enough");
    // Superseded while the sweep is under way.
    world.one(put(names[KEYS - 1], "second")).unwrap();
    while world.machine.tend().unwrap() {}
    let begins = keys(&*engine, layout::REV).remove(0);
    assert_eq!(begins[..8], layout::rev_start(compacted), "nothing is left below the compacted revision");
    for name in &names {
        assert_eq!(value_at(&world, name, compacted).as_deref(), Some("first"), "{name}");
    }
    // What was kept goes with the next compaction.
    world.one(compact(world.view().revision)).unwrap();
    while world.machine.tend().unwrap() {}
    engine.flush().unwrap();
    engine.reclaim().unwrap();
    assert_eq!(keys(&*engine, layout::OLD).len(), 0);
    assert_eq!(keys(&*engine, layout::REV).len(), 1);
    // An interrupted sweep is begun again.
    world.one(put(names[0], "third")).unwrap();
    world.one(compact(world.view().revision)).unwrap();
    let mut again = World::open(engine.clone());
    while again.machine.tend().unwrap() {}
    assert_eq!(value_at(&again, names[0], again.view().revision).as_deref(), Some("third"));
}

/// A full disk in the middle of a sweep loses nothing of what is still to be read.
#[test]
fn a_sweep_that_failed_begins_again() {
    let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
    let mut world = World::open(engine.clone());
    for _ in 0..400 {
        world.one(put("often", "x")).unwrap();
    }
    world.one(put("k", "first")).unwrap();
    let compacted = world.view().revision;
    for name in ["k", "often"] {
        world.one(put(name, "second")).unwrap();
    }
    world.one(compact(compacted)).unwrap();
    engine.set_full(true);
    for _ in 0..3 {
        world.machine.tend().unwrap_err();
    }
    engine.set_full(false);
    while world.machine.tend().unwrap() {}
    assert_eq!(value_at(&world, "k", compacted).as_deref(), Some("first"));
    assert_eq!(value_at(&world, "often", compacted).as_deref(), Some("x"));
}

/// Clean-up leaves alone what a view may be asked about that was taken before the compaction.
#[test]
fn a_view_that_is_held_keeps_its_past() {
    let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
    let mut world = World::open(engine.clone());
    for number in 0..200 {
        world.one(put("k", number)).unwrap();
    }
    world.one(compact(100)).unwrap();
    while world.machine.tend().unwrap() {}
    world.one(Command::DeleteRange(pb::DeleteRangeRequest { key: "k".into(), ..Default::default() })).unwrap();
    let held = world.view();
    let read = |revision| {
        let request = pb::RangeRequest { key: "k".into(), revision, ..Default::default() };
        held.range(&request).map(|answer| answer.returned)
    };
    let before: Vec<_> = (100..=201).map(read).collect();
    world.one(put("k", "again")).unwrap();
    world.one(compact(world.view().revision)).unwrap();
    for _ in 0..3 {
        world.machine.tend().unwrap();
        engine.flush().unwrap();
        engine.reclaim().unwrap();
    }
    // What the sweep deletes is still in the view; what clean-up may drop must be too.
    assert_eq!((100..=201).map(read).collect::<Vec<_>>(), before);
    drop(held);
    world.machine.tend().unwrap();
    engine.flush().unwrap();
    engine.reclaim().unwrap();
    assert_eq!(keys(&*engine, layout::OLD).len(), 0);
}

#[test]
fn alarms_of_a_member_that_left_are_lowered() {
    let mut world = World::in_memory();
    for member in [1, 2, 3] {
        world.one(Command::Alarm { action: 1, member, kind: 1 }).unwrap();
    }
    let member = |node| (NodeId(node), Member { node: NodeId(node), ..Member::default() });
    let membership = Membership { members: [member(1), member(3)].into(), ..Membership::default() };
    let index = world.machine.mark().index + 1;
    let payload = Payload::Membership { membership: membership.encode().into(), done: None };
    world.machine.apply(&[Entry { index, term: TERM, payload }], LOCAL, &mut Applied::default()).unwrap();
    assert_eq!(*world.view().alarms, [(1, 1), (1, 3)]);
    assert_eq!(*World::open(world.engine.clone()).view().alarms, [(1, 1), (1, 3)]);
}
