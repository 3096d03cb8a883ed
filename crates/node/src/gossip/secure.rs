//! A connection of the gossip port: TCP, with TLS on it where there are certificates.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use rpc::plain_http;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::tls::{Certificates, FOR_MEMBERS, Stands};

pub trait Both: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

pub struct Secure {
    pub stream: Box<dyn Both>,
    /// What the other side has shown. `None`: no TLS.
    pub certificate: Option<CertificateDer<'static>>,
    _standing: Option<Stands>,
}

/// A connection that the other side has opened.
pub async fn accept(stream: TcpStream, certificates: Option<&Arc<Certificates>>) -> io::Result<Secure> {
    let Some(certificates) = certificates else { return plain(stream).await };
    let mut begin = [0; 4];
    let count = stream.peek(&mut begin).await?;
    if plain_http::begins(&begin[..count]) {
        plain_http::turn_away(stream, FOR_MEMBERS).await;
        let why = "a client of plain HTTP; it was told that this port is for members";
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let stream = TlsAcceptor::from(certificates.server()).accept(stream).await?;
    let (socket, session) = stream.get_ref();
    let (socket, shown) = (socket_of(socket)?, session.peer_certificates().map(<[_]>::to_vec));
    Ok(secure(stream, socket, shown, certificates))
}

/// A connection that this side has opened.
pub async fn open(stream: TcpStream, certificates: Option<&Arc<Certificates>>) -> io::Result<Secure> {
    let Some(certificates) = certificates else { return plain(stream).await };
    // Not the name of anybody: whom to expect is checked by the caller, who knows.
    let name = ServerName::try_from("member.chainfire").expect("a valid name");
    let stream = TlsConnector::from(certificates.client()).connect(name, stream).await?;
    let (socket, session) = stream.get_ref();
    let (socket, shown) = (socket_of(socket)?, session.peer_certificates().map(<[_]>::to_vec));
    Ok(secure(stream, socket, shown, certificates))
}

async fn plain(stream: TcpStream) -> io::Result<Secure> {
    Ok(Secure { stream: Box::new(stream), certificate: None, _standing: None })
}

/// The same socket once more, to shut it down by.
fn socket_of(stream: &TcpStream) -> io::Result<std::net::TcpStream> {
    stream.as_fd().try_clone_to_owned().map(std::net::TcpStream::from)
}

fn secure(
    stream: impl Both + 'static,
    socket: std::net::TcpStream,
    shown: Option<Vec<CertificateDer<'static>>>,
    certificates: &Arc<Certificates>,
) -> Secure {
    // It may have ended by itself.
    let standing = certificates.note(shown.as_deref(), move || drop(socket.shutdown(Shutdown::Both)));
    let certificate = shown.and_then(|chain| chain.into_iter().next());
    Secure { stream: Box::new(stream), certificate, _standing: standing }
}
