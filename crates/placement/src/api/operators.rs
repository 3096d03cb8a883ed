//! `operators`: those under way, those that ended, and those that people ask for or call off.
//!
//! Bodies, as PD's users know them; `name` says what is wanted:
//! ```text
//!  {"name": "transfer-leader", "region_id": 1, "to_store_id": 2}
//!  {"name": "transfer-peer",   "region_id": 1, "from_store_id": 2, "to_store_id": 4}        also: move-peer
//!  {"name": "add-peer",        "region_id": 1, "store_id": 4}
//!  {"name": "remove-peer",     "region_id": 1, "store_id": 2}
//!  {"name": "split-region",    "region_id": 1, "keys": ["6B657935"]}                        hexadecimal, as regions show them
//!  {"name": "merge-region",    "source_region_id": 1, "target_region_id": 2}
//! ```

use ::http::StatusCode;
use base::{GroupId, NodeId};
use serde_json::{Value, json};

use super::Api;
use super::http::{PageError, bad_request, not_found};
use super::pages::Page;
use super::query::Query;
use crate::model::Key;
use crate::plan::Round;
use crate::plan::admin::{self, Refused, Wanted};
use crate::term::{Ended, unix_s};
use crate::view::InFlight;

const NAMES: &str = "transfer-leader, transfer-peer, add-peer, remove-peer, split-region, merge-region";

fn flight_value(flight: &InFlight, now: base::Time) -> Value {
    let operator = &flight.operator;
    let seconds = flight.took().iter().map(std::time::Duration::as_secs_f64).collect::<Vec<_>>();
    json!({
        "id": flight.id,
        "region_id": operator.region.0,
        "cause": operator.cause.name(),
        "reason": operator.reason,
        "rejected": operator.rejected,
        "began_unix_seconds": unix_s().saturating_sub(now.since(flight.started).as_secs()),
        "steps": operator.steps.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "step": flight.step,
        "step_seconds": seconds,
        "seconds": now.since(flight.started).as_secs(),
        "seconds_without_progress": now.since(flight.progressed).as_secs(),
    })
}

pub fn under_way(api: &Api) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    Ok(term.view.flights().map(|flight| flight_value(flight, now)).collect())
}

pub fn of_region(api: &Api, region: u64) -> Page {
    let leader = api.leader()?;
    let (term, now) = (leader.term()?, leader.now());
    let flight = term.view.flight(GroupId(region)).ok_or_else(|| none_under_way(region))?;
    Ok(flight_value(flight, now))
}

fn none_under_way(region: u64) -> PageError {
    not_found(format!("no operator on region {region} is under way; `operators` lists those that are"))
}

/// Operators that ended, the last one first. `from`: seconds since 1970.
pub fn records(api: &Api, query: &Query) -> Page {
    let from = query.number("from", "seconds since 1970")?.unwrap_or(0);
    let leader = api.leader()?;
    let now = leader.now();
    let value = |ended: &Ended| {
        let mut value = flight_value(&ended.flight, now);
        if let Value::Object(fields) = &mut value {
            fields.remove("seconds_without_progress");
            fields.insert("seconds".to_owned(), json!(ended.took.as_secs_f64()));
            fields.insert(
                "began_unix_seconds".to_owned(),
                json!(ended.ended_unix_s.saturating_sub(ended.took.as_secs())),
            );
            fields.insert("ended_unix_seconds".to_owned(), json!(ended.ended_unix_s));
            fields.insert("outcome".to_owned(), json!(ended.outcome));
        }
        value
    };
    Ok(leader.term()?.ended().take_while(|ended| ended.ended_unix_s >= from).map(value).collect())
}

pub async fn add(api: &Api, body: &Value) -> Page {
    let (region, wanted) = understand(body)?;
    let leader = api.leader()?;
    let operator = {
        let (term, now) = (leader.term()?, leader.now());
        let region =
            term.view.region(GroupId(region)).ok_or_else(|| not_found(format!("there is no region {region}")))?;
        let mut round = Round::new(&term.view, &term.policy, now, 0);
        admin::operator(&mut round, region, &wanted).map_err(|why| {
            let code = match why {
                Refused::UnknownStore(_) | Refused::UnknownRegion(_) | Refused::NoReplica { .. } => {
                    StatusCode::NOT_FOUND
                }
                Refused::Keys => StatusCode::BAD_REQUEST,
                Refused::LeadsAlready(_) | Refused::Unfit { .. } | Refused::Apart { .. } | Refused::Blocked(_) => {
                    StatusCode::CONFLICT
                }
            };
            PageError::Http(code, why.to_string())
        })?
    };
    let shown = operator.to_string();
    match leader.begin(operator).await? {
        Some(id) => Ok(json!({ "id": id, "message": format!("begun: {shown}") })),
        None => Err(PageError::Http(StatusCode::CONFLICT, format!("region {region} has just changed; try again"))),
    }
}

fn understand(body: &Value) -> Result<(u64, Wanted), PageError> {
    let name = body["name"].as_str().ok_or_else(|| bad_request(format!("`name` is one of {NAMES}")))?;
    let number =
        |field: &str| body[field].as_u64().ok_or_else(|| bad_request(format!("{name} takes `{field}`, a number")));
    let store = |field: &str| number(field).map(NodeId);
    let wanted = match name {
        "transfer-leader" => Wanted::TransferLeader { to: store("to_store_id")? },
        "transfer-peer" | "move-peer" => Wanted::MovePeer { from: store("from_store_id")?, to: store("to_store_id")? },
        "add-peer" => Wanted::AddPeer { to: store("store_id")? },
        "remove-peer" => Wanted::RemovePeer { from: store("store_id")? },
        "split-region" => Wanted::Split { keys: keys(&body["keys"])? },
        "merge-region" => {
            let wanted = Wanted::Merge { into: GroupId(number("target_region_id")?) };
            return Ok((number("source_region_id")?, wanted));
        }
        other => return Err(bad_request(format!("`{}` is no operator: {NAMES}", other.escape_debug()))),
    };
    Ok((number("region_id")?, wanted))
}

fn keys(list: &Value) -> Result<Vec<Key>, PageError> {
    let wanted = || bad_request("split-region takes `keys`, a list of hexadecimal keys such as [\"6B657935\"]");
    list.as_array().ok_or_else(wanted)?.iter().map(|key| key.as_str().and_then(unhex).ok_or_else(wanted)).collect()
}

fn unhex(text: &str) -> Option<Key> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

pub fn cancel(api: &Api, region: u64) -> Page {
    let flight = api.leader()?.cancel(GroupId(region))?.ok_or_else(|| none_under_way(region))?;
    let message = format!("cancelled: {}; a step that was handed out already may still be done", flight.operator);
    Ok(json!({ "id": flight.id, "message": message }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: Value) -> String {
        match understand(&body) {
            Err(PageError::Http(_, why)) => why,
            Err(PageError::Status(status)) => status.message.into_owned(),
            Ok(_) => String::new(),
        }
    }

    #[test]
    fn bodies_say_what_they_lack() {
        let split = json!({"name": "split-region", "region_id": 3, "keys": ["6B", "6c00"]});
        let keys: Vec<Key> = vec![b"k"[..].into(), b"l\0"[..].into()];
        assert_eq!(understand(&split).ok(), Some((3, Wanted::Split { keys })));
        let moved = json!({"name": "move-peer", "region_id": 3, "from_store_id": 1, "to_store_id": 2});
        assert_eq!(understand(&moved).ok(), Some((3, Wanted::MovePeer { from: NodeId(1), to: NodeId(2) })));
        let merge = json!({"name": "merge-region", "source_region_id": 3, "target_region_id": 4});
        assert_eq!(understand(&merge).ok(), Some((3, Wanted::Merge { into: GroupId(4) })));
        let halves = json!({"name": "merge-region", "target_region_id": 4});
        assert!(refused(halves).contains("merge-region takes `source_region_id`, a number"));
        assert!(refused(json!([])).contains("`name` is one of transfer-leader"));
        assert!(
            refused(json!({"name": "shuffle", "region_id": 1})).contains("`shuffle` is no operator: transfer-leader")
        );
        assert!(refused(json!({"name": "add-peer", "region_id": 1})).contains("add-peer takes `store_id`, a number"));
        assert!(refused(json!({"name": "add-peer", "store_id": 1})).contains("add-peer takes `region_id`"));
        for keys in [json!(["6"]), json!(["xx"]), json!("6B"), json!([7])] {
            let body = json!({"name": "split-region", "region_id": 3, "keys": keys});
            assert!(refused(body).contains("a list of hexadecimal keys"));
        }
    }
}
