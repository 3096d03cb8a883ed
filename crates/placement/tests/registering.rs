//! Who is taken in as a store, under which id, and what becomes of one that has fallen silent.

use std::sync::Arc;

use base::{ClusterId, PeerId};
use bytes::Bytes;
use consensus::entry::{Commands, CommandsBuilder};
use consensus::{Applied, Entry, Payload, StateMachine};
use placement::machine::{self, FAMILIES, PlacementMachine};
use prost::Message as _;
use proto::placement::{self as pb, StoreState, command::What};
use storage::memengine::MemEngine;

const LOCAL: PeerId = PeerId(1);

struct Driver {
    machine: PlacementMachine,
    index: u64,
}

impl Driver {
    fn new() -> Driver {
        let engine = Arc::new(MemEngine::new(&FAMILIES));
        let mut machine = PlacementMachine::open(engine, ClusterId(7)).unwrap();
        machine.found(consensus::Mark { index: 1, term: 1, hash: base::hash::START }, Bytes::new()).unwrap();
        Driver { machine, index: 1 }
    }

    fn execute(&mut self, what: What) -> Result<Bytes, (u32, String)> {
        let mut builder = CommandsBuilder::new(LOCAL);
        builder.push(1, &pb::Command { what: Some(what) }.encode_to_vec());
        self.index += 1;
        let payload = Payload::Commands(Commands::decode(builder.finish()).unwrap());
        let mut applied = Applied::default();
        self.machine.apply(&[Entry { index: self.index, term: 1, payload }], LOCAL, &mut applied).unwrap();
        let (_, outcome) = applied.outcomes.pop().unwrap();
        match outcome.code {
            0 => Ok(outcome.body),
            code => Err((code, String::from_utf8(outcome.body.to_vec()).unwrap())),
        }
    }

    /// A store at a place of its own asks to be taken in; `silent`: what the leader has not heard of lately.
    fn register(&mut self, asked: Asked, silent: &[u64]) -> Result<u64, (u32, String)> {
        let request = pb::RegisterRequest {
            store_id: asked.id,
            incarnation: asked.incarnation,
            client_url: format!("http://{}:2379", asked.place),
            peer_url: format!("{}:2380", asked.place),
            any_id: asked.empty,
            silent_stores: silent.to_vec(),
            ..pb::RegisterRequest::default()
        };
        let body = self.execute(What::Register(request))?;
        Ok(pb::RegisterResponse::decode(body).unwrap().store_id)
    }

    fn store(&self, id: u64) -> pb::Store {
        self.machine.records().read().stores[&id].clone()
    }

    /// The first region is there.
    fn founded(&mut self) {
        let region = self.machine.records().read().founding.clone().unwrap().region.unwrap();
        self.execute(What::Save(pb::SaveRegions { regions: vec![region] })).unwrap();
    }
}

#[derive(Clone, Copy)]
struct Asked {
    id: u64,
    incarnation: u64,
    place: &'static str,
    empty: bool,
}

fn folder(incarnation: u64, place: &'static str) -> Asked {
    Asked { id: 0, incarnation, place, empty: false }
}

fn empty(id: u64, incarnation: u64, place: &'static str) -> Asked {
    Asked { id, incarnation, place, empty: true }
}

#[test]
fn an_empty_folder_takes_the_place_of_a_silent_store_and_not_its_id() {
    for asked in [0, 1] {
        let mut pd = Driver::new();
        assert_eq!(pd.register(empty(1, 100, "a"), &[]), Ok(1));
        assert_eq!(pd.register(empty(2, 200, "b"), &[]), Ok(2));
        pd.founded();
        let newcomer = empty(asked, 101, "a");
        let (code, why) = pd.register(newcomer, &[2]).unwrap_err();
        assert!(code == machine::ALREADY_EXISTS && why.contains("duplicate"), "{why}");
        assert_eq!(pd.store(1).state(), StoreState::Up);

        let id = pd.register(newcomer, &[1]).unwrap();
        assert!(id > 2, "store {id}");
        let (lost, new) = (pd.store(1), pd.store(id));
        assert_eq!((lost.state(), lost.replaced_by, lost.client_url.as_str()), (StoreState::Offline, id, ""));
        assert_eq!((new.state(), new.incarnation, new.peer_url.as_str()), (StoreState::Up, 101, "a:2380"));
        // It is who it is from now on, also when it starts again.
        assert_eq!(pd.register(Asked { id, ..folder(101, "a") }, &[]), Ok(id));
        // And the next one whose configuration has that id takes another one too.
        let third = pd.register(empty(asked, 102, "c"), &[]).unwrap();
        assert!(third > id);
        let up = pd.execute(What::SetState(pb::SetStoreState { store_id: 1, state: StoreState::Up as i32 }));
        assert!(up.unwrap_err().1.contains("has its place"));
    }
}

#[test]
fn a_store_that_lost_its_place_comes_back_as_it_was_at_another() {
    let mut pd = Driver::new();
    assert_eq!(pd.register(empty(1, 100, "a"), &[]), Ok(1));
    pd.founded();
    let id = pd.register(empty(0, 101, "a"), &[1]).unwrap();
    let (code, why) = pd.register(Asked { id: 1, ..folder(100, "a") }, &[]).unwrap_err();
    assert_eq!(code, machine::ALREADY_EXISTS);
    assert!(why.contains(&format!("store {id} is at")) && why.contains("addresses of its own"), "{why}");
    assert_eq!(pd.register(folder(100, "z"), &[]), Ok(1));
    let back = pd.store(1);
    assert_eq!((back.state(), back.replaced_by, back.given_up), (StoreState::Up, 0, false));

    // What people have decided stays decided.
    pd.execute(What::SetState(pb::SetStoreState { store_id: 1, state: StoreState::Offline as i32 })).unwrap();
    pd.register(empty(0, 102, "z"), &[1]).unwrap();
    assert_eq!(pd.register(folder(100, "y"), &[]), Ok(1));
    assert_eq!(pd.store(1).state(), StoreState::Offline);
}

#[test]
fn another_place_or_a_used_folder_takes_no_silent_stores_id() {
    let mut pd = Driver::new();
    assert_eq!(pd.register(empty(1, 100, "a"), &[]), Ok(1));
    pd.founded();
    for asked in [empty(1, 101, "b"), Asked { empty: false, ..empty(1, 101, "a") }] {
        let (code, why) = pd.register(asked, &[1]).unwrap_err();
        assert!(code == machine::FAILED_PRECONDITION && why.contains("another store_id"), "{why}");
    }
    assert_eq!(pd.store(1).state(), StoreState::Up);
    pd.execute(What::SetState(pb::SetStoreState { store_id: 1, state: StoreState::Tombstone as i32 })).unwrap();
    let (_, why) = pd.register(empty(1, 101, "a"), &[1]).unwrap_err();
    assert!(why.contains("not used again"), "{why}");
    assert!(pd.register(folder(100, "a"), &[]).unwrap_err().1.contains("was removed"));
}

/// However long the placement driver has not heard of the original: others may have.
#[test]
fn a_copied_folder_is_refused_until_people_say_that_it_was_moved() {
    let mut pd = Driver::new();
    assert_eq!(pd.register(empty(1, 100, "a"), &[]), Ok(1));
    assert_eq!(pd.register(empty(2, 200, "b"), &[]), Ok(2));
    pd.founded();
    let before = pd.store(1);
    let copies = [folder(100, "c"), Asked { id: 1, ..folder(100, "c") }, empty(1, 100, "c"), empty(0, 100, "b")];
    for silent in [&[][..], &[1], &[1, 2]] {
        for copy in copies {
            let (code, why) = pd.register(copy, silent).unwrap_err();
            assert!(code == machine::ALREADY_EXISTS && why.contains("store 1 at http://a:2379 / a:2380"), "{why}");
            assert!(why.contains("one of the two is a copy") && why.contains("stores moved 1"), "{why}");
            assert_eq!(pd.store(1), before, "the original is as it was");
        }
        // The same id with another folder is no better off.
        let (_, why) = pd.register(Asked { id: 1, ..folder(101, "c") }, silent).unwrap_err();
        assert!(why.contains("duplicate store_id 1"), "{why}");
    }
    assert_eq!(pd.register(folder(100, "a"), &[1]), Ok(1), "the original comes back");

    // With TLS from now on, or by another name for clients.
    let secure = pb::RegisterRequest {
        incarnation: 100,
        client_url: "https://store1:2379".to_owned(),
        peer_url: "https://a:2380".to_owned(),
        ..pb::RegisterRequest::default()
    };
    pd.execute(What::Register(secure)).unwrap();
    assert_eq!(pd.store(1).client_url, "https://store1:2379");

    let moved = pb::SetStore { store_id: 1, moved: true, ..pb::SetStore::default() };
    pd.execute(What::SetStore(moved.clone())).unwrap();
    assert_eq!(pd.register(folder(100, "c"), &[1]), Ok(1));
    assert_eq!((pd.store(1).peer_url.as_str(), pd.store(1).may_move), ("c:2380", false));
    // Once: what is left where it was is the copy then.
    assert!(pd.register(folder(100, "a"), &[1]).unwrap_err().1.contains("store 1 at http://c:2379"));
    // Where it stayed after all, it is not to be moved any more.
    pd.execute(What::SetStore(moved)).unwrap();
    assert_eq!(pd.register(folder(100, "c"), &[]), Ok(1));
    assert!(pd.register(folder(100, "a"), &[1]).is_err());
}

#[test]
fn a_damaged_store_is_given_up_for_good() {
    let mut pd = Driver::new();
    assert_eq!(pd.register(empty(1, 100, "a"), &[]), Ok(1));
    pd.founded();
    let at = |place: &str, incarnation| pb::RegisterRequest {
        incarnation,
        client_url: format!("http://{place}:2379"),
        peer_url: format!("{place}:2380"),
        lost: true,
        ..pb::RegisterRequest::default()
    };
    let lost = |incarnation| at("a", incarnation);
    // A copy, torn while it was made, does not end the original.
    let (code, why) = pd.execute(What::Register(at("b", 100))).unwrap_err();
    assert!(code == machine::ALREADY_EXISTS && why.contains("a copy"), "{why}");
    assert_eq!(pd.store(1).state(), StoreState::Up);
    assert_eq!(pd.execute(What::Register(lost(9))).unwrap_err().0, machine::NOT_FOUND);
    for _ in 0..2 {
        pd.execute(What::Register(lost(100))).unwrap();
        assert_eq!((pd.store(1).state(), pd.store(1).given_up), (StoreState::Tombstone, true));
    }
    assert!(pd.register(folder(100, "z"), &[]).unwrap_err().1.contains("was removed"));
    assert!(pd.register(empty(1, 101, "a"), &[]).unwrap() > 1, "at its place, and under another id");
}

/// The first region may exist there, unreported, and a second first region is never to be.
#[test]
fn a_founder_that_is_replaced_never_comes_back() {
    let mut pd = Driver::new();
    assert_eq!(pd.register(empty(1, 100, "a"), &[]), Ok(1));
    let first = pd.machine.records().read().founding.clone().unwrap();
    let id = pd.register(empty(1, 101, "a"), &[1]).unwrap();
    let second = pd.machine.records().read().founding.clone().unwrap();
    assert_eq!((first.store_id, second.store_id), (1, id));
    assert_ne!(first.region.unwrap().id, second.region.unwrap().id);
    assert!(pd.register(folder(100, "z"), &[]).unwrap_err().1.contains("was removed"));
}
