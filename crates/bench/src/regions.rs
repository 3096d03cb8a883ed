//! `bench regions`: what regions cost FlareDB's stores.
//!
//! ```text
//!  three stores, one region     puts, of clients that ask any store and of such         ┐ throughput and processor time
//!                               that ask the leaders                                     │ side by side
//!  … split into a hundred       the same puts, at the same time spread over all of them  ┘
//!  … split into ten thousand    nothing is asked of them: processor time and memory, less what one region took
//!  … one store killed           until the others lead all regions
//! ```
//! It concerns FlareDB alone, prints what it found, and keeps nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::load::{self, Figures, Plan};
use crate::stores::Stores;
use crate::wire::Endpoint;
use crate::workload::{KeySpace, Workload};
use crate::{procfs, progress};

/// New regions of one split; the placement driver takes no more.
const SPLIT_MAX: u64 = 64;
/// After the last region came, and before their rest is measured: elections, first heartbeats, falling asleep.
const SETTLE: Duration = Duration::from_secs(30);
/// How long leaders may take to spread.
const SPREAD_WITHIN: Duration = Duration::from_secs(300);
const MIB: f64 = (1 << 20) as f64;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Regions in the end
    #[arg(long, default_value_t = 10_000)]
    pub regions: u64,
    /// Regions that the puts are spread over
    #[arg(long, default_value_t = 100)]
    pub busy_regions: u64,
    #[arg(long, default_value_t = 3)]
    pub stores: u8,
    #[arg(long, default_value_t = 64)]
    pub clients: usize,
    #[arg(long, default_value_t = 256)]
    pub value_bytes: usize,
    /// How long each of the measurements takes
    #[arg(long, default_value_t = 20)]
    pub seconds: u64,
}

/// What a store costs at rest.
#[derive(Clone, Copy)]
struct Rest {
    /// Of one processor, per store.
    share: f64,
    resident_mib: f64,
    /// Of it, RocksDB's memory tables and caches: settings bound them, however many regions there are.
    engine_mib: f64,
    pd_share: f64,
}

pub async fn run(options: &Options, folder: &Path) -> Result<()> {
    let space = KeySpace::new(1_000_000, options.value_bytes);
    let mut cluster = Stores::start(options.stores, folder).await?;
    cluster.cut_by_hand_only().await?;
    let alone = [puts(options, &cluster, &space).await?, routed(options, &cluster, &space).await?];
    tokio::time::sleep(SETTLE / 3).await;
    let rest_of_one = rest(options, &cluster).await?;

    let bar = progress::steps(options.regions);
    grow(&mut cluster, &space, 1, options.busy_regions, &bar).await?;
    let unrouted = puts(options, &cluster, &space).await?;
    bar.set_message("leaders are spread");
    spread_leaders(options, &cluster, options.busy_regions).await?;
    let spread = [unrouted, routed(options, &cluster, &space).await?];
    grow(&mut cluster, &space, options.busy_regions, options.regions, &bar).await?;
    bar.set_message("at rest");
    tokio::time::sleep(SETTLE).await;
    let rest_of_all = rest(options, &cluster).await?;
    bar.set_message("leaders are spread");
    spread_leaders(options, &cluster, options.regions).await?;
    bar.set_message("one store killed");
    let took = failover(options, &mut cluster).await?;
    bar.finish_and_clear();
    report(options, (alone, spread), (rest_of_one, rest_of_all), took);
    Ok(())
}

/// Puts of clients that know nothing of regions, and ask any store.
async fn puts(options: &Options, cluster: &Stores, space: &KeySpace) -> Result<Figures> {
    load_with(options, cluster, &cluster.endpoints(), std::slice::from_ref(space)).await
}

/// Puts of clients that ask the store which leads a key's region.
async fn routed(options: &Options, cluster: &Stores, space: &KeySpace) -> Result<Figures> {
    let led = cluster.led_keys(space).await?;
    let leading = cluster.endpoints().into_iter().zip(led).filter(|(_, ranges)| !ranges.is_empty());
    let (endpoints, spaces): (Vec<_>, Vec<_>) = leading.map(|(at, ranges)| (at, space.within(ranges))).unzip();
    load_with(options, cluster, &endpoints, &spaces).await
}

async fn load_with(
    options: &Options,
    cluster: &Stores,
    endpoints: &[Endpoint],
    spaces: &[KeySpace],
) -> Result<Figures> {
    let servers = cluster.process_ids();
    let plan = Plan {
        endpoints,
        servers: &servers,
        clients: options.clients,
        warm_up: Duration::from_secs(3),
        measured: Duration::from_secs(options.seconds),
        seed: 11,
    };
    load::run_apart(&plan, spaces, Workload::RawPut).await
}

/// Cuts the first region until there are `to`. The keys of the puts lie evenly in the first `busy` of all cuts' ranges.
async fn grow(cluster: &mut Stores, space: &KeySpace, from: u64, to: u64, bar: &indicatif::ProgressBar) -> Result<()> {
    bar.set_message("splitting");
    // The first region keeps what lies before all cuts: of those between two cuts made before, the first `to / from`.
    let within = space.keys / from;
    let cuts = to - from;
    let at = |cut: u64| space.key(within * cut / (cuts + 1)).to_vec();
    let mut end = cuts;
    while end > 0 {
        let begin = end.saturating_sub(SPLIT_MAX);
        let keys: Vec<Vec<u8>> = (begin + 1..=end).map(at).collect();
        cluster.split(&keys).await?;
        let expected = (to - begin) * u64::from(cluster.stores.len().min(3) as u8);
        cluster
            .until("the regions of a split are there", async |cluster| {
                cluster.metric("flaredb_regions").await.is_ok_and(|regions| regions as u64 >= expected)
            })
            .await?;
        end = begin;
        bar.set_position(to - begin);
    }
    cluster
        .until("all regions have leaders", async |cluster| {
            cluster.metric("flaredb_region_leaders").await.is_ok_and(|led| led as u64 == to)
        })
        .await
}

async fn rest(options: &Options, cluster: &Stores) -> Result<Rest> {
    let servers = cluster.process_ids();
    let pd = cluster.pd_process_id();
    let time = |pids: &[u32]| pids.iter().map(|pid| procfs::processor_time(*pid)).sum::<Result<Duration>>();
    let own = |pd: Option<u32>| pd.map_or(Ok(Duration::ZERO), procfs::processor_time);
    let (before, pd_before, began) = (time(&servers)?, own(pd)?, Instant::now());
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    let took = began.elapsed().as_secs_f64();
    let resident: u64 = servers.iter().map(|pid| procfs::resident_bytes(*pid)).sum::<Result<u64>>()?;
    let each = servers.len() as f64;
    let engine = cluster.metric("flaredb_rocksdb_memory_bytes").await?;
    Ok(Rest {
        share: (time(&servers)? - before).as_secs_f64() / took / each,
        resident_mib: resident as f64 / MIB / each,
        engine_mib: engine / MIB / each,
        pd_share: (own(pd)? - pd_before).as_secs_f64() / took,
    })
}

/// After so many splits one store leads most regions: until the one that is to be killed leads nearly its share, or as long as
/// it may take.
async fn spread_leaders(options: &Options, cluster: &Stores, regions: u64) -> Result<()> {
    cluster.set_policy(&serde_json::json!({ "leader-schedule-limit": 64 })).await?;
    let enough = regions as f64 / f64::from(options.stores) * 0.9;
    let began = Instant::now();
    while least_led(options, cluster).await? < enough {
        if began.elapsed() > SPREAD_WITHIN {
            println!("leaders are not spread after {} s; what a kill costs is seen of fewer", SPREAD_WITHIN.as_secs());
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// The regions that the store leads which leads the fewest.
async fn least_led(options: &Options, cluster: &Stores) -> Result<f64> {
    let mut least = f64::MAX;
    for store in 0..usize::from(options.stores) {
        least = least.min(cluster.metric_of(store, "flaredb_region_leaders").await?);
    }
    Ok(least)
}

/// Until all regions are led by stores that run.
async fn failover(options: &Options, cluster: &mut Stores) -> Result<Duration> {
    // A region whose leadership is being handed over is led by nobody for a moment, and was not lost.
    cluster.set_policy(&serde_json::json!({ "leader-schedule-limit": 0, "hot-region-schedule-limit": 0 })).await?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let led_there = cluster.metric_of(0, "flaredb_region_leaders").await?;
    let began = Instant::now();
    cluster.kill(0)?;
    let mut said = Duration::ZERO;
    loop {
        let led = cluster.metric("flaredb_region_leaders").await?;
        if led as u64 >= options.regions {
            println!("{led_there:.0} of them were led there");
            return Ok(began.elapsed());
        }
        if began.elapsed() >= said {
            println!("after {:>5.2} s {led:.0} are led", began.elapsed().as_secs_f64());
            said = began.elapsed() * 5 / 4 + Duration::from_millis(500);
        }
        anyhow::ensure!(began.elapsed() < Duration::from_secs(120), "{led} of {} regions are led", options.regions);
        // Each look walks all regions of the stores that are at work.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// `puts`: through one region and through many, each with any store asked and with the leaders'.
fn report(options: &Options, puts: ([Figures; 2], [Figures; 2]), rest: (Rest, Rest), failover: Duration) {
    let Options { regions, busy_regions, stores, clients, value_bytes, .. } = options;
    println!("{stores} stores, {clients} clients, values of {value_bytes} bytes");
    let line = |what: String, figures: &Figures| {
        println!(
            "{what:<26} {:>7.0} puts/s   p50 {:>6.2} ms   p99 {:>6.2} ms   {:>5.0} µs of the stores each",
            figures.per_second, figures.p50_ms, figures.p99_ms, figures.server_cpu_us
        );
    };
    for (asked, (one, many)) in ["any store", "the leaders"].iter().zip(puts.0.iter().zip(&puts.1)) {
        line(format!("one region, {asked}"), one);
        line(format!("{busy_regions} regions, {asked}"), many);
        let throughput = many.per_second / one.per_second;
        println!("throughput               {throughput:.2} times that of one region (goal: at least 0.9)");
    }
    let idle = |what: String, rest: Rest| {
        println!(
            "{what:<24} {:>5.1} % of a processor and {:.0} MiB a store, {:.0} of them RocksDB's; placement driver {:.1} %",
            rest.share * 100.0,
            rest.resident_mib,
            rest.engine_mib,
            rest.pd_share * 100.0
        );
    };
    idle("one region at rest".to_owned(), rest.0);
    idle(format!("{regions} at rest"), rest.1);
    let each = |of: fn(&Rest) -> f64| (of(&rest.1) - of(&rest.0)) * 1024.0 / *regions as f64;
    println!(
        "memory of a region       {:.1} KiB on each store beside RocksDB's tables and caches (goal: at most 20), {:.1} with \
         them; processor's goal: at most 5 %",
        each(|rest| rest.resident_mib - rest.engine_mib),
        each(|rest| rest.resident_mib)
    );
    println!(
        "a store killed           all {regions} regions led again after {:.2} s (goal: at most 3)",
        failover.as_secs_f64()
    );
}
