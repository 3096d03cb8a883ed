//! The runbook of the operators, executed: its lines as they are written there, on machines made of
//! namespaces, and what each line is meant to show.
//!
//! `book` has the lines. Each is used by one of the scenarios below, or the compiler complains:
//!
//! | module | section of the runbook |
//! |---|---|
//! | `quick` | Quick Diagnostics |
//! | `joining` | Issue: Node Cannot Join Cluster |
//! | `leaderless` | Issue: No Leader / Leader Election Fails |
//! | `latency` | Issue: High Write Latency |
//! | `damage` | Issue: Data Inconsistency After Crash |
//! | `tls` | TLS/mTLS Issues |
//! | `restarts` | TLS/mTLS Issues: the loop that restarts all services |
//! | `tuning` | Performance Tuning |
//! | `monitoring` | Monitoring & Alerts |
//! | `logs` | Log Analysis |
//! | `backup` | beyond the runbook: the unit that makes backups, as it is shipped |
//! | `flaredb` | all of these, for FlareDB and its placement driver |
//! | `partitions` | beyond the runbook: partitions of every shape under clients, judged for one order |
//!
//! The rest is the harness: `world` (machines), `settings` (what they are told), `wires` (cuts between them), `said` (what
//! commands print), `machine.py` and `tools/` (what a machine has for systemd, ssh and their like).

#[path = "../processes/client.rs"]
#[allow(dead_code, reason = "shared with the tests of processes, which use all of it")]
mod client;
#[path = "../processes/cluster.rs"]
#[allow(dead_code, reason = "shared with the tests of processes, which use all of it")]
mod cluster;
#[path = "../processes/history.rs"]
#[allow(dead_code, reason = "shared with the tests of processes, which use all of it")]
mod history;
#[path = "../common/machine.rs"]
mod machine;
#[path = "../processes/pki.rs"]
#[allow(dead_code, reason = "shared with the tests of processes, which use all of it")]
mod pki;
#[path = "../processes/planted.rs"]
mod planted;
#[path = "../processes/tell.rs"]
#[allow(dead_code, reason = "shared with the tests of processes, which use all of it")]
mod tell;

mod backup;
mod book;
mod damage;
mod flaredb;
mod joining;
mod latency;
mod leaderless;
mod logs;
mod monitoring;
mod partitions;
mod quick;
mod restarts;
mod said;
mod settings;
mod tls;
mod tuning;
mod wires;
mod world;
