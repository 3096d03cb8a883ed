//! `bench replace`: what it takes to make a lost store's replicas anew, and what that does to those who write meanwhile.
//!
//! ```text
//!  four stores, filled      regions split by size and are spread over all of them
//!  one killed               puts, at a steady pace: the store is missed, and nothing is done about it yet
//!  its time is up           the placement driver has its replicas made anew in the others; puts
//!  all regions whole again  puts
//! ```
//! The figures are the time and the rate at which replicas came back, and the 99th percentile of the puts while they did, and
//! after it while what was received is still merged, beside that of before. It concerns FlareDB alone, prints what it found, and
//! keeps nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::task::LocalSet;

use crate::histogram::Histogram;
use crate::stores::Stores;
use crate::workload::KeySpace;
use crate::writer::{Acknowledged, Writer, within};
use crate::{load, procfs, progress};

const STORES: u8 = 4;
const REPLICAS: usize = 3;
/// At which size regions are split while they are filled: at none that comes.
const FILLING_REGION_MIB: u64 = 1 << 16;
/// After the filling: flushes, compactions, measuring, splits, moves.
const SETTLE: Duration = Duration::from_secs(20);
/// A store that is silent for so long is as good as lost, while this is measured: the least that a policy takes.
const DOWN_TIME: Duration = Duration::from_secs(10);
/// After the kill: the others come to lead what it led.
const ELECTIONS: Duration = Duration::from_secs(10);
/// Between the last replica and the puts that count as after it.
const CALM: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(500);
const MIB: f64 = (1 << 20) as f64;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Bytes of values in the store that is lost, in GiB
    #[arg(long, default_value_t = 5.0)]
    pub gib: f64,
    #[arg(long, default_value_t = 4096)]
    pub value_bytes: usize,
    /// At which size regions are split, in MiB
    #[arg(long, default_value_t = 512)]
    pub region_mib: u64,
    /// How fast a store may send and take snapshots, in MiB per second
    #[arg(long, default_value_t = 100)]
    pub max_rate: u64,
    /// Puts in a second, all stores together
    #[arg(long, default_value_t = 500)]
    pub rate: u64,
    /// How long the puts before and after are measured, in seconds
    #[arg(long, default_value_t = 20.0)]
    pub seconds: f64,
}

struct Replaced {
    began: Instant,
    ended: Instant,
    bytes: u64,
    regions: usize,
    puts: Vec<Acknowledged>,
    before: (Instant, Instant),
    after: (Instant, Instant),
    largest_bytes: u64,
}

pub async fn run(options: &Options, folder: &Path) -> Result<()> {
    // Each store of four holds three quarters of the data.
    let bytes = options.gib * f64::from(1 << 30) * f64::from(STORES) / REPLICAS as f64;
    let space = KeySpace::new((bytes / options.value_bytes as f64) as u64, options.value_bytes);
    let mut cluster = Stores::start(STORES, folder).await?;
    cluster
        .set_policy(&serde_json::json!({
            // A batch that meets a split would be refused.
            "region-split-size": FILLING_REGION_MIB,
            "max-merge-region-size": 0,
            "load-split-requests-per-sec": 0,
            "load-split-bytes-per-sec": 0,
            "snap-io-max-bytes-per-sec": options.max_rate << 20,
            "max-store-down-time": "1h",
        }))
        .await?;
    let bar = progress::keys(space.keys, "filling");
    load::fill_raw(&cluster.endpoints()[0], &space, |keys| bar.inc(keys)).await?;
    bar.finish_and_clear();
    cluster.set_policy(&serde_json::json!({ "region-split-size": options.region_mib })).await?;
    tokio::time::sleep(SETTLE).await;
    cluster.until("regions come to rest", async |cluster| cluster.is_at_rest().await).await?;
    let found = LocalSet::new().run_until(measure(options, &mut cluster, &space)).await?;
    report(options, &found);
    Ok(())
}

async fn measure(options: &Options, cluster: &mut Stores, space: &KeySpace) -> Result<Replaced> {
    // The one with the most, and not the one that the puts go to first.
    let held = cluster.held_bytes().await?;
    let lost = held.iter().enumerate().max_by_key(|(_, (bytes, _))| *bytes).map_or(0, |(index, _)| index);
    let (bytes, regions) = held[lost];
    ensure!(regions > 0, "the stores hold nothing: {held:?}");
    cluster.kill(lost)?;
    let endpoints = cluster.endpoints_alive();
    let every = Duration::from_secs_f64(endpoints.len() as f64 / options.rate as f64);
    let writer = Writer::start_raw(&endpoints, every, space);
    let apart = Duration::from_secs_f64(options.seconds);
    tokio::time::sleep(ELECTIONS).await;
    let calm = Instant::now();
    tokio::time::sleep(apart).await;
    let began = Instant::now();
    let soon = format!("{}s", DOWN_TIME.as_secs());
    let policy = serde_json::json!({ "max-store-down-time": &soon, "store-disconnected-time": &soon });
    cluster.set_policy(&policy).await?;
    let bar = progress::steps(regions as u64);
    bar.set_message("replacing");
    let mut largest_bytes = 0;
    loop {
        for pid in cluster.process_ids() {
            largest_bytes = largest_bytes.max(procfs::resident_bytes(pid)?);
        }
        let left = cluster.regions_with_peer_in(lost).await?;
        bar.set_position((regions - left.min(regions)) as u64);
        if left == 0 && cluster.is_at_rest().await {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    bar.finish_and_clear();
    let ended = Instant::now();
    tokio::time::sleep(CALM).await;
    let again = Instant::now();
    tokio::time::sleep(apart).await;
    let (before, after) = ((calm, began), (again, Instant::now()));
    Ok(Replaced { began, ended, bytes, regions, puts: writer.stop().await, before, after, largest_bytes })
}

fn report(options: &Options, found: &Replaced) {
    let ms = |histogram: &Histogram, share| histogram.quantile(share).as_secs_f64() * 1e3;
    let line = |what: &str, histogram: &Histogram| {
        let (p50, p99) = (ms(histogram, 0.5), ms(histogram, 0.99));
        println!("{what:<24} {:>8} puts   p50 {p50:>8.2} ms   p99 {p99:>8.2} ms", histogram.count());
    };
    let [before, during, after] =
        [found.before, (found.began, found.ended), found.after].map(|span| within(&found.puts, &[span]));
    let took = (found.ended - found.began).as_secs_f64();
    println!(
        "a store of {STORES} lost with {} regions, {:.0} MiB; {} puts/s; snapshots at {} MiB/s at most per store",
        found.regions,
        found.bytes as f64 / MIB,
        options.rate,
        options.max_rate
    );
    line("before", &before);
    line("while it was replaced", &during);
    line("after", &after);
    println!("replaced                 after {took:.1} s, {:.0} MiB/s", found.bytes as f64 / MIB / took);
    println!("memory                   {:.0} MiB in the largest store", found.largest_bytes as f64 / MIB);
    let [meanwhile, later] = [&during, &after].map(|span| ms(span, 0.99) / ms(&before, 0.99).max(f64::EPSILON));
    println!("put p99                  {meanwhile:.2} times that of before (goal: at most 2), {later:.2} after it");
}
