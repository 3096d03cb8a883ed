//! How a connection to a server is made: TCP, then TLS if the address says `https`.
//!
//! tonic could do the same. This one puts what goes wrong into words ([`crate::tls_words`]) before it disappears in
//! tonic's, hyper's and h2's errors. That is not over with the handshake: in TLS 1.3 a server's verdict on the client's
//! certificate arrives with the first bytes after it, and a server that speaks another protocol shows by its
//! first bytes too. Every server of HTTP/2 begins with its settings, so a connection counts as made once they came: its
//! [`Greeting`] tells whoever waits for it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tonic::codegen::Service;

use super::tls::Tls;
use crate::tls_words::{SPEAKS_TLS, words};

/// Nothing, or why the server wants no connection.
pub type FirstWord = oneshot::Sender<Result<(), String>>;

/// Makes connections for a channel.
#[derive(Clone)]
pub struct Connector {
    /// Whether its connections are made with TLS; then there must be settings for it.
    pub secured: bool,
    pub tls: Option<Tls>,
    /// Where the first connection says how its server began.
    pub first: Arc<Mutex<Option<FirstWord>>>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = self.tls.clone().filter(|_| self.secured);
        let first = self.first.clone();
        let unsettled = self.secured && tls.is_none();
        Box::pin(async move {
            if unsettled {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "https:// without settings for TLS"));
            }
            let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
            let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
            let mut connection = connect(&host, port, tls.as_ref()).await?;
            connection.greeting.heard = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            Ok(TokioIo::new(connection))
        })
    }
}

/// Connects to `host:port`. Errors of TLS are in the words of [`crate::tls_words`].
///
/// # Errors
/// Nobody listens, the handshake fails, or one of the two refuses the other.
pub async fn connect(host: &str, port: u16, tls: Option<&Tls>) -> io::Result<Connection> {
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let Some(tls) = tls else {
        return Ok(Connection { io: Box::new(tcp), greeting: Greeting::default(), broken: None });
    };
    let name = match &tls.server_name {
        Some(name) => name.clone(),
        None => ServerName::try_from(host.to_owned())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("`{host}` is no host name or address")))?,
    };
    let stream = TlsConnector::from(tls.config()).connect(name, tcp).await.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => {
            let text = "the server ended the connection during the TLS handshake; does this port speak TLS?";
            io::Error::new(io::ErrorKind::UnexpectedEof, text)
        }
        _ => in_words(error),
    })?;
    Ok(Connection { io: Box::new(stream), greeting: Greeting::default(), broken: None })
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection whose errors are in words.
pub struct Connection {
    io: Box<dyn Io>,
    greeting: Greeting,
    /// Why writing failed.
    broken: Option<io::Error>,
}

/// What a server says first.
#[derive(Default)]
struct Greeting {
    bytes: Vec<u8>,
    over: bool,
    heard: Option<FirstWord>,
}

impl Greeting {
    /// The head of a frame, or of an alert, or of a line of HTTP/1.
    const ENOUGH: usize = 9;
    /// An alert of TLS 1.x is seven bytes.
    const ALERT_BYTES: usize = 7;

    /// Takes the outcome of a read. An error in its place is one that a server of HTTP/2 would not have caused.
    fn hear(&mut self, read: io::Result<&[u8]>) -> io::Result<()> {
        let silence = "the server ended the connection before it said anything; is this the port for clients?";
        let trouble = match read {
            Err(error) if !self.over && error.kind() == io::ErrorKind::UnexpectedEof => {
                Some(io::Error::new(io::ErrorKind::UnexpectedEof, silence))
            }
            Err(error) => Some(error),
            Ok(_) if self.over => return Ok(()),
            Ok([]) => Some(io::Error::new(io::ErrorKind::UnexpectedEof, silence)),
            Ok(arrived) => {
                self.bytes.extend_from_slice(arrived);
                let bytes = &self.bytes;
                let alert = bytes.len() >= Self::ALERT_BYTES && bytes[..2] == [0x15, 3] && bytes[3..5] == [0, 2];
                let told = bytes.windows(SPEAKS_TLS.len()).any(|window| window == SPEAKS_TLS.as_bytes());
                let text = match () {
                    () if alert || told => Some(SPEAKS_TLS),
                    // So do servers of HTTPS that are written in Go; their explanation follows in the body.
                    () if bytes.starts_with(b"HTTP/1.") => {
                        Some("the server answers in HTTP/1: if this port speaks TLS, use https://")
                    }
                    () => None,
                };
                if text.is_none() && bytes.len() < Self::ENOUGH {
                    return Ok(());
                }
                text.map(|text| io::Error::new(io::ErrorKind::InvalidData, text))
            }
        };
        self.over = true;
        self.bytes = Vec::new();
        if let Some(heard) = self.heard.take() {
            // Nobody may wait any more.
            let _ = heard.send(trouble.as_ref().map_or(Ok(()), |error| Err(error.to_string())));
        }
        trouble.map_or(Ok(()), Err)
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf)).map_err(in_words);
        Poll::Ready(self.greeting.hear(read.map(|()| &buf.filled()[before..])))
    }
}

impl Connection {
    /// For protocols in which it is not the settings of HTTP/2 that a server begins with.
    #[must_use]
    pub fn without_greeting(mut self) -> Connection {
        self.greeting.over = true;
        self
    }

    /// Writing fails when the other side is gone. What it said before it went is the better explanation, and is waited for:
    /// that, or the end of the stream, is there or on its way.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut dyn Io>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.broken.is_none() {
            match ready!(write(Pin::new(&mut *self.io), cx)) {
                Ok(count) => return Poll::Ready(Ok(count)),
                Err(error) => self.broken = Some(error),
            }
        }
        let mut bytes = [0; 512];
        while !self.greeting.over {
            let mut buf = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)).map_err(in_words);
            if let Err(said) = self.greeting.hear(read.map(|()| buf.filled())) {
                return Poll::Ready(Err(said));
            }
        }
        Poll::Ready(Err(self.broken.take().map_or(io::ErrorKind::BrokenPipe.into(), in_words)))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |io, cx| io.poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |io, cx| io.poll_flush(cx).map_ok(|()| 0)).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx).map_err(in_words)
    }
}

/// h2 keeps only the text of an error, so the text has to say it all.
fn in_words(error: io::Error) -> io::Error {
    let found = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).map(words);
    match found {
        Some(words) => io::Error::new(error.kind(), words),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greetings() {
        let mut alert = Greeting::default();
        assert!(alert.hear(Ok(&[0x15, 3])).is_ok());
        assert_eq!(alert.hear(Ok(&[3, 0, 2, 2, 50])).unwrap_err().to_string(), SPEAKS_TLS);
        let (heard, mut told) = oneshot::channel();
        let mut settings = Greeting { heard: Some(heard), ..Greeting::default() };
        assert!(settings.hear(Ok(&[0, 0, 6, 4, 0, 0, 0, 0])).is_ok() && told.try_recv().is_err());
        assert!(settings.hear(Ok(&[0])).is_ok());
        assert_eq!(told.try_recv(), Ok(Ok(())));
        assert!(settings.hear(Ok(b"HTTP/1.")).is_ok() && settings.hear(Ok(&[])).is_ok(), "it is over");
        assert!(Greeting::default().hear(Ok(b"HTTP/1.0 400 Bad Request")).is_err());
        assert!(Greeting::default().hear(Ok(&[])).is_err());
    }
}
