//! What a replica that hears no leader does about it, with a placement driver or without.
//!
//! # Its region may go on without it
//! Nobody speaks to a peer that was removed, and what takes such peers away is the placement driver. Until then clients that come
//! here would wait for an election that never comes. So the stores of its members are asked ([`STANDING`]) whether one of them
//! knows who leads the region that has the key by now, and that region knows of no such peer any more. What they say is used to
//! send clients elsewhere, and for nothing else.
//!
//! # It may lack voters that were never made
//! What comes of a split is made by each store as it carries the split out. A store that was away meanwhile, and was given a
//! snapshot of what was left of the parent, makes nothing. The new region's leader sees that one member is silent and has its
//! store admit it. If that leader is lost first, those that are left are no majority, though every store but one is well: so
//! voters that know no leader have the others admitted too. A peer that never was on its store has voted for nobody, and it is
//! as if it had been there all the time and had heard nothing; one that was there and is gone stays gone
//! ([`crate::store::Store::admit`]).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future;
use parking_lot::Mutex;

use crate::store::{Region, Store};

/// The peer call by which a region's leader, or a voter that knows none, has a store admit a peer: region, peer and store, 8
/// bytes each.
pub const ADMIT: u8 = 16;
/// The peer call of a replica that knows no leader: region, peer, version and version of the members, 8 bytes each; and the key.
/// The answer is one byte; 1: the key's region goes on without it.
pub const STANDING: u8 = 20;

const NUMBERS: usize = 32;
/// Longer than an election takes.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so many stores that did not admit anybody the rest waits for its turn.
const FAILURES_MAX: usize = 4;
const ADMIT_TIMEOUT: Duration = Duration::from_secs(5);
const STANDING_TIMEOUT: Duration = Duration::from_secs(1);
/// What was said counts for so long.
const WORD_COUNTS: Duration = Duration::from_millis(500);
const WORDS_MAX: usize = 100_000;

/// What the others last said of regions without a leader, and when.
#[derive(Default)]
pub struct Words(Mutex<HashMap<GroupId, (Time, bool)>>);

/// Whether another store knows the key to be led in a region that this replica is no part of.
pub async fn goes_on_without(store: &Store, region: &Region, key: &[u8]) -> bool {
    let id = region.id();
    if let Some((at, word)) = store.words.0.lock().get(&id)
        && store.node.now().since(*at) < WORD_COUNTS
    {
        return *word;
    }
    let state = region.state();
    let mut body = BytesMut::with_capacity(NUMBERS + key.len());
    [id.0, region.peer.0, state.version, state.conf_version].into_iter().for_each(|number| body.put_u64_le(number));
    body.put_slice(key);
    let body = body.freeze();
    let membership = region.handle.membership();
    let others = membership.members.keys().copied().filter(|node| *node != store.id());
    let asked = others.map(|node| store.node.call(node, STANDING, body.clone(), STANDING_TIMEOUT));
    let answers = future::join_all(asked).await;
    let word = answers.iter().any(|answer| matches!(answer, Ok(Ok(said)) if said[..] == [1]));
    let mut words = store.words.0.lock();
    if words.len() >= WORDS_MAX {
        words.clear();
    }
    words.insert(id, (store.node.now(), word));
    word
}

/// The answer to [`STANDING`]; `None`: the question makes no sense.
pub fn standing(store: &Store, mut body: Bytes) -> Option<Bytes> {
    if body.len() < NUMBERS {
        return None;
    }
    let (id, peer) = (GroupId(body.get_u64_le()), PeerId(body.get_u64_le()));
    let (version, conf_version) = (body.get_u64_le(), body.get_u64_le());
    let without = store.region_at(&body).is_some_and(|known| {
        let state = known.state();
        let later = state.version > version || state.conf_version > conf_version;
        let member = known.id() == id && known.handle.membership().by_peer(peer).is_some();
        later && !member && !known.handle.status().leader.is_none()
    });
    Some(Bytes::copy_from_slice(&[u8::from(without)]))
}

/// Has peers admitted that their stores never made.
#[derive(Default)]
pub struct Admitting(Mutex<State>);

#[derive(Default)]
struct State {
    /// Regions here that know no leader, and since when.
    leaderless: BTreeMap<GroupId, Time>,
    /// Where it goes on.
    next: GroupId,
}

/// A member that a region here does not hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Silent {
    pub region: GroupId,
    pub peer: PeerId,
    pub node: NodeId,
}

impl Admitting {
    /// To be called every now and then with the silent members of regions led here, and the regions that know no leader; what is
    /// returned is to be run, one at a time.
    pub fn look(
        self: &Arc<Self>,
        store: &Arc<Store>,
        mut silent: Vec<Silent>,
        leaderless: Vec<Region>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let now = store.node.now();
        let mut state = self.0.lock();
        let known = std::mem::take(&mut state.leaderless);
        for region in leaderless {
            let since = known.get(&region.id()).copied().unwrap_or(now);
            state.leaderless.insert(region.id(), since);
            if now.since(since) >= PATIENCE {
                silent.extend(other_voters(&region));
            }
        }
        silent.sort_unstable();
        let first = silent.partition_point(|silent| silent.region < state.next);
        silent.rotate_left(first);
        drop(state);
        self.clone().admit(store.clone(), silent)
    }

    /// A few at a time; who is down is asked in vain.
    async fn admit(self: Arc<Self>, store: Arc<Store>, silent: Vec<Silent>) {
        let mut failed = 0;
        for Silent { region, peer, node } in silent {
            failed += usize::from(have_admitted(&store, region, node, peer).await.is_err());
            if failed >= FAILURES_MAX {
                self.0.lock().next = GroupId(region.0 + 1);
                return;
            }
        }
        self.0.lock().next = GroupId::default();
    }
}

/// The others that could vote, where this peer could.
fn other_voters(region: &Region) -> Vec<Silent> {
    let membership = region.handle.membership();
    if !membership.voters.contains(&region.peer) {
        return Vec::new();
    }
    let others = membership.voters.iter().copied().filter(|peer| *peer != region.peer);
    others.filter_map(|peer| Some(Silent { region: region.id(), peer, node: membership.node_of(peer)? })).collect()
}

pub async fn have_admitted(store: &Store, region: GroupId, node: NodeId, peer: PeerId) -> Result<(), String> {
    let mut body = BytesMut::with_capacity(24);
    body.put_u64_le(region.0);
    body.put_u64_le(peer.0);
    body.put_u64_le(node.0);
    let asked = store.node.call(node, ADMIT, body.freeze(), ADMIT_TIMEOUT).await;
    asked.and_then(|answer| answer.map_err(|why| format!("store {node} does not admit it: {why}"))).map(drop)
}
