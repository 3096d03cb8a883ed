//! Who is alive, in the eyes of the nodes: soon, without false alarms, and of this cluster only. And how a node finds its
//! cluster through one member, whichever it is.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use base::Rng;
use proto::admin::{GossipMember, GossipState, StatusRequest, StatusResponse};

use crate::cluster::{Cluster, GOSSIP_PORT, Options, PATIENCE, is_etcd};
use crate::membership::{add, wait_for_voters};
use crate::tell::{figure, skipped, spread};

/// A killed node is shown as suspect within this.
const NOTICED: Duration = Duration::from_secs(2);
/// Kills per cluster.
const KILLS: usize = 6;

async fn status(cluster: &Cluster, through: usize) -> StatusResponse {
    let client = cluster.client(through);
    client.within(client.admin().status(StatusRequest {})).await.unwrap()
}

/// A node as another one knows it, by its gossip address.
async fn seen(cluster: &Cluster, through: usize, index: usize) -> Option<GossipMember> {
    let address = format!("{}:{GOSSIP_PORT}", cluster.nodes[index].address);
    status(cluster, through).await.gossip.into_iter().find(|member| member.gossip_address == address)
}

async fn wait_for(cluster: &Cluster, through: usize, index: usize, state: GossipState) -> Duration {
    let began = Instant::now();
    loop {
        let member = seen(cluster, through, index).await;
        if member.as_ref().is_some_and(|member| member.state() == state) {
            return began.elapsed();
        }
        assert!(began.elapsed() < PATIENCE, "not {state:?} in the eyes of {through}: {member:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn wait_for_all_alive(cluster: &Cluster) {
    for through in 0..cluster.nodes.len() {
        for index in 0..cluster.nodes.len() {
            wait_for(cluster, through, index, GossipState::Alive).await;
        }
    }
}

async fn killed_nodes_are_suspect_soon(options: Options) {
    let secure = options.tls;
    let mut cluster = Cluster::start_with(3, options).await;
    wait_for_all_alive(&cluster).await;
    let mut taken = Vec::new();
    for round in 0..KILLS {
        let (victim, witness) = (round % 3, (round + 1 + round / 3) % 3);
        cluster.kill(victim);
        let noticed = wait_for(&cluster, witness, victim, GossipState::Suspect).await;
        assert!(noticed <= NOTICED, "after {noticed:?}");
        taken.push(noticed);
        if round == 0 {
            wait_for(&cluster, witness, victim, GossipState::Down).await;
            let members = status(&cluster, witness).await.members.len();
            assert_eq!(members, 3, "gossip never changes the membership");
        }
        cluster.spawn(victim);
        cluster.wait_until_serving(victim).await;
        wait_for_all_alive(&cluster).await;
    }
    let how = if secure { "under mTLS" } else { "in the clear" };
    figure(format_args!("gossip {how}: a killed node is suspect after {}", spread(&taken)));
    assert!(cluster.log(1).contains("INFO chainfire_gossip: Member is suspect, node="));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_suspect_within_two_seconds() {
    if is_etcd() {
        return skipped("gossip", "an etcd has none");
    }
    killed_nodes_are_suspect_soon(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_suspect_within_two_seconds_under_tls() {
    if is_etcd() {
        return skipped("gossip", "an etcd has none");
    }
    killed_nodes_are_suspect_soon(Options { tls: true, ..Options::default() }).await;
}

/// A paused process answers nothing, but its port does: only probes find out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_node_is_suspect_and_comes_back_by_itself() {
    if is_etcd() {
        return skipped("gossip", "an etcd has none");
    }
    let mut cluster = Cluster::start(3).await;
    wait_for_all_alive(&cluster).await;
    cluster.pause(2);
    let noticed = wait_for(&cluster, 0, 2, GossipState::Suspect).await;
    figure(format_args!("gossip: a paused node is suspect after {} ms", noticed.as_millis()));
    wait_for(&cluster, 1, 2, GossipState::Down).await;
    cluster.resume(2);
    wait_for_all_alive(&cluster).await;
    // Whoever stops in good order is not taken for dead.
    cluster.stop(2).await;
    wait_for(&cluster, 0, 2, GossipState::Left).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_of_another_cluster_does_not_appear() {
    if is_etcd() {
        return skipped("gossip", "an etcd has none");
    }
    let mut cluster = Cluster::start(3).await;
    wait_for_all_alive(&cluster).await;
    let stranger = cluster.add_node("new");
    let all = cluster.nodes[stranger].initial_cluster.clone();
    cluster.nodes[stranger].initial_cluster = format!("n4={}", cluster.peer_url(stranger));
    cluster.spawn(stranger);
    cluster.wait_until_serving(stranger).await;
    cluster.kill(stranger);
    // It has a cluster of its own by now, and is told of these members.
    cluster.nodes[stranger].initial_cluster = all;
    let mut command = cluster.command(stranger);
    command.arg("--log-level=debug");
    cluster.spawn_as(stranger, command);
    let deadline = Instant::now() + PATIENCE;
    while cluster.log(stranger).matches("the node there belongs to another cluster").count() < 3 {
        assert!(Instant::now() < deadline, "it looks for all three");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for index in 0..3 {
        assert_eq!(seen(&cluster, index, stranger).await, None);
        assert_eq!(seen(&cluster, stranger, index).await, None);
    }
    assert_eq!(status(&cluster, stranger).await.gossip.len(), 1, "it knows itself alone");
}

/// The one member that a joining node knows is a follower; the leader and the others are found through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_through_one_follower() {
    if is_etcd() {
        return skipped("gossip", "an etcd wants all members named");
    }
    let mut cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let name = cluster.nodes[follower].name.clone();
    let added = cluster.add_node("existing");
    cluster.nodes[added].initial_cluster =
        format!("{name}={},n4={}", cluster.peer_url(follower), cluster.peer_url(added));
    cluster.spawn(added);
    // It is seen before it is let in.
    for through in 0..3 {
        wait_for(&cluster, through, added, GossipState::Alive).await;
    }
    let waiting = seen(&cluster, 0, added).await.unwrap();
    assert_eq!((waiting.role.as_str(), waiting.cluster_id), ("waiting", 0));
    assert_eq!(status(&cluster, 0).await.members.len(), 3, "gossip lets nobody in");

    add(&cluster, added, false).await.unwrap();
    cluster.wait_until_serving(added).await;
    wait_for_voters(&cluster, 4).await;
    let deadline = Instant::now() + PATIENCE;
    while seen(&cluster, 0, added).await.is_none_or(|member| member.role == "waiting" || member.node_id == 0) {
        assert!(Instant::now() < deadline, "its name and role are told");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It does not depend on the one through which it came.
    cluster.kill(follower);
    wait_for(&cluster, added, follower, GossipState::Suspect).await;
    cluster.client(added).put("without-it", "1").await.unwrap();
    cluster.kill(added);
    cluster.spawn(follower);
    cluster.wait_until_serving(follower).await;
    cluster.spawn(added);
    cluster.wait_until_serving(added).await;
    wait_for_all_alive(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_idle_connections_disturb_nobody() {
    if is_etcd() {
        return skipped("gossip", "an etcd has none");
    }
    const IDLE: usize = 300;
    let cluster = Cluster::start(3).await;
    wait_for_all_alive(&cluster).await;
    let address = (cluster.nodes[0].address, GOSSIP_PORT);
    let mut rng = Rng::new(19);
    let idle: Vec<TcpStream> = (0..IDLE).map(|_| TcpStream::connect(address).unwrap()).collect();
    for round in 0..300 {
        let mut stream = TcpStream::connect(address).unwrap();
        let garbage: Vec<u8> = match round % 3 {
            0 => (0..rng.below(600)).map(|_| rng.next_u64() as u8).collect(),
            1 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            _ => u32::MAX.to_le_bytes().repeat(3),
        };
        // It may hang up in the middle of it.
        let _ = stream.write_all(&garbage);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for index in 0..3 {
        assert!(!cluster.log(index).contains("Member is suspect"), "a false alarm");
        assert!(!cluster.log(index).contains("panicked"), "a thread panicked");
    }
    let refused = cluster.log(0).matches("Closed a connection on the gossip port").count();
    assert!((1..=3).contains(&refused), "each reason is logged once: {refused}");
    for mut stream in idle {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // Closed or reset: either is an end.
        let _ = stream.read_to_end(&mut rest);
    }
    wait_for_all_alive(&cluster).await;
}
