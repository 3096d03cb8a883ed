//! One module per family of commands.

mod bundle;
mod cluster;
mod compact;
mod context;
pub mod keys;
mod lease;
mod maintenance;
pub mod manual;
mod members;
pub mod put;
mod scrub;
pub mod snapshot;
mod status;
mod txn;
mod watch;

use clap::CommandFactory as _;

use crate::args::{Cli, Command, DebugCommand};
use crate::connect::Client;
use crate::failure::Failure;
use crate::output::Output;
use crate::settings::Global;

pub async fn run(command: Command, global: Global) -> Result<(), Failure> {
    match command {
        Command::Context(command) => {
            let mut out = Output::new(global.output);
            context::run(command, &global, &mut out)?;
            return out.flush().map_err(Failure::from);
        }
        Command::Completion { shell } => {
            return cli::manual::completion(Cli::command(), shell);
        }
        Command::Man(args) => return manual::run(args),
        _ => {}
    }
    let settings = global.settle()?;
    let mut out = Output::new(settings.output);
    let client = Client::new(settings);
    match command {
        Command::Status(args) => status::run(&client, args, &mut out).await,
        Command::MemberList => members::list(&client, &mut out).await,
        Command::MemberAdd(args) => members::add(&client, args, &mut out).await,
        Command::MemberPromote(args) => members::promote(&client, args.node_id, &mut out).await,
        Command::MemberRemove(args) => members::remove(&client, args.node_id, &mut out).await,
        Command::MemberReplace(args) => members::replace(&client, args, &mut out).await,
        Command::Put(args) => put::run(&client, args, &mut out).await,
        Command::Get(args) => keys::get(&client, args, &mut out).await,
        Command::Del(args) => keys::delete(&client, args, &mut out).await,
        Command::Txn => txn::run(&client, &mut out).await,
        Command::Watch(args) => watch::run(&client, args, &mut out).await,
        Command::Lease(command) => lease::run(&client, command, &mut out).await,
        Command::Compact(args) => compact::run(&client, args, &mut out).await,
        Command::MoveLeader(args) => maintenance::move_leader(&client, args.node_id, &mut out).await,
        Command::Alarm(command) => maintenance::alarm(&client, command, &mut out).await,
        Command::Defrag(args) => maintenance::defragment(&client, args.cluster, &mut out).await,
        Command::Hashkv(args) => maintenance::hash_kv(&client, args, &mut out).await,
        Command::Scrub(args) => scrub::run(&client, args, &mut out).await,
        Command::Snapshot(command) => snapshot::run(&client, command, &mut out).await,
        Command::Debug(DebugCommand::Bundle(args)) => bundle::run(&client, args, &mut out).await,
        Command::Context(_) | Command::Completion { .. } | Command::Man(_) => unreachable!("they need no server"),
    }?;
    out.flush().map_err(Failure::from)
}
