//! What a service manager sees of stores and of the placement driver: when they are ready, and what a reload does.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PATIENCE};

/// What arrives at the manager's socket, until it contains `wanted`; `None` if it does not within `patience`.
fn heard(socket: &UnixDatagram, wanted: &str, patience: Duration) -> Option<String> {
    let (mut all, deadline) = (String::new(), Instant::now() + patience);
    while Instant::now() < deadline {
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut buffer = [0; 2048];
        if let Ok(length) = socket.recv(&mut buffer) {
            all.push_str(&String::from_utf8_lossy(&buffer[..length]));
            if all.contains(wanted) {
                return Some(all);
            }
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_ready_when_it_serves_and_says_that_it_lives() {
    let mut cluster = Cluster::new(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let mut store = cluster.stores[0].command(&[]);
    store.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "4000000").stdout(std::process::Stdio::null());
    let mut store = store.spawn().unwrap();
    // Without a placement driver it is registered nowhere, and serves nothing.
    assert!(heard(&socket, "STATUS=Registering with the placement driver", PATIENCE).is_some());
    // A reload that comes now ends nothing.
    // SAFETY: takes numbers; the child has not been waited for, so the id is still its own.
    unsafe { libc::kill(store.id() as libc::pid_t, libc::SIGHUP) };
    assert_eq!(heard(&socket, "READY=1", Duration::from_secs(3)), None);
    cluster.pd[0].spawn();
    let until_ready = heard(&socket, "READY=1", PATIENCE).expect("it is ready");
    assert!(!until_ready.contains("STOPPING"), "{until_ready}");
    assert!(cluster.client(&cluster.stores[0], &["get", "x"]).1.is_empty(), "it answers at once: there is no such key");
    for _ in 0..3 {
        assert!(heard(&socket, "WATCHDOG=1", PATIENCE).is_some(), "also where nothing happens");
    }
    // SAFETY: takes numbers; the child has not been waited for, so the id is still its own.
    unsafe { libc::kill(store.id() as libc::pid_t, libc::SIGTERM) };
    assert!(heard(&socket, "STOPPING=1", PATIENCE).is_some());
    assert!(store.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_what_can_change_and_names_what_cannot() {
    let mut cluster = Cluster::new(1, 1);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    fs::write(&file, "[log]\nlevel = \"info\"\n").unwrap();
    let config = format!("--config={}", file.display());
    cluster.pd[0].flag(&config).spawn();
    cluster.stores[0].flag(&config).spawn();
    cluster.until("the first region is there", async |cluster| cluster.has_replicas(1).await).await;
    let drop_ins = folder.path().join("settings.toml.d");
    fs::create_dir(&drop_ins).unwrap();
    fs::write(drop_ins.join("50.toml"), "[log]\nlevel = \"debug\"\n[raft]\nelection_ticks = 20\n").unwrap();
    let all = [&cluster.pd[0], &cluster.stores[0]];
    all.iter().for_each(|process| process.signal(libc::SIGHUP));
    for (process, program) in all.iter().zip(["placement", "flaredb"]) {
        let changed = format!("INFO {program}_config: Setting changed, key=log.level from=\"info\" to=\"debug\"");
        let waits =
            format!("WARN {program}_config: Setting needs a restart, key=raft.election_ticks running=10 given=20");
        let done = format!("INFO {program}_config: Configuration reloaded, changed=1 needs_restart=1");
        let deadline = Instant::now() + PATIENCE;
        while ![&changed, &waits, &done].iter().all(|words| process.said().contains(*words)) {
            assert!(Instant::now() < deadline, "{}", process.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    // What is not understood changes nothing.
    fs::write(drop_ins.join("60.toml"), "[raft]\nelection_tick = 20\n").unwrap();
    cluster.stores[0].signal(libc::SIGHUP);
    let words = ["Configuration not reloaded, the one in force stays", "60.toml:2", "election_ticks"];
    let deadline = Instant::now() + PATIENCE;
    while !words.iter().all(|words| cluster.stores[0].said().contains(words)) {
        assert!(Instant::now() < deadline, "{}", cluster.stores[0].said());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
