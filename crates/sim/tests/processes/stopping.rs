//! A stop that would leave no quorum waits for the others, for a while.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Options, PATIENCE, is_etcd};
use crate::tell::{figure, skipped};

const WAITING: &str = "Waiting before the stop";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_that_would_break_the_quorum_waits() {
    if is_etcd() {
        return skipped("stopping", "an etcd stops when it is told to");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let (down, stopping) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(down);
    wait_for_silence(&cluster, leader, down).await;

    // The one that is down comes back meanwhile: so the stop goes on, and the quorum was there all the time.
    cluster.terminate(stopping);
    wait_for_words(&cluster, stopping, 1).await;
    cluster.spawn(down);
    cluster.wait_until_serving(down).await;
    cluster.stop(stopping).await;
    assert!(!cluster.log(stopping).contains("Stopping all the same"), "it need not wait to the end");
    cluster.client(leader).put("still", "1").await.unwrap();

    // With nobody coming back it ends all the same.
    cluster.spawn(stopping);
    cluster.wait_until_serving(stopping).await;
    let leader = cluster.leader().await;
    let (down, stopping) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(down);
    wait_for_silence(&cluster, leader, down).await;
    let told = Instant::now();
    cluster.stop(stopping).await;
    figure(format_args!("a stop that leaves no quorum takes {} ms", told.elapsed().as_millis()));
    assert!(cluster.log(stopping).contains("Stopping all the same"));
}

/// Returns when the leader misses a node.
async fn wait_for_silence(cluster: &Cluster, leader: usize, missing: usize) {
    let url = cluster.peer_url(missing);
    crate::offline::wait_for_status(cluster, leader, |status| {
        let member = status.members.iter().find(|member| member.peer_urls.contains(&url));
        member.and_then(|member| member.progress).is_some_and(|progress| !progress.active)
    })
    .await;
}

async fn wait_for_words(cluster: &Cluster, index: usize, times: usize) {
    let deadline = Instant::now() + PATIENCE;
    while cluster.log(index).matches(WAITING).count() < times {
        assert!(Instant::now() < deadline, "it does not say that it waits");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
