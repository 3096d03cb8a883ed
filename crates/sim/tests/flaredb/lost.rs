//! Stores that lose what they had.

use std::fs;

use crate::cluster::{Cluster, get, put};

/// A store whose folder was emptied, started as before: under another id it takes the lost one's place, and what that one
/// held is made anew without an operator.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_store_comes_back_by_itself() {
    let mut cluster = Cluster::start(1, 3).await;
    for number in 0..100 {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &number.to_string()).await.unwrap();
    }
    let lost = cluster.leader().await;
    let id = lost as u64 + 1;
    cluster.stores[lost].kill();
    fs::remove_dir_all(cluster.data_dir(&cluster.stores[lost])).unwrap();
    cluster.stores[lost].spawn();
    let began = std::time::Instant::now();
    cluster
        .until("the lost store is gone and its replicas are made anew", async |cluster| {
            let page = cluster.page("stores").await.unwrap_or_default();
            let stores = page["stores"].as_array().cloned().unwrap_or_default();
            let gone = stores.len() == 3 && stores.iter().all(|store| store["id"] != id && store["state"] == "Up");
            gone && cluster.has_replicas(3).await
        })
        .await;
    println!("figure: a wiped store was whole again after {} ms", began.elapsed().as_millis());
    assert!(cluster.pd[0].said().contains("A silent store has lost its place"));
    assert!(cluster.stores[lost].said().contains("The store_id of the configuration is a lost store's"));
    assert_eq!(get(&mut cluster.raw(lost).await, "k042").await.unwrap().as_deref(), Some("42"));

    // It stays who it has become, with the configuration of before.
    cluster.stores[lost].stop().await;
    cluster.stores[lost].spawn();
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    assert_eq!(get(&mut cluster.raw(lost).await, "k077").await.unwrap().as_deref(), Some("77"));
    let page = cluster.page("stores").await.unwrap();
    assert_eq!(page["count"], 3);
}
