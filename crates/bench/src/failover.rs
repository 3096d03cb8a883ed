//! `bench failover`: how long writes pause when the leader is killed.
//!
//! Three nodes with the same election time-out for both systems. A steady writer sends puts to the nodes that will
//! live; the leader gets SIGKILL; the pause runs from the kill to the acknowledgement of the first put that was sent
//! after it. The dead node comes back, catches up, and the next repetition kills whoever leads then.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use crate::{
    cluster::{Cluster, ELECTION_TIMEOUT_MS, Kind, System},
    progress,
    results::OfKind,
    secure::TlsOptions,
    writer::{self, Writer},
};

const NODES: usize = 3;
const EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);
const NUMBERS_PER_REPETITION: u32 = 100_000;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Leaders to kill per system
    #[arg(long, default_value_t = 50)]
    pub repetitions: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failover {
    pub system: Kind,
    pub version: String,
    pub election_timeout_ms: u32,
    /// One per repetition.
    pub pauses_ms: Vec<f64>,
    pub acknowledged: usize,
    pub lost: usize,
}

impl OfKind for Failover {
    fn kind(&self) -> Kind {
        self.system
    }
}

impl Failover {
    /// The smallest pause that a share of all pauses does not exceed.
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let mut sorted = self.pauses_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

pub async fn run(options: &Options, systems: &[System], folder: &Path) -> Result<Vec<Failover>> {
    let bar = progress::steps((options.repetitions * systems.len()) as u64);
    let mut found = Vec::new();
    for system in systems {
        let mut cluster = Cluster::start(system, NODES, folder).await?;
        let mut outcome = Failover {
            system: system.kind,
            version: system.version.clone(),
            election_timeout_ms: ELECTION_TIMEOUT_MS,
            pauses_ms: Vec::new(),
            acknowledged: 0,
            lost: 0,
        };
        for _ in 0..options.repetitions {
            let last = outcome.pauses_ms.last().map(|pause| format!(" · last pause {pause:.0} ms")).unwrap_or_default();
            bar.set_message(format!("{}{last}", system.kind.name()));
            LocalSet::new().run_until(one(&mut cluster, &mut outcome)).await.context(system.kind.name())?;
            bar.inc(1);
        }
        cluster.stop().await?;
        found.push(outcome);
    }
    bar.finish_and_clear();
    Ok(found)
}

async fn one(cluster: &mut Cluster, outcome: &mut Failover) -> Result<()> {
    let leader = cluster.leader().await?;
    let mut survivors = cluster.endpoints();
    survivors.remove(leader);
    // Numbers of their own: what an earlier repetition wrote must not pass for what this one lost.
    let first = outcome.pauses_ms.len() as u32 * NUMBERS_PER_REPETITION;
    let writer = Writer::start(&survivors, EVERY, first);
    settle(&writer).await?;
    // Kills fall at any phase of the heartbeat.
    tokio::time::sleep(Duration::from_millis(37 * (outcome.pauses_ms.len() as u64 % 13))).await;
    let killed = Instant::now();
    cluster.kill(leader)?;
    let again = first_after(&writer, killed).await?;
    outcome.pauses_ms.push((again - killed).as_secs_f64() * 1e3);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let acknowledged = writer.stop().await;
    outcome.acknowledged += acknowledged.len();
    outcome.lost += writer::missing(&survivors[0], &acknowledged).await?;
    cluster.revive(leader).await
}

/// Waits until every endpoint of the writer has its puts answered.
async fn settle(writer: &Writer) -> Result<()> {
    let begun = Instant::now();
    let enough = writer.acknowledged() + 100;
    while writer.acknowledged() < enough {
        ensure!(begun.elapsed() < PATIENCE, "writes are not acknowledged");
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}

async fn first_after(writer: &Writer, moment: Instant) -> Result<Instant> {
    loop {
        if let Some(found) = writer.first_after(moment) {
            return Ok(found);
        }
        ensure!(moment.elapsed() < PATIENCE, "no write was acknowledged within {PATIENCE:?} after the leader's death");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[derive(Clone, Debug, clap::Args)]
pub struct KillOptions {
    /// The nodes that will live
    #[arg(long, value_delimiter = ',', required = true)]
    pub endpoints: Vec<SocketAddr>,
    #[command(flatten)]
    pub tls: TlsOptions,
    /// The process to kill
    #[arg(long)]
    pub pid: u32,
    /// Seconds of writing before and after the kill
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
}

/// The demo's part: writes, kills, and says what became of the writes. Fails when an acknowledged one is gone.
pub async fn kill_leader(options: &KillOptions) -> Result<()> {
    LocalSet::new()
        .run_until(async {
            let endpoints =
                options.endpoints.iter().map(|address| options.tls.endpoint(*address)).collect::<Result<Vec<_>>>()?;
            let writer = Writer::start(&endpoints, EVERY, 0);
            settle(&writer).await?;
            tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
            let before = writer.acknowledged();
            println!("{before} writes acknowledged; SIGKILL to the leader (process {})", options.pid);
            // SAFETY: takes numbers.
            let sent = unsafe { libc::kill(options.pid as libc::pid_t, libc::SIGKILL) };
            ensure!(sent == 0, "process {} cannot be killed", options.pid);
            let killed = Instant::now();
            let again = first_after(&writer, killed).await?;
            println!("writes paused for {} ms", (again - killed).as_millis());
            tokio::time::sleep(Duration::from_secs_f64(options.seconds)).await;
            let acknowledged = writer.stop().await;
            let lost = writer::missing(&endpoints[0], &acknowledged).await?;
            ensure!(lost == 0, "{lost} of {} acknowledged writes are gone", acknowledged.len());
            println!("read back: all {} acknowledged writes are there, nothing is lost", acknowledged.len());
            Ok(())
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_pauses() {
        let failover = Failover {
            system: Kind::Etcd,
            version: String::new(),
            election_timeout_ms: 1000,
            pauses_ms: vec![5.0, 1.0, 4.0, 2.0, 3.0],
            acknowledged: 0,
            lost: 0,
        };
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| failover.quantile_ms(share)), [1.0, 3.0, 5.0, 5.0]);
    }
}
