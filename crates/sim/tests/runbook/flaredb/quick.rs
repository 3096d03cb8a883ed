//! Quick Diagnostics: what an operator looks at first, on a cluster that is well.

use serde_json::Value;

use super::book::quick;
use super::cluster::Cluster;
use crate::book::fill;

#[test]
fn a_healthy_cluster_looks_healthy() {
    let cluster = Cluster::found(3, 3);
    let world = &cluster.world;
    let status = cluster.line(quick::STATUS, &[]).succeeds().shows("health: healthy");
    for store in 1..=3 {
        assert!(status.out.lines().any(|line| line.starts_with(&format!("store: {store} Up"))), "{status}");
    }
    // A stream of objects, each with three fields.
    let stores = cluster.line(quick::STORES, &[]).succeeds();
    let found: Vec<Value> = serde_json::Deserializer::from_str(&stores.out).into_iter().map(Result::unwrap).collect();
    assert_eq!(found.len(), 3, "{stores}");
    for store in &found {
        assert!(
            store["id"].is_u64() && store["state"] == "Up" && store["capacity"].as_u64() > Some(1 << 20),
            "{store}"
        );
    }
    for store in 1..=3 {
        let machine = cluster.store(store);
        world.on(machine, quick::SERVICE_STATUS).succeeds().shows("Active: active (running)").shows("Main PID:");
        world.on(machine, quick::RECENT_LOGS).succeeds().shows("flaredb[").shows("Registered with PD, store_id=");
        let ports = world.operator(&fill(quick::PORTS, &[("NODE_IP", cluster.store_ip(store))])).succeeds();
        assert_eq!(ports.text.matches("succeeded!").count(), 2, "{ports}");
    }
    world.stop(cluster.store(2));
    world.on(cluster.store(2), quick::SERVICE_STATUS).fails().shows("Active: inactive (dead)");
    let ports = world.operator(&fill(quick::PORTS, &[("NODE_IP", cluster.store_ip(2))])).fails();
    assert_eq!(ports.text.matches("Connection refused").count(), 2, "{ports}");
}
