//! Stores that do not take part in what is led here, as lines of the log: one store in one line, however many regions.
//!
//! `ERROR flaredb_raft: Failed to replicate log, peer=store2 regions=31 why=… code=CF8515` when a store has not been heard of
//! in two looks on end, and again every half minute while that lasts; `INFO … Replicates again, peer=store2` when it is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::NodeId;

use crate::metrics::RegionCounts;
use crate::store::Store;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// One look may fall into the moment after an election, in which nobody has been heard of yet.
const SILENT_LOOKS_MIN: u32 = 2;
/// Looks after which it is said again.
const SAY_EVERY: u32 = 15;

/// For as long as the store runs.
pub async fn watch(store: Arc<Store>) {
    let mut silent = Silent::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let counts = RegionCounts::of(&store);
        let regions = counts.followers.into_iter().map(|(store, (_, regions))| (store, regions)).collect();
        for said in silent.look(&regions) {
            match said {
                Said::Silent(peer, regions) => tracing::error!(
                    target: "flaredb_raft",
                    "Failed to replicate log, peer=store{peer} regions={regions} why=the store does not answer code=CF8515"
                ),
                Said::Heard(peer) => tracing::info!(target: "flaredb_raft", "Replicates again, peer=store{peer}"),
            }
        }
    }
}

/// For how many looks on end each store has been silent.
#[derive(Default)]
struct Silent(BTreeMap<NodeId, u32>);

#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// With how many regions.
    Silent(NodeId, u64),
    Heard(NodeId),
}

impl Silent {
    /// `regions`: by store, in how many regions led here it is not heard of. One that is not among them has none here.
    fn look(&mut self, regions: &BTreeMap<NodeId, u64>) -> Vec<Said> {
        let mut said = Vec::new();
        for (store, regions) in regions.iter().filter(|(_, regions)| **regions > 0) {
            let looks = self.0.entry(*store).or_default();
            *looks += 1;
            if *looks >= SILENT_LOOKS_MIN && (*looks - SILENT_LOOKS_MIN).is_multiple_of(SAY_EVERY) {
                said.push(Said::Silent(*store, *regions));
            }
        }
        self.0.retain(|store, looks| {
            let is_silent = regions.get(store).is_some_and(|regions| *regions > 0);
            // One that has no regions here any more has not come back.
            if !is_silent && *looks >= SILENT_LOOKS_MIN && regions.contains_key(store) {
                said.push(Said::Heard(*store));
            }
            is_silent
        });
        said
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_store_is_told_of_once_and_then_now_and_then() {
        let mut silent = Silent::default();
        let at = |regions| BTreeMap::from([(NodeId(2), regions), (NodeId(3), 0)]);
        assert_eq!(silent.look(&at(5)), [], "one look may be an election");
        assert_eq!(silent.look(&at(0)), []);
        silent.look(&at(5));
        assert_eq!(silent.look(&at(4)), [Said::Silent(NodeId(2), 4)]);
        let said: Vec<usize> = (0..SAY_EVERY).map(|_| silent.look(&at(4)).len()).collect();
        assert_eq!((said.iter().sum::<usize>(), said.last()), (1, Some(&1)));
        assert_eq!(silent.look(&at(0)), [Said::Heard(NodeId(2))]);
        assert_eq!(silent.look(&at(0)), []);
        silent.look(&at(1));
        silent.look(&at(1));
        assert_eq!(silent.look(&BTreeMap::new()), [], "its regions are led elsewhere");
    }
}
