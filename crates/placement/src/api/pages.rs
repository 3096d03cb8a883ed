//! The pages under `/pd/api/v1`, each a JSON value. Shapes are those that tools written for PD know; numbers are numbers.

use std::time::Duration;

use ::http::{Method, StatusCode};
use base::{GroupId, Moment, NodeId};
use proto::placement as pb;
use rpc::Status;
use serde_json::{Value, json};

use super::http::{PageError, Request, bad_request, body_of, not_found};
use super::query::{Query, unescaped};
use super::{Api, catalogue, hotspot, leadership, members, operators, regions, schedulers, store_settings, verdict};
use crate::Policy;
use crate::explain::forecast::{self, RemovalRefused};
use crate::machine::Records;
use crate::plan::Round;
use crate::policy::{MIB, format_span};
use crate::refusals::Refusal;
use crate::term::{Term, labels_of, unix_s_ago};
use crate::view::{Health, Region};

/// A new leader has not heard of the other members yet.
const MEMBERS_ANSWER_WITHIN: Duration = Duration::from_secs(1);

pub type Page = Result<Value, PageError>;

pub async fn answer(api: &Api, request: &Request) -> Page {
    let parts: Vec<&str> = request.path.split('/').collect();
    let method = if request.method == Method::HEAD { &Method::GET } else { &request.method };
    if !catalogue::has(method, &parts) {
        return Err(catalogue::no_such_page(method, &parts));
    }
    let query = Query::of(&request.query, parameters(&parts))?;
    if *method == Method::GET { get(api, &parts, &query) } else { change(api, method, &parts, &query, request).await }
}

/// What may stand behind `?`.
fn parameters(parts: &[&str]) -> &'static [&'static str] {
    match parts {
        ["stores"] | ["store", _, "state"] => &["state"],
        ["regions"] | ["regions", "store" | "check", _] => &["limit", "key"],
        ["regions", "key"] => &["key", "end_key", "limit"],
        ["stats", "region"] => &["start_key", "end_key"],
        ["operators", "records"] => &["from"],
        ["schedulers"] => &["status"],
        _ => &[],
    }
}

fn get(api: &Api, parts: &[&str], query: &Query) -> Page {
    match parts {
        [""] => Ok(catalogue::all()),
        ["version"] => Ok(json!({ "version": env!("CARGO_PKG_VERSION") })),
        ["members"] => Ok(members_page(api)),
        ["leader"] => Ok(members_page(api)["leader"].take()),
        ["health"] => Ok(health(api)),
        ["status"] => status(api),
        ["stores"] => stores(api, query),
        ["stores", "limit"] => store_settings::limits(api),
        ["store", id] => store(api, number(id)?),
        ["store", id, "limit"] => store_settings::limit(api, number(id)?),
        ["stats", "region"] => regions::stats(api, query),
        ["regions"] => regions::all(api, query),
        ["regions", "key"] => regions::from_key(api, query),
        ["regions", "store", id] => regions::of_store(api, number(id)?, query),
        ["regions", "check", what] => regions::check(api, what, query),
        ["region", "id", id] | ["regions", "id", id] => regions::one(api, number(id)?),
        ["region", "key", key] => regions::at(api, &unescaped(key)?),
        ["hotspot", "regions", "read"] => hotspot::regions(api, hotspot::Kind::Read),
        ["hotspot", "regions", "write"] => hotspot::regions(api, hotspot::Kind::Write),
        ["hotspot", "stores"] => hotspot::stores(api),
        ["hotspot"] => Ok(json!({
            "read": hotspot::regions(api, hotspot::Kind::Read)?,
            "write": hotspot::regions(api, hotspot::Kind::Write)?,
            "stores": hotspot::stores(api)?,
        })),
        ["operators"] => operators::under_way(api),
        ["operators", "records"] => operators::records(api, query),
        ["operators", region] => operators::of_region(api, number(region)?),
        ["config"] => config(api),
        ["config", "replicate"] => Ok(config(api)?["replication"].take()),
        ["config", "schedule"] => Ok(api.leader()?.policy()?.to_json()),
        ["schedulers"] => schedulers::list(api, query),
        ["explain", "region", id] => explain_region(api, number(id)?),
        ["explain", "store", id] => explain_store(api, number(id)?),
        ["explain", "removal", id] => explain_removal(api, number(id)?),
        _ => Err(catalogue::no_such_page(&Method::GET, parts)),
    }
}

async fn change(api: &Api, method: &Method, parts: &[&str], query: &Query, request: &Request) -> Page {
    let body = || body_of(request);
    match (method, parts) {
        (&Method::POST, ["members"]) => members::add(api, body()?).await,
        (&Method::DELETE, ["members", "id", id]) => members::remove(api, number(id)?).await,
        (&Method::POST, ["leader", "resign"]) => leadership::resign(api),
        (&Method::POST, ["leader", "transfer", name]) => leadership::transfer(api, &name_of(name)?),
        (&Method::DELETE, ["store", id]) => remove_store(api, number(id)?).await,
        (&Method::POST, ["store", id, "state"]) => set_state(api, number(id)?, query).await,
        (&Method::POST, ["store", id, "weight"]) => store_settings::set_weight(api, number(id)?, &body()?).await,
        (&Method::POST, ["store", id, "limit"]) => store_settings::set_limit(api, number(id)?, &body()?).await,
        (&Method::DELETE, ["store", id, "limit"]) => store_settings::clear_limit(api, number(id)?).await,
        (&Method::POST, ["store", id, "label"]) => store_settings::set_labels(api, number(id)?, &body()?).await,
        (&Method::DELETE, ["store", id, "label", name]) => {
            store_settings::remove_label(api, number(id)?, &name_of(name)?).await
        }
        (&Method::POST, ["store", id, "moved"]) => store_settings::moved(api, number(id)?).await,
        (&Method::POST, ["operators"]) => operators::add(api, &body()?).await,
        (&Method::DELETE, ["operators", region]) => operators::cancel(api, number(region)?),
        (&Method::POST, ["config", "schedule"]) => set_policy(api, body()?).await,
        (&Method::POST, ["schedulers"]) => schedulers::add(api, &body()?).await,
        (&Method::POST, ["schedulers", name]) => schedulers::pause(api, &name_of(name)?, &body()?).await,
        (&Method::DELETE, ["schedulers", name]) => schedulers::remove(api, &name_of(name)?).await,
        (&Method::POST, ["explain", "policy"]) => explain_policy(api, &body()?),
        _ => Err(catalogue::no_such_page(method, parts)),
    }
}

fn name_of(part: &str) -> Result<String, PageError> {
    String::from_utf8(unescaped(part)?).map_err(|_| bad_request("a name is text"))
}

fn number(text: &str) -> Result<u64, PageError> {
    text.parse().map_err(|_| bad_request(format!("`{}` is no id: a number is wanted", text.escape_debug())))
}

/// What any member can tell while there is no leader to ask.
pub fn without_a_leader(api: &Api, request: &Request) -> Option<Value> {
    match (&request.method, request.path.as_str()) {
        (&Method::GET, "health") => Some(health(api)),
        (&Method::GET, "members") => Some(members_page(api)),
        _ => None,
    }
}

fn members_page(api: &Api) -> Value {
    let (status, membership) = (api.handle.status(), api.handle.membership());
    let member = |member: &consensus::Member| {
        json!({
            "name": member.name,
            "member_id": member.node.0,
            "peer_urls": member.peer_urls,
            "client_urls": member.client_urls,
            "learner": !membership.voters.contains(&member.peer),
        })
    };
    let all: Vec<Value> = membership.members.values().map(member).collect();
    let leader = membership.members.get(&status.leader_node).map(member);
    json!({ "members": all, "leader": leader, "etcd_leader": leader })
}

fn health(api: &Api) -> Value {
    let (status, membership) = (api.handle.status(), api.handle.membership());
    let heard = |peer| status.followers.iter().any(|(follower, _, heard)| *follower == peer && *heard);
    let one = |member: &consensus::Member| {
        // Without a leader none of them is of use.
        let healthy = !status.leader.is_none() && (member.peer == status.peer || heard(member.peer));
        json!({ "name": member.name, "member_id": member.node.0, "client_urls": member.client_urls, "health": healthy })
    };
    membership.members.values().map(one).collect()
}

/// Voting members that do not answer this one, which leads.
fn silent_members(api: &Api) -> Vec<String> {
    let (status, membership) = (api.handle.status(), api.handle.membership());
    if api.handle.now().since(status.led_since) < MEMBERS_ANSWER_WITHIN {
        return Vec::new();
    }
    let heard = |peer| status.followers.iter().any(|(follower, _, heard)| *follower == peer && *heard);
    let voters = membership.members.values().filter(|member| membership.voters.contains(&member.peer));
    let silent = voters.filter(|member| member.peer != status.peer && !heard(member.peer));
    silent.map(name_of_member).collect()
}

/// One that was never started has none of its own.
fn name_of_member(member: &consensus::Member) -> String {
    match member.name.as_str() {
        "" => format!("{} ({})", member.node, member.peer_urls.join(", ")),
        name => name.to_owned(),
    }
}

/// The policy; what it says of replicas is there as well under the names that tools look for.
fn config(api: &Api) -> Page {
    let policy = api.leader()?.policy()?;
    let replication = json!({
        "max-replicas": policy.max_replicas,
        "location-labels": policy.location_labels.join(","),
    });
    Ok(json!({ "schedule": policy.to_json(), "replication": replication }))
}

fn status(api: &Api) -> Page {
    let term = api.leader()?.term()?;
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cluster_id": cluster_of(api, &api.leader()?.records().read()).0,
        "leader": api.handle.status().leader_node.0,
        "term": api.handle.status().term,
        "plans": term.view.is_ready(&term.policy, api.handle.now()),
    }))
}

/// The id that the stores know the cluster by.
fn cluster_of(api: &Api, records: &Records) -> base::ClusterId {
    records.cluster.unwrap_or_else(|| api.handle.cluster())
}

fn store_value(record: &pb::Store, term: &Term, round: &Round<'_>, now: base::Time) -> Value {
    let Some(scored) = round.store(NodeId(record.id)) else { return Value::Null };
    let store = scored.store;
    let state = store.state_name(now, &term.policy);
    let silent = match store.health(now, &term.policy) {
        Health::Connected => 0,
        Health::Disconnected(silent) | Health::Down(silent) => silent.as_secs(),
    };
    // Of a disk that this leader has not heard of: never zero, because tools divide by it, and not full.
    let (capacity, available) = match store.report.capacity_bytes {
        0 => (1, 1),
        capacity => (capacity, store.report.available_bytes),
    };
    let unix_s_of = |time: base::Time| unix_s_ago(now.since(time));
    let heard_unix_s = store.last_heard().map(unix_s_of);
    let uptime = store.report.uptime;
    let started_unix_s = heard_unix_s.map(|heard| heard.saturating_sub(uptime.as_secs()));
    let date = |unix_s: u64| Moment(unix_s).rfc3339();
    let labels: Vec<Value> =
        labels_of(record).iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    json!({
        "id": record.id,
        "state": state,
        "reason": reason(state, silent),
        "silent_seconds": silent,
        // Since this leader leads, at the earliest.
        "since_unix_seconds": unix_s_of(term.in_state_since(store, now)),
        "last_heartbeat_unix_seconds": heard_unix_s,
        // As it said when it was last heard of.
        "started_unix_seconds": started_unix_s,
        "uptime_seconds": uptime.as_secs(),
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
        "leader_weight": store.meta.leader_weight,
        "region_weight": store.meta.region_weight,
        "rates": hotspot::store_rates(store.report.rates),
        "full": store.report.full,
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
            "leader_weight": store.meta.leader_weight,
            "leader_score": scored.leader_score(0),
            "leader_size": store.led_bytes() >> 20,
            "region_count": store.region_count(),
            "region_weight": store.meta.region_weight,
            "region_score": scored.region_score(0, 0) / MIB as f64,
            "region_size": store.region_bytes() >> 20,
            "used_size": store.region_bytes(),
            "pending_peer_count": store.pending_peers(),
            "sending_snap_count": store.report.sending_snapshots,
            "is_busy": store.report.slow,
            "start_ts": started_unix_s.map(date),
            "last_heartbeat_ts": heard_unix_s.map(date),
            "uptime": format_span(uptime),
        },
    })
}

pub fn reason(state: &str, silent: u64) -> String {
    match state {
        "Up" => String::new(),
        "Disconnected" => format!("not heard of for {silent} s"),
        "Down" => format!("not heard of for {silent} s; its replicas are made anew on other stores"),
        "Offline" => "it is being emptied, to be removed".to_owned(),
        _ => "it was removed".to_owned(),
    }
}

/// Those that are not removed; `state=`: those of a state, as they show it.
fn stores(api: &Api, query: &Query) -> Page {
    const STATES: [&str; 5] = ["Up", "Disconnected", "Down", "Offline", "Tombstone"];
    let wanted = query.text("state")?;
    if wanted.as_ref().is_some_and(|wanted| !STATES.contains(&wanted.as_str())) {
        return Err(bad_request(format!("state= takes one of {}", STATES.join(", "))));
    }
    let leader = api.leader()?;
    let (term, records, now) = (leader.term()?, leader.records().read(), leader.now());
    let round = Round::new(&term.view, &term.policy, now, 0);
    let values = records.stores.values().map(|store| store_value(store, &term, &round, now));
    let is_wanted = |value: &Value| match &wanted {
        Some(state) => value["state"] == state.as_str(),
        None => value.is_object() && value["state"] != "Tombstone",
    };
    let all: Vec<Value> = values.filter(is_wanted).collect();
    let mut page = json!({ "count": all.len(), "stores": all });
    page["refused"] = refused(api, now, |_| true);
    Ok(page)
}

/// Those that were not let in lately.
fn refused(api: &Api, now: base::Time, is_wanted: impl Fn(&Refusal) -> bool) -> Value {
    let value = |refusal: Refusal| {
        json!({
            "store_id": refusal.store_id,
            "incarnation": format!("{:016x}", refusal.incarnation),
            "address": refusal.address,
            "reason": refusal.why,
            "seconds_ago": now.since(refusal.at).as_secs(),
        })
    };
    api.counters.refusals.list(now).into_iter().filter(is_wanted).map(value).collect()
}

fn store(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, records) = (leader.term()?, leader.records().read());
    let record = records.stores.get(&id).ok_or_else(|| not_found(format!("there is no store {id}")))?;
    if record.state() == pb::StoreState::Tombstone {
        return Err(PageError::Http(StatusCode::GONE, format!("store {id} was removed")));
    }
    let now = leader.now();
    let mut page = store_value(record, &term, &Round::new(&term.view, &term.policy, now, 0), now);
    if page.is_null() {
        return Err(not_found(format!("there is no store {id}")));
    }
    // Who wants its id, or has its folder.
    page["refused"] = refused(api, now, |refusal| refusal.store_id == id || refusal.incarnation == record.incarnation);
    Ok(page)
}

/// Begins to empty a store. Refused when the others could not take what it holds.
async fn remove_store(api: &Api, id: u64) -> Page {
    api.leader()?.remove_store(id).await?.map_err(|why| {
        let code = match why {
            RemovalRefused::Unknown(_) => StatusCode::NOT_FOUND,
            RemovalRefused::Tombstone(_) => StatusCode::GONE,
            RemovalRefused::TooFewStores { .. } => StatusCode::CONFLICT,
        };
        PageError::Http(code, why.to_string())
    })?;
    Ok(json!({ "message": format!("store {id} is being emptied; it is removed when nothing is left on it") }))
}

async fn set_state(api: &Api, id: u64, query: &Query) -> Page {
    let state = match query.text("state")?.as_deref() {
        Some("Up") => pb::StoreState::Up,
        Some("Offline") => return remove_store(api, id).await,
        _ => return Err(bad_request("state=Up or state=Offline is wanted")),
    };
    api.leader()?.set_state(id, state).await?;
    Ok(json!({ "message": format!("store {id} is up again") }))
}

async fn set_policy(api: &Api, patch: Value) -> Page {
    let merged = |policy: Policy| policy.merged(&patch).map_err(|why| bad_request(why.to_string()));
    Ok(api.leader()?.change_policy(merged).await?.to_json())
}

/// The value, and in its field `text` the same for people.
fn with_text(explained: &(impl serde::Serialize + std::fmt::Display)) -> Page {
    let mut value = serde_json::to_value(explained).map_err(|error| Status::internal(error.to_string()))?;
    value["text"] = explained.to_string().into();
    Ok(value)
}

fn explain_region(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let explained = crate::explain::region::explain(&term.view, &term.policy, GroupId(id), now);
    let explained = explained.ok_or_else(|| not_found(format!("there is no region {id}")))?;
    with_text(&explained)
}

fn explain_store(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let explained = crate::explain::store::explain(&term.view, &term.policy, NodeId(id), now);
    let explained = explained.ok_or_else(|| not_found(format!("there is no store {id}")))?;
    with_text(&explained)
}

/// What removing a store would mean; nothing is changed.
fn explain_removal(api: &Api, id: u64) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let forecast = forecast::remove_store(&term.view, &term.policy, NodeId(id), now);
    let forecast = forecast.ok_or_else(|| not_found(format!("there is no store {id}")))?;
    with_text(&forecast)
}

/// What a change of the policy would mean; nothing is changed.
fn explain_policy(api: &Api, patch: &Value) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let merged = term.policy.merged(patch).map_err(|why| bad_request(why.to_string()))?;
    let forecast = forecast::change_policy(&term.view, &term.policy, &merged, now);
    with_text(&forecast)
}

impl Api {
    /// Everything on one page, for `flaredb-client cluster-status`.
    pub(super) fn cluster_status(&self) -> Result<pb::ClusterStatusResponse, Status> {
        let leader = self.leader()?;
        let (term, records, now) = (leader.term()?, leader.records().read(), leader.now());
        let (status, membership) = (self.handle.status(), self.handle.membership());
        let members = membership.members.values().map(|member| pb::Member {
            id: member.node.0,
            name: name_of_member(member),
            client_urls: member.client_urls.clone(),
            leader: member.node == status.leader_node,
            learner: !membership.voters.contains(&member.peer),
        });
        let silent = silent_members(self);
        let mut stores = Vec::new();
        for record in records.stores.values().filter(|store| store.state() != pb::StoreState::Tombstone) {
            let Some(store) = term.view.store(NodeId(record.id)) else { continue };
            let state = store.state_name(now, &term.policy);
            let silent_seconds = match store.health(now, &term.policy) {
                _ if !store.reported => None,
                Health::Connected => Some(0),
                Health::Disconnected(silent) | Health::Down(silent) => Some(silent.as_secs()),
            };
            stores.push(pb::StoreStatus {
                store: Some(record.clone()),
                state: state.to_owned(),
                stats: Some(pb::StoreStats {
                    capacity_bytes: store.report.capacity_bytes,
                    available_bytes: store.report.available_bytes,
                    region_count: store.region_count() as u64,
                    leader_count: store.leader_count() as u64,
                    slow: store.report.slow,
                    full: store.report.full,
                    ..pb::StoreStats::default()
                }),
                silent_seconds,
            });
        }
        let sum = |of: fn(&Region) -> usize| term.view.regions().map(of).sum::<usize>() as u64;
        let refused = self.counters.refusals.list(now).into_iter().map(|refusal| pb::RefusedStore {
            store_id: refusal.store_id,
            incarnation: refusal.incarnation,
            client_url: refusal.address,
            why: refusal.why,
            seconds_ago: now.since(refusal.at).as_secs(),
        });
        Ok(pb::ClusterStatusResponse {
            cluster_id: cluster_of(self, &records).0,
            members: members.collect(),
            stores,
            region_count: term.view.region_count() as u64,
            pending_peers: sum(|region| region.pending.len()),
            down_peers: sum(|region| region.down.len()),
            operators: term.view.flights().count() as u64,
            problems: verdict::problems(&term, &records, &silent, now),
            refused: refused.collect(),
        })
    }
}
