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
    let answer = exchange(address, "GET", path, &[], tls).await?;
    // A server that is not healthy answers 503, and why.
    match answer.code {
        200..300 | 503 => Ok(answer.body),
        _ => Err(strange(format!("the server answers `{}`", answer.line))),
    }
}

/// What a server answers, whatever it says.
pub struct PageAnswer {
    pub code: u16,
    /// The first line, with the code in it.
    pub line: String,
    pub body: Vec<u8>,
}

/// Asks with any method and body.
///
/// # Errors
/// No connection, or no HTTP.
pub async fn exchange(
    address: &str,
    method: &str,
    path: &str,
    body: &[u8],
    tls: Option<&Tls>,
) -> io::Result<PageAnswer> {
    let uri = Uri::try_from(address).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let tls = tls.filter(|_| uri.scheme_str() == Some("https")).map(|tls| tls.speaking("http/1.1"));
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let mut connection = connector::connect(name, port, tls.as_ref()).await?.without_greeting();
    let length = match body.len() {
        0 => String::new(),
        length => format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"),
    };
    let head = format!("{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\n{length}Connection: close\r\n\r\n");
    connection.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut answer = Vec::new();
    if let Err(error) = connection.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await {
        // A server that ends TLS without saying so has said all the same what it had to say.
        if error.kind() != io::ErrorKind::UnexpectedEof || answer.is_empty() {
            return Err(error);
        }
    }
    understand(answer)
}

fn strange(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn understand(mut answer: Vec<u8>) -> io::Result<PageAnswer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let end =
        end.filter(|_| answer.starts_with(b"HTTP/1.")).ok_or_else(|| strange("the answer is no HTTP".to_owned()))?;
    let line =
        String::from_utf8_lossy(answer[..end].split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let code: u16 = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_default();
    answer.drain(..end + 4);
    Ok(PageAnswer { code, line, body: answer })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        assert_eq!(understand(b"HTTP/1.0 200 OK\r\na: b\r\n\r\ntext".to_vec()).unwrap().body, b"text");
        assert_eq!(understand(b"HTTP/1.1 503 No\r\n\r\n".to_vec()).unwrap().body, b"");
        let missing = understand(b"HTTP/1.1 404 Not Found\r\n\r\npage".to_vec()).unwrap();
        assert_eq!((missing.code, missing.line.as_str()), (404, "HTTP/1.1 404 Not Found"));
        assert!(understand(b"HTTP/1.1 200 OK\r\nbroken".to_vec()).is_err() && understand(Vec::new()).is_err());
    }
}
