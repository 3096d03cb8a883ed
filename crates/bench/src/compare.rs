//! `bench compare`: every workload on etcd and on Chainfire, in alternating rounds.
//!
//! A round starts a fresh cluster of one system, fills it, runs reads, then writes, then watches, and removes it; the
//! other system's turn follows, and the next round begins with the other one. A figure's value is the median of its rounds, so
//! that one disturbed round does not show.
//!
//! With one client the load goes to the leader; with more, the connections are spread over all nodes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Cluster, Kind, System},
    fanout::{self, Layout},
    load::{self, Figures, Plan},
    profile::Profile,
    progress,
    workload::{KeySpace, Workload},
};

pub const KEYS: u64 = 100_000;
pub const VALUE_BYTES: usize = 256;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Rounds per system; the median of them is reported
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Measured seconds of each workload
    #[arg(long, default_value_t = 4.0)]
    pub seconds: f64,
    /// One short round: shows that everything runs, not how fast
    #[arg(long)]
    pub quick: bool,
    /// Cluster sizes
    #[arg(long, value_delimiter = ',', default_value = "1,3")]
    pub nodes: Vec<usize>,
    /// Only workloads whose name contains this
    #[arg(long, default_value = "")]
    pub only: String,
    /// Only these numbers of clients
    #[arg(long, value_delimiter = ',')]
    pub clients: Vec<usize>,
    /// Sample the servers with `perf` and leave a text per workload in this folder; slows them down
    #[arg(long)]
    pub profile: Option<PathBuf>,
}

impl Options {
    /// What `--quick` stands for.
    pub fn shortened(mut self) -> Options {
        if self.quick {
            self.rounds = 1;
            self.seconds = self.seconds.min(1.0);
        }
        self
    }
}

/// One figure's place in the matrix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    pub nodes: usize,
    pub workload: String,
    pub clients: usize,
}

/// All rounds of one cell on one system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub cell: Cell,
    pub system: Kind,
    pub rounds: Vec<Figures>,
}

impl Measured {
    /// Each figure's median over the rounds.
    pub fn median(&self) -> Figures {
        let of = |pick: fn(&Figures) -> f64| median(self.rounds.iter().map(pick).collect());
        Figures {
            operations: of(|f| f.operations as f64) as u64,
            refused: self.rounds.iter().map(|f| f.refused).sum(),
            per_second: of(|f| f.per_second),
            p50_ms: of(|f| f.p50_ms),
            p99_ms: of(|f| f.p99_ms),
            server_cpu_us: of(|f| f.server_cpu_us),
            client_cpu_us: of(|f| f.client_cpu_us),
            resident_mib: of(|f| f.resident_mib),
        }
    }
}

#[derive(Clone, Copy)]
enum Step {
    Load(Workload),
    Watch(Layout),
}

impl Step {
    fn name(self) -> String {
        match self {
            Step::Load(workload) => workload.name(),
            Step::Watch(Layout::Shared) => "watch, shared streams".into(),
            Step::Watch(Layout::Own) => "watch, own streams".into(),
        }
    }
}

/// Runs the matrix. `on_round` hears the results after each cluster, so that an interrupted run keeps what it has.
pub async fn run(
    options: &Options,
    systems: &[System],
    folder: &Path,
    mut on_round: impl FnMut(&[Measured]) -> Result<()>,
) -> Result<()> {
    let steps = steps(options);
    let bar = progress::steps((options.nodes.len() * options.rounds * systems.len() * (steps.len() + 1)) as u64);
    let mut results: Vec<Measured> = Vec::new();
    for round in 0..options.rounds {
        for &nodes in &options.nodes {
            for turn in 0..systems.len() {
                let system = &systems[(turn + round) % systems.len()];
                let turn = Turn { options, system, nodes, round, bar: &bar };
                for (cell, figures) in turn.run(&steps, folder).await.with_context(|| turn.label())? {
                    record(&mut results, cell, system.kind, figures);
                }
                on_round(&results)?;
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// One system's part of a round: a cluster from its birth to its end.
struct Turn<'a> {
    options: &'a Options,
    system: &'a System,
    nodes: usize,
    round: usize,
    bar: &'a ProgressBar,
}

impl Turn<'_> {
    async fn run(&self, steps: &[(Step, usize)], folder: &Path) -> Result<Vec<(Cell, Figures)>> {
        self.say(&format!("filling {KEYS} keys"));
        let space = KeySpace::new(KEYS, VALUE_BYTES);
        let mut cluster = Cluster::start(self.system, self.nodes, folder).await?;
        load::fill(&cluster.endpoints()[0], &space, |_| ()).await?;
        if self.system.reads_need_restart() {
            cluster.stop().await?;
            cluster.start_again().await?;
        }
        self.bar.inc(1);
        let mut found = Vec::new();
        for &(step, clients) in steps {
            let cell = Cell { nodes: self.nodes, workload: step.name(), clients };
            self.say(&format!("{} · {clients} client(s)", cell.workload));
            let figures = self.measure(step, clients, &cluster, &space).await;
            found.push((cell, figures.with_context(|| format!("{} with {clients} clients", step.name()))?));
            self.bar.inc(1);
        }
        self.say("stopping");
        cluster.stop().await?;
        Ok(found)
    }

    async fn measure(&self, step: Step, clients: usize, cluster: &Cluster, space: &KeySpace) -> Result<Figures> {
        let all = cluster.endpoints();
        let leader = [all[cluster.leader().await?].clone()];
        let seconds = self.options.seconds;
        let plan = Plan {
            endpoints: if clients == 1 { &leader } else { &all },
            servers: &cluster.process_ids(),
            clients,
            warm_up: Duration::from_secs_f64((seconds / 4.0).min(1.0)),
            measured: Duration::from_secs_f64(seconds),
            seed: self.round as u64 + 1,
        };
        let profile = match &self.options.profile {
            Some(folder) => {
                let name = format!("{}-{}-{}-{clients}", self.system.kind.name(), self.nodes, step.name());
                Some(Profile::start(folder, &name, plan.servers, plan.warm_up + plan.measured)?)
            }
            None => None,
        };
        let figures = match step {
            Step::Load(workload) => load::run(&plan, space, workload).await,
            Step::Watch(layout) => fanout::run(&plan, space, layout).await,
        };
        profile.map_or(Ok(()), Profile::finish)?;
        figures
    }

    fn say(&self, what: &str) {
        self.bar.set_message(format!("{} · {what}", self.label()));
    }

    fn label(&self) -> String {
        format!("round {} · {} · {} node(s)", self.round + 1, self.system.kind.name(), self.nodes)
    }
}

/// Reads first, on a store nobody wrote to since it was filled; watches last.
fn steps(options: &Options) -> Vec<(Step, usize)> {
    let workloads = [
        (Workload::Get { serializable: true }, vec![1, 64, 1000]),
        (Workload::Get { serializable: false }, vec![1, 64, 1000]),
        (Workload::Range(100), vec![1, 64, 1000]),
        (Workload::Range(1000), vec![1, 64]),
        (Workload::Txn, vec![1, 64, 1000]),
        (Workload::Put, vec![1, 64, 1000]),
    ];
    let loads = workloads.into_iter().map(|(workload, clients)| (Step::Load(workload), clients));
    let watches = [Layout::Shared, Layout::Own].map(|layout| (Step::Watch(layout), vec![100, 1000]));
    let all = loads.chain(watches);
    all.filter(|(step, _)| step.name().contains(&options.only))
        .flat_map(|(step, clients)| clients.into_iter().map(move |count| (step, count)))
        .filter(|(_, count)| options.clients.is_empty() || options.clients.contains(count))
        .collect()
}

fn record(results: &mut Vec<Measured>, cell: Cell, system: Kind, figures: Figures) {
    match results.iter_mut().find(|m| m.cell == cell && m.system == system) {
        Some(measured) => measured.rounds.push(figures),
        None => results.push(Measured { cell, system, rounds: vec![figures] }),
    }
}

/// The middle value; of an even number of them, the mean of the two in the middle. Zero of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn rounds_gather_under_their_cell() {
        let cell = Cell { nodes: 1, workload: "put".into(), clients: 64 };
        let mut results = Vec::new();
        for per_second in [1.0, 9.0, 2.0] {
            record(&mut results, cell.clone(), Kind::Etcd, Figures { per_second, refused: 1, ..Default::default() });
        }
        record(&mut results, cell, Kind::Chainfire, Figures::default());
        assert_eq!(results.len(), 2);
        let median = results[0].median();
        assert_eq!((median.per_second, median.refused), (2.0, 3));
    }
}
