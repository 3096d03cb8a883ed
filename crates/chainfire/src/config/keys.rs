//! Every setting there is, once.

use node::options::{INSECURE, scrub_key, tls_keys};
use settings::{Key, Kind};

/// Sections in the order of the printed configuration, and what each is about.
pub const SECTIONS: &[(&str, &str)] = &[
    ("cluster", "Who this node is, and with whom it founds or finds a cluster."),
    ("network", "Where it listens."),
    (
        "network.tls",
        "Certificates, for all ports; read again when they change. See /usr/share/chainfire/scripts/generate-dev-certs.sh.",
    ),
    ("raft", "Heartbeats, elections and the log."),
    ("storage", "The data folder and the RocksDB store in it. Sizes are bytes, or texts such as \"64MiB\"."),
    ("limits", "What one request may ask for."),
    ("compaction", "Old revisions that are dropped without anyone asking."),
    ("log", "Log lines on standard output."),
];

/// Sections that people look for: elsewhere, or in a later version.
pub const LATER: &[(&str, &str)] = &[
    ("tls", "certificates are named in [network.tls]"),
    ("gossip", "where a node gossips is network.gossip_addr"),
    ("auth", "users and roles are not available in this version"),
];

/// This key may also stand before the first section.
pub const TOP_LEVEL: (&str, &str) = ("storage", "use_direct_io_for_flush_and_compaction");

/// Keys that take effect when the configuration is read again. Of all others the running value stays.
pub const CHANGEABLE: &[&str] = &[
    "limits.txn_ops_max",
    "storage.quota_bytes",
    "compaction.mode",
    "compaction.retention",
    "log.level",
    "log.slow_request_ms",
];

const TLS: [Key; 6] = tls_keys(
    "network.tls",
    &[
        "this node's certificate (PEM, with those between it and the CA); empty: no TLS",
        "It needs serverAuth and clientAuth, and a SAN that names the node: chainfire-node-N, or its Raft address.",
    ],
);

const SIZE_MAX: u64 = 1 << 50;

pub const KEYS: &[Key] = &[
    Key {
        section: "cluster",
        name: "bootstrap",
        flag: "bootstrap",
        kind: Kind::Switch,
        default: "true",
        help: &[
            "whether this node may found a cluster; false on a node that joins one",
            "A cluster is founded only when every initial member answers that it is empty: a wiped founder joins again.",
        ],
    },
    Key {
        section: "cluster",
        name: "node_id",
        flag: "node-id",
        kind: Kind::Number { min: 0, max: i64::MAX as u64 },
        default: "1",
        help: &["the node's number, its own in the cluster; 0: whatever the cluster that it joins calls it"],
    },
    Key {
        section: "cluster",
        name: "name",
        flag: "name",
        kind: Kind::Text { bytes_max: 256 },
        default: "\"\"",
        help: &["what people call the node; empty: node-N"],
    },
    Key {
        section: "cluster",
        name: "initial_members",
        flag: "initial-members",
        kind: Kind::Members,
        default: "[]",
        help: &[
            "Raft addresses of all members that a new cluster begins with, this node among them",
            "Of a node that joins: of some members. Empty: this node alone. Either form will do:",
            "[{ node_id = 1, address = \"127.0.0.1:2380\" }, { node_id = 2, address = \"127.0.0.2:2380\" }]",
            "[\"1=127.0.0.1:2380\", \"2=127.0.0.2:2380\"]",
        ],
    },
    Key {
        section: "network",
        name: "api_addr",
        flag: "api-addr",
        kind: Kind::Addresses,
        default: "\"127.0.0.1:2379\"",
        help: &[
            "where clients are served: gRPC, HTTP, health and metrics; one IP:PORT or a list",
            "A node that listens beyond loopback also listens on 127.0.0.1 at the same port.",
        ],
    },
    Key {
        section: "network",
        name: "api_advertise_urls",
        flag: "api-advertise-urls",
        kind: Kind::Urls,
        default: "[]",
        help: &["the URLs under which clients reach this node; empty: those of api_addr"],
    },
    Key {
        section: "network",
        name: "raft_addr",
        flag: "raft-addr",
        kind: Kind::Address,
        default: "\"127.0.0.1:2380\"",
        help: &[
            "where the other nodes reach this one",
            "Off loopback, nodes speak to each other under TLS only: see [network.tls].",
        ],
    },
    Key {
        section: "network",
        name: "gossip_addr",
        flag: "gossip-addr",
        kind: Kind::AddressOr(&["auto", "off"]),
        default: "\"auto\"",
        help: &[
            "where nodes tell each other who is alive; auto: beside raft_addr, one port above it; off: nowhere",
            "It shows in status and metrics, and helps nodes to find each other; off loopback it needs [network.tls].",
        ],
    },
    INSECURE,
    TLS[0],
    TLS[1],
    TLS[2],
    TLS[3],
    TLS[4],
    TLS[5],
    Key {
        section: "raft",
        name: "tick_interval_ms",
        flag: "tick-interval-ms",
        kind: Kind::Number { min: 5, max: 5_000 },
        default: "100",
        help: &[
            "milliseconds between heartbeats; the same on all nodes",
            "Lower notices a lost leader sooner, higher suits slow networks.",
        ],
    },
    Key {
        section: "raft",
        name: "election_ticks",
        flag: "election-ticks",
        kind: Kind::Number { min: 5, max: 100 },
        default: "10",
        help: &["heartbeats missed before a node stands for election"],
    },
    Key {
        section: "raft",
        name: "log_entries_kept",
        flag: "log-entries-kept",
        kind: Kind::Number { min: 1, max: 100_000_000 },
        default: "10000",
        help: &[
            "log entries kept for nodes that lag; one that lags further is sent the whole state",
            "More than 64 MiB of them are not kept either.",
        ],
    },
    Key {
        section: "storage",
        name: "data_dir",
        flag: "data-dir",
        kind: Kind::Text { bytes_max: 4096 },
        default: "\"/var/lib/chainfire\"",
        help: &["the data folder, made if there is none; it belongs to one node"],
    },
    Key {
        section: "storage",
        name: "quota_bytes",
        flag: "quota-bytes",
        kind: Kind::Bytes { min: 0, max: SIZE_MAX },
        default: "0",
        help: &["writes are refused with NOSPACE when the store is larger; 0: no limit but the disk's"],
    },
    Key {
        section: "storage",
        name: "write_buffer_size",
        flag: "write-buffer-size",
        kind: Kind::Bytes { min: 1 << 20, max: 4 << 30 },
        default: "67108864",
        help: &["bytes gathered in memory before they are written out as a file"],
    },
    Key {
        section: "storage",
        name: "max_write_buffer_number",
        flag: "max-write-buffer-number",
        kind: Kind::Number { min: 2, max: 64 },
        default: "4",
        help: &["write buffers, being filled or written out, before writes stall"],
    },
    Key {
        section: "storage",
        name: "block_cache_size",
        flag: "block-cache-size",
        kind: Kind::Bytes { min: 1 << 20, max: SIZE_MAX },
        default: "268435456",
        help: &["bytes of memory for cached blocks, indexes, filters and write buffers together"],
    },
    Key {
        section: "storage",
        name: "level0_file_num_compaction_trigger",
        flag: "level0-file-num-compaction-trigger",
        kind: Kind::Number { min: 1, max: 1_000 },
        default: "4",
        help: &["files that pile up before they are merged: more is less work for writes, more for reads"],
    },
    Key {
        section: "storage",
        name: "bloom_filter_bits_per_key",
        flag: "bloom-filter-bits-per-key",
        kind: Kind::Number { min: 1, max: 32 },
        default: "10",
        help: &["filter bits per key: more spare more disk reads for keys that are not there"],
    },
    Key {
        section: "storage",
        name: "max_open_files",
        flag: "max-open-files",
        kind: Kind::Number { min: 16, max: 1_000_000 },
        default: "1000",
        help: &["table files held open"],
    },
    Key {
        section: "storage",
        name: "use_direct_io_for_flush_and_compaction",
        flag: "use-direct-io-for-flush-and-compaction",
        kind: Kind::Switch,
        default: "false",
        help: &["keep background writing out of the system's file cache"],
    },
    Key {
        section: "storage",
        name: "max_background_jobs",
        flag: "max-background-jobs",
        kind: Kind::Number { min: 1, max: 64 },
        default: "2",
        help: &["threads that write out buffers and merge files"],
    },
    Key {
        section: "storage",
        name: "slow_compaction_ms",
        flag: "slow-compaction-ms",
        kind: Kind::Number { min: 1, max: 86_400_000 },
        default: "10000",
        help: &["a merge of files that takes this many milliseconds is reported in the log"],
    },
    scrub_key(&[
        "within this time everything in the data folder is read once, to find damage; \"0s\": only when asked",
        "What is found is rebuilt from the other members.",
    ]),
    Key {
        section: "limits",
        name: "request_bytes_max",
        flag: "request-bytes-max",
        kind: Kind::Bytes { min: 1 << 10, max: super::REQUEST_BYTES_LIMIT },
        default: "1572864",
        help: &["bytes of the largest request"],
    },
    Key {
        section: "limits",
        name: "txn_ops_max",
        flag: "txn-ops-max",
        kind: Kind::Number { min: 1, max: 10_000 },
        default: "128",
        help: &["operations in one transaction, nested ones included"],
    },
    Key {
        section: "compaction",
        name: "mode",
        flag: "compaction-mode",
        kind: Kind::Choice(&["off", "periodic", "revision"]),
        default: "\"off\"",
        help: &["off, periodic (by age) or revision (by number)"],
    },
    Key {
        section: "compaction",
        name: "retention",
        flag: "compaction-retention",
        kind: Kind::Retention,
        default: "\"1h\"",
        help: &["what is kept: a duration such as \"1h\" for periodic, a number of revisions for revision"],
    },
    Key {
        section: "log",
        name: "level",
        flag: "log-level",
        kind: Kind::LogLevel { example: "info,chainfire_raft=debug" },
        default: "\"info\"",
        help: &["error, warn, info, debug or trace, also for single parts: \"info,chainfire_raft=debug\""],
    },
    Key {
        section: "log",
        name: "slow_request_ms",
        flag: "slow-request-ms",
        kind: Kind::Number { min: 0, max: 3_600_000 },
        default: "100",
        help: &["a request that takes this many milliseconds is reported, with where its time went; 0: none is"],
    },
];
