//! Pages on regions: which there are, where, and what is the matter with them.

use std::collections::BTreeMap;

use base::{GroupId, NodeId, Time};
use serde_json::{Map, Value, json};

use super::Api;
use super::http::{PageError, bad_request, not_found};
use super::pages::Page;
use super::query::Query;
use crate::term::Term;
use crate::view::{Region, StoreState};

/// One answer has so many at most, and looks at so many; it takes the time of heartbeats.
const LIMIT_MAX: usize = 5000;
const LOOKED_AT_MAX: usize = 2_000_000;
/// Of `regions/key`, when nothing is said.
const LIMIT: u64 = 16;

type Matters = fn(&Term, &Region, Time) -> bool;

/// What `regions/check/…` finds.
const CHECKS: [(&str, Matters); 10] = [
    ("miss-peer", |term, region, _| region.voters().count() < term.policy.max_replicas as usize),
    ("extra-peer", |term, region, _| region.voters().count() > term.policy.max_replicas as usize),
    ("down-peer", |_, region, _| !region.down.is_empty()),
    ("pending-peer", |_, region, _| !region.pending.is_empty()),
    ("learner-peer", |_, region, _| region.peers.iter().any(|peer| peer.learner)),
    ("offline-peer", |term, region, _| region.peers.iter().any(|peer| !is_up(term, peer.store))),
    ("no-leader", |term, region, now| term.view.leader_of(region, now, &term.policy).is_none()),
    ("empty-region", |_, region, _| {
        !region.unmeasured && region.heard.is_some() && region.keys == 0 && region.bytes == 0
    }),
    ("oversized-region", |term, region, _| region.bytes > term.policy.split_bytes()),
    ("undersized-region", |term, region, _| {
        let policy = &term.policy;
        let small = region.bytes <= policy.merge_bytes() && region.keys <= policy.max_merge_region_keys;
        small && !region.unmeasured && region.heard.is_some()
    }),
];

/// Whether a store is neither being emptied nor removed.
fn is_up(term: &Term, store: NodeId) -> bool {
    term.view.store(store).is_some_and(|store| store.meta.state == StoreState::Up)
}

/// Of one store, or of all: how many regions, how large.
#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    bytes: u64,
    keys: u64,
}

impl Sum {
    fn add(&mut self, region: &Region) {
        self.count += 1;
        self.bytes += region.bytes;
        self.keys += region.keys;
    }
}

pub fn stats(api: &Api, query: &Query) -> Page {
    let (start, end) = (query.bytes("start_key").unwrap_or_default(), query.bytes("end_key").unwrap_or_default());
    let leader = api.leader()?;
    Ok(stats_of(&*leader.term()?, start, end, leader.now()))
}

fn stats_of(term: &Term, start: &[u8], end: &[u8], now: Time) -> Value {
    let touches =
        |region: &&Region| (end.is_empty() || &*region.start < end) && (region.end.is_empty() || start < &*region.end);
    let (mut pending, mut down, mut learners, mut missing, mut leaderless, mut empty) = (0, 0, 0, 0, 0, 0);
    let mut all = Sum::default();
    let none = || term.view.stores().map(|store| (store.id(), Sum::default())).collect::<BTreeMap<_, _>>();
    let (mut held, mut led) = (none(), none());
    for region in term.view.regions().filter(touches) {
        let leader = term.view.leader_of(region, now, &term.policy);
        all.add(region);
        pending += region.pending.len();
        down += region.down.len();
        learners += region.peers.iter().filter(|peer| peer.learner).count();
        missing += usize::from(region.voters().count() < term.policy.max_replicas as usize);
        leaderless += usize::from(leader.is_none());
        empty += usize::from(region.keys == 0 && region.bytes == 0);
        region.peers.iter().for_each(|peer| held.entry(peer.store).or_default().add(region));
        leader.into_iter().for_each(|store| led.entry(store).or_default().add(region));
    }
    json!({
        "count": all.count,
        "empty_count": empty,
        "pending_peers": pending,
        "down_peers": down,
        "learner_peers": learners,
        "missing_peers": missing,
        "leaderless": leaderless,
        "storage_size": all.bytes >> 20,
        "storage_keys": all.keys,
        "store_leader_count": by_store(&led, |sum| sum.count),
        "store_leader_size": by_store(&led, |sum| sum.bytes >> 20),
        "store_leader_keys": by_store(&led, |sum| sum.keys),
        "store_peer_count": by_store(&held, |sum| sum.count),
        "store_peer_size": by_store(&held, |sum| sum.bytes >> 20),
        "store_peer_keys": by_store(&held, |sum| sum.keys),
    })
}

fn by_store(sums: &BTreeMap<NodeId, Sum>, of: impl Fn(&Sum) -> u64) -> Map<String, Value> {
    sums.iter().map(|(store, sum)| (store.to_string(), of(sum).into())).collect()
}

fn value(region: &Region) -> Value {
    let peer = |peer: &crate::Peer| json!({ "id": peer.id.0, "store_id": peer.store.0, "is_learner": peer.learner });
    json!({
        "id": region.id.0,
        "start_key": crate::model::hex(&region.start),
        "end_key": crate::model::hex(&region.end),
        "epoch": { "conf_ver": region.epoch.conf_version, "version": region.epoch.version },
        "peers": region.peers.iter().map(peer).collect::<Vec<_>>(),
        "leader": region.leader.map(|store| json!({ "store_id": store.0 })),
        "pending_peers": region.pending.iter().map(|store| store.0).collect::<Vec<_>>(),
        "down_peers": region.down.iter().map(|down| down.store.0).collect::<Vec<_>>(),
        "approximate_size": region.bytes >> 20,
        "approximate_keys": region.keys,
        "read_bytes_per_sec": region.read_bytes_per_sec,
        "read_keys_per_sec": region.read_keys_per_sec,
        "write_bytes_per_sec": region.write_bytes_per_sec,
        "write_keys_per_sec": region.write_keys_per_sec,
        "requests_per_sec": region.requests_per_sec,
        "hot": region.is_hot(),
    })
}

fn list<'a>(regions: impl Iterator<Item = &'a Region>) -> Value {
    let all: Vec<Value> = regions.map(value).collect();
    json!({ "count": all.len(), "regions": all })
}

/// What a request wants of regions in the order of their keys.
struct Part<'a> {
    limit: usize,
    /// The first one is the one that has it.
    key: &'a [u8],
    looked_at_max: usize,
}

impl Part<'_> {
    fn of(query: &Query) -> Result<Part<'_>, PageError> {
        let limit = query.number("limit", "how many regions")?.unwrap_or(LIMIT_MAX as u64);
        let limit = usize::try_from(limit).ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
        let limit = limit.ok_or_else(|| bad_request(format!("limit= takes a number from 1 to {LIMIT_MAX}")))?;
        Ok(Part { limit, key: query.bytes("key").unwrap_or_default(), looked_at_max: LOOKED_AT_MAX })
    }

    /// Those that matter. `next` is the page behind, `path` with where it begins: also where few or none were found, as long as
    /// not all were looked at.
    fn page<'a>(
        &self,
        regions: impl Iterator<Item = &'a Region>,
        path: &str,
        matters: impl Fn(&Region) -> bool,
    ) -> Value {
        let (mut found, mut next) = (Vec::new(), None);
        for (number, region) in regions.enumerate() {
            if found.len() == self.limit || number == self.looked_at_max {
                let key: String = region.start.iter().map(|byte| format!("%{byte:02X}")).collect();
                next = Some(format!("{path}?limit={}&key={key}", self.limit));
                break;
            }
            if matters(region) {
                found.push(value(region));
            }
        }
        json!({ "count": found.len(), "regions": found, "next": next })
    }
}

pub fn all(api: &Api, query: &Query) -> Page {
    let part = Part::of(query)?;
    let term = api.leader()?.term()?;
    let mut page = part.page(term.view.regions_behind(part.key), "regions", |_| true);
    page["total"] = term.view.region_count().into();
    Ok(page)
}

/// In the order of their keys, from the one that has `key` on, and as far as `end_key`.
pub fn from_key(api: &Api, query: &Query) -> Page {
    let (start, end) = (query.bytes("key").unwrap_or_default(), query.bytes("end_key").unwrap_or_default());
    let limit = query.number("limit", "how many regions")?.unwrap_or(LIMIT);
    let term = api.leader()?.term()?;
    let regions = term.view.regions_behind(start).take_while(|region| end.is_empty() || &*region.start < end);
    Ok(list(regions.take(usize::try_from(limit).map_or(LIMIT_MAX, |limit| limit.min(LIMIT_MAX)))))
}

pub fn of_store(api: &Api, id: u64, query: &Query) -> Page {
    let part = Part::of(query)?;
    let term = api.leader()?.term()?;
    let store = term.view.store(NodeId(id)).ok_or_else(|| not_found(format!("there is no store {id}")))?;
    let mut all: Vec<&Region> = store.regions().filter_map(|region| term.view.region(region)).collect();
    all.sort_unstable_by(|a, b| a.start.cmp(&b.start));
    let total = all.len();
    let behind = all.into_iter().filter(|region| region.end.is_empty() || part.key < &*region.end);
    let mut page = part.page(behind, &format!("regions/store/{id}"), |_| true);
    page["total"] = total.into();
    Ok(page)
}

pub fn check(api: &Api, what: &str, query: &Query) -> Page {
    let part = Part::of(query)?;
    let found = CHECKS.iter().find(|(name, _)| *name == what);
    let Some((_, matters)) = found else {
        let known: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        return Err(not_found(format!("there is no check `{}`: {}", what.escape_debug(), known.join(", "))));
    };
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let regions = term.view.regions_behind(part.key);
    Ok(part.page(regions, &format!("regions/check/{what}"), |region| matters(&term, region, now)))
}

pub fn one(api: &Api, id: u64) -> Page {
    let term = api.leader()?.term()?;
    term.view.region(GroupId(id)).map(value).ok_or_else(|| not_found(format!("there is no region {id}")))
}

pub fn at(api: &Api, key: &[u8]) -> Page {
    let term = api.leader()?.term()?;
    term.view.region_at(key).map(value).ok_or_else(|| not_found("no region covers the key yet"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Policy;
    use crate::machine::Records;
    use crate::view::{RegionReport, StoreMeta};

    /// Region 1 is led by store 1, region 2 by nobody that is heard of.
    #[test]
    fn stats_have_the_fields_that_tools_know() {
        let mut term = Term::new(1, &Records::default(), &Policy::default(), Time::ZERO, Arc::default()).unwrap();
        let now = Time::ZERO + term.policy.store_disconnected_time;
        [1, 2].iter().for_each(|store| term.view.put_store(StoreMeta::new(NodeId(*store)), Time::ZERO));
        for store in [1, 2] {
            let peers =
                [1, 2].map(|at| crate::Peer { id: base::PeerId(10 * store + at), store: NodeId(at), learner: false });
            let (start, end) = if store == 1 { (&b""[..], &b"m"[..]) } else { (&b"m"[..], &b""[..]) };
            let report = RegionReport {
                id: GroupId(store),
                start: start.into(),
                end: end.into(),
                peers: peers.into(),
                leader: Some(NodeId(store)),
                bytes: store << 20,
                keys: store,
                ..RegionReport::default()
            };
            term.view.report_region(report, Time::ZERO).unwrap();
        }
        term.view.report_store(NodeId(1), crate::view::StoreReport::default(), now).unwrap();
        let all = stats_of(&term, b"", b"", now);
        assert_eq!((&all["count"], &all["leaderless"], &all["empty_count"]), (&json!(2), &json!(1), &json!(0)));
        assert_eq!((&all["storage_size"], &all["storage_keys"]), (&json!(3), &json!(3)));
        assert_eq!(all["store_leader_count"], json!({ "1": 1, "2": 0 }));
        assert_eq!(all["store_peer_size"], json!({ "1": 3, "2": 3 }));
        assert_eq!(stats_of(&term, b"n", b"", now)["store_peer_keys"], json!({ "1": 2, "2": 2 }));
    }

    #[test]
    fn regions_come_in_parts() {
        let mut term = Term::new(1, &Records::default(), &Policy::default(), Time::ZERO, Arc::default()).unwrap();
        term.view.put_store(StoreMeta::new(NodeId(1)), Time::ZERO);
        for (id, start, end) in [(3, "", "a/"), (1, "a/", "m"), (2, "m", "")] {
            let peers = vec![crate::Peer { id: base::PeerId(id), store: NodeId(1), learner: false }];
            let (start, end) = (start.as_bytes().into(), end.as_bytes().into());
            let report = RegionReport { id: GroupId(id), start, end, peers, ..RegionReport::default() };
            term.view.report_region(report, Time::ZERO).unwrap();
        }
        let of = |text: &str| Query::of(text, &["limit", "key"]).ok().unwrap();
        let shown_of = |text: &str, looked_at_max: usize, id: Option<u64>| {
            let query = of(text);
            let part = Part { looked_at_max, ..Part::of(&query).ok().unwrap() };
            let value = part
                .page(term.view.regions_behind(part.key), "regions", |region| id.is_none_or(|id| region.id.0 == id));
            let ids = value["regions"].as_array().unwrap().iter().map(|region| region["id"].as_u64().unwrap());
            (ids.collect::<Vec<_>>(), value["next"].as_str().map(ToOwned::to_owned))
        };
        let shown = |text: &str| shown_of(text, 3, None);
        assert_eq!(shown(""), (vec![3, 1, 2], None));
        assert_eq!(shown("limit=1"), (vec![3], Some("regions?limit=1&key=%61%2F".to_owned())));
        assert_eq!(shown("limit=1&key=%61%2F"), (vec![1], Some("regions?limit=1&key=%6D".to_owned())));
        assert_eq!(shown("key=b"), (vec![1, 2], None));
        assert_eq!(shown_of("", 2, Some(2)), (vec![], Some("regions?limit=5000&key=%6D".to_owned())), "two looked at");
        assert_eq!(shown_of("key=m", 2, Some(2)), (vec![2], None));
        assert!(["limit=0", "limit=5001", "limit=x"].iter().all(|text| Part::of(&of(text)).is_err()));
    }
}
