//! Damage to one node's data is never served and is made good from the others, by itself: in the state's tables, its
//! manifest, its `CURRENT` file, and the log; found at a start, by a read, or by a scrub of a running node. The first tests
//! damage one place each, and know the words for it; the last one draws places and kinds.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base::Rng;
use chainfire::machine::layout;
use prost::Message as _;
use proto::admin::{ScrubRequest, ScrubResponse};
use proto::etcdserverpb as pb;
use proto::mvccpb::KeyValue;
use storage::rocks::{self, RocksEngine, RocksOptions};
use storage::{Engine, WriteBatch};
use tokio::task::JoinHandle;

use crate::client::{self, Client};
use crate::cluster::{Cluster, Options, is_etcd};
use crate::durability::{Acknowledged, Writers, assert_holds};
use crate::harm::{Target, cut_last_edit, harm};
use crate::lost_logs::{damage_told, flip_byte, largest_segment, peer_of, wait_for_other_peer};
use crate::membership::wait_for_voters;
use crate::tell::{done, fails, figure, runs, seed, skipped, spread};

/// What is promised.
pub const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// Keys with a value each that stays as it is; enough for tables of some blocks.
pub const KEYS: usize = 400;
const VALUE_BYTES: usize = 2000;

type Damage = fn(&Cluster, usize);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_table_at_rest() {
    heals("a table, at rest", At::Rest, flip_in_table, &["differs", "mismatch", "orruption"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_manifest_at_rest() {
    heals("the manifest, at rest", At::Rest, flip_in_manifest, &["orruption", "MANIFEST", "CURRENT"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_current_file_at_rest() {
    heals("CURRENT, at rest", At::Rest, remove_current, &["CURRENT"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_received_state_at_rest() {
    heals("a received state, at rest", At::Rest, flip_in_received, &["differs", "mismatch", "orruption"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_log_at_rest() {
    heals("the log, at rest", At::Rest, flip_in_log, &["corrupted log entry"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_table_of_a_running_follower() {
    heals("a table, running", At::Running { leader: false }, flip_in_table, &["the checksum of", "checksum mismatch"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_a_table_of_the_running_leader() {
    heals(
        "a table, running leader",
        At::Running { leader: true },
        flip_in_table,
        &["the checksum of", "checksum mismatch"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_manifest_of_a_running_node() {
    heals("the manifest, running", At::Running { leader: false }, flip_in_manifest, &["MANIFEST"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_log_of_a_running_node() {
    heals("the log, running", At::Running { leader: false }, flip_in_log, &["corrupted log entry"]).await;
}

/// Whatever becomes of any file, at whatever place, at rest or while it is in use: no answer is wrong, nothing is lost, and
/// the node is whole again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_any_kind_at_any_place_is_made_good() {
    if is_etcd() {
        return skipped("damage of any kind", "an etcd does not repair itself");
    }
    let (seed, asked) = (seed(), runs(6));
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    fill(&cluster.client(cluster.leader().await)).await;
    let (mut acknowledged, mut took, mut rebuilt) = (Acknowledged::default(), Vec::new(), 0);
    let (mut round, mut met) = (0, 0);
    while met < asked && round < 2 * asked {
        let victim = rng.below(3) as usize;
        let others: Vec<usize> = (0..3).filter(|index| *index != victim).collect();
        let endpoints: Vec<String> = others.iter().map(|index| cluster.endpoint(*index)).collect();
        let old_peer = peer_of(&cluster, others[0], victim).await;
        let writers = Writers::start(&endpoints, 1, &format!("round-{round}"));
        let client = cluster.client(victim);
        client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await.unwrap();
        let at_rest = rng.percent(50);
        if at_rest {
            cluster.stop(victim).await;
        }
        let target = *rng.pick(&Target::ALL).unwrap();
        let (path, what) = harm(&cluster.nodes[victim].data_dir, target, &mut rng);
        let told = format!("{what}, {} (seed {seed}, round {round})", if at_rest { "at rest" } else { "running" });
        let began = Instant::now();
        if at_rest {
            cluster.spawn(victim);
        }
        let readers = Readers::start(&cluster.endpoint(victim));
        while let Err(why) = clean_scrub(&cluster, victim).await {
            assert!(began.elapsed() < HEALED_WITHIN, "{told}: {why}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cluster.wait_until_serving(victim).await;
        wait_for_voters(&cluster, 3).await;
        took.push(began.elapsed());
        assert!(began.elapsed() < HEALED_WITHIN, "{told}: healed after {took:?}");
        while readers.answers() == 0 {
            assert!(began.elapsed() < HEALED_WITHIN, "{told}: nothing is read from it");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        readers.finish().await;
        acknowledged.extend(writers.finish().await);
        for index in 0..3 {
            assert_holds(&cluster.client(index), &acknowledged).await;
            assert_eq!(right_answers(&cluster.client(index), false).await, Ok(KEYS), "node {index}: {told}");
        }
        cluster.assert_equal_hashes().await;
        let seen = peer_of(&cluster, others[0], victim).await != old_peer;
        // The end of a manifest may be cut off by a crash too: what it named last is made again from the log. And a file that
        // runs out of use meanwhile is nobody's business.
        assert!(seen || target == Target::Manifest || !path.exists(), "nobody saw it: {told}");
        rebuilt += usize::from(seen);
        met += usize::from(seen || path.exists());
        round += 1;
        forget_rebuilds(&cluster, victim);
    }
    figure(format_args!(
        "damage at drawn places: {round} times, {met} of them in a file that stayed in use, {rebuilt} rebuilt from their peers, \
         whole after {} (seed {seed})",
        spread(&took)
    ));
    done(met);
}

/// A node whose data was damaged five times within an hour is not rebuilt once more; a test damages it as often as it likes.
pub fn forget_rebuilds(cluster: &Cluster, index: usize) {
    // There is none if it was not rebuilt.
    let _ = fs::remove_file(cluster.nodes[index].data_dir.join("rebuilds"));
}

/// An engine whose manifest ends early opens at an older moment, and says nothing: a node that nobody else answers for then
/// serves what it has served before, from its log, or nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_state_is_not_served() {
    if is_etcd() {
        return skipped("an older state", "an etcd keeps its store otherwise");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let victim = (cluster.leader().await + 1) % 3;
    fill(&cluster.client(victim)).await;
    for cut in 1..=3 {
        make_older(&mut cluster, victim).await;
        for index in (0..3).filter(|index| *index != victim) {
            cluster.stop(index).await;
        }
        let began = Instant::now();
        cluster.spawn(victim);
        // A fresh client each time: one that was refused a connection waits before it tries again.
        while right_answers(&cluster.client(victim), true).await.is_err() {
            assert!(began.elapsed() < HEALED_WITHIN, "cut {cut} serves nothing:\n{}", cluster.log(victim));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        figure(format_args!("an older state (cut {cut}): whole from the log in {} ms", began.elapsed().as_millis()));
        cluster.kill_all();
        for index in 0..3 {
            cluster.spawn(index);
        }
        cluster.wait_until_all_serve().await;
    }
}

/// Stops a node, and sets its state back by an edit of the manifest. Where that was the edit of a compaction, the manifest
/// names tables that are gone then, which no crash can leave: the node gets its files back, and another edit is made.
async fn make_older(cluster: &mut Cluster, victim: usize) {
    let (data_dir, aside) = (cluster.nodes[victim].data_dir.clone(), cluster.folder().join("aside"));
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < HEALED_WITHIN, "no edit that adds tables alone");
        let client = cluster.client(victim);
        client.put("/later", "1").await.unwrap();
        client.get("/later").await.unwrap();
        cluster.stop(victim).await;
        copy_files(&data_dir, &aside);
        let before = state_of(&data_dir).expect("a node that was stopped leaves a whole state");
        cut_last_edit(&data_dir);
        if state_of(&data_dir).is_some_and(|now| now != before) {
            return;
        }
        copy_files(&aside, &data_dir);
        cluster.spawn(victim);
        cluster.wait_until_serving(victim).await;
    }
}

/// How far the state in a data folder is; none if it cannot be read whole.
fn state_of(data_dir: &Path) -> Option<Vec<u8>> {
    let state = rocks::check(data_dir, &layout::FAMILIES).ok()??;
    Some(state.get(layout::META, layout::STATE).unwrap()?.to_vec())
}

/// Makes the files of one folder those of another; folders within stay as they are.
fn copy_files(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let files = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
    };
    for path in files(to) {
        fs::remove_file(path).unwrap();
    }
    for path in files(from) {
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Altered with its checksums: nothing on the node itself can tell. The digests that replicas compare can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_altered_is_found_by_its_digest() {
    if is_etcd() {
        return skipped("an altered store", "an etcd keeps its store otherwise");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    fill(&cluster.client(leader)).await;
    let old_peer = peer_of(&cluster, leader, victim).await;
    cluster.client(victim).get("/").await.unwrap();
    cluster.stop(victim).await;
    alter(&cluster, victim);
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;
    let began = Instant::now();
    let leader = cluster.leader().await;
    let client = cluster.client(leader);
    client.within(client.admin().scrub(ScrubRequest { start: true })).await.unwrap();
    wait_for_other_peer(&cluster, leader, victim, old_peer).await;
    wait_for_voters(&cluster, 3).await;
    cluster.wait_until_serving(victim).await;
    figure(format_args!("healed an altered store: {} ms after the scrub was asked for", began.elapsed().as_millis()));
    for index in 0..3 {
        assert_eq!(right_answers(&cluster.client(index), false).await, Ok(KEYS), "node {index}");
    }
    assert!(cluster.log(victim).contains("its store at revision"));
}

/// Altered in the same way, and then asked by a transaction: what it writes differs from what the others write, and with that
/// the rolling hash, long before stores are compared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_altered_is_found_by_what_it_does() {
    if is_etcd() {
        return skipped("an altered store", "an etcd keeps its store otherwise");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    fill(&cluster.client(leader)).await;
    // The leader's first scrub, after which it compares digests, is over; the next is a day off.
    cluster.wait_until_said(leader, "Digests compared").await;
    let old_peer = peer_of(&cluster, leader, victim).await;
    cluster.stop(victim).await;
    alter(&cluster, victim);
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;
    let client = cluster.client(leader);
    let is_original = pb::Compare {
        key: client::bytes(&key(7)),
        target: pb::compare::CompareTarget::Value as i32,
        result: pb::compare::CompareResult::Equal as i32,
        target_union: Some(pb::compare::TargetUnion::Value(client::bytes(&value(7)))),
        ..pb::Compare::default()
    };
    let put = |value| pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(client::put("found", value))) };
    let request =
        pb::TxnRequest { compare: vec![is_original], success: vec![put("original")], failure: vec![put("altered")] };
    assert!(client.txn(request).await.unwrap().succeeded);
    let began = Instant::now();
    // Hashes are compared every 256 entries.
    for number in 0..600 {
        client.put("other", &number.to_string()).await.unwrap();
    }
    wait_for_other_peer(&cluster, leader, victim, old_peer).await;
    wait_for_voters(&cluster, 3).await;
    cluster.wait_until_serving(victim).await;
    figure(format_args!("healed a replica that did otherwise: {} ms after it did", began.elapsed().as_millis()));
    for index in 0..3 {
        assert_eq!(right_answers(&cluster.client(index), false).await, Ok(KEYS), "node {index}");
    }
    cluster.assert_equal_hashes().await;
    assert!(cluster.log(victim).contains("its state after entry"));
}

/// Of two that differ nobody is right: neither is rebuilt, and the alarm keeps writes away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_differ_raise_the_alarm() {
    if is_etcd() {
        return skipped("two that differ", "an etcd keeps its store otherwise");
    }
    let mut cluster = Cluster::start_with(2, Options::brisk()).await;
    let leader = cluster.leader().await;
    let victim = 1 - leader;
    fill(&cluster.client(leader)).await;
    let peers = [peer_of(&cluster, leader, 0).await, peer_of(&cluster, leader, 1).await];
    cluster.client(victim).get("/").await.unwrap();
    cluster.stop(victim).await;
    alter(&cluster, victim);
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;
    let leader = cluster.leader().await;
    let client = cluster.client(leader);
    client.within(client.admin().scrub(ScrubRequest { start: true })).await.unwrap();
    let deadline = Instant::now() + HEALED_WITHIN;
    while client.put("any", "thing").await.is_ok() {
        assert!(Instant::now() < deadline, "no alarm is raised");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let get = pb::AlarmRequest { action: pb::alarm_request::AlarmAction::Get as i32, ..Default::default() };
    let alarms = client.within(client.maintenance().alarm(get)).await.unwrap().alarms;
    assert!(alarms.iter().all(|alarm| alarm.alarm == pb::AlarmType::Corrupt as i32), "{alarms:?}");
    assert!(!alarms.is_empty());
    for (index, peer) in peers.iter().enumerate() {
        assert_eq!(peer_of(&cluster, leader, index).await, *peer, "nobody is rebuilt");
        assert!(cluster.is_running(index) && !cluster.has_ended(index));
    }
    assert!(cluster.log(leader).contains("no majority agrees"));
}

/// There is nobody to rebuild it from: it stops, and says what can be done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_node_that_is_alone_stops() {
    if is_etcd() {
        return skipped("a damaged node that is alone", "an etcd does not look");
    }
    let mut cluster = Cluster::start_with(1, Options::brisk()).await;
    fill(&cluster.client(0)).await;
    cluster.stop(0).await;
    flip_in_table(&cluster, 0);
    cluster.spawn(0);
    let deadline = Instant::now() + HEALED_WITHIN;
    while !cluster.has_ended(0) {
        assert!(Instant::now() < deadline, "it goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = cluster.log(0);
    assert!(log.contains("no other member to rebuild it from: restore a snapshot"), "{log}");
    assert!(!tables(&cluster, 0).is_empty(), "nothing is thrown away");
}

#[derive(Clone, Copy, PartialEq)]
enum At {
    /// The node is stopped when its files are damaged.
    Rest,
    /// It runs, and is then asked for a scrub.
    Running { leader: bool },
}

/// Fills a cluster, damages one node's files, and expects the node whole again, under another peer id, within the promised
/// time; all the while nobody gets a wrong answer from it, and the others take writes.
async fn heals(what: &str, at: At, damage: Damage, words: &[&str]) {
    if is_etcd() {
        return skipped(what, "an etcd does not repair itself");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let victim = if at == (At::Running { leader: true }) { leader } else { (leader + 1) % 3 };
    let others: Vec<usize> = (0..3).filter(|index| *index != victim).collect();
    fill(&cluster.client(leader)).await;
    cluster.client(victim).get("/").await.unwrap();
    let old_peer = peer_of(&cluster, others[0], victim).await;
    let endpoints: Vec<String> = others.iter().map(|index| cluster.endpoint(*index)).collect();
    let writers = Writers::start(&endpoints, 1, "meanwhile");

    let began = if at == At::Rest {
        cluster.stop(victim).await;
        damage(&cluster, victim);
        let began = Instant::now();
        cluster.spawn(victim);
        began
    } else {
        // What is in memory goes to tables.
        let client = cluster.client(victim);
        client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await.unwrap();
        wait_for_settled_tables(&cluster, victim).await;
        damage(&cluster, victim);
        let began = Instant::now();
        client.within(client.admin().scrub(ScrubRequest { start: true })).await.unwrap();
        began
    };
    let readers = Readers::start(&cluster.endpoint(victim));
    wait_for_other_peer(&cluster, others[0], victim, old_peer).await;
    wait_for_voters(&cluster, 3).await;
    cluster.wait_until_serving(victim).await;
    let took = began.elapsed();
    figure(format_args!("healed {what}: {} ms until it votes and serves again", took.as_millis()));
    assert!(took <= HEALED_WITHIN, "that is too long");
    let answers = readers.finish().await;
    assert!(answers > 0, "it serves again");

    let acknowledged = writers.finish().await;
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
        assert_eq!(right_answers(&cluster.client(index), false).await, Ok(KEYS), "node {index}");
    }
    cluster.assert_equal_hashes().await;
    assert_eq!(damage_told(&cluster.log(victim), words), Ok(()));
    let notes = notes(&cluster, victim).await;
    assert!(notes.iter().any(|note| note.contains("rebuilt from its peers")), "its status says so: {notes:?}");
    scrub_finds_nothing(&cluster, victim).await;
    // What the alerts look at outlives the restart that lies between the damage and the repair.
    let page = wait_until_whole(&cluster, victim).await;
    assert!(last_repair_s(&page) > 0, "a repair of this process is known to the alerts:\n{page}");
}

/// Returns the page on which a member says that it is not being rebuilt; it looks at itself every second.
async fn wait_until_whole(cluster: &Cluster, index: usize) -> String {
    let deadline = Instant::now() + HEALED_WITHIN;
    loop {
        let page = cluster.metrics(index).await;
        if page.contains("\nchainfire_rebuilding 0\n") {
            return page;
        }
        assert!(Instant::now() < deadline, "it is not rebuilt");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// As the alert on damage found asks for it.
fn last_repair_s(page: &str) -> u64 {
    let of_damage = ["log", "state"].map(|what| format!("chainfire_last_repair_time_seconds{{what=\"{what}\"}} "));
    let values = of_damage.iter().map(|prefix| page.lines().find_map(|line| line.strip_prefix(prefix)));
    values.map(|value| value.expect("it is on the page").parse().unwrap()).max().unwrap_or(0)
}

/// As long as nobody is there to rebuild it from, a member that gave its data up says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilding_that_lasts_is_seen_by_the_alerts() {
    if is_etcd() {
        return skipped("a rebuilding that lasts", "an etcd does not repair itself");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let (victim, others) = ((leader + 1) % 3, [leader, (leader + 2) % 3]);
    fill(&cluster.client(leader)).await;
    cluster.client(victim).get("/").await.unwrap();
    cluster.stop(victim).await;
    // The log is read from end to end at the start.
    flip_in_log(&cluster, victim);
    others.iter().for_each(|index| cluster.pause(*index));
    let starts = |cluster: &Cluster| cluster.log(victim).matches("Serving clients").count();
    let before = starts(&cluster);
    cluster.spawn(victim);
    let deadline = Instant::now() + HEALED_WITHIN;
    while starts(&cluster) == before {
        assert!(Instant::now() < deadline, "it does not serve");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(cluster.metrics(victim).await.contains("\nchainfire_rebuilding 1\n"), "it is not whole");
    }
    others.iter().for_each(|index| cluster.resume(*index));
    wait_until_whole(&cluster, victim).await;
}

pub async fn fill(client: &Client) {
    for number in 0..KEYS {
        client.put(&key(number), &value(number)).await.unwrap();
    }
}

fn key(number: usize) -> String {
    format!("kept/{number:05}")
}

/// Hard to compress, and known from the key.
fn value(number: usize) -> String {
    let mut rng = base::Rng::new(number as u64);
    (0..VALUE_BYTES).map(|_| char::from(b'a' + rng.below(26) as u8)).collect()
}

/// How many of the kept keys an answer holds. An error is the server's own refusal; a wrong answer panics.
pub async fn right_answers(client: &Client, serializable: bool) -> Result<usize, ()> {
    let request = pb::RangeRequest {
        key: client::bytes("kept/"),
        range_end: client::end_of("kept/"),
        serializable,
        ..pb::RangeRequest::default()
    };
    let Ok(answer) = client.range(request).await else { return Err(()) };
    for (number, pair) in answer.kvs.iter().enumerate() {
        assert_eq!(client::text(&pair.key), key(number), "a key is missing or invented");
        assert_eq!(client::text(&pair.value), value(number), "a wrong value of {}", key(number));
    }
    assert_eq!(answer.kvs.len(), KEYS, "keys are missing from an answer (serializable: {serializable})");
    Ok(answer.kvs.len())
}

/// Read all the time, linearizably and not, and panic at a wrong answer.
pub struct Readers {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Readers {
    pub fn start(endpoint: &str) -> Readers {
        let (stop, answers): (Arc<AtomicBool>, Arc<AtomicU64>) = Default::default();
        let tasks = [true, false].map(|serializable| {
            let client = Client::with_timeout(endpoint, Duration::from_secs(1));
            let (stop, answers) = (stop.clone(), answers.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if right_answers(&client, serializable).await.is_ok() {
                        answers.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            })
        });
        Readers { stop, answers, tasks: tasks.into() }
    }

    /// So far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    pub async fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
        self.answers()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

pub async fn notes(cluster: &Cluster, index: usize) -> Vec<String> {
    let client = cluster.client(index);
    client
        .within(client.admin().status(proto::admin::StatusRequest {}))
        .await
        .map_or_else(|_| Vec::new(), |status| status.notes)
}

/// A whole pass over a node's files that finds nothing. The error says why there was none so far.
async fn clean_scrub(cluster: &Cluster, index: usize) -> Result<(), String> {
    let client = &cluster.client(index);
    let ask = |start| async move {
        client.within(client.admin().scrub(ScrubRequest { start })).await.map_err(|why| why.message().to_owned())
    };
    let before = ask(true).await?.passes;
    let began = Instant::now();
    // A node that begins anew counts anew.
    while began.elapsed() < Duration::from_secs(3) {
        if let Some(outcome) = scrubbed(&ask(false).await?, before) {
            return outcome;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("a scrub does not end".to_owned())
}

async fn scrub_finds_nothing(cluster: &Cluster, index: usize) {
    let client = &cluster.client(index);
    let ask = |start| async move { client.within(client.admin().scrub(ScrubRequest { start })).await };
    let before = ask(true).await.unwrap().passes;
    let deadline = Instant::now() + HEALED_WITHIN;
    loop {
        let now = ask(false).await.unwrap();
        if let Some(outcome) = scrubbed(&now, before) {
            assert_eq!((outcome, now.unchecked_files), (Ok(()), 0));
            return;
        }
        assert!(Instant::now() < deadline, "a scrub does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What a pass came to that was asked for after so many others; none as long as it has not ended.
fn scrubbed(now: &ScrubResponse, before: u64) -> Option<Result<(), String>> {
    let whole = now.last == "nothing is damaged";
    (now.passes > before && !now.running).then(|| if whole { Ok(()) } else { Err(now.last.clone()) })
}

fn tables(cluster: &Cluster, index: usize) -> Vec<(PathBuf, u64)> {
    files(&cluster.nodes[index].data_dir, |name| name.ends_with(".sst"))
}

fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<(PathBuf, u64)> {
    let all = fs::read_dir(dir).into_iter().flatten().flatten();
    let named = all.filter(|entry| wanted(&entry.file_name().to_string_lossy()));
    named.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len()))).collect()
}

/// Waits until what was written lies in tables, and the largest of them is not on its way out: one that was merged into
/// another is read by nobody any more.
pub async fn wait_for_settled_tables(cluster: &Cluster, index: usize) {
    const STANDS_FOR: Duration = Duration::from_secs(1);
    let largest = || {
        let tables = tables(cluster, index);
        let bytes: u64 = tables.iter().map(|(_, bytes)| bytes).sum();
        tables.into_iter().max_by_key(|(_, bytes)| *bytes).filter(|_| bytes >= (KEYS * VALUE_BYTES / 2) as u64)
    };
    let deadline = Instant::now() + HEALED_WITHIN;
    let (mut seen, mut since) = (largest(), Instant::now());
    while seen.is_none() || since.elapsed() < STANDS_FOR {
        assert!(Instant::now() < deadline, "no tables are written");
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = largest();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}

pub fn flip_in_table(cluster: &Cluster, index: usize) {
    let largest = tables(cluster, index).into_iter().max_by_key(|(_, bytes)| *bytes).expect("there are tables");
    flip_byte(&largest.0, largest.1 / 2);
}

fn flip_in_manifest(cluster: &Cluster, index: usize) {
    let dir = &cluster.nodes[index].data_dir;
    let current = fs::read_to_string(dir.join("CURRENT")).unwrap();
    let path = dir.join(current.trim());
    let bytes = fs::metadata(&path).unwrap().len();
    flip_byte(&path, bytes / 2);
}

/// As a kill leaves it that comes when a received state was decided for, and the old one is deleted (`storage::rocks`, `swap`): a
/// start moves to its place what lies there. RocksDB's names, and no others, begin with a capital or a digit.
fn flip_in_received(cluster: &Cluster, index: usize) {
    flip_in_table(cluster, index);
    let dir = &cluster.nodes[index].data_dir;
    let received = dir.join("incoming/db");
    fs::create_dir_all(&received).unwrap();
    for (path, _) in files(dir, |name| name.starts_with(|c: char| c.is_ascii_uppercase() || c.is_ascii_digit())) {
        fs::rename(&path, received.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(dir.join("incoming/COMPLETE"), "").unwrap();
}

pub fn remove_current(cluster: &Cluster, index: usize) {
    fs::remove_file(cluster.nodes[index].data_dir.join("CURRENT")).unwrap();
}

/// Another value for one key, in a store that is in perfect order otherwise.
fn alter(cluster: &Cluster, index: usize) {
    let engine =
        RocksEngine::open(&cluster.nodes[index].data_dir, &layout::FAMILIES, &RocksOptions::default()).unwrap();
    let key = key(7);
    let record = engine.get(layout::KV, key.as_bytes()).unwrap().expect("it was written");
    let mut pair = KeyValue::decode(record).unwrap();
    pair.value = client::bytes("altered");
    let mut batch = WriteBatch::new();
    batch.put(layout::KV, key.as_bytes(), &pair.encode_to_vec());
    engine.write(&batch).unwrap();
    engine.flush().unwrap();
}

pub fn flip_in_log(cluster: &Cluster, index: usize) {
    let (path, written) = largest_segment(&cluster.nodes[index].data_dir);
    flip_byte(&path, written / 2);
}

/// The readers have teeth: a wrong value, a missing key and an invented one do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_wrong_answers() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    fill(&client).await;
    for plant in ["wrong", "missing", "invented"] {
        let readers = Readers::start(&cluster.endpoint(0));
        match plant {
            "wrong" => drop(client.put(&key(7), "altered").await.unwrap()),
            "missing" => drop(client.delete(&key(7)).await.unwrap()),
            _ => drop(client.put("kept/99999", "1").await.unwrap()),
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(fails(readers.finish()).await, "a {plant} key went unnoticed");
        client.delete("kept/99999").await.unwrap();
        client.put(&key(7), &value(7)).await.unwrap();
    }
    assert_eq!(right_answers(&client, false).await, Ok(KEYS));
}

/// What is read off a scrub and off the page has teeth: damage, a pass that is not over or that was over before it was asked for, and
/// a repair that nobody made do not pass.
#[test]
fn scrubs_and_repairs_that_were_none_are_seen() {
    let good = ScrubResponse { passes: 3, last: "nothing is damaged".to_owned(), ..Default::default() };
    assert_eq!(scrubbed(&good, 2), Some(Ok(())));
    assert_eq!(scrubbed(&good, 3), None, "it was over before");
    assert_eq!(scrubbed(&ScrubResponse { running: true, ..good.clone() }, 2), None, "it is not over");
    let damaged = ScrubResponse { last: "the checksum of 000012.sst differs".to_owned(), ..good };
    assert!(scrubbed(&damaged, 2).is_some_and(|outcome| outcome.is_err()), "damage went unnoticed");

    let page = |seconds: [u64; 3]| {
        let lines = ["backup", "log", "state"].into_iter().zip(seconds);
        let lines = lines.map(|(what, at)| format!("chainfire_last_repair_time_seconds{{what=\"{what}\"}} {at}\n"));
        lines.collect::<String>()
    };
    assert_eq!(last_repair_s(&page([9, 0, 0])), 0, "nothing that was damaged was repaired");
    assert_eq!([[0, 7, 0], [0, 0, 7], [9, 5, 7]].map(|seconds| last_repair_s(&page(seconds))), [7; 3]);
}
