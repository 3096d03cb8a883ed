//! A member whose state is damaged, but not its log, goes on voting until the others can do without it; and nobody is given
//! up whom nobody could rebuild.

use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proto::admin::MemberRemoveRequest;

use crate::cluster::{Cluster, Options, is_etcd};
use crate::durability::{Writers, assert_holds};
use crate::healing::{HEALED_WITHIN, KEYS, fill, flip_in_log, notes, remove_current, right_answers};
use crate::lost_logs::{peer_of, wait_for_other_peer};
use crate::membership::{add_through, wait_for_voters};
use crate::tell::skipped;

/// Its vote is one of two: with it the other goes on. With a third member it can be spared, and is rebuilt.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_votes_on_and_is_rebuilt_once_there_is_a_third() {
    if is_etcd() {
        return skipped("one of two", "an etcd does not repair itself");
    }
    let mut cluster = Cluster::start_with(2, Options::brisk()).await;
    let victim = cluster.leader().await;
    let other = 1 - victim;
    fill(&cluster.client(victim)).await;
    let old_peer = peer_of(&cluster, other, victim).await;
    cluster.stop(victim).await;
    remove_current(&cluster, victim);
    cluster.spawn(victim);
    wait_for_note(&cluster, victim, "neither can be spared").await;

    // Longer than leave would take.
    let writers = Writers::start(&[cluster.endpoint(other)], 1, "with-its-vote");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let acknowledged = writers.finish().await;
    assert!(!acknowledged.is_empty(), "both votes are needed, and both are there");
    assert!(right_answers(&cluster.client(victim), true).await.is_err(), "it answers nothing");
    assert_eq!(peer_of(&cluster, other, victim).await, old_peer);
    cluster.stop(victim).await;
    cluster.spawn(victim);
    wait_for_note(&cluster, victim, "neither can be spared").await;

    let third = cluster.add_node("existing");
    add_through(&cluster, other, third, false).await.unwrap();
    cluster.spawn(third);
    wait_for_other_peer(&cluster, other, victim, old_peer).await;
    wait_for_voters(&cluster, 3).await;
    cluster.wait_until_serving(victim).await;
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
        assert_eq!(right_answers(&cluster.client(index), false).await, Ok(KEYS), "node {index}");
    }
    cluster.assert_equal_hashes().await;
}

/// What two of three have acknowledged while the third was down is in their logs alone. Both lose their states at once; then
/// the third comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_states_are_lost_at_once_and_nothing_that_was_acknowledged() {
    if is_etcd() {
        return skipped("two of three", "an etcd does not repair itself");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let behind = cluster.leader().await;
    fill(&cluster.client(behind)).await;
    let victims = [(behind + 1) % 3, (behind + 2) % 3];
    let peers = [peer_of(&cluster, behind, victims[0]).await, peer_of(&cluster, behind, victims[1]).await];
    cluster.kill(behind);
    let endpoints: Vec<String> = victims.iter().map(|index| cluster.endpoint(*index)).collect();
    let writers = Writers::start(&endpoints, 1, "without-the-third");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let acknowledged = writers.finish().await;
    assert!(!acknowledged.is_empty());
    for victim in victims {
        cluster.kill(victim);
        remove_current(&cluster, victim);
    }
    for victim in victims {
        cluster.spawn(victim);
    }
    for victim in victims {
        wait_for_note(&cluster, victim, "votes with its log").await;
    }
    cluster.spawn(behind);
    let deadline = Instant::now() + HEALED_WITHIN;
    while cluster.client(behind).status().await.is_err() {
        assert!(Instant::now() < deadline, "node {behind} does not come up");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for (victim, peer) in victims.into_iter().zip(peers) {
        wait_for_other_peer(&cluster, behind, victim, peer).await;
    }
    wait_for_voters(&cluster, 3).await;
    for index in 0..3 {
        cluster.wait_until_serving(index).await;
        assert_holds(&cluster.client(index), &acknowledged).await;
        assert_eq!(right_answers(&cluster.client(index), false).await, Ok(KEYS), "node {index}");
    }
    cluster.assert_equal_hashes().await;
}

/// Its configuration names others, but there are none any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_member_of_a_cluster_is_not_given_up() {
    if is_etcd() {
        return skipped("the last member", "an etcd does not repair itself");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    fill(&cluster.client(0)).await;
    for index in [2, 1] {
        let client = cluster.client(0);
        let node_id = cluster.member(0, index).await.unwrap().id;
        let deadline = Instant::now() + HEALED_WITHIN;
        let request = MemberRemoveRequest { node_id };
        while let Err(why) = client.within(client.admin().member_remove(request)).await {
            assert!(Instant::now() < deadline, "node {index} cannot be removed: {why:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cluster.kill(index);
    }
    wait_for_voters(&cluster, 1).await;
    cluster.stop(0).await;
    remove_current(&cluster, 0);
    ends_with(&mut cluster, 0, "no other member to rebuild it from").await;
    assert!(lost_folders(&cluster, 0).is_empty(), "nothing is set aside");
}

/// A log that is damaged is the end of a vote: of two, the other could take nobody in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_of_one_of_two_is_left_as_it_is() {
    if is_etcd() {
        return skipped("a damaged log of one of two", "an etcd does not repair itself");
    }
    let mut cluster = Cluster::start_with(2, Options::brisk()).await;
    let victim = cluster.leader().await;
    fill(&cluster.client(victim)).await;
    cluster.stop(victim).await;
    flip_in_log(&cluster, victim);
    ends_with(&mut cluster, victim, "the others are no majority without this member").await;
    assert!(lost_folders(&cluster, victim).is_empty());
}

/// Whoever starts it again: the count lies in the data folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_damaged_again_and_again_is_not_rebuilt_for_ever() {
    if is_etcd() {
        return skipped("damaged again and again", "an etcd does not repair itself");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    fill(&cluster.client(leader)).await;
    cluster.stop(victim).await;
    flip_in_log(&cluster, victim);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    fs::write(cluster.nodes[victim].data_dir.join("rebuilds"), format!("{now}\n").repeat(5)).unwrap();
    for _ in 0..2 {
        ends_with(&mut cluster, victim, "the disk or the memory of this machine is failing").await;
    }
    let old = format!("{}\n", now - 4_000).repeat(5);
    fs::write(cluster.nodes[victim].data_dir.join("rebuilds"), old).unwrap();
    let old_peer = peer_of(&cluster, leader, victim).await;
    cluster.spawn(victim);
    wait_for_other_peer(&cluster, leader, victim, old_peer).await;
    let counted = fs::read_to_string(cluster.nodes[victim].data_dir.join("rebuilds")).unwrap();
    assert_eq!(counted.lines().count(), 1, "it is counted, and the old ones are not: {counted}");
}

async fn ends_with(cluster: &mut Cluster, index: usize, words: &str) {
    cluster.spawn(index);
    let deadline = Instant::now() + HEALED_WITHIN;
    while !cluster.has_ended(index) {
        assert!(Instant::now() < deadline, "it goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cluster.kill(index);
    let log = cluster.log(index);
    assert!(log.contains(words), "{log}");
}

async fn wait_for_note(cluster: &Cluster, index: usize, words: &str) {
    let deadline = Instant::now() + HEALED_WITHIN;
    loop {
        let found = notes(cluster, index).await;
        if found.iter().any(|note| note.contains(words)) {
            return;
        }
        assert!(Instant::now() < deadline, "node {index} does not say `{words}`: {found:?}\n{}", cluster.log(index));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn lost_folders(cluster: &Cluster, index: usize) -> Vec<String> {
    let entries = fs::read_dir(&cluster.nodes[index].data_dir).unwrap().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("lost-")).collect()
}
