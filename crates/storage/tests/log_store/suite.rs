//! The conformance suite: what every log store does, run against the segmented log and its in-memory twin.

use base::GroupId;
use storage::log::LogStart;
use storage::memlog::MemLog;
use storage::seglog::{SegLog, SegLogOptions};
use storage::{GroupWrite, HardState, LogBatch, LogEntry, LogError, LogState, LogStore};
use tempfile::TempDir;

use crate::content::whole;

/// Options with which little data makes many segments.
pub fn small() -> SegLogOptions {
    SegLogOptions {
        segment_bytes: 2048,
        zero_ahead_bytes: 512,
        slack_segments: 2,
        moved_bytes_max: 1024,
        ..SegLogOptions::new(0xCE17_AA11)
    }
}

pub fn entry(index: u64, term: u64, data: &str) -> LogEntry {
    LogEntry { index, term, kind: 1, data: data.to_owned().into() }
}

pub fn entries(group: u64, entries: Vec<LogEntry>) -> GroupWrite {
    GroupWrite { group: GroupId(group), entries, ..GroupWrite::default() }
}

pub fn batch(groups: Vec<GroupWrite>) -> LogBatch {
    LogBatch { groups }
}

/// A log that can be closed and opened again.
trait Subject {
    fn log(&self) -> &dyn LogStore;
    fn reopen(&mut self);
}

struct Segmented {
    folder: TempDir,
    log: Option<SegLog>,
}

impl Subject for Segmented {
    fn log(&self) -> &dyn LogStore {
        self.log.as_ref().expect("it is open")
    }

    fn reopen(&mut self) {
        self.log = None;
        self.log = Some(SegLog::open(self.folder.path(), small()).expect("the log is whole"));
    }
}

impl Subject for MemLog {
    fn log(&self) -> &dyn LogStore {
        self
    }

    fn reopen(&mut self) {
        MemLog::reopen(self).expect("the log is whole");
    }
}

/// Runs a case against both stores.
fn check(case: impl Fn(&mut dyn Subject)) {
    case(&mut MemLog::new());
    let folder = tempfile::tempdir().unwrap();
    let log = SegLog::open(folder.path(), small()).unwrap();
    case(&mut Segmented { folder, log: Some(log) });
}

fn data(log: &dyn LogStore, group: u64, low: u64, high: u64) -> Vec<String> {
    let read = log.read(GroupId(group), low, high, u64::MAX).unwrap();
    read.iter().map(|entry| String::from_utf8(entry.data.to_vec()).unwrap()).collect()
}

#[test]
fn a_fresh_log_is_empty() {
    check(|subject| {
        for _ in 0..2 {
            let log = subject.log();
            assert_eq!(log.groups(), []);
            assert_eq!(log.state(GroupId(1)), None);
            assert!(log.term(GroupId(1), 0).is_err());
            assert!(log.read(GroupId(1), 1, 2, 1).is_err());
            log.write(&batch(vec![])).unwrap();
            log.idle().unwrap();
            subject.reopen();
        }
    });
}

#[test]
fn entries_are_read_back_with_their_terms() {
    check(|subject| {
        let log = subject.log();
        log.write(&batch(vec![entries(1, vec![entry(1, 1, "a"), entry(2, 1, ""), entry(3, 2, "ccc")])])).unwrap();
        log.write(&batch(vec![entries(1, vec![entry(4, 2, "dddd")])])).unwrap();
        for _ in 0..2 {
            let log = subject.log();
            let state = LogState { last: 4, last_term: 2, ..LogState::default() };
            assert_eq!(log.state(GroupId(1)), Some(state));
            assert_eq!(data(log, 1, 1, 5), ["a", "", "ccc", "dddd"]);
            assert_eq!(data(log, 1, 3, 3), [""; 0]);
            let terms: Vec<u64> = (0..5).map(|index| log.term(GroupId(1), index).unwrap()).collect();
            assert_eq!(terms, [0, 1, 1, 2, 2]);
            let count = |bytes_max| log.read(GroupId(1), 1, 5, bytes_max).unwrap().len();
            assert_eq!([count(0), count(1), count(3), count(4), count(7), count(8)], [1, 2, 2, 3, 3, 4]);
            assert!(matches!(log.term(GroupId(1), 5), Err(LogError::Io(_))));
            assert!(matches!(log.read(GroupId(1), 4, 6, 99), Err(LogError::Io(_))));
            subject.reopen();
        }
    });
}

#[test]
fn a_suffix_is_replaced() {
    check(|subject| {
        let log = subject.log();
        log.write(&batch(vec![entries(1, vec![entry(1, 1, "a"), entry(2, 1, "b"), entry(3, 1, "c")])])).unwrap();
        log.write(&batch(vec![entries(1, vec![entry(2, 2, "B")])])).unwrap();
        for _ in 0..2 {
            assert_eq!(subject.log().state(GroupId(1)).unwrap().last, 2);
            assert_eq!(data(subject.log(), 1, 1, 3), ["a", "B"]);
            subject.reopen();
        }
        subject.log().write(&batch(vec![entries(1, vec![entry(1, 3, "A")])])).unwrap();
        subject.reopen();
        assert_eq!(data(subject.log(), 1, 1, 2), ["A"]);
    });
}

#[test]
fn a_compacted_log_keeps_the_term_of_its_start() {
    check(|subject| {
        let log = subject.log();
        log.write(&batch(vec![entries(1, vec![entry(1, 1, "a"), entry(2, 2, "b"), entry(3, 3, "c")])])).unwrap();
        let compact = |to| batch(vec![GroupWrite { group: GroupId(1), compact_to: Some(to), ..Default::default() }]);
        log.write(&compact(2)).unwrap();
        log.write(&compact(1)).unwrap();
        for _ in 0..2 {
            let log = subject.log();
            assert_eq!(log.state(GroupId(1)).unwrap().start, LogStart { index: 2, term: 2 });
            assert_eq!(data(log, 1, 3, 4), ["c"]);
            assert_eq!(log.term(GroupId(1), 2), Ok(2));
            let gone = LogError::Compacted { group: GroupId(1), index: 1, start: 2 };
            assert_eq!(log.term(GroupId(1), 1), Err(gone.clone()));
            assert_eq!(log.read(GroupId(1), 1, 4, 99), Err(gone));
            assert!(matches!(log.read(GroupId(1), 2, 4, 99), Err(LogError::Compacted { .. })));
            subject.reopen();
        }
        subject.log().write(&compact(99)).unwrap();
        subject.reopen();
        let state = subject.log().state(GroupId(1)).unwrap();
        assert_eq!((state.start, state.last, state.last_term), (LogStart { index: 3, term: 3 }, 3, 3));
    });
}

#[test]
fn a_reset_log_begins_elsewhere() {
    check(|subject| {
        subject.log().write(&batch(vec![entries(1, vec![entry(1, 1, "a")])])).unwrap();
        let hard = HardState { term: 7, vote: 8, commit: 41 };
        let reset = GroupWrite {
            group: GroupId(1),
            reset: Some(LogStart { index: 40, term: 6 }),
            compact_to: Some(30),
            entries: vec![entry(41, 7, "x")],
            hard: Some(hard),
            destroy: false,
        };
        subject.log().write(&batch(vec![reset])).unwrap();
        for _ in 0..2 {
            let state = LogState { start: LogStart { index: 40, term: 6 }, last: 41, last_term: 7, hard };
            assert_eq!(subject.log().state(GroupId(1)), Some(state));
            assert_eq!(data(subject.log(), 1, 41, 42), ["x"]);
            subject.reopen();
        }
    });
}

#[test]
fn a_destroyed_group_is_forgotten_and_may_come_back() {
    check(|subject| {
        let destroy = GroupWrite { group: GroupId(2), destroy: true, ..Default::default() };
        let log = subject.log();
        log.write(&batch(vec![entries(2, vec![entry(1, 1, "a")]), entries(1, vec![entry(1, 1, "b")])])).unwrap();
        log.write(&batch(vec![destroy.clone()])).unwrap();
        log.write(&batch(vec![destroy.clone()])).unwrap();
        subject.reopen();
        assert_eq!(subject.log().groups(), [GroupId(1)]);
        assert_eq!(subject.log().state(GroupId(2)), None);
        let again = entries(2, vec![entry(1, 5, "c"), entry(2, 5, "d")]);
        let compact = GroupWrite { group: GroupId(2), compact_to: Some(1), ..Default::default() };
        subject.log().write(&batch(vec![again.clone(), destroy, again, compact])).unwrap();
        for _ in 0..2 {
            assert_eq!(subject.log().state(GroupId(2)).unwrap().start, LogStart { index: 1, term: 5 });
            assert_eq!(data(subject.log(), 2, 2, 3), ["d"]);
            subject.reopen();
        }
    });
}

#[test]
fn ten_thousand_groups_share_a_batch() {
    check(|subject| {
        let write = |group| GroupWrite {
            hard: Some(HardState { term: group, vote: 2, commit: 0 }),
            ..entries(group, vec![entry(1, group, "first")])
        };
        subject.log().write(&batch((1..=10_000).map(write).collect())).unwrap();
        let before = whole(subject.log());
        subject.reopen();
        assert_eq!(whole(subject.log()), before);
        assert_eq!(subject.log().state(GroupId(10_000)).unwrap().hard.term, 10_000);
    });
}

#[test]
#[should_panic(expected = "does not join on")]
fn a_gap_between_batches_is_a_programmers_error() {
    let folder = tempfile::tempdir().unwrap();
    let log = SegLog::open(folder.path(), small()).unwrap();
    let _ = log.write(&batch(vec![entries(1, vec![entry(2, 1, "b")])]));
}

#[test]
#[should_panic(expected = "have a gap")]
fn a_gap_within_a_batch_is_a_programmers_error() {
    let folder = tempfile::tempdir().unwrap();
    let log = SegLog::open(folder.path(), small()).unwrap();
    let _ = log.write(&batch(vec![entries(1, vec![entry(1, 1, "a"), entry(3, 1, "c")])]));
}

#[test]
fn a_log_is_opened_once_at_a_time_and_must_exist_if_it_must() {
    let folder = tempfile::tempdir().unwrap();
    let must_exist = SegLogOptions { must_exist: true, ..small() };
    assert!(matches!(SegLog::open(folder.path(), must_exist), Err(LogError::Lost { .. })));
    let log = SegLog::open(folder.path(), small()).unwrap();
    match SegLog::open(folder.path(), small()) {
        Err(LogError::Io(why)) => assert!(why.contains("in use"), "{why}"),
        other => panic!("{:?}", other.err()),
    }
    drop(log);
    SegLog::open(folder.path(), must_exist).unwrap();
}
