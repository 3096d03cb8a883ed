//! Splits, merges, moves and changes of leaders in a drawn order, while clients write and read and stores die at drawn moments:
//! one, or two, so that regions have no quorum for a while, or the placement driver beside them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base::Rng;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::merges::{self, KEYS, Worker, configure, cut_cluster, key};
use crate::moves::is_whole_and_at_rest;
use crate::tell;

const STORES: usize = 4;
/// What is left of a merged region goes after a minute in which all regions were heard of, and until then it keeps others out.
const WHOLE_WITHIN: Duration = Duration::from_secs(180);
/// Kills before everything that was ever written is looked for.
const KILLS_PER_CHECK: usize = 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_change_in_any_order_under_writers_and_kills_and_nothing_is_lost() {
    let (asked, seed) = (tell::runs(3), tell::seed());
    let (mut rng, mut run, mut killed) = (Rng::new(seed), 0, 0);
    let (mut cluster, written) = cut_cluster(STORES).await;
    let urls: Vec<String> = cluster.stores.iter().map(|store| store.url()).collect();
    let step = KEYS / 8;
    let workers: Vec<Worker> = (0..8).map(|at| Worker::start(format!("{}+", key(at * step)), urls.clone())).collect();
    while killed < asked && run < 3 * asked + 10 {
        run += 1;
        for _ in 0..=rng.below(3) {
            change(&cluster, &mut rng).await;
            tokio::time::sleep(Duration::from_millis(rng.below(700))).await;
        }
        // A kill while nothing changes is none in a change.
        let changing = cluster.page("operators").await.is_some_and(|operators| operators != json!([]));
        let first = rng.below(STORES as u64) as usize;
        let mut victims = vec![first];
        if rng.below(3) == 0 {
            victims.push((first + 1 + rng.below(STORES as u64 - 1) as usize) % STORES);
        }
        victims.iter().for_each(|victim| cluster.stores[*victim].kill());
        let drives = rng.below(4) != 0;
        if !drives {
            cluster.pd[0].kill();
        }
        tokio::time::sleep(Duration::from_millis(rng.below(2500))).await;
        victims.iter().for_each(|victim| cluster.stores[*victim].spawn());
        if !drives {
            cluster.pd[0].spawn();
        }
        if changing {
            killed += victims.len();
        }
        // Else the next one dies before this one is well.
        if rng.below(2) == 0 {
            let what = format!("run {run} of seed {seed}: all regions are whole");
            cluster.until_within(WHOLE_WITHIN, &what, async |cluster| cluster.has_replicas(3).await).await;
        } else {
            let what = format!("run {run} of seed {seed}: the placement driver answers");
            cluster.until(&what, async |cluster| cluster.page("regions").await.is_some()).await;
        }
        if run % KILLS_PER_CHECK == 0 {
            at_rest(&mut cluster, seed).await;
            merges::check_written(&mut cluster, &written, |key| !Worker::owns(key)).await;
        }
    }
    at_rest(&mut cluster, seed).await;
    let writes: u64 = workers.iter().map(|worker| worker.done.load(Ordering::Relaxed)).sum();
    let regions = merges::regions(&cluster).await.expect("the regions cover all keys once");
    tell::figure(format_args!(
        "{run} times stores killed under {writes} writes, {killed} of them while regions changed; {regions} regions (seed {seed})"
    ));
    tell::done(killed);
    let changed = cluster.pd[0].said().matches("outcome=done").count();
    assert!(killed > 0 && changed > 0, "{killed} kills in changes, {changed} changes");
    for worker in workers {
        worker.end(&cluster).await;
    }
    merges::check_all(&mut cluster, &written).await;
}

/// Asks for something; it may be refused, as when another change of the region is under way.
async fn change(cluster: &Cluster, rng: &mut Rng) {
    let Some(page) = cluster.page("regions").await else { return };
    let regions = page["regions"].as_array().cloned().unwrap_or_default();
    let Some(region) = rng.pick(&regions) else { return };
    let peers: Vec<u64> =
        region["peers"].as_array().into_iter().flatten().filter_map(|peer| peer["store_id"].as_u64()).collect();
    let (Some(held), id): (_, &Value) = (rng.pick(&peers), &region["id"]) else { return };
    match rng.below(5) {
        0 => configure(cluster, merges::CUT),
        1 => configure(cluster, merges::MERGE),
        2 => cluster.post("operators", &json!({ "name": "transfer-leader", "region_id": id, "to_store_id": held })),
        _ => {
            let to = (1..=STORES as u64).find(|store| !peers.contains(store));
            let moved = json!({ "name": "move-peer", "region_id": id, "from_store_id": held, "to_store_id": to });
            cluster.post("operators", &moved);
        }
    }
}

/// Nothing is cut or merged any more, and every region is whole.
async fn at_rest(cluster: &mut Cluster, seed: u64) {
    configure(cluster, r#"{"region-split-size": 64, "max-merge-region-size": 0, "split-merge-interval": "1h"}"#);
    let what = format!("all regions are whole and cover all keys once, seed {seed}");
    let whole =
        async |cluster: &mut Cluster| is_whole_and_at_rest(cluster).await && merges::regions(cluster).await.is_ok();
    cluster.until_within(WHOLE_WITHIN, &what, whole).await;
}
