//! Ranges that received snapshots are about to take.
//!
//! What consensus has taken a snapshot in for cannot be refused afterwards, and installs wait in line: so a snapshot claims its
//! range as soon as it is complete, and keeps the claim until it is in place or let go of. Two that overlap are never both on
//! their way, whichever of them is the newer one; the second is sent again.
//!
//! ```text
//!  finish ─▶ overlaps a region here, a claim, or what an earlier life decided for? ──yes──▶ refused
//!              └─no──▶ claimed ─▶ decided ─▶ in place, and shown ─▶ given back
//! ```
//! Regions that change by their logs need no claim: a split or a merge covers what was covered before, and that is looked at.

use std::path::Path;
use std::sync::Arc;

use base::GroupId;
use consensus::MachineError;
use parking_lot::Mutex;
use storage::Engine;

use super::overlap::{self, Range};
use super::{RegionState, merge, snapshot};

/// Those of a store.
#[derive(Default)]
pub struct Claims(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    next: u64,
    all: Vec<(u64, GroupId, Range)>,
}

/// Given back when it is dropped.
pub struct Claim {
    claims: Arc<Claims>,
    number: u64,
}

impl Claims {
    /// Claims what a received state covers. `None`: that is another region's here, or is about to be.
    pub fn take(
        self: &Arc<Self>,
        engine: &dyn Engine,
        incoming: &Path,
        id: GroupId,
        state: &RegionState,
    ) -> Result<Option<Claim>, MachineError> {
        let mut taken = self.0.lock();
        let claimed = |other: GroupId| taken.all.iter().any(|(_, by, _)| *by == other);
        // Before the regions are looked at: such a file goes when its region is there.
        let decided = snapshot::decided(incoming, |other| other != id && !claimed(other))?;
        // Of a region that has been cut since, or of one whose parts are here and will be gone soon.
        let displaced = merge::displaced(engine, id, state)?;
        let others = overlap::overlapping(&*engine.view(), id, state)?;
        if others.iter().any(|other| displaced.iter().all(|(gone, _)| gone != other)) {
            return Ok(None);
        }
        let coming = taken.all.iter().filter(|(_, by, _)| *by != id).map(|(.., range)| range.clone());
        let coming: Vec<Range> = coming.chain(decided.into_iter().map(|state| (state.start, state.end))).collect();
        if overlap::overlaps(state, &coming) {
            return Ok(None);
        }
        let number = taken.next;
        taken.next += 1;
        taken.all.push((number, id, (state.start.clone(), state.end.clone())));
        Ok(Some(Claim { claims: self.clone(), number }))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.lock().all.retain(|(number, ..)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use consensus::StateMachine as _;

    use super::super::merge::tests::{Logs, TARGET, World, put, split};
    use super::super::snapshot;

    const PART: u64 = 3;

    /// A region before it was cut, and the part that came of it, with what was put there since.
    fn old_and_new() -> (Vec<Bytes>, Vec<Bytes>) {
        let (mut logs, mut world) = (Logs::default(), World::new(1));
        assert_eq!(world.run(&mut logs, TARGET, put("x", "old")), 0);
        let whole = world.stream(TARGET);
        assert_eq!(world.run(&mut logs, TARGET, split("t", PART)), 0);
        world.machines.insert(PART, world.open(PART).unwrap());
        assert_eq!(world.run(&mut logs, PART, put("x", "new")), 0);
        (whole, world.stream(PART))
    }

    /// A store on which both are to come.
    fn learner() -> World {
        let mut world = World::empty(2);
        for region in [TARGET, PART] {
            world.machines.insert(region, world.open(region).unwrap());
        }
        world
    }

    #[test]
    fn an_older_and_wider_region_does_not_take_the_place_of_a_newer_one() {
        let (whole, part) = old_and_new();
        let mut world = learner();
        let mut newer = world.receive(PART, &part).unwrap();
        // Complete before the other one is in place, and put in place behind it.
        let older = world.receive(TARGET, &whole);
        world.machines.get_mut(&PART).unwrap().install(&mut newer).unwrap();
        if let Ok(mut older) = older {
            world.machines.get_mut(&TARGET).unwrap().install(&mut older).unwrap();
            panic!("{:?} of what was put there is left", world.has("x"));
        }
        assert!(world.receive(TARGET, &whole).is_err(), "nor afterwards");
        assert_eq!((world.has("x"), world.at("x"), world.at("n")), (Some("new".into()), PART, 0));
    }

    #[test]
    fn a_claim_ends_with_what_it_is_for() {
        let (whole, part) = old_and_new();
        let mut world = learner();
        let older = world.receive(TARGET, &whole).unwrap();
        assert!(world.receive(PART, &part).is_err(), "the other one is on its way");
        drop(older);
        let newer = world.receive(PART, &part).unwrap();
        drop(newer);
        let mut older = world.receive(TARGET, &whole).unwrap();
        world.machines.get_mut(&TARGET).unwrap().install(&mut older).unwrap();
        // The same region again: it is nobody else's.
        drop(world.receive(TARGET, &whole).unwrap());
        assert_eq!((world.has("x"), world.at("x")), (Some("old".into()), TARGET));
        assert!(world.receive(PART, &part).is_err(), "it comes when the older one has been cut here too");
    }

    /// What an earlier life decided for waits for room, and is put in place whatever has come meanwhile.
    #[test]
    fn what_waits_for_room_keeps_its_place() {
        let (whole, part) = old_and_new();
        let mut world = learner();
        world.receive(TARGET, &whole).unwrap().decide().unwrap();
        world.crash();
        assert!(world.receive(PART, &part).is_err());
        snapshot::forget_others(world.folder.path(), |region| region.0 == TARGET).unwrap();
        world.machines.insert(TARGET, world.open(TARGET).unwrap());
        assert_eq!((world.has("x"), world.at("x")), (Some("old".into()), TARGET));
        assert!(world.receive(PART, &part).is_err(), "as before the crash");
    }

    #[test]
    fn what_a_peer_that_is_gone_has_left_keeps_nobody_waiting() {
        let (whole, part) = old_and_new();
        let world = learner();
        world.receive(TARGET, &whole).unwrap().decide().unwrap();
        assert!(world.receive(PART, &part).is_err());
        snapshot::forget_others(world.folder.path(), |region| region.0 == PART).unwrap();
        assert!(world.receive(PART, &part).is_ok());
    }

    /// A read that began before a snapshot was put in place, and ends after it, has met half of either state.
    #[test]
    fn an_install_shows_even_if_the_range_stays_as_it_was() {
        let (mut logs, mut sender, mut world) = (Logs::default(), World::new(1), learner());
        for value in ["1", "2"] {
            assert_eq!(sender.run(&mut logs, TARGET, put("x", value)), 0);
            let cell = world.machines[&TARGET].cell();
            let seen = cell.seen();
            assert!(cell.is_as(&seen));
            let mut received = world.receive(TARGET, &sender.stream(TARGET)).unwrap();
            world.machines.get_mut(&TARGET).unwrap().install(&mut received).unwrap();
            assert!(!cell.is_as(&seen), "{} to {}", seen.state.version, cell.state().version);
        }
        let cell = world.machines[&TARGET].cell();
        assert!(cell.is_as(&cell.seen()));
    }
}
