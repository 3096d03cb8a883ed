//! Stores that asked to be taken in and were refused: whoever misses one finds it here, beside the store that has its id.
//!
//! Memory of the member that leads. Who is taken in after all is forgotten, and so is who does not ask any more.

use std::collections::VecDeque;
use std::time::Duration;

use base::Time;
use parking_lot::Mutex;

/// More are forgotten, the oldest first.
const KEPT_MAX: usize = 64;
/// Since it asked last. Its unit starts it again and again.
const KEPT_FOR: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// As it asked; zero: whatever id is free.
    pub store_id: u64,
    pub incarnation: u64,
    pub address: String,
    pub why: String,
    pub at: Time,
}

#[derive(Default)]
pub struct Refusals(Mutex<VecDeque<Refusal>>);

impl Refusals {
    pub fn note(&self, refusal: Refusal) {
        let mut all = self.0.lock();
        all.retain(|known| !known.is_of(refusal.incarnation, &refusal.address));
        if all.len() == KEPT_MAX {
            all.pop_front();
        }
        all.push_back(refusal);
    }

    /// It was taken in.
    pub fn forget(&self, incarnation: u64, address: &str) {
        self.0.lock().retain(|known| !known.is_of(incarnation, address));
    }

    /// The last one first.
    pub fn list(&self, now: Time) -> Vec<Refusal> {
        let all = self.0.lock();
        all.iter().rev().filter(|refusal| now.since(refusal.at) < KEPT_FOR).cloned().collect()
    }
}

impl Refusal {
    /// A copied folder at two addresses is two stores that ask.
    fn is_of(&self, incarnation: u64, address: &str) -> bool {
        self.incarnation == incarnation && self.address == address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_kept_once_until_it_is_taken_in_or_silent() {
        let refusals = Refusals::default();
        let note = |incarnation, second: u64| {
            let (address, why, at) =
                (format!("a{incarnation}"), format!("at {second}"), Time::from_millis(1000 * second));
            refusals.note(Refusal { store_id: 1, incarnation, address, why, at });
        };
        let seen = |second: u64| -> Vec<String> {
            refusals.list(Time::from_millis(1000 * second)).into_iter().map(|refusal| refusal.why).collect()
        };
        (0..3).for_each(|second| note(7, second));
        note(8, 3);
        assert_eq!(seen(4), ["at 3", "at 2"]);
        assert_eq!(seen(602), ["at 3"]);
        refusals.forget(8, "a9");
        refusals.forget(8, "a8");
        assert_eq!(seen(4), ["at 2"]);
        (0..100).for_each(|incarnation| note(100 + incarnation, 5));
        assert_eq!(seen(6).len(), KEPT_MAX);
    }
}
