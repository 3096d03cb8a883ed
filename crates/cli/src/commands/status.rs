//! `status`: how a node is, in lines that people read and scripts grep. It is answered from the node's own memory and so
//! works when nothing else does.
//!
//! With several endpoints each answers for itself. `--cluster` is another view, of the members together: [`super::cluster`].

use proto::admin::{GossipMember, Role, StatusRequest, StatusResponse};
use serde_json::{Value, json};

use super::cluster;
use super::members::{gossip, gossip_state, lag, member_json, role};
use crate::args::StatusArgs;
use crate::connect::{self, Client, Repeat};
use crate::failure::Failure;
use crate::format::size;
use crate::output::{Format, Output};

pub async fn run(client: &Client, args: StatusArgs, out: &mut Output) -> Result<(), Failure> {
    if args.cluster {
        return cluster::status(client, out).await;
    }
    let endpoints = client.endpoints();
    let mut answers = Vec::new();
    let mut failure: Option<Failure> = None;
    for endpoint in endpoints {
        let ask = |channel| async move { connect::admin(channel).status(StatusRequest {}).await };
        match client.only(endpoint).call(Repeat::Safe, ask).await {
            Ok(status) => answers.push((endpoint, status)),
            Err(why) => {
                if endpoints.len() > 1 {
                    why.report();
                }
                failure.get_or_insert(why);
            }
        }
    }
    match out.format_of_lines() {
        Format::Json => {
            let answers = answers.iter().map(|(endpoint, status)| status_json(endpoint, status)).collect();
            out.json(&answers)?;
        }
        Format::Table => table(&answers, out)?,
        Format::Simple => {
            for (at, (endpoint, status)) in answers.iter().enumerate() {
                if endpoints.len() > 1 {
                    out.line(format!("{}endpoint: {endpoint}", if at > 0 { "\n" } else { "" }))?;
                }
                lines(status, out)?;
            }
        }
    }
    out.flush()?;
    match failure {
        // With several endpoints the details are told already; one of them is enough for the exit code.
        Some(why) if endpoints.len() > 1 => {
            Err(Failure::new(why.kind, format!("{} of {} endpoints answered", answers.len(), endpoints.len())))
        }
        Some(why) => Err(why),
        None => Ok(()),
    }
}

fn lines(status: &StatusResponse, out: &mut Output) -> Result<(), Failure> {
    let leader = match status.leader_node_id {
        0 => "none".to_owned(),
        id => id.to_string(),
    };
    let quota = match status.db_quota_bytes {
        0 => "unlimited".to_owned(),
        bytes => size(bytes),
    };
    out.line(format!("leader: {leader}"))?;
    out.line(format!("node_id: {}", status.node_id))?;
    out.line(format!("role: {}", role_name(status)))?;
    out.line(format!("cluster_id: {:x}", status.cluster_id))?;
    out.line(format!("raft_term: {}", status.raft_term))?;
    out.line(format!("raft_index: {}", status.raft_index))?;
    out.line(format!("raft_applied_index: {}", status.raft_applied_index))?;
    out.line(format!("raft_last_index: {}", status.raft_last_index))?;
    out.line(format!("revision: {}", status.revision))?;
    let compacted = match status.compact_revision {
        revision @ ..=0 => format!("{revision} (nothing was compacted yet)"),
        revision => revision.to_string(),
    };
    out.line(format!("compact_revision: {compacted}"))?;
    out.line(format!("db_size: {}", size(status.db_size_bytes)))?;
    out.line(format!("db_size_in_use: {}", size(status.db_size_in_use_bytes)))?;
    out.line(format!("db_quota: {quota}"))?;
    out.line(format!("version: {} (etcd API {})", status.version, status.etcd_version))?;
    out.line(format!("uptime: {}s", status.uptime_seconds))?;
    for member in &status.members {
        let urls = member.peer_urls.join(",");
        let role = role(member, status.leader_node_id);
        let gossip = gossip(status, member);
        out.line(format!("member: {} {role} {urls} lag={} gossip={gossip}", member.node_id, lag(member)))?;
    }
    // Those that wait to be let in, or were members once.
    let is_member = |known: &&GossipMember| status.members.iter().any(|member| member.node_id == known.node_id);
    for known in status.gossip.iter().filter(|known| !is_member(known)) {
        let GossipMember { node_id, raft_address, role, .. } = known;
        out.line(format!("outsider: {node_id} {role} {raft_address} gossip={}", gossip_state(known.state())))?;
    }
    for note in &status.notes {
        out.line(format!("note: {note}"))?;
    }
    Ok(())
}

fn table(answers: &[(&String, StatusResponse)], out: &mut Output) -> Result<(), Failure> {
    let rows = answers.iter().map(|(endpoint, status)| {
        let leader = if status.leader_node_id == 0 { "none".to_owned() } else { status.leader_node_id.to_string() };
        vec![
            (*endpoint).clone(),
            status.node_id.to_string(),
            role_name(status).to_owned(),
            leader,
            status.raft_term.to_string(),
            status.raft_index.to_string(),
            status.raft_applied_index.to_string(),
            status.revision.to_string(),
            size(status.db_size_bytes),
            status.version.clone(),
            status.notes.join("; "),
        ]
    });
    let head =
        ["ENDPOINT", "NODE", "ROLE", "LEADER", "TERM", "INDEX", "APPLIED", "REVISION", "SIZE", "VERSION", "NOTES"];
    Ok(out.table(&head, rows)?)
}

pub fn status_json(endpoint: &str, status: &StatusResponse) -> Value {
    json!({
        "endpoint": endpoint,
        "leader": status.leader_node_id,
        "node_id": status.node_id,
        "peer_id": format!("{:x}", status.peer_id),
        "cluster_id": format!("{:x}", status.cluster_id),
        "name": status.name,
        "role": role_name(status),
        "raft_term": status.raft_term,
        "raft_index": status.raft_index,
        "raft_applied_index": status.raft_applied_index,
        "raft_last_index": status.raft_last_index,
        "raft_durable_index": status.raft_durable_index,
        "revision": status.revision,
        "compact_revision": status.compact_revision,
        "db_size": status.db_size_bytes,
        "db_size_in_use": status.db_size_in_use_bytes,
        "db_quota": status.db_quota_bytes,
        "version": status.version,
        "etcd_version": status.etcd_version,
        "uptime_seconds": status.uptime_seconds,
        "members": status.members.iter().map(member_json).collect::<Vec<_>>(),
        "notes": status.notes,
        "gossip": status.gossip.iter().map(gossip_json).collect::<Vec<_>>(),
    })
}

pub fn gossip_json(known: &GossipMember) -> Value {
    json!({
        "node_id": known.node_id,
        "peer_id": format!("{:x}", known.peer_id),
        "cluster_id": format!("{:x}", known.cluster_id),
        "state": gossip_state(known.state()),
        "state_since_ms": known.state_since_ms,
        "gossip_address": known.gossip_address,
        "raft_address": known.raft_address,
        "client_urls": known.client_urls,
        "version": known.version,
        "role": known.role,
    })
}

fn role_name(status: &StatusResponse) -> &'static str {
    match status.role() {
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Leader => "leader",
        Role::Learner => "learner",
    }
}
