//! `bench memory`: what a million keys cost in memory, and how long it takes to count them.
//!
//! One node, filled with transactions. Memory is the server's resident memory some seconds after filling, and again
//! after a restart and one read of every key, so that neither a write buffer nor lazy loading decides.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use base::Rng;
use prost::Message;
use proto::etcdserverpb::RangeRequest;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Cluster, Kind, System},
    load::{self, Plan},
    procfs, progress,
    results::OfKind,
    wire::{Connection, Endpoint},
    workload::{KeySpace, RANGE, Workload},
};

const SETTLE: Duration = Duration::from_secs(5);
const KEYS_PER_READ: u64 = 1000;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[arg(long, default_value_t = 1_000_000)]
    pub keys: u64,
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    pub system: Kind,
    pub version: String,
    pub keys: u64,
    pub value_bytes: usize,
    pub fill_seconds: f64,
    pub filled_mib: f64,
    /// After a restart and a read of every key.
    pub read_mib: f64,
    pub count_p50_ms: f64,
    pub count_p99_ms: f64,
}

impl OfKind for Memory {
    fn kind(&self) -> Kind {
        self.system
    }
}

pub async fn run(options: &Options, systems: &[System], folder: &Path) -> Result<Vec<Memory>> {
    let mut found = Vec::new();
    for system in systems {
        found.push(one(options, system, folder).await.context(system.kind.name())?);
    }
    Ok(found)
}

async fn one(options: &Options, system: &System, folder: &Path) -> Result<Memory> {
    let space = KeySpace::new(options.keys, options.value_bytes);
    let mut cluster = Cluster::start(system, 1, folder).await?;
    let endpoint = &cluster.endpoints()[0];
    let bar = progress::keys(options.keys, &format!("filling {}", system.kind.name()));
    load::fill(endpoint, &space, |keys| bar.inc(keys)).await?;
    let fill_seconds = bar.elapsed().as_secs_f64();
    bar.finish_and_clear();
    tokio::time::sleep(SETTLE).await;
    let filled_mib = resident_mib(&cluster)?;

    cluster.stop().await?;
    cluster.start_again().await?;
    let bar = progress::keys(options.keys, &format!("reading {}", system.kind.name()));
    read_all(endpoint, &space, |keys| bar.inc(keys)).await?;
    bar.finish_and_clear();
    let read_mib = resident_mib(&cluster)?;

    let plan = Plan {
        endpoints: std::slice::from_ref(endpoint),
        servers: &cluster.process_ids(),
        clients: 1,
        warm_up: Duration::from_secs(1),
        measured: Duration::from_secs(5),
        seed: 1,
    };
    let count = load::run(&plan, &space, Workload::Count).await?;
    cluster.stop().await?;
    Ok(Memory {
        system: system.kind,
        version: system.version.clone(),
        keys: options.keys,
        value_bytes: options.value_bytes,
        fill_seconds,
        filled_mib,
        read_mib,
        count_p50_ms: count.p50_ms,
        count_p99_ms: count.p99_ms,
    })
}

async fn read_all(endpoint: &Endpoint, space: &KeySpace, mut on_keys: impl FnMut(u64)) -> Result<()> {
    let mut connection = Connection::open(endpoint).await?;
    for first in (0..space.keys).step_by(KEYS_PER_READ as usize) {
        let last = (first + KEYS_PER_READ).min(space.keys);
        let range = RangeRequest { key: space.key(first), range_end: space.key(last), ..Default::default() };
        let answer = connection.ask(RANGE, &range.encode_to_vec(), Duration::from_secs(30)).await?;
        Workload::Range(last - first).check(space, &answer)?;
        on_keys(last - first);
    }
    // One at random, as the workloads do, so that this path is warm too.
    let mut request = Vec::new();
    Workload::Get { serializable: false }.request(space, &mut Rng::new(1), &mut request);
    connection.ask(RANGE, &request, Duration::from_secs(30)).await?;
    Ok(())
}

fn resident_mib(cluster: &Cluster) -> Result<f64> {
    let bytes: u64 = cluster.process_ids().into_iter().map(procfs::resident_bytes).sum::<Result<u64>>()?;
    Ok(bytes as f64 / f64::from(1 << 20))
}
