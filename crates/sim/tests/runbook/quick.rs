//! Quick Diagnostics: what an operator looks at first, on a cluster that is well.

use crate::book::{fill, quick};
use crate::world::World;

#[test]
fn a_healthy_cluster_looks_healthy() {
    let world = World::found(3);
    let leader = world.leader();
    for node in 1..=3 {
        let address = world.address(node);
        let status = world.operator(&fill(quick::STATUS, &[("NODE_IP", address)])).succeeds();
        assert_eq!(status.field("leader"), Some(leader.to_string().as_str()), "{status}");
        assert_eq!(status.number("node_id"), node as u64);
        assert!(status.number("raft_index") > 0 && status.number("raft_term") > 0, "{status}");
        let members = world.operator(&fill(quick::MEMBER_LIST, &[("NODE_IP", address)])).succeeds();
        for peer in 1..=3 {
            assert!(members.out.lines().any(|line| line.contains(&format!("node{peer}:2380"))), "{members}");
        }
        let ports = world.operator(&fill(quick::PORTS, &[("NODE_IP", address)])).succeeds();
        assert_eq!(ports.text.matches("succeeded!").count(), 3, "{ports}");
        world.on(node, quick::SERVICE_STATUS).succeeds().shows("Active: active (running)").shows("Main PID:");
        world.on(node, quick::RECENT_LOGS).succeeds().shows("chainfire[").shows("INFO chainfire_api: Serving clients");
        world.on(node, quick::RESOURCES).succeeds().shows("chainfire").shows("%util");
    }
    world.stop(2);
    world.on(2, quick::SERVICE_STATUS).fails().shows("Active: inactive (dead)");
    let ports = world.operator(&fill(quick::PORTS, &[("NODE_IP", world.address(2))])).fails();
    assert_eq!(ports.text.matches("Connection refused").count(), 3, "{ports}");
}
