//! A full disk: writes are refused, reads and deletes go on, and with room the writes come back by themselves.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;
use tempfile::TempDir;
use tonic::Code;

use crate::client::Client;
use crate::cluster::{Cluster, Options, is_etcd};
use crate::tell::{figure, runs, skipped};

const DISK_BYTES: u64 = 320 << 20;
const VALUE_BYTES: usize = 256 << 10;
const REFUSED_WITHIN: Duration = Duration::from_secs(2);
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
        let size = disk.free_bytes() - (6 << 20);
        fill(&ballast, size);
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
    fill(&ballast, disk.free_bytes() - (96 << 20));
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
    fill(&ballast, disk.free_bytes());
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

async fn until_refused(client: &Client, key: &str, value: &str) -> Instant {
    let deadline = Instant::now() + Duration::from_secs(30);
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
    let room = Instant::now();
    while let Err(why) = client.put("key", "room").await {
        assert!(room.elapsed() < BACK_WITHIN, "writes do not come back: {why:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    figure(format_args!("full disk: writes are back {} ms after there was room", room.elapsed().as_millis()));
}

fn fill(path: &Path, bytes: u64) {
    let file = fs::File::create(path).unwrap();
    // SAFETY: the descriptor is open.
    let done = unsafe { libc::posix_fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), 0, bytes as libc::off_t) };
    assert_eq!(done, 0, "room for {bytes} bytes");
}

/// A file system in memory; unmounted when dropped.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> std::io::Result<SmallDisk> {
        let folder = tempfile::Builder::new().prefix("processes-disk-").tempdir()?;
        let path = CString::new(folder.path().as_os_str().as_bytes())?;
        let options = CString::new(format!("size={DISK_BYTES},mode=700"))?;
        // SAFETY: all texts end with a zero byte and live through the call.
        let done =
            unsafe { libc::mount(c"tmpfs".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
        if done == 0 { Ok(SmallDisk(folder)) } else { Err(std::io::Error::last_os_error()) }
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn free_bytes(&self) -> u64 {
        let path = CString::new(self.0.path().as_os_str().as_bytes()).expect("paths have no zero bytes");
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the path ends with a zero byte, and the call fills `stat` when it succeeds.
        let stat = unsafe {
            assert_eq!(libc::statvfs(path.as_ptr(), stat.as_mut_ptr()), 0);
            stat.assume_init()
        };
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let Ok(path) = CString::new(self.0.path().as_os_str().as_bytes()) else { return };
        // SAFETY: the path ends with a zero byte. Detached: what is still open goes when it is closed.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}
