//! Restarting all nodes, one after the other, as an upgrade does: clients that try again elsewhere see no failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::client::{Client, outcome};
use crate::cluster::{Cluster, Options};
use crate::tell::{figure, spread};

const CLIENTS: usize = 6;
/// A request is tried at all nodes, again and again, for so long before it counts as failed.
const TRIED_FOR: Duration = Duration::from_secs(10);
/// The goal for a hand-over is 100 ms; this machine's other work may cost more than that.
const MEDIAN_GAP_MAX: Duration = Duration::from_millis(300);

/// What a client saw: when its writes were acknowledged, and which failed for good.
#[derive(Default)]
struct Seen {
    acknowledged: Vec<Instant>,
    failed: Vec<String>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_request() {
    let mut cluster = Cluster::start_with(3, Options { tls: true, ..Options::default() }).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let nodes: Vec<Client> =
                (0..3).map(|index| cluster.client_within((index + number) % 3, Duration::from_secs(3))).collect();
            tokio::spawn(write(nodes, number, stop.clone()))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut handovers = Vec::new();
    let mut leaders_stopped = 0;
    for index in 0..3 {
        // The leader last would be the kindest order; an operator's loop knows nothing of it.
        let led = cluster.leader().await == index;
        let begun = Instant::now();
        cluster.stop(index).await;
        let stopped = Instant::now();
        cluster.spawn(index);
        cluster.wait_until_serving(index).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        if led {
            leaders_stopped += 1;
            handovers.push((begun, stopped));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut seen = Seen::default();
    for client in clients {
        let client = client.await.unwrap();
        seen.acknowledged.extend(client.acknowledged);
        seen.failed.extend(client.failed);
    }
    seen.acknowledged.sort();
    let gaps: Vec<Duration> = handovers.iter().map(|(begun, ended)| gap(&seen.acknowledged, *begun, *ended)).collect();
    figure(format_args!(
        "rolling restart of three nodes under TLS: {} writes, {} failed; {leaders_stopped} hand-overs, writes paused {}",
        seen.acknowledged.len(),
        seen.failed.len(),
        spread(&gaps)
    ));
    assert!(seen.failed.is_empty(), "{:#?}", seen.failed);
    assert!(leaders_stopped >= 1, "somebody led when it was stopped");
    let mut sorted = gaps;
    sorted.sort();
    assert!(sorted[sorted.len() / 2] <= MEDIAN_GAP_MAX, "{sorted:?}");
}

async fn write(nodes: Vec<Client>, number: usize, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    let (mut at, mut round) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let deadline = Instant::now() + TRIED_FOR;
        round += 1;
        loop {
            let put = nodes[at].put(&format!("rolling/{number}"), &round.to_string()).await;
            if put.is_ok() {
                seen.acknowledged.push(Instant::now());
                break;
            }
            if Instant::now() > deadline {
                seen.failed.push(outcome(&put));
                break;
            }
            at = (at + 1) % nodes.len();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    seen
}

/// The longest time without an acknowledgement that touches the time between two moments.
fn gap(acknowledged: &[Instant], begun: Instant, ended: Instant) -> Duration {
    let pairs = acknowledged.windows(2).filter(|pair| pair[1] >= begun && pair[0] <= ended);
    pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}
