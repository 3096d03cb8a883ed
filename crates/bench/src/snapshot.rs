//! `bench snapshot`: what a backup of a large store does to those who write meanwhile, and to memory.
//!
//! A cluster is filled with values that do not compress. A writer that does not wait ([`crate::writer`]) puts at a steady
//! pace, while `chainfire-client snapshot save` makes an archive from one of the nodes, with the priority that the timer's
//! unit gives it. The client is stopped and continued in turn ([`WINDOW`]): disks, compactions and neighbours on the machine
//! change from minute to minute, and so the writer is measured with the save and without it at the same time. The figures
//! are the 50th and the 99th percentile of its puts in both kinds of windows, their ratio, and the largest resident memory
//! of client and servers. So a save takes twice as long here as it would by itself.
//!
//! What is saved is about twice the values: a store that was never compacted holds each of them as a key's value and in its
//! history.
//!
//! It concerns Chainfire alone, prints what it found, and keeps nothing.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::task::LocalSet;

use crate::{
    cluster::{Cluster, System},
    histogram::Histogram,
    load, procfs, progress,
    workload::KeySpace,
    writer::{Writer, within},
};

const SETTLE: Duration = Duration::from_secs(5);
/// How long the save goes on, and how long it stands still.
const WINDOW: Duration = Duration::from_secs(4);
/// After the client was stopped: what the server had begun for it comes to an end.
const DRAIN: Duration = Duration::from_millis(300);
const SAMPLE_EVERY: Duration = Duration::from_millis(50);
/// What `Nice=` in chainfire-backup.service says.
const NICE: libc::c_int = 10;
const MIB: f64 = (1 << 20) as f64;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// What is to be saved, in GiB: half as much in values is filled in
    #[arg(long, default_value_t = 5.0)]
    pub gib: f64,
    #[arg(long, default_value_t = 1024)]
    pub value_bytes: usize,
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// Save from the leader instead of a follower
    #[arg(long)]
    pub from_leader: bool,
    /// Puts in a second, all nodes together
    #[arg(long, default_value_t = 500)]
    pub rate: u64,
    /// How long the writer is alone before the save, for the server's memory
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// The client; by default the one beside this program
    #[arg(long)]
    pub client: Option<PathBuf>,
    /// What `--max-rate` of the client is; its default otherwise
    #[arg(long)]
    pub max_rate: Option<u32>,
    /// Save a bare stream instead of an archive
    #[arg(long)]
    pub bare: bool,
}

pub async fn run(options: &Options, system: &System, folder: &Path) -> Result<()> {
    ensure!(options.rate > 0 && options.nodes > 0, "a rate and nodes are needed");
    let client = match &options.client {
        Some(client) => client.clone(),
        None => std::env::current_exe()?.with_file_name("chainfire-client"),
    };
    let keys = (options.gib * f64::from(1 << 30) / (2 * options.value_bytes) as f64) as u64;
    let space = KeySpace::new(keys, options.value_bytes);
    let cluster = Cluster::start(system, options.nodes, folder).await?;
    let leader = cluster.leader().await?;
    let bar = progress::keys(keys, "filling");
    load::fill(&cluster.endpoints()[leader], &space, |keys| bar.inc(keys)).await?;
    bar.finish_and_clear();
    tokio::time::sleep(SETTLE).await;
    let from = if options.from_leader || options.nodes == 1 { leader } else { (leader + 1) % options.nodes };
    let target =
        folder.join(format!("bench-snapshot-{}.{}", std::process::id(), if options.bare { "db" } else { "tar.gz" }));
    let measured = LocalSet::new().run_until(measure(options, &cluster, from, &client, &target)).await;
    let bytes = std::fs::metadata(&target).map(|found| found.len()).unwrap_or_default();
    // Gone already if nothing was saved.
    std::fs::remove_file(&target).ok();
    report(options, keys, bytes, from == leader, &measured?);
    Ok(())
}

struct Measured {
    alone: Histogram,
    during: Histogram,
    took: Duration,
    /// How long the client was stopped, to measure without it.
    stood: Duration,
    client_mib: f64,
    /// Of the node that was saved from, alone and while it was.
    server_mib: (f64, f64),
}

async fn measure(options: &Options, cluster: &Cluster, from: usize, client: &Path, target: &Path) -> Result<Measured> {
    let endpoints = cluster.endpoints();
    let every = Duration::from_secs_f64(endpoints.len() as f64 / options.rate as f64);
    let writer = Writer::start(&endpoints, every, 0);
    let server = cluster.process_ids()[from];
    let alone = Duration::from_secs_f64(options.seconds);
    tokio::time::sleep(SETTLE).await;
    let before = Instant::now();
    let mut server_alone = 0;
    while before.elapsed() < alone {
        server_alone = server_alone.max(procfs::resident_bytes(server)?);
        tokio::time::sleep(SAMPLE_EVERY).await;
    }
    let mut child = spawn(options, client, &endpoints[from].address.to_string(), target)?;
    let (mut client_bytes, mut server_bytes) = (0, 0);
    let (mut saving, mut standing) = (vec![(Instant::now(), None)], Vec::new());
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // It may be gone by now.
        client_bytes = client_bytes.max(procfs::resident_bytes(child.id()).unwrap_or_default());
        server_bytes = server_bytes.max(procfs::resident_bytes(server)?);
        tokio::time::sleep(SAMPLE_EVERY).await;
        let (since, until) = saving.last_mut().expect("it began");
        if since.elapsed() >= WINDOW {
            *until = Some(Instant::now());
            signal(&child, libc::SIGSTOP);
            tokio::time::sleep(DRAIN).await;
            let from = Instant::now();
            tokio::time::sleep(WINDOW).await;
            standing.push((from, Instant::now()));
            signal(&child, libc::SIGCONT);
            saving.push((Instant::now(), None));
        }
    };
    let ended = Instant::now();
    if !status.success() {
        bail!("chainfire-client snapshot save: {status}");
    }
    tokio::time::sleep(SETTLE).await;
    let puts = writer.stop().await;
    let saving: Vec<_> = saving.into_iter().map(|(since, until)| (since, until.unwrap_or(ended))).collect();
    ensure!(!standing.is_empty(), "the save took less than {WINDOW:?}: fill in more");
    Ok(Measured {
        alone: within(&puts, &standing),
        during: within(&puts, &saving),
        took: saving.iter().map(|(since, until)| *until - *since).sum(),
        stood: standing.iter().map(|(since, until)| *until - *since).sum(),
        client_mib: client_bytes as f64 / MIB,
        server_mib: (server_alone as f64 / MIB, server_bytes as f64 / MIB),
    })
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: it is a child of ours that was not waited for: the number is nobody else's.
    unsafe { libc::kill(child.id() as libc::pid_t, signal) };
}

fn spawn(options: &Options, client: &Path, endpoint: &str, target: &Path) -> Result<Child> {
    let mut command = Command::new(client);
    command.args(["--endpoint", endpoint, "--timeout", "60s", "snapshot", "save"]).arg(target);
    command.args(options.max_rate.map(|rate| format!("--max-rate={rate}")));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    // SAFETY: setpriority is async-signal-safe and touches nothing of the parent's.
    unsafe {
        command.pre_exec(|| match libc::setpriority(libc::PRIO_PROCESS, 0, NICE) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    command.spawn().with_context(|| format!("{} cannot be run", client.display()))
}

fn report(options: &Options, keys: u64, bytes: u64, leader: bool, found: &Measured) {
    let ms = |histogram: &Histogram, share| histogram.quantile(share).as_secs_f64() * 1e3;
    let line = |what: &str, histogram: &Histogram| {
        let (p50, p99) = (ms(histogram, 0.5), ms(histogram, 0.99));
        println!("{what:<16} {:>8} puts   p50 {p50:>8.2} ms   p99 {p99:>8.2} ms", histogram.count());
    };
    println!(
        "snapshot of {:.1} GiB ({keys} keys of {} bytes) from {} of {} nodes, {} puts/s",
        options.gib,
        options.value_bytes,
        if leader { "the leader" } else { "a follower" },
        options.nodes,
        options.rate
    );
    line("writer alone", &found.alone);
    line("during the save", &found.during);
    let rate = bytes as f64 / MIB / found.took.as_secs_f64();
    println!(
        "saved            {:.0} MiB in {:.1} s, {rate:.0} MiB/s, and stood still in between, {:.1} s",
        bytes as f64 / MIB,
        found.took.as_secs_f64(),
        found.stood.as_secs_f64()
    );
    println!(
        "memory           client {:.0} MiB, server {:.0} MiB (alone {:.0} MiB)",
        found.client_mib, found.server_mib.1, found.server_mib.0
    );
    let ratio = ms(&found.during, 0.99) / ms(&found.alone, 0.99).max(f64::EPSILON);
    println!("put p99          {ratio:.2} times that of the writer alone (goal: at most 1.5)");
}
