//! `leader/…`: the placement driver's own leadership, handed over on request.

use ::http::StatusCode;
use base::NodeId;
use serde_json::json;

use super::Api;
use super::http::{PageError, not_found};
use super::pages::Page;
use crate::leader::of_refusal;

/// To whoever is furthest.
pub async fn resign(api: &Api) -> Page {
    if api.handle.membership().members.len() < 2 {
        let why = "there is no other member of the placement driver to lead";
        return Err(PageError::Http(StatusCode::CONFLICT, why.to_owned()));
    }
    hand_over(api, None).await
}

/// To a member, by its name or its number.
pub async fn transfer(api: &Api, name: &str) -> Page {
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
    hand_over(api, Some(member.node)).await
}

async fn hand_over(api: &Api, to: Option<NodeId>) -> Page {
    api.handle.transfer(to).await.map_err(of_refusal)?;
    let to = to.map_or_else(|| "another member".to_owned(), |to| format!("member {to}"));
    Ok(json!({ "message": format!("leadership is handed over to {to}") }))
}
