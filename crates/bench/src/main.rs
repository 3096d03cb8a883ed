//! Floor 6: `bench` puts Chainfire beside etcd on one machine and writes what it found to `docs/benchmarks.md`.
//!
//! ```text
//! main ─ compare ─┬─ cluster   processes, same flags for both systems; `secure` gives them certificates
//!      ─ memory   │            ┌─ workload   requests and right answers
//!      ─ open·tls ├─ load ─────┤
//!      ─ failover ├─ fanout    └─ wire       a gRPC client that costs 3 µs a call
//!      ─ snapshot │
//!      ─ regions ──── stores    FlareDB: a placement driver and stores
//!                 └─ writer    puts at a steady pace, through the death of a leader
//!      results (docs/benchmarks.json) ── report (docs/benchmarks.md)
//! ```
//!
//! Each subcommand replaces its own part of the results and renders the page again. Two more serve `make demo`:
//! `load-dpkg` and `kill-leader`.

mod cluster;
mod compare;
mod dpkg;
mod failover;
mod fanout;
mod histogram;
mod load;
mod logs;
mod machine;
mod memory;
mod open;
mod procfs;
mod profile;
mod progress;
mod raw;
mod regions;
mod replace;
mod report;
mod results;
mod secure;
mod snapshot;
mod stores;
mod tls;
mod wire;
mod workload;
mod writer;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};

use cluster::{Kind, System};
use results::{Compared, Results};

/// Chainfire beside etcd: load, measure, report
#[derive(Parser)]
#[command(name = "bench", version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, clap::Args)]
struct Common {
    /// The etcd to compare with
    #[arg(long, env = "ETCD", default_value = "etcd", global = true)]
    etcd: PathBuf,
    /// The Chainfire server; by default the one beside this program
    #[arg(long, env = "CHAINFIRE", global = true)]
    chainfire: Option<PathBuf>,
    /// Only one of the two
    #[arg(long, value_parser = kind, global = true)]
    system: Option<Kind>,
    /// Where data folders are made: must be on a disk, or syncing costs nothing
    #[arg(long, default_value_os_t = std::env::temp_dir(), global = true)]
    folder: PathBuf,
    /// Where benchmarks.json and benchmarks.md are kept
    #[arg(long, default_value = "docs", global = true)]
    report: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// All workloads on both systems, alternating
    Compare(compare::Options),
    /// Memory and count latency over a million keys
    Memory(memory::Options),
    /// Time until a large store serves again
    Open(open::Options),
    /// How long writes pause when the leader is killed
    Failover(failover::Options),
    /// What a backup does to those who write meanwhile, and to memory
    Snapshot(snapshot::Options),
    /// What regions cost FlareDB's stores: puts through many of them, ten thousand at rest, a store killed
    Regions(regions::Options),
    /// FlareDB's raw keys beside Chainfire's: puts and gets, per second and per core
    Raw(raw::Options),
    /// How fast a lost store's replicas are made anew, and what that does to those who write
    Replace(replace::Options),
    /// Our Raft log beside raft-engine and RocksDB's write-ahead log
    Log(logs::Options),
    /// What mutual TLS on all ports costs: the same puts with it and without, alternating
    Tls(tls::Options),
    /// Render docs/benchmarks.md from docs/benchmarks.json
    Report,
    /// Load this machine's package database: a key per package and field
    LoadDpkg(dpkg::Options),
    /// Write steadily, kill a process, and say how long writes paused and whether any was lost
    KillLeader(failover::KillOptions),
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(arguments))
}

async fn run(Arguments { common, command }: Arguments) -> Result<()> {
    let folder = common.folder.as_path();
    match command {
        Command::Compare(options) => {
            let systems = common.systems()?;
            let options = options.shortened();
            let mut results = Results::load(&common.report)?;
            let head = Compared::new(&systems, options.rounds, options.seconds);
            compare::run(&options, &systems, folder, |measured| {
                results.compare = Some(head.with(measured));
                results.save(&common.report, folder)
            })
            .await?;
            finish(&common.report, results);
        }
        Command::Memory(options) => {
            let found = memory::run(&options, &common.systems()?, folder).await?;
            common.keep(|results| results::replace(&mut results.memory, found))?;
        }
        Command::Open(options) => {
            let found = open::run(&options, &common.systems()?, folder).await?;
            common.keep(|results| results::replace(&mut results.open, found))?;
        }
        Command::Failover(options) => {
            let found = failover::run(&options, &common.systems()?, folder).await?;
            common.keep(|results| results::replace(&mut results.failover, found))?;
        }
        Command::Regions(options) => {
            machine::ensure_on_disk(&common.folder)?;
            regions::run(&options, &common.folder).await?;
        }
        Command::Snapshot(options) => snapshot::run(&options, &common.chainfire()?, folder).await?,
        Command::Replace(options) => {
            machine::ensure_on_disk(folder)?;
            replace::run(&options, folder).await?;
        }
        Command::Raw(options) => raw::run(&options, &common.chainfire()?, folder).await?,
        Command::Log(options) => {
            let found = logs::run(&options, folder)?;
            common.keep(|results| results.log = found)?;
        }
        Command::Tls(options) => {
            let systems = common.systems()?;
            for system in &systems {
                tls::run(&options, system, folder).await?;
            }
        }
        Command::Report => {
            let results = Results::load(&common.report)?;
            results.write(&common.report)?;
            finish(&common.report, results);
        }
        Command::LoadDpkg(options) => dpkg::run(&options).await?,
        Command::KillLeader(options) => failover::kill_leader(&options).await?,
    }
    Ok(())
}

impl Common {
    /// Ours alone.
    fn chainfire(&self) -> Result<System> {
        let ours = Common { system: Some(Kind::Chainfire), ..self.clone() };
        ours.systems()?.pop().context("there is no Chainfire")
    }

    fn systems(&self) -> Result<Vec<System>> {
        machine::ensure_on_disk(&self.folder)?;
        let mut systems = Vec::new();
        if self.system != Some(Kind::Chainfire) {
            systems.push(System::new(Kind::Etcd, &found_on_path(&self.etcd)?)?);
        }
        if self.system != Some(Kind::Etcd) {
            let program = match &self.chainfire {
                Some(program) => program.clone(),
                None => std::env::current_exe()?.with_file_name("chainfire"),
            };
            systems.push(System::new(Kind::Chainfire, &program)?);
        }
        Ok(systems)
    }

    fn keep(&self, change: impl FnOnce(&mut Results)) -> Result<()> {
        let mut results = Results::load(&self.report)?;
        change(&mut results);
        results.save(&self.report, &self.folder)?;
        finish(&self.report, results);
        Ok(())
    }
}

fn finish(folder: &Path, results: Results) {
    print!("{}", report::goals(&results));
    println!("\nwritten: {}", folder.join(results::PAGE).display());
}

fn found_on_path(program: &Path) -> Result<PathBuf> {
    if program.components().count() > 1 {
        return Ok(program.to_owned());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(program)).find(|file| file.is_file());
    found.with_context(|| {
        format!("no {} on PATH: install Debian's etcd-server, or name one with ETCD=path", program.display())
    })
}

fn kind(text: &str) -> Result<Kind> {
    let found = [Kind::Etcd, Kind::Chainfire].into_iter().find(|kind| kind.name().eq_ignore_ascii_case(text));
    ensure!(found.is_some(), "etcd or chainfire");
    Ok(found.expect("just looked at"))
}
