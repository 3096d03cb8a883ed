//! What the server asks of the program behind it.
//!
//! The life of a call: its path is resolved to a [`Method`] when the headers are in → a unary method's message is
//! gathered and handed over whole ([`Service::unary`]), a streaming one starts at once ([`Service::streaming`]) →
//! the answer's bytes go out as they are. All calls of a connection run inside that connection's task: an
//! answer that takes CPU for long belongs on a thread of its own, and an answer must never block the thread.
//!
//! When the caller goes away or its deadline passes, the future of the call is dropped; what it had begun elsewhere
//! (a proposal) goes on.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;

use super::metadata::Metadata;
use super::stream::{RequestStream, ResponseSink};
use crate::Status;

/// The program behind a listener. Calls get the shared handle, so that their futures can keep it.
pub trait Service: Send + Sync + 'static {
    /// The method behind a path such as `/etcdserverpb.KV/Put`. `None` is answered with `Unimplemented`.
    fn resolve(&self, path: &str) -> Option<Method>;

    /// Answers a unary call: `message` in, the encoded response message out.
    fn unary(self: &Arc<Self>, method: u16, call: Call, message: Bytes) -> Answer;

    /// Runs a streaming call to its end. `Ok` ends the stream with status zero.
    fn streaming(
        self: &Arc<Self>,
        method: u16,
        call: Call,
        requests: RequestStream,
        responses: ResponseSink,
    ) -> BoxFuture<Result<(), Status>>;

    /// Answers plain HTTP: health, metrics, and whatever else is not gRPC. The body is whole and bounded.
    fn http(self: &Arc<Self>, call: Call, request: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>>;
}

/// A future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// What plain HTTP answers with: whole ([`http_body_util::Full`]) or in pieces.
pub type HttpBody = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// A method as the service numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Method {
    pub id: u16,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Unary,
    /// Several messages in either direction.
    Streaming,
}

impl Method {
    pub const fn unary(id: u16) -> Method {
        Method { id, kind: Kind::Unary }
    }

    pub const fn streaming(id: u16) -> Method {
        Method { id, kind: Kind::Streaming }
    }
}

/// What comes with a call beside its message.
#[derive(Clone, Debug)]
pub struct Call {
    pub peer: SocketAddr,
    /// Headers that are not the protocol's own, such as `token` and `hasleader`.
    pub metadata: Metadata,
    /// When the caller stops waiting. The server itself ends the call then.
    pub deadline: Option<Instant>,
}

/// What a unary call comes to.
pub enum Answer {
    /// Known at once.
    Ready(Result<Bytes, Status>),
    Later(BoxFuture<Result<Bytes, Status>>),
}

impl Answer {
    /// An answer that has to be waited for.
    pub fn later(future: impl Future<Output = Result<Bytes, Status>> + Send + 'static) -> Answer {
        Answer::Later(Box::pin(future))
    }
}

/// A whole HTTP body.
pub fn http_body(bytes: impl Into<Bytes>) -> HttpBody {
    UnsyncBoxBody::new(http_body_util::Full::new(bytes.into()))
}
