//! What a placement driver's member is told ([`settings`]): its keys, and the values that all code uses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base::NodeId;
use consensus::HostConfig;
use node::options::{self, INSECURE, scrub_key, tls_keys};
use node::tls::{ApiTls, Program};
use node::{InitialMember, NodeConfig};
use settings::value::Member;
use settings::{Key, Kind, Layers, Manual, Schema};

/// The configuration as the program uses it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: NodeConfig,
    /// Where stores, clients and people are served.
    pub listen_client: Vec<SocketAddr>,
    /// Within this time all that lies in the data folder is read once; zero: never.
    pub scrub_interval: Duration,
    /// Replicas of each region, while no policy says otherwise.
    pub max_replicas: u32,
}

/// The section with the certificates.
const TLS: &str = "tls";

/// Derives the settings, or says in one line what does not go together.
pub fn validate(layers: &Layers, warnings: &mut Vec<String>) -> Result<Settings, String> {
    let tls = options::tls(layers, TLS, Program::PlacementDriver)?;
    let secure_api = tls.as_ref().is_some_and(|tls| tls.api != ApiTls::Off);
    let (listen_client, client_urls) = options::clients(layers, secure_api, TLS, warnings)?;
    let listen_peer = options::raft(layers, tls.is_some(), TLS)?;
    options::apart(layers, &listen_client, listen_peer)?;
    let node = NodeId(layers.number("cluster", "node_id"));
    let at = layers.origin("cluster", "initial_members");
    let member = |member: &Member| {
        let address = options::schemed(&member.address, tls.is_some(), TLS)
            .map_err(|why| format!("{at}: cluster.initial_members {why}"))?;
        Ok(InitialMember { node: NodeId(member.node), address })
    };
    let mut initial: Vec<InitialMember> =
        layers.members("cluster", "initial_members").iter().map(member).collect::<Result<_, String>>()?;
    let own = initial.iter().find(|member| member.node == node);
    let named = own.map(|member| member.address.as_str());
    let advertise_peer = options::advertised(layers, listen_peer, named, "cluster.initial_members", tls.is_some())?;
    if initial.is_empty() {
        initial.push(InitialMember { node, address: advertise_peer.clone() });
    } else if own.is_none() && layers.switch("cluster", "bootstrap") {
        return Err(format!("{at}: cluster.initial_members does not name this member, {node}"));
    }
    let host = HostConfig {
        tick_interval: Duration::from_millis(layers.number("raft", "tick_interval_ms")),
        election_intervals: layers.number("raft", "election_ticks") as u32,
        ..HostConfig::new(node, node::clock::random_u64())
    };
    let name = layers.text("cluster", "name");
    Ok(Settings {
        node: NodeConfig {
            data_dir: PathBuf::from(layers.text("storage", "data_dir")),
            node,
            name: if name.is_empty() { format!("pd-{node}") } else { name.to_owned() },
            listen_peer,
            advertise_peer,
            client_urls,
            initial,
            bootstrap: layers.switch("cluster", "bootstrap"),
            request_timeout: Duration::from_secs(5) + host.election_timeout() * 2,
            host,
            tls,
            gossip: None,
        },
        listen_client,
        scrub_interval: options::scrub_interval(layers),
        max_replicas: layers.number("cluster", "max_replicas") as u32,
    })
}

const TLS_KEYS: [Key; 6] = tls_keys(
    TLS,
    &[
        "this member's certificate (PEM, with those between it and the CA); empty: no TLS",
        "It needs serverAuth and clientAuth, and a SAN that names it: placement-driver-node-N, or its Raft address's host.",
    ],
);

pub static SCHEMA: Schema = Schema {
    program: "placement-driver",
    name: "Placement driver",
    title: "places the regions of FlareDB on its stores",
    version: env!("CARGO_PKG_VERSION"),
    version_text: || format!("placement-driver {}\n", env!("CARGO_PKG_VERSION")),
    help_head: "\
The placement driver of FlareDB: knows where every region's replicas are, and says where they ought to be.

Usage: placement-driver [FLAGS]

One member, on its own:
  placement-driver --data-dir ./pd --api-addr 127.0.0.11:2379 --raft-addr 127.0.0.11:2380
Three members on one machine, each in a terminal of its own, N = 1, 2, 3:
  placement-driver --data-dir ./pd-N --node-id N --api-addr 127.0.0.1N:2379 --raft-addr 127.0.0.1N:2380 \\
      --initial-members 1=127.0.0.11:2380,2=127.0.0.12:2380,3=127.0.0.13:2380
What it knows: curl http://127.0.0.11:2379/pd/api/v1/stores, and flaredb-client --endpoint http://127.0.0.11:2379 cluster-status

It runs in the foreground and logs to standard output; SIGTERM or Ctrl-C stops it in good order.
",
    commands: &[(crate::recover::COMMAND, "a majority is lost for good: go on with what this member has")],
    variable_prefix: "PLACEMENT_DRIVER_",
    default_file: "/etc/centra-cloud/placement-driver.toml",
    sections: &[
        ("cluster", "Who this member is, and with whom it founds or finds its cluster."),
        ("network", "Where it listens."),
        (
            TLS,
            "Certificates, for all ports; read again when they change. See /usr/share/chainfire/scripts/generate-dev-certs.sh.",
        ),
        ("raft", "Heartbeats and elections."),
        ("storage", "The data folder."),
        ("log", "Log lines on standard output."),
    ],
    keys: &[
        Key {
            section: "cluster",
            name: "bootstrap",
            flag: "bootstrap",
            kind: Kind::Switch,
            default: "true",
            help: &["whether this member may found a cluster; false on one that joins"],
        },
        Key {
            section: "cluster",
            name: "node_id",
            flag: "node-id",
            kind: Kind::Number { min: 1, max: i64::MAX as u64 },
            default: "1",
            help: &["the member's number, its own among the members"],
        },
        Key {
            section: "cluster",
            name: "name",
            flag: "name",
            kind: Kind::Text { bytes_max: 256 },
            default: "\"\"",
            help: &["what people call it; empty: pd-N"],
        },
        Key {
            section: "cluster",
            name: "initial_members",
            flag: "initial-members",
            kind: Kind::Members,
            default: "[]",
            help: &["Raft addresses of all members, this one among them; empty: this one alone"],
        },
        Key {
            section: "cluster",
            name: "max_replicas",
            flag: "max-replicas",
            kind: Kind::Number { min: 1, max: 9 },
            default: "3",
            help: &[
                "stores that hold each region, while the policy does not say otherwise",
                "Once a policy was set (POST /pd/api/v1/config/schedule), its max-replicas counts.",
            ],
        },
        Key {
            section: "network",
            name: "api_addr",
            flag: "api-addr",
            kind: Kind::Addresses,
            default: "\"127.0.0.1:2379\"",
            help: &["where stores, clients and people are served: gRPC and HTTP; one IP:PORT or a list"],
        },
        Key {
            section: "network",
            name: "api_advertise_urls",
            flag: "api-advertise-urls",
            kind: Kind::Urls,
            default: "[]",
            help: &["the URLs under which stores and clients reach this member; empty: those of api_addr"],
        },
        Key {
            section: "network",
            name: "raft_addr",
            flag: "raft-addr",
            kind: Kind::Address,
            default: "\"127.0.0.1:2380\"",
            help: &[
                "where the other members reach this one",
                "Off loopback, members speak to each other under TLS only: see [tls].",
            ],
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
            section: "storage",
            name: "data_dir",
            flag: "data-dir",
            kind: Kind::Text { bytes_max: 4096 },
            default: "\"/var/lib/placement-driver\"",
            help: &["the data folder; it is made if there is none"],
        },
        scrub_key(&[
            "within this time everything in the data folder is read once, to find damage; \"0s\": only when asked",
            "What is found is rebuilt from the other members.",
        ]),
        Key {
            section: "log",
            name: "level",
            flag: "log-level",
            kind: Kind::LogLevel { example: "info,placement_schedule=debug" },
            default: "\"info\"",
            help: &["which lines: error, warn, info, debug, trace, or a list of target=level"],
        },
    ],
    changeable: &["log.level"],
    later: &[("network.tls", "certificates are named in [tls]")],
    top_level: None,
    explained_above: Some(TLS),
    example: ("storage", "data_dir"),
    manual: Manual {
        also_called: &[],
        description: "One member of the placement driver, of which there are one or three. It runs in the foreground and logs to \
                      standard output; SIGTERM stops it in good order, SIGHUP makes it read its configuration and its \
                      certificates again.",
        files: &[
            "/etc/centra-cloud/certs/",
            "/var/lib/placement\\-driver",
            "/usr/share/chainfire/scripts/generate\\-dev\\-certs.sh",
        ],
        see_also: &[("flaredb", 8), ("flaredb\\-client", 1)],
    },
};

#[cfg(test)]
mod tests {
    use settings::command_line::Environment;
    use settings::source::{Request, Source, Told};

    use super::*;

    #[test]
    fn the_table_of_keys_is_sound() {
        assert_eq!(SCHEMA.mistakes(), Vec::<String>::new());
    }

    fn read(flags: &[&str]) -> Result<Told<Settings>, String> {
        let words = ["--config=/dev/null"].iter().chain(flags).map(Into::into);
        match Source::new(&SCHEMA, validate, words, Environment::new())?.read()? {
            Request::Run(told) => Ok(*told),
            Request::Check { answer: text, .. } | Request::Print(text) => panic!("{text}"),
        }
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        let refused = |flags: &[&str]| read(flags).err().unwrap_or_default();
        assert!(refused(&["--api-addr=10.0.0.1:2379"]).contains("name certificates in [tls]"));
        assert!(refused(&["--raft-addr=10.0.0.1:2380", "--insecure"]).contains("under TLS only"));
        assert!(refused(&["--initial-members=1=https://10.0.0.1:2380"]).contains("no certificate in [tls]"));
        assert!(refused(&["--node-id=4", "--initial-members=1=127.0.0.1:2380"]).contains("does not name this member"));
        assert_eq!(refused(&["--node-id=1", "--initial-members=1=127.0.0.1:2380"]), "");
    }

    #[test]
    fn with_certificates_members_are_under_tls_and_so_are_clients_unless_the_api_is_off() {
        let certificates = ["--tls-cert-file=c", "--tls-key-file=k", "--tls-ca-file=a", "--raft-addr=0.0.0.0:2380"];
        let members = ["--initial-members=1=pd1:2380,2=pd2:2380", "--api-addr=10.0.0.1:2379"];
        let node = read(&[&certificates[..], &members].concat()).unwrap().settings.node;
        assert_eq!(node.advertise_peer, "https://pd1:2380");
        assert_eq!(node.client_urls, ["https://10.0.0.1:2379"]);
        let off = read(&[&certificates[..], &members, &["--tls-api=off", "--insecure"]].concat()).unwrap();
        assert_eq!(off.settings.node.client_urls, ["http://10.0.0.1:2379"]);
        assert!(off.warnings[0].contains("without TLS"), "{:?}", off.warnings);
    }
}
