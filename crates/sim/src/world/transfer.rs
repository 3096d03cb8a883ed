//! Snapshots on their way from one node to another: in chunks, as bulk, on a stream that either arrives whole or breaks.
//!
//! What the receiver has staged is complete and checked before its host hears of it. A receiver takes one snapshot per
//! group at a time; a second one breaks off.

use std::collections::BTreeMap;

use base::{GroupId, NodeId};
use consensus::wire::Body;
use consensus::{Input, Message, SnapshotSink, SnapshotSource, StateMachine};

use super::World;
use super::node::Node;
use super::plan::{MS, SECOND};
use super::queue::{Happening, Who};
use super::stage::Stage;

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
    under_way: BTreeMap<u64, Transfer>,
}

impl Node {
    pub fn send_snapshot(&mut self, stage: &mut Stage, to: NodeId, message: Message, snapshot: u64) {
        let (group, peer) = (message.group, message.to);
        stage.note(self.id.0, "send-snapshot", &[("group", group.0), ("to", to.0), ("number", snapshot)]);
        let who = self.who();
        let Some(replica) = self.replica(group) else { return };
        match replica.built.remove(&peer) {
            Some((number, source)) if number == snapshot => {
                let announced = match &message.body {
                    Body::Raft(raft) => raft.get_snapshot().get_metadata().index,
                    _ => 0,
                };
                if announced != source.mark().index {
                    let built = source.mark().index;
                    let node = self.id.0;
                    let what = || format!("node {node} announces a snapshot at {announced} and sends one at {built}");
                    return stage.ledger.fail(what);
                }
                let message = Message::decode(message.encode()).expect("a message survives its own encoding");
                let transfer = Transfer { from: who, to: to.0 as usize - 1, message, source, sink: None };
                stage.outgoing.push((snapshot, transfer));
                stage.after(MS, Happening::Transfer { number: snapshot });
            }
            // The snapshot of an earlier leadership: it is built anew if it is still needed.
            _ => self.give(stage, Input::SnapshotSent { group, to: peer, ok: false }),
        }
    }
}

impl Transfers {
    pub fn begin(&mut self, number: u64, transfer: Transfer) {
        self.under_way.insert(number, transfer);
    }

    fn is_receiving(&self, to: usize, group: GroupId, except: u64) -> bool {
        let receiving = |number: u64, transfer: &Transfer| {
            number != except && transfer.to == to && transfer.message.group == group && transfer.sink.is_some()
        };
        self.under_way.iter().any(|(number, transfer)| receiving(*number, transfer))
    }
}

impl World {
    /// The next step of a snapshot under way.
    pub fn transfer(&mut self, number: u64) {
        let Some(mut transfer) = self.transfers.under_way.remove(&number) else { return };
        let stage = &mut self.stage;
        let Some(sender) = self.nodes.get(transfer.from.at).filter(|node| node.who() == transfer.from) else { return };
        if sender.is_paused(stage) {
            stage.queue.push(sender.paused_until, Happening::Transfer { number });
            self.transfers.under_way.insert(number, transfer);
            return;
        }
        match self.transfer_step(number, &mut transfer) {
            Step::Later(delay) => {
                self.stage.after(delay, Happening::Transfer { number });
                self.transfers.under_way.insert(number, transfer);
            }
            Step::Ended(ok) => {
                let (group, to) = (transfer.message.group, transfer.message.to);
                self.stage.note(
                    transfer.from.at as u64 + 1,
                    "snapshot-sent",
                    &[("number", number), ("ok", u64::from(ok))],
                );
                self.nodes[transfer.from.at].give(&mut self.stage, Input::SnapshotSent { group, to, ok });
            }
        }
    }

    fn transfer_step(&mut self, number: u64, transfer: &mut Transfer) -> Step {
        let stage = &mut self.stage;
        let Some(trip) = stage.net.stream_trip(transfer.from.at, transfer.to) else { return Step::Ended(false) };
        let group = transfer.message.group;
        // Otherwise what went astray might become the majority, and be right.
        if stage.ledger.is_astray(group, transfer.message.from) {
            return Step::Ended(false);
        }
        let busy = self.transfers.is_receiving(transfer.to, group, number);
        let receiver = &mut self.nodes[transfer.to];
        if receiver.is_paused(stage) {
            return Step::Later(receiver.paused_until - stage.now + trip);
        }
        let who = receiver.who();
        let Some(replica) = receiver.replica(group).filter(|replica| replica.peer == transfer.message.to) else {
            return Step::Ended(false);
        };
        if transfer.sink.as_ref().is_some_and(|(opened, _)| *opened != who) {
            return Step::Ended(false);
        }
        if transfer.sink.is_none() {
            if busy || replica.is_receiving() {
                return Step::Ended(false);
            }
            match replica.machine.receiver() {
                Ok(sink) => transfer.sink = Some((who, sink)),
                Err(error) => {
                    stage.ledger.fail(|| format!("a snapshot could not be received: {error}"));
                    return Step::Ended(false);
                }
            }
        }
        let (_, sink) = transfer.sink.as_mut().expect("opened above");
        let chunk = match transfer.source.next_chunk() {
            Ok(chunk) => chunk,
            Err(error) => {
                stage.ledger.fail(|| format!("a snapshot could not be read: {error}"));
                return Step::Ended(false);
            }
        };
        if let Some(chunk) = chunk {
            let rate = if stage.healed { 64 << 20 } else { stage.plan.bulk_bytes_per_second };
            let delay = trip + chunk.len() as u64 * SECOND / rate;
            stage.note(transfer.from.at as u64 + 1, "chunk", &[("number", number), ("bytes", chunk.len() as u64)]);
            if let Err(error) = sink.write(chunk) {
                stage.ledger.fail(|| format!("a good chunk was refused: {error}"));
                return Step::Ended(false);
            }
            return Step::Later(delay);
        }
        match sink.finish() {
            Ok(mark) if mark == transfer.source.mark() => {}
            Ok(_) => stage.ledger.fail(|| "a received snapshot stands elsewhere than its source".to_owned()),
            Err(error) => stage.ledger.fail(|| format!("a good snapshot was refused: {error}")),
        }
        let (_, sink) = transfer.sink.take().expect("opened above");
        replica.staged = Some((number, sink));
        let message = transfer.message.clone();
        receiver.give(stage, Input::SnapshotReceived { message, staged: number });
        Step::Ended(true)
    }
}

enum Step {
    Later(u64),
    /// True when it has arrived.
    Ended(bool),
}
