//! `bench raw`: FlareDB's raw keys beside Chainfire's, on the same machine, asked by the same clients.
//!
//! Rounds alternate: three stores with a placement driver, then three Chainfire nodes; both are filled, read and written. Clients
//! are spread over all servers, which pass requests on to whoever leads, as they do for clients that know nothing of regions;
//! `at the leader` is what a client that knows them sees. Throughput on a shared machine depends on who else runs; the
//! processor time per operation is the steady figure, and what it makes of one core is what other systems' figures, which were taken
//! on other machines, can be held against.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, System};
use crate::compare::{KEYS, VALUE_BYTES, median};
use crate::load::{self, Figures, Plan};
use crate::progress;
use crate::stores::Stores;
use crate::wire::Endpoint;
use crate::workload::{KeySpace, Workload};

const SERVERS: u8 = 3;
const WARM_UP: Duration = Duration::from_secs(1);
/// What TiKV publishes of its raw keys: three nodes of 40 processors (E5-2630 v4), gets of workload C and updates of workload A
/// (as many gets beside them) of YCSB, 10 million records: <https://tikv.org/docs/6.5/deploy/performance/overview/>
const TIKV_PROCESSORS: f64 = 120.0;
const TIKV_GETS: f64 = 212_000.0;
const TIKV_UPDATES: f64 = 43_200.0;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds of each system; their medians are compared
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Measured seconds of each workload
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Clients at once
    #[arg(long, value_delimiter = ',', default_value = "64,1000")]
    pub clients: Vec<usize>,
}

/// What is asked of whom.
#[derive(Clone, Copy, PartialEq)]
struct Case {
    writes: bool,
    at_the_leader: bool,
    clients: usize,
}

pub async fn run(options: &Options, chainfire: &System, folder: &Path) -> Result<()> {
    let space = KeySpace::new(KEYS, VALUE_BYTES);
    let cases: Vec<Case> = [false, true]
        .into_iter()
        .flat_map(|writes| [true, false].map(|at_the_leader| (writes, at_the_leader)))
        .flat_map(|(writes, at_the_leader)| {
            options.clients.iter().map(move |&clients| Case { writes, at_the_leader, clients })
        })
        .collect();
    let bar = progress::steps((2 * options.rounds * cases.len()) as u64);
    // By case: FlareDB's and Chainfire's.
    let mut found: Vec<[Vec<Figures>; 2]> = vec![Default::default(); cases.len()];
    for round in 0..options.rounds {
        for turn in 0..2 {
            // Who begins changes, so that warming up favours nobody.
            let which = (round + turn) % 2;
            bar.set_message(format!("round {} · {}", round + 1, ["FlareDB", "Chainfire"][which]));
            let server = Server::start(which == 0, chainfire, folder, &space).await?;
            for (place, case) in cases.iter().enumerate() {
                let figures = server.measure(options, *case, &space, round as u64).await?;
                found[place][which].push(figures);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    report(options, &cases, &found);
    Ok(())
}

enum Server {
    FlareDb(Stores),
    Chainfire(Cluster),
}

impl Server {
    /// Filled.
    async fn start(flaredb: bool, chainfire: &System, folder: &Path, space: &KeySpace) -> Result<Server> {
        if flaredb {
            let stores = Stores::start(SERVERS, folder).await?;
            stores.cut_by_hand_only().await?;
            load::fill_raw(&stores.endpoints()[0], space, |_| ()).await.context("filling FlareDB")?;
            return Ok(Server::FlareDb(stores));
        }
        let cluster = Cluster::start(chainfire, SERVERS.into(), folder).await?;
        load::fill(&cluster.endpoints()[0], space, |_| ()).await.context("filling Chainfire")?;
        Ok(Server::Chainfire(cluster))
    }

    async fn measure(&self, options: &Options, case: Case, space: &KeySpace, round: u64) -> Result<Figures> {
        let (endpoints, servers, leader): (Vec<Endpoint>, Vec<u32>, usize) = match self {
            Server::FlareDb(stores) => (stores.endpoints(), stores.process_ids(), stores.leader().await?),
            Server::Chainfire(cluster) => (cluster.endpoints(), cluster.process_ids(), cluster.leader().await?),
        };
        let plan = Plan {
            endpoints: if case.at_the_leader { &endpoints[leader..=leader] } else { &endpoints },
            servers: &servers,
            clients: case.clients,
            warm_up: WARM_UP,
            measured: Duration::from_secs_f64(options.seconds),
            seed: 1 + round,
        };
        let workload = match (self, case.writes) {
            (Server::FlareDb(_), true) => Workload::RawPut,
            (Server::FlareDb(_), false) => Workload::RawGet,
            (Server::Chainfire(_), true) => Workload::Put,
            (Server::Chainfire(_), false) => Workload::Get { serializable: false },
        };
        load::run(&plan, space, workload).await.context(workload.name())
    }
}

/// Operations that one core carries.
fn per_core(server_cpu_us: f64) -> f64 {
    1e6 / server_cpu_us
}

fn report(options: &Options, cases: &[Case], found: &[[Vec<Figures>; 2]]) {
    println!(
        "{SERVERS} servers on one machine, {KEYS} keys, values of {VALUE_BYTES} bytes, medians of {} rounds: FlareDB, Chainfire",
        options.rounds
    );
    println!(
        "                                      per s             p50 ms          p99 ms        CPU µs           per core, FlareDB"
    );
    for (case, [flaredb, chainfire]) in cases.iter().zip(found) {
        let of = |figures: &[Figures], pick: fn(&Figures) -> f64| median(figures.iter().map(pick).collect());
        let pair = |pick: fn(&Figures) -> f64| (of(flaredb, pick), of(chainfire, pick));
        let (per_second, cpu) = (pair(|f| f.per_second), pair(|f| f.server_cpu_us));
        let (p50, p99) = (pair(|f| f.p50_ms), pair(|f| f.p99_ms));
        println!(
            "{} {:<14} {:>5} clients {:>9.0} {:>8.0}  {:>6.2} {:>6.2}  {:>6.2} {:>6.2}  {:>6.1} {:>6.1} ({:.2}x)  {:>8.0}",
            if case.writes { "put" } else { "get" },
            if case.at_the_leader { "at the leader" } else { "anywhere" },
            case.clients,
            per_second.0,
            per_second.1,
            p50.0,
            p50.1,
            p99.0,
            p99.1,
            cpu.0,
            cpu.1,
            cpu.0 / cpu.1,
            per_core(cpu.0)
        );
    }
    println!(
        "published of TiKV, per processor of its three nodes: {:.0} gets/s; {:.0} updates/s with as many gets beside them",
        TIKV_GETS / TIKV_PROCESSORS,
        TIKV_UPDATES / TIKV_PROCESSORS
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_carries_what_its_time_is_enough_for() {
        assert_eq!(per_core(20.0), 50_000.0);
    }
}
