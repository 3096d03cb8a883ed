//! How a cluster begins, and how a member comes (back) to it.
//!
//! *Founding.* Every initial member must answer, and say that it is empty; then the one with the smallest node id draws a
//! cluster id, writes the founding membership (who votes, under which peer ids) as its state, and tells the others,
//! who write the same. A lone initial member founds by itself. Members with a state to begin with ([`crate::seed`]) load it
//! once all have answered, and are no founders before that. They found before those without, whose state comes from the
//! leader; if two have different ones, nothing is founded. A founder that was wiped, or restored from a backup, meets members
//! that belong to a cluster, and therefore founds nothing.
//!
//! *Coming.* A folder without a cluster that meets one asks to be let in: as a member that is awaited there, or as the new
//! incarnation of a member whose log was lost. Only the leader decides, and never while the member it claims to be
//! is alive. Any member will do to ask: it passes the question on to the leader, and tells the addresses of the others.
//! Which members there are to ask is known from the configuration, the membership, and gossip ([`crate::gossip`]). Until then the node waits, says so, and votes for nobody.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base::{ClusterId, NodeId, PeerId};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use consensus::{Member, MemberRole, Membership, MembershipChange, Refusal, Role};

use crate::clock;
use crate::handle::GroupHandle;
use crate::node::Shell;
use crate::stopping::{self, Leaves};
use crate::transport::{CallFuture, CallService, Caller, Standing as Vouched, bare_address};

const PROBE: u8 = 1;
const FOUND: u8 = 2;
const ARRIVE: u8 = 3;
/// Where the other node gossips; nothing if it does not.
pub(crate) const GOSSIPS_AT: u8 = 4;
/// Answered with nothing, at once.
/// 8 bytes node id in; 8 bytes out: 1 when the others are a quorum without it.
pub(crate) const DISPENSABLE: u8 = 5;
/// 8 bytes peer id in: it wants to give its data up. 8 bytes out: 1 when it may, now.
pub(crate) const LEAVE: u8 = 6;
pub(crate) const PING: u8 = 15;
/// Calls from here on belong to floor 5.
pub const FIRST_METHOD: u8 = 16;

const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(200);
/// While nothing changes, waiting is mentioned this often.
const SAY_EVERY: u32 = 50;
const STANDING_BYTES_MAX: usize = 4096;
/// A founder tells the others soon; a member with a state of its own gives it up only if the founder does not.
const TOLD_WITHIN_ROUNDS: u32 = 50;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub cluster: ClusterId,
    node: NodeId,
    peer: PeerId,
    bootstrap: bool,
    /// Whether the asking peer is a member of the cluster.
    pub expected: bool,
    /// Whether it knows a leader.
    pub led: bool,
    /// See [`crate::seed::Waiting::number`].
    seed: u64,
    name: String,
    client_urls: Vec<String>,
}

/// Brings this node into a cluster, then tells the cluster what there is to know of it. Runs until both are done.
pub(crate) async fn settle(shell: Arc<Shell>) {
    let mut round: u32 = 0;
    let mut untold: u32 = 0;
    loop {
        let said = round.is_multiple_of(SAY_EVERY);
        round += 1;
        let identity = shell.identity();
        if identity.cluster == ClusterId::default() {
            if let Err(why) = enter(&shell, &mut untold).await {
                if said {
                    tracing::info!(target: "chainfire_raft", "Waiting for a cluster, {why}");
                }
                shell.waits_for(Some(format!("waiting for a cluster: {why}")));
            }
        } else if shell.handle.membership().by_peer(identity.peer).is_some() {
            break;
        } else {
            let mut addresses = shell.known_addresses();
            addresses.extend(shell.gossip.load().raft_addresses());
            if let Err(why) = come_back(&shell, &addresses).await {
                if said {
                    tracing::info!(target: "chainfire_raft", "Waiting to be let into the cluster, {why}");
                }
                shell.waits_for(Some(format!("waiting to be let into the cluster: {why}")));
            }
        }
        tokio::time::sleep(RETRY).await;
    }
    shell.waits_for(None);
    tell_founders(&shell).await;
    describe(&shell).await;
}

/// `untold` counts how often a cluster was met in which this node is a founder, and has not heard of it.
async fn enter(shell: &Arc<Shell>, untold: &mut u32) -> Result<(), String> {
    let config = &shell.config;
    let identity = shell.identity();
    let others: Vec<_> = config
        .initial
        .iter()
        .filter(|member| bare_address(&member.address) != bare_address(&config.advertise_peer))
        .collect();
    if others.is_empty() && config.bootstrap {
        shell.load_seed().await;
        return found(shell, vec![shell.as_member()]);
    }
    let mut members = vec![shell.as_member()];
    let mut seeds = vec![(identity.node, shell.seed.number)];
    let mut missing = Vec::new();
    let mut all_answer = true;
    // A member that does not let this node in may be cut off, or quarantined; another one may do better.
    let mut refused = None;
    for other in &others {
        match probe(shell, &other.address).await {
            Ok(standing) if standing.cluster != ClusterId::default() => {
                if shell.seed.number != 0 && standing.expected && *untold < TOLD_WITHIN_ROUNDS {
                    *untold += 1;
                    return Err("the founder is about to tell of it".to_owned());
                }
                match arrive(shell, &other.address).await {
                    Ok(()) => return Ok(()),
                    Err(why) => refused = Some(why),
                }
            }
            Ok(standing) if standing.bootstrap => {
                if standing.node == identity.node {
                    return Err(format!("two members claim to be node {}", identity.node));
                }
                seeds.push((standing.node, standing.seed));
                members.push(Member {
                    node: standing.node,
                    peer: standing.peer,
                    name: standing.name,
                    peer_urls: vec![other.address.clone()],
                    client_urls: standing.client_urls,
                    role: MemberRole::Voter,
                    ..Member::default()
                });
            }
            Ok(_) => missing.push(format!("{} founds no cluster", other.address)),
            Err(why) => {
                all_answer = false;
                missing.push(why);
            }
        }
    }
    // None of those that were named; perhaps one that they or others have told of.
    for address in shell.gossip.load().raft_addresses() {
        let named = others.iter().any(|other| bare_address(&other.address) == address);
        let may_join = shell.seed.number == 0 && !named;
        if may_join && probe(shell, &address).await.is_ok_and(|standing| standing.cluster != ClusterId::default()) {
            match arrive(shell, &address).await {
                Ok(()) => return Ok(()),
                Err(why) => refused = Some(why),
            }
        }
    }
    // Where there is a cluster none is founded.
    if let Some(why) = refused {
        return Err(why);
    }
    if !config.bootstrap {
        let advice = "; to found one with the backup in the data folder, start it with `bootstrap = true`";
        let advice = if shell.seed.exists { advice } else { "" };
        let missing = match missing.is_empty() {
            true => "`initial_members` names nobody but this one: name a member that is there".to_owned(),
            false => missing.join("; "),
        };
        return Err(format!("no initial member knows one: {missing}{advice}"));
    }
    if all_answer && !shell.seed.is_ready() {
        shell.load_seed().await;
        return Err("the restored state was loaded".to_owned());
    }
    if !missing.is_empty() {
        return Err(format!("not all initial members are there: {}", missing.join("; ")));
    }
    if founder(&seeds)? != identity.node {
        return Err("another member founds it".to_owned());
    }
    found(shell, members.clone())?;
    let membership = shell.founding_membership(members);
    for other in others {
        send_found(shell, &other.address, &membership.encode()).await;
    }
    // The links to those that were just told stand in a moment; a vote asked for earlier is lost.
    tokio::time::sleep(RETRY).await;
    shell.campaign();
    Ok(())
}

/// The member with the smallest id among those with a state to begin with, if there are any.
fn founder(seeds: &[(NodeId, u64)]) -> Result<NodeId, String> {
    let mut with: Vec<(NodeId, u64)> = seeds.iter().copied().filter(|(_, seed)| *seed != 0).collect();
    if with.iter().any(|(_, seed)| *seed != with[0].1) {
        return Err(
            "members are to restore different snapshots: give them the same one, or one of them alone".to_owned()
        );
    }
    if with.is_empty() {
        with = seeds.to_vec();
    }
    Ok(with.iter().map(|(node, _)| *node).min().expect("this node is among them"))
}

fn found(shell: &Arc<Shell>, members: Vec<Member>) -> Result<(), String> {
    let membership = shell.founding_membership(members);
    tracing::info!(
        target: "chainfire_raft",
        "Founding a cluster{}, cluster={} members={}",
        if shell.seed.number == 0 { "" } else { " with the restored backup" },
        membership.cluster,
        membership.members.len()
    );
    shell.join(membership.cluster, shell.identity().node, Some(membership))
}

/// Tells a member that was not reached in time; a founder that stopped in between does it at its next start, and
/// then without the membership: the member gets it from the leader.
async fn tell_founders(shell: &Arc<Shell>) {
    let membership = shell.handle.membership();
    for member in membership.members.values().filter(|member| member.peer != shell.identity().peer) {
        for url in &member.peer_urls {
            let empty = |standing: &Standing| standing.cluster == ClusterId::default() && standing.peer == member.peer;
            if probe(shell, url).await.is_ok_and(|standing| empty(&standing)) {
                send_found(shell, url, &[]).await;
            }
        }
    }
}

/// With the membership, the receiver begins as the founder did, if it has the same state to begin with.
async fn send_found(shell: &Arc<Shell>, address: &str, membership: &[u8]) {
    let mut body = BytesMut::new();
    body.put_u64_le(shell.identity().cluster.0);
    body.put_u64_le(shell.seed.number);
    body.put_slice(membership);
    let sent = shell.transport.call_address(address.to_owned(), FOUND, body.freeze(), PROBE_TIMEOUT).await;
    if let Err(why) = sent {
        tracing::warn!(target: "chainfire_network", "Founding not told, addr={address} why={why}");
    }
}

pub(crate) async fn probe(shell: &Arc<Shell>, address: &str) -> Result<Standing, String> {
    probe_for(shell, address, shell.identity().peer).await
}

/// As [`probe`], asking whether `peer` is a member there.
async fn probe_for(shell: &Arc<Shell>, address: &str, peer: PeerId) -> Result<Standing, String> {
    let asking = Bytes::copy_from_slice(&peer.0.to_le_bytes());
    let asked = shell.transport.call_address(address.to_owned(), PROBE, asking, PROBE_TIMEOUT).await;
    let answer = asked.map_err(|why| format!("{address}: {why}"))?;
    let answer = answer.map_err(|why| format!("{address}: {why}"))?;
    Standing::decode(answer).ok_or_else(|| format!("{address}: an answer that cannot be decoded"))
}

async fn come_back(shell: &Arc<Shell>, addresses: &[String]) -> Result<(), String> {
    let mut failure = "no other member's address is known".to_owned();
    for address in addresses {
        match arrive(shell, address).await {
            Ok(()) => {
                // Let in; the leader brings the membership with the state.
                tokio::time::sleep(RETRY * 5).await;
                return Ok(());
            }
            Err(why) => failure = why,
        }
    }
    Err(failure)
}

async fn arrive(shell: &Arc<Shell>, address: &str) -> Result<(), String> {
    let identity = shell.identity();
    let mut body = BytesMut::new();
    body.put_u64_le(identity.node.0);
    body.put_u64_le(identity.peer.0);
    body.put_slice(shell.config.advertise_peer.as_bytes());
    let asked = shell.transport.call_address(address.to_owned(), ARRIVE, body.freeze(), PROBE_TIMEOUT * 5).await;
    let answer = asked.map_err(|why| format!("{address}: {why}"))?;
    let mut answer = answer.map_err(|why| match why {
        Refusal::UnknownMember => format!(
            "{address}: its cluster does not know this node; add it with member-add (it was removed, or not added yet)"
        ),
        Refusal::DuplicateMember => {
            format!("{address}: the member that this node claims to be is alive, or known at another address")
        }
        why => format!("{address}: {why}"),
    })?;
    if answer.len() < 16 {
        return Err(format!("{address}: an answer that cannot be decoded"));
    }
    let (cluster, node) = (ClusterId(answer.get_u64_le()), NodeId(answer.get_u64_le()));
    let membership = Membership::decode(&answer).ok_or("a membership that cannot be decoded")?;
    shell.transport.learn(&membership);
    if identity.cluster == ClusterId::default() {
        if shell.seed.exists {
            tracing::info!(
                target: "chainfire_raft",
                "The cluster runs: the restored backup is not loaded, and its leader fills this node, cluster={cluster}"
            );
        }
        tracing::info!(target: "chainfire_raft", "Joining a cluster, cluster={cluster} node={node}");
        shell.join(cluster, node, None)?;
    }
    Ok(())
}

/// Makes the name and the addresses that clients use known to all.
async fn describe(shell: &Arc<Shell>) {
    let config = &shell.config;
    loop {
        let membership = shell.handle.membership();
        let node = shell.identity().node;
        let Some(member) = membership.members.get(&node) else { return };
        if member.name == config.name && member.client_urls == config.client_urls {
            return;
        }
        let change = MembershipChange::Describe {
            node,
            name: Some(config.name.clone()),
            peer_urls: None,
            client_urls: Some(config.client_urls.clone()),
        };
        if shell.handle.change(change).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Answers the shell's own calls and passes the others on.
pub(crate) struct Answers {
    pub shell: Arc<Shell>,
    pub service: Option<Arc<dyn CallService>>,
    pub leaves: Arc<Leaves>,
}

impl CallService for Answers {
    fn call(&self, caller: &Caller, method: u8, body: Bytes) -> CallFuture {
        let shell = self.shell.clone();
        match method {
            PROBE => Box::pin(std::future::ready(Ok(shell.standing(&body).encode()))),
            FOUND => Box::pin(std::future::ready(told(&shell, caller, body))),
            GOSSIPS_AT => {
                let address = shell.gossip_address.clone().unwrap_or_default();
                Box::pin(std::future::ready(Ok(address.into())))
            }
            ARRIVE => {
                let caller = caller.clone();
                Box::pin(async move { admit(&shell.handle, &caller, body).await })
            }
            DISPENSABLE | LEAVE => {
                let (handle, caller, leaves) = (shell.handle.clone(), caller.clone(), self.leaves.clone());
                Box::pin(async move { may_go(&handle, &caller, &leaves, method, body).await })
            }
            PING => Box::pin(std::future::ready(Ok(Bytes::new()))),
            _ => match &self.service {
                Some(service) if method >= FIRST_METHOD && caller.standing == Vouched::Member => {
                    service.call(caller, method, body)
                }
                Some(_) if method >= FIRST_METHOD => Box::pin(std::future::ready(Err(Refusal::UnknownMember))),
                _ => Box::pin(std::future::ready(Err(Refusal::NoGroup))),
            },
        }
    }

    fn is_known_to_others(&self, peer: PeerId) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let shell = self.shell.clone();
        Box::pin(async move {
            let cluster = shell.identity().cluster;
            for address in shell.transport.others().into_iter().flat_map(|(_, addresses)| addresses) {
                let standing = probe_for(&shell, &address, peer).await;
                if standing.is_ok_and(|standing| standing.cluster == cluster && standing.expected) {
                    return true;
                }
            }
            false
        })
    }
}

/// The leader says whether a member may go. Each asks for itself.
async fn may_go(
    handle: &GroupHandle,
    caller: &Caller,
    leaves: &Leaves,
    method: u8,
    mut body: Bytes,
) -> Result<Bytes, Refusal> {
    let id = body.try_get_u64_le().map_err(|_| Refusal::UnknownMember)?;
    let own = if method == LEAVE { caller.peer.0 } else { caller.node.0 };
    if id != own || caller.standing != Vouched::Member {
        return Err(Refusal::UnknownMember);
    }
    if handle.status().role != Role::Leader {
        return Err(Refusal::NoLeader);
    }
    let may = match method {
        LEAVE => leaves.ask(handle, PeerId(id)).await,
        _ => stopping::is_dispensable(NodeId(id), &handle.status(), &handle.membership()),
    };
    Ok(Bytes::copy_from_slice(&i64::from(may).to_le_bytes()))
}

/// A founder says that this node is one of its cluster.
fn told(shell: &Arc<Shell>, caller: &Caller, mut body: Bytes) -> Result<Bytes, Refusal> {
    if caller.standing == Vouched::Stranger {
        return Err(Refusal::UnknownMember);
    }
    let cluster = ClusterId(body.try_get_u64_le().map_err(|_| Refusal::UnknownMember)?);
    let seed = body.try_get_u64_le().map_err(|_| Refusal::UnknownMember)?;
    let identity = shell.identity();
    if identity.cluster == cluster {
        return Ok(Bytes::new());
    }
    if identity.cluster != ClusterId::default() || !shell.config.bootstrap {
        return Err(Refusal::DuplicateMember);
    }
    let membership = Membership::decode(&body).ok_or(Refusal::UnknownMember)?;
    let founding = !membership.is_empty();
    if founding {
        let listed = membership.members.get(&identity.node).is_some_and(|member| member.peer == identity.peer);
        let founds = membership.members.get(&caller.node).is_some_and(|member| member.peer == caller.peer);
        if !listed || !founds || membership.cluster != cluster {
            return Err(Refusal::UnknownMember);
        }
    }
    shell.transport.learn(&membership);
    let alike = founding && seed == shell.seed.number && shell.seed.is_ready();
    let joined = shell.join(cluster, identity.node, alike.then_some(membership));
    joined.map(|()| Bytes::new()).map_err(|why| {
        tracing::error!(target: "chainfire_raft", "Could not join the founded cluster, why={why} code=CF2002");
        Refusal::Damaged
    })
}

/// Lets a node in. It speaks for itself alone: as the node and the data folder that have greeted, from where it said it is.
async fn admit(handle: &GroupHandle, caller: &Caller, mut body: Bytes) -> Result<Bytes, Refusal> {
    if body.len() < 16 {
        return Err(Refusal::UnknownMember);
    }
    let (node, peer) = (NodeId(body.get_u64_le()), PeerId(body.get_u64_le()));
    let url = String::from_utf8_lossy(&body).into_owned();
    if (node, peer) != (caller.node, caller.peer) || !caller.is_at(&url) {
        return Err(Refusal::UnknownMember);
    }
    let membership = handle.membership();
    let by_url = || {
        let same = |known: &String| bare_address(known) == bare_address(&url);
        membership.members.values().find(|member| member.peer_urls.iter().any(same))
    };
    let member = membership.members.get(&node).or_else(by_url).ok_or(Refusal::UnknownMember)?;
    let node = member.node;
    if member.peer != peer && member.successor != peer {
        let known_elsewhere = !member.peer_urls.iter().any(|known| bare_address(known) == bare_address(&url));
        if !member.peer.is_none() && known_elsewhere {
            tracing::warn!(
                target: "chainfire_raft",
                "A new folder claims to be a node that is known at another address, node={node} addr={url} known={}; \
                 if the node has moved, update its member first",
                member.peer_urls.join(",")
            );
            return Err(Refusal::DuplicateMember);
        }
        handle.change(MembershipChange::Arrive { node, peer }).await?;
        tracing::info!(target: "chainfire_raft", "Took in a node's data folder, node={node} peer={peer} addr={url}");
    }
    let mut answer = BytesMut::new();
    answer.put_u64_le(handle.cluster().0);
    answer.put_u64_le(node.0);
    answer.put_slice(&handle.membership().encode());
    Ok(answer.freeze())
}

impl Shell {
    /// Says in the node's status what it waits for.
    pub fn waits_for(&self, what: Option<String>) {
        self.handle.node.waits_for.store(what.map(Arc::new));
    }

    /// `asking`: the asking peer's id.
    fn standing(&self, mut asking: &[u8]) -> Standing {
        let identity = self.identity();
        let asking = asking.try_get_u64_le().ok().map(PeerId);
        let expected = asking.is_some_and(|peer| self.handle.membership().by_peer(peer).is_some());
        Standing {
            cluster: identity.cluster,
            node: identity.node,
            peer: identity.peer,
            // Not before what it brings along is loaded.
            bootstrap: self.config.bootstrap && self.seed.is_ready(),
            expected,
            // One that was removed may remember a leader.
            led: !self.handle.status().leader.is_none()
                && !self.handle.is_left_out()
                && self.handle.membership().by_peer(identity.peer).is_some(),
            seed: self.seed.number,
            name: self.config.name.clone(),
            client_urls: self.config.client_urls.clone(),
        }
    }

    fn as_member(&self) -> Member {
        let identity = self.identity();
        Member {
            node: identity.node,
            peer: identity.peer,
            name: self.config.name.clone(),
            peer_urls: vec![self.config.advertise_peer.clone()],
            client_urls: self.config.client_urls.clone(),
            role: MemberRole::Voter,
            ..Member::default()
        }
    }

    fn founding_membership(&self, members: Vec<Member>) -> Membership {
        let cluster = self.identity().cluster;
        let cluster = if cluster == ClusterId::default() { ClusterId(clock::random_u64()) } else { cluster };
        Membership::founding(cluster, members)
    }
}

/// 8 cluster, 8 node, 8 peer, 8 seed, 1 flags (1 bootstrap, 2 expected, 4 led); then lines: the name and the client URLs.
impl Standing {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64);
        [self.cluster.0, self.node.0, self.peer.0, self.seed].into_iter().for_each(|number| out.put_u64_le(number));
        out.put_u8(u8::from(self.bootstrap) | u8::from(self.expected) << 1 | u8::from(self.led) << 2);
        out.put_slice(self.name.as_bytes());
        for url in &self.client_urls {
            out.put_u8(b'\n');
            out.put_slice(url.as_bytes());
        }
        out.freeze()
    }

    /// `None` when the bytes are not ours.
    pub fn decode(mut bytes: Bytes) -> Option<Standing> {
        if !(33..=STANDING_BYTES_MAX).contains(&bytes.len()) {
            return None;
        }
        let (cluster, node, peer) = (bytes.get_u64_le(), bytes.get_u64_le(), bytes.get_u64_le());
        let seed = bytes.get_u64_le();
        let flags = bytes.get_u8();
        let (bootstrap, expected, led) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        let text = String::from_utf8(bytes.to_vec()).ok()?;
        let mut lines = text.split('\n').map(str::to_owned);
        let name = lines.next().unwrap_or_default();
        let client_urls = lines.collect();
        Some(Standing {
            cluster: ClusterId(cluster),
            node: NodeId(node),
            peer: PeerId(peer),
            bootstrap,
            expected,
            led,
            seed,
            name,
            client_urls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    #[test]
    fn standings_round_trip_and_nothing_makes_the_decoder_panic() {
        let standing = Standing {
            cluster: ClusterId(1),
            node: NodeId(2),
            peer: PeerId(3),
            bootstrap: true,
            expected: false,
            led: true,
            seed: 4,
            name: "n1".to_owned(),
            client_urls: vec!["http://127.0.0.1:2379".to_owned()],
        };
        assert_eq!(Standing::decode(standing.encode()).as_ref(), Some(&standing));
        mutate::mutate(8, 50_000, &[standing.encode().to_vec()], |bytes| {
            if let Some(standing) = Standing::decode(Bytes::copy_from_slice(bytes)) {
                assert_eq!(Standing::decode(standing.encode()), Some(standing));
            }
        });
    }

    #[test]
    fn who_founds() {
        let seeds = |seeds: [u64; 3]| founder(&[(NodeId(2), seeds[0]), (NodeId(1), seeds[1]), (NodeId(3), seeds[2])]);
        assert_eq!(seeds([0, 0, 0]), Ok(NodeId(1)));
        assert_eq!(seeds([9, 9, 9]), Ok(NodeId(1)));
        assert_eq!(seeds([9, 0, 9]), Ok(NodeId(2)));
        assert_eq!(seeds([0, 0, 9]), Ok(NodeId(3)));
        assert!(seeds([9, 0, 8]).is_err());
    }
}
