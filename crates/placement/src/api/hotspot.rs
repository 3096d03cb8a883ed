//! `hotspot/…`: what carries how much, in the shapes that tools written for PD know.
//!
//! A region is listed if it is hot, or carries anything of the kind asked for, the busiest first; `hot_degree` says for how
//! many reports (six at most) it has been hot. Reads count where they are answered: what another replica than the leader
//! answered is in its store's figures alone.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Api;
use super::pages::Page;
use crate::view::{Region, StoreRates};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
}

type ByStore<'a> = BTreeMap<u64, Vec<&'a Region>>;

/// Regions listed per store.
const LISTED_MAX: usize = 1000;

pub fn regions(api: &Api, kind: Kind) -> Page {
    let term = api.leader()?.term()?;
    let (mut led, mut held) = (ByStore::new(), ByStore::new());
    for region in term.view.regions().filter(|region| rates(region, kind) != (0, 0)) {
        led.entry(region.leader.unwrap_or_default().0).or_default().push(region);
        for peer in region.voters().filter(|peer| kind == Kind::Write || region.leader == Some(peer.store)) {
            held.entry(peer.store.0).or_default().push(region);
        }
    }
    Ok(json!({ "as_leader": by_store(led, kind), "as_peer": by_store(held, kind) }))
}

/// Bytes and keys per second.
fn rates(region: &Region, kind: Kind) -> (u64, u64) {
    match kind {
        Kind::Read => (region.read_bytes_per_sec, region.read_keys_per_sec),
        Kind::Write => (region.write_bytes_per_sec, region.write_keys_per_sec),
    }
}

fn by_store(stores: ByStore<'_>, kind: Kind) -> Value {
    let one = |(store, mut regions): (u64, Vec<&Region>)| {
        let count = regions.len();
        let bytes: u64 = regions.iter().map(|region| rates(region, kind).0).sum();
        let keys: u64 = regions.iter().map(|region| rates(region, kind).1).sum();
        regions.sort_by_key(|region| (std::cmp::Reverse(rates(region, kind)), region.id));
        let listed = regions.into_iter().take(LISTED_MAX).map(|region| {
            let (bytes, keys) = rates(region, kind);
            json!({
                "store_id": store,
                "region_id": region.id.0,
                "is_leader": region.leader.is_some_and(|leader| leader.0 == store),
                "hot": region.is_hot(),
                "hot_degree": region.hot_degree(),
                "flow_bytes": bytes,
                "flow_keys": keys,
                "flow_query": region.requests_per_sec,
            })
        });
        let value = json!({
            "store_id": store,
            "total_flow_bytes": bytes,
            "total_flow_keys": keys,
            "regions_count": count,
            "statistics": listed.collect::<Vec<_>>(),
        });
        (store.to_string(), value)
    };
    Value::Object(stores.into_iter().map(one).collect())
}

/// What each store says of itself.
pub fn stores(api: &Api) -> Page {
    let term = api.leader()?.term()?;
    let each = |of: fn(&StoreRates) -> u64| {
        let stores = term.view.stores().map(|store| (store.id().to_string(), of(&store.report.rates).into()));
        stores.collect::<Map<String, Value>>()
    };
    Ok(json!({
        "bytes-read-rate": each(|rates| rates.read_bytes),
        "bytes-write-rate": each(|rates| rates.write_bytes),
        "keys-read-rate": each(|rates| rates.read_keys),
        "keys-write-rate": each(|rates| rates.write_keys),
        "query-rate": each(|rates| rates.requests),
    }))
}

pub fn store_rates(rates: StoreRates) -> Value {
    json!({
        "read_bytes_per_sec": rates.read_bytes,
        "read_keys_per_sec": rates.read_keys,
        "write_bytes_per_sec": rates.write_bytes,
        "write_keys_per_sec": rates.write_keys,
        "requests_per_sec": rates.requests,
    })
}
