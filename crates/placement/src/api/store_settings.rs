//! What people set of a store: weights, limits, labels. It is kept with the store's record, so it outlives the leader of the
//! placement driver and the store's own restarts.
//!
//! | call | body |
//! |---|---|
//! | POST `store/{id}/weight` | `{"leader": 1.0, "region": 0.5}`, either or both: the share of leaders and bytes beside a store of weight 1 |
//! | POST `store/{id}/limit` | `{"rate": 5}`, with `"type": "add-peer"` or `"remove-peer"` for one of both: replicas per minute |
//! | DELETE `store/{id}/limit` | back to the policy's |
//! | POST `store/{id}/label` | `{"zone": "z1"}`: counts before the label that the store brings along |
//! | DELETE `store/{id}/label/{name}` | back to what the store brings along |
//! | POST `store/{id}/moved` | none: its data folder was moved, and nothing runs where it was; it may register from elsewhere, once |

use std::collections::BTreeMap;
use std::time::Duration;

use ::http::StatusCode;
use base::NodeId;
use proto::placement as pb;
use serde_json::{Map, Value, json};

use super::Api;
use super::http::{PageError, bad_request, not_found};
use super::pages::Page;
use crate::term::labels_of;

const WEIGHTS: std::ops::RangeInclusive<f64> = 0.01..=1000.0;
const RATE_MAX: u64 = 100_000;
const LABELS_MAX: usize = 16;
const TEXT_BYTES_MAX: usize = 64;
/// A store that was heard of so lately runs.
const HEARD_WITHIN: Duration = Duration::from_secs(5);

/// The record of a store that stands.
fn record(api: &Api, id: u64) -> Result<pb::Store, PageError> {
    let records = api.leader()?.records().read();
    let standing = |store: &&pb::Store| store.state() != pb::StoreState::Tombstone;
    match records.stores.get(&id) {
        Some(store) if standing(&store) => Ok(store.clone()),
        Some(_) => Err(PageError::Http(StatusCode::GONE, format!("store {id} was removed"))),
        None => {
            let known: Vec<String> =
                records.stores.values().filter(standing).map(|store| store.id.to_string()).collect();
            Err(not_found(format!("there is no store {id}: {}", known.join(", "))))
        }
    }
}

pub async fn set_weight(api: &Api, id: u64, body: &Value) -> Page {
    record(api, id)?;
    let wrong = || {
        let (low, high) = (WEIGHTS.start(), WEIGHTS.end());
        bad_request(format!(
            "{{\"leader\": 1.0, \"region\": 1.0}} is wanted, either or both, {low} to {high}; a store that is to have no leaders \
             gets the evict-leader-scheduler, one that is to hold nothing is removed"
        ))
    };
    let fields = body.as_object().filter(|fields| !fields.is_empty()).ok_or_else(wrong)?;
    let mut set = pb::SetStore { store_id: id, ..pb::SetStore::default() };
    for (name, value) in fields {
        let weight = value.as_f64().filter(|weight| WEIGHTS.contains(weight)).ok_or_else(wrong)?;
        match name.as_str() {
            "leader" => set.leader_weight = Some(weight),
            "region" => set.region_weight = Some(weight),
            _ => return Err(wrong()),
        }
    }
    api.leader()?.set_store(set).await?;
    Ok(json!({ "message": format!("the weight of store {id} is set") }))
}

/// Replicas per minute that a store may take in and give, and whether that is its own rather than the policy's.
fn limit_value(api: &Api, store: &pb::Store) -> Result<Value, PageError> {
    let policy = api.leader()?.policy()?;
    let one = |own: Option<u32>, of_all: u32| json!({ "rate": own.unwrap_or(of_all), "own": own.is_some() });
    Ok(json!({
        "add-peer": one(store.add_limit, policy.store_add_limit),
        "remove-peer": one(store.remove_limit, policy.store_remove_limit),
    }))
}

pub fn limit(api: &Api, id: u64) -> Page {
    limit_value(api, &record(api, id)?)
}

pub fn limits(api: &Api) -> Page {
    let stores: Vec<pb::Store> = api.leader()?.records().read().stores.values().cloned().collect();
    let mut all = Map::new();
    for store in stores.iter().filter(|store| store.state() != pb::StoreState::Tombstone) {
        all.insert(store.id.to_string(), limit_value(api, store)?);
    }
    Ok(all.into())
}

pub async fn set_limit(api: &Api, id: u64, body: &Value) -> Page {
    record(api, id)?;
    let wrong = || {
        bad_request(format!(
            "{{\"rate\": 15}} is wanted, replicas per minute, {RATE_MAX} at most, and \"type\": \"add-peer\" or \"remove-peer\" \
             for one of both"
        ))
    };
    // PD's users may write a fraction.
    let rate = body["rate"].as_f64().filter(|rate| (0.0..=RATE_MAX as f64).contains(rate)).ok_or_else(wrong)?;
    let rate = Some(rate.ceil() as u32);
    let (add_limit, remove_limit) = match &body["type"] {
        Value::Null => (rate, rate),
        Value::String(kind) if kind == "add-peer" => (rate, None),
        Value::String(kind) if kind == "remove-peer" => (None, rate),
        _ => return Err(wrong()),
    };
    api.leader()?.set_store(pb::SetStore { store_id: id, add_limit, remove_limit, ..pb::SetStore::default() }).await?;
    limit(api, id)
}

pub async fn clear_limit(api: &Api, id: u64) -> Page {
    record(api, id)?;
    api.leader()?.set_store(pb::SetStore { store_id: id, clear_limits: true, ..pb::SetStore::default() }).await?;
    limit(api, id)
}

pub async fn set_labels(api: &Api, id: u64, body: &Value) -> Page {
    let store = record(api, id)?;
    let wrong =
        || bad_request(format!("{{\"zone\": \"z1\"}} is wanted: labels of 1 to {TEXT_BYTES_MAX} bytes, no spaces"));
    let fields = body.as_object().filter(|fields| !fields.is_empty()).ok_or_else(wrong)?;
    let good = |text: &str| {
        (1..=TEXT_BYTES_MAX).contains(&text.len()) && !text.contains(|c: char| c.is_control() || c.is_whitespace())
    };
    let mut labels = BTreeMap::new();
    for (name, value) in fields {
        let value = value.as_str().filter(|value| good(value) && good(name)).ok_or_else(wrong)?;
        labels.insert(name.clone(), value.to_owned());
    }
    let after = store.labels_set.keys().chain(labels.keys()).collect::<std::collections::BTreeSet<_>>().len();
    if after > LABELS_MAX {
        return Err(bad_request(format!("a store has at most {LABELS_MAX} labels that people set")));
    }
    api.leader()?.set_store(pb::SetStore { store_id: id, labels, ..pb::SetStore::default() }).await?;
    labels_value(api, id)
}

pub async fn remove_label(api: &Api, id: u64, name: &str) -> Page {
    let store = record(api, id)?;
    if !store.labels_set.contains_key(name) {
        let known: Vec<&str> = store.labels_set.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none is set".to_owned() } else { known.join(", ") };
        let why = match store.labels.contains_key(name) {
            true => {
                format!("the label `{name}` comes from the store's own configuration (cluster.labels): change it there")
            }
            false => format!("no label `{}` was set on store {id}: {known}", name.escape_debug()),
        };
        return Err(not_found(why));
    }
    let labels_removed = vec![name.to_owned()];
    api.leader()?.set_store(pb::SetStore { store_id: id, labels_removed, ..pb::SetStore::default() }).await?;
    labels_value(api, id)
}

/// The same data folder at another place is taken for a copy, before people say that it is not.
pub async fn moved(api: &Api, id: u64) -> Page {
    let store = record(api, id)?;
    let leader = api.leader()?;
    let silent = leader.term()?.view.store(NodeId(id)).map(|store| store.silent_for(leader.now()));
    if silent.is_none_or(|silent| silent < HEARD_WITHIN) {
        let why = format!(
            "store {id} is alive at {}, so what is elsewhere is a copy; stop it first if its folder is to be moved",
            store.client_url
        );
        return Err(PageError::Http(StatusCode::CONFLICT, why));
    }
    leader.set_store(pb::SetStore { store_id: id, moved: true, ..pb::SetStore::default() }).await?;
    Ok(json!({ "message": format!("store {id} is taken in from wherever its data folder comes next") }))
}

fn labels_value(api: &Api, id: u64) -> Page {
    let labels = labels_of(&record(api, id)?);
    Ok(json!({ "labels": labels.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect::<Vec<_>>() }))
}
