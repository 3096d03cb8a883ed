//! How a region's leader brings a merge to its end, whichever that is. What the commands do, and why it is safe, is in
//! [`crate::region::merge`].
//!
//! ```text
//!  step of the placement driver ─▶ [`begin`]: Freeze
//!  whoever leads a frozen region, time and again ─▶ what does the target say of the merge?
//!     merged ─ nothing to do: the target's replica on each store takes the source's away
//!     never ── Thaw
//!     open ─── have all members applied the freeze, with the same hash? ─ Seal ─▶ CommitMerge at the target
//!              not within [`PATIENCE`] ─▶ AbortMerge at the target
//!  whoever leads a region that has taken others in ─▶ is anything left of them anywhere? no ─▶ ForgetMerged
//! ```
//! All of it is found in the regions' own states, so it goes on after changes of leaders and restarts, and without a placement
//! driver. Any number may be at it at the same time: each command says which freeze or version it is meant for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};
use bytes::Bytes;
use consensus::{Membership, Refusal};
use futures::future;
use prost::Message;
use proto::flaredb::command::What;
use proto::flaredb::{self as pb, Verdict};
use proto::placement as pd;
use rpc::client::router::Locate;

use crate::merge_stats::GivenUp;
use crate::region::machine::REFUSED;
use crate::region::{Frozen, Merged, RegionState};
use crate::store::{Region, Store};

/// Peer calls of stores, with those of [`crate::alone`].
pub const FROZEN: u8 = 17;
pub const VERDICT: u8 = 18;
pub const GONE: u8 = 19;

/// A frozen region that all its members have not heard of by then goes on without the merge: it takes no writes meanwhile.
/// Long enough for an election, which takes up to two seconds; shorter than clients wait for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it is looked whether anything is to be done, and how often while something is.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SOON: Duration = Duration::from_millis(50);
const CALL_TIMEOUT: Duration = Duration::from_secs(2);

/// A frozen region that is led here.
struct Watched {
    /// The entry that froze it.
    at: u64,
    /// Since when this store has known.
    since: Time,
    /// Why it is not merged, as soon as that is settled here.
    given_up: Option<GivenUp>,
}

/// A step of the placement driver: the region is to become part of the neighbour `into`.
pub async fn begin(store: &Store, region: &Region, version: u64, into: &pd::MergeStep) -> Result<(), String> {
    let state = region.state();
    if state.frozen.is_some() {
        return Ok(());
    }
    let target = store.region(GroupId(into.into)).ok_or("there is no replica of the neighbour here")?.state();
    if target.version != into.into_version {
        return Err("the neighbour has changed".to_owned());
    }
    let freeze = pb::Freeze {
        target: into.into,
        target_version: into.into_version,
        target_start: target.start.clone(),
        target_end: target.end.clone(),
    };
    let command = pb::Command { version, what: Some(What::Freeze(freeze)) };
    let outcome = propose(region, command).await.map_err(|why| why.to_string())?;
    if outcome != 0 {
        return Err(format!("it cannot be merged as it is, code {outcome}"));
    }
    tracing::info!(target: "flaredb_raft", "Froze a region to merge it, region={} into={}", region.id(), into.into);
    store.merge_stats.begun();
    store.merges.notify_one();
    Ok(())
}

/// Looks after the merges of the regions that this store leads, for as long as it runs.
pub async fn attend(store: Arc<Store>, places: Arc<dyn Locate>) {
    let mut frozen: BTreeMap<GroupId, Watched> = BTreeMap::new();
    let mut settled = store.node.now();
    loop {
        let wait = if frozen.is_empty() { LOOK_EVERY } else { LOOK_SOON };
        tokio::select! {
            biased;
            () = store.merges.notified() => {}
            () = store.node.sleep(wait) => {}
        }
        let now = store.node.now();
        let (mut resolving, mut remembering) = (Vec::new(), Vec::new());
        let mut concerned = Vec::new();
        store.walk(|region| {
            let state = region.state();
            if (state.frozen.is_some() || !state.merged.is_empty() || !region.handle.is_sound())
                && region.handle.is_leader()
            {
                concerned.push((region.clone(), state));
            }
        });
        for (region, state) in concerned {
            if !region.handle.is_sound() {
                // It lacks something, and answers nothing: another one is to lead.
                let handing_over = region.handle.transfer(None);
                store.node.spawn(Box::pin(async move {
                    // What does not come about is tried again.
                    let _ = handing_over.await;
                }));
                continue;
            }
            if let Some(freeze) = &state.frozen {
                resolving.push((region, freeze.clone()));
            } else if !state.merged.is_empty() {
                remembering.push(region);
            }
        }
        frozen.retain(|id, watched| {
            let goes_on = resolving.iter().any(|(region, freeze)| region.id() == *id && freeze.at == watched.at);
            if !goes_on {
                count_end(&store, *id, watched, now);
            }
            goes_on
        });
        let resolved = resolving.iter().map(|(region, freeze)| {
            let new = Watched { at: freeze.at, since: now, given_up: None };
            let since = frozen.entry(region.id()).or_insert(new).since;
            resolve(&store, &places, region, freeze, now.since(since) >= PATIENCE)
        });
        let resolved = future::join_all(resolved.collect::<Vec<_>>()).await;
        for ((region, _), given_up) in resolving.iter().zip(resolved) {
            let Some(watched) = frozen.get_mut(&region.id()) else { continue };
            watched.given_up = watched.given_up.or(given_up);
        }
        store.merge_stats.frozen_since(frozen.values().map(|watched| watched.since).min());
        if now.since(settled) >= LOOK_EVERY {
            settled = now;
            future::join_all(remembering.iter().map(|region| settle(&store, region))).await;
        }
    }
}

/// A frozen region that is led here is no more, or not frozen by this entry, or led elsewhere, where its end is counted.
fn count_end(store: &Store, id: GroupId, watched: &Watched, now: Time) {
    let left = store.region(id).map(|region| region.state());
    let given_up = match left {
        None => None,
        Some(state) if state.frozen.as_ref().is_some_and(|frozen| frozen.at == watched.at) => return,
        Some(_) => Some(watched.given_up.unwrap_or(GivenUp::TargetChanged)),
    };
    store.merge_stats.over(given_up, now.since(watched.since));
}

/// One attempt to bring a frozen region on; why the merge is given up, if it is.
async fn resolve(
    store: &Arc<Store>,
    places: &Arc<dyn Locate>,
    region: &Region,
    frozen: &Frozen,
    late: bool,
) -> Option<GivenUp> {
    let state = region.state();
    let given_up = match ask_target(store, places, region, frozen, None).await.verdict() {
        Verdict::Never => {
            thaw(region, &state, frozen).await;
            return Some(GivenUp::TargetChanged);
        }
        Verdict::Open if late => GivenUp::MembersMissing,
        Verdict::Open => {
            if !all_are_frozen(store, region, &state, frozen).await {
                return None;
            }
            let seal = What::Seal(pb::Seal { frozen_at: frozen.at });
            // What fails is tried again.
            match propose(region, pb::Command { version: state.version, what: Some(seal) }).await.ok()? {
                0 => {
                    let commit = pb::CommitMerge {
                        source: Some(state.describe(region.id())),
                        frozen_at: frozen.at,
                        frozen_term: frozen.term,
                        frozen_hash: frozen.hash,
                    };
                    let answer = ask_target(store, places, region, frozen, Some(What::CommitMerge(commit))).await;
                    answer.refused.then_some(GivenUp::TargetRefused)?
                }
                _ => GivenUp::MembersChanged,
            }
        }
        // Its replica on each store takes this one's away; or nobody says, which is asked again.
        Verdict::Merged | Verdict::Unknown => return None,
    };
    abort(store, places, region, frozen, given_up).await;
    Some(given_up)
}

async fn abort(store: &Arc<Store>, places: &Arc<dyn Locate>, region: &Region, frozen: &Frozen, why: GivenUp) {
    tracing::warn!(
        target: "flaredb_raft",
        "A merge is given up, region={} into={} why={why} code=CF8511",
        region.id(),
        frozen.target
    );
    let answer = ask_target(store, places, region, frozen, Some(What::AbortMerge(pb::AbortMerge {}))).await;
    if answer.verdict() == Verdict::Never {
        thaw(region, &region.state(), frozen).await;
    }
}

async fn thaw(region: &Region, state: &RegionState, frozen: &Frozen) {
    let thaw = What::Thaw(pb::Thaw { frozen_at: frozen.at });
    if propose(region, pb::Command { version: state.version, what: Some(thaw) }).await == Ok(0) {
        tracing::info!(
            target: "flaredb_raft",
            "A region goes on as it was, region={} not_into={}",
            region.id(),
            frozen.target
        );
    }
}

/// Whether every member has applied the freeze, and has come to the same by it.
async fn all_are_frozen(store: &Arc<Store>, region: &Region, state: &RegionState, frozen: &Frozen) -> bool {
    let membership = Membership::decode(&state.membership).unwrap_or_default();
    let asked = membership.members.values().map(|member| {
        let request = pb::FrozenRequest { region_id: region.id().0, peer_id: member.peer.0, frozen_at: frozen.at };
        call::<pb::FrozenResponse>(store, member.node, FROZEN, request.encode_to_vec())
    });
    let is_frozen = |answer: &Option<pb::FrozenResponse>| answer.is_some_and(|it| it.frozen && it.hash == frozen.hash);
    !membership.members.is_empty() && future::join_all(asked).await.iter().all(is_frozen)
}

/// What the region that lies where the target lay says of the merge, after `what` was proposed to it.
async fn ask_target(
    store: &Arc<Store>,
    places: &Arc<dyn Locate>,
    region: &Region,
    frozen: &Frozen,
    what: Option<What>,
) -> pb::VerdictResponse {
    let command = what.map(|what| pb::Command { version: frozen.target_version, what: Some(what) }.encode_to_vec());
    let request = pb::VerdictRequest {
        key: frozen.target_start.clone(),
        source: region.id().0,
        version: frozen.target_version,
        command: command.unwrap_or_default().into(),
    };
    // Where the source is, the target is too, but for moves since.
    let here = verdict(store, &request).await;
    if here.verdict() != Verdict::Unknown {
        return here;
    }
    let mut stores: Vec<NodeId> = region.handle.membership().members.keys().copied().collect();
    let found = tokio::select! {
        biased;
        found = places.clone().region_at(frozen.target_start.clone()) => found.ok(),
        () = store.node.sleep(CALL_TIMEOUT) => None,
    };
    if let Some(found) = found {
        stores.extend(found.region.unwrap_or_default().peers.iter().map(|peer| NodeId(peer.store_id)));
    }
    stores.sort_unstable();
    stores.dedup();
    for node in stores.into_iter().filter(|node| *node != store.id()) {
        let answer = call::<pb::VerdictResponse>(store, node, VERDICT, request.encode_to_vec()).await;
        if let Some(answer) = answer.filter(|answer| answer.verdict() != Verdict::Unknown) {
            return answer;
        }
    }
    pb::VerdictResponse::default()
}

/// What the region here that covers the key has to say of a merge, as of all that is committed in it.
async fn verdict(store: &Store, request: &pb::VerdictRequest) -> pb::VerdictResponse {
    let Some(target) = store.region_at(&request.key) else { return pb::VerdictResponse::default() };
    let mut refused = false;
    if let Ok(command) = pb::Command::decode(request.command.clone())
        && command.what.is_some()
    {
        // Whatever else comes of it shows in the region's state.
        refused = propose(&target, command).await == Ok(REFUSED);
    }
    if target.handle.read().await.is_err() {
        return pb::VerdictResponse::default();
    }
    let verdict = judge(&target.state(), request);
    pb::VerdictResponse { verdict: verdict as i32, refused: refused && verdict == Verdict::Open }
}

fn judge(target: &RegionState, request: &pb::VerdictRequest) -> Verdict {
    if !target.covers(&request.key) || target.version < request.version {
        return Verdict::Unknown;
    }
    if target.merged.iter().any(|merged| merged.source.0 == request.source) {
        return Verdict::Merged;
    }
    // A frozen one takes nobody in, and is of another version when it is not frozen any more.
    if target.version > request.version || target.frozen.is_some() { Verdict::Never } else { Verdict::Open }
}

/// Has a region forget what it has taken in and of which nothing is left.
async fn settle(store: &Arc<Store>, region: &Region) {
    let state = region.state();
    for merged in &state.merged {
        if !all_are_gone(store, merged).await {
            continue;
        }
        let forget = What::ForgetMerged(pb::ForgetMerged { source: merged.source.0 });
        // It is tried again.
        let _ = propose(region, pb::Command { version: state.version, what: Some(forget) }).await;
    }
}

async fn all_are_gone(store: &Arc<Store>, merged: &Merged) -> bool {
    let others = merged.peers.iter().filter(|(node, _)| store.may_come_back(*node));
    let asked = others.map(|(node, peer)| {
        let request = pb::GoneRequest {
            region_id: merged.source.0,
            peer_id: peer.0,
            into: merged.into.0,
            version: merged.version,
        };
        call::<pb::GoneResponse>(store, *node, GONE, request.encode_to_vec())
    });
    future::join_all(asked).await.iter().all(|answer| answer.is_some_and(|answer| answer.gone))
}

/// What other stores ask.
pub async fn answer(store: Arc<Store>, method: u8, body: Bytes) -> Result<Bytes, Refusal> {
    let unclear = |_| Refusal::NoGroup;
    match method {
        FROZEN => {
            let request = pb::FrozenRequest::decode(body).map_err(unclear)?;
            Ok(is_frozen(&store, &request).encode_to_vec().into())
        }
        VERDICT => {
            let request = pb::VerdictRequest::decode(body).map_err(unclear)?;
            Ok(verdict(&store, &request).await.encode_to_vec().into())
        }
        GONE => {
            let request = pb::GoneRequest::decode(body).map_err(unclear)?;
            Ok(pb::GoneResponse { gone: is_gone(&store, &request).await }.encode_to_vec().into())
        }
        _ => Err(Refusal::NoGroup),
    }
}

/// A peer that says so proposes no change of members any more: that was told to the node before anybody saw the state.
fn is_frozen(store: &Store, request: &pb::FrozenRequest) -> pb::FrozenResponse {
    let region = store.region(GroupId(request.region_id));
    let region = region.filter(|region| region.peer.0 == request.peer_id && region.handle.is_sound());
    let frozen = region.and_then(|region| region.state().frozen.clone());
    let hash = frozen.filter(|frozen| frozen.at == request.frozen_at).map(|frozen| frozen.hash);
    pb::FrozenResponse { frozen: hash.is_some(), hash: hash.unwrap_or_default() }
}

/// A peer that was left behind, in a store where the region that took it in is not to be found any more, is taken away.
async fn is_gone(store: &Arc<Store>, request: &pb::GoneRequest) -> bool {
    let (id, peer) = (GroupId(request.region_id), PeerId(request.peer_id));
    // Before all regions are there nothing can be told from one that is missing.
    if !store.is_open() {
        return false;
    }
    if store.is_gone(id, peer).unwrap_or(false) {
        return true;
    }
    let into = store.region(GroupId(request.into)).map(|region| region.state().version);
    if store.region(id).is_some_and(|region| region.peer == peer)
        && into.is_none_or(|version| version >= request.version)
        && let Err(error) = store.retire(id, peer).await
    {
        tracing::error!(target: "flaredb_storage", "A region's peer was not removed, region={id} why={error} code=CF8503");
    }
    false
}

/// The outcome's code.
async fn propose(region: &Region, command: pb::Command) -> Result<u32, Refusal> {
    region.handle.propose(command.encode_to_vec().into()).await.map(|outcome| outcome.code)
}

async fn call<T: Message + Default>(store: &Arc<Store>, node: NodeId, method: u8, request: Vec<u8>) -> Option<T> {
    let answered = if node == store.id() {
        answer(store.clone(), method, request.into()).await
    } else {
        store.node.call(node, method, request.into(), CALL_TIMEOUT).await.ok()?
    };
    T::decode(answered.ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_told_of_a_merge() {
        let request = pb::VerdictRequest { key: "k".into(), source: 7, version: 4, ..pb::VerdictRequest::default() };
        let state = |version| RegionState { start: "k".into(), version, ..RegionState::default() };
        let frozen = Frozen {
            at: 9,
            term: 1,
            hash: 0,
            conf_version: 1,
            target: GroupId(8),
            target_version: 1,
            target_start: Bytes::new(),
        };
        let merged = Merged { source: GroupId(7), into: GroupId(5), version: 5, peers: Vec::new() };
        assert_eq!(judge(&state(4), &request), Verdict::Open);
        assert_eq!(judge(&state(3), &request), Verdict::Unknown, "this replica is behind what was known before");
        assert_eq!(judge(&RegionState { start: "l".into(), ..state(4) }, &request), Verdict::Unknown);
        assert_eq!(judge(&state(5), &request), Verdict::Never);
        assert_eq!(judge(&RegionState { frozen: Some(frozen.clone()), ..state(4) }, &request), Verdict::Never);
        let taken = RegionState { merged: vec![merged], ..state(6) };
        assert_eq!(judge(&taken, &request), Verdict::Merged);
        assert_eq!(judge(&taken, &pb::VerdictRequest { source: 6, ..request }), Verdict::Never);
    }
}
