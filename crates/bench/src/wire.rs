//! A gRPC client that costs little: HTTP/2 frames written and read by hand, on one connection.
//!
//! Client and servers share the machine's processors, so what the client burns, the server lacks. A full client spends
//! 30 to 50 µs on a call; this one about 3, because it does only what a load generator needs:
//!
//! ```text
//! call() ─ HEADERS + DATA appended to `out` ─┐            ┌─ DATA → Event::Message
//! call() ─ …                                 ├─ turn() ──┤  trailers → Event::End
//! call() ─ …                                 ┘  one write, one read, then all events of what was read
//! ```
//!
//! Requests wait in `out` until the next [`Connection::turn`], which writes them together. Request headers use HPACK's
//! dynamic table as any client does, so that a repeated call's headers take six bytes.
//!
//! Response headers are not decoded. A unary call succeeded if a message arrived before its stream ended: gRPC servers
//! send a failed call's status alone. Stream windows are announced as large as they may be.
//!
//! With TLS the same bytes pass through rustls on their way: what is written is encrypted into one buffer per turn, what is
//! read is decrypted as a whole.
//!
//! Left out: compression, deadlines, error texts (the server's log has them), and request bodies larger than the
//! server's first stream window ([`BODY_BYTES_MAX`]).

use std::{
    collections::VecDeque,
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustls::ClientConfig;
use tokio::net::{TcpSocket, TcpStream};

use crate::secure::Tls;

/// The largest message that [`Connection::call`] takes: HTTP/2's first window of a stream, less the message's header.
pub const BODY_BYTES_MAX: usize = 65_535 - 5;
const FRAME_BYTES_MAX: usize = 16_384;
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Received bytes after which the sender is told to go on; far below the window, far above a turn.
const CREDIT_STEP: u32 = 1 << 24;
const READ_BYTES: usize = 1 << 18;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// What came back. `tag` is the number given to the call.
pub enum Event<'a> {
    Message { tag: u32, body: &'a [u8] },
    End { tag: u32, succeeded: bool },
}

/// Where a server is, and how to speak to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub tls: Option<Arc<ClientConfig>>,
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Endpoint {
        Endpoint { address, tls: None }
    }
}

pub struct Connection {
    socket: TcpStream,
    tls: Option<Box<Tls>>,
    authority: String,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    filled: usize,
    next_stream: u32,
    streams: Vec<Stream>,
    /// Header fields in the server's dynamic table, oldest first.
    indexed: Vec<(&'static str, String)>,
    /// The last call's method and its headers as they are when all of them are indexed.
    block: (&'static str, Vec<u8>),
    /// Bytes the server is ready to take on this connection; may go below zero when it shrinks its window.
    send_window: i64,
    /// Bodies that wait for it: stream, framed body, whether it ends the stream.
    waiting: VecDeque<(u32, Vec<u8>, bool)>,
    received: u32,
    streams_max: usize,
    greeted: bool,
}

struct Stream {
    id: u32,
    tag: u32,
    partial: Vec<u8>,
    answered: bool,
    received: u32,
}

impl Connection {
    /// Connects and exchanges settings.
    pub async fn open(to: &Endpoint) -> Result<Connection> {
        let Endpoint { address: to, tls } = to;
        let socket = TcpSocket::new_v4()?;
        let socket = socket.connect(*to).await.with_context(|| format!("connecting to {to}"))?;
        socket.set_nodelay(true)?;
        let tls = tls.as_ref().map(|config| Tls::new(config, *to)).transpose()?.map(Box::new);
        let mut connection = Connection {
            socket,
            tls,
            authority: to.to_string(),
            out: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            written: 0,
            input: vec![0; READ_BYTES],
            filled: 0,
            next_stream: 1,
            streams: Vec::new(),
            indexed: Vec::new(),
            block: ("", Vec::new()),
            send_window: 65_535,
            waiting: VecDeque::new(),
            received: 0,
            streams_max: usize::MAX,
            greeted: false,
        };
        // ENABLE_PUSH = 0 and INITIAL_WINDOW_SIZE = the largest.
        frame_header(&mut connection.out, 12, SETTINGS, 0, 0);
        connection.out.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 4]);
        connection.out.extend_from_slice(&WINDOW_MAX.to_be_bytes());
        window_update(&mut connection.out, 0, WINDOW_MAX - 65_535);
        while !connection.greeted {
            connection.turn(|_| ()).await?;
        }
        Ok(connection)
    }

    /// Starts a unary call, sent by the next turn.
    pub fn call(&mut self, method: &'static str, message: &[u8], tag: u32) -> Result<()> {
        self.start(method, tag)?;
        self.body(self.next_stream - 2, message, true)
    }

    /// Starts a call whose request is a stream; [`Connection::send`] adds messages to it.
    pub fn open_stream(&mut self, method: &'static str, tag: u32) -> Result<u32> {
        self.start(method, tag)?;
        Ok(self.next_stream - 2)
    }

    pub fn send(&mut self, stream: u32, message: &[u8]) -> Result<()> {
        self.body(stream, message, false)
    }

    /// Calls in flight.
    pub fn in_flight(&self) -> usize {
        self.streams.len()
    }

    /// Writes what waits, reads once (waiting for it if need be), and hands over what it meant.
    pub async fn turn(&mut self, mut on_event: impl FnMut(Event)) -> Result<()> {
        self.flush().await?;
        loop {
            let room = &mut self.input[self.filled..];
            let read = match &mut self.tls {
                None => self.socket.try_read(room),
                Some(tls) => tls.read(&self.socket, room),
            };
            match read {
                Ok(0) => bail!("the server closed the connection"),
                Ok(read) => {
                    self.filled += read;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // What TLS itself wants to say, such as the rest of a handshake, does not wait for a request.
                    self.flush().await?;
                    self.socket.readable().await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.take_frames(&mut on_event)
    }

    /// Turns for as long as `span`, then returns; what is under way goes on with the next turn.
    pub async fn turns_for(&mut self, span: Duration, mut on_event: impl FnMut(Event)) -> Result<()> {
        let deadline = tokio::time::Instant::now() + span;
        loop {
            match tokio::time::timeout_at(deadline, self.turn(&mut on_event)).await {
                Ok(turn) => turn?,
                Err(_over) => return Ok(()),
            }
        }
    }

    /// One unary call on its own: its answer, or an error when it was refused or took too long.
    pub async fn ask(&mut self, method: &'static str, message: &[u8], patience: Duration) -> Result<Vec<u8>> {
        let deadline = Instant::now() + patience;
        let tag = u32::MAX;
        self.call(method, message, tag)?;
        let mut answer = None;
        let mut ended = false;
        while !ended {
            let turn = self.turn(|event| match event {
                Event::Message { tag: t, body } if t == tag => answer = Some(body.to_vec()),
                Event::End { tag: t, .. } if t == tag => ended = true,
                _ => (),
            });
            let left = deadline.saturating_duration_since(Instant::now());
            tokio::time::timeout(left, turn).await.with_context(|| format!("{method}: no answer in time"))??;
        }
        answer.with_context(|| format!("{method} was refused"))
    }

    async fn flush(&mut self) -> Result<()> {
        let (bytes, written) = match &mut self.tls {
            None => (&mut self.out, &mut self.written),
            Some(tls) => {
                tls.seal(&mut self.out)?;
                (&mut tls.sealed, &mut tls.written)
            }
        };
        while *written < bytes.len() {
            match self.socket.try_write(&bytes[*written..]) {
                Ok(count) => *written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.socket.writable().await?,
                Err(error) => return Err(error.into()),
            }
        }
        bytes.clear();
        *written = 0;
        Ok(())
    }

    fn start(&mut self, method: &'static str, tag: u32) -> Result<()> {
        ensure!(self.streams.len() < self.streams_max, "the server takes {} calls at once", self.streams_max);
        let id = self.next_stream;
        self.next_stream += 2;
        self.streams.push(Stream { id, tag, partial: Vec::new(), answered: false, received: 0 });
        if self.block.0 == method {
            frame_header(&mut self.out, self.block.1.len(), HEADERS, END_HEADERS, id);
            self.out.extend_from_slice(&self.block.1);
            return Ok(());
        }
        let mut block = vec![0x83, 0x86]; // :method POST, :scheme http
        let known = self.indexed.len();
        let authority = self.authority.clone();
        let fields = [
            (":path", method),
            (":authority", &authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "centra-bench"),
        ];
        for (name, value) in fields {
            self.field(&mut block, name, value);
        }
        frame_header(&mut self.out, block.len(), HEADERS, END_HEADERS, id);
        self.out.extend_from_slice(&block);
        if self.indexed.len() == known {
            self.block = (method, block);
        }
        Ok(())
    }

    /// HPACK: a field the server has seen is its index (dynamic ones start at 62, newest first); others are sent as
    /// literals that it shall remember.
    fn field(&mut self, block: &mut Vec<u8>, name: &'static str, value: &str) {
        if let Some(place) = self.indexed.iter().position(|(n, v)| *n == name && v == value) {
            let index = 62 + self.indexed.len() - 1 - place;
            debug_assert!(index < 127);
            block.push(0x80 | index as u8);
            return;
        }
        block.push(0x40);
        for text in [name, value] {
            debug_assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
        self.indexed.push((name, value.to_owned()));
    }

    fn body(&mut self, stream: u32, message: &[u8], end: bool) -> Result<()> {
        ensure!(message.len() <= BODY_BYTES_MAX, "a message of {} bytes is too large for this client", message.len());
        let mut framed = Vec::new();
        let total = message.len() + 5;
        if self.waiting.is_empty() && self.send_window >= total as i64 && total <= FRAME_BYTES_MAX {
            frame_header(&mut self.out, total, DATA, if end { END_STREAM } else { 0 }, stream);
            grpc_header(&mut self.out, message.len());
            self.out.extend_from_slice(message);
            self.send_window -= total as i64;
            return Ok(());
        }
        grpc_header(&mut framed, message.len());
        framed.extend_from_slice(message);
        self.waiting.push_back((stream, framed, end));
        self.send_waiting();
        Ok(())
    }

    fn send_waiting(&mut self) {
        while let Some((stream, body, end)) = self.waiting.pop_front() {
            if (body.len() as i64) > self.send_window {
                self.waiting.push_front((stream, body, end));
                return;
            }
            self.send_window -= body.len() as i64;
            let frames = body.chunks(FRAME_BYTES_MAX);
            let last = frames.len() - 1;
            for (index, part) in frames.enumerate() {
                frame_header(
                    &mut self.out,
                    part.len(),
                    DATA,
                    if end && index == last { END_STREAM } else { 0 },
                    stream,
                );
                self.out.extend_from_slice(part);
            }
        }
    }

    fn take_frames(&mut self, on_event: &mut impl FnMut(Event)) -> Result<()> {
        let input = std::mem::take(&mut self.input);
        let mut at = 0;
        let outcome = loop {
            let rest = &input[at..self.filled];
            if rest.len() < 9 {
                break Ok(());
            }
            let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
            if rest.len() < 9 + length {
                break Ok(());
            }
            let stream = u32::from_be_bytes([rest[5], rest[6], rest[7], rest[8]]) & WINDOW_MAX;
            at += 9 + length;
            if let Err(error) = self.take_frame(rest[3], rest[4], stream, &rest[9..9 + length], on_event) {
                break Err(error);
            }
        };
        self.input = input;
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        outcome
    }

    fn take_frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        on_event: &mut impl FnMut(Event),
    ) -> Result<()> {
        match kind {
            DATA => {
                ensure!(flags & PADDED == 0, "padded frames are not understood");
                self.take_data(stream, payload, on_event)?;
                if flags & END_STREAM != 0 {
                    self.end(stream, true, on_event);
                }
            }
            HEADERS if flags & END_STREAM != 0 => self.end(stream, true, on_event),
            RST_STREAM => self.end(stream, false, on_event),
            SETTINGS if flags & ACK == 0 => self.take_settings(payload)?,
            PING if flags & ACK == 0 => {
                frame_header(&mut self.out, payload.len(), PING, ACK, 0);
                self.out.extend_from_slice(payload);
            }
            WINDOW_UPDATE if stream == 0 => {
                self.send_window += i64::from(number(payload)?);
                self.send_waiting();
            }
            GOAWAY => bail!("the server is going away (code {})", number(payload.get(4..).unwrap_or_default())?),
            HEADERS | CONTINUATION | SETTINGS | PING | WINDOW_UPDATE => (),
            other => bail!("a frame of kind {other} is not understood"),
        }
        Ok(())
    }

    fn take_data(&mut self, stream: u32, payload: &[u8], on_event: &mut impl FnMut(Event)) -> Result<()> {
        let size = payload.len() as u32;
        self.received += size;
        if self.received >= CREDIT_STEP {
            window_update(&mut self.out, 0, self.received);
            self.received = 0;
        }
        let Some(place) = self.streams.iter().position(|s| s.id == stream) else { return Ok(()) };
        let Stream { id, tag, partial, answered, received } = &mut self.streams[place];
        *received += size;
        if *received >= CREDIT_STEP {
            window_update(&mut self.out, *id, *received);
            *received = 0;
        }
        let mut rest = payload;
        if !partial.is_empty() {
            partial.extend_from_slice(payload);
            rest = partial;
        }
        let mut taken = 0;
        while let Some(length) = rest[taken..].get(1..5) {
            ensure!(rest[taken] == 0, "compressed answers are not understood");
            let length = number(length)? as usize;
            let Some(body) = rest[taken + 5..].get(..length) else { break };
            on_event(Event::Message { tag: *tag, body });
            *answered = true;
            taken += 5 + length;
        }
        if partial.is_empty() {
            partial.extend_from_slice(&payload[taken..]);
        } else {
            partial.drain(..taken);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32, clean: bool, on_event: &mut impl FnMut(Event)) {
        if let Some(place) = self.streams.iter().position(|s| s.id == stream) {
            let stream = self.streams.swap_remove(place);
            on_event(Event::End { tag: stream.tag, succeeded: clean && stream.answered });
        }
    }

    fn take_settings(&mut self, payload: &[u8]) -> Result<()> {
        for setting in payload.chunks_exact(6) {
            let value = number(&setting[2..])?;
            match u16::from_be_bytes([setting[0], setting[1]]) {
                1 => ensure!(value >= 4096, "the server wants a smaller header table than this client keeps"),
                3 => self.streams_max = value as usize,
                4 => {
                    ensure!(value >= 65_535, "the server's stream window ({value} bytes) is too small for this client")
                }
                _ => (),
            }
        }
        frame_header(&mut self.out, 0, SETTINGS, ACK, 0);
        self.greeted = true;
        Ok(())
    }
}

fn frame_header(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    out.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

fn grpc_header(out: &mut Vec<u8>, length: usize) {
    out.push(0);
    out.extend_from_slice(&(length as u32).to_be_bytes());
}

fn window_update(out: &mut Vec<u8>, stream: u32, bytes: u32) {
    frame_header(out, 4, WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&bytes.to_be_bytes());
}

fn number(bytes: &[u8]) -> Result<u32> {
    let bytes = bytes.get(..4).context("a frame is too short")?;
    Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A server that says what it is told to, byte by byte, and keeps what it heard.
    async fn pair() -> (Connection, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 24 + 9 + 12 + 13];
            socket.read_exact(&mut heard).await.unwrap();
            let mut settings = Vec::new();
            frame_header(&mut settings, 0, SETTINGS, 0, 0);
            socket.write_all(&settings).await.unwrap();
            socket
        });
        let connection = Connection::open(&address.into()).await.unwrap();
        (connection, server.await.unwrap())
    }

    #[tokio::test]
    async fn a_message_cut_into_single_bytes_arrives_whole() {
        let (mut connection, mut server) = pair().await;
        connection.call("/test/One", b"hello", 7).unwrap();
        let mut answer = Vec::new();
        frame_header(&mut answer, 1, HEADERS, END_HEADERS, 1);
        answer.push(0x88);
        frame_header(&mut answer, 6, DATA, 0, 1);
        answer.extend_from_slice(&[0, 0, 0, 0, 3, b'a']);
        frame_header(&mut answer, 2, DATA, 0, 1);
        answer.extend_from_slice(b"bc");
        frame_header(&mut answer, 1, HEADERS, END_HEADERS | END_STREAM, 1);
        answer.push(0x88);
        tokio::spawn(async move {
            for byte in answer {
                server.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        });
        let mut seen = Vec::new();
        while connection.in_flight() > 0 {
            connection
                .turn(|event| match event {
                    Event::Message { tag, body } => seen.push((tag, body.to_vec())),
                    Event::End { tag, succeeded } => seen.push((tag, vec![u8::from(succeeded)])),
                })
                .await
                .unwrap();
        }
        assert_eq!(seen, [(7, b"abc".to_vec()), (7, vec![1])]);
    }

    #[tokio::test]
    async fn a_status_alone_is_a_failure_and_a_closed_socket_an_error() {
        let (mut connection, mut server) = pair().await;
        connection.call("/test/One", b"", 1).unwrap();
        let mut answer = Vec::new();
        frame_header(&mut answer, 1, HEADERS, END_HEADERS | END_STREAM, 1);
        answer.push(0x88);
        server.write_all(&answer).await.unwrap();
        let mut succeeded = None;
        while connection.in_flight() > 0 {
            let watch = |event: Event| {
                if let Event::End { succeeded: s, .. } = event {
                    succeeded = Some(s);
                }
            };
            connection.turn(watch).await.unwrap();
        }
        assert_eq!(succeeded, Some(false));
        drop(server);
        assert!(connection.turn(|_| ()).await.is_err());
    }

    #[tokio::test]
    async fn bodies_wait_for_the_servers_window() {
        let (mut connection, _server) = pair().await;
        connection.call("/test/One", &vec![1; 40_000], 1).unwrap();
        connection.call("/test/One", &vec![1; 40_000], 2).unwrap();
        assert_eq!(connection.waiting.len(), 1);
        connection.take_frame(WINDOW_UPDATE, 0, 0, &40_005u32.to_be_bytes(), &mut |_| ()).unwrap();
        assert_eq!((connection.waiting.len(), connection.send_window), (0, 65_535 - 40_005));
        assert!(connection.call("/test/One", &vec![1; 70_000], 3).is_err());
    }

    #[tokio::test]
    async fn repeated_headers_shrink_to_indexes() {
        let (mut connection, _server) = pair().await;
        connection.call("/test/One", b"", 1).unwrap();
        let first = connection.out.len();
        connection.call("/test/One", b"", 2).unwrap();
        assert_eq!(connection.out.len() - first, 9 + 7 + 9 + 5);
        assert_eq!(
            &connection.out[first + 9..first + 16],
            &[0x83, 0x86, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]
        );
    }
}
