//! Quick Diagnostics: what an operator looks at first, on a cluster that is well.

use crate::book::{fill, quick};
use crate::leaderless::of_the_cluster;
use crate::said::Said;
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

/// Who is alive stands in the lists that an operator looks at first, and who was killed is alive there no more.
#[test]
fn who_is_alive_is_seen_from_every_node() {
    let world = World::found(3);
    let status = world.status(1).succeeds();
    let version = status.field("version").and_then(|version| version.split(' ').next()).expect("a node has a version");
    let alive = format!("gossip=alive version={version}");
    for through in 1..=3 {
        world.until(&format!("node{through} knows all to be alive"), || {
            let (listed, status) = (members(&world, through), of_the_cluster(&world, through));
            let of_members = || status.out.lines().filter(|line| line.starts_with("member: "));
            listed.out.lines().filter(|line| line.ends_with(", alive")).count() == 3
                && of_members().count() == 3
                && of_members().all(|line| line.contains(" reachable ") && line.ends_with(&alive))
        });
    }
    world.kill(2);
    let gone = |state: &str| ["suspect", "down"].contains(&state);
    for through in [1, 3] {
        world.until(&format!("node{through} misses node2"), || {
            let (listed, status) = (members(&world, through), of_the_cluster(&world, through));
            let in_list = listed.out.lines().find(|line| line.starts_with("2, "));
            let in_status = status.out.lines().find(|line| line.starts_with("member: 2 "));
            in_list.is_some_and(|line| line.rsplit(", ").next().is_some_and(gone))
                && in_status.is_some_and(|line| {
                    let state = line.split("gossip=").nth(1).and_then(|rest| rest.split(' ').next());
                    line.contains(" unreachable ") && state.is_some_and(gone)
                })
        });
    }
    let listed = members(&world, 1).succeeds();
    assert_eq!(listed.out.lines().filter(|line| line.ends_with(", alive")).count(), 2, "{listed}");
}

fn members(world: &World, through: usize) -> Said {
    world.operator(&fill(quick::MEMBER_LIST, &[("NODE_IP", world.address(through))]))
}
