//! A store is emptied: begun, watched, called off.
//!
//! The placement driver does the work and knows how far it is; this program asks once a second. Whoever stops watching stops
//! nothing.

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, stderr};
use std::time::{Duration, Instant};

use cli::failure::{Failure, Kind};
use cli::format;
use cli::output::Output;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::args::DrainArgs;
use crate::pd::Pages;
use crate::show::{self, list, number, plain};

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Where nobody draws bars, progress is told this often.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// After so long without progress the reasons are told.
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions in a row that may fail: the placement driver may be changing its leader.
const FAILURES_MAX: u32 = 30;

/// What became of it.
pub enum Drained {
    /// All that was asked for.
    Done,
    /// It would not be done.
    Refused,
    /// Nobody watches any more; it goes on.
    Interrupted,
}

pub async fn run(pages: &Pages<'_>, args: &DrainArgs, output: &mut Output) -> Result<Drained, Failure> {
    let store = args.store;
    if args.cancel {
        let page = pages.post(&format!("store/{store}/state?state=Up"), &Value::Null).await?;
        show::text(output, &page)?;
        return Ok(Drained::Done);
    }
    let forecast = pages.get(&format!("explain/removal/{store}")).await?;
    if args.dry_run {
        show::text(output, &forecast)?;
        return Ok(if forecast["refused"].is_null() { Drained::Done } else { Drained::Refused });
    }
    let begun = pages.delete(&format!("store/{store}")).await?;
    if args.no_wait {
        show::text(output, &begun)?;
        return Ok(Drained::Done);
    }
    if let Some(text) = forecast["text"].as_str() {
        eprintln!("{}", text.trim_end());
    }
    let watching = watch(pages, store, number(&forecast["replicas"]));
    tokio::select! {
        done = watching => {
            done?;
            show::text(output, &json!({ "message": format!("store {store} is empty and removed"), "store": store }))?;
            Ok(Drained::Done)
        }
        _ = tokio::signal::ctrl_c() => {
            eprintln!(
                "\nThe draining of store {store} goes on without being watched. `flaredb-client drain {store}` watches it \
                 again, `flaredb-client drain {store} --cancel` brings the store back."
            );
            Ok(Drained::Interrupted)
        }
    }
}

async fn watch(pages: &Pages<'_>, store: u64, replicas: u64) -> Result<(), Failure> {
    let mut progress = Progress::new(store, replicas);
    let mut failures = 0;
    loop {
        match pages.get(&format!("explain/store/{store}")).await {
            Ok(page) if page["state"] == "Tombstone" => return Ok(()),
            Ok(page) if page["draining"].is_null() => {
                let why =
                    format!("store {store} is {} again: somebody has called the draining off", plain(&page["state"]));
                return Err(Failure::new(Kind::Refused, why));
            }
            Ok(page) => {
                failures = 0;
                progress.show(&page["draining"]);
            }
            // Removed, and forgotten by now.
            Err(refused) if matches!(refused.code, 404 | 410) => return Ok(()),
            Err(refused) => {
                failures += 1;
                if failures >= FAILURES_MAX {
                    return Err(refused.into());
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

struct Progress {
    bar: ProgressBar,
    terminal: bool,
    store: u64,
    total: u64,
    left: u64,
    began: Instant,
    progressed: Instant,
    said: Option<Instant>,
    /// Reasons that were told.
    told: BTreeSet<String>,
}

impl Progress {
    fn new(store: u64, total: u64) -> Progress {
        let bar = ProgressBar::new(total);
        let template = "store {prefix}: [{bar:40}] {pos} of {len} replicas moved, {msg}";
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(store.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        let (now, terminal) = (Instant::now(), stderr().is_terminal());
        Progress {
            bar,
            terminal,
            store,
            total,
            left: total,
            began: now,
            progressed: now,
            said: None,
            told: BTreeSet::new(),
        }
    }

    fn show(&mut self, draining: &Value) {
        let left = number(&draining["replicas_left"]);
        // Splits make more of what is there.
        self.total = self.total.max(left);
        if left < self.left {
            self.progressed = Instant::now();
            self.told.clear();
        }
        self.left = left;
        let moved = self.total - left;
        let bytes = format::size(number(&draining["bytes_left"]));
        let under_way = number(&draining["under_way"]);
        let eta = self.eta(draining, moved, left).map(|eta| format!(", about {} s", eta.as_secs())).unwrap_or_default();
        self.bar.set_length(self.total);
        self.bar.set_position(moved);
        self.bar.set_message(format!("{bytes} left, {under_way} under way{eta}"));
        if !self.terminal && self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.said = Some(Instant::now());
            eprintln!(
                "store {}: {moved} of {} replicas moved, {bytes} left, {under_way} under way{eta}",
                self.store, self.total
            );
        }
        if self.progressed.elapsed() >= PATIENCE && under_way == 0 {
            for kind in list(&draining["blocked"]) {
                let why = list(&kind["examples"]).first().map(|example| plain(&example["why"])).unwrap_or_default();
                if self.told.insert(plain(&kind["blocker"])) {
                    let line =
                        format!("no progress: {} regions: {}: {why}", plain(&kind["regions"]), plain(&kind["blocker"]));
                    if self.terminal { self.bar.println(line) } else { eprintln!("store {}: {line}", self.store) }
                }
            }
        }
    }

    /// What the placement driver reckons with, or longer, at the pace so far; `None` while nothing can be moved.
    fn eta(&self, draining: &Value, moved: u64, left: u64) -> Option<Duration> {
        let reckoned = Duration::from_secs(draining["eta_seconds"].as_u64()?);
        let each = self.began.elapsed().as_secs_f64() / moved as f64;
        Some(Duration::try_from_secs_f64(each * left as f64).map_or(reckoned, |paced| paced.max(reckoned)))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
