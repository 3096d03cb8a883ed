//! How far physical clean-up may go: up to the lowest compacted revision under which somebody still reads.
//!
//! The engine's clean-up asks no view before it drops a pair. A view that was taken before a compaction and is held, by a
//! backup for one, may be asked about revisions that have been compacted since. So each view keeps the [`Horizon`] of
//! its time alive, and the engine's watermark waits for the oldest that lives.

use std::sync::{Arc, Weak};

/// Held by a view.
pub type Horizon = Arc<()>;

#[derive(Debug)]
pub struct Horizons {
    compacted: i64,
    current: Horizon,
    /// By compacted revision, ascending.
    older: Vec<(i64, Weak<()>)>,
}

impl Horizons {
    pub fn new(compacted: i64) -> Horizons {
        Horizons { compacted, current: Horizon::default(), older: Vec::new() }
    }

    /// For a view that is taken now.
    pub fn current(&self) -> Horizon {
        self.current.clone()
    }

    /// Views are taken under this compacted revision from now on.
    pub fn advance(&mut self, compacted: i64) {
        if compacted > self.compacted {
            let last = std::mem::take(&mut self.current);
            self.older.push((self.compacted, Arc::downgrade(&last)));
            self.compacted = compacted;
        }
    }

    /// What clean-up may go by.
    pub fn watermark(&mut self) -> u64 {
        self.older.retain(|(_, horizon)| horizon.strong_count() > 0);
        let lowest = self.older.first().map_or(self.compacted, |(compacted, _)| *compacted);
        u64::try_from(lowest).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_waits_for_the_oldest_view() {
        let mut horizons = Horizons::new(-1);
        assert_eq!(horizons.watermark(), 0);
        let first = horizons.current();
        horizons.advance(5);
        let second = horizons.current();
        let again = horizons.current();
        horizons.advance(9);
        assert_eq!(horizons.watermark(), 0);
        drop(first);
        assert_eq!(horizons.watermark(), 5);
        drop(second);
        assert_eq!(horizons.watermark(), 5);
        drop(again);
        assert_eq!(horizons.watermark(), 9);
    }
}
