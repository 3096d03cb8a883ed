//! The pages under `/pd/api/v1`, each a JSON value. Shapes are those that tools written for PD know; numbers are numbers.

use ::http::{Method, StatusCode};
use base::{GroupId, NodeId};
use consensus::Role;
use proto::placement as pb;
use proto::placement::command::What;
use rpc::Status;
use serde_json::{Map, Value, json};

use super::Api;
use super::http::{PageError, Request, bad_request, body_of, not_found};
use crate::explain::forecast::{self, RemovalRefused, may_remove};
use crate::leader::{Ended, Term, meta_of};
use crate::view::{Health, InFlight, Region, Store, StoreState};

type Page = Result<Value, PageError>;

/// What can be asked for, for people who ask for nothing.
const PAGES: &[&str] = &[
    "GET health",
    "GET members",
    "GET status",
    "GET version",
    "GET stores",
    "GET store/{id}",
    "DELETE store/{id}",
    "POST store/{id}/state?state=Up",
    "GET stats/region",
    "GET regions",
    "GET region/id/{id}",
    "GET region/key/{key}",
    "GET operators",
    "GET operators/records",
    "GET config/schedule",
    "POST config/schedule",
    "GET schedulers",
    "GET explain/region/{id}",
    "GET explain/store/{id}",
    "GET explain/removal/{store id}",
    "POST explain/policy",
];

pub async fn answer(api: &Api, request: &Request) -> Page {
    let parts: Vec<&str> = request.path.split('/').collect();
    let is_get = matches!(request.method, Method::GET | Method::HEAD);
    match (&request.method, &parts[..]) {
        (_, [""]) if is_get => Ok(json!({ "pages": PAGES })),
        (_, ["version"]) if is_get => Ok(json!({ "version": env!("CARGO_PKG_VERSION") })),
        (_, ["members"]) if is_get => Ok(members(api)),
        (_, ["health"]) if is_get => Ok(health(api)),
        (_, ["status"]) if is_get => status(api),
        (_, ["stores"]) if is_get => stores(api),
        (_, ["store", id]) if is_get => store(api, number(id)?),
        (&Method::DELETE, ["store", id]) => remove_store(api, number(id)?).await,
        (&Method::POST, ["store", id, "state"]) => set_state(api, number(id)?, &request.query).await,
        (_, ["stats", "region"]) if is_get => region_stats(api),
        (_, ["regions"]) if is_get => regions(api),
        (_, ["region", "id", id]) if is_get => region(api, number(id)?),
        (_, ["region", "key", key]) if is_get => region_at(api, key.as_bytes()),
        (_, ["operators"]) if is_get => operators(api),
        (_, ["operators", "records"]) if is_get => records(api),
        (_, ["config", "schedule"]) if is_get => Ok(api.leader()?.policy()?.to_json()),
        (&Method::POST, ["config", "schedule"]) => set_policy(api, body_of(request)?).await,
        (_, ["schedulers"]) if is_get => schedulers(api),
        (_, ["explain", "region", id]) if is_get => explain_region(api, number(id)?),
        (_, ["explain", "store", id]) if is_get => explain_store(api, number(id)?),
        (_, ["explain", "removal", id]) if is_get => explain_removal(api, number(id)?),
        (&Method::POST, ["explain", "policy"]) => explain_policy(api, &body_of(request)?),
        _ => Err(not_found(format!("there is no {} {}; see /pd/api/v1/", request.method, request.path))),
    }
}

fn number(text: &str) -> Result<u64, PageError> {
    text.parse().map_err(|_| bad_request(format!("`{}` is no id: a number is wanted", text.escape_debug())))
}

fn members(api: &Api) -> Value {
    let (status, membership) = (api.handle.status(), api.handle.membership());
    let member = |member: &consensus::Member| {
        json!({
            "name": member.name,
            "member_id": member.node.0,
            "peer_urls": member.peer_urls,
            "client_urls": member.client_urls,
        })
    };
    let all: Vec<Value> = membership.members.values().map(member).collect();
    let leader = membership.members.get(&status.leader_node).map(member);
    json!({ "members": all, "leader": leader })
}

fn health(api: &Api) -> Value {
    let (status, membership) = (api.handle.status(), api.handle.membership());
    let heard = |peer| status.followers.iter().any(|(follower, _, heard)| *follower == peer && *heard);
    let one = |member: &consensus::Member| {
        let healthy = member.peer == status.peer || heard(member.peer);
        json!({ "name": member.name, "member_id": member.node.0, "client_urls": member.client_urls, "health": healthy })
    };
    membership.members.values().map(one).collect()
}

fn status(api: &Api) -> Page {
    let term = api.leader()?.term()?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cluster_id": api.handle.cluster().0,
        "leader": api.handle.status().leader_node.0,
        "term": api.handle.status().term,
        "plans": term.view.is_ready(&term.policy, api.handle.now()),
    }))
}

/// Up, Disconnected, Down, Offline or Tombstone.
pub fn state_of(term: &Term, store: &Store, now: base::Time) -> &'static str {
    match (store.meta.state, store.health(now, &term.policy)) {
        (StoreState::Tombstone, _) => "Tombstone",
        (_, Health::Down(_)) => "Down",
        (StoreState::Offline, _) => "Offline",
        (_, Health::Disconnected(_)) => "Disconnected",
        (StoreState::Up, Health::Connected) => "Up",
    }
}

fn store_value(record: &pb::Store, term: &Term, now: base::Time) -> Value {
    let Some(store) = term.view.store(NodeId(record.id)) else { return Value::Null };
    let state = state_of(term, store, now);
    let silent = match store.health(now, &term.policy) {
        Health::Connected => 0,
        Health::Disconnected(silent) | Health::Down(silent) => silent.as_secs(),
    };
    // A store that this leader has not heard of: never zero, because tools divide by it.
    let (capacity, available) = (store.report.capacity_bytes.max(1), store.report.available_bytes);
    let labels: Vec<Value> = record.labels.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    json!({
        "id": record.id,
        "state": state,
        "reason": reason(state, silent),
        "silent_seconds": silent,
        "address": record.client_url,
        "peer_address": record.peer_url,
        "incarnation": format!("{:016x}", record.incarnation),
        "version": record.version,
        "labels": labels,
        "capacity": capacity,
        "available": available,
        "region_count": store.region_count(),
        "leader_count": store.leader_count(),
        "slow": store.report.slow,
        "store": {
            "id": record.id,
            "address": record.client_url,
            "labels": labels,
            "version": record.version,
            "state_name": state,
        },
        "status": {
            "capacity": capacity,
            "available": available,
            "leader_count": store.leader_count(),
            "region_count": store.region_count(),
        },
    })
}

fn reason(state: &str, silent: u64) -> String {
    match state {
        "Up" => String::new(),
        "Disconnected" => format!("not heard of for {silent} s"),
        "Down" => format!("not heard of for {silent} s; its replicas are made anew on other stores"),
        "Offline" => "it is being emptied, to be removed".to_owned(),
        _ => "it was removed".to_owned(),
    }
}

fn stores(api: &Api) -> Page {
    let leader = api.leader()?;
    let (term, records, now) = (leader.term()?, leader.records().read(), leader.now());
    let standing = records.stores.values().filter(|store| store.state() != pb::StoreState::Tombstone);
    let all: Vec<Value> = standing.map(|store| store_value(store, &term, now)).collect();
    Ok(json!({ "count": all.len(), "stores": all }))
}

fn store(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, records) = (leader.term()?, leader.records().read());
    let record = records.stores.get(&id).ok_or_else(|| not_found(format!("there is no store {id}")))?;
    if record.state() == pb::StoreState::Tombstone {
        return Err(PageError::Http(StatusCode::GONE, format!("store {id} was removed")));
    }
    Ok(store_value(record, &term, leader.now()))
}

/// Begins to empty a store. Refused when the others could not take what it holds.
async fn remove_store(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    {
        let term = leader.term()?;
        may_remove(&term.view, &term.policy, NodeId(id), leader.now()).map_err(|why| {
            let code = match why {
                RemovalRefused::Unknown(_) => StatusCode::NOT_FOUND,
                RemovalRefused::Tombstone(_) => StatusCode::GONE,
                RemovalRefused::TooFewStores { .. } => StatusCode::CONFLICT,
            };
            PageError::Http(code, why.to_string())
        })?;
    }
    change_state(api, id, pb::StoreState::Offline).await?;
    Ok(json!({ "message": format!("store {id} is being emptied; it is removed when nothing is left on it") }))
}

async fn set_state(api: &Api, id: u64, query: &str) -> Page {
    let state = match query.strip_prefix("state=") {
        Some("Up") => pb::StoreState::Up,
        Some("Offline") => return remove_store(api, id).await,
        _ => return Err(bad_request("state=Up or state=Offline is wanted")),
    };
    change_state(api, id, state).await?;
    Ok(json!({ "message": format!("store {id} is up again") }))
}

async fn change_state(api: &Api, id: u64, state: pb::StoreState) -> Result<(), Status> {
    let leader = api.leader()?;
    leader.propose(What::SetState(pb::SetStoreState { store_id: id, state: state as i32 })).await?;
    let mut term = leader.term()?;
    if let Some(record) = leader.records().read().stores.get(&id) {
        term.view.put_store(meta_of(record), leader.now());
    }
    Ok(())
}

fn region_stats(api: &Api) -> Page {
    let leader = api.leader()?;
    let term = leader.term()?;
    let (mut pending, mut down, mut learners, mut missing, mut leaderless) = (0, 0, 0, 0, 0);
    let (mut by_store, mut led) = (Map::new(), Map::new());
    for region in term.view.regions() {
        pending += region.pending.len();
        down += region.down.len();
        learners += region.peers.iter().filter(|peer| peer.learner).count();
        missing += usize::from(region.peers.len() < term.policy.max_replicas as usize);
        leaderless += usize::from(region.leader.is_none());
    }
    for store in term.view.stores() {
        by_store.insert(store.id().to_string(), store.region_count().into());
        led.insert(store.id().to_string(), store.leader_count().into());
    }
    Ok(json!({
        "count": term.view.region_count(),
        "pending_peers": pending,
        "down_peers": down,
        "learner_peers": learners,
        "missing_peers": missing,
        "leaderless": leaderless,
        "storage_size": term.view.total_bytes() >> 20,
        "store_leader_count": led,
        "store_peer_count": by_store,
    }))
}

fn region_value(region: &Region) -> Value {
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
    })
}

fn regions(api: &Api) -> Page {
    let term = api.leader()?.term()?;
    let all: Vec<Value> = term.view.regions().map(region_value).collect();
    Ok(json!({ "count": all.len(), "regions": all }))
}

fn region(api: &Api, id: u64) -> Page {
    let term = api.leader()?.term()?;
    term.view.region(GroupId(id)).map(region_value).ok_or_else(|| not_found(format!("there is no region {id}")))
}

fn region_at(api: &Api, key: &[u8]) -> Page {
    let term = api.leader()?.term()?;
    term.view.region_at(key).map(region_value).ok_or_else(|| not_found("no region covers the key yet"))
}

fn flight_value(flight: &InFlight, now: base::Time) -> Value {
    let operator = &flight.operator;
    json!({
        "id": flight.id,
        "region_id": operator.region.0,
        "cause": operator.cause.name(),
        "reason": operator.reason,
        "steps": operator.steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "step": flight.step,
        "seconds": now.since(flight.started).as_secs(),
        "seconds_without_progress": now.since(flight.progressed).as_secs(),
    })
}

fn operators(api: &Api) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    Ok(term.view.flights().map(|flight| flight_value(flight, now)).collect())
}

/// Operators that ended, the last one first.
fn records(api: &Api) -> Page {
    let leader = api.leader()?;
    let now = leader.now();
    let value = |ended: &Ended| {
        let mut value = flight_value(&ended.flight, now);
        if let Value::Object(fields) = &mut value {
            fields.remove("seconds_without_progress");
            fields.insert("seconds".to_owned(), json!(ended.took.as_secs_f64()));
            fields.insert("ended_unix_seconds".to_owned(), json!(ended.ended_unix_s));
            fields.insert("outcome".to_owned(), json!(ended.outcome));
        }
        value
    };
    Ok(leader.term()?.ended().map(value).collect())
}

async fn set_policy(api: &Api, patch: Value) -> Page {
    let leader = api.leader()?;
    let policy = leader.policy()?;
    let merged = policy.merged(&patch).map_err(|why| bad_request(why.to_string()))?.to_json();
    leader.propose(What::SetPolicy(merged.to_string().into())).await?;
    Ok(merged)
}

fn schedulers(api: &Api) -> Page {
    let policy = api.leader()?.policy()?;
    Ok(policy.schedulers.iter().map(|scheduler| scheduler.name()).collect())
}

fn explain_region(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let explained = crate::explain::region::explain(&term.view, &term.policy, GroupId(id), now);
    let explained = explained.ok_or_else(|| not_found(format!("there is no region {id}")))?;
    serde_json::to_value(explained).map_err(|error| Status::internal(error.to_string()).into())
}

fn explain_store(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let explained = crate::explain::store::explain(&term.view, &term.policy, NodeId(id), now);
    let explained = explained.ok_or_else(|| not_found(format!("there is no store {id}")))?;
    serde_json::to_value(explained).map_err(|error| Status::internal(error.to_string()).into())
}

/// What removing a store would mean; nothing is changed.
fn explain_removal(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let forecast = forecast::remove_store(&term.view, &term.policy, NodeId(id), now);
    let forecast = forecast.ok_or_else(|| not_found(format!("there is no store {id}")))?;
    serde_json::to_value(forecast).map_err(|error| Status::internal(error.to_string()).into())
}

/// What a change of the policy would mean; nothing is changed.
fn explain_policy(api: &Api, patch: &Value) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let merged = term.policy.merged(patch).map_err(|why| bad_request(why.to_string()))?;
    let forecast = forecast::change_policy(&term.view, &term.policy, &merged, now);
    serde_json::to_value(forecast).map_err(|error| Status::internal(error.to_string()).into())
}

impl Api {
    /// Everything on one page, for `flaredb-client cluster-status`.
    pub(super) fn cluster_status(&self) -> Result<pb::ClusterStatusResponse, Status> {
        let leader = self.leader()?;
        let (term, records, now) = (leader.term()?, leader.records().read(), leader.now());
        let (status, membership) = (self.handle.status(), self.handle.membership());
        let members = membership.members.values().map(|member| pb::Member {
            id: member.node.0,
            name: member.name.clone(),
            client_urls: member.client_urls.clone(),
            leader: member.node == status.leader_node,
        });
        let mut problems = Vec::new();
        let mut stores = Vec::new();
        for record in records.stores.values() {
            let Some(store) = term.view.store(NodeId(record.id)) else { continue };
            let state = state_of(&term, store, now);
            let silent_seconds = match store.health(now, &term.policy) {
                _ if !store.reported => None,
                Health::Connected => Some(0),
                Health::Disconnected(silent) | Health::Down(silent) => Some(silent.as_secs()),
            };
            if matches!(state, "Down" | "Disconnected") {
                problems.push(format!(
                    "store {} is {state}: {}",
                    record.id,
                    reason(state, silent_seconds.unwrap_or(0))
                ));
            }
            stores.push(pb::StoreStatus {
                store: Some(record.clone()),
                state: state.to_owned(),
                stats: Some(pb::StoreStats {
                    capacity_bytes: store.report.capacity_bytes,
                    available_bytes: store.report.available_bytes,
                    region_count: store.region_count() as u64,
                    leader_count: store.leader_count() as u64,
                    slow: store.report.slow,
                }),
                silent_seconds,
            });
        }
        let wanted = term.policy.max_replicas as usize;
        let voters = |region: &Region| region.peers.iter().filter(|peer| !peer.learner).count();
        let missing = term.view.regions().filter(|region| voters(region) < wanted).count();
        if missing > 0 {
            problems.push(format!("{missing} regions have fewer than {wanted} voting replicas"));
        }
        let sum = |of: fn(&Region) -> usize| term.view.regions().map(of).sum::<usize>() as u64;
        let down_peers = sum(|region| region.down.len());
        if down_peers > 0 {
            problems.push(format!("{down_peers} replicas do not answer their leaders"));
        }
        if records.regions.is_empty() {
            problems.push("there is no region yet: no store has come".to_owned());
        }
        Ok(pb::ClusterStatusResponse {
            cluster_id: self.handle.cluster().0,
            members: members.collect(),
            stores,
            region_count: term.view.region_count() as u64,
            pending_peers: sum(|region| region.pending.len()),
            down_peers,
            operators: term.view.flights().count() as u64,
            problems,
        })
    }

    /// The page `/metrics`. What only the leader knows, only the leader exports.
    pub(super) fn metrics(&self) -> String {
        let certificates = self.certificates.as_ref();
        let mut out = certificates.map(|certificates| certificates.stats().page("placement")).unwrap_or_default();
        let leads = self.handle.status().role == Role::Leader;
        let mut family = |name: &str, help: &str, samples: Vec<(String, f64)>| {
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n"));
            for (labels, value) in samples {
                out.push_str(&format!("{name}{labels} {value}\n"));
            }
        };
        let one = |value: f64| vec![(String::new(), value)];
        family("placement_is_leader", "Whether this member leads the placement driver.", one(f64::from(leads)));
        let has_leader = !self.handle.status().leader.is_none();
        family("placement_has_leader", "Whether this member knows a leader.", one(f64::from(has_leader)));
        let Ok(leader) = self.leader() else { return out };
        let Ok(term) = leader.term() else { return out };
        let now = leader.now();
        let standing = || term.view.stores().filter(|store| store.meta.state != StoreState::Tombstone);
        let per_store = |value: &dyn Fn(&Store) -> f64| -> Vec<(String, f64)> {
            standing().map(|store| (format!("{{store_id=\"{}\"}}", store.id()), value(store))).collect()
        };
        let up = |store: &Store| f64::from(u8::from(matches!(store.health(now, &term.policy), Health::Connected)));
        family("flaredb_store_state", "1 while the store is heard of, 0 otherwise.", per_store(&up));
        let capacity = |store: &Store| store.report.capacity_bytes as f64;
        family("flaredb_store_capacity_bytes", "Size of the store's file system.", per_store(&capacity));
        let available = |store: &Store| store.report.available_bytes as f64;
        family("flaredb_store_available_bytes", "Bytes that are free there.", per_store(&available));
        let regions = |store: &Store| store.region_count() as f64;
        family("flaredb_store_regions", "Replicas of regions on the store.", per_store(&regions));
        let leaders = |store: &Store| store.leader_count() as f64;
        family("flaredb_store_leaders", "Regions led by the store.", per_store(&leaders));
        let pending = term.view.regions().map(|region| region.pending.len()).sum::<usize>() as f64;
        let help = "Replicas that have not caught up with their leaders.";
        family("flaredb_pending_peers", help, one(pending));
        family("flaredb_pending_peers_total", help, one(pending));
        family("flaredb_regions", "Regions of the cluster.", one(term.view.region_count() as f64));
        family("placement_operators", "Operators under way.", one(term.view.flights().count() as f64));
        out
    }
}
