//! The line on a slow request, with where its time went:
//! `WARN chainfire_api: Slow request, method=Put latency=312ms queue=0ms log=290ms commit=20ms apply=2ms leader=1`.
//!
//! | part | of a write: waiting for | part | of a read: waiting for |
//! |---|---|---|---|
//! | `queue` | the consensus driver | `grant` | a quorum to confirm that the leader still leads |
//! | `log` | this node's disk; on a follower for the leader too | `turn` | its turn among large answers |
//! | `commit` | a quorum's disks, beyond that | `read` | the state's files |
//! | `apply` | the state machine | | |
//!
//! Other calls have their latency alone. Fast writes pay nothing for it, other fast requests two
//! readings of the clock. At most [`LINES_PER_SECOND`] lines
//! are written; the next one says how many were left out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Api;

const LINES_PER_SECOND: u64 = 10;

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

    /// Whether a line may be written in this second, and how many were left out before it. Two threads at the turn of
    /// a second may write a line too many.
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

/// A write's way through the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    pub took: Duration,
    /// See [`node::GroupHandle::stages`]; none when it was refused.
    pub index: Option<u64>,
}

impl Api {
    /// Reports a request that took too long. `parts` tells where its time went, as `name=…ms` words.
    pub(super) fn note_slow(&self, method: &str, took: Duration, parts: impl FnOnce() -> String) {
        let limit = self.live.slow_request();
        if limit.is_zero() || took < limit {
            return;
        }
        self.slow.seen.fetch_add(1, Ordering::Relaxed);
        let Some(left_out) = self.slow.may_write(self.started.elapsed().as_secs()) else { return };
        let mut parts = parts();
        if left_out > 0 {
            parts += &format!(" left_out={left_out}");
        }
        let (latency, gap) = (took.as_millis(), if parts.is_empty() { "" } else { " " });
        tracing::warn!(
            target: "chainfire_api",
            "Slow request, method={method} latency={latency}ms{gap}{}",
            parts.trim_start()
        );
    }

    /// Where the time of a write went that was answered just now.
    pub(super) fn write_parts(&self, Way { took, index }: Way) -> String {
        let asked = self.handle.now().as_nanos().saturating_sub(took.as_nanos() as u64);
        let way = self.handle.stages(base::Time::from_nanos(asked), index);
        let outcome = if index.is_some() { "" } else { " outcome=refused" };
        format!(
            "queue={}ms log={}ms commit={}ms apply={}ms leader={}{outcome}",
            way.queue_ms,
            way.log_ms,
            way.commit_ms,
            way.apply_ms,
            self.handle.status().leader_node
        )
    }
}

/// The name of a method, from its path.
pub(super) fn method_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Milliseconds between two moments, as they stand in a line.
pub(super) fn between_ms(from: Instant, to: Instant) -> u128 {
    let between: Duration = to.saturating_duration_since(from);
    between.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_held_back_and_counted() {
        let slow = SlowRequests::default();
        let written = (0..25).filter(|_| slow.may_write(7).is_some()).count();
        assert_eq!(written as u64, LINES_PER_SECOND);
        assert_eq!(slow.may_write(8), Some(15));
        assert_eq!(slow.may_write(8), Some(0));
    }

    #[test]
    fn methods_are_named_by_the_end_of_their_path() {
        assert_eq!(method_name("/etcdserverpb.KV/Put"), "Put");
    }
}
