//! The power goes: processes end, and with them all that was written and not synced. What was acknowledged is there when
//! they are back, also where the disk has failed before.

use std::time::{Duration, Instant};

use base::Rng;

use crate::cluster::{Cluster, Options};
use crate::durability::{Acknowledged, Writers, assert_holds};
use crate::failing_disk::{FailingDisk, Fault, Place};
use crate::tell::{done, fails, figure, runs, seed, skipped, spread};

const WRITERS_PER_NODE: usize = 4;
const WRITING: Duration = Duration::from_millis(500);
/// A node that cannot write stops at once.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_without_power_lose_nothing_acknowledged() {
    let (seed, rounds) = (seed(), runs(3));
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::new(3, Options::brisk());
    let disks = match FailingDisk::under(&mut cluster) {
        Ok(disks) => disks,
        Err(why) => return skipped("three_nodes_without_power", &why),
    };
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    let (mut acknowledged, mut lost, mut restarts) = (Acknowledged::default(), 0, Vec::new());
    for round in 0..rounds {
        let writers = Writers::start(&cluster.endpoints(), WRITERS_PER_NODE, &format!("power-{round}"));
        tokio::time::sleep(WRITING + Duration::from_millis(rng.below(300))).await;
        cluster.kill_all();
        lost += disks.iter().map(|disk| disk.lose_power(&mut rng)).sum::<usize>();
        let written = writers.finish().await;
        assert!(!written.is_empty(), "nothing was written in round {round}");
        acknowledged.extend(written);
        let began = Instant::now();
        (0..3).for_each(|index| cluster.spawn(index));
        cluster.wait_until_all_serve().await;
        restarts.push(began.elapsed());
        for index in 0..3 {
            assert_holds(&cluster.client(index), &acknowledged).await;
        }
    }
    cluster.assert_equal_hashes().await;
    figure(format_args!(
        "power: three nodes without it {rounds} times, {lost} unsynced writes taken back, {} acknowledged, 0 lost; serving \
         again after {} (seed {seed})",
        acknowledged.len(),
        spread(&restarts)
    ));
    done(rounds);
}

/// Nobody else has what a single node acknowledged: a sync that failed, and was taken for done or tried again, would show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_whose_disk_fails_has_acknowledged_nothing_of_it() {
    let (seed, rounds) = (seed(), runs(5));
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::new(1, Options::brisk());
    let disk = match FailingDisk::under(&mut cluster) {
        Ok(mut disks) => disks.remove(0),
        Err(why) => return skipped("a_single_node_whose_disk_fails", &why),
    };
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    let (mut acknowledged, mut ended) = (Acknowledged::default(), Vec::new());
    for round in 0..rounds {
        let (fault, call) = (if round % 3 == 2 { Fault::WriteFails } else { Fault::SyncFails }, rng.between(1, 60));
        let writers = Writers::start(&cluster.endpoints(), WRITERS_PER_NODE, &format!("failing-{round}"));
        disk.arm(fault, Place::Log, call, false);
        let begun = Instant::now();
        while !cluster.has_ended(0) {
            assert!(begun.elapsed() < ENDS_WITHIN, "{fault:?} at call {call}: the node goes on (seed {seed})");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        ended.push(begun.elapsed());
        assert_eq!(disk.failed(), 1);
        if fault == Fault::SyncFails {
            assert_eq!(disk.calls(), call, "after a sync that failed the log is not synced again");
        }
        acknowledged.extend(writers.finish().await);
        cluster.kill(0);
        disk.disarm();
        disk.lose_power(&mut rng);
        cluster.spawn(0);
        cluster.wait_until_serving(0).await;
        assert_holds(&cluster.client(0), &acknowledged).await;
    }
    assert!(cluster.log(0).contains("The node cannot go on and stops"));
    figure(format_args!(
        "power after a failed call: {rounds} times, {} acknowledged, 0 lost; the node ended after {} (seed {seed})",
        acknowledged.len(),
        spread(&ended)
    ));
    done(ended.len());
}

/// The disk that loses power has teeth: where a sync was not done, what was acknowledged is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_was_not_done_is_seen() {
    let mut cluster = Cluster::new(1, Options::brisk());
    let disk = match FailingDisk::under(&mut cluster) {
        Ok(mut disks) => disks.remove(0),
        Err(why) => return skipped("a_sync_that_was_not_done", &why),
    };
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    let mut rng = Rng::new(seed());
    for fault in [None, Some(Fault::SyncLies)] {
        if let Some(fault) = fault {
            disk.arm(fault, Place::Log, 1, true);
        }
        let writers = Writers::start(&cluster.endpoints(), WRITERS_PER_NODE, &format!("lies-{fault:?}"));
        tokio::time::sleep(WRITING).await;
        cluster.kill_all();
        let acknowledged = writers.finish().await;
        assert!(!acknowledged.is_empty());
        let lost = disk.lose_power(&mut rng);
        disk.disarm();
        cluster.spawn(0);
        let begun = Instant::now();
        while cluster.client(0).get("/").await.is_err() && !cluster.has_ended(0) {
            assert!(begun.elapsed() < ENDS_WITHIN, "it neither serves nor ends");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let client = cluster.client(0);
        let gone = cluster.has_ended(0) || fails(async move { assert_holds(&client, &acknowledged).await }).await;
        assert_eq!(gone, fault.is_some(), "with {fault:?}, {lost} writes taken back");
    }
}
