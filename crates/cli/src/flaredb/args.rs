//! The command line: all commands and their flags.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use cli::format::parse_duration;
use cli::output::Format;

use crate::connect::Certificates;

const EXAMPLES: &str = "\
Examples:
  flaredb-client cluster-status
  flaredb-client --endpoint http://STORE:2379 put greeting hello
  flaredb-client --endpoint http://PD:2379 get greeting
  flaredb-client --pd http://PD1:2379,http://PD2:2379 scan --prefix user/
  flaredb-client --endpoint http://PD:2379 stores
  flaredb-client --endpoint http://PD:2379 drain 4 --dry-run
  flaredb-client --endpoint http://PD:2379 explain region 7

Exit codes:
  0 done; what was asked for is there, or well
  1 refused by the server, or there is no such key, or the cluster is not healthy
  2 wrong usage    3 no endpoint reached    4 no leader or no quorum
  5 timed out (a write may have happened)    6 local trouble    130 interrupted";

/// Talk to a FlareDB cluster: keys, and what stores, regions and the placement driver are to do
#[derive(Parser, Debug)]
#[command(name = "flaredb-client", version, arg_required_else_help = true, after_help = EXAMPLES, max_term_width = 110)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Keys and scrub: any store or member of the placement driver. All other commands: a member of the placement driver
    #[arg(long, value_name = "URL", global = true, env = "FLAREDB_ENDPOINT", default_value = "http://127.0.0.1:2379")]
    pub endpoint: String,
    /// Members of the placement driver, asked instead of the endpoint: keys are then had from the stores that lead them, and not
    /// by way of others
    #[arg(long, value_name = "URL", global = true, env = "FLAREDB_PD", value_delimiter = ',')]
    pub pd: Vec<String>,
    #[command(flatten)]
    pub certificates: Certificates,
    /// How answers are shown [default: table on a terminal, simple otherwise]
    #[arg(short = 'o', long, global = true, env = "FLAREDB_OUTPUT")]
    pub output: Option<Format>,
    /// How long a command may take; of a drain and a scrub, how long each question may take
    #[arg(long, value_name = "DURATION", global = true, value_parser = parse_duration, env = "FLAREDB_TIMEOUT", default_value = "30s")]
    pub timeout: Duration,
}

impl Global {
    /// Who may know about the cluster: any of them.
    pub fn members(&self) -> &[String] {
        if self.pd.is_empty() { std::slice::from_ref(&self.endpoint) } else { &self.pd }
    }
}

#[derive(Subcommand, Debug)]
pub enum Command {
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
        /// Without the values
        #[arg(long)]
        keys_only: bool,
    },
    /// The stores: how full, how busy, how weighted
    #[command(args_conflicts_with_subcommands = true)]
    Stores {
        #[command(subcommand)]
        what: Option<Stores>,
    },
    /// The regions: where they are, how large, how busy
    #[command(args_conflicts_with_subcommands = true)]
    Regions {
        #[command(subcommand)]
        what: Option<Regions>,
    },
    /// What is being done to regions: operators under way, ended, asked for
    #[command(args_conflicts_with_subcommands = true)]
    Operators {
        /// Those that are over, the last one first
        #[arg(long)]
        ended: bool,
        #[command(subcommand)]
        what: Option<Operators>,
    },
    /// What moves regions and leaders about by itself
    #[command(args_conflicts_with_subcommands = true)]
    Schedulers {
        #[command(subcommand)]
        what: Option<Schedulers>,
    },
    /// What is wanted: replicas, limits, thresholds
    Policy {
        #[command(subcommand)]
        what: Policy,
    },
    /// Empty a store, so that it can be removed, and show how far that is
    #[command(after_help = "\
The store is removed when nothing is left on it. While that takes, its replicas serve on. Ctrl-C ends the watching, not
the draining; --cancel ends the draining, and what has been moved stays where it is.

Examples:
  flaredb-client drain 4 --dry-run
  flaredb-client drain 4
  flaredb-client drain 4 --cancel")]
    Drain(DrainArgs),
    /// What is wanted for a region or a store, and what stands in the way
    Explain {
        #[command(subcommand)]
        what: Explain,
    },
    /// The placement driver's own members and their leader
    Pd {
        #[command(subcommand)]
        what: Pd,
    },
    /// Have stores and members of the placement driver read all their data again, to find damage; waits until they have
    #[command(after_help = "\
Without --cluster the endpoint is asked, or each member that --pd or FLAREDB_PD names. What is damaged is made anew from the others by
itself, where there are others: the log of the store or member says what it does.

Exit codes: 0 nothing is damaged, 1 damage was found, or one of them did not come to an end.")]
    Scrub {
        /// All stores and all members of the placement driver
        #[arg(long)]
        cluster: bool,
    },
    /// Write manual pages
    Man {
        /// Into this folder, a page for each command
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The reference in Markdown instead
        #[arg(long, conflicts_with = "dir")]
        markdown: bool,
    },
    /// Print a completion script
    #[command(after_help = "\
Example: flaredb-client completion bash > /etc/bash_completion.d/flaredb-client")]
    Completion { shell: clap_complete::Shell },
}

#[derive(Subcommand, Debug)]
pub enum Stores {
    /// All that are not removed
    List,
    /// One, with all that is known of it
    Show { store: u64 },
    /// Set the share of leaders and bytes that a store takes, beside a store of weight 1
    Weight {
        store: u64,
        /// 0.01 to 1000
        #[arg(long, required_unless_present = "region")]
        leader: Option<f64>,
        /// 0.01 to 1000
        #[arg(long)]
        region: Option<f64>,
    },
    /// Show or set how many replicas a minute a store takes in and gives
    Limit {
        store: u64,
        /// Replicas a minute, in either direction
        #[arg(conflicts_with_all = ["add", "remove", "clear"])]
        rate: Option<u32>,
        /// Replicas a minute that it takes in
        #[arg(long)]
        add: Option<u32>,
        /// Replicas a minute that are taken from it
        #[arg(long)]
        remove: Option<u32>,
        /// Back to the policy's
        #[arg(long, conflicts_with_all = ["add", "remove"])]
        clear: bool,
    },
    /// Set labels of a store, or take them back
    Label {
        store: u64,
        #[arg(value_name = "NAME=VALUE", value_parser = parse_pair, required_unless_present = "remove")]
        labels: Vec<(String, String)>,
        /// A label that was set
        #[arg(long, value_name = "NAME", conflicts_with = "labels")]
        remove: Option<String>,
    },
    /// Say that a store's data folder was moved and nothing runs where it was: it may come back at another address, once
    Moved { store: u64 },
}

#[derive(Subcommand, Debug)]
pub enum Regions {
    /// All, in the order of their keys
    List {
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// One, with all that is known of it
    Show { region: u64 },
    /// The one that has a key
    At { key: String },
    /// Those with a replica in a store
    Store {
        store: u64,
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Those with something the matter
    Check {
        /// miss-peer, extra-peer, down-peer, pending-peer, learner-peer, offline-peer, no-leader, empty-region,
        /// oversized-region or undersized-region
        what: String,
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Those that carry most, the busiest first
    Hot {
        /// By what is read, instead of what is written
        #[arg(long)]
        read: bool,
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

#[derive(Subcommand, Debug)]
pub enum Operators {
    /// Those under way
    List,
    /// The one on a region
    Show { region: u64 },
    /// Call off the one on a region
    Cancel { region: u64 },
    /// Ask for one
    #[command(subcommand)]
    Add(AddOperator),
}

#[derive(Subcommand, Debug)]
pub enum AddOperator {
    /// Have another replica lead
    TransferLeader { region: u64, to_store: u64 },
    /// Move a replica from one store to another
    MovePeer { region: u64, from_store: u64, to_store: u64 },
    /// Add a replica
    AddPeer { region: u64, store: u64 },
    /// Remove a replica
    RemovePeer { region: u64, store: u64 },
    /// Cut a region at keys
    Split {
        region: u64,
        #[arg(required = true)]
        keys: Vec<String>,
    },
    /// Make a region part of one beside it
    Merge { region: u64, into: u64 },
}

#[derive(Subcommand, Debug)]
pub enum Schedulers {
    /// All there are: on, paused, off
    List,
    /// Turn one on
    Add {
        name: String,
        /// For evict-leader-scheduler: the store that gives up its leaders
        #[arg(long)]
        store: Option<u64>,
    },
    /// Turn one off
    Remove {
        name: String,
        /// For evict-leader-scheduler: this store only
        #[arg(long)]
        store: Option<u64>,
    },
    /// Have one, or `all`, rest for a while
    Pause {
        name: String,
        /// For how long
        #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration, default_value = "10m")]
        span: Duration,
    },
    /// Have one, or `all`, go on before the time
    Resume { name: String },
}

#[derive(Subcommand, Debug)]
pub enum Policy {
    /// Print all settings, or one
    Get { setting: Option<String> },
    /// Change settings
    Set {
        /// A value is JSON, or else a text: max-replicas=5, max-store-down-time=30m
        #[arg(value_name = "SETTING=VALUE", value_parser = parse_pair, required = true)]
        settings: Vec<(String, String)>,
        /// Say what it would come to, and change nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Args, Debug)]
pub struct DrainArgs {
    pub store: u64,
    /// Say what it would come to, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Bring the store back
    #[arg(long, conflicts_with = "dry_run")]
    pub cancel: bool,
    /// Begin, and do not wait
    #[arg(long, conflicts_with_all = ["dry_run", "cancel"])]
    pub no_wait: bool,
}

#[derive(Subcommand, Debug)]
pub enum Explain {
    /// What a region is to have, what is next, what stands in the way, and every store as a candidate
    Region { id: u64 },
    /// What a store takes and why not, and what keeps it from emptying
    Store { id: u64 },
    /// What removing a store would come to
    Removal { store: u64 },
}

#[derive(Subcommand, Debug)]
pub enum Pd {
    /// All members, and which of them leads
    Members,
    /// Have another member lead, and wait until one does
    Resign,
    /// Have this member lead, and wait until it does
    Transfer {
        /// Its name or its number
        member: String,
    },
    /// Add a member: start it afterwards, with `bootstrap = false`; it learns first and votes once it has caught up
    #[command(after_help = "\
Example:
  flaredb-client pd add --node-id 4 --peer-url 10.0.0.4:2380")]
    Add {
        /// The `node_id` of its configuration
        #[arg(long)]
        node_id: u64,
        /// Its Raft address
        #[arg(long, value_name = "HOST:PORT")]
        peer_url: String,
    },
    /// Remove a member. Stop it afterwards; what it holds is not deleted
    Remove {
        /// Its number
        #[arg(long)]
        node_id: u64,
    },
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}
