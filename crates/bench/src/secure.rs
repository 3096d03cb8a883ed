//! TLS of the load generator and of the clusters it starts.
//!
//! [`Tls`] is rustls between [`crate::wire`] and its socket, without a copy more than it needs. [`Secure`] makes the
//! certificates of a cluster with `scripts/generate-dev-certs.sh`, as an operator would.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use rpc::client::TlsFiles;
use rustls::{ClientConfig, ClientConnection};
use tokio::net::TcpStream;

use crate::wire::Endpoint;

const SCRIPT: &str = "scripts/generate-dev-certs.sh";
const SEALED_BYTES: usize = 1 << 18;

/// How the demo's commands speak to servers that want TLS.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsOptions {
    /// The CA that servers are trusted by; with it, TLS is spoken
    #[arg(long, env = "CHAINFIRE_CACERT")]
    pub cacert: Option<PathBuf>,
    #[arg(long, env = "CHAINFIRE_CERT")]
    pub cert: Option<PathBuf>,
    #[arg(long, env = "CHAINFIRE_KEY")]
    pub key: Option<PathBuf>,
}

impl TlsOptions {
    pub fn endpoint(&self, address: SocketAddr) -> Result<Endpoint> {
        let files =
            TlsFiles { ca: self.cacert.clone(), cert: self.cert.clone(), key: self.key.clone(), ..Default::default() };
        let tls = if self.cacert.is_some() { Some(config(&files)?) } else { None };
        Ok(Endpoint { address, tls })
    }
}

fn config(files: &TlsFiles) -> Result<Arc<ClientConfig>> {
    Ok(rpc::client::Tls::load(files).map_err(anyhow::Error::msg)?.config())
}

/// The certificates of a cluster and of its clients.
pub struct Secure {
    folder: PathBuf,
    client: Arc<ClientConfig>,
}

impl Secure {
    /// Certificates for the nodes at these addresses, in a folder below `parent`.
    pub fn make(parent: &Path, addresses: &[Ipv4Addr]) -> Result<Secure> {
        let folder = parent.join("certs");
        // Programs lie in bin/, or deep in a target folder and are started from the checkout.
        let beside = std::env::current_exe()?.parent().and_then(Path::parent).map(|root| root.join(SCRIPT));
        let script = [Some(PathBuf::from(SCRIPT)), beside].into_iter().flatten().find(|script| script.is_file());
        let mut command = Command::new(script.with_context(|| format!("no {SCRIPT}: start bench in the checkout"))?);
        // With etcd's flags a node's number is drawn.
        command.arg(&folder).args(["--by-host", "--nodes", &addresses.len().to_string()]);
        for (index, address) in addresses.iter().enumerate() {
            command.args(["--host", &format!("{}={address}", index + 1)]);
        }
        let output = command.output().context(SCRIPT)?;
        ensure!(output.status.success(), "{SCRIPT}: {}", String::from_utf8_lossy(&output.stderr));
        let file = |name: &str| Some(folder.join(name));
        let files =
            TlsFiles { ca: file("ca.crt"), cert: file("client.crt"), key: file("client.key"), ..Default::default() };
        Ok(Secure { client: config(&files)?, folder })
    }

    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.clone()
    }

    /// etcd's flags for node `number`, counted from 1.
    pub fn flags(&self, number: usize) -> Vec<String> {
        let file = |name: String| self.folder.join(name).display().to_string();
        let (cert, key) = (file(format!("chainfire-node-{number}.crt")), file(format!("chainfire-node-{number}.key")));
        let ca = file("ca.crt".to_owned());
        let of = |prefix: &str| {
            [
                format!("--{prefix}cert-file={cert}"),
                format!("--{prefix}key-file={key}"),
                format!("--{prefix}trusted-ca-file={ca}"),
                format!("--{prefix}client-cert-auth=true"),
            ]
        };
        [of(""), of("peer-")].concat()
    }
}

/// A session, and what of it is on its way to the socket and from it.
pub struct Tls {
    session: ClientConnection,
    /// Encrypted, and how much of it is written.
    pub sealed: Vec<u8>,
    pub written: usize,
    arrived: Vec<u8>,
    filled: usize,
    taken: usize,
}

impl Tls {
    pub fn new(config: &Arc<ClientConfig>, to: SocketAddr) -> Result<Tls> {
        let mut session = ClientConnection::new(config.clone(), to.ip().into())?;
        // Requests are bounded by their number.
        session.set_buffer_limit(None);
        Ok(Tls { session, sealed: Vec::new(), written: 0, arrived: vec![0; SEALED_BYTES], filled: 0, taken: 0 })
    }

    /// Encrypts what is to be written, and takes it.
    pub fn seal(&mut self, plain: &mut Vec<u8>) -> io::Result<()> {
        self.session.writer().write_all(plain)?;
        plain.clear();
        while self.session.wants_write() {
            self.session.write_tls(&mut self.sealed)?;
        }
        Ok(())
    }

    /// Fills `room` as far as what arrived goes; nothing arrived: would block.
    pub fn read(&mut self, socket: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
        let mut got = 0;
        loop {
            match self.session.reader().read(&mut room[got..]) {
                Ok(0) => return Ok(got),
                Ok(count) => {
                    got += count;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.taken == self.filled {
                if got > 0 {
                    return Ok(got);
                }
                (self.taken, self.filled) = (0, 0);
                self.filled = socket.try_read(&mut self.arrived)?;
                if self.filled == 0 {
                    return Ok(0);
                }
            }
            let mut rest = &self.arrived[self.taken..self.filled];
            self.taken += self.session.read_tls(&mut rest)?;
            let outcome = self.session.process_new_packets();
            outcome.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, rpc::tls_words::words(&error)))?;
            if self.session.wants_write() {
                // The handshake goes on once this is written.
                while self.session.wants_write() {
                    self.session.write_tls(&mut self.sealed)?;
                }
                if got == 0 && self.taken == self.filled {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
            }
        }
    }
}
