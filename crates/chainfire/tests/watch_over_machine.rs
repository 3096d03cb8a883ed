//! Watchers over the real state machine: what it publishes, what its history says later, and what a follower that
//! installs snapshots lets its watchers see must all be one and the same sequence.

use std::sync::Arc;

use base::{ClusterId, NodeId, PeerId, Rng};
use bytes::Bytes;
use chainfire::command::Command as Replicated;
use chainfire::event::{EventSink, RevisionEvents};
use chainfire::machine::{Identity, Machine, layout::FAMILIES};
use chainfire::watch::check::{StreamCheck, Truth};
use chainfire::watch::{Command, CreateWatch, WatchHub, WatchOptions, WatchStream};
use consensus::entry::{Commands, CommandsBuilder};
use consensus::{Applied, Entry, Payload, StateMachine};
use parking_lot::Mutex;
use prost::Message as _;
use proto::etcdserverpb as pb;
use storage::memengine::MemEngine;

/// What the first replica publishes is the truth.
#[derive(Default)]
struct Witness(Mutex<Truth>);

impl EventSink for Witness {
    fn publish(&self, batch: Arc<Vec<RevisionEvents>>, revision: i64) {
        let mut truth = self.0.lock();
        batch.iter().for_each(|change| truth.push(change.clone()));
        assert_eq!(truth.revision(), revision);
    }

    fn compacted(&self, revision: i64) {
        self.0.lock().compact(revision);
    }

    fn reset(&self, _: i64) {
        panic!("the first replica never installs a snapshot");
    }
}

static FAMILIES_OF_THE_MACHINE: [storage::FamilySpec; 4] = FAMILIES;
const IDENTITY: Identity = Identity { cluster: ClusterId(1), member: NodeId(1) };

fn key(rng: &mut Rng) -> Bytes {
    Bytes::from(vec![b'a' + rng.below(5) as u8; 1 + rng.below(2) as usize])
}

fn command(rng: &mut Rng, revision: i64) -> Replicated {
    let put = |rng: &mut Rng| pb::PutRequest {
        key: key(rng),
        value: Bytes::from(vec![b'v'; rng.below(60) as usize]),
        ..Default::default()
    };
    let delete = |rng: &mut Rng| pb::DeleteRangeRequest {
        key: key(rng),
        range_end: if rng.percent(30) { Bytes::from_static(b"d") } else { Bytes::new() },
        ..Default::default()
    };
    match rng.below(20) {
        0..9 => Replicated::Put(put(rng)),
        9..13 => Replicated::DeleteRange(delete(rng)),
        13 => Replicated::Compact(pb::CompactionRequest { revision: revision - rng.below(40) as i64, physical: false }),
        14 => Replicated::LeaseGrant { id: 1 + rng.below(3) as i64, ttl_s: 60 },
        15 => Replicated::LeaseRevoke { id: 1 + rng.below(3) as i64 },
        16 => Replicated::Put(pb::PutRequest { lease: 1 + rng.below(3) as i64, ..put(rng) }),
        _ => {
            let mut keys = vec![key(rng), key(rng), key(rng)];
            keys.sort();
            keys.dedup();
            let success = keys.into_iter().map(|key| {
                let request = if rng.percent(60) {
                    pb::request_op::Request::RequestPut(pb::PutRequest { key, ..put(rng) })
                } else {
                    let delete = pb::DeleteRangeRequest { key, ..Default::default() };
                    pb::request_op::Request::RequestDeleteRange(delete)
                };
                pb::RequestOp { request: Some(request) }
            });
            Replicated::Txn(pb::TxnRequest { success: success.collect(), ..Default::default() })
        }
    }
}

fn read(stream: &WatchStream, check: &mut StreamCheck, truth: &Truth, seed: u64) -> bool {
    let responses = stream.poll();
    let more = responses.more() || !responses.is_empty();
    for message in responses.into_messages() {
        let seen = check.on_response(truth, &message).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        // The same in the eyes of the generated code.
        let decoded = pb::WatchResponse::decode(message).unwrap();
        assert_eq!((decoded.watch_id, decoded.events.len()), (seen.watch_id, seen.events.len()));
        assert_eq!(decoded.header.map(|header| (header.cluster_id, header.revision)), Some((7, seen.revision)));
        for (event, seen) in decoded.events.into_iter().zip(seen.events) {
            assert_eq!(event.r#type, seen.kind as i32);
            assert_eq!(event.kv.map(|kv| kv.encode_to_vec()), Some(seen.kv.to_vec()));
            assert_eq!(event.prev_kv.map(|kv| kv.encode_to_vec()), seen.prev.map(|kv| kv.to_vec()));
        }
    }
    more
}

fn copy(from: &Machine, to: &mut Machine) {
    let mut source = from.snapshot().unwrap();
    let mut sink = to.receiver().unwrap();
    while let Some(chunk) = source.next_chunk().unwrap() {
        sink.write(chunk).unwrap();
    }
    sink.finish().unwrap();
    drop(source);
    to.install(&mut *sink).unwrap();
}

/// One life of a replica that publishes, and of one that follows it by entries or by snapshots and is watched.
fn life(seed: u64) -> (u64, u64) {
    let mut rng = Rng::new(seed);
    let witness = Arc::new(Witness::default());
    let (mut first, _) =
        Machine::open(Arc::new(MemEngine::new(&FAMILIES_OF_THE_MACHINE)), IDENTITY, witness.clone()).unwrap();
    let hub = WatchHub::new(WatchOptions {
        cluster_id: 7,
        ring_bytes_max: 1 << (9 + rng.below(6)),
        notes_per_stream_max: 1 + rng.below(20) as usize,
        response_bytes: 1 << (6 + rng.below(8)),
        ..WatchOptions::default()
    });
    let engine = Arc::new(MemEngine::new(&FAMILIES_OF_THE_MACHINE));
    let (mut second, reader) = Machine::open(engine, IDENTITY, hub.clone()).unwrap();
    hub.begin(Arc::new(reader.clone()), reader.current().revision);
    let mut clients: Vec<(WatchStream, StreamCheck)> =
        (0..4).map(|_| (hub.open().unwrap(), StreamCheck::default())).collect();
    let mut behind: Vec<Entry> = Vec::new();
    let mut applied = Applied::default();
    for index in 1..400 {
        let mut commands = CommandsBuilder::new(PeerId(1));
        let revision = witness.0.lock().revision();
        for seq in 0..1 + rng.below(3) {
            commands.push(seq, &command(&mut rng, revision).encode());
        }
        let payload = Payload::Commands(Commands::decode(commands.finish()).unwrap());
        let entry = Entry { index, term: 1, payload };
        first.apply(std::slice::from_ref(&entry), PeerId(1), &mut applied).unwrap();
        behind.push(entry);
        match rng.below(20) {
            0 => {
                copy(&first, &mut second);
                behind.clear();
            }
            1..10 => {
                second.apply(&std::mem::take(&mut behind), PeerId(2), &mut applied).unwrap();
            }
            _ => {}
        }
        if rng.percent(40) {
            hub.dispatch();
        }
        let (stream, check) = &mut clients[rng.below(4) as usize];
        if rng.percent(10) {
            let range_end = [Bytes::new(), Bytes::from_static(b"\0"), Bytes::from_static(b"c")];
            let watch = CreateWatch {
                key: Bytes::from_static(b"b"),
                range_end: rng.pick(&range_end).cloned().unwrap_or_default(),
                start_revision: if rng.percent(50) { 0 } else { 1 + rng.below(revision as u64 + 9) as i64 },
                prev_kv: rng.percent(60),
                ..CreateWatch::default()
            };
            if stream.try_submit(Command::Create(watch.clone())).is_ok() {
                check.on_create(watch);
            }
        } else if rng.percent(50) {
            read(stream, check, &witness.0.lock(), seed);
        }
    }
    second.apply(&behind, PeerId(2), &mut applied).unwrap();
    while hub.dispatch() {}
    let mut events = 0;
    for (stream, check) in &mut clients {
        while read(stream, check, &witness.0.lock(), seed) {}
        let truth = witness.0.lock();
        check.check_caught_up(&truth, truth.revision()).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
        events += check.events();
    }
    (events, hub.stats().history_reads)
}

#[test]
fn watchers_see_what_the_machine_did() {
    let (mut events, mut history_reads) = (0, 0);
    for seed in 0..100 {
        let (more_events, more_reads) = life(seed);
        events += more_events;
        history_reads += more_reads;
    }
    assert!(events > 20_000 && history_reads > 500, "{events} events, {history_reads} reads of history");
}
