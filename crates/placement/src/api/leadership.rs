//! `leader/…`: the placement driver's own leadership, handed over on request.
//!
//! The answer goes out first: one that another member has passed on comes back by a way that ends with the leadership.

use std::time::Duration;

use ::http::StatusCode;
use base::NodeId;
use serde_json::json;

use super::Api;
use super::http::{PageError, not_found};
use super::pages::Page;

/// By then an answer is on its way.
const ANSWER_WITHIN: Duration = Duration::from_millis(100);

/// To whoever is furthest.
pub fn resign(api: &Api) -> Page {
    if api.handle.membership().members.len() < 2 {
        let why = "there is no other member of the placement driver to lead";
        return Err(PageError::Http(StatusCode::CONFLICT, why.to_owned()));
    }
    hand_over(api, None)
}

/// To a member, by its name or its number.
pub fn transfer(api: &Api, name: &str) -> Page {
    let membership = api.handle.membership();
    let all = membership.members.values();
    let found = all.clone().find(|member| member.name == name || member.node.0.to_string() == name);
    let Some(member) = found else {
        let known: Vec<String> = all.map(|member| format!("{} ({})", member.name, member.node)).collect();
        return Err(not_found(format!("there is no member `{}`: {}", name.escape_debug(), known.join(", "))));
    };
    if member.node == api.handle.status().leader_node {
        return Ok(json!({ "message": format!("{} leads already", member.name) }));
    }
    let heard = api.handle.status().followers.iter().any(|(peer, _, heard)| *peer == member.peer && *heard);
    if !heard {
        let why = format!("{} does not answer the leader: it could not lead", member.name);
        return Err(PageError::Http(StatusCode::CONFLICT, why));
    }
    hand_over(api, Some(member.node))
}

fn hand_over(api: &Api, to: Option<NodeId>) -> Page {
    let handle = api.handle.clone();
    tokio::spawn(async move {
        tokio::time::sleep(ANSWER_WITHIN).await;
        if let Err(why) = handle.transfer(to).await {
            tracing::warn!(target: "placement_api", "Leadership was not handed over, why={why} code=CF8005");
        }
    });
    let to = to.map_or_else(|| "another member".to_owned(), |to| format!("member {to}"));
    Ok(json!({ "message": format!("leadership is being handed over to {to}") }))
}
