//! TLS/mTLS Issues: the loop that restarts all services, which does not wait. `systemctl restart` does: it returns when the
//! node is ready, so a loop over the nodes restarts the cluster, and clients that try again notice nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::book::tls;
use crate::client::Client;
use crate::tell::{figure, spread};
use crate::world::World;

const CLIENTS: usize = 8;
/// How long a client tries again before it gives a request up.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);
/// Before the loop, and after it.
const AT_REST: Duration = Duration::from_secs(1);

#[test]
fn a_loop_of_restarts_under_load_fails_no_request() {
    assert!(tls::REGENERATE.ends_with(tls::RESTART_ALL) && tls::SAME_CA.ends_with(tls::RESTART_ALL));
    let world = World::found(3);
    let started = [1, 2, 3].map(|node| starts(&world, node));
    let stop = Arc::new(AtomicBool::new(false));
    let clients = world.block_on(async { (0..CLIENTS).map(|number| work(&world, number, stop.clone())).collect() });
    std::thread::sleep(AT_REST);
    let began = Instant::now();
    world.operator(tls::RESTART_ALL).succeeds();
    let loop_took = began.elapsed();
    std::thread::sleep(AT_REST);
    stop.store(true, Ordering::Relaxed);
    let requests = world.block_on(JoinSet::join_all(clients)).concat();
    assert_eq!([1, 2, 3].map(|node| starts(&world, node)), started.map(|count| count + 1), "each was restarted once");
    figure(format_args!("three restarts in a loop of {} ms: requests {}", loop_took.as_millis(), spread(&requests)));
    assert!(requests.len() > 100, "only {} requests", requests.len());
}

/// A client that writes and reads back until it is told to stop, on whatever node answers. Returns how long each request
/// took; one that no node has answered in time ends the test.
fn work(world: &World, number: usize, stop: Arc<AtomicBool>) -> impl Future<Output = Vec<Duration>> + use<> {
    let endpoints: Vec<Client> = (1..=3).map(|node| world.client_with(node, Duration::from_secs(1))).collect();
    async move {
        let key = format!("key-{number}");
        let mut tries = endpoints.iter().cycle().skip(number);
        let mut took = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let value = took.len().to_string();
            while let Err(why) = put_and_get(tries.next().expect("a cycle has no end"), &key, &value).await {
                assert!(began.elapsed() < CLIENT_PATIENCE, "a request failed: {why}");
                tokio::time::sleep(PAUSE_AFTER_FAILURE).await;
            }
            took.push(began.elapsed());
        }
        took
    }
}

async fn put_and_get(client: &Client, key: &str, value: &str) -> Result<(), tonic::Status> {
    client.put(key, value).await?;
    let found = client.get(key).await?;
    assert_eq!(found.kvs[0].value, value, "what is acknowledged is there");
    Ok(())
}

/// How often the service manager has started a node.
fn starts(world: &World, node: usize) -> usize {
    world.journal(node).matches("Started chainfire.service").count()
}
