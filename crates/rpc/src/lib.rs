//! Floor 4: how bytes become calls. A gRPC server of our own ([`server`]), because a general one costs more CPU per
//! call than everything Chainfire does behind it, and the stubs of a client ([`client`]), where tonic does well.
//!
//! The server knows nothing of what messages mean: it hands a method number and the message's bytes to a [`server::Service`] and
//! sends back the bytes it gets. Of clients only FlareDB's knows more: where its keys lie ([`client::Router`]).

pub mod client;
pub mod plain_http;
pub mod server;
mod status;
pub mod tls_words;

pub use status::{Code, Status};
