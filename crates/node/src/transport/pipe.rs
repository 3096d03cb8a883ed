//! One connection between members: TCP, with TLS on it where there are certificates.
//!
//! Threads read and write it as any stream, waiting as long as the socket's timeouts say. The driver's messages go out by
//! [`Pipe::push`], which never waits: what the socket does not take stays in the pipe, and [`Pipe::flush_now`] goes
//! on with it.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, Connection, ServerConnection};

use crate::tls::{Certificates, Stands};

/// Bytes that went over all connections with one node since this process began, as they are before encryption. Greetings
/// are not counted: until they are over, nobody knows whose they are.
#[derive(Default)]
pub struct Traffic {
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

pub struct Pipe {
    socket: TcpStream,
    tls: Option<Box<Connection>>,
    /// What was pushed and not taken by the socket; under TLS it waits in the session, and only its size is known here.
    rest: Vec<u8>,
    waiting_bytes: usize,
    /// Of the node at the other end, once it is known.
    traffic: OnceLock<Arc<Traffic>>,
    _standing: Option<Stands>,
}

impl Pipe {
    /// A connection that this side has opened. The handshake happens here.
    pub fn open(socket: TcpStream, certificates: Option<&Arc<Certificates>>) -> io::Result<Pipe> {
        let session = certificates.map(|certificates| {
            // Not the name of anybody: whom to expect is checked by the caller, who knows.
            let name = ServerName::try_from("member.chainfire").expect("a valid name");
            ClientConnection::new(certificates.client(), name).map(Connection::Client)
        });
        Pipe::shake_hands(socket, session.transpose(), certificates)
    }

    /// A connection that the other side has opened.
    pub fn accept(socket: TcpStream, certificates: Option<&Arc<Certificates>>) -> io::Result<Pipe> {
        let session = certificates.map(|own| ServerConnection::new(own.server()).map(Connection::Server));
        Pipe::shake_hands(socket, session.transpose(), certificates)
    }

    fn shake_hands(
        socket: TcpStream,
        session: Result<Option<Connection>, rustls::Error>,
        certificates: Option<&Arc<Certificates>>,
    ) -> io::Result<Pipe> {
        let mut tls = session.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?.map(Box::new);
        if let Some(session) = &mut tls {
            // The link bounds what may wait.
            session.set_buffer_limit(None);
            while session.is_handshaking() {
                session.complete_io(&mut &socket)?;
            }
        }
        let shown = tls.as_ref().and_then(|session| session.peer_certificates());
        let standing = match certificates {
            Some(certificates) if shown.is_some() => {
                let socket = socket.try_clone()?;
                // It may have ended by itself.
                let cut = move || drop(socket.shutdown(Shutdown::Both));
                certificates.note(shown, cut)
            }
            _ => None,
        };
        Ok(Pipe { socket, tls, rest: Vec::new(), waiting_bytes: 0, traffic: OnceLock::new(), _standing: standing })
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The other side's certificate, whose chain was checked; `None` without TLS.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.tls.as_ref().and_then(|session| session.peer_certificates()).and_then(|chain| chain.first())
    }

    /// From here on the connection's bytes are counted there. Whom it is with does not change any more.
    pub fn count(&self, traffic: Arc<Traffic>) {
        let _ = self.traffic.set(traffic);
    }

    fn sent(&self, bytes: usize) {
        if let Some(traffic) = self.traffic.get() {
            traffic.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Sends, without ever waiting. What the socket does not take waits in the pipe.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sent(bytes.len());
        match &mut self.tls {
            Some(session) => session.writer().write_all(bytes)?,
            None if self.rest.is_empty() => {
                let sent = Unwaiting(&self.socket).write(bytes).or_else(nothing_yet)?;
                self.rest.extend_from_slice(&bytes[sent..]);
                self.waiting_bytes = self.rest.len();
                return Ok(());
            }
            None => self.rest.extend_from_slice(bytes),
        }
        self.waiting_bytes += bytes.len();
        self.flush_now()
    }

    /// Sends what waits, as far as the socket takes it.
    pub fn flush_now(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(session) => {
                while session.wants_write() {
                    if session.write_tls(&mut Unwaiting(&self.socket)).or_else(nothing_yet)? == 0 {
                        return Ok(());
                    }
                }
                self.waiting_bytes = 0;
            }
            None => {
                let sent = Unwaiting(&self.socket).write(&self.rest).or_else(nothing_yet)?;
                self.rest.drain(..sent);
                self.waiting_bytes = self.rest.len();
            }
        }
        Ok(())
    }

    /// Bytes that were pushed and are not under way; under TLS all of those since nothing waited.
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Whether the other side has closed a connection on which it never says anything.
    pub fn is_closed(&mut self) -> bool {
        let mut byte = 0_u8;
        let flags = libc::MSG_DONTWAIT | libc::MSG_PEEK;
        // SAFETY: the descriptor is open as long as the socket lives, and there is room for the one byte asked for.
        let received = unsafe { libc::recv(self.socket.as_raw_fd(), (&raw mut byte).cast(), 1, flags) };
        match &mut self.tls {
            // What the TLS library has to say: a farewell, or a change of keys.
            Some(session) if received > 0 => {
                let heard = session.read_tls(&mut &self.socket).and_then(|_| {
                    session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
                });
                heard.map_or(true, |state| state.peer_has_closed())
            }
            _ => received == 0 || (received < 0 && io::Error::last_os_error().kind() != io::ErrorKind::WouldBlock),
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.tls {
            Some(session) => read_session(session, &self.socket, buffer),
            None => (&self.socket).read(buffer),
        }?;
        if let Some(traffic) = self.traffic.get() {
            traffic.received.fetch_add(read as u64, Ordering::Relaxed);
        }
        Ok(read)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.tls {
            Some(session) => {
                session.writer().write_all(bytes)?;
                write_session(session, &self.socket)?;
                bytes.len()
            }
            None => (&self.socket).write(bytes)?,
        };
        self.sent(written);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(session) => write_session(session, &self.socket),
            None => Ok(()),
        }
    }
}

/// Reads what was decrypted, or waits for more.
fn read_session(session: &mut Connection, mut socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match session.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
        write_session(session, socket)?;
        session.read_tls(&mut socket)?;
        if let Err(error) = session.process_new_packets() {
            // The other side is told why, if it still listens.
            let _ = write_session(session, socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
    }
}

/// Sends all that the session has to say.
fn write_session(session: &mut Connection, mut socket: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        if session.write_tls(&mut socket)? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

fn nothing_yet(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

/// Writes what the socket takes at once.
struct Unwaiting<'a>(&'a TcpStream);

impl Write for Unwaiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        const SLICES_MAX: usize = 64;
        let slices = &slices[..slices.len().min(SLICES_MAX)];
        // SAFETY: all zeroes is a valid msghdr: no name, no control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        // An IoSlice has the layout of an iovec; the kernel only reads through it.
        message.msg_iov = slices.as_ptr().cast_mut().cast();
        message.msg_iovlen = slices.len() as _;
        // SAFETY: the descriptor is open as long as the socket lives, and so are the slices.
        let sent =
            unsafe { libc::sendmsg(self.0.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        if sent >= 0 { Ok(sent as usize) } else { Err(io::Error::last_os_error()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for Pipe {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
