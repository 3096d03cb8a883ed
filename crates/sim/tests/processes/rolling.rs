//! Restarting all nodes, one after the other, as an upgrade does: clients that try again elsewhere see no failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;

use crate::client::{Client, outcome};
use crate::cluster::{Cluster, Options, PATIENCE};
use crate::tell::{figure, spread};

const CLIENTS: usize = 6;
/// A request is tried at all nodes, again and again, for so long before it counts as failed.
const TRIED_FOR: Duration = Duration::from_secs(10);
/// The goal for a hand-over. What else the machine does may cost as much: of a few tries with each node the middle one counts.
const GAP_MAX: Duration = Duration::from_millis(100);
const TRIES: usize = 3;

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
    for index in 0..3 {
        for _ in 0..TRIES {
            // An operator's loop knows nothing of leaders: in the worst case each is one when its turn comes.
            lead(&cluster, index).await;
            let begun = Instant::now();
            cluster.stop(index).await;
            handovers.push((index, begun, Instant::now()));
            cluster.spawn(index);
            cluster.wait_until_serving(index).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
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
    let gaps: Vec<(usize, Duration)> =
        handovers.iter().map(|(index, begun, ended)| (*index, gap(&seen.acknowledged, *begun, *ended))).collect();
    let middle = [0, 1, 2].map(|index| {
        let mut tries: Vec<Duration> = gaps.iter().filter(|of| of.0 == index).map(|of| of.1).collect();
        tries.sort();
        tries[TRIES / 2]
    });
    figure(format_args!(
        "rolling restarts of three leaders under TLS: {} writes, {} failed; writes paused {}; the middle one of each node \
         {middle:?}",
        seen.acknowledged.len(),
        seen.failed.len(),
        spread(&gaps.iter().map(|of| of.1).collect::<Vec<_>>())
    ));
    assert!(seen.failed.is_empty(), "{:#?}", seen.failed);
    assert!(middle.iter().all(|gap| *gap <= GAP_MAX), "{gaps:?}");
}

/// Makes a node the leader.
async fn lead(cluster: &Cluster, index: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let leader = cluster.leader().await;
        if leader == index {
            return;
        }
        assert!(Instant::now() < deadline, "node {index} does not come to lead");
        let target_id = cluster.member(leader, index).await.expect("all founders are members").id;
        let client = cluster.client(leader);
        // It may not be far enough yet.
        let _ = client.within(client.maintenance().move_leader(pb::MoveLeaderRequest { target_id })).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
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

/// The measure has teeth: a pause is seen wherever it begins, and none is made up.
#[test]
fn pauses_are_seen() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let writes: Vec<Instant> = [0, 10, 20, 320, 330, 340].map(at).to_vec();
    assert_eq!(gap(&writes, at(15), at(100)), Duration::from_millis(300), "it began after the restart did");
    assert_eq!(gap(&writes, at(100), at(110)), Duration::from_millis(300), "it is longer than the restart");
    assert_eq!(gap(&writes, at(325), at(335)), Duration::from_millis(10));
}
