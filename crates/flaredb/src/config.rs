//! What a store is told ([`settings`]): its keys, and the values that all code uses.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::NodeId;
use consensus::HostConfig;
use node::many::ManyConfig;
use node::options::{self, INSECURE, scrub_key, tls_keys};
use node::tls::{ApiTls, Program, TlsOptions};
use settings::command_line::Environment;
use settings::listen::is_loopback;
use settings::source::{Request, Source};
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
    /// URLs.
    pub pd_addresses: Vec<String>,
    /// `name=value` each, from the outermost failure domain to the innermost.
    pub labels: Vec<(String, String)>,
    pub storage: RocksOptions,
    /// With less room on the disk no puts are taken.
    pub reserve_bytes: u64,
    /// The placement driver that runs in this process, if one does.
    pub standalone: Option<placement::config::Settings>,
    /// Within this time all that lies in the data folder is read once; zero: never.
    pub scrub_interval: Duration,
    /// A request that takes so long is told of; zero: none is.
    pub slow_request: Duration,
}

/// The section with the certificates.
const TLS: &str = "tls";

/// Derives the settings, or says in one line what does not go together.
pub fn validate(layers: &Layers, warnings: &mut Vec<String>) -> Result<Settings, String> {
    let tls = options::tls(layers, TLS, Program::Store)?;
    let secure_api = tls.as_ref().is_some_and(|tls| tls.api != ApiTls::Off);
    let (listen_client, advertise_client) = options::clients(layers, secure_api, TLS, warnings)?;
    let listen_peer = options::raft(layers, tls.is_some(), TLS)?;
    options::apart(layers, &listen_client, listen_peer)?;
    let named = layers.texts("network", "raft_advertise_addr").first().map(String::as_str);
    let advertise_peer = options::advertised(layers, listen_peer, named, "network.raft_advertise_addr", tls.is_some())?;
    let labels = layers.texts("cluster", "labels").iter().map(|label| match label.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => {
            let at = layers.origin("cluster", "labels");
            Err(format!("{at}: cluster.labels must be a list of \"name=value\", not \"{label}\""))
        }
    });
    let node = NodeId(layers.number("cluster", "store_id"));
    let data_dir = PathBuf::from(layers.text("storage", "data_dir"));
    let standalone = layers
        .switch("cluster", "standalone")
        .then(|| own_placement_driver(layers, &data_dir, &listen_client, tls.as_ref()))
        .transpose()?;
    let pd_addresses = match &standalone {
        Some(own) => own.node.client_urls.clone(),
        None => pd_addresses(layers, secure_api, tls.is_some())?,
    };
    let data_dir = if standalone.is_some() { data_dir.join("store") } else { data_dir };
    let host = HostConfig {
        sleep_after: Some(SLEEP_AFTER),
        lazy_commits: true,
        tick_interval: Duration::from_millis(layers.number("raft", "tick_interval_ms")),
        election_intervals: layers.number("raft", "election_ticks") as u32,
        // For each of many regions.
        cache_bytes_max: REGION_CACHE_BYTES,
        cache_bytes_max_all: layers.number("raft", "cache_size") as usize,
        log_bytes_kept_all: layers.number("raft", "log_size"),
        ..HostConfig::new(node, node::clock::random_u64())
    };
    Ok(Settings {
        node: ManyConfig {
            data_dir,
            node,
            listen_peer,
            advertise_peer,
            request_timeout: Duration::from_secs(5) + host.election_timeout() * 2,
            snapshots_max: layers.number("raft", "max_snapshots") as usize,
            host,
            tls,
        },
        listen_client,
        // Whoever is told of a store is told one.
        advertise_client: advertise_client.into_iter().next().expect("there is one at least"),
        pd_addresses,
        labels: labels.collect::<Result<_, _>>()?,
        storage: storage(layers),
        reserve_bytes: layers
            .number("storage", "reserve_size")
            .max(crate::space::TABLES_IN_RESERVE * layers.number("storage", "write_buffer_size")),
        standalone,
        scrub_interval: options::scrub_interval(layers),
        slow_request: Duration::from_millis(layers.number("log", "slow_request_ms")),
    })
}

/// Where the placement driver is: under TLS if this store serves its own clients so, unless an address says otherwise.
fn pd_addresses(layers: &Layers, secure: bool, has_certificates: bool) -> Result<Vec<String>, String> {
    let at = layers.origin("cluster", "pd_addr");
    let url = |address: &String| match address.split_once("://") {
        Some(("https", _)) if !has_certificates => {
            options::schemed(address, false, TLS).map_err(|why| format!("{at}: cluster.pd_addr {why}"))
        }
        Some(_) => Ok(address.clone()),
        None => Ok(format!("{}://{address}", if secure { "https" } else { "http" })),
    };
    layers.texts("cluster", "pd_addr").iter().map(url).collect()
}

/// A placement driver of one member beside the store: the first address of `pd_addr` is its own, its Raft port the next one,
/// on loopback: nobody but itself speaks there. It serves as the store does, with the store's certificates.
fn own_placement_driver(
    layers: &Layers,
    data_dir: &Path,
    taken: &[SocketAddr],
    tls: Option<&TlsOptions>,
) -> Result<placement::config::Settings, String> {
    let at = layers.origin("cluster", "pd_addr");
    let named = &layers.texts("cluster", "pd_addr")[0];
    let mut api: SocketAddr = named.parse().map_err(|_| {
        format!(
            "{at}: cluster.pd_addr is {named}, but with cluster.standalone it is where this process listens: IP:PORT"
        )
    })?;
    if taken.iter().any(|address| options::overlap(address, &api)) {
        api.set_port(api.port() + STANDALONE_PORTS_APART);
    }
    let inside = if is_loopback(&api) { api.ip() } else { Ipv4Addr::LOCALHOST.into() };
    let raft = SocketAddr::new(inside, api.port() + 1);
    let mut flags = vec![
        // What is in a placement driver's file is not meant for this one.
        "--config=/dev/null".to_owned(),
        format!("--data-dir={}", data_dir.join("pd").display()),
        format!("--api-addr={api}"),
        format!("--raft-addr={raft}"),
        format!("--insecure={}", layers.switch("network", "insecure")),
        format!("--scrub-interval={}", layers.text("storage", "scrub_interval")),
        // One store holds everything.
        "--max-replicas=1".to_owned(),
    ];
    if let Some(tls) = tls {
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        flags.extend([file("tls-cert-file", &tls.cert_file), file("tls-key-file", &tls.key_file)]);
        flags.extend(tls.ca_file.iter().map(|path| file("tls-ca-file", path)));
        flags.extend(tls.client_ca_file.iter().map(|path| file("tls-client-ca-file", path)));
        flags.extend(tls.crl_files.iter().map(|path| file("tls-crl-file", path)));
        flags.push(format!("--tls-api={}", layers.text(TLS, "api")));
    }
    let words = flags.into_iter().map(Into::into);
    let source = Source::new(&placement::config::SCHEMA, placement::config::validate, words, Environment::new())?;
    let mut settings = match source.read()? {
        Request::Run(told) => told.settings,
        Request::Check { answer: text, .. } | Request::Print(text) => return Err(text),
    };
    if let Some(tls) = &mut settings.node.tls {
        tls.members = false;
    }
    Ok(settings)
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

const TLS_KEYS: [Key; 6] = tls_keys(
    TLS,
    &[
        "this store's certificate (PEM, with those between it and the CA); empty: no TLS",
        "It needs serverAuth and clientAuth, and a SAN that names the store: flaredb-node-N, or the host of its Raft address.",
    ],
);

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
        (
            TLS,
            "Certificates, for all ports; read again when they change. See /usr/share/chainfire/scripts/generate-dev-certs.sh.",
        ),
        ("raft", "Heartbeats and elections."),
        ("storage", "The data folder and the RocksDB store in it. Sizes are bytes, or texts such as \"64MiB\"."),
        ("log", "Log lines on standard output."),
    ],
    keys: &[
        Key {
            section: "cluster",
            name: "pd_addr",
            flag: "pd-addr",
            kind: Kind::Hosts,
            default: "\"127.0.0.1:2379\"",
            help: &[
                "the placement driver: HOST:PORT, or a list of its members",
                "It is asked under TLS where [tls] has certificates, and tls.api is not off; http:// or https:// says otherwise.",
            ],
        },
        Key {
            section: "cluster",
            name: "standalone",
            flag: "standalone",
            kind: Kind::Switch,
            default: "false",
            help: &[
                "run a placement driver too, at pd_addr, or ten ports above if that is api_addr: for one machine",
                "Everything is kept once.",
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
            name: "api_advertise_urls",
            flag: "api-advertise-urls",
            kind: Kind::Urls,
            default: "[]",
            help: &["the URL under which other stores and clients reach this one, the first counts; empty: that of api_addr"],
        },
        Key {
            section: "network",
            name: "raft_addr",
            flag: "raft-addr",
            kind: Kind::Address,
            default: "\"127.0.0.1:2380\"",
            help: &[
                "where the other stores reach this one",
                "Off loopback, stores speak to each other under TLS only: see [tls].",
            ],
        },
        Key {
            section: "network",
            name: "raft_advertise_addr",
            flag: "raft-advertise-addr",
            kind: Kind::Urls,
            default: "[]",
            help: &["the HOST:PORT that other stores are told for raft_addr, the first counts; empty: raft_addr itself"],
        },
        INSECURE,
        TLS_KEYS[0],
        TLS_KEYS[1],
        TLS_KEYS[2],
        TLS_KEYS[3],
        TLS_KEYS[4],
        TLS_KEYS[5],
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
                "bytes of log that are kept for followers that lag, of all regions together; an eighth of the disk at most",
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
            default: "\"1GiB\"",
            help: &[
                "bytes of the disk that stay free: with less, no puts are taken, and regions move away",
                "Merges need them: eight times write_buffer_size at least. An eighth of the disk at most.",
                "Deletes and reads go on, and puts come back by themselves.",
            ],
        },
        scrub_key(&[
            "within this time everything in the data folder is read once, to find damage; \"0s\": only when asked",
            "A store that finds some begins anew, as soon as the others can do without it.",
        ]),
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
    changeable: &["log.level"],
    later: &[("network.tls", "certificates are named in [tls]")],
    top_level: None,
    explained_above: Some(TLS),
    example: ("storage", "data_dir"),
    manual: Manual {
        also_called: &[],
        description: "One store of a cluster. It registers with the placement driver, which decides which regions it holds. It \
                      runs in the foreground and logs to standard output; SIGTERM stops it in good order, SIGHUP makes it \
                      read its configuration and its certificates again.",
        files: &[
            "/etc/centra-cloud/certs/",
            "/var/lib/flaredb",
            "/usr/share/chainfire/scripts/generate\\-dev\\-certs.sh",
        ],
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

    fn read(flags: &[&str]) -> Result<settings::source::Told<Settings>, String> {
        let words = ["--config=/dev/null"].iter().chain(flags).map(Into::into);
        match Source::new(&SCHEMA, validate, words, Environment::new())?.read()? {
            Request::Run(told) => Ok(*told),
            Request::Check { answer: text, .. } | Request::Print(text) => panic!("{text}"),
        }
    }

    const CERTIFICATES: [&str; 3] = ["--tls-cert-file=c", "--tls-key-file=k", "--tls-ca-file=a"];

    #[test]
    fn what_others_could_reach_is_refused() {
        let refused = |flags: &[&str]| read(flags).err().unwrap_or_default();
        assert!(refused(&["--api-addr=10.0.0.1:2379"]).contains("name certificates in [tls]"));
        assert!(refused(&["--raft-addr=0.0.0.0:2380"]).contains("under TLS only"));
        assert!(
            refused(&["--raft-addr=10.0.0.1:2380", "--insecure"]).contains("under TLS only"),
            "insecure is for clients"
        );
        assert!(refused(&["--tls-cert-file=c"]).contains("tls.key_file is not"));
        assert!(refused(&["--raft-addr=127.0.0.1:2379"]).contains("where clients are served already"));
        assert!(refused(&["--pd-addr=https://pd:2379"]).contains("no certificate in [tls]"));
        assert!(refused(&["--standalone", "--pd-addr=pd:2379"]).contains("IP:PORT"));
        assert!(refused(&["--labels=rack"]).contains("name=value"));
        let open = [&CERTIFICATES[..], &["--raft-addr=0.0.0.0:2380"]].concat();
        assert!(refused(&open).contains("network.raft_advertise_addr"), "{}", refused(&open));
        assert_eq!(refused(&["--store-id=7"]), "");
    }

    #[test]
    fn clients_may_be_served_in_the_clear_and_that_is_said() {
        let told = read(&["--api-addr=10.0.0.1:2379", "--insecure"]).unwrap();
        assert!(told.warnings[0].contains("without TLS"), "{:?}", told.warnings);
        assert_eq!(told.settings.advertise_client, "http://10.0.0.1:2379");
    }

    #[test]
    fn with_certificates_everything_is_under_tls_unless_the_api_is_off() {
        let pd = ["--pd-addr=pd1:2379,http://pd2:2379", "--raft-addr=10.0.0.1:2380"];
        let told = read(&[&CERTIFICATES[..], &pd, &["--api-addr=10.0.0.1:2379"]].concat()).unwrap();
        assert_eq!(told.settings.pd_addresses, ["https://pd1:2379", "http://pd2:2379"]);
        assert_eq!(told.settings.advertise_client, "https://10.0.0.1:2379");
        assert_eq!(told.settings.node.advertise_peer, "https://10.0.0.1:2380");
        let off = read(&[&CERTIFICATES[..], &pd, &["--tls-api=off"]].concat()).unwrap();
        assert_eq!(off.settings.pd_addresses, ["http://pd1:2379", "http://pd2:2379"]);
        assert_eq!(off.settings.advertise_client, "http://127.0.0.1:2379");
    }

    #[test]
    fn a_store_on_its_own_serves_its_placement_driver_with_its_certificates() {
        let flags =
            ["--standalone", "--api-addr=10.0.0.1:2379", "--raft-addr=10.0.0.1:2380", "--pd-addr=10.0.0.1:2379"];
        let own = read(&[&CERTIFICATES[..], &flags].concat()).unwrap().settings.standalone.unwrap();
        assert_eq!(own.node.client_urls, ["https://10.0.0.1:2389"]);
        assert_eq!(own.node.listen_peer, "127.0.0.1:2390".parse().unwrap(), "nobody else speaks there");
        assert!(own.node.tls.is_some_and(|tls| !tls.members));
    }
}
