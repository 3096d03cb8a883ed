//! A region comes to another store, whose disk is full in the middle of it.

use base::hash;
use consensus::entry::{Commands, CommandsBuilder};
use consensus::{Applied, Entry, Payload, StateMachine as _};
use prost::Message as _;
use proto::flaredb as pb;
use proto::flaredb::command::What;
use storage::memengine::MemEngine;
use tempfile::TempDir;

use super::*;
use crate::region::RangeMap;
use crate::region::machine::RegionMachine;

const REGION_ID: GroupId = GroupId(5);
/// Two to a batch.
const VALUE_BYTES: usize = BATCH_BYTES / 2 + 1;
/// So many of them are a small region, and a large one.
const SMALL: u8 = 5;
const LARGE: u8 = 10;

struct Place {
    engine: Arc<MemEngine>,
    folder: TempDir,
    map: Arc<RangeMap>,
    machine: RegionMachine,
}

impl Place {
    fn new() -> Place {
        let engine = Arc::new(MemEngine::new(&layout::FAMILIES));
        let (folder, map) = (TempDir::new().unwrap(), Arc::<RangeMap>::default());
        let machine = open(&engine, &folder, &map).unwrap();
        Place { engine, folder, map, machine }
    }

    fn found(&mut self) {
        self.machine.set_range(Bytes::new(), Bytes::new());
        self.machine.found(Mark { index: 1, term: 1, hash: hash::START }, Bytes::new()).unwrap();
    }

    fn put(&mut self, key: &str, value: Vec<u8>) {
        let mut commands = CommandsBuilder::new(PeerId(1));
        let mutation = pb::Mutation { key: key.to_owned().into(), value: Some(value.into()) };
        let what = What::Write(pb::Write { mutations: vec![mutation], tell: false });
        commands.push(1, &pb::Command { version: 1, what: Some(what) }.encode_to_vec());
        let payload = Payload::Commands(Commands::decode(commands.finish()).unwrap());
        let index = self.machine.mark().index + 1;
        let mut applied = Applied::default();
        self.machine.apply(&[Entry { index, term: 1, payload }], PeerId(1), &mut applied).unwrap();
        assert_eq!(applied.outcomes[0].1.code, 0);
    }

    fn has(&self, key: &str) -> Option<Bytes> {
        self.engine.get(RAW, &layout::raw_key(key.as_bytes())).unwrap()
    }

    fn is_answered(&self) -> bool {
        self.map.find(b"k1").is_some()
    }

    fn receive(&self, from: &Place) -> Receiver {
        let mut stream = from.machine.snapshot().unwrap();
        let mut receiver = Receiver::new(self.engine.clone(), self.folder.path(), REGION_ID).unwrap();
        while let Some(chunk) = stream.next_chunk().unwrap() {
            receiver.write(chunk).unwrap();
        }
        receiver.finish().unwrap();
        receiver
    }
}

fn open(engine: &Arc<MemEngine>, folder: &TempDir, map: &Arc<RangeMap>) -> Result<RegionMachine, MachineError> {
    RegionMachine::open(engine.clone(), folder.path().to_owned(), REGION_ID, map.clone(), Arc::new(|_| {}))
}

fn is_no_space<T>(result: Result<T, MachineError>) -> bool {
    matches!(result, Err(MachineError::Engine(EngineError::NoSpace(_))))
}

/// Whichever write finds no room, and whether the store goes on or begins anew: nothing of it is answered, and with room it
/// comes to what the sender has.
#[test]
fn a_disk_that_is_full_in_the_middle_is_waited_for() {
    let failed_at = [SMALL, LARGE].map(is_waited_for);
    assert!(failed_at.iter().all(|failed_at| failed_at.len() >= 3), "it takes several writes: {failed_at:?}");
}

/// After how many writes the disk was full, with a region of so many values.
fn is_waited_for(values: u8) -> Vec<u64> {
    let mut sender = Place::new();
    sender.found();
    for number in 0..values {
        sender.put(&format!("k{number}"), vec![number; VALUE_BYTES]);
    }
    let mut failed_at = Vec::new();
    for writes in 0.. {
        let mut fails = false;
        for begins_anew in [false, true] {
            let mut late = Place::new();
            late.found();
            late.put("k1", b"old".to_vec());
            late.put("gone", b"old".to_vec());
            late.engine.flush().unwrap();
            assert!(late.is_answered());
            let mut receiver = late.receive(&sender);
            late.engine.set_full_after(writes);
            fails = is_no_space(late.machine.install(&mut receiver));
            if fails {
                assert!(!late.is_answered(), "after {writes} writes something is answered");
                assert!(is_no_space(late.machine.install(&mut receiver)), "it is still full");
            }
            if fails && begins_anew {
                late.engine.flush().unwrap();
                late.engine.crash();
                drop(receiver);
                late.map = Arc::default();
                late.engine.set_full(true);
                assert!(is_no_space(open(&late.engine, &late.folder, &late.map)), "a start finds no room either");
                late.engine.set_full(false);
                late.machine = open(&late.engine, &late.folder, &late.map).unwrap();
            } else if fails {
                late.engine.set_full(false);
                late.machine.install(&mut receiver).unwrap();
            }
            assert!(late.is_answered());
            assert_eq!(late.machine.mark(), sender.machine.mark());
            for number in 0..values {
                assert_eq!(late.has(&format!("k{number}")), sender.has(&format!("k{number}")));
            }
            assert_eq!(late.has("gone"), None);
            assert_eq!(fs::read_dir(late.folder.path()).unwrap().count(), 0, "nothing is left in incoming/");
        }
        if !fails {
            break;
        }
        failed_at.push(writes);
    }
    failed_at
}

/// Tables that were taken over stay until all is in place: a power cut in between takes nothing away.
#[test]
fn a_large_one_is_in_tables_until_it_is_in_place() {
    for (values, in_tables) in [(SMALL, false), (LARGE, true)] {
        let mut sender = Place::new();
        sender.found();
        (0..values).for_each(|number| sender.put(&format!("k{number}"), vec![number; VALUE_BYTES]));
        let mut late = Place::new();
        let mut receiver = late.receive(&sender);
        receiver.decide().unwrap();
        let whole = whole(late.folder.path(), REGION_ID);
        assert_eq!(whole.is_dir(), in_tables);
        let kept = decided(late.folder.path(), |_| true).unwrap();
        assert_eq!(kept.iter().map(|state| state.mark).collect::<Vec<_>>(), [sender.machine.mark()]);
        for _ in 0..2 {
            // It was put in place, and word of that did not reach the disk.
            let again = late.folder.path().join("again");
            assert!(std::process::Command::new("cp").arg("-r").args([&whole, &again]).status().unwrap().success());
            roll_forward(&*late.engine, late.folder.path(), REGION_ID).unwrap().clear_away();
            assert!(!whole.exists());
            fs::rename(&again, &whole).unwrap();
        }
        late.map = Arc::default();
        late.machine = open(&late.engine, &late.folder, &late.map).unwrap();
        assert_eq!(late.machine.mark(), sender.machine.mark());
        for number in 0..values {
            assert_eq!(late.has(&format!("k{number}")), sender.has(&format!("k{number}")));
        }
        assert_eq!(fs::read_dir(late.folder.path()).unwrap().count(), 0, "nothing is left in incoming/");
    }
}

#[test]
fn what_was_let_go_of_leaves_nothing() {
    let mut sender = Place::new();
    sender.found();
    (0..LARGE).for_each(|number| sender.put(&format!("k{number}"), vec![number; VALUE_BYTES]));
    let late = Place::new();
    drop(late.receive(&sender));
    assert_eq!(fs::read_dir(late.folder.path()).unwrap().count(), 0);
}

/// The stream of a peer that was taken away comes on while the next one's is taken in.
#[test]
fn two_streams_of_a_region_do_not_meet() {
    for values in [SMALL, LARGE] {
        let (mut older, mut newer) = (Place::new(), Place::new());
        for (sender, value) in [(&mut older, b'o'), (&mut newer, b'n')] {
            sender.found();
            (0..values).for_each(|number| sender.put(&format!("k{number}"), vec![value; VALUE_BYTES]));
        }
        older.put("older", b"than the other".to_vec());
        let mut late = Place::new();
        let mut stream = older.machine.snapshot().unwrap();
        let mut left = Receiver::new(late.engine.clone(), late.folder.path(), REGION_ID).unwrap();
        let mut chunks = 0;
        while let Some(chunk) = stream.next_chunk().unwrap() {
            left.write(chunk).unwrap();
            chunks += 1;
            if chunks == 3 {
                let mut receiver = late.receive(&newer);
                receiver.decide().unwrap();
                receiver.is_in_place();
            }
        }
        left.finish().unwrap();
        drop(left);
        late.map = Arc::default();
        late.machine = open(&late.engine, &late.folder, &late.map).unwrap();
        assert_eq!(late.machine.mark(), newer.machine.mark());
        for number in 0..values {
            assert_eq!(late.has(&format!("k{number}")), newer.has(&format!("k{number}")));
        }
        assert_eq!(late.has("older"), None);
        assert_eq!(fs::read_dir(late.folder.path()).unwrap().count(), 0, "nothing is left in incoming/");
    }
}

/// Something of an earlier life is where what was put in place is to go.
#[test]
fn what_could_not_be_removed_keeps_nobody_waiting() {
    let mut sender = Place::new();
    sender.found();
    (0..LARGE).for_each(|number| sender.put(&format!("k{number}"), vec![number; VALUE_BYTES]));
    let mut late = Place::new();
    let going = late.folder.path().join(format!("region-{REGION_ID}.going"));
    fs::create_dir(&going).unwrap();
    fs::write(going.join("00000.sst"), "…").unwrap();
    let mut receiver = late.receive(&sender);
    late.machine.install(&mut receiver).unwrap();
    assert_eq!(late.machine.mark(), sender.machine.mark());
    assert_eq!(fs::read_dir(late.folder.path()).unwrap().count(), 0);
}

#[test]
fn what_was_being_removed_goes_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    forget_others(&folder.path().join("none"), |_| true).unwrap();
    for name in ["region-1.going", "region-2.whole", "region-3.whole", "region-3-0.part"] {
        fs::write(folder.path().join(name), "…").unwrap();
    }
    for name in ["region-4.going", "region-5.whole", "region-3-1.part"] {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join(REST), "…").unwrap();
    }
    forget_others(folder.path(), |region| region.0 == 3).unwrap();
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["region-3.whole"]);
}
