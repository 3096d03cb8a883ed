//! Regions that grow are cut, while clients write and stores die.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Instant;

use proto::flaredb as pb;
use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, get, put};
use crate::tell;

const VALUE_BYTES: usize = 1024;
const KEYS_PER_KILL: usize = 1500;

/// Regions of a MiB, instead of a GiB.
pub fn make_regions_small(cluster: &Cluster) {
    let url = format!("{}/pd/api/v1/config/schedule", cluster.pd[0].url());
    let small = r#"{"region-split-size": 1, "max-merge-region-size": 0}"#;
    let output = Command::new("curl").args(cluster.curl()).args(["-d", small, &url]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains(r#""region-split-size": 1"#), "{said}");
}

fn key(number: usize) -> String {
    format!("key-{number:06}")
}

/// How many regions there are, if they cover all keys once.
pub fn covering(page: &Value) -> Result<usize, String> {
    let regions = page["regions"].as_array().cloned().unwrap_or_default();
    let range = |region: &Value| {
        let text = |name: &str| region[name].as_str().unwrap_or_default().to_owned();
        (text("start_key"), text("end_key"))
    };
    let mut ranges: Vec<(String, String)> = regions.iter().map(range).collect();
    ranges.sort();
    let mut reached = String::new();
    for (start, end) in &ranges {
        if *start != reached {
            return Err(format!("after {reached} comes {start}"));
        }
        reached.clone_from(end);
    }
    if reached.is_empty() && !ranges.is_empty() { Ok(ranges.len()) } else { Err("there is no last region".to_owned()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_split_under_writers_and_kills_and_nothing_is_lost() {
    let kills = tell::runs(4);
    let keys = kills * KEYS_PER_KILL;
    let mut cluster = Cluster::start(1, 3).await;
    make_regions_small(&cluster);
    let mut acknowledged = BTreeMap::new();
    for number in 0..keys {
        // Now and then a store dies, and is back a while later.
        let victim = number / KEYS_PER_KILL % 3;
        match number % KEYS_PER_KILL {
            700 => cluster.stores[victim].kill(),
            1000 => cluster.stores[victim].spawn(),
            _ => {}
        }
        let down = (700..1000).contains(&(number % KEYS_PER_KILL)).then_some(victim);
        let store = (0..3).cycle().skip(number).find(|store| Some(*store) != down).unwrap();
        if number % 10 != 0 {
            continue;
        }
        let value = |at: usize| format!("{at}-{}", "v".repeat(VALUE_BYTES));
        let mutations =
            (number..number + 10).map(|at| pb::Mutation { key: key(at).into(), value: Some(value(at).into()) });
        let request = pb::BatchRequest { context: None, mutations: mutations.collect() };
        let asked = Instant::now();
        let mut client = cluster.raw(store).await;
        while let Err(why) = client.batch(request.clone()).await {
            assert!(asked.elapsed() < PATIENCE, "{why:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        acknowledged.extend((number..number + 10).map(|at| (key(at), value(at))));
    }
    cluster
        .until("the regions are cut, and replicated", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            covering(&page).is_ok_and(|count| count >= (kills + 1).min(5)) && cluster.has_replicas(3).await
        })
        .await;
    let page = cluster.page("regions").await.unwrap();
    let regions = covering(&page).unwrap();
    tell::figure(format_args!("{keys} keys of {VALUE_BYTES} bytes, {kills} kills: {regions} regions of at most 1 MiB"));
    tell::done(kills);
    for (number, (key, value)) in acknowledged.iter().enumerate().filter(|(number, _)| number % 7 == 0) {
        let read = get(&mut cluster.raw(number % 3).await, key).await.unwrap();
        assert!(read.as_ref() == Some(value), "{key} is another one");
    }
    // All of them, in order, over all regions.
    let (done, said) =
        cluster.client(&cluster.stores[1], &["-o", "simple", "scan", "--keys-only", "--limit", "1000000"]);
    assert!(done && said.lines().eq(acknowledged.keys()), "{} lines", said.lines().count());
    // A start finds all of them again.
    for store in 0..3 {
        cluster.stores[store].stop().await;
        cluster.stores[store].spawn();
        cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    }
    put(&mut cluster.raw(0).await, &key(keys), "last").await.unwrap();
    assert_eq!(get(&mut cluster.raw(2).await, &key(keys)).await.unwrap().as_deref(), Some("last"));
}

/// The check has teeth.
#[test]
fn gaps_and_overlaps_are_seen() {
    let page = |ranges: &[(&str, &str)]| {
        let regions = ranges.iter().map(|(start, end)| serde_json::json!({ "start_key": start, "end_key": end }));
        serde_json::json!({ "regions": regions.collect::<Vec<_>>() })
    };
    assert_eq!(covering(&page(&[("61", ""), ("", "61")])), Ok(2));
    for wrong in [&[("", "61"), ("62", "")][..], &[("", "62"), ("61", "")], &[("", "61")], &[("61", "")], &[]] {
        assert!(covering(&page(wrong)).is_err(), "{wrong:?}");
    }
}
