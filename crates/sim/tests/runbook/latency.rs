//! Issue: High Write Latency.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::book::monitoring::HIGH_LATENCY_SECONDS;
use crate::book::{fill, joining, latency, logs};
use crate::monitoring::Writes;
use crate::settings::{CONFIG, Settings};
use crate::world::World;

#[test]
fn what_is_looked_at_when_writes_are_slow_is_there() {
    let world = World::found(3);
    world
        .operator("for i in $(seq 20); do chainfire-client --endpoint http://node1:2379 put key-$i value; done")
        .succeeds();
    let leader = world.leader();
    let at = world.operator(&fill(latency::REPLICATION_LAG, &[("LEADER_IP", world.address(leader))])).succeeds();
    let index = at.number("raft_index");
    assert!(index > 0);
    world.until("all nodes are at the same raft_index", || {
        (1..=3).all(|node| world.status(node).number("raft_index") >= index)
    });
    let pings = world.operator(latency::NETWORK).succeeds();
    assert_eq!(pings.out.matches("10 received").count(), 3, "{pings}");
    world.on(leader, latency::CPU).succeeds();
    world.on(leader, latency::DISK).succeeds().shows("await").shows("%util");
    world.on(leader, latency::MTU).succeeds().shows("eth0").shows("mtu 1500");
}

/// Both followers are far away: each write takes as long as the way there and back, and every line says that it is the way.
#[test]
fn a_slow_network_is_seen_by_ping_in_the_log_and_by_the_alert() {
    const ONE_WAY: Duration = Duration::from_millis(280);
    let world = World::found(3);
    let leader = world.leader();
    let p99 = || {
        let before = Writes::of(&world, leader);
        write_for(&world, leader, Duration::from_secs(4), 100);
        Writes::of(&world, leader).p99_since(&before)
    };
    let healthy = p99();
    assert!(healthy < HIGH_LATENCY_SECONDS, "p99 {healthy} s");
    let followers = (1..=3).filter(|node| *node != leader);
    let wires: Vec<_> = followers.map(|node| world.lengthen(node, ONE_WAY)).collect();
    let slow = p99();
    crate::tell::figure(format_args!("p99 of writes: {healthy:.3} s, with followers 280 ms away {slow:.3} s"));
    assert!(slow > HIGH_LATENCY_SECONDS, "p99 {slow} s");

    let put = Instant::now();
    world.operator(&format!("chainfire-client --endpoint http://node{leader}:2379 put key value")).succeeds();
    assert!(put.elapsed() > 2 * ONE_WAY);
    let pings = world.operator(latency::NETWORK).succeeds();
    for node in 1..=3 {
        let near = round_trip_ms(&pings.out, node) < ONE_WAY.as_millis() as f64;
        assert_eq!(near, node == leader, "node{node}\n{pings}");
    }
    // Neither its own disk nor its driver, nor RocksDB: the others.
    let lines = world.on(leader, logs::SLOW).succeeds();
    let line = lines.out.lines().rfind(|line| line.contains("Slow request, method=Put")).expect("puts are slow");
    let part = |name: &str| part_ms(line, name);
    assert!(part("commit") > 2 * ONE_WAY.as_millis() as u64 - 100, "{line}");
    assert!(part("commit") > 4 * (part("queue") + part("log") + part("apply")), "{line}");
    world.on(leader, latency::STALLS).fails();

    drop(wires);
    world.until_serving(&[1, 2, 3]);
    let healed = p99();
    assert!(healed < HIGH_LATENCY_SECONDS, "p99 {healed} s");
}

/// One follower's network is narrow: it lags, as `raft_index` shows, and nobody waits for it.
#[test]
fn a_follower_behind_a_narrow_network_is_seen_by_its_raft_index() {
    const KBIT: u32 = 1_500;
    let world = World::found(3);
    let leader = world.leader();
    let lagging = leader % 3 + 1;
    let wire = world.narrow(lagging, KBIT);
    let before = Writes::of(&world, leader);
    write_for(&world, leader, Duration::from_secs(8), 16 << 10);
    let p99 = Writes::of(&world, leader).p99_since(&before);
    assert!(p99 < HIGH_LATENCY_SECONDS, "a majority is quick: p99 {p99} s");

    // The lagging one is asked last, and has had more time.
    let index = |node: usize| {
        let status = fill(latency::REPLICATION_LAG, &[("LEADER_IP", world.address(node))]);
        world.until_some("it answers", || world.operator(&status).field("raft_index")?.parse::<u64>().ok())
    };
    let other = (1..=3).find(|node| *node != leader && *node != lagging).expect("there are three");
    let [led, near, far] = [leader, other, lagging].map(index);
    crate::tell::figure(format_args!(
        "raft_index of the leader {led}, of a follower {near}, behind {KBIT} kbit/s {far}"
    ));
    assert!(led.abs_diff(near) < 10 && far + 100 < led, "{led} {near} {far}");
    world.until("the search for lag finds it", || {
        world.on(leader, logs::LAG).out.contains(&format!("A follower is behind, node={lagging} lag="))
    });

    drop(wire);
    world.until("it has caught up", || index(lagging) >= led);
    world.until_said(leader, &format!("A follower has caught up, node={lagging}"));
}

/// Small write buffers, and more than they can take: RocksDB holds writes back, and the log says so for as long as it was.
#[test]
fn a_stall_of_rocksdb_is_found_in_the_log() {
    let world = World::new(1);
    // A disk of its own for the data, as the runbook recommends.
    world.on(1, "mount -t tmpfs -o size=3g,uid=977,gid=977,mode=700 data /var/lib/chainfire").succeeds();
    let mut settings = Settings::founder(&world);
    settings.storage = "write_buffer_size = 1048576\nmax_write_buffer_number = 2\nmax_background_jobs = 1".to_owned();
    world.certify();
    world.set_up(1, &settings);
    world.start(1);
    world.until_serving(&[1]);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !world.on(1, latency::STALLS).is_success() {
        assert!(Instant::now() < deadline, "no stall in 30 s of large writes");
        world.block_on(async {
            let client = world.client(1);
            let value = "x".repeat(1 << 20);
            let puts = (0..16).map(|number| {
                let (client, key, value) = (client.clone(), format!("large-{number}"), value.clone());
                tokio::spawn(async move { client.put(&key, &value).await.map(drop) })
            });
            for put in puts.collect::<Vec<_>>() {
                put.await.unwrap().unwrap();
            }
        });
    }
    world.on(1, latency::STALLS).succeeds().shows("WARN chainfire_storage: RocksDB stall");
    let disk = world.on(1, latency::DATA_DIRECTORY).succeeds();
    assert_eq!(disk.out.matches("/var/lib/chainfire").count(), 2, "{disk}");

    // The runbook's larger buffers end it.
    world.write(1, CONFIG, &Settings { storage: String::new(), ..settings }.text(&world, 1));
    world.on(1, "mkdir -p /etc/centra-cloud/chainfire.toml.d").succeeds();
    world.write(1, "/etc/centra-cloud/chainfire.toml.d/buffers.toml", latency::ROCKSDB_SETTINGS);
    world.on(1, joining::RESTART).succeeds();
    world.until_serving(&[1]);
    world.on(1, "cat $(ls -t /var/lib/chainfire/OPTIONS-* | head -1)").succeeds().shows("write_buffer_size=134217728");
}

/// Several clients write through a node, one value after the other.
fn write_for(world: &World, node: usize, time: Duration, value_bytes: usize) {
    const CLIENTS: usize = 16;
    let end = Instant::now() + time;
    let value = "x".repeat(value_bytes);
    world.block_on(async {
        let clients: JoinSet<()> = (0..CLIENTS)
            .map(|number| {
                let (client, key, value) = (world.client(node), format!("written-{number}"), value.clone());
                async move {
                    while Instant::now() < end {
                        client.put(&key, &value).await.unwrap();
                    }
                }
            })
            .collect();
        clients.join_all().await
    });
}

/// The average of the runbook's pings of a node.
fn round_trip_ms(pings: &str, node: usize) -> f64 {
    let block = pings.split(&format!("=== node{node} ===")).nth(1).expect("each node is pinged");
    let average = block.split("rtt min/avg/max/mdev = ").nth(1).and_then(|times| times.split('/').nth(1)?.parse().ok());
    average.unwrap_or_else(|| panic!("round trips were expected of\n{block}"))
}

/// A part of the line on a slow request, such as `commit=612ms`.
fn part_ms(line: &str, name: &str) -> u64 {
    let part = line.split(&format!(" {name}=")).nth(1).and_then(|rest| rest.split("ms").next()?.parse().ok());
    part.unwrap_or_else(|| panic!("{name}= was expected of {line}"))
}
