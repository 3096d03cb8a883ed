//! One page over HTTP/1, for what servers offer beside gRPC: `/metrics`, `/health`, `/version`.
//!
//! The request is one of HTTP/1.0, so that the answer ends where the connection does and never comes in chunks. Left out:
//! redirections, compression, and connections for more than one page.

use std::io;

use http::Uri;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connector;
use super::tls::Tls;

/// The largest answer that is taken.
const PAGE_BYTES_MAX: u64 = 32 << 20;

/// The body of an answer, whatever its status code is below 500: what is not healthy says so in the body.
///
/// # Errors
/// No connection, no HTTP, or a page that is not there.
pub async fn page(address: &str, path: &str, tls: Option<&Tls>) -> io::Result<Vec<u8>> {
    let uri = Uri::try_from(address).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let tls = tls.filter(|_| uri.scheme_str() == Some("https")).map(|tls| tls.speaking("http/1.1"));
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let mut connection = connector::connect(name, port, tls.as_ref()).await?.without_greeting();
    let request = format!("GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    if let Err(error) = connection.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await {
        // A server that ends TLS without saying so has said all the same what it had to say.
        if error.kind() != io::ErrorKind::UnexpectedEof || answer.is_empty() {
            return Err(error);
        }
    }
    body(answer)
}

fn body(mut answer: Vec<u8>) -> io::Result<Vec<u8>> {
    let strange = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end =
        end.filter(|_| answer.starts_with(b"HTTP/1.")).ok_or_else(|| strange("the answer is no HTTP".to_owned()))?;
    let line =
        String::from_utf8_lossy(answer[..end].split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let code: u16 = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    // A server that is not healthy answers 503, and why.
    if !matches!(code, 200..300 | 503) {
        return Err(strange(format!("the server answers `{line}`")));
    }
    answer.drain(..end + 4);
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\na: b\r\n\r\ntext".to_vec()).unwrap(), b"text");
        assert_eq!(body(b"HTTP/1.1 503 No\r\n\r\n".to_vec()).unwrap(), b"");
        let missing = body(b"HTTP/1.1 404 Not Found\r\n\r\npage".to_vec()).unwrap_err();
        assert_eq!(missing.to_string(), "the server answers `HTTP/1.1 404 Not Found`");
        assert!(body(b"HTTP/1.1 200 OK\r\nbroken".to_vec()).is_err() && body(Vec::new()).is_err());
    }
}
