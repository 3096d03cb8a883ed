//! `snapshot run` and `snapshot schedule`: backups in a folder, one after the other, and the old ones deleted.
//!
//! Life of a round: the folder is locked → a backup is made: what changed since the end of the chain, or since the last full
//! one, or, when neither can be had (compacted, another cluster, nothing there, damaged), a full one → it is read back from
//! the disk and verified, and only after a full one the superfluous ones go ([`super::shelf`]) → figures are written, if
//! wanted.
//!
//! What an incremental backup is to follow on is read to its end first. A damaged one is set aside: nothing follows on it,
//! and nobody takes it for a backup.
//!
//! Each endpoint is tried in turn. `run` fails when all do. `schedule` says so and tries again; it ends, with exit code 0,
//! when it is told to stop.

use std::time::{Duration, Instant};

use base::Moment;

use super::args::{RunArgs, ScheduleArgs};
use super::now;
use super::save::{self, Saved, Target};
use super::shelf::{self, Kind, Lock, Shelf};
use super::source::{self, Nobody};
use super::stream::{self, Pace, Wanted};
use super::textfile::{self, Attempt};
use crate::connect::Client;
use crate::failure::Failure;
use crate::output::Output;

/// After a failure it is tried again this soon.
const RETRY: Duration = Duration::from_secs(30);

/// One round; the exit code says how it went.
pub async fn once(client: &Client, args: &RunArgs, out: &mut Output) -> Result<(), Failure> {
    let lock = Lock::take(&args.dir)?;
    let began = Instant::now();
    let made = make(client, args, out).await;
    let kind = if args.incremental { Kind::Incremental } else { Kind::Full };
    let kind = made.as_ref().map_or(kind, |made| *made);
    if let Some(path) = &args.textfile {
        let attempt = Attempt { kind, took: began.elapsed(), succeeded: made.is_ok() };
        let written = Shelf::read(&args.dir).and_then(|shelf| textfile::write(path, &shelf, &attempt));
        // A backup that failed is the worse news.
        made.and(written)?;
    } else {
        made?;
    }
    drop(lock);
    Ok(())
}

/// Rounds by the clock.
pub async fn schedule(client: &Client, args: &ScheduleArgs, out: &mut Output) -> Result<(), Failure> {
    let short = [Some(args.every), args.incremental_every].into_iter().flatten().any(|every| every.is_zero());
    if short {
        return Err(Failure::usage("an interval of zero makes no sense").advise("write 5m or 1h"));
    }
    // What is wrong with the folder is said at once.
    drop(Lock::take(&args.dir)?);
    // One for all: what comes while nobody listens is lost.
    let mut stopped = std::pin::pin!(stream::stopped());
    loop {
        let due = Due::of(args)?;
        let round = async {
            tokio::time::sleep(due.wait).await;
            let round = RunArgs {
                dir: args.dir.clone(),
                keep: args.keep,
                keep_days: args.keep_days,
                incremental: due.incremental,
                max_rate: args.max_rate,
                textfile: args.textfile.clone(),
            };
            let began = Instant::now();
            let done = once(client, &round, out).await;
            out.flush()?;
            let pause = match done {
                // Where nothing had changed, there is no file that would say when the next one is due.
                Ok(()) if due.incremental => due.every.saturating_sub(began.elapsed()).min(Due::of(args)?.until_full),
                Ok(()) => Duration::ZERO,
                Err(failure) => {
                    failure.report();
                    RETRY.min(due.every)
                }
            };
            tokio::time::sleep(pause).await;
            Ok::<(), Failure>(())
        };
        tokio::select! {
            done = round => done?,
            () = &mut stopped => return Ok(()),
        }
    }
}

/// What is to be made next, by what is there.
struct Due {
    wait: Duration,
    incremental: bool,
    until_full: Duration,
    /// How often something is made.
    every: Duration,
}

impl Due {
    fn of(args: &ScheduleArgs) -> Result<Due, Failure> {
        let shelf = Shelf::read(&args.dir)?;
        let now = super::now();
        let until = |last: Option<Moment>, every: Duration| {
            last.map_or(Duration::ZERO, |last| every.saturating_sub(now.since(last)))
        };
        let made = |kind| shelf.newest(kind).map(|entry| entry.made);
        let until_full = until(made(Kind::Full), args.every);
        let last = made(Kind::Full).max(made(Kind::Incremental));
        let until_changes = args.incremental_every.map(|every| until(last, every));
        let wait = until_changes.map_or(until_full, |changes| changes.min(until_full));
        let every = args.incremental_every.map_or(args.every, |every| every.min(args.every));
        Ok(Due { wait, incremental: until_full > wait, until_full, every })
    }
}

/// Makes a backup and deletes what is superfluous; returns of which kind it came to be.
async fn make(client: &Client, args: &RunArgs, out: &mut Output) -> Result<Kind, Failure> {
    let shelf = Shelf::read(&args.dir)?;
    if args.incremental {
        for base in shelf.bases() {
            let without = |failure: &Failure| eprintln!("{}; going on without it", failure.text);
            let base = args.dir.join(base.name());
            let wanted = match save::since(&base) {
                Ok(wanted) => wanted,
                Err(failure) => {
                    without(&failure);
                    if source::is_damaged(&failure) {
                        shelf::set_aside(&base)?;
                    }
                    continue;
                }
            };
            let saved = match save_from_any(client, wanted, args).await {
                Ok(saved) => saved,
                Err(failure) if stream::needs_full(&failure) => {
                    without(&failure);
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            match read_back(&saved) {
                Ok(()) => {
                    save::tell(&saved, out)?;
                    return Ok(Kind::Incremental);
                }
                Err(failure) => without(&failure),
            }
        }
    }
    let saved = save_from_any(client, Wanted::Everything { stale: false }, args).await?;
    read_back(&saved)?;
    save::tell(&saved, out)?;
    let shelf = Shelf::read(&args.dir)?;
    for path in shelf::delete(&args.dir, &shelf.superfluous(args.keep, args.keep_days, now()))? {
        out.line(format!("Deleted {}", path.display()))?;
    }
    Ok(Kind::Full)
}

/// Reads from the disk what was saved. What cannot be read back must not pass for a good one, and is removed.
fn read_back(saved: &Saved) -> Result<(), Failure> {
    let Some(path) = &saved.path else { return Ok(()) };
    source::read(path, "verifying", &mut Nobody).map(drop).map_err(|failure| {
        let _ = std::fs::remove_file(path);
        Failure::local(format!("the backup cannot be read back and was removed: {}", failure.text))
            .advise("nothing else was deleted; is the disk of the backups in order?")
    })
}

/// Tries one endpoint after the other, until one gives a backup or says that it cannot be had.
async fn save_from_any(client: &Client, wanted: Wanted, args: &RunArgs) -> Result<Saved, Failure> {
    let pace = Pace { mib_per_second: args.max_rate };
    let mut failed = None;
    for endpoint in client.endpoints() {
        match save::save(&client.only(endpoint), wanted, pace, Target::Folder(&args.dir)).await {
            Ok(saved) => return Ok(saved),
            Err(failure) if stream::needs_full(&failure) => return Err(failure),
            Err(failure) => drop(failed.get_or_insert(failure)),
        }
    }
    Err(failed.expect("there is at least one endpoint"))
}
