//! Members come, learn, are promoted, go, and come again, while clients write.

use std::time::{Duration, Instant};

use proto::admin;
use proto::etcdserverpb as pb;
use tonic::{Code, Status};

use crate::client;
use crate::cluster::{Cluster, Options, PATIENCE, is_etcd};
use crate::durability::{Writers, assert_holds};
use crate::tell::skipped;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_joins_is_promoted_and_leaves() {
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints(), 1, "first");
    let added = cluster.add_node("existing");
    let member = add(&cluster, added, true).await.unwrap();
    assert!(member.is_learner);
    let twice = add(&cluster, added, true).await.unwrap_err();
    // An etcd draws the same id again within a second, and says so first.
    assert!(
        twice.message().ends_with(if is_etcd() { "already exist" } else { "Peer URLs already exists" }),
        "{twice:?}"
    );
    let too_early = promote(&cluster, member.id).await.unwrap_err();
    assert_eq!(too_early.code(), Code::FailedPrecondition, "{too_early:?}");
    assert_eq!(too_early.message(), "etcdserver: can only promote a learner member which is in sync with leader");

    cluster.spawn(added);
    wait_for_name(&cluster, added).await;
    let listed = cluster.member(0, added).await.unwrap();
    assert_eq!((listed.id, listed.is_learner), (member.id, true), "a learner stays one until it is promoted");
    answers_stale_reads(&cluster, added).await;
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = promote(&cluster, member.id).await {
        assert!(Instant::now() < deadline, "the learner cannot be promoted: {why:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(!cluster.member(0, added).await.unwrap().is_learner);
    let again = promote(&cluster, member.id).await.unwrap_err();
    assert_eq!(again.message(), "etcdserver: can only promote a learner member");
    cluster.wait_until_serving(added).await;

    // It counts: with one founder down, four members still have a quorum of three.
    let victim = (cluster.leader().await + 1) % 3;
    cluster.kill(victim);
    cluster.client(added).put("with-three-of-four", "1").await.unwrap();
    cluster.spawn(victim);
    cluster.wait_until_serving(victim).await;

    remove(&cluster, member.id).await.unwrap();
    assert!(cluster.member(0, added).await.is_none());
    assert_eq!(remove(&cluster, member.id).await.unwrap_err().message(), "etcdserver: member not found");
    let acknowledged = writers.finish().await;
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
    stops_acting(&mut cluster, added).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_and_wiped_node_comes_back_as_a_voter() {
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints()[..2], 1, "kept");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let first = cluster.member(0, 2).await.unwrap();
    remove(&cluster, first.id).await.unwrap();
    cluster.kill(2);
    wipe(&cluster, 2);

    let second = add(&cluster, 2, false).await.unwrap();
    assert_ne!(second.id, first.id, "an id is never used again");
    assert!(!second.is_learner);
    cluster.nodes[2].initial_state = "existing";
    cluster.spawn(2);
    wait_for_name(&cluster, 2).await;
    cluster.wait_until_serving(2).await;
    let acknowledged = writers.finish().await;
    assert_holds(&cluster.client(2), &acknowledged).await;
    if !is_etcd() {
        // Without anyone's help it votes: another one can be missed then.
        wait_for_voters(&cluster, 3).await;
    }
    let victim = (cluster.leader().await + 1) % 2;
    cluster.kill(victim);
    cluster.client(2).put("with-two-of-three", "1").await.unwrap();
    cluster.spawn(victim);
    cluster.wait_until_all_serve().await;
    cluster.assert_equal_hashes().await;
}

/// The runbook's "remove node from cluster and re-add fresh", in its order: remove, wipe, start, add as a learner, promote.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_started_before_it_is_added_again_waits_and_says_so() {
    if is_etcd() {
        return skipped("started_before_added", "an etcd does not wait to be added");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let first = cluster.member(0, 2).await.unwrap();
    remove(&cluster, first.id).await.unwrap();
    cluster.kill(2);
    wipe(&cluster, 2);
    cluster.spawn(2);
    crate::offline::wait_for_status(&cluster, 2, |status| {
        status.notes.iter().any(|note| note.contains("does not know this node; add it with member-add"))
    })
    .await;
    let admin = cluster.client(0);
    let request = proto::admin::MemberAddRequest {
        node_id: first.id,
        peer_urls: vec![cluster.peer_url(2)],
        learner: true,
        ..Default::default()
    };
    once_healthy(async || admin.within(admin.admin().member_add(request.clone())).await).await.unwrap();
    cluster.wait_until_serving(2).await;
    let listed = cluster.member(0, 2).await.unwrap();
    assert_eq!((listed.id, listed.is_learner), (first.id, true));
    let request = proto::admin::MemberPromoteRequest { node_id: first.id };
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = admin.within(admin.admin().member_promote(request)).await {
        assert!(why.message().contains("caught up") || why.code() == Code::Unavailable, "{why:?}");
        assert!(Instant::now() < deadline, "it is never promoted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    wait_for_voters(&cluster, 3).await;
    // Once more is no error, and says so.
    let again = admin.within(admin.admin().member_promote(request)).await.unwrap();
    assert_eq!(again.note, "the member is a voter already");

    // With one of three down, nobody who is up can be let go.
    let leader = cluster.leader().await;
    cluster.kill((leader + 1) % 3);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let needed = cluster.member(leader, (leader + 2) % 3).await.unwrap().id;
    let through = cluster.client(leader);
    let request = proto::admin::MemberRemoveRequest { node_id: needed };
    let why = through.within(through.admin().member_remove(request)).await.unwrap_err();
    assert!(why.message().contains("would leave no quorum") && why.message().contains("start"), "{why:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_from_one_and_shrinks_again_under_load() {
    if is_etcd() {
        return skipped("a_cluster_grows_from_one", "an etcd that is added must be started before the next one is");
    }
    let mut cluster = Cluster::start_with(1, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints(), 2, "grow");
    let mut ids = Vec::new();
    for _ in 0..2 {
        let added = cluster.add_node("existing");
        ids.push(add(&cluster, added, false).await.unwrap().id);
        cluster.spawn(added);
        cluster.wait_until_serving(added).await;
    }
    wait_for_voters(&cluster, 3).await;
    cluster.assert_equal_hashes().await;
    for id in ids {
        remove(&cluster, id).await.unwrap();
    }
    wait_for_voters(&cluster, 1).await;
    (1..3).for_each(|index| cluster.kill(index));
    let client = cluster.client(0);
    client.put("alone", "1").await.unwrap();
    assert_holds(&client, &writers.finish().await).await;
    // The only member cannot leave.
    let last = cluster.member(0, 0).await.unwrap().id;
    assert_eq!(remove(&cluster, last).await.unwrap_err().code(), Code::FailedPrecondition);
}

pub async fn add(cluster: &Cluster, index: usize, is_learner: bool) -> Result<pb::Member, Status> {
    add_through(cluster, 0, index, is_learner).await
}

pub async fn add_through(
    cluster: &Cluster,
    through: usize,
    index: usize,
    is_learner: bool,
) -> Result<pb::Member, Status> {
    let through = cluster.client(through);
    let request = pb::MemberAddRequest { peer_urls: vec![cluster.peer_url(index)], is_learner };
    let answer = once_healthy(async || through.within(through.cluster().member_add(request.clone())).await).await;
    answer.map(|answer| answer.member.expect("the member that was added"))
}

async fn promote(cluster: &Cluster, id: u64) -> Result<(), Status> {
    let through = cluster.client(cluster.leader().await);
    through.within(through.cluster().member_promote(pb::MemberPromoteRequest { id })).await.map(|_| ())
}

pub async fn remove(cluster: &Cluster, id: u64) -> Result<(), Status> {
    let through = cluster.client(0);
    let request = pb::MemberRemoveRequest { id };
    once_healthy(async || through.within(through.cluster().member_remove(request)).await).await.map(|_| ())
}

/// The machine of a member is gone for good: its number moves to another address, and an empty folder there is filled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_replaced_at_another_address() {
    if is_etcd() {
        return skipped("a_member_is_replaced_at_another_address", "an etcd has no such call");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let writers = Writers::start(&cluster.endpoints()[..2], 1, "kept");
    let gone = cluster.member(0, 2).await.unwrap();
    let new = cluster.add_node("existing");
    let (id, url) = (gone.id.to_string(), cluster.peer_url(new));
    let replace = |cluster: &Cluster| {
        let mut client = std::process::Command::new(crate::cluster::program().with_file_name("chainfire-client"));
        client.args(["--endpoint", &cluster.endpoint(0), "member-replace", "--node-id", &id, "--peer-url", &url]);
        let output = client.output().expect("chainfire-client was built");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (done, said) = replace(&cluster);
    assert!(!done && said.contains("stop it before another takes its place"), "{said}");
    cluster.kill(2);
    let (done, said) = replace(&cluster);
    assert!(done && said.contains("empty data folder"), "{said}");

    cluster.spawn(new);
    cluster.wait_until_serving(new).await;
    let members = cluster.client(0).members().await.unwrap();
    assert_eq!(members.len(), 3, "{members:?}");
    let moved = members.iter().find(|member| member.id == gone.id).expect("the number stays");
    assert_eq!((&moved.peer_urls, moved.is_learner), (&vec![url.clone()], false));
    let acknowledged = writers.finish().await;
    assert_holds(&cluster.client(new), &acknowledged).await;
    // It counts once its peer has taken the old one's place: another one can be missed then.
    let deadline = Instant::now() + PATIENCE;
    let client = cluster.client(0);
    let status = async || client.within(client.admin().status(admin::StatusRequest {})).await.unwrap();
    while status().await.members.iter().any(|member| member.successor_peer_id != 0) {
        assert!(Instant::now() < deadline, "the change does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let promoted = once_healthy(async || promote(&cluster, gone.id).await).await;
    assert!(promoted.unwrap_err().message().ends_with("can only promote a learner member"));
    cluster.kill(1);
    while let Err(why) = cluster.client(new).put("with-the-new-one", "1").await {
        assert!(Instant::now() < deadline, "{why:?}");
    }
}

/// Members have to be there for a while before a change is taken, and the change before it must be done.
async fn once_healthy<T>(change: impl AsyncFn() -> Result<T, Status>) -> Result<T, Status> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match change().await {
            Err(why) if why.message() == "etcdserver: unhealthy cluster" && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            answer => return answer,
        }
    }
}

/// A learner answers from what it has, for those who ask for no more: what was written arrives there.
async fn answers_stale_reads(cluster: &Cluster, learner: usize) {
    cluster.client(0).put("stale", "1").await.unwrap();
    let client = cluster.client(learner);
    let request = pb::RangeRequest { key: client::bytes("stale"), serializable: true, ..Default::default() };
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = client.range(request.clone()).await;
        if answer.as_ref().is_ok_and(|found| found.kvs.first().is_some_and(|pair| pair.value == "1")) {
            break;
        }
        assert!(Instant::now() < deadline, "what was written does not arrive: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let member = cluster.member(0, learner).await.unwrap();
    assert!(member.is_learner, "it was one all the while");
}

/// A member has its name once it has joined.
async fn wait_for_name(cluster: &Cluster, index: usize) {
    let deadline = Instant::now() + PATIENCE;
    while cluster.member(0, index).await.is_none_or(|member| member.name.is_empty()) {
        assert!(Instant::now() < deadline, "{} does not join", cluster.nodes[index].name);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until so many members vote, with none learning.
pub async fn wait_for_voters(cluster: &Cluster, voters: usize) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let client = cluster.client(0);
        let status = client.within(client.admin().status(proto::admin::StatusRequest {})).await.unwrap();
        let voting = status.members.iter().filter(|member| !member.learner && member.successor_peer_id == 0).count();
        if voting == voters && status.members.len() == voters {
            return;
        }
        assert!(Instant::now() < deadline, "{voting} of {voters} vote: {:?}", status.members);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What `rm -rf DIR/*` does.
pub fn wipe(cluster: &Cluster, index: usize) {
    let folder = &cluster.nodes[index].data_dir;
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
}

/// A removed node that still runs, or runs again, is no part of the cluster: it takes no writes, serves no linearizable
/// reads, and disturbs nobody. It may also end by itself.
async fn stops_acting(cluster: &mut Cluster, removed: usize) {
    if !is_etcd() {
        // One that still remembers the leader, and one that knows nobody.
        says_so(cluster, removed).await;
    }
    let term = cluster.client(0).status().await.unwrap().raft_term;
    cluster.kill(removed);
    cluster.spawn(removed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let outcast = crate::client::Client::with_timeout(&cluster.endpoint(removed), Duration::from_secs(2));
    assert!(outcast.put("by-a-removed-node", "1").await.is_err(), "a removed node took a write");
    assert!(outcast.get("with-three-of-four").await.is_err(), "a removed node served a linearizable read");
    let status = cluster.client(0).status().await.unwrap();
    assert_eq!(status.raft_term, term, "a removed node caused an election");
    cluster.client(0).put("after", "1").await.unwrap();
    if !is_etcd() {
        // It knows, and says how to come back.
        crate::offline::wait_for_status(cluster, removed, |status| {
            status.notes.iter().any(|note| note.contains("was removed from its cluster") || note.contains("member-add"))
                && !status.notes.iter().any(|note| note.contains("start a majority"))
        })
        .await;
        says_so(cluster, removed).await;
    }
}

/// Its clients are told that it was removed.
async fn says_so(cluster: &Cluster, removed: usize) {
    let outcast = crate::client::Client::with_timeout(&cluster.endpoint(removed), Duration::from_secs(2));
    let deadline = Instant::now() + PATIENCE;
    loop {
        let why = outcast.put("by-a-removed-node", "1").await.unwrap_err();
        if why.message() == "etcdserver: this member was removed from its cluster" {
            break;
        }
        assert!(Instant::now() < deadline, "a removed node says {why:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let health = crate::every_node::get(cluster.nodes[removed].address, "/health");
    assert!(health.status == 503 && health.body.contains("MEMBER REMOVED"), "{health:?}");
}

/// A learner never asks for votes, and so never gives its leader up by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_is_removed_says_so() {
    if is_etcd() {
        return skipped("removed_learner", "an etcd ends");
    }
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let learner = cluster.add_node("existing");
    let added = add(&cluster, learner, true).await.unwrap();
    cluster.spawn(learner);
    wait_for_name(&cluster, learner).await;
    answers_stale_reads(&cluster, learner).await;
    remove(&cluster, added.id).await.unwrap();
    says_so(&cluster, learner).await;
}
