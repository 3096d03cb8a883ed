//! A connection of the gossip port: TCP, with TLS on it where there are certificates.

use std::io;
use std::sync::Arc;

use rpc::plain_http;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::tls::{Certificates, FOR_MEMBERS};

pub trait Both: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

pub struct Secure {
    pub stream: Box<dyn Both>,
    /// What the other side has shown. `None`: no TLS.
    pub certificate: Option<CertificateDer<'static>>,
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
    let certificate = first(stream.get_ref().1.peer_certificates());
    Ok(Secure { stream: Box::new(stream), certificate })
}

/// A connection that this side has opened.
pub async fn open(stream: TcpStream, certificates: Option<&Arc<Certificates>>) -> io::Result<Secure> {
    let Some(certificates) = certificates else { return plain(stream).await };
    // Not the name of anybody: whom to expect is checked by the caller, who knows.
    let name = ServerName::try_from("member.chainfire").expect("a valid name");
    let stream = TlsConnector::from(certificates.client()).connect(name, stream).await?;
    let certificate = first(stream.get_ref().1.peer_certificates());
    Ok(Secure { stream: Box::new(stream), certificate })
}

async fn plain(stream: TcpStream) -> io::Result<Secure> {
    Ok(Secure { stream: Box::new(stream), certificate: None })
}

fn first(certificates: Option<&[CertificateDer<'_>]>) -> Option<CertificateDer<'static>> {
    certificates.and_then(<[_]>::first).map(|certificate| certificate.clone().into_owned())
}
