//! What single values cannot show: whether they go together. Then the derivation of [`Settings`].

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use base::NodeId;
use consensus::HostConfig;
use consensus::membership::MEMBERS_MAX;
use node::options::{self, schemed};
use node::tls::{ApiTls, Program, TlsOptions};
use node::transport::bare_address;
use node::{InitialMember, NodeConfig};
use settings::Layers;
use settings::duration::duration;
use settings::listen::is_loopback;
use settings::value::Member;
use storage::rocks::RocksOptions;

use super::gossip::GossipAddress;
use super::{AutoCompaction, Settings, request_timeout};

/// The section with the certificates.
const TLS: &str = "network.tls";

/// Derives the settings, or says in one line what does not go together.
pub fn validate(layers: &Layers) -> Result<Settings, String> {
    let mut warnings = Vec::new();
    let tls = options::tls(layers, TLS, Program::Chainfire)?;
    let secure_api = tls.as_ref().is_some_and(|tls| tls.api != ApiTls::Off);
    let (listen_client, advertise_client) = clients(layers, secure_api, &mut warnings)?;
    let mut node = node(layers, &advertise_client, tls, &mut warnings)?;
    options::apart(layers, &listen_client, node.listen_peer)?;
    let gossip = GossipAddress {
        given: layers.text("network", "gossip_addr"),
        raft: node.listen_peer,
        clients: &listen_client,
        secure: node.tls.is_some(),
    };
    node.gossip = gossip.options().map_err(|why| {
        let at = layers.origin("network", "gossip_addr");
        format!("{at}: network.gossip_addr {why}")
    })?;
    Ok(Settings {
        node,
        listen_client,
        advertise_client,
        storage: storage(layers),
        scrub_interval: options::scrub_interval(layers),
        request_bytes_max: layers.number("limits", "request_bytes_max") as usize,
        txn_ops_max: layers.number("limits", "txn_ops_max") as usize,
        quota_bytes: layers.number("storage", "quota_bytes"),
        auto_compaction: compaction(layers)?,
        log_level: layers.text("log", "level").to_owned(),
        slow_request: Duration::from_millis(layers.number("log", "slow_request_ms")),
        layers: Some(layers.clone()),
        etcd_mode: false,
        warnings,
    })
}

/// Those that are named, with the scheme that members speak in their addresses.
fn initial_members(layers: &Layers, secure: bool) -> Result<Vec<InitialMember>, String> {
    let named = layers.members("cluster", "initial_members").iter();
    let member = |member: &Member| {
        Ok(InitialMember { node: NodeId(member.node), address: schemed(&member.address, secure, TLS)? })
    };
    named.map(member).collect()
}

fn node(
    layers: &Layers,
    client_urls: &[String],
    tls: Option<TlsOptions>,
    warnings: &mut Vec<String>,
) -> Result<NodeConfig, String> {
    let node = NodeId(layers.number("cluster", "node_id"));
    let bootstrap = layers.switch("cluster", "bootstrap");
    let members_at = layers.origin("cluster", "initial_members");
    let initial =
        initial_members(layers, tls.is_some()).map_err(|why| format!("{members_at}: cluster.initial_members {why}"))?;
    if node == NodeId::default() && bootstrap {
        let at = layers.origin("cluster", "node_id");
        return Err(format!(
            "{at}: cluster.node_id is 0, which only a node that joins may have: give it a number, or set \
             cluster.bootstrap = false"
        ));
    }
    distinct(&initial).map_err(|why| format!("{members_at}: cluster.initial_members {why}"))?;
    let own = initial.iter().find(|member| member.node == node);
    if bootstrap && own.is_none() && !initial.is_empty() {
        return Err(format!(
            "{members_at}: cluster.initial_members does not list this node, number {node} (cluster.node_id)"
        ));
    }
    if !bootstrap && !initial.iter().any(|member| member.node != node) {
        warnings.push(
            "cluster.bootstrap is false and cluster.initial_members names no other node: unless this node belongs to \
             a cluster already, it waits for ever"
                .to_owned(),
        );
    }
    let listen_peer = options::raft(layers, tls.is_some(), TLS)?;
    let everywhere = listen_peer.ip().is_unspecified();
    let named = own.map(|member| member.address.as_str());
    let advertise_peer = options::advertised(layers, listen_peer, named, "cluster.initial_members", tls.is_some())?;
    if let Ok(listed) = bare_address(&advertise_peer).parse::<SocketAddr>()
        && listed != listen_peer
        && !(everywhere && listed.port() == listen_peer.port())
    {
        return Err(format!(
            "{members_at}: cluster.initial_members has node {node} at {listed}, but it listens at {listen_peer} \
             (network.raft_addr)"
        ));
    }
    let tick_interval = Duration::from_millis(layers.number("raft", "tick_interval_ms"));
    let host = HostConfig {
        tick_interval,
        election_intervals: layers.number("raft", "election_ticks") as u32,
        log_entries_kept: layers.number("raft", "log_entries_kept"),
        ..HostConfig::new(node, 0)
    };
    let name = match layers.text("cluster", "name") {
        "" => format!("node-{node}"),
        name => name.to_owned(),
    };
    Ok(NodeConfig {
        data_dir: data_dir(layers)?,
        node,
        name,
        listen_peer,
        advertise_peer,
        client_urls: client_urls.to_vec(),
        initial,
        bootstrap,
        request_timeout: request_timeout(host.election_timeout()),
        host,
        tls,
        gossip: None,
    })
}

fn data_dir(layers: &Layers) -> Result<PathBuf, String> {
    match layers.text("storage", "data_dir") {
        "" => Err(format!("{}: storage.data_dir is empty", layers.origin("storage", "data_dir"))),
        path => Ok(PathBuf::from(path)),
    }
}

/// Whether no two members share a number or an address.
fn distinct(members: &[InitialMember]) -> Result<(), String> {
    if members.len() > MEMBERS_MAX {
        return Err(format!("has more than {MEMBERS_MAX} members"));
    }
    let (mut nodes, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for member in members {
        if !nodes.insert(member.node) {
            return Err(format!("lists node {} twice", member.node));
        }
        if !addresses.insert(&member.address) {
            return Err(format!("lists {} twice", bare_address(&member.address)));
        }
    }
    Ok(())
}

/// Where clients are served, and what they are told.
fn clients(
    layers: &Layers,
    secure: bool,
    warnings: &mut Vec<String>,
) -> Result<(Vec<SocketAddr>, Vec<String>), String> {
    let (mut listen, advertise) = options::clients(layers, secure, TLS, warnings)?;
    let open: Vec<SocketAddr> = listen.iter().filter(|address| !is_loopback(address)).copied().collect();
    // `localhost` always works on the machine itself.
    for address in &open {
        let taken = |other: &SocketAddr| other.port() == address.port() && other.ip().is_unspecified();
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, address.port()));
        if !listen.contains(&local) && !listen.iter().any(taken) {
            listen.push(local);
        }
    }
    Ok((listen, advertise))
}

fn storage(layers: &Layers) -> RocksOptions {
    let number = |name| layers.number("storage", name);
    RocksOptions {
        write_buffer_size: number("write_buffer_size") as usize,
        max_write_buffer_number: number("max_write_buffer_number") as i32,
        block_cache_size: number("block_cache_size") as usize,
        level0_file_num_compaction_trigger: number("level0_file_num_compaction_trigger") as i32,
        bloom_filter_bits_per_key: number("bloom_filter_bits_per_key") as u32,
        max_open_files: number("max_open_files") as i32,
        use_direct_io_for_flush_and_compaction: layers.switch("storage", "use_direct_io_for_flush_and_compaction"),
        max_background_jobs: number("max_background_jobs") as i32,
        max_background: None,
        file_size: RocksOptions::default().file_size,
        slow_compaction_ms: number("slow_compaction_ms"),
        now: node::clock::now,
    }
}

fn compaction(layers: &Layers) -> Result<AutoCompaction, String> {
    let (mode, retention) = (layers.text("compaction", "mode"), layers.text("compaction", "retention"));
    let at = layers.origin("compaction", "retention");
    let wrong =
        |what| format!("{at}: compaction.retention must be {what} when compaction.mode is {mode:?}, not {retention:?}");
    match mode {
        "off" => Ok(AutoCompaction::Off),
        "periodic" => match duration(retention).filter(|period| *period >= AUTO_COMPACTION_PERIOD_MIN) {
            Some(period) => Ok(AutoCompaction::Periodic(period)),
            None => Err(wrong("a duration from \"1s\", such as \"1h\" or \"30m\",")),
        },
        _ => match retention.parse().ok().filter(|count| *count >= 1) {
            Some(count) => Ok(AutoCompaction::Revision(count)),
            None => Err(wrong("a number of revisions, such as 10000,")),
        },
    }
}

pub(crate) const AUTO_COMPACTION_PERIOD_MIN: Duration = Duration::from_secs(1);
