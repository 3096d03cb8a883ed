//! Stores in failure domains: every region has a replica in each of them, also after a store has died.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cluster::{Cluster, Process, get, put};
use crate::operations::split_at;

/// Of the stores, in the order of their ids: the last two share one.
const ZONES: [&str; 4] = ["a", "b", "c", "c"];

fn holders(region: &Value) -> Vec<u64> {
    let peers = region["peers"].as_array().cloned().unwrap_or_default();
    peers.iter().filter_map(|peer| peer["store_id"].as_u64()).collect()
}

/// Whether each region has one replica in every zone and no more, all of them caught up, and none in `without`.
async fn is_spread(cluster: &Cluster, without: u64) -> bool {
    let page = cluster.page("regions").await.unwrap_or_default();
    let spread = |region: &Value| {
        let holders = holders(region);
        let zones: BTreeSet<&str> = holders.iter().map(|store| ZONES[*store as usize - 1]).collect();
        holders.len() == 3 && zones.len() == 3 && !holders.contains(&without)
    };
    page["regions"].as_array().is_some_and(|regions| regions.iter().all(spread)) && cluster.has_replicas(3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_zone_has_one_replica_also_after_a_store_has_died() {
    let mut cluster = Cluster::new(1, ZONES.len());
    for (store, zone) in cluster.stores.iter_mut().zip(ZONES) {
        store.flag(&format!("--labels=zone={zone}"));
    }
    cluster.pd[0].spawn();
    cluster.until("the placement driver takes a policy", async |cluster| cluster.has_room_on_any_disk()).await;
    cluster.set_policy(r#"{"location-labels": "zone", "store-disconnected-time": "3s", "max-store-down-time": "10s"}"#);
    cluster.stores.iter_mut().for_each(Process::spawn);
    cluster.until("the first region is in each zone", async |cluster| is_spread(cluster, 0).await).await;
    split_at(&mut cluster, &["b", "c", "d"]).await;
    for (number, key) in ["a", "b", "c", "d"].into_iter().enumerate() {
        put(&mut cluster.raw(number).await, key, "v").await.unwrap();
    }
    cluster.until("each region is in each zone", async |cluster| is_spread(cluster, 0).await).await;
    let (shown, said) = cluster.client(&cluster.pd[0], &["stores"]);
    assert!(shown && ["zone=a", "zone=b", "zone=c"].iter().all(|label| said.contains(label)), "{said}");

    // The other one of its zone can take its place, and no other store can.
    let page = cluster.page("regions").await.unwrap();
    let victim = holders(&page["regions"][0]).into_iter().find(|store| ZONES[*store as usize - 1] == "c").unwrap();
    cluster.stores[victim as usize - 1].kill();
    cluster.until("each region is in each zone without it", async |cluster| is_spread(cluster, victim).await).await;
    for key in ["a", "b", "c", "d"] {
        assert_eq!(get(&mut cluster.raw(0).await, key).await.unwrap().as_deref(), Some("v"), "{key}");
    }
}
