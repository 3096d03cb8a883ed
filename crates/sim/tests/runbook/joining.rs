//! Issue: Node Cannot Join Cluster. Each cause the runbook names, seen by its diagnosis and ended by its resolution.

use crate::book::{fill, joining, quick};
use crate::settings::{CERTIFICATES, CONFIG, MAKE_CERTIFICATES, Settings, repository};
use crate::world::World;

const NEW: usize = 4;

#[test]
fn a_firewall_keeps_a_node_out_until_its_ports_are_open() {
    let world = with_a_newcomer();
    world.close_ports(NEW);
    world.start(NEW);
    let leader = world.leader_among(&[1, 2, 3]);
    let new = world.address(NEW).to_owned();

    assert!(!members(&world).contains("node4:2380"), "member-list does not show the new node");
    add(&world, NEW);
    world.until_said(leader, "Failed to connect to peer, addr=node4:2380: connection refused");
    world
        .on(leader, "journalctl -u chainfire | grep 'Failed to connect to peer'")
        .shows("node4:2380")
        .shows("connection refused");
    world.operator(&fill(joining::CONNECTIVITY, &[("NEW_NODE_IP", &new)])).fails().shows("Connection refused");
    // It listens: so it is the way there.
    world.operator(&fill(joining::LISTENING, &[("NEW_NODE_IP", &new)])).succeeds().shows(&format!("{new}:2380"));
    world.operator(&fill(joining::FIREWALL, &[("NEW_NODE_IP", &new)])).succeeds().shows("reject");
    world
        .operator(&fill(joining::TLS_CONFIGURATION, &[("NEW_NODE_IP", &new)]))
        .succeeds()
        .shows("cert_file")
        .shows("key_file")
        .shows("ca_file");
    world
        .operator(&fill(joining::LEADER_LOGS, &[("LEADER_NODE", &format!("node{leader}"))]))
        .succeeds()
        .shows("node=4");

    world.on(NEW, joining::OPEN_FIREWALL).succeeds();
    world.operator(&fill(joining::CONNECTIVITY, &[("NEW_NODE_IP", &new)])).succeeds();
    world.until_member(leader, NEW, "voter");
    assert!(members(&world).contains("node4:2380"));
    world.until_serving(&[NEW]);
}

#[test]
fn a_newcomer_that_would_bootstrap_founds_nothing_and_joins_when_told_so() {
    let world = with_a_newcomer();
    // As the founders' file was copied: it may found, and knows of everybody.
    let mut settings = Settings::founder(&world);
    settings.bootstrap = true;
    world.set_up(NEW, &settings);
    world.start(NEW);
    world.until_said(NEW, "its cluster does not know this node; add it with member-add");
    let waiting = world.status(NEW);
    assert!(waiting.field("leader").is_none_or(|leader| leader == "none"), "{waiting}");
    let cluster = world.status(1).field("cluster_id").map(str::to_owned);
    assert!(!world.journal(NEW).contains("Founding a cluster"), "a second cluster");

    world.on(NEW, &format!("EDIT='s/^bootstrap = true/bootstrap = false/' {}", joining::EDIT)).succeeds();
    assert!(world.read(NEW, CONFIG).contains("bootstrap = false"));
    world.on(NEW, joining::RESTART).succeeds();
    add(&world, NEW);
    world.until_member(1, NEW, "voter");
    world.until_serving(&[NEW]);
    assert_eq!(world.status(NEW).field("cluster_id").map(str::to_owned), cluster);
}

#[test]
fn certificates_of_another_ca_keep_a_node_out_until_they_match() {
    let world = with_a_newcomer();
    let elsewhere = world.folder().join("another-ca");
    let script = repository().join(MAKE_CERTIFICATES);
    world.operator(&format!("{} {} --nodes 4", script.display(), elsewhere.display())).succeeds();
    world
        .operator(&format!("cd {} && scp ca.crt chainfire-node-4.* node4:{CERTIFICATES}/", elsewhere.display()))
        .succeeds();
    world.start(NEW);
    add(&world, NEW);
    let leader = world.leader_among(&[1, 2, 3]);
    // The leader refuses the newcomer's certificate, and the newcomer the leader's; each says both.
    for node in [leader, NEW] {
        world.until_said(node, "certificate verify failed: unknown CA");
        world.until_said(node, "tls: bad certificate: unknown CA");
    }
    world
        .on(NEW, joining::CERTIFICATES)
        .succeeds()
        .shows("ca.crt")
        .shows("chainfire-node-4.crt")
        .shows("chainfire-node-4.key");
    let shown = world.on(NEW, &fill(joining::CERTIFICATE, &[("node-N", "node-4")])).succeeds();
    let shown = shown.shows("TLS Web Server Authentication").shows("TLS Web Client Authentication");
    shown.shows("DNS:chainfire-node-4");
    assert!(world.member(leader, NEW).is_some_and(|line| !line.starts_with("voter")));

    world.bring_certificates(NEW);
    world.on(NEW, joining::RESTART).succeeds();
    world.until_member(leader, NEW, "voter");
    world.until_serving(&[NEW]);
}

/// A cluster of three, and a machine that is ready to join it.
fn with_a_newcomer() -> World {
    let mut world = World::found(3);
    let settings = Settings { bootstrap: false, ..Settings::founder(&world) };
    assert_eq!(world.add_machine(), NEW);
    world.certify();
    world.set_up(NEW, &settings);
    world
}

fn add(world: &World, node: usize) {
    let address = format!("node{node}:2380");
    let command =
        format!("chainfire-client --endpoint http://node1:2379 member-add --node-id {node} --peer-url {address}");
    world.operator(&command).succeeds();
}

fn members(world: &World) -> String {
    world.operator(&fill(quick::MEMBER_LIST, &[("NODE_IP", "node1")])).succeeds().out
}
