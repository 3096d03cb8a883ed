use super::*;
use crate::mutate::mutate;

fn from_flags(flags: &str) -> Result<Settings, String> {
    from_all(flags, &[])
}

fn from_all(flags: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
    let words: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
    let environment = variables.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    match understand(&words, &environment)? {
        Request::Run(settings) => Ok(*settings),
        Request::Check { answer: text, .. } | Request::Print(text) => panic!("{text}"),
    }
}

const THREE: &str = "n1=http://127.0.0.1:2380,n2=http://127.0.0.2:2380,n3=http://127.0.0.3:2380";

/// The flags of member `n` of three.
fn member(n: usize) -> String {
    format!(
        "--name n{n} --data-dir /tmp/n{n} --listen-client-urls=http://127.0.0.{n}:2379 \
         --advertise-client-urls http://127.0.0.{n}:2379 -listen-peer-urls http://127.0.0.{n}:2380 \
         -initial-advertise-peer-urls=http://127.0.0.{n}:2380 --initial-cluster {THREE} \
         --initial-cluster-state new --initial-cluster-token demo"
    )
}

#[test]
fn no_flags_are_a_node_of_its_own() {
    let settings = from_flags("").unwrap();
    assert_eq!((settings.node.name.as_str(), settings.node.data_dir.to_str()), ("default", Some("default.etcd")));
    assert_eq!(settings.listen_client, ["127.0.0.1:2379".parse().unwrap()]);
    assert_eq!(settings.advertise_client, ["http://localhost:2379"]);
    assert_eq!(settings.node.listen_peer, "127.0.0.1:2380".parse().unwrap());
    assert_eq!(settings.node.advertise_peer, "http://localhost:2380");
    assert_eq!(settings.node.initial.len(), 1);
    assert_eq!((settings.node.initial[0].node, settings.node.bootstrap), (settings.node.node, true));
    assert_eq!((settings.node.host.tick_interval.as_millis(), settings.node.host.election_intervals), (100, 10));
    assert_eq!((settings.quota_bytes, settings.request_bytes_max, settings.txn_ops_max), (0, 1_572_864, 128));
    assert_eq!((settings.auto_compaction, settings.log_level.as_str()), (AutoCompaction::Off, "info"));
    assert!(settings.etcd_mode && settings.warnings.is_empty());
}

#[test]
fn all_members_number_each_other_alike() {
    let members: Vec<Settings> = (1..=3).map(|n| from_flags(&member(n)).unwrap()).collect();
    for (place, settings) in members.iter().enumerate() {
        assert_eq!(settings.node.initial, members[0].node.initial);
        assert_eq!(settings.node.initial[place].node, settings.node.node);
        assert_eq!(settings.node.initial[place].address, settings.node.advertise_peer);
    }
    // For ever: a member of another version must come to the same.
    let numbers = members.iter().map(|settings| settings.node.node.0).collect::<Vec<_>>();
    assert_eq!(numbers, NUMBERS_OF_THREE);
    let other = from_flags(&member(1).replace("demo", "other")).unwrap();
    assert_ne!(other.node.node, members[0].node.node);
}

const NUMBERS_OF_THREE: [u64; 3] = [4_204_045_083_410_018_616, 8_595_999_853_221_037_746, 6_628_874_667_919_344_161];

#[test]
fn who_joins_has_no_number() {
    let settings = from_flags(&member(2).replace("state new", "state existing")).unwrap();
    assert_eq!((settings.node.node, settings.node.bootstrap), (NodeId(0), false));
    assert!(settings.node.initial.iter().all(|member| member.node == NodeId(0)));
    assert_eq!(settings.node.advertise_peer, "http://127.0.0.2:2380");
}

#[test]
fn flags_win_over_variables() {
    let variables = [("ETCD_NAME", "v"), ("ETCD_LOG_LEVEL", "fatal"), ("ETCD_SERVICE_HOST", "x"), ("ETCDCTL_API", "3")];
    let settings = from_all("--name f --name=g", &variables).unwrap();
    assert_eq!((settings.node.name.as_str(), settings.log_level.as_str()), ("g", "error"));
    assert_eq!(settings.warnings, ["environment variable ETCD_SERVICE_HOST is not understood and has no effect"]);
}

#[test]
fn figures_are_taken_over() {
    let settings = from_flags(
        "--snapshot-count 5000 --heartbeat-interval 30 --election-timeout 200 --quota-backend-bytes 1000 \
         --max-request-bytes 2097152 --auto-compaction-mode revision --auto-compaction-retention 1000 --log-level debug",
    )
    .unwrap();
    assert_eq!((settings.node.host.log_entries_kept, settings.node.host.election_timeout().as_millis()), (5000, 210));
    assert_eq!((settings.quota_bytes, settings.request_bytes_max), (1000, 2 << 20));
    assert_eq!((settings.auto_compaction, settings.log_level.as_str()), (AutoCompaction::Revision(1000), "debug"));
    let compaction = |retention: &str| {
        from_flags(&format!("--auto-compaction-retention={retention}")).map(|settings| settings.auto_compaction)
    };
    assert_eq!(compaction("2"), Ok(AutoCompaction::Periodic(Duration::from_secs(7200))));
    assert_eq!(compaction("5m"), Ok(AutoCompaction::Periodic(Duration::from_secs(300))));
    assert_eq!(from_flags("--quota-backend-bytes -1").unwrap().quota_bytes, 0);
}

#[test]
fn mistakes_are_named() {
    let cases = [
        ("--nam x", "unknown flag --nam; the nearest known flag is --name"),
        ("-data-dri x", "unknown flag --data-dri; the nearest known flag is --data-dir"),
        ("-wal-dir x", "unknown flag --wal-dir; see --help"),
        ("--auto-tls", "flag --auto-tls: this TLS setting of etcd is not supported"),
        ("--peer-client-cert-auth=false", "flag --peer-client-cert-auth: members always show each other certificates"),
        ("gateway", "`gateway` is not a flag"),
        ("--name", "flag --name needs a value"),
        (
            "--listen-client-urls http://127.0.0.1:1",
            "flag --advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            "--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://127.0.0.1:1",
            "flag --listen-client-urls: https needs --cert-file and --key-file",
        ),
        (
            "--listen-peer-urls https://10.0.0.1:2380 --peer-cert-file c --peer-key-file k",
            "flag --listen-peer-urls: https needs --peer-trusted-ca-file",
        ),
        ("--listen-peer-urls https://10.0.0.1:2380 --peer-cert-file c", "flag --peer-cert-file: needs --peer-key-file"),
        (
            "--listen-client-urls unix://127.0.0.1:1",
            "flag --listen-client-urls: \"unix://127.0.0.1:1\" is a Unix socket, which is not supported",
        ),
        (
            "--listen-client-urls 127.0.0.1:1",
            "flag --listen-client-urls: must be http://HOST:PORT or https://HOST:PORT, not \"127.0.0.1:1\"",
        ),
        (
            "--listen-client-urls http://example.org:1",
            "flag --listen-client-urls: must have an IP address to listen at, not \"http://example.org:1\"",
        ),
        (
            "--listen-peer-urls http://10.0.0.1:2380",
            "flag --listen-peer-urls: 10.0.0.1:2380 is off loopback, where members speak to each other under TLS only: \
             make it https, with --peer-cert-file, --peer-key-file and --peer-trusted-ca-file",
        ),
        ("--listen-peer-urls http://127.0.0.1:1,http://127.0.0.1:2", "flag --listen-peer-urls: only one is supported"),
        (
            "--listen-peer-urls http://127.0.0.1:2379",
            "flag --listen-peer-urls: 127.0.0.1:2379 is where clients are served already",
        ),
        (
            "--name n4 --initial-cluster n1=http://127.0.0.1:2380",
            "flag --initial-cluster: couldn't find local name \"n4\" in the initial cluster configuration",
        ),
        (
            "--name n1 --initial-cluster n1=http://127.0.0.1:99",
            "flag --initial-cluster: has n1=http://127.0.0.1:99 but --initial-advertise-peer-urls is http://localhost:2380",
        ),
        ("--initial-cluster n1", "flag --initial-cluster: must be NAME=PEER-URL,…, not \"n1\""),
        ("--initial-cluster a=http://x:1,b=http://x:1", "flag --initial-cluster: names http://x:1 twice"),
        ("--initial-cluster-state old", "flag --initial-cluster-state: must be \"new\" or \"existing\", not \"old\""),
        (
            "--heartbeat-interval 300",
            "flag --election-timeout: --election-timeout[1000ms] should be at least as 5 times as \
             --heartbeat-interval[300ms]",
        ),
        ("--election-timeout 50001", "flag --election-timeout: must be a whole number from 1 to 50000, not \"50001\""),
        ("--max-request-bytes x", "flag --max-request-bytes: must be a whole number from 1 to 15728640, not \"x\""),
        (
            "--auto-compaction-retention x",
            "flag --auto-compaction-retention: must be hours or a duration such as 30m, not \"x\"",
        ),
        (
            "--auto-compaction-mode x --auto-compaction-retention 1",
            "flag --auto-compaction-mode: must be periodic or revision, not \"x\"",
        ),
        ("--log-level loud", "flag --log-level: must be debug, info, warn, error, panic or fatal, not \"loud\""),
    ];
    for (flags, line) in cases {
        assert_eq!(from_flags(flags).unwrap_err(), line);
    }
    assert_eq!(
        from_all("", &[("ETCD_CIPHER_SUITES", "x")]).unwrap_err(),
        "environment variable ETCD_CIPHER_SUITES: this TLS setting of etcd is not supported"
    );
    assert_eq!(
        from_all("", &[("ETCD_SNAPSHOT_COUNT", "x")]).unwrap_err(),
        "environment variable ETCD_SNAPSHOT_COUNT: must be a whole number from 0 to 100000000, not \"x\""
    );
}

#[test]
fn localhost_and_its_address_are_the_same() {
    from_flags("--name a --initial-cluster a=http://127.0.0.1:2380").unwrap();
}

#[test]
fn the_first_line_of_the_version_is_etcds() {
    for word in ["--version", "-version"] {
        let Ok(Request::Print(text)) = understand(&[word.to_owned()], &Environment::new()) else { panic!() };
        assert_eq!(text.lines().next(), Some("etcd Version: 3.7.0"));
    }
    let Ok(Request::Print(text)) = understand(&["-h".to_owned()], &Environment::new()) else { panic!() };
    assert!(FLAGS.iter().all(|(name, ..)| text.contains(&format!("  --{name}"))));
}

#[test]
fn no_words_make_the_parser_panic() {
    let words = |flags: &str| flags.replace(' ', "\n").into_bytes();
    let more = words(
        "--quota-backend-bytes=1 --auto-compaction-mode revision --auto-compaction-retention=10 --log-level debug",
    );
    mutate(13, 5_000, &[words(&member(2)), more], |bytes| {
        let words: Vec<String> = String::from_utf8_lossy(bytes).split('\n').map(str::to_owned).collect();
        if let Err(why) = understand(&words, &Environment::new()) {
            assert!(!why.is_empty() && !why.contains('\n'), "one line: {why:?}");
        }
    });
}

#[test]
fn the_flags_that_kubeadm_gives_are_taken() {
    let settings = from_flags(
        "--advertise-client-urls=https://10.0.0.1:2379 --cert-file=/pki/server.crt --client-cert-auth=true --data-dir=/d \
         --initial-advertise-peer-urls=https://10.0.0.1:2380 --initial-cluster=n1=https://10.0.0.1:2380 \
         --key-file=/pki/server.key --listen-client-urls=https://127.0.0.1:2379,https://10.0.0.1:2379 \
         --listen-peer-urls=https://10.0.0.1:2380 --name=n1 --peer-cert-file=/pki/peer.crt --peer-client-cert-auth \
         --peer-key-file=/pki/peer.key --peer-trusted-ca-file=/pki/ca.crt --trusted-ca-file=/pki/ca.crt",
    )
    .unwrap();
    let tls = settings.node.tls.unwrap();
    assert_eq!((tls.api, tls.members), (node::tls::ApiTls::Mutual, true));
    assert_eq!(tls.cert_file.to_str(), Some("/pki/peer.crt"));
    assert_eq!(tls.api_pair.unwrap().0.to_str(), Some("/pki/server.crt"));
    assert_eq!(settings.node.advertise_peer, "https://10.0.0.1:2380");
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn gossip_is_beside_the_peer_port_where_there_is_room() {
    let gossip = |flags: &str| from_flags(flags).map(|settings| (settings.node.gossip, settings.warnings));
    let at = |text: &str, required| Some(node::GossipOptions { listen: text.parse().unwrap(), required });
    assert_eq!(gossip(&member(2)), Ok((at("127.0.0.2:2381", false), vec![])));
    assert_eq!(gossip(&format!("{} --gossip-addr 127.0.0.9:1", member(2))), Ok((at("127.0.0.9:1", true), vec![])));
    assert_eq!(gossip(&format!("{} --gossip-addr=off", member(2))), Ok((None, vec![])));
    let crowded = "--listen-client-urls=http://127.0.0.1:2381 --advertise-client-urls=http://127.0.0.1:2381";
    let (none, warnings) = gossip(crowded).unwrap();
    assert!(none.is_none() && warnings.len() == 1 && warnings[0].contains("there is no gossip"), "{warnings:?}");
    assert!(gossip(&format!("{crowded} --gossip-addr=auto")).unwrap_err().contains("clients are served at"));
    assert!(gossip("--gossip-addr=10.0.0.1:2381").unwrap_err().contains("under TLS only"));
    assert!(gossip("--gossip-addr=here").unwrap_err().contains("must be IP:PORT, auto or off"));
}
