//! What operators ask of the placement driver, with real stores behind it: figures, splits and moves for load, schedulers,
//! weights, operators, drains, and its own leadership.

use std::time::{Duration, Instant};

use proto::flaredb as pb;
use rpc::client::RawClient;
use serde_json::{Value, json};

use crate::cluster::{Cluster, PATIENCE, Process, get, put};

/// A page of one process: HTTP code and JSON.
async fn ask(process: &Process, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let path = format!("/pd/api/v1/{path}");
    let answer = rpc::client::exchange(&process.url(), method, &path, body.as_bytes(), None).await.unwrap();
    (answer.code, serde_json::from_slice(&answer.body).unwrap_or_default())
}

async fn done(process: &Process, method: &str, path: &str, body: Value) -> Value {
    let (code, value) = ask(process, method, path, body).await;
    assert_eq!(code, 200, "{method} {path}: {value}");
    value
}

async fn refused(process: &Process, method: &str, path: &str, body: Value) -> (u16, String) {
    let (code, value) = ask(process, method, path, body).await;
    assert!(code >= 400, "{method} {path}: {value}");
    (code, value["error"].as_str().unwrap_or_default().to_owned())
}

async fn policy(cluster: &Cluster, patch: Value) {
    done(&cluster.pd[0], "POST", "config/schedule", patch).await;
}

fn regions(page: &Value) -> Vec<Value> {
    page["regions"].as_array().cloned().unwrap_or_default()
}

fn leader_of(region: &Value) -> u64 {
    region["leader"]["store_id"].as_u64().unwrap_or(0)
}

/// Writes batches of 16 keys, drawn by `key`, for as long as it is not dropped.
fn load(cluster: &Cluster, store: usize, value_bytes: usize, key: fn(u64) -> String) -> Load {
    let url = cluster.stores[store].url();
    let task = tokio::spawn(async move {
        let mut number = 0;
        loop {
            let Ok(channel) = rpc::client::connect(&url, Duration::from_secs(5), None).await else { continue };
            let mut client = RawClient::new(channel);
            loop {
                let mutations = (number..number + 16).map(|number| pb::Mutation {
                    key: key(number).into(),
                    value: Some("v".repeat(value_bytes).into()),
                });
                let request = pb::BatchRequest { context: None, mutations: mutations.collect() };
                number += 16;
                if client.batch(request).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    Load(task)
}

struct Load(tokio::task::JoinHandle<()>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn spread(number: u64) -> String {
    format!("k{:05}", number * 7919 % 100_000)
}

/// Cuts the first region at keys, and waits for the parts.
pub async fn split_at(cluster: &mut Cluster, keys: &[&str]) {
    let page = cluster.page("regions").await.unwrap();
    let region = regions(&page)[0]["id"].clone();
    let hex = |key: &&str| key.bytes().map(|byte| format!("{byte:02X}")).collect::<String>();
    let body = json!({ "name": "split-region", "region_id": region, "keys": keys.iter().map(hex).collect::<Vec<_>>() });
    done(&cluster.pd[0], "POST", "operators", body).await;
    let wanted = keys.len() + 1;
    cluster
        .until("the region is cut", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            regions(&page).len() == wanted && regions(&page).iter().all(|region| leader_of(region) > 0)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rates_are_told_and_hot_regions_part() {
    let mut cluster = Cluster::start(1, 3).await;
    // Only load moves leaders.
    policy(&cluster, json!({ "schedulers": ["balance-hot-region"], "load-split-requests-per-sec": 0, "load-split-bytes-per-sec": 0 }))
        .await;
    split_at(&mut cluster, &["k50000"]).await;
    let page = cluster.page("regions").await.unwrap();
    let leaders: Vec<u64> = regions(&page).iter().map(leader_of).collect();
    assert_eq!(leaders[0], leaders[1], "both parts are led where the whole one was");
    let _load = load(&cluster, 0, 4000, spread);
    cluster
        .until("the figures show the load", async |cluster| {
            let page = cluster.page("stores").await.unwrap_or_default();
            let busy = |store: &Value| store["rates"]["write_bytes_per_sec"].as_u64() > Some(100_000);
            page["stores"].as_array().is_some_and(|stores| stores.iter().all(busy))
        })
        .await;
    cluster
        .until("the hot regions are led by two stores", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            let leaders: Vec<u64> = regions(&page).iter().map(leader_of).collect();
            leaders.len() == 2 && leaders[0] != leaders[1] && !leaders.contains(&0)
        })
        .await;
    let records = cluster.page("operators/records").await.unwrap();
    let moved =
        records.as_array().unwrap().iter().find(|record| record["cause"] == "hot-region").expect("it was for load");
    assert!(moved["reason"].as_str().unwrap().contains("KiB/s"), "{moved}");
    assert_eq!((moved["outcome"].as_str(), moved["step_seconds"].as_array().map(Vec::len)), (Some("done"), Some(1)));
    let hot = cluster.page("hotspot/regions/write").await.unwrap();
    let led = hot["as_leader"].as_object().unwrap().values();
    let listed: usize = led.map(|store| store["statistics"].as_array().map_or(0, Vec::len)).sum();
    assert_eq!((listed, hot["as_peer"].as_object().unwrap().len()), (2, 3), "{hot}");
    // Reads count where they are answered.
    for _ in 0..200 {
        get(&mut cluster.raw(1).await, "k00000").await.unwrap();
    }
    cluster
        .until("reads are counted", async |cluster| {
            let page = cluster.page("hotspot/stores").await.unwrap_or_default();
            page["keys-read-rate"]["2"].as_u64() > Some(0) && page["keys-read-rate"]["3"].as_u64() == Some(0)
        })
        .await;
    let (shown, said) = cluster.client(&cluster.pd[0], &["regions", "hot"]);
    assert!(shown && said.lines().count() == 2 && said.contains("hot"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_region_is_split_for_its_load_and_a_hot_key_is_not() {
    let mut cluster = Cluster::start(1, 1).await;
    policy(&cluster, json!({ "load-split-requests-per-sec": 150, "load-split-time": "2s" })).await;
    {
        let _load = load(&cluster, 0, 10, |_| "one-key".to_owned());
        cluster
            .until("the load is seen", async |cluster| {
                let page = cluster.page("regions").await.unwrap_or_default();
                regions(&page).iter().any(|region| region["requests_per_sec"].as_u64() > Some(200))
            })
            .await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let page = cluster.page("regions").await.unwrap();
        assert_eq!(regions(&page).len(), 1, "one hot key cannot be divided");
    }
    let _load = load(&cluster, 0, 10, spread);
    cluster
        .until("the load is divided", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            regions(&page).len() >= 2
        })
        .await;
    let records = cluster.page("operators/records").await.unwrap();
    let split = records.as_array().unwrap().iter().find(|record| record["cause"] == "split").expect("it was cut");
    assert!(split["reason"].as_str().unwrap().contains("requests and"), "{split}");
    let boundary = regions(&cluster.page("regions").await.unwrap())
        .iter()
        .find_map(|region| region["end_key"].as_str().filter(|key| !key.is_empty()).map(str::to_owned));
    assert!(
        boundary.as_ref().is_some_and(|key| key.starts_with("6B")),
        "within the keys that are written: {boundary:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedulers_and_store_settings_outlive_the_placement_drivers_leader() {
    let mut cluster = Cluster::start(3, 3).await;
    let (pd, follower) = (&cluster.pd[0], &cluster.pd[1]);
    done(pd, "POST", "schedulers/balance-region-scheduler", json!({ "delay": 600 })).await;
    done(follower, "DELETE", "schedulers/balance-leader-scheduler", Value::Null).await;
    done(follower, "POST", "store/2/weight", json!({ "leader": 2.0, "region": 0.5 })).await;
    done(pd, "POST", "store/2/limit", json!({ "rate": 7, "type": "add-peer" })).await;
    done(pd, "POST", "store/2/label", json!({ "zone": "z2" })).await;
    // A store that gives up its leaders gives them up.
    let victim = cluster.leader().await as u64 + 1;
    done(&cluster.pd[0], "POST", "schedulers", json!({ "name": "evict-leader-scheduler", "store_id": victim })).await;
    cluster
        .until("the store leads nothing", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            let leader = regions(&page).first().map_or(0, leader_of);
            leader != 0 && leader != victim
        })
        .await;

    let before = cluster.page("members").await.unwrap()["leader"]["member_id"].as_u64().unwrap();
    done(&cluster.pd[before as usize % 3], "POST", "leader/resign", Value::Null).await;
    cluster
        .until("another member leads, and has heard the stores", async |cluster| {
            let leader = cluster.page("members").await.unwrap_or_default()["leader"]["member_id"].as_u64();
            leader.is_some_and(|leader| leader != before) && cluster.has_replicas(3).await
        })
        .await;
    let schedulers = cluster.page("schedulers").await.unwrap();
    assert_eq!(
        schedulers,
        json!([
            "balance-hot-region-scheduler",
            "balance-region-scheduler",
            "evict-slow-store-scheduler",
            "evict-leader-scheduler"
        ])
    );
    assert_eq!(cluster.page("schedulers?status=paused").await.unwrap(), json!(["balance-region-scheduler"]));
    let explained = cluster.page("explain/store/2").await.unwrap();
    assert_eq!((explained["leader_weight"].as_f64(), explained["region_weight"].as_f64()), (Some(2.0), Some(0.5)));
    assert_eq!((explained["add_limit"].as_u64(), explained["remove_limit"].as_u64()), (Some(7), Some(15)));
    let balance = explained["balance"].as_str().unwrap();
    assert!(balance.contains("balance-region-scheduler is paused until"), "{explained}");
    let store = cluster.page("store/2").await.unwrap();
    assert_eq!(store["labels"], json!([{ "key": "zone", "value": "z2" }]));
    let evicted = cluster.page(&format!("explain/store/{victim}")).await.unwrap();
    assert!(evicted["against_leaders"].as_str().unwrap().contains("giving up its leaders"), "{evicted}");

    // A store that starts again brings its own labels, and keeps what was set.
    cluster.stores[1].stop().await;
    cluster.stores[1].spawn();
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    assert_eq!(cluster.page("store/2").await.unwrap()["labels"], json!([{ "key": "zone", "value": "z2" }]));

    let pd = &cluster.pd[0];
    done(pd, "POST", "schedulers/all", json!({ "delay": 0 })).await;
    done(pd, "POST", "schedulers", json!({ "name": "balance-leader" })).await;
    done(pd, "DELETE", &format!("schedulers/evict-leader-scheduler-{victim}"), Value::Null).await;
    done(pd, "DELETE", "store/2/label/zone", Value::Null).await;
    done(pd, "DELETE", "store/2/limit", Value::Null).await;
    assert_eq!(cluster.page("schedulers").await.unwrap().as_array().map(Vec::len), Some(4));
    assert_eq!(cluster.page("store/2").await.unwrap()["labels"], json!([]));
    assert_eq!(cluster.page("stores/limit").await.unwrap()["2"]["add-peer"], json!({ "rate": 15, "own": false }));
    let (shown, said) = cluster.client(&cluster.pd[2], &["schedulers"]);
    assert!(shown && said.contains("balance-leader-scheduler on"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_told_with_what_would_be_right() {
    let cluster = Cluster::start(3, 1).await;
    let cases = [
        ("POST", "schedulers", json!({ "name": "shuffle" }), 404, "balance-leader-scheduler"),
        ("POST", "schedulers", json!({}), 400, "balance-leader-scheduler"),
        ("POST", "schedulers", json!({ "name": "evict-leader-scheduler" }), 400, "takes a `store_id`"),
        (
            "POST",
            "schedulers",
            json!({ "name": "evict-leader-scheduler", "store_id": 9 }),
            404,
            "there is no store 9: 1",
        ),
        ("DELETE", "schedulers/nothing", Value::Null, 404, "evict-leader-scheduler"),
        ("DELETE", "schedulers/evict-leader-scheduler", Value::Null, 404, "is off already"),
        ("POST", "schedulers/all", json!({ "delay": "soon" }), 400, "{\"delay\": SECONDS}"),
        ("PUT", "schedulers", Value::Null, 405, "schedulers takes GET and POST, not PUT"),
        ("GET", "store/1/weight", Value::Null, 405, "takes POST, not GET"),
        ("POST", "store/1/weight", json!({ "leader": 0 }), 400, "evict-leader-scheduler"),
        ("POST", "store/7/weight", json!({ "leader": 1 }), 404, "there is no store 7: 1"),
        ("POST", "store/1/limit", json!({ "rate": 3, "type": "both" }), 400, "add-peer"),
        ("POST", "store/1/label", json!({ "zone": "a b" }), 400, "no spaces"),
        ("DELETE", "store/1/label/zone", Value::Null, 404, "none is set"),
        ("POST", "leader/transfer/nobody", Value::Null, 404, "(3)"),
        ("POST", "operators", json!({ "name": "dance" }), 400, "transfer-leader, transfer-peer"),
        (
            "POST",
            "operators",
            json!({ "name": "add-peer", "region_id": 99, "store_id": 1 }),
            404,
            "there is no region 99",
        ),
        ("DELETE", "operators/99", Value::Null, 404, "no operator on region 99"),
        ("GET", "operators/records?from=yesterday", Value::Null, 400, "seconds since 1970"),
        ("POST", "config/schedule", json!({ "max-replica": 1 }), 400, "max-replicas"),
        ("GET", "region/key/%4", Value::Null, 400, "two hexadecimal digits"),
        ("DELETE", "store/1", Value::Null, 409, "add a store first"),
        ("DELETE", "store/1?force=true", Value::Null, 400, "unknown parameter `force`; known: none"),
        ("GET", "stores?state=Upp", Value::Null, 400, "Up, Disconnected, Down, Offline, Tombstone"),
        ("GET", "regions?offset=3", Value::Null, 400, "known: limit"),
        ("GET", "regions/key?key=%6", Value::Null, 400, "two hexadecimal digits"),
        ("GET", "regions/store/7", Value::Null, 404, "there is no store 7"),
        ("GET", "regions/check/health", Value::Null, 404, "miss-peer, extra-peer, down-peer"),
        ("GET", "schedulers?status=on", Value::Null, 400, "status=paused or status=disabled"),
        ("POST", "store/7/moved", Value::Null, 404, "there is no store 7: 1"),
        ("POST", "store/1/moved", Value::Null, 409, "store 1 is alive at"),
    ];
    for (number, (method, path, body, code, words)) in cases.into_iter().enumerate() {
        // Whoever is asked.
        let (got, why) = refused(&cluster.pd[number % 3], method, path, body).await;
        assert!(got == code && why.contains(words), "{method} {path}: {got} {why}");
    }
    let region = regions(&cluster.page("regions").await.unwrap())[0]["id"].clone();
    let mine = |name: &str, more: Value| {
        let mut body = json!({ "name": name, "region_id": region });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for (body, code, words) in [
        (mine("transfer-leader", json!({ "to_store_id": 1 })), 409, "leads"),
        (mine("transfer-leader", json!({ "to_store_id": 4 })), 404, "it has some in 1"),
        (mine("add-peer", json!({ "store_id": 1 })), 409, "it holds a replica already"),
        (mine("add-peer", json!({ "store_id": 4 })), 404, "there is no store 4"),
        (mine("remove-peer", json!({ "store_id": 1 })), 409, "no other voter may lead"),
        (mine("split-region", json!({ "keys": ["62", "61"] })), 400, "ascend"),
    ] {
        let (got, why) = refused(&cluster.pd[0], "POST", "operators", body.clone()).await;
        let leads = words == "leads" && why.contains("the leader is in store 1 already");
        assert!(got == code && (leads || why.contains(words)), "{body}: {got} {why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_merge_regions() {
    let mut cluster = Cluster::start(1, 3).await;
    // Nothing else is done to them.
    policy(&cluster, json!({ "schedulers": [] })).await;
    split_at(&mut cluster, &["k5"]).await;
    for key in ["k1", "k9"] {
        put(&mut cluster.raw(0).await, key, "v").await.unwrap();
    }
    let page = cluster.page("regions").await.unwrap();
    let [left, right] = [0, 1].map(|number| regions(&page)[number]["id"].as_u64().unwrap());
    let asked = ["operators", "add", "merge", &right.to_string(), &left.to_string()];
    // It is taken as soon as both are measured.
    cluster
        .until("the merge is begun", async |cluster| {
            let (begun, said) = cluster.client(&cluster.pd[0], &asked);
            assert!(begun && said.contains("begun") || said.contains("is not measured yet"), "{said}");
            begun
        })
        .await;
    cluster
        .until("there is one region", async |cluster| {
            let page = cluster.page("regions").await.unwrap_or_default();
            regions(&page).len() == 1 && regions(&page)[0]["id"] == left && leader_of(&regions(&page)[0]) > 0
        })
        .await;
    for key in ["k1", "k9"] {
        assert_eq!(get(&mut cluster.raw(1).await, key).await.unwrap().as_deref(), Some("v"), "{key}");
    }
    let records = cluster.page("operators/records").await.unwrap();
    let merged = records.as_array().unwrap().iter().find(|record| record["region_id"] == right).unwrap();
    assert_eq!((merged["cause"].as_str(), merged["outcome"].as_str()), (Some("admin"), Some("done")), "{merged}");
    let (refused, why) =
        cluster.client(&cluster.pd[0], &["operators", "add", "merge", &left.to_string(), &right.to_string()]);
    assert!(!refused && why.contains(&format!("there is no region {right}")), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_are_found_by_key_by_store_and_by_what_is_the_matter() {
    let mut cluster = Cluster::start(1, 1).await;
    split_at(&mut cluster, &["b", "c"]).await;
    let starts = async |path: &str| -> Vec<String> {
        let page = done(&cluster.pd[0], "GET", path, Value::Null).await;
        assert_eq!(page["count"].as_u64(), Some(regions(&page).len() as u64));
        regions(&page).iter().map(|region| region["start_key"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(starts("regions/key?key=ba&limit=2").await, ["62", "63"]);
    assert_eq!(starts("regions/key?key=a&end_key=%63").await, ["", "62"]);
    assert_eq!(starts("regions/key").await, ["", "62", "63"]);
    assert_eq!((starts("regions?limit=2").await.len(), starts("regions/store/1").await.len()), (2, 3));
    // One store, and three replicas are wanted.
    assert_eq!(starts("regions/check/miss-peer").await.len(), 3);
    for well in
        ["extra-peer", "down-peer", "pending-peer", "learner-peer", "offline-peer", "no-leader", "oversized-region"]
    {
        assert_eq!(starts(&format!("regions/check/{well}")).await, [""; 0], "{well}");
    }
    let stats = done(&cluster.pd[0], "GET", "stats/region?start_key=b&end_key=c", Value::Null).await;
    assert_eq!((stats["count"].as_u64(), stats["missing_peers"].as_u64()), (Some(1), Some(1)), "{stats}");
    assert_eq!(stats["store_peer_count"], json!({ "1": 1 }));
    for (state, count) in [("Up", 1), ("Down", 0), ("Tombstone", 0)] {
        let stores = done(&cluster.pd[0], "GET", &format!("stores?state={state}"), Value::Null).await;
        assert_eq!(stores["count"], count, "{state}");
    }
    let config = done(&cluster.pd[0], "GET", "config", Value::Null).await;
    assert_eq!(config["schedule"], done(&cluster.pd[0], "GET", "config/schedule", Value::Null).await);
    let list = rpc::client::page(&cluster.pd[0].url(), "/pd/api/v1", None).await.unwrap();
    assert!(String::from_utf8_lossy(&list).contains("regions/check/{what}"));
    let (shown, said) = cluster.client(&cluster.pd[0], &["regions", "check", "miss-peer"]);
    assert!(shown && said.lines().count() == 3, "{said}");
    // The split, as it is told afterwards.
    cluster
        .until("the split is over", async |cluster| {
            let records = cluster.page("operators/records").await.unwrap_or_default();
            let split = records.as_array().into_iter().flatten().find(|record| record["cause"] == "admin").cloned();
            split.is_some_and(|split| {
                let [began, ended] = ["began", "ended"].map(|when| split[format!("{when}_unix_seconds")].as_u64());
                began <= ended && began > Some(1_600_000_000) && split["rejected"].is_array()
            })
        })
        .await;
    // A store knows none of these pages, and says who does.
    let answer = rpc::client::exchange(&cluster.stores[0].url(), "GET", "/pd/api/v1/stores", b"", None).await.unwrap();
    assert_eq!(answer.code, 404);
    let error: Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(error["error"].as_str().unwrap().contains("pd_addr"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_are_asked_for_and_called_off() {
    let mut cluster = Cluster::start(1, 3).await;
    policy(&cluster, json!({ "schedulers": [] })).await;
    split_at(&mut cluster, &["b", "c"]).await;
    let page = cluster.page("regions").await.unwrap();
    let region = regions(&page)[0].clone();
    let (id, leader) = (region["id"].to_string(), leader_of(&region));
    let to = leader % 3 + 1;
    let (asked, said) = cluster.client(&cluster.pd[0], &["operators", "add", "transfer-leader", &id, &to.to_string()]);
    assert!(asked && said.contains("begun: admin region"), "{said}");
    cluster
        .until("the leader is where it was wanted", async |cluster| {
            let page = cluster.page(&format!("region/id/{id}")).await.unwrap_or_default();
            leader_of(&page) == to
        })
        .await;
    cluster
        .until("its record is written", async |cluster| {
            cluster.client(&cluster.pd[0], &["operators", "--ended"]).1.contains("admin")
        })
        .await;
    let steps = format!("region={id} cause=admin steps=transfer the leader to store {to}");
    for (line, rest) in [("Operator begun", " reason=asked for by people"), ("Operator ended", " done=1 took=")] {
        let told = format!("{steps}{rest}");
        let is_told = |said: &str| said.lines().any(|said| said.contains(line) && said.contains(&told));
        cluster.until(line, async |cluster| is_told(&cluster.pd[0].said())).await;
    }

    // One that cannot come to an end is given up, with the reason; what it has begun is taken away again.
    let fourth = cluster.add_store(4);
    cluster.stores[fourth].spawn();
    cluster
        .until("the fourth store is heard of", async |cluster| {
            cluster.page("store/4").await.is_some_and(|store| store["capacity"].as_u64() > Some(1))
        })
        .await;
    policy(&cluster, json!({ "operator-no-progress-timeout": "10s", "store-disconnected-time": "3s" })).await;
    cluster.stores[fourth].kill();
    done(&cluster.pd[0], "POST", "operators", json!({ "name": "add-peer", "region_id": region["id"], "store_id": 4 }))
        .await;
    let second = regions(&page)[1]["id"].to_string();
    let body = json!({ "name": "add-peer", "region_id": regions(&page)[1]["id"], "store_id": 4 });
    done(&cluster.pd[0], "POST", "operators", body).await;
    assert_eq!(cluster.page("operators").await.unwrap().as_array().map(Vec::len), Some(2));
    let (cancelled, said) = cluster.client(&cluster.pd[0], &["operators", "cancel", &second]);
    assert!(cancelled && said.contains("cancelled: admin region"), "{said}");
    cluster
        .until("it is given up", async |cluster| {
            let records = cluster.page("operators/records").await.unwrap_or_default();
            records.as_array().is_some_and(|records| {
                records.iter().any(|record| {
                    let outcome = record["outcome"].as_str().unwrap_or_default();
                    outcome.contains(
                        "no progress for 10 s with the step: add a learner in store 4; store 4 was last heard of",
                    )
                })
            })
        })
        .await;
    assert!(cluster.pd[0].said().contains("code=CF8004"));
    cluster.until("all is as it was", async |cluster| cluster.has_replicas(3).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_drained_watched_and_brought_back() {
    let mut cluster = Cluster::start(1, 4).await;
    split_at(&mut cluster, &["b", "c", "d", "e"]).await;
    cluster.until("all are replicated", async |cluster| cluster.has_replicas(3).await).await;
    let pd = &cluster.pd[0];
    // Nothing could take the replicas in: it says so, and waits.
    for store in 1..=4 {
        done(pd, "POST", &format!("store/{store}/limit"), json!({ "rate": 0, "type": "add-peer" })).await;
    }
    // What had begun before, for balance, comes to its end.
    let at_rest = async |cluster: &mut Cluster| cluster.page("operators").await == Some(json!([]));
    cluster.until("nothing is moved any more", at_rest).await;
    let page = cluster.page("regions").await.unwrap();
    let holder = regions(&page)[0]["peers"][0]["store_id"].to_string();
    let (possible, said) = cluster.client(&cluster.pd[0], &["drain", &holder, "--dry-run"]);
    assert!(possible && said.contains("to move from store") && said.contains("duration:"), "{said}");
    assert_eq!(cluster.page(&format!("store/{holder}")).await.unwrap()["state"], "Up", "nothing was begun");
    let (begun, said) = cluster.client(&cluster.pd[0], &["drain", &holder, "--no-wait"]);
    assert!(begun && said.contains("is being emptied"), "{said}");
    let explained = cluster.page(&format!("explain/store/{holder}")).await.unwrap();
    assert!(explained["text"].as_str().unwrap().contains("store-add-limit 0"), "{explained}");
    assert!(explained["draining"]["eta_seconds"].is_null(), "nothing can be moved: {explained}");
    let (back, said) = cluster.client(&cluster.pd[0], &["drain", &holder, "--cancel"]);
    assert!(back && said.contains("is up again"), "{said}");
    assert_eq!(cluster.page(&format!("store/{holder}")).await.unwrap()["state"], "Up");
    for store in 1..=4 {
        done(&cluster.pd[0], "DELETE", &format!("store/{store}/limit"), Value::Null).await;
    }
    // Now it is watched to its end.
    let (drained, said) = cluster.client(&cluster.pd[0], &["drain", &holder]);
    assert!(drained && said.contains(&format!("store {holder} is empty and removed")), "{said}");
    assert!(said.contains("replicas moved") && said.contains("under way, about "), "{said}");
    assert_eq!(ask(&cluster.pd[0], "GET", &format!("store/{holder}"), Value::Null).await.0, 410);
    let (again, said) = cluster.client(&cluster.pd[0], &["drain", &holder]);
    assert!(!again && said.contains("is a tombstone already"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_placement_driver_passes_raw_requests_on() {
    let mut cluster = Cluster::start(3, 3).await;
    split_at(&mut cluster, &["k3", "k6"]).await;
    let mut clients = Vec::new();
    for pd in &cluster.pd {
        let channel = rpc::client::connect(&pd.url(), PATIENCE, None).await.unwrap();
        clients.push(RawClient::new(channel));
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let (key, value) = (format!("k{}", number * 3), number.to_string());
        put(client, &key, &value).await.unwrap();
    }
    let mutations = (0..9).map(|number| pb::Mutation { key: format!("k{number}x").into(), value: Some("v".into()) });
    clients[1].batch(pb::BatchRequest { context: None, mutations: mutations.collect() }).await.unwrap();
    let swap = pb::CompareAndSwapRequest {
        key: "k0".into(),
        expected: Some("0".into()),
        value: Some("9".into()),
        context: None,
    };
    assert!(clients[2].compare_and_swap(swap).await.unwrap().into_inner().swapped);
    assert_eq!(get(&mut clients[0], "k0").await.unwrap().as_deref(), Some("9"));
    assert_eq!(get(&mut cluster.raw(1).await, "k0").await.unwrap().as_deref(), Some("9"));
    let delete = pb::DeleteRequest { context: None, key: "k0".into() };
    assert!(clients[0].delete(delete).await.unwrap().into_inner().existed);
    let (scanned, said) = cluster.client(&cluster.pd[0], &["-o", "simple", "scan", "--keys-only"]);
    assert!(scanned && said.lines().count() == 11, "{said}");
    let refused = get(&mut clients[0], "").await.unwrap_err();
    assert!(refused.message().contains("key is not provided"), "{refused:?}");

    // The store that leads dies: the request finds another one.
    let leader = cluster.leader().await;
    cluster.stores[leader].kill();
    let began = Instant::now();
    while get(&mut clients[2], "k6").await.is_err() {
        assert!(began.elapsed() < PATIENCE, "another store has the key");
    }
    assert_eq!(get(&mut clients[2], "k6").await.unwrap().as_deref(), Some("2"));
}
