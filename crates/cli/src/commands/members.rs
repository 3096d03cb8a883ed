//! `member-list`, `member-add`, `member-promote`, `member-remove`, `member-replace`.

use proto::admin::{
    GossipMember, GossipState, Member, MemberAddRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberReplaceRequest, MembersResponse, StatusRequest, StatusResponse,
};
use serde_json::{Value, json};

use cli::endpoint::peer_url;

use crate::args::{MemberAddArgs, MemberReplaceArgs};
use crate::connect::{self, Client, Repeat};
use crate::failure::{Failure, Kind};
use crate::output::{Format, Output};

pub async fn list(client: &Client, out: &mut Output) -> Result<(), Failure> {
    let ask = |channel| async move { connect::admin(channel).status(StatusRequest {}).await };
    let status = client.call(Repeat::Safe, ask).await?;
    print(&status, out)
}

pub async fn add(client: &Client, args: MemberAddArgs, out: &mut Output) -> Result<(), Failure> {
    let request = MemberAddRequest {
        node_id: args.node_id.unwrap_or_default(),
        name: args.name,
        peer_urls: args.peer_urls.iter().map(|url| peer_url(url)).collect::<Result<_, _>>()?,
        client_urls: Vec::new(),
        learner: args.learner,
    };
    let ask = |channel| {
        let request = request.clone();
        async move { connect::admin(channel).member_add(request).await }
    };
    let answer = client.call(Repeat::Never, ask).await.map_err(explained)?;
    let node = answer.member.as_ref().map_or(request.node_id, |member| member.node_id);
    let then = if args.learner {
        "it stays a learner until `member-promote`"
    } else {
        "it becomes a voter once it has caught up"
    };
    done(&answer, format!("node {node} added as learner; {then}. Start it with `bootstrap = false`"), out)
}

pub async fn promote(client: &Client, node_id: u64, out: &mut Output) -> Result<(), Failure> {
    let request = MemberPromoteRequest { node_id };
    let ask = |channel| async move { connect::admin(channel).member_promote(request).await };
    let answer = client.call(Repeat::Never, ask).await.map_err(explained)?;
    done(&answer, format!("node {node_id} is a voter"), out)
}

pub async fn remove(client: &Client, node_id: u64, out: &mut Output) -> Result<(), Failure> {
    let request = MemberRemoveRequest { node_id };
    let ask = |channel| async move { connect::admin(channel).member_remove(request).await };
    let answer = client.call(Repeat::Never, ask).await.map_err(explained)?;
    done(&answer, format!("node {node_id} removed"), out)
}

pub async fn replace(client: &Client, args: MemberReplaceArgs, out: &mut Output) -> Result<(), Failure> {
    let node_id = args.node_id;
    let peer_urls = args.peer_url.iter().map(|url| peer_url(url)).collect::<Result<_, _>>()?;
    let request = MemberReplaceRequest { node_id, peer_id: args.peer_id.unwrap_or_default(), peer_urls };
    let ask = |channel| {
        let request = request.clone();
        async move { connect::admin(channel).member_replace(request).await }
    };
    let answer = client.call(Repeat::Never, ask).await.map_err(explained)?;
    done(&answer, format!("node {node_id} is rebuilt from its peers; watch its lag in `member-list`"), out)
}

/// The endpoints to ask one by one: those given, or with `cluster` those that the members advertise.
pub async fn endpoints(client: &Client, cluster: bool) -> Result<Vec<String>, Failure> {
    if !cluster {
        return Ok(client.endpoints().to_vec());
    }
    let ask = |channel| async move { connect::admin(channel).status(StatusRequest {}).await };
    let status = client.call(Repeat::Safe, ask).await?;
    let advertised: Vec<String> =
        status.members.iter().filter_map(|member| member.client_urls.first().cloned()).collect();
    if advertised.is_empty() {
        let text = format!("{}: no member advertises where clients reach it", client.answered_by());
        return Err(Failure::new(Kind::Refused, text).advise("name each node with --endpoint instead of --cluster"));
    }
    Ok(advertised)
}

pub fn member_json(member: &Member) -> Value {
    let mut value = json!({
        "node_id": member.node_id,
        "name": member.name,
        "peer_urls": member.peer_urls,
        "client_urls": member.client_urls,
        "learner": member.learner,
        "promote_when_ready": member.promote_when_ready,
        "peer_id": format!("{:x}", member.peer_id),
    });
    if member.successor_peer_id != 0 {
        value["successor_peer_id"] = json!(format!("{:x}", member.successor_peer_id));
    }
    if let Some(progress) = &member.progress {
        value["match_index"] = json!(progress.match_index);
        value["lag_entries"] = json!(progress.lag_entries);
        value["active"] = json!(progress.active);
    }
    value
}

/// What a member is at present, in one word or a few.
pub fn role(member: &Member, leader_node_id: u64) -> &'static str {
    match member {
        _ if member.peer_id == 0 => "awaited",
        _ if member.node_id == leader_node_id => "leader",
        _ if member.successor_peer_id != 0 => "being rebuilt",
        Member { learner: true, promote_when_ready: true, .. } => "learner until caught up",
        Member { learner: true, .. } => "learner",
        _ => "voter",
    }
}

/// `lag=12`, as far as the node that answered knows it.
pub fn lag(member: &Member) -> String {
    match &member.progress {
        Some(progress) if !progress.active => "silent".to_owned(),
        Some(progress) => progress.lag_entries.to_string(),
        None => "-".to_owned(),
    }
}

/// What gossip says of a member: alive, suspect, down, left; `-` when it says nothing.
pub fn gossip(status: &StatusResponse, member: &Member) -> &'static str {
    gossiped(status, member).map_or("-", |known| gossip_state(known.state()))
}

/// The version that a member runs, or ran last, as gossip tells; `-` when it says nothing.
pub fn version(status: &StatusResponse, member: &Member) -> String {
    gossiped(status, member).map_or("-", |known| &known.version).to_owned()
}

fn gossiped<'a>(status: &'a StatusResponse, member: &Member) -> Option<&'a GossipMember> {
    let by_peer = status.gossip.iter().find(|known| known.peer_id == member.peer_id && member.peer_id != 0);
    by_peer.or_else(|| status.gossip.iter().find(|known| known.node_id == member.node_id))
}

pub fn gossip_state(state: GossipState) -> &'static str {
    match state {
        GossipState::Unknown => "-",
        GossipState::Alive => "alive",
        GossipState::Suspect => "suspect",
        GossipState::Down => "down",
        GossipState::Left => "left",
    }
}

fn print(status: &StatusResponse, out: &mut Output) -> Result<(), Failure> {
    let (members, leader_node_id) = (&status.members, status.leader_node_id);
    match out.format() {
        Format::Json => {
            let members = members.iter().map(|member| {
                let mut value = member_json(member);
                value["gossip"] = json!(gossip(status, member));
                value["version"] = json!(version(status, member));
                value
            });
            out.json(&json!({ "members": members.collect::<Vec<_>>() }))?;
        }
        Format::Table => {
            let rows = members.iter().map(|member| {
                vec![
                    member.node_id.to_string(),
                    member.name.clone(),
                    role(member, leader_node_id).to_owned(),
                    member.peer_urls.join(" "),
                    member.client_urls.join(" "),
                    lag(member),
                    gossip(status, member).to_owned(),
                    version(status, member),
                ]
            });
            out.table(&["NODE", "NAME", "ROLE", "PEER URLS", "CLIENT URLS", "LAG", "GOSSIP", "VERSION"], rows)?;
        }
        Format::Simple => {
            for member in members {
                let role = role(member, leader_node_id);
                let urls = (member.peer_urls.join(","), member.client_urls.join(","));
                let gossip = gossip(status, member);
                out.line(format!("{}, {role}, {}, {}, {}, {gossip}", member.node_id, member.name, urls.0, urls.1))?;
            }
        }
    }
    Ok(())
}

fn done(answer: &MembersResponse, text: String, out: &mut Output) -> Result<(), Failure> {
    if out.format_of_lines() == Format::Json {
        let members: Vec<_> = answer.members.iter().map(member_json).collect();
        let member = answer.member.as_ref().map(member_json);
        return Ok(out.json(&json!({ "member": member, "members": members, "note": answer.note }))?);
    }
    Ok(out.line(if answer.note.is_empty() { text } else { answer.note.clone() })?)
}

/// What people try when a majority is lost cannot work; say what can.
fn explained(failure: Failure) -> Failure {
    match failure.kind {
        Kind::NoLeader => failure.advise(
            "a membership change needs a majority of the members; if they are gone for good, stop one that is left and \
             run `chainfire recover --unsafe` on it",
        ),
        Kind::TimedOut => failure.advise(
            "the change may still happen: look at `member-list` before you try again. It needs a majority of the members \
             (`status --cluster`); if they are gone for good, stop one that is left and run `chainfire recover --unsafe` \
             on it",
        ),
        _ => failure,
    }
}
