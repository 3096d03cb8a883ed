//! A server with a service that answers everything at once, and one connection to it over a pipe.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rpc::Status;
use rpc::server::{
    Answer, BoxFuture, Call, HttpBody, Method, RequestStream, ResponseSink, Server, ServerConfig, Service, http_body,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A connection whose peer has said all and reads everything ends by itself; far sooner than this.
const PATIENCE: Duration = Duration::from_secs(20);
const PIPE_BYTES: usize = 64 << 10;

struct Echo;

impl Service for Echo {
    fn resolve(&self, path: &str) -> Option<Method> {
        match path.len() % 3 {
            0 => None,
            1 => Some(Method::unary(1)),
            _ => Some(Method::streaming(2)),
        }
    }

    fn unary(self: &Arc<Self>, _: u16, _: Call, message: Bytes) -> Answer {
        Answer::Ready(Ok(message))
    }

    fn streaming(
        self: &Arc<Self>,
        _: u16,
        _: Call,
        mut requests: RequestStream,
        mut responses: ResponseSink,
    ) -> BoxFuture<Result<(), Status>> {
        Box::pin(async move {
            while let Some(message) = requests.next().await {
                responses.send(message?).await?;
            }
            Ok(())
        })
    }

    fn http(self: &Arc<Self>, _: Call, request: http::Request<Bytes>) -> BoxFuture<http::Response<HttpBody>> {
        Box::pin(async move { http::Response::new(http_body(request.into_body())) })
    }
}

/// Says `bytes` to a server, hangs up, and waits until the server has done so too.
pub fn serve(bytes: Vec<u8>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("threads can be started");
    runtime.block_on(async {
        let config = ServerConfig { message_bytes_max: 64 << 10, streams_max: 100, ..ServerConfig::default() };
        let server = Server::new(Arc::new(Echo), config);
        let (theirs, ours) = tokio::io::duplex(PIPE_BYTES);
        let (mut answers, mut requests) = tokio::io::split(theirs);
        let say = async {
            // The server may hang up in the middle.
            let _ = requests.write_all(&bytes).await;
            let _ = requests.shutdown().await;
        };
        let listen = async {
            let mut sink = vec![0; PIPE_BYTES];
            while answers.read(&mut sink).await.is_ok_and(|length| length > 0) {}
        };
        let peer = ([127, 0, 0, 1], 1).into();
        let all = async { tokio::join!(server.serve_connection(ours, peer), say, listen) };
        tokio::time::timeout(PATIENCE, all).await.expect("the connection ends when the peer has hung up");
    });
}
