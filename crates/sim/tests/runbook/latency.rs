//! Issue: High Write Latency.

use std::time::{Duration, Instant};

use crate::book::{fill, joining, latency};
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
