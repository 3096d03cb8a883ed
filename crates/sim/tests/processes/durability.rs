//! All nodes die at once, in the middle of writes: what was acknowledged is there when they are back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;
use tokio::task::JoinHandle;

use crate::client::{self, Client};
use crate::cluster::{Cluster, Options, PATIENCE};
use crate::tell::{done, fails, figure, runs};

const WRITERS_PER_NODE: usize = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_killed_at_once_lose_nothing_acknowledged() {
    nothing_is_lost(3, runs(3)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_killed_loses_nothing_acknowledged() {
    nothing_is_lost(1, runs(4)).await;
}

async fn nothing_is_lost(nodes: usize, rounds: usize) {
    let mut cluster = Cluster::start_with(nodes, Options::brisk()).await;
    let mut acknowledged = Acknowledged::default();
    let mut restarts = Vec::new();
    for round in 0..rounds {
        let writers = Writers::start(&cluster.endpoints(), WRITERS_PER_NODE, &format!("round-{round}"));
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.kill_all();
        let written = writers.finish().await;
        assert!(!written.is_empty(), "nothing was written in round {round}");
        acknowledged.extend(written);
        let began = Instant::now();
        (0..nodes).for_each(|index| cluster.spawn(index));
        cluster.wait_until_all_serve().await;
        restarts.push(began.elapsed());
        for index in 0..nodes {
            assert_holds(&cluster.client(index), &acknowledged).await;
        }
    }
    cluster.assert_equal_hashes().await;
    figure(format_args!(
        "durability: {nodes} nodes killed {rounds} times, {} writes acknowledged, 0 lost; serving again after {}",
        acknowledged.len(),
        crate::tell::spread(&restarts)
    ));
    done(rounds);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_keeps_data_and_revision() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    for number in 0..300 {
        client.put(&format!("key-{}", number % 50), &format!("value-{number}")).await.unwrap();
    }
    client.delete("key-7").await.unwrap();
    let before = client.prefix("key-").await.unwrap();
    let hash = client.hash_kv(0).await.unwrap();

    cluster.stop(0).await;
    let began = Instant::now();
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    figure(format_args!("restart: a single stopped node serves again after {} ms", began.elapsed().as_millis()));

    let client = cluster.client(0);
    let after = client.prefix("key-").await.unwrap();
    assert_eq!(client::revision(&after.header), client::revision(&before.header));
    assert_eq!(after.kvs, before.kvs);
    assert_eq!(after.kvs.len(), 49);
    let hash_after = client.hash_kv(0).await.unwrap();
    assert_eq!((hash_after.hash, hash_after.compact_revision), (hash.hash, hash.compact_revision));
    let next = client.put("key-7", "back").await.unwrap();
    assert_eq!(client::revision(&next.header), client::revision(&before.header) + 1);
}

/// What a node has once answered from its own state it does not forget by a kill, though it knows by half only how far its log was
/// committed: it answers from there again, or not yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_does_not_go_back_in_time() {
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let rounds = runs(6);
    for round in 1..=rounds {
        let leader = cluster.leader().await;
        let victim = (leader + round) % 3;
        cluster.client(leader).put("counter", &round.to_string()).await.unwrap();
        let written = Instant::now();
        while own_answer(&cluster, victim).await != Some(round) {
            assert!(written.elapsed() < PATIENCE, "it does not hear of {round}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        cluster.kill(victim);
        cluster.spawn(victim);
        let began = Instant::now();
        let first = loop {
            if let Some(answer) = own_answer(&cluster, victim).await {
                break answer;
            }
            assert!(began.elapsed() < PATIENCE, "it answers nothing");
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        assert_eq!(first, round, "a node that had answered {round} was killed and answers {first}");
        cluster.wait_until_serving(victim).await;
    }
    figure(format_args!("serializable reads: {rounds} nodes killed right after a write, none answered from before it"));
}

/// A serializable read of the counter. A connection of its own each time: one that was refused waits.
async fn own_answer(cluster: &Cluster, index: usize) -> Option<usize> {
    let client = cluster.client_within(index, Duration::from_secs(1));
    let request = pb::RangeRequest { key: client::bytes("counter"), serializable: true, ..Default::default() };
    let found = client.range(request).await.ok()?.kvs;
    Some(found.first().map_or(0, |pair| client::text(&pair.value).parse().unwrap()))
}

/// Key → (value, revision of the acknowledged put).
pub type Acknowledged = BTreeMap<String, (String, i64)>;

/// Every acknowledged write is there, at its revision.
pub async fn assert_holds(client: &Client, acknowledged: &Acknowledged) {
    let present = client.prefix(Writers::PREFIX).await.unwrap();
    let present: Acknowledged = present
        .kvs
        .iter()
        .map(|pair| (client::text(&pair.key), (client::text(&pair.value), pair.mod_revision)))
        .collect();
    let lost: Vec<_> = acknowledged.iter().filter(|(key, written)| present.get(*key) != Some(*written)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} acknowledged writes are lost or changed, among them {:?}",
        lost.len(),
        acknowledged.len(),
        &lost[..lost.len().min(5)]
    );
}

/// The check has teeth: a write that is lost, one with another value, one at another revision do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_and_changed_writes_are_seen() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let key = format!("{}own", Writers::PREFIX);
    let revision = client::revision(&client.put(&key, "1").await.unwrap().header);
    let good = Acknowledged::from([(key.clone(), ("1".to_owned(), revision))]);
    assert_holds(&client, &good).await;
    for (key, value, revision) in [
        (format!("{}lost", Writers::PREFIX), "1", revision),
        (key.clone(), "2", revision),
        (key.clone(), "1", revision + 1),
    ] {
        let mut bad = good.clone();
        bad.insert(key.clone(), (value.to_owned(), revision));
        let client = client.clone();
        let check = async move { assert_holds(&client, &bad).await };
        assert!(fails(check).await, "{key} = {value} at {revision} went unnoticed");
    }
}

/// Two nodes that know nothing of each other are a cluster whose replicas differ as soon as they are told different things.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_differ_are_seen() {
    let mut cluster = Cluster::new(2, Options::default());
    for index in 0..2 {
        cluster.nodes[index].initial_cluster = format!("{}={}", cluster.nodes[index].name, cluster.peer_url(index));
        cluster.spawn(index);
    }
    cluster.wait_until_all_serve().await;
    let cluster = Arc::new(cluster);
    for (value, elsewhere) in [("1", "1"), ("2", "altered"), ("3", "3")] {
        cluster.client(0).put("key", value).await.unwrap();
        cluster.client(1).put("key", elsewhere).await.unwrap();
        let differ = {
            let cluster = cluster.clone();
            fails(async move { cluster.assert_equal_hashes().await }).await
        };
        assert_eq!(differ, value != "1", "after {value} and {elsewhere}");
    }
}

/// Clients that put keys of their own, each once, as fast as they are answered.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Log,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    pub const PREFIX: &str = "written/";
    const CALL_TIMEOUT: Duration = Duration::from_millis(1500);
    const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(10);

    /// `label` keeps the keys of one call from those of others.
    pub fn start(endpoints: &[String], per_endpoint: usize, label: &str) -> Writers {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Log::default();
        let addresses = endpoints.iter().flat_map(|address| std::iter::repeat_n(address, per_endpoint));
        let tasks = addresses.enumerate().map(|(writer, address)| {
            let client = Client::with_timeout(address, Writers::CALL_TIMEOUT);
            let (stop, acknowledged) = (stop.clone(), Arc::clone(&acknowledged));
            let prefix = format!("{}{label}/{writer}", Writers::PREFIX);
            tokio::spawn(write(client, prefix, stop, acknowledged))
        });
        Writers { tasks: tasks.collect(), stop, acknowledged }
    }

    /// When the acknowledgements so far came, in order.
    pub fn moments(&self) -> Vec<Instant> {
        let mut moments: Vec<Instant> = self.acknowledged.lock().unwrap().iter().map(|write| write.3).collect();
        moments.sort();
        moments
    }

    pub async fn finish(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let acknowledged = std::mem::take(&mut *self.acknowledged.lock().unwrap());
        acknowledged.into_iter().map(|(key, value, revision, _)| (key, (value, revision))).collect()
    }
}

/// The longest time without an acknowledgement since a moment.
pub fn longest_gap(acknowledged: &[Instant], since: Instant) -> Duration {
    let after = acknowledged.iter().copied().filter(|at| *at > since).chain([Instant::now()]);
    let mut last = since;
    after.map(|at| at - std::mem::replace(&mut last, at)).max().unwrap_or_default()
}

/// Key, value, revision, and when the acknowledgement came.
type Log = Arc<Mutex<Vec<(String, String, i64, Instant)>>>;

async fn write(client: Client, prefix: String, stop: Arc<AtomicBool>, acknowledged: Log) {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let (key, value) = (format!("{prefix}/{number}"), format!("value-{number}"));
        number += 1;
        match client.put(&key, &value).await {
            Ok(answer) => {
                let write = (key, value, client::revision(&answer.header), Instant::now());
                acknowledged.lock().unwrap().push(write);
            }
            Err(_) => tokio::time::sleep(Writers::PAUSE_AFTER_FAILURE).await,
        }
    }
}

/// The measure has teeth: a pause is seen at the beginning, in the middle, and if it lasts.
#[test]
fn the_longest_pause_is_seen() {
    let now = Instant::now();
    let ago = |ms: u64| now - Duration::from_millis(ms);
    let at_least = |writes: &[Instant], since, ms| {
        let gap = longest_gap(writes, since);
        assert!(
            gap >= Duration::from_millis(ms) && gap < Duration::from_millis(ms + 100),
            "{gap:?} instead of {ms} ms"
        );
    };
    at_least(&[ago(900), ago(500), ago(400), ago(0)], ago(1000), 400);
    at_least(&[ago(300), ago(200), ago(100), ago(0)], ago(1000), 700);
    at_least(&[ago(900), ago(800)], ago(1000), 800);
    at_least(&[], ago(1000), 1000);
}
