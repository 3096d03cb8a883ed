//! What is done to the folders of stopped nodes: check, repair, recover, and RocksDB's own words for the first two.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use proto::admin as pb;

use crate::client::Client;
use crate::cluster::{Cluster, Options, PATIENCE, command, is_etcd, program};
use crate::durability::{Writers, assert_holds};
use crate::membership::wipe;
use crate::tell::{figure, skipped};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_node_is_checked_and_a_damaged_one_is_rebuilt() {
    if is_etcd() {
        return skipped("offline_check", "an etcd has its own tools");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints(), 2, "checked");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let mut acknowledged = writers.finish().await;
    let victim = (cluster.leader().await + 1) % 3;
    let dir = cluster.nodes[victim].data_dir.clone();

    // Only of a stopped node, and only of a node.
    let busy = offline(&["check", "--data-dir"], &dir);
    assert_eq!(
        (busy.status.code(), said(&busy).contains("in use by another process")),
        (Some(1), true),
        "{}",
        said(&busy)
    );
    let strange = offline(&["check", "--data-dir"], cluster.folder());
    assert_eq!(strange.status.code(), Some(1), "{}", said(&strange));
    assert!(said(&strange).contains("no data folder of a node"), "{}", said(&strange));

    cluster.stop(victim).await;
    let checked = offline(&["check", "--data-dir"], &dir);
    assert_eq!(checked.status.code(), Some(0), "{}", said(&checked));
    for word in [
        "raft_index: ",
        "raft_last_term: ",
        "raft_last_index: ",
        "revision: ",
        "member: ",
        "log: intact",
        "state: intact",
    ] {
        assert!(said(&checked).contains(word), "{word}: {}", said(&checked));
    }
    let json = offline(&["check", "-o", "json", "--data-dir"], &dir);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json["intact"].as_bool(), json["members"].as_array().map(Vec::len)), (Some(true), Some(3)));
    assert!(json["raft_last_index"].as_u64() >= json["raft_index"].as_u64(), "{json}");
    assert!(said(&offline(&["repair", "--data-dir"], &dir)).contains("nothing to repair"));
    assert_eq!(ldb(&cluster, &dir, "checkconsistency").trim_end(), "OK");
    assert!(ldb(&cluster, &dir, "repair").ends_with("OK\n"));
    assert!(!dir.join("lost").exists() && !dir.join("repaired").exists(), "nothing that is intact is repaired");

    // A byte of a table file.
    flip(&table(&dir), 0.5);
    let damaged = offline(&["check", "--data-dir"], &dir);
    assert_eq!(damaged.status.code(), Some(2), "{}", said(&damaged));
    assert!(said(&damaged).contains("state: damaged"), "{}", said(&damaged));
    let repaired = offline(&["repair", "--data-dir"], &dir);
    assert_eq!(repaired.status.code(), Some(0), "{}", said(&repaired));
    let writers = Writers::start(&[cluster.endpoint((victim + 1) % 3)], 1, "meanwhile");
    let began = Instant::now();
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;
    figure(format_args!("rebuilt after `chainfire repair`: serving after {} ms", began.elapsed().as_millis()));
    acknowledged.extend(writers.finish().await);
    assert_holds(&cluster.client(victim), &acknowledged).await;
    cluster.assert_equal_hashes().await;
}

/// RocksDB's repair may drop what it likes: the node does not trust what comes out of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_rocksdbs_repair_the_state_comes_from_a_peer() {
    if is_etcd() {
        return skipped("ldb_repair", "an etcd has its own tools");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints(), 2, "kept");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let acknowledged = writers.finish().await;
    let victim = (cluster.leader().await + 1) % 3;
    let dir = cluster.nodes[victim].data_dir.clone();
    cluster.stop(victim).await;
    // The index block at the end of a file: all of it is lost.
    flip(&table(&dir), 0.97);
    let refused =
        command(&link(&cluster)).arg(format!("--db={}", dir.display())).arg("checkconsistency").output().unwrap();
    assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
    let answer = command(&link(&cluster)).arg(format!("--db={}", dir.display())).arg("repair").output().unwrap();
    assert!(dir.join("repaired").exists(), "{}", said(&answer));
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;
    assert!(cluster.log(victim).contains("went through a repair"), "its log says why the state is given up");
    assert_holds(&cluster.client(victim), &acknowledged).await;
    cluster.assert_equal_hashes().await;
    assert!(!dir.join("repaired").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_goes_on_alone_and_grows_again() {
    if is_etcd() {
        return skipped("recover", "an etcd has --force-new-cluster");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints(), 2, "recovered");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let mut acknowledged = writers.finish().await;
    // What is only in its log, and perhaps not known to be committed, is taken along.
    for index in 0..3 {
        cluster.client(2).put(&format!("last-{index}"), "1").await.unwrap();
    }
    let old = status(&cluster, 2).await;
    cluster.kill_all();
    wipe(&cluster, 0);
    let dir = cluster.nodes[2].data_dir.clone();

    // With one of three nothing can be added, and the words say what can be done.
    cluster.spawn(2);
    let stuck = Client::with_timeout(&cluster.endpoint(2), Duration::from_secs(20));
    wait_for_status(&cluster, 2, |status| status.leader_node_id == 0).await;
    let asked = Instant::now();
    let adding = Command::MemberAdd { node: 0 }.run(&cluster, 2);
    assert!(!adding.status.success() && said(&adding).contains("chainfire recover --unsafe"), "{}", said(&adding));
    figure(format_args!("member-add without a quorum: refused after {} ms", asked.elapsed().as_millis()));
    assert!(stuck.put("nobody", "1").await.is_err());
    let busy = offline(&["recover", "--unsafe", "--yes", "--data-dir"], &dir);
    assert!(said(&busy).contains("in use by another process"), "{}", said(&busy));
    cluster.kill(2);

    let hesitant = offline(&["recover", "--data-dir"], &dir);
    assert_eq!((hesitant.status.code(), said(&hesitant).contains("--unsafe")), (Some(1), true), "{}", said(&hesitant));
    let unsaid = offline(&["recover", "--unsafe", "--data-dir"], &dir);
    assert_eq!((unsaid.status.code(), said(&unsaid).contains("--yes")), (Some(1), true), "{}", said(&unsaid));
    let recovered = offline(&["recover", "--unsafe", "--yes", "--data-dir"], &dir);
    assert_eq!(recovered.status.code(), Some(0), "{}", said(&recovered));
    assert!(said(&recovered).contains("may be lost"), "{}", said(&recovered));

    cluster.spawn(2);
    cluster.wait_until_serving(2).await;
    let alone = status(&cluster, 2).await;
    assert_ne!(alone.cluster_id, old.cluster_id);
    assert_ne!(alone.peer_id, old.peer_id);
    assert_eq!((alone.node_id, alone.members.len()), (old.node_id, 1));
    assert_holds(&cluster.client(2), &acknowledged).await;
    assert_eq!(cluster.client(2).prefix("last-").await.unwrap().count, 3);

    // One that comes back with the old data is a stranger, disturbs nobody, and says what to do.
    cluster.spawn(1);
    wait_for_status(&cluster, 1, |status| status.notes.iter().any(|note| note.contains("empty its data folder"))).await;
    assert!(cluster.log(2).contains("Refused a node of another cluster"));
    let writers = Writers::start(&[cluster.endpoint(2)], 2, "after");
    assert!(Client::with_timeout(&cluster.endpoint(1), Duration::from_secs(2)).put("old", "1").await.is_err());
    cluster.kill(1);
    wipe(&cluster, 1);

    // Fresh ones are taken, added before they start or after.
    cluster.spawn(0);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for index in [0, 1] {
        let added = Command::MemberAdd { node: index }.run(&cluster, 2);
        assert!(added.status.success(), "{}", said(&added));
        if index == 1 {
            cluster.spawn(1);
        }
        cluster.wait_until_serving(index).await;
    }
    wait_for_status(&cluster, 2, |status| status.members.iter().filter(|member| !member.learner).count() == 3).await;
    acknowledged.extend(writers.finish().await);
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
    cluster.assert_equal_hashes().await;
    cluster.kill(2);
    cluster.client(0).put("without the survivor", "1").await.unwrap();
}

/// A recovery that is interrupted anywhere is finished by the next, and no node starts in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_may_be_interrupted() {
    if is_etcd() {
        return skipped("recover_interrupted", "an etcd has --force-new-cluster");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints(), 1, "kept");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let acknowledged = writers.finish().await;
    cluster.kill_all();
    let dir = cluster.nodes[0].data_dir.clone();
    for round in 0..40_u64 {
        let arguments = ["recover", "--unsafe", "--yes", "--data-dir"];
        let mut child =
            command(&program()).args(arguments).arg(&dir).stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round * 3));
        let _ = child.kill();
        let ended = child.wait().unwrap();
        if ended.success() {
            break;
        }
    }
    if dir.join("recovering").exists() {
        let mut start = cluster.command(0);
        assert_eq!(start.output().unwrap().status.code(), Some(1), "no node starts in a folder that is half recovered");
        let recovered = offline(&["recover", "--unsafe", "--yes", "--data-dir"], &dir);
        assert_eq!(recovered.status.code(), Some(0), "{}", said(&recovered));
    }
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    assert_holds(&cluster.client(0), &acknowledged).await;
    assert_eq!(status(&cluster, 0).await.members.len(), 1);
}

/// Calls of the client program.
enum Command {
    MemberAdd { node: usize },
}

impl Command {
    fn run(&self, cluster: &Cluster, through: usize) -> Output {
        let client = program().with_file_name("chainfire-client");
        let Command::MemberAdd { node } = self;
        let url = cluster.peer_url(*node);
        let endpoint = cluster.endpoint(through);
        let id = (node + 11).to_string();
        let words = ["--endpoint", &endpoint, "member-add", "--node-id", &id, "--peer-url", &url];
        command(&client).args(words).output().unwrap()
    }
}

fn offline(words: &[&str], dir: &Path) -> Output {
    command(&program()).args(words).arg(dir).stdin(std::process::Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The program under RocksDB's name.
fn link(cluster: &Cluster) -> PathBuf {
    let link = cluster.folder().join("rocksdb_ldb");
    if !link.exists() {
        symlink(program(), &link).unwrap();
    }
    link
}

fn ldb(cluster: &Cluster, dir: &Path, word: &str) -> String {
    let output = command(&link(cluster)).arg(format!("--db={}", dir.display())).arg(word).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

/// The largest table file of a state.
fn table(dir: &Path) -> PathBuf {
    let tables = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|kind| kind == "sst"));
    tables.max_by_key(|path| fs::metadata(path).unwrap().len()).expect("a stopped node has flushed its state")
}

/// Flips a bit at a part of a file's length.
fn flip(path: &Path, part: f64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let at = (file.metadata().unwrap().len() as f64 * part) as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

pub async fn status(cluster: &Cluster, index: usize) -> pb::StatusResponse {
    let client = cluster.client(index);
    client.within(client.admin().status(pb::StatusRequest {})).await.unwrap()
}

pub async fn wait_for_status(cluster: &Cluster, index: usize, reached: impl Fn(&pb::StatusResponse) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let client = cluster.client(index);
        let answer = client.within(client.admin().status(pb::StatusRequest {})).await;
        if answer.as_ref().is_ok_and(&reached) {
            return;
        }
        assert!(Instant::now() < deadline, "the status stays {answer:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
