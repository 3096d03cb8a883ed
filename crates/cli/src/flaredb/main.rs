//! `flaredb-client`: FlareDB from the command line. A client of the public APIs only.
//!
//! Keys are asked of any endpoint: a store finds the way itself, and a placement driver says which store to ask. What
//! concerns the cluster is asked of the placement driver.

mod cluster;
mod connect;
mod keys;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser, Subcommand};
use cli::failure::Failure;
use cli::format::parse_duration;
use cli::manual;
use cli::output::{Format, Output};
use connect::Certificates;

/// FlareDB from the command line
#[derive(Parser)]
#[command(name = "flaredb-client", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Args, Clone)]
struct Global {
    /// A store, or for what concerns the cluster the placement driver
    #[arg(long, value_name = "URL", global = true, env = "FLAREDB_ENDPOINT", default_value = "http://127.0.0.1:2379")]
    endpoint: String,
    #[command(flatten)]
    certificates: Certificates,
    /// How answers are shown [default: table on a terminal, simple otherwise]
    #[arg(short = 'o', long, global = true, env = "FLAREDB_OUTPUT")]
    output: Option<Format>,
    /// How long a command may take
    #[arg(long, value_name = "DURATION", global = true, value_parser = parse_duration, env = "FLAREDB_TIMEOUT", default_value = "30s")]
    timeout: Duration,
}

#[derive(Subcommand)]
enum Command {
    /// Stores, members of the placement driver, and whether all is well (exit code 1: it is not)
    ClusterStatus,
    /// Print the value of a key (exit code 1: there is none)
    Get { key: String },
    /// Write a key
    Put { key: String, value: String },
    /// Delete a key; says whether it was there
    #[command(visible_alias = "del")]
    Delete { key: String },
    /// Print pairs in the order of their keys
    Scan {
        /// The first key
        #[arg(default_value = "")]
        start: String,
        /// Where to end, exclusive
        #[arg(default_value = "")]
        end: String,
        /// Only keys that begin like this
        #[arg(long, conflicts_with_all = ["start", "end"])]
        prefix: Option<String>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        #[arg(long)]
        keys_only: bool,
    },
    /// The stores, as the placement driver's page shows them
    Stores,
    /// The regions
    Regions,
    /// Operators under way; with --ended those that are over
    Operators {
        #[arg(long)]
        ended: bool,
    },
    /// The schedulers that are on
    Schedulers,
    /// Write manual pages
    Man {
        /// The folder to write a page per command to; otherwise the main page is printed
        #[arg(long, value_name = "FOLDER")]
        dir: Option<std::path::PathBuf>,
        /// Print all commands as one Markdown page instead
        #[arg(long, conflicts_with = "dir")]
        markdown: bool,
    },
    /// Print a completion script
    Completion { shell: clap_complete::Shell },
    /// What is wanted for a region or a store, and what stands in the way
    Explain {
        #[command(subcommand)]
        what: Explain,
    },
}

#[derive(Subcommand)]
enum Explain {
    Region { id: u64 },
    Store { id: u64 },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(async {
            let endpoint = cli.global.endpoint.clone();
            let run = run(cli.command, &cli.global);
            tokio::time::timeout(cli.global.timeout, run).await.unwrap_or_else(|_| Err(Failure::timed_out(&endpoint)))
        }),
        Err(error) => Err(Failure::local(format!("cannot start: {error}"))),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => failure.report(),
    }
}

/// Whether what was asked for is there, or well.
async fn run(command: Command, global: &Global) -> Result<bool, Failure> {
    let mut output = Output::new(global.output);
    let done = match command {
        Command::Man { markdown: true, .. } => manual::print(markdown().as_bytes()).map(|()| true)?,
        Command::Man { dir, .. } => manual::man(Cli::command(), "FlareDB", dir).map(|()| true)?,
        Command::Completion { shell } => manual::completion(Cli::command(), shell).map(|()| true)?,
        Command::ClusterStatus => cluster::status(global, &mut output).await?,
        Command::Get { key } => keys::get(global, key, &mut output).await?,
        Command::Put { key, value } => keys::put(global, key, value, &mut output).await?,
        Command::Delete { key } => keys::delete(global, key, &mut output).await?,
        Command::Scan { start, end, prefix, limit, keys_only } => {
            let (start, end) = match prefix {
                Some(prefix) => (prefix.clone().into_bytes(), keys::end_of_prefix(prefix.as_bytes())),
                None => (start.into_bytes(), end.into_bytes()),
            };
            keys::scan(global, start, end, limit, keys_only, &mut output).await?
        }
        Command::Stores => cluster::page(global, "stores", &mut output).await?,
        Command::Regions => cluster::page(global, "regions", &mut output).await?,
        Command::Operators { ended: false } => cluster::page(global, "operators", &mut output).await?,
        Command::Operators { ended: true } => cluster::page(global, "operators/records", &mut output).await?,
        Command::Schedulers => cluster::page(global, "schedulers", &mut output).await?,
        Command::Explain { what: Explain::Region { id } } => {
            cluster::page(global, &format!("explain/region/{id}"), &mut output).await?
        }
        Command::Explain { what: Explain::Store { id } } => {
            cluster::page(global, &format!("explain/store/{id}"), &mut output).await?
        }
    };
    output.flush()?;
    Ok(done)
}

/// docs/reference/flaredb-client.md
fn markdown() -> String {
    manual::markdown(Cli::command(), "crates/cli/src/flaredb/main.rs")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE=1 cargo test --release --workspace documents` writes it anew.
    #[test]
    fn what_the_documents_say_is_current() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/flaredb-client.md");
        if std::env::var_os("UPDATE").is_some() {
            return std::fs::write(file, markdown()).unwrap();
        }
        assert!(std::fs::read_to_string(&file).unwrap_or_default() == markdown(), "{} differs", file.display());
    }
}
