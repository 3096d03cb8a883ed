//! Replicas are moved from store to store, while clients write and read and stores die.

use std::sync::atomic::Ordering;
use std::time::Duration;

use base::Rng;
use serde_json::{Value, json};

use crate::cluster::{Cluster, get, put};
use crate::merges::Worker;
use crate::tell;

const STORES: usize = 4;

/// Those with a replica of the first region.
pub async fn holders(cluster: &Cluster) -> Option<(u64, Vec<u64>)> {
    let page = cluster.page("regions").await?;
    let region: &Value = page["regions"].get(0)?;
    let peers = region["peers"].as_array()?.iter().filter_map(|peer| peer["store_id"].as_u64());
    Some((region["id"].as_u64()?, peers.collect()))
}

/// Asks for one of the first region's replicas, whichever, to be moved to a store that has none; which that is. It is refused while
/// another operator is under way.
pub async fn ask_for_a_move(cluster: &Cluster, rng: &mut Rng) -> u64 {
    let (region, held) = holders(cluster).await.expect("the placement driver is well");
    let from = *rng.pick(&held).unwrap();
    let to = (1..=cluster.stores.len() as u64).find(|store| !held.contains(store)).expect("a store without one");
    let asked = json!({ "name": "move-peer", "region_id": region, "from_store_id": from, "to_store_id": to });
    cluster.post("operators", &asked);
    to
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_move_under_writers_and_kills_and_nothing_is_lost() {
    let (asked, seed) = (tell::runs(3), tell::seed());
    let (mut rng, mut run, mut killed, mut moved) = (Rng::new(seed), 0, 0, 0);
    let mut cluster = Cluster::start(1, STORES).await;
    for number in 0..500 {
        put(&mut cluster.raw(number % STORES).await, &format!("k{number:03}"), &"v".repeat(number * 4)).await.unwrap();
    }
    let urls: Vec<String> = cluster.stores.iter().map(|store| store.url()).collect();
    let workers: Vec<Worker> = (0..4).map(|at| Worker::start(format!("w{at}+"), urls.clone())).collect();
    while killed < asked && run < 2 * asked {
        // Or another one is under way, and that one is killed in.
        let to = ask_for_a_move(&cluster, &mut rng).await;
        tokio::time::sleep(Duration::from_millis(rng.below(1500))).await;
        let victim = rng.below(STORES as u64) as usize;
        // A kill after the move is none in it.
        killed += usize::from(cluster.page("operators").await.is_some_and(|operators| operators != json!([])));
        cluster.stores[victim].kill();
        tokio::time::sleep(Duration::from_millis(200 + rng.below(1500))).await;
        cluster.stores[victim].spawn();
        let what = format!("run {run} of seed {seed}: the region is whole again");
        cluster.until(&what, async |cluster| is_whole_and_at_rest(cluster).await).await;
        moved += usize::from(holders(&cluster).await.is_some_and(|(_, held)| held.contains(&to)));
        run += 1;
    }
    let writes: u64 = workers.iter().map(|worker| worker.done.load(Ordering::Relaxed)).sum();
    tell::figure(format_args!(
        "{run} stores killed under {writes} writes, {killed} of them in a move, {moved} replicas moved (seed {seed})"
    ));
    tell::done(killed);
    assert!(moved > 0, "nothing was moved");
    for worker in workers {
        worker.end(&cluster).await;
    }
    for number in 0..500 {
        let read = get(&mut cluster.raw(number % STORES).await, &format!("k{number:03}")).await.unwrap();
        assert!(read == Some("v".repeat(number * 4)), "k{number:03} is another one (seed {seed})");
    }
}

/// Whether nothing is moved any more, and nothing is missing.
pub async fn is_whole_and_at_rest(cluster: &Cluster) -> bool {
    cluster.page("operators").await == Some(json!([])) && cluster.has_replicas(3).await
}
