//! Certificates: who may speak with this node, and what this node shows of itself.
//!
//! One set of files serves all ports: a certificate and its key, the CA that signs members, and, where clients have
//! a CA of their own, that one too. Members (Raft, gossip) always show each other certificates. Clients of the API show one
//! unless the configuration says that the server's is enough. A server that is a client of others (a FlareDB store of the
//! placement driver and of stores) shows its own pair, and checks the name in the URL as any client does.
//!
//! # The life of a set
//! [`files`] reads it and refuses what is unsafe or does not fit together → [`Certificates`] holds the configurations that
//! every handshake takes afresh → [`reload`] notices that files have changed, and puts a good set in place of the old one;
//! a bad one changes nothing and is reported. Connections that stand go on, but for those whose certificate a new list revokes
//! ([`standing`]); none is resumed from a ticket, so each was checked against the set of its time.
//!
//! # Who a certificate is
//! Between members the chain is checked by the TLS library ([`verify`]), and the name afterwards, when it is known which
//! member the other side claims to be ([`names_member`]): the certificate must carry the DNS name that its program gives
//! its members ([`Program`]), such as `chainfire-node-ID`, or, if it has no such name, one of the host names or addresses
//! under which the cluster knows the member. Loopback does not count as such a name: every node has it. Certificates of
//! clients (without serverAuth) and those of other programs belong to no member, even where one CA signs them all.
//!
//! [`rpc::tls_words`] turns the library's errors into those that operators look for.
//!
//! # Taking a certificate out of use
//! By a revocation list ([`TlsOptions::crl_files`]), which holds for members and clients, on every port, from the reload on, and
//! for the connections between members, and from clients, that stand then. (Not for those that this node has as a client of other
//! servers, such as a store's to the placement driver: those end when they idle, or with the process.)
//! A CA without a list revokes nothing; a list past its next update still counts, with a warning, since an old list
//! knows more than none.

pub mod files;
pub mod reload;
pub mod standing;
mod verify;

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use base::NodeId;
use parking_lot::Mutex;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::Notify;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use files::TlsError;
use standing::Standing;
pub use standing::Stands;
use verify::Revoked;

/// What a port for members tells whoever comes with plain HTTP.
pub const FOR_MEMBERS: &str =
    "this port speaks TLS, and to members of the cluster alone: clients use https:// and the API's port";

/// Whose members these are: of Chainfire, or of one of FlareDB's two kinds of server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Program {
    #[default]
    Chainfire,
    Store,
    PlacementDriver,
}

impl Program {
    const ALL: [Program; 3] = [Program::Chainfire, Program::Store, Program::PlacementDriver];

    /// What begins the DNS name by which a certificate names a member; its number follows.
    pub fn prefix(self) -> &'static str {
        match self {
            Program::Chainfire => "chainfire-node-",
            Program::Store => "flaredb-node-",
            Program::PlacementDriver => "placement-driver-node-",
        }
    }

    /// The DNS name by which a certificate names a member, whatever its address.
    pub fn name_of(self, node: NodeId) -> String {
        format!("{}{node}", self.prefix())
    }
}

/// What the configuration says about TLS. All files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsOptions {
    /// Whose certificates members show each other.
    pub program: Program,
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
    standing: Arc<Standing>,
    /// Whom the node's own certificate is to name: its number, and the address under which the others know it.
    bearer: Mutex<Option<(NodeId, String)>>,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
}

/// One set of files, made ready.
pub struct Set {
    members: Option<(Arc<ServerConfig>, Arc<ClientConfig>)>,
    api: Option<Arc<ServerConfig>>,
    /// Where there is a CA that servers are trusted by.
    outward: Option<Arc<ClientConfig>>,
    /// The node's own certificate.
    own: CertificateDer<'static>,
    revoked: Arc<Revoked>,
    /// Who it is made out to, for people.
    pub subject: String,
    /// When each of the files expires.
    pub files: Vec<Expiry>,
    /// Of all bytes of the files.
    digest: u64,
}

/// When a file of a set stops being good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub kind: FileKind,
    pub path: PathBuf,
    /// Unix time in seconds: of a file with several certificates or lists, that of the first to expire.
    pub expires_s: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Certificate,
    ApiCertificate,
    Ca,
    ClientCa,
    /// When the next list is due.
    Crl,
}

impl FileKind {
    /// In metrics.
    pub fn name(self) -> &'static str {
        match self {
            FileKind::Certificate => "cert",
            FileKind::ApiCertificate => "api_cert",
            FileKind::Ca => "ca",
            FileKind::ClientCa => "client_ca",
            FileKind::Crl => "crl",
        }
    }

    /// Whether this node shows it to others.
    fn is_shown(self) -> bool {
        matches!(self, FileKind::Certificate | FileKind::ApiCertificate)
    }
}

impl Set {
    /// The first of these files to expire; for ever without one.
    pub fn expires_s(&self, kinds: &[FileKind]) -> i64 {
        self.files.iter().filter(|file| kinds.contains(&file.kind)).map(|file| file.expires_s).min().unwrap_or(i64::MAX)
    }
}

/// Counts for metrics.
#[derive(Clone, Debug)]
pub struct TlsStats {
    pub files: Vec<Expiry>,
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
            standing: Arc::default(),
            bearer: Mutex::default(),
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

    /// For the API's listeners, each connection with the set of its time. `None`: clients are served without TLS.
    pub fn serving(self: &Arc<Certificates>) -> Option<Arc<rpc::server::Tls>> {
        self.api_server()?;
        let certificates = self.clone();
        let of_the_moment = move || certificates.api_server().expect("what is served does not change");
        let certificates = self.clone();
        let stands = move |chain: Option<&[CertificateDer<'static>]>, cut: Arc<Notify>| {
            let stands = certificates.note(chain, move || cut.notify_one());
            Box::new(stands) as Box<dyn Any + Send>
        };
        Some(Arc::new(rpc::server::Tls::new(of_the_moment).watched(stands)))
    }

    /// For being a client of other servers' APIs, likewise. `None`: there is no CA to trust.
    pub fn asking(self: &Arc<Certificates>) -> Option<rpc::client::Tls> {
        self.set.load().outward.as_ref()?;
        let certificates = self.clone();
        let of_the_moment =
            move || certificates.set.load().outward.clone().expect("which files there are does not change");
        Some(rpc::client::Tls::of_the_moment(of_the_moment))
    }

    pub fn options(&self) -> &TlsOptions {
        &self.options
    }

    pub fn set(&self) -> Arc<Set> {
        self.set.load_full()
    }

    /// Whether the node's own certificate names it, at this address; the others will ask the same. From here on none that
    /// does not takes its place.
    pub fn name_this_node(&self, node: NodeId, address: &str) -> bool {
        *self.bearer.lock() = Some((node, address.to_owned()));
        names_member(self.options.program, &self.set.load().own, node, [address]).is_ok_and(|vouched| vouched.is_some())
    }

    /// Whether the node's own certificate would name it at this address if it had no number.
    pub fn name_host(&self, address: &str) -> bool {
        let own = &self.set.load().own;
        names_member(self.options.program, own, NodeId::default(), [address]).is_ok_and(|vouched| vouched.is_some())
    }

    pub fn stats(&self) -> TlsStats {
        let set = self.set.load();
        TlsStats {
            files: set.files.clone(),
            reloads: self.reloads.load(Ordering::Relaxed),
            failed_reloads: self.failed_reloads.load(Ordering::Relaxed),
        }
    }
}

/// What in a certificate names a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouched {
    ByNumber,
    ByHost,
}

/// Whether a certificate, whose chain was checked, is that of a program's `node`, which is known under `hosts` (`host`,
/// `host:port` or a URL), and by what.
///
/// # Errors
/// It is no member's at all, and why.
pub fn names_member<'a>(
    program: Program,
    certificate: &CertificateDer<'_>,
    node: NodeId,
    hosts: impl IntoIterator<Item = &'a str>,
) -> Result<Option<Vouched>, String> {
    if !is_for_servers(certificate) {
        return Err("it is not made for members (they need serverAuth and clientAuth)".to_owned());
    }
    let certificate = webpki::EndEntityCert::try_from(certificate).map_err(|_| "it cannot be read".to_owned())?;
    let mut numbered = false;
    for name in certificate.valid_dns_names() {
        let of = Program::ALL.into_iter().find(|known| name.starts_with(known.prefix()));
        match of {
            Some(other) if other != program => {
                return Err(format!("it is that of {name}, and {}… is another program", other.prefix()));
            }
            Some(_) => numbered = true,
            None => {}
        }
    }
    let names = |host: &str| {
        ServerName::try_from(host).is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
    };
    if numbered && node != NodeId::default() {
        return Ok(names(&program.name_of(node)).then_some(Vouched::ByNumber));
    }
    let host = hosts.into_iter().map(host_of).any(|host| !is_loopback(host) && names(host));
    Ok(host.then_some(Vouched::ByHost))
}

/// Whether a certificate names a host or address.
pub fn names_host(certificate: &CertificateDer<'_>, host: &str) -> bool {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
    ServerName::try_from(host).is_ok_and(|name| certificate.verify_is_valid_for_subject_name(&name).is_ok())
}

/// A certificate that says nothing of its use may be used for all.
fn is_for_servers(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let usage = certificate.extended_key_usage().ok().flatten();
    usage.is_none_or(|usage| usage.value.server_auth || usage.value.any)
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

pub(crate) fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.parse() == Ok(std::net::Ipv4Addr::LOCALHOST)
        || host.parse() == Ok(std::net::Ipv6Addr::LOCALHOST)
}

#[cfg(test)]
pub(crate) mod tests;
