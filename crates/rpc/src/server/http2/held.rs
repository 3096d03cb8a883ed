//! Bytes of requests that are not complete or not taken, of one connection, and of all connections together.
//!
//! The sum is shared between threads, so a connection tells of changes only in steps: small requests never touch it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const STEP_BYTES: usize = 16 << 10;

/// What all connections of a server hold.
pub(in crate::server) type HeldByAll = Arc<AtomicUsize>;

pub(super) struct Held {
    here: usize,
    told: usize,
    all: HeldByAll,
}

impl Held {
    pub(super) fn new(all: HeldByAll) -> Held {
        Held { here: 0, told: 0, all }
    }

    /// A part of it changes its size.
    pub(super) fn change(&mut self, before: usize, after: usize) {
        self.here = (self.here + after).saturating_sub(before);
        if self.here.abs_diff(self.told) >= STEP_BYTES {
            self.tell(self.here);
        }
    }

    pub(super) fn give_back(&mut self, bytes: usize) {
        self.change(bytes, 0);
    }

    /// Whether this connection holds too much, or all do and this one is among those that hold much.
    pub(super) fn is_too_much(&self, here_max: usize, all_max: usize) -> bool {
        self.here > here_max || (self.told > 0 && self.all.load(Ordering::Relaxed) > all_max)
    }

    fn tell(&mut self, bytes: usize) {
        if bytes > self.told {
            self.all.fetch_add(bytes - self.told, Ordering::Relaxed);
        } else {
            self.all.fetch_sub(self.told - bytes, Ordering::Relaxed);
        }
        self.told = bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.tell(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_requests_of_all_connections_count_together() {
        let all = HeldByAll::default();
        let mut many: Vec<Held> = (0..4).map(|_| Held::new(all.clone())).collect();
        many.iter_mut().for_each(|held| held.change(0, 1 << 20));
        assert_eq!(all.load(Ordering::Relaxed), 4 << 20);
        let mut small = Held::new(all.clone());
        small.change(0, 100);
        assert!(many[0].is_too_much(2 << 20, 3 << 20));
        assert!(!small.is_too_much(2 << 20, 3 << 20), "small requests go on");
        assert!(many[0].is_too_much(1000, usize::MAX));
        many[0].give_back(1 << 20);
        drop(many);
        assert_eq!(all.load(Ordering::Relaxed), 0, "who is gone holds nothing");
    }
}
