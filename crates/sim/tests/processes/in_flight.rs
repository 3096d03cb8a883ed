//! A network that damages what it carries: a snapshot on its way between two members in which a bit is flipped, or which is cut
//! off, is refused and sent again, and the receiver is whole in the end. One that has come whole lies on the receiver's disk until
//! it is put in place: a start deletes it unless it was decided for, and one that was is the state from then on, which `healing`
//! damages there.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base::Rng;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::catch_up::{ENTRIES_KEPT, KEYS, UNTIL_LET_GO, applied_snapshots, until_snapshot_applied, write_much};
use crate::cluster::{Cluster, Options, PEER_PORT, is_etcd};
use crate::tell::{done, figure, runs, seed, skipped};

/// Nothing else on a connection to a node that was just started is so large; a snapshot is larger.
const SPOILT_FROM_BYTES: u64 = 1 << 20;
const SPOILT_UP_TO_BYTES: u64 = 20 << 20;
/// Of one snapshot.
const SPOILT_IN_A_ROW: usize = 3;
/// The last of three nodes.
const BEHIND: usize = 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_damaged_in_flight_is_refused_and_sent_again() {
    if is_etcd() {
        return skipped("a_snapshot_damaged_in_flight", "an etcd does not say when it is filled");
    }
    let (seed, planned) = (seed(), runs(4));
    let (mut cluster, wire) = wired(seed, false).await;
    let (mut spoilt, mut installs) = (0, 0);
    while spoilt < planned {
        fall_behind(&mut cluster).await;
        let now = SPOILT_IN_A_ROW.min(planned - spoilt);
        let outcome = filled(&mut cluster, &wire, now).await;
        outcome.unwrap_or_else(|why| panic!("{why} (seed {seed})"));
        spoilt += now;
        installs += 1;
    }
    let (flipped, cut) = (wire.spoil.flipped.load(Ordering::Relaxed), wire.spoil.cut.load(Ordering::Relaxed));
    assert_eq!(flipped + cut, spoilt);
    figure(format_args!(
        "snapshots in flight: {flipped} with a flipped bit and {cut} cut off, all refused and sent again; {installs} installed, \
         equal hashes each time (seed {seed})"
    ));
    done(spoilt);
}

/// The check has teeth: a receiver that takes what was spoilt does not pass, nor one that was sent no snapshot. A wire that only
/// says that it spoils makes any receiver one that takes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoilt_snapshot_that_is_taken_is_seen() {
    if is_etcd() {
        return skipped("a_spoilt_snapshot_that_is_taken", "an etcd does not say when it is filled");
    }
    let (mut cluster, wire) = wired(seed(), true).await;
    fall_behind(&mut cluster).await;
    assert_eq!(filled(&mut cluster, &wire, 1).await, Err(TAKEN.to_owned()));
    // It has missed nothing.
    cluster.kill(BEHIND);
    assert_eq!(filled(&mut cluster, &wire, 1).await, Err(ANOTHER_WAY.to_owned()));
}

const TAKEN: &str = "what was spoilt was taken";
const ANOTHER_WAY: &str = "it was filled by entries, or by a snapshot that came another way";

/// A cluster of three, and the wire over which the others reach one of them.
async fn wired(seed: u64, only_counts: bool) -> (Cluster, Wire) {
    let mut cluster = Cluster::new(3, Options::default().flag("snapshot-count", ENTRIES_KEPT));
    let real = cluster.nodes[BEHIND].address;
    let [a, b, c, d] = real.octets();
    let shown = Ipv4Addr::new(a, b, c, d + 100);
    let wire = Wire::lay((shown, PEER_PORT).into(), (real, PEER_PORT).into(), seed, only_counts).await;
    let (own, url) = (cluster.peer_url(BEHIND), wire.url());
    cluster.nodes.iter_mut().for_each(|node| node.initial_cluster = node.initial_cluster.replace(&own, &url));
    (0..BEHIND).for_each(|index| cluster.spawn(index));
    start(&mut cluster, &wire);
    cluster.wait_until_all_serve().await;
    (cluster, wire)
}

fn start(cluster: &mut Cluster, wire: &Wire) {
    let mut command = cluster.command(BEHIND);
    command.arg(format!("--initial-advertise-peer-urls={}", wire.url()));
    cluster.spawn_as(BEHIND, command);
}

/// The node is down for so long that only a snapshot brings it back.
async fn fall_behind(cluster: &mut Cluster) {
    cluster.kill(BEHIND);
    write_much(&cluster.client(0)).await;
    tokio::time::sleep(UNTIL_LET_GO).await;
}

/// Starts the node; so many snapshots are spoilt on their way to it, each of them is refused, and the one after them is put in
/// place. The error says what was otherwise.
async fn filled(cluster: &mut Cluster, wire: &Wire, spoilt: usize) -> Result<(), String> {
    let (applied, refused) = (applied_snapshots(cluster, BEHIND), not_sent(cluster));
    wire.plan(spoilt);
    start(cluster, wire);
    cluster.wait_until_serving(BEHIND).await;
    if wire.planned() > 0 {
        return Err(ANOTHER_WAY.to_owned());
    }
    if not_sent(cluster) < refused + spoilt {
        return Err(TAKEN.to_owned());
    }
    until_snapshot_applied(cluster, BEHIND, applied).await;
    cluster.assert_equal_hashes().await;
    assert_eq!(cluster.client(BEHIND).prefix("key-").await.unwrap().kvs.len(), KEYS);
    Ok(())
}

fn not_sent(cluster: &Cluster) -> usize {
    (0..BEHIND).map(|index| cluster.log(index).matches("Snapshot not sent").count()).sum()
}

/// Carries connections from one address to another, and what it is told to spoil it spoils.
struct Wire {
    from: SocketAddr,
    spoil: Arc<Spoil>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Spoil {
    /// Nothing is spoilt that counts as spoilt.
    only_counts: bool,
    rng: Mutex<Rng>,
    planned: AtomicUsize,
    flipped: AtomicUsize,
    cut: AtomicUsize,
}

impl Wire {
    async fn lay(from: SocketAddr, to: SocketAddr, seed: u64, only_counts: bool) -> Wire {
        let listener = TcpListener::bind(from).await.unwrap();
        let [planned, flipped, cut] = [const { AtomicUsize::new(0) }; 3];
        let spoil = Arc::new(Spoil { only_counts, rng: Mutex::new(Rng::new(seed)), planned, flipped, cut });
        let shared = spoil.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                // A node that is down refuses by itself.
                let Ok(node) = TcpStream::connect(to).await else { continue };
                let _ = (caller.set_nodelay(true), node.set_nodelay(true));
                let (from_caller, to_caller) = caller.into_split();
                let (from_node, to_node) = node.into_split();
                tokio::spawn(carry(from_caller, to_node, Some(shared.clone())));
                tokio::spawn(carry(from_node, to_caller, None));
            }
        });
        Wire { from, spoil, accepting }
    }

    /// What the others know the node by.
    fn url(&self) -> String {
        format!("http://{}", self.from)
    }

    /// So many connections to come are spoilt, each once.
    fn plan(&self, connections: usize) {
        self.spoil.planned.store(connections, Ordering::Relaxed);
    }

    fn planned(&self) -> usize {
        self.spoil.planned.load(Ordering::Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Spoil {
    /// Whether there is anything left to spoil; counts it.
    fn take(&self) -> bool {
        self.planned.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// One direction of a connection. It ends when either side does.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, spoil: Option<Arc<Spoil>>) {
    let drawn = spoil.as_ref().map(|spoil| {
        let rng = &mut *spoil.rng.lock();
        let (place, bit, cuts) = (rng.between(SPOILT_FROM_BYTES, SPOILT_UP_TO_BYTES), rng.below(8), rng.percent(30));
        if spoil.only_counts { (place, 0, false) } else { (place, 1u8 << bit, cuts) }
    });
    let mut bytes = vec![0; 64 << 10];
    let mut carried = 0;
    loop {
        let Ok(read @ 1..) = from.read(&mut bytes).await else { return };
        let end = carried + read as u64;
        if let (Some(spoil), Some((place, flips, cuts))) = (&spoil, drawn)
            && (carried..end).contains(&place)
            && spoil.take()
        {
            if cuts {
                spoil.cut.fetch_add(1, Ordering::Relaxed);
                return;
            }
            spoil.flipped.fetch_add(1, Ordering::Relaxed);
            bytes[(place - carried) as usize] ^= flips;
        }
        if to.write_all(&bytes[..read]).await.is_err() {
            return;
        }
        carried = end;
    }
}
