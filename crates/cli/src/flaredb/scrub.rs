//! `scrub`: programs read all that lies in their data folders again, to find damage; this waits and tells how far they are.

use std::time::Duration;

use cli::failure::Failure;
use cli::format;
use cli::output::Output;
use serde_json::{Value, json};

use crate::pd::Pages;
use crate::show::{self, list, number, plain};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often progress is told.
const SAY_EVERY: u32 = 25;
/// How a program says that a pass found nothing.
const WHOLE: &str = "nothing is damaged";

/// Whether nothing was found, anywhere.
pub async fn run(pages: &Pages<'_>, cluster: bool, output: &mut Output) -> Result<bool, Failure> {
    let endpoints = if cluster { everyone(pages).await? } else { pages.members().to_vec() };
    let (mut rows, mut told, mut whole) = (Vec::new(), Vec::new(), true);
    for endpoint in endpoints {
        let page = match scrub(pages, &endpoint).await {
            Ok(page) => page,
            // The others are read all the same.
            Err(why) => json!({ "last": why.text, "bytes_done": 0 }),
        };
        let (last, bytes) = (plain(&page["last"]), number(&page["bytes_done"]));
        whole &= last == WHOLE;
        rows.push(vec![endpoint.clone(), last, format::size(bytes)]);
        told.push(json!({ "endpoint": endpoint, "pass": page }));
    }
    show::rows(output, &Value::Array(told), &["PROGRAM", "LAST PASS", "READ"], rows)?;
    Ok(whole)
}

/// Where members of the placement driver and stores serve.
async fn everyone(pages: &Pages<'_>) -> Result<Vec<String>, Failure> {
    let (members, stores) = (pages.get("members").await?, pages.get("stores").await?);
    let members = list(&members["members"]).iter().filter_map(|member| list(&member["client_urls"]).first());
    let stores = list(&stores["stores"]).iter().map(|store| &store["address"]);
    Ok(members.chain(stores).map(plain).filter(|url| !url.is_empty()).collect())
}

/// Begins a pass and waits for its end.
async fn scrub(pages: &Pages<'_>, endpoint: &str) -> Result<Value, Failure> {
    let ask = async |method| pages.ask_program(endpoint, method, "/scrub", None).await;
    let before = ask("GET").await?;
    // A pass that is under way began before it was asked for; the next one counts.
    let passes = number(&before["passes"]) + u64::from(before["running"] == true);
    ask("POST").await?;
    for look in 1.. {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = ask("GET").await?;
        if number(&now["passes"]) > passes && now["running"] == false {
            return Ok(now);
        }
        if number(&now["passes"]) < number(&before["passes"]) {
            return Ok(json!({ "last": "it began anew meanwhile: its log says why", "bytes_done": 0 }));
        }
        if look % SAY_EVERY == 0 {
            let (done, total) = (number(&now["bytes_done"]), number(&now["bytes_total"]));
            eprintln!("{endpoint}: {} of {}", format::size(done), format::size(total));
        }
    }
    unreachable!("it looks until it is done")
}
