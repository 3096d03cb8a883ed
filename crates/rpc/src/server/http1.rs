//! HTTP/1.1 on the same port: health, metrics, whatever plain tools ask for. hyper does the work.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::service::{Call, HttpBody, Service, http_body};
use super::stop::Stop;
use super::{ServerConfig, browser};

/// A body has so long to come.
const BODY_WITHIN: Duration = Duration::from_secs(30);

/// Serves a connection whose first bytes, `head`, are read already.
pub(super) async fn serve<IO, S>(
    io: IO,
    head: Bytes,
    service: Arc<S>,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
    stop: Arc<Stop>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service,
{
    let bounds = config.clone();
    let answer = hyper::service::service_fn(move |request| answer(request, service.clone(), peer, bounds.clone()));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout)
        .max_buf_size(config.header_bytes_max.max(16 << 10))
        .serve_connection(TokioIo::new(Rewound { head, io }), answer);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.stopped() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(config.drain_timeout, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(target: "chainfire_network", "HTTP connection ended early, addr={peer} reason={error}");
    }
}

async fn answer<S: Service>(
    request: http::Request<Incoming>,
    service: Arc<S>,
    peer: SocketAddr,
    config: Arc<ServerConfig>,
) -> Result<http::Response<HttpBody>, Infallible> {
    let (head, body) = request.into_parts();
    if let Some(why) = browser::refusal(&head.headers, &config.names) {
        return Ok(refused(http::StatusCode::FORBIDDEN, &why));
    }
    let too_large = || {
        let why = format!("the request's body is too large: {} bytes at most", config.http_body_bytes_max);
        Ok(refused(http::StatusCode::PAYLOAD_TOO_LARGE, &why))
    };
    // What says how large it is need not be read first.
    if body.size_hint().lower() > config.http_body_bytes_max as u64 {
        return too_large();
    }
    let whole = Limited::new(body, config.http_body_bytes_max).collect();
    let body = match tokio::time::timeout(BODY_WITHIN, whole).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => return too_large(),
        Ok(Err(error)) => {
            let why = format!("the request's body cannot be read: {error}");
            return Ok(refused(http::StatusCode::BAD_REQUEST, &why));
        }
        Err(_) => return Ok(refused(http::StatusCode::REQUEST_TIMEOUT, "the request's body did not come in time")),
    };
    let call = Call { peer, metadata: Default::default(), deadline: None };
    Ok(service.http(call, http::Request::from_parts(head, body)).await)
}

/// Before a service has seen the request; in the form that all of them have for errors.
pub(super) fn refused(status: http::StatusCode, why: &str) -> http::Response<HttpBody> {
    let mut response = http::Response::new(http_body(format!("{}\n", serde_json::json!({ "error": why }))));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

/// A stream with what was read from it put back.
struct Rewound<IO> {
    head: Bytes,
    io: IO,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Rewound<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buf);
        }
        let part = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head[..part]);
        self.head.advance(part);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Rewound<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
