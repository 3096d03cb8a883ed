//! Certificates: who may speak with this node, and what this node shows of itself.
//!
//! One set of files serves all three ports: a certificate and its key, the CA that signs members, and, where clients have
//! a CA of their own, that one too. Members (Raft, gossip) always show each other certificates. Clients of the API show one
//! unless the configuration says that the server's is enough.
//!
//! # The life of a set
//! [`files`] reads it and refuses what is unsafe or does not fit together → [`Certificates`] holds the configurations that
//! every handshake takes afresh → [`reload`] notices that files have changed, and puts a good set in place of the old one;
//! a bad one changes nothing and is reported. Connections that stand are not touched; none is resumed from a ticket either,
//! so each was checked against the set of its time.
//!
//! # Who a certificate is
//! Between members the chain is checked by the TLS library ([`verify`]), and the name afterwards, when it is known which
//! member the other side claims to be ([`names_member`]): the certificate must carry the DNS name `chainfire-node-ID`, or
//! one of the host names or addresses under which the cluster knows the member. Loopback does not count as such a
//! name: every node has it.
//!
//! [`words`] turns the library's errors into those that operators look for.
//!
//! # Taking a certificate out of use
//! By a revocation list ([`TlsOptions::crl_files`]), which holds for members and clients, on every port, from the reload on.
//! A CA without a list revokes nothing; a list past its next update still counts, with a warning, since an old list
//! knows more than none.

pub mod files;
pub mod reload;
mod verify;
pub mod words;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use base::NodeId;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};

pub use files::TlsError;

/// What the configuration says about TLS. All files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// The node's certificate, then those between it and the CA.
    pub cert_file: PathBuf,
    /// Readable by its owner alone.
    pub key_file: PathBuf,
    /// The CA (or, while it is being changed, both) that signs members. `None`: nobody is asked for a certificate.
    pub ca_file: Option<PathBuf>,
    /// Another certificate and key, shown to clients of the API.
    pub api_pair: Option<(PathBuf, PathBuf)>,
    /// The CA that signs clients; `ca_file` by default.
    pub client_ca_file: Option<PathBuf>,
    /// Revocation lists, of any of the CAs.
    pub crl_files: Vec<PathBuf>,
    pub api: ApiTls,
    /// Whether members speak TLS among themselves. `false` is for loopback.
    pub members: bool,
}

/// How clients of the API are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiTls {
    /// TLS, and clients show a certificate.
    Mutual,
    /// TLS; whoever reaches the port is a client.
    Server,
    /// No TLS.
    Off,
}

/// The set in use. Shared by all ports.
pub struct Certificates {
    options: TlsOptions,
    set: ArcSwap<Set>,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
}

/// One set of files, made ready.
pub struct Set {
    members: Option<(Arc<ServerConfig>, Arc<ClientConfig>)>,
    api: Option<Arc<ServerConfig>>,
    /// The node's own certificate.
    own: CertificateDer<'static>,
    /// Who it is made out to, for people.
    pub subject: String,
    /// Unix time in seconds.
    pub cert_expires_s: i64,
    /// The first CA certificate to expire.
    pub ca_expires_s: i64,
    /// The first revocation list that should have been replaced by then.
    pub crl_expires_s: i64,
    /// Of all bytes of the files.
    digest: u64,
}

/// Counts for metrics.
#[derive(Clone, Copy, Debug)]
pub struct TlsStats {
    pub cert_expires_s: i64,
    pub ca_expires_s: i64,
    pub reloads: u64,
    pub failed_reloads: u64,
}

impl Certificates {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// A file cannot be read, others may read the key, or the files do not fit together. An expired certificate is no error:
    /// the node waits for a better one, and is refused by the others until then.
    pub fn load(options: TlsOptions) -> Result<Arc<Certificates>, TlsError> {
        let set = files::Files::read(&options)?.into_set(options.api)?;
        Ok(Arc::new(Certificates {
            options,
            set: ArcSwap::from_pointee(set),
            reloads: AtomicU64::new(0),
            failed_reloads: AtomicU64::new(0),
        }))
    }

    /// For connections that other members open: they must show a certificate. Only where members speak TLS.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.members().0
    }

    /// For connections to other members. The name is checked afterwards, by [`names_member`]. Only where members speak TLS.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.members().1
    }

    fn members(&self) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
        self.set.load().members.clone().expect("asked for only where members speak TLS")
    }

    /// For clients of the API, HTTP/2 and HTTP/1.1. `None`: they are served without TLS.
    pub fn api_server(&self) -> Option<Arc<ServerConfig>> {
        self.set.load().api.clone()
    }

    pub fn options(&self) -> &TlsOptions {
        &self.options
    }

    pub fn set(&self) -> Arc<Set> {
        self.set.load_full()
    }

    /// Whether the node's own certificate names it; the others will ask the same.
    pub fn name_this_node<'a>(&self, node: NodeId, hosts: impl IntoIterator<Item = &'a str>) -> bool {
        names_member(&self.set.load().own, node, hosts)
    }

    pub fn stats(&self) -> TlsStats {
        let set = self.set.load();
        TlsStats {
            cert_expires_s: set.cert_expires_s,
            ca_expires_s: set.ca_expires_s,
            reloads: self.reloads.load(Ordering::Relaxed),
            failed_reloads: self.failed_reloads.load(Ordering::Relaxed),
        }
    }
}

/// The DNS name by which a certificate names a node, whatever its address.
pub fn node_name(node: NodeId) -> String {
    format!("chainfire-node-{node}")
}

/// Whether a certificate, whose chain was checked, is that of `node`, which is known under `hosts` (`host`, `host:port` or
/// a URL).
pub fn names_member<'a>(
    certificate: &CertificateDer<'_>,
    node: NodeId,
    hosts: impl IntoIterator<Item = &'a str>,
) -> bool {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
    let names = |host: &str| {
        ServerName::try_from(host).is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    };
    if node != NodeId::default() && names(&node_name(node)) {
        return true;
    }
    hosts.into_iter().map(host_of).any(|host| !is_loopback(host) && names(host))
}

/// The host of `host`, `host:port`, `[v6]:port` or a URL.
pub fn host_of(address: &str) -> &str {
    let bare = crate::transport::bare_address(address);
    if let Some((host, _)) = bare.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return host;
    }
    match bare.rsplit_once(':') {
        Some((host, _)) if !host.contains(':') => host,
        _ => bare,
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.parse() == Ok(std::net::Ipv4Addr::LOCALHOST)
        || host.parse() == Ok(std::net::Ipv6Addr::LOCALHOST)
}

#[cfg(test)]
pub(crate) mod tests;
