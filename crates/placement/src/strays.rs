//! Replicas of regions that are on record no more: a region became part of another one while a store had a replica of it that
//! was no member any longer, or was never made one. Nobody else asks for them: what a merge remembers is its region's members.
//!
//! That a region is not on record proves little by itself, for what comes of a split may not have been reported yet. But a region
//! that exists has keys. If all keys lie in other regions whose leaders were just heard of, it has none, or has got some since
//! these reports; and that it gains keys only ever between reports, and loses them before its own leader is heard, is not to be
//! had for a minute: splits and merges begin with what the placement driver answers to that very leader.

use std::collections::BTreeMap;
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};

use crate::view::View;

/// What was unknown for so long is a stray. Longer than any leader lasts that has lost its voters, and than a report travels.
const STRAY_AFTER: Duration = Duration::from_secs(60);
/// A leader that was not heard of for so long does not count.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

type Replica = (NodeId, GroupId, PeerId);

/// How often it is looked at all keys; more often than a leader is missed.
const LOOK_EVERY: Duration = Duration::from_secs(4);

/// Of one term.
#[derive(Default)]
pub struct Strays {
    looked: Time,
    /// Since when they were reported and belonged to no region on record, with all keys being in others all that time; and when
    /// they were reported last.
    since: BTreeMap<Replica, (Time, Time)>,
}

impl Strays {
    /// A store's report, or a part of it: its replicas of regions that are not on record. Those of them that nobody will ask for
    /// again.
    pub fn hear(
        &mut self,
        store: NodeId,
        unknown: impl Iterator<Item = (GroupId, PeerId)>,
        now: Time,
    ) -> Vec<(GroupId, PeerId)> {
        let mut strays = Vec::new();
        for (region, peer) in unknown {
            let (since, last) = self.since.entry((store, region, peer)).or_insert((now, now));
            if now.since(*last) > HEARD_WITHIN {
                *since = now;
            }
            *last = now;
            if now.since(*since) >= STRAY_AFTER {
                strays.push((region, peer));
            }
        }
        strays
    }

    /// To be called every round. Where a key lies in no region that was heard of, all that is unknown may be what is missing there.
    pub fn look(&mut self, view: &View, now: Time) {
        if self.since.is_empty() || now.since(self.looked) < LOOK_EVERY {
            return;
        }
        self.looked = now;
        self.since.retain(|_, (_, last)| now.since(*last) <= HEARD_WITHIN);
        if !all_keys_heard_of(view, now) {
            self.since.clear();
        }
    }
}

fn all_keys_heard_of(view: &View, now: Time) -> bool {
    let mut from = crate::Key::default();
    loop {
        let Some(region) = view.region_at(&from) else { return false };
        if region.heard.is_none_or(|heard| now.since(heard) > HEARD_WITHIN) {
            return false;
        }
        if region.end.is_empty() {
            return true;
        }
        from = region.end.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, Peer};
    use crate::view::{RegionReport, StoreMeta};

    fn report(id: u64, start: &[u8], end: &[u8]) -> RegionReport {
        RegionReport {
            id: GroupId(id),
            start: start.into(),
            end: end.into(),
            epoch: Epoch { conf_version: 1, version: 1 },
            peers: vec![Peer { id: PeerId(10 * id), store: NodeId(1), learner: false }],
            leader: Some(NodeId(1)),
            ..RegionReport::default()
        }
    }

    #[test]
    fn what_belongs_to_nobody_goes_after_a_minute_in_which_all_keys_were_others() {
        let second = Duration::from_secs(1);
        let stray = (GroupId(9), PeerId(90));
        let mut now = Time::ZERO;
        let mut view = View::new(now);
        view.put_store(StoreMeta::new(NodeId(1)), now);
        let mut strays = Strays::default();
        // For so many seconds; in how many of them it was to go.
        let mut live = |view: &mut View, reports: &[RegionReport], seconds: u64| {
            let mut went = 0;
            for _ in 0..seconds {
                now = now + second;
                reports.iter().for_each(|report| assert!(view.report_region(report.clone(), now).is_ok()));
                went += strays.hear(NodeId(2), [stray].into_iter(), now).len();
                strays.look(view, now);
            }
            went
        };
        let all = [report(1, b"", b"k"), report(2, b"k", b"")];
        assert_eq!(live(&mut view, &all[..1], 100), 0, "it may be what lies behind the first one");
        assert_eq!(live(&mut view, &all, 60), 0, "not yet");
        assert_eq!(live(&mut view, &all[..1], 10), 8, "the second one is silent, which shows after some seconds");
        assert_eq!(live(&mut view, &all, 58), 0, "all has begun anew");
        assert_eq!(live(&mut view, &all, 1), 1);
    }
}
