//! etcd's command line: what starts an etcd can start a Chainfire.
//!
//! Taken are the flags of a static cluster, as `--flag value`, `--flag=value`, or with one dash, and as variables
//! `ETCD_FLAG`; a flag wins over its variable. Everything else is refused by name, with the flag that was probably meant.
//! Unknown variables are only mentioned in the log, as etcd does (schedulers set `ETCD_SERVICE_HOST` and the like), unless
//! they are about TLS.
//!
//! # Who is who
//! etcd's members know each other by name and peer URL, ours by number. A member's number is a hash of the cluster's
//! token and of its sorted peer URLs, so that all members of `--initial-cluster` come to the same numbers without talking.
//! A node that joins (`--initial-cluster-state existing`) has none: the cluster finds it by its peer URL and names it.
//!
//! # Differences from etcd
//! * Members also listen for gossip, on the port above the peer port, unless that is taken or `--gossip-addr off` is given.
//! * `--quota-backend-bytes 0` means no limit, where etcd means 2 GiB.
//! * `--snapshot-count` is how many log entries are kept for members that lag.
//! * One peer URL to listen at; no Unix sockets. A peer URL off loopback must be https.
//! * Members always show each other certificates (`--peer-client-cert-auth` may be given, and is always true). Generated
//!   certificates (`--auto-tls`) and lists of ciphers are refused.
//! * A revocation list holds on all ports, whichever flag names it, and is read again when it changes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use base::NodeId;
use consensus::HostConfig;
use node::tls::{ApiTls, Program, TlsOptions};
use node::transport::bare_address;
use node::{GossipOptions, InitialMember, NodeConfig};
use settings::command_line::{Environment, split_flag};
use settings::duration::duration;
use settings::listen::{Plain, client_address, is_loopback, peer_address};
use settings::nearest::nearest;
use sha2::{Digest as _, Sha256};
use storage::rocks::RocksOptions;

use crate::api::ETCD_VERSION;
use crate::config::{self, AutoCompaction, GossipAddress, Request, Settings, TXN_OPS_MAX, request_timeout};

/// Flag, default, help. An empty default depends on other flags.
const FLAGS: &[(&str, &str, &str)] = &[
    ("name", "default", "the member's name, as in --initial-cluster"),
    ("data-dir", "", "the data folder; NAME.etcd by default"),
    ("listen-client-urls", "http://localhost:2379", "where clients are served"),
    ("advertise-client-urls", "http://localhost:2379", "the URLs under which clients reach this member"),
    ("listen-peer-urls", "http://localhost:2380", "where the other members reach this one"),
    ("initial-advertise-peer-urls", "http://localhost:2380", "this member's peer URLs, as in --initial-cluster"),
    ("initial-cluster", "", "all members: NAME=PEER-URL,…; this one alone by default"),
    ("initial-cluster-state", "new", "new: found the cluster; existing: join it"),
    ("initial-cluster-token", "etcd-cluster", "tells clusters apart; the same for all members"),
    ("snapshot-count", "10000", "log entries kept for members that lag"),
    ("heartbeat-interval", "100", "milliseconds between heartbeats"),
    ("election-timeout", "1000", "milliseconds of silence before an election"),
    ("quota-backend-bytes", "0", "writes are refused when the store is larger; 0: no limit"),
    ("max-request-bytes", "1572864", "bytes of the largest request"),
    ("warning-unary-request-duration", "300ms", "requests that take this long are reported"),
    ("log-level", "info", "debug, info, warn, error, panic or fatal"),
    ("auto-compaction-retention", "0", "what is kept: hours or a duration, or a number of revisions; 0: everything"),
    (
        "gossip-addr",
        "auto",
        "where members tell each other who is alive; auto: one port above the peer port; off: nowhere",
    ),
    ("auto-compaction-mode", "periodic", "periodic (by age) or revision (by number)"),
    ("cert-file", "", "the certificate shown to clients"),
    ("key-file", "", "its key, readable by its owner alone"),
    ("trusted-ca-file", "", "the CA that signs clients"),
    ("client-cert-auth", "false", "whether clients need a certificate"),
    ("peer-cert-file", "", "the certificate shown to members; that of clients by default"),
    ("peer-key-file", "", "its key, readable by its owner alone"),
    ("peer-trusted-ca-file", "", "the CA that signs members"),
    ("client-crl-file", "", "revocation lists; they hold for clients and members"),
    ("peer-crl-file", "", "more of them; they hold for clients and members"),
    ("peer-client-cert-auth", "true", "members always show each other certificates; false is refused"),
];
/// Flags that need no value.
const SWITCHES: [&str; 2] = ["client-cert-auth", "peer-client-cert-auth"];
const VARIABLE_PREFIX: &str = "ETCD_";

/// Understands `arguments` (without the program's name), or says in one line why not.
pub fn understand(arguments: &[String], environment: &Environment) -> Result<Request, String> {
    let mut given = Given::default();
    given.variables(environment)?;
    if let Some(print) = given.arguments(arguments)? {
        return Ok(Request::Print(print));
    }
    given.settings().map(|settings| Request::Run(Box::new(settings)))
}

/// What `--version` prints. Scripts read the first line.
pub fn version() -> String {
    format!("etcd Version: {ETCD_VERSION}\nChainfire Version: {}\n", env!("CARGO_PKG_VERSION"))
}

fn help() -> String {
    let mut out = String::from(
        "Chainfire, started with etcd's flags.\n\nUsage: etcd [FLAGS]\n\n\
         Each flag may also be given as a variable, such as ETCD_DATA_DIR.\n\n",
    );
    for (name, default, help) in FLAGS {
        out += &match *default {
            "" => format!("  --{name}\n      {help}\n"),
            default => format!("  --{name} ({default})\n      {help}\n"),
        };
    }
    out + "  --version\n      print the version\n"
}

/// The value of each flag that was given, and by what.
#[derive(Default)]
struct Given {
    values: BTreeMap<&'static str, (String, String)>,
    warnings: Vec<String>,
}

impl Given {
    fn variables(&mut self, environment: &Environment) -> Result<(), String> {
        for (variable, value) in environment {
            let Some(rest) = variable.strip_prefix(VARIABLE_PREFIX) else { continue };
            let flag = rest.to_ascii_lowercase().replace('_', "-");
            let origin = format!("environment variable {variable}");
            match FLAGS.iter().find(|(name, ..)| *name == flag) {
                Some((name, ..)) => drop(self.values.insert(name, (value.clone(), origin))),
                None if is_about_tls(&flag) => return Err(format!("{origin}: {NOT_OURS}")),
                None => self.warnings.push(format!("{origin} is not understood and has no effect")),
            }
        }
        Ok(())
    }

    /// The text to print, when that is all that is asked for.
    fn arguments(&mut self, arguments: &[String]) -> Result<Option<String>, String> {
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let Some((name, inline)) = split_flag(word, 1) else {
                return Err(format!("`{}` is not a flag", word.escape_debug()));
            };
            match name {
                "version" => return Ok(Some(version())),
                "help" | "h" => return Ok(Some(help())),
                _ => {}
            }
            let Some((known, ..)) = FLAGS.iter().find(|(known, ..)| *known == name) else {
                let name = name.escape_debug();
                if is_about_tls(&name.to_string()) {
                    return Err(format!("flag --{name}: {NOT_OURS}"));
                }
                let hint = match nearest(&name.to_string(), FLAGS.iter().map(|(known, ..)| *known)) {
                    Some(meant) => format!("the nearest known flag is --{meant}"),
                    None => "see --help".to_owned(),
                };
                return Err(format!("unknown flag --{name}; {hint}"));
            };
            let switch = SWITCHES.contains(known).then(|| "true".to_owned());
            let value = inline.or(switch).or_else(|| words.next().cloned());
            let value = value.ok_or_else(|| format!("flag --{known} needs a value"))?;
            self.values.insert(known, (value, format!("flag --{known}")));
        }
        Ok(None)
    }

    fn value(&self, flag: &str) -> &str {
        match self.values.get(flag) {
            Some((value, _)) => value,
            None => FLAGS.iter().find(|(name, ..)| *name == flag).map(|(_, default, _)| default).expect("a known flag"),
        }
    }

    fn is_given(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }

    fn wrong(&self, flag: &str, why: impl std::fmt::Display) -> String {
        match self.values.get(flag) {
            Some((_, origin)) => format!("{origin}: {why}"),
            None => format!("flag --{flag}: {why}"),
        }
    }

    fn number(&self, flag: &str, min: i64, max: i64) -> Result<i64, String> {
        let value = self.value(flag);
        let number = value.parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| self.wrong(flag, format!("must be a whole number from {min} to {max}, not {value:?}")))
    }

    /// URLs of one flag as `http://HOST:PORT` or `https://HOST:PORT`.
    fn urls(&self, flag: &str) -> Result<Vec<String>, String> {
        let urls =
            self.value(flag).split(',').map(str::trim).map(|url| member_url(url).map_err(|why| self.wrong(flag, why)));
        urls.collect()
    }

    fn addresses(&self, flag: &str) -> Result<Vec<SocketAddr>, String> {
        let urls = self.urls(flag)?;
        let address = |url: &String| {
            client_address(bare_address(url))
                .ok_or_else(|| self.wrong(flag, format!("must have an IP address to listen at, not {url:?}")))
        };
        urls.iter().map(address).collect()
    }

    fn settings(mut self) -> Result<Settings, String> {
        let listen_client = self.addresses("listen-client-urls")?;
        if self.is_given("listen-client-urls") && !self.is_given("advertise-client-urls") {
            return Err(
                "flag --advertise-client-urls is required when --listen-client-urls is set explicitly".to_owned()
            );
        }
        let tls = self.tls()?;
        let secure_api = tls.as_ref().is_some_and(|tls| tls.api != ApiTls::Off);
        for address in listen_client.iter().filter(|address| !is_loopback(address) && !secure_api) {
            let text =
                format!("clients are served at {address} without TLS: whoever reaches it reads and writes everything");
            self.warnings.push(text);
        }
        let advertise_client = self.urls("advertise-client-urls")?;
        let mut node = self.node(&advertise_client, tls)?;
        if listen_client.contains(&node.listen_peer) {
            let why = format!("{} is where clients are served already", node.listen_peer);
            return Err(self.wrong("listen-peer-urls", why));
        }
        node.gossip = self.gossip(&node, &listen_client)?;
        Ok(Settings {
            node,
            listen_client,
            advertise_client,
            storage: RocksOptions { now: node::clock::now, ..RocksOptions::default() },
            scrub_interval: config::SCRUB_INTERVAL,
            request_bytes_max: self.number("max-request-bytes", 1, config::REQUEST_BYTES_LIMIT as i64)? as usize,
            txn_ops_max: TXN_OPS_MAX,
            quota_bytes: self.number("quota-backend-bytes", i64::MIN, i64::MAX)?.max(0) as u64,
            auto_compaction: self.compaction()?,
            log_level: self.log_level()?,
            slow_request: self.slow_request()?,
            layers: None,
            etcd_mode: true,
            warnings: self.warnings,
        })
    }

    /// An etcd has no such port: where it does not fit in, a member does without it unless it was asked for.
    fn gossip(&mut self, node: &NodeConfig, clients: &[SocketAddr]) -> Result<Option<GossipOptions>, String> {
        let flag = "gossip-addr";
        let asked = self.is_given(flag);
        let given = match self.value(flag) {
            word @ ("auto" | "off") => word.to_owned(),
            text => client_address(text)
                .ok_or_else(|| self.wrong(flag, format!("must be IP:PORT, auto or off, not {text:?}")))?
                .to_string(),
        };
        let secure = node.tls.as_ref().is_some_and(|tls| tls.members);
        let address = GossipAddress { given: &given, raft: node.listen_peer, clients, secure };
        match address.options() {
            Ok(options) => Ok(options.map(|options| GossipOptions { required: asked, ..options })),
            Err(why) if asked => Err(self.wrong(flag, why)),
            Err(why) => {
                self.warnings.push(format!("there is no gossip: its address {why}"));
                Ok(None)
            }
        }
    }

    /// Whether the URLs of a flag are https; all of them or none.
    fn is_secure(&self, flag: &str) -> Result<bool, String> {
        let urls = self.urls(flag)?;
        let secure = urls.iter().filter(|url| url.starts_with("https:")).count();
        match secure {
            0 => Ok(false),
            count if count == urls.len() => Ok(true),
            _ => Err(self.wrong(flag, "http and https together are not supported")),
        }
    }

    fn file(&self, flag: &str) -> Option<PathBuf> {
        Some(self.value(flag)).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn switch(&self, flag: &str) -> Result<bool, String> {
        self.value(flag)
            .parse()
            .map_err(|_| self.wrong(flag, format!("must be true or false, not {:?}", self.value(flag))))
    }

    /// `None` without certificates.
    fn tls(&self) -> Result<Option<TlsOptions>, String> {
        let (api, members) = (self.is_secure("listen-client-urls")?, self.is_secure("listen-peer-urls")?);
        if !self.switch("peer-client-cert-auth")? {
            return Err(self.wrong("peer-client-cert-auth", "members always show each other certificates"));
        }
        if !api && !members {
            return Ok(None);
        }
        let pair = |cert: &str, key: &str| match (self.file(cert), self.file(key)) {
            (Some(cert), Some(key)) => Ok(Some((cert, key))),
            (None, None) => Ok(None),
            (Some(_), None) => Err(self.wrong(cert, format!("needs --{key}"))),
            (None, Some(_)) => Err(self.wrong(key, format!("needs --{cert}"))),
        };
        let clients = pair("cert-file", "key-file")?;
        let peers = pair("peer-cert-file", "peer-key-file")?.filter(|_| members);
        if api && clients.is_none() {
            return Err(self.wrong("listen-client-urls", "https needs --cert-file and --key-file"));
        }
        let Some((cert_file, key_file)) = peers.clone().or_else(|| clients.clone()) else {
            return Err(self.wrong("listen-peer-urls", "https needs --peer-cert-file and --peer-key-file"));
        };
        let client_ca = self.file("trusted-ca-file");
        let ca_file =
            if members { self.file("peer-trusted-ca-file").or_else(|| client_ca.clone()) } else { client_ca.clone() };
        if members && ca_file.is_none() {
            return Err(self.wrong("listen-peer-urls", "https needs --peer-trusted-ca-file"));
        }
        let mutual = self.switch("client-cert-auth")?;
        if mutual && client_ca.is_none() {
            return Err(self.wrong("client-cert-auth", "it needs --trusted-ca-file"));
        }
        Ok(Some(TlsOptions {
            program: Program::Chainfire,
            cert_file,
            key_file,
            ca_file,
            api_pair: clients.filter(|_| peers.is_some()),
            client_ca_file: client_ca,
            crl_files: ["client-crl-file", "peer-crl-file"].into_iter().filter_map(|flag| self.file(flag)).collect(),
            api: match (api, mutual) {
                (false, _) => ApiTls::Off,
                (true, true) => ApiTls::Mutual,
                (true, false) => ApiTls::Server,
            },
            members,
        }))
    }

    fn node(&self, client_urls: &[String], tls: Option<TlsOptions>) -> Result<NodeConfig, String> {
        let name = self.value("name").to_owned();
        let secure = tls.as_ref().is_some_and(|tls| tls.members);
        let listen_peer = match self.addresses("listen-peer-urls")?.as_slice() {
            [address] if is_loopback(address) || secure => *address,
            [address] => {
                return Err(self.wrong("listen-peer-urls", format!(
                    "{address} is off loopback, where members speak to each other under TLS only: make it https, with \
                     --peer-cert-file, --peer-key-file and --peer-trusted-ca-file"
                )));
            }
            _ => return Err(self.wrong("listen-peer-urls", "only one is supported")),
        };
        let founds = match self.value("initial-cluster-state") {
            "new" => true,
            "existing" => false,
            other => {
                let why = format!("must be \"new\" or \"existing\", not {other:?}");
                return Err(self.wrong("initial-cluster-state", why));
            }
        };
        let cluster = self.cluster(&name)?;
        let own = &cluster[&name];
        let token = self.value("initial-cluster-token");
        let number = |urls: &[String]| if founds { member_number(token, urls) } else { NodeId::default() };
        let node = number(own);
        let address = |urls: &Vec<String>| urls.first().expect("a member has a URL").clone();
        let host = self.host(node)?;
        let data_dir = match self.value("data-dir") {
            "" => format!("{name}.etcd"),
            path => path.to_owned(),
        };
        Ok(NodeConfig {
            data_dir: PathBuf::from(data_dir),
            node,
            name,
            listen_peer,
            advertise_peer: address(own),
            client_urls: client_urls.to_vec(),
            initial: cluster
                .values()
                .map(|urls| InitialMember { node: number(urls), address: address(urls) })
                .collect(),
            bootstrap: founds,
            request_timeout: request_timeout(host.election_timeout()),
            host,
            tls,
            gossip: None,
        })
    }

    /// Sorted peer URLs by member name. This member is among them, with the URLs that it advertises.
    fn cluster(&self, name: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
        let flag = "initial-cluster";
        let mut advertised = self.urls("initial-advertise-peer-urls")?;
        advertised.sort();
        if !self.is_given(flag) {
            return Ok(BTreeMap::from([(name.to_owned(), advertised)]));
        }
        let mut cluster: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for part in self.value(flag).split(',').map(str::trim) {
            let Some((member, url)) = part.split_once('=') else {
                return Err(self.wrong(flag, format!("must be NAME=PEER-URL,…, not {part:?}")));
            };
            let url = member_url(url).map_err(|why| self.wrong(flag, why))?;
            if cluster.values().any(|urls| urls.contains(&url)) {
                return Err(self.wrong(flag, format!("names {url} twice")));
            }
            cluster.entry(member.to_owned()).or_default().push(url);
        }
        cluster.values_mut().for_each(|urls| urls.sort());
        if cluster.len() > consensus::membership::MEMBERS_MAX {
            return Err(self.wrong(flag, format!("has more than {} members", consensus::membership::MEMBERS_MAX)));
        }
        let Some(own) = cluster.get(name) else {
            return Err(
                self.wrong(flag, format!("couldn't find local name {name:?} in the initial cluster configuration"))
            );
        };
        let same = |a: &[String], b: &[String]| a.iter().map(|url| resolved(url)).eq(b.iter().map(|url| resolved(url)));
        if !same(own, &advertised) {
            return Err(self.wrong(
                flag,
                format!("has {name}={} but --initial-advertise-peer-urls is {}", own.join(","), advertised.join(",")),
            ));
        }
        Ok(cluster)
    }

    fn host(&self, node: NodeId) -> Result<HostConfig, String> {
        const ELECTION_MS_MAX: i64 = 50_000;
        let heartbeat_ms = self.number("heartbeat-interval", 5, 10_000)?;
        let election_ms = self.number("election-timeout", 1, ELECTION_MS_MAX)?;
        if election_ms < 5 * heartbeat_ms {
            return Err(self.wrong(
                "election-timeout",
                format!(
                    "--election-timeout[{election_ms}ms] should be at least as 5 times as \
                 --heartbeat-interval[{heartbeat_ms}ms]"
                ),
            ));
        }
        let kept = self.number("snapshot-count", 0, 100_000_000)?;
        let host = HostConfig::new(node, 0);
        Ok(HostConfig {
            tick_interval: Duration::from_millis(heartbeat_ms as u64),
            election_intervals: (election_ms as u32).div_ceil(heartbeat_ms as u32),
            log_entries_kept: if kept == 0 { host.log_entries_kept } else { kept as u64 },
            ..host
        })
    }

    fn compaction(&self) -> Result<AutoCompaction, String> {
        let flag = "auto-compaction-retention";
        let retention = self.value(flag);
        let number: Option<i64> = retention.parse().ok().filter(|number| (0..=1 << 40).contains(number));
        if number == Some(0) {
            return Ok(AutoCompaction::Off);
        }
        match self.value("auto-compaction-mode") {
            "revision" => number
                .map(AutoCompaction::Revision)
                .ok_or_else(|| self.wrong(flag, format!("must be a number of revisions, not {retention:?}"))),
            "periodic" => {
                let hours = number.map(|hours| Duration::from_secs(hours as u64 * 3600));
                let period = hours.or_else(|| duration(retention));
                period
                    .filter(|period| *period >= config::AUTO_COMPACTION_PERIOD_MIN)
                    .map(AutoCompaction::Periodic)
                    .ok_or_else(|| {
                        self.wrong(flag, format!("must be hours or a duration such as 30m, not {retention:?}"))
                    })
            }
            other => Err(self.wrong("auto-compaction-mode", format!("must be periodic or revision, not {other:?}"))),
        }
    }

    fn slow_request(&self) -> Result<Duration, String> {
        let flag = "warning-unary-request-duration";
        let given = self.value(flag);
        duration(given).ok_or_else(|| self.wrong(flag, format!("must be a duration such as 300ms, not {given:?}")))
    }

    fn log_level(&self) -> Result<String, String> {
        match self.value("log-level") {
            level @ ("debug" | "info" | "warn" | "error") => Ok(level.to_owned()),
            "panic" | "fatal" => Ok("error".to_owned()),
            other => {
                let why = format!("must be debug, info, warn, error, panic or fatal, not {other:?}");
                Err(self.wrong("log-level", why))
            }
        }
    }
}

const NOT_OURS: &str = "this TLS setting of etcd is not supported";

fn is_about_tls(flag: &str) -> bool {
    ["cert", "key-file", "ca-file", "crl-file", "tls", "cipher-suites"].iter().any(|part| flag.contains(part))
}

/// `http://HOST:PORT` or the same with https, or why not.
fn member_url(url: &str) -> Result<String, String> {
    if url.starts_with("unix") {
        return Err(format!("{url:?} is a Unix socket, which is not supported"));
    }
    match peer_address(url) {
        Plain::Address(address) if url.starts_with("http://") => Ok(address),
        Plain::Secure(address) => Ok(address),
        _ => Err(format!("must be http://HOST:PORT or https://HOST:PORT, not {url:?}")),
    }
}

/// For comparing: what `localhost` means here.
fn resolved(url: &str) -> String {
    url.replace("//localhost:", "//127.0.0.1:")
}

/// 63 bits, never zero. The form is for ever: members of one cluster may run different versions.
fn member_number(token: &str, sorted_urls: &[String]) -> NodeId {
    let mut hash = Sha256::new();
    hash.update(token.as_bytes());
    for url in sorted_urls {
        hash.update(b"\0");
        hash.update(url.as_bytes());
    }
    let digest = hash.finalize();
    let head: [u8; 8] = digest[..8].try_into().expect("a digest has 32 bytes");
    NodeId((u64::from_be_bytes(head) & i64::MAX as u64).max(1))
}

#[cfg(test)]
mod tests;
