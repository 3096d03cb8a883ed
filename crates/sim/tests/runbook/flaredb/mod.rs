//! The runbook's FlareDB and PD lines, executed as they are written there, and what each is meant to show.
//!
//! | module | section of the runbook |
//! |---|---|
//! | [`book`] | the lines, and those that no test runs, with the reason |
//! | `quick` | Quick Diagnostics |
//! | `registering` | Issue: Store Not Registering with PD |
//! | `stuck` | Issue: Region Rebalancing Stuck |
//! | `timeouts` | Issue: Read/Write Timeout |
//! | `tuning` | Performance Tuning |
//! | `monitoring` | Monitoring & Alerts |
//! | `logs` | Log Analysis |
//! | `operations` | beyond the runbook: the placement driver's further calls, as its contract lists them |
//! | `recovery` | beyond the runbook: placement drivers that are lost, as docs/ops teaches it |
//!
//! [`cluster`] is the harness: a placement driver and stores, each a machine of the world with an address of 127.0.0.0/8.

mod book;
mod cluster;
mod logs;
mod monitoring;
mod operations;
mod quick;
mod recovery;
mod registering;
mod stuck;
mod timeouts;
mod tuning;
