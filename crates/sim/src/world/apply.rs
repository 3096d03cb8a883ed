//! The threads behind the host: each group's applier and flusher, and the building and installing of snapshots.
//!
//! The applier goes at its own pace: it reads committed ranges from the log in bounded pieces, applies them, answers
//! those who wait here, and tells the host. A snapshot is put in place only when nothing is left to apply.

use base::{GroupId, PeerId, Rng};
use consensus::{Applied, Entry, Input, Membership, Payload, StateMachine};
use storage::engine::Engine;

use super::bug::Bug;
use super::fault::Moment;
use super::node::Node;
use super::queue::Happening;
use super::stage::Stage;
use super::work::Answer;

impl Node {
    pub fn wake_applier(&mut self, stage: &mut Stage, group: GroupId) {
        let who = self.who();
        let Some(replica) = self.replica(group) else { return };
        if replica.applier_awake || (replica.committed.is_empty() && replica.install.is_none()) {
            return;
        }
        replica.applier_awake = true;
        let delay = stage.rng.below(stage.plan.apply_max);
        stage.after(delay, Happening::Apply(who, group));
    }

    /// One step of an applier.
    pub fn apply(&mut self, stage: &mut Stage, group: GroupId) {
        let Some(replica) = self.replica(group) else { return };
        replica.applier_awake = false;
        if replica.committed.is_empty() {
            if let Some((staged, mark)) = replica.install.take() {
                self.install(stage, group, staged, mark.index);
            }
        } else {
            self.apply_some(stage, group);
        }
        self.wake_applier(stage, group);
    }

    fn apply_some(&mut self, stage: &mut Stage, group: GroupId) {
        let node = self.id.0;
        let Some(running) = &mut self.running else { return };
        let Some(replica) = running.replicas.get_mut(&group) else { return };
        let Some((first, last)) = replica.committed.pop_front() else { return };
        if first != replica.applied + 1 {
            let applied = replica.applied;
            return stage.ledger.fail(|| format!("node {node} is to apply {first} of group {group} after {applied}"));
        }
        let mut entries = match replica.log.read(first, last, stage.plan.apply_bytes_max) {
            Ok(entries) => entries,
            Err(error) => return stage.ledger.fail(|| format!("node {node} cannot read what is committed: {error}")),
        };
        // Batches of any size give the same state; the ledger compares at their ends.
        let most = 1 + stage.rng.below(6) as usize;
        entries.truncate(most);
        let up_to = entries.last().map_or(first, |entry| entry.index);
        if up_to < last {
            replica.committed.push_front((up_to + 1, last));
        }
        for entry in &entries {
            stage.ledger.entry(group, replica.peer, entry);
        }
        if stage.has(Bug::SkipCommand) && node == 2 {
            skip_a_command(&mut entries, &mut stage.rng);
        }
        if self.strays == Some(group)
            && let Some(entry) = entries.iter_mut().find(|entry| is_of_another(entry, replica.peer))
        {
            entry.payload = Payload::Nothing;
            self.strays = None;
            stage.ledger.goes_astray(group, replica.peer);
            stage.ledger.strayed.insert(group);
            stage.note(node, "astray", &[("group", group.0), ("peer", replica.peer.0), ("index", entry.index)]);
            // Whoever listens there would hear of what nobody else knows.
            stage.fallen.push(self.at);
        }
        let astray = stage.ledger.is_astray(group, replica.peer);
        let mut applied = Applied::default();
        if let Err(error) = replica.machine.apply(&entries, replica.peer, &mut applied) {
            return stage.ledger.fail(|| format!("node {node} cannot apply: {error}"));
        }
        let mark = replica.machine.mark();
        if mark.index != up_to {
            return stage.ledger.fail(|| format!("node {node} applied up to {up_to}, and stands at {}", mark.index));
        }
        replica.applied = up_to;
        stage.note(node, "applied", &[("group", group.0), ("index", up_to), ("hash", mark.hash)]);
        stage.ledger.applied(group, replica.peer, mark);
        for (seq, outcome) in applied.outcomes {
            stage.ledger.outcome(seq);
            if running.open.remove(&seq) {
                running.ended.insert(seq);
                // Until it is found out its answers are wrong, and are not looked at: the client never hears.
                if !astray {
                    stage.answer(seq, Answer::Done(outcome));
                }
            }
        }
        self.give(stage, Input::Applied { group, index: up_to, hashes: applied.hashes });
        self.after_apply(stage, group);
    }

    fn after_apply(&mut self, stage: &mut Stage, group: GroupId) {
        self.build_snapshots(stage, group);
        let who = self.who();
        let Some(replica) = self.replica(group) else { return };
        let ready: Vec<u64> = replica.reads.range(..=replica.applied).map(|(index, _)| *index).collect();
        let reads: Vec<_> = ready.iter().filter_map(|index| replica.reads.remove(index)).flatten().collect();
        if replica.tap.take_published() {
            stage.published.push((who.at, group));
            let delay = stage.rng.below(2 * super::plan::MS);
            stage.after(delay, Happening::Dispatch(who, group));
        }
        for (seq, valid_until) in reads {
            self.read_soon(stage, seq, valid_until);
        }
    }

    /// Snapshots that wait for the applier and need wait no longer.
    pub fn build_snapshots(&mut self, stage: &mut Stage, group: GroupId) {
        let Some(replica) = self.replica(group) else { return };
        let applied = replica.applied;
        let ready: Vec<_> = replica.builds.extract_if(.., |(_, index_min)| *index_min <= applied).collect();
        for (to, _) in ready {
            let number = stage.name();
            let Some(replica) = self.replica(group) else { return };
            let input = match replica.machine.snapshot() {
                Ok(source) => {
                    let mark = source.mark();
                    let membership = Membership::decode(&source.membership()).unwrap_or_default();
                    replica.built.insert(to, (number, source));
                    Input::SnapshotBuilt { group, to, snapshot: number, mark, membership }
                }
                Err(error) => return stage.ledger.fail(|| format!("a snapshot could not be built: {error}")),
            };
            stage.note(self.id.0, "built-snapshot", &[("group", group.0), ("to", to.0), ("number", number)]);
            self.give(stage, input);
        }
    }

    fn install(&mut self, stage: &mut Stage, group: GroupId, staged: u64, index: u64) {
        let node = self.id.0;
        let cut_power = stage.plan.faults.crashes && !stage.healed && stage.rng.percent(20);
        let Some(share) = self.disk.shares.get_mut(&group) else { return };
        let Some(replica) = self.running.as_mut().and_then(|running| running.replicas.get_mut(&group)) else { return };
        // A copy of the old state that never left is of no use, and would keep that state from being replaced.
        replica.built.clear();
        let Some((_, mut sink)) = replica.staged.take_if(|(number, _)| *number == staged) else {
            return stage.ledger.fail(|| format!("node {node} is to install a snapshot it does not have"));
        };
        if cut_power {
            share.engine.cut_power_in_next_commit(&mut stage.rng);
        }
        if let Err(error) = replica.machine.install(&mut *sink) {
            if cut_power {
                stage.note(node, "cut-in-install", &[("group", group.0)]);
                self.crash(stage);
                let down = stage.rng.between(100, 2_000) * super::plan::MS;
                return stage.after(down, Happening::Start { at: self.at });
            }
            return stage.ledger.fail(|| format!("node {node} cannot install a snapshot: {error}"));
        }
        let mark = replica.machine.mark();
        if mark.index != index || mark.index < replica.applied {
            let applied = replica.applied;
            return stage
                .ledger
                .fail(|| format!("node {node} at {applied} installed {} instead of {index}", mark.index));
        }
        replica.applied = mark.index;
        share.durable = mark.index;
        self.installs += 1;
        stage.moments.push((self.at, Moment::Installed));
        stage.note(node, "installed", &[("group", group.0), ("index", mark.index), ("hash", mark.hash)]);
        stage.ledger.applied(group, replica.peer, mark);
        let membership = Membership::decode(&replica.machine.membership()).unwrap_or_default();
        self.give(stage, Input::Installed { group, mark, membership });
        self.after_apply(stage, group);
    }

    /// The flusher of a group looks whether it is time; and the engine flushes by itself now and then.
    pub fn flush(&mut self, stage: &mut Stage, group: GroupId) {
        let who = self.who();
        let Some(share) = self.disk.shares.get_mut(&group) else { return };
        let Some(replica) = self.running.as_mut().and_then(|running| running.replicas.get_mut(&group)) else { return };
        if stage.rng.percent(50) {
            share.engine.maybe_flush(&mut stage.rng);
        } else if let Err(error) = replica.machine.flusher()() {
            return stage.ledger.fail(|| format!("a flush failed: {error}"));
        }
        if stage.rng.percent(5)
            && let Err(error) = share.engine.reclaim()
        {
            return stage.ledger.fail(|| format!("a clean-up failed: {error}"));
        }
        while stage.rng.percent(70) {
            match replica.machine.tend() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return stage.ledger.fail(|| format!("a machine cannot be tended: {error}")),
            }
        }
        match replica.machine.durable() {
            Ok(index) if index < share.durable => {
                let before = share.durable;
                return stage.ledger.fail(|| format!("what was durable went back from {before} to {index}"));
            }
            Ok(index) => {
                let moved = index > share.durable;
                share.durable = index;
                if moved {
                    stage.note(self.id.0, "durable", &[("group", group.0), ("index", index)]);
                    self.give(stage, Input::Durable { group, index });
                }
            }
            Err(error) => return stage.ledger.fail(|| format!("the durable mark cannot be read: {error}")),
        }
        let pause = 1 + stage.rng.below(2 * stage.plan.flush_every);
        stage.after(pause, Happening::Flush(who, group));
    }
}

/// Whether an entry holds commands that nobody at this replica waits for.
fn is_of_another(entry: &Entry, peer: PeerId) -> bool {
    matches!(&entry.payload, Payload::Commands(commands) if commands.origin != peer)
}

/// For a planted bug: a command vanishes from what is applied.
fn skip_a_command(entries: &mut [Entry], rng: &mut Rng) {
    for entry in entries {
        if rng.percent(5) && matches!(entry.payload, Payload::Commands(_)) {
            entry.payload = Payload::Nothing;
        }
    }
}
