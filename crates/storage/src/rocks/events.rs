//! What RocksDB tells of itself in the background: stalled writes, errors, slow compactions. Counted for the
//! metrics, and kept as a short list that the shell above turns into log lines. And what was found damaged, whoever
//! came upon it: remembered, because whoever asks next may well be served from memory.
//!
//! A stall lasts from the first family that leaves the normal condition until all are normal again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, OnceLock};

use base::Time;
use parking_lot::Mutex;
use rust_rocksdb::event_listener::{
    BackgroundErrorRecoveryInfo, CompactionJobInfo, DBBackgroundErrorReason, DBWriteStallCondition, EventListener,
    FlushJobInfo, MutableStatus, WriteStallInfo,
};

use crate::engine::{EngineError, EngineEvent};

/// Events kept until they are taken; older ones go first when nobody does.
const EVENTS_MAX: usize = 256;

pub(super) struct Events {
    now: fn() -> Time,
    slow_compaction_ms: u64,
    state: Mutex<State>,
    damage: OnceLock<String>,
}

#[derive(Default)]
struct State {
    recent: VecDeque<EngineEvent>,
    stalled: BTreeSet<Vec<u8>>,
    stalled_since: Time,
    stalls: u64,
    stall_ms: u64,
    work: Work,
}

/// What was done in the background in all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    pub flushes: u64,
    pub compactions: u64,
    pub compaction_us: u64,
    pub compaction_read_bytes: u64,
    pub compaction_written_bytes: u64,
}

impl Events {
    pub fn new(now: fn() -> Time, slow_compaction_ms: u64) -> Events {
        Events { now, slow_compaction_ms, state: Mutex::default(), damage: OnceLock::new() }
    }

    pub fn take(&self) -> Vec<EngineEvent> {
        self.state.lock().recent.drain(..).collect()
    }

    /// Remembers an error if it is damage.
    pub fn noted(&self, error: EngineError) -> EngineError {
        if let EngineError::Corrupt(why) = &error {
            self.damage.get_or_init(|| why.clone());
        }
        error
    }

    pub fn damage(&self) -> Option<String> {
        self.damage.get().cloned()
    }

    /// Stalls begun, and milliseconds stalled in all, a stall under way included.
    pub fn stalls(&self) -> (u64, u64) {
        let state = self.state.lock();
        let under_way = if state.stalled.is_empty() { 0 } else { self.ms_since(state.stalled_since) };
        (state.stalls, state.stall_ms + under_way)
    }

    pub fn work(&self) -> Work {
        self.state.lock().work
    }

    pub fn is_stalled(&self) -> bool {
        !self.state.lock().stalled.is_empty()
    }

    /// The database was closed: whatever stalled it is over.
    pub fn closed(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.stalled).is_empty() {
            self.end_stall(&mut state);
        }
    }

    fn stall_changed(&self, family: Vec<u8>, condition: DBWriteStallCondition) {
        let mut state = self.state.lock();
        if condition == DBWriteStallCondition::KNormal {
            if state.stalled.remove(&family) && state.stalled.is_empty() {
                self.end_stall(&mut state);
            }
        } else {
            if state.stalled.is_empty() {
                state.stalled_since = (self.now)();
                state.stalls += 1;
                let stopped = condition == DBWriteStallCondition::KStopped;
                state.push(EngineEvent::StallBegan { family: text(family.clone()), stopped });
            }
            state.stalled.insert(family);
        }
    }

    fn end_stall(&self, state: &mut State) {
        let duration_ms = self.ms_since(state.stalled_since);
        state.stall_ms += duration_ms;
        state.push(EngineEvent::StallEnded { duration_ms });
    }

    fn ms_since(&self, then: Time) -> u64 {
        u64::try_from((self.now)().since(then).as_millis()).unwrap_or(u64::MAX)
    }
}

impl State {
    fn push(&mut self, event: EngineEvent) {
        if self.recent.len() == EVENTS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }
}

/// What RocksDB's threads call.
pub(super) struct Ears(pub Arc<Events>);

impl EventListener for Ears {
    fn on_stall_conditions_changed(&self, info: &WriteStallInfo) {
        self.0.stall_changed(info.cf_name().unwrap_or_default(), info.cur());
    }

    fn on_background_error(&self, reason: DBBackgroundErrorReason, status: MutableStatus) {
        let during = match reason {
            DBBackgroundErrorReason::KFlush | DBBackgroundErrorReason::KFlushNoWAL => "flush",
            DBBackgroundErrorReason::KCompaction => "compaction",
            DBBackgroundErrorReason::KManifestWrite | DBBackgroundErrorReason::KManifestWriteNoWAL => "manifest",
            DBBackgroundErrorReason::KWriteCallback | DBBackgroundErrorReason::KMemTable => "write",
            DBBackgroundErrorReason::KAsyncFileOpen => "open",
            DBBackgroundErrorReason::KUnknown => "background work",
        };
        let error = status.result().as_ref().err();
        let message = error.map(ToString::to_string).unwrap_or_default();
        if let Some(error) = error {
            self.0.noted(super::failed(error.clone()));
        }
        self.0.state.lock().push(EngineEvent::BackgroundError { during, message });
    }

    fn on_error_recovery_end(&self, info: &BackgroundErrorRecoveryInfo) {
        if info.new_bg_error().result().is_ok() {
            self.0.state.lock().push(EngineEvent::Recovered);
        }
    }

    fn on_flush_completed(&self, _: &FlushJobInfo) {
        self.0.state.lock().work.flushes += 1;
    }

    fn on_compaction_completed(&self, info: &CompactionJobInfo) {
        let duration_ms = info.elapsed_micros() / 1000;
        {
            let work = &mut self.0.state.lock().work;
            work.compactions += 1;
            work.compaction_us += info.elapsed_micros();
            work.compaction_read_bytes += info.total_input_bytes();
            work.compaction_written_bytes += info.total_output_bytes();
        }
        if duration_ms >= self.0.slow_compaction_ms {
            self.0.state.lock().push(EngineEvent::SlowCompaction {
                family: text(info.cf_name().unwrap_or_default()),
                duration_ms,
                bytes_read: info.total_input_bytes(),
                bytes_written: info.total_output_bytes(),
            });
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    static CLOCK_MS: AtomicU64 = AtomicU64::new(0);

    #[test]
    fn a_stall_lasts_until_all_families_are_normal() {
        let events = Events::new(|| Time::from_millis(CLOCK_MS.load(Ordering::Relaxed)), 0);
        let at = |ms, family: &str, condition| {
            CLOCK_MS.store(ms, Ordering::Relaxed);
            events.stall_changed(family.as_bytes().to_vec(), condition);
        };
        at(100, "a", DBWriteStallCondition::KDelayed);
        at(200, "b", DBWriteStallCondition::KStopped);
        at(300, "a", DBWriteStallCondition::KNormal);
        assert_eq!(events.stalls(), (1, 200));
        at(2100, "b", DBWriteStallCondition::KNormal);
        at(2200, "b", DBWriteStallCondition::KNormal);
        assert_eq!(events.stalls(), (1, 2000));
        assert_eq!(
            events.take(),
            [
                EngineEvent::StallBegan { family: "a".into(), stopped: false },
                EngineEvent::StallEnded { duration_ms: 2000 }
            ]
        );
        at(3000, "a", DBWriteStallCondition::KStopped);
        CLOCK_MS.store(3500, Ordering::Relaxed);
        events.closed();
        assert_eq!(events.stalls(), (2, 2500));
        assert_eq!(events.take().len(), 2);
        for _ in 0..2 * EVENTS_MAX {
            at(4000, "a", DBWriteStallCondition::KStopped);
            at(4000, "a", DBWriteStallCondition::KNormal);
        }
        assert_eq!(events.take().len(), EVENTS_MAX);
    }
}
