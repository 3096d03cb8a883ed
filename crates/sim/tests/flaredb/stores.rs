//! Stores come and go.

use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, RAFT_PORT, get, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_emptied_and_removed_when_another_can_take_its_place() {
    let mut cluster = Cluster::start(1, 3).await;
    for number in 0..200 {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &number.to_string()).await.unwrap();
    }
    let pd = format!("{}/pd/api/v1/store/1", cluster.pd[0].url());
    let delete = || {
        let output = Command::new("curl").args(["-s", "-X", "DELETE", &pd]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = delete();
    assert!(refused.contains("add a store first"), "{refused}");

    let fourth = cluster.add_store(0);
    cluster.stores[fourth].spawn();
    cluster
        .until("the fourth store is heard of", async |cluster| {
            let page = cluster.page("stores").await.unwrap_or_default();
            // What is not known yet is shown as one byte.
            let heard = |store: &serde_json::Value| store["capacity"].as_u64() > Some(1);
            page["stores"].as_array().is_some_and(|stores| stores.len() == 4 && stores.iter().all(heard))
        })
        .await;
    let begun = delete();
    assert!(begun.contains("is being emptied"), "{begun}");
    cluster
        .until("the first store is gone", async |cluster| {
            cluster.page("stores").await.is_some_and(|page| page["count"] == 3) && cluster.has_replicas(3).await
        })
        .await;
    let again = delete();
    assert!(again.contains("is a tombstone already"), "{again}");
    let read = get(&mut cluster.raw(fourth).await, "k123").await.unwrap();
    assert_eq!(read.as_deref(), Some("123"), "it came along");
    // The first store, of which nothing is left, finds its way to the others, and says that nobody needs it.
    let read = get(&mut cluster.raw(0).await, "k077").await.unwrap();
    assert_eq!(read.as_deref(), Some("77"));
    cluster
        .until("the first store knows that it was removed", async |cluster| {
            let (status, page) = cluster.health(0);
            status == 503 && page.contains("may be stopped: store 1 was removed")
        })
        .await;
    assert_eq!(cluster.health(fourth).0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_store_of_the_same_id_is_refused() {
    let mut cluster = Cluster::start(1, 1).await;
    let second = cluster.add_store(1);
    cluster.stores[second].spawn();
    cluster.until("it is refused", async |cluster| cluster.stores[second].has_ended()).await;
    let said = cluster.stores[second].said();
    assert!(said.contains("failed to register with PD") && said.contains("duplicate store_id 1"), "{said}");
    assert!(cluster.pd[0].said().contains("Did not register a store, store_id=1"));
    // The first is as it was.
    put(&mut cluster.raw(0).await, "k", "v").await.unwrap();
    let page = cluster.page("stores").await.unwrap();
    assert_eq!((page["count"].as_u64(), page["stores"][0]["state"].as_str()), (Some(1), Some("Up")));
    // Its page has both.
    let page = cluster.page("store/1").await.unwrap();
    let refused = &page["refused"][0];
    assert_eq!(page["address"].as_str(), Some(cluster.stores[0].url().as_str()));
    assert_eq!(refused["address"].as_str(), Some(cluster.stores[second].url().as_str()), "{page}");
    assert!(refused["reason"].as_str().is_some_and(|why| why.contains("duplicate store_id 1")), "{page}");
}

/// Whoever names another store's Raft address would be taken for it by the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_at_the_raft_address_of_another_is_refused() {
    let mut cluster = Cluster::start(1, 1).await;
    let taken = format!("{}:{RAFT_PORT}", cluster.stores[0].address);
    let second = cluster.add_store(0);
    cluster.stores[second].flag(&format!("--raft-advertise-addr={taken}")).spawn();
    let why = format!("duplicate address: store 1 is at {} / http://{taken}", cluster.stores[0].url());
    cluster.until("it is told why it is refused", async |cluster| cluster.stores[second].said().contains(&why)).await;
    let page = cluster.page("stores").await.unwrap();
    assert_eq!((page["count"].as_u64(), page["refused"][0]["reason"].as_str()), (Some(1), Some(why.as_str())));
    assert!(!cluster.stores[second].said().contains("Registered with PD"));
    // The first is as it was.
    put(&mut cluster.raw(0).await, "k", "v").await.unwrap();
    assert_eq!(get(&mut cluster.raw(0).await, "k").await.unwrap().as_deref(), Some("v"));
}

/// Since when a store is in its state, and when it was last heard of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_told_since_when_a_store_is_silent() {
    const SILENT_SECONDS: u64 = 5;
    let mut cluster = Cluster::start(1, 2).await;
    cluster.set_policy(r#"{"store-disconnected-time": "5s"}"#);
    cluster.stores[1].kill();
    let killed = unix_s();
    let (state, up_since, _) = states(&cluster, 2).await;
    assert_eq!(state, "Up");
    cluster.until("it is missed", async |cluster| states(cluster, 2).await.0 == "Disconnected").await;
    // Seconds are whole ones, so that each may be one too much.
    let (_, since, heard) = states(&cluster, 2).await;
    let (low, high) = (heard + SILENT_SECONDS, unix_s() + 1);
    assert!(0 < heard && heard <= killed + 1 && up_since < since, "{up_since} {heard} {killed} {since}");
    assert!(low <= since + 1 && since <= high, "{low} {since} {high}");
    let (state, since, heard) = states(&cluster, 1).await;
    assert!(state == "Up" && since <= killed + 1 && heard + 1 >= killed, "{state} {since} {heard} {killed}");
    cluster.stores[1].spawn();
    cluster.until("it is back", async |cluster| states(cluster, 2).await.0 == "Up").await;
    assert!(states(&cluster, 2).await.1 >= killed);
}

/// A store's state, since when it is in it, and when it was last heard of.
async fn states(cluster: &Cluster, store: u64) -> (String, u64, u64) {
    let page = cluster.page(&format!("store/{store}")).await.unwrap_or_default();
    let seconds = |name: &str| page[name].as_u64().unwrap_or(0);
    let state = page["state"].as_str().unwrap_or_default().to_owned();
    (state, seconds("since_unix_seconds"), seconds("last_heartbeat_unix_seconds"))
}

fn unix_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copied_data_folder_is_refused() {
    let mut cluster = Cluster::start(1, 3).await;
    let copy = cluster.add_store(0);
    cluster.stores[2].stop().await;
    let (from, to) = (cluster.data_dir(&cluster.stores[2]), cluster.data_dir(&cluster.stores[copy]));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    cluster.stores[2].spawn();
    cluster.until("the original is back", async |cluster| cluster.has_replicas(3).await).await;
    cluster.stores[copy].spawn();
    cluster.until("the copy is refused", async |cluster| cluster.stores[copy].has_ended()).await;
    let said = cluster.stores[copy].said();
    assert!(said.contains("failed to register with PD") && said.contains("one of the two is a copy"), "{said}");
    put(&mut cluster.raw(2).await, "k", "v").await.unwrap();
}

/// A copy that comes while the original is not heard of is refused too, and changes nothing; a folder that was moved is taken
/// in when people have said so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_refused_while_the_original_is_not_heard_of() {
    let mut cluster = Cluster::start(1, 3).await;
    let copy = cluster.add_store(0);
    cluster.stores[2].stop().await;
    let (from, to) = (cluster.data_dir(&cluster.stores[2]), cluster.data_dir(&cluster.stores[copy]));
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    cluster.stores[2].spawn();
    cluster.until("the original is back", async |cluster| cluster.has_replicas(3).await).await;
    put(&mut cluster.raw(2).await, "since", "the copy was made").await.unwrap();
    let (done, said) = cluster.client(&cluster.pd[0], &["stores", "moved", "3"]);
    assert!(!done, "it runs: {said}");

    cluster.stores[2].pause();
    cluster.until("the original is missed", async |cluster| silent_for(cluster, 3).await >= 12.0).await;
    cluster.stores[copy].spawn();
    cluster
        .until("the copy is told what it is", async |cluster| {
            cluster.stores[copy].said().contains("one of the two is a copy; empty this one")
        })
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!cluster.stores[copy].said().contains("Registered with PD"));
    cluster.stores[2].resume();
    cluster.until("the original goes on", async |cluster| cluster.has_replicas(3).await).await;
    let page = cluster.page("store/3").await.unwrap();
    assert_eq!(page["address"].as_str(), Some(cluster.stores[2].url().as_str()));
    let read = get(&mut cluster.raw(2).await, "since").await.unwrap();
    assert_eq!(read.as_deref(), Some("the copy was made"));

    // Moved in earnest.
    cluster.stores[copy].kill();
    cluster.stores[2].stop().await;
    let (from, to) = (cluster.data_dir(&cluster.stores[2]), cluster.data_dir(&cluster.stores[copy]));
    std::fs::remove_dir_all(&to).unwrap();
    std::fs::rename(from, to).unwrap();
    cluster
        .until("the store may come from elsewhere", async |cluster| {
            cluster.client(&cluster.pd[0], &["stores", "moved", "3"]).0
        })
        .await;
    cluster.stores[copy].spawn();
    cluster
        .until("it is at its new place", async |cluster| {
            let page = cluster.page("stores").await.unwrap();
            let address = page["stores"][2]["address"].as_str();
            page["count"].as_u64() == Some(3) && address == Some(&*cluster.stores[copy].url())
        })
        .await;
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    let read = get(&mut cluster.raw(copy).await, "since").await.unwrap();
    assert_eq!(read.as_deref(), Some("the copy was made"));
}

/// Since when the placement driver has not heard of a store.
async fn silent_for(cluster: &Cluster, store: u64) -> f64 {
    let page = rpc::client::page(&cluster.pd[0].url(), "/metrics", None).await.unwrap_or_default();
    let page = String::from_utf8_lossy(&page).into_owned();
    let series = format!("flaredb_store_heartbeat_age_seconds{{store_id=\"{store}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0.0)
}

/// A store that is told to stop hands over what it leads: nobody has to miss it first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_stops_hands_over() {
    let mut cluster = Cluster::start(1, 3).await;
    let leader = cluster.leader().await;
    let mut client = cluster.raw((leader + 1) % 3).await;
    put(&mut client, "before", "v").await.unwrap();
    cluster.stores[leader].stop().await;
    let began = std::time::Instant::now();
    put(&mut client, "after", "v").await.unwrap();
    let paused = began.elapsed();
    println!("figure: a store that stops: the first write after it took {} ms", paused.as_millis());
    assert!(paused < Duration::from_millis(400), "{paused:?}: shorter than an election timeout");
    cluster.stores[leader].spawn();
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    assert_eq!(get(&mut cluster.raw(leader).await, "after").await.unwrap().as_deref(), Some("v"));
}
