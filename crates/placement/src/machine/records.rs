//! What the placement driver's members agree on, in memory, where readers look, and as it lies in the engine.
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

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

use base::ClusterId;
use bytes::{Buf, BufMut, Bytes};
use consensus::{MachineError, Mark};
use parking_lot::RwLock;
use prost::Message as _;
use proto::placement as pb;
use storage::{FamilyId, FamilySpec, View};

pub const META: FamilyId = FamilyId(0);
pub const STORE: FamilyId = FamilyId(1);
pub const REGION: FamilyId = FamilyId(2);

/// What the engine must be opened with.
pub const FAMILIES: [FamilySpec; 3] = [
    FamilySpec { name: "meta", droppable: None, bloom: false, sequential: false },
    FamilySpec { name: "store", droppable: None, bloom: false, sequential: false },
    FamilySpec { name: "region", droppable: None, bloom: true, sequential: false },
];

pub(super) const STATE: &[u8] = b"m";
pub(super) const MEMBERS: &[u8] = b"n";
pub(super) const POLICY: &[u8] = b"p";
pub(super) const FOUNDING: &[u8] = b"f";
pub(super) const CLUSTER: &[u8] = b"c";
/// All records, as of the last applied entry.
#[derive(Default)]
pub struct Records {
    pub stores: BTreeMap<u64, pb::Store>,
    pub regions: BTreeMap<u64, pb::Region>,
    /// Regions by the key that they begin with.
    pub(super) by_start: BTreeMap<Bytes, u64>,
    pub founding: Option<pb::Founding>,
    /// Empty: as it is by default.
    pub policy: Bytes,
    /// That of the stores; `None` before the first one.
    pub cluster: Option<ClusterId>,
    pub(super) next_id: u64,
    /// No record has named a greater id since this was opened. Not agreed on: it only says where one need not look.
    pub(super) seen_id: u64,
    pub(super) mark: Mark,
    pub(super) membership: Bytes,
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
    pub(super) fn overlapping(&self, region: &pb::Region) -> Vec<&pb::Region> {
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
    pub(super) fn is_covered(&self, old: &pb::Region, new: &pb::Region) -> bool {
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
    pub(super) fn put_region(&mut self, region: pb::Region) {
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

    pub(super) fn put_store(&mut self, store: pb::Store) {
        self.seen_id = self.seen_id.max(store.id);
        self.stores.insert(store.id, store);
    }

    pub(super) fn put_founding(&mut self, founding: pb::Founding) {
        self.seen_id = founding.region.iter().flat_map(ids_of).fold(self.seen_id, u64::max);
        self.founding = Some(founding);
    }

    pub(super) fn remove_region(&mut self, id: u64) {
        if let Some(before) = self.regions.remove(&id)
            && self.by_start.get(&before.start) == Some(&id)
        {
            self.by_start.remove(&before.start);
        }
    }
}

/// Its own, its peers', and those of the stores that these are in.
pub(super) fn ids_of(region: &pb::Region) -> impl Iterator<Item = u64> {
    std::iter::once(region.id).chain(region.peers.iter().flat_map(|peer| [peer.id, peer.store_id]))
}

pub(super) fn write_state(records: &Records) -> Vec<u8> {
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

pub(super) fn load(view: &dyn View) -> Result<Records, MachineError> {
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
