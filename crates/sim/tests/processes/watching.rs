//! A watch that is cut off and comes back where it was misses nothing and sees nothing twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base::Rng;
use proto::etcdserverpb::{self as pb, request_op, watch_request::RequestUnion};
use proto::mvccpb::{Event, KeyValue, event::EventType};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::client::{self, Client};
use crate::cluster::{Cluster, Options, PATIENCE};
use crate::history;
use crate::tell::figure;

const PREFIX: &str = "watched/";
const WATCHERS: usize = 3;
const WRITERS: usize = 4;
const KEYS: u64 = 10;
const ROUNDS: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_get_every_revision_once_while_nodes_are_killed() {
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let watched = Watched::start(&cluster);
    let mut rng = Rng::new(u64::from(std::process::id()));
    for round in 0..ROUNDS {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let leader = cluster.leader().await;
        let victim = if round % 2 == 0 { leader } else { rng.below(3) as usize };
        cluster.kill(victim);
        tokio::time::sleep(Duration::from_millis(rng.between(200, 1200))).await;
        cluster.spawn(victim);
        cluster.wait_until_serving(victim).await;
    }
    let (retold, last) = watched.judge(&cluster).await;

    // The judge sees a lost, a doubled and a swapped event.
    let mut lost = retold.clone();
    lost.remove(lost.len() / 2);
    assert!(broken_promise(&lost, last).is_some());
    let mut doubled = retold.clone();
    doubled.insert(doubled.len() / 2, doubled[doubled.len() / 2].clone());
    assert!(broken_promise(&doubled, last).is_some());
    let mut swapped = retold.clone();
    swapped.swap(0, retold.len() - 1);
    assert!(broken_promise(&swapped, last).is_some());
}

/// Watchers, and clients that write what they watch; nobody else may write.
pub struct Watched {
    stop: Arc<AtomicBool>,
    watchers: Vec<Watcher>,
    writers: Vec<tokio::task::JoinHandle<()>>,
}

impl Watched {
    pub fn start(cluster: &Cluster) -> Watched {
        let stop = Arc::new(AtomicBool::new(false));
        let watchers = (0..WATCHERS).map(|first| Watcher::start(&cluster.endpoints(), first)).collect();
        let writers =
            (0..WRITERS).map(|id| tokio::spawn(write(cluster.endpoints(), id as u64, stop.clone()))).collect();
        Watched { stop, watchers, writers }
    }

    /// All that was told, up to the store's last revision, by a watch that was never cut off. Those that were must have told
    /// the same.
    pub async fn judge(self, cluster: &Cluster) -> (Vec<Event>, i64) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        let last = client::revision(&cluster.client(0).get("/").await.unwrap().header);
        let mut reconnects = 0;
        let mut told = Vec::new();
        for watcher in self.watchers {
            reconnects += watcher.reconnects();
            told.push(watcher.until(last).await);
        }
        let retold = Watcher::start(&cluster.endpoints(), 0).until(last).await;
        figure(format_args!(
            "watch: {WATCHERS} watchers, {} events of {last} revisions, {reconnects} reconnects",
            retold.len()
        ));
        assert!(reconnects >= WATCHERS, "the faults cut the watches off");
        assert_eq!(broken_promise(&retold, last), None);
        for events in &told {
            assert_eq!(broken_promise(events, last), None);
            assert!(*events == retold, "a watch that was cut off told another history than one that was not");
        }
        agrees_with_reads(&cluster.client(1), &retold).await;
        (retold, last)
    }
}

/// Puts, deletes and transactions over two keys; every revision of the store is one of these.
async fn write(endpoints: Vec<String>, id: u64, stop: Arc<AtomicBool>) {
    let clients: Vec<_> =
        endpoints.iter().map(|address| Client::with_timeout(address, Duration::from_secs(1))).collect();
    let mut rng = Rng::new(id);
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let client = &clients[rng.below(clients.len() as u64) as usize];
        let key = |rng: &mut Rng| format!("{PREFIX}{}", rng.below(KEYS));
        let value = format!("{id}-{number}");
        let done = match rng.below(10) {
            0 => client.delete(&key(&mut rng)).await.map(|_| ()),
            1..4 => {
                let (one, other) = (format!("{PREFIX}pair/a"), format!("{PREFIX}pair/b"));
                let puts = [one, other].map(|key| request_op::Request::RequestPut(client::put(&key, &value)));
                let success = puts.into_iter().map(history::operation).collect();
                client.txn(pb::TxnRequest { success, ..Default::default() }).await.map(|_| ())
            }
            _ => client.put(&key(&mut rng), &value).await.map(|_| ()),
        };
        // What fails is of no interest: the history tells what was done.
        let pause = if done.is_ok() { rng.below(6) } else { 20 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

/// What is wrong with the events, if anything: all revisions from 2 to `last` in order, and each transaction whole.
fn broken_promise(events: &[Event], last: i64) -> Option<String> {
    let mut next = 2;
    let mut at = 0;
    while at < events.len() {
        let revision = modified(&events[at]);
        if revision != next {
            return Some(format!("after revision {} comes {revision}", next - 1));
        }
        let mut keys: Vec<String> = Vec::new();
        while at < events.len() && modified(&events[at]) == revision {
            let key = key_value(&events[at]).key.clone();
            keys.push(client::text(&key));
            at += 1;
        }
        let whole = keys.len() == 1 && !keys[0].contains("pair/")
            || keys == [format!("{PREFIX}pair/a"), format!("{PREFIX}pair/b")];
        if !whole {
            return Some(format!("revision {revision} has the keys {keys:?}"));
        }
        next += 1;
    }
    (next != last + 1).then(|| format!("the events end at revision {}, the store at {last}", next - 1))
}

/// At each revision the store held what the event says, and the previous value is the one before it.
async fn agrees_with_reads(client: &Client, events: &[Event]) {
    let mut before: BTreeMap<String, KeyValue> = BTreeMap::new();
    for (number, event) in events.iter().enumerate() {
        let pair = key_value(event);
        let key = client::text(&pair.key);
        let previous = event.prev_kv.as_ref();
        assert_eq!(previous, before.get(&key), "the previous value at revision {}", pair.mod_revision);
        let put = event.r#type == EventType::Put as i32;
        if put {
            before.insert(key, pair.clone());
        } else {
            before.remove(&key);
        }
        // Every read of the past would take its time.
        if number % 5 == 0 {
            let past = pb::RangeRequest { key: pair.key.clone(), revision: pair.mod_revision, ..Default::default() };
            let found = client.range(past).await.unwrap().kvs;
            let expected: Vec<KeyValue> = if put { vec![pair.clone()] } else { Vec::new() };
            assert_eq!(found, expected, "at revision {}", pair.mod_revision);
        }
    }
}

fn key_value(event: &Event) -> &KeyValue {
    event.kv.as_ref().expect("an event has a key")
}

fn modified(event: &Event) -> i64 {
    key_value(event).mod_revision
}

/// A client that watches the prefix from revision 1, on one endpoint after the other.
struct Watcher {
    state: Arc<Mutex<Told>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Told {
    events: Vec<Event>,
    reconnects: usize,
    last_failure: String,
}

impl Watcher {
    fn start(endpoints: &[String], first: usize) -> Watcher {
        let state = Arc::<Mutex<Told>>::default();
        let (endpoints, told) = (endpoints.to_vec(), state.clone());
        let task = tokio::spawn(async move {
            for turn in first.. {
                let client = Client::with_timeout(&endpoints[turn % endpoints.len()], Duration::from_secs(1));
                let why = follow(&client, &told).await;
                {
                    let mut told = told.lock().unwrap();
                    told.reconnects += 1;
                    told.last_failure = why.to_string();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Watcher { state, task }
    }

    fn reconnects(&self) -> usize {
        self.state.lock().unwrap().reconnects
    }

    /// Waits until it was told of revision `last`; returns all events.
    async fn until(self, last: i64) -> Vec<Event> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            {
                let told = self.state.lock().unwrap();
                let at = told.events.last().map_or(0, modified);
                if at >= last {
                    return told.events.clone();
                }
                let why = &told.last_failure;
                assert!(
                    Instant::now() < deadline,
                    "a watch stays behind at revision {at} of {last}; last failure: {why}"
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches from behind the last event told until the stream breaks; returns why it did.
async fn follow(client: &Client, told: &Mutex<Told>) -> Status {
    let start_revision = told.lock().unwrap().events.last().map_or(1, |event| modified(event) + 1);
    let mut stream = match watch(client, PREFIX, start_revision).await {
        Ok(stream) => stream,
        Err(why) => return why,
    };
    loop {
        // A node that hangs is left, as a client with keepalive would.
        let response = match tokio::time::timeout(Duration::from_secs(3), stream.1.message()).await {
            Ok(Ok(Some(response))) => response,
            Ok(Ok(None)) => return Status::unavailable("the stream ended"),
            Ok(Err(why)) => return why,
            Err(_) => return Status::deadline_exceeded("nothing came"),
        };
        if response.canceled {
            return Status::aborted(response.cancel_reason);
        }
        told.lock().unwrap().events.extend(response.events);
    }
}

/// A watch of a prefix with previous values. The sender keeps the stream open.
pub async fn watch(
    client: &Client,
    prefix: &str,
    start_revision: i64,
) -> Result<(mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>), Status> {
    let (sender, requests) = mpsc::channel(8);
    let create = pb::WatchCreateRequest {
        key: client::bytes(prefix),
        range_end: client::end_of(prefix),
        start_revision,
        prev_kv: true,
        ..Default::default()
    };
    let create = pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    sender.send(create).await.expect("the receiver is alive");
    let stream = client.within(client.watch().watch(ReceiverStream::new(requests))).await?;
    Ok((sender, stream))
}
