//! The placement driver's own members.

use std::time::{Duration, Instant};

use cli::endpoint;
use cli::failure::{Failure, Kind};
use cli::output::Output;
use serde_json::{Value, json};

use crate::args::Pd;
use crate::pd::{Pages, escaped};
use crate::show::{self, list, plain};

/// A member leads within a second or two of being asked to; an election takes as long.
const LEADS_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub async fn run(pages: &Pages<'_>, what: Pd, output: &mut Output) -> Result<(), Failure> {
    let page = match what {
        Pd::Members => {
            let (page, health) = (pages.get("members").await?, pages.get("health").await?);
            let row = |member: &Value| {
                let id = &member["member_id"];
                let healthy = list(&health).iter().any(|one| one["member_id"] == *id && one["health"] == true);
                let urls = |kind: &str| list(&member[kind]).iter().map(plain).collect::<Vec<_>>().join(",");
                // One that was never started is known by its Raft address alone.
                let began = member["name"] != "";
                let role = match () {
                    () if page["leader"]["member_id"] == *id => "leader",
                    () if member["learner"] == true => "learner",
                    () => "follower",
                };
                let health = match (began, healthy) {
                    (false, _) => "not started yet",
                    (true, true) => "healthy",
                    (true, false) => "silent",
                };
                vec![
                    plain(id),
                    if began { plain(&member["name"]) } else { "-".to_owned() },
                    if began { urls("client_urls") } else { urls("peer_urls") },
                    role.to_owned(),
                    health.to_owned(),
                ]
            };
            let rows = list(&page["members"]).iter().map(row).collect();
            return show::rows(output, &page, &["MEMBER", "NAME", "ADDRESS", "ROLE", "HEALTH"], rows);
        }
        Pd::Resign => hand_over(pages, "leader/resign", None).await?,
        Pd::Add { node_id, peer_url } => {
            let peer_url = endpoint::peer_url(&peer_url)?;
            pages.post("members", &json!({ "member_id": node_id, "peer_urls": [peer_url] })).await?
        }
        Pd::Remove { node_id } => pages.delete(&format!("members/id/{node_id}")).await?,
        Pd::Transfer { member } => {
            hand_over(pages, &format!("leader/transfer/{}", escaped(&member)), Some(&member)).await?
        }
    };
    show::text(output, &page)
}

/// Asks for another leader, and waits until there is one: `to`, by name or number, or anybody else. What is answered where nothing
/// has to change is passed on.
async fn hand_over(pages: &Pages<'_>, path: &str, to: Option<&str>) -> Result<Value, Failure> {
    let before = pages.get("leader").await?;
    let asked = pages.post(path, &Value::Null).await?;
    let is_wanted = |leader: &Value| match to {
        Some(wanted) => leader["name"] == wanted || wanted.parse::<u64>().is_ok_and(|id| leader["member_id"] == id),
        None => leader["member_id"].is_u64() && leader["member_id"] != before["member_id"],
    };
    if is_wanted(&before) {
        return Ok(asked);
    }
    let (began, mut last) = (Instant::now(), before.clone());
    while began.elapsed() < LEADS_WITHIN {
        tokio::time::sleep(LOOK_EVERY).await;
        // In between nobody leads.
        let Ok(leader) = pages.get("leader").await else { continue };
        if is_wanted(&leader) {
            let message = format!("{} leads now (member {})", plain(&leader["name"]), leader["member_id"]);
            return Ok(json!({ "message": message, "leader": leader }));
        }
        last = leader;
    }
    let leads = if last["member_id"].is_u64() { plain(&last["name"]) } else { "nobody".to_owned() };
    let text = format!("{} s after it was asked to hand over, {leads} leads", LEADS_WITHIN.as_secs());
    let advice = "`pd members` tells who answers; the log of the member that led says why not, code=CF8005";
    Err(Failure::new(Kind::Refused, text).advise(advice))
}
