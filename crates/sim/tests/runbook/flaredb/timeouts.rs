//! Issue: Read/Write Timeout.

use super::book::{logs, timeouts};
use super::cluster::Cluster;

#[test]
fn a_store_that_answers_is_seen_to_and_one_without_the_others_times_out() {
    let cluster = Cluster::found(1, 3);
    let world = &cluster.world;
    let leader = cluster.leader();
    let (name, address) = (format!("store{leader}"), cluster.store_ip(leader).to_owned());
    let node = [("STORE_NODE", name.as_str())];
    world.operator(&format!("flaredb-client --endpoint http://{address}:2379 put test-key value")).succeeds();
    for store in 1..=3 {
        let place = [("STORE_IP", cluster.store_ip(store))];
        cluster.line(timeouts::RESPONSIVENESS, &place).succeeds().shows("value").shows("real");
    }
    cluster.line(timeouts::CPU, &node).succeeds().shows("flaredb");
    cluster.line(timeouts::DISK, &node).succeeds().shows("%util");
    cluster.line(timeouts::PARTITION, &node).succeeds().shows(" 0% packet loss");
    let help = world.operator("flaredb-client --help").succeeds();
    assert!(help.out.contains(&format!("[default: {}]", timeouts::DEFAULT_TIMEOUT)), "{help}");

    // The two others stand still: a write is committed by nobody.
    let others: Vec<usize> = (1..=3).filter(|store| *store != leader).collect();
    others.iter().for_each(|store| world.signal(cluster.store(*store), "SIGSTOP"));
    let put = format!("flaredb-client --endpoint http://{address}:2379 --timeout 2s put test-key other");
    // One that waits longer than the store does is told so by the store, whose log has it under the words searched for.
    let both = format!("{} & {put}; code=$?; wait; exit $code", put.replace("2s", "30s"));
    world.operator(&both).fails().shows(timeouts::ERROR);
    let slow = cluster.line(timeouts::SLOW, &node).succeeds();
    let slow = slow.shows("WARN flaredb_service: Slow request, method=Put latency=").shows("outcome=Canceled");
    slow.shows(timeouts::ERROR);
    others.iter().for_each(|store| world.signal(cluster.store(*store), "SIGCONT"));
    world.until("writes go on", || world.operator(&put).is_success());
}

#[test]
fn compactions_are_found_and_throttled() {
    // What takes a minute does not happen here; what takes a millisecond does.
    let quick = "[storage]\nslow_compaction_ms = 1\nwrite_buffer_size = 1048576\n";
    let cluster = Cluster::found_with(1, 1, quick);
    let world = &cluster.world;
    let node = [("STORE_NODE", "store1")];
    let mut written = 0;
    world.until("a compaction is told of", || {
        cluster.fill(1, written..written + 20, 100_000);
        written += 20;
        cluster.line(timeouts::COMPACTIONS, &node).out.contains(logs::COMPACTION)
    });
    let page = cluster.metrics(cluster.store_ip(1));
    assert!(!page.contains("\nflaredb_rocksdb_compactions_total 0\n"), "the metric knows of it too");

    let options = || world.on(cluster.store(1), "cat $(ls -t /var/lib/flaredb/OPTIONS-* | head -1)").succeeds().out;
    assert!(options().contains("max_background_compactions=4") && options().contains("max_background_flushes=2"));
    cluster.drop_in(1, timeouts::THROTTLE);
    world.on(cluster.store(1), timeouts::RESTART).succeeds();
    let throttled = options();
    for expected in ["max_background_compactions=2", "max_background_flushes=1"] {
        assert!(throttled.contains(expected), "{expected} in\n{throttled}");
    }
    let get = format!("flaredb-client --endpoint http://{}:2379 scan --limit 5 --keys-only", cluster.store_ip(1));
    world.until("it serves again", || world.operator(&get).out.contains("key-000000"));
}
