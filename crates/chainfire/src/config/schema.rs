//! Chainfire's part of the machinery that reads settings: who the program is, for its help and its manual pages. The
//! table of keys is in [`super::keys`].

use settings::{Manual, Schema};

use super::keys::{CHANGEABLE, KEYS, LATER, SECTIONS, TOP_LEVEL};
use crate::api::ETCD_VERSION;

const PACKAGE_VERSION: &str = env!("CARGO_PKG_VERSION");

pub static SCHEMA: Schema = Schema {
    program: "chainfire",
    name: "Chainfire",
    title: "replicated key-value store that speaks the API of etcd",
    version: PACKAGE_VERSION,
    version_text,
    help_head: HELP_HEAD,
    commands: &[
        ("check", "is the data of a stopped node intact, and how far does it reach"),
        ("repair", "rebuild damaged data from the other members"),
        ("recover", "a majority is lost for good: go on with what this node has"),
        ("etcd", "take the flags of etcd"),
    ],
    variable_prefix: "CHAINFIRE_",
    default_file: "/etc/centra-cloud/chainfire.toml",
    sections: SECTIONS,
    keys: KEYS,
    changeable: CHANGEABLE,
    later: LATER,
    top_level: Some(TOP_LEVEL),
    // Whoever looks for the certificates of a node does it with `grep -A5 '\[network.tls\]'`, and is to see them.
    explained_above: Some("network.tls"),
    example: ("storage", "data_dir"),
    manual: Manual {
        also_called: &[("chainfire etcd", "etcd's flags")],
        description: "One node of a cluster. It runs in the foreground and logs to standard output; SIGTERM stops it in \
                      good order, SIGHUP makes it read its configuration and its certificates again.",
        files: &[
            "/etc/centra-cloud/certs/",
            "/var/lib/chainfire",
            "/usr/share/chainfire/scripts/generate\\-dev\\-certs.sh",
        ],
        see_also: &[("chainfire-client", 1)],
    },
};

fn version_text() -> String {
    format!("chainfire {PACKAGE_VERSION}\nspeaks the API of etcd {ETCD_VERSION}\n")
}

const HELP_HEAD: &str = "\
Chainfire: a replicated key-value store that speaks etcd's v3 API.

Usage: chainfire [FLAGS]
       chainfire etcd [ETCD'S FLAGS]    also when it is started under the name `etcd`
On a stopped node (each has --help):
       chainfire check                  is its data intact, and how far does it reach
       chainfire repair                 rebuild damaged data from the other members
       chainfire recover --unsafe       a majority is lost for good: go on with what this node has

One node, on its own:
  chainfire --data-dir ./data
Three nodes on one machine, each in a terminal of its own, N = 1, 2, 3:
  chainfire --data-dir ./data-N --node-id N --api-addr 127.0.0.N:2379 --raft-addr 127.0.0.N:2380 \\
      --initial-members 1=127.0.0.1:2380,2=127.0.0.2:2380,3=127.0.0.3:2380
A fourth one, once `chainfire-client member-add --node-id 4 --peer-url 127.0.0.4:2380` has announced it:
  chainfire --data-dir ./data-4 --node-id 4 --api-addr 127.0.0.4:2379 --raft-addr 127.0.0.4:2380 \\
      --bootstrap=false --initial-members 1=127.0.0.1:2380

It runs in the foreground and logs to standard output; SIGTERM or Ctrl-C stops it in good order.
Health is at http://127.0.0.1:2379/health, metrics at /metrics.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_sound() {
        assert_eq!(SCHEMA.mistakes(), Vec::<String>::new());
    }
}
