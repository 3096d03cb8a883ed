//! Partitions of the network under clients: what they saw has an order, and all is well again soon after it is healed.
//!
//! | shape | who is in touch |
//! |---|---|
//! | majority | one node, the leader as a rule, is apart from the others |
//! | one-way | one node is not heard, or does not hear |
//! | bridge | of three, two are in touch with the third only |
//! | ring | of five, each with its two neighbours only: each sees a majority, and no two the same |
//! | flapping | a node's cable is pulled and put back, faster than an election takes, and slower |

use std::time::{Duration, Instant};

use base::Rng;
use sim::linear::Verdict;

use crate::book::logs;
use crate::history::{Reads, Recording};
use crate::planted::{judge, planted_faults_are_seen};
use crate::tell::{done, figure, runs, seed, spread};
use crate::wires::Cut;
use crate::world::World;

const CLIENTS: u64 = 6;
const KEYS: u64 = 5;
const TICK_MS: u64 = 50;
const ELECTION_MS: u64 = 10 * TICK_MS;
/// Of each shape.
const RUNS: usize = 3;
/// A partition that lasts many elections.
const APART_MS_MAX: u64 = 6 * ELECTION_MS;
/// An election, new connections, and a busy machine.
const RECOVERY_MAX: Duration = Duration::from_secs(20);

#[test]
fn a_minority_apart_decides_nothing() {
    partitions("majority", 3, |world, rng| {
        let apart = leader_or_other(world, rng);
        world.cut(&Cut::apart(3, &[apart]));
        sleep_ms(rng.between(ELECTION_MS / 2, APART_MS_MAX));
    });
}

#[test]
fn one_who_only_hears_or_is_only_heard_harms_nobody() {
    partitions("one-way", 3, |world, rng| {
        let node = leader_or_other(world, rng);
        world.cut(&if rng.percent(50) { Cut::one_way(3, node) } else { Cut::other_way(3, node) });
        sleep_ms(rng.between(ELECTION_MS / 2, APART_MS_MAX));
    });
}

#[test]
fn a_bridge_joins_two_sides_that_do_not_see_each_other() {
    partitions("bridge", 3, |world, rng| {
        let middle = leader_or_other(world, rng);
        world.cut(&Cut::bridge(3, middle));
        sleep_ms(rng.between(ELECTION_MS / 2, APART_MS_MAX));
    });
}

#[test]
fn a_ring_of_majorities_has_one_order() {
    partitions("ring", 5, |world, rng| {
        let mut order = [1, 2, 3, 4, 5];
        for at in (1..order.len()).rev() {
            order.swap(at, rng.below(at as u64 + 1) as usize);
        }
        world.cut(&Cut::ring(&order));
        sleep_ms(rng.between(ELECTION_MS / 2, APART_MS_MAX));
    });
}

#[test]
fn a_flapping_cable_is_not_an_election_for_ever() {
    partitions("flapping", 3, |world, rng| {
        let node = leader_or_other(world, rng);
        for _ in 0..rng.between(2, 6) {
            world.cut(&Cut::apart(3, &[node]));
            sleep_ms(rng.below(2 * ELECTION_MS));
            world.heal();
            sleep_ms(rng.below(ELECTION_MS));
        }
    });
}

/// Makes partitions of one shape under clients, heals each, and judges all that the clients saw.
fn partitions(shape: &str, nodes: usize, mut make: impl FnMut(&World, &mut Rng)) {
    let (seed, count) = (seed(), runs(RUNS));
    // Shown where it fails, whatever it is that fails.
    println!("seed {seed}");
    let world = World::found_with(nodes, |settings| settings.tick_interval_ms = TICK_MS);
    let all: Vec<usize> = (1..=nodes).collect();
    let mut rng = Rng::new(seed);
    let mut recoveries = Vec::new();
    let mut seen = (0, 0);
    // The checker's time grows with a history: one for every few partitions.
    for batch in batches(count) {
        let prefix = format!("{shape}-{}-", recoveries.len());
        let endpoints = world.endpoints();
        let recording = world.block_on(async {
            Recording::start_below(&prefix, &endpoints, CLIENTS, KEYS, seed + recoveries.len() as u64)
        });
        sleep_ms(ELECTION_MS);
        for _ in 0..batch {
            make(&world, &mut rng);
            world.heal();
            let healed = Instant::now();
            world.until_serving(&all);
            recoveries.push(healed.elapsed());
            sleep_ms(ELECTION_MS);
        }
        let history = world.block_on(recording.finish());
        seen = (seen.0 + history.len(), seen.1 + history.iter().filter(|call| call.outcome.is_none()).count());
        assert_eq!(judge(&history), Verdict::Linearizable, "seed {seed}");
        planted_faults_are_seen(&history);
    }
    figure(format_args!(
        "partitions, {shape}: {count} among {nodes} nodes, {} operations, {} of unknown outcome, linearizable; all nodes \
         serve again after {} (seed {seed})",
        seen.0,
        seen.1,
        spread(&recoveries)
    ));
    done(recoveries.len());
    assert!(recoveries.iter().all(|took| *took < RECOVERY_MAX), "{recoveries:?} (seed {seed})");
}

fn batches(count: usize) -> impl Iterator<Item = usize> {
    const BATCH: usize = 5;
    (0..count).step_by(BATCH).map(move |from| BATCH.min(count - from))
}

fn leader_or_other(world: &World, rng: &mut Rng) -> usize {
    if rng.percent(70) { world.leader() } else { 1 + rng.below(3) as usize }
}

fn sleep_ms(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

/// The runbook's search for errors of connections finds both kinds that a network has beside a refusal: packets that nobody
/// answers, and a network that is not there.
#[test]
fn a_peer_that_is_not_answered_for_is_named_with_the_reason() {
    let world = World::found(3);
    let says = |reason: &str| {
        let line = format!("ERROR chainfire_network: Failed to connect to peer, addr=node3:2380: {reason}");
        world.until(&line, || world.on(1, logs::CONNECTION_ERRORS).out.contains(&line));
    };
    world.cut(&Cut::apart(3, &[3]));
    says("timeout");
    world.heal();
    world.until_serving(&[1, 2, 3]);
    let route = |verb: &str| {
        world.on(1, &format!("ip route {verb} throw {}", world.address(3))).succeeds();
    };
    route("add");
    says("Network is unreachable");
    route("del");
    world.until("they are in touch again", || world.status(1).out.matches("gossip=alive").count() == 3);
    world.until_serving(&[1, 2, 3]);
}

/// The chain of cut, clients, recorder and checker has teeth: reads that a node answers from what it has, told as if they
/// were linearizable, do not pass when the node is apart.
#[test]
fn stale_reads_of_a_node_apart_are_seen() {
    let world = World::found_with(3, |settings| settings.tick_interval_ms = TICK_MS);
    let apart = world.leader() % 3 + 1;
    let others: Vec<String> = (1..=3).filter(|node| *node != apart).map(|node| world.endpoint(node)).collect();
    let recording = world.block_on(async {
        let mut recording = Recording::start(&others, CLIENTS, 1, 1);
        recording.read_beside(&world.endpoint(apart), Reads::Serializable);
        tokio::time::sleep(Duration::from_millis(300)).await;
        recording
    });
    world.cut(&Cut::apart(3, &[apart]));
    sleep_ms(4 * ELECTION_MS);
    let history = world.block_on(recording.finish());
    assert!(history.len() > 100, "only {} operations", history.len());
    assert!(matches!(judge(&history), Verdict::Violation { .. }), "{} operations", history.len());
}
