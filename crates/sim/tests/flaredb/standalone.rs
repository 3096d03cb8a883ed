//! A store on its own, with its placement driver in the same process.

use serde_json::Value;

use crate::cluster::{Cluster, get, put};

const KEYS: usize = 100;

/// A page of the placement driver within the store, which is where another one would be.
async fn page(cluster: &Cluster, path: &str) -> Value {
    let page = rpc::client::page(&cluster.pd[0].url(), &format!("/pd/api/v1/{path}"), None).await.unwrap_or_default();
    serde_json::from_slice(&page).unwrap_or_default()
}

/// Whether the placement driver answers, and has heard of the store.
async fn is_known(cluster: &Cluster) -> bool {
    let page = page(cluster, "stores").await;
    page["count"] == 1 && page["stores"][0]["state"] == "Up" && page["stores"][0]["capacity"].as_u64() > Some(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_on_its_own_comes_back_with_its_data_and_its_placement_driver() {
    let mut cluster = Cluster::new(1, 1);
    cluster.stores[0].flag("--standalone").spawn();
    cluster.until("its placement driver knows it", async |cluster| is_known(cluster).await).await;
    cluster.until("it takes puts", async |cluster| put(&mut cluster.raw(0).await, "first", "v").await.is_ok()).await;
    for number in 0..KEYS {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &number.to_string()).await.unwrap();
    }
    assert_eq!(page(&cluster, "config/schedule").await["max-replicas"], 1, "everything is kept once");

    cluster.stores[0].kill();
    cluster.stores[0].spawn();
    cluster.until("it is back", async |cluster| get(&mut cluster.raw(0).await, "first").await.is_ok()).await;
    for number in 0..KEYS {
        let read = get(&mut cluster.raw(0).await, &format!("k{number:03}")).await.unwrap();
        assert_eq!(read, Some(number.to_string()));
    }
    cluster.until("its placement driver knows it again", async |cluster| is_known(cluster).await).await;
    let said = cluster.until_well(0).await;
    assert!(said.contains("regions: 1 ") && said.contains("store: "), "{said}");
}

/// What is in it would not be seen, and an empty cluster would begin below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_of_a_store_of_a_cluster_is_not_taken() {
    let mut cluster = Cluster::start(1, 1).await;
    cluster.stores[0].stop().await;
    cluster.stores[0].flag("--standalone").spawn();
    cluster.until("it ends", async |cluster| cluster.stores[0].has_ended()).await;
    let said = cluster.stores[0].said();
    assert!(said.contains("knows a placement driver elsewhere") && said.contains("code=CF7013"), "{said}");
    assert!(!cluster.data_dir(&cluster.stores[0]).join("store").exists());
}
