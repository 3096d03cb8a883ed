//! Stores that lose what they had.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rpc::client::RawClient;
use serde_json::{Value, json};
use storage::rocks::{RocksEngine, RocksOptions};
use storage::{Engine as _, FamilyId, FamilySpec, WriteBatch};

use crate::cluster::{Cluster, get, put};
use crate::tell;

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

/// One store of five is wiped, and when nothing is missing any more another one; each has replicas of some regions, as it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_of_five_that_are_wiped_in_turn_lose_nothing() {
    const STORES: usize = 5;
    const REGIONS: usize = 8;
    let (wiped_max, seed) = (tell::runs(2), tell::seed());
    let mut rng = base::Rng::new(seed);
    let mut cluster = Cluster::start(1, STORES).await;
    let key = |number: usize| format!("k{number:03}");
    for number in 0..100 * REGIONS {
        put(&mut cluster.raw(number % STORES).await, &key(number), &number.to_string()).await.unwrap();
    }
    let hex = |text: String| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let keys: Vec<String> = (1..REGIONS).map(|region| hex(key(100 * region))).collect();
    let region = cluster.page("regions").await.unwrap()["regions"][0]["id"].clone();
    cluster.post("operators", &json!({ "name": "split-region", "region_id": region, "keys": keys }));
    cluster.until("all regions are whole", async |cluster| are_whole(cluster, STORES, REGIONS, 0).await).await;

    let (mut wiped, mut missing, mut times) = (0, 0, Vec::new());
    let mut last = STORES;
    while wiped < wiped_max {
        let victim = rng.below(STORES as u64) as usize;
        if victim == last {
            continue;
        }
        last = victim;
        let page = cluster.page("stores").await.unwrap();
        let stores = page["stores"].as_array().cloned().unwrap_or_default();
        let own = stores.iter().find(|store| store["address"] == cluster.stores[victim].url()).expect("it is known");
        let id = own["id"].as_u64().unwrap();
        missing += own["region_count"].as_u64().unwrap_or(0);
        cluster.stores[victim].kill();
        fs::remove_dir_all(cluster.data_dir(&cluster.stores[victim])).unwrap();
        put(&mut cluster.raw((victim + 1) % STORES).await, "meanwhile", &wiped.to_string()).await.unwrap();
        cluster.stores[victim].spawn();
        let began = Instant::now();
        let what = format!("nothing is missing of store {id} (seed {seed})");
        cluster.until(&what, async |cluster| are_whole(cluster, STORES, REGIONS, id).await).await;
        times.push(began.elapsed());
        let through = rng.below(STORES as u64) as usize;
        for number in 0..100 * REGIONS {
            let read = get(&mut cluster.raw(through).await, &key(number)).await.unwrap();
            assert_eq!(read, Some(number.to_string()), "after store {id} was wiped (seed {seed})");
        }
        let read = get(&mut cluster.raw(through).await, "meanwhile").await.unwrap();
        assert_eq!(read, Some(wiped.to_string()), "seed {seed}");
        wiped += 1;
    }
    tell::figure(format_args!(
        "{wiped} stores of {STORES} wiped in turn, {missing} replicas lost of {REGIONS} regions; made anew in {} (seed {seed})",
        tell::spread(&times)
    ));
    tell::done(wiped);
}

/// Whether so many stores are up, none of them the lost one, and so many regions have three replicas, all of them there.
async fn are_whole(cluster: &Cluster, stores: usize, regions: usize, lost: u64) -> bool {
    let page = cluster.page("stores").await.unwrap_or_default();
    let up = page["stores"].as_array().cloned().unwrap_or_default();
    let all_up = up.len() == stores && up.iter().all(|store| store["id"] != lost && store["state"] == "Up");
    let page = cluster.page("regions").await.unwrap_or_default();
    let known = page["regions"].as_array().cloned().unwrap_or_default();
    let elsewhere = |region: &Value| {
        let peers = region["peers"].as_array().cloned().unwrap_or_default();
        peers.iter().all(|peer| peer["store_id"] != lost)
    };
    all_up && known.len() == regions && known.iter().all(elsewhere) && cluster.has_replicas(3).await
}

/// A stopped store's families, as `flaredb` has them.
const FAMILIES: [FamilySpec; 2] = [
    FamilySpec { name: "raw", droppable: None, bloom: true, sequential: false },
    FamilySpec { name: "region", droppable: None, bloom: true, sequential: false },
];
const RAW: FamilyId = FamilyId(0);
const REGION: FamilyId = FamilyId(1);
/// Of the rolling hash in a region's state record.
const HASH_AT: std::ops::Range<usize> = 17..25;

/// Alters a pair of a region, and the region's hash with it, as a machine would that applies its entries otherwise.
fn alter(folder: &Path) {
    let engine = RocksEngine::open(folder, &FAMILIES, &RocksOptions::default()).unwrap();
    let view = engine.view();
    let mut walk = view.scan(REGION, &[], None);
    while walk.valid() && walk.key()[8] != b's' {
        walk.advance();
    }
    let (key, mut state) = (walk.key().to_vec(), walk.value().to_vec());
    drop(walk);
    drop(view);
    state[HASH_AT].iter_mut().for_each(|byte| *byte ^= 0xA5);
    let mut batch = WriteBatch::new();
    batch.put(REGION, &key, &state);
    batch.put(RAW, b"\x01k000", b"another");
    engine.write(&batch).unwrap();
    engine.flush().unwrap();
}

/// A replica that is not what the others are answers nothing and is replaced, also where there is no other store for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_differs_is_replaced() {
    let mut cluster = Cluster::start(1, 3).await;
    for number in 0..100 {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &number.to_string()).await.unwrap();
    }
    let leader = cluster.leader().await;
    let differs = (leader + 1) % 3;
    let peer_of = |page: &serde_json::Value| {
        let peers = page["regions"][0]["peers"].as_array().cloned().unwrap_or_default();
        let peer = peers.iter().find(|peer| peer["store_id"] == differs as u64 + 1);
        peer.map(|peer| peer["id"].to_string())
    };
    let before = peer_of(&cluster.page("regions").await.unwrap()).unwrap();
    cluster.stores[differs].stop().await;
    alter(&cluster.data_dir(&cluster.stores[differs]));
    cluster.stores[differs].spawn();
    let mut writer = cluster.raw(leader).await;
    let mut number = 0;
    cluster
        .until("another peer has its place", async |cluster| {
            // Hashes are compared every 256 entries.
            for _ in 0..64 {
                number += 1;
                put(&mut writer, &format!("more{number:05}"), "v").await.unwrap();
            }
            let page = cluster.page("regions").await.unwrap_or_default();
            peer_of(&page).is_some_and(|peer| peer != before) && cluster.has_replicas(3).await
        })
        .await;
    assert!(cluster.stores[differs].said().contains("This replica differs from most"));
    assert_eq!(get(&mut cluster.raw(differs).await, "k000").await.unwrap().as_deref(), Some("0"));
}

/// Where the others are enough, a damaged store is given up, and made anew as another one, without an operator.
async fn is_made_anew(harm: fn(&Path)) {
    let mut cluster = Cluster::start(1, 3).await;
    for number in 0..100 {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &number.to_string()).await.unwrap();
    }
    let damaged = cluster.leader().await;
    let id = damaged as u64 + 1;
    cluster.stores[damaged].stop().await;
    harm(&cluster.data_dir(&cluster.stores[damaged]));
    cluster.stores[damaged].spawn();
    let began = std::time::Instant::now();
    cluster
        .until("the damaged store is made anew", async |cluster| {
            let page = cluster.page("stores").await.unwrap_or_default();
            let stores = page["stores"].as_array().cloned().unwrap_or_default();
            let gone = stores.len() == 3 && stores.iter().all(|store| store["id"] != id && store["state"] == "Up");
            let page = cluster.page("regions").await.unwrap_or_default();
            let peers = page["regions"][0]["peers"].as_array().cloned().unwrap_or_default();
            gone && peers.iter().all(|peer| peer["store_id"] != id) && cluster.has_replicas(3).await
        })
        .await;
    println!("figure: a damaged store was whole again after {} ms", began.elapsed().as_millis());
    assert!(cluster.stores[damaged].said().contains("This store was damaged and begins anew"));
    assert_eq!(get(&mut cluster.raw(damaged).await, "k042").await.unwrap().as_deref(), Some("42"));
}

/// The middle byte of what was written to the first segment.
pub fn flip_in_log(folder: &Path) {
    let files = fs::read_dir(folder.join("raft")).unwrap().map(|entry| entry.unwrap().path());
    // Those that are kept for later are empty.
    let written = |path: &std::path::PathBuf| fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let segment = files.max_by_key(written).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let end = written(&segment);
    assert!(end > 1000, "{} bytes in {}", end, segment.display());
    bytes[end / 2] ^= 1;
    fs::write(&segment, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_a_damaged_log_is_made_anew() {
    is_made_anew(flip_in_log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_with_a_damaged_state_is_made_anew() {
    is_made_anew(|folder| fs::remove_file(folder.join("CURRENT")).unwrap()).await;
}

/// Damage that comes while a store runs and is read and written: nothing wrong is answered, nobody waits for long, and the store
/// is made anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_damaged_under_load_is_made_anew() {
    const KEYS: u64 = 4000;
    let key = |number: u64| format!("k{number:05}");
    // Bytes that no compression makes smaller.
    let value = |number: u64| {
        let mut random = base::Rng::new(number + 1);
        (0..1000).map(|_| char::from(b'0' + random.below(75) as u8)).collect::<String>()
    };
    let mut cluster = Cluster::start(1, 3).await;
    for number in 0..KEYS {
        put(&mut cluster.raw(0).await, &key(number), &value(number)).await.unwrap();
    }
    // What was written is in files, and most of it in no cache: before the damage only some is read.
    let bound = Arc::new(AtomicU64::new(KEYS / 8));
    let damaged = cluster.leader().await;
    cluster.stores[damaged].stop().await;
    cluster.stores[damaged].spawn();
    cluster.until("the store is back", async |cluster| cluster.has_replicas(3).await).await;
    let (id, urls) = (damaged as u64 + 1, cluster.stores.iter().map(|store| store.url()).collect::<Vec<_>>());
    let (stop, read) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let readers: Vec<_> = urls
        .into_iter()
        .map(|url| {
            let (stop, read, bound) = (stop.clone(), read.clone(), bound.clone());
            tokio::spawn(async move {
                let (mut random, mut longest) = (base::Rng::new(7), Duration::ZERO);
                let mut answered = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let Ok(channel) = rpc::client::connect(&url, Duration::from_secs(1), None).await else {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        continue;
                    };
                    let mut client = RawClient::new(channel);
                    loop {
                        let number = random.below(bound.load(Ordering::Relaxed));
                        match get(&mut client, &key(number)).await {
                            Ok(found) => assert!(found == Some(value(number)), "{} is {found:?}", key(number)),
                            Err(_) => break,
                        }
                        longest = longest.max(answered.elapsed());
                        answered = Instant::now();
                        read.fetch_add(1, Ordering::Relaxed);
                        if stop.load(Ordering::Relaxed) || put(&mut client, "written", "meanwhile").await.is_err() {
                            break;
                        }
                    }
                }
                longest
            })
        })
        .collect();
    cluster.until("there is load", async |_| read.load(Ordering::Relaxed) > 300).await;

    let began = Instant::now();
    let harmed = flip_in_tables(&cluster.data_dir(&cluster.stores[damaged]));
    bound.store(KEYS, Ordering::Relaxed);
    cluster
        .until("the damaged store is made anew", async |cluster| {
            let page = cluster.page("stores").await.unwrap_or_default();
            let stores = page["stores"].as_array().cloned().unwrap_or_default();
            let gone = stores.len() == 3 && stores.iter().all(|store| store["id"] != id && store["state"] == "Up");
            gone && cluster.has_replicas(3).await
        })
        .await;
    println!("figure: {harmed} bytes flipped under load: whole again after {} ms", began.elapsed().as_millis());
    let said = cluster.stores[damaged].said();
    assert!(said.contains("CF8540") && said.contains("This store was damaged and begins anew"), "{said}");
    stop.store(true, Ordering::Relaxed);
    for (store, reader) in readers.into_iter().enumerate() {
        let longest = reader.await.expect("nothing wrong was read");
        println!("figure: through store {}: no answer for {} ms at most", store + 1, longest.as_millis());
        assert!(store == damaged || longest < Duration::from_secs(5), "store {}: {longest:?}", store + 1);
    }
    for number in (0..KEYS).step_by(97) {
        assert!(get(&mut cluster.raw(damaged).await, &key(number)).await.unwrap() == Some(value(number)));
    }
}

/// A byte in every 4 KiB of each table file that is there; how many.
fn flip_in_tables(folder: &Path) -> usize {
    use std::os::unix::fs::FileExt as _;
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut flipped = 0;
    for table in files.filter(|path| path.extension().is_some_and(|end| end == "sst")) {
        let file = fs::OpenOptions::new().read(true).write(true).open(&table).unwrap();
        for at in (100..file.metadata().unwrap().len()).step_by(4096) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 10, "{flipped} bytes in {}", folder.display());
    flipped
}

/// What is nowhere else is not given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_replica_is_never_given_up() {
    let mut cluster = Cluster::start(1, 1).await;
    put(&mut cluster.raw(0).await, "k", "v").await.unwrap();
    cluster.stores[0].stop().await;
    let folder = cluster.data_dir(&cluster.stores[0]);
    fs::rename(folder.join("CURRENT"), folder.join("CURRENT.gone")).unwrap();
    for _ in 0..2 {
        cluster.stores[0].spawn();
        cluster.until("the store ends", async |cluster| cluster.stores[0].has_ended()).await;
        cluster.stores[0].reap();
        let said = cluster.stores[0].said();
        assert!(said.contains("has its only replica there") && said.contains("empty it if its data may go"), "{said}");
    }
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(names.into_iter().all(|name| !name.starts_with("lost-")) && folder.join("raft").exists());
}

/// A store that slept while its replica was replaced is asked for what it has no more, before it is told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_one_no_more_forwards() {
    let mut cluster = Cluster::start(1, 3).await;
    put(&mut cluster.raw(0).await, "k", "v").await.unwrap();
    let fourth = cluster.add_store(4);
    cluster.stores[fourth].spawn();
    cluster.set_policy(r#"{"store-disconnected-time": "3s", "max-store-down-time": "10s"}"#);
    let sleeper = (cluster.leader().await + 1) % 3;
    let mut client = cluster.raw(sleeper).await;
    cluster.stores[sleeper].pause();
    cluster
        .until("its replica is replaced", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            let peers = page["regions"][0]["peers"].as_array().cloned().unwrap_or_default();
            peers.iter().any(|peer| peer["store_id"] == 4) && cluster.has_replicas(3).await
        })
        .await;
    cluster.stores[sleeper].resume();
    let began = std::time::Instant::now();
    assert_eq!(get(&mut client, "k").await.unwrap().as_deref(), Some("v"));
    println!("figure: asked of a replica that is one no more: {} ms", began.elapsed().as_millis());
    put(&mut client, "k", "w").await.unwrap();
    assert_eq!(get(&mut client, "k").await.unwrap().as_deref(), Some("w"));
}
