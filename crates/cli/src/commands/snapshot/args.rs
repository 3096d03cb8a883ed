//! The command line of `snapshot`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::format::parse_duration;

#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    /// Save the whole store into a file, or what changed since another backup
    #[command(after_help = "\
A name that ends in .tar.gz (or .tgz) gives an archive with a manifest; any other, the bare stream.

Examples:
  chainfire-client snapshot save backup.tar.gz
  chainfire-client snapshot save --output-dir /var/backups/chainfire
  chainfire-client snapshot save --incremental --since backup.tar.gz --output-dir /var/backups/chainfire")]
    Save(SaveArgs),
    /// Say what is in a saved file, after checking its digests and its structure
    #[command(after_help = "\
With -o simple in etcdctl's way: digest, revision, number of keys, size; of an incremental backup the revision since when, too.")]
    Status { file: PathBuf },
    /// Check saved files without restoring them: digests, structure, every record, all counts
    #[command(after_help = "\
Exit code 0 when all files are intact, 6 when one is not or cannot be read.")]
    Verify {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Prepare a data folder from a full backup and, if wanted, the incremental ones after it
    #[command(after_help = "\
Everything is checked before anything is written. Incremental backups may be given in any order; those that the full
one makes superfluous are passed over. The node that is started on the folder founds a cluster of its own, or comes back
to the one it belongs to if that runs.

Examples, on a machine whose node is stopped:
  chainfire-client snapshot restore backup.tar.gz --data-dir /var/lib/chainfire
  chainfire-client snapshot restore FULL.tar.gz *.incr.tgz --to-revision 4711 --data-dir /var/lib/chainfire
  chown -R chainfire:chainfire /var/lib/chainfire
  systemctl start chainfire")]
    Restore(RestoreArgs),
    /// Make one backup in a folder and delete the oldest; for timers
    #[command(after_help = "\
Example, as chainfire-backup.service calls it:
  chainfire-client snapshot run --dir /var/backups/chainfire --keep 24")]
    Run(RunArgs),
    /// Make backups in a folder at intervals, until stopped; for containers
    #[command(after_help = "\
Example:
  chainfire-client snapshot schedule --dir /var/backups/chainfire --every 1h --keep 24 --incremental-every 5m")]
    Schedule(ScheduleArgs),
}

#[derive(Args, Debug)]
pub struct SaveArgs {
    #[arg(required_unless_present = "output_dir", conflicts_with = "output_dir")]
    pub file: Option<PathBuf>,
    /// Make an archive in this folder, named by time and revision
    #[arg(long, value_name = "DIR")]
    pub output_dir: Option<PathBuf>,
    /// Save only what changed since the backup that --since names
    #[arg(long, requires = "since")]
    pub incremental: bool,
    /// The full or the last incremental backup
    #[arg(long, value_name = "FILE", requires = "incremental")]
    pub since: Option<PathBuf>,
    /// Save what one node holds, although it may lag behind or be cut off: for a cluster that has no quorum
    #[arg(long, conflicts_with_all = ["incremental", "output_dir"])]
    pub stale: bool,
    /// At most so many MiB a second, so that writers are not held up meanwhile; 0: as fast as possible
    #[arg(long, value_name = "MIB", default_value_t = 10)]
    pub max_rate: u32,
}

#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// A full backup, and incremental ones that follow on it
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Must be empty or absent
    #[arg(long, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Stop at this revision instead of the last one there is
    #[arg(long, value_name = "REVISION")]
    pub to_revision: Option<i64>,
}

#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Where backups are kept
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How many full backups are kept
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: u32,
    /// And all full backups of so many days
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
    /// Save only what changed since the last backup there, if that is possible
    #[arg(long)]
    pub incremental: bool,
    /// At most so many MiB a second, so that writers are not held up meanwhile; 0: as fast as possible
    #[arg(long, value_name = "MIB", default_value_t = 10)]
    pub max_rate: u32,
    /// Write figures for Prometheus' node exporter into this file
    #[arg(long, value_name = "PATH")]
    pub textfile: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct ScheduleArgs {
    /// Where backups are kept
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// How often a full backup is made
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub every: Duration,
    /// How often what changed is saved in between
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub incremental_every: Option<Duration>,
    /// How many full backups are kept
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    pub keep: u32,
    /// And all full backups of so many days
    #[arg(long, value_name = "DAYS")]
    pub keep_days: Option<u32>,
    /// At most so many MiB a second, so that writers are not held up meanwhile; 0: as fast as possible
    #[arg(long, value_name = "MIB", default_value_t = 10)]
    pub max_rate: u32,
    /// Write figures for Prometheus' node exporter into this file
    #[arg(long, value_name = "PATH")]
    pub textfile: Option<PathBuf>,
}
