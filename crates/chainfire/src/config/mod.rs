//! What a node is told, from the command line to the values that all code uses.
//!
//! # The life of a setting
//! [`keys`] lists every setting once: section, name, flag, kind, default, help → it is *given* in some layer ([`file`] for
//! TOML, [`command_line`] for environment and flags) → [`value`] reads it by its kind, or says what is wrong → [`layers`]
//! keeps the last one given, and who gave it → [`validate`] checks what belongs together and derives [`Settings`].
//! Nothing else in the program looks at a file, a flag or a variable.
//!
//! Layers, each overriding those before: defaults < file < drop-in files in the order of their names < environment <
//! flags.
//!
//! # Invariants
//! 1. What is not understood is refused: an unknown key, a value out of bounds, a setting of a later version. One line
//!    says where it stands, what it is, and what was probably meant.
//! 2. A setting that can be written has an effect.
//! 3. The printed default configuration holds every key and reads back as the defaults.
//!
//! [`crate::etcd_flags`] is the other way to come to `Settings`. [`Source`] reads them again while the node runs, [`change`]
//! says what is different then; [`crate::reload`] acts on it.

pub mod change;
pub mod command_line;
mod completion;
mod file;
mod gossip;
mod help;
mod keys;
pub(crate) mod layers;
mod listen;
mod man;
mod nearest;
mod source;
mod validate;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use node::NodeConfig;
use storage::rocks::RocksOptions;

pub(crate) use gossip::GossipAddress;
pub use help::{default_config, version};
pub(crate) use listen::{Plain, client_address, is_loopback, peer_address};
pub(crate) use nearest::nearest;
pub use source::Source;
pub(crate) use validate::{AUTO_COMPACTION_PERIOD_MIN, duration};

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
    pub(crate) layers: Option<layers::Layers>,
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
    /// Print this and end well.
    Print(String),
}

/// The process environment, or a test's.
pub type Environment = BTreeMap<String, String>;

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
