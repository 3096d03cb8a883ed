//! What concurrent clients saw while nodes were killed and paused must have an order.

use std::time::{Duration, Instant};

use base::Rng;
use sim::linear::{self, Call, Operation, Outcome, Verdict};

use crate::client;
use crate::cluster::{Cluster, Options};
use crate::history::Recording;
use crate::planted::{judge, planted_faults_are_seen};
use crate::tell::{figure, seed};

const CLIENTS: u64 = 8;
const KEYS: u64 = 5;
const DURATION: Duration = Duration::from_secs(20);
const ELECTION_MS: u64 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_one_order_while_nodes_are_killed_and_paused() {
    let seed = seed();
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let recording = Recording::start(&cluster.endpoints(), CLIENTS, KEYS, seed);
    let faults = trouble(&mut cluster, Rng::new(seed), Instant::now() + DURATION).await;
    let before_healing = recording.answered();
    cluster.wait_until_all_serve().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(recording.answered() > before_healing, "clients were served again after all faults");
    let history = recording.finish().await;

    let unknown = history.iter().filter(|operation| operation.outcome.is_none()).count();
    figure(format_args!(
        "linearizable: {} operations, {unknown} of unknown outcome, {} kills, {} pauses (seed {seed})",
        history.len(),
        faults.kills,
        faults.pauses
    ));
    assert!(faults.kills >= 3 && faults.pauses >= 3, "{faults:?}");
    assert!(history.len() > 500, "only {} operations", history.len());
    assert_eq!(judge(&history), Verdict::Linearizable);
    cluster.assert_equal_hashes().await;
    planted_faults_are_seen(&history);
}

#[derive(Debug, Default)]
struct Faults {
    kills: usize,
    pauses: usize,
}

/// Kills and pauses nodes one after the other, the leader more often than others; ends with all of them running.
async fn trouble(cluster: &mut Cluster, mut rng: Rng, until: Instant) -> Faults {
    let mut faults = Faults::default();
    while Instant::now() < until {
        let leader = cluster.leader().await;
        let victim = if rng.percent(60) { leader } else { rng.below(3) as usize };
        // Both equally often, in no fixed order.
        let kill = if faults.kills == faults.pauses { rng.percent(50) } else { faults.kills < faults.pauses };
        if kill {
            // Now and then a second node goes too, and with it the quorum.
            let second = rng.percent(20).then_some((victim + 1) % 3);
            cluster.kill(victim);
            if let Some(second) = second {
                cluster.kill(second);
            }
            faults.kills += 1;
            sleep_ms(rng.below(2 * ELECTION_MS)).await;
            cluster.spawn(victim);
            if let Some(second) = second {
                cluster.spawn(second);
            }
        } else {
            cluster.pause(victim);
            faults.pauses += 1;
            sleep_ms(rng.between(ELECTION_MS / 5, ELECTION_MS * 5)).await;
            cluster.resume(victim);
        }
        sleep_ms(rng.below(ELECTION_MS)).await;
    }
    faults
}

async fn sleep_ms(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

/// A server that answers a read from an old state would be seen through the whole chain: client, recorder, checker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_of_a_real_server_is_seen() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let first = client::revision(&client.put("key-0", "first").await.unwrap().header) as u64;
    let second = client::revision(&client.put("key-0", "second").await.unwrap().header) as u64;
    // The past, asked for on purpose, and told as if it were the present.
    let old =
        proto::etcdserverpb::RangeRequest { key: client::bytes("key-0"), revision: first as i64, ..Default::default() };
    let old = client.range(old).await.unwrap().kvs.remove(0);
    let put = |start, value: &str, revision| Operation {
        client: 1,
        start,
        end: Some(start + 1),
        call: Call::Put { key: "key-0".to_owned(), value: value.to_owned() },
        outcome: Some(Outcome { revision, done: true, found: Vec::new() }),
    };
    let found = linear::Found {
        key: client::text(&old.key),
        value: client::text(&old.value),
        modified: old.mod_revision as u64,
    };
    let read = Operation {
        client: 1,
        start: 30,
        end: Some(31),
        call: Call::Get { key: "key-0".to_owned() },
        outcome: Some(Outcome { revision: second, done: false, found: vec![found] }),
    };
    let history = [put(10, "first", first), put(20, "second", second), read];
    assert!(matches!(judge(&history), Verdict::Violation { .. }));
    assert_eq!(judge(&history[..2]), Verdict::Linearizable);
}
