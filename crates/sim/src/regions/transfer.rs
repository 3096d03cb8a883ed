//! Snapshots on their way from one node to another: in chunks, on a stream that either arrives whole or breaks. What the
//! receiver has staged is complete and checked before its host hears of it.

use std::collections::BTreeMap;

use base::{GroupId, NodeId};
use consensus::{Input, MachineError, Message, SnapshotSink, SnapshotSource};

use super::World;
use super::node::Node;
use super::plan::{MS, SECOND};
use super::stage::{Happening, Stage};
use crate::physics::queue::Who;

/// Under way.
pub struct Transfer {
    from: Who,
    to: usize,
    message: Message,
    source: Box<dyn SnapshotSource>,
    /// Where it goes, once the receiver has opened it, and in which life of the receiver.
    sink: Option<(Who, Box<dyn SnapshotSink>)>,
}

/// Snapshots that have left and not arrived, by number.
#[derive(Default)]
pub struct Transfers {
    pub under_way: BTreeMap<u64, Transfer>,
}

enum Step {
    Later(u64),
    /// True when it has arrived.
    Ended(bool),
}

impl Node {
    pub fn send_snapshot(&mut self, stage: &mut Stage, to: NodeId, message: Message, snapshot: u64) {
        let (group, peer) = (message.group, message.to);
        stage.note(self.label(), "send-snapshot", &[("group", group.0), ("to", to.0), ("number", snapshot)]);
        let (who, place) = (self.who(), self.place_of(stage, to));
        let Some(replica) = self.replica(group) else { return };
        match (replica.built.remove(&peer), place) {
            (Some((number, source)), Some(to)) if number == snapshot => {
                let message = Message::decode(message.encode()).expect("a message survives its own encoding");
                let transfer = Transfer { from: who, to, message, source, sink: None };
                stage.outgoing.push((snapshot, transfer));
                stage.after(MS, Happening::Transfer { number: snapshot });
            }
            // The snapshot of an earlier leadership: it is built anew if it is still needed.
            _ => self.give(stage, Input::SnapshotSent { group, to: peer, ok: false }),
        }
    }
}

impl Transfers {
    fn is_receiving(&self, to: usize, group: GroupId) -> bool {
        let receiving =
            |transfer: &Transfer| transfer.to == to && transfer.message.group == group && transfer.sink.is_some();
        self.under_way.values().any(receiving)
    }
}

impl World {
    /// The next step of a snapshot under way.
    pub fn transfer(&mut self, number: u64) {
        let Some(mut transfer) = self.transfers.under_way.remove(&number) else { return };
        if self.nodes[transfer.from.at].who() != transfer.from {
            return;
        }
        match self.transfer_step(number, &mut transfer) {
            Step::Later(delay) => {
                self.stage.after(delay, Happening::Transfer { number });
                self.transfers.under_way.insert(number, transfer);
            }
            Step::Ended(ok) => {
                let (group, to) = (transfer.message.group, transfer.message.to);
                let from = transfer.from.at;
                self.stage.note(from as u64 + 1, "snapshot-sent", &[("number", number), ("ok", u64::from(ok))]);
                self.nodes[from].give(&mut self.stage, Input::SnapshotSent { group, to, ok });
            }
        }
    }

    fn transfer_step(&mut self, number: u64, transfer: &mut Transfer) -> Step {
        let stage = &mut self.stage;
        let Some(trip) = stage.net.stream_trip(transfer.from.at, transfer.to) else { return Step::Ended(false) };
        let group = transfer.message.group;
        let busy = self.transfers.is_receiving(transfer.to, group);
        let receiver = &mut self.nodes[transfer.to];
        if receiver.is_paused(stage) {
            return Step::Later(receiver.paused_until - stage.now + trip);
        }
        let who = receiver.who();
        let cut = receiver.disk.engine.clone();
        let Some(replica) = receiver.replica(group).filter(|replica| replica.peer == transfer.message.to) else {
            return Step::Ended(false);
        };
        if transfer.sink.as_ref().is_some_and(|(opened, _)| *opened != who) {
            return Step::Ended(false);
        }
        let failed = |stage: &mut Stage, what: &str, error: MachineError| {
            if !cut.is_cut() {
                stage.ledger.fail(|| format!("a snapshot could not be {what}: {error}"));
            }
            Step::Ended(false)
        };
        if transfer.sink.is_none() {
            if busy || replica.is_receiving() {
                return Step::Ended(false);
            }
            match replica.machine.receiver() {
                Ok(sink) => transfer.sink = Some((who, sink)),
                Err(error) => return failed(stage, "received", error),
            }
        }
        let (_, sink) = transfer.sink.as_mut().expect("opened above");
        match transfer.source.next_chunk() {
            Ok(Some(chunk)) => {
                let rate = if stage.healed { 64 << 20 } else { stage.plan.bulk_bytes_per_second };
                let delay = trip + chunk.len() as u64 * SECOND / rate;
                return match sink.write(chunk) {
                    Ok(()) => Step::Later(delay),
                    Err(error) => failed(stage, "taken", error),
                };
            }
            Ok(None) => {}
            Err(error) => return failed(stage, "read", error),
        }
        match sink.finish() {
            Ok(mark) if mark == transfer.source.mark() => {}
            Ok(_) => stage.ledger.fail(|| "a received snapshot stands elsewhere than its source".to_owned()),
            // Its range is another region's there, which will be gone or cut: the sender tries again.
            Err(MachineError::BadSnapshot(why)) => {
                stage.note(who.at as u64 + 1, "snapshot-refused", &[("group", group.0), ("number", number)]);
                stage.say(who.at as u64 + 1, || why);
                return Step::Ended(false);
            }
            Err(error) => return failed(stage, "finished", error),
        }
        let (_, sink) = transfer.sink.take().expect("opened above");
        replica.staged = Some((number, sink));
        let message = transfer.message.clone();
        receiver.give(stage, Input::SnapshotReceived { message, staged: number });
        Step::Ended(true)
    }
}
