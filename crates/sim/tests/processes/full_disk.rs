//! A full disk: writes are refused, reads and deletes go on, and with room the writes come back by themselves. The full
//! disk of a minority stops nobody else.

use std::fs;
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;
use tonic::Code;

use crate::client::Client;
use crate::cluster::{Cluster, Options, PATIENCE, is_etcd};
use crate::disks::SmallDisk;
use crate::tell::{done, fails, figure, runs, skipped};

const VALUE_BYTES: usize = 256 << 10;
const REFUSED_WITHIN: Duration = Duration::from_secs(1);
const BACK_WITHIN: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    if is_etcd() {
        return skipped("a_full_disk", "an etcd whose disk is full stops");
    }
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(why) => return skipped("a_full_disk", &format!("a small file system cannot be mounted: {why}")),
    };
    // The disk outlives the node that writes to it.
    let options = Options { data_root: Some(disk.path()), ..Options::default() };
    let mut cluster = Cluster::start_with(1, options).await;
    let client = cluster.client(0);
    let cycles = runs(2);
    client.put("kept", "1").await.unwrap();
    for number in 0..2 * cycles + 1 {
        client.put(&format!("before-{number}"), "1").await.unwrap();
    }
    let ballast = disk.path().join("someone-elses");
    for cycle in 0..cycles {
        // Someone else fills the disk, all but a little.
        disk.fill(&ballast, 6 << 20);
        let full = Instant::now();
        let refused = until_refused(&client, "key", "small").await;
        figure(format_args!(
            "full disk, cycle {cycle}: refused {} ms after it filled up",
            (refused - full).as_millis()
        ));
        assert!(refused - full < REFUSED_WITHIN, "refused after {:?}", refused - full);
        reads_and_deletes_go_on(&client, 2 * cycle).await;
        if cycle == 1 {
            // A restart does not change that.
            cluster.kill(0);
            cluster.spawn(0);
            cluster.wait_until_serving(0).await;
            reads_and_deletes_go_on(&client, 2 * cycle + 1).await;
        }
        fs::remove_file(&ballast).unwrap();
        wait_for_writes(&client).await;
    }

    // The node fills the rest of the disk itself; what it acknowledged is there.
    disk.fill(&ballast, 96 << 20);
    let value = "x".repeat(VALUE_BYTES);
    let mut written = 0;
    let why = loop {
        match client.put(&format!("large-{written:04}"), &value).await {
            Ok(_) => written += 1,
            Err(why) => break why,
        }
        assert!(written < 2000, "it never fills up");
    };
    assert_eq!((why.code(), why.message()), (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
    assert!(written > 20, "only {written} values fit");
    reads_and_deletes_go_on(&client, 2 * cycles).await;
    fs::remove_file(&ballast).unwrap();
    wait_for_writes(&client).await;
    cluster.kill(0);
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    large_values_are_there(&client, written).await;
    // The last time by itself.
    done(cycles + 1);
}

/// The checks have teeth: a node that never refuses, one that says something else, one that loses what it had, refuses deletes or
/// does not come back do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_full_disk_must_not_do_is_seen() {
    if is_etcd() {
        return skipped("what_a_full_disk_must_not_do", "an etcd whose disk is full stops");
    }
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(why) => return skipped("what_a_full_disk_must_not_do", &format!("no small file system: {why}")),
    };
    let options = Options { data_root: Some(disk.path()), ..Options::default() };
    let mut cluster = Cluster::start_with(1, options).await;
    let client = cluster.client(0);
    let own = || client.clone();
    let short = Duration::from_secs(2);
    for key in ["kept", "before-0", "before-1"] {
        client.put(key, "1").await.unwrap();
    }
    client.put("large-0000", &"x".repeat(VALUE_BYTES)).await.unwrap();
    large_values_are_there(&client, 1).await;

    let check = own();
    assert!(fails(async move { until_refused_within(&check, "key", "small", short).await }).await, "never refused");
    let check = own();
    assert!(fails(async move { reads_and_deletes_go_on(&check, 0).await }).await, "a write was taken");
    let ballast = disk.path().join("someone-elses");
    disk.fill(&ballast, 6 << 20);
    until_refused(&client, "key", "small").await;
    reads_and_deletes_go_on(&client, 1).await;
    let check = own();
    assert!(fails(async move { reads_and_deletes_go_on(&check, 1).await }).await, "nothing was deleted");
    client.delete("kept").await.unwrap();
    let check = own();
    assert!(fails(async move { reads_and_deletes_go_on(&check, 2).await }).await, "a lost key");
    let check = own();
    assert!(fails(async move { wait_for_writes_within(&check, short).await }).await, "writes do not come back");

    fs::remove_file(&ballast).unwrap();
    wait_for_writes(&client).await;
    client.put("large-0000", "short").await.unwrap();
    let check = own();
    assert!(fails(async move { large_values_are_there(&check, 1).await }).await, "another value");
    client.delete("large-0000").await.unwrap();
    let check = own();
    assert!(fails(async move { large_values_are_there(&check, 1).await }).await, "a lost value");
    cluster.kill(0);
    let check = own();
    assert!(fails(async move { until_refused(&check, "key", "small").await }).await, "another refusal");
}

async fn large_values_are_there(client: &Client, written: i64) {
    let found = client.prefix("large-").await.unwrap();
    assert!(found.count >= written, "{written} acknowledged, {} there", found.count);
    assert!(found.kvs.iter().all(|pair| pair.value.len() == VALUE_BYTES));
}

/// Not a byte is left, and the store has to write out what it holds in memory: the node waits for room, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_without_a_byte_left_ends_nothing() {
    if is_etcd() {
        return skipped("a_disk_without_a_byte", "an etcd whose disk is full stops");
    }
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(why) => return skipped("a_disk_without_a_byte", &format!("a small file system cannot be mounted: {why}")),
    };
    let options = Options { data_root: Some(disk.path()), ..Options::default() };
    let mut cluster = Cluster::start_with(1, options).await;
    let client = cluster.client(0);
    for number in 0..200 {
        client.put(&format!("before-{number}"), &"x".repeat(10_000)).await.unwrap();
    }
    let ballast = disk.path().join("someone-elses");
    disk.fill(&ballast, 0);
    until_refused(&client, "key", "small").await;
    // Defragmenting begins with a flush, which finds no room; nobody is to wait for it.
    let _ = client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await;
    let full = Instant::now();
    while full.elapsed() < Duration::from_secs(5) {
        assert!(!cluster.has_ended(0), "the node ended");
        assert_eq!(client.get("before-199").await.unwrap().count, 1);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fs::remove_file(&ballast).unwrap();
    wait_for_writes(&client).await;
    let _ = client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await;
    assert_eq!(client.prefix("before-").await.unwrap().count, 200);
    cluster.kill(0);
    cluster.spawn(0);
    cluster.wait_until_serving(0).await;
    assert_eq!(client.prefix("before-").await.unwrap().count, 200);
}

/// Each of three nodes has a disk of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_minority_stops_nobody_and_a_full_quorum_refuses() {
    if is_etcd() {
        return skipped("a_full_minority", "an etcd whose disk is full stops");
    }
    let mut cluster = Cluster::new(3, Options::default());
    let mut disks = Vec::new();
    for index in 0..3 {
        match SmallDisk::mount_at(&cluster.nodes[index].data_dir) {
            Ok(disk) => disks.push(disk),
            Err(why) => return skipped("a_full_minority", &format!("a small file system cannot be mounted: {why}")),
        }
    }
    let ballast = |index: usize| disks[index].path().join("someone-elses");
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    for number in 0..20 {
        cluster.client(0).put(&format!("before-{number}"), "1").await.unwrap();
    }
    let leader = cluster.leader().await;
    let (follower, roomy) = ((leader + 1) % 3, (leader + 2) % 3);

    // A follower alone: the others go on, and it sends its own clients to them at once.
    disks[follower].fill(&ballast(follower), 6 << 20);
    let full = Instant::now();
    while full.elapsed() < Duration::from_secs(4) {
        cluster.client(leader).put("key", "goes on").await.unwrap();
        assert_eq!(cluster.client(roomy).get("key").await.unwrap().count, 1);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(alarms(&cluster, leader).await, 0, "nobody is alarmed by a minority");
    let asked = Instant::now();
    let why = cluster.client(follower).put("key", "elsewhere").await.unwrap_err();
    assert!(why.code() == Code::Unavailable && asked.elapsed() < Duration::from_secs(2), "{why:?}");

    // A second one, the leader: two of three are a quorum.
    disks[leader].fill(&ballast(leader), 6 << 20);
    let full = Instant::now();
    let refused = until_refused(&cluster.client(roomy), "key", "small").await;
    figure(format_args!(
        "two of three disks full: refused {} ms after the second filled up",
        (refused - full).as_millis()
    ));
    assert!(refused - full < REFUSED_WITHIN, "refused after {:?}", refused - full);
    for index in 0..3 {
        let client = cluster.client(index);
        // The one that was alone learns in a moment that it is not.
        while client.get("before-19").await.is_err() {
            assert!(full.elapsed() < PATIENCE, "reads go on");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(client.delete(&format!("before-{index}")).await.unwrap().deleted, 1);
    }

    // One of them has room again, which is a quorum; then the other, which catches up.
    fs::remove_file(ballast(leader)).unwrap();
    wait_for_writes(&cluster.client(roomy)).await;
    fs::remove_file(ballast(follower)).unwrap();
    wait_for_writes(&cluster.client(follower)).await;
    cluster.wait_until_all_serve().await;
    assert_eq!(alarms(&cluster, roomy).await, 0);
    cluster.assert_equal_hashes().await;

    // A leader alone hands over, and writes go on. First all have to know that nobody else is full.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leader = cluster.leader().await;
    disks[leader].fill(&ballast(leader), 12 << 20);
    let full = Instant::now();
    loop {
        let next = cluster.leader().await;
        cluster.client((leader + 1) % 3).put("key", "goes on").await.unwrap();
        if next != leader {
            break;
        }
        assert!(full.elapsed() < PATIENCE, "a full leader leads on");
    }
    figure(format_args!("a full leader handed over within {} ms", full.elapsed().as_millis()));
    fs::remove_file(ballast(leader)).unwrap();
}

async fn alarms(cluster: &Cluster, index: usize) -> usize {
    let client = cluster.client(index);
    client.within(client.maintenance().alarm(pb::AlarmRequest::default())).await.unwrap().alarms.len()
}

async fn until_refused(client: &Client, key: &str, value: &str) -> Instant {
    until_refused_within(client, key, value, Duration::from_secs(30)).await
}

async fn until_refused_within(client: &Client, key: &str, value: &str, patience: Duration) -> Instant {
    let deadline = Instant::now() + patience;
    loop {
        if let Err(why) = client.put(key, value).await {
            let text = (why.code(), why.message());
            assert_eq!(text, (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"));
            return Instant::now();
        }
        assert!(Instant::now() < deadline, "a full disk goes on taking writes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn reads_and_deletes_go_on(client: &Client, number: usize) {
    assert_eq!(client.get("kept").await.unwrap().count, 1);
    assert_eq!(client.delete(&format!("before-{number}")).await.unwrap().deleted, 1);
    let refused = client.put("key", "still refused").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let alarms = client.within(client.maintenance().alarm(pb::AlarmRequest::default())).await.unwrap().alarms;
    assert_eq!(alarms.len(), 1, "the alarm is told: {alarms:?}");
}

async fn wait_for_writes(client: &Client) {
    wait_for_writes_within(client, BACK_WITHIN).await;
}

async fn wait_for_writes_within(client: &Client, patience: Duration) {
    let room = Instant::now();
    while let Err(why) = client.put("key", "room").await {
        assert!(room.elapsed() < patience, "writes do not come back: {why:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    figure(format_args!("full disk: writes are back {} ms after there was room", room.elapsed().as_millis()));
}
