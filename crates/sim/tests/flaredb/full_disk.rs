//! Full disks of stores.

use std::fs;
use std::time::{Duration, Instant};

use tonic::Code;

use crate::cluster::{Cluster, PATIENCE, delete, get, put};
use crate::disks::SmallDisk;
use crate::tell::{figure, skipped};

const REFUSED_WITHIN: Duration = Duration::from_secs(1);
/// Longer than it takes to write deletions out and to merge them.
const FULL_FOR_GOOD: Duration = Duration::from_secs(8);
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// What is left where a disk is filled: less than the line above which puts are taken.
const LEFT_BYTES: u64 = 16 << 20;
/// And a little more than that line.
const ABOVE_THE_LINE: u64 = 45 << 20;

fn small_disk(cluster: &Cluster, store: usize) -> Option<SmallDisk> {
    let disk = SmallDisk::mount_at(&cluster.data_dir(&cluster.stores[store]));
    disk.inspect_err(|why| skipped("flaredb::full_disk", &format!("no small file system can be mounted: {why}"))).ok()
}

fn spawn_all(cluster: &mut Cluster) {
    cluster.pd.iter_mut().chain(&mut cluster.stores).for_each(crate::cluster::Process::spawn);
}

/// Alone, a store whose disk is full refuses puts, and nothing else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_refuses_puts_until_there_is_room() {
    let mut cluster = Cluster::new(1, 1);
    let Some(disk) = small_disk(&cluster, 0) else { return };
    spawn_all(&mut cluster);
    cluster.until("the first region is there", async |cluster| cluster.has_replicas(1).await).await;
    let mut client = cluster.raw(0).await;
    for number in 0..8 {
        put(&mut client, &format!("k{number}"), "v").await.unwrap();
    }
    let ballast = disk.path().join("someone-elses");
    for cycle in 0..2 {
        disk.fill(&ballast, LEFT_BYTES);
        let full = Instant::now();
        let why = loop {
            match put(&mut client, "k", "v").await {
                Ok(()) => assert!(full.elapsed() < REFUSED_WITHIN, "puts are still taken"),
                Err(why) => break why,
            }
        };
        figure(format_args!("full disk, cycle {cycle}: refused after {} ms", full.elapsed().as_millis()));
        assert_eq!(why.code(), Code::ResourceExhausted);
        assert!(why.message().contains("only deletes are taken"), "{why:?}");
        assert_eq!(get(&mut client, &format!("k{}", 2 * cycle)).await.unwrap().as_deref(), Some("v"));
        assert!(delete(&mut client, &format!("k{}", 2 * cycle)).await.unwrap());
        cluster
            .until("the placement driver knows", async |cluster| {
                cluster.page("stores").await.is_some_and(|page| page["stores"][0]["full"] == true)
            })
            .await;
        if cycle == 1 {
            // A restart does not change that.
            cluster.stores[0].kill();
            cluster.stores[0].spawn();
            client = cluster.raw(0).await;
            cluster.until("it is back", async |cluster| get(&mut cluster.raw(0).await, "k1").await.is_ok()).await;
            assert_eq!(put(&mut client, "k", "v").await.unwrap_err().code(), Code::ResourceExhausted);
            assert!(delete(&mut client, "k1").await.unwrap());
        }
        fs::remove_file(&ballast).unwrap();
        let roomy = Instant::now();
        while put(&mut client, "k", "v").await.is_err() {
            assert!(roomy.elapsed() < BACK_WITHIN, "puts do not come back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        figure(format_args!("full disk, cycle {cycle}: taken again after {} ms", roomy.elapsed().as_millis()));
    }
}

/// One of several stops nobody: it hands over what it leads, and its replicas move to where there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_among_others_hands_over_and_is_relieved() {
    let mut cluster = Cluster::new(1, 3);
    let Some(disk) = small_disk(&cluster, 0) else { return };
    spawn_all(&mut cluster);
    cluster.until("any disk counts as roomy", async |cluster| cluster.has_room_on_any_disk()).await;
    cluster.until("the first region is replicated", async |cluster| cluster.has_replicas(3).await).await;
    for number in 0..50 {
        put(&mut cluster.raw(1).await, &format!("k{number:02}"), "v").await.unwrap();
    }
    // The full one is to lead.
    cluster.set_policy(r#"{"evict-leader-stores": [2, 3]}"#);
    cluster.until("the store with the small disk leads", async |cluster| cluster.leader().await == 0).await;
    cluster.set_policy(r#"{"evict-leader-stores": []}"#);
    let ballast = disk.path().join("someone-elses");
    disk.fill(&ballast, LEFT_BYTES);
    let full = Instant::now();
    cluster.until("another store leads", async |cluster| cluster.leader().await != 0).await;
    for store in 0..3 {
        put(&mut cluster.raw(store).await, &format!("full-{store}"), "v").await.unwrap();
    }
    figure(format_args!("a full leader: puts go on after {} ms", full.elapsed().as_millis()));

    // With a place for it its replica leaves, and what it missed is made good.
    let fourth = cluster.add_store(0);
    cluster.stores[fourth].spawn();
    cluster
        .until("the full store holds nothing", async |cluster| {
            let page = cluster.page("stores").await.unwrap_or_default();
            let stores = page["stores"].as_array().cloned().unwrap_or_default();
            stores.iter().any(|store| store["id"] == 1 && store["region_count"] == 0) && cluster.has_replicas(3).await
        })
        .await;
    assert_eq!(get(&mut cluster.raw(fourth).await, "full-0").await.unwrap().as_deref(), Some("v"));
    fs::remove_file(&ballast).unwrap();
    cluster
        .until("the store has room again", async |cluster| {
            let page = cluster.page("stores").await.unwrap_or_default();
            page["stores"].as_array().is_some_and(|stores| stores.iter().all(|store| store["full"] == false))
        })
        .await;
}

/// A MiB that no compression makes much smaller.
fn value(number: usize) -> String {
    let mut random = base::Rng::new(number as u64 + 1);
    (0..1 << 20).map(|_| char::from(b'0' + random.below(75) as u8)).collect()
}

/// Full of what clients have put there: they delete it, and that is all that has to be done. The room of what was deleted is that
/// of what is put then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_deleted_gives_its_room_back() {
    let mut cluster = Cluster::new(1, 1);
    let Some(_disk) = small_disk(&cluster, 0) else { return };
    spawn_all(&mut cluster);
    cluster.until("the first region is there", async |cluster| cluster.has_replicas(1).await).await;
    let mut client = cluster.raw(0).await;
    let mut first = 0;
    for cycle in 0..3 {
        let (mut count, mut refused) = (0, None);
        // A store that is full may find room in what was deleted.
        while refused.is_none_or(|since: Instant| since.elapsed() < FULL_FOR_GOOD) {
            match put(&mut client, &format!("k{count:04}"), &value(count)).await {
                Ok(()) => (count, refused) = (count + 1, None),
                Err(why) => {
                    assert_eq!(why.code(), Code::ResourceExhausted, "{why:?}");
                    refused.get_or_insert_with(Instant::now);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            assert!(count < 10_000, "the disk is never full");
        }
        figure(format_args!("cycle {cycle}: full of {count} MiB"));
        first = if cycle == 0 { count } else { first };
        // The log's files are large for such a disk, and there are more or fewer of them.
        assert!(count * 2 >= first, "what was deleted still takes room");
        assert!(get(&mut client, "k0000").await.unwrap() == Some(value(0)));
        for number in 0..count {
            assert!(delete(&mut client, &format!("k{number:04}")).await.unwrap());
        }
    }
}

/// The disk has but `left` bytes, before a region that is received is whole, or while it is put in place: the store goes on, and
/// has it once there is room.
async fn runs_out_of_room_while_there_is_a(part: &str, left: u64) {
    // The disk holds three times as much.
    const VALUES: usize = 70;
    let mut cluster = Cluster::new(1, 3);
    let Some(disk) = small_disk(&cluster, 2) else { return };
    cluster.pd[0].spawn();
    cluster.stores[0].spawn();
    cluster.until("the first region is there", async |cluster| cluster.has_replicas(1).await).await;
    for number in 0..VALUES {
        put(&mut cluster.raw(0).await, &format!("k{number:03}"), &value(number)).await.unwrap();
    }
    // Also where the machine's own disk is rather full.
    cluster.set_policy(r#"{"high-space-ratio": 0.98, "low-space-ratio": 0.99}"#);
    cluster.stores[1].spawn();
    cluster.until("there are two replicas", async |cluster| cluster.has_replicas(2).await).await;
    cluster.stores[2].spawn();
    let (ballast, incoming) = (disk.path().join("someone-elses"), disk.path().join("incoming"));
    let began = Instant::now();
    let is_there = || {
        let mut names = fs::read_dir(&incoming).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().ends_with(part))
    };
    while !is_there() {
        assert!(began.elapsed() < PATIENCE, "nothing comes");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    disk.fill(&ballast, left);
    figure(format_args!("full while there is a {part}: {}", is_there()));
    cluster
        .until("there is no room for all of it", async |cluster| {
            cluster.page("stores").await.is_some_and(|page| page["stores"][2]["full"] == true)
        })
        .await;
    // The others go on, and so does this one.
    for store in 0..3 {
        put(&mut cluster.raw(store).await, &format!("meanwhile-{store}"), "v").await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!cluster.stores[2].has_ended(), "it ended");
    let said = cluster.stores[2].said();
    figure(format_args!("waited to be put in place: {}", said.contains("CF4016")));
    fs::remove_file(&ballast).unwrap();
    cluster.until("it has all of it", async |cluster| cluster.has_replicas(3).await).await;
    for number in (0..VALUES).step_by(17) {
        let read = get(&mut cluster.raw(2).await, &format!("k{number:03}")).await.unwrap();
        assert!(read.as_deref() == Some(&value(number)), "k{number:03} is another one");
    }
    cluster.stores[2].stop().await;
    cluster.stores[2].spawn();
    cluster.until("it is back", async |cluster| cluster.has_replicas(3).await).await;
    let left_overs = fs::read_dir(&incoming).map_or(0, Iterator::count);
    assert_eq!(left_overs, 0, "what was received and is in place takes no room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_before_a_region_has_come_is_waited_for() {
    runs_out_of_room_while_there_is_a(".part", ABOVE_THE_LINE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_while_a_region_is_put_in_place_is_waited_for() {
    // It needs next to none: its tables are there.
    runs_out_of_room_while_there_is_a(".whole", 0).await;
}
