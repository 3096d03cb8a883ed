//! Raw keys, through any store, while stores die.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proto::flaredb as pb;

use crate::cluster::{Cluster, PATIENCE, Process, get, put};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_store_answers_for_any_key() {
    let cluster = Cluster::start(1, 3).await;
    for store in 0..3 {
        let (key, value) = (format!("key-{store}"), format!("value-{store}"));
        put(&mut cluster.raw(store).await, &key, &value).await.unwrap();
        for reader in 0..3 {
            let read = get(&mut cluster.raw(reader).await, &key).await.unwrap();
            assert_eq!(read.as_ref(), Some(&value), "written through store {store}, read through {reader}");
        }
    }
    let mut client = cluster.raw(0).await;
    assert_eq!(get(&mut client, "none").await.unwrap(), None);
    let delete = |key: &'static str| pb::DeleteRequest { context: None, key: key.into() };
    assert!(client.delete(delete("key-1")).await.unwrap().into_inner().existed);
    assert!(!client.delete(delete("key-1")).await.unwrap().into_inner().existed);

    let swap = |expected: Option<&'static str>, value: &'static str| pb::CompareAndSwapRequest {
        context: None,
        key: "swapped".into(),
        expected: expected.map(Into::into),
        value: Some(value.into()),
    };
    assert!(client.compare_and_swap(swap(None, "1")).await.unwrap().into_inner().swapped);
    let refused = client.compare_and_swap(swap(None, "2")).await.unwrap().into_inner();
    assert_eq!((refused.swapped, refused.previous.as_deref()), (false, Some(&b"1"[..])));
    assert!(client.compare_and_swap(swap(Some("1"), "2")).await.unwrap().into_inner().swapped);

    let mutation = |number: u32| pb::Mutation {
        key: format!("batch-{number:03}").into(),
        value: Some(format!("{number}").into()),
    };
    let mutations = (0..100).rev().map(mutation).collect();
    client.batch(pb::BatchRequest { context: None, mutations }).await.unwrap();
    let mut request =
        pb::ScanRequest { start: "batch-".into(), end: "batch.".into(), rows_max: 7, ..Default::default() };
    let mut keys = Vec::new();
    loop {
        let answer = cluster.raw(1).await.scan(request.clone()).await.unwrap().into_inner();
        assert!(answer.pairs.len() <= 7);
        keys.extend(answer.pairs.into_iter().map(|pair| String::from_utf8(pair.key.to_vec()).unwrap()));
        let Some(resume) = answer.resume else { break };
        request.start = resume;
    }
    assert_eq!(keys, (0..100).map(|number| format!("batch-{number:03}")).collect::<Vec<_>>());

    for (request, why) in [("", "key is not provided"), (&*"k".repeat(20_000), "at most 16384")] {
        let refused = get(&mut client, request).await.unwrap_err();
        assert!(refused.message().contains(why), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_stores_are_killed() {
    let mut cluster = Cluster::start(1, 3).await;
    let mut acknowledged = BTreeMap::new();
    let mut paused = Duration::ZERO;
    for round in 0..3 {
        let victim = cluster.leader().await;
        let other = (victim + 1) % 3;
        for number in 0..100 {
            let (key, value) = (format!("{round}-{number}"), number.to_string());
            if number == 50 {
                cluster.stores[victim].kill();
            }
            let asked = Instant::now();
            let mut client = cluster.raw(other).await;
            while let Err(why) = put(&mut client, &key, &value).await {
                assert!(asked.elapsed() < PATIENCE, "{why:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            paused = paused.max(asked.elapsed());
            acknowledged.insert(key, value);
        }
        cluster.stores[victim].spawn();
        cluster.until("the store is back", async |cluster| cluster.has_replicas(3).await).await;
    }
    println!("figure: a killed leader of a region: writes pause {} ms at most", paused.as_millis());
    for store in 0..3 {
        let mut client = cluster.raw(store).await;
        for (key, value) in &acknowledged {
            assert_eq!(get(&mut client, key).await.unwrap().as_ref(), Some(value), "store {store}");
        }
    }
}

/// Data goes on without the placement driver; what needs it waits, and comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_flow_without_the_placement_driver() {
    let mut cluster = Cluster::start(1, 3).await;
    cluster.pd[0].kill();
    for number in 0..20 {
        let mut client = cluster.raw(number % 3).await;
        put(&mut client, &format!("k{number}"), "v").await.unwrap();
    }
    let leader = cluster.stores.iter().position(|store| store.said().contains("Founded the first region")).unwrap();
    cluster.stores[leader].kill();
    let began = Instant::now();
    let mut client = cluster.raw((leader + 1) % 3).await;
    while put(&mut client, "after", "v").await.is_err() {
        assert!(began.elapsed() < PATIENCE, "the others elect a leader by themselves");
    }
    // A store that comes back needs the placement driver for nothing but to say that it is there.
    cluster.stores[leader].spawn();
    cluster.pd[0].spawn();
    cluster.until("all is well again", async |cluster| cluster.has_replicas(3).await).await;
    assert_eq!(get(&mut cluster.raw(leader).await, "after").await.unwrap().as_deref(), Some("v"));
}

/// Stores that all went down, and come back while the placement driver is away, serve what they have; what comes for the first
/// time waits, and says for what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_that_restart_go_on_without_the_placement_driver() {
    let mut cluster = Cluster::start(1, 3).await;
    put(&mut cluster.raw(0).await, "before", "v").await.unwrap();
    let fresh = cluster.add_store(4);
    cluster.pd[0].kill();
    cluster.stores[..3].iter_mut().for_each(Process::kill);
    cluster.stores.iter_mut().for_each(Process::spawn);
    let began = Instant::now();
    for store in 0..3 {
        let (key, mut client) = (format!("after-{store}"), cluster.raw(store).await);
        while let Err(why) = put(&mut client, &key, "v").await {
            assert!(began.elapsed() < PATIENCE, "store {store}: {why:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for key in ["before", &key] {
            assert_eq!(get(&mut client, key).await.unwrap().as_deref(), Some("v"), "{key} at store {store}");
        }
    }
    println!("figure: all stores killed, no placement driver: each serves within {} ms", began.elapsed().as_millis());

    let waits = "the store waits for the placement driver: ";
    let refused = get(&mut cluster.raw(fresh).await, "before").await.unwrap_err();
    assert!(refused.code() == tonic::Code::Unavailable && refused.message().starts_with(waits), "{refused:?}");
    let (code, health) = cluster.health(fresh);
    let why = health.strip_prefix(&format!(r#"{{"health":"false","reason":"{waits}"#)).unwrap_or_default();
    assert!(code == 503 && why.contains("onnect"), "what stands in the way is said: {health}");

    let registered =
        |cluster: &Cluster, store: usize| cluster.stores[store].said().matches("Registered with PD").count();
    assert_eq!((registered(&cluster, 0), registered(&cluster, fresh)), (1, 0));
    cluster.pd[0].spawn();
    cluster
        .until("all stores register", async |cluster| {
            (0..3).all(|store| registered(cluster, store) == 2) && registered(cluster, fresh) == 1
        })
        .await;
    cluster.until("all is well again", async |cluster| cluster.has_replicas(3).await).await;
    cluster.until("the last one serves, too", async |cluster| cluster.health(fresh).0 == 200).await;
}
