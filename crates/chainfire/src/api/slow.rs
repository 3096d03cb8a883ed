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
//! readings of the clock. Too many lines are held back ([`node::slow`]).

use std::time::{Duration, Instant};

use super::Api;

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
        let Some(left_out) = self.slow.note(self.started.elapsed().as_secs()) else { return };
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
    fn methods_are_named_by_the_end_of_their_path() {
        assert_eq!(method_name("/etcdserverpb.KV/Put"), "Put");
    }
}
