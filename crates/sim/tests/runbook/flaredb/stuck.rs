//! Issue: Region Rebalancing Stuck. Each cause the runbook names, seen by its diagnosis and ended by its resolution.

use serde_json::Value;

use super::book::stuck;
use super::cluster::Cluster;

/// Patience that a test has.
const QUICK: &str = r#"{"store-disconnected-time": "3s", "max-store-down-time": "10s"}"#;
const DISK_MIB: u32 = 400;

#[test]
fn the_pages_of_a_cluster_that_is_well() {
    let cluster = Cluster::found(3, 3);
    let read = |line: &str| -> Value {
        let said = cluster.line(line, &[]).succeeds();
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error} in {said}"))
    };
    let stats = read(stuck::REGION_STATS);
    assert_eq!((stats["count"].as_u64(), stats["pending_peers"].as_u64()), (Some(1), Some(0)), "{stats}");
    let stores = cluster.line(stuck::CAPACITY, &[]).succeeds();
    let stores: Vec<Value> = serde_json::Deserializer::from_str(&stores.out).into_iter().map(Result::unwrap).collect();
    for store in &stores {
        let (available, capacity) = (store["available"].as_u64().unwrap(), store["capacity"].as_u64().unwrap());
        assert!(store["state"] == "Up" && 0 < available && available <= capacity, "{store}");
    }
    assert_eq!(stores.len(), 3);
    assert!(read(stuck::OPERATORS).as_array().is_some_and(Vec::is_empty));
    let schedule = read(stuck::SCHEDULE);
    assert!(schedule["schedulers"].is_array() && schedule["max-snapshot-count"].is_u64(), "{schedule}");

    // Limits, posted with a form's content type as curl does it: what is named changes, and nothing else.
    cluster.line(stuck::LIMITS, &[]).succeeds();
    let after = read(stuck::SCHEDULE);
    let limits =
        |page: &Value| ["max-snapshot-count", "max-pending-peer-count"].map(|name| page[name].as_u64().unwrap());
    assert_eq!(limits(&after), [3, 16]);
    for (name, value) in schedule.as_object().unwrap() {
        assert!(name.starts_with("max-") || after[name] == *value, "{name}");
    }
}

#[test]
fn a_scheduler_that_is_off_is_seen_and_turned_on() {
    let cluster = Cluster::found(1, 1);
    let shown = || cluster.line(stuck::SCHEDULERS, &[]).succeeds().out;
    assert!(shown().contains("balance-leader") && shown().contains("balance-region"), "{}", shown());
    cluster.set_policy(r#"{"schedulers": ["balance-leader"]}"#);
    assert!(shown().contains("balance-leader") && !shown().contains("balance-region"), "{}", shown());
    cluster.set_policy(
        r#"{"schedulers": ["balance-leader", "balance-region", "balance-hot-region", "evict-slow-store"]}"#,
    );
    assert!(shown().contains("balance-region"), "{}", shown());
}

#[test]
fn a_down_store_is_found_and_comes_back() {
    let cluster = Cluster::found(1, 3);
    cluster.set_policy(QUICK);
    assert_eq!(cluster.line(stuck::DOWN, &[]).succeeds().out, "");
    cluster.world.kill(cluster.store(3));
    cluster.world.until("the search for stores that are not up finds it", || {
        let found: Value = serde_json::from_str(&cluster.line(stuck::DOWN, &[]).out).unwrap_or_default();
        found["id"] == 3 && found["state"] != "Up"
    });
    // No other store can take its replicas, and the placement driver says so.
    cluster.world.until_said(cluster.pd(1), stuck::ERROR);
    cluster
        .line("ssh PD_NODE \"journalctl -u placement-driver | grep 'failed to schedule operator'\"", &[])
        .shows("CF8020");

    // Too few stores would remain without it.
    let refused = cluster.line(stuck::REMOVE, &[("DOWN_STORE_ID", "3")]).succeeds();
    refused.shows("too few stores would remain").shows("add a store first");

    cluster.line(stuck::RESTART_DOWN, &[("DOWN_STORE_NODE", "store3")]).succeeds();
    cluster.world.until("all are up", || cluster.line(stuck::DOWN, &[]).out.is_empty());
    cluster.until_replicated(3);
}

#[test]
fn a_store_that_cannot_be_recovered_is_removed() {
    let cluster = Cluster::found(1, 4);
    cluster.set_policy(QUICK);
    cluster.fill(1, 0..200, 100);
    let lost = cluster.leader();
    cluster.world.kill(cluster.store(lost));
    let lost = lost.to_string();
    let remove = || cluster.line(stuck::REMOVE, &[("DOWN_STORE_ID", &lost)]).succeeds();
    remove().shows("is being emptied");
    cluster.world.until("it is gone", || cluster.page("stores")["count"] == 3);
    cluster.until_replicated(3);
    remove().shows("is a tombstone already");
    cluster
        .line("curl -s http://PD_IP:2379/pd/api/v1/store/STORE | jq -r .error", &[("STORE", &lost)])
        .shows("was removed");
    let others = (1..=4).filter(|store| store.to_string() != lost);
    for store in others {
        let get =
            format!("flaredb-client --endpoint http://{}:2379 scan --limit 1000 --keys-only", cluster.store_ip(store));
        let found = cluster.world.operator(&get).succeeds();
        assert_eq!(found.out.lines().count(), 200, "nothing is lost");
    }
}

#[test]
fn a_full_disk_is_found() {
    let mut cluster = Cluster::found(1, 3);
    let new = cluster.add_store();
    let machine = cluster.store(new);
    let disk = format!("mount -t tmpfs -o size={DISK_MIB}m disk /var/lib/flaredb && chown flaredb: /var/lib/flaredb");
    cluster.world.on(machine, &disk).succeeds();
    cluster.world.start(machine);
    cluster.world.until("its disk is known", || {
        let page = cluster.page("stores");
        page["stores"][3]["capacity"].as_u64() == Some(u64::from(DISK_MIB) << 20)
    });
    assert_eq!(cluster.line(stuck::FULL, &[]).succeeds().out, "");
    let free = cluster.page("stores")["stores"][3]["available"].as_u64().unwrap() >> 20;
    cluster.world.on(machine, &format!("fallocate -l {}m /var/lib/flaredb/ballast", free - 20)).succeeds();
    cluster.world.until("the search for full stores finds it", || {
        let found: Value = serde_json::from_str(&cluster.line(stuck::FULL, &[]).out).unwrap_or_default();
        found["id"] == 4
    });
}
