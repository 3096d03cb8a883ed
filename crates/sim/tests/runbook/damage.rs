//! Issue: Data Inconsistency After Crash, as far as a node mends itself or is mended on the spot.

use std::fs;
use std::path::{Path, PathBuf};

use crate::book::{fill, inconsistency, latency, quick};
use crate::world::World;

/// The exit code of what is done to the folder of a stopped node.
const DAMAGED: i32 = 2;

#[test]
fn a_corrupted_log_entry_is_named_and_the_node_is_rebuilt() {
    let world = with_keys(3);
    let leader = world.leader();
    let damaged = leader % 3 + 1;
    world.kill(damaged);
    flip_a_byte(&largest_segment(&world, damaged));
    world.start(damaged);
    world.until_said(damaged, "corrupted log entry");
    world.until_serving(&[damaged]);
    let index = world.status(leader).number("raft_index");
    world.until("it has caught up", || world.status(damaged).number("raft_index") >= index);
    let watched = world.on(damaged, inconsistency::WATCH).succeeds();
    assert_eq!(watched.out.matches("raft_index: ").count(), 3, "{watched}");
    assert!(watched.number("raft_index") >= index, "{watched}");
    world.until("one raft_index on all nodes", || {
        let indexes = [1, 2, 3].map(|node| world.status(node).number("raft_index"));
        indexes.iter().all(|index| *index == indexes[0])
    });
    equal_hashes(&world);
}

#[test]
fn repair_and_checkconsistency_work_on_a_stopped_node() {
    let world = with_keys(3);
    let node = world.leader() % 3 + 1;
    world.on(node, inconsistency::REPAIR).fails();
    world.on(node, inconsistency::STOP).succeeds();
    world.on(node, inconsistency::CHECK).succeeds().shows("OK");
    world.on(node, inconsistency::REPAIR).succeeds().shows("OK");
    world.on(node, inconsistency::CHECK).succeeds().shows("OK");
    world.on(node, inconsistency::START).succeeds();
    world.until_serving(&[node]);
    equal_hashes(&world);
}

/// A byte of a table file is wrong. The repair makes a database of the other files, run as root, and the unit's user goes on
/// with the folder: what was dropped comes from a peer.
#[test]
fn a_damaged_table_is_repaired_and_the_node_has_what_its_peers_have() {
    let (world, node) = with_a_stopped_node();
    let tables = tables(&world, node);
    flip_a_byte(&tables[0]);
    world.on(node, inconsistency::CHECK).exits(DAMAGED).shows("code=CF4104");
    world.on(node, inconsistency::REPAIR).succeeds().shows("OK");
    world.on(node, inconsistency::CHECK).succeeds().shows("OK");
    not_a_file_is_roots(&world, node);
    world.on(node, inconsistency::START).succeeds();
    world.until_serving(&[node]);
    world.until_said(node, "went through a repair");
    equal_hashes(&world);
}

/// Nothing is left to make a database of: the repair says so, and the node is rebuilt from its peers all the same.
#[test]
fn a_repair_that_fails_says_so_and_the_node_has_what_its_peers_have() {
    let (world, node) = with_a_stopped_node();
    tables(&world, node).iter().for_each(|table| flip_a_byte(table));
    world.on(node, inconsistency::REPAIR).exits(DAMAGED).shows("code=CF4104").hides("OK");
    world.on(node, inconsistency::CHECK).exits(DAMAGED).shows("code=CF4104");
    not_a_file_is_roots(&world, node);
    world.on(node, inconsistency::START).succeeds();
    world.until_serving(&[node]);
    equal_hashes(&world);
}

/// Our own commands for the same, run by root.
#[test]
fn chainfire_check_and_repair_leave_the_folder_to_its_owner() {
    let (world, node) = with_a_stopped_node();
    world.on(node, "chainfire check").succeeds().shows("state: intact");
    flip_a_byte(&tables(&world, node)[0]);
    world.on(node, "chainfire check").exits(DAMAGED).shows("state: damaged");
    world.on(node, "chainfire repair").succeeds().shows("the folder begins anew");
    not_a_file_is_roots(&world, node);
    world.on(node, inconsistency::START).succeeds();
    world.until_serving(&[node]);
    equal_hashes(&world);
}

/// A backup, unpacked by the runbook's `tar` into a member of a cluster that runs: it comes back, and nothing is rewound.
#[test]
fn the_latest_backup_is_unpacked_and_the_node_comes_back() {
    let world = with_keys(3);
    let node = world.leader() % 3 + 1;
    let save = "chainfire-client --endpoint http://localhost:2379 snapshot run --dir /var/backups/chainfire --keep 3";
    world.on(node, save).succeeds();
    world.operator("chainfire-client --endpoint http://node1:2379 put after-the-backup value").succeeds();
    world.kill(node);
    world.on(node, inconsistency::RESTORE).succeeds();
    world.until_serving(&[node]);
    let read = format!("chainfire-client --endpoint http://node{node}:2379 get");
    world.operator(&format!("{read} key-7")).succeeds().shows("value-7");
    world.operator(&format!("{read} after-the-backup")).succeeds().shows("value");
    world.on(node, "stat -c %U /var/lib/chainfire").succeeds().shows("chainfire");
    world.on(node, "ls /var/lib/chainfire.corrupted").succeeds().shows("identity");
    equal_hashes(&world);
}

#[test]
fn a_failed_node_is_removed_wiped_added_as_a_learner_and_promoted() {
    let world = with_keys(3);
    let leader = world.leader();
    let failed = leader % 3 + 1;
    let names = (world.address(leader).to_owned(), failed.to_string(), world.address(failed).to_owned());
    let leader_place = ("LEADER_IP", names.0.as_str());
    let id_place = ("FAILED_NODE_ID", names.1.as_str());
    let address_place = ("FAILED_NODE_IP", names.2.as_str());
    world.kill(failed);

    world.operator(&fill(inconsistency::REMOVE, &[leader_place, id_place])).succeeds();
    world.until("it is no member", || world.member(leader, failed).is_none());
    world.on(failed, inconsistency::WIPE).succeeds();
    world.operator(&fill(inconsistency::RE_ADD, &[leader_place, id_place, address_place])).succeeds();
    world.until_serving(&[failed]);
    assert!(world.member(leader, failed).is_some_and(|line| line.starts_with("learner")), "{}", world.status(leader));
    // With --learner it stays one, however long, and serves reads.
    world
        .operator(&format!("chainfire-client --endpoint http://node{failed}:2379 get key-7"))
        .succeeds()
        .shows("value-7");
    // And from what it has itself, old as that may be, to those who ask for that.
    let stale = format!("chainfire-client --endpoint http://node{failed}:2379 get --serializable key-7");
    world.operator(&stale).succeeds().shows("value-7");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(world.member(leader, failed).is_some_and(|line| line.starts_with("learner")), "{}", world.status(leader));
    world.until("it is promoted", || {
        let promoted = world.operator(&fill(inconsistency::PROMOTE, &[leader_place, id_place]));
        assert!(promoted.is_success() || promoted.text.contains("caught up"), "{promoted}");
        promoted.is_success()
    });
    world.until_member(leader, failed, "voter");
    let members = world.operator(&fill(quick::MEMBER_LIST, &[("NODE_IP", world.address(failed))])).succeeds();
    assert_eq!(members.out.lines().count(), 3, "{members}");
    // Promoting a voter changes nothing, and says so.
    world.operator(&fill(inconsistency::PROMOTE, &[leader_place, id_place])).shows("voter");
    equal_hashes(&world);
}

/// A cluster and a node of it that was stopped twice, each time with more in memory than before: each family of its state
/// lies in more than one file.
fn with_a_stopped_node() -> (World, usize) {
    let world = with_keys(3);
    let node = world.leader() % 3 + 1;
    world.on(node, latency::RESTART).succeeds();
    world
        .operator("for i in $(seq 50); do chainfire-client --endpoint http://node1:2379 put more-$i value; done")
        .succeeds();
    world.until_serving(&[node]);
    world.on(node, inconsistency::STOP).succeeds();
    (world, node)
}

/// What root has done in a data folder leaves everything to the unit's user.
pub fn not_a_file_is_roots(world: &World, node: usize) {
    let found = world.on(node, "find /var/lib/chainfire ! -user chainfire").succeeds();
    assert_eq!(found.text, "", "{found}");
}

/// A cluster with some keys in it.
pub fn with_keys(count: usize) -> World {
    let world = World::found(count);
    world
        .operator("for i in $(seq 50); do chainfire-client --endpoint http://node1:2379 put key-$i value-$i; done")
        .succeeds();
    world
}

pub fn equal_hashes(world: &World) {
    let hash = |node| {
        let client = world.client(node);
        // The read makes sure that the node has applied what the others have.
        world.block_on(async { client.get("key-1").await.and(client.hash_kv(0).await) }).unwrap().hash
    };
    let hashes: Vec<u32> = (1..=world.count()).map(hash).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:x?}");
}

/// The table files of a state, the largest first.
fn tables(world: &World, node: usize) -> Vec<PathBuf> {
    let files = fs::read_dir(world.path(node, "/var/lib/chainfire")).unwrap().map(|entry| entry.unwrap().path());
    let mut tables: Vec<_> = files.filter(|path| path.extension().is_some_and(|kind| kind == "sst")).collect();
    tables.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    assert!(!tables.is_empty(), "a node that stops leaves its state in files");
    tables
}

/// The segment of the log that most is written to.
fn largest_segment(world: &World, node: usize) -> PathBuf {
    let folder = world.path(node, "/var/lib/chainfire/raft");
    let segments = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let segments =
        segments.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-")));
    segments.max_by_key(|path| written(&fs::read(path).unwrap())).expect("a log has a segment")
}

/// Segments are as long as they may become from their beginning, and end in zeros.
fn written(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// In the middle of what is written.
fn flip_a_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = written(&bytes) / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}
