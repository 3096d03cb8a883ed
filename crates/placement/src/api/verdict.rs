//! What is wrong with the cluster: a sentence each, with what it rests on. An empty list is the verdict "healthy".
//!
//! What splits, merges and changes of leaders show in passing is not wrong: it has to last ([`LASTING`]).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use base::{GroupId, NodeId, Time};

use crate::machine::Records;
use crate::model::hex;
use crate::term::Term;
use crate::view::Region;

/// The regions on both sides of a cut tell of it one after the other, and so do the leaders of a region.
const LASTING: Duration = Duration::from_secs(10);
/// A store tells of itself each second; one that has not for so long is named before it counts as disconnected.
const TELLS_WITHIN: Duration = Duration::from_secs(5);
/// Of one kind, so many are named.
const NAMED_MAX: usize = 3;

/// `silent_members`: those of the placement driver that do not answer its leader.
pub fn problems(term: &Term, records: &Records, silent_members: &[String], now: Time) -> Vec<String> {
    let members = silent_members.iter().map(|name| {
        format!("member {name} of the placement driver does not answer its leader: one more, and it may stand still")
    });
    let mut problems: Vec<String> = members.collect();
    stores(&mut problems, term, records, now);
    regions(&mut problems, term, now);
    match &records.founding {
        _ if !records.regions.is_empty() => keys(&mut problems, term, now),
        Some(first) => {
            problems.push(format!("there is no region yet: store {} has not told of the first", first.store_id))
        }
        None => problems.push("there is no region yet: no store has come".to_owned()),
    }
    problems
}

fn stores(problems: &mut Vec<String>, term: &Term, records: &Records, now: Time) {
    for id in records.stores.keys() {
        let Some(store) = term.view.store(NodeId(*id)) else { continue };
        let state = store.state_name(now, &term.policy);
        let silent = store.silent_for(now);
        let unheard = match store.reported {
            true => format!("not heard of for {} s", silent.as_secs()),
            false => format!("not heard of since this member began to lead, {} s ago", silent.as_secs()),
        };
        match state {
            "Disconnected" => problems.push(format!("store {id} is {state}: {unheard}")),
            "Down" if store.region_count() > 0 => {
                problems.push(format!("store {id} is {state}: {unheard}; its replicas are made anew on other stores"));
            }
            "Down" => problems.push(format!(
                "store {id} is {state}: {unheard}; nothing is left on it: start it again, or have it removed with \
                 `flaredb-client drain {id}`"
            )),
            "Tombstone" => {}
            _ if !store.reported || silent >= TELLS_WITHIN => problems.push(format!("store {id}: {unheard}")),
            _ => {}
        }
        if !matches!(state, "Up" | "Offline") {
            continue;
        }
        let report = store.report;
        if report.full {
            let (left, all) = (report.available_bytes >> 20, report.capacity_bytes >> 20);
            problems.push(format!("store {id} is full: {left} of {all} MiB are left, and it takes no puts"));
        }
        if report.slow {
            problems.push(format!("store {id} is slow: its disk does not return from a write"));
        }
    }
}

fn regions(problems: &mut Vec<String>, term: &Term, now: Time) {
    let unheard = term.view.region_count() - term.view.heard_regions();
    if unheard > 0 {
        problems.push(format!(
            "{unheard} regions were not heard of since this member of the placement driver began to lead"
        ));
    }
    let wanted = term.policy.max_replicas as usize;
    let missing = term.view.regions().filter(|region| region.voters().count() < wanted).count();
    if missing > 0 {
        problems.push(format!("{missing} regions have fewer than {wanted} voting replicas"));
        problems.extend(named(low_on_space(term, now)).map(|stores| {
            let limit = term.policy.low_space_ratio;
            format!("stores are given no replicas, since more of their disks is in use than low-space-ratio, {limit}: {stores}")
        }));
    }
    let down: usize = term.view.regions().map(|region| region.down.len()).sum();
    if down > 0 {
        problems.push(format!("{down} replicas do not answer their leaders"));
    }
    let given_up = term.view.leaderless().filter(|(_, since)| now.since(*since) >= LASTING).map(|(region, _)| region);
    let silent = term
        .view
        .regions()
        .filter(|region| region.leader.is_some() && term.view.leader_of(region, now, &term.policy).is_none());
    let leaderless: BTreeSet<GroupId> = given_up.chain(silent.map(|region| region.id)).collect();
    if let Some(leaderless) = named(leaderless.iter().map(ToString::to_string)) {
        problems.push(format!("regions without a leader take no requests: {leaderless}"));
    }
}

/// Stores whose disks are too full to take replicas; those that take no puts either are named by themselves.
fn low_on_space(term: &Term, now: Time) -> impl Iterator<Item = String> {
    term.view.stores().filter_map(move |store| {
        let (used, is_up) = (store.report.used_ratio(), store.state_name(now, &term.policy) == "Up");
        let is_low = store.report.capacity_bytes > 0 && !store.report.full && used >= term.policy.low_space_ratio;
        (is_up && store.reported && is_low).then(|| format!("store {} ({:.0} %)", store.id(), used * 100.0))
    })
}

/// The key space from the first key to behind the last one: each is to be in one region.
fn keys(problems: &mut Vec<String>, term: &Term, now: Time) {
    let lasts = |region: Option<&Region>| region.is_none_or(|region| now.since(region.version_since) >= LASTING);
    let mut holes = Vec::new();
    let mut before: Option<&Region> = None;
    for region in term.view.regions_behind(b"") {
        let end = before.map_or(&b""[..], |before| &before.end);
        if *region.start > *end && lasts(before) && lasts(Some(region)) {
            holes.push(format!("from {} to {}", shown(end), shown(&region.start)));
        }
        before = Some(region);
    }
    if let Some(last) = before.filter(|last| !last.end.is_empty() && lasts(Some(last))) {
        holes.push(format!("from {} on", shown(&last.end)));
    }
    if let Some(holes) = named(holes.into_iter()) {
        problems.push(format!("keys that no region has can be neither read nor written: {holes}"));
    }
    let overlaps =
        term.overlaps(LASTING, now).map(|(region, other)| format!("region {region} those of region {other}"));
    if let Some(overlaps) = named(overlaps) {
        problems.push(format!("regions report keys that another one has: {overlaps}"));
    }
}

fn shown(key: &[u8]) -> String {
    if key.is_empty() { "the first one".to_owned() } else { hex(key) }
}

/// The first few, and how many more there are.
fn named(mut all: impl Iterator<Item = String>) -> Option<String> {
    let mut text = all.by_ref().take(NAMED_MAX).collect::<Vec<_>>().join(", ");
    let more = all.count();
    if more > 0 {
        let _ = write!(text, ", and {more} more");
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::GroupId;
    use proto::placement as pb;

    use super::*;
    use crate::Policy;
    use crate::view::StoreMeta;

    fn region(id: u64, start: &'static str, end: &'static str) -> pb::RegionReport {
        let peers = vec![pb::Peer { id: id * 10, store_id: 1, learner: false }];
        let (start, end) = (start.into(), end.into());
        let region = pb::Region { id, start, end, conf_version: 1, version: 1, peers };
        pb::RegionReport { region: Some(region), ..pb::RegionReport::default() }
    }

    /// What is wrong 20 seconds after a store with these regions was first heard of, and right then.
    fn check(stats: pb::StoreStats, led: Vec<pb::RegionReport>) -> (Vec<String>, Vec<String>) {
        let policy = Policy { max_replicas: 1, ..Policy::default() };
        let mut term = Term::new(1, &Records::default(), &policy, Time::ZERO, Arc::default()).unwrap();
        term.view.put_store(StoreMeta::new(NodeId(1)), Time::ZERO);
        let mut records = Records::default();
        records.stores.insert(1, pb::Store { id: 1, ..pb::Store::default() });
        records.plant(pb::Region { id: 1, ..pb::Region::default() });
        let request = pb::HeartbeatRequest { store_id: 1, stats: Some(stats), led, ..pb::HeartbeatRequest::default() };
        term.hear(NodeId(1), &request, Time::ZERO);
        let at_once = problems(&term, &records, &[], Time::ZERO);
        let now = Time::from_millis(20_000);
        term.hear(NodeId(1), &request, now);
        assert!(term.view.region(GroupId(1)).is_some());
        (problems(&term, &records, &[], now), at_once)
    }

    #[test]
    fn keys_in_no_region_and_keys_in_two_are_wrong_if_it_lasts() {
        let whole = vec![region(1, "", "d"), region(2, "d", "")];
        assert_eq!(check(pb::StoreStats::default(), whole), (vec![], vec![]));
        let (lasting, at_once) = check(pb::StoreStats::default(), vec![region(1, "", "d"), region(2, "m", "t")]);
        assert_eq!(at_once, [""; 0]);
        assert_eq!(
            lasting,
            ["keys that no region has can be neither read nor written: from 64 to 6D, from 74 on".to_owned()]
        );
        let (lasting, at_once) = check(pb::StoreStats::default(), vec![region(1, "", ""), region(2, "m", "")]);
        assert_eq!(at_once, [""; 0]);
        assert_eq!(lasting, ["regions report keys that another one has: region 2 those of region 1".to_owned()]);
    }

    #[test]
    fn disks_that_are_rather_full_are_named_where_replicas_are_missing() {
        let mut lacks = region(1, "", "");
        lacks.region.as_mut().unwrap().peers[0].learner = true;
        let full = pb::StoreStats { capacity_bytes: 1000, available_bytes: 170, ..pb::StoreStats::default() };
        let (wrong, _) = check(full, vec![lacks.clone()]);
        assert!(wrong[1].contains("low-space-ratio, 0.8: store 1 (83 %)"), "{wrong:?}");
        let (wrong, _) = check(pb::StoreStats { available_bytes: 270, ..full }, vec![lacks]);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert_eq!(check(full, vec![region(1, "", "")]).0, [""; 0], "it has all it is to have");
    }

    #[test]
    fn full_and_slow_stores_and_silent_members_are_wrong() {
        let stats = pb::StoreStats { full: true, slow: true, ..pb::StoreStats::default() };
        let (_, wrong) = check(stats, vec![region(1, "", "")]);
        assert!(wrong[0].contains("store 1 is full") && wrong[1].contains("store 1 is slow"), "{wrong:?}");
        let term = Term::new(1, &Records::default(), &Policy::default(), Time::ZERO, Arc::default()).unwrap();
        let wrong = problems(&term, &Records::default(), &["pd-2".to_owned()], Time::ZERO);
        assert!(wrong[0].contains("member pd-2"), "{wrong:?}");
    }

    #[test]
    fn regions_without_a_leader_are_wrong_if_it_lasts() {
        let policy = Policy { max_replicas: 1, ..Policy::default() };
        let mut term = Term::new(1, &Records::default(), &policy, Time::ZERO, Arc::default()).unwrap();
        term.view.put_store(StoreMeta::new(NodeId(1)), Time::ZERO);
        let mut records = Records::default();
        records.plant(pb::Region { id: 1, ..pb::Region::default() });
        let led = pb::HeartbeatRequest { led: vec![region(1, "", "")], ..pb::HeartbeatRequest::default() };
        let others = vec![pb::Replica { region_id: 1, peer_id: 10 }];
        let not_led = pb::HeartbeatRequest { others, ..pb::HeartbeatRequest::default() };
        term.hear(NodeId(1), &led, Time::ZERO);
        for (ms, wrong) in [(1000, 0), (5000, 0), (12_000, 1)] {
            let now = Time::from_millis(ms);
            term.hear(NodeId(1), &not_led, now);
            assert_eq!(problems(&term, &records, &[], now).len(), wrong);
        }
    }
}
