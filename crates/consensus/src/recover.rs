//! A replica goes on alone, because the majority of its group is gone for good.
//!
//! Offline: no host runs. Everything that the log still holds is applied, also what is not known to be committed: a
//! client may have been told of it, on the word of members that are gone. What it was to be told apart from, an entry
//! that another leader put in its place, is gone with them. Then one more entry, which lies in no log, makes the
//! group one of a single voter; the log of the new incarnation begins behind it.
//!
//! Left out, and why: the memberships in those entries. They are of the old group, and the new one replaces them.

use std::sync::Arc;

use base::GroupId;
use raft::eraftpb::ConfState;
use storage::{LogError, LogStore};

use crate::log::LogReader;
use crate::machine::{Applied, Entry, MachineError, Mark, Payload, StateMachine};
use crate::membership::Membership;

/// Bytes of entries applied at a time.
const BYTES_MAX: u64 = 4 << 20;

#[derive(Clone, Debug, thiserror::Error)]
pub enum RecoverError {
    #[error("{0}")]
    Log(#[from] LogError),
    #[error("{0}")]
    Machine(#[from] MachineError),
    #[error("the state ends at {state} but the log begins after {log}")]
    Gap { state: u64, log: u64 },
}

/// Applies what a stopped replica's log holds beyond its state, up to `through`; says how many entries that were.
pub fn replay(
    store: Arc<dyn LogStore>,
    group: GroupId,
    machine: &mut dyn StateMachine,
    through: u64,
) -> Result<u64, RecoverError> {
    let from = machine.mark().index;
    let Some(log) = store.state(group).filter(|log| log.last > from) else { return Ok(0) };
    if log.start.index > from {
        return Err(RecoverError::Gap { state: from, log: log.start.index });
    }
    let last = log.last.min(through);
    let reader = LogReader::open(group, store, ConfState::default(), 0, Arc::default());
    let mut next = from + 1;
    while next <= last {
        let entries = reader.read(next, last, BYTES_MAX)?;
        // Nobody waits for an answer.
        machine.apply(&entries, base::PeerId::NONE, &mut Applied::default())?;
        next = entries.last().map_or(last, |entry| entry.index) + 1;
    }
    Ok(last.saturating_sub(from))
}

/// Makes the state that of a group with this membership, durably. `term` is the highest that the log has seen.
pub fn found_anew(machine: &mut dyn StateMachine, membership: &Membership, term: u64) -> Result<Mark, RecoverError> {
    let before = machine.mark();
    let payload = Payload::Membership { membership: membership.encode().into(), done: None };
    let entry = Entry { index: before.index + 1, term: before.term.max(term) + 1, payload };
    machine.apply(&[entry], base::PeerId::NONE, &mut Applied::default())?;
    machine.flusher()()?;
    Ok(machine.mark())
}
