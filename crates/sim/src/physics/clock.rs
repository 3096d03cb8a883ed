//! A node's own clock: it runs a little fast or slow against the world's time, and from an origin of its own. It goes on
//! while the node is paused or down, and never back.

use base::{Rng, Time};

#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: u64,
    /// Nanoseconds of this clock in a million of the world's.
    rate: u64,
}

impl Clock {
    /// A clock that is off by up to `drift_permille`.
    pub fn new(rng: &mut Rng, drift_permille: u64) -> Clock {
        let drift = drift_permille * 1_000;
        Clock { origin: rng.below(1 << 50), rate: 1_000_000 - drift + rng.below(2 * drift + 1) }
    }

    /// What the clock shows at a time of the world.
    pub fn at(&self, world: u64) -> Time {
        let elapsed = u128::from(world) * u128::from(self.rate) / 1_000_000;
        Time::from_nanos(self.origin + u64::try_from(elapsed).expect("worlds last minutes"))
    }

    /// The time of the world at which it shows this; zero for what was before the world began.
    pub fn world(&self, time: Time) -> u64 {
        self.world_span(time.as_nanos().saturating_sub(self.origin))
    }

    /// How long in the world's time a span on this clock lasts.
    pub fn world_span(&self, span: u64) -> u64 {
        u64::try_from(u128::from(span) * 1_000_000 / u128::from(self.rate)).expect("spans are seconds")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_is_never_later() {
        let mut rng = Rng::new(3);
        for _ in 0..1_000 {
            let clock = Clock::new(&mut rng, 50);
            let world = rng.below(1 << 40);
            let back = clock.world(clock.at(world));
            assert!(back <= world && world - back <= 2, "{back} {world}");
            assert!(clock.at(world) <= clock.at(world + 1));
        }
    }
}
