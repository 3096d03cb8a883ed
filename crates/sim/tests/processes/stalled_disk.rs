//! A disk that stands still: its node leads no more, the others go on, and when the disk moves again nothing is missing.

use std::time::{Duration, Instant};

use crate::client::Client;
use crate::cluster::{Cluster, Options, PATIENCE, is_etcd};
use crate::disks::FrozenDisk;
use crate::durability::{Writers, assert_holds};
use crate::tell::{figure, skipped};

/// What is promised is 5 s; a busy machine has more.
const LEADS_MAX: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_with_a_stalled_disk_is_replaced() {
    if is_etcd() {
        return skipped("stalled_disk", "an etcd leads on with a stalled disk");
    }
    let mut cluster = Cluster::new(3, Options::default());
    let mut disks = Vec::new();
    for index in 0..3 {
        match FrozenDisk::mount_at(&cluster.nodes[index].data_dir) {
            Ok(disk) => disks.push(disk),
            Err(why) => return skipped("stalled_disk", &format!("no disk that can be frozen: {why}")),
        }
    }
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    let term = cluster.client(others[0]).status().await.unwrap().raft_term;
    // Many writers, so that the log has a thread of its own.
    let writers = Writers::start(&cluster.endpoints(), 8, "stalled");
    tokio::time::sleep(Duration::from_secs(1)).await;

    disks[leader].freeze();
    let frozen = Instant::now();
    let replaced = loop {
        let status = cluster.client(others[0]).status().await.unwrap();
        if status.raft_term > term && status.leader != 0 {
            break frozen.elapsed();
        }
        assert!(frozen.elapsed() < PATIENCE, "the leader leads on with a disk that stands still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let client = Client::with_timeout(&cluster.endpoint(others[1]), PATIENCE);
    client.put("meanwhile", "1").await.unwrap();
    figure(format_args!(
        "a leader's disk stands still: replaced after {} ms, writes after {} ms",
        replaced.as_millis(),
        frozen.elapsed().as_millis()
    ));
    assert!(replaced < LEADS_MAX, "replaced after {replaced:?}");
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
