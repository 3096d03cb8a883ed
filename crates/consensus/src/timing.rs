//! When peers lose patience. Everything is counted in subticks, the unit in which the raft crate is ticked.
//!
//! Election timeouts lie in [T, 1.3 T) and are a pure function of (seed, peer, term): the raft crate would draw
//! them from a global random source. A candidate that is not elected tries again sooner, every other time. The leader's lease is shorter than T by more than clocks can drift.

use std::time::Duration;

use base::rng::mix;
use base::{PeerId, Time};

use crate::api::HostConfig;

/// Subticks per tick interval: fine enough that three peers rarely choose the same moment.
pub const SUBTICKS: u32 = 5;

/// Derived from [`HostConfig`].
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    seed: u64,
    pub subtick: Duration,
    pub election_subticks: usize,
    spread_subticks: usize,
    /// For this long after a leader was heard, votes are refused to everyone else.
    pub vote_guard: Duration,
    /// For this long after it *sent* a round that a quorum acknowledged, a leader may serve reads.
    pub lease: Duration,
    pub heartbeat: Duration,
}

impl Timing {
    pub fn new(config: &HostConfig) -> Timing {
        let election = config.election_timeout();
        let election_subticks = (config.election_intervals * SUBTICKS) as usize;
        Timing {
            seed: config.seed,
            subtick: config.tick_interval / SUBTICKS,
            election_subticks,
            spread_subticks: (election_subticks * 3 / 10).max(1),
            vote_guard: election.mul_f64(0.98),
            lease: election.mul_f64(0.8),
            heartbeat: config.tick_interval,
        }
    }

    pub fn election_subticks_max(&self) -> usize {
        self.election_subticks + self.spread_subticks
    }

    /// How many subticks of silence this peer bears in this term.
    pub fn election_timeout(&self, peer: PeerId, term: u64) -> usize {
        let draw = mix(self.seed ^ mix(peer.0) ^ mix(term).rotate_left(17));
        self.election_subticks + (draw % self.spread_subticks as u64) as usize
    }

    /// How many of them a candidate waits for votes, the first time: 0.2 T to 0.5 T.
    pub fn patience(&self, peer: PeerId, term: u64) -> usize {
        let draw = mix(self.seed ^ mix(peer.0).rotate_left(31) ^ mix(term).rotate_left(17));
        self.election_subticks / 5 + (draw % self.spread_subticks as u64) as usize
    }

    /// The last moment at which groups tick. It is the same for all of a host, so that they tick in the same turn, and another
    /// one on every host.
    pub fn aligned(&self, now: Time) -> Time {
        let subtick = self.subtick.as_nanos().max(1) as u64;
        let offset = mix(self.seed) % subtick;
        Time::from_nanos((now.as_nanos().saturating_sub(offset) / subtick * subtick + offset).min(now.as_nanos()))
    }

    /// Whole subticks between two points.
    pub fn subticks(&self, from: Time, to: Time) -> u64 {
        (to.since(from).as_nanos() / self.subtick.as_nanos().max(1)) as u64
    }
}
