//! The scrub: in the background, all that lies in the data folder is read again, to find damage before it is needed.
//!
//! A pass reads the manifest and the table files of the state ([`storage::rocks::StateScrub`]) and the segments of the log
//! ([`storage::seglog::LogScrub`]), step by step, at a pace: as fast as a pass has to be to be done in nine tenths of the
//! interval, but not slower than [`PACE_MIN`]; a pass that somebody asked for goes at [`PACE_ASKED`]. What a step finds is
//! remembered where it was found, and `node::heal` does the rest: nothing is repaired here.
//!
//! One thread for all of it. It sleeps between steps and holds nothing of the state while it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use storage::EngineError;
use storage::LogError;
use storage::rocks::StateScrub;
use storage::seglog::{LogScrub, SegLog};

use crate::store::{Store, Stores};

/// Bytes per second.
const PACE_MIN: u64 = 32 << 20;
const PACE_ASKED: u64 = 256 << 20;
/// The first pass begins so long after the start.
const FIRST_AFTER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A scrub's progress and past, for status and metrics.
#[derive(Default)]
pub struct Scrub {
    asked: AtomicBool,
    running: AtomicBool,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    bytes_read: AtomicU64,
    passes: AtomicU64,
    findings: AtomicU64,
    unchecked: AtomicU64,
    ended_unix_s: AtomicU64,
    last: Mutex<String>,
}

/// As of a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    pub running: bool,
    /// A pass was asked for and has not begun.
    pub asked: bool,
    /// Of the pass under way, or the last one.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Files of the state that have no checksum, in the last pass.
    pub unchecked: u64,
    /// Since the process began.
    pub bytes_read: u64,
    pub passes: u64,
    pub findings: u64,
    /// When a pass last ended, in seconds since 1970; zero for never.
    pub ended_unix_s: u64,
    /// What the last pass came to, in words; empty before the first.
    pub last: String,
}

impl Scrub {
    /// Begins a pass as soon as the one under way, if any, is done.
    pub fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    pub fn progress(&self) -> ScrubProgress {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ScrubProgress {
            running: self.running.load(Ordering::Relaxed),
            asked: self.asked.load(Ordering::Relaxed),
            bytes_done: get(&self.bytes_done),
            bytes_total: get(&self.bytes_total),
            unchecked: get(&self.unchecked),
            bytes_read: get(&self.bytes_read),
            passes: get(&self.passes),
            findings: get(&self.findings),
            ended_unix_s: get(&self.ended_unix_s),
            last: self.last.lock().clone(),
        }
    }

    fn end(&self, words: String) {
        *self.last.lock() = words;
        self.ended_unix_s.store(unix_s(), Ordering::Relaxed);
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.running.store(false, Ordering::Relaxed);
    }
}

/// Starts the thread; it ends with the process. An interval of zero: only when asked.
pub fn start(scrub: &Arc<Scrub>, stores: &Arc<Stores>, log: Arc<SegLog>, interval: Duration) {
    let scrubber = Scrubber { scrub: scrub.clone(), stores: stores.clone(), log, interval };
    let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(move || scrubber.run());
    drop(thread.expect("threads can be started"));
}

struct Scrubber {
    scrub: Arc<Scrub>,
    stores: Arc<Stores>,
    log: Arc<SegLog>,
    interval: Duration,
}

/// What a pass has to do with.
struct Pass {
    state: StateScrub,
    log: LogScrub,
    state_is_done: bool,
    began: Instant,
    bytes: u64,
    bytes_per_second: u64,
}

enum Ended {
    /// All was read, and is whole.
    Whole,
    /// There is nothing to check here (any more).
    Away,
    Damaged(String),
    Failed(String),
}

impl Scrubber {
    fn run(self) {
        let mut due = (!self.interval.is_zero()).then(|| Instant::now() + FIRST_AFTER);
        loop {
            std::thread::sleep(LOOK_EVERY);
            let Some(store) = self.stores.get() else { continue };
            let asked = self.scrub.asked.load(Ordering::SeqCst);
            if !asked && due.is_none_or(|due| Instant::now() < due) {
                continue;
            }
            self.scrub.running.store(true, Ordering::Relaxed);
            self.scrub.asked.store(false, Ordering::SeqCst);
            let began = Instant::now();
            let ended = self.pass(store, asked);
            self.tell(ended);
            due = (!self.interval.is_zero()).then(|| began + self.interval);
        }
    }

    /// One pass from end to end.
    fn pass(&self, store: Arc<Store>, asked: bool) -> Ended {
        let state = match store.engine.begin_scrub() {
            Ok(state) => state,
            Err(error) => return of_state(error),
        };
        drop(store);
        let log = self.log.begin_scrub();
        let bytes_total = state.bytes_total() + log.bytes_total();
        self.scrub.bytes_total.store(bytes_total, Ordering::Relaxed);
        self.scrub.bytes_done.store(0, Ordering::Relaxed);
        self.scrub.unchecked.store(state.unchecked(), Ordering::Relaxed);
        let needed = (bytes_total as f64 / (self.interval.as_secs_f64() * 0.9)) as u64;
        let bytes_per_second = if asked { PACE_ASKED } else { needed.max(PACE_MIN) };
        let mut pass = Pass { state, log, state_is_done: false, began: Instant::now(), bytes: 0, bytes_per_second };
        loop {
            let Some(store) = self.stores.get() else { return Ended::Away };
            let read = match pass.step(&store, &self.log) {
                Ok(Some(read)) => read,
                Ok(None) => return Ended::Whole,
                Err(ended) => return ended,
            };
            drop(store);
            pass.bytes += read;
            self.scrub.bytes_done.store(pass.bytes, Ordering::Relaxed);
            self.scrub.bytes_read.fetch_add(read, Ordering::Relaxed);
            pass.keep_pace();
        }
    }

    fn tell(&self, ended: Ended) {
        let ScrubProgress { bytes_done, unchecked, .. } = self.scrub.progress();
        match ended {
            Ended::Whole => {
                tracing::info!(
                    target: "chainfire_storage",
                    "Scrub done, nothing is damaged, bytes={bytes_done} unchecked_files={unchecked}"
                );
                self.scrub.end("nothing is damaged".to_owned());
            }
            Ended::Away => self.scrub.end("it was broken off".to_owned()),
            Ended::Damaged(why) => {
                self.scrub.findings.fetch_add(1, Ordering::Relaxed);
                tracing::error!(target: "chainfire_storage", "Scrub found damage, why={why} code=CF4003");
                self.scrub.end(format!("damage was found: {why}"));
            }
            Ended::Failed(why) => {
                tracing::warn!(target: "chainfire_storage", "Scrub was broken off, why={why} code=CF4004");
                self.scrub.end(format!("it was broken off: {why}"));
            }
        }
    }
}

impl Pass {
    fn step(&mut self, store: &Store, log: &SegLog) -> Result<Option<u64>, Ended> {
        if !self.state_is_done {
            match store.engine.scrub_step(&mut self.state).map_err(of_state)? {
                Some(read) => return Ok(Some(read)),
                None => self.state_is_done = true,
            }
        }
        log.scrub_step(&mut self.log).map_err(|error| match error {
            LogError::Corrupt { .. } | LogError::Lost { .. } => Ended::Damaged(error.to_string()),
            error => Ended::Failed(error.to_string()),
        })
    }

    fn keep_pace(&self) {
        let due = Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second as f64);
        std::thread::sleep(due.saturating_sub(self.began.elapsed()));
    }
}

fn of_state(error: EngineError) -> Ended {
    match error {
        EngineError::Corrupt(why) => Ended::Damaged(why),
        error => Ended::Failed(error.to_string()),
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
