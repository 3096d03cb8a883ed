//! Snapshots: what comes out of one machine and into another must be the same state; anything else must be refused.

use std::sync::Arc;

use base::Rng;
use bytes::Bytes;
use chainfire::command::Command;
use chainfire::machine::{layout, snapshot};
use consensus::{Applied, Entry, MachineError, Mark, Payload, StateMachine};
use proto::etcdserverpb as pb;
use proto::snapshot::Header;
use storage::Engine;
use storage::memengine::MemEngine;

use crate::world::{Generator, LOCAL, World, content, rocks};

/// A machine with some life behind it, compacted in between.
fn lived(engine: Arc<dyn Engine>, seed: u64) -> World {
    let mut world = World::open(engine);
    world.machine.found(Mark::default(), Bytes::from_static(b"members")).unwrap();
    let mut generator = Generator { rng: Rng::new(seed), keys: 400 };
    for _ in 0..60 {
        let commands = (0..30).map(|_| generator.command(world.view().revision)).collect();
        world.apply(&[commands]);
    }
    world.apply(&[vec![Command::Alarm { action: 2, member: 0, kind: 0 }]]);
    let revision = world.view().revision;
    world.apply(&[vec![Command::Compact(pb::CompactionRequest { revision: revision - 100, physical: false })]]);
    let big = pb::PutRequest { key: "big".into(), value: vec![7; 900_000].into(), ..Default::default() };
    world.apply(&[vec![Command::Put(big.clone()), Command::Put(big)]]);
    world
}

fn chunks(world: &World) -> Vec<Bytes> {
    let mut source = world.machine.snapshot().unwrap();
    assert_eq!(source.mark(), world.machine.mark());
    assert_eq!(source.membership(), world.machine.membership());
    let mut chunks = vec![];
    while let Some(chunk) = source.next_chunk().unwrap() {
        assert!(chunk.len() <= proto::snapshot::FRAME_BYTES_MAX);
        chunks.push(chunk);
    }
    chunks
}

fn receive(world: &World, chunks: impl IntoIterator<Item = Bytes>) -> Result<Mark, MachineError> {
    let mut sink = world.machine.receiver()?;
    for chunk in chunks {
        sink.write(chunk)?;
    }
    sink.finish()
}

fn same(a: &mut World, b: &mut World) {
    let (one, two) = (a.view(), b.view());
    assert_eq!((one.mark, one.revision, one.compacted), (two.mark, two.revision, two.compacted));
    assert_eq!(one.membership, two.membership);
    assert_eq!(one.keys(), two.keys());
    assert_eq!(one.hash_kv(0), two.hash_kv(0));
    assert!(content(a) == content(b));
}

#[test]
fn a_machine_becomes_the_one_it_installs() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for seed in 0..6 {
        let engines: [Arc<dyn Engine>; 2] = if seed == 0 {
            [rocks(dirs[0].path()), rocks(dirs[1].path())]
        } else {
            [Arc::new(MemEngine::new(&layout::FAMILIES)), Arc::new(MemEngine::new(&layout::FAMILIES))]
        };
        let [from, to] = engines;
        let mut from = lived(from, seed);
        let mut to = lived(to, seed + 100);
        let sent = chunks(&from);
        let mut sink = to.machine.receiver().unwrap();
        for chunk in &sent {
            sink.write(chunk.clone()).unwrap();
        }
        assert_eq!(sink.finish().unwrap(), from.machine.mark());
        to.machine.install(&mut *sink).unwrap();
        to.read_leases();
        assert_eq!(*to.told.resets.lock(), [from.view().revision]);
        same(&mut from, &mut to);
        assert_eq!(to.machine.durable().unwrap(), from.machine.mark().index);
        // Both go on alike.
        let mut generator = Generator { rng: Rng::new(seed), keys: 400 };
        for _ in 0..10 {
            let commands: Vec<Command> = (0..30).map(|_| generator.command(from.view().revision)).collect();
            let entry = [commands];
            assert_eq!(from.apply(&entry), to.apply(&entry));
        }
        same(&mut from, &mut to);
        // A power cut or a restart keeps the new state.
        let engine = to.engine.clone();
        engine.flush().unwrap();
        let mut again = World::open(engine);
        same(&mut from, &mut again);
    }
}

#[test]
fn a_stream_may_be_cut_into_any_pieces() {
    let from = lived(Arc::new(MemEngine::new(&layout::FAMILIES)), 3);
    let all: Vec<u8> = chunks(&from).concat();
    assert_eq!(all.len() % 512, 0);
    let mut rng = Rng::new(4);
    let to = World::in_memory();
    let mut rest = &all[..];
    let pieces = std::iter::from_fn(|| {
        let (piece, after) = rest.split_at(rest.len().min(1 + rng.below(70_000) as usize));
        rest = after;
        (!piece.is_empty()).then(|| Bytes::copy_from_slice(piece))
    });
    assert_eq!(receive(&to, pieces).unwrap(), from.machine.mark());
    let info = snapshot::inspect(&all[..]).unwrap();
    let view = from.view();
    let Header { raft_index: index, raft_term: term, hash, revision, membership, .. } = info.header;
    assert_eq!((Mark { index, term, hash }, revision, info.keys), (view.mark, view.revision, view.keys()));
    assert_eq!((&membership[..], info.bytes), (&b"members"[..], all.len() as u64));
}

#[test]
fn a_backup_is_restored_and_founded_anew() {
    let mut from = lived(Arc::new(MemEngine::new(&layout::FAMILIES)), 5);
    let all: Vec<u8> = chunks(&from).concat();
    let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
    let info = snapshot::restore(&*engine, &all[..]).unwrap();
    assert_eq!(info.header.revision, from.view().revision);
    let mut world = World::open(engine.clone());
    same(&mut from, &mut world);
    let founding = Mark { index: 1, term: 1, hash: 0 };
    world.machine.found(founding, Bytes::from_static(b"others")).unwrap();
    engine.crash();
    let world = World::open(engine);
    assert_eq!((world.machine.mark(), world.machine.membership()), (founding, Bytes::from_static(b"others")));
    assert_eq!(world.view().hash_kv(0), from.view().hash_kv(0));
}

#[test]
fn a_damaged_stream_is_refused() {
    let from = lived(Arc::new(MemEngine::new(&layout::FAMILIES)), 6);
    let whole = chunks(&from);
    let to = World::in_memory();
    let refused = |chunks: Vec<Bytes>, what: &str| {
        let error = receive(&to, chunks).expect_err(what);
        assert!(matches!(error, MachineError::BadSnapshot(_)), "{what}: {error}");
    };
    for cut in 0..whole.len() {
        refused(whole[..cut].to_vec(), "cut");
        let mut without = whole.clone();
        without.remove(cut);
        refused(without, "a chunk is missing");
        let mut twice = whole.clone();
        twice.insert(cut, whole[cut].clone());
        refused(twice, "a chunk comes twice");
        let mut short = whole.clone();
        short[cut] = short[cut].slice(..short[cut].len() - 1);
        refused(short, "a chunk is short");
    }
    let mut rng = Rng::new(7);
    for _ in 0..200 {
        let mut flipped = whole.clone();
        let at = rng.below(flipped.len() as u64) as usize;
        let mut bytes = flipped[at].to_vec();
        let byte = rng.below(bytes.len() as u64) as usize;
        bytes[byte] ^= 1 << rng.below(8);
        flipped[at] = bytes.into();
        refused(flipped, "a bit is flipped");
    }
    let mut more = whole.clone();
    more.push(Bytes::from_static(b"x"));
    refused(more, "something follows");
    refused(vec![Bytes::from_static(b"something else altogether, long enough for a frame")], "foreign");
    receive(&to, whole).unwrap();
}

#[test]
fn entries_out_of_order_stop_the_machine() {
    let mut world = World::in_memory();
    let entry = |index| Entry { index, term: 1, payload: Payload::Nothing };
    let mut applied = Applied::default();
    world.machine.apply(&[entry(1), entry(2)], LOCAL, &mut applied).unwrap();
    for wrong in [2, 4] {
        assert!(world.machine.apply(&[entry(wrong)], LOCAL, &mut applied).is_err());
        assert_eq!(world.machine.mark().index, 2);
    }
    world.machine.apply(&[entry(3)], LOCAL, &mut applied).unwrap();
}

#[test]
fn a_full_disk_leaves_the_machine_as_it_was() {
    let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
    let mut world = World::open(engine.clone());
    let put = Command::Put(pb::PutRequest { key: "a".into(), value: "b".into(), ..Default::default() });
    world.one(put.clone()).unwrap();
    let before = (world.machine.mark(), content(&mut world));
    engine.set_full(true);
    let entry = crate::world::entry(2, std::slice::from_ref(&put));
    let mut applied = Applied::default();
    let error = world.machine.apply(std::slice::from_ref(&entry), LOCAL, &mut applied).unwrap_err();
    assert!(matches!(error, MachineError::Engine(storage::EngineError::NoSpace(_))));
    assert_eq!((world.machine.mark(), content(&mut world)), before);
    assert!(applied.outcomes.is_empty());
    engine.set_full(false);
    world.machine.apply(&[entry], LOCAL, &mut applied).unwrap();
    assert_eq!((world.view().revision, applied.outcomes.len()), (3, 1));
}
