//! A store comes: a new one, one that is known, one that takes the place of another, or one that must not be let in.

use consensus::membership::bare_address;
use prost::Message as _;
use proto::placement as pb;

use super::records::{CLUSTER, FOUNDING, META};
use super::{ALREADY_EXISTS, FAILED_PRECONDITION, ID_MAX, NOT_FOUND, Refused, Stage};

impl Stage<'_> {
    pub(super) fn register(&mut self, request: pb::RegisterRequest) -> Result<pb::RegisterResponse, Refused> {
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
