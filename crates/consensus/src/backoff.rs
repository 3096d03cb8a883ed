//! Peers that did not take a snapshot are offered one again after a while, which grows: raft would try at each heartbeat, and
//! there are reasons that last, such as a place that is taken until somebody else has gone.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{PeerId, Time};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(3);

/// By peer: how long it is left alone since its last refusal, and until when.
#[derive(Debug, Default)]
pub(crate) struct Backoff(BTreeMap<PeerId, (Duration, Time)>);

impl Backoff {
    pub fn refused(&mut self, peer: PeerId, now: Time) {
        let pause = self.0.get(&peer).map_or(FIRST, |(pause, _)| (*pause * 2).min(LONGEST));
        self.0.insert(peer, (pause, now + pause));
    }

    pub fn taken(&mut self, peer: PeerId) {
        self.0.remove(&peer);
    }

    pub fn is_over(&self, peer: PeerId, now: Time) -> bool {
        self.0.get(&peer).is_none_or(|(_, until)| now >= *until)
    }

    /// Whoever is no member any more is forgotten.
    pub fn keep(&mut self, is_member: impl Fn(PeerId) -> bool) {
        self.0.retain(|peer, _| is_member(*peer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound_and_begin_anew_with_success() {
        let (peer, mut backoff, mut now) = (PeerId(1), Backoff::default(), Time::ZERO);
        assert!(backoff.is_over(peer, now));
        for millis in [100, 200, 400, 800, 1600, 3000, 3000] {
            backoff.refused(peer, now);
            now = now + Duration::from_millis(millis - 1);
            assert!(!backoff.is_over(peer, now) && backoff.is_over(PeerId(2), now));
            now = now + Duration::from_millis(1);
            assert!(backoff.is_over(peer, now));
        }
        backoff.taken(peer);
        backoff.refused(peer, now);
        assert!(backoff.is_over(peer, now + FIRST));
        backoff.keep(|_| false);
        assert!(backoff.is_over(peer, now));
    }
}
