//! Regions that have become small are merged again, while clients write and read and stores die.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proto::flaredb as pb;
use rpc::client::RawClient;
use serde_json::Value;
use tonic::transport::Channel;

use crate::cluster::{Cluster, PATIENCE, get, put};
use crate::splits::covering;
use crate::tell;

const VALUE_BYTES: usize = 1024;
/// Large enough to be cut to pieces at one MiB.
pub const KEYS: usize = 4000;
/// Kills in which regions have become one, most of the time.
const ROUNDS: usize = 6;

pub fn key(number: usize) -> String {
    format!("key-{number:06}")
}

pub fn configure(cluster: &Cluster, policy: &str) {
    let url = format!("{}/pd/api/v1/config/schedule", cluster.pd[0].url());
    let output = Command::new("curl").args(["-s", "-d", policy, &url]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("split-merge-interval"), "{said}");
}

/// Regions of a MiB, and none is merged.
pub const CUT: &str = r#"{"region-split-size": 1, "max-merge-region-size": 0, "split-merge-interval": "1h"}"#;
/// Those are small, and at rest at once.
pub const MERGE: &str = r#"{"region-split-size": 64, "max-merge-region-size": 16, "split-merge-interval": "0s"}"#;

pub async fn regions(cluster: &Cluster) -> Result<usize, String> {
    let page: Value = cluster.page("regions").await.ok_or("no page")?;
    covering(&page)
}

/// All keys, in several regions with three replicas each on so many stores.
pub async fn cut_cluster(stores: usize) -> (Cluster, BTreeMap<String, String>) {
    let mut cluster = Cluster::start(1, stores).await;
    configure(&cluster, CUT);
    let mut written = BTreeMap::new();
    let mut client = cluster.raw(0).await;
    for number in (0..KEYS).step_by(100) {
        let pairs: Vec<(String, String)> =
            (number..number + 100).map(|at| (key(at), format!("{at}-{}", "v".repeat(VALUE_BYTES)))).collect();
        let mutations = pairs
            .iter()
            .map(|(key, value)| pb::Mutation { key: key.clone().into(), value: Some(value.clone().into()) });
        let request = pb::BatchRequest { context: None, mutations: mutations.collect() };
        let asked = Instant::now();
        while let Err(why) = client.batch(request.clone()).await {
            assert!(asked.elapsed() < PATIENCE, "{why:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        written.extend(pairs);
    }
    cluster
        .until("the regions are cut, and replicated", async |cluster| {
            regions(cluster).await.is_ok_and(|count| count >= 4) && cluster.has_replicas(3).await
        })
        .await;
    (cluster, written)
}

/// One that writes its own key, every time a larger number, and reads it back; over and over.
pub struct Worker {
    stop: Arc<AtomicBool>,
    pub done: Arc<AtomicU64>,
    handle: tokio::task::JoinHandle<Told>,
}

/// What a worker leaves behind: its keys, and what the last write to each that was acknowledged was. Of all but the last key, one
/// more write may have taken effect.
pub struct Told {
    keys: Vec<(String, u64)>,
}

impl Worker {
    /// Whether a key is one of a worker's.
    pub fn owns(key: &str) -> bool {
        key.contains('+')
    }

    pub fn start(base: String, urls: Vec<String>) -> Worker {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, counted) = (stop.clone(), done.clone());
        let handle = tokio::spawn(async move {
            let mut clients: BTreeMap<usize, RawClient<Channel>> = BTreeMap::new();
            let mut keys = vec![(format!("{base}0"), 0)];
            for round in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let at = round % urls.len();
                if let Entry::Vacant(place) = clients.entry(at) {
                    match rpc::client::connect(&urls[at], Duration::from_secs(1), None).await {
                        Ok(channel) => {
                            place.insert(RawClient::new(channel));
                        }
                        Err(_) => continue,
                    }
                }
                let client = clients.get_mut(&at).unwrap();
                let patience = Duration::from_secs(5);
                let count = keys.len();
                let (key, known) = keys.last_mut().unwrap();
                match tokio::time::timeout(patience, put(client, key, &(*known + 1).to_string())).await {
                    Ok(Ok(())) => *known += 1,
                    _ => {
                        // It may yet take effect, whenever: nothing more is written there.
                        clients.remove(&at);
                        keys.push((format!("{base}{count}"), 0));
                        continue;
                    }
                }
                counted.fetch_add(1, Ordering::Relaxed);
                match tokio::time::timeout(patience, get(client, key)).await {
                    Ok(Ok(read)) => assert_eq!(read, Some(known.to_string()), "{key}"),
                    _ => drop(clients.remove(&at)),
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Told { keys }
        });
        Worker { stop, done, handle }
    }

    pub async fn end(self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        let Told { keys } = self.handle.await.expect("no worker read what it should not");
        let last = keys.len() - 1;
        for (at, (key, known)) in keys.into_iter().enumerate() {
            let read = get(&mut cluster.raw(1).await, &key).await.unwrap().map_or(0, |read| read.parse().unwrap());
            assert!(read == known || (at < last && read == known + 1), "{key} is {read}, and {known} was acknowledged");
            let request = pb::DeleteRequest { context: None, key: key.into() };
            cluster.raw(2).await.delete(request).await.unwrap();
        }
    }
}

/// Everything is there, whoever is asked, and nothing else.
pub async fn check_all(cluster: &mut Cluster, written: &BTreeMap<String, String>) {
    check_written(cluster, written, |_| true).await;
}

/// Of the keys of these names everything is there, and no more.
pub async fn check_written(cluster: &mut Cluster, written: &BTreeMap<String, String>, is_of_these: fn(&str) -> bool) {
    for (number, (key, value)) in written.iter().enumerate() {
        let read = get(&mut cluster.raw(number % cluster.stores.len()).await, key).await.unwrap();
        assert!(read.as_ref() == Some(value), "{key} is another one");
    }
    let keys = ["-o", "simple", "scan", "--keys-only", "--limit", "100000"];
    let (done, said) = cluster.client(&cluster.stores[1], &keys);
    assert!(
        done && said.lines().filter(|key| is_of_these(key)).eq(written.keys()),
        "{} lines: {}",
        said.lines().count(),
        &said[..said.len().min(300)]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_regions_merge_under_writers_and_kills_and_nothing_is_lost() {
    let (mut cluster, written) = cut_cluster(3).await;
    let before = regions(&cluster).await.unwrap();
    let urls: Vec<String> = cluster.stores.iter().map(|store| store.url()).collect();
    let step = KEYS / 8;
    // Between the keys that are there, one or more in each region.
    let workers: Vec<Worker> = (0..8).map(|at| Worker::start(format!("{}+", key(at * step)), urls.clone())).collect();
    configure(&cluster, MERGE);
    // Stores die while regions are being merged, whatever they are at; whole clusters' worth of them twice.
    let mut merging = 0;
    for round in 0..tell::runs(ROUNDS) {
        let victim = round % 3;
        if round >= ROUNDS && regions(&cluster).await == Ok(1) {
            configure(&cluster, CUT);
            cluster.until("it is cut", async |cluster| regions(cluster).await.is_ok_and(|count| count >= 4)).await;
            configure(&cluster, MERGE);
        }
        tokio::time::sleep(Duration::from_millis(700 + 331 * (round % ROUNDS) as u64)).await;
        merging += usize::from(regions(&cluster).await != Ok(1));
        cluster.stores[victim].kill();
        if round % ROUNDS == 4 {
            // Nobody is left to tell anybody what was committed.
            (0..3).filter(|store| *store != victim).for_each(|store| cluster.stores[store].kill());
            (0..3).filter(|store| *store != victim).for_each(|store| cluster.stores[store].spawn());
        }
        tokio::time::sleep(Duration::from_millis(1500)).await;
        cluster.stores[victim].spawn();
        cluster.until("the store is back", async |cluster| cluster.has_replicas(3).await).await;
    }
    cluster.until("all are one again", async |cluster| regions(cluster).await == Ok(1)).await;
    let writes: u64 = workers.iter().map(|worker| worker.done.load(Ordering::Relaxed)).sum();
    tell::figure(format_args!(
        "{before} regions became one under {writes} writes; {merging} kills before they were one"
    ));
    tell::done(merging);
    for worker in workers {
        worker.end(&cluster).await;
    }
    check_all(&mut cluster, &written).await;
    // Nothing is left of the others on any store, and a start finds what there is.
    cluster
        .until("nothing is left of the merged regions", async |cluster| {
            let mut counts = Vec::new();
            for store in &cluster.stores {
                let page = rpc::client::page(&store.url(), "/metrics", None).await.unwrap_or_default();
                let page = String::from_utf8_lossy(&page).into_owned();
                let count = page.lines().find_map(|line| line.strip_prefix("flaredb_regions "));
                counts.push(count.map(str::to_owned));
            }
            counts.iter().all(|count| count.as_deref() == Some("1"))
        })
        .await;
    for store in 0..3 {
        cluster.stores[store].stop().await;
        cluster.stores[store].spawn();
        cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    }
    check_all(&mut cluster, &written).await;
    // And it is cut again.
    configure(&cluster, CUT);
    cluster.until("it is cut again", async |cluster| regions(cluster).await.is_ok_and(|count| count >= 4)).await;
    check_all(&mut cluster, &written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_that_cannot_go_on_is_given_up_and_writes_go_on() {
    let (mut cluster, written) = cut_cluster(3).await;
    let urls: Vec<String> = cluster.stores.iter().map(|store| store.url()).collect();
    let step = KEYS / 8;
    let workers: Vec<Worker> = (0..8).map(|at| Worker::start(format!("{}+", key(at * step)), urls.clone())).collect();
    configure(&cluster, MERGE);
    // A store stands still between the plan and the freeze: it is a member that does not answer.
    let given_up =
        |cluster: &Cluster| cluster.stores.iter().any(|store| store.said().contains("A region goes on as it was"));
    let mut paused = None;
    cluster
        .until("a merge was given up", async |cluster| {
            if let Some((store, since)) = paused {
                let since: Instant = since;
                let store: usize = store;
                if !given_up(cluster) && since.elapsed() < Duration::from_secs(15) {
                    return false;
                }
                if given_up(cluster) {
                    return true;
                }
                // The step was taken before.
                cluster.stores[store].resume();
                paused = None;
            }
            let Some(operators) = cluster.page("operators").await else { return false };
            let merge =
                operators.as_array().into_iter().flatten().find(|operator| operator["cause"] == "merge").cloned();
            let Some(page) = cluster.page("regions").await else { return false };
            let Some(merge) = merge else { return false };
            let regions = page["regions"].as_array().cloned().unwrap_or_default();
            let source = regions.iter().find(|region| region["id"] == merge["region_id"]);
            let Some(leader) = source.and_then(|region| region["leader"]["store_id"].as_u64()) else { return false };
            let store = (leader % 3) as usize;
            cluster.stores[store].pause();
            paused = Some((store, Instant::now()));
            false
        })
        .await;
    let (store, _) = paused.expect("one was paused");
    let done = || workers.iter().map(|worker| worker.done.load(Ordering::Relaxed)).collect::<Vec<u64>>();
    let before = done();
    cluster
        .until("writes go on everywhere", async |_| done().iter().zip(&before).all(|(now, before)| *now > before + 5))
        .await;
    cluster.stores[store].resume();
    // With the store back they are merged.
    cluster.until("all are one again", async |cluster| regions(cluster).await == Ok(1)).await;
    for worker in workers {
        worker.end(&cluster).await;
    }
    check_all(&mut cluster, &written).await;
    // No store has begun anew, so the pages tell it all.
    let figures =
        ["merges_begun_total", "merges_done_total", "merges_given_up_total", "merge_frozen_duration_seconds_count"];
    cluster
        .until("what came of the merges is counted, and none is under way", async |cluster| {
            let [begun, done, given_up, frozen] = figures.map(|name| format!("flaredb_{name}"));
            let (begun, done) = (sum(cluster, &begun).await, sum(cluster, &done).await);
            let (given_up, frozen) = (sum(cluster, &given_up).await, sum(cluster, &frozen).await);
            let under_way = sum(cluster, "flaredb_merge_frozen_seconds").await;
            begun >= done && done >= 1.0 && given_up >= 1.0 && frozen == done + given_up && under_way == 0.0
        })
        .await;
}

/// Of all samples of a name, on all stores.
async fn sum(cluster: &Cluster, name: &str) -> f64 {
    let mut sum = 0.0;
    for store in &cluster.stores {
        let page = rpc::client::page(&store.url(), "/metrics", None).await.unwrap_or_default();
        let page = String::from_utf8_lossy(&page).into_owned();
        let samples = page.lines().filter(|line| line.split([' ', '{']).next() == Some(name));
        sum += samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>();
    }
    sum
}
