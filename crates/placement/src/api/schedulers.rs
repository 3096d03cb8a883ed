//! `schedulers`: which are on, turned on and off, paused for a while. What is said here lies in the replicated policy
//! (`schedulers`, `paused-schedulers`, `evict-leader-stores`), so it outlives the leader of the placement driver.
//!
//! `evict-leader-scheduler` is one per store: it is on while any store gives up its leaders.

use std::collections::BTreeSet;

use ::http::StatusCode;
use base::NodeId;
use serde_json::{Value, json};

use super::Api;
use super::http::{PageError, bad_request, not_found};
use super::pages::Page;
use super::query::Query;
use crate::policy::{EVICT_LEADER, Policy, Scheduler};
use crate::term::unix_s;
use crate::view::StoreState;

const PAUSE_S_MAX: u64 = 30 * 24 * 3600;

/// A scheduler by its name, and for the one that is per store, perhaps the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Scheduler(Scheduler),
    EvictLeader(Option<u64>),
}

fn named(name: &str) -> Result<Named, PageError> {
    if let Some(scheduler) = Scheduler::named(name) {
        return Ok(Named::Scheduler(scheduler));
    }
    let short = EVICT_LEADER.trim_end_matches("-scheduler");
    if let Some(rest) = name.strip_prefix(EVICT_LEADER).or_else(|| name.strip_prefix(short)) {
        let store = rest.strip_prefix('-').map(str::parse);
        match (rest, store) {
            ("", _) => return Ok(Named::EvictLeader(None)),
            (_, Some(Ok(store))) => return Ok(Named::EvictLeader(Some(store))),
            _ => {}
        }
    }
    let known: Vec<&str> = Scheduler::ALL.iter().map(|scheduler| scheduler.name()).chain([EVICT_LEADER]).collect();
    Err(not_found(format!("there is no scheduler `{}`: {}", name.escape_debug(), known.join(", "))))
}

/// Names of those that are on; `status=paused`: of those of them that rest; `status=disabled`: of those that are off.
pub fn list(api: &Api, query: &Query) -> Page {
    let policy = api.leader()?.policy()?;
    let on = |scheduler: &Scheduler| policy.schedulers.contains(scheduler);
    let names = |all: Vec<Scheduler>| all.iter().map(|scheduler| scheduler.name()).collect::<Vec<_>>();
    let names = match query.text("status")?.as_deref() {
        None => {
            let mut names = names(policy.schedulers.iter().copied().collect());
            names.extend((!policy.evict_leader_stores.is_empty()).then_some(EVICT_LEADER));
            names
        }
        Some("paused") => names(policy.paused_schedulers.keys().copied().filter(on).collect()),
        Some("disabled") => names(Scheduler::ALL.into_iter().filter(|scheduler| !on(scheduler)).collect()),
        _ => return Err(bad_request("status=paused or status=disabled is possible")),
    };
    Ok(names.into())
}

/// `{"name": "balance-leader-scheduler"}`, `{"name": "evict-leader-scheduler", "store_id": 1}`
pub async fn add(api: &Api, body: &Value) -> Page {
    let name = body["name"].as_str().ok_or_else(|| {
        bad_request("{\"name\": \"balance-leader-scheduler\"} is wanted; evict-leader-scheduler takes a `store_id` too")
    })?;
    let which = match named(name)? {
        Named::EvictLeader(None) => {
            let store = body["store_id"].as_u64();
            Named::EvictLeader(Some(store.ok_or_else(|| bad_request(format!("{EVICT_LEADER} takes a `store_id`")))?))
        }
        other => other,
    };
    if let Named::EvictLeader(Some(store)) = which {
        check_store(api, store)?;
    }
    change(api, |policy| {
        match which {
            Named::Scheduler(scheduler) => drop(policy.schedulers.insert(scheduler)),
            Named::EvictLeader(store) => policy.evict_leader_stores.extend(store),
        }
        Ok(())
    })
    .await?;
    Ok(json!({ "message": format!("{name} is on") }))
}

pub async fn remove(api: &Api, name: &str) -> Page {
    let which = named(name)?;
    let is_off = || not_found(format!("{name} is off already; `schedulers` lists those that are on"));
    change(api, |policy| {
        let was_on = match which {
            Named::Scheduler(scheduler) => {
                policy.paused_schedulers.remove(&scheduler);
                policy.schedulers.remove(&scheduler)
            }
            Named::EvictLeader(None) => !std::mem::take(&mut policy.evict_leader_stores).is_empty(),
            Named::EvictLeader(Some(store)) => policy.evict_leader_stores.remove(&store),
        };
        if was_on { Ok(()) } else { Err(is_off()) }
    })
    .await?;
    Ok(json!({ "message": format!("{name} is off") }))
}

/// `{"delay": 600}`: it rests for so many seconds; zero: it goes on. The name `all` means all that are on.
pub async fn pause(api: &Api, name: &str, body: &Value) -> Page {
    let delay = body["delay"].as_u64().filter(|delay| *delay <= PAUSE_S_MAX);
    let delay = delay
        .ok_or_else(|| bad_request(format!("{{\"delay\": SECONDS}} is wanted, 0 to go on, {PAUSE_S_MAX} at most")))?;
    let one = match name {
        "all" => None,
        name => match named(name)? {
            Named::Scheduler(scheduler) => Some(scheduler),
            Named::EvictLeader(_) => {
                let why = format!("{EVICT_LEADER} cannot be paused: DELETE it, and POST it when it is to go on");
                return Err(PageError::Http(StatusCode::CONFLICT, why));
            }
        },
    };
    let until = unix_s() + delay;
    change(api, |policy| {
        let meant: BTreeSet<Scheduler> = match one {
            Some(scheduler) if !policy.schedulers.contains(&scheduler) => {
                return Err(PageError::Http(
                    StatusCode::CONFLICT,
                    format!("{scheduler} is off; POST it to schedulers"),
                ));
            }
            Some(scheduler) => [scheduler].into(),
            None => policy.schedulers.clone(),
        };
        for scheduler in meant {
            if delay == 0 {
                policy.paused_schedulers.remove(&scheduler);
            } else {
                policy.paused_schedulers.insert(scheduler, until);
            }
        }
        Ok(())
    })
    .await?;
    Ok(json!({
        "message": if delay == 0 { format!("{name}: goes on") } else { format!("{name}: paused for {delay} s") },
        "until_unix_seconds": if delay == 0 { Value::Null } else { until.into() },
    }))
}

async fn change(api: &Api, edit: impl Fn(&mut Policy) -> Result<(), PageError>) -> Result<(), PageError> {
    let edited = |mut policy: Policy| {
        edit(&mut policy)?;
        policy.validate().map_err(|why| bad_request(why.to_string()))?;
        Ok(policy)
    };
    api.leader()?.change_policy(edited).await.map(drop)
}

fn check_store(api: &Api, id: u64) -> Result<(), PageError> {
    let term = api.leader()?.term()?;
    let stands = |store: &&crate::Store| store.meta.state != StoreState::Tombstone;
    if term.view.store(NodeId(id)).is_some_and(|store| stands(&store)) {
        return Ok(());
    }
    let known: Vec<String> = term.view.stores().filter(stands).map(|store| store.id().to_string()).collect();
    Err(not_found(format!("there is no store {id}: {}", known.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_with_and_without_their_ends() {
        let of = |name: &str| named(name).ok();
        assert_eq!(of("balance-leader"), Some(Named::Scheduler(Scheduler::BalanceLeader)));
        assert_eq!(of("balance-leader-scheduler"), Some(Named::Scheduler(Scheduler::BalanceLeader)));
        assert_eq!(of("evict-leader-scheduler"), Some(Named::EvictLeader(None)));
        assert_eq!(of("evict-leader-scheduler-12"), Some(Named::EvictLeader(Some(12))));
        assert_eq!(of("evict-leader"), Some(Named::EvictLeader(None)));
        assert_eq!(of("evict-leader-12"), Some(Named::EvictLeader(Some(12))));
        for wrong in ["", "shuffle", "evict-leader-scheduler-", "evict-leader-scheduler-x", "evict-leader-schedulers"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }
}
