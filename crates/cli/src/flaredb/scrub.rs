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
/// Looks in a row that may fail: a program may be starting anew.
const FAILURES_MAX: u32 = 25;

/// Whether nothing was found, anywhere.
pub async fn run(pages: &Pages<'_>, cluster: bool, output: &mut Output) -> Result<bool, Failure> {
    let endpoints = if cluster { everyone(pages).await? } else { pages.members().to_vec() };
    let alone = endpoints.len() == 1;
    let (mut rows, mut told, mut whole) = (Vec::new(), Vec::new(), true);
    for endpoint in endpoints {
        let page = match scrub(pages, &endpoint).await {
            Err(why) if alone => return Err(why),
            // The others are read all the same.
            Err(why) => ended(&why.text),
            Ok(page) => page,
        };
        let (last, bytes) = (plain(&page["last"]), number(&page["bytes_done"]));
        whole &= page["whole"] == true;
        rows.push(vec![endpoint.clone(), last, format::size(bytes)]);
        told.push(json!({ "endpoint": endpoint, "pass": page }));
    }
    show::rows(output, &Value::Array(told), &["PROGRAM", "LAST PASS", "READ"], rows)?;
    Ok(whole)
}

/// Where members of the placement driver and stores serve.
async fn everyone(pages: &Pages<'_>) -> Result<Vec<String>, Failure> {
    let (members, stores) = (pages.get("members").await?, pages.get("stores").await?);
    let urls =
        |member: &Value| list(&member["client_urls"]).first().map(plain).ok_or_else(|| plain(&member["member_id"]));
    let members: Result<Vec<String>, String> = list(&members["members"]).iter().map(urls).collect();
    let mut all = members.map_err(|id| {
        Failure::local(format!("member {id} of the placement driver does not say where it serves"))
            .advise("is it running? ask the others with --endpoint")
    })?;
    all.extend(list(&stores["stores"]).iter().map(|store| plain(&store["address"])));
    Ok(all)
}

fn ended(why: &str) -> Value {
    json!({ "last": why, "bytes_done": 0, "whole": false })
}

/// Begins a pass and waits for its end.
async fn scrub(pages: &Pages<'_>, endpoint: &str) -> Result<Value, Failure> {
    let ask = async |method| pages.ask_program(endpoint, method, "/scrub", None).await;
    let asked = ask("POST").await?;
    let mut failures = 0;
    for look in 1.. {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = match ask("GET").await {
            Err(why) if failures == FAILURES_MAX => return Err(why.into()),
            Err(_) => {
                failures += 1;
                continue;
            }
            Ok(now) => now,
        };
        failures = 0;
        if now["process"] != asked["process"] {
            return Ok(ended("it began anew meanwhile: its log says why"));
        }
        if number(&now["passes"]) >= number(&asked["awaited_passes"]) {
            return Ok(now);
        }
        if look % SAY_EVERY == 0 {
            let (done, total) = (number(&now["bytes_done"]), number(&now["bytes_total"]));
            eprintln!("{endpoint}: {} of {}", format::size(done), format::size(total));
        }
    }
    unreachable!("it looks until it is done")
}
