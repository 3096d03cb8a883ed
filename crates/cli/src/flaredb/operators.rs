//! Operators, schedulers and the policy.

use std::time::{SystemTime, UNIX_EPOCH};

use cli::failure::Failure;
use cli::output::{Format, Output};
use serde_json::{Map, Value, json};

use crate::args::{AddOperator, Operators, Policy, Schedulers};
use crate::pd::{Pages, escaped};
use crate::show::{self, list, number, plain};

pub async fn run(pages: &Pages<'_>, what: Operators, output: &mut Output) -> Result<(), Failure> {
    let page = match what {
        Operators::List => {
            let page = pages.get("operators").await?;
            let row = |operator: &Value| {
                let (step, steps) = (number(&operator["step"]) as usize, list(&operator["steps"]));
                vec![
                    plain(&operator["region_id"]),
                    plain(&operator["cause"]),
                    format!("{}/{}", (step + 1).min(steps.len()), steps.len()),
                    steps.get(step).map(plain).unwrap_or_default(),
                    format!("{}s", plain(&operator["seconds"])),
                    format!("{}s", plain(&operator["seconds_without_progress"])),
                    plain(&operator["reason"]),
                ]
            };
            let rows = list(&page).iter().map(row).collect();
            let head = ["REGION", "CAUSE", "STEP", "AT", "RUNS", "WITHOUT PROGRESS", "REASON"];
            return show::rows(output, &page, &head, rows);
        }
        Operators::Show { region } => return show::fields(output, &pages.get(&format!("operators/{region}")).await?),
        Operators::Cancel { region } => pages.delete(&format!("operators/{region}")).await?,
        Operators::Add(add) => pages.post("operators", &body_of(&add)).await?,
    };
    show::text(output, &page)
}

fn body_of(add: &AddOperator) -> Value {
    match add {
        AddOperator::TransferLeader { region, to_store } => {
            json!({ "name": "transfer-leader", "region_id": region, "to_store_id": to_store })
        }
        AddOperator::MovePeer { region, from_store, to_store } => {
            json!({ "name": "transfer-peer", "region_id": region, "from_store_id": from_store, "to_store_id": to_store })
        }
        AddOperator::AddPeer { region, store } => json!({ "name": "add-peer", "region_id": region, "store_id": store }),
        AddOperator::RemovePeer { region, store } => {
            json!({ "name": "remove-peer", "region_id": region, "store_id": store })
        }
        AddOperator::Split { region, keys } => {
            let hex = |key: &String| key.bytes().map(|byte| format!("{byte:02X}")).collect::<String>();
            json!({ "name": "split-region", "region_id": region, "keys": keys.iter().map(hex).collect::<Vec<_>>() })
        }
        AddOperator::Merge { region, into } => {
            json!({ "name": "merge-region", "source_region_id": region, "target_region_id": into })
        }
    }
}

/// Those that are over.
pub async fn ended(pages: &Pages<'_>, output: &mut Output) -> Result<(), Failure> {
    let page = pages.get("operators/records").await?;
    let now = unix_s();
    let row = |operator: &Value| {
        vec![
            format!("{}s ago", now.saturating_sub(number(&operator["ended_unix_seconds"]))),
            plain(&operator["region_id"]),
            plain(&operator["cause"]),
            format!("{:.1}s", operator["seconds"].as_f64().unwrap_or_default()),
            plain(&operator["outcome"]),
            list(&operator["steps"]).iter().map(plain).collect::<Vec<_>>().join("; "),
            plain(&operator["reason"]),
        ]
    };
    let rows = list(&page).iter().map(row).collect();
    show::rows(output, &page, &["ENDED", "REGION", "CAUSE", "TOOK", "OUTCOME", "STEPS", "REASON"], rows)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

const EVICT_LEADER: &str = "evict-leader-scheduler";

pub async fn schedulers(pages: &Pages<'_>, what: Schedulers, output: &mut Output) -> Result<(), Failure> {
    let page = match what {
        Schedulers::List => return all_schedulers(pages, output).await,
        Schedulers::Add { name, store: Some(_) } if !name.starts_with("evict-leader") => {
            return Err(Failure::usage(format!("{name} is not one per store: --store is for {EVICT_LEADER}")));
        }
        Schedulers::Add { name, store } => {
            let mut body = json!({ "name": name });
            if let Some(store) = store {
                body["store_id"] = store.into();
            }
            pages.post("schedulers", &body).await?
        }
        Schedulers::Remove { name, store: None } => pages.delete(&format!("schedulers/{}", escaped(&name))).await?,
        Schedulers::Remove { name, store: Some(store) } => {
            let whole = if name.starts_with("evict-leader") { EVICT_LEADER.to_owned() } else { name };
            pages.delete(&format!("schedulers/{}-{store}", escaped(&whole))).await?
        }
        Schedulers::Pause { name, span } => {
            let body = json!({ "delay": span.as_secs_f64().ceil() as u64 });
            pages.post(&format!("schedulers/{}", escaped(&name)), &body).await?
        }
        Schedulers::Resume { name } => {
            pages.post(&format!("schedulers/{}", escaped(&name)), &json!({ "delay": 0 })).await?
        }
    };
    show::text(output, &page)
}

async fn all_schedulers(pages: &Pages<'_>, output: &mut Output) -> Result<(), Failure> {
    let (policy, off) = (pages.get("config/schedule").await?, pages.get("schedulers?status=disabled").await?);
    let now = unix_s();
    let mut all: Vec<(String, String)> = Vec::new();
    for name in list(&policy["schedulers"]).iter().map(plain) {
        let state = match policy["paused-schedulers"][&name].as_u64() {
            Some(until) => format!("paused for {} s", until.saturating_sub(now)),
            None => "on".to_owned(),
        };
        all.push((name, state));
    }
    all.extend(list(&off).iter().map(|name| (plain(name), "off".to_owned())));
    for store in list(&policy["evict-leader-stores"]) {
        all.push((EVICT_LEADER.to_owned(), format!("on for store {}", plain(store))));
    }
    all.sort();
    let page = all.iter().map(|(name, state)| json!({ "name": name, "state": state })).collect();
    let rows = all.into_iter().map(|(name, state)| vec![name, state]).collect();
    show::rows(output, &page, &["SCHEDULER", "STATE"], rows)
}

pub async fn policy(pages: &Pages<'_>, what: Policy, output: &mut Output) -> Result<(), Failure> {
    let (settings, dry_run) = match what {
        Policy::Get { setting } => {
            let page = pages.get("config/schedule").await?;
            let Some(name) = setting else { return all_settings(&page, output) };
            let value = page.get(&name).ok_or_else(|| {
                let known = page.as_object().map(|all| all.keys().cloned().collect::<Vec<_>>().join(", "));
                Failure::usage(format!("there is no setting `{name}`: {}", known.unwrap_or_default()))
            })?;
            return match output.format_of_lines() {
                Format::Json => Ok(output.json(value)?),
                _ => Ok(output.line(plain(value))?),
            };
        }
        Policy::Set { settings, dry_run } => (settings, dry_run),
    };
    let value = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|_| json!(text));
    let patch: Map<String, Value> = settings.iter().map(|(name, text)| (name.clone(), value(text))).collect();
    let patch = Value::Object(patch);
    if dry_run {
        return show::text(output, &pages.post("explain/policy", &patch).await?);
    }
    let page = pages.post("config/schedule", &patch).await?;
    let changed: Map<String, Value> =
        settings.into_iter().map(|(name, _)| (name.clone(), page[&name].clone())).collect();
    all_settings(&Value::Object(changed), output)
}

fn all_settings(page: &Value, output: &mut Output) -> Result<(), Failure> {
    let rows = page.as_object().into_iter().flatten().map(|(name, value)| vec![name.clone(), plain(value)]).collect();
    show::rows(output, page, &["SETTING", "VALUE"], rows)
}
