//! Connections that a port for other nodes did not take, counted by why. The Raft port and the gossip port count each for itself.
//!
//! Left out: connections that their other side ends before it says who it is. Whoever only looks whether somebody listens
//! does that.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::get;

/// Why a connection was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No place was free for it, or it had to give its place to one that came later.
    TooMany,
    /// It did not say in time who it is.
    TooSlow,
    /// It is none of the cluster's, it does not show that it is who it claims to be, or it is a copy.
    NotAMember,
    /// Its bytes are not ours, or there was no TLS with it.
    Malformed,
}

impl Why {
    pub const ALL: [Why; 4] = [Why::TooMany, Why::TooSlow, Why::NotAMember, Why::Malformed];

    pub fn name(self) -> &'static str {
        match self {
            Why::TooMany => "too_many",
            Why::TooSlow => "too_slow",
            Why::NotAMember => "not_a_member",
            Why::Malformed => "malformed",
        }
    }
}

/// One port's counters.
#[derive(Default)]
pub struct Refused([AtomicU64; Why::ALL.len()]);

impl Refused {
    pub fn count(&self, why: Why) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn stats(&self) -> RefusedStats {
        RefusedStats(Why::ALL.map(|why| get(&self.0[why as usize])))
    }
}

/// As of the moment they were asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefusedStats([u64; Why::ALL.len()]);

impl RefusedStats {
    pub fn of(&self, why: Why) -> u64 {
        self.0[why as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_counted_for_itself() {
        let refused = Refused::default();
        for (times, why) in (1..).zip(Why::ALL) {
            (0..times).for_each(|_| refused.count(why));
        }
        assert_eq!(Why::ALL.map(|why| refused.stats().of(why)), [1, 2, 3, 4]);
    }
}
