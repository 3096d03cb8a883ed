//! What a store is told ([`settings`]): its keys, and the values that all code uses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::NodeId;
use consensus::HostConfig;
use node::many::ManyConfig;
use settings::command_line::{self, Asked, Environment};
use settings::listen::is_loopback;
use settings::{Key, Kind, Layers, Manual, Schema};
use storage::rocks::{Background, RocksOptions};

/// Entries of each region that are kept in memory.
const REGION_CACHE_BYTES: usize = 1 << 20;
/// Regions that had nothing to do for so long sleep: long enough that one that is used now and then keeps its lease.
const SLEEP_AFTER: Duration = Duration::from_secs(3);
/// Where the placement driver of a store on its own is served, if its address is the store's.
const STANDALONE_PORTS_APART: u16 = 10;

/// The configuration as the program uses it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: ManyConfig,
    /// Where clients are served.
    pub listen_client: Vec<SocketAddr>,
    /// The URL that other stores and the placement driver's clients are told.
    pub advertise_client: String,
    /// `http://HOST:PORT` each.
    pub pd_addresses: Vec<String>,
    /// `name=value` each, from the outermost failure domain to the innermost.
    pub labels: Vec<(String, String)>,
    pub storage: RocksOptions,
    /// With less room on the disk no puts are taken.
    pub reserve_bytes: u64,
    /// The placement driver that runs in this process, if one does.
    pub standalone: Option<placement::config::Settings>,
    pub log_level: String,
    /// A request that takes so long is told of; zero: none is.
    pub slow_request: Duration,
}

/// What the command line asks for.
pub enum Request {
    Run(Box<Settings>),
    Print(String),
}

/// Understands `arguments` (without the program's name), or says in one line why not.
pub fn understand(arguments: &[String], environment: &Environment) -> Result<Request, String> {
    let reading = match command_line::understand(&SCHEMA, arguments, environment)? {
        Asked::Print(text) => return Ok(Request::Print(text)),
        Asked::Settings(reading) => reading,
    };
    let settings = validate(&reading.layers)?;
    if reading.check_only {
        return Ok(Request::Print(reading.checked(&[])));
    }
    Ok(Request::Run(Box::new(settings)))
}

fn validate(layers: &Layers) -> Result<Settings, String> {
    let addresses = |section, name| -> Vec<SocketAddr> {
        let texts = layers.texts(section, name).iter();
        texts.map(|text| text.parse().expect("the kind of the key has read it")).collect()
    };
    let listen_client = addresses("network", "api_addr");
    let listen_peer: SocketAddr = layers.text("network", "raft_addr").parse().expect("the kind of the key has read it");
    // There is no TLS for stores yet, and what is not authenticated stays on this machine.
    for (key, address) in listen_client.iter().map(|address| ("api_addr", address)).chain([("raft_addr", &listen_peer)])
    {
        if !is_loopback(address) {
            let at = layers.origin("network", key);
            return Err(format!(
                "{at}: network.{key} is {address}, which others can reach: a store of this version speaks no TLS, and listens \
                 on loopback only"
            ));
        }
    }
    let labels = layers.texts("cluster", "labels").iter().map(|label| match label.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => {
            let at = layers.origin("cluster", "labels");
            Err(format!("{at}: cluster.labels must be a list of \"name=value\", not \"{label}\""))
        }
    });
    let node = NodeId(layers.number("cluster", "store_id"));
    let data_dir = PathBuf::from(layers.text("storage", "data_dir"));
    let standalone =
        layers.switch("cluster", "standalone").then(|| own_placement_driver(layers, &data_dir)).transpose()?;
    let pd_addresses = match &standalone {
        Some(own) => own.node.client_urls.clone(),
        None => layers.texts("cluster", "pd_addr").iter().map(|address| format!("http://{address}")).collect(),
    };
    let data_dir = if standalone.is_some() { data_dir.join("store") } else { data_dir };
    let host = HostConfig {
        sleep_after: Some(SLEEP_AFTER),
        tick_interval: Duration::from_millis(layers.number("raft", "tick_interval_ms")),
        election_intervals: layers.number("raft", "election_ticks") as u32,
        // For each of many regions.
        cache_bytes_max: REGION_CACHE_BYTES,
        cache_bytes_max_all: layers.number("raft", "cache_size") as usize,
        log_bytes_kept_all: layers.number("raft", "log_size"),
        ..HostConfig::new(node, node::clock::random_u64())
    };
    let advertise_client = format!("http://{}", listen_client.first().expect("the key takes one at least"));
    Ok(Settings {
        node: ManyConfig {
            data_dir,
            node,
            listen_peer,
            advertise_peer: listen_peer.to_string(),
            request_timeout: Duration::from_secs(5) + host.election_timeout() * 2,
            snapshots_max: layers.number("raft", "max_snapshots") as usize,
            host,
            tls: None,
        },
        listen_client,
        advertise_client,
        pd_addresses,
        labels: labels.collect::<Result<_, _>>()?,
        storage: storage(layers),
        reserve_bytes: layers.number("storage", "reserve_size"),
        standalone,
        log_level: layers.text("log", "level").to_owned(),
        slow_request: Duration::from_millis(layers.number("log", "slow_request_ms")),
    })
}

/// A placement driver of one member beside the store: the first address of `pd_addr` is its own, its Raft port the next one.
fn own_placement_driver(layers: &Layers, data_dir: &Path) -> Result<placement::config::Settings, String> {
    let mut api: SocketAddr = layers.texts("cluster", "pd_addr")[0].parse().expect("the kind of the key has read it");
    let listens = |name: &str| layers.texts("network", name).iter().any(|text| *text == api.to_string());
    if listens("api_addr") {
        api.set_port(api.port() + STANDALONE_PORTS_APART);
    }
    let raft = SocketAddr::new(api.ip(), api.port() + 1);
    let flags = [
        format!("--data-dir={}", data_dir.join("pd").display()),
        format!("--api-addr={api}"),
        format!("--raft-addr={raft}"),
        // One store holds everything.
        "--max-replicas=1".to_owned(),
        format!("--log-level={}", layers.text("log", "level")),
    ];
    match placement::config::understand(&flags, &Environment::new())? {
        placement::config::Request::Run(settings) => Ok(*settings),
        placement::config::Request::Print(text) => Err(text),
    }
}

fn storage(layers: &Layers) -> RocksOptions {
    let number = |name| layers.number("storage", name);
    RocksOptions {
        write_buffer_size: number("write_buffer_size") as usize,
        max_write_buffer_number: number("max_write_buffer_number") as i32,
        block_cache_size: number("block_cache_size") as usize,
        max_open_files: number("max_open_files") as i32,
        max_background: Some(Background {
            compactions: number("max_background_compactions") as i32,
            flushes: number("max_background_flushes") as i32,
        }),
        slow_compaction_ms: number("slow_compaction_ms"),
        now: node::clock::now,
        ..RocksOptions::default()
    }
}

pub static SCHEMA: Schema = Schema {
    program: "flaredb",
    name: "FlareDB",
    title: "store of a sharded time-series database",
    version: env!("CARGO_PKG_VERSION"),
    version_text: || format!("flaredb {}\n", env!("CARGO_PKG_VERSION")),
    help_head: "\
FlareDB: a store of a database whose keys are spread over regions, each replicated on several stores.

Usage: flaredb [FLAGS]

With a placement driver at 127.0.0.11:2379, three stores on one machine, each in a terminal of its own, N = 1, 2, 3:
  flaredb --data-dir ./store-N --store-id N --pd-addr 127.0.0.11:2379 --api-addr 127.0.0.2N:2379 --raft-addr 127.0.0.2N:2380
Or on its own, for one machine: flaredb --standalone --data-dir ./flaredb
Then any of them answers: flaredb-client --endpoint http://127.0.0.21:2379 put KEY VALUE

It runs in the foreground and logs to standard output; SIGTERM or Ctrl-C stops it in good order.
",
    commands: &[],
    variable_prefix: "FLAREDB_",
    default_file: "/etc/centra-cloud/flaredb.toml",
    sections: &[
        ("cluster", "Which store this is, and who places its regions."),
        ("network", "Where it listens."),
        ("raft", "Heartbeats and elections."),
        ("storage", "The data folder and the RocksDB store in it. Sizes are bytes, or texts such as \"64MiB\"."),
        ("log", "Log lines on standard output."),
    ],
    keys: &[
        Key {
            section: "cluster",
            name: "pd_addr",
            flag: "pd-addr",
            kind: Kind::Addresses,
            default: "\"127.0.0.1:2379\"",
            help: &["the placement driver: IP:PORT, or a list of its members"],
        },
        Key {
            section: "cluster",
            name: "standalone",
            flag: "standalone",
            kind: Kind::Switch,
            default: "false",
            help: &[
                "run a placement driver of its own in this process: for one machine",
                "It is served at pd_addr, or ten ports above if that is api_addr. Everything is kept once.",
            ],
        },
        Key {
            section: "cluster",
            name: "store_id",
            flag: "store-id",
            kind: Kind::Number { min: 0, max: i64::MAX as u64 },
            default: "0",
            help: &["the store's number, its own in the cluster; 0: whatever the placement driver calls it"],
        },
        Key {
            section: "cluster",
            name: "labels",
            flag: "labels",
            kind: Kind::Texts { bytes_max: 256 },
            default: "[]",
            help: &["where it stands, for spreading replicas: [\"zone=a\", \"rack=7\"]"],
        },
        Key {
            section: "network",
            name: "api_addr",
            flag: "api-addr",
            kind: Kind::Addresses,
            default: "\"127.0.0.1:2379\"",
            help: &["where clients are served: gRPC, health and metrics; one IP:PORT or a list"],
        },
        Key {
            section: "network",
            name: "raft_addr",
            flag: "raft-addr",
            kind: Kind::Address,
            default: "\"127.0.0.1:2380\"",
            help: &["where the other stores reach this one"],
        },
        Key {
            section: "raft",
            name: "tick_interval_ms",
            flag: "tick-interval-ms",
            kind: Kind::Number { min: 10, max: 10_000 },
            default: "100",
            help: &["milliseconds between heartbeats"],
        },
        Key {
            section: "raft",
            name: "election_ticks",
            flag: "election-ticks",
            kind: Kind::Number { min: 3, max: 1000 },
            default: "10",
            help: &["a leader that was silent for so many heartbeats is replaced"],
        },
        Key {
            section: "raft",
            name: "cache_size",
            flag: "raft-cache-size",
            kind: Kind::Bytes { min: 1 << 20, max: 1 << 40 },
            default: "\"128MiB\"",
            help: &["bytes of log entries that are kept in memory for followers, of all regions together"],
        },
        Key {
            section: "raft",
            name: "log_size",
            flag: "raft-log-size",
            kind: Kind::Bytes { min: 64 << 20, max: 1 << 44 },
            default: "\"2GiB\"",
            help: &[
                "bytes of log that are kept for followers that lag, of all regions together",
                "A follower that lacks more is sent the whole region.",
            ],
        },
        Key {
            section: "raft",
            name: "max_snapshots",
            flag: "max-snapshots",
            kind: Kind::Number { min: 1, max: 1024 },
            default: "8",
            help: &["regions that are sent to other stores at a time, and received from them; others wait"],
        },
        Key {
            section: "storage",
            name: "data_dir",
            flag: "data-dir",
            kind: Kind::Text { bytes_max: 4096 },
            default: "\"/var/lib/flaredb\"",
            help: &["the data folder; it is made if there is none"],
        },
        Key {
            section: "storage",
            name: "write_buffer_size",
            flag: "write-buffer-size",
            kind: Kind::Bytes { min: 1 << 20, max: 1 << 40 },
            default: "\"64MiB\"",
            help: &["bytes gathered in memory before they are written to a table"],
        },
        Key {
            section: "storage",
            name: "max_write_buffer_number",
            flag: "max-write-buffer-number",
            kind: Kind::Number { min: 2, max: 64 },
            default: "4",
            help: &["such buffers at most; with all of them full, writes wait"],
        },
        Key {
            section: "storage",
            name: "block_cache_size",
            flag: "block-cache-size",
            kind: Kind::Bytes { min: 1 << 20, max: 1 << 44 },
            default: "\"256MiB\"",
            help: &["bytes of tables kept in memory for reads"],
        },
        Key {
            section: "storage",
            name: "max_open_files",
            flag: "max-open-files",
            kind: Kind::Number { min: 64, max: 1_000_000 },
            default: "1000",
            help: &["tables held open at once"],
        },
        Key {
            section: "storage",
            name: "max_background_compactions",
            flag: "max-background-compactions",
            kind: Kind::Number { min: 1, max: 64 },
            default: "4",
            help: &["threads that merge tables; fewer leave more of the processor to requests"],
        },
        Key {
            section: "storage",
            name: "max_background_flushes",
            flag: "max-background-flushes",
            kind: Kind::Number { min: 1, max: 64 },
            default: "2",
            help: &["threads that write full buffers to tables"],
        },
        Key {
            section: "storage",
            name: "slow_compaction_ms",
            flag: "slow-compaction-ms",
            kind: Kind::Number { min: 1, max: 86_400_000 },
            default: "10000",
            help: &["a merge of tables that takes this many milliseconds is reported in the log"],
        },
        Key {
            section: "storage",
            name: "reserve_size",
            flag: "reserve-size",
            kind: Kind::Bytes { min: 1 << 20, max: 1 << 44 },
            default: "\"128MiB\"",
            help: &[
                "bytes of the disk that stay free: with less, no puts are taken, and regions move away",
                "An eighth of the disk at most. Deletes and reads go on, and puts come back by themselves.",
            ],
        },
        Key {
            section: "log",
            name: "level",
            flag: "log-level",
            kind: Kind::LogLevel { example: "info,flaredb_raft=debug" },
            default: "\"info\"",
            help: &["which lines: error, warn, info, debug, trace, or a list of target=level"],
        },
        Key {
            section: "log",
            name: "slow_request_ms",
            flag: "slow-request-ms",
            kind: Kind::Number { min: 0, max: 3_600_000 },
            default: "100",
            help: &["a request that takes this many milliseconds is reported; 0: none is"],
        },
    ],
    changeable: &[],
    later: &[("tls", "a store of this version speaks no TLS, and listens on loopback only")],
    top_level: None,
    explained_above: None,
    example: ("storage", "data_dir"),
    manual: Manual {
        also_called: &[],
        description: "One store of a cluster. It registers with the placement driver, which decides which regions it holds. It \
                      runs in the foreground and logs to standard output; SIGTERM stops it in good order.",
        files: &["/var/lib/flaredb"],
        see_also: &[("flaredb\\-client", 1), ("placement\\-driver", 8)],
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_keys_is_sound() {
        assert_eq!(SCHEMA.mistakes(), Vec::<String>::new());
    }

    #[test]
    fn what_others_could_reach_is_refused() {
        let refused = |flag: &str| {
            let words = [flag.to_owned()];
            understand(&words, &Environment::new()).err().unwrap_or_default()
        };
        assert!(refused("--api-addr=10.0.0.1:2379").contains("loopback only"));
        assert!(refused("--raft-addr=0.0.0.0:2380").contains("loopback only"));
        assert!(refused("--labels=rack").contains("name=value"));
        assert_eq!(refused("--store-id=7"), "");
    }
}
