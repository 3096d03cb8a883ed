//! What the service manager is told: systemd's notification protocol, a datagram of `KEY=value` lines to the socket that
//! the environment names.
//!
//! A unit of `Type=notify` counts as started with [`Service::ready`]; `status` is the line that `systemctl status` shows;
//! between `reloading` and the next `ready` a reload is under way; `stopping` says that the end is wanted. With
//! `WatchdogSec=` the process is killed and started again when [`Service::alive`] is not heard for that long: whoever
//! calls it must have seen the node work, a timer of its own proves nothing.
//!
//! Without a service manager all of it does nothing. A message that cannot be sent is lost: a manager that does not
//! listen is no reason to stop serving. Left out: the descriptor store and socket activation, for which a node that
//! needs its Raft port anyway has no use.

use std::ffi::{OsStr, OsString};
use std::net::{SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{self, UnixDatagram};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::node::holder;

/// Status lines are for people.
const STATUS_BYTES_MAX: usize = 512;

/// A listener for clients. The error says who holds the port, where that can be found out.
pub fn listen(address: SocketAddr) -> Result<TcpListener, String> {
    let listener = TcpListener::bind(address)
        .map_err(|error| format!("cannot listen on {address} for clients: {error}{}", holder(address)))?;
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    Ok(listener)
}

/// Until the process is told to end: SIGTERM, or Ctrl-C.
pub async fn told_to_stop() {
    let watch = |kind| signal(kind).expect("signals can be watched");
    let (mut terminate, mut interrupt) = (watch(SignalKind::terminate()), watch(SignalKind::interrupt()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// The way to the service manager.
#[derive(Debug, Default)]
pub struct Service {
    to: Option<(UnixDatagram, net::SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Service {
    /// As the environment of this process names it.
    pub fn from_environment() -> Service {
        Service::new(|name| std::env::var_os(name), std::process::id())
    }

    /// As variables name it, for a process of this id.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>, process: u32) -> Service {
        let address = variable("NOTIFY_SOCKET").and_then(|name| address(&name));
        let Some(address) = address else { return Service::default() };
        let Ok(socket) = UnixDatagram::unbound() else { return Service::default() };
        // A manager that does not read must not hold the node up.
        if socket.set_nonblocking(true).is_err() {
            return Service::default();
        }
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let mine = number("WATCHDOG_PID").is_none_or(|id| id == u64::from(process));
        let watchdog = number("WATCHDOG_USEC").filter(|us| mine && *us > 0).map(Duration::from_micros);
        Service { to: Some((socket, address)), watchdog }
    }

    /// Whether anyone listens.
    pub fn is_present(&self) -> bool {
        self.to.is_some()
    }

    /// How long the manager waits for a sign of life before it kills the process.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The node serves, or a reload is done.
    pub fn ready(&self) {
        self.send("READY=1\n");
    }

    /// One line on how it goes.
    pub fn status(&self, line: &str) {
        let mut line = line.replace(['\n', '\r'], " ");
        if line.len() > STATUS_BYTES_MAX {
            line.truncate(line.floor_char_boundary(STATUS_BYTES_MAX));
        }
        self.send(&format!("STATUS={line}\n"));
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// A reload begins; it ends with [`Service::ready`].
    pub fn reloading(&self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", monotonic_us()));
    }

    /// The node is about to end because it was told to.
    pub fn stopping(&self) {
        self.send("STOPPING=1\n");
    }

    fn send(&self, lines: &str) {
        if let Some((socket, address)) = &self.to {
            // See above: a lost message is nobody's failure.
            let _ = socket.send_to_addr(lines.as_bytes(), address);
        }
    }
}

/// A path, or after `@` a name in the kernel's own space of names.
fn address(name: &OsStr) -> Option<net::SocketAddr> {
    match name.as_bytes() {
        [b'@', rest @ ..] => net::SocketAddr::from_abstract_name(rest).ok(),
        [b'/', ..] => net::SocketAddr::from_pathname(name).ok(),
        _ => None,
    }
}

/// The manager orders reloads by this clock, which is not the node's own.
fn monotonic_us() -> u64 {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `spec` is a valid place for the result, and the clock exists on every Linux.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut spec) };
    assert_eq!(failed, 0, "the monotonic clock can be read");
    spec.tv_sec as u64 * 1_000_000 + spec.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(socket: &str, more: &[(&'static str, &str)]) -> Service {
        let mut all: Vec<(&str, OsString)> = vec![("NOTIFY_SOCKET", socket.into())];
        all.extend(more.iter().map(|(name, value)| (*name, OsString::from(value))));
        Service::new(|name| all.iter().find(|(own, _)| *own == name).map(|(_, value)| value.clone()), 7)
    }

    fn next(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 2048];
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn messages_arrive_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let abstract_name = format!("centra-test-{}", std::process::id());
        let named = net::SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
            (UnixDatagram::bind_addr(&named).unwrap(), format!("@{abstract_name}")),
        ];
        for (socket, name) in sockets {
            let service = service(&name, &[]);
            assert!(service.is_present());
            service.ready();
            assert_eq!(next(&socket), "READY=1\n");
            service.status("two\nlines");
            assert_eq!(next(&socket), "STATUS=two lines\n");
            service.status(&"ä".repeat(1000));
            assert_eq!(next(&socket).len(), "STATUS=\n".len() + STATUS_BYTES_MAX);
            service.alive();
            assert_eq!(next(&socket), "WATCHDOG=1\n");
            service.stopping();
            assert_eq!(next(&socket), "STOPPING=1\n");
            let before = monotonic_us();
            service.reloading();
            let text = next(&socket);
            let at: u64 = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end().parse().unwrap();
            assert!((before..=monotonic_us()).contains(&at), "{text}");
        }
    }

    #[test]
    fn the_watchdog_is_ours_or_nobodys() {
        let asked = |more: &[(&'static str, &str)]| service("/run/x", more).watchdog();
        assert_eq!(asked(&[]), None);
        assert_eq!(asked(&[("WATCHDOG_USEC", "2000000")]), Some(Duration::from_secs(2)));
        assert_eq!(asked(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "7")]), Some(Duration::from_secs(2)));
        assert_eq!(asked(&[("WATCHDOG_USEC", "2000000"), ("WATCHDOG_PID", "8")]), None);
        assert_eq!(asked(&[("WATCHDOG_USEC", "soon")]), None);
    }

    #[test]
    fn nobody_listening_is_no_failure() {
        for name in ["", "relative", "/does/not/exist", "vsock:2:1234"] {
            let service = service(name, &[]);
            service.ready();
            service.status("fine");
        }
        assert!(!Service::new(|_| None, 1).is_present());
    }
}
