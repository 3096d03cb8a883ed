//! The scrub: in the background, all that lies in the data folder is read again, to find damage before it is needed.
//!
//! A pass reads the files of the state ([`Scrubbed`]) and the segments of the log ([`storage::seglog::LogScrub`]), step by step,
//! at a pace: as fast as a pass has to be to be done in nine tenths of the interval, but not slower than [`PACE_MIN`]; a pass
//! that somebody asked for goes at [`PACE_ASKED`]. What a step finds is remembered where it was found, and whoever watches
//! log and state for damage does the rest ([`crate::heal`], [`crate::many`]): nothing is repaired here.
//!
//! One thread for all of it. It sleeps between steps and holds nothing of the state while it sleeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use storage::engine::Scrubbed;
use storage::seglog::{LogScrub, SegLog};
use storage::{EngineError, LogError};

/// Bytes per second.
const PACE_MIN: u64 = 32 << 20;
const PACE_ASKED: u64 = 256 << 20;
/// What a pass comes to that found nothing.
const WHOLE: &str = "nothing is damaged";
/// The first pass begins so long after the start.
const FIRST_AFTER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A pass that was broken off is tried again after this.
const RETRY_AFTER: Duration = Duration::from_secs(300);

/// A scrub's progress and past, for status and metrics.
pub struct Scrub {
    /// Drawn at the start, so that whoever waits notices that another process answers.
    life: u64,
    turn: Mutex<Turn>,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    bytes_read: AtomicU64,
    findings: AtomicU64,
    unchecked: AtomicU64,
    failures: AtomicU64,
    ended_unix_s: AtomicU64,
    whole_unix_s: AtomicU64,
    interval_s: AtomicU64,
    last: Mutex<String>,
}

#[derive(Default)]
struct Turn {
    /// A pass is under way.
    running: bool,
    /// Another one was asked for.
    asked: bool,
    /// Those that have ended.
    passes: u64,
}

/// As of a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    pub life: u64,
    /// A pass is under way, or asked for.
    pub running: bool,
    /// Of the pass under way, or the last one.
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Files of the state that have no checksum, in the last pass.
    pub unchecked: u64,
    /// Since the process began.
    pub bytes_read: u64,
    pub passes: u64,
    pub findings: u64,
    /// Passes that were broken off.
    pub failures: u64,
    /// When a pass last ended, in seconds since 1970; zero for never.
    pub ended_unix_s: u64,
    /// When a pass last came to its end, and all was read.
    pub whole_unix_s: u64,
    /// Zero: only when asked.
    pub interval_s: u64,
    /// What the last pass came to, in words; empty before the first.
    pub last: String,
}

impl Default for Scrub {
    fn default() -> Scrub {
        Scrub {
            life: crate::clock::random_u64(),
            turn: Mutex::default(),
            bytes_done: AtomicU64::default(),
            bytes_total: AtomicU64::default(),
            bytes_read: AtomicU64::default(),
            findings: AtomicU64::default(),
            unchecked: AtomicU64::default(),
            failures: AtomicU64::default(),
            ended_unix_s: AtomicU64::default(),
            whole_unix_s: AtomicU64::default(),
            interval_s: AtomicU64::default(),
            last: Mutex::default(),
        }
    }
}

impl Scrub {
    /// Begins a pass as soon as the one under way, if any, is done. How many will have ended with it: whoever waits for so many has
    /// waited for one that began after it was asked for.
    pub fn ask(&self) -> u64 {
        let mut turn = self.turn.lock();
        turn.asked = true;
        turn.passes + 1 + u64::from(turn.running)
    }

    pub fn progress(&self) -> ScrubProgress {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Turn { running, asked, passes } = *self.turn.lock();
        ScrubProgress {
            life: self.life,
            running: running || asked,
            passes,
            bytes_done: get(&self.bytes_done),
            bytes_total: get(&self.bytes_total),
            unchecked: get(&self.unchecked),
            bytes_read: get(&self.bytes_read),
            findings: get(&self.findings),
            failures: get(&self.failures),
            whole_unix_s: get(&self.whole_unix_s),
            interval_s: get(&self.interval_s),
            ended_unix_s: get(&self.ended_unix_s),
            last: self.last.lock().clone(),
        }
    }

    /// The page `/scrub` of FlareDB's programs, in JSON: how far it is. `begin`: a pass is asked for.
    pub fn page(&self, begin: bool) -> String {
        let awaited = if begin { self.ask().to_string() } else { "null".to_owned() };
        let progress = self.progress();
        let last = progress.last.replace(['"', '\\'], "'");
        let ScrubProgress { life, running, bytes_done, bytes_total, passes, findings, unchecked, ended_unix_s, .. } =
            progress;
        let whole = last == WHOLE;
        let way = format!(r#""running":{running},"bytes_done":{bytes_done},"bytes_total":{bytes_total}"#);
        let past = format!(
            r#""passes":{passes},"findings":{findings},"unchecked_files":{unchecked},"whole":{whole},"last":"{last}""#
        );
        format!(
            r#"{{"process":"{life:016x}","awaited_passes":{awaited},{way},{past},"ended_unix_seconds":{ended_unix_s}}}"#
        )
    }

    /// Whether a pass begins now, and whether that was asked for.
    fn begins(&self, is_due: bool) -> Option<bool> {
        let mut turn = self.turn.lock();
        let asked = std::mem::take(&mut turn.asked);
        turn.running = asked || is_due;
        turn.running.then_some(asked)
    }

    fn end(&self, words: String) {
        *self.last.lock() = words;
        self.ended_unix_s.store(unix_s(), Ordering::Relaxed);
        let mut turn = self.turn.lock();
        (turn.running, turn.passes) = (false, turn.passes + 1);
    }
}

/// The state, while there is one.
pub trait Find<E>: Fn() -> Option<Arc<E>> + Send + 'static {}

impl<E, F: Fn() -> Option<Arc<E>> + Send + 'static> Find<E> for F {}

/// Starts the thread; it ends with the process. An interval of zero: only when asked.
pub fn start<E: Scrubbed>(scrub: &Arc<Scrub>, state: impl Find<E>, log: Arc<SegLog>, interval: Duration) {
    scrub.interval_s.store(interval.as_secs(), Ordering::Relaxed);
    let scrubber = Scrubber { scrub: scrub.clone(), state, log, interval };
    let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(move || scrubber.run());
    drop(thread.expect("threads can be started"));
}

struct Scrubber<F> {
    scrub: Arc<Scrub>,
    state: F,
    log: Arc<SegLog>,
    interval: Duration,
}

/// What a pass has to do with.
struct Pass<P> {
    state: P,
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

impl<F> Scrubber<F> {
    fn run<E: Scrubbed>(self)
    where
        F: Find<E>,
    {
        let mut due = next_pass(None, self.interval, Instant::now());
        loop {
            std::thread::sleep(LOOK_EVERY);
            let Some(state) = (self.state)() else { continue };
            let Some(asked) = self.scrub.begins(due.is_some_and(|due| Instant::now() >= due)) else { continue };
            let began = Instant::now();
            let ended = self.pass(state, asked);
            let whole = matches!(ended, Ended::Whole);
            self.tell(ended);
            due = next_pass(Some((began, whole)), self.interval, Instant::now());
        }
    }

    /// One pass from end to end.
    fn pass<E: Scrubbed>(&self, engine: Arc<E>, asked: bool) -> Ended
    where
        F: Find<E>,
    {
        let (state, extent) = match engine.begin_pass() {
            Ok(begun) => begun,
            Err(error) => return of_state(error),
        };
        drop(engine);
        let log = self.log.begin_scrub();
        let bytes_total = extent.bytes + log.bytes_total();
        self.scrub.bytes_total.store(bytes_total, Ordering::Relaxed);
        self.scrub.bytes_done.store(0, Ordering::Relaxed);
        self.scrub.unchecked.store(extent.unchecked, Ordering::Relaxed);
        let bytes_per_second = if asked { PACE_ASKED } else { pace(bytes_total, self.interval) };
        let mut pass = Pass { state, log, state_is_done: false, began: Instant::now(), bytes: 0, bytes_per_second };
        loop {
            let Some(engine) = (self.state)() else { return Ended::Away };
            let read = match pass.step(&*engine, &self.log) {
                Ok(Some(read)) => read,
                Ok(None) => return Ended::Whole,
                Err(ended) => return ended,
            };
            drop(engine);
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
                self.scrub.whole_unix_s.store(unix_s(), Ordering::Relaxed);
                self.scrub.end(WHOLE.to_owned());
            }
            Ended::Away => {
                self.scrub.failures.fetch_add(1, Ordering::Relaxed);
                self.scrub.end("it was broken off".to_owned());
            }
            Ended::Damaged(why) => {
                self.scrub.findings.fetch_add(1, Ordering::Relaxed);
                tracing::error!(target: "chainfire_storage", "Scrub found damage, why={why} code=CF4003");
                self.scrub.end(format!("damage was found: {why}"));
            }
            Ended::Failed(why) => {
                self.scrub.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(target: "chainfire_storage", "Scrub was broken off, why={why} code=CF4004");
                self.scrub.end(format!("it was broken off: {why}"));
            }
        }
    }
}

impl<P> Pass<P> {
    fn step(&mut self, engine: &impl Scrubbed<Pass = P>, log: &SegLog) -> Result<Option<u64>, Ended> {
        if !self.state_is_done {
            match engine.step(&mut self.state).map_err(of_state)? {
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
        std::thread::sleep(takes(self.bytes, self.bytes_per_second).saturating_sub(self.began.elapsed()));
    }
}

/// When a pass begins by itself: soon after the start, then an interval after the last one began; one that was broken off is
/// tried again after [`RETRY_AFTER`]. `None`: never.
fn next_pass(last: Option<(Instant, bool)>, interval: Duration, now: Instant) -> Option<Instant> {
    let due = match last {
        None => now + FIRST_AFTER,
        Some((began, true)) => began + interval,
        Some((began, false)) => (began + interval).min(now + RETRY_AFTER),
    };
    (!interval.is_zero()).then_some(due)
}

/// Bytes per second that a pass reads: done in nine tenths of the interval.
fn pace(bytes_total: u64, interval: Duration) -> u64 {
    let needed = bytes_total as f64 / (interval.as_secs_f64() * 0.9);
    (needed.ceil() as u64).max(PACE_MIN)
}

/// How long reading so much takes at a pace.
fn takes(bytes: u64, bytes_per_second: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64)
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

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn a_pass_of_any_size_is_done_within_its_interval() {
        for interval in [DAY, Duration::from_secs(3600), Duration::from_secs(1)] {
            for bytes in [0, 1, 1 << 20, 10 << 30, 7 << 40] {
                let took = takes(bytes, pace(bytes, interval));
                assert!(took <= interval.mul_f64(0.9), "{bytes} bytes in {took:?} of {interval:?}");
            }
        }
        assert_eq!(pace(1 << 30, DAY), PACE_MIN, "what is small is not dragged out");
        assert_eq!(pace(4 << 40, DAY), 56_559_241, "what is large is spread over the day");
    }

    #[test]
    fn passes_begin_by_the_clock() {
        let now = Instant::now();
        let at = |last, interval| next_pass(last, interval, now + DAY / 2).map(|due| due - now);
        assert_eq!(at(None, DAY), Some(DAY / 2 + FIRST_AFTER), "soon after the start");
        assert_eq!(at(Some((now, true)), DAY), Some(DAY), "counted from one beginning to the next");
        assert_eq!(at(Some((now, false)), DAY), Some(DAY / 2 + RETRY_AFTER), "one that was broken off does not count");
        let minute = Duration::from_secs(60);
        assert_eq!(at(Some((now + DAY / 2, false)), minute), Some(DAY / 2 + minute), "no later than it would have");
        for last in [None, Some((now, true)), Some((now, false))] {
            assert_eq!(at(last, Duration::ZERO), None, "only when asked");
        }
    }

    #[test]
    fn a_pass_keeps_to_its_pace() {
        assert_eq!(takes(PACE_MIN, PACE_MIN), Duration::from_secs(1));
        assert_eq!(takes(PACE_ASKED / 2, PACE_ASKED), Duration::from_millis(500));
        assert_eq!(takes(0, PACE_MIN), Duration::ZERO);
    }

    #[test]
    fn what_was_broken_off_is_no_pass_over_everything() {
        let scrubber = Scrubber { scrub: Arc::default(), state: (), log: log(), interval: DAY };
        scrubber.tell(Ended::Failed("no file handles".to_owned()));
        scrubber.tell(Ended::Away);
        let progress = scrubber.scrub.progress();
        assert_eq!((progress.failures, progress.whole_unix_s, progress.findings), (2, 0, 0));
        assert!(progress.ended_unix_s > 0);
        scrubber.tell(Ended::Damaged("a table".to_owned()));
        assert_eq!(scrubber.scrub.progress().whole_unix_s, 0);
        scrubber.tell(Ended::Whole);
        let progress = scrubber.scrub.progress();
        assert!(progress.whole_unix_s > 0);
        assert_eq!((progress.failures, progress.findings, progress.passes), (2, 1, 4));
    }

    fn log() -> Arc<SegLog> {
        let dir = tempfile::tempdir().unwrap();
        Arc::new(SegLog::open(&dir.path().join("raft"), storage::seglog::SegLogOptions::new(1)).unwrap())
    }
}
