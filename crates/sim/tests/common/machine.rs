//! What tests with real processes take of this machine: programs that end with the test, and loopback addresses.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// A program without this process's environment, and which ends with it.
pub fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    for kept in ["PATH", "HOME", "TMPDIR", "LANG"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent's.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    command
}

/// The loopback addresses 127.x.y.*, this cluster's own as long as it lives: whoever holds 127.x.y.254 has them all.
pub struct Network {
    x: u8,
    y: u8,
    _held: TcpListener,
}

impl Network {
    pub fn take(port: u16) -> Network {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let own = std::process::id();
        let x = 40 + (own % 51) as u8;
        for _ in 0..=u8::MAX {
            let y = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add((own / 51) as u8);
            if let Ok(held) = TcpListener::bind((Ipv4Addr::new(127, x, y, 254), port)) {
                return Network { x, y, _held: held };
            }
        }
        panic!("no free addresses in 127.{x}.0.0/16; does something listen at 0.0.0.0:{port}?");
    }

    pub fn address(&self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.x, self.y, node)
    }
}
