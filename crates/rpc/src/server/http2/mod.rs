//! HTTP/2 as a gRPC server needs it: one connection, from bytes to calls and back.
//!
//! ```text
//! socket ─ bytes ─> Session::feed ─ Event ─> driver starts the call ─> Service
//! socket <─ Output <─ Session::respond / pump <───── the call's future is done
//! ```
//!
//! [`session`] is the protocol without input and output; [`driver`] is the task that owns socket, session and the futures
//! of all calls of the connection. One task per connection, however many calls: a batch of requests costs one read, one
//! round over the calls and one write.
//!
//! Left out: server push, priorities (both deprecated), and compression of messages. Clients that ask for
//! a compressed call are told so by `Unimplemented`.

mod calls;
mod driver;
mod frame;
mod held;
mod hpack;
mod huffman;
mod inbound;
mod output;
mod session;
mod stream_state;

pub(super) use driver::Driver;
pub(super) use held::HeldByAll;
pub(super) use session::{Limits, MESSAGE_OVERHEAD_BYTES};

/// What every HTTP/2 client says first.
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
