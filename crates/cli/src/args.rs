//! The command line, and what the environment adds to it.
//!
//! A setting is taken from its flag, else from its `CHAINFIRE_…` variable, else from etcdctl's `ETCDCTL_…` variable, else
//! it has its default.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::failure::Failure;
use crate::format::{parse_duration, parse_lease_id, parse_node_id};
use crate::output::Format;
use crate::range::Keys;

const DEFAULT_ENDPOINT: &str = "http://127.0.0.1:2379";
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_DIAL_TIMEOUT: Duration = Duration::from_secs(2);

const EXAMPLES: &str = "\
Examples:
  chainfire-client status
  chainfire-client put greeting hello
  chainfire-client get greeting
  chainfire-client get --prefix /config/ --keys-only
  chainfire-client watch --prefix /config/
  chainfire-client member-add --node-id 4 --peer-url 10.0.0.4:2380
  chainfire-client --endpoint node1:2379 --endpoint node2:2379 status --cluster
  chainfire-client snapshot save backup.db

Exit codes:
  0 done    1 refused by the server    2 wrong usage    3 no endpoint reached
  4 no leader or no quorum    5 timed out (a write may have happened)    6 local file trouble";

/// Talk to a Chainfire cluster: keys, watches, leases, members, backups
#[derive(Parser, Debug)]
#[command(name = "chainfire-client", version, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Connection and output")]
pub struct Global {
    /// Where a node answers; repeat it or separate by commas, and the first that can be reached is used
    #[arg(
        long = "endpoint",
        visible_alias = "endpoints",
        value_name = "URL",
        global = true,
        value_delimiter = ',',
        env = "CHAINFIRE_ENDPOINTS",
        help = "Where nodes answer, with or without http://; repeat it or separate by commas, the first that can be \
                reached is used [default: http://127.0.0.1:2379]"
    )]
    endpoints: Vec<String>,
    /// How answers are shown [default: table on a terminal, simple otherwise]
    #[arg(
        short = 'o',
        long,
        visible_short_alias = 'w',
        visible_alias = "write-out",
        global = true,
        env = "CHAINFIRE_OUTPUT"
    )]
    output: Option<Format>,
    /// How long a command may take [default: 5s]
    #[arg(long, visible_alias = "command-timeout", value_name = "DURATION", global = true, value_parser = parse_duration, env = "CHAINFIRE_TIMEOUT")]
    timeout: Option<Duration>,
    /// How long to wait for each endpoint to accept the connection [default: 2s]
    #[arg(long, value_name = "DURATION", global = true, value_parser = parse_duration, env = "CHAINFIRE_DIAL_TIMEOUT")]
    dial_timeout: Option<Duration>,
}

/// What holds for every command.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At least one.
    pub endpoints: Vec<String>,
    pub output: Option<Format>,
    pub timeout: Duration,
    pub dial_timeout: Duration,
}

impl Global {
    /// Fills in etcdctl's variables and the defaults.
    pub fn settle(self) -> Result<Settings, Failure> {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let duration = |flag: Option<Duration>, name: &str, default| match (flag, variable(name)) {
            (Some(flag), _) => Ok(flag),
            (None, Some(text)) => parse_duration(&text).map_err(|why| Failure::usage(format!("{name}: {why}"))),
            (None, None) => Ok(default),
        };
        let mut endpoints = self.endpoints;
        if endpoints.iter().all(|endpoint| endpoint.trim().is_empty()) {
            endpoints.clear();
        }
        if endpoints.is_empty() {
            let listed = variable("ETCDCTL_ENDPOINTS").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
            endpoints.extend(listed.split(',').map(str::to_owned));
        }
        for endpoint in &mut endpoints {
            *endpoint = endpoint.trim().trim_end_matches('/').to_owned();
            if endpoint.is_empty() {
                return Err(Failure::usage("an endpoint is empty").advise("write host:port, such as 127.0.0.1:2379"));
            }
            if endpoint.starts_with("https://") {
                return Err(Failure::usage(format!("{endpoint}: this client speaks no TLS")).advise("use http://"));
            }
            if !endpoint.contains("://") {
                *endpoint = format!("http://{endpoint}");
            }
        }
        let output = match (self.output, variable("ETCDCTL_WRITE_OUT")) {
            (None, Some(text)) => Some(Format::from_str(&text, true).map_err(|_| {
                Failure::usage(format!("ETCDCTL_WRITE_OUT: `{text}` is not among table, json and simple"))
            })?),
            (flag, _) => flag,
        };
        Ok(Settings {
            endpoints,
            output,
            timeout: duration(self.timeout, "ETCDCTL_COMMAND_TIMEOUT", DEFAULT_TIMEOUT)?,
            dial_timeout: duration(self.dial_timeout, "ETCDCTL_DIAL_TIMEOUT", DEFAULT_DIAL_TIMEOUT)?,
        })
    }
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say how a node is: leader, term, indexes, members. Answers without a quorum
    Status(StatusArgs),
    /// List the members. Answers without a quorum
    #[command(visible_alias = "members")]
    MemberList,
    /// Add a member: it learns first and becomes a voter by itself once it has caught up
    #[command(after_help = "\
Example, then start the new node with `bootstrap = false`:
  chainfire-client member-add --node-id 4 --peer-url 10.0.0.4:2380")]
    MemberAdd(MemberAddArgs),
    /// Make a learner a voter
    MemberPromote(NodeArgs),
    /// Remove a member. What it holds is not deleted
    MemberRemove(NodeArgs),
    /// Let a member whose data folder was lost come back under its own node id
    MemberReplace(MemberReplaceArgs),
    /// Put a key
    #[command(after_help = "\
Without VALUE the value is read from standard input:
  chainfire-client put config < config.toml")]
    Put(PutArgs),
    /// Get keys
    Get(GetArgs),
    /// Delete keys and say how many
    #[command(visible_alias = "delete")]
    Del(DelArgs),
    /// Do several things at once, if a condition holds
    #[command(after_help = "\
The transaction is read from standard input, its three parts separated by empty lines: what must hold, what to do
then, what to do otherwise. Compared are value, version, create, mod and lease, with = != < >.

  chainfire-client txn <<END
  mod(\"config\") = \"7\"
  version(\"lock\") = \"0\"

  put config \"new value\"

  get config
  END")]
    Txn,
    /// Follow changes as they happen
    #[command(after_help = "\
Each event is printed as PUT or DELETE, the key and the value, each on its line; with -o json as one line. A watch
that loses its node goes on at another endpoint, without a gap. Ctrl-C ends it.")]
    Watch(WatchArgs),
    /// Leases: keys that vanish when nobody renews them
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Forget history before a revision
    #[command(visible_alias = "compaction")]
    Compact(CompactArgs),
    /// Hand leadership to a member
    MoveLeader(MoveLeaderArgs),
    /// Alarms: what keeps the cluster from taking writes
    #[command(subcommand)]
    Alarm(AlarmCommand),
    /// Ask nodes to give disk space back; nothing pauses meanwhile
    Defrag(ClusterArgs),
    /// Hash all keys and their history, to compare nodes
    Hashkv(HashKvArgs),
    /// Backups: save, check, restore
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Print a completion script
    #[command(after_help = "\
Example: chainfire-client completion bash > /etc/bash_completion.d/chainfire-client")]
    Completion { shell: clap_complete::Shell },
}

#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// Ask every member of the cluster, not only the endpoints given
    #[arg(long)]
    pub cluster: bool,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Ask every member; exit code 4 unless a leader is known and a majority answers
    #[arg(long)]
    pub cluster: bool,
}

#[derive(Args, Debug)]
pub struct MemberAddArgs {
    /// The new node's id; drawn by the cluster when left out
    #[arg(long, value_parser = parse_node_id)]
    pub node_id: Option<u64>,
    /// Where the other nodes reach it, host:port; repeat it or separate by commas
    #[arg(
        long = "peer-url",
        visible_alias = "peer-urls",
        value_name = "HOST:PORT",
        required = true,
        value_delimiter = ','
    )]
    pub peer_urls: Vec<String>,
    /// A name for people
    #[arg(long, default_value = "")]
    pub name: String,
    /// Stay a learner, which serves reads but has no vote, until `member-promote`
    #[arg(long)]
    pub learner: bool,
}

#[derive(Args, Debug)]
pub struct NodeArgs {
    #[arg(long, value_parser = parse_node_id)]
    pub node_id: u64,
}

#[derive(Args, Debug)]
pub struct MemberReplaceArgs {
    #[arg(long, value_parser = parse_node_id)]
    pub node_id: u64,
    /// The folder that takes over, as the node's log names it (hexadecimal); otherwise the next that presents itself
    #[arg(long, value_parser = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16))]
    pub peer_id: Option<u64>,
}

#[derive(Args, Debug)]
pub struct PutArgs {
    pub key: String,
    /// Read from standard input when left out
    #[arg(allow_hyphen_values = true)]
    pub value: Option<String>,
    /// Attach the key to a lease
    #[arg(long, value_name = "ID", value_parser = parse_lease_id)]
    pub lease: Option<i64>,
    /// Print what the key held before
    #[arg(long)]
    pub prev_kv: bool,
    /// Keep the value, change the lease
    #[arg(long, conflicts_with = "value")]
    pub ignore_value: bool,
    /// Keep the lease, change the value
    #[arg(long, conflicts_with = "lease")]
    pub ignore_lease: bool,
}

#[derive(Args, Debug)]
pub struct GetArgs {
    #[command(flatten)]
    pub keys: Keys,
    /// At most so many keys
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub limit: i64,
    /// As of this revision
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub rev: i64,
    #[arg(long, visible_alias = "sort-order", value_enum)]
    pub order: Option<Order>,
    #[arg(long, value_enum)]
    pub sort_by: Option<SortBy>,
    #[arg(long, conflicts_with = "count_only")]
    pub keys_only: bool,
    #[arg(long)]
    pub count_only: bool,
    /// Print values without their keys
    #[arg(long, visible_alias = "value-only", conflicts_with_all = ["keys_only", "count_only"])]
    pub print_value_only: bool,
    /// Answer from the node at hand, which may lag behind; works without a quorum
    #[arg(long)]
    pub serializable: bool,
    /// etcdctl's way to say it: `l` or `s`
    #[arg(long, value_name = "l|s", hide = true, value_parser = ["l", "s"], conflicts_with = "serializable")]
    pub consistency: Option<String>,
    /// Print bytes as \x..
    #[arg(long)]
    pub hex: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    #[value(alias = "ASCEND")]
    Ascend,
    #[value(alias = "DESCEND")]
    Descend,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    #[value(alias = "KEY")]
    Key,
    #[value(alias = "VERSION")]
    Version,
    #[value(alias = "CREATE")]
    Create,
    #[value(aliases = ["MODIFY", "mod"])]
    Modify,
    #[value(alias = "VALUE")]
    Value,
}

#[derive(Args, Debug)]
pub struct DelArgs {
    #[command(flatten)]
    pub keys: Keys,
    /// Print what was deleted
    #[arg(long)]
    pub prev_kv: bool,
}

#[derive(Args, Debug)]
pub struct WatchArgs {
    #[command(flatten)]
    pub keys: Keys,
    /// Begin at this revision, in the past or in the future
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub rev: i64,
    /// Print what keys held before
    #[arg(long)]
    pub prev_kv: bool,
    /// Print a line when the node says that it is up to date (every 10 minutes without events)
    #[arg(long, visible_alias = "progress-notify")]
    pub progress: bool,
    /// Leave out `put` or `delete` events
    #[arg(long, value_enum)]
    pub without: Option<WithoutEvents>,
    /// End after so many events
    #[arg(long)]
    pub events: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WithoutEvents {
    Put,
    Delete,
}

#[derive(Subcommand, Debug)]
pub enum LeaseCommand {
    /// Make a lease that lives so many seconds
    Grant {
        #[arg(value_name = "SECONDS")]
        ttl: i64,
        /// Choose the id (hexadecimal)
        #[arg(long, value_parser = parse_lease_id)]
        id: Option<i64>,
    },
    /// End a lease; its keys are deleted
    Revoke {
        #[arg(value_parser = parse_lease_id)]
        id: i64,
    },
    /// Say how long a lease still lives
    #[command(visible_alias = "time-to-live")]
    Timetolive {
        #[arg(value_parser = parse_lease_id)]
        id: i64,
        /// And which keys hang on it
        #[arg(long)]
        keys: bool,
    },
    /// List all leases
    List,
    /// Renew a lease until Ctrl-C
    KeepAlive {
        #[arg(value_parser = parse_lease_id)]
        id: i64,
        /// Once is enough
        #[arg(long)]
        once: bool,
    },
}

#[derive(Args, Debug)]
pub struct CompactArgs {
    #[arg(value_name = "REVISION")]
    pub revision: i64,
    /// Return only when the space is reclaimed
    #[arg(long)]
    pub physical: bool,
}

#[derive(Args, Debug)]
pub struct MoveLeaderArgs {
    #[arg(value_name = "NODE_ID", value_parser = parse_node_id)]
    pub node_id: u64,
}

#[derive(Subcommand, Debug)]
pub enum AlarmCommand {
    /// List the alarms that are raised
    List,
    /// Call all alarms off, once their cause is gone
    Disarm,
}

#[derive(Args, Debug)]
pub struct HashKvArgs {
    /// Up to this revision, so that nodes can be compared while writes go on
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub rev: i64,
    /// Ask every member of the cluster, not only the endpoints given
    #[arg(long)]
    pub cluster: bool,
}

#[derive(Subcommand, Debug)]
pub enum SnapshotCommand {
    /// Save the whole store into a file
    Save { file: PathBuf },
    /// Check a saved file and say what is in it
    Status { file: PathBuf },
    /// Prepare a data folder from a saved file: the node started on it founds a cluster of its own
    #[command(after_help = "\
Example, on a machine whose node is stopped:
  chainfire-client snapshot restore backup.db --data-dir /var/lib/chainfire
  systemctl start chainfire")]
    Restore {
        file: PathBuf,
        /// Must be empty or absent
        #[arg(long, value_name = "DIR")]
        data_dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn endpoints_are_completed() {
        let cli = Cli::parse_from(["x", "--endpoint", "a:1,http://b:2/", "--endpoints", "c:3", "status"]);
        assert_eq!(cli.global.settle().unwrap().endpoints, ["http://a:1", "http://b:2", "http://c:3"]);
    }
}
