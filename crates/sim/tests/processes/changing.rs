//! Members are added, promoted and removed while a node, whichever, is killed and comes back: each change is made in the
//! end, all agree on who is a member, and nothing acknowledged is lost.

use std::time::{Duration, Instant};

use base::Rng;
use proto::admin;
use proto::etcdserverpb as pb;
use tonic::Status;

use crate::client::Client;
use crate::cluster::{Cluster, Options, PATIENCE, is_etcd};
use crate::durability::{Acknowledged, Writers, assert_holds};
use crate::membership::{wait_for_voters, wipe};
use crate::tell::{done, figure, runs, seed, skipped, spread};

/// Adding, promoting and removing one member.
const CHANGES: usize = 3;
const KILLED_AFTER_MS_MAX: u64 = 400;
const DOWN_MS_MAX: u64 = 1500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_under_kills_end_in_one_membership() {
    if is_etcd() {
        return skipped("changes_under_kills", "an etcd that is added must be started before the next change");
    }
    let (seed, rounds) = (seed(), runs(2 * CHANGES).div_ceil(CHANGES));
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let guest = cluster.add_node("existing");
    let url = cluster.peer_url(guest);
    let (mut acknowledged, mut took, mut leaders) = (Acknowledged::default(), Vec::new(), 0);
    for round in 0..rounds {
        let writers = Writers::start(&cluster.endpoints()[..3], 1, &format!("round-{round}"));
        let id_of_guest = async |clients: &[Client]| {
            let members = members(clients).await;
            members.into_iter().find(|member| member.peer_urls.contains(&url)).expect("it was added").id
        };
        let clients: Vec<Client> = (0..3).map(|index| cluster.client_within(index, Duration::from_secs(2))).collect();
        for change in 0..CHANGES {
            let leader = cluster.leader().await;
            let victim = if rng.percent(50) { leader } else { rng.below(3) as usize };
            leaders += usize::from(victim == leader);
            let began = Instant::now();
            // The guest may lead by then; once it is removed it serves nobody any more.
            let serves = victim != guest || change != 2;
            let fault = kill_and_start(&mut cluster, victim, serves, &mut rng);
            let made = async {
                match change {
                    0 => {
                        let request = pb::MemberAddRequest { peer_urls: vec![url.clone()], is_learner: true };
                        let add =
                            async |client: &Client| client.within(client.cluster().member_add(request.clone())).await;
                        make(&clients, add, |members| at(members, &url).is_some()).await;
                    }
                    1 => {
                        let request = pb::MemberPromoteRequest { id: id_of_guest(&clients).await };
                        let promote =
                            async |client: &Client| client.within(client.cluster().member_promote(request)).await;
                        make(&clients, promote, |members| at(members, &url).is_some_and(|member| !member.is_learner))
                            .await;
                    }
                    _ => {
                        let request = pb::MemberRemoveRequest { id: id_of_guest(&clients).await };
                        let remove =
                            async |client: &Client| client.within(client.cluster().member_remove(request)).await;
                        make(&clients, remove, |members| at(members, &url).is_none()).await;
                    }
                }
            };
            tokio::join!(fault, made);
            if change == 0 {
                cluster.spawn(guest);
            }
            took.push(began.elapsed());
            let present = if change == 2 { 3 } else { 4 };
            one_membership(&cluster, &[0, 1, 2, 3][..present]).await;
        }
        cluster.kill(guest);
        wipe(&cluster, guest);
        acknowledged.extend(writers.finish().await);
        for index in 0..3 {
            assert_holds(&cluster.client(index), &acknowledged).await;
        }
    }
    figure(format_args!(
        "membership: {} changes, a node killed in each, {leaders} times the leader; made after {}, {} writes, 0 lost \
         (seed {seed})",
        rounds * CHANGES,
        spread(&took),
        acknowledged.len()
    ));
    done(took.len());
}

/// A dead member is replaced by an empty folder elsewhere, again and again, while another one is killed before the change is made and
/// again while the new one is filled. Who was replaced does not come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replacements_under_kills_end_in_one_membership() {
    if is_etcd() {
        return skipped("replacements_under_kills", "an etcd has no such call");
    }
    let (seed, rounds) = (seed(), runs(3));
    let mut rng = Rng::new(seed);
    let mut cluster = Cluster::start_with(3, Options::brisk()).await;
    let (mut old, mut new) = (2, cluster.add_node("existing"));
    cluster.nodes[old].initial_state = "existing";
    let id = cluster.member(0, old).await.unwrap().id;
    let clients: Vec<Client> = (0..2).map(|index| cluster.client_within(index, Duration::from_secs(2))).collect();
    let (mut acknowledged, mut took) = (Acknowledged::default(), Vec::new());
    for round in 0..rounds {
        let writers = Writers::start(&cluster.endpoints()[..2], 1, &format!("round-{round}"));
        cluster.kill(old);
        let began = Instant::now();
        let url = cluster.peer_url(new);
        let made = async {
            let request = admin::MemberReplaceRequest { node_id: id, peer_id: 0, peer_urls: vec![url.clone()] };
            let replace = async |client: &Client| client.within(client.admin().member_replace(request.clone())).await;
            make(&clients, replace, |members| at(members, &url).is_some_and(|member| member.id == id)).await;
        };
        let victim = rng.below(2) as usize;
        tokio::join!(kill_and_start(&mut cluster, victim, true, &mut rng), made);
        cluster.spawn(new);
        let victim = *rng.pick(&[0, 1, new]).expect("there are some");
        kill_and_start(&mut cluster, victim, true, &mut rng).await;
        cluster.wait_until_serving(new).await;
        wait_for_voters(&cluster, 3).await;
        took.push(began.elapsed());
        one_membership(&cluster, &[0, 1, new]).await;

        cluster.spawn(old);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let outcast = cluster.client_within(old, Duration::from_secs(1));
        assert!(outcast.put("by-a-replaced-one", "1").await.is_err(), "who was replaced took a write (seed {seed})");
        assert!(outcast.get("/").await.is_err(), "who was replaced serves (seed {seed})");
        cluster.kill(old);
        wipe(&cluster, old);
        one_membership(&cluster, &[0, 1, new]).await;
        acknowledged.extend(writers.finish().await);
        for index in [0, 1, new] {
            assert_holds(&cluster.client(index), &acknowledged).await;
        }
        std::mem::swap(&mut old, &mut new);
    }
    figure(format_args!(
        "replacements: {rounds}, two kills in each; whole again after {}, {} writes, 0 lost (seed {seed})",
        spread(&took),
        acknowledged.len()
    ));
    done(took.len());
}

/// SIGKILL at a drawn moment, and back after a drawn while.
async fn kill_and_start(cluster: &mut Cluster, victim: usize, serves: bool, rng: &mut Rng) {
    tokio::time::sleep(Duration::from_millis(rng.below(KILLED_AFTER_MS_MAX))).await;
    cluster.kill(victim);
    tokio::time::sleep(Duration::from_millis(rng.below(DOWN_MS_MAX))).await;
    cluster.spawn(victim);
    if serves {
        cluster.wait_until_serving(victim).await;
    }
}

/// Asks for a change through whoever answers, again and again, until the members are what they are to be: a call whose
/// answer was lost may have made it.
async fn make<T>(
    clients: &[Client],
    change: impl AsyncFn(&Client) -> Result<T, Status>,
    done: impl Fn(&[pb::Member]) -> bool,
) {
    let deadline = Instant::now() + PATIENCE;
    let mut why = None;
    for client in clients.iter().cycle() {
        if done(&members(clients).await) {
            return;
        }
        assert!(Instant::now() < deadline, "the change is not made: {why:?}");
        why = change(client).await.err();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// As a quorum knows them.
async fn members(clients: &[Client]) -> Vec<pb::Member> {
    let deadline = Instant::now() + PATIENCE;
    for client in clients.iter().cycle() {
        if let Ok(members) = client.members().await {
            return members;
        }
        assert!(Instant::now() < deadline, "nobody knows the members");
    }
    unreachable!("there are clients")
}

fn at<'a>(members: &'a [pb::Member], url: &String) -> Option<&'a pb::Member> {
    members.iter().find(|member| member.peer_urls.contains(url))
}

/// Waits until these nodes, and no others, are members, and each of them says so.
async fn one_membership(cluster: &Cluster, nodes: &[usize]) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut told = Vec::new();
        for index in nodes {
            let client = cluster.client_within(*index, Duration::from_secs(2));
            let status = client.within(client.admin().status(admin::StatusRequest {})).await;
            told.push(status.map_or_else(|_| Vec::new(), |status| status.members));
        }
        match agreed(&told, nodes.len()) {
            Ok(()) => return,
            Err(why) => assert!(Instant::now() < deadline, "{why}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Whether all tell of the same members, so many of them. What a node alone cannot know, such as how far another one is, may
/// differ.
fn agreed(told: &[Vec<admin::Member>], count: usize) -> Result<(), String> {
    let who = |members: &Vec<admin::Member>| {
        let mut who: Vec<_> = members.iter().map(|m| (m.node_id, m.peer_id, m.learner, m.peer_urls.clone())).collect();
        who.sort();
        who
    };
    let all: Vec<_> = told.iter().map(who).collect();
    let same = all.iter().all(|members| *members == all[0] && members.len() == count);
    if same { Ok(()) } else { Err(format!("not one membership of {count}: {all:?}")) }
}

/// The check has teeth: another member, another incarnation, a learner for a voter, one too many do not pass.
#[test]
fn memberships_that_differ_are_seen() {
    let member = |node_id| admin::Member { node_id, peer_id: 10 + node_id, ..Default::default() };
    let three: Vec<_> = [1, 2, 3].map(member).into();
    let turned: Vec<_> = [3, 1, 2].map(member).into();
    assert_eq!(agreed(&[three.clone(), turned], 3), Ok(()));
    for plant in [
        [1, 2, 4].map(member).to_vec(),
        [1, 2].map(member).to_vec(),
        vec![member(1), member(2), admin::Member { peer_id: 99, ..member(3) }],
        vec![member(1), member(2), admin::Member { learner: true, ..member(3) }],
    ] {
        assert!(agreed(&[three.clone(), plant.clone()], 3).is_err(), "{plant:?} went unnoticed");
    }
    assert!(agreed(&[three.clone(), three], 4).is_err());
}
