//! What comes from the network and from the disk, changed at random ([`mutate`]): commands, records, snapshots. Tests only.

use base::GroupId;
use bytes::Bytes;
use consensus::entry::{Commands, CommandsBuilder};
use consensus::{Applied, Entry, MachineError, Payload, StateMachine as _};
use prost::Message as _;
use proto::flaredb as pb;
use storage::EngineError;

use super::layout::{read_state, write_state};
use super::merge::tests::{Logs, TARGET, World, put, split};
use super::{Frozen, Merged, RegionState};
use crate::mutate::mutate;

#[test]
fn a_region_state_that_is_read_is_written_as_it_was_read() {
    let plain =
        RegionState { start: "a".into(), end: "m".into(), version: 3, conf_version: 4, ..RegionState::default() };
    let frozen = Frozen {
        at: 7,
        term: 3,
        hash: 8,
        conf_version: 5,
        target: GroupId(6),
        target_version: 9,
        target_start: Bytes::from_static(b"m"),
    };
    let merged = Merged { source: GroupId(11), into: GroupId(12), version: 13, peers: vec![(1.into(), 2.into())] };
    let merging = RegionState { frozen: Some(frozen), merged: vec![merged.clone(), merged], ..plain.clone() };
    mutate(1, 50_000, &[write_state(&plain), write_state(&merging)], |bytes| {
        if let Ok(state) = read_state(Bytes::copy_from_slice(bytes), Bytes::new()) {
            assert_eq!(read_state(write_state(&state).into(), Bytes::new()).unwrap(), state);
        }
    });
}

/// Whatever is proposed, replicas that apply it come to the same, and none of them stops.
#[test]
fn no_command_divides_replicas_or_stops_them() {
    let worlds = || (World::new(1), World::new(1));
    let version = worlds().0.state(TARGET).version;
    let command = |what| pb::Command { version, what: Some(what) }.encode_to_vec();
    let swap = pb::CompareAndSwap { key: "x".into(), expected: Some("1".into()), value: Some("2".into()) };
    let inputs = [
        command(put("x", "1")),
        command(pb::command::What::CompareAndSwap(swap)),
        command(split("t", 3)),
        command(worlds().0.freeze()),
        command(pb::command::What::AbortMerge(pb::AbortMerge {})),
        command(pb::command::What::Seal(pb::Seal { frozen_at: 2 })),
        command(pb::command::What::Thaw(pb::Thaw { frozen_at: 2 })),
    ];
    let (mut one, mut other) = worlds();
    let mut round = 0;
    mutate(2, 4_000, &inputs, |bytes| {
        if round % 40 == 0 {
            (one, other) = worlds();
        }
        round += 1;
        let mut commands = CommandsBuilder::new(1.into());
        commands.push(7, bytes);
        let Some(commands) = Commands::decode(commands.finish()) else { return };
        let index = one.state(TARGET).mark.index + 1;
        let entry = Entry { index, term: 1, payload: Payload::Commands(commands) };
        let [first, second] = [&mut one, &mut other].map(|world| {
            let machine = world.machines.get_mut(&TARGET).unwrap();
            let mut applied = Applied::default();
            let done = machine.apply(std::slice::from_ref(&entry), 1.into(), &mut applied);
            (
                done.map_err(|error| (matches!(error, MachineError::Engine(EngineError::Held)), error.to_string())),
                machine.mark(),
            )
        });
        assert!(first == second && first.0.as_ref().err().is_none_or(|(held, _)| *held), "{first:?} {second:?}");
    });
}

/// Nothing of a stream counts before all of it has come as it was sent.
#[test]
fn a_changed_snapshot_is_refused() {
    let (mut logs, mut sender) = (Logs::default(), World::new(1));
    for number in 0..20 {
        assert_eq!(sender.run(&mut logs, TARGET, put(&format!("x{number}"), &"v".repeat(number))), 0);
    }
    let sent = sender.stream(TARGET).concat();
    let mut world = World::empty(2);
    world.machines.insert(TARGET, world.open(TARGET).unwrap());
    mutate(3, 2_000, std::slice::from_ref(&sent), |bytes| {
        let chunks: Vec<Bytes> = bytes.chunks(100).map(Bytes::copy_from_slice).collect();
        assert!(world.receive(TARGET, &chunks).is_err() || bytes == sent);
    });
    assert_eq!(std::fs::read_dir(world.folder.path()).unwrap().count(), 0, "what was refused is gone");
    assert!(world.receive(TARGET, &[sent.into()]).is_ok());
}
