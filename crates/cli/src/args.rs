//! The command line: all commands and their flags. What holds for every command is in [`crate::settings`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::snapshot::SnapshotCommand;
use crate::format::{parse_lease_id, parse_node_id};
use crate::range::Keys;
use crate::settings::Global;

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
  chainfire-client --endpoint https://node1:2379 --cacert ca.crt --cert client.crt --key client.key status

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

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Say how a node is: leader, term, indexes, members. Answers without a quorum
    #[command(after_help = "\
With --cluster all members are asked. Exit codes then:
  0 the cluster takes writes: a leader is known and a majority of the voters answers. It may be degraded still: scripts
    compare `.health` of -o json with \"good\", people read `advice:`
  3 no member can be reached
  4 quorum lost, or no leader elected
  5 a member was reached, and none answers in time

Examples:
  chainfire-client status | grep leader
  watch -n 1 'chainfire-client status | grep raft_index'
  chainfire-client status --cluster -o json | jq -r .health")]
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
    /// Get keys. That there are none is an answer, too (exit code 0)
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
    /// Have nodes read all their data again, to find damage; waits until they have
    Scrub(ClusterArgs),
    /// Backups: save, check, restore, keep
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Named clusters: endpoints and certificates under a name, for --context NAME
    #[command(subcommand)]
    Context(ContextCommand),
    /// Looking into trouble
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Write manual pages
    Man(ManArgs),
    /// Print a completion script
    #[command(after_help = "\
Example: chainfire-client completion bash > /etc/bash_completion.d/chainfire-client")]
    Completion { shell: clap_complete::Shell },
}

#[derive(Subcommand, Debug)]
pub enum DebugCommand {
    /// Gather what is needed to look into trouble from all members that answer, into one archive without secrets
    #[command(after_help = "\
In the archive: status, members, metrics, versions, alarms and hashes of each member; the end of the journal and the
configuration of the node on this machine, or of the files given; facts about this machine; and a manifest that says what
could not be had and why. Keys, values, passwords and private keys are not in it; in logs they are blacked out.

Example, on a node, as root:
  chainfire-client debug bundle
and where the node does not log to the journal:
  chainfire-client debug bundle --log chainfire.log")]
    Bundle(BundleArgs),
}

#[derive(Args, Debug)]
pub struct BundleArgs {
    /// The archive to make [default: chainfire-debug-TIME.tar.gz]
    #[arg(short = 'f', long = "file", value_name = "FILE.tar.gz")]
    pub file: Option<PathBuf>,
    /// A log file to take the last 8 MiB of; repeat it [default: the journal of chainfire.service on this machine]
    #[arg(long, value_name = "FILE")]
    pub log: Vec<PathBuf>,
    /// A configuration file to take along; repeat it [default: that of the node on this machine, with its drop-ins]
    #[arg(long, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// Where the node on this machine is configured
    #[arg(long, hide = true, value_name = "FILE", default_value = "/etc/centra-cloud/chainfire.toml")]
    pub node_config: PathBuf,
}

#[derive(Args, Debug)]
pub struct ManArgs {
    /// The folder to write a page per command to; otherwise the main page is printed
    #[arg(long, value_name = "FOLDER")]
    pub dir: Option<PathBuf>,
    /// Print all commands as one Markdown page instead
    #[arg(long, conflicts_with = "dir")]
    pub markdown: bool,
}

#[derive(Subcommand, Debug)]
pub enum ContextCommand {
    /// List the contexts; the current one carries a star
    List,
    /// Make a context current: it is used when neither flags nor variables name endpoints
    Use { name: String },
    /// Make or change a context: it takes --endpoint, --cacert, --cert, --key and --server-name as given
    #[command(after_help = "\
Example:
  chainfire-client context set prod --endpoint https://node1:2379,https://node2:2379 \\
    --cacert ca.crt --cert client.crt --key client.key")]
    Set { name: String },
    /// Forget a context
    Remove { name: String },
}

#[derive(Args, Debug)]
pub struct ClusterArgs {
    /// Ask every member of the cluster, not only the endpoints given
    #[arg(long)]
    pub cluster: bool,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Ask every member, and say whether the cluster takes writes, who does not answer and why, and what to do
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
    /// Where the node will be from now on, if that is another place: host:port, with or without a scheme
    #[arg(long, value_name = "HOST:PORT")]
    pub peer_url: Vec<String>,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
