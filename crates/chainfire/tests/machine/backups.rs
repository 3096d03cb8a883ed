//! Full and incremental backups: a restored chain is the state that it was taken from, whatever happened in between, and
//! changes that do not follow on a state are refused.

use std::sync::Arc;

use base::Rng;
use bytes::Bytes;
use chainfire::command::Command;
use chainfire::error::ApiError;
use chainfire::machine::record::Record;
use chainfire::machine::{changes, layout, replay, snapshot};
use chainfire::read::StateView;
use consensus::{MachineError, SnapshotSource, StateMachine};
use proto::content::{Check, Counts, FAMILIES};
use proto::etcdserverpb as pb;
use proto::snapshot::{Header, Reader, Writer};
use storage::memengine::MemEngine;
use storage::{Engine, FamilyId};

use crate::world::{Generator, World, content, rocks};

fn memory() -> Arc<MemEngine> {
    Arc::new(MemEngine::new(&layout::FAMILIES))
}

fn all_of(mut source: impl SnapshotSource) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(chunk) = source.next_chunk().unwrap() {
        assert!(chunk.len() <= proto::snapshot::FRAME_BYTES_MAX);
        out.extend_from_slice(&chunk);
    }
    out
}

fn full(view: Arc<StateView>) -> Vec<u8> {
    all_of(snapshot::stream(view, 0))
}

fn since(view: Arc<StateView>, revision: i64) -> Vec<u8> {
    all_of(changes::stream(view, revision).unwrap())
}

/// The pairs of a stream.
fn pairs(stream: &[u8]) -> (Header, Vec<(u8, Bytes, Bytes)>) {
    let mut reader = Reader::new(FAMILIES);
    let mut out = Vec::new();
    reader.feed(stream);
    while let Some(pair) = reader.pair().unwrap() {
        out.push((pair.family, Bytes::copy_from_slice(pair.key), Bytes::copy_from_slice(pair.value)));
    }
    (reader.finish().unwrap().header, out)
}

fn stream_of(header: &Header, pairs: &[(u8, Bytes, Bytes)]) -> Vec<u8> {
    let mut writer = Writer::default();
    let mut out = writer.header(header).to_vec();
    let mut data = Vec::new();
    pairs.iter().for_each(|(family, key, value)| writer.put_pair(&mut data, *family, key, value));
    data.chunks(5_000).for_each(|payload| out.extend_from_slice(&writer.data(payload)));
    out.extend_from_slice(&writer.trailer());
    out
}

/// What a client finds in a stream.
fn looked_at(stream: &[u8]) -> Result<Counts, String> {
    let mut reader = Reader::new(FAMILIES);
    let mut check = Check::default();
    reader.feed(stream);
    while let Some((pair, header)) = reader.pair_and_header().map_err(|why| why.0)? {
        check.pair(header, pair).map_err(|why| why.0)?;
    }
    check.finish(reader.header()).map_err(|why| why.0)
}

/// All that a backup promises to bring back: not alarms, nor where the log stood, nor what is only physical.
fn kept(world: &mut World) -> Vec<(u8, Bytes, Bytes)> {
    let mut all = content(world);
    all.retain(|(family, key, _)| {
        FamilyId(*family) != layout::META || [layout::LEASE, layout::ATTACHED].contains(&key[0])
    });
    all
}

fn live(world: &mut World, generator: &mut Generator, rounds: usize, compacts: bool) {
    for _ in 0..rounds {
        let commands: Vec<Command> = (0..20)
            .map(|_| generator.command(world.view().revision))
            .filter(|command| compacts || !matches!(command, Command::Compact(_)))
            .filter(|command| !matches!(command, Command::Alarm { .. }))
            .collect();
        world.apply(&[commands]);
    }
}

#[test]
fn a_chain_restores_what_it_was_taken_from() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    for seed in 0..12 {
        let [from, to]: [Arc<dyn Engine>; 2] =
            if seed == 0 { [rocks(folders[0].path()), rocks(folders[1].path())] } else { [memory(), memory()] };
        let mut world = World::open(from);
        let mut generator = Generator { rng: Rng::new(seed), keys: if seed % 2 == 0 { 30 } else { 400 } };
        live(&mut world, &mut generator, 20, true);
        let base = full(world.view());
        assert_eq!(looked_at(&base).unwrap().keys, world.view().keys());
        let mut last = world.view().revision;
        snapshot::restore(&*to, &base[..]).unwrap();
        for round in 0..8 {
            live(&mut world, &mut generator, round * 3, false);
            let changes = since(world.view(), last);
            looked_at(&changes).unwrap();
            let done = replay::replay(&*to, &changes[..]).unwrap();
            last = world.view().revision;
            assert_eq!((done.revision, done.unknown_leases), (last, 0));
            let mut restored = World::open(to.clone());
            assert_eq!(restored.view().hash_kv(0), world.view().hash_kv(0), "seed {seed}, round {round}");
            assert_eq!(restored.view().keys(), world.view().keys());
            assert!(kept(&mut restored) == kept(&mut world), "seed {seed}, round {round}");
        }
        // What comes after is the same too, and so is what a compaction leaves.
        let mut restored = World::open(to.clone());
        let compact = Command::Compact(pb::CompactionRequest { revision: last, physical: false });
        let commands: Vec<Command> =
            [compact].into_iter().chain((0..60).map(|_| generator.command(last))).filter(no_alarm).collect();
        let entry = [commands];
        assert_eq!(restored.apply(&entry).len(), world.apply(&entry).len());
        assert_eq!(restored.view().hash_kv(0), world.view().hash_kv(0), "seed {seed}");
        assert!(kept(&mut restored) == kept(&mut world), "seed {seed}");
    }
}

/// A change but for the value and the lease that it left; `None` for what makes no sense.
fn told(key: &[u8], value: &[u8]) -> Option<(u32, i64, Option<[i64; 3]>, Bytes)> {
    let rev = layout::Rev::read(key, value).ok()?;
    let record = rev.record.map(Record::read).transpose().ok()?;
    let key = Bytes::copy_from_slice(record.map_or(rev.key, |record| record.key));
    let numbers = record.map(|record| [record.create_revision, record.mod_revision, record.version]);
    Some((rev.place, rev.previous, numbers, key))
}

fn no_alarm(command: &Command) -> bool {
    !matches!(command, Command::Alarm { .. })
}

#[test]
fn what_was_compacted_since_is_readable_again() {
    let mut world = World::open(memory());
    let mut generator = Generator { rng: Rng::new(1), keys: 40 };
    live(&mut world, &mut generator, 20, false);
    let (base, revision) = (full(world.view()), world.view().revision);
    live(&mut world, &mut generator, 20, false);
    let middle = world.view().revision - 30;
    let hash = world.view().hash_kv(middle).unwrap();
    let changes = since(world.view(), revision);
    world.one(Command::Compact(pb::CompactionRequest { revision: revision + 2, physical: true })).unwrap();
    while world.machine.tend().unwrap() {}
    // The history begins later: an incremental backup is not possible any more.
    let refused = |since| changes::stream(world.view(), since).map(|_| ()).unwrap_err();
    assert_eq!(refused(revision), ApiError::Compacted);
    assert_eq!(refused(world.view().revision + 1), ApiError::FutureRevision);
    changes::stream(world.view(), revision + 1).unwrap();
    let to = memory();
    snapshot::restore(&*to, &base[..]).unwrap();
    replay::replay(&*to, &changes[..]).unwrap();
    assert_eq!(World::open(to).view().hash_kv(middle).unwrap(), hash);
}

#[test]
fn leases_that_came_and_went_between_backups_do_not_keep_keys_for_ever() {
    let mut world = World::open(memory());
    let grant = |id| Command::LeaseGrant { id, ttl_s: 60 };
    let put = |key: &'static str, lease| Command::Put(pb::PutRequest { key: key.into(), lease, ..Default::default() });
    world.apply(&[vec![grant(1), put("a", 1)]]);
    let base = full(world.view());
    let revision = world.view().revision;
    world.apply(&[vec![grant(2), put("b", 2), put("c", 2)]]);
    let cut = world.view().revision;
    world.apply(&[vec![Command::LeaseRevoke { id: 1 }, Command::LeaseRevoke { id: 2 }]]);
    // The changes up to a revision in the middle, with the leases of the end.
    let (header, mut pairs) = pairs(&since(world.view(), revision));
    pairs.retain(|(_, key, _)| key[..8] <= cut.to_be_bytes()[..]);
    let to = memory();
    snapshot::restore(&*to, &base[..]).unwrap();
    let done = replay::replay(&*to, &stream_of(&Header { revision: cut, ..header }, &pairs)[..]).unwrap();
    assert_eq!((done.changes, done.unknown_leases), (2, 1));
    let view = World::open(to).view();
    let ttl = |id| view.lease(id).unwrap().map(|lease| lease.ttl_s);
    assert_eq!((ttl(1), ttl(2)), (Some(60), Some(replay::UNKNOWN_LEASE_TTL_S)));
    assert_eq!(view.lease_keys(2).unwrap(), ["b", "c"]);
}

#[test]
fn changes_that_do_not_follow_on_the_state_are_refused() {
    let mut world = World::open(memory());
    let mut generator = Generator { rng: Rng::new(3), keys: 20 };
    live(&mut world, &mut generator, 10, false);
    let (base, revision) = (full(world.view()), world.view().revision);
    live(&mut world, &mut generator, 10, false);
    let intact = since(world.view(), revision);
    let (header, good) = pairs(&intact);
    let replayed = |stream: &[u8]| {
        let to = memory();
        snapshot::restore(&*to, &base[..]).unwrap();
        replay::replay(&*to, stream)
    };
    assert_eq!(replayed(&stream_of(&header, &good)).unwrap().revision, header.revision);
    let refused = |header: &Header, pairs: &[(u8, Bytes, Bytes)], what: &str| {
        let error = replayed(&stream_of(header, pairs)).expect_err(what);
        assert!(matches!(error, MachineError::BadSnapshot(_) | MachineError::Damaged(_)), "{what}: {error}");
    };
    // Planted faults, under good checksums: each of the changes missing, or another one.
    let history = good.iter().filter(|(family, ..)| FamilyId(*family) == layout::REV).count();
    assert!(history > 100);
    for at in (0..history).step_by(7) {
        let mut without = good.clone();
        without.remove(at);
        refused(&header, &without, "a change is missing");
        for byte in 0..good[at].2.len() {
            let mut other = good.clone();
            let mut value = other[at].2.to_vec();
            value[byte] ^= 1;
            // What a client wrote, and the lease it named, is nobody's but the digests' to hold.
            let alike = told(&good[at].1, &good[at].2) == told(&other[at].1, &value);
            other[at].2 = value.into();
            if !alike {
                refused(&header, &other, "a change is another");
            }
        }
    }
    refused(&Header { since: Some(revision + 1), ..header.clone() }, &good, "it begins later");
    refused(&Header { since: Some(revision - 1), ..header.clone() }, &good, "it begins earlier");
    refused(&Header { revision: header.revision + 1, ..header.clone() }, &good, "it ends later");
    refused(&Header { since: None, ..header.clone() }, &good, "it is no stream of changes");
    let mut foreign = good.clone();
    foreign.insert(0, (0, Bytes::from_static(b"k"), Bytes::from_static(b"v")));
    refused(&header, &foreign, "it brings live keys along");
    // A whole state is wanted where changes are given, and the other way round.
    assert!(replayed(&base).is_err());
    assert!(snapshot::restore(&*memory(), &intact[..]).unwrap_err().to_string().contains("changes since revision"));
    for cut in (0..intact.len()).step_by(997) {
        assert!(replayed(&intact[..cut]).is_err(), "cut at {cut}");
    }
}

/// Each of the rules by which a client judges a backup is broken once, under good checksums.
#[test]
fn a_client_sees_what_makes_no_sense_in_a_backup() {
    let mut world = World::open(memory());
    let mut generator = Generator { rng: Rng::new(5), keys: 40 };
    live(&mut world, &mut generator, 12, false);
    let put = pb::PutRequest { key: "leased".into(), lease: 77, ..Default::default() };
    world.apply(&[vec![Command::LeaseGrant { id: 77, ttl_s: 9 }, Command::Put(put)]]);
    let revision = world.view().revision;
    live(&mut world, &mut generator, 4, false);
    let (header, good) = pairs(&full(world.view()));
    let counts = looked_at(&stream_of(&header, &good)).unwrap();
    assert_eq!(counts.keys, world.view().keys());
    assert!(counts.changes > 100 && counts.attached > 0 && counts.leases > 0);
    type Pairs = Vec<(u8, Bytes, Bytes)>;
    let broken = |header: &Header, break_it: &dyn Fn(&mut Pairs), what: &str| {
        let mut pairs = good.clone();
        break_it(&mut pairs);
        looked_at(&stream_of(header, &pairs)).expect_err(what)
    };
    let at = |pairs: &Pairs, family: u8, first: u8| {
        pairs.iter().position(|(f, key, _)| *f == family && (first == 0 || key[0] == first)).unwrap()
    };
    broken(&header, &|pairs| drop(pairs.remove(at(pairs, 0, 0))), "a key is missing");
    broken(&header, &|pairs| drop(pairs.remove(at(pairs, 3, b'k'))), "an attachment is missing");
    broken(&header, &|pairs| drop(pairs.remove(at(pairs, 3, b'm'))), "the state is missing");
    broken(&header, &|pairs| pairs.retain(|(family, key, _)| *family != 3 || key[0] != b'b'), "counts are missing");
    broken(&header, &|pairs| drop(pairs.remove(at(pairs, 2, 0) + 20)), "a revision of the history is missing");
    broken(&header, &|pairs| pairs[0].2 = Bytes::from_static(b"\xff"), "a record is none");
    broken(&header, &|pairs| pairs[0].2 = pairs[1].2.clone(), "a record is another key's");
    for first in *b"abcgklmn" {
        if good.iter().any(|(family, key, _)| *family == 3 && key[0] == first) {
            let longer = |pairs: &mut Pairs| {
                let at = at(pairs, 3, first);
                pairs[at].2 = [&pairs[at].2[..], b"x"].concat().into();
            };
            broken(&header, &longer, "a value of meta is too long");
        }
    }
    broken(&header, &|pairs| pairs.push((3, Bytes::from_static(b"z"), Bytes::new())), "nobody knows this key");
    broken(&Header { revision: header.revision - 9, ..header.clone() }, &|_| (), "the header is older");
    let (changes_header, changes) = pairs(&since(world.view(), revision));
    looked_at(&stream_of(&changes_header, &changes)).unwrap();
    for at in [0, 1, changes.len() / 2] {
        let mut without = changes.clone();
        let gone = without[at].1.slice(..8);
        without.retain(|(family, key, _)| *family != 2 || key[..8] != gone[..]);
        looked_at(&stream_of(&changes_header, &without)).expect_err("a revision is missing");
    }
    let mut more = changes.clone();
    more.insert(0, good[0].clone());
    looked_at(&stream_of(&changes_header, &more)).expect_err("changes hold no live keys");
}
