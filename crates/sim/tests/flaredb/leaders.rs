//! Clients that ask the leaders of keys directly, as the placement driver says, while regions are cut and stores die.

use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::flaredb as pb;
use rpc::client::{PlacementDriver, Router};
use serde_json::json;

use crate::cluster::{Cluster, PATIENCE};

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1";

fn key(number: u32) -> String {
    format!("k{number:03}")
}

/// Until it is done: what was not heard is asked again.
async fn put(router: &Router, number: u32, value: &str) {
    let request = pb::PutRequest { key: key(number).into(), value: value.to_owned().into(), ..Default::default() };
    let asked = Instant::now();
    while let Err(why) = router.put(request.clone()).await {
        assert!(asked.elapsed() < PATIENCE, "{why:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn all(router: &Router) -> Vec<(String, String)> {
    let mut request = pb::ScanRequest { start: "k".into(), end: "l".into(), rows_max: 30, ..Default::default() };
    let mut pairs = Vec::new();
    loop {
        let answer = router.scan(request.clone()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        pairs.extend(answer.pairs.iter().map(|pair| (text(&pair.key), text(&pair.value))));
        let Some(resume) = answer.resume else { return pairs };
        request.start = resume;
    }
}

/// Regions that are led, by store.
async fn led(cluster: &Cluster) -> Vec<u64> {
    let page = cluster.page("regions").await.unwrap_or_default();
    let leaders = page["regions"].as_array().cloned().unwrap_or_default().into_iter();
    leaders.filter_map(|region| region["leader"]["store_id"].as_u64()).collect()
}

async fn forwarded(cluster: &Cluster) -> f64 {
    let mut sum = 0.0;
    for store in &cluster.stores {
        let page = rpc::client::page(&store.url(), "/metrics", None).await.unwrap_or_default();
        let text = String::from_utf8_lossy(&page).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("flaredb_requests_forwarded_total "));
        sum += line.map_or(0.0, |value| value.trim().parse::<f64>().unwrap());
    }
    sum
}

/// The store that leads the only region, once one other than `but` does, as the placement driver knows it.
async fn leader_but(cluster: &mut Cluster, but: usize) -> usize {
    let mut leader = but;
    cluster
        .until("another store leads", async |cluster| {
            let led = led(cluster).await;
            leader = led.first().map_or(but, |store| *store as usize - 1);
            leader != but
        })
        .await;
    leader
}

/// A client that has a connection to the leader already, which stands still, dies, or is gone when it is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_leader_that_goes_has_not_answered_others_do() {
    let mut cluster = Cluster::start(1, 3).await;
    cluster.set_policy(r#"{"schedulers": []}"#);
    let pd = PlacementDriver::new(vec![cluster.pd[0].url()], None);
    let router = Arc::new(Router::new(Arc::new(pd), None));
    let read = |router: Arc<Router>| async move {
        let request = pb::GetRequest { key: key(1).into(), ..Default::default() };
        router.get(request).await.map(|answer| String::from_utf8(answer.value.unwrap_or_default().to_vec()).unwrap())
    };
    let write = |value: &'static str| {
        let router = router.clone();
        let request = pb::PutRequest { key: key(1).into(), value: value.into(), ..Default::default() };
        async move { router.put(request).await }
    };
    put(&router, 1, "first").await;
    assert_eq!(read(router.clone()).await.as_deref(), Ok("first"));

    // It stands still: that is found out long before the request's time is up.
    let still = leader_but(&mut cluster, usize::MAX).await;
    cluster.stores[still].pause();
    let asked = Instant::now();
    assert_eq!(read(router.clone()).await.as_deref(), Ok("first"));
    assert!(asked.elapsed() < Duration::from_secs(12), "a read took {:?}", asked.elapsed());
    put(&router, 1, "second").await;
    cluster.stores[still].resume();
    let leader = leader_but(&mut cluster, still).await;
    assert_eq!(read(router.clone()).await.as_deref(), Ok("second"));

    // It dies while it is asked to read and to write.
    cluster.stores[leader].pause();
    let unread = cluster.stores[leader].unread_bytes();
    let reading = tokio::spawn(read(router.clone()));
    cluster.until("the read is under way", async |cluster| cluster.stores[leader].unread_bytes() > unread).await;
    let unread = cluster.stores[leader].unread_bytes();
    let writing = tokio::spawn(write("third"));
    cluster.until("the write is under way", async |cluster| cluster.stores[leader].unread_bytes() > unread).await;
    cluster.stores[leader].kill();
    assert_eq!(reading.await.unwrap().as_deref().map(|value| ["second", "third"].contains(&value)), Ok(true));
    let written = writing.await.unwrap();
    assert!(
        written
            .is_err_and(|why| why.code == rpc::Code::DeadlineExceeded && why.message.contains("may yet take effect"))
    );
    cluster.stores[leader].spawn();
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    put(&router, 1, "fourth").await;

    // It is gone when it is asked: nobody has heard of the write, and it goes to another store.
    let leader = cluster.leader().await;
    assert_eq!(read(router.clone()).await.as_deref(), Ok("fourth"));
    cluster.stores[leader].kill();
    leader_but(&mut cluster, leader).await;
    write("fifth").await.unwrap();
    assert_eq!(read(router.clone()).await.as_deref(), Ok("fifth"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_ask_the_leaders_of_keys() {
    let mut cluster = Cluster::start(1, 4).await;
    cluster.set_policy(r#"{"max-merge-region-size": 0}"#);
    let pd = Arc::new(PlacementDriver::new(vec![NOBODY.to_owned(), cluster.pd[0].url()], None));
    let (router, other) = (Router::new(pd.clone(), None), Router::new(pd, None));
    for number in 0..100 {
        put(&router, number, "before").await;
    }
    let batch = |value: &'static str| {
        let mutation = |number: u32| pb::Mutation { key: key(number).into(), value: Some(value.into()) };
        pb::BatchRequest { context: None, mutations: (0..100).rev().map(mutation).collect() }
    };
    for store in 0..4 {
        cluster.raw(store).await.batch(batch("whole")).await.unwrap();
    }

    // What the client knows of the region is wrong from here on.
    let region = cluster.page("regions").await.unwrap()["regions"][0]["id"].as_u64().unwrap();
    let keys: Vec<String> = [25, 50, 75].map(|number| key(number).bytes().map(|b| format!("{b:02X}")).collect()).into();
    cluster.post("operators", &json!({ "name": "split-region", "region_id": region, "keys": keys }));
    cluster.until("four regions", async |cluster| led(cluster).await.len() == 4).await;
    // And what the stores that have no replica know of it: they cut a batch anew.
    for (store, value) in ["by 1", "by 2", "by 3", "by 4"].into_iter().enumerate() {
        cluster.raw(store).await.batch(batch(value)).await.unwrap();
        assert_eq!(all(&other).await, (0..100).map(|number| (key(number), value.to_owned())).collect::<Vec<_>>());
    }
    let by_stores = forwarded(&cluster).await;
    for number in 0..100 {
        put(&router, number, "cut").await;
    }
    assert_eq!(all(&router).await, (0..100).map(|number| (key(number), "cut".to_owned())).collect::<Vec<_>>());
    assert_eq!(forwarded(&cluster).await, by_stores, "each request went where its key is");

    router.batch(batch("together")).await.unwrap();
    let swap = pb::CompareAndSwapRequest {
        key: key(60).into(),
        expected: Some("together".into()),
        value: Some("swapped".into()),
        ..Default::default()
    };
    assert!(router.compare_and_swap(swap).await.unwrap().swapped);
    assert!(router.delete(pb::DeleteRequest { key: key(30).into(), ..Default::default() }).await.unwrap().existed);
    let read = |number: u32| pb::GetRequest { key: key(number).into(), ..Default::default() };
    let values = [(10, Some("together")), (60, Some("swapped")), (30, None)];
    for (number, value) in values {
        let answer = router.get(read(number)).await.unwrap();
        assert_eq!(answer.value.as_deref(), value.map(str::as_bytes), "{number}");
    }

    // A leader dies: the others are found.
    let victim = led(&cluster).await[0] as usize - 1;
    cluster.stores[victim].kill();
    for number in 0..100 {
        put(&router, number, "after").await;
    }
    assert_eq!(all(&router).await, (0..100).map(|number| (key(number), "after".to_owned())).collect::<Vec<_>>());

    let members = format!("{NOBODY},{}", cluster.pd[0].url());
    let (done, said) = cluster.client_at(NOBODY, &["--pd", &members, "get", "k042"]);
    assert!(done && said.trim_end() == "after", "{said}");
    let (done, said) = cluster.client_at(NOBODY, &["--pd", &members, "scan", "--prefix", "k09", "--keys-only"]);
    assert!(done && said.lines().count() == 10, "{said}");
    for words in [&["stores"][..], &["explain", "region", &region.to_string()], &["cluster-status"]] {
        let (_, said) = cluster.client_at(NOBODY, &[&["--pd", &*members][..], words].concat());
        assert!(!said.contains("Error"), "{words:?}: {said}");
    }
    let (done, said) = cluster.client_at(NOBODY, &["--pd", &cluster.stores[(victim + 1) % 4].url(), "get", "k042"]);
    assert!(!done && said.contains("is that the placement driver"), "{said}");
    let (done, said) = cluster.client_at(&cluster.pd[0].url(), &["--pd", NOBODY, "get", "k042"]);
    assert!(!done && said.contains("the placement driver does not say where the key lies"), "{said}");
}
