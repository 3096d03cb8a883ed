//! Texts for people, made from the table of keys.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::keys::{KEYS, SECTIONS};
use super::layers::Layers;
use crate::api::ETCD_VERSION;

const PACKAGE_VERSION: &str = env!("CARGO_PKG_VERSION");

/// The first line ends with our version.
pub fn version() -> String {
    format!("chainfire {PACKAGE_VERSION}\nspeaks the API of etcd {ETCD_VERSION}\n")
}

/// The section whose keys stand together, below all that is said about them: whoever looks for the certificates of a node
/// does it with `grep -A5 '\[network.tls\]'`, and is to see them.
const EXPLAINED_ABOVE: &str = "network.tls";

/// A complete, commented configuration file that says nothing but the defaults.
pub fn default_config() -> String {
    let mut out = String::from(
        "# Chainfire. Every setting there is, at its default; a file needs only those that differ.\n\
         # Put changes into chainfire.toml.d/NAME.toml beside this file to keep it as it was shipped.\n\
         # Environment variables (CHAINFIRE_<SECTION>_<KEY>) and flags override files.\n",
    );
    for (section, about) in SECTIONS {
        let keys = || KEYS.iter().filter(|key| key.section == *section);
        let _ = writeln!(out, "\n# {about}");
        if *section == EXPLAINED_ABOVE {
            for key in keys() {
                let _ = writeln!(out, "# {} - {}", key.name, key.help.join("\n#   "));
            }
        }
        let _ = writeln!(out, "[{section}]");
        for key in keys() {
            if *section != EXPLAINED_ABOVE {
                let _ = writeln!(out, "# {}", key.help.join("\n# "));
            }
            let _ = writeln!(out, "{} = {}", key.name, key.default);
        }
    }
    out
}

pub fn help() -> String {
    let mut out = String::from(HEAD);
    for (section, about) in SECTIONS {
        let _ = write!(out, "\n[{section}] {about}\n");
        for key in KEYS.iter().filter(|key| key.section == *section) {
            let _ = writeln!(out, "  --{} ({})\n      {}", key.flag, key.default, key.help[0]);
        }
    }
    out
}

/// What `--check-config` answers: what is not as it is by default, and who said so.
pub fn checked(layers: &Layers, files: &[PathBuf], warnings: &[String]) -> String {
    let mut out = String::from("the configuration is valid\n");
    for file in files {
        let _ = writeln!(out, "read: {}", file.display());
    }
    for (name, value, origin) in layers.given() {
        let _ = writeln!(out, "{name} = {value} ({origin})");
    }
    for warning in warnings {
        let _ = writeln!(out, "warning: {warning}");
    }
    out
}

const HEAD: &str = "\
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

Settings come from, each overriding those before:
  1. the defaults, in parentheses below
  2. the file /etc/centra-cloud/chainfire.toml, or the one named by --config or CHAINFIRE_CONFIG
  3. drop-in files, FILE.d/*.toml, in the order of their names
  4. environment variables: CHAINFIRE_<SECTION>_<KEY>, such as CHAINFIRE_STORAGE_DATA_DIR
  5. flags: --flag VALUE or --flag=VALUE

Other flags:
  --config FILE            read this file
  --check-config           say whether the configuration is valid, and what in it is not a default; start nothing
  --print-default-config   print a complete, commented configuration file
  --print-man[=SECTION]    print the manual page of the program (8) or of its configuration file (5)
  --print-completion SHELL print a script with which bash, zsh or fish completes these flags
  --version, -V            print the version
  --help, -h               print this
";
