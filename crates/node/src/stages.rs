//! Where the time of a slow command went, without a stamp on any command.
//!
//! A command is taken into a turn, its entry is synced to this node's log, committed by a quorum, and applied. What the
//! threads note is how far each of these had come, once a millisecond at most ([`Track`]): a few numbers per turn, however
//! many commands it carries. Only when a command turns out to have been slow is its way looked up: the first turn after
//! it was asked, and when each track reached its index ([`Stages::of`]).
//!
//! Invariants
//! 1. A track's times and values never go back; a value that does (a log that was cut for a new leader) is left out.
//! 2. A track keeps [`KEPT`] milliseconds in which something happened, more than any request may take.
//!
//! The parts that [`Stages::of`] tells add up to no more than what the command took. On a node that does not lead, the
//! way to the leader and back is in `log_ms`.
//!
//! Left out: reads. They have no index; the API times its two steps itself.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::Time;
use parking_lot::Mutex;

/// Milliseconds with news that a track remembers; a request may take about seven seconds.
const KEPT: usize = 8192;

/// What the three threads note.
#[derive(Default)]
pub struct Stages {
    turns: Track,
    synced: Track,
    committed: Track,
    applied: Track,
}

/// How long a command waited for what, in the order of its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// For the driver to take it.
    pub queue_ms: u64,
    /// For this node's disk; on a follower for the leader too.
    pub log_ms: u64,
    /// For a quorum, beyond that.
    pub commit_ms: u64,
    /// For the state machine.
    pub apply_ms: u64,
}

impl Stages {
    pub fn turn(&self, now: Time) {
        let ms = millis(now);
        self.turns.note(ms, ms);
    }

    /// This node's log is durable up to `index`.
    pub fn synced(&self, now: Time, index: u64) {
        self.synced.note(millis(now), index);
    }

    pub fn committed(&self, now: Time, index: u64) {
        self.committed.note(millis(now), index);
    }

    pub fn applied(&self, now: Time, index: u64) {
        self.applied.note(millis(now), index);
    }

    /// The way of a command that was asked for at `asked` and applied within the entry `index`; of one that was never
    /// applied (`None`), how long it waited for the driver.
    pub fn of(&self, asked: Time, index: Option<u64>) -> StageTimes {
        let asked = millis(asked);
        let taken = self.turns.reached(asked).unwrap_or(asked).max(asked);
        let Some(index) = index else { return StageTimes { queue_ms: taken - asked, ..StageTimes::default() } };
        let after = |track: &Track, before: u64| track.reached(index).unwrap_or(before).max(before);
        let synced = after(&self.synced, taken);
        let committed = after(&self.committed, synced);
        let applied = after(&self.applied, committed);
        StageTimes {
            queue_ms: taken - asked,
            log_ms: synced - taken,
            commit_ms: committed - synced,
            apply_ms: applied - committed,
        }
    }
}

/// When a number that only grows reached what.
#[derive(Default)]
struct Track(Mutex<VecDeque<(u64, u64)>>);

impl Track {
    fn note(&self, ms: u64, value: u64) {
        let mut seen = self.0.lock();
        match seen.back_mut() {
            Some((_, last)) if value <= *last => {}
            Some((at, last)) if *at >= ms => *last = value,
            _ => {
                if seen.len() == KEPT {
                    seen.pop_front();
                }
                seen.push_back((ms, value));
            }
        }
    }

    /// `None` when it has not, or when that is forgotten.
    fn reached(&self, value: u64) -> Option<u64> {
        let seen = self.0.lock();
        let place = seen.partition_point(|(_, reached)| *reached < value);
        let forgotten = place == 0 && seen.len() == KEPT;
        seen.get(place).filter(|_| !forgotten).map(|(ms, _)| *ms)
    }
}

fn millis(time: Time) -> u64 {
    time.as_nanos() / 1_000_000
}

/// Durations by powers of two: up to 0.125 ms, and twice as much each time; the last bucket has no bound.
#[derive(Default)]
pub struct Durations {
    pub buckets: [AtomicU64; 18],
    pub nanos: AtomicU64,
}

impl Durations {
    pub fn add(&self, took: Duration) {
        self.nanos.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        let eighths = (took.as_micros() / 125) as u64;
        let bucket = (u64::BITS - eighths.leading_zeros()) as usize;
        self.buckets[bucket.min(self.buckets.len() - 1)].fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Time {
        Time::from_millis(ms)
    }

    #[test]
    fn a_slow_command_finds_its_way() {
        let stages = Stages::default();
        stages.turn(at(90));
        stages.turn(at(130));
        stages.synced(at(131), 7);
        stages.synced(at(170), 8);
        stages.committed(at(150), 7);
        stages.committed(at(200), 9);
        stages.applied(at(240), 9);
        let way = StageTimes { queue_ms: 30, log_ms: 40, commit_ms: 30, apply_ms: 40 };
        assert_eq!(stages.of(at(100), Some(8)), way);
        // Committed by the others before this node's own disk was done.
        stages.committed(at(300), 10);
        stages.synced(at(330), 10);
        stages.applied(at(331), 10);
        stages.turn(at(290));
        let way = StageTimes { queue_ms: 0, log_ms: 40, commit_ms: 0, apply_ms: 1 };
        assert_eq!(stages.of(at(290), Some(10)), way);
    }

    #[test]
    fn what_never_arrived_or_is_forgotten_counts_nothing() {
        let stages = Stages::default();
        assert_eq!(stages.of(at(5), Some(3)), StageTimes::default());
        stages.turn(at(25));
        assert_eq!(stages.of(at(5), None), StageTimes { queue_ms: 20, ..StageTimes::default() });
        for ms in 0..2 * KEPT as u64 {
            stages.synced(at(100 + ms), 1 + ms);
        }
        assert_eq!(stages.synced.0.lock().len(), KEPT);
        assert_eq!(stages.of(at(25), Some(1)).log_ms, 0);
    }

    #[test]
    fn a_millisecond_is_noted_once_and_nothing_goes_back() {
        let track = Track::default();
        for (ms, value) in [(5, 1), (5, 4), (6, 3), (4, 5), (7, 9)] {
            track.note(ms, value);
        }
        assert_eq!(*track.0.lock(), [(5, 5), (7, 9)]);
        assert_eq!((track.reached(2), track.reached(6), track.reached(10)), (Some(5), Some(7), None));
    }

    #[test]
    fn durations_fall_into_the_bucket_that_holds_them() {
        let durations = Durations::default();
        for us in [1, 124, 125, 249, 250, 1_000_000_000_000] {
            durations.add(Duration::from_micros(us));
        }
        let counts: Vec<u64> = durations.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!((counts[0], counts[1], counts[2], counts[17]), (2, 2, 1, 1));
    }
}
