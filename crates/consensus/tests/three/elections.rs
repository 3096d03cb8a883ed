//! How long a group goes without a leader when the first try comes to nothing.

use crate::World;

/// Of the default configuration.
const ELECTION_TIMEOUT_MS: u64 = 1_000;

impl World {
    /// Milliseconds until somebody leads; all that is asked in the first campaign of anybody is lost.
    fn leaderless(&mut self, lost: &'static str) -> u64 {
        self.stopped.extend(self.leader());
        (self.lost, self.sent) = (Some(lost), Default::default());
        let began = self.now;
        while self.leader().is_none() {
            self.run(1);
            if self.sent.contains_key(lost) {
                self.run(ELECTION_TIMEOUT_MS / 20);
                self.lost = None;
            }
            assert!(self.now.since(began).as_secs() < 10, "nobody leads");
        }
        self.now.since(began).as_millis() as u64
    }
}

#[test]
fn a_campaign_that_was_not_heard_is_soon_made_again() {
    for seed in 0..20 {
        for lost in ["pre-vote", "vote"] {
            let mut world = World::new(|config| config.seed = seed * 100 + config.node.0);
            let took = world.leaderless(lost);
            assert!((ELECTION_TIMEOUT_MS..ELECTION_TIMEOUT_MS * 18 / 10).contains(&took), "{took} ms without a leader");
        }
    }
}
