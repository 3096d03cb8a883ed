//! Our own admin service: what operators ask beyond etcd's API. Status needs neither a leader nor a quorum.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base::{NodeId, PeerId};
use bytes::Bytes;
use consensus::{GroupStatus, Member, MemberRole, Membership, MembershipChange, Refusal, Role};
use node::transport::bare_address;
use proto::admin as pb;
use proto::etcdserverpb::AlarmType;
use rpc::{Code, Status};

use super::header::{decode, encode};
use super::{Api, ETCD_VERSION, refused, status_of};
use crate::error::ApiError;

/// How long a change waits for the one before it, such as a promotion that goes on by itself.
const IN_FLIGHT_PATIENCE: Duration = Duration::from_secs(3);
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(50);

impl Api {
    pub(super) fn admin_status(&self) -> Result<Bytes, Status> {
        let group = self.handle.status();
        let stats = self.stores.get().map(|store| store.reader.stats()).unwrap_or_default();
        let applied = self.stores.get().map_or(0, |store| store.reader.current().mark.index);
        let membership = self.handle.membership();
        let node = self.handle.node();
        let mut notes = self.handle.notes();
        if self.handle.cluster().0 == 0 {
            notes.push("this node belongs to no cluster yet; its log says what it waits for".to_owned());
        } else if group.leader.is_none()
            && membership.by_peer(self.handle.peer()).is_some()
            && !self.handle.is_left_out()
        {
            notes.push("no leader elected; start a majority of the members".to_owned());
        }
        notes.extend(self.handle.health().notes());
        for (kind, member) in self.alarms() {
            let kind = AlarmType::try_from(kind).map_or("unknown", |kind| kind.as_str_name());
            notes.push(format!("alarm {kind} is raised by node {member}"));
        }
        encode(&pb::StatusResponse {
            cluster_id: self.handle.cluster().0,
            node_id: node.0,
            peer_id: self.handle.peer().0,
            name: membership.members.get(&node).map(|member| member.name.clone()).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            etcd_version: ETCD_VERSION.to_owned(),
            role: role(group.role) as i32,
            leader_node_id: group.leader_node.0,
            raft_term: group.term,
            // The status is as of the last turn; what was applied since was committed.
            raft_index: group.committed.max(applied),
            raft_applied_index: applied,
            raft_last_index: group.last,
            raft_durable_index: group.durable,
            revision: stats.revision,
            compact_revision: stats.compacted,
            db_size_bytes: stats.engine.total_bytes,
            db_size_in_use_bytes: stats.engine.live_bytes,
            db_quota_bytes: self.live.quota_bytes(),
            notes,
            members: members(&membership, &group),
            uptime_seconds: self.started.elapsed().as_secs(),
            gossip: gossip(&self.handle),
        })
    }

    /// Asks for a pass of the scrub, or only how the last one went.
    pub(super) fn admin_scrub(&self, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::ScrubRequest = decode(message)?;
        let awaited_passes = if request.start { self.scrub.ask() } else { 0 };
        let progress = self.scrub.progress();
        encode(&pb::ScrubResponse {
            running: progress.running,
            awaited_passes,
            process: progress.life,
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            passes: progress.passes,
            findings: progress.findings,
            unchecked_files: progress.unchecked,
            ended_unix_seconds: progress.ended_unix_s,
            last: progress.last,
        })
    }

    pub(super) async fn admin_member_add(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberAddRequest = decode(message)?;
        let peer_urls = self.peer_urls(request.peer_urls)?;
        let drawn = request.node_id == 0;
        let node = NodeId(if drawn { node::clock::random_u64() >> 1 } else { request.node_id });
        if self.handle.membership().members.contains_key(&node) {
            // Without a leader there is no saying who is a member, and no use in asking for less.
            let lost = self.handle.status().leader.is_none();
            return Err(status_of(if lost { ApiError::NoLeader } else { ApiError::MemberExists }));
        }
        let member = Member {
            node,
            name: request.name,
            peer_urls,
            client_urls: request.client_urls,
            promote_when_ready: !request.learner,
            ..Member::default()
        };
        self.changed(Some(node), MembershipChange::Add(member), "").await
    }

    pub(super) async fn admin_member_promote(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberPromoteRequest = decode(message)?;
        let node = NodeId(request.node_id);
        match self.handle.change(MembershipChange::Promote { node }).await {
            Ok(membership) => self.members_response(Some(node), &membership, ""),
            Err(Refusal::NotALearner) => {
                self.members_response(Some(node), &self.handle.membership(), "the member is a voter already")
            }
            Err(Refusal::LearnerNotReady) => Err(Status::new(
                Code::FailedPrecondition,
                "the learner has not caught up with the leader: it must be started, and its lag in `status \
                 --cluster` small; then try again",
            )),
            Err(why) => Err(refused(why)),
        }
    }

    pub(super) async fn admin_member_remove(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberRemoveRequest = decode(message)?;
        self.changed(None, MembershipChange::Remove { node: NodeId(request.node_id) }, "").await
    }

    pub(super) async fn admin_member_replace(self: Arc<Self>, message: Bytes) -> Result<Bytes, Status> {
        let request: pb::MemberReplaceRequest = decode(message)?;
        let node = NodeId(request.node_id);
        let membership = self.handle.membership();
        let member = membership.members.get(&node).ok_or_else(|| status_of(ApiError::MemberNotFound))?;
        let peer_urls = match request.peer_urls {
            none if none.is_empty() => none,
            named => self.peer_urls(named)?,
        };
        let same = |urls: &[String]| urls.iter().map(|url| bare_address(url).to_owned()).collect::<Vec<_>>();
        let moves = !peer_urls.is_empty() && same(&peer_urls) != same(&member.peer_urls);
        if moves {
            if self.handle.ping(node).await.is_ok() {
                return Err(Status::new(
                    Code::FailedPrecondition,
                    format!(
                        "node {node} is up at {}: stop it before another takes its place",
                        member.peer_urls.join(",")
                    ),
                ));
            }
            tracing::info!(target: "chainfire_raft", "Moving a node, node={node} addr={}", peer_urls.join(","));
            let (name, client_urls, peer_urls) = (None, None, Some(peer_urls));
            let change = MembershipChange::Describe { node, name, peer_urls, client_urls };
            self.changed(Some(node), change, "").await?;
        }
        if request.peer_id == 0 {
            // A folder that lost its log presents itself without being asked.
            let note = "start the node with an empty data folder: it presents itself and is rebuilt";
            return self.members_response(Some(node), &self.handle.membership(), note);
        }
        self.changed(Some(node), MembershipChange::Arrive { node, peer: PeerId(request.peer_id) }, "").await
    }

    /// Where a member is to be reached, checked. People leave the scheme out; then it is that of this member's own.
    fn peer_urls(&self, addresses: Vec<String>) -> Result<Vec<String>, Status> {
        let membership = self.handle.membership();
        let own = membership.members.get(&self.handle.node()).and_then(|own| own.peer_urls.first());
        let scheme = own.and_then(|own| own.split_once("://")).map_or("http", |(scheme, _)| scheme);
        let with_scheme = |address: String| match address.contains("://") {
            true => address,
            false => format!("{scheme}://{address}"),
        };
        let urls: Vec<String> = addresses.into_iter().map(with_scheme).collect();
        super::cluster::check_urls(&urls)?;
        Ok(urls)
    }

    async fn changed(&self, node: Option<NodeId>, change: MembershipChange, note: &str) -> Result<Bytes, Status> {
        let deadline = Instant::now() + IN_FLIGHT_PATIENCE;
        let changed = loop {
            match self.handle.change(change.clone()).await {
                // It was not taken up. The one before is over in a moment.
                Err(Refusal::ChangeInFlight) if Instant::now() < deadline => tokio::time::sleep(IN_FLIGHT_PAUSE).await,
                other => break other,
            }
        };
        let membership = changed.map_err(|why| match why {
            Refusal::WouldLoseQuorum => Status::new(Code::FailedPrecondition, self.no_quorum()),
            Refusal::ChangeInFlight => Status::unavailable("a membership change is in flight; try again in a moment"),
            why => refused(why),
        })?;
        self.members_response(node, &membership, note)
    }

    /// Why a member cannot be let go, and what to do.
    fn no_quorum(&self) -> String {
        let (membership, group) = (self.handle.membership(), self.handle.status());
        if membership.voters.len() == 1 {
            return "the change would leave no quorum: this is the only voter; add another member first".to_owned();
        }
        // Only the leader knows who is silent.
        let silent = group.followers.iter().filter(|(peer, _, heard)| !heard && membership.voters.contains(peer));
        let silent: Vec<String> =
            silent.filter_map(|(peer, _, _)| membership.node_of(*peer)).map(|node| node.to_string()).collect();
        let who =
            if silent.is_empty() { String::new() } else { format!(" (not heard of: node {})", silent.join(", ")) };
        format!(
            "the change would leave no quorum: too few of the members that would remain are up{who}; start these first, or \
             remove those that are gone for good before this one"
        )
    }

    fn members_response(&self, node: Option<NodeId>, membership: &Membership, note: &str) -> Result<Bytes, Status> {
        let group = self.handle.status();
        let member = node.and_then(|node| membership.members.get(&node)).map(|member| to_wire(member, &group));
        encode(&pb::MembersResponse {
            cluster_id: self.handle.cluster().0,
            answered_by_node_id: self.handle.node().0,
            member,
            members: members(membership, &group),
            note: note.to_owned(),
        })
    }
}

/// This node first.
fn gossip(handle: &node::GroupHandle) -> Vec<pb::GossipMember> {
    let now = handle.now();
    let member = |member: &gossip::Member| {
        let gossip::Identity { address, peer, about, .. } = &member.identity;
        pb::GossipMember {
            node_id: about.node.0,
            peer_id: peer.0,
            cluster_id: about.cluster.0,
            state: match member.state {
                gossip::State::Alive => pb::GossipState::Alive,
                gossip::State::Suspect => pb::GossipState::Suspect,
                gossip::State::Down => pb::GossipState::Down,
                gossip::State::Left => pb::GossipState::Left,
            } as i32,
            gossip_address: address.to_string(),
            raft_address: about.raft_address.clone(),
            client_urls: about.client_urls.clone(),
            version: about.version.clone(),
            role: about.role.name().to_owned(),
            state_since_ms: now.since(member.since).as_millis() as u64,
        }
    };
    handle.gossip().members.iter().map(member).collect()
}

fn members(membership: &Membership, group: &GroupStatus) -> Vec<pb::Member> {
    membership.members.values().map(|member| to_wire(member, group)).collect()
}

fn to_wire(member: &Member, group: &GroupStatus) -> pb::Member {
    let progress = group.followers.iter().find(|(peer, _, _)| *peer == member.peer).map(|(_, matched, active)| {
        pb::Progress { match_index: *matched, lag_entries: group.last.saturating_sub(*matched), active: *active }
    });
    pb::Member {
        node_id: member.node.0,
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        learner: member.role == MemberRole::Learner,
        promote_when_ready: member.promote_when_ready,
        peer_id: member.peer.0,
        successor_peer_id: member.successor.0,
        progress,
    }
}

fn role(role: Role) -> pb::Role {
    match role {
        Role::Follower => pb::Role::Follower,
        Role::Candidate => pb::Role::Candidate,
        Role::Leader => pb::Role::Leader,
        Role::Learner => pb::Role::Learner,
    }
}
