//! Stores and regions.

use cli::failure::Failure;
use cli::output::Output;
use serde_json::{Value, json};

use crate::args::{Regions, Stores};
use crate::pd::{Pages, escaped};
use crate::show::{self, key, list, number, plain, size};

pub async fn run(pages: &Pages<'_>, what: Stores, output: &mut Output) -> Result<(), Failure> {
    let page = match what {
        Stores::List => return all(pages, output).await,
        Stores::Show { store } => return show::fields(output, &pages.get(&format!("store/{store}")).await?),
        Stores::Weight { store, leader, region } => {
            let both = [("leader", leader), ("region", region)];
            let body: Value = both.into_iter().filter_map(|(name, weight)| Some((name, json!(weight?)))).collect();
            pages.post(&format!("store/{store}/weight"), &body).await?
        }
        Stores::Limit { store, rate, add, remove, clear } => {
            let path = format!("store/{store}/limit");
            let mut page = if clear { pages.delete(&path).await? } else { Value::Null };
            if let Some(rate) = rate {
                page = pages.post(&path, &json!({ "rate": rate })).await?;
            }
            for (kind, rate) in [("add-peer", add), ("remove-peer", remove)] {
                if let Some(rate) = rate {
                    page = pages.post(&path, &json!({ "rate": rate, "type": kind })).await?;
                }
            }
            let page = if page.is_null() { pages.get(&path).await? } else { page };
            let row = |kind: &str| {
                let of = if page[kind]["own"] == true { "its own" } else { "the policy's" };
                vec![kind.to_owned(), plain(&page[kind]["rate"]), of.to_owned()]
            };
            let rows = vec![row("add-peer"), row("remove-peer")];
            return show::rows(output, &page, &["KIND", "PER MINUTE", "WHOSE"], rows);
        }
        Stores::Label { store, labels, remove: None } => {
            let body: Value = labels.into_iter().map(|(name, value)| (name, json!(value))).collect();
            pages.post(&format!("store/{store}/label"), &body).await?
        }
        Stores::Moved { store } => pages.post(&format!("store/{store}/moved"), &Value::Null).await?,
        Stores::Label { store, remove: Some(name), .. } => {
            pages.delete(&format!("store/{store}/label/{}", escaped(&name))).await?
        }
    };
    if page["labels"].is_array() {
        let rows = list(&page["labels"]).iter().map(|label| vec![plain(&label["key"]), plain(&label["value"])]);
        return show::rows(output, &page, &["LABEL", "VALUE"], rows.collect());
    }
    show::text(output, &page)
}

async fn all(pages: &Pages<'_>, output: &mut Output) -> Result<(), Failure> {
    let page = pages.get("stores").await?;
    let row = |store: &Value| {
        let labels = list(&store["labels"]).iter();
        let labels: Vec<String> =
            labels.map(|label| format!("{}={}", plain(&label["key"]), plain(&label["value"]))).collect();
        let rates = &store["rates"];
        vec![
            plain(&store["id"]),
            plain(&store["state"]),
            plain(&store["address"]),
            plain(&store["region_count"]),
            plain(&store["leader_count"]),
            size(&store["capacity"]),
            size(&store["available"]),
            format!("{}/s", plain(&rates["requests_per_sec"])),
            format!("{}/s", size(&rates["read_bytes_per_sec"])),
            format!("{}/s", size(&rates["write_bytes_per_sec"])),
            if labels.is_empty() { "-".to_owned() } else { labels.join(",") },
        ]
    };
    let head = [
        "STORE",
        "STATE",
        "ADDRESS",
        "REGIONS",
        "LEADERS",
        "CAPACITY",
        "AVAILABLE",
        "REQUESTS",
        "READ",
        "WRITTEN",
        "LABELS",
    ];
    let rows = list(&page["stores"]).iter().map(row).collect();
    show::rows(output, &page, &head, rows)
}

pub async fn regions(pages: &Pages<'_>, what: Regions, output: &mut Output) -> Result<(), Failure> {
    match what {
        Regions::List { limit } => list_regions(pages, "regions", limit, output).await,
        Regions::Store { store, limit } => list_regions(pages, &format!("regions/store/{store}"), limit, output).await,
        Regions::Check { what, limit } => {
            list_regions(pages, &format!("regions/check/{}", escaped(&what)), limit, output).await
        }
        Regions::Show { region } => show::fields(output, &pages.get(&format!("region/id/{region}")).await?),
        Regions::At { key } => show::fields(output, &pages.get(&format!("region/key/{}", escaped(&key))).await?),
        Regions::Hot { read, limit } => {
            let kind = if read { "read" } else { "write" };
            let page = pages.get(&format!("hotspot/regions/{kind}")).await?;
            let by_store = page["as_leader"].as_object().into_iter().flat_map(|stores| stores.values());
            let mut regions: Vec<&Value> = by_store.flat_map(|store| list(&store["statistics"])).collect();
            regions
                .sort_by_key(|region| std::cmp::Reverse((number(&region["flow_bytes"]), number(&region["flow_keys"]))));
            let row = |region: &Value| {
                vec![
                    plain(&region["region_id"]),
                    plain(&region["store_id"]),
                    format!("{}/s", size(&region["flow_bytes"])),
                    format!("{}/s", plain(&region["flow_keys"])),
                    format!("{}/s", plain(&region["flow_query"])),
                    if region["hot"] == true { "hot" } else { "-" }.to_owned(),
                ]
            };
            let rows = regions.into_iter().take(limit).map(row).collect();
            show::rows(output, &page, &["REGION", "LEADER", "BYTES", "KEYS", "REQUESTS", "HOT"], rows)
        }
    }
}

async fn list_regions(pages: &Pages<'_>, path: &str, limit: usize, output: &mut Output) -> Result<(), Failure> {
    let page = first_regions(pages, path, limit).await?;
    match page["total"].as_u64() {
        _ if page["more"] != true => {}
        Some(total) => eprintln!("{limit} of {total} regions; --limit takes more"),
        None => eprintln!("there are more than these {limit}; --limit takes more"),
    }
    let rows = list(&page["regions"]).iter().map(region_row).collect();
    show::rows(output, &page, &REGION_HEAD, rows)
}

/// So many regions, in the order of their keys, page by page; and whether there are `more`.
async fn first_regions(pages: &Pages<'_>, path: &str, limit: usize) -> Result<Value, Failure> {
    let mut all: Vec<Value> = Vec::new();
    let mut path = format!("{path}?limit={}", limit.clamp(1, REGIONS_PER_PAGE));
    loop {
        let mut page = pages.get(&path).await?;
        if let Value::Array(regions) = page["regions"].take() {
            all.extend(regions);
        }
        match page["next"].as_str() {
            Some(next) if all.len() < limit => path = next.to_owned(),
            next => {
                let more = next.is_some() || all.len() > limit;
                all.truncate(limit);
                return Ok(json!({ "count": all.len(), "total": page["total"], "more": more, "regions": all }));
            }
        }
    }
}

/// The placement driver gives so many at a time.
const REGIONS_PER_PAGE: usize = 5000;

const REGION_HEAD: [&str; 9] = ["REGION", "START", "END", "EPOCH", "LEADER", "STORES", "MIB", "KEYS", "REQUESTS"];

fn region_row(region: &Value) -> Vec<String> {
    let stores = list(&region["peers"]).iter().map(|peer| {
        let learner = if peer["is_learner"] == true { "(learner)" } else { "" };
        format!("{}{learner}", plain(&peer["store_id"]))
    });
    vec![
        plain(&region["id"]),
        key(&region["start_key"]),
        key(&region["end_key"]),
        format!("{}/{}", plain(&region["epoch"]["conf_ver"]), plain(&region["epoch"]["version"])),
        plain(&region["leader"]["store_id"]),
        stores.collect::<Vec<_>>().join(","),
        plain(&region["approximate_size"]),
        plain(&region["approximate_keys"]),
        format!("{}/s", plain(&region["requests_per_sec"])),
    ]
}
