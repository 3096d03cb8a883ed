//! A member whose log is gone, shorter or damaged never acts as if it still had it: it is rebuilt from the others under a
//! new peer id, by itself, and nothing acknowledged is lost. A copy of a member's folder does not act either.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;

use crate::client::Client;
use crate::cluster::{Cluster, Options, PATIENCE, is_etcd};
use crate::durability::{Acknowledged, Writers, assert_holds};
use crate::harm::written;
use crate::membership::{wait_for_voters, wipe};
use crate::tell::{fails, figure, skipped};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_follower_is_rebuilt() {
    rebuilt_after("a wiped folder", Victim::Follower, None, wipe).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_leader_is_rebuilt() {
    rebuilt_after("a wiped folder of the leader", Victim::Leader, None, wipe).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_byte_in_the_log_is_seen() {
    let damage = |cluster: &Cluster, index: usize| {
        let (path, written) = largest_segment(&cluster.nodes[index].data_dir);
        flip_byte(&path, written / 2);
    };
    rebuilt_after("a flipped byte", Victim::Follower, Some(&["corrupted log entry"]), damage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_log_is_seen() {
    let damage = |cluster: &Cluster, index: usize| {
        let (path, written) = largest_segment(&cluster.nodes[index].data_dir);
        fs::File::options().write(true).open(path).unwrap().set_len(written / 2).unwrap();
    };
    rebuilt_after("a truncated log", Victim::Follower, Some(&["shorter", "corrupted log entry"]), damage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_log_is_seen() {
    let damage = |cluster: &Cluster, index: usize| {
        fs::remove_dir_all(cluster.nodes[index].data_dir.join("raft")).unwrap();
    };
    rebuilt_after("a removed log", Victim::Leader, Some(&["shorter", "corrupted log entry"]), damage).await;
}

/// A fresh folder that claims a living member's name and address is no new incarnation of that member, however long it
/// goes on claiming.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_of_a_living_member_is_never_admitted() {
    if is_etcd() {
        return skipped("impostor", "an etcd knows members by their address");
    }
    const CLAIMING: Duration = Duration::from_secs(10);
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let mut before = Vec::new();
    for index in 0..3 {
        before.push(peer_of(&cluster, 0, index).await);
    }
    let impostor = cluster.add_node("new");
    let mut command = cluster.command(impostor);
    command.arg("--name=n2");
    command.arg(format!("--initial-advertise-peer-urls={}", cluster.peer_url(1)));
    command.arg(format!("--initial-cluster={}", cluster.nodes[0].initial_cluster));
    cluster.spawn_as(impostor, command);
    let writers = Writers::start(&cluster.endpoints()[..3], 1, "meanwhile");
    tokio::time::sleep(CLAIMING).await;
    let acknowledged = writers.finish().await;
    for (index, peer) in before.iter().enumerate() {
        assert_eq!(peer_of(&cluster, 0, index).await, *peer, "a living member keeps its place");
    }
    let stranger = Client::with_timeout(&cluster.endpoint(impostor), Duration::from_millis(500));
    assert!(stranger.get("/").await.is_err(), "the impostor serves nothing");
    assert!(!cluster.has_ended(impostor), "it waits and says why");
    assert!(cluster.log(impostor).contains("the member that this node claims to be is alive"));
    cluster.kill(impostor);
    assert_holds(&cluster.client(1), &acknowledged).await;
}

enum Victim {
    Leader,
    Follower,
}

/// Writes, takes a node down, damages its folder while the others go on, starts it with the same flags, and expects it
/// whole again: under another peer id, as a voter, with everything acknowledged, and with one of `words` in its log.
async fn rebuilt_after(what: &str, victim: Victim, words: Option<&[&str]>, damage: impl Fn(&Cluster, usize)) {
    if is_etcd() {
        return skipped(what, "an etcd that lost its log is not rebuilt by itself");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let victim = match victim {
        Victim::Leader => leader,
        Victim::Follower => (leader + 1) % 3,
    };
    let others: Vec<usize> = (0..3).filter(|index| *index != victim).collect();
    let all = Writers::start(&cluster.endpoints(), 2, "before");
    tokio::time::sleep(Duration::from_millis(700)).await;
    let mut acknowledged = all.finish().await;
    let old_peer = peer_of(&cluster, others[0], victim).await;
    cluster.kill(victim);
    damage(&cluster, victim);

    let endpoints: Vec<String> = others.iter().map(|index| cluster.endpoint(*index)).collect();
    let writers = Writers::start(&endpoints, 1, "meanwhile");
    let began = Instant::now();
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;
    let new_peer = wait_for_other_peer(&cluster, others[0], victim, old_peer).await;
    wait_for_voters(&cluster, 3).await;
    figure(format_args!("rebuilt after {what}: {} ms until it votes again", began.elapsed().as_millis()));
    acknowledged.extend(writers.finish().await);

    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
    cluster.assert_equal_hashes().await;
    if let Some(words) = words {
        assert_eq!(damage_told(&cluster.log(victim), words), Ok(()));
    }
    it_counts(&mut cluster, victim, &acknowledged).await;
    assert_eq!(peer_of(&cluster, victim, victim).await, new_peer, "a restart does not change the peer id");
}

/// What is missing in the log of a node that was damaged and is whole again, if anything: it names the damage, by one of `words`, and
/// says what becomes of it.
pub fn damage_told(log: &str, words: &[&str]) -> Result<(), String> {
    if !words.iter().any(|word| log.contains(word)) {
        return Err(format!("the damage is not named by any of {words:?}"));
    }
    if log.contains("rebuilt from its peers") { Ok(()) } else { Err("that it is rebuilt is not told".to_owned()) }
}

/// The rebuilt member and one other are a quorum that holds everything.
async fn it_counts(cluster: &mut Cluster, rebuilt: usize, acknowledged: &Acknowledged) {
    let missing = (rebuilt + 1) % 3;
    cluster.kill(missing);
    cluster.kill(rebuilt);
    cluster.spawn(rebuilt);
    cluster.wait_until_serving(rebuilt).await;
    assert_holds(&cluster.client(rebuilt), acknowledged).await;
    cluster.spawn(missing);
    cluster.wait_until_serving(missing).await;
}

pub async fn peer_of(cluster: &Cluster, through: usize, index: usize) -> u64 {
    let client = cluster.client(through);
    let status = client.within(client.admin().status(proto::admin::StatusRequest {})).await.unwrap();
    let url = cluster.peer_url(index);
    let member = status.members.into_iter().find(|member| member.peer_urls.contains(&url));
    member.expect("the node is a member").peer_id
}

pub async fn wait_for_other_peer(cluster: &Cluster, through: usize, index: usize, old: u64) -> u64 {
    wait_for_other_peer_within(cluster, through, index, old, PATIENCE).await
}

async fn wait_for_other_peer_within(
    cluster: &Cluster,
    through: usize,
    index: usize,
    old: u64,
    patience: Duration,
) -> u64 {
    let deadline = Instant::now() + patience;
    loop {
        let peer = peer_of(cluster, through, index).await;
        if peer != old {
            return peer;
        }
        assert!(Instant::now() < deadline, "the rebuilt member keeps its old peer id");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The segment with most in it, and up to where it is written: behind that it holds zeroes.
pub fn largest_segment(data_dir: &Path) -> (PathBuf, u64) {
    let segments = fs::read_dir(data_dir.join("raft")).unwrap().map(|entry| entry.unwrap().path());
    let segments =
        segments.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-")));
    let sized = segments.map(|path| {
        let written = written(&path);
        (path, written)
    });
    let largest = sized.max_by_key(|(_, written)| *written).expect("a log has a segment");
    assert!(largest.1 > 1000, "{} holds only {} bytes", largest.0.display(), largest.1);
    largest
}

pub fn flip_byte(path: &Path, at: u64) {
    let mut file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ 0x40]).unwrap();
    file.sync_all().unwrap();
}

/// The copy has the right identity but another address; the original lives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloned_folder_does_not_act() {
    if is_etcd() {
        return skipped("a_cloned_folder_does_not_act", "an etcd does not look for its double");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let original = (leader + 1) % 3;
    let writers = Writers::start(&cluster.endpoints(), 1, "before");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut acknowledged = writers.finish().await;
    // A copy of a stopped member's folder, as a machine image would hold it.
    cluster.kill(original);
    let clone = cluster.add_node("existing");
    cluster.nodes[clone].name = cluster.nodes[original].name.clone();
    let (here, there) = (cluster.peer_url(original), cluster.peer_url(clone));
    cluster.nodes[clone].initial_cluster = cluster.nodes[original].initial_cluster.replace(&here, &there);
    copy_folder(&cluster.nodes[original].data_dir, &cluster.nodes[clone].data_dir);
    cluster.spawn(original);
    cluster.wait_until_serving(original).await;

    let term = cluster.client(leader).status().await.unwrap().raft_term;
    let originals: Vec<String> = cluster.endpoints()[..3].to_vec();
    let writers = Writers::start(&originals, 1, "beside-the-clone");
    cluster.spawn(clone);
    tokio::time::sleep(Duration::from_secs(3)).await;
    does_not_act(&cluster, clone).await;
    assert!(!cluster.has_ended(clone), "a clone that does not run shows nothing");
    assert!(
        (0..3).any(|index| cluster.log(index).contains("one of them is a copy")),
        "nobody says that there are two of one folder"
    );
    let status = cluster.client(leader).status().await.unwrap();
    assert_eq!(status.raft_term, term, "the clone caused an election");

    // Nor does it act when there is an election to take part in.
    cluster.kill(leader);
    tokio::time::sleep(Duration::from_secs(2)).await;
    does_not_act(&cluster, clone).await;
    let survivors: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    for index in &survivors {
        cluster.wait_until_serving(*index).await;
    }
    cluster.kill(clone);
    cluster.spawn(leader);
    cluster.wait_until_serving(leader).await;
    acknowledged.extend(writers.finish().await);
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
}

async fn does_not_act(cluster: &Cluster, index: usize) {
    let clone = Client::with_timeout(&cluster.endpoint(index), Duration::from_secs(2));
    assert!(clone.put("by-the-clone", "1").await.is_err(), "the clone took a write");
    assert!(clone.get("/").await.is_err(), "the clone served a linearizable read");
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The checks have teeth: who comes back as who it was, a log that says nothing of damage, and a copy that takes writes or only reads
/// do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_rebuilt_and_a_copy_that_acts_are_seen() {
    if is_etcd() {
        return skipped("who_is_not_rebuilt", "an etcd that lost its log is not rebuilt by itself");
    }
    let mut cluster = Cluster::start_with(1, Options::brisk()).await;
    let (peer, short) = (peer_of(&cluster, 0, 0).await, Duration::from_secs(1));
    // Killed, and nothing is damaged.
    cluster.kill(0);
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    let cluster = Arc::new(cluster);
    assert_eq!(wait_for_other_peer_within(&cluster, 0, 0, !peer, short).await, peer);
    let own = cluster.clone();
    let waits = async move { wait_for_other_peer_within(&own, 0, 0, peer, short).await };
    assert!(fails(waits).await, "that it is who it was went unnoticed");
    assert!(damage_told(&cluster.log(0), &["shorter", "corrupted log entry"]).is_err(), "it tells of no damage");

    let own = cluster.clone();
    assert!(fails(async move { does_not_act(&own, 0).await }).await, "a write went unnoticed");
    // Under this alarm writes are refused, and reads are not.
    let raise = pb::AlarmRequest {
        action: pb::alarm_request::AlarmAction::Activate as i32,
        member_id: cluster.member(0, 0).await.expect("it is a member").id,
        alarm: pb::AlarmType::Corrupt as i32,
    };
    let client = cluster.client(0);
    client.within(client.maintenance().alarm(raise)).await.unwrap();
    assert!(client.put("by-the-clone", "1").await.is_err() && client.get("/").await.is_ok());
    let own = cluster.clone();
    assert!(fails(async move { does_not_act(&own, 0).await }).await, "a read went unnoticed");
}

/// Nor does a log pass that names the damage alone, or the rebuilding alone.
#[test]
fn a_log_that_does_not_tell_of_damage_is_seen() {
    let words = ["shorter", "corrupted log entry"];
    let (damage, rebuilt) = ("why=corrupted log entry 7", "This member is rebuilt from its peers");
    assert_eq!(damage_told(&format!("{damage}\n{rebuilt}\n"), &words), Ok(()));
    for bad in [damage, rebuilt, "Serving clients"] {
        assert!(damage_told(bad, &words).is_err(), "{bad:?} went unnoticed");
    }
}
