//! A network that loses every tenth packet between the nodes: whoever leads stays or is replaced, and writes go on. The test
//! has a network of its own, which takes root.

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, GOSSIP_PORT, Options, PATIENCE, PEER_PORT};
use crate::durability::{Writers, assert_holds, longest_gap};
use crate::tell::{done, figure, runs, skipped};

const LOSS_PERCENT: u32 = 10;
const LOSSY_FOR: Duration = Duration::from_secs(15);
/// What is promised.
const GAP_MAX: Duration = Duration::from_secs(10);

#[test]
fn every_tenth_packet_lost_costs_no_more_than_an_election() {
    // What this thread enters, its children and its runtime's threads are in, and nobody else.
    let all = std::thread::spawn(|| {
        if let Err(why) = enter_own_network() {
            return skipped("packet loss", &format!("no network of its own: {why}"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(writes_go_on());
    });
    all.join().unwrap();
}

async fn writes_go_on() {
    let mut cluster = Cluster::start_with(3, Options::default()).await;
    let (mut steady, mut killed, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..runs(1) {
        let writers = Writers::start(&cluster.endpoints(), 2, &format!("lossy-{round}"));
        lose(LOSS_PERCENT);
        let began = Instant::now();
        tokio::time::sleep(LOSSY_FOR).await;
        steady.push(longest_gap(&writers.moments(), began));
        let mut acknowledged = writers.finish().await;

        let leader = cluster.leader().await;
        let others: Vec<String> =
            (0..3).filter(|index| *index != leader).map(|index| cluster.endpoint(index)).collect();
        let writers = Writers::start(&others, 2, &format!("killed-{round}"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let moment = Instant::now();
        cluster.kill(leader);
        while writers.moments().last().is_none_or(|last| *last < moment + Duration::from_secs(2)) {
            assert!(moment.elapsed() < PATIENCE, "nobody leads any more");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        killed.push(longest_gap(&writers.moments(), moment));
        acknowledged.extend(writers.finish().await);
        lost.push(packets_lost());
        lose(0);
        cluster.spawn(leader);
        cluster.wait_until_all_serve().await;
        for index in 0..3 {
            assert_holds(&cluster.client(index), &acknowledged).await;
        }
    }
    cluster.assert_equal_hashes().await;
    figure(format_args!(
        "{LOSS_PERCENT} % of the packets between nodes lost, {lost:?} of them: longest pause of writes in {LOSSY_FOR:?} \
         {steady:?}, around a SIGKILL of the leader {killed:?}"
    ));
    done(killed.len());
    assert!(lost.iter().all(|packets| *packets > 0), "the network loses nothing: {lost:?}");
    assert!(steady.iter().chain(&killed).all(|gap| *gap <= GAP_MAX), "{steady:?}, {killed:?}");
}

fn enter_own_network() -> io::Result<()> {
    // SAFETY: takes a number, and concerns this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
    if up.success() { nft("add table inet lossy") } else { Err(io::Error::other("ip link set lo up")) }
}

/// Between nodes only: what clients see is then the cluster's own doing.
fn lose(percent: u32) {
    let ports = format!("{{ {PEER_PORT}, {GOSSIP_PORT} }}");
    let rules = format!(
        "delete table inet lossy
add table inet lossy
add chain inet lossy in {{ type filter hook input priority 0; }}
add rule inet lossy in tcp dport {ports} numgen random mod 100 < {percent} counter drop
add rule inet lossy in tcp sport {ports} numgen random mod 100 < {percent} counter drop"
    );
    let none = "delete table inet lossy\nadd table inet lossy";
    nft(if percent == 0 { none } else { &rules }).unwrap();
}

/// By the kernel's count, since losses began.
fn packets_lost() -> u64 {
    let listed = Command::new("nft").args(["list", "table", "inet", "lossy"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let counted = listed.split("counter packets ").skip(1).map(|rest| rest.split(' ').next().unwrap_or_default());
    counted.map(|packets| packets.parse::<u64>().unwrap()).sum()
}

fn nft(rules: &str) -> io::Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().expect("it is piped").write_all(rules.as_bytes())?;
    if nft.wait()?.success() { Ok(()) } else { Err(io::Error::other("nft takes no rules here")) }
}
