//! What the placement driver's members agree on: stores, regions, ids, policy. Everything else that its leader knows is
//! heard from the stores, and lost with it ([`crate::leader`]).
//!
//! | family | key | value |
//! |---|---|---|
//! | `meta` | `m` | mark (24 bytes), next id (8, little-endian) |
//! | `meta` | `n` | the members of the placement driver, encoded |
//! | `meta` | `p` | the policy, as JSON |
//! | `meta` | `f` | the founding under way ([`pb::Founding`]) |
//! | `meta` | `c` | the id (8, little-endian) that stores know the cluster by, from the first one on; absent before |
//! | `store` | store id (8, big-endian) | [`pb::Store`] |
//! | `region` | region id (8, big-endian) | [`pb::Region`] |
//!
//! All of it is in memory too ([`Records`]), where readers look.
//!
//! Invariants
//! 1. An id is given out once, whatever it is for: stores, regions and peers draw from one sequence, which stays ahead of
//!    every id that a store or a report names, and of what lost members may have given out ([`PlacementMachine::go_on_alone`]).
//! 2. A store id belongs to one incarnation of one data folder, and an address to one store that is not a tombstone.
//!    An empty data folder never goes on under the id of one that is lost: regions may have members there that have voted,
//!    also such as were not reported yet, and what asks for them by that id must not be answered out of nothing. It comes in
//!    under an id of its own and takes the address ([`Stage::displace`]); the replicas of the lost one are made anew.
//! 3. A data folder is where it was last, or where it is first heard of once people have said that it was moved. The same
//!    folder at another place is a copy of it, however silent the original may be: that one may be cut off from here alone,
//!    and what it has voted and acknowledged since is not in the copy.
//! 4. A region's record never goes back to an earlier epoch. One that lies within a newer one's range has become part of it:
//!    its record goes, and does not come back.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

use base::{ClusterId, PeerId, hash};
use bytes::{Buf, BufMut, Bytes};
use consensus::membership::bare_address;
use consensus::{
    Applied, Entry, HASH_EVERY, MachineError, Mark, Outcome, Payload, SnapshotSink, SnapshotSource, StateMachine,
};
use parking_lot::RwLock;
use prost::Message as _;
use proto::placement as pb;
use proto::placement::command::What;
use storage::{Engine, FamilyId, FamilySpec, View, WriteBatch};

use crate::snapshot::{self, Receiver};

pub const META: FamilyId = FamilyId(0);
pub const STORE: FamilyId = FamilyId(1);
pub const REGION: FamilyId = FamilyId(2);

/// What the engine must be opened with.
pub const FAMILIES: [FamilySpec; 3] = [
    FamilySpec { name: "meta", droppable: None, bloom: false, sequential: false },
    FamilySpec { name: "store", droppable: None, bloom: false, sequential: false },
    FamilySpec { name: "region", droppable: None, bloom: true, sequential: false },
];

const STATE: &[u8] = b"m";
const MEMBERS: &[u8] = b"n";
const POLICY: &[u8] = b"p";
const FOUNDING: &[u8] = b"f";
const CLUSTER: &[u8] = b"c";
/// Ids that one command may take.
pub const IDS_MAX: u32 = 10_000;
/// None is ever drawn beyond it; one that somebody names is not reckoned with.
pub const ID_MAX: u64 = 1 << 62;
/// More than the lost members of a placement driver can have given out beyond what the one that goes on has heard of.
const LOST_IDS_MAX: u64 = 1 << 32;

/// [`Outcome::code`]s: the command was refused, and the body says why.
pub const ALREADY_EXISTS: u32 = 1;
pub const FAILED_PRECONDITION: u32 = 2;
pub const NOT_FOUND: u32 = 3;
pub const UNKNOWN: u32 = 4;

/// Whoever wanted to change the policy makes his change of what it is by now.
pub const POLICY_CHANGED: &str = "the policy has changed meanwhile";

/// All records, as of the last applied entry.
#[derive(Default)]
pub struct Records {
    pub stores: BTreeMap<u64, pb::Store>,
    pub regions: BTreeMap<u64, pb::Region>,
    /// Regions by the key that they begin with.
    by_start: BTreeMap<Bytes, u64>,
    pub founding: Option<pb::Founding>,
    /// Empty: as it is by default.
    pub policy: Bytes,
    /// That of the stores; `None` before the first one.
    pub cluster: Option<ClusterId>,
    next_id: u64,
    /// No record has named a greater id since this was opened. Not agreed on: it only says where one need not look.
    seen_id: u64,
    mark: Mark,
    membership: Bytes,
}

/// Shared with those who look.
pub type SharedRecords = Arc<RwLock<Records>>;

impl Records {
    pub fn region_at(&self, key: &[u8]) -> Option<&pb::Region> {
        let below = (Bound::Unbounded, Bound::Included(key));
        let (_, id) = self.by_start.range::<[u8], _>(below).next_back()?;
        self.regions.get(id).filter(|region| region.end.is_empty() || key < &region.end[..])
    }

    /// Regions from the one that covers `start` on.
    pub fn regions_from<'a>(&'a self, start: &'a [u8]) -> impl Iterator<Item = &'a pb::Region> {
        let first = self.region_at(start).map_or_else(|| Bytes::copy_from_slice(start), |region| region.start.clone());
        self.by_start.range(first..).filter_map(|(_, id)| self.regions.get(id))
    }

    /// The first of these ids that a region, a peer or a store has.
    pub fn taken(&self, ids: Range<u64>) -> Option<u64> {
        if ids.start > self.seen_id {
            return None;
        }
        let founding = self.founding.iter().filter_map(|founding| founding.region.as_ref());
        let of_regions = self.regions.values().chain(founding).flat_map(ids_of);
        of_regions.chain(self.stores.keys().copied()).filter(|id| ids.contains(id)).min()
    }

    /// Other regions whose range has a key of this one's.
    fn overlapping(&self, region: &pb::Region) -> Vec<&pb::Region> {
        let within = |start: &Bytes| region.end.is_empty() || *start < region.end;
        // Two: the nearest may be the region itself.
        let before =
            self.by_start.range::<[u8], _>((Bound::Unbounded, Bound::Included(&region.start[..]))).rev().take(2);
        let behind = self.by_start.range::<[u8], _>((Bound::Excluded(&region.start[..]), Bound::Unbounded));
        let near = before.chain(behind.take_while(|(start, _)| within(start)));
        let others = near.filter_map(|(_, id)| self.regions.get(id)).filter(|other| other.id != region.id);
        others.filter(|other| other.end.is_empty() || region.start < other.end).collect()
    }

    /// Whether each key of `old` lies in `new`, or in another region that is newer than what is known of `old`: it was cut, and what
    /// was left of it became part of another one, before it told of either.
    fn is_covered(&self, old: &pb::Region, new: &pb::Region) -> bool {
        let newer = self.overlapping(old).into_iter().filter(|other| other.version > old.version && other.id != new.id);
        let mut pieces: Vec<(&Bytes, &Bytes)> = newer.chain([new]).map(|piece| (&piece.start, &piece.end)).collect();
        pieces.sort();
        let mut at = &old.start;
        for (start, end) in pieces {
            if start > at {
                return false;
            }
            if end.is_empty() || (!old.end.is_empty() && *end >= old.end) {
                return true;
            }
            at = at.max(end);
        }
        false
    }

    /// Of two that begin with the same key the newer one stays: the other one begins elsewhere by now, if it is anywhere.
    fn put_region(&mut self, region: pb::Region) {
        self.remove_region(region.id);
        self.seen_id = ids_of(&region).fold(self.seen_id, u64::max);
        if let Some(other) = self.by_start.get(&region.start).and_then(|id| self.regions.get(id)) {
            if other.version > region.version {
                return;
            }
            self.remove_region(other.id);
        }
        self.by_start.insert(region.start.clone(), region.id);
        self.regions.insert(region.id, region);
    }

    /// A record that no command has made.
    #[cfg(test)]
    pub fn plant(&mut self, region: pb::Region) {
        self.put_region(region);
    }

    fn put_store(&mut self, store: pb::Store) {
        self.seen_id = self.seen_id.max(store.id);
        self.stores.insert(store.id, store);
    }

    fn put_founding(&mut self, founding: pb::Founding) {
        self.seen_id = founding.region.iter().flat_map(ids_of).fold(self.seen_id, u64::max);
        self.founding = Some(founding);
    }

    fn remove_region(&mut self, id: u64) {
        if let Some(before) = self.regions.remove(&id)
            && self.by_start.get(&before.start) == Some(&id)
        {
            self.by_start.remove(&before.start);
        }
    }
}

/// Its own, its peers', and those of the stores that these are in.
fn ids_of(region: &pb::Region) -> impl Iterator<Item = u64> {
    std::iter::once(region.id).chain(region.peers.iter().flat_map(|peer| [peer.id, peer.store_id]))
}

/// The state machine of the placement driver's one group.
pub struct PlacementMachine {
    engine: Arc<dyn Engine>,
    cluster: ClusterId,
    records: SharedRecords,
}

impl PlacementMachine {
    pub fn open(engine: Arc<dyn Engine>, cluster: ClusterId) -> Result<PlacementMachine, MachineError> {
        let records = load(&*engine.view())?;
        Ok(PlacementMachine { engine, cluster, records: Arc::new(RwLock::new(records)) })
    }

    pub fn records(&self) -> SharedRecords {
        self.records.clone()
    }

    /// For a member whose group is lost. The stores stay in the cluster that they know, whatever the placement driver's group
    /// is called from now on. Ids begin anew far beyond: the lost members may have given out some that this one never heard of.
    pub fn go_on_alone(&mut self) -> Result<(), MachineError> {
        let mut records = self.records.write();
        let mut batch = WriteBatch::new();
        let cluster = *records.cluster.get_or_insert(self.cluster);
        records.next_id = records.next_id.saturating_add(LOST_IDS_MAX);
        batch.put(META, CLUSTER, &cluster.0.to_le_bytes());
        batch.put(META, STATE, &write_state(&records));
        Ok(self.engine.write(&batch)?)
    }
}

/// Entries under way: the records are changed at once, and stay locked until the batch is written.
struct Stage<'a> {
    records: &'a mut Records,
    batch: WriteBatch,
    cluster: ClusterId,
}

type Refused = (u32, String);

impl Stage<'_> {
    fn execute(&mut self, command: Bytes) -> Outcome {
        let what = pb::Command::decode(command).ok().and_then(|command| command.what);
        let done = match what {
            Some(What::Register(request)) => self.register(request).map(|response| response.encode_to_vec()),
            Some(What::Allocate(request)) => {
                let first = self.allocate(request.count.clamp(1, IDS_MAX).into());
                Ok(pb::AllocateIdsResponse { first }.encode_to_vec())
            }
            Some(What::Save(save)) => {
                save.regions.into_iter().for_each(|region| self.save(region));
                Ok(Vec::new())
            }
            Some(What::SetState(set)) => self.set_state(set.store_id, set.state()).map(|()| Vec::new()),
            Some(What::SetPolicy(policy)) => {
                self.batch.put(META, POLICY, &policy);
                self.records.policy = policy;
                Ok(Vec::new())
            }
            Some(What::SetStore(set)) => self.set_store(set).map(|()| Vec::new()),
            Some(What::ChangePolicy(change)) if change.from != self.records.policy => {
                Err((FAILED_PRECONDITION, POLICY_CHANGED.to_owned()))
            }
            Some(What::ChangePolicy(pb::ChangePolicy { to, .. })) => {
                self.batch.put(META, POLICY, &to);
                self.records.policy = to;
                Ok(Vec::new())
            }
            None => Err((UNKNOWN, "a later version proposed it".to_owned())),
        };
        match done {
            Ok(body) => Outcome { code: 0, body: body.into() },
            Err((code, why)) => Outcome { code, body: why.into() },
        }
    }

    fn allocate(&mut self, count: u64) -> u64 {
        let first = self.records.next_id;
        self.records.next_id += count;
        first
    }

    /// Ids that somebody has are not drawn, wherever they are from.
    fn note_ids(&mut self, ids: impl Iterator<Item = u64>) {
        let next = ids.filter(|id| *id <= ID_MAX).map(|id| id + 1).max();
        self.records.next_id = self.records.next_id.max(next.unwrap_or(0));
    }

    fn register(&mut self, request: pb::RegisterRequest) -> Result<pb::RegisterResponse, Refused> {
        let cluster = self.records.cluster.unwrap_or(self.cluster);
        if request.cluster_id != 0 && request.cluster_id != cluster.0 {
            let why = format!("the store belongs to cluster {:x}, and this is cluster {cluster}", request.cluster_id);
            return Err((FAILED_PRECONDITION, why));
        }
        let by_incarnation = self.records.stores.values().find(|store| store.incarnation == request.incarnation);
        if let Some(original) = by_incarnation.filter(|store| is_elsewhere(store, &request)) {
            return Err((ALREADY_EXISTS, copied(original, &request)));
        }
        if request.store_id > ID_MAX {
            return Err((FAILED_PRECONDITION, format!("store_id {} is too large: up to {ID_MAX}", request.store_id)));
        }
        if request.lost {
            let lost =
                by_incarnation.cloned().ok_or_else(|| (NOT_FOUND, "no store has this data folder".to_owned()))?;
            return Ok(self.give_up(lost));
        }
        let id = match (request.store_id, by_incarnation) {
            (0, Some(known)) => known.id,
            (0, None) => 0,
            (asked, Some(known)) if known.id != asked => {
                let why = format!("this data folder is store {}, and not store {asked}", known.id);
                return Err((FAILED_PRECONDITION, why));
            }
            (asked, _) => asked,
        };
        let is_silent = |store: u64| request.silent_stores.contains(&store);
        let is_there = |other: &pb::Store| other.client_url == request.client_url || other.peer_url == request.peer_url;
        let mut known = self.records.stores.get(&id);
        if let Some(other) = known.filter(|known| known.incarnation != request.incarnation) {
            let removed = other.state() == pb::StoreState::Tombstone;
            let lost = other.replaced_by != 0 || other.given_up || !removed && is_silent(id) && is_there(other);
            if !request.any_id || !lost {
                return Err(taken(other, is_silent(id)));
            }
            known = None;
        }
        if known.is_some_and(|known| known.state() == pb::StoreState::Tombstone) {
            return Err((FAILED_PRECONDITION, format!("store {id} was removed; start with an empty data folder")));
        }
        let others = self.records.stores.values().filter(|other| known.is_none_or(|known| known.id != other.id));
        let others = others.filter(|other| other.state() != pb::StoreState::Tombstone && is_there(other));
        let in_the_way: Vec<u64> = others.map(|other| other.id).collect();
        if let Some(other) = in_the_way.iter().find(|other| !is_silent(**other)) {
            let other = &self.records.stores[other];
            let why = match known.filter(|known| known.replaced_by != 0) {
                Some(known) => format!(
                    "store {} is at {} / {}, and has the place of store {} since that one fell silent; start this one under \
                     addresses of its own, and it is taken in again",
                    other.id, other.client_url, other.peer_url, known.id
                ),
                None => {
                    format!("duplicate address: store {} is at {} / {}", other.id, other.client_url, other.peer_url)
                }
            };
            return Err((ALREADY_EXISTS, why));
        }
        let state = match known {
            Some(known) if !known.given_up => known.state(),
            _ => pb::StoreState::Up,
        };
        // What people have set stays.
        let kept = known.cloned().unwrap_or_default();
        let id = match known.map(|known| known.id) {
            Some(id) => id,
            None if id == 0 || self.records.stores.contains_key(&id) => self.free_store_id(),
            None => id,
        };
        self.note_ids(std::iter::once(id));
        in_the_way.into_iter().for_each(|other| self.displace(other, id));
        let store = pb::Store {
            id,
            incarnation: request.incarnation,
            client_url: request.client_url,
            peer_url: request.peer_url,
            labels: request.labels,
            state: state as i32,
            version: request.version,
            replaced_by: 0,
            given_up: false,
            may_move: false,
            ..kept
        };
        self.put_store(store);
        if self.records.cluster.is_none() {
            self.batch.put(META, CLUSTER, &cluster.0.to_le_bytes());
            self.records.cluster = Some(cluster);
        }
        if self.records.regions.is_empty() && self.records.founding.is_none() {
            self.begin_founding(id, request.incarnation);
        }
        let founding = self.records.founding.as_ref();
        let found = founding.filter(|founding| (founding.store_id, founding.incarnation) == (id, request.incarnation));
        Ok(pb::RegisterResponse {
            cluster_id: cluster.0,
            store_id: id,
            found: found.and_then(|founding| founding.region.clone()),
            stores: self.records.stores.values().cloned().collect(),
        })
    }

    /// A store's data was damaged, and the others can do without it: it never comes back, and an empty folder may begin in
    /// its place.
    fn give_up(&mut self, store: pb::Store) -> pb::RegisterResponse {
        let id = store.id;
        let (client_url, peer_url, state) = (String::new(), String::new(), pb::StoreState::Tombstone as i32);
        self.put_store(pb::Store { client_url, peer_url, state, given_up: true, ..store });
        if self.records.founding.as_ref().is_some_and(|founding| founding.store_id == id) {
            self.batch.delete(META, FOUNDING);
            self.records.founding = None;
        }
        pb::RegisterResponse { cluster_id: self.cluster.0, store_id: id, ..pb::RegisterResponse::default() }
    }

    /// A silent store gives its addresses to another one. What it holds is made anew elsewhere; should it come back as it
    /// was, it may, under other addresses.
    fn displace(&mut self, id: u64, by: u64) {
        let Some(store) = self.records.stores.get(&id).cloned() else { return };
        let (client_url, peer_url) = (String::new(), String::new());
        let mut store = pb::Store { client_url, peer_url, replaced_by: by, ..store };
        if store.state() == pb::StoreState::Up {
            (store.state, store.given_up) = (pb::StoreState::Offline as i32, true);
        }
        // The first region may lie there and nowhere else, and another one is begun: it never comes back.
        if self.records.founding.as_ref().is_some_and(|founding| founding.store_id == id) {
            store.state = pb::StoreState::Tombstone as i32;
            self.batch.delete(META, FOUNDING);
            self.records.founding = None;
        }
        self.put_store(store);
    }

    /// Stores that name themselves may have taken what comes next.
    fn free_store_id(&mut self) -> u64 {
        loop {
            let id = self.allocate(1);
            if !self.records.stores.contains_key(&id) {
                return id;
            }
        }
    }

    fn begin_founding(&mut self, store_id: u64, incarnation: u64) {
        let (region, peer) = (self.allocate(1), self.allocate(1));
        let region = pb::Region {
            id: region,
            conf_version: 1,
            version: 1,
            peers: vec![pb::Peer { id: peer, store_id, learner: false }],
            ..pb::Region::default()
        };
        let founding = pb::Founding { store_id, incarnation, region: Some(region) };
        self.batch.put(META, FOUNDING, &founding.encode_to_vec());
        self.records.put_founding(founding);
    }

    fn put_store(&mut self, store: pb::Store) {
        self.batch.put(STORE, &store.id.to_be_bytes(), &store.encode_to_vec());
        self.records.put_store(store);
    }

    fn save(&mut self, region: pb::Region) {
        self.note_ids(ids_of(&region));
        let epoch = |region: &pb::Region| (region.version, region.conf_version);
        let known = self.records.regions.get(&region.id);
        if known.is_some_and(|known| epoch(&region).0 < epoch(known).0 || epoch(&region).1 < epoch(known).1) {
            return;
        }
        if known == Some(&region) {
            return;
        }
        let overlapping = self.records.overlapping(&region);
        if overlapping.iter().any(|other| other.version >= region.version) {
            return;
        }
        // One that began where this one does has been cut or is no more. Where it lies, if it does, it will say itself.
        let is_old = |other: &&pb::Region| other.start == region.start || self.records.is_covered(other, &region);
        let merged = overlapping.into_iter().filter(is_old);
        for id in merged.map(|other| other.id).collect::<Vec<_>>() {
            self.batch.delete(REGION, &id.to_be_bytes());
            self.records.remove_region(id);
        }
        let founded = self.records.founding.as_ref().and_then(|founding| founding.region.as_ref());
        if founded.is_some_and(|founded| founded.id == region.id) {
            self.batch.delete(META, FOUNDING);
            self.records.founding = None;
        }
        self.batch.put(REGION, &region.id.to_be_bytes(), &region.encode_to_vec());
        self.records.put_region(region);
    }

    fn set_store(&mut self, set: pb::SetStore) -> Result<(), Refused> {
        let id = set.store_id;
        let Some(known) = self.records.stores.get(&id) else {
            return Err((NOT_FOUND, format!("there is no store {id}")));
        };
        if known.state() == pb::StoreState::Tombstone {
            return Err((FAILED_PRECONDITION, format!("store {id} is gone for good")));
        }
        let mut store = known.clone();
        if set.clear_limits {
            (store.add_limit, store.remove_limit) = (None, None);
        }
        store.leader_weight = set.leader_weight.or(store.leader_weight);
        store.region_weight = set.region_weight.or(store.region_weight);
        store.add_limit = set.add_limit.or(store.add_limit);
        store.remove_limit = set.remove_limit.or(store.remove_limit);
        store.may_move |= set.moved;
        store.labels_set.extend(set.labels);
        for label in &set.labels_removed {
            store.labels_set.remove(label);
        }
        self.put_store(store);
        Ok(())
    }

    fn set_state(&mut self, id: u64, state: pb::StoreState) -> Result<(), Refused> {
        let Some(store) = self.records.stores.get(&id) else {
            return Err((NOT_FOUND, format!("there is no store {id}")));
        };
        if store.state() == pb::StoreState::Tombstone {
            return Err((FAILED_PRECONDITION, format!("store {id} is gone for good")));
        }
        if state == pb::StoreState::Up && store.replaced_by != 0 {
            let why =
                format!("store {id} was silent, and store {} has its place; start it anew first", store.replaced_by);
            return Err((FAILED_PRECONDITION, why));
        }
        self.put_store(pb::Store { state: state as i32, given_up: false, ..store.clone() });
        // One that was to begin the first region, and is gone before it did, leaves that to the next.
        let founder = self.records.founding.as_ref().map(|founding| founding.store_id);
        if state == pb::StoreState::Tombstone && founder == Some(id) {
            self.batch.delete(META, FOUNDING);
            self.records.founding = None;
        }
        Ok(())
    }
}

/// Whether a store with this data folder is somewhere else. One that lost its place is nowhere.
fn is_elsewhere(store: &pb::Store, request: &pb::RegisterRequest) -> bool {
    let stands = store.state() != pb::StoreState::Tombstone && !store.peer_url.is_empty();
    stands && !store.may_move && bare_address(&store.peer_url) != bare_address(&request.peer_url)
}

fn copied(original: &pb::Store, request: &pb::RegisterRequest) -> String {
    let pb::Store { id, client_url, peer_url, .. } = original;
    format!(
        "this data folder is that of store {id} at {client_url} / {peer_url}, and comes from {} / {}: one of the two is a copy; \
         empty this one, or, if it was moved here and nothing runs there any more, say so: \
         flaredb-client --endpoint PD stores moved {id}",
        request.client_url, request.peer_url
    )
}

/// Why a data folder cannot be a store that another one is.
fn taken(other: &pb::Store, silent: bool) -> Refused {
    let pb::Store { id, client_url, .. } = other;
    let duplicate = format!("duplicate store_id {id}: it belongs to another data folder, of the store at {client_url}");
    if other.state() == pb::StoreState::Tombstone || other.replaced_by != 0 {
        let why = format!("store_id {id} was another data folder's, and is not used again; take another one");
        return (FAILED_PRECONDITION, why);
    }
    if !silent {
        return (ALREADY_EXISTS, format!("{duplicate}; take another store_id, or remove that store first"));
    }
    let why = format!(
        "{duplicate}, which is silent; if that one is lost, start this one with another store_id and remove store {id}, and \
         what it held is made anew (an empty data folder at the same address takes its place by itself)"
    );
    (FAILED_PRECONDITION, why)
}

impl StateMachine for PlacementMachine {
    fn mark(&self) -> Mark {
        self.records.read().mark
    }

    fn membership(&self) -> Bytes {
        self.records.read().membership.clone()
    }

    fn found(&mut self, mark: Mark, membership: Bytes) -> Result<(), MachineError> {
        let mut records = self.records.write();
        (records.mark, records.membership) = (mark, membership);
        let mut batch = WriteBatch::new();
        batch.put(META, STATE, &write_state(&records));
        batch.put(META, MEMBERS, &records.membership);
        self.engine.write(&batch)?;
        Ok(self.engine.flush()?)
    }

    fn apply(&mut self, entries: &[Entry], local: PeerId, applied: &mut Applied) -> Result<(), MachineError> {
        let mut records = self.records.write();
        let mut stage = Stage { records: &mut records, batch: WriteBatch::new(), cluster: self.cluster };
        for entry in entries {
            if entry.index != stage.records.mark.index + 1 {
                let why = format!("entry {} was to be applied after {}", entry.index, stage.records.mark.index);
                return Err(MachineError::Damaged(why));
            }
            let begun = stage.batch.bytes().len();
            match &entry.payload {
                Payload::Nothing => {}
                Payload::Commands(commands) => {
                    for (seq, command) in commands.iter() {
                        let outcome = stage.execute(command);
                        if commands.origin == local {
                            applied.outcomes.push((seq, outcome));
                        }
                    }
                }
                Payload::Membership { membership, done } => {
                    stage.batch.put(META, MEMBERS, membership);
                    stage.records.membership = membership.clone();
                    if let Some((peer, seq)) = done
                        && *peer == local
                    {
                        applied.outcomes.push((*seq, Outcome { code: 0, body: membership.clone() }));
                    }
                }
            }
            let hash = hash::roll(stage.records.mark.hash, &stage.batch.bytes()[begun..]);
            stage.records.mark = Mark { index: entry.index, term: entry.term, hash };
            if entry.index % HASH_EVERY == 0 {
                applied.hashes.push((entry.index, hash));
            }
        }
        let state = write_state(stage.records);
        stage.batch.put(META, STATE, &state);
        let written = self.engine.write(&stage.batch);
        if let Err(error) = written {
            // The same entries may come again: a full disk is waited for.
            *records = load(&*self.engine.view())?;
            applied.outcomes.clear();
            applied.hashes.clear();
            return Err(error.into());
        }
        Ok(())
    }

    fn may_wait(&self) -> bool {
        self.engine.is_stalled()
    }

    fn durable(&self) -> Result<u64, MachineError> {
        let state = self.engine.durable_get(META, STATE)?;
        Ok(state.map(read_state).transpose()?.map_or(0, |(mark, _)| mark.index))
    }

    fn flusher(&self) -> Box<dyn Fn() -> Result<(), MachineError> + Send> {
        let engine = self.engine.clone();
        Box::new(move || Ok(engine.flush()?))
    }

    fn snapshot(&self) -> Result<Box<dyn SnapshotSource>, MachineError> {
        let records = self.records.read();
        Ok(Box::new(snapshot::stream(self.engine.view(), records.mark, records.membership.clone())))
    }

    fn receiver(&self) -> Result<Box<dyn SnapshotSink>, MachineError> {
        Ok(Box::new(Receiver::new(self.engine.begin_install()?)))
    }

    fn install(&mut self, staged: &mut dyn SnapshotSink) -> Result<(), MachineError> {
        let receiver = staged
            .as_any()
            .downcast_mut::<Receiver>()
            .ok_or_else(|| MachineError::BadSnapshot("it was received by another machine".into()))?;
        self.engine.commit_install(receiver.install())?;
        *self.records.write() = load(&*self.engine.view())?;
        Ok(())
    }
}

fn write_state(records: &Records) -> Vec<u8> {
    let mut out = Vec::with_capacity(Mark::BYTES + 8);
    out.put_slice(&records.mark.encode());
    out.put_u64_le(records.next_id);
    out
}

/// Mark and next id.
pub(crate) fn read_state(mut bytes: Bytes) -> Result<(Mark, u64), MachineError> {
    let damaged = || MachineError::Damaged("the state of the placement driver makes no sense".to_owned());
    if bytes.len() != Mark::BYTES + 8 {
        return Err(damaged());
    }
    let mark = Mark::decode(&bytes.split_to(Mark::BYTES)).ok_or_else(damaged)?;
    Ok((mark, bytes.get_u64_le()))
}

fn load(view: &dyn View) -> Result<Records, MachineError> {
    let damaged = |what: &str| MachineError::Damaged(format!("the record of a {what} makes no sense"));
    let mut records = Records { next_id: 1, ..Records::default() };
    if let Some(state) = view.get(META, STATE)? {
        (records.mark, records.next_id) = read_state(state)?;
    }
    records.membership = view.get(META, MEMBERS)?.unwrap_or_default();
    records.policy = view.get(META, POLICY)?.unwrap_or_default();
    let cluster = view.get(META, CLUSTER)?.map(|mut bytes| bytes.try_get_u64_le().map_err(|_| damaged("cluster")));
    records.cluster = cluster.transpose()?.map(ClusterId);
    let founding = view.get(META, FOUNDING)?;
    let founding = founding.map(|bytes| pb::Founding::decode(bytes).map_err(|_| damaged("founding"))).transpose()?;
    founding.into_iter().for_each(|founding| records.put_founding(founding));
    let mut walk = view.scan(STORE, &[], None);
    while walk.valid() {
        let store = pb::Store::decode(walk.value()).map_err(|_| damaged("store"))?;
        records.put_store(store);
        walk.advance();
    }
    walk.status()?;
    let mut walk = view.scan(REGION, &[], None);
    while walk.valid() {
        records.put_region(pb::Region::decode(walk.value()).map_err(|_| damaged("region"))?);
        walk.advance();
    }
    walk.status()?;
    Ok(records)
}

#[cfg(test)]
mod tests {
    use storage::memengine::MemEngine;

    use super::*;

    fn region(id: u64, start: &'static str, end: &'static str, version: u64) -> pb::Region {
        let peers = vec![pb::Peer { id: id * 10, store_id: 1, learner: false }];
        pb::Region { id, start: start.into(), end: end.into(), conf_version: 1, version, peers }
    }

    /// What the records have, as `id:start-end`, and what a new machine on the same engine finds.
    fn saved(reports: &[pb::Region]) -> Vec<String> {
        let engine = Arc::new(MemEngine::new(&FAMILIES));
        let mut records = Records::default();
        for report in reports {
            let mut stage = Stage { records: &mut records, batch: WriteBatch::new(), cluster: ClusterId(1) };
            stage.save(report.clone());
            engine.write(&stage.batch).unwrap();
        }
        let shown = |records: &Records| -> Vec<String> {
            let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
            let all = records.regions_from(b"");
            all.map(|region| format!("{}:{}-{}", region.id, text(&region.start), text(&region.end))).collect()
        };
        assert_eq!(shown(&load(&*engine.view()).unwrap()), shown(&records));
        assert_eq!(records.regions.len(), records.by_start.len());
        shown(&records)
    }

    #[test]
    fn a_region_that_has_become_part_of_another_one_goes_and_does_not_come_back() {
        let [low, middle, high] = [region(1, "", "d", 3), region(2, "d", "m", 3), region(3, "m", "", 3)];
        let all = [low.clone(), middle.clone(), high.clone()];
        assert_eq!(saved(&all), ["1:-d", "2:d-m", "3:m-"]);
        let with = |more: &[pb::Region]| saved(&[&all[..], more].concat());
        assert_eq!(with(&[region(1, "", "m", 4)]), ["1:-m", "3:m-"]);
        assert_eq!(with(&[region(3, "d", "", 4)]), ["1:-d", "3:d-"]);
        assert_eq!(with(&[region(2, "", "m", 4)]), ["2:-m", "3:m-"]);
        // What is left of it still reports.
        assert_eq!(with(&[region(1, "", "m", 4), middle.clone()]), ["1:-m", "3:m-"]);
        assert_eq!(with(&[region(3, "d", "", 4), middle, region(1, "", "", 5)]), ["1:-"]);
        // The part before a cut keeps its place until it tells of the cut itself.
        assert_eq!(with(&[region(9, "p", "", 4)]), ["1:-d", "2:d-m", "3:m-", "9:p-"]);
        assert_eq!(with(&[region(9, "p", "", 4), region(3, "m", "p", 4)]), ["1:-d", "2:d-m", "3:m-p", "9:p-"]);
        // It was cut, and its part merged, before it told of the cut.
        assert_eq!(with(&[region(9, "p", "", 4), region(2, "d", "p", 5)]), ["1:-d", "2:d-p", "9:p-"]);
        assert_eq!(with(&[region(2, "d", "p", 5), region(9, "p", "", 4)]), ["1:-d", "2:d-p", "9:p-"]);
        // A part of it may still be its own.
        assert_eq!(with(&[region(9, "r", "", 4), region(2, "d", "p", 5)]), ["1:-d", "2:d-p", "3:m-", "9:r-"]);
        // It was merged into one that was cut before it told of either.
        assert_eq!(with(&[region(2, "", "c", 5)]), ["2:-c", "3:m-"]);
        assert_eq!(with(&[region(2, "", "c", 5), region(9, "c", "m", 5)]), ["2:-c", "9:c-m", "3:m-"]);
        assert_eq!(with(&[region(2, "", "c", 5), region(1, "c", "m", 5)]), ["2:-c", "1:c-m", "3:m-"]);
    }

    #[test]
    fn of_two_records_that_begin_with_the_same_key_the_newer_one_counts() {
        for order in [[1, 2], [2, 1]] {
            let mut records = Records::default();
            order.into_iter().for_each(|id| records.put_region(region(id, "", "", id)));
            assert_eq!(records.region_at(b"k").map(|region| region.id), Some(2));
            assert_eq!((records.regions.len(), records.by_start.len()), (1, 1));
        }
    }

    #[test]
    fn ids_that_are_named_are_not_drawn() {
        let mut records = Records { next_id: 5, ..Records::default() };
        let mut stage = Stage { records: &mut records, batch: WriteBatch::new(), cluster: ClusterId(1) };
        stage.save(region(7, "", "", 3));
        assert_eq!(stage.allocate(1), 71, "behind the region's peer");
        let peers = vec![pb::Peer { id: 80, store_id: 90, learner: false }];
        stage.save(pb::Region { peers, version: 2, ..region(7, "", "", 3) });
        assert_eq!(stage.allocate(1), 91, "also if the report is out of date");
        let asking = |store_id: u64| pb::RegisterRequest {
            store_id,
            incarnation: store_id,
            client_url: store_id.to_string(),
            peer_url: store_id.to_string(),
            ..pb::RegisterRequest::default()
        };
        assert_eq!(stage.register(asking(200)).unwrap().store_id, 200);
        assert_eq!(stage.allocate(1), 201);
        assert_eq!(stage.register(pb::RegisterRequest { incarnation: 9, ..asking(0) }).unwrap().store_id, 202);
        assert!(stage.register(asking(ID_MAX + 1)).unwrap_err().1.contains("too large"));
        let taken = |ids| stage.records.taken(ids);
        assert_eq!([taken(2..8), taken(91..201), taken(203..210)], [Some(7), Some(200), None]);
        stage.save(pb::Region { id: u64::MAX, ..region(8, "", "", 9) });
        assert_eq!(stage.allocate(1), 203, "what nobody has drawn does not use the ids up");
    }
}
