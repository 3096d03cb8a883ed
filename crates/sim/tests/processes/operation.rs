//! What an operator has of a node beside its API: the service manager's messages, SIGHUP, the log's lines, the metrics.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;

use crate::cluster::{CLIENT_PORT, Cluster, Options, PATIENCE, PEER_PORT, command, is_etcd, program};
use crate::every_node::get;
use crate::membership::{add, remove};
use crate::tell::{figure, skipped};

/// The node that a cluster's first place stands for, started by our own flags on a configuration file.
fn by_file(cluster: &Cluster, file: &Path) -> Command {
    let node = &cluster.nodes[0];
    let mut command = command(&program());
    command.arg("--config").arg(file).arg("--data-dir").arg(&node.data_dir);
    command.arg(format!("--api-addr={}:{CLIENT_PORT}", node.address));
    command.arg(format!("--raft-addr={}:{PEER_PORT}", node.address));
    command
}

/// Plays the service manager.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn listen(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Manager { socket, heard: Vec::new() }
    }

    /// Returns what was heard until a message begins with `words`, that one included.
    fn wait_for(&mut self, words: &str) -> Vec<String> {
        self.wait_for_any(&[words])
    }

    fn wait_for_any(&mut self, words: &[&str]) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            assert!(Instant::now() < deadline, "{words:?} is not heard, only {:?}", self.heard);
            let Ok(length) = self.socket.recv(&mut buffer) else { continue };
            self.heard.push(String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned());
            if self.heard.last().is_some_and(|message| words.iter().any(|words| message.starts_with(words))) {
                return std::mem::take(&mut self.heard);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_hears_of_a_node() {
    if is_etcd() {
        return skipped("the_service_manager", "etcd has no watchdog");
    }
    let mut cluster = Cluster::new(3, Options::default());
    let socket = cluster.folder().join("notify");
    let mut manager = Manager::listen(&socket);
    let mut first = cluster.command(0);
    first.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "2000000");
    let begun = Instant::now();
    cluster.spawn_as(0, first);
    // Alone it waits; a node that waits is ready in the end, so that the manager goes on to the others.
    let heard = manager.wait_for("READY=1");
    let took = begun.elapsed();
    assert!(heard.iter().any(|message| message.contains("belongs to no cluster yet")), "{heard:?}");
    assert!((14..40).contains(&took.as_secs()), "ready after {took:?}");
    manager.wait_for("WATCHDOG=1");
    cluster.spawn(1);
    cluster.spawn(2);
    cluster.wait_until_all_serve().await;
    let heard = manager.wait_for_any(&["STATUS=Following node", "STATUS=Leading"]).join("\n") + &cluster.log(0);
    assert!(heard.contains("3 members"), "{heard}");
    // Leading or following, it lives.
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    cluster.hang_up(0);
    manager.wait_for("RELOADING=1\nMONOTONIC_USEC=");
    manager.wait_for("READY=1");
    cluster.stop(0).await;
    manager.wait_for("STOPPING=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_can_serve_is_ready_at_once() {
    if is_etcd() {
        return skipped("ready_at_once", "etcd's own affair");
    }
    let mut cluster = Cluster::new(1, Options::default());
    let socket = cluster.folder().join("notify");
    let mut manager = Manager::listen(&socket);
    let mut first = cluster.command(0);
    first.env("NOTIFY_SOCKET", &socket);
    cluster.spawn_as(0, first);
    manager.wait_for("READY=1");
    cluster.client(0).get("/").await.expect("ready means that reads are served");
    let heard = manager.wait_for("STATUS=Leading 1 members, term");
    assert!(!heard.iter().any(|message| message.starts_with("WATCHDOG")), "nobody asked for it: {heard:?}");
}

/// `systemctl restart` of one member after another relies on this: a member that is far behind is ready when it has caught
/// up, and not when it has opened its data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lags_is_not_ready_before_it_has_caught_up() {
    if is_etcd() {
        return skipped("a_node_that_lags_is_not_ready", "etcd's own affair");
    }
    const BEHIND: u64 = 10_000;
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let (lagging, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.kill(lagging);
    let client = cluster.client(leader);
    let begun = client.status().await.unwrap().raft_index;
    let deadline = Instant::now() + PATIENCE;
    while client.status().await.unwrap().raft_index < begun + BEHIND {
        assert!(Instant::now() < deadline, "that many entries are not written");
        // Few at a time: commands that wait together share an entry.
        let puts = (0..2).map(|writer| {
            let client = cluster.client(leader);
            tokio::spawn(async move {
                for number in 0..500 {
                    client.put(&format!("behind/{writer}/{number}"), "x").await.unwrap();
                }
            })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap();
        }
    }
    let last = client.put("last", "x").await.unwrap().header.unwrap().revision;

    // It comes back while nobody is there to catch up with.
    cluster.pause(leader);
    cluster.pause(other);
    let socket = cluster.folder().join("notify");
    let mut manager = Manager::listen(&socket);
    let mut command = cluster.command(lagging);
    command.env("NOTIFY_SOCKET", &socket);
    cluster.spawn_as(lagging, command);
    manager.wait_for("STATUS=Waiting: ");
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.resume(leader);
    cluster.resume(other);
    let begun = Instant::now();
    let heard = manager.wait_for("READY=1");
    // Without linearization it tells what it has by itself.
    let header = cluster.client(lagging).status().await.unwrap().header.unwrap();
    assert!(header.revision >= last, "it was called ready at revision {} of {last}", header.revision);
    assert!(!cluster.log(lagging).contains("Not ready after"), "the manager was not put off: {heard:?}");
    figure(format_args!("ready {} ms after {BEHIND} entries could be caught up with", begun.elapsed().as_millis()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_is_read_again() {
    if is_etcd() {
        return skipped("a_configuration_is_read_again", "etcd reads nothing again");
    }
    let mut cluster = Cluster::new(1, Options::default());
    let file = cluster.folder().join("c.toml");
    fs::write(&file, "[log]\nlevel = \"info\"\n").unwrap();
    let start = by_file(&cluster, &file);
    cluster.spawn_as(0, start);
    cluster.wait_until_serving(0).await;
    let address = cluster.nodes[0].address;
    assert!(!get(address, "/metrics").body.contains("etcd_server_quota_backend_bytes"));

    let text = "[log]\nlevel = \"warn,chainfire_config=info\"\nslow_request_ms = 1\n[storage]\nquota_bytes = 123456789\n\
                max_open_files = 77\n[raft]\ntick_interval_ms = 50\n";
    fs::write(&file, text).unwrap();
    cluster.hang_up(0);
    cluster.wait_until_said(0, "Configuration reloaded, changed=3 needs_restart=2").await;
    let said = cluster.log(0);
    for line in [
        "INFO chainfire_config: Setting changed, key=log.slow_request_ms from=100 to=1 by=",
        "INFO chainfire_config: Setting changed, key=storage.quota_bytes from=0 to=123456789 by=",
        "WARN chainfire_config: Setting needs a restart, key=raft.tick_interval_ms running=100 given=50 by=",
        "WARN chainfire_config: Setting needs a restart, key=storage.max_open_files running=1000 given=77 by=",
    ] {
        assert!(said.contains(line), "{line}\n{said}");
    }
    assert!(said.contains("c.toml:6 code=CF7002"), "{said}");
    assert!(get(address, "/metrics").body.contains("\netcd_server_quota_backend_bytes 123456789\n"));
    // A large value takes longer than the millisecond that counts as slow.
    let deadline = Instant::now() + PATIENCE;
    while !cluster.log(0).contains("WARN chainfire_api: Slow request, method=Put latency=") {
        assert!(Instant::now() < deadline, "no request is slow");
        cluster.client(0).put("large", &"x".repeat(1 << 20)).await.unwrap();
    }

    fs::write(&file, "[log]\nlevel = \"info\"\n[storage]\nquota_bites = 1\n").unwrap();
    cluster.hang_up(0);
    cluster.wait_until_said(0, "Configuration not reloaded, the one in force stays, why=").await;
    let said = cluster.log(0);
    let line = said.lines().find(|line| line.contains("not reloaded")).unwrap();
    assert!(line.contains("c.toml:4: unknown key `quota_bites`") && line.ends_with("code=CF7004"), "{line}");
    let page = get(address, "/metrics").body;
    for line in [
        "etcd_server_quota_backend_bytes 123456789",
        "chainfire_config_last_reload_successful 0",
        "chainfire_config_reloads_total 1",
        "chainfire_config_reloads_failed_total 1",
    ] {
        assert!(page.contains(&format!("\n{line}\n")), "{line}\n{page}");
    }
    cluster.stop(0).await;
    let quiet = cluster.log(0);
    assert!(!quiet.contains("INFO chainfire_api: Stopped"), "the level that was set stays in force: {quiet}");
}

/// The runbook's patterns, each on the event that it looks for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_what_operators_look_for() {
    if is_etcd() {
        return skipped("the_log", "etcd words it otherwise");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk().flag("warning-unary-request-duration", "100ms")).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);

    // Where a slow write's time went: a quorum that pauses, and a leader that does.
    cluster.pause(one);
    cluster.pause(other);
    let client = cluster.client(leader);
    let slow = tokio::spawn(async move { client.put("slow", "commit").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    cluster.resume(one);
    cluster.resume(other);
    slow.await.unwrap().unwrap();
    cluster.wait_until_said(leader, "Slow request, method=Put").await;
    let line = said(&cluster, leader, "WARN chainfire_api: Slow request, method=Put");
    assert!(part(&line, "latency") >= 100 && line.contains(" leader="), "{line}");
    let parts = ["queue", "log", "commit", "apply"].map(|name| part(&line, name));
    assert!(parts[2] >= 80, "the quorum is what it waited for: {line}");
    assert!(parts.iter().sum::<u64>() <= part(&line, "latency") + 4, "{line}");
    said(&cluster, leader, "INFO chainfire_api: Handled put request, latency=");

    // A follower that is away, lags, and catches up.
    cluster.kill(one);
    let client = cluster.client(leader);
    for number in 0..1_200 {
        client.put(&format!("behind/{}", number % 7), "x").await.unwrap();
    }
    cluster.wait_until_said(leader, "A follower is behind, node=").await;
    let log = cluster.log(leader);
    let failed = "ERROR chainfire_network: Failed to connect to peer, addr=";
    // The last one: while the cluster was founded it may have met a member that belonged to none yet.
    let line = log.lines().rev().find(|line| line.contains(failed)).expect("it says whom it does not reach");
    assert!(line.contains("connection refused") && line.contains(&cluster.nodes[one].address.to_string()), "{line}");
    assert!(line.ends_with("code=CF3001"), "the last word counts errors by kind: {line}");
    cluster.spawn(one);
    cluster.wait_until_said(leader, "A follower has caught up, node=").await;

    // A leader that is gone.
    cluster.kill(leader);
    cluster.leader().await;
    let words = "WARN chainfire_raft: Election timeout, no heartbeat from leader";
    assert!((0..3).any(|index| cluster.log(index).contains(words)), "whoever stood for election says why");
    let elected = said(&cluster, one, "INFO chainfire_raft: Leader elected, term=");
    assert!(elected.contains("leader="), "{elected}");
    cluster.wait_until_said(one, "INFO chainfire_storage: Committed entry, index=").await;
    // Without a word from clients too, the last lines name the leader.
    cluster.wait_until_said(one, " raft_index=").await;
}

/// Writes more than a tiny buffer takes: RocksDB holds writes back, and the log says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_is_told_of() {
    if is_etcd() {
        return skipped("a_stall_is_told_of", "etcd has no RocksDB");
    }
    let mut cluster = Cluster::new(1, Options::default());
    let file = cluster.folder().join("c.toml");
    let text = "[storage]\nwrite_buffer_size = 1048576\nmax_write_buffer_number = 2\nmax_background_jobs = 1\n\
                level0_file_num_compaction_trigger = 1\n";
    fs::write(&file, text).unwrap();
    let start = by_file(&cluster, &file);
    cluster.spawn_as(0, start);
    cluster.wait_until_serving(0).await;
    let value = "x".repeat(1_200_000);
    let deadline = Instant::now() + PATIENCE;
    while !cluster.log(0).contains("WARN chainfire_storage: RocksDB stall detected, duration=") {
        assert!(Instant::now() < deadline, "RocksDB never stalls");
        let puts = (0..8).map(|number| {
            let (client, value) = (cluster.client(0), value.clone());
            tokio::spawn(async move { client.put(&format!("key-{number}"), &value).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap().unwrap();
        }
    }
    let page = get(cluster.nodes[0].address, "/metrics").body;
    let stalls = page.lines().find_map(|line| line.strip_prefix("chainfire_rocksdb_stalls_total ")).unwrap();
    assert_ne!(stalls, "0", "the metric knows of it too");
}

/// A merge of files that takes longer than it may is in the log, under the words of the runbook.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_compaction_is_told_of() {
    if is_etcd() {
        return skipped("a_slow_compaction", "etcd has no RocksDB");
    }
    let mut cluster = Cluster::new(1, Options::default());
    let file = cluster.folder().join("c.toml");
    // What takes a minute does not happen here; what takes a millisecond does.
    for (threshold_ms, is_told) in [(60_000, false), (1, true)] {
        fs::write(&file, format!("[storage]\nslow_compaction_ms = {threshold_ms}\nwrite_buffer_size = 1048576\n"))
            .unwrap();
        let start = by_file(&cluster, &file);
        cluster.spawn_as(0, start);
        cluster.wait_until_serving(0).await;
        let client = cluster.client(0);
        let rounds_max = 30;
        for round in 0..rounds_max {
            for number in 0..8 {
                client.put(&format!("key-{round}-{number}"), &"x".repeat(300_000)).await.unwrap();
            }
            // Everything is merged.
            client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await.unwrap();
            if is_told && said_by_grep(&cluster, 0, "compaction is slow").lines().next().is_some() {
                break;
            }
        }
        // Events of the engine are told twice a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let found = said_by_grep(&cluster, 0, "compaction is slow");
        assert_eq!(!found.is_empty(), is_told, "with {threshold_ms} ms: {found}");
        for line in found.lines() {
            assert!(line.contains("WARN chainfire_storage: Compaction is slow, duration="), "{line}");
            assert!(part(line, "duration") >= 1, "{line}");
        }
        cluster.stop(0).await;
    }
}

/// The runbook looks for additions with `grep -i 'add.*node'`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_tells_who_was_added_and_who_was_removed() {
    if is_etcd() {
        return skipped("the_log_tells_who_was_added", "etcd words it otherwise");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    assert_eq!(said_by_grep(&cluster, leader, "add.*node"), "", "founders were not added");
    let fourth = cluster.add_node("existing");
    let member = add(&cluster, fourth, true).await.unwrap();
    add(&cluster, fourth, true).await.unwrap_err();
    cluster.wait_until_said(leader, "Added node, node=").await;
    let added = said_by_grep(&cluster, leader, "add.*node");
    let line = format!("INFO chainfire_raft: Added node, node={} addr={}", member.id, cluster.peer_url(fourth));
    assert!(added.contains(&line) && added.lines().count() == 1, "what was refused is not told:\n{added}");
    remove(&cluster, member.id).await.unwrap();
    cluster.wait_until_said(leader, &format!("INFO chainfire_raft: Removed node, node={}", member.id)).await;
    assert_eq!(said_by_grep(&cluster, leader, "add.*node"), added, "a removal is no addition");
}

/// `grep -i` on what a node has said.
fn said_by_grep(cluster: &Cluster, index: usize, pattern: &str) -> String {
    let output = Command::new("grep").args(["-i", pattern]).arg(&cluster.nodes[index].log).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Backups are told of by their own unit.
const ELSEWHERE: &str = "chainfire_backup_";

/// Every metric that the alert rules and the dashboard ask for is on some member's page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_and_dashboard_ask_for_metrics_that_exist() {
    if is_etcd() {
        return skipped("alerts_and_dashboard", "they are ours");
    }
    let options = Options { tls: true, ..Options::default() };
    let cluster = Cluster::start_with(3, options.flag("quota-backend-bytes", 1 << 30)).await;
    cluster.client(0).put("key", "value").await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let pages = loop {
        let pages = [cluster.metrics(0).await, cluster.metrics(1).await, cluster.metrics(2).await].concat();
        // Round trips are measured every few seconds.
        if pages.contains("etcd_network_peer_round_trip_time_seconds_count{") {
            break pages;
        }
        assert!(Instant::now() < deadline, "no round trip was measured");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let names: BTreeSet<&str> =
        pages.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    let root = base::crate_folder!().join("../..");
    let mut asked = 0;
    for file in ["packaging/prometheus/chainfire.rules.yml", "packaging/grafana/chainfire.json"] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        for name in metrics_in(&text) {
            asked += 1;
            assert!(
                names.contains(name) || name.starts_with(ELSEWHERE),
                "{file} asks for {name}, which no member has:\n{names:?}"
            );
        }
    }
    assert!(asked > 60, "names are found in the files: {asked}");
}

/// What a member sends is received by another one, and both count it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_between_members_are_counted() {
    if is_etcd() {
        return skipped("bytes_between_members", "an etcd counts otherwise");
    }
    const BYTES: u64 = 1 << 20;
    for tls in [false, true] {
        let cluster = Cluster::start_with(3, Options { tls, ..Options::default() }).await;
        let leader = cluster.leader().await;
        let follower = (leader + 1) % 3;
        let (here, there) = (peer(&cluster, leader).await, peer(&cluster, follower).await);
        let counts = async || {
            let (ours, theirs) = (cluster.metrics(leader).await, cluster.metrics(follower).await);
            let (sent, received) =
                ("chainfire_network_peer_sent_bytes_total", "chainfire_network_peer_received_bytes_total");
            [(&ours, sent, there), (&theirs, received, here), (&ours, received, there), (&theirs, sent, here)]
                .map(|(page, name, peer)| counted(page, name, peer))
        };
        let before = counts().await;
        cluster.client(leader).put("large", &"x".repeat(BYTES as usize)).await.unwrap();
        // Reads what was written.
        cluster.client(follower).get("large").await.unwrap();
        let after = counts().await;
        let grown: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        assert!(grown[..2].iter().all(|bytes| (BYTES..4 * BYTES).contains(bytes)), "one value of {BYTES}: {grown:?}");
        assert!(grown[2..].iter().all(|bytes| (1..BYTES / 4).contains(bytes)), "the answers to it: {grown:?}");
    }
}

/// How a member is called in the labels of others.
async fn peer(cluster: &Cluster, index: usize) -> u64 {
    cluster.member(index, index).await.expect("it is a member").id
}

fn counted(page: &str, name: &str, peer: u64) -> u64 {
    let prefix = format!("{name}{{peer=\"{peer}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&prefix));
    value.unwrap_or_else(|| panic!("no {prefix}in\n{page}")).parse().unwrap()
}

/// Words that are names of ours or of etcd. What a recording rule makes has a colon in it.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| {
        let ours = ["chainfire_", "etcd_", "process_", "grpc_server_"].iter().any(|prefix| word.starts_with(prefix));
        ours && !word.contains(':')
    })
}

#[test]
fn names_of_metrics_are_found() {
    let text = "expr: rate(chainfire_a_total{job=\"chainfire\"}[5m]) > chainfire:b:ratio and etcd_c == 1";
    assert_eq!(metrics_in(text).collect::<Vec<_>>(), ["chainfire_a_total", "etcd_c"]);
}

fn said(cluster: &Cluster, index: usize, words: &str) -> String {
    let log = cluster.log(index);
    log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("nobody says {words:?}:\n{log}")).to_owned()
}

/// The number in ` name=…ms` of a line.
fn part(line: &str, name: &str) -> u64 {
    let at = line.find(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in {line}"));
    let digits: String = line[at + name.len() + 2..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}
