//! `bench tls`: what mutual TLS on all ports costs.
//!
//! Rounds alternate: a cluster without TLS, then one with it, certificates made on the spot, the same puts on both. Puts
//! cost most, since each crosses the ports of the members too. Throughput on a shared machine depends on who else runs; the
//! processor time per put is the steady figure beside it. Medians over the rounds are compared.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};

use crate::{
    cluster::{Cluster, System},
    compare::{KEYS, VALUE_BYTES, median},
    load::{self, Figures, Plan},
    progress,
    workload::{KeySpace, Workload},
};

const NODES: usize = 3;
/// What TLS may cost of the throughput of puts.
const COST_MAX: f64 = 0.25;
const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds of each kind; their medians are compared
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Measured seconds of each
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// Clients at once
    #[arg(long, value_delimiter = ',', default_value = "64,1000")]
    pub clients: Vec<usize>,
}

pub async fn run(options: &Options, system: &System, folder: &Path) -> Result<()> {
    let space = KeySpace::new(KEYS, VALUE_BYTES);
    let bar = progress::steps((2 * options.rounds * options.clients.len()) as u64);
    // By number of clients: without and with.
    let mut found: Vec<[Vec<Figures>; 2]> = vec![Default::default(); options.clients.len()];
    for round in 0..options.rounds {
        for turn in 0..2 {
            // Who begins changes, so that warming up favours nobody.
            let secured = (round + turn) % 2 == 1;
            let mut cluster = Cluster::start_with(system, NODES, folder, secured).await?;
            for (place, &clients) in options.clients.iter().enumerate() {
                bar.set_message(format!("round {} · {} · {clients} clients", round + 1, kind(secured)));
                let plan = Plan {
                    endpoints: &cluster.endpoints(),
                    servers: &cluster.process_ids(),
                    clients,
                    warm_up: WARM_UP,
                    measured: Duration::from_secs_f64(options.seconds),
                    seed: 1 + round as u64,
                };
                let figures = load::run(&plan, &space, Workload::Put).await.context(kind(secured))?;
                found[place][usize::from(secured)].push(figures);
                bar.inc(1);
            }
            cluster.stop().await?;
        }
    }
    bar.finish_and_clear();
    println!("{} {}: puts on {NODES} nodes, medians of {} rounds", system.kind.name(), system.version, options.rounds);
    println!("clients        puts/s    with mTLS  kept   CPU µs/put  with mTLS  p99 ms  with mTLS");
    for (&clients, [plain, secured]) in options.clients.iter().zip(&found) {
        let row = Row { clients, plain, secured };
        println!("{}", row.text());
    }
    Ok(())
}

fn kind(secured: bool) -> &'static str {
    if secured { "mutual TLS" } else { "no TLS" }
}

struct Row<'a> {
    clients: usize,
    plain: &'a [Figures],
    secured: &'a [Figures],
}

impl Row<'_> {
    fn text(&self) -> String {
        let of = |figures: &[Figures], pick: fn(&Figures) -> f64| median(figures.iter().map(pick).collect());
        let pair = |pick: fn(&Figures) -> f64| (of(self.plain, pick), of(self.secured, pick));
        let (throughput, cpu, p99) = (pair(|f| f.per_second), pair(|f| f.server_cpu_us), pair(|f| f.p99_ms));
        let kept = throughput.1 / throughput.0;
        let verdict = if kept >= 1.0 - COST_MAX { "reached" } else { "missed" };
        format!(
            "{:>7}  {:>12.0} {:>12.0}  {:>3.0} %  {:>10.1} {:>10.1}  {:>6.1} {:>10.1}   goal (costs ≤ {:.0} %): {verdict}",
            self.clients,
            throughput.0,
            throughput.1,
            kept * 100.0,
            cpu.0,
            cpu.1,
            p99.0,
            p99.1,
            COST_MAX * 100.0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_the_goal_is_reached() {
        let figures = |per_second| vec![Figures { per_second, ..Default::default() }];
        let row = |plain, secured| Row { clients: 64, plain: &figures(plain), secured: &figures(secured) }.text();
        assert!(row(1000.0, 760.0).contains(" 76 %") && row(1000.0, 760.0).ends_with("reached"));
        assert!(row(1000.0, 740.0).ends_with("missed"));
    }
}
