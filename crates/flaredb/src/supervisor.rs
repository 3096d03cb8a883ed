//! What a store tells the placement driver, and what it does for it.
//!
//! ```text
//!  start ─▶ register: id, cluster, other stores, perhaps a region to found
//!    then, every second ─▶ survey ─▶ heartbeat: how full, which regions led, which had ─▶ steps for regions led here; peers to retire
//! ```
//! A step is done if the region is still of the epoch that it was planned for; whether it was, the next heartbeat tells.
//! Without a placement driver everything goes on as it stands.
//!
//! A peer that a leader adds must be there before it can be filled: the leader's store asks the other one to admit it
//! ([`alone::ADMIT`]), and proposes the change only then. A learner that the other store has been told to take away meanwhile is
//! not made a voter: that is asked in the same way. It names the store that it means: at the address of one that is lost
//! another may answer, and a peer that has voted elsewhere must not be made there out of nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::{GroupId, NodeId, PeerId};
use bytes::{Buf, Bytes};
use consensus::{Member, MemberRole, MembershipChange, Refusal};
use node::Ground;
use node::identity::Identity;
use node::transport::{CallFuture, CallService, Caller, Standing};
use prost::Message as _;
use proto::{flaredb, placement as pb};
use rpc::tls_words::{SPEAKS_NO_TLS, SPEAKS_TLS};
use tonic::{Code, Status};

use crate::alone::{self, ADMIT, Admitting, have_admitted};
use crate::heartbeat;
use crate::merging;
use crate::pd::Placement;
use crate::store::{Region, Store};
use crate::survey::{Survey, Surveyor};

const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
const REGISTER_RETRY: Duration = Duration::from_secs(1);
/// Who has this store's id or address may be its own earlier life, and is missed only after a while.
const TAKEN_FOR: Duration = Duration::from_secs(30);
/// While nothing changes, a failure is mentioned this often.
const SAY_EVERY: u32 = 30;

/// Who this store is and where it is reached.
#[derive(Clone, Debug)]
pub struct About {
    /// Zero: whatever id is free.
    pub store_id: u64,
    pub client_url: String,
    pub peer_url: String,
    pub labels: BTreeMap<String, String>,
}

/// Asks until the placement driver takes this store in. The error is final: it never will.
pub async fn register(node: &dyn Ground, pd: &dyn Placement, about: &About) -> Result<pb::RegisterResponse, String> {
    let request = request(about, &node.identity());
    let mut failures = 0;
    loop {
        match pd.register(request.clone()).await {
            Ok(response) => return Ok(response),
            Err(status) if is_final(&status, REGISTER_RETRY * failures) => {
                return Err(format!("failed to register with PD at {}: {}", pd.addresses(), status.message()));
            }
            Err(status) => {
                if failures % SAY_EVERY == 0 {
                    tracing::warn!(
                        target: "flaredb_pd_client",
                        "failed to register with PD, retrying, addr={} why={}{} code=CF8501",
                        pd.addresses(),
                        status.message(),
                        advice(status.message())
                    );
                }
                failures += 1;
            }
        }
        node.sleep(REGISTER_RETRY).await;
    }
}

pub fn request(about: &About, identity: &Identity) -> pb::RegisterRequest {
    pb::RegisterRequest {
        store_id: about.store_id,
        incarnation: identity.peer.0,
        client_url: about.client_url.clone(),
        peer_url: about.peer_url.clone(),
        labels: about.labels.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_id: identity.cluster.0,
        any_id: !identity.voted,
        silent_stores: Vec::new(),
        lost: false,
    }
}

/// What to do where nobody at `pd_addr` understands the store, or one of the two speaks TLS and the other does not.
fn advice(why: &str) -> &'static str {
    if why.contains("unknown method Register") {
        return "; a store answers there, perhaps this one itself: cluster.pd_addr in flaredb.toml names the placement driver, or \
                use --standalone";
    }
    let one_sided = [SPEAKS_TLS, SPEAKS_NO_TLS, "during the TLS handshake"];
    if one_sided.iter().any(|words| why.contains(words)) {
        return "; TLS mismatch: either PD and stores both use TLS, or none of them does ([tls] in flaredb.toml and \
                placement-driver.toml)";
    }
    ""
}

fn is_final(status: &Status, waited: Duration) -> bool {
    match status.code() {
        Code::AlreadyExists => waited >= TAKEN_FOR,
        code => matches!(code, Code::FailedPrecondition | Code::InvalidArgument),
    }
}

/// Heartbeats for as long as the store runs.
pub async fn supervise(store: Arc<Store>, pd: Arc<dyn Placement>) {
    let mut failures = 0;
    let mut surveyor = Surveyor::new(store.node.now());
    // What is too much for one region; nothing is, before the placement driver has said so.
    let (mut limits, mut split_bytes) = (pb::LoadSplit::default(), 0);
    let (measuring, admitting) = (Alone::default(), Alone::default());
    let to_admit = Arc::new(Admitting::default());
    loop {
        let Survey { heartbeat, silent, leaderless, unmeasured } = surveyor.look(&store, limits, split_bytes);
        match heartbeat::send(&*pd, heartbeat).await {
            Ok(response) => {
                if failures > 0 {
                    tracing::info!(target: "flaredb_pd_client", "Heartbeat to PD succeeded again, failures={failures}");
                }
                failures = 0;
                store.set_refused(None);
                surveyor.answered(&response);
                split_bytes = response.region_split_bytes;
                limits = response.load_split.unwrap_or_default();
                follow(&store, response);
                if !unmeasured.is_empty() {
                    let measured = store.clone();
                    measuring.begin(&*store.node, async move { measured.measure(unmeasured, split_bytes).await });
                }
            }
            Err(status) => {
                surveyor.unanswered();
                // Removed, or replaced: it takes people to change that, and the store only passes requests on.
                if status.code() == Code::FailedPrecondition {
                    store.set_refused(Some(status.message().to_owned()));
                }
                if failures % SAY_EVERY == 0 {
                    tracing::warn!(
                        target: "flaredb_pd_client",
                        "Heartbeat to PD failed, retrying... why={}{} code=CF8502",
                        status.message(),
                        advice(status.message())
                    );
                }
                failures += 1;
            }
        }
        admitting.begin(&*store.node, to_admit.look(&store, silent, leaderless));
        store.node.sleep(HEARTBEAT_EVERY).await;
    }
}

/// Tasks of which one runs at a time.
#[derive(Default)]
struct Alone(Arc<AtomicBool>);

impl Alone {
    /// Nothing, while the last one is not done.
    fn begin(&self, node: &dyn Ground, task: impl Future<Output = ()> + Send + 'static) {
        if self.0.swap(true, Ordering::SeqCst) {
            return;
        }
        let running = Running(self.0.clone());
        node.spawn(Box::pin(async move {
            let _running = running;
            task.await;
        }));
    }
}

struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Does what an answer asks for, beside everything else.
pub fn follow(store: &Arc<Store>, response: pb::HeartbeatResponse) {
    store.learn(&response.stores);
    store.space.learn(&response.full_stores);
    store.node.pace_snapshots(response.snapshot_bytes_per_sec);
    for pb::Replica { region_id, peer_id } in response.retired {
        let retiring = store.clone();
        store.node.spawn(Box::pin(async move {
            if let Err(error) = retiring.retire(GroupId(region_id), PeerId(peer_id)).await {
                tracing::error!(target: "flaredb_storage", "A region's peer was not removed, region={region_id} why={error} code=CF8503");
            }
        }));
    }
    for step in response.steps {
        let Some(region) = store.region(GroupId(step.region_id)) else { continue };
        let state = region.state();
        if (state.conf_version, state.version) != (step.conf_version, step.version) {
            continue;
        }
        let taking = store.clone();
        store.node.spawn(Box::pin(async move {
            let id = region.id();
            if let Err(why) = take(&taking, &region, step).await {
                tracing::warn!(target: "flaredb_raft", "A step of an operator was not done, region={id} why={why} code=CF8504");
            }
        }));
    }
}

async fn take(store: &Arc<Store>, region: &Region, step: pb::Step) -> Result<(), String> {
    let refused = |why: Refusal| why.to_string();
    let is_merge = matches!(step.action, Some(pb::step::Action::Merge(_)));
    if region.state().frozen.is_some() && !is_merge {
        return Err("the region is being merged".to_owned());
    }
    let change = match step.action {
        Some(pb::step::Action::AddLearner(peer)) => {
            let (node, peer) = (NodeId(peer.store_id), PeerId(peer.id));
            have_admitted(store, region.id(), node, peer).await?;
            MembershipChange::Add(Member { node, peer, role: MemberRole::Learner, ..Member::default() })
        }
        Some(pb::step::Action::PromoteStore(id)) => {
            let node = NodeId(id);
            let peer = region.handle.membership().members.get(&node).map(|member| member.peer);
            if let Some(peer) = peer {
                have_admitted(store, region.id(), node, peer).await?;
            }
            MembershipChange::Promote { node }
        }
        Some(pb::step::Action::RemoveStore(id)) => MembershipChange::Remove { node: NodeId(id) },
        Some(pb::step::Action::TransferToStore(id)) => {
            return region.handle.transfer(Some(NodeId(id))).await.map_err(refused);
        }
        Some(pb::step::Action::Split(split)) => {
            let regions = split.at.into_iter().map(|at| flaredb::NewRegion {
                region_id: at.region_id,
                start: at.start,
                peers: at.peers,
            });
            let what = flaredb::command::What::Split(flaredb::Split { regions: regions.collect() });
            let command = flaredb::Command { version: step.version, what: Some(what) };
            let outcome = region.handle.propose(command.encode_to_vec().into()).await.map_err(refused)?;
            return if outcome.code == 0 { Ok(()) } else { Err("the region has changed since".to_owned()) };
        }
        Some(pb::step::Action::Merge(merge)) => return merging::begin(store, region, step.version, &merge).await,
        None => return Err("a later version of the placement driver asked for it".to_owned()),
    };
    region.handle.change(change).await.map(drop).map_err(refused)
}

/// What other stores may ask of this one.
pub struct StoreCalls(pub Arc<Store>);

impl CallService for StoreCalls {
    fn call(&self, caller: &Caller, method: u8, mut body: Bytes) -> CallFuture {
        match method {
            ADMIT if body.len() == 24 && caller.standing == Standing::Member => {
                let (region, peer) = (GroupId(body.get_u64_le()), PeerId(body.get_u64_le()));
                if NodeId(body.get_u64_le()) != self.0.id() {
                    return Box::pin(std::future::ready(Err(Refusal::UnknownMember)));
                }
                let store = self.0.clone();
                Box::pin(async move {
                    store.admit(region, peer).await.map(|()| Bytes::new()).map_err(|why| {
                        tracing::warn!(
                            target: "flaredb_raft",
                            "Did not admit a region's peer, region={region} peer={peer} why={why} code=CF8505"
                        );
                        Refusal::UnknownMember
                    })
                })
            }
            alone::STANDING if caller.standing == Standing::Member => {
                Box::pin(std::future::ready(alone::standing(&self.0, body).ok_or(Refusal::NoGroup)))
            }
            merging::FROZEN | merging::VERDICT | merging::GONE if caller.standing == Standing::Member => {
                Box::pin(merging::answer(self.0.clone(), method, body))
            }
            _ => Box::pin(std::future::ready(Err(Refusal::NoGroup))),
        }
    }
}
