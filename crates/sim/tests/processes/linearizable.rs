//! What concurrent clients saw while nodes were killed and paused must have an order.

use std::time::{Duration, Instant};

use base::Rng;
use sim::linear::{self, Call, Limits, Operation, Outcome, Verdict};

use crate::client;
use crate::cluster::{Cluster, Options};
use crate::history::Recording;
use crate::tell::figure;

const CLIENTS: u64 = 8;
const KEYS: u64 = 5;
const DURATION: Duration = Duration::from_secs(20);
const ELECTION_MS: u64 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_one_order_while_nodes_are_killed_and_paused() {
    let seed = u64::from(std::process::id());
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

fn judge(history: &[Operation]) -> Verdict {
    linear::check(history, Limits::default())
}

/// The same history with a fault planted must not pass.
fn planted_faults_are_seen(history: &[Operation]) {
    let (at, puts) = (0..history.len())
        .rev()
        .find_map(|at| puts_in_turn(history, at).filter(|puts| puts.len() >= 2).map(|puts| (at, puts)))
        .expect("some key was read after it was written twice");
    let Call::Put { key, value } = &history[puts[0]].call else { unreachable!("it is a put") };
    let modified = history[puts[0]].outcome.as_ref().map_or(0, |outcome| outcome.revision);
    let mut stale = history.to_vec();
    let found = &mut stale[at].outcome.as_mut().expect("an answered read").found;
    *found = vec![linear::Found { key: key.clone(), value: value.clone(), modified }];
    assert!(matches!(judge(&stale), Verdict::Violation { .. }), "a stale read was not seen");

    let at =
        (0..history.len()).find(|at| nothing_deleted(history, *at)).expect("some key was read before its deletion");
    let mut lost = history.to_vec();
    lost[at].outcome.as_mut().expect("an answered read").found.clear();
    assert!(matches!(judge(&lost), Verdict::Violation { .. }), "a lost write was not seen");
}

/// For an answered get: the puts of its key that were answered before it was called, each called after the one before
/// it was answered.
fn puts_in_turn(history: &[Operation], at: usize) -> Option<Vec<usize>> {
    let key = found_by_get(&history[at])?;
    let before = |put: &usize| {
        let operation = &history[*put];
        matches!(&operation.call, Call::Put { key: written, .. } if written == key)
            && operation.end.is_some_and(|end| end < history[at].start)
    };
    let mut all: Vec<usize> = (0..history.len()).filter(before).collect();
    all.sort_by_key(|put| history[*put].end);
    let mut in_turn: Vec<usize> = Vec::new();
    for put in all {
        if in_turn.last().is_none_or(|last| history[*last].end < Some(history[put].start)) {
            in_turn.push(put);
        }
    }
    Some(in_turn)
}

/// Whether it is an answered get of a key that was put before and that nobody can have deleted since.
fn nothing_deleted(history: &[Operation], at: usize) -> bool {
    let Some(key) = found_by_get(&history[at]) else { return false };
    let Some(put) = puts_in_turn(history, at).and_then(|puts| puts.last().copied()) else { return false };
    !history.iter().any(|operation| {
        let deletes = matches!(&operation.call, Call::Delete { key: deleted } if deleted == key);
        let before = operation.end.is_some_and(|end| end < history[put].start);
        deletes && !before && history[at].end >= Some(operation.start)
    })
}

/// The key of a get that found it.
fn found_by_get(operation: &Operation) -> Option<&String> {
    let Call::Get { key } = &operation.call else { return None };
    operation.outcome.as_ref().filter(|outcome| !outcome.found.is_empty()).map(|_| key)
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
