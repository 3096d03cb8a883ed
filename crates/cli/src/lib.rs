//! What the client programs share: how a failure is told ([`failure`]), how answers are shown ([`output`], [`format`](mod@format)),
//! where servers are ([`endpoint`]), and the texts that are made of a command line ([`manual`]).
//!
//! The programs: `chainfire-client` (`main.rs`), `flaredb-client` (`flaredb/main.rs`).

pub mod endpoint;
pub mod failure;
pub mod format;
pub mod manual;
pub mod output;
