//! What all groups of a host have together, so that bounds hold however many there are. Only the host's turns change it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[derive(Debug, Default)]
pub(crate) struct Totals {
    groups: AtomicU64,
    /// Bytes of entries in memory.
    cached: AtomicUsize,
    proposals: AtomicUsize,
    proposal_bytes: AtomicUsize,
}

impl Totals {
    pub fn set_groups(&self, groups: usize) {
        self.groups.store(groups as u64, Ordering::Relaxed);
    }

    /// A group's share of what all may have.
    pub fn share_of(&self, all: u64) -> u64 {
        all / self.groups.load(Ordering::Relaxed).max(1)
    }

    /// A group has kept `before` bytes of entries in memory, and keeps `after`.
    pub fn cached(&self, before: usize, after: usize) {
        change(&self.cached, before, after);
    }

    pub fn cached_bytes(&self) -> usize {
        self.cached.load(Ordering::Relaxed)
    }

    /// A group has had so many proposals of so many bytes, and has `after`.
    pub fn proposed(&self, before: (usize, usize), after: (usize, usize)) {
        change(&self.proposals, before.0, after.0);
        change(&self.proposal_bytes, before.1, after.1);
    }

    /// How many proposals are open, and their bytes.
    pub fn proposals(&self) -> (usize, usize) {
        (self.proposals.load(Ordering::Relaxed), self.proposal_bytes.load(Ordering::Relaxed))
    }
}

fn change(total: &AtomicUsize, before: usize, after: usize) {
    if after >= before {
        total.fetch_add(after - before, Ordering::Relaxed);
    } else {
        total.fetch_sub(before - after, Ordering::Relaxed);
    }
}
