//! What every program with a node is told in the same words: certificates, and where clients and peers are served. Keys
//! for the program's table, and what is made of their values.
//!
//! | what listens off loopback | without certificates |
//! |---|---|
//! | the port of peers | never |
//! | the port of clients | with `network.insecure = true`, which warns at every start |

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use settings::duration::duration;
use settings::listen::is_loopback;
use settings::{Key, Kind, Layers};

use crate::tls::{ApiTls, Program, TlsOptions};
use crate::transport::bare_address;

/// `network.insecure`
pub const INSECURE: Key = Key {
    section: "network",
    name: "insecure",
    flag: "insecure",
    kind: Kind::Switch,
    default: "false",
    help: &[
        "serve clients off loopback without TLS: whoever reaches the port reads and writes everything",
        "It never covers the ports on which nodes talk to each other.",
    ],
};

/// `storage.scrub_interval`, for [`scrub_interval`].
pub const fn scrub_key(help: &'static [&'static str]) -> Key {
    Key {
        section: "storage",
        name: "scrub_interval",
        flag: "scrub-interval",
        kind: Kind::Duration,
        default: "\"24h\"",
        help,
    }
}

/// What [`scrub_key`] was given; zero: nothing is read by itself.
pub fn scrub_interval(layers: &Layers) -> Duration {
    duration(layers.text("storage", "scrub_interval")).expect("its kind takes nothing else")
}

/// The keys of the section with the certificates. `cert_help`: what a certificate of this program has to name.
pub const fn tls_keys(section: &'static str, cert_help: &'static [&'static str]) -> [Key; 6] {
    const FILE: Kind = Kind::Text { bytes_max: 4096 };
    const fn file(section: &'static str, name: &'static str, flag: &'static str, help: &'static [&'static str]) -> Key {
        Key { section, name, flag, kind: FILE, default: "\"\"", help }
    }
    [
        file(section, "cert_file", "tls-cert-file", cert_help),
        file(
            section,
            "key_file",
            "tls-key-file",
            &["the key of cert_file (PEM), readable by its owner alone: mode 0600"],
        ),
        file(
            section,
            "ca_file",
            "tls-ca-file",
            &[
                "the CA that signs members, and clients too unless client_ca_file is given; both CAs while it is changed",
            ],
        ),
        file(section, "client_ca_file", "tls-client-ca-file", &["a CA of its own for clients; empty: ca_file"]),
        file(
            section,
            "crl_file",
            "tls-crl-file",
            &[
                "revocation lists (PEM, of any of the CAs): whom they name is refused on all ports",
                "The file is read again when it changes, and on SIGHUP; what they have opened already is cut.",
            ],
        ),
        Key {
            section,
            name: "api",
            flag: "tls-api",
            kind: Kind::Choice(&["mutual", "server", "off"]),
            default: "\"mutual\"",
            help: &[
                "mutual: clients need a certificate; server: TLS without one; off: plain HTTP for clients",
                "Off loopback, off also needs network.insecure = true. Nodes among themselves are always mutual.",
            ],
        },
    ]
}

/// What [`tls_keys`] of a section were given. `None` without certificates.
pub fn tls(layers: &Layers, section: &'static str, program: Program) -> Result<Option<TlsOptions>, String> {
    let file = |name: &str| Some(layers.text(section, name)).filter(|path| !path.is_empty()).map(PathBuf::from);
    let needed = ["cert_file", "key_file", "ca_file"];
    let Some(given) = needed.iter().chain(&["client_ca_file", "crl_file"]).find(|name| file(name).is_some()) else {
        return Ok(None);
    };
    let need = |name: &str| {
        file(name).ok_or_else(|| {
            let at = layers.origin(section, given);
            format!(
                "{at}: {section}.{given} is set, and {section}.{name} is not: cert_file, key_file and ca_file belong together"
            )
        })
    };
    Ok(Some(TlsOptions {
        program,
        cert_file: need("cert_file")?,
        key_file: need("key_file")?,
        ca_file: Some(need("ca_file")?),
        api_pair: None,
        client_ca_file: file("client_ca_file"),
        crl_files: file("crl_file").into_iter().collect(),
        api: match layers.text(section, "api") {
            "mutual" => ApiTls::Mutual,
            "server" => ApiTls::Server,
            _ => ApiTls::Off,
        },
        members: true,
    }))
}

/// An address with the scheme that the other side speaks: it is asked for TLS where this side has certificates.
/// The error begins with "has".
pub fn schemed(address: &str, secure: bool, section: &str) -> Result<String, String> {
    match (address.split_once("://"), secure) {
        (Some(("https", _)), false) => Err(format!("has {address}, but there is no certificate in [{section}]")),
        (Some((_, bare)), true) => Ok(format!("https://{bare}")),
        _ => Ok(address.to_owned()),
    }
}

/// `network.raft_addr`, which is under TLS wherever others can reach it. `section`: where the certificates are named.
pub fn raft(layers: &Layers, secure: bool, section: &str) -> Result<SocketAddr, String> {
    let listen = socket(layers.text("network", "raft_addr"));
    if !is_loopback(&listen) && !secure {
        let at = layers.origin("network", "raft_addr");
        return Err(format!(
            "{at}: network.raft_addr is {listen}, but off loopback nodes speak to each other under TLS only: name \
             cert_file, key_file and ca_file in [{section}] (scripts/generate-dev-certs.sh makes them), or use an \
             address such as 127.0.0.1:2380"
        ));
    }
    Ok(listen)
}

/// `network.api_addr` and `network.api_advertise_urls`: where clients are served, and what they are told.
pub fn clients(
    layers: &Layers,
    secure: bool,
    section: &str,
    warnings: &mut Vec<String>,
) -> Result<(Vec<SocketAddr>, Vec<String>), String> {
    let at = layers.origin("network", "api_addr");
    let mut listen: Vec<SocketAddr> = layers.texts("network", "api_addr").iter().map(|text| socket(text)).collect();
    listen.dedup();
    if let Some(address) = listen.iter().find(|address| !secure && !is_loopback(address)) {
        if !layers.switch("network", "insecure") {
            return Err(format!(
                "{at}: network.api_addr is {address}, which others reach, and clients are served without TLS there: name \
                 certificates in [{section}], or set network.insecure = true to serve them all the same"
            ));
        }
        warnings.push(format!(
            "clients are served at {address} without TLS: whoever reaches it reads and writes everything"
        ));
    }
    let mut advertise = layers.texts("network", "api_advertise_urls").to_vec();
    if advertise.is_empty() {
        if let Some(address) = listen.iter().find(|address| address.ip().is_unspecified()) {
            return Err(format!(
                "{at}: network.api_addr is {address}, every address of this machine: say in \
                 network.api_advertise_urls which one clients use"
            ));
        }
        let scheme = if secure { "https" } else { "http" };
        advertise = listen.iter().map(|address| format!("{scheme}://{address}")).collect();
    }
    Ok((listen, advertise))
}

/// Clients and peers are not served at one address.
pub fn apart(layers: &Layers, clients: &[SocketAddr], raft: SocketAddr) -> Result<(), String> {
    if clients.iter().any(|address| overlap(address, &raft)) {
        let at = layers.origin("network", "raft_addr");
        return Err(format!("{at}: network.raft_addr is {raft}, where clients are served already"));
    }
    Ok(())
}

/// Whether two listeners get into each other's way.
pub fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    one.port() == other.port() && (one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified())
}

/// Where the others reach the Raft port: at `named`, whose key is `by`, or where it listens. With its scheme.
pub fn advertised(
    layers: &Layers,
    listen: SocketAddr,
    named: Option<&str>,
    by: &str,
    secure: bool,
) -> Result<String, String> {
    let scheme = if secure { "https" } else { "http" };
    match named {
        Some(named) => Ok(format!("{scheme}://{}", bare_address(named))),
        None if listen.ip().is_unspecified() => {
            let at = layers.origin("network", "raft_addr");
            Err(format!(
                "{at}: network.raft_addr is {listen}, every address of this machine: say in {by} at which one the others \
                 reach this node"
            ))
        }
        None => Ok(format!("{scheme}://{listen}")),
    }
}

/// A text that its kind has checked.
pub fn socket(text: &str) -> SocketAddr {
    text.parse().expect("addresses were checked when they were read")
}
