//! A disk that stands still: its node leads no more, the others go on, and when the disk moves again nothing is missing. The
//! same with one that is only slow, after a while.

use std::time::{Duration, Instant};

use proto::etcdserverpb::StatusResponse;

use crate::client::Client;
use crate::cluster::{Cluster, Node, Options, PATIENCE, is_etcd};
use crate::disks::FrozenDisk;
use crate::durability::{Writers, assert_holds, longest_gap};
use crate::tell::{figure, skipped};

/// What is promised.
const LEADS_MAX: Duration = Duration::from_secs(5);
const SLOW_LEADS_MAX: Duration = Duration::from_secs(10);
/// Until then all wait for the slow disk, each write for one turn of it and more.
const SLOW_GAP_MAX: Duration = Duration::from_secs(3);
/// Most of the time nothing is written, but never for so long that it counts as standing still.
const SLOW: (Duration, Duration) = (Duration::from_millis(600), Duration::from_millis(50));
const SLOW_FOR: Duration = Duration::from_secs(15);
const LEADS_ON: &str = "the leader leads on";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_stalled_disk_is_replaced() {
    if is_etcd() {
        return skipped("stalled_disk", "an etcd leads on with a stalled disk");
    }
    let (mut cluster, disks) = match with_disks().await {
        Ok(made) => made,
        Err(why) => return skipped("stalled_disk", &format!("no disk that can be frozen: {why}")),
    };
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let before = cluster.client(others[0]).status().await.unwrap();
    // Many writers, so that the log has a thread of its own.
    let writers = Writers::start(&cluster.endpoints(), 8, "stalled");
    tokio::time::sleep(Duration::from_secs(1)).await;

    disks[leader].freeze();
    let frozen = Instant::now();
    let replaced = replaced_within(LEADS_MAX, &cluster.client(others[0]), &before).await;
    let replaced = replaced.unwrap_or_else(|why| panic!("{why} with a disk that stands still"));
    let client = Client::with_timeout(&cluster.endpoint(others[1]), PATIENCE);
    client.put("meanwhile", "1").await.unwrap();
    figure(format_args!(
        "a leader's disk stands still: replaced after {} ms, writes after {} ms",
        replaced.as_millis(),
        frozen.elapsed().as_millis()
    ));
    tokio::time::sleep(Duration::from_secs(1)).await;
    disks[leader].thaw();

    cluster.wait_until_serving(leader).await;
    let acknowledged = writers.finish().await;
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
    cluster.assert_equal_hashes().await;
    assert!(cluster.log(leader).to_lowercase().contains("stall"), "its log tells of the stall");
}

/// Slow as it is, it answers again and again, and never counts as standing still.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_slow_disk_is_replaced() {
    if is_etcd() {
        return skipped("slow_disk", "an etcd leads on with a slow disk");
    }
    let (cluster, disks) = match with_disks().await {
        Ok(made) => made,
        Err(why) => return skipped("slow_disk", &format!("no disk that can be frozen: {why}")),
    };
    let leader = cluster.leader().await;
    let other = cluster.client((leader + 1) % 3);
    let before = other.status().await.unwrap();
    let writers = Writers::start(&cluster.endpoints(), 4, "slow");
    let began = Instant::now();
    let slowly = async {
        while began.elapsed() < SLOW_FOR {
            disks[leader].freeze();
            tokio::time::sleep(SLOW.0).await;
            disks[leader].thaw();
            tokio::time::sleep(SLOW.1).await;
        }
    };
    let (replaced, ()) = tokio::join!(replaced_within(SLOW_LEADS_MAX, &other, &before), slowly);
    let gap = longest_gap(&writers.moments(), began);
    let replaced = replaced.unwrap_or_else(|why| panic!("{why} with a disk that is slow"));
    figure(format_args!(
        "a leader's disk is slow: replaced after {} ms, writes paused {} ms at most",
        replaced.as_millis(),
        gap.as_millis()
    ));
    assert_ne!(cluster.leader().await, leader, "it leads again");
    assert!(cluster.log(leader).contains("Disk slow"), "its log says why");
    assert!(gap <= SLOW_GAP_MAX, "{gap:?}");
    let acknowledged = writers.finish().await;
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
    cluster.assert_equal_hashes().await;
}

/// The check has teeth: a leader whose disk is never frozen is not replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_leads_on_is_seen() {
    let cluster = Cluster::start(3).await;
    let other = cluster.client((cluster.leader().await + 1) % 3);
    let before = other.status().await.unwrap();
    let outcome = replaced_within(Duration::from_secs(3), &other, &before).await;
    assert_eq!(outcome, Err(LEADS_ON.to_owned()));
}

/// How long it takes until somebody else leads than before, in a later term, in the eyes of another member. The error: nobody
/// does within the bound.
async fn replaced_within(bound: Duration, other: &Client, before: &StatusResponse) -> Result<Duration, String> {
    let began = Instant::now();
    while began.elapsed() <= bound {
        let now = other.status().await.unwrap();
        if now.raft_term > before.raft_term && ![0, before.leader].contains(&now.leader) {
            return Ok(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err(LEADS_ON.to_owned())
}

/// Three nodes, each with a disk of its own.
async fn with_disks() -> Result<(Cluster, Vec<FrozenDisk>), String> {
    let mut cluster = Cluster::new(3, Options::default());
    let mount = |node: &Node| FrozenDisk::mount_at(&node.data_dir);
    let disks = cluster.nodes.iter().map(mount).collect::<Result<_, _>>()?;
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    Ok((cluster, disks))
}
