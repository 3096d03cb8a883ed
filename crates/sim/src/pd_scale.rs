//! `sim pd-scale`: the placement driver's planner on a cluster that exists on paper only.
//!
//! A view of so many stores and regions is built, planned for until it comes to rest, loses a rack, and is planned for until
//! it has healed. Times are this thread's share of the processor, which on a busy machine says more than the clock.

use std::time::{Duration, Instant};

use base::{GroupId, NodeId};
use placement::explain;
use placement::scale::{Figures, HOST, Shape, Spread, TICK, World};
use placement::{Plan, Policy};

/// Rounds between two lines that say how far it is.
const SAID_EVERY: usize = 100;

#[derive(clap::Args)]
pub struct Scale {
    #[arg(long, default_value_t = 1000)]
    stores: u64,
    #[arg(long, default_value_t = 20)]
    racks: u64,
    #[arg(long, default_value_t = 1_000_000)]
    regions: u64,
    /// Rounds of ten seconds at most, for each of the two parts.
    #[arg(long, default_value_t = 2_000)]
    rounds_max: u64,
    /// How fast a store may send and take snapshots, in MiB per second; as the policy's default, if it is not said.
    #[arg(long)]
    max_rate: Option<u64>,
    /// Spread replicas over hosts too, and not over racks alone.
    #[arg(long)]
    hosts: bool,
}

pub fn run(asked: &Scale) {
    let shape = Shape {
        stores: asked.stores,
        racks: asked.racks,
        regions: asked.regions,
        empty_stores: asked.stores / 20,
        ..Shape::default()
    };
    let rounds_max = asked.rounds_max;
    let mut policy = Policy::for_scale();
    if asked.hosts {
        policy.location_labels.push(HOST.to_owned());
    }
    if let Some(rate) = asked.max_rate {
        policy.snap_io_max_bytes_per_sec = rate << 20;
    }
    let begun = Instant::now();
    let mut world = World::build(&shape, policy);
    println!("built in {:?}, {} resident; {shape:?}", begun.elapsed(), resident());
    let whole = Instant::now();
    let mut times = Vec::new();
    let figures = world.run_until_quiet(rounds_max, |world| timed(world, &mut times));
    report("balance", &times, whole.elapsed());
    println!("{}: {}\n{}", took("at rest", &figures), moved(&figures), spread(&world));

    questions(&world);

    let rack = world.rack(1);
    world.kill(&rack);
    println!("{} stores of a rack die, {} replicas lost", rack.len(), world.lost_replicas());
    let whole = Instant::now();
    let mut times = Vec::new();
    let figures = world.run_until(rounds_max, |world| timed(world, &mut times), |world| world.lost_replicas() == 0);
    report("heal", &times, whole.elapsed());
    let lost = world.lost_replicas();
    println!("{}: {}, {lost} replicas still lost\n{}", took("healed", &figures), moved(&figures), spread(&world));
}

/// How long people wait for an answer.
fn questions(world: &World) {
    let (view, policy, now) = (&world.view, &world.policy, world.now);
    let begun = Instant::now();
    let known = explain::region::explain(view, policy, GroupId(7), now).is_some();
    println!("explain a region: {:?} ({known})", begun.elapsed());
    let begun = Instant::now();
    let known = explain::store::explain(view, policy, NodeId(7), now).is_some();
    println!("explain a store: {:?} ({known})", begun.elapsed());
    let begun = Instant::now();
    if let Some(forecast) = explain::forecast::remove_store(view, policy, NodeId(7), now) {
        print!("what if a store is removed: {:?}\n{forecast}", begun.elapsed());
    }
    let begun = Instant::now();
    let more = Policy { max_replicas: policy.max_replicas + 2, ..policy.clone() };
    let forecast = explain::forecast::change_policy(view, policy, &more, now);
    print!("what if there are two replicas more: {:?}\n{forecast}", begun.elapsed());
}

fn resident() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap_or("unknown").trim().to_owned()
}

/// What this thread has had of the processor, which on a busy machine says more than the clock.
fn on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Duration::from_nanos(nanos.unwrap_or(0))
}

fn timed(world: &World, times: &mut Vec<(Duration, u64, u64, usize)>) -> Plan {
    if times.len() % SAID_EVERY == SAID_EVERY - 1 {
        let under_way = world.view.flights().count();
        eprintln!(
            "round {}: {under_way} operators under way, {} replicas lost",
            times.len() + 1,
            world.lost_replicas()
        );
    }
    let begun = on_cpu();
    let plan = world.plan();
    times.push((on_cpu() - begun, plan.stats.regions_checked, plan.stats.judged, plan.operators.len()));
    plan
}

/// In the cluster's own time.
fn took(what: &str, figures: &Figures) -> String {
    let minutes = (TICK * u32::try_from(figures.rounds).unwrap_or(u32::MAX)).as_secs() / 60;
    if figures.quiet {
        format!("{what} after {minutes} minutes")
    } else {
        format!("not {what} after {minutes} minutes, all that was asked for (--rounds-max)")
    }
}

fn moved(figures: &Figures) -> String {
    let gib = figures.bytes_moved as f64 / f64::from(1 << 30);
    format!(
        "{} replicas made anew or moved, {gib:.0} GiB; {} leaders moved",
        figures.replicas_moved, figures.leaders_moved
    )
}

fn spread(world: &World) -> String {
    let Spread { leaders, regions, bytes } = world.spread();
    let gib = |bytes: u64| bytes >> 30;
    format!(
        "  of a live store, the least and the most: {} to {} regions, {} to {} leaders, {} to {} GiB",
        regions.0,
        regions.1,
        leaders.0,
        leaders.1,
        gib(bytes.0),
        gib(bytes.1)
    )
}

fn report(what: &str, times: &[(Duration, u64, u64, usize)], whole: Duration) {
    let mut sorted: Vec<_> = times.iter().map(|(time, ..)| *time).collect();
    sorted.sort();
    let at = |percent: usize| sorted.get((sorted.len().max(1) - 1) * percent / 100).copied().unwrap_or_default();
    println!(
        "{what}: {} rounds, CPU median {:?}, p99 {:?}, max {:?}; whole {whole:?}",
        sorted.len(),
        at(50),
        at(99),
        at(100)
    );
    if let Some((time, checked, judged, operators)) = times.iter().max_by_key(|(time, ..)| *time) {
        println!(
            "  the longest: {time:?}, {checked} regions checked, {judged} candidates judged, {operators} operators"
        );
    }
}
