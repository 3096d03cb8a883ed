//! Who is in a group, as the group itself has agreed: people's view (nodes with names and addresses) and Raft's view
//! (peers that vote or learn) in one value that changes only by committed entries.
//!
//! A node is a label; its peer is the incarnation of the data folder that stands behind it. A member may be
//! *awaited* (added, its folder not seen yet: peer zero). A change of peers goes learner first, one change in flight;
//! a member that lost its log is replaced: its new peer learns under `successor` and then takes the old one's
//! place in one joint change.
//!
//! The life of a change: a proposal [`MembershipChange`] → checked by the leader against the membership of that
//! moment ([`Membership::plan`]) → a [`ChangeRecord`] in the log, alone or within a Raft configuration change →
//! committed → [`Membership::apply`] on every replica, where it can no longer fail.

use std::collections::BTreeMap;

use base::{ClusterId, NodeId, PeerId};
use prost::Message as _;

use crate::api::Refusal;

/// Addresses kept per member, and the length of each text.
pub const URLS_MAX: usize = 8;
pub const TEXT_BYTES_MAX: usize = 1024;
pub const MEMBERS_MAX: usize = 64;

/// The agreed membership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    pub cluster: ClusterId,
    pub members: BTreeMap<NodeId, Member>,
    /// Raft's configuration. The second half of a joint configuration is empty outside a change.
    pub voters: Vec<PeerId>,
    pub learners: Vec<PeerId>,
    pub voters_outgoing: Vec<PeerId>,
    pub learners_next: Vec<PeerId>,
    pub auto_leave: bool,
    /// Nodes that were removed; kept so that they learn of it.
    pub removed: Vec<NodeId>,
}

/// One member, as people know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub node: NodeId,
    /// Zero while the member is awaited.
    pub peer: PeerId,
    pub name: String,
    /// Where the other nodes reach it: `host:port` or `http(s)://host:port`.
    pub peer_urls: Vec<String>,
    pub client_urls: Vec<String>,
    pub role: MemberRole,
    /// A learner that becomes a voter by itself once it has caught up.
    pub promote_when_ready: bool,
    /// The incarnation that learns in order to take `peer`'s place. Zero when there is none.
    pub successor: PeerId,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemberRole {
    #[default]
    Learner,
    Voter,
}

/// What may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Add a member. Its peer may be zero: it is then awaited, and [`MembershipChange::Arrive`] names it. It starts as a
    /// learner; with `promote_when_ready` it becomes a voter by itself.
    Add(Member),
    /// A member's data folder presents itself: an awaited member's first one, or, when the member is known under
    /// another peer, the new incarnation that replaces the one whose log was lost.
    Arrive {
        node: NodeId,
        peer: PeerId,
    },
    /// A learner becomes a voter.
    Promote {
        node: NodeId,
    },
    Remove {
        node: NodeId,
    },
    /// New texts for a member; `None` leaves one as it is.
    Describe {
        node: NodeId,
        name: Option<String>,
        peer_urls: Option<Vec<String>>,
        client_urls: Option<Vec<String>>,
    },
    /// The leader's own: the successor has caught up and takes the place of the peer before it.
    Succeed {
        node: NodeId,
    },
}

/// What Raft has to do for a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RaftStep {
    /// Nothing: only texts change.
    None,
    AddLearner(PeerId),
    AddVoter(PeerId),
    Remove(Vec<PeerId>),
    /// One joint change: the incarnation that was to succeed was lost too.
    NextSuccessor {
        out: PeerId,
        into: PeerId,
    },
    /// One joint change.
    Swap {
        out: PeerId,
        into: PeerId,
    },
}

impl MembershipChange {
    /// Whether its texts are of a size that members keep.
    pub fn is_within_bounds(&self) -> bool {
        match self {
            MembershipChange::Add(Member { name, peer_urls, client_urls, .. }) => {
                let texts = [name].into_iter().chain(peer_urls).chain(client_urls);
                within_bounds(texts, peer_urls.len().max(client_urls.len()))
            }
            MembershipChange::Describe { name, peer_urls, client_urls, .. } => {
                let urls = |urls: &Option<Vec<String>>| urls.as_ref().map_or(0, Vec::len);
                let texts = name.iter().chain(peer_urls.iter().flatten()).chain(client_urls.iter().flatten());
                within_bounds(texts, urls(peer_urls).max(urls(client_urls)))
            }
            _ => true,
        }
    }
}

/// `host:port` without the scheme and the path that etcd's URLs carry.
pub fn bare_address(address: &str) -> &str {
    let bare = address.split_once("://").map_or(address, |(_, rest)| rest);
    bare.split('/').next().unwrap_or(bare)
}

/// A change as it lies in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeRecord {
    /// Who asked, to be answered when it is applied.
    pub origin: PeerId,
    pub seq: u64,
    pub change: MembershipChange,
}

impl Membership {
    /// The membership that a founder writes: all voters, all peers known.
    pub fn founding(cluster: ClusterId, members: Vec<Member>) -> Membership {
        let voters = members.iter().map(|member| member.peer).collect();
        let members = members.into_iter().map(|member| (member.node, Member { role: MemberRole::Voter, ..member }));
        Membership { cluster, members: members.collect(), voters, ..Membership::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member behind a peer, be it the current one or a successor.
    pub fn by_peer(&self, peer: PeerId) -> Option<&Member> {
        if peer.is_none() {
            return None;
        }
        self.members.values().find(|member| member.peer == peer || member.successor == peer)
    }

    pub fn node_of(&self, peer: PeerId) -> Option<NodeId> {
        self.by_peer(peer).map(|member| member.node)
    }

    pub fn is_joint(&self) -> bool {
        !self.voters_outgoing.is_empty()
    }

    /// Whether a change may be proposed, and what Raft must do for it.
    pub fn plan(&self, change: &MembershipChange, learners_max: usize) -> Result<RaftStep, Refusal> {
        if self.is_joint() {
            return Err(Refusal::ChangeInFlight);
        }
        let member = |node: &NodeId| self.members.get(node).ok_or(Refusal::UnknownMember);
        match change {
            MembershipChange::Add(new) => {
                if self.members.contains_key(&new.node)
                    || new.node.0 == 0
                    || self.by_peer(new.peer).is_some()
                    || self.taken(new.node, &new.peer_urls)
                {
                    return Err(Refusal::DuplicateMember);
                }
                if self.members.len() >= MEMBERS_MAX {
                    return Err(Refusal::TooLarge);
                }
                let learning = self.members.values().filter(|member| member.role == MemberRole::Learner).count();
                if learning >= learners_max {
                    return Err(Refusal::TooManyLearners);
                }
                Ok(if new.peer.is_none() { RaftStep::None } else { RaftStep::AddLearner(new.peer) })
            }
            MembershipChange::Arrive { node, peer } => {
                let member = member(node)?;
                if peer.is_none() || self.by_peer(*peer).is_some() {
                    return Err(Refusal::DuplicateMember);
                }
                Ok(match member.successor {
                    PeerId::NONE => RaftStep::AddLearner(*peer),
                    out => RaftStep::NextSuccessor { out, into: *peer },
                })
            }
            MembershipChange::Promote { node } => {
                let member = member(node)?;
                match (member.role, member.peer.is_none()) {
                    (MemberRole::Voter, _) => Err(Refusal::NotALearner),
                    (_, true) => Err(Refusal::LearnerNotReady),
                    _ => Ok(RaftStep::AddVoter(member.peer)),
                }
            }
            MembershipChange::Remove { node } => {
                let member = member(node)?;
                if self.voters == [member.peer] {
                    return Err(Refusal::WouldLoseQuorum);
                }
                let peers: Vec<PeerId> =
                    [member.peer, member.successor].into_iter().filter(|peer| !peer.is_none()).collect();
                Ok(if peers.is_empty() { RaftStep::None } else { RaftStep::Remove(peers) })
            }
            MembershipChange::Describe { node, peer_urls, .. } => {
                member(node)?;
                if peer_urls.as_ref().is_some_and(|urls| self.taken(*node, urls)) {
                    return Err(Refusal::DuplicateMember);
                }
                Ok(RaftStep::None)
            }
            MembershipChange::Succeed { node } => {
                let member = member(node)?;
                if member.successor.is_none() {
                    return Err(Refusal::UnknownMember);
                }
                Ok(match member.role {
                    MemberRole::Voter => RaftStep::Swap { out: member.peer, into: member.successor },
                    MemberRole::Learner => RaftStep::Remove(vec![member.peer]),
                })
            }
        }
    }

    /// Whether another member than `node` is at one of these places, however they are written.
    fn taken(&self, node: NodeId, urls: &[String]) -> bool {
        let others = self.members.values().filter(|member| member.node != node);
        let mut known = others.flat_map(|member| &member.peer_urls);
        known.any(|known| urls.iter().any(|url| bare_address(url) == bare_address(known)))
    }

    /// Carries out a committed change of people's view; Raft's view is set by [`Membership::set_peers`].
    pub fn apply(&mut self, change: &MembershipChange) {
        match change {
            MembershipChange::Add(new) => {
                self.removed.retain(|node| *node != new.node);
                self.members.insert(new.node, Member { role: MemberRole::Learner, ..new.clone() });
            }
            MembershipChange::Arrive { node, peer } => {
                if let Some(member) = self.members.get_mut(node) {
                    if member.peer.is_none() { member.peer = *peer } else { member.successor = *peer }
                }
            }
            MembershipChange::Promote { node } => {
                if let Some(member) = self.members.get_mut(node) {
                    member.role = MemberRole::Voter;
                    member.promote_when_ready = false;
                }
            }
            MembershipChange::Remove { node } => {
                if self.members.remove(node).is_some() && !self.removed.contains(node) {
                    if self.removed.len() >= MEMBERS_MAX {
                        self.removed.remove(0);
                    }
                    self.removed.push(*node);
                }
            }
            MembershipChange::Describe { node, name, peer_urls, client_urls } => {
                if let Some(member) = self.members.get_mut(node) {
                    name.iter().for_each(|name| member.name = name.clone());
                    peer_urls.iter().for_each(|urls| member.peer_urls = urls.clone());
                    client_urls.iter().for_each(|urls| member.client_urls = urls.clone());
                }
            }
            MembershipChange::Succeed { node } => {
                if let Some(member) = self.members.get_mut(node) {
                    member.peer = member.successor;
                    member.successor = PeerId::NONE;
                }
            }
        }
    }

    /// Takes over Raft's configuration as the raft crate computed it.
    pub(crate) fn set_peers(&mut self, conf: &raft::eraftpb::ConfState) {
        // The crate keeps sets whose order depends on their past; replicas must agree on every byte.
        let peers = |raw: &[u64]| -> Vec<PeerId> {
            let mut peers: Vec<PeerId> = raw.iter().copied().map(PeerId).collect();
            peers.sort_unstable();
            peers
        };
        self.voters = peers(&conf.voters);
        self.learners = peers(&conf.learners);
        self.voters_outgoing = peers(&conf.voters_outgoing);
        self.learners_next = peers(&conf.learners_next);
        self.auto_leave = conf.auto_leave;
    }

    pub(crate) fn conf_state(&self) -> raft::eraftpb::ConfState {
        let raw = |peers: &[PeerId]| peers.iter().map(|peer| peer.0).collect();
        raft::eraftpb::ConfState {
            voters: raw(&self.voters),
            learners: raw(&self.learners),
            voters_outgoing: raw(&self.voters_outgoing),
            learners_next: raw(&self.learners_next),
            auto_leave: self.auto_leave,
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let raw = |peers: &[PeerId]| peers.iter().map(|peer| peer.0).collect();
        let form = MembershipForm {
            cluster: self.cluster.0,
            members: self.members.values().map(MemberForm::from).collect(),
            voters: raw(&self.voters),
            learners: raw(&self.learners),
            voters_outgoing: raw(&self.voters_outgoing),
            learners_next: raw(&self.learners_next),
            auto_leave: self.auto_leave,
            removed: self.removed.iter().map(|node| node.0).collect(),
        };
        form.encode_to_vec()
    }

    /// `None` when the bytes make no sense. No bytes are the empty membership.
    pub fn decode(bytes: &[u8]) -> Option<Membership> {
        let form = MembershipForm::decode(bytes).ok()?;
        let peers = |raw: Vec<u64>| raw.into_iter().map(PeerId).collect();
        if form.members.len() > MEMBERS_MAX {
            return None;
        }
        Some(Membership {
            cluster: ClusterId(form.cluster),
            members: form
                .members
                .into_iter()
                .map(|member| Member::try_from(member).map(|member| (member.node, member)))
                .collect::<Result<_, ()>>()
                .ok()?,
            voters: peers(form.voters),
            learners: peers(form.learners),
            voters_outgoing: peers(form.voters_outgoing),
            learners_next: peers(form.learners_next),
            auto_leave: form.auto_leave,
            removed: form.removed.into_iter().map(NodeId).collect(),
        })
    }
}

impl ChangeRecord {
    pub fn encode(&self) -> Vec<u8> {
        let mut form = ChangeForm { origin: self.origin.0, seq: self.seq, ..ChangeForm::default() };
        match &self.change {
            MembershipChange::Add(member) => (form.kind, form.member) = (1, Some(member.into())),
            MembershipChange::Arrive { node, peer } => (form.kind, form.node, form.peer) = (2, node.0, peer.0),
            MembershipChange::Promote { node } => (form.kind, form.node) = (3, node.0),
            MembershipChange::Remove { node } => (form.kind, form.node) = (4, node.0),
            MembershipChange::Describe { node, name, peer_urls, client_urls } => {
                (form.kind, form.node) = (5, node.0);
                form.name = name.clone();
                form.set_peer_urls = peer_urls.is_some();
                form.peer_urls = peer_urls.clone().unwrap_or_default();
                form.set_client_urls = client_urls.is_some();
                form.client_urls = client_urls.clone().unwrap_or_default();
            }
            MembershipChange::Succeed { node } => (form.kind, form.node) = (6, node.0),
        }
        form.encode_to_vec()
    }

    /// `None` when the bytes make no sense or exceed the bounds.
    pub fn decode(bytes: &[u8]) -> Option<ChangeRecord> {
        let form = ChangeForm::decode(bytes).ok()?;
        let node = NodeId(form.node);
        let change = match form.kind {
            1 => MembershipChange::Add(Member::try_from(form.member?).ok()?),
            2 => MembershipChange::Arrive { node, peer: PeerId(form.peer) },
            3 => MembershipChange::Promote { node },
            4 => MembershipChange::Remove { node },
            5 => {
                let texts = || form.name.iter().chain(&form.peer_urls).chain(&form.client_urls);
                if !within_bounds(texts(), form.peer_urls.len().max(form.client_urls.len())) {
                    return None;
                }
                MembershipChange::Describe {
                    node,
                    name: form.name,
                    peer_urls: form.set_peer_urls.then_some(form.peer_urls),
                    client_urls: form.set_client_urls.then_some(form.client_urls),
                }
            }
            6 => MembershipChange::Succeed { node },
            _ => return None,
        };
        Some(ChangeRecord { origin: PeerId(form.origin), seq: form.seq, change })
    }
}

fn within_bounds<'a>(mut texts: impl Iterator<Item = &'a String>, urls: usize) -> bool {
    urls <= URLS_MAX && texts.all(|text| text.len() <= TEXT_BYTES_MAX)
}

impl From<&Member> for MemberForm {
    fn from(member: &Member) -> MemberForm {
        MemberForm {
            node: member.node.0,
            peer: member.peer.0,
            name: member.name.clone(),
            peer_urls: member.peer_urls.clone(),
            client_urls: member.client_urls.clone(),
            voter: member.role == MemberRole::Voter,
            promote_when_ready: member.promote_when_ready,
            successor: member.successor.0,
        }
    }
}

impl TryFrom<MemberForm> for Member {
    type Error = ();

    fn try_from(form: MemberForm) -> Result<Member, ()> {
        let texts = [&form.name].into_iter().chain(&form.peer_urls).chain(&form.client_urls);
        if !within_bounds(texts, form.peer_urls.len().max(form.client_urls.len())) {
            return Err(());
        }
        Ok(Member {
            node: NodeId(form.node),
            peer: PeerId(form.peer),
            name: form.name,
            peer_urls: form.peer_urls,
            client_urls: form.client_urls,
            role: if form.voter { MemberRole::Voter } else { MemberRole::Learner },
            promote_when_ready: form.promote_when_ready,
            successor: PeerId(form.successor),
        })
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct MembershipForm {
    #[prost(uint64, tag = "1")]
    cluster: u64,
    #[prost(message, repeated, tag = "2")]
    members: Vec<MemberForm>,
    #[prost(fixed64, repeated, tag = "3")]
    voters: Vec<u64>,
    #[prost(fixed64, repeated, tag = "4")]
    learners: Vec<u64>,
    #[prost(fixed64, repeated, tag = "5")]
    voters_outgoing: Vec<u64>,
    #[prost(fixed64, repeated, tag = "6")]
    learners_next: Vec<u64>,
    #[prost(bool, tag = "7")]
    auto_leave: bool,
    #[prost(uint64, repeated, tag = "8")]
    removed: Vec<u64>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct MemberForm {
    #[prost(uint64, tag = "1")]
    node: u64,
    #[prost(fixed64, tag = "2")]
    peer: u64,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    peer_urls: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    client_urls: Vec<String>,
    #[prost(bool, tag = "6")]
    voter: bool,
    #[prost(bool, tag = "7")]
    promote_when_ready: bool,
    #[prost(fixed64, tag = "8")]
    successor: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ChangeForm {
    #[prost(fixed64, tag = "1")]
    origin: u64,
    #[prost(fixed64, tag = "2")]
    seq: u64,
    #[prost(uint32, tag = "3")]
    kind: u32,
    #[prost(message, optional, tag = "4")]
    member: Option<MemberForm>,
    #[prost(uint64, tag = "5")]
    node: u64,
    #[prost(fixed64, tag = "6")]
    peer: u64,
    #[prost(string, optional, tag = "7")]
    name: Option<String>,
    #[prost(bool, tag = "8")]
    set_peer_urls: bool,
    #[prost(string, repeated, tag = "9")]
    peer_urls: Vec<String>,
    #[prost(bool, tag = "10")]
    set_client_urls: bool,
    #[prost(string, repeated, tag = "11")]
    client_urls: Vec<String>,
}
