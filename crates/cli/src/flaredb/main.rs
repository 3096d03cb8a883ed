//! `flaredb-client`: FlareDB from the command line. A client of the public APIs only.
//!
//! Keys are asked of any endpoint: a store and a placement driver both pass requests on to the store that has the key. What
//! concerns the cluster is asked of the placement driver.
//!
//! [`args`] parses a command → [`keys`] asks over gRPC, all others ask the placement driver's pages ([`pd`]), both by the way
//! that [`connect`] finds → [`show`].

mod args;
mod cluster;
mod connect;
#[cfg(test)]
mod documents;
mod drain;
mod keys;
mod manual;
mod members;
mod operators;
mod pd;
mod scrub;
mod show;
mod stores;

use std::process::ExitCode;

use clap::Parser as _;
use cli::failure::Failure;
use cli::output::Output;

use args::{Cli, Command, Explain, Global, Operators, Regions, Schedulers, Stores};
use drain::Drained;
use pd::Pages;

/// As a shell reports a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let asked = cli.global.members().join(",");
            let timeout = cli.global.timeout;
            let watches = matches!(cli.command, Command::Drain(_) | Command::Scrub { .. });
            let run = run(cli.command, &cli.global);
            // These take as long as they take; their questions have the time-out each.
            if watches {
                return run.await;
            }
            tokio::time::timeout(timeout, run).await.unwrap_or_else(|_| Err(Failure::timed_out(&asked)))
        }),
        Err(error) => Err(Failure::local(format!("cannot start: {error}"))),
    };
    result.unwrap_or_else(|failure| failure.report())
}

/// Exit code 1: what was asked for is not there, or not well.
async fn run(command: Command, global: &Global) -> Result<ExitCode, Failure> {
    let mut output = Output::new(global.output);
    let output = &mut output;
    let pages = &Pages::new(global);
    let mut done = true;
    match command {
        Command::Completion { shell } => manual::completion(shell)?,
        Command::Man { dir, markdown } => manual::run(dir, markdown)?,
        Command::ClusterStatus => done = cluster::status(global, output).await?,
        Command::Get { key } => done = keys::get(global, key, output).await?,
        Command::Put { key, value } => done = keys::put(global, key, value, output).await?,
        Command::Delete { key } => done = keys::delete(global, key, output).await?,
        Command::Scan { start, end, prefix, limit, keys_only } => {
            let (start, end) = match prefix {
                Some(prefix) => (prefix.clone().into_bytes(), keys::end_of_prefix(prefix.as_bytes())),
                None => (start.into_bytes(), end.into_bytes()),
            };
            done = keys::scan(global, start, end, limit, keys_only, output).await?;
        }
        Command::Stores { what } => stores::run(pages, what.unwrap_or(Stores::List), output).await?,
        Command::Regions { what } => {
            stores::regions(pages, what.unwrap_or(Regions::List { limit: 1000 }), output).await?;
        }
        Command::Operators { ended: true, .. } => operators::ended(pages, output).await?,
        Command::Operators { what, .. } => operators::run(pages, what.unwrap_or(Operators::List), output).await?,
        Command::Schedulers { what } => {
            operators::schedulers(pages, what.unwrap_or(Schedulers::List), output).await?;
        }
        Command::Policy { what } => operators::policy(pages, what, output).await?,
        Command::Scrub { cluster } => done = scrub::run(pages, cluster, output).await?,
        Command::Pd { what } => members::run(pages, what, output).await?,
        Command::Explain { what } => {
            let path = match what {
                Explain::Region { id } => format!("explain/region/{id}"),
                Explain::Store { id } => format!("explain/store/{id}"),
                Explain::Removal { store } => format!("explain/removal/{store}"),
            };
            show::text(output, &pages.get(&path).await?)?;
        }
        Command::Drain(args) => match drain::run(pages, &args, output).await? {
            Drained::Done => {}
            Drained::Refused => done = false,
            Drained::Interrupted => {
                output.flush()?;
                return Ok(INTERRUPTED.into());
            }
        },
    }
    output.flush()?;
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
