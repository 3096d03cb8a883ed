//! Members of the placement driver come and go: `POST members` and `DELETE members/id/{id}`.
//!
//! A member that is added learns first, and votes by itself once it has caught up.

use ::http::StatusCode;
use base::NodeId;
use consensus::{Member, MembershipChange, Refusal};
use node::transport::bare_address;
use serde_json::{Value, json};

use super::Api;
use super::http::{PageError, bad_request, not_found};
use crate::leader::of_refusal;

const HOW: &str = r#"a body like {"member_id": 2, "peer_urls": ["10.0.0.2:2380"]} is wanted"#;

/// `{"member_id": 2, "peer_urls": ["HOST:PORT"]}`
pub async fn add(api: &Api, body: Value) -> Result<Value, PageError> {
    let id = body["member_id"].as_u64().filter(|id| *id > 0).ok_or_else(|| bad_request(HOW))?;
    let urls = body["peer_urls"].as_array().cloned().unwrap_or_default();
    let urls: Option<Vec<String>> =
        urls.iter().map(|url| url.as_str().filter(|url| names_a_port(url)).map(str::to_owned)).collect();
    let urls = urls.filter(|urls| !urls.is_empty() && urls.len() <= consensus::membership::URLS_MAX);
    let urls = urls.ok_or_else(|| bad_request(HOW))?;
    let member = Member { node: NodeId(id), peer_urls: urls, promote_when_ready: true, ..Member::default() };
    api.handle.change(MembershipChange::Add(member)).await.map_err(refused)?;
    Ok(json!({ "message": format!(
        "member {id} is added; start it with an empty data folder and --node-id {id} --bootstrap false --initial-members {}; it \
         votes once it has caught up",
        initial_members(api)
    ) }))
}

pub async fn remove(api: &Api, id: u64) -> Result<Value, PageError> {
    if !api.handle.membership().members.contains_key(&NodeId(id)) {
        return Err(not_found(format!("there is no member {id}")));
    }
    api.handle.change(MembershipChange::Remove { node: NodeId(id) }).await.map_err(refused)?;
    Ok(json!({ "message": format!("member {id} is removed; stop it") }))
}

/// All members, as the flag of another one names them.
fn initial_members(api: &Api) -> String {
    let membership = api.handle.membership();
    let members = membership.members.values();
    let named = members
        .filter_map(|member| member.peer_urls.first().map(|url| format!("{}={}", member.node, bare_address(url))));
    named.collect::<Vec<_>>().join(",")
}

/// What cannot be done as things are is no failure of this member.
fn refused(why: Refusal) -> PageError {
    match why {
        Refusal::DuplicateMember
        | Refusal::ChangeInFlight
        | Refusal::WouldLoseQuorum
        | Refusal::TooManyLearners
        | Refusal::LearnerNotReady => PageError::Http(StatusCode::CONFLICT, why.to_string()),
        Refusal::UnknownMember => not_found(why.to_string()),
        why => of_refusal(why).into(),
    }
}

/// `HOST:PORT`, with or without a scheme.
fn names_a_port(url: &str) -> bool {
    let printable =
        url.bytes().all(|byte| byte.is_ascii_graphic()) && url.len() <= consensus::membership::TEXT_BYTES_MAX;
    let named =
        bare_address(url).rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    printable && named.is_some()
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_name_a_port() {
        let good = ["127.0.0.1:2380", "http://pd2:2380"].map(super::names_a_port);
        let bad = ["127.0.0.1", ":2380", "pd2:port", "p d:2380"].map(super::names_a_port);
        assert_eq!((good, bad), ([true; 2], [false; 4]));
    }
}
