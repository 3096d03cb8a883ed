//! The lines that people get to read, word for word, and what comes out when all is well.

use std::path::Path;

use base::NodeId;
use node::InitialMember;
use settings::command_line::Environment;
use settings::help::default_config;
use settings::{Layers, file};

use super::command_line::understand;
use super::schema::SCHEMA;
use super::{AutoCompaction, Request, Settings, validate};
use crate::mutate::mutate;

/// The settings that a file's text comes to, or the complaint.
fn from_text(text: &str) -> Result<Settings, String> {
    let mut layers = Layers::new(&SCHEMA);
    file::parse(Path::new("c.toml"), text, &mut layers)?;
    validate::validate(&layers)
}

fn from_flags(flags: &str) -> Result<Settings, String> {
    from_all(flags, &[])
}

/// Flags are split at spaces. The default file is kept out by naming an empty one.
fn from_all(flags: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let empty = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let own = [("CHAINFIRE_CONFIG", empty.path().to_str().unwrap())];
    let environment: Environment =
        own.iter().chain(variables).map(|(name, value)| (name.to_string(), value.to_string())).collect();
    let words: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
    match understand(&words, &environment)? {
        Request::Run(settings) => Ok(*settings),
        Request::Check { answer: text, .. } | Request::Print(text) => panic!("{text}"),
    }
}

fn printed(flags: &[&str]) -> String {
    let words: Vec<String> = flags.iter().map(|word| word.to_string()).collect();
    match understand(&words, &Environment::new()) {
        Ok(Request::Check { answer: text, .. } | Request::Print(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_data_folder_is_enough() {
    let settings = from_flags("--data-dir /tmp/x").unwrap();
    assert_eq!(settings.node.data_dir, Path::new("/tmp/x"));
    assert_eq!((settings.node.node, settings.node.bootstrap), (NodeId(1), true));
    assert_eq!(settings.node.name, "node-1");
    assert_eq!(settings.listen_client, ["127.0.0.1:2379".parse().unwrap()]);
    assert_eq!(settings.advertise_client, ["http://127.0.0.1:2379"]);
    assert_eq!(settings.node.client_urls, settings.advertise_client);
    assert_eq!(settings.node.listen_peer, "127.0.0.1:2380".parse().unwrap());
    assert_eq!(settings.node.advertise_peer, "http://127.0.0.1:2380");
    let gossip = node::GossipOptions { listen: "127.0.0.1:2381".parse().unwrap(), required: true };
    assert_eq!(settings.node.gossip, Some(gossip));
    assert!(settings.node.initial.is_empty() && settings.warnings.is_empty());
    assert_eq!((settings.request_bytes_max, settings.txn_ops_max, settings.quota_bytes), (1_572_864, 128, 0));
    assert_eq!(settings.node.request_timeout.as_secs(), 7);
    assert!(!settings.etcd_mode);
}

#[test]
fn the_printed_default_configuration_reads_as_the_defaults() {
    let text = default_config(&SCHEMA);
    // Who gave a value is another matter.
    let bare = |settings: Settings| format!("{:?}", Settings { layers: None, ..settings });
    assert_eq!(bare(from_text(&text).unwrap()), bare(from_text("").unwrap()));
    for key in SCHEMA.keys {
        assert!(text.contains(&format!("\n{} = {}\n", key.name, key.default)), "{}", key.name);
    }
    for line in ["[network.tls]", "bootstrap = true", "tick_interval_ms = 100"] {
        assert!(text.lines().any(|it| it == line), "{line}");
    }
    assert_eq!(printed(&["--print-default-config"]), text);
}

#[test]
fn defaults_are_the_ones_of_the_parts() {
    let settings = from_text("").unwrap();
    let rocks = storage::rocks::RocksOptions::default();
    let plain = |options: &storage::rocks::RocksOptions| {
        format!("{:?}", storage::rocks::RocksOptions { now: rocks.now, ..*options })
    };
    assert_eq!(plain(&settings.storage), plain(&rocks));
    let host = consensus::HostConfig::new(NodeId(1), 0);
    assert_eq!(format!("{:?}", settings.node.host), format!("{host:?}"));
}

#[test]
fn a_cluster_of_three() {
    let settings = from_text(
        r#"
        [cluster]
        bootstrap = true
        node_id = 2
        name = "two"
        initial_members = [
            { node_id = 1, address = "127.0.0.1:2380" },
            { node_id = 2, address = "127.0.0.2:2380" },
            "3=127.0.0.3:2380",
        ]
        [network]
        api_addr = "127.0.0.2:2379"
        raft_addr = "127.0.0.2:2380"
        [raft]
        tick_interval_ms = 50
        election_ticks = 20
        log_entries_kept = 7
        [storage]
        data_dir = "/srv/two"
        write_buffer_size = 134217728  # 128MB
        max_write_buffer_number = 6
        block_cache_size = "1GiB"
        quota_bytes = "8 GB"
        [compaction]
        mode = "periodic"
        retention = "1h30m"
        [log]
        level = "info,chainfire_raft=debug"
        "#,
    )
    .unwrap();
    let member = |node, address: &str| InitialMember { node: NodeId(node), address: address.to_owned() };
    let expected =
        [member(1, "http://127.0.0.1:2380"), member(2, "http://127.0.0.2:2380"), member(3, "http://127.0.0.3:2380")];
    assert_eq!(settings.node.initial, expected);
    assert_eq!((settings.node.node, settings.node.name.as_str()), (NodeId(2), "two"));
    assert_eq!(settings.node.advertise_peer, "http://127.0.0.2:2380");
    assert_eq!(settings.node.host.election_timeout().as_millis(), 1_000);
    assert_eq!((settings.node.host.tick_interval.as_millis(), settings.node.host.log_entries_kept), (50, 7));
    assert_eq!((settings.storage.write_buffer_size, settings.storage.block_cache_size), (128 << 20, 1 << 30));
    assert_eq!(settings.quota_bytes, 8_000_000_000);
    assert_eq!(settings.auto_compaction, AutoCompaction::Periodic(std::time::Duration::from_secs(5400)));
    assert_eq!(settings.log_level, "info,chainfire_raft=debug");
}

#[test]
fn a_check_tells_what_is_no_default_and_what_deserves_a_line() {
    let empty = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let path = empty.path().to_str().unwrap();
    let text = printed(&["--config", path, "--check-config", "--insecure", "--api-addr=10.0.0.1:2379"]);
    assert_eq!(
        text.replace(path, "FILE"),
        "the configuration is valid\n\
         read: FILE\n\
         network.api_addr = [\"10.0.0.1:2379\"] (flag --api-addr)\n\
         network.insecure = true (flag --insecure)\n\
         warning: clients are served at 10.0.0.1:2379 without TLS: whoever reaches it reads and writes everything\n"
    );
}

#[test]
fn one_key_may_stand_at_the_top() {
    let settings =
        from_text("use_direct_io_for_flush_and_compaction = true\n[raft]\ntick_interval_ms = 200\n").unwrap();
    assert!(settings.storage.use_direct_io_for_flush_and_compaction);
}

#[test]
fn mistakes_in_a_file_are_named() {
    let cases = [
        (
            "[storage]\nblock_cash_size = 1\n",
            "c.toml:2: unknown key `block_cash_size` in [storage]; the nearest known key is `block_cache_size`",
        ),
        (
            "[log]\nlevel = \"info\"\n\ndata_dir = \"/x\"\n",
            "c.toml:4: unknown key `data_dir` in [log]; the nearest known key is `data_dir` of [storage]: write it below \
             that line, or below a [storage] of its own in c.toml.d/NAME.toml",
        ),
        (
            "bootstap = false\n",
            "c.toml:1: unknown key `bootstap` outside of a section; the nearest known key is `bootstrap` of [cluster]",
        ),
        ("bogus = 1\n", "c.toml:1: unknown key `bogus` outside of a section; see chainfire --print-default-config"),
        ("\n[storrage]\nx = 1\n", "c.toml:2: unknown section [storrage]; the nearest known section is [storage]"),
        ("storage = 1\n", "c.toml:1: `storage` is a section: write [storage] and its keys below"),
        (
            "[storage]\nquota.bytes = 1\n",
            "c.toml:2: unknown key `quota` in [storage]; the nearest known key is `quota_bytes`",
        ),
        (
            "[raft]\ntick_interval_ms = \"fast\"\n",
            "c.toml:2: raft.tick_interval_ms must be a whole number from 5 to 5000, not \"fast\"",
        ),
        (
            "[raft]\ntick_interval_ms = 1\n",
            "c.toml:2: raft.tick_interval_ms must be a whole number from 5 to 5000, not 1",
        ),
        (
            "[raft]\ntick_interval_ms = 1.5\n",
            "c.toml:2: raft.tick_interval_ms must be a whole number from 5 to 5000, not a fraction",
        ),
        ("[cluster]\nbootstrap = \"no\"\n", "c.toml:2: cluster.bootstrap must be true or false, not \"no\""),
        (
            "[storage]\nblock_cache_size = \"1 XB\"\n",
            "c.toml:2: storage.block_cache_size must be a number of bytes from 1048576 to 1125899906842624, such as \
             67108864 or \"64MiB\", not \"1 XB\"",
        ),
        (
            "[network]\napi_addr = \"example.org:2379\"\n",
            "c.toml:2: network.api_addr must be IP:PORT, such as \"127.0.0.1:2379\", or a list of these, not \
             \"example.org:2379\"",
        ),
        (
            "[cluster]\ninitial_members = [{ node = 1, address = \"x:1\" }]\n",
            "c.toml:2: cluster.initial_members has an unknown key `node`; the nearest known key is `node_id`",
        ),
        (
            "[cluster]\ninitial_members = [{ bogus = 1, address = \"x:1\" }]\n",
            "c.toml:2: cluster.initial_members has an unknown key `bogus`; known are `node_id` and `address`",
        ),
        (
            "[cluster]\ninitial_members = [\"127.0.0.1:2380\"]\n",
            "c.toml:2: cluster.initial_members must be a list of { node_id = 1, address = \"HOST:PORT\" } or \
             \"1=HOST:PORT\", not \"127.0.0.1:2380\"",
        ),
        (
            "[cluster]\ninitial_members = [\"1=https://x:1\"]\n",
            "c.toml:2: cluster.initial_members has https://x:1, but there is no certificate in [network.tls]",
        ),
        (
            "[network.tls]\ncert_file = \"/etc/x.crt\"\n",
            "c.toml:2: network.tls.cert_file is set, and network.tls.key_file is not: cert_file, key_file and ca_file \
             belong together",
        ),
        (
            "[network.tls]\ncert_fil = \"/etc/x.crt\"\n",
            "c.toml:2: unknown key `cert_fil` in [network.tls]; the nearest known key is `cert_file`",
        ),
        ("[tls]\ncert_file = \"/etc/x.crt\"\n", "c.toml:2: [tls]: certificates are named in [network.tls]"),
        ("[gossip]\naddr = \"x\"\n", "c.toml:2: [gossip]: where a node gossips is network.gossip_addr"),
        (
            "[network]\ngossip_addr = \"0.0.0.0:2381\"\n",
            "c.toml:2: network.gossip_addr is 0.0.0.0:2381, but off loopback nodes speak to each other under TLS only: \
             name cert_file, key_file and ca_file in [network.tls] (scripts/generate-dev-certs.sh makes them), or use \
             an address such as 127.0.0.1:2381",
        ),
        (
            "[network]\ngossip_addr = \"on\"\n",
            "c.toml:2: network.gossip_addr must be IP:PORT, such as \"127.0.0.1:2381\", or one of \"auto\", \"off\", not \
             \"on\"",
        ),
        (
            "[storage]\nmax_open_files = 100\n[storage]\nblock_cache_size = 1\n",
            "c.toml:3: duplicate key `storage`: each section and key may stand once, additions go into c.toml.d/NAME.toml",
        ),
        (
            "[compaction]\nmode = \"sometimes\"\n",
            "c.toml:2: compaction.mode must be one of \"off\", \"periodic\", \"revision\", not \"sometimes\"",
        ),
        (
            "[compaction]\nmode = \"revision\"\nretention = \"1h\"\n",
            "c.toml:3: compaction.retention must be a number of revisions, such as 10000, when compaction.mode is \
             \"revision\", not \"1h\"",
        ),
        (
            "[compaction]\nmode = \"periodic\"\nretention = 5\n",
            "c.toml:3: compaction.retention must be a duration from \"1s\", such as \"1h\" or \"30m\", when \
             compaction.mode is \"periodic\", not \"5\"",
        ),
        (
            "[log]\nlevel = \"loud\"\n",
            "c.toml:2: log.level must be error, warn, info, debug, trace, off, or a list such as \
             \"info,chainfire_raft=debug\", not \"loud\"",
        ),
    ];
    for (text, line) in cases {
        assert_eq!(from_text(text).unwrap_err(), line);
    }
}

#[test]
fn settings_that_do_not_go_together_are_named() {
    let three = "initial_members = [\"1=127.0.0.1:2380\", \"2=127.0.0.2:2380\"]";
    let cases = [
        (
            "[network]\napi_addr = \"10.0.0.1:2379\"\n".to_owned(),
            "c.toml:2: network.api_addr is 10.0.0.1:2379, which others reach, and clients are served without TLS \
             there: name certificates in [network.tls], or set network.insecure = true to serve them all the same",
        ),
        (
            "[network]\ninsecure = true\napi_addr = \"0.0.0.0:2379\"\n".to_owned(),
            "c.toml:3: network.api_addr is 0.0.0.0:2379, every address of this machine: say in \
             network.api_advertise_urls which one clients use",
        ),
        (
            "[network]\ninsecure = true\nraft_addr = \"10.0.0.1:2380\"\n".to_owned(),
            "c.toml:3: network.raft_addr is 10.0.0.1:2380, but off loopback nodes speak to each other under TLS only: \
             name cert_file, key_file and ca_file in [network.tls] (scripts/generate-dev-certs.sh makes them), or use an \
             address such as 127.0.0.1:2380",
        ),
        (
            "[network]\nraft_addr = \"127.0.0.1:2379\"\n".to_owned(),
            "c.toml:2: network.raft_addr is 127.0.0.1:2379, where clients are served already",
        ),
        (
            format!("[cluster]\nnode_id = 3\n{three}\n"),
            "c.toml:3: cluster.initial_members does not list this node, number 3 (cluster.node_id)",
        ),
        (
            format!("[cluster]\nnode_id = 2\n{three}\n"),
            "c.toml:3: cluster.initial_members has node 2 at 127.0.0.2:2380, but it listens at 127.0.0.1:2380 \
             (network.raft_addr)",
        ),
        (
            "[cluster]\ninitial_members = [\"1=a:1\", \"1=b:1\"]\n".to_owned(),
            "c.toml:2: cluster.initial_members lists node 1 twice",
        ),
        (
            "[cluster]\ninitial_members = [\"1=a:1\", \"2=a:1\"]\n".to_owned(),
            "c.toml:2: cluster.initial_members lists a:1 twice",
        ),
        (
            "[cluster]\nnode_id = 0\n".to_owned(),
            "c.toml:2: cluster.node_id is 0, which only a node that joins may have: give it a number, or set \
             cluster.bootstrap = false",
        ),
        ("[storage]\ndata_dir = \"\"\n".to_owned(), "c.toml:2: storage.data_dir is empty"),
    ];
    for (text, line) in cases {
        assert_eq!(from_text(&text).unwrap_err(), line);
    }
}

#[test]
fn mistakes_in_flags_and_variables_are_named() {
    let cases = [
        ("--dta-dir /x", "unknown flag --dta-dir; the nearest known flag is --data-dir"),
        ("--chek-config", "unknown flag --chek-config; the nearest known flag is --check-config"),
        ("--data-dir", "flag --data-dir needs a value"),
        ("--version=3", "flag --version takes no value"),
        ("start", "`start` is not a flag; see chainfire --help"),
        ("--config /does/not/exist.toml", "cannot read /does/not/exist.toml: No such file or directory (os error 2)"),
        ("--bootstrap=maybe", "flag --bootstrap: cluster.bootstrap must be true or false, not \"maybe\""),
        (
            "--node-id -1",
            "flag --node-id: cluster.node_id must be a whole number from 0 to 9223372036854775807, not \"-1\"",
        ),
    ];
    for (flags, line) in cases {
        assert_eq!(from_flags(flags).unwrap_err(), line);
    }
    assert_eq!(
        from_all("", &[("CHAINFIRE_STORAGE_DATADIR", "/x")]).unwrap_err(),
        "unknown environment variable CHAINFIRE_STORAGE_DATADIR; the nearest known one is CHAINFIRE_STORAGE_DATA_DIR"
    );
    assert_eq!(
        from_all("", &[("CHAINFIRE_LIMITS_TXN_OPS_MAX", "many")]).unwrap_err(),
        "environment variable CHAINFIRE_LIMITS_TXN_OPS_MAX: limits.txn_ops_max must be a whole number from 1 to 10000, \
         not \"many\""
    );
    from_all("", &[("CHAINFIRE_ENDPOINTS", "x"), ("CHAINFIRE_SERVICE_HOST", "x")]).unwrap();
}

#[test]
fn an_address_of_its_own_comes_with_loopback() {
    let text = "[network]\ninsecure = true\napi_addr = \"10.0.0.1:2379\"\n";
    let settings = from_text(text).unwrap();
    let addresses: Vec<String> = settings.listen_client.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1:2379", "127.0.0.1:2379"]);
    assert_eq!(settings.advertise_client, ["http://10.0.0.1:2379"]);
    assert_eq!(
        settings.warnings,
        ["clients are served at 10.0.0.1:2379 without TLS: whoever reaches it reads and writes everything"]
    );
    let text = "[network]\ninsecure = true\napi_addr = \"0.0.0.0:2379\"\napi_advertise_urls = [\"http://db:2379\"]\n";
    let settings = from_text(text).unwrap();
    assert_eq!((settings.listen_client.len(), settings.advertise_client), (1, vec!["http://db:2379".to_owned()]));
}

#[test]
fn a_node_that_joins_needs_someone_to_join() {
    let settings = from_flags("--bootstrap=false --node-id 0 --initial-members 1=127.0.0.9:2380").unwrap();
    assert!(!settings.node.bootstrap && settings.warnings.is_empty());
    assert_eq!(settings.node.initial.len(), 1);
    assert_eq!(from_flags("--bootstrap false").unwrap().warnings.len(), 1);
}

#[test]
fn help_names_every_flag() {
    let help = printed(&["--help"]);
    for key in SCHEMA.keys {
        assert!(help.contains(&format!("--{} ", key.flag)), "{}", key.flag);
    }
    assert!(printed(&["--version"]).starts_with(&format!("chainfire {}\n", env!("CARGO_PKG_VERSION"))));
}

/// Where `man` is installed, it has nothing to complain of.
#[test]
fn man_understands_its_pages() {
    let folder = tempfile::tempdir().unwrap();
    for flag in ["--print-man=8", "--print-man=5"] {
        let file = folder.path().join("page");
        std::fs::write(&file, printed(&[flag])).unwrap();
        let output = std::process::Command::new("man").args(["--warnings", "-l", "-Tutf8", "-Z"]).arg(&file).output();
        if let Ok(output) = output {
            assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(printed(&["--print-man"]).contains("SIGHUP makes it read its configuration and its certificates again"));
}

#[test]
fn no_text_makes_a_file_or_a_flag_panic() {
    let defaults = default_config(&SCHEMA);
    let some = "[cluster]\nnode_id = 2\nbootstrap = true\ninitial_members = [\"1=127.0.0.1:2380\"]\n[raft]\n\
        tick_interval_ms = 100\n[storage]\nwrite_buffer_size = \"64 MiB\"\n[log]\nlevel = 'info'\n";
    mutate(11, 5_000, &[defaults.into_bytes(), some.as_bytes().to_vec()], |bytes| {
        if let Err(why) = from_text(&String::from_utf8_lossy(bytes)) {
            assert!(!why.is_empty() && !why.contains('\n'), "one line: {why:?}");
        }
    });
    let words = "--data-dir\n/tmp/x\n--node-id=3\n--initial-members\n1=127.0.0.1:2380,3=h:1\n--bootstrap=false\n-h\n-V";
    let nothing = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    let file = nothing.path().to_str().unwrap().to_owned();
    mutate(12, 5_000, &[words.as_bytes().to_vec()], |bytes| {
        let words: Vec<String> = String::from_utf8_lossy(bytes).split('\n').map(str::to_owned).collect();
        let environment = Environment::from([("CHAINFIRE_CONFIG".to_owned(), file.clone())]);
        if let Err(why) = understand(&words, &environment) {
            assert!(!why.is_empty() && !why.contains('\n'), "one line: {why:?}");
        }
    });
}
