//! A snapshot saved under load becomes the state of a new cluster: the same keys, revisions, history and leases.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;
use proto::mvccpb::{Event, KeyValue};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::client::{self, Client};
use crate::cluster::{Cluster, Options, PATIENCE, command, is_etcd, program};
use crate::tell::{fails, figure, skipped};
use crate::watching::watch;

const RESTORE_FILE: &str = proto::snapshot::RESTORE_FILE;
const KEYS: usize = 400;
const VALUE_BYTES: usize = 2000;
const WRITERS: usize = 8;
const COMPACTED: i64 = 500;
const LEASE: i64 = 4711;
const LEASE_TTL_SECONDS: i64 = 600;

/// What a cluster held at the revision of a snapshot of it.
struct Saved {
    file: PathBuf,
    cluster_id: u64,
    revision: i64,
    keys: Vec<KeyValue>,
    events: Vec<Event>,
    hash: (u32, i64),
    _folder: TempDir,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_restores_into_one_node() {
    if is_etcd() {
        return skipped("a_snapshot_restores_into_one_node", "its snapshots are restored by its own tool");
    }
    let saved = save_under_load().await;
    let mut cluster = Cluster::new(1, Options::default());
    let began = Instant::now();
    restore(&saved, &cluster.nodes[0].data_dir);
    cluster.spawn(0);
    cluster.wait_until_all_serve().await;
    figure(format_args!(
        "restore: {} keys, {} KiB, serve after {} ms",
        saved.keys.len(),
        fs::metadata(&saved.file).unwrap().len() >> 10,
        began.elapsed().as_millis()
    ));
    assert_holds(&cluster, &saved).await;
    go_on(&mut cluster, &saved).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_restores_into_three_nodes() {
    if is_etcd() {
        return skipped("a_snapshot_restores_into_three_nodes", "its snapshots are restored by its own tool");
    }
    let saved = save_under_load().await;

    // Each with the same snapshot: all begin alike, and nothing is sent between them.
    let mut cluster = Cluster::new(3, Options::default());
    (0..3).for_each(|index| restore(&saved, &cluster.nodes[index].data_dir));
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    assert_holds(&cluster, &saved).await;
    assert!((0..3).all(|index| !cluster.log(index).contains("Applied snapshot")));
    go_on(&mut cluster, &saved).await;
    drop(cluster);

    // One with it, the others empty: whichever it is, it founds, and the others are filled.
    for with in 0..3 {
        let mut cluster = Cluster::new(3, Options::default());
        restore(&saved, &cluster.nodes[with].data_dir);
        (0..3).for_each(|index| cluster.spawn(index));
        cluster.wait_until_all_serve().await;
        assert_holds(&cluster, &saved).await;
        assert!(cluster.log(with).contains("Founding a cluster"));
        go_on(&mut cluster, &saved).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_restore_begins_again() {
    if is_etcd() {
        return skipped("an_interrupted_restore", "its snapshots are restored by its own tool");
    }
    let saved = save_under_load().await;
    let mut cluster = Cluster::new(3, Options::default());
    restore(&saved, &cluster.nodes[0].data_dir);
    // At any moment of loading, and while it waits for the others.
    for pause_ms in [5, 20, 40, 80, 160] {
        cluster.spawn(0);
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        cluster.kill(0);
    }
    cluster.spawn(0);
    wait_for_log(&cluster, 0, "Waiting for a cluster").await;
    cluster.kill(0);
    assert!(cluster.nodes[0].data_dir.join(RESTORE_FILE).exists(), "it is kept until a cluster was founded");
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    assert_holds(&cluster, &saved).await;
    go_on(&mut cluster, &saved).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_is_refused() {
    if is_etcd() {
        return skipped("what_cannot_be_restored", "its snapshots are restored by its own tool");
    }
    let saved = save_under_load().await;
    let mut cluster = Cluster::new(3, Options::default());
    restore(&saved, &cluster.nodes[0].data_dir);
    let staged = cluster.nodes[0].data_dir.join(RESTORE_FILE);
    let intact = fs::read(&staged).unwrap();

    // Damaged: one line, exit code 1, and all stays as it was.
    for damaged in [intact[..intact.len() - 512].to_vec(), flipped(&intact)] {
        fs::write(&staged, &damaged).unwrap();
        let output = cluster.command(0).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!((output.status.code(), said.trim_end().lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(RESTORE_FILE) && said.contains("no intact snapshot"), "{said}");
        assert!(fs::read(&staged).unwrap() == damaged);
        let mut names: Vec<_> =
            fs::read_dir(&cluster.nodes[0].data_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["owner.lock", RESTORE_FILE]);
    }
    // After that, a restore into the same folder works.
    fs::remove_file(&staged).unwrap();
    restore(&saved, &cluster.nodes[0].data_dir);

    // Members with different snapshots found nothing.
    let other = save_under_load().await;
    restore(&other, &cluster.nodes[1].data_dir);
    (0..3).for_each(|index| cluster.spawn(index));
    wait_for_log(&cluster, 0, "members are to restore different snapshots").await;
    for index in 0..3 {
        cluster.kill(index);
        assert!(!cluster.log(index).contains("Founding a cluster"));
    }
    // The operator decides for one of them.
    fs::remove_dir_all(&cluster.nodes[1].data_dir).unwrap();
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    assert_holds(&cluster, &saved).await;
}

/// Saves a snapshot of a cluster of three while clients write to it, and what it must hold.
async fn save_under_load() -> Saved {
    let cluster = Cluster::start(3).await;
    let first = cluster.client(0);
    put_leased(&first).await;
    first.put("deleted", "1").await.unwrap();
    first.delete("deleted").await.unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    let writers: JoinSet<()> = (0..WRITERS)
        .map(|writer| {
            let (client, stop) = (cluster.client(writer % 3), stop.clone());
            async move {
                let mut number = writer;
                while !stop.load(Ordering::Relaxed) {
                    let value = format!("{number}-{}", "x".repeat(VALUE_BYTES));
                    client.put(&format!("key-{:04}", number % KEYS), &value).await.unwrap();
                    if number % 50 == 7 {
                        client.delete(&format!("key-{:04}", number % KEYS)).await.unwrap();
                    }
                    number += WRITERS;
                }
            }
        })
        .collect();
    wait_for_revision(&first, 2 * COMPACTED).await;
    let compact = pb::CompactionRequest { revision: COMPACTED, physical: true };
    first.within(first.kv().compact(compact)).await.unwrap();
    // A node saves what it has applied; after this read, that includes the compaction.
    cluster.client(1).get("/").await.unwrap();

    let folder = tempfile::Builder::new().prefix("processes-saved-").tempdir().unwrap();
    let file = folder.path().join("backup.db");
    let endpoint = cluster.endpoint(1);
    let endpoint = endpoint.trim_start_matches("http://");
    run_client(&["--endpoint", endpoint, "snapshot", "save"], &file);
    wait_for_revision(&first, client::revision(&first.get("/").await.unwrap().header) + 200).await;
    stop.store(true, Ordering::Relaxed);
    writers.join_all().await;

    assert_eq!(fs::metadata(&file).unwrap().len() % 512, 32, "the length that etcd's clients look for");
    let status: serde_json::Value =
        serde_json::from_str(&run_client(&["-w", "json", "snapshot", "status"], &file)).unwrap();
    let revision = status["revision"].as_i64().unwrap();
    let saved = saved_at(&first, revision, file, folder).await;
    assert_eq!(status["totalKey"].as_i64().unwrap(), saved.keys.len() as i64);
    saved
}

/// What a snapshot in a file must hold.
async fn saved_at(client: &Client, revision: i64, file: PathBuf, folder: TempDir) -> Saved {
    let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), revision, ..Default::default() };
    let range = client.range(all).await.unwrap();
    let hashed = client.hash_kv(revision).await.unwrap();
    Saved {
        file,
        cluster_id: range.header.unwrap().cluster_id,
        revision,
        keys: range.kvs,
        events: events(client, revision).await,
        hash: (hashed.hash, hashed.compact_revision),
        _folder: folder,
    }
}

async fn put_leased(client: &Client) {
    let grant = pb::LeaseGrantRequest { id: LEASE, ttl: LEASE_TTL_SECONDS };
    client.within(client.lease().lease_grant(grant)).await.unwrap();
    client.put_request(pb::PutRequest { lease: LEASE, ..client::put("leased", "1") }).await.unwrap();
}

/// Every node of the cluster holds what was saved, and no more.
async fn assert_holds(cluster: &Cluster, saved: &Saved) {
    let all = pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    for index in 0..cluster.nodes.len() {
        let client = cluster.client(index);
        let range = client.range(all.clone()).await.unwrap();
        let header = range.header.unwrap();
        assert_eq!(header.revision, saved.revision);
        assert_ne!(header.cluster_id, saved.cluster_id, "it is another cluster");
        assert!(range.kvs == saved.keys, "node {index} holds other keys");
        let hashed = client.hash_kv(saved.revision).await.unwrap();
        assert_eq!((hashed.hash, hashed.compact_revision), saved.hash);
        assert!(events(&client, saved.revision).await == saved.events, "node {index} tells another history");
        assert_eq!(client.members().await.unwrap().len(), cluster.nodes.len());
        assert!(!cluster.nodes[index].data_dir.join(RESTORE_FILE).exists(), "what was restored is removed");
    }
    let client = cluster.client(0);
    let ask = pb::LeaseTimeToLiveRequest { id: LEASE, keys: true };
    let lease = client.within(client.lease().lease_time_to_live(ask)).await.unwrap();
    assert_eq!((lease.granted_ttl, &lease.keys[..]), (LEASE_TTL_SECONDS, &[client::bytes("leased")][..]));
    assert!(lease.ttl > LEASE_TTL_SECONDS / 2, "{} s are left", lease.ttl);
}

/// The cluster takes writes, and keeps all over a crash of every node.
async fn go_on(cluster: &mut Cluster, saved: &Saved) {
    let put = cluster.client(0).put("after", "1").await.unwrap();
    assert_eq!(client::revision(&put.header), saved.revision + 1);
    cluster.kill_all();
    (0..cluster.nodes.len()).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    cluster.assert_equal_hashes().await;
    let range = cluster.client(0).prefix("key-").await.unwrap();
    let before = saved.keys.iter().filter(|pair| pair.key.starts_with(b"key-")).count();
    assert_eq!((range.kvs.len(), client::revision(&range.header)), (before, saved.revision + 1));
    assert_eq!(cluster.client(0).get("after").await.unwrap().kvs.len(), 1);
}

/// All events after the compaction, up to a revision.
async fn events(client: &Client, until: i64) -> Vec<Event> {
    let (_open, mut stream) = watch(client, "key-", COMPACTED + 1).await.unwrap();
    let mut seen = Vec::new();
    loop {
        // The last revision may be another key's.
        let Ok(next) = tokio::time::timeout(Duration::from_secs(2), stream.message()).await else { return seen };
        let response = next.unwrap().expect("the stream goes on");
        assert!(!response.canceled, "{}", response.cancel_reason);
        let revision = |event: &Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
        let done = response.events.iter().any(|event| revision(event) >= until);
        seen.extend(response.events.into_iter().filter(|event| revision(event) <= until));
        if done {
            return seen;
        }
    }
}

async fn wait_for_revision(client: &Client, revision: i64) {
    let deadline = Instant::now() + PATIENCE;
    while client::revision(&client.get("/").await.unwrap().header) < revision {
        assert!(Instant::now() < deadline, "revision {revision} is not reached");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn wait_for_log(cluster: &Cluster, index: usize, text: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !cluster.log(index).contains(text) {
        assert!(Instant::now() < deadline, "node {index} does not say {text:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn restore(saved: &Saved, data_dir: &Path) {
    run_client(&["snapshot", "restore", "--data-dir", data_dir.to_str().unwrap()], &saved.file);
}

/// Runs our client program, whose last word is a file.
fn run_client(words: &[&str], file: &Path) -> String {
    let client = program().with_file_name("chainfire-client");
    assert!(client.is_file(), "{} is not there: run `make build` first", client.display());
    let mut command: Command = command(&client);
    let output = command.args(words).arg(file).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

/// The check has teeth: another revision, key, value, history or hash, the cluster itself, a snapshot that is left lying, a lost lease
/// do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_what_was_saved_is_seen() {
    let cluster = Arc::new(Cluster::start(1).await);
    let client = cluster.client(0);
    put_leased(&client).await;
    for number in 0..COMPACTED + 50 {
        client.put(&format!("key-{:04}", number % 100), &number.to_string()).await.unwrap();
    }
    // What another cluster would have saved that held the same.
    let elsewhere = async || {
        let revision = client::revision(&client.get("/").await.unwrap().header);
        let mut saved = saved_at(&client, revision, PathBuf::new(), tempfile::tempdir().unwrap()).await;
        saved.cluster_id ^= 1;
        saved
    };
    let check = |saved: Saved| {
        let cluster = cluster.clone();
        fails(async move { assert_holds(&cluster, &saved).await })
    };
    assert!(!check(elsewhere().await).await, "it holds what was saved");
    type Plant = fn(&mut Saved);
    let plants: [(&str, Plant); 7] = [
        ("another revision", |saved| saved.revision += 1),
        ("a key", |saved| drop(saved.keys.pop())),
        ("a value", |saved| saved.keys[0].value = client::bytes("altered")),
        ("a hash", |saved| saved.hash.0 ^= 1),
        ("an event", |saved| drop(saved.events.pop())),
        ("the order of events", |saved| saved.events.swap(0, 1)),
        ("the cluster itself", |saved| saved.cluster_id ^= 1),
    ];
    for (what, plant) in plants {
        let mut saved = elsewhere().await;
        plant(&mut saved);
        assert!(check(saved).await, "{what} went unnoticed");
    }
    let left = cluster.nodes[0].data_dir.join(RESTORE_FILE);
    fs::write(&left, "").unwrap();
    assert!(check(elsewhere().await).await, "a snapshot that is left lying went unnoticed");
    fs::remove_file(&left).unwrap();
    client.within(client.lease().lease_revoke(pb::LeaseRevokeRequest { id: LEASE })).await.unwrap();
    client.put("key-0000", "last").await.unwrap();
    assert!(check(elsewhere().await).await, "a lost lease went unnoticed");
}
