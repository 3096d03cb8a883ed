//! `snapshot save`, `status`, `verify`, `restore`, `run`, `schedule`: backups.
//!
//! A backup is a stream of the server ([`proto::snapshot`]): its whole state, or what changed since a revision. It is kept
//! in one of two forms, which all commands tell apart by themselves:
//!
//! | form | names | content |
//! |---|---|---|
//! | archive | `*.tar.gz` full, `*.incr.tgz` incremental | one folder with the stream, under the name that a server looks for in a data folder, and a manifest ([`archive`]) |
//! | bare | any other | the stream, and its SHA-256 |
//!
//! The life of a backup: [`save`] receives the stream ([`stream`]) and writes it under a temporary name, which becomes the
//! final one when all is there and durable ([`draft`]) → [`status`] reads it back ([`source`]) → [`restore`] checks all of
//! it and leaves it in an otherwise empty data folder. [`rounds`] makes them by the clock and deletes the old ones
//! ([`shelf`]).
//!
//! What a server makes of such a folder: it founds a cluster of its own with it, or comes back to the one that runs. Nothing
//! of a running cluster is ever rewound.

mod archive;
pub mod args;
mod draft;
mod progress;
mod restore;
mod rounds;
mod save;
mod shelf;
mod source;
mod status;
mod stream;
mod textfile;

use std::time::{SystemTime, UNIX_EPOCH};

pub use args::SnapshotCommand;
use base::Moment;

use crate::connect::Client;
use crate::failure::Failure;
use crate::output::Output;

pub async fn run(client: &Client, command: SnapshotCommand, out: &mut Output) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save(args) => save::run(client, args, out).await,
        SnapshotCommand::Status { file } => status::status(&file, out),
        SnapshotCommand::Verify { files } => status::verify(&files, out),
        SnapshotCommand::Restore(args) => restore::run(&args, out),
        SnapshotCommand::Run(args) => rounds::once(client, &args, out).await,
        SnapshotCommand::Schedule(args) => rounds::schedule(client, &args, out).await,
    }
}

/// What files are named by.
fn now() -> Moment {
    Moment(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs())
}
