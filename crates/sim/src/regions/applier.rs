//! The applier of a node, and its flusher: what is committed becomes state, snapshots are built and put in place, and the host is
//! told how far the disk has all of it. As [`node`] does it in a process, one group at a time.

use std::sync::atomic::Ordering;

use base::{GroupId, PeerId};
use consensus::{Applied, Input, MachineError, Mark, Membership, Payload};
use flaredb::region::{RegionState, machine};
use node::waiters::Answer;
use storage::EngineError;

use super::bug::Bug;
use super::node::{Node, PD_GROUP};
use super::plan::MS;
use super::stage::{Happening, Stage};

/// How soon entries that were put off are tried again.
const PUT_OFF_RETRY: u64 = 20 * MS;

impl Node {
    pub fn wake_applier(&mut self, stage: &mut Stage, group: GroupId) {
        let who = self.who();
        let Some(replica) = self.replica(group) else { return };
        if replica.awake || (replica.committed.is_empty() && replica.install.is_none()) {
            return;
        }
        replica.awake = true;
        let delay = if replica.put_off { PUT_OFF_RETRY } else { stage.rng.below(stage.plan.apply_max) };
        stage.after(delay, Happening::Apply(who, group));
    }

    pub fn apply(&mut self, stage: &mut Stage, group: GroupId) {
        let Some(replica) = self.replica(group) else { return };
        replica.awake = false;
        if replica.put_off && replica.install.is_some() {
            // It holds what the entries that wait would have come to.
            replica.put_off = false;
            replica.committed.clear();
        }
        if replica.committed.is_empty() {
            if let Some((staged, mark)) = replica.install.take() {
                self.install(stage, group, staged, mark);
            }
        } else {
            self.apply_some(stage, group);
        }
        self.wake_applier(stage, group);
    }

    fn apply_some(&mut self, stage: &mut Stage, group: GroupId) {
        let (label, at) = (self.label(), self.at);
        let Some(replica) = self.running.as_mut().and_then(|running| running.replicas.get_mut(&group)) else { return };
        let Some((first, last)) = replica.committed.pop_front() else { return };
        let gone = replica.group.gone.load(Ordering::SeqCst);
        if first != replica.applied + 1 {
            let applied = replica.applied;
            return stage.ledger.fail(|| format!("node {label} is to apply {first} of {group} after {applied}"));
        }
        let mut entries = match replica.log.read(first, last, 64 << 10) {
            Ok(entries) => entries,
            // Its log may have gone before, and with it all that follows.
            Err(_) if gone => return replica.committed.clear(),
            Err(error) => return stage.ledger.fail(|| format!("node {label} cannot read what is committed: {error}")),
        };
        let most = 1 + stage.rng.below(6) as usize;
        entries.truncate(most);
        let up_to = entries.last().map_or(first, |entry| entry.index);
        if up_to < last {
            replica.committed.push_front((up_to + 1, last));
        }
        if stage.has(Bug::SkipCommand) && at == stage.plan.pds + 1 {
            for entry in &mut entries {
                if stage.rng.percent(5) && matches!(entry.payload, Payload::Commands(_)) {
                    entry.payload = Payload::Nothing;
                }
            }
        }
        let mut applied = Applied::default();
        if let Err(error) = replica.machine.apply(&entries, replica.peer, &mut applied) {
            if self.disk.engine.is_cut() {
                return;
            }
            if matches!(error, MachineError::Engine(EngineError::Held)) {
                stage.note(label, "put-off", &[("group", group.0), ("index", first)]);
                replica.put_off = true;
                if up_to < last {
                    replica.committed.pop_front();
                }
                return replica.committed.push_front((first, last));
            }
            return stage.ledger.fail(|| format!("node {label} cannot apply: {error}"));
        }
        let mark = replica.machine.mark();
        if mark.index != up_to {
            return stage.ledger.fail(|| format!("node {label} applied up to {up_to}, and stands at {}", mark.index));
        }
        replica.put_off = false;
        replica.applied = up_to;
        let sound = replica.machine.is_sound();
        if !sound {
            replica.group.differs.store(true, Ordering::SeqCst);
        }
        replica.group.waiters.set_applied(up_to);
        stage.note(label, "applied", &[("group", group.0), ("index", up_to), ("hash", mark.hash)]);
        let outcomes = if replica.group.differs.load(Ordering::SeqCst) { Vec::new() } else { applied.outcomes };
        for (seq, outcome) in outcomes {
            replica.group.waiters.answer(seq, Answer::Outcome(outcome, up_to));
        }
        let peer = replica.peer;
        self.give(stage, Input::Applied { group, index: up_to, hashes: applied.hashes });
        if !gone && sound {
            self.stands(stage, group, peer, mark);
        }
        self.build_snapshots(stage, group);
    }

    /// Where a replica stands is told to the ledger.
    fn stands(&mut self, stage: &mut Stage, group: GroupId, peer: PeerId, mark: Mark) {
        if group == PD_GROUP {
            return stage.ledger.applied(group, peer, mark, &RegionState::default());
        }
        let state = match machine::load(&*self.disk.engine, group) {
            Ok(state) => state,
            Err(error) => return stage.ledger.fail(|| format!("the state of {group} cannot be read: {error}")),
        };
        if state.mark != mark {
            let label = self.label();
            return stage
                .ledger
                .fail(|| format!("{group} on node {label} stands at {mark:?}, and its record says {:?}", state.mark));
        }
        stage.ledger.applied(group, peer, mark, &state);
        stage.ledger.membership(group, &Membership::decode(&state.membership).unwrap_or_default());
    }

    pub fn build_snapshots(&mut self, stage: &mut Stage, group: GroupId) {
        let label = self.label();
        let Some(replica) = self.replica(group) else { return };
        let applied = replica.applied;
        let ready: Vec<_> = replica.builds.extract_if(.., |(_, index_min)| *index_min <= applied).collect();
        for (to, _) in ready {
            let number = stage.name();
            let Some(replica) = self.replica(group) else { return };
            if replica.put_off || replica.group.differs.load(Ordering::SeqCst) {
                // Of before what was committed when it was asked for; or not to be trusted.
                self.give(stage, Input::SnapshotSent { group, to, ok: false });
                continue;
            }
            let input = match replica.machine.snapshot() {
                Ok(source) => {
                    let mark = source.mark();
                    let membership = Membership::decode(&source.membership()).unwrap_or_default();
                    replica.built.insert(to, (number, source));
                    Input::SnapshotBuilt { group, to, snapshot: number, mark, membership }
                }
                Err(error) => return stage.ledger.fail(|| format!("a snapshot could not be built: {error}")),
            };
            stage.note(label, "built-snapshot", &[("group", group.0), ("to", to.0), ("number", number)]);
            self.give(stage, input);
        }
    }

    fn install(&mut self, stage: &mut Stage, group: GroupId, staged: u64, mark: Mark) {
        let label = self.label();
        let cut = stage.plan.faults.cuts && !stage.healed && stage.outage.is_none() && stage.rng.percent(20);
        let Some(replica) = self.running.as_mut().and_then(|running| running.replicas.get_mut(&group)) else { return };
        replica.built.clear();
        let Some((_, mut sink)) = replica.staged.take_if(|(number, _)| *number == staged) else {
            return stage.ledger.fail(|| format!("node {label} is to install a snapshot it does not have"));
        };
        if cut {
            self.disk.engine.arm(1 + stage.rng.below(3));
        }
        if let Err(error) = replica.machine.install(&mut *sink) {
            if self.disk.engine.is_cut() {
                return stage.note(label, "cut-in-install", &[("group", group.0)]);
            }
            if matches!(error, MachineError::Engine(EngineError::Held)) {
                replica.staged = Some((staged, sink));
                replica.install = Some((staged, mark));
                return;
            }
            return stage.ledger.fail(|| format!("node {label} cannot install a snapshot: {error}"));
        }
        let index = mark.index;
        let mark = replica.machine.mark();
        if mark.index != index || mark.index < replica.applied {
            let applied = replica.applied;
            return stage
                .ledger
                .fail(|| format!("node {label} at {applied} installed {} instead of {index}", mark.index));
        }
        replica.applied = mark.index;
        replica.durable = mark.index;
        replica.group.waiters.set_applied(mark.index);
        if !replica.machine.is_sound() {
            replica.group.differs.store(true, Ordering::SeqCst);
        }
        let sound = replica.machine.is_sound();
        self.installs += 1;
        stage.note(label, "installed", &[("group", group.0), ("index", mark.index), ("hash", mark.hash)]);
        let (peer, gone) = (replica.peer, replica.group.gone.load(Ordering::SeqCst));
        let membership = Membership::decode(&replica.machine.membership()).unwrap_or_default();
        self.give(stage, Input::Installed { group, mark, membership });
        if !gone && sound {
            self.stands(stage, group, peer, mark);
        }
    }

    /// The applier lets go of a group; whoever waits for its machine to be gone goes on.
    pub fn let_go(&mut self, stage: &mut Stage, group: GroupId) {
        let label = self.label();
        let Some(running) = &mut self.running else { return };
        let gone = running.replicas.get(&group).is_some_and(|replica| replica.group.gone.load(Ordering::SeqCst));
        if gone && let Some(replica) = running.replicas.remove(&group) {
            stage.note(label, "gone", &[("group", group.0), ("peer", replica.peer.0)]);
            stage.ledger.destroyed(group, replica.peer);
        }
    }

    /// The flusher looks whether it is time; and the engine flushes by itself now and then.
    pub fn flush(&mut self, stage: &mut Stage) {
        let who = self.who();
        let Some(running) = &mut self.running else { return };
        if stage.rng.percent(70) {
            self.disk.engine.inner.maybe_flush(&mut stage.rng);
        } else if let Some(replica) = running.replicas.values().next()
            && let Err(error) = replica.machine.flusher()()
        {
            if self.disk.engine.is_cut() {
                return;
            }
            return stage.ledger.fail(|| format!("a flush failed: {error}"));
        }
        let mut moved = Vec::new();
        for (group, replica) in &mut running.replicas {
            match replica.machine.durable() {
                Ok(index) if index > replica.durable => {
                    replica.durable = index;
                    moved.push((*group, index));
                }
                Ok(_) => {}
                Err(error) => return stage.ledger.fail(|| format!("the durable mark cannot be read: {error}")),
            }
        }
        for (group, index) in moved {
            stage.note(who.at as u64 + 1, "durable", &[("group", group.0), ("index", index)]);
            self.give(stage, Input::Durable { group, index });
        }
        let pause = 1 + stage.rng.below(2 * stage.plan.flush_every);
        stage.after(pause, Happening::Flush(who));
    }
}
