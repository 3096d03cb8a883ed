//! A store: its engine, its node with many groups, and the regions on it.
//!
//! | question | answered by |
//! |---|---|
//! | which region has this key | [`Store::region_at`] |
//! | how does a region come here, and go | [`Store::found`], [`Store::admit`], [`Store::retire`] |
//! | what is told to the placement driver, and done for it | [`crate::supervisor`] |
//! | what do clients get | [`crate::api`] |
//!
//! A peer's record is written before anything else of it: a start finds all peers that were ever here and are not retired.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base::{ClusterId, GroupId, NodeId, PeerId};
use bytes::Bytes;
use consensus::{CreateGroup, MachineError, Mark, Member, Membership, StateMachine as _};
use node::GroupHandle;
use node::many::ManyNode;
use parking_lot::{Mutex, RwLock};
use proto::placement as pb;
use storage::rocks::RocksEngine;
use storage::{Engine, EngineError, WriteBatch};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::blocking::Blocking;
use crate::region::layout::{self, RAW, REGION, Record};
use crate::region::overlap;
use crate::region::size::{self, Size};
use crate::region::{RangeMap, RegionCell, RegionMachine, RegionState, machine, snapshot};
use crate::space::Space;

/// A region is measured again when this part of what is too large was written.
const MEASURED_PER_SPLIT: u64 = 16;
/// How often it is looked whether a retired region's machine is gone.
const GONE_LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a region that the disk had no room for is tried again.
const ROOM_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Reads that wait for the disk at a time, and regions that come or go.
const READS_MAX: usize = 64;
const CHORES_MAX: usize = 4;

/// A region on this store.
#[derive(Clone)]
pub struct Region {
    pub handle: GroupHandle,
    pub peer: PeerId,
    pub cell: Arc<RegionCell>,
}

impl Region {
    pub fn id(&self) -> GroupId {
        self.handle.id()
    }

    pub fn state(&self) -> Arc<RegionState> {
        self.cell.state()
    }
}

pub struct Store {
    pub node: ManyNode,
    pub engine: Arc<RocksEngine>,
    incoming: PathBuf,
    map: Arc<RangeMap>,
    regions: RwLock<BTreeMap<GroupId, Region>>,
    /// Regions come and go one at a time.
    changing: Mutex<()>,
    /// Regions that are being taken away: none of them comes before that is done.
    going: Mutex<BTreeSet<GroupId>>,
    /// Whether those of an earlier life are on the node again.
    reopened: AtomicBool,
    births: UnboundedSender<Birth>,
    sizes: Mutex<BTreeMap<GroupId, Measured>>,
    /// Reads, and what regions' coming and going takes.
    pub reads: Blocking,
    chores: Blocking,
    pub space: Space,
}

/// Regions that have come of another one, each with its peer here.
pub struct Birth {
    parent: GroupId,
    regions: Vec<(GroupId, PeerId)>,
}

/// How large a region was found to be, and when that was.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub version: u64,
    pub size: Size,
}

/// Why a region did not come here.
#[derive(Debug, thiserror::Error)]
pub enum AdmitError {
    #[error("peer {0} of this region was here and is gone for good")]
    Retired(PeerId),
    #[error("another peer of this region, {0}, is here")]
    Other(PeerId),
    #[error("another peer of this region is being taken away, or the store has just begun")]
    NotYet,
    #[error(transparent)]
    State(#[from] MachineError),
}

impl Store {
    /// The other end of the births goes to [`Store::attend_births`].
    pub fn new(node: ManyNode, engine: Arc<RocksEngine>, incoming: PathBuf) -> (Arc<Store>, UnboundedReceiver<Birth>) {
        let (births, born) = unbounded_channel();
        let store = Store {
            node,
            engine,
            incoming,
            map: Arc::default(),
            regions: RwLock::default(),
            changing: Mutex::default(),
            going: Mutex::default(),
            reopened: AtomicBool::new(false),
            births,
            sizes: Mutex::default(),
            reads: Blocking::new(READS_MAX),
            chores: Blocking::new(CHORES_MAX),
            space: Space::default(),
        };
        (Arc::new(store), born)
    }

    /// Puts regions on the node that have come of others, for as long as the store runs. One whose parent is led here asks
    /// for votes at once.
    pub async fn attend_births(self: Arc<Self>, mut born: UnboundedReceiver<Birth>) {
        while let Some(Birth { parent, regions }) = born.recv().await {
            for (id, peer) in regions {
                let store = self.clone();
                if let Err(error) = self.chores.run(move || store.bear(id, peer)).await {
                    // It is in the engine: the next start puts it on.
                    tracing::error!(
                        target: "flaredb_raft",
                        "A region that has come of a split was not put on, region={id} why={error} code=CF8507"
                    );
                    continue;
                }
                tracing::info!(target: "flaredb_raft", "Split a region, region={parent} new_region={id} peer={peer}");
                if self.region(parent).is_some_and(|parent| parent.handle.is_leader()) {
                    self.node.campaign(id);
                }
            }
        }
    }

    fn bear(&self, id: GroupId, peer: PeerId) -> Result<(), MachineError> {
        let _one = self.changing.lock();
        // One that is going was another peer, and its records went before this one's came.
        if self.region(id).is_some() || self.going.lock().contains(&id) {
            return Ok(());
        }
        let machine = self.machine(id)?;
        self.put_on(id, peer, machine, true)
    }

    /// Measures what is led here and may have grown. `split_bytes`: what is too large.
    pub async fn measure(self: &Arc<Self>, split_bytes: u64) {
        for region in self.regions().into_iter().filter(|region| region.handle.is_leader()) {
            let (id, state) = (region.id(), region.state());
            let known = self.measured(id).filter(|known| known.version == state.version);
            let written = region.cell.written.load(Ordering::Relaxed);
            let due = known.is_none_or(|_| written >= split_bytes / MEASURED_PER_SPLIT);
            if state.version == 0 || !due {
                continue;
            }
            region.cell.written.fetch_sub(written, Ordering::Relaxed);
            let (store, version) = (self.clone(), state.version);
            match self.chores.run(move || size::measure(&*store.engine.view(), &state, split_bytes)).await {
                Ok(size) => drop(self.sizes.lock().insert(id, Measured { version, size })),
                Err(why) => {
                    tracing::warn!(target: "flaredb_storage", "A region was not measured, region={id} why={why} code=CF8508");
                }
            }
        }
    }

    pub fn measured(&self, id: GroupId) -> Option<Measured> {
        self.sizes.lock().get(&id).cloned()
    }

    /// Its data folder.
    pub fn folder(&self) -> &Path {
        self.incoming.parent().expect("it lies in the data folder")
    }

    pub fn id(&self) -> NodeId {
        self.node.identity().node
    }

    pub fn cluster(&self) -> ClusterId {
        self.node.identity().cluster
    }

    /// Puts all regions on the node that were there before, and finishes what was about to go.
    pub fn reopen(self: &Arc<Self>) -> Result<(), MachineError> {
        let view = self.engine.view();
        let (mut peers, mut stated) = (BTreeMap::new(), BTreeSet::new());
        let mut walk = view.scan(REGION, &[], None);
        while walk.valid() {
            match layout::record(walk.key()) {
                Some((region, Record::Peer)) => drop(peers.insert(region, layout::read_peer(walk.value())?)),
                Some((region, Record::State)) => drop(stated.insert(region)),
                _ => {}
            }
            walk.advance();
        }
        walk.status()?;
        drop(walk);
        drop(view);
        // Also logs without records: of what was taken away, or came of a split that a power cut undid.
        self.node.destroy_others(|region| peers.contains_key(&region));
        for region in stated.into_iter().filter(|region| !peers.contains_key(region)) {
            match self.clear(region, &machine::load(&*self.engine, region)?) {
                // The next start finds it again.
                Err(MachineError::Engine(EngineError::NoSpace(why))) => {
                    tracing::warn!(
                        target: "flaredb_storage",
                        "What a region left here was not removed, region={region} why={why} code=CF8521"
                    );
                }
                cleared => cleared?,
            }
        }
        let mut late = Vec::new();
        for (region, peer) in peers {
            match self.machine(region) {
                Err(MachineError::Engine(EngineError::NoSpace(why))) => {
                    tracing::error!(
                        target: "flaredb_storage",
                        "A received region waits to be put in place, region={region} why=no space left: {why} code=CF8522"
                    );
                    self.going.lock().insert(region);
                    late.push((region, peer));
                }
                machine => self.put_on(region, peer, machine?, false)?,
            }
        }
        self.reopened.store(true, Ordering::SeqCst);
        if !late.is_empty() {
            tokio::spawn(self.clone().put_on_late(late));
        }
        Ok(())
    }

    /// Puts regions on that were being received when the disk was full. Until there is room they are not here, and no other
    /// peers of them are.
    async fn put_on_late(self: Arc<Self>, late: Vec<(GroupId, PeerId)>) {
        for (region, peer) in late {
            loop {
                tokio::time::sleep(ROOM_LOOK_EVERY).await;
                let store = self.clone();
                let put = move || store.machine(region).and_then(|machine| store.put_on(region, peer, machine, false));
                match self.chores.run(put).await {
                    Ok(()) => {
                        self.going.lock().remove(&region);
                        break;
                    }
                    Err(MachineError::Engine(EngineError::NoSpace(_))) => {}
                    Err(why) => {
                        tracing::error!(
                            target: "flaredb_storage",
                            "A received region was not put in place, region={region} why={why} code=CF8523"
                        );
                        break;
                    }
                }
            }
        }
    }

    /// The first region of a cluster begins here. Nothing is done if it is here already.
    pub fn found(&self, region: &pb::Region) -> Result<(), AdmitError> {
        let _one = self.changing.lock();
        let id = GroupId(region.id);
        let own = region.peers.iter().find(|peer| peer.store_id == self.id().0);
        let peer = PeerId(own.expect("it was asked to found it").id);
        if self.region(id).is_some() {
            return Ok(());
        }
        let mut machine = self.machine(id)?;
        machine.set_range(region.start.clone(), region.end.clone());
        let member = Member { node: self.id(), peer, ..Member::default() };
        let membership = Membership::founding(self.cluster(), vec![member]);
        machine.found(Mark { index: 1, term: 1, hash: base::hash::START }, membership.encode().into())?;
        self.keep_peer(id, peer)?;
        self.put_on(id, peer, machine, true)?;
        Ok(())
    }

    /// A peer is about to be added to a region by its leader, which will fill it. Asking again does no harm.
    pub async fn admit(self: &Arc<Self>, id: GroupId, peer: PeerId) -> Result<(), AdmitError> {
        let store = self.clone();
        self.chores.run(move || store.take_in(id, peer)).await
    }

    fn take_in(&self, id: GroupId, peer: PeerId) -> Result<(), AdmitError> {
        let _one = self.changing.lock();
        if !self.reopened.load(Ordering::SeqCst) || self.going.lock().contains(&id) {
            return Err(AdmitError::NotYet);
        }
        if let Some(region) = self.region(id) {
            return if region.peer == peer { Ok(()) } else { Err(AdmitError::Other(region.peer)) };
        }
        let retired = self.engine.get(REGION, &layout::retired_key(id)).map_err(MachineError::from)?;
        let retired = retired.map(|bytes| layout::read_peer(&bytes)).transpose()?;
        if retired.is_some_and(|retired| peer <= retired) {
            return Err(AdmitError::Retired(peer));
        }
        self.keep_peer(id, peer)?;
        let put = self.machine(id).and_then(|machine| self.put_on(id, peer, machine, true));
        if let Err(why) = put {
            // A peer that is not here must not be found at the next start.
            let mut batch = WriteBatch::new();
            batch.delete(REGION, &layout::peer_key(id));
            self.engine.write(&batch).and_then(|()| self.engine.flush()).map_err(MachineError::from)?;
            return Err(why.into());
        }
        Ok(())
    }

    /// A peer that is no member of its region any more goes, with its pairs, and never comes back.
    pub async fn retire(self: &Arc<Self>, id: GroupId, peer: PeerId) -> Result<(), MachineError> {
        let Some(region) = self.region(id).filter(|region| region.peer == peer) else { return Ok(()) };
        if !self.going.lock().insert(id) {
            return Ok(());
        }
        let gone = self.take_away(id, region).await;
        self.going.lock().remove(&id);
        gone
    }

    async fn take_away(self: &Arc<Self>, id: GroupId, region: Region) -> Result<(), MachineError> {
        let peer = region.peer;
        // Decided first: a start in the middle of it goes on with it.
        let mut batch = WriteBatch::new();
        batch.delete(REGION, &layout::peer_key(id));
        batch.put(REGION, &layout::retired_key(id), &peer.0.to_le_bytes());
        let engine = self.engine.clone();
        self.chores.run(move || engine.write(&batch).and_then(|()| engine.flush()).map_err(MachineError::from)).await?;
        self.regions.write().remove(&id);
        self.sizes.lock().remove(&id);
        self.node.destroy(id);
        let Region { cell, handle, .. } = region;
        drop(handle);
        // The machine has the other one.
        while Arc::strong_count(&cell) > 1 {
            tokio::time::sleep(GONE_LOOK_EVERY).await;
        }
        let store = self.clone();
        let cleared = move || {
            let _one = store.changing.lock();
            let state = cell.set(Arc::default());
            store.map.place(id, &state, &RegionState::default());
            store.clear(id, &state)
        };
        self.chores.run(cleared).await?;
        tracing::info!(target: "flaredb_raft", "Removed a region's peer from this store, region={id} peer={peer}");
        Ok(())
    }

    pub fn region(&self, id: GroupId) -> Option<Region> {
        self.regions.read().get(&id).cloned()
    }

    pub fn region_at(&self, key: &[u8]) -> Option<Region> {
        self.region(self.map.find(key)?)
    }

    pub fn regions(&self) -> Vec<Region> {
        self.regions.read().values().cloned().collect()
    }

    /// Takes over where the other stores are.
    pub fn learn(&self, stores: &[pb::Store]) {
        let known = |store: &&pb::Store| store.state() != pb::StoreState::Tombstone && !store.peer_url.is_empty();
        for store in stores.iter().filter(known) {
            self.node.set_address(NodeId(store.id), vec![store.peer_url.clone()]);
        }
    }

    /// Reads a raw key as it lies here; whether that may be answered is the caller's business.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        let key = layout::raw_key(key);
        if let Some(found) = self.engine.get_in_memory(RAW, &key)? {
            return Ok(found);
        }
        let engine = self.engine.clone();
        self.reads.run(move || engine.get(RAW, &key).map_err(MachineError::from)).await
    }

    /// Removes what is left of a region that is gone. Its range may be of long ago: what lies in another region by now is
    /// that one's.
    fn clear(&self, id: GroupId, state: &RegionState) -> Result<(), MachineError> {
        snapshot::forget(&self.incoming, id);
        let mut batch = WriteBatch::new();
        if state.version > 0 {
            let others = overlap::others(&*self.engine.view(), id)?;
            for (start, end) in overlap::without(state, &others) {
                batch.delete_range(RAW, &layout::raw_key(&start), &layout::raw_end(&end));
            }
        }
        batch.delete(REGION, &layout::state_key(id));
        batch.delete(REGION, &layout::membership_key(id));
        self.engine.write(&batch)?;
        Ok(self.engine.flush()?)
    }

    fn machine(&self, id: GroupId) -> Result<RegionMachine, MachineError> {
        let engine: Arc<dyn Engine> = self.engine.clone();
        let births = self.births.clone();
        let split = move |regions| {
            // Whoever listens stops with the store.
            let _ = births.send(Birth { parent: id, regions });
        };
        RegionMachine::open(engine, self.incoming.clone(), id, self.map.clone(), Arc::new(split))
    }

    fn keep_peer(&self, id: GroupId, peer: PeerId) -> Result<(), MachineError> {
        let mut batch = WriteBatch::new();
        batch.put(REGION, &layout::peer_key(id), &peer.0.to_le_bytes());
        self.engine.write(&batch)?;
        Ok(self.engine.flush()?)
    }

    fn put_on(&self, id: GroupId, peer: PeerId, machine: RegionMachine, fresh: bool) -> Result<(), MachineError> {
        let membership = Membership::decode(&machine.membership())
            .ok_or_else(|| MachineError::Damaged("the stored membership of a region".to_owned()))?;
        let cell = machine.cell();
        let create = CreateGroup { group: id, peer, mark: machine.mark(), membership, fresh };
        let handle = self.node.create(create, Box::new(machine))?;
        self.regions.write().insert(id, Region { handle, peer, cell });
        Ok(())
    }
}
