//! A store whose disk stands still: what it leads goes to the others within seconds, they go on, and when the disk moves
//! again nothing is missing.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, Process, get, put};
use crate::disks::FrozenDisk;
use crate::merges::Worker;
use crate::operations::split_at;
use crate::tell::{figure, skipped};

/// Five seconds are promised; the placement driver hears of it with the heartbeats after that.
const LEADS_MAX: Duration = Duration::from_secs(7);
/// The store with a disk of its own.
const STALLED: u64 = 1;

/// Whether every region is led by a store that `fits`, as the placement driver knows it.
async fn all_led_by(cluster: &Cluster, fits: fn(u64) -> bool) -> bool {
    let page = cluster.page("regions").await.unwrap_or_default();
    let leads = |region: &Value| region["leader"]["store_id"].as_u64().is_some_and(fits);
    page["regions"].as_array().is_some_and(|regions| regions.iter().all(leads))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_disk_stands_still_leads_nothing_soon() {
    let mut cluster = Cluster::new(1, 3);
    let disk = match FrozenDisk::mount_at(&cluster.data_dir(&cluster.stores[0])) {
        Ok(disk) => disk,
        Err(why) => return skipped("flaredb::stalled_disk", &format!("no disk that can be frozen: {why}")),
    };
    cluster.pd.iter_mut().chain(&mut cluster.stores).for_each(Process::spawn);
    cluster.until("any disk counts as roomy", async |cluster| cluster.has_room_on_any_disk()).await;
    cluster.until("the first region is replicated", async |cluster| cluster.has_replicas(3).await).await;
    // Nobody evens out what is led.
    cluster.set_policy(r#"{"schedulers": []}"#);
    split_at(&mut cluster, &["b", "c"]).await;
    cluster.until("all are replicated", async |cluster| cluster.has_replicas(3).await).await;
    cluster.set_policy(r#"{"evict-leader-stores": [2, 3]}"#);
    cluster.until("it leads all", async |cluster| all_led_by(cluster, |store| store == STALLED).await).await;
    cluster.set_policy(r#"{"evict-leader-stores": []}"#);
    let worker = Worker::start("a+".to_owned(), cluster.stores[1..].iter().map(Process::url).collect());
    cluster.until("it is written", async |_| worker.done.load(Ordering::Relaxed) > 10).await;

    disk.freeze();
    let frozen = Instant::now();
    cluster.until("the others lead all", async |cluster| all_led_by(cluster, |store| store != STALLED).await).await;
    let gone = frozen.elapsed();
    for key in ["a", "bb", "cc"] {
        cluster
            .until("the others take puts", async |cluster| {
                put(&mut cluster.raw(1).await, key, "meanwhile").await.is_ok()
            })
            .await;
    }
    figure(format_args!(
        "a store's disk stands still: it leads nothing after {} ms, all keys are written after {} ms",
        gone.as_millis(),
        frozen.elapsed().as_millis()
    ));
    assert!(gone < LEADS_MAX, "it led for {gone:?}");
    cluster
        .until("the placement driver knows why", async |cluster| {
            cluster.page("stores").await.is_some_and(|page| page["stores"][0]["slow"] == true)
        })
        .await;
    let (healthy, said) = cluster.client(&cluster.pd[0], &["cluster-status"]);
    assert!(!healthy && said.contains("store 1 is slow: its disk does not return from a write"), "{said}");
    disk.thaw();

    cluster.until("all are whole again", async |cluster| cluster.has_replicas(3).await).await;
    worker.end(&cluster).await;
    for store in 0..3 {
        for key in ["a", "bb", "cc"] {
            let read = get(&mut cluster.raw(store).await, key).await.unwrap();
            assert_eq!(read.as_deref(), Some("meanwhile"), "{key} of store {}", store + 1);
        }
    }
    assert!(cluster.stores[0].said().contains("Disk stall"), "its log tells of it");
}
