//! What stands in for a state that is not to be trusted, so that the log goes on without it ([`crate::heal`]).
//!
//! To a group it is a state machine that follows the log and keeps nothing: the member votes, acknowledges, and leads if
//! nobody else can. It hashes nothing, so that it is compared with nobody; it has no copy to give and takes none; and it
//! calls nothing durable beyond where it began, so that the log forgets nothing.

use base::PeerId;
use bytes::Bytes;
use consensus::{Applied, Entry, MachineError, Mark, Payload, SnapshotSink, SnapshotSource, StateMachine};
use storage::LogStore;

use crate::node::GROUP;
use crate::roster::Roster;

pub struct StandIn {
    began: u64,
    mark: Mark,
    membership: Bytes,
}

impl StandIn {
    /// As of the first index at which log and members are known. `None`: the log does not reach it.
    pub fn new(roster: &Roster, log: &dyn LogStore) -> Option<StandIn> {
        let index = roster.index.max(log.state(GROUP)?.start.index);
        let term = log.term(GROUP, index).ok()?;
        let mark = Mark { index, term, hash: 0 };
        Some(StandIn { began: index, mark, membership: roster.membership.encode().into() })
    }
}

impl StateMachine for StandIn {
    fn mark(&self) -> Mark {
        self.mark
    }

    fn membership(&self) -> Bytes {
        self.membership.clone()
    }

    fn found(&mut self, _mark: Mark, _membership: Bytes) -> Result<(), MachineError> {
        Err(no_state())
    }

    fn apply(&mut self, entries: &[Entry], _local: PeerId, _applied: &mut Applied) -> Result<(), MachineError> {
        for entry in entries {
            self.mark = Mark { index: entry.index, term: entry.term, hash: 0 };
            if let Payload::Membership { membership, .. } = &entry.payload {
                self.membership = membership.clone();
            }
        }
        Ok(())
    }

    fn durable(&self) -> Result<u64, MachineError> {
        Ok(self.began)
    }

    fn flusher(&self) -> Box<dyn Fn() -> Result<(), MachineError> + Send> {
        Box::new(|| Ok(()))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        Err(no_state())
    }

    fn receiver(&self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Err(no_state())
    }

    fn install(&mut self, _staged: &mut dyn SnapshotSink) -> Result<(), MachineError> {
        Err(no_state())
    }
}

fn no_state() -> MachineError {
    MachineError::Damaged("the state is not to be trusted, and another stands in for it".to_owned())
}

#[cfg(test)]
mod tests {
    use consensus::Membership;
    use storage::log::LogStart;
    use storage::memlog::MemLog;
    use storage::{GroupWrite, LogBatch, LogEntry};

    use super::*;

    fn log(start: u64, last: u64) -> MemLog {
        let log = MemLog::new();
        let entry = |index| LogEntry { index, term: 3, kind: 0, data: Bytes::new() };
        let write = GroupWrite {
            group: GROUP,
            reset: Some(LogStart { index: start, term: 2 }),
            entries: (start + 1..=last).map(entry).collect(),
            ..GroupWrite::default()
        };
        log.write(&LogBatch { groups: vec![write] }).unwrap();
        log
    }

    #[test]
    fn it_begins_where_log_and_members_meet_and_keeps_the_log() {
        let begin = |index, start, last| {
            let roster = Roster { index, membership: Membership::default() };
            StandIn::new(&roster, &log(start, last)).map(|standin| (standin.mark.index, standin.mark.term))
        };
        assert_eq!(begin(5, 10, 20), Some((10, 2)), "no change since the log begins");
        assert_eq!(begin(15, 10, 20), Some((15, 3)));
        assert_eq!(begin(21, 10, 20), None, "the log ends before the members were these");

        let roster = Roster { index: 5, membership: Membership::default() };
        let mut standin = StandIn::new(&roster, &log(10, 20)).unwrap();
        let changed = Bytes::from_static(b"changed");
        let entries = [
            Entry { index: 11, term: 3, payload: Payload::Nothing },
            Entry { index: 12, term: 3, payload: Payload::Membership { membership: changed.clone(), done: None } },
        ];
        let mut applied = Applied::default();
        standin.apply(&entries, PeerId(1), &mut applied).unwrap();
        assert_eq!((standin.mark().index, standin.membership()), (12, changed));
        assert!(applied.hashes.is_empty() && applied.outcomes.is_empty());
        assert_eq!(standin.durable().unwrap(), 10, "nothing of the log may be forgotten");
        assert!(standin.snapshot().is_err() && standin.receiver().is_err());
    }
}
