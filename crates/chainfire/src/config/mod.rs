//! What a node is told, from the command line to the values that all code uses.
//!
//! The machinery is the crate [`settings`]: how a setting is given in files, variables and flags, and which one counts,
//! is told there. Chainfire's part of it is its table of keys ([`keys`]), its words ([`schema`]), and what is made of the
//! values: [`validate`] checks what belongs together and derives [`Settings`]. Nothing else in the program looks at a
//! file, a flag or a variable.
//!
//! A setting that can be written has an effect.
//!
//! [`crate::etcd_flags`] is the other way to come to `Settings`. [`Source`] reads them again while the node runs,
//! [`settings::change`] says what is different then; [`crate::reload`] acts on it.

pub mod command_line;
mod gossip;
mod keys;
mod schema;
mod source;
mod validate;

use std::net::SocketAddr;
use std::time::Duration;

use node::NodeConfig;
use settings::Layers;
use storage::rocks::RocksOptions;

pub(crate) use gossip::GossipAddress;
pub use source::Source;
pub(crate) use validate::AUTO_COMPACTION_PERIOD_MIN;

/// How large the largest request may be made at most: a log entry has to hold it.
pub(crate) const REQUEST_BYTES_LIMIT: u64 = 15 << 20;
/// etcd's default for the operations of one transaction.
pub(crate) const TXN_OPS_MAX: usize = 128;

/// The configuration as the program uses it: complete, checked, derived.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The members, the Raft address and the timings. `node.host.log_entries_kept` is etcd's `--snapshot-count`.
    pub node: NodeConfig,
    /// Where clients are served.
    pub listen_client: Vec<SocketAddr>,
    /// What other nodes and clients are told: URLs.
    pub advertise_client: Vec<String>,
    pub storage: RocksOptions,
    /// All that lies in the data folder is read within this time. Zero: only when asked.
    pub scrub_interval: Duration,
    /// The largest request; a whole message may be 512 KiB larger.
    pub request_bytes_max: usize,
    pub txn_ops_max: usize,
    /// The store's largest size. Zero: unlimited.
    pub quota_bytes: u64,
    pub auto_compaction: AutoCompaction,
    /// A level, or a list of `target=level`.
    pub log_level: String,
    /// Requests that take this long are reported. Zero: none are.
    pub slow_request: Duration,
    /// Every setting and who gave it; none with etcd's flags.
    pub(crate) layers: Option<Layers>,
    /// Whether etcd's flags were given.
    pub etcd_mode: bool,
    /// What is allowed but deserves a line in the log.
    pub warnings: Vec<String>,
}

/// Which old revisions are dropped without anyone asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoCompaction {
    #[default]
    Off,
    /// Those older than this.
    Periodic(Duration),
    /// All but the last so many.
    Revision(i64),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    Run(Box<Settings>),
    /// See whether the certificates are refused. If not, print the answer and end well.
    Check {
        settings: Box<Settings>,
        answer: String,
    },
    /// Print this and end well.
    Print(String),
}

/// See [`Settings::scrub_interval`].
pub(crate) const SCRUB_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// How long a request may take: etcd's five seconds, and an election that may come in between, twice.
pub(crate) fn request_timeout(election_timeout: Duration) -> Duration {
    Duration::from_secs(5) + election_timeout * 2
}

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;
