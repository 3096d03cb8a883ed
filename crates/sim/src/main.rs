//! Runs seeds. Each is run twice, and both runs must be the same to the last step.
//!
//! ```text
//! sim --seeds 0..2000            run these, two at a time; stop at the first that fails
//! sim --trace 17                 run one and print every step
//! sim --seeds 0..100000 --long   for a night
//! sim regions --seeds 0..500     FlareDB's cluster: the same, of stores and a placement driver
//! sim pd-scale                   the placement driver's planner at 1,000 stores and 1,000,000 regions
//! ```
//! Exits with 1 when a seed fails, after saying which and how to see it again.

mod pd_scale;

use std::io::IsTerminal;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sim::regions;
use sim::world::{self, Counts, Failure, Options};

#[derive(Parser)]
#[command(about = "Runs the production code in simulated worlds and judges what it does.")]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The seeds to run, the last excluded.
    #[arg(long, value_name = "A..B", value_parser = seeds, default_value = "0..2000")]
    seeds: Range<u64>,
    /// Run this seed alone and print every step.
    #[arg(long, value_name = "SEED")]
    trace: Option<u64>,
    /// Seeds run at a time.
    #[arg(long, value_name = "N", default_value_t = jobs())]
    jobs: usize,
    /// Longer worlds: faults for a minute or two instead of some seconds.
    #[arg(long)]
    long: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run worlds of FlareDB's stores and placement driver.
    Regions(Regions),
    /// Plan for a cluster on paper: time per round, moves to balance, rounds to heal.
    PdScale(pd_scale::Scale),
}

/// What `sim regions --help` says besides.
const REGIONS_HELP: &str = "\
A seed is a world: its size, its policy, which faults strike and when. In it run the stores' and the placement driver's own \
code (hosts, regions, supervisor, merges, records, planner) on simulated disks, clocks and networks. Each seed is run twice, and \
both runs must be the same to the last step.

While faults strike, these are checked at every step: replicas at one index are equal; epochs grow; a key is answered for \
once; ids are given once; peers that are gone stay gone, and whoever has voted does not begin anew; what is committed lies on \
the disks of a quorum; reads are linearizable. After half a minute all is healed, must come to rest (replicas there, records \
true, leaders and replicas balanced, nothing under way), and every key is read and written once more.

When a seed fails:
  bin/sim regions --trace SEED | less      every step; nodes are counted from 1, the placement driver's members first
  bin/sim regions --trace SEED | grep ' group=7 '    one region: create, open, leader, membership, put-off, gone
In between stand the programs' own lines, as in their logs (their times are those of your clock). \
`odd` is a step that nobody planned, `again` an old answer of the placement driver, `cut` a power cut within what a store did to \
its engine, `outage` ten minutes without a placement driver. The last lines say what was wrong, or what kept the world from \
coming to rest.";

#[derive(Args)]
#[command(after_long_help = REGIONS_HELP)]
struct Regions {
    /// The seeds to run, the last excluded.
    #[arg(long, value_name = "A..B", value_parser = seeds, default_value = "0..200")]
    seeds: Range<u64>,
    /// Run this seed alone and print every step.
    #[arg(long, value_name = "SEED")]
    trace: Option<u64>,
    /// Seeds run at a time.
    #[arg(long, value_name = "N", default_value_t = jobs())]
    jobs: usize,
    /// Longer worlds: faults for some minutes instead of half a one.
    #[arg(long)]
    long: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        Some(Command::PdScale(asked)) => {
            pd_scale::run(asked);
            return ExitCode::SUCCESS;
        }
        Some(Command::Regions(asked)) => return run_regions(asked),
        None => {}
    }
    let options = Options { long: arguments.long, ..Options::default() };
    if let Some(seed) = arguments.trace {
        let report = world::run(seed, Options { trace: true, ..options });
        println!("{}", counts(&report.counts));
        return verdict(seed, report.failure.as_ref(), "", arguments.long);
    }
    let one = |seed| {
        let report = world::run_twice(seed, options);
        (report.failure, report.counts)
    };
    let outcome = run_all(&arguments.seeds, arguments.jobs, one, add);
    println!("{}", counts(&outcome.total));
    outcome.conclude("", arguments.long)
}

fn run_regions(asked: &Regions) -> ExitCode {
    let options = regions::Options { long: asked.long, ..regions::Options::default() };
    if let Some(seed) = asked.trace {
        if let Err(why) = node::logging::start("sim", "info") {
            eprintln!("sim: the programs' own lines are not shown: {why}");
        }
        let report = regions::run(seed, regions::Options { trace: true, ..options });
        println!("{}", report.counts);
        return verdict(seed, report.failure.as_ref(), "regions ", asked.long);
    }
    let one = |seed| {
        let report = regions::run_twice(seed, options);
        (report.failure, report.counts)
    };
    let outcome = run_all(&asked.seeds, asked.jobs, one, regions::Counts::add);
    println!("{}", outcome.total);
    outcome.conclude("regions ", asked.long)
}

struct Outcome<C> {
    passed: u64,
    /// The lowest seed that failed.
    failed: Option<(u64, Failure)>,
    total: C,
    took: Duration,
}

impl<C> Outcome<C> {
    fn conclude(&self, command: &str, long: bool) -> ExitCode {
        if let Some((seed, failure)) = &self.failed {
            return verdict(*seed, Some(failure), command, long);
        }
        println!("sim: {} seeds passed, each run twice, in {:.1} s", self.passed, self.took.as_secs_f64());
        ExitCode::SUCCESS
    }
}

/// Runs seeds, some at a time, until one fails.
fn run_all<C: Default + Send>(
    seeds: &Range<u64>,
    jobs: usize,
    run: impl Fn(u64) -> (Option<Failure>, C) + Sync,
    add: impl Fn(&mut C, &C) + Sync,
) -> Outcome<C> {
    // A panic of the code under test is a finding that is reported with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let outcome = Mutex::new(Outcome { passed: 0, failed: None, total: C::default(), took: Duration::ZERO });
    let bar = progress(seeds.end.saturating_sub(seeds.start));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let (failure, counts) = run(seed);
                    let mut outcome = outcome.lock().expect("no thread panics while it holds this");
                    add(&mut outcome.total, &counts);
                    match failure {
                        None => outcome.passed += 1,
                        Some(failure) => {
                            stop.store(true, Ordering::Relaxed);
                            if outcome.failed.as_ref().is_none_or(|(first, _)| seed < *first) {
                                outcome.failed = Some((seed, failure));
                            }
                        }
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    Outcome { took: began.elapsed(), ..outcome.into_inner().expect("no thread panics while it holds this") }
}

fn verdict(seed: u64, failure: Option<&Failure>, command: &str, long: bool) -> ExitCode {
    let Some(failure) = failure else { return ExitCode::SUCCESS };
    println!("seed {seed} failed at {} ms: {}", failure.time / 1_000_000, failure.why);
    let long = if long { " --long" } else { "" };
    println!("see it again: cargo run --release -p sim -- {command}--trace {seed}{long}");
    ExitCode::FAILURE
}

fn progress(seeds: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left");
    ProgressBar::new(seeds).with_style(style.expect("the template is well formed"))
}

fn add(total: &mut Counts, one: &Counts) {
    total.steps += one.steps;
    total.lasted_ms += one.lasted_ms;
    total.answered += one.answered;
    total.unknown += one.unknown;
    total.elections += one.elections;
    total.crashes += one.crashes;
    total.snapshots += one.snapshots;
    total.changes += one.changes;
    total.transfers += one.transfers;
    total.rebuilt += one.rebuilt;
    total.quarantined += one.quarantined;
    total.events_watched += one.events_watched;
    total.watch_connections += one.watch_connections;
}

fn counts(counts: &Counts) -> String {
    format!(
        "{} s of worlds, {} steps: {} calls answered, {} of unknown outcome; {} terms led, {} crashes, {} snapshots \
         installed, {} membership changes, {} transfers, {} members rebuilt ({} that differed); {} events watched over \
         {} connections",
        counts.lasted_ms / 1_000,
        counts.steps,
        counts.answered,
        counts.unknown,
        counts.elections,
        counts.crashes,
        counts.snapshots,
        counts.changes,
        counts.transfers,
        counts.rebuilt,
        counts.quarantined,
        counts.events_watched,
        counts.watch_connections,
    )
}

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected A..B")?;
    let number = |text: &str| text.trim().parse::<u64>().map_err(|error| format!("{text}: {error}"));
    Ok(number(from)?..number(to)?)
}
