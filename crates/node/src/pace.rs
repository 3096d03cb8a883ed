//! So many bytes a second, whoever sends them: each asks before it sends a piece, and waits for as long as it is told.
//!
//! ```text
//!  asked for   ▂▂▂▂▂▂▂▂▂▂▂▂            a piece goes when those before it, at the rate, would be through
//!  sent        ▂  ▂  ▂  ▂  ▂  ▂        after a rest a quarter of a second's worth goes at once, and no more
//! ```
//! A new rate counts from the next piece on. Pieces are small, so that a stream that shares a low rate with others still moves
//! often enough to be seen alive.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// What a rest may be made up for.
const BURST: Duration = Duration::from_millis(250);
const PIECE_BYTES_MAX: usize = 64 << 10;

/// What a thread that carries a snapshot is to others: where processors are short, it gets a third of what those get that serve.
const NICE: libc::c_int = 5;

/// Lets the calling thread go behind others; it stays so until it ends.
pub fn step_back() {
    // SAFETY: takes numbers. For Linux zero is the calling thread, and nobody is refused to be nicer.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// Zero bytes a second: as fast as it goes.
#[derive(Default)]
pub struct Pace(Mutex<State>);

#[derive(Default)]
struct State {
    bytes_per_sec: u64,
    /// When all that was let go is through.
    through: Option<Instant>,
}

impl Pace {
    pub fn set(&self, bytes_per_sec: u64) {
        self.0.lock().bytes_per_sec = bytes_per_sec;
    }

    /// How long to wait before so many bytes are sent.
    fn ask(&self, bytes: usize, now: Instant) -> Duration {
        let mut state = self.0.lock();
        if state.bytes_per_sec == 0 {
            state.through = None;
            return Duration::ZERO;
        }
        let takes = Duration::from_secs_f64(bytes as f64 / state.bytes_per_sec as f64);
        let rested = now.checked_sub(BURST).unwrap_or(now);
        let through = state.through.map_or(rested, |through| through.max(rested)) + takes;
        state.through = Some(through);
        through.saturating_duration_since(now)
    }
}

/// Writes at a pace, on a thread that may sleep.
pub struct Paced<'a, W> {
    to: W,
    pace: &'a Pace,
}

impl<'a, W: Write> Paced<'a, W> {
    pub fn new(to: W, pace: &'a Pace) -> Paced<'a, W> {
        Paced { to, pace }
    }
}

impl<W: Write> Write for Paced<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE_BYTES_MAX)];
        let wait = self.pace.ask(piece.len(), Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait);
        }
        self.to.write_all(piece)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Seconds that so many pieces of 64 KiB take.
    fn through(pace: &Pace, pieces: usize, now: &mut Instant) -> f64 {
        let began = *now;
        for _ in 0..pieces {
            *now += pace.ask(PIECE_BYTES_MAX, *now);
        }
        (*now - began).as_secs_f64()
    }

    #[test]
    fn the_rate_holds_and_a_rest_is_made_up_for_in_part_only() {
        let pace = Pace::default();
        let mut now = Instant::now() + Duration::from_secs(60);
        assert_eq!(through(&pace, 160, &mut now), 0.0);
        pace.set(MIB as u64);
        assert!((9.7..=9.8).contains(&through(&pace, 160, &mut now)), "10 MiB, of which a quarter goes at once");
        assert!((9.9..=10.1).contains(&through(&pace, 160, &mut now)));
        now += Duration::from_secs(3600);
        assert!((9.7..=9.8).contains(&through(&pace, 160, &mut now)));
        // As of now.
        pace.set(10 * MIB as u64);
        assert!((0.9..=1.1).contains(&through(&pace, 160, &mut now)));
    }

    #[test]
    fn several_writers_share_it() {
        let pace = Pace::default();
        pace.set(4 * MIB as u64);
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut out = Vec::new();
                    Paced::new(&mut out, &pace).write_all(&vec![7; MIB]).unwrap();
                    assert_eq!(out, vec![7; MIB]);
                });
            }
        });
        let took = began.elapsed();
        assert!(took >= Duration::from_millis(240), "2 MiB at 4 MiB a second, half of it at once, took {took:?}");
    }
}
