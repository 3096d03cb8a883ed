//! `chainfire-client`: Chainfire from the command line. A client of the public API only; it would work against any
//! server of that API, and most of it works against etcd.
//!
//! The life of a command: [`args`] parses it → [`settings`] adds what the environment and [`contexts`] say → [`connect`] finds an endpoint that
//! answers → a module of [`commands`] asks and hands the answer to [`output`], in the form wanted → or something fails,
//! and [`failure`] says in one line what and what to do next, and with which exit code.

mod args;
mod commands;
mod connect;
mod contexts;
#[cfg(test)]
mod documents;
#[cfg(test)]
#[path = "../../../fuzz/mutate.rs"]
mod mutate;
mod range;
mod redact;
mod settings;
mod txn_text;

use std::process::ExitCode;

use clap::Parser as _;

use args::Cli;
use cli::{failure, format, output};
use failure::Failure;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(cli)),
        Err(error) => Err(Failure::local(format!("cannot start: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(cli: Cli) -> Result<(), Failure> {
    commands::run(cli.command, cli.global).await
}
