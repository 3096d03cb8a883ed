//! Random commands: every answer, every read at every revision and everything told to watchers must be the model's,
//! whatever the engine, the batching, the clean-ups and the crashes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base::Rng;
use bytes::Bytes;
use chainfire::command::Command;
use chainfire::error::ApiError;
use chainfire::machine::layout;
use chainfire::read::{Leaving, RangePages, StateView};
use consensus::{Applied, Entry, MachineError, Payload, StateMachine};
use prost::Message;
use proto::etcdserverpb as pb;
use proto::etcdserverpb::request_op::Request;
use storage::Engine;
use storage::memengine::MemEngine;

use crate::model::{Answer, Change, Model, covers};
use crate::world::{Generator, World, changes, content, decode, header, rocks};

/// Runs one seed; `disturb` is called between batches to let the engine do what it does by itself.
fn run(seed: u64, engine: Arc<dyn Engine>, batches: usize, disturb: &dyn Fn(&mut Rng)) {
    let mut world = World::open(engine);
    let mut model = Model::new();
    let mut rng = Rng::new(seed);
    // Now and then enough keys for many count buckets.
    let keys = if seed.is_multiple_of(5) { 1_000 } else { 6 + rng.below(40) };
    let mut generator = Generator { rng: rng.fork(1), keys };
    if keys == 1_000 {
        let keys: BTreeSet<Bytes> = (0..1_500).map(|_| generator.key()).collect();
        let puts = keys.into_iter().map(|key| Request::RequestPut(pb::PutRequest { key, ..Default::default() }));
        let success = puts.map(|put| pb::RequestOp { request: Some(put) }).collect();
        let txn = Command::Txn(pb::TxnRequest { success, ..Default::default() });
        assert_eq!(world.one(txn.clone()), model.apply(&txn, header()));
    }
    let (mut done, mut refused) = (0, 0);
    for _ in 0..batches {
        let entries: Vec<Vec<Command>> = (0..1 + rng.below(3))
            .map(|_| (0..rng.below(6)).map(|_| generator.command(model.revision())).collect())
            .collect();
        let outcomes = world.apply(&entries);
        let mut outcomes = outcomes.into_iter();
        for command in entries.iter().flatten() {
            let answer = outcomes.next().unwrap().map(|body| decode(command, body));
            if answer.is_ok() {
                done += 1
            } else {
                refused += 1
            }
            assert_eq!(answer, model.apply(command, header()), "seed {seed}: {command:?}");
        }
        disturb(&mut rng);
        if rng.percent(30) {
            world.machine.tend().unwrap();
        }
        let view = world.view();
        assert_eq!((view.revision, view.compacted), (model.revision(), model.compacted));
        assert_eq!(*view.alarms, model.alarms);
        assert_eq!(view.keys(), model.now().len() as u64);
        for _ in 0..6 {
            compare_range(seed, &view, &model, &generator.range(model.revision()));
        }
        compare_reading_txn(seed, &view, &model, generator.txn(model.revision(), 2));
        compare_history(seed, &view, &model, &mut generator);
        compare_leases(&view, &model);
        assert_eq!(*world.told.leases.lock(), model.leases);
    }
    assert!(done > refused / 2, "seed {seed}: {done} done, {refused} refused");
    let told: Vec<Vec<Change>> = world.told.revisions.lock().iter().map(changes).collect();
    assert_eq!(told, model.changes[2..], "seed {seed}: what watchers were told");
    assert_eq!(world.told.compacted.lock().last().copied().unwrap_or(-1), model.compacted);
}

fn compare_range(seed: u64, view: &Arc<StateView>, model: &Model, request: &pb::RangeRequest) {
    let leaving = Leaving::default();
    let staying = leaving.staying();
    let asked = view.while_asked(&leaving);
    let ours = asked.range(request);
    assert_eq!(ours, view.range(request), "seed {seed}: {request:?}");
    drop(staying);
    // Counts come from memory.
    if ours.as_ref().is_ok_and(|answer| answer.returned > 1) {
        assert_eq!(asked.range(request), Err(ApiError::Storage), "seed {seed}: nobody waits any more");
    }
    let ours = ours.map(|answer| {
        let response = pb::RangeResponse::decode(&answer.body[..]).unwrap();
        assert_eq!((answer.count as i64, answer.more), (response.count, response.more));
        assert_eq!(answer.returned, response.kvs.len());
        response
    });
    let theirs = model.range(request);
    assert_eq!(ours, theirs, "seed {seed}: {request:?}");
    let Ok(theirs) = theirs else { return };
    // The same in pages.
    match RangePages::new(view, request.clone()) {
        Ok(mut pages) => {
            let mut bytes = vec![];
            let mut last = false;
            while let Some(page) = pages.next(view, 20).unwrap() {
                assert!(!last);
                bytes.extend_from_slice(&page.body);
                last = page.last;
            }
            assert!(last);
            assert_eq!(pb::RangeResponse::decode(&bytes[..]).unwrap(), theirs, "seed {seed}: {request:?}");
        }
        Err(error) => assert!(matches!(error, ApiError::StreamCustomSort | ApiError::StreamRevisionFilter)),
    }
}

/// A transaction that only reads is answered by a view as the machine would have.
fn compare_reading_txn(seed: u64, view: &StateView, model: &Model, mut txn: pb::TxnRequest) {
    fn keep_reads(txn: &mut pb::TxnRequest) {
        for branch in [&mut txn.success, &mut txn.failure] {
            branch.retain(|op| matches!(op.request, Some(Request::RequestRange(_) | Request::RequestTxn(_))));
            for op in branch {
                if let Some(Request::RequestTxn(nested)) = &mut op.request {
                    keep_reads(nested);
                }
            }
        }
    }
    keep_reads(&mut txn);
    assert!(chainfire::machine::txn::only_reads(&txn));
    let ours = view.txn(&txn).map(|body| {
        let header = pb::ResponseHeader { revision: view.revision, ..header() };
        Answer::Txn(pb::TxnResponse { header: Some(header), ..Message::decode(&body[..]).unwrap() })
    });
    let theirs = model.clone().apply(&Command::Txn(txn.clone()), header());
    // A raised CORRUPT alarm stops what is replicated, not what is read.
    if theirs != Err(ApiError::Corrupt) {
        assert_eq!(ours, theirs, "seed {seed}: {txn:?}");
    }
}

fn compare_history(seed: u64, view: &StateView, model: &Model, generator: &mut Generator) {
    let from = generator.rng.below(model.revision() as u64 + 3) as i64;
    let to = from + generator.rng.below(12) as i64;
    let (key, end) = generator.span();
    let bytes_max = [0, 300, 100_000][generator.rng.below(3) as usize];
    if from < model.compacted {
        assert_eq!(view.history(from, to, &key, &end, bytes_max), Err(ApiError::Compacted));
        return;
    }
    let mut at = from;
    let mut ours = vec![];
    while at <= to {
        let part = view.history(at, to, &key, &end, bytes_max).unwrap();
        assert!(part.next > at || at > model.revision());
        ours.extend(part.revisions.iter().map(|revision| (revision.revision, changes(revision))));
        at = part.next.max(at + 1);
    }
    let mut theirs = vec![];
    for revision in from.max(2)..=to.min(model.revision()) {
        let inside = model.changes[revision as usize].iter().filter(|change| covers(&change.kv.key, &key, &end));
        let kept = revision > model.compacted;
        let seen = |change: &Change| if kept { change.clone() } else { Change { prev: None, ..change.clone() } };
        let inside: Vec<Change> = inside.map(seen).collect();
        if !inside.is_empty() {
            theirs.push((revision, inside));
        }
    }
    assert_eq!(ours, theirs, "seed {seed}: history of {key:?} {end:?} from {from} to {to}");
}

fn compare_leases(view: &StateView, model: &Model) {
    let ours: Vec<_> =
        view.leases().unwrap().iter().map(|lease| (lease.id, (lease.ttl_s, lease.remaining_s))).collect();
    assert_eq!(ours, model.leases.clone().into_iter().collect::<Vec<_>>());
    for id in 1..6 {
        let keys = if model.leases.contains_key(&id) { model.lease_keys(id) } else { vec![] };
        assert_eq!(view.lease_keys(id).unwrap(), keys);
        assert_eq!(view.lease(id).unwrap().is_some(), model.leases.contains_key(&id));
    }
}

#[test]
fn the_machine_is_the_model_in_memory() {
    for seed in 0..150 {
        let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
        let other = engine.clone();
        // Now and then a long life, so that the past is far away.
        let batches = if seed % 10 == 1 { 300 } else { 60 };
        run(seed, engine, batches, &move |rng| {
            other.maybe_flush(rng);
            if rng.percent(10) {
                other.reclaim().unwrap();
            }
        });
    }
}

#[test]
fn the_machine_is_the_model_on_rocksdb() {
    for seed in 1_000..1_012 {
        let dir = tempfile::tempdir().unwrap();
        let engine = rocks(dir.path());
        let other = engine.clone();
        run(seed, engine, 60, &move |rng| match rng.below(30) {
            0 => other.flush().unwrap(),
            1 => other.reclaim().unwrap(),
            _ => {}
        });
    }
}

/// How entries are gathered into batches, and who asked for them, must leave no trace.
#[test]
fn batching_and_origin_leave_no_trace() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut generator = Generator { rng: rng.fork(1), keys: 30 };
        let mut plan = Model::new();
        let entries: Vec<Vec<Command>> = (0..40)
            .map(|_| {
                let commands: Vec<Command> = (0..rng.below(8)).map(|_| generator.command(plan.revision())).collect();
                for command in &commands {
                    let _ = plan.apply(command, header());
                }
                commands
            })
            .collect();
        let mut results = vec![];
        for split in 0..4 {
            let mut world = World::in_memory();
            let mut rest = &entries[..];
            let mut hashes = vec![];
            while !rest.is_empty() {
                let size = [1, 3, 40, 1 + rng.below(9) as usize][split].min(rest.len());
                let first = world.machine.mark().index + 1;
                let batch: Vec<Entry> = (first..)
                    .zip(&rest[..size])
                    .map(|(index, commands)| crate::world::entry(index, commands))
                    .collect();
                let local = if split % 2 == 0 { crate::world::LOCAL } else { base::PeerId(1) };
                let mut applied = Applied::default();
                world.machine.apply(&batch, local, &mut applied).unwrap();
                if split == 1 {
                    world.machine.tend().unwrap();
                }
                assert_eq!(applied.outcomes.is_empty(), split % 2 == 1 || batch.iter().all(is_empty));
                hashes.extend(applied.hashes);
                rest = &rest[size..];
            }
            let view = world.view();
            let hash = view.hash_kv(0).unwrap();
            results.push((view.mark, hashes, hash, content(&mut world)));
        }
        assert!(results.iter().all(|result| *result == results[0]), "seed {seed}");
    }
}

fn is_empty(entry: &Entry) -> bool {
    matches!(&entry.payload, Payload::Commands(commands) if commands.is_empty())
}

/// After a power cut the store is what it was after some earlier batch, and replaying the rest leads to the same end.
#[test]
fn a_crash_leaves_a_prefix_and_replay_heals_it() {
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let mut generator = Generator { rng: rng.fork(1), keys: 25 };
        let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
        let mut world = World::open(engine.clone());
        let mut states = vec![(world.view().mark, content(&mut world))];
        let mut log: Vec<Vec<Command>> = vec![];
        for _ in 0..80 {
            if rng.percent(8) {
                let durable = world.machine.durable().unwrap();
                engine.crash();
                world = World::open(engine.clone());
                let mark = world.machine.mark();
                assert_eq!(mark.index, durable, "seed {seed}");
                let state = states.iter().find(|(before, _)| before.index == mark.index).unwrap();
                assert_eq!(state.0, mark, "seed {seed}");
                assert!(content(&mut world) == state.1, "seed {seed}");
                let count = world.view().count(b"\0", b"\0").unwrap();
                assert_eq!(count, world.view().keys());
                for commands in &log[mark.index as usize..] {
                    world.apply(std::slice::from_ref(commands));
                }
                assert_eq!(world.machine.mark(), states.last().unwrap().0, "seed {seed}");
                continue;
            }
            let commands: Vec<Command> =
                (0..1 + rng.below(5)).map(|_| generator.command(world.view().revision)).collect();
            world.apply(std::slice::from_ref(&commands));
            log.push(commands);
            states.push((world.machine.mark(), content(&mut world)));
            if rng.percent(50) {
                engine.maybe_flush(&mut rng);
            }
            if rng.percent(10) {
                world.machine.flusher()().unwrap();
            }
        }
    }
}

/// HashKV at a revision stays what it was while later writes come, and differs as soon as anything does.
#[test]
fn hash_kv_sees_everything_up_to_its_revision_and_nothing_else() {
    let mut world = World::in_memory();
    let mut generator = Generator { rng: Rng::new(8), keys: 30 };
    let mut seen = vec![];
    for _ in 0..40 {
        let revision = world.view().revision;
        let put = pb::PutRequest { lease: 0, ignore_lease: false, ignore_value: false, ..generator.put() };
        let mut commands = vec![Command::Put(put)];
        if generator.rng.percent(30) {
            commands.push(Command::DeleteRange(pb::DeleteRangeRequest { key: generator.key(), ..Default::default() }));
        }
        world.apply(&[commands]);
        let view = world.view();
        assert!(view.revision > revision);
        seen.push((view.revision, view.hash_kv(0).unwrap().hash));
        for (revision, hash) in &seen {
            assert_eq!(view.hash_kv(*revision).unwrap().hash, *hash);
        }
    }
    let distinct: BTreeSet<u32> = seen.iter().map(|(_, hash)| *hash).collect();
    assert_eq!(distinct.len(), seen.len());
    let view = world.view();
    assert_eq!(view.hash_kv(view.revision + 1), Err(ApiError::FutureRevision));
    world.one(Command::Compact(pb::CompactionRequest { revision: 10, physical: false })).unwrap();
    let before = world.view().hash_kv(0).unwrap();
    assert_eq!(before.compacted, 10);
    assert_eq!(world.view().hash_kv(9), Err(ApiError::Compacted));
    world.engine.reclaim().unwrap();
    world.one(Command::LeaseGrant { id: 1, ttl_s: 9 }).unwrap();
    assert_eq!(world.view().hash_kv(0).unwrap(), before);
}

/// Readers on other threads always see one moment, and time never runs backwards, while the machine applies and installs.
#[test]
fn readers_see_one_moment_at_a_time() {
    let mut world = World::in_memory();
    let mut other = World::in_memory();
    let mut generator = Generator { rng: Rng::new(33), keys: 500 };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let reader = world.reader.clone();
            let done = &done;
            scope.spawn(move || {
                let all = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    let view = reader.current();
                    if !view.is_readable() {
                        continue;
                    }
                    let answer = view.range(&all).unwrap();
                    assert_eq!((answer.count, answer.returned as u64), (view.keys(), view.keys()));
                    assert!(view.revision >= last);
                    last = view.revision;
                }
            });
        }
        for round in 0..300 {
            let puts: Vec<Command> = (0..20)
                .map(|_| {
                    Command::Put(pb::PutRequest {
                        lease: 0,
                        ignore_value: false,
                        ignore_lease: false,
                        ..generator.put()
                    })
                })
                .collect();
            other.apply(&[puts.clone(), puts.clone()]);
            if round % 20 == 19 {
                let mut source = other.machine.snapshot().unwrap();
                let mut sink = world.machine.receiver().unwrap();
                while let Some(chunk) = source.next_chunk().unwrap() {
                    sink.write(chunk).unwrap();
                }
                sink.finish().unwrap();
                world.machine.install(&mut *sink).unwrap();
            } else {
                world.apply(&[puts]);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// Bytes that are no command are refused and change nothing, and the machine goes on.
#[test]
fn noise_in_the_log_is_refused() {
    let mut rng = Rng::new(21);
    let mut world = World::in_memory();
    for round in 0..3_000 {
        let mut noise: Vec<u8> = (0..rng.below(60)).map(|_| rng.next_u64() as u8).collect();
        if rng.percent(60) {
            // A real command with a few bytes changed.
            let mut generator = Generator { rng: rng.fork(2), keys: 10 };
            noise = generator.command(5).encode().to_vec();
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(noise.len() as u64) as usize;
                noise[at] = rng.next_u64() as u8;
            }
        }
        let mut builder = consensus::entry::CommandsBuilder::new(crate::world::LOCAL);
        builder.push(round, &noise);
        let payload = Payload::Commands(consensus::entry::Commands::decode(builder.finish()).unwrap());
        let entry = Entry { index: world.machine.mark().index + 1, term: 1, payload };
        let (mut applied, before) = (Applied::default(), world.machine.mark());
        let done = world.machine.apply(&[entry], crate::world::LOCAL, &mut applied);
        if Command::unknown_tag(&noise).is_some() {
            assert!(matches!(done, Err(MachineError::TooNew(_))), "{done:?}");
            assert_eq!((world.machine.mark(), applied.outcomes.len()), (before, 0), "nothing of it is done");
            continue;
        }
        done.unwrap();
        let (seq, outcome) = applied.outcomes.remove(0);
        assert_eq!(seq, round);
        assert!(outcome.code == 0 || ApiError::from_code(outcome.code).is_some());
        let _ = view_everything(&world.view());
    }
}

fn view_everything(view: &StateView) -> Bytes {
    let request = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
    view.range(&request).unwrap().body.into()
}
