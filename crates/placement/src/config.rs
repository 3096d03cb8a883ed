//! What a placement driver's member is told ([`settings`]): its keys, and the values that all code uses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base::NodeId;
use consensus::HostConfig;
use node::{InitialMember, NodeConfig};
use settings::command_line::{self, Asked, Environment};
use settings::listen::is_loopback;
use settings::{Key, Kind, Layers, Manual, Schema};

/// The configuration as the program uses it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub node: NodeConfig,
    /// Where stores, clients and people are served.
    pub listen_client: Vec<SocketAddr>,
    /// Replicas of each region, while no policy says otherwise.
    pub max_replicas: u32,
    pub log_level: String,
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
    let listen_client: Vec<SocketAddr> = layers
        .texts("network", "api_addr")
        .iter()
        .map(|text| text.parse().expect("the kind of the key has read it"))
        .collect();
    let listen_peer: SocketAddr = layers.text("network", "raft_addr").parse().expect("the kind of the key has read it");
    for (key, address) in listen_client.iter().map(|address| ("api_addr", address)).chain([("raft_addr", &listen_peer)])
    {
        if !is_loopback(address) {
            let at = layers.origin("network", key);
            return Err(format!(
                "{at}: network.{key} is {address}, which others can reach: a placement driver of this version speaks no TLS, \
                 and listens on loopback only"
            ));
        }
    }
    let node = NodeId(layers.number("cluster", "node_id"));
    let members = layers.members("cluster", "initial_members").iter();
    let mut initial: Vec<InitialMember> =
        members.map(|member| InitialMember { node: NodeId(member.node), address: member.address.clone() }).collect();
    if initial.is_empty() {
        initial.push(InitialMember { node, address: listen_peer.to_string() });
    } else if !initial.iter().any(|member| member.node == node) && layers.switch("cluster", "bootstrap") {
        let at = layers.origin("cluster", "initial_members");
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
            advertise_peer: listen_peer.to_string(),
            client_urls: listen_client.iter().map(|address| format!("http://{address}")).collect(),
            initial,
            bootstrap: layers.switch("cluster", "bootstrap"),
            request_timeout: Duration::from_secs(5) + host.election_timeout() * 2,
            host,
            tls: None,
            gossip: None,
        },
        listen_client,
        max_replicas: layers.number("cluster", "max_replicas") as u32,
        log_level: layers.text("log", "level").to_owned(),
    })
}

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
            name: "raft_addr",
            flag: "raft-addr",
            kind: Kind::Address,
            default: "\"127.0.0.1:2380\"",
            help: &["where the other members reach this one"],
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
            section: "storage",
            name: "data_dir",
            flag: "data-dir",
            kind: Kind::Text { bytes_max: 4096 },
            default: "\"/var/lib/placement-driver\"",
            help: &["the data folder; it is made if there is none"],
        },
        Key {
            section: "log",
            name: "level",
            flag: "log-level",
            kind: Kind::LogLevel { example: "info,placement_schedule=debug" },
            default: "\"info\"",
            help: &["which lines: error, warn, info, debug, trace, or a list of target=level"],
        },
    ],
    changeable: &[],
    later: &[("tls", "a placement driver of this version speaks no TLS, and listens on loopback only")],
    top_level: None,
    explained_above: None,
    example: ("storage", "data_dir"),
    manual: Manual {
        also_called: &[],
        description: "One member of the placement driver, of which there are one or three. It runs in the foreground and logs to \
                      standard output; SIGTERM stops it in good order.",
        files: &["/var/lib/placement-driver"],
        see_also: &[("flaredb", 8), ("flaredb\\-client", 1)],
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
    fn what_does_not_go_together_is_refused() {
        let refused = |flags: &[&str]| {
            let words: Vec<String> = flags.iter().map(|word| (*word).to_owned()).collect();
            understand(&words, &Environment::new()).err().unwrap_or_default()
        };
        assert!(refused(&["--api-addr=10.0.0.1:2379"]).contains("loopback only"));
        assert!(refused(&["--node-id=4", "--initial-members=1=127.0.0.1:2380"]).contains("does not name this member"));
        assert_eq!(refused(&["--node-id=1", "--initial-members=1=127.0.0.1:2380"]), "");
    }
}
