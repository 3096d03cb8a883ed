//! Which region of this store covers a key. Kept up by the regions' machines themselves, as they apply what changes their
//! range, so that nobody finds a key in a region that has just given it away.
//!
//! It also knows the regions' cells, for the machine of one that takes another one in.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use base::GroupId;
use bytes::Bytes;
use parking_lot::RwLock;

use super::claims::Claims;
use super::{RegionCell, RegionState};

/// Shared by all regions of a store.
#[derive(Default)]
pub struct RangeMap {
    ranges: RwLock<BTreeMap<Bytes, (Bytes, GroupId)>>,
    cells: RwLock<BTreeMap<GroupId, Weak<RegionCell>>>,
    pub(super) claims: Arc<Claims>,
}

impl RangeMap {
    /// A region's machine is open.
    pub fn register(&self, id: GroupId, cell: &Arc<RegionCell>) {
        let mut cells = self.cells.write();
        cells.retain(|_, cell| cell.strong_count() > 0);
        cells.insert(id, Arc::downgrade(cell));
    }

    /// The region has become part of another one, which has its range in this map already.
    pub fn consume(&self, id: GroupId) {
        let Some(cell) = self.cells.read().get(&id).and_then(Weak::upgrade) else { return };
        cell.consume();
        let before = cell.set(Arc::default());
        self.place(id, &before, &RegionState::default());
    }

    /// A region's range was `before` and is `after`; a state of version zero covers nothing.
    pub fn place(&self, id: GroupId, before: &RegionState, after: &RegionState) {
        let range = |state: &RegionState| (state.version > 0).then(|| (state.start.clone(), state.end.clone()));
        let (before, after) = (range(before), range(after));
        if before == after {
            return;
        }
        let mut map = self.ranges.write();
        if let Some((start, _)) = before
            && map.get(&start).is_some_and(|(_, owner)| *owner == id)
        {
            map.remove(&start);
        }
        if let Some((start, end)) = after {
            map.insert(start, (end, id));
        }
    }

    pub fn find(&self, key: &[u8]) -> Option<GroupId> {
        let map = self.ranges.read();
        let below = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        let (_, (end, id)) = map.range::<[u8], _>(below).next_back()?;
        (end.is_empty() || key < &end[..]).then_some(*id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(start: &'static str, end: &'static str) -> RegionState {
        RegionState { start: start.into(), end: end.into(), version: 1, ..RegionState::default() }
    }

    #[test]
    fn keys_are_found_where_they_lie() {
        let (map, nothing) = (RangeMap::default(), RegionState::default());
        map.place(GroupId(1), &nothing, &state("", ""));
        assert_eq!(map.find(b"anything"), Some(GroupId(1)));
        map.place(GroupId(1), &state("", ""), &state("", "m"));
        assert_eq!((map.find(b"a"), map.find(b"m")), (Some(GroupId(1)), None));
        map.place(GroupId(2), &nothing, &state("m", ""));
        assert_eq!(
            (map.find(b"lz"), map.find(b"m"), map.find(b"\xff")),
            (Some(GroupId(1)), Some(GroupId(2)), Some(GroupId(2)))
        );
        map.place(GroupId(1), &state("", "m"), &nothing);
        assert_eq!(map.find(b"a"), None);
    }
}
