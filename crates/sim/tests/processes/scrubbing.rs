//! Damage is found though nobody asks for it, within the interval that the configuration names.

use std::process::Command;
use std::time::{Duration, Instant};

use proto::etcdserverpb as pb;

use crate::cluster::{CLIENT_PORT, Cluster, Options, PATIENCE, PEER_PORT, command, is_etcd, program};
use crate::healing::{HEALED_WITHIN, KEYS, fill, flip_in_log, flip_in_table, right_answers, wait_for_settled_tables};
use crate::lost_logs::{peer_of, wait_for_other_peer};
use crate::membership::wait_for_voters;
use crate::tell::{figure, skipped};

const INTERVAL: &str = "2s";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_of_a_running_node_is_found_and_made_good_without_an_operator() {
    if is_etcd() {
        return skipped("damage found without an operator", "an etcd does not look");
    }
    let mut cluster = Cluster::new(3, Options::default());
    for index in 0..3 {
        let command = scrubs_by_itself(&cluster, index);
        cluster.spawn_as(index, command);
    }
    cluster.wait_until_all_serve().await;
    let leader = cluster.leader().await;
    let (victim, witness) = ((leader + 1) % 3, (leader + 2) % 3);
    fill(&cluster.client(leader)).await;
    cluster.client(victim).get("/").await.unwrap();
    for index in 0..3 {
        wait_for_a_pass(&cluster, index).await;
        assert!(!cluster.log(index).contains("Scrub found damage"), "nothing is damaged");
    }

    // The log first: what is rebuilt begins with a short one.
    for what in ["the log", "a table"] {
        // What is in memory goes to tables.
        let client = cluster.client(victim);
        client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await.unwrap();
        wait_for_settled_tables(&cluster, victim).await;
        let (old_peer, said) = (peer_of(&cluster, witness, victim).await, cluster.log(victim).len());
        if what == "a table" {
            flip_in_table(&cluster, victim)
        } else {
            flip_in_log(&cluster, victim)
        }
        let began = Instant::now();
        wait_for_other_peer(&cluster, witness, victim, old_peer).await;
        wait_for_voters(&cluster, 3).await;
        cluster.wait_until_serving(victim).await;
        let took = began.elapsed();
        figure(format_args!("healed {what} by itself (a scrub every {INTERVAL}): {} ms", took.as_millis()));
        assert!(took <= HEALED_WITHIN, "that is too long");
        assert_eq!(right_answers(&cluster.client(victim), false).await, Ok(KEYS), "{what}");
        let found = cluster.log(victim)[said..].contains("ERROR chainfire_storage: Scrub found damage, why=");
        assert!(found, "its scrub is what found {what}");
        // It goes on looking, in the process that was started again.
        wait_for_a_pass(&cluster, victim).await;
    }
    cluster.assert_equal_hashes().await;
}

/// Our own flags: etcd's name no interval.
fn scrubs_by_itself(cluster: &Cluster, index: usize) -> Command {
    let node = &cluster.nodes[index];
    let members: Vec<String> =
        (0..cluster.nodes.len()).map(|index| format!("{}={}", index + 1, cluster.peer_url(index))).collect();
    let mut command = command(&program());
    command.arg("--data-dir").arg(&node.data_dir);
    command.arg(format!("--node-id={}", index + 1)).arg(format!("--initial-members={}", members.join(",")));
    command.arg(format!("--api-addr={}:{CLIENT_PORT}", node.address));
    command.arg(format!("--raft-addr={}:{PEER_PORT}", node.address));
    command.args(["--tick-interval-ms=50".to_owned(), format!("--scrub-interval={INTERVAL}")]);
    command
}

/// More has been read, and a pass has come to its end.
async fn wait_for_a_pass(cluster: &Cluster, index: usize) {
    let begun = scrubbed(cluster, index).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = scrubbed(cluster, index).await;
        if now.0 > begun.0 && now.1 > begun.1 {
            return;
        }
        assert!(Instant::now() < deadline, "{} reads nothing: {now:?}", cluster.nodes[index].name);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Bytes read by scrubs, and passes, since the process began.
async fn scrubbed(cluster: &Cluster, index: usize) -> (u64, u64) {
    let page = cluster.metrics(index).await;
    let value = |name: &str| {
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
    };
    (value("chainfire_scrub_bytes_total"), value("chainfire_scrub_passes_total"))
}
