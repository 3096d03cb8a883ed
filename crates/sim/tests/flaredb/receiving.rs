//! A store dies while a large region comes to it: in the middle of the stream, when all is there and nothing is in place, while it
//! is put in place, or just after.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use base::Rng;
use serde_json::json;

use crate::cluster::{Cluster, get, put};
use crate::moves::{ask_for_a_move, holders, is_whole_and_at_rest};
use crate::tell;

const STORES: usize = 4;
/// Of a mebibyte each: tables are written from 4 MiB on.
const VALUES: usize = 24;
/// A stream takes three quarters of a second.
const RATE: &str = r#"{"snap-io-max-bytes-per-sec": 33554432, "high-space-ratio": 0.98, "low-space-ratio": 0.99}"#;
const KILLED_WITHIN_MS: u64 = 500;
/// An operator may be refused, or given up, before a stream begins.
const BEGINS_WITHIN: Duration = Duration::from_secs(10);

/// Bytes that no compression makes smaller.
fn value(number: usize) -> String {
    let mut random = Rng::new(number as u64 + 1);
    (0..1 << 20).map(|_| char::from(b'0' + random.below(75) as u8)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_receiver_of_a_large_region_loses_and_mixes_nothing() {
    let (asked, seed) = (tell::runs(6), tell::seed());
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::start(1, STORES).await;
    cluster.set_policy(RATE);
    for number in 0..VALUES {
        put(&mut cluster.raw(number % STORES).await, &format!("k{number:03}"), &value(number)).await.unwrap();
    }
    // What was in `incoming/` at the moment of the kill, and how often.
    let mut killed_with: BTreeMap<String, usize> = BTreeMap::new();
    let (mut run, mut killed) = (0, 0);
    while killed < asked && run < 2 * asked {
        let victim = ask_for_a_move(&cluster, &mut rng).await as usize - 1;
        let incoming = cluster.data_dir(&cluster.stores[victim]).join("incoming");
        let there = || {
            let names = fs::read_dir(&incoming).into_iter().flatten().flatten().map(|entry| entry.path());
            names.filter_map(|path| Some(path.extension()?.to_string_lossy().into_owned())).max()
        };
        let asked_at = Instant::now();
        while there().is_none() && asked_at.elapsed() < BEGINS_WITHIN {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Any moment, or as soon as it is decided.
        let (at_once, until) = (rng.below(3) == 0, Duration::from_millis(rng.below(KILLED_WITHIN_MS)));
        let begun = Instant::now();
        while begun.elapsed() < until && !(at_once && there().is_some_and(|what| what == "whole")) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        cluster.stores[victim].kill();
        // One with nothing was no receiver, or is none any more.
        let found = there();
        killed += usize::from(found.is_some());
        *killed_with.entry(found.unwrap_or_else(|| "nothing".to_owned())).or_default() += 1;
        // The others have something that it lacks.
        put(&mut cluster.raw((victim + 1) % STORES).await, "meanwhile", &run.to_string()).await.unwrap();
        cluster.stores[victim].spawn();
        let what = format!("run {run} of seed {seed}: the region is whole again");
        cluster.until(&what, async |cluster| is_whole_and_at_rest(cluster).await).await;
        assert!(there().is_none(), "run {run} of seed {seed}: {:?} is left", there());
        run += 1;
    }
    tell::figure(format_args!(
        "{killed} receivers of {VALUES} MiB killed; with what, of {run}: {killed_with:?} (seed {seed})"
    ));
    tell::done(killed);
    // Each replica in turn answers for the region.
    let (region, held) = holders(&cluster).await.expect("the placement driver is well");
    for holder in held {
        let asked = json!({ "name": "transfer-leader", "region_id": region, "to_store_id": holder });
        cluster.post("operators", &asked);
        cluster
            .until("the replica leads", async |cluster| {
                let page = cluster.page("regions").await.unwrap_or_default();
                page["regions"][0]["leader"]["store_id"] == holder
            })
            .await;
        let mut client = cluster.raw(holder as usize - 1).await;
        for number in 0..VALUES {
            let read = get(&mut client, &format!("k{number:03}")).await.unwrap();
            assert!(
                read.as_deref() == Some(&value(number)),
                "k{number:03} of store {holder} is another one (seed {seed})"
            );
        }
        let read = get(&mut client, "meanwhile").await.unwrap();
        assert_eq!(read, Some((run - 1).to_string()), "store {holder}, seed {seed}");
    }
}
