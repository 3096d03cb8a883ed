//! What a port that speaks TLS says to whoever speaks plain HTTP there: in the protocol that they speak, what they should do.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Bytes of a plain request that are read and thrown away before the connection is closed.
pub const PLAIN_BYTES_MAX: usize = 64 << 10;
pub const PLAIN_PATIENCE: Duration = Duration::from_secs(1);

/// Reads what a client begins with, tells it what it should do, and closes the connection.
pub async fn turn_away(mut io: TcpStream, advice: &str) {
    let mut request = vec![0; 4096];
    let Ok(Ok(length)) = tokio::time::timeout(PLAIN_PATIENCE, io.read(&mut request)).await else { return };
    if io.write_all(&answer(&request[..length], advice)).await.is_err() || io.shutdown().await.is_err() {
        return;
    }
    // Closing with bytes unread would take the answer back.
    let mut rest = io.take(PLAIN_BYTES_MAX as u64);
    let mut sink = tokio::io::sink();
    let drain = tokio::io::copy(&mut rest, &mut sink);
    // However it ends, the connection is closed.
    let _ = tokio::time::timeout(PLAIN_PATIENCE, drain).await;
}

/// Whether a connection begins as HTTP does, with what has come of it: four bytes tell.
pub fn begins(bytes: &[u8]) -> bool {
    const METHODS: [&[u8; 4]; 8] = [b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"PRI "];
    METHODS.iter().any(|method| bytes.starts_with(*method))
}

/// `request`: its beginning. `advice`: of at most 247 bytes.
pub fn answer(request: &[u8], advice: &str) -> Vec<u8> {
    if request.starts_with(b"PRI ") { go_away(advice) } else { bad_request(advice) }
}

fn bad_request(advice: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{advice}\n",
        advice.len() + 1
    )
    .into_bytes()
}

/// HTTP/2: our settings, then GOAWAY with INADEQUATE_SECURITY and the advice as debug data.
fn go_away(advice: &str) -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const INADEQUATE_SECURITY: u32 = 0xc;
    let mut out = SETTINGS.to_vec();
    let length = 8 + advice.len();
    out.extend_from_slice(&[0, 0, length as u8, 7, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&0_u32.to_be_bytes());
    out.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    out.extend_from_slice(advice.as_bytes());
    out
}
