//! One call of one node to its disk fails: a write, a sync, a read; in the log or the state; while it runs or as it starts.
//! It stops, or gives up what it cannot trust any more and is rebuilt; a short write it completes, and for room it waits.
//! No answer is wrong, nothing acknowledged is lost, and all are one cluster again.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use base::Rng;
use proto::admin::ScrubRequest;
use proto::etcdserverpb as pb;

use crate::cluster::{Cluster, Options, PATIENCE, is_etcd};
use crate::durability::{Acknowledged, Writers, assert_holds};
use crate::failing_disk::{FailingDisk, Fault, Place};
use crate::healing::{KEYS, Readers, fill, forget_rebuilds, right_answers};
use crate::lost_logs::peer_of;
use crate::membership::{wait_for_voters, wipe};
use crate::tell::{done, figure, runs, seed, skipped};

/// The node makes the call within this time, or never.
const STRUCK_WITHIN: Duration = Duration::from_secs(5);
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// A full disk is borne for so long.
const FULL_FOR: Duration = Duration::from_secs(2);
/// Rounds of `make test`, and up to which call they draw.
const ROUNDS: usize = 9;
const DRAWN_CALLS: u64 = 8;

#[derive(Clone, Copy, Debug)]
struct Case {
    fault: Fault,
    place: Place,
    lasting: bool,
    at_start: bool,
    then: Then,
}

/// What the node must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// Nobody notices.
    GoesOn,
    /// It ends by itself, and goes on where it was when it is started again.
    Ends,
    /// It ends, or goes on where nothing was lost by it.
    EndsOrGoesOn,
    /// It gives up its data, all of it or what it can spare, or was about to throw away what could not be read.
    RebuiltOrGoesOn,
}

const fn running(fault: Fault, place: Place, then: Then) -> Case {
    Case { fault, place, lasting: false, at_start: false, then }
}

const fn starting(fault: Fault, place: Place, then: Then) -> Case {
    Case { at_start: true, ..running(fault, place, then) }
}

const fn lasting(fault: Fault, place: Place, then: Then) -> Case {
    Case { lasting: true, ..running(fault, place, then) }
}

const CASES: [Case; 16] = [
    running(Fault::SyncFails, Place::Log, Then::Ends),
    running(Fault::SyncFails, Place::State, Then::EndsOrGoesOn),
    running(Fault::WriteFails, Place::Log, Then::Ends),
    running(Fault::WriteFails, Place::State, Then::EndsOrGoesOn),
    lasting(Fault::ShortWrite, Place::Log, Then::GoesOn),
    lasting(Fault::ShortWrite, Place::State, Then::GoesOn),
    running(Fault::NoSpace, Place::Log, Then::GoesOn),
    running(Fault::NoSpace, Place::State, Then::GoesOn),
    lasting(Fault::NoSpace, Place::Any, Then::GoesOn),
    running(Fault::ReadFails, Place::Log, Then::RebuiltOrGoesOn),
    running(Fault::ReadFails, Place::State, Then::RebuiltOrGoesOn),
    starting(Fault::SyncFails, Place::Any, Then::EndsOrGoesOn),
    starting(Fault::WriteFails, Place::Any, Then::EndsOrGoesOn),
    starting(Fault::NoSpace, Place::Any, Then::EndsOrGoesOn),
    starting(Fault::ReadFails, Place::Log, Then::RebuiltOrGoesOn),
    starting(Fault::ReadFails, Place::State, Then::RebuiltOrGoesOn),
];

/// `CENTRA_RUNS` rounds take every case at the first call, then every case at the second, and so on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_call_of_one_node_is_borne_by_the_others() {
    if is_etcd() {
        return skipped("a_failing_call", "an etcd does not repair itself");
    }
    let (seed, every) = (seed(), runs(usize::MAX));
    let mut rng = Rng::new(seed);
    let drawn = every == usize::MAX;
    let mut cluster = Cluster::new(3, Options::brisk());
    let disks = match FailingDisk::under(&mut cluster) {
        Ok(disks) => disks,
        Err(why) => return skipped("a_failing_call", &why),
    };
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    fill(&cluster.client(0)).await;
    let (mut acknowledged, mut told) = (Acknowledged::default(), Vec::new());
    let first = rng.below(CASES.len() as u64) as usize;
    for round in 0..if drawn { ROUNDS } else { every } {
        // Steps that meet every case in turn.
        let case = CASES[if drawn { first + 7 * round } else { round } % CASES.len()];
        let call = if drawn { rng.between(1, DRAWN_CALLS + 1) } else { (round / CASES.len()) as u64 + 1 };
        let leader = cluster.leader().await;
        let victim = if rng.percent(40) { leader } else { (leader + rng.between(1, 3) as usize) % 3 };
        let writers = Writers::start(&cluster.endpoints(), 1, &format!("round-{round}"));
        let what = format!(
            "{:?} in {:?} at call {call}{}",
            case.fault,
            case.place,
            if case.at_start { ", starting" } else { "" }
        );
        let outcome = strike(&mut cluster, &disks[victim], victim, case, call, ENDS_WITHIN).await;
        let outcome = outcome.unwrap_or_else(|why| panic!("{what}: {why} (seed {seed}, round {round})"));
        acknowledged.extend(writers.finish().await);
        for index in 0..3 {
            assert_holds(&cluster.client(index), &acknowledged).await;
            assert_eq!(right_answers(&cluster.client(index), false).await, Ok(KEYS), "node {index}: {what}");
        }
        cluster.assert_equal_hashes().await;
        forget_rebuilds(&cluster, victim);
        told.push(format!("{what} ({}): {outcome}", disks[victim].struck()));
    }
    cluster.kill_all();
    FailingDisk::away_from(&mut cluster);
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    for index in 0..3 {
        assert_holds(&cluster.client(index), &acknowledged).await;
    }
    cluster.assert_equal_hashes().await;
    let met = told.iter().filter(|line| !line.ends_with(NEVER)).count();
    figure(format_args!(
        "failing calls: {} rounds, {met} met their call, {} acknowledged, 0 lost (seed {seed}): {}",
        told.len(),
        acknowledged.len(),
        told.join("; ")
    ));
    done(met);
    assert!(met * 2 > told.len(), "most calls are made");
}

const NEVER: &str = "was not made";
const STOPS: &str = "The node cannot go on and stops";

/// Lets the call of one node fail and waits until the node is whole again; says what became of it.
async fn strike(
    cluster: &mut Cluster,
    disk: &FailingDisk,
    victim: usize,
    case: Case,
    call: u64,
    ends_within: Duration,
) -> Result<&'static str, String> {
    let old_peer = peer_of(cluster, (victim + 1) % 3, victim).await;
    let readers = Readers::start(&cluster.endpoint(victim));
    if case.at_start {
        cluster.kill(victim);
    }
    let said_before = cluster.log(victim).matches(STOPS).count();
    disk.arm(case.fault, case.place, call, case.lasting);
    if case.at_start {
        cluster.spawn(victim);
    }
    let armed = Instant::now();
    while disk.failed() == 0 && armed.elapsed() < STRUCK_WITHIN && !cluster.has_ended(victim) {
        let client = cluster.client_within(victim, Duration::from_secs(1));
        // What fails is seen below.
        if case.place != Place::Log && !case.at_start {
            let _ = client.within(client.maintenance().defragment(pb::DefragmentRequest {})).await;
        }
        if case.fault == Fault::ReadFails && !case.at_start {
            let _ = client.within(client.admin().scrub(ScrubRequest { start: true })).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let struck = disk.failed() > 0;
    let at = Instant::now();
    let ended = if struck && case.then == Then::Ends {
        while !cluster.has_ended(victim) {
            if at.elapsed() > ends_within {
                return Err("the node goes on".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    } else {
        let settled = if case.lasting { FULL_FOR } else { Duration::from_secs(1) };
        // Who says that it stops may take its time about it.
        let stops = |cluster: &Cluster| said_before < cluster.log(victim).matches(STOPS).count();
        while (at.elapsed() < settled || stops(cluster)) && !cluster.has_ended(victim) {
            if at.elapsed() > ends_within {
                return Err("the node says that it stops, and does not".to_owned());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        cluster.has_ended(victim)
    };
    disk.disarm();
    if ended {
        let allowed = matches!(case.then, Then::Ends | Then::EndsOrGoesOn) || case.at_start;
        if !allowed {
            return Err("the node ended".to_owned());
        }
        cluster.kill(victim);
        cluster.spawn(victim);
    }
    cluster.wait_until_serving(victim).await;
    while readers.answers() == 0 {
        if at.elapsed() > PATIENCE {
            return Err("nothing is read from it".to_owned());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    readers.finish().await;
    // One that is being rebuilt serves before it is who it will be. Who is asked about that is node 0.
    cluster.wait_until_serving(0).await;
    wait_for_voters(cluster, 3).await;
    let rebuilt = peer_of(cluster, 0, victim).await != old_peer;
    if rebuilt && case.then != Then::RebuiltOrGoesOn {
        return Err("the node gave its data up".to_owned());
    }
    Ok(match (struck, ended, rebuilt) {
        (false, ..) => NEVER,
        (_, _, true) => "rebuilt",
        (_, true, _) => "ended, and came back",
        _ => "went on",
    })
}

/// The check has teeth: a node that goes on where it must end, one that only says that it stops, one that gives its data up and
/// one that ends where it must go on do not pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_struck_node_must_not_do_is_seen() {
    if is_etcd() {
        return skipped("what_a_struck_node_must_not_do", "an etcd does not repair itself");
    }
    let mut cluster = Cluster::new(3, Options::brisk());
    let disks = match FailingDisk::under(&mut cluster) {
        Ok(disks) => disks,
        Err(why) => return skipped("what_a_struck_node_must_not_do", &why),
    };
    (0..3).for_each(|index| cluster.spawn(index));
    cluster.wait_until_all_serve().await;
    fill(&cluster.client(0)).await;
    let writers = Writers::start(&cluster.endpoints(), 1, "struck");
    let short = Duration::from_millis(1500);
    let goes_on = running(Fault::NoSpace, Place::Log, Then::GoesOn);
    let seen = |why: &str| Err(why.to_owned());

    let must_end = Case { then: Then::Ends, ..goes_on };
    let outcome = strike(&mut cluster, &disks[0], 0, must_end, 1, short).await;
    assert_eq!(outcome, seen("the node goes on"));

    let log = cluster.nodes[1].log.clone();
    let says_so = async {
        let begun = Instant::now();
        while disks[1].failed() == 0 && begun.elapsed() < STRUCK_WITHIN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        writeln!(File::options().append(true).open(log).unwrap(), "{STOPS}").unwrap();
    };
    let (outcome, ()) = tokio::join!(strike(&mut cluster, &disks[1], 1, goes_on, 1, short), says_so);
    assert_eq!(outcome, seen("the node says that it stops, and does not"));

    // What it had is gone, and it is struck by what costs nobody anything.
    cluster.kill(0);
    wipe(&cluster, 0);
    let harmless = starting(Fault::ShortWrite, Place::Any, Then::GoesOn);
    let outcome = strike(&mut cluster, &disks[0], 0, harmless, 1, ENDS_WITHIN).await;
    assert_eq!(outcome, seen("the node gave its data up"));

    let must_go_on = running(Fault::WriteFails, Place::Log, Then::GoesOn);
    let outcome = strike(&mut cluster, &disks[1], 1, must_go_on, 1, ENDS_WITHIN).await;
    assert_eq!(outcome, seen("the node ended"));
    writers.finish().await;
}
