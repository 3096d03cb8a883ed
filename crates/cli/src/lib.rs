//! What the client programs share: how a failure is told ([`failure`]), and how answers are shown ([`output`], [`format`](mod@format)),
//! and the reference that is made of a command line ([`manual`]).
//!
//! The programs: `chainfire-client` (`main.rs`), `flaredb-client` (`flaredb/main.rs`).

pub mod failure;
pub mod format;
pub mod manual;
pub mod output;
