//! Issue: No Leader / Leader Election Fails.

use crate::book::{fill, leaderless};
use crate::damage::not_a_file_is_roots;
use crate::said::Said;
use crate::wires::Cut;
use crate::world::World;

// Exit codes of chainfire-client.
const UNREACHABLE: i32 = 3;
const NO_LEADER: i32 = 4;

#[test]
fn without_a_quorum_there_is_no_leader_until_a_majority_is_started() {
    let world = World::found(3);
    world.operator("chainfire-client --endpoint http://node3:2379 put key before").succeeds();
    world.kill(1);
    world.kill(2);
    world.until("node3 has no leader", || world.status(3).field("leader") == Some("none"));
    world.operator("chainfire-client --endpoint http://node3:2379 put key value").fails().shows("no leader elected");
    world.operator("chainfire-client --endpoint http://node3:2379 get key").fails().shows("no leader elected");
    let timeouts = || world.journal(3).matches("Election timeout, no heartbeat from leader").count();
    world.until("node3 says why", || timeouts() > 0);
    let said = timeouts();
    world.until("it says so as long as there is none", || timeouts() >= said + 2);

    world.operator(&fill(leaderless::MEMBERS, &[("NODE1_IP", "node3")])).succeeds().shows("node1:2380");
    let state = world.operator(leaderless::RAFT_STATE);
    state.shows("=== node1 ===").shows("=== node3 ===").shows("lection timeout");
    // The runbook counts lines with `active`, and `inactive` is one too; the words themselves are right.
    world.operator(leaderless::QUORUM).succeeds().shows("Running nodes: 3 (need >= 2 for quorum)");
    world.operator(r#"ssh node1 "systemctl is-active chainfire""#).fails().shows("inactive");
    world.operator(r#"ssh node3 "systemctl is-active chainfire""#).succeeds().shows("active");
    // What our own documentation counts with instead.
    let lost = of_the_cluster(&world, 3).exits(NO_LEADER).shows("health: quorum lost");
    lost.shows("quorum: 1 of 3 voters answer, 2 are needed").shows("chainfire recover --unsafe");
    of_the_cluster(&world, 1).exits(UNREACHABLE);

    let elected = world.operator(leaderless::START_MAJORITY).succeeds().hides("leader: none");
    assert!(elected.number("leader") >= 1);
    world.operator("chainfire-client --endpoint http://node3:2379 get key").succeeds().shows("before");
    world.operator("chainfire-client --endpoint http://node3:2379 put key value").succeeds();
    assert!(world.is_active(3), "waiting for a quorum ends nobody");
    world.until("all is well", || of_the_cluster(&world, 3).exits(0).out.contains("health: good\n"));
    world.kill(2);
    world.until("one is missed, and writes go on", || {
        let status = of_the_cluster(&world, 3);
        status.is_success()
            && status.out.contains("health: degraded\n")
            && status.out.contains("see why node 2 does not")
    });
}

/// All run and answer, and hear nobody: a count of processes would be content.
#[test]
fn members_that_do_not_hear_one_another_elect_nobody() {
    let world = World::found(3);
    world.cut(&Cut::asunder(3));
    world.until("there is no leader", || of_the_cluster(&world, 1).out.contains("leader: none"));
    world.operator(leaderless::QUORUM).succeeds().shows("Running nodes: 3");
    let status = of_the_cluster(&world, 1).exits(NO_LEADER).shows("health: no leader elected");
    status.shows("quorum: 3 of 3 voters answer").shows("can they reach one another on their peer addresses");
    world.heal();
    world.until("all is well", || of_the_cluster(&world, 1).out.contains("health: good\n"));
}

#[test]
fn a_partition_is_seen_by_ping_and_the_isolated_node_comes_back() {
    let world = World::found(3);
    let isolated = world.leader();
    let others: Vec<usize> = (1..=3).filter(|node| *node != isolated).collect();
    world.cut(&Cut::apart(3, &[isolated]));
    world.leader_among(&others);
    world.until("the isolated node has no leader", || world.status(isolated).field("leader") == Some("none"));
    let refused = format!("chainfire-client --endpoint http://node{isolated}:2379 put key value");
    world.operator(&refused).fails().shows("no leader elected");

    let pings = world.operator(leaderless::PARTITION).text;
    let answers = |from: usize, to: usize| {
        let block = pings.split(&format!("node{from} -> node{to}:\n")).nth(1).expect("each pair is tried");
        block.split("-> node").next().is_some_and(|block| block.contains(" 0% packet loss"))
    };
    for from in 1..=3 {
        for to in 1..=3 {
            let apart = from != to && (from == isolated || to == isolated);
            assert_eq!(answers(from, to), !apart, "node{from} -> node{to}\n{pings}");
        }
    }
    world.heal();
    world.operator(&fill(leaderless::RESTART_ISOLATED, &[("ISOLATED_NODE", &format!("node{isolated}"))])).succeeds();
    world.until_serving(&[1, 2, 3]);
}

/// The runbook's recipe against two leaders wipes two of three nodes, and what it then asks for has no quorum. Each of its
/// commands works; the one that cannot says what can.
#[test]
fn the_recipe_against_two_leaders_ends_with_the_word_for_the_way_out() {
    let world = World::found(3);
    world.operator("chainfire-client --endpoint http://node1:2379 put key value").succeeds();
    world.until("node1 has it", || {
        world.operator("chainfire-client --endpoint http://node1:2379 get --serializable key").out.contains("value")
    });
    world.operator(leaderless::SPLIT_BRAIN).succeeds();
    assert_eq!(world.status(1).field("leader"), Some("none"));
    for command in leaderless::RE_ADD_FOLLOWERS {
        world.operator(command).fails().shows("no leader elected").shows("chainfire recover --unsafe");
    }
}

/// And it is a way: what one node has becomes a cluster of its own, and the others join it by the runbook's next lines.
#[test]
fn a_lost_majority_is_given_up_and_the_runbook_goes_on() {
    let world = World::found(3);
    world.operator("chainfire-client --endpoint http://node1:2379 put key value").succeeds();
    world.until("node1 has it", || {
        world.operator("chainfire-client --endpoint http://node1:2379 get --serializable key").out.contains("value")
    });
    world.operator(leaderless::SPLIT_BRAIN).succeeds();
    let before = world.status(1).field("cluster_id").map(str::to_owned);
    world.stop(1);
    world.on(1, "chainfire recover --unsafe --yes --config /etc/centra-cloud/chainfire.toml").succeeds();
    not_a_file_is_roots(&world, 1);
    world.start(1);
    world.until_serving(&[1]);
    let status = world.status(1);
    assert_eq!(status.field("leader"), Some("1"), "{status}");
    assert_ne!(status.field("cluster_id").map(str::to_owned), before, "a new cluster");
    world.operator("chainfire-client --endpoint http://node1:2379 get key").succeeds().shows("value");
    for command in leaderless::RE_ADD_FOLLOWERS {
        world.operator(command).succeeds();
        if command.contains("--node-id 2") {
            world.operator(r#"ssh node2 "sudo systemctl start chainfire""#).succeeds();
            world.until_member(1, 2, "voter");
        }
    }
    world.operator(leaderless::START_FOLLOWERS).succeeds();
    world.until_member(1, 3, "voter");
    world.until_serving(&[1, 2, 3]);
    world.operator("chainfire-client --endpoint http://node3:2379 get key").succeeds().shows("value");
}

/// `status --cluster` through a node.
pub fn of_the_cluster(world: &World, through: usize) -> Said {
    world.operator(&format!("chainfire-client --endpoint {} status --cluster", world.endpoint(through)))
}
