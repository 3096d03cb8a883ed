//! Slow requests: counted, and their lines held back, so that a slow disk does not fill itself with complaints.
//! At most [`LINES_PER_SECOND`] lines are written; the next one says how many were left out.

use std::sync::atomic::{AtomicU64, Ordering};

pub const LINES_PER_SECOND: u64 = 10;

/// Counts, and holds the lines back.
#[derive(Default)]
pub struct SlowRequests {
    seen: AtomicU64,
    /// The second since the start in which lines were last written, and how many in it.
    second: AtomicU64,
    written: AtomicU64,
    left_out: AtomicU64,
}

impl SlowRequests {
    /// Slow requests so far.
    pub fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }

    /// Counts one. Whether a line may be written on it in this second, and how many were left out before it.
    pub fn note(&self, second: u64) -> Option<u64> {
        self.seen.fetch_add(1, Ordering::Relaxed);
        self.may_write(second)
    }

    /// Two threads at the turn of a second may write a line too many.
    fn may_write(&self, second: u64) -> Option<u64> {
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.written.store(0, Ordering::Relaxed);
        }
        if self.written.fetch_add(1, Ordering::Relaxed) < LINES_PER_SECOND {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_held_back_and_counted() {
        let slow = SlowRequests::default();
        let written = (0..25).filter(|_| slow.note(7).is_some()).count();
        assert_eq!(written as u64, LINES_PER_SECOND);
        assert_eq!(slow.note(8), Some(15));
        assert_eq!(slow.note(8), Some(0));
        assert_eq!(slow.seen(), 27);
    }
}
