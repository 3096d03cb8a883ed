//! A store: its engine, its node with many groups, and the regions on it.
//!
//! | question | answered by |
//! |---|---|
//! | which region has this key | [`Store::region_at`] |
//! | how does a region come here, and go | [`Store::begin`], [`Store::admit`], [`Store::retire`] |
//! | on what does it stand | [`node::ground`]: its node, in a process; a simulated one elsewhere |
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
use node::{Controls, Ground, Replicated};
use parking_lot::{Mutex, MutexGuard, RwLock};
use proto::placement as pb;
use storage::{Engine, EngineError, WriteBatch};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::alone::Words;
use crate::blocking::{Blocking, Full, Line};
use crate::load::Load;
use crate::merge_stats::MergeStats;
use crate::region::layout::{self, RAW, REGION, Record};
use crate::region::machine::{self, Happened};
use crate::region::overlap;
use crate::region::size::{self, Size};
use crate::region::{RangeMap, RegionCell, RegionMachine, RegionState, snapshot};
use crate::space::Space;

/// A region is measured again when this part of what is too large was written.
const MEASURED_PER_SPLIT: u64 = 16;
/// How often it is looked whether a retired region's machine is gone.
const GONE_LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often a region that the disk had no room for is tried again.
const ROOM_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Reads that are at the disk at a time, and that wait for that.
const READS_MAX: usize = 64;
const READS_WAITING_MAX: usize = 4096;
/// What scans may bring together at a time, and how many wait for room.
const SCANS_KIB_MAX: usize = 256 << 10;
const SCANS_WAITING_MAX: usize = 1024;
/// Regions that come or go at a time.
const CHORES_MAX: usize = 4;
/// When the engine could not be flushed, it is tried again after this.
const FLUSH_RETRY: Duration = Duration::from_secs(5);

/// A region on this store.
#[derive(Clone)]
pub struct Region {
    pub handle: Arc<dyn Replicated>,
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
    pub node: Arc<dyn Ground>,
    pub engine: Arc<dyn Engine>,
    incoming: PathBuf,
    map: Arc<RangeMap>,
    regions: RwLock<BTreeMap<GroupId, Region>>,
    /// Regions come and go one at a time.
    changing: Mutex<()>,
    /// Regions that are being taken away: none of them comes before that is done.
    going: Mutex<BTreeSet<GroupId>>,
    /// Whether those of an earlier life are on the node again.
    reopened: AtomicBool,
    news: UnboundedSender<News>,
    controls: Arc<dyn Controls>,
    sizes: Mutex<BTreeMap<GroupId, Arc<Measured>>>,
    pub load: Load,
    /// Reads; and before the disk, scans that wait until there is memory for what they bring. Beside them, what regions' coming
    /// and going takes.
    pub reads: Blocking,
    pub scans: Line,
    pub(crate) chores: Blocking,
    /// Stores that are not gone for good, as the placement driver last said.
    stores: Mutex<BTreeSet<NodeId>>,
    /// There is a merge to be attended to ([`crate::merging`]).
    pub merges: Notify,
    pub merge_stats: MergeStats,
    pub space: Space,
    pub(crate) words: Words,
    /// Why the placement driver does not want this store any more.
    refused: Mutex<Option<String>>,
}

/// What a region's machine has done that the store is to follow up.
pub struct News {
    region: GroupId,
    what: Happened,
}

/// How large a region was found to be, and when that was.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    pub version: u64,
    /// What was too large then.
    split_bytes: u64,
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

/// Why a key was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("as many reads wait as may, try again later")]
    Busy,
    #[error(transparent)]
    State(#[from] MachineError),
}

impl Measured {
    /// Whether so much was written since that the answer may be another one.
    pub fn is_outdated(&self, region: &Region, split_bytes: u64) -> bool {
        let written = region.cell.written.load(Ordering::Relaxed);
        self.split_bytes != split_bytes || written >= split_bytes / MEASURED_PER_SPLIT
    }
}

impl From<Full> for ReadError {
    fn from(_: Full) -> ReadError {
        ReadError::Busy
    }
}

impl Store {
    /// The other end of the news goes to [`Store::begin`].
    pub fn new(
        node: Arc<dyn Ground>,
        engine: Arc<dyn Engine>,
        incoming: PathBuf,
    ) -> (Arc<Store>, UnboundedReceiver<News>) {
        let (news, heard) = unbounded_channel();
        let lines = [Line::new(READS_MAX, READS_WAITING_MAX), Line::new(CHORES_MAX, usize::MAX)];
        let [reads, chores] = lines.map(|line| {
            let node = node.clone();
            Blocking::new(line, move |work| node.aside(work))
        });
        let store = Store {
            controls: node.controls(),
            node,
            engine,
            incoming,
            map: Arc::default(),
            regions: RwLock::default(),
            changing: Mutex::default(),
            going: Mutex::default(),
            reopened: AtomicBool::new(false),
            news,
            sizes: Mutex::default(),
            load: Load::default(),
            reads,
            scans: Line::new(SCANS_KIB_MAX, SCANS_WAITING_MAX),
            chores,
            stores: Mutex::default(),
            merges: Notify::new(),
            merge_stats: MergeStats::default(),
            space: Space::default(),
            words: Words::default(),
            refused: Mutex::default(),
        };
        (Arc::new(store), heard)
    }

    /// What a store does first once its node runs: puts on what was here before, and begins the cluster's first region if it
    /// was asked to.
    pub fn begin(
        self: &Arc<Self>,
        heard: UnboundedReceiver<News>,
        found: Option<&pb::Region>,
    ) -> Result<(), AdmitError> {
        self.reopen()?;
        self.node.spawn(Box::pin(self.clone().attend(heard)));
        if let Some(region) = found {
            self.found(region)?;
        }
        Ok(())
    }

    /// Puts regions on the node that have come of others, and takes away those that have become part of others, for as long
    /// as the store runs.
    async fn attend(self: Arc<Self>, mut heard: UnboundedReceiver<News>) {
        while let Some(News { region, what }) = heard.recv().await {
            match what {
                Happened::Born(regions) => self.put_on_born(region, regions).await,
                Happened::Taken { source, peer } => {
                    tracing::info!(target: "flaredb_raft", "Merged regions, region={source} into={region} peer={peer}");
                    self.node.spawn(Box::pin(self.clone().bury(source, peer)));
                }
                Happened::Frozen(_) | Happened::Behind { .. } => unreachable!("the node was told, not the store"),
            }
        }
    }

    /// A region whose parent is led here asks for votes at once.
    async fn put_on_born(self: &Arc<Self>, parent: GroupId, regions: Vec<(GroupId, PeerId)>) {
        // What they come of is durable before anything of them is acknowledged: a start takes a log without records for one of
        // what is gone.
        self.until_on_disk(parent).await;
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

    /// Flushes what a split or a merge of this region has written, however long that takes.
    async fn until_on_disk(&self, region: GroupId) {
        loop {
            let engine = self.engine.clone();
            let flushed = self.chores.run(move || engine.flush().map_err(MachineError::from)).await;
            let Err(error) = flushed else { return };
            tracing::warn!(
                target: "flaredb_storage",
                "A split or a merge is not on disk yet, and what comes of it waits, region={region} why={error} code=CF8510"
            );
            self.node.sleep(FLUSH_RETRY).await;
        }
    }

    /// Takes away what is left of a region's peer that has become part of another one: its log and its place on the node. Not
    /// before that is on disk: a power cut brings the region back as it was, and it needs its log then.
    async fn bury(self: Arc<Self>, id: GroupId, peer: PeerId) {
        let Some(region) = self.region(id).filter(|region| region.peer == peer) else { return };
        if !self.going.lock().insert(id) {
            // It is taken away already, its range being nobody's business there any more.
            return;
        }
        self.regions.write().remove(&id);
        self.sizes.lock().remove(&id);
        self.until_on_disk(id).await;
        self.node.destroy(id);
        let Region { cell, handle, .. } = region;
        drop(handle);
        while Arc::strong_count(&cell) > 1 {
            self.node.sleep(GONE_LOOK_EVERY).await;
        }
        snapshot::forget(&self.incoming, id);
        self.going.lock().remove(&id);
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

    /// Measures regions. `split_bytes`: what is too large.
    pub async fn measure(self: &Arc<Self>, regions: Vec<Region>, split_bytes: u64) {
        for region in regions {
            let (id, state) = (region.id(), region.state());
            let written = region.cell.written.load(Ordering::Relaxed);
            region.cell.written.fetch_sub(written, Ordering::Relaxed);
            let (store, version) = (self.clone(), state.version);
            match self.chores.run(move || size::measure(&*store.engine.view(), &state, split_bytes)).await {
                Ok(size) => {
                    let measured = Arc::new(Measured { version, split_bytes, size });
                    // One that went meanwhile is not to be remembered.
                    if self.region(id).is_some() {
                        self.sizes.lock().insert(id, measured);
                    }
                }
                Err(why) => {
                    tracing::warn!(target: "flaredb_storage", "A region was not measured, region={id} why={why} code=CF8508");
                }
            }
        }
    }

    /// By region, as last measured.
    pub fn sizes(&self) -> MutexGuard<'_, BTreeMap<GroupId, Arc<Measured>>> {
        self.sizes.lock()
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
    fn reopen(self: &Arc<Self>) -> Result<(), MachineError> {
        // A snapshot may take the place of another region's peer.
        for region in self.on_disk()?.0.into_keys() {
            match snapshot::roll_forward(&*self.engine, &self.incoming, region) {
                // It waits, with its region, until there is room.
                Err(MachineError::Engine(EngineError::NoSpace(_))) => {}
                rolled => drop(rolled?),
            }
        }
        let (peers, stated) = self.on_disk()?;
        // Also logs without records: of what was taken away.
        self.node.destroy_others(&|region| peers.contains_key(&region));
        snapshot::forget_others(&self.incoming, |region| peers.contains_key(&region))?;
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
        // All of them are open before the first one applies anything: it may take another one in.
        let (mut machines, mut late) = (Vec::new(), Vec::new());
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
                machine => machines.push((region, peer, machine?)),
            }
        }
        for (region, peer, machine) in machines {
            self.put_on(region, peer, machine, false)?;
        }
        self.reopened.store(true, Ordering::SeqCst);
        if !late.is_empty() {
            self.node.spawn(Box::pin(self.clone().put_on_late(late)));
        }
        Ok(())
    }

    /// The peers that are here, and the regions of which there is a state.
    fn on_disk(&self) -> Result<(BTreeMap<GroupId, PeerId>, BTreeSet<GroupId>), MachineError> {
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
        Ok((peers, stated))
    }

    /// Puts regions on that were being received when the disk was full. Until there is room they are not here, and no other
    /// peers of them are.
    async fn put_on_late(self: Arc<Self>, late: Vec<(GroupId, PeerId)>) {
        for (region, peer) in late {
            loop {
                self.node.sleep(ROOM_LOOK_EVERY).await;
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
        // It began here long ago, and is part of another one or elsewhere since: the placement driver has not heard of it.
        let retired = self.engine.get(REGION, &layout::retired_key(id)).map_err(MachineError::from)?;
        if retired.map(|bytes| layout::read_peer(&bytes)).transpose()?.is_some_and(|retired| peer <= retired) {
            return Ok(());
        }
        let mut machine = self.machine(id)?;
        machine.set_range(region.start.clone(), region.end.clone());
        let member = Member { node: self.id(), peer, ..Member::default() };
        let membership = Membership::founding(self.cluster(), vec![member]);
        machine.found(Mark { index: 1, term: 1, hash: base::hash::START }, membership.encode().into())?;
        self.keep_peer(id, peer)?;
        self.put_on(id, peer, machine, true)?;
        tracing::info!(target: "flaredb_raft", "Founded the first region of the cluster, region={id}");
        Ok(())
    }

    /// A peer is about to be added to a region by its leader, which will fill it. Asking again does no harm.
    pub async fn admit(self: &Arc<Self>, id: GroupId, peer: PeerId) -> Result<(), AdmitError> {
        let store = self.clone();
        self.chores.run(move || store.take_in(id, peer)).await
    }

    fn take_in(&self, id: GroupId, peer: PeerId) -> Result<(), AdmitError> {
        let _one = self.changing.lock();
        if !self.is_open() || self.going.lock().contains(&id) {
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
            self.node.sleep(GONE_LOOK_EVERY).await;
        }
        let store = self.clone();
        let cleared = move || {
            let _one = store.changing.lock();
            let shown = cell.set(Arc::default());
            store.map.place(id, &shown, &RegionState::default());
            // Not as it was shown: one that lacks something shows nothing, and one that became part of another has nothing.
            store.clear(id, &machine::load(&*store.engine, id)?)
        };
        self.chores.run(cleared).await?;
        tracing::info!(target: "flaredb_raft", "Removed a region's peer from this store, region={id} peer={peer}");
        Ok(())
    }

    /// Whether all regions of an earlier life are on the node again.
    pub fn is_open(&self) -> bool {
        self.reopened.load(Ordering::SeqCst)
    }

    /// Whether nothing is left of a peer here that could come back, not even after a power cut.
    pub fn is_gone(&self, id: GroupId, peer: PeerId) -> Result<bool, MachineError> {
        let is_peer = |bytes: Bytes| Ok::<bool, MachineError>(layout::read_peer(&bytes)? == peer);
        if self.going.lock().contains(&id) {
            return Ok(false);
        }
        let durable = self.engine.durable_get(REGION, &layout::peer_key(id))?.map(is_peer).transpose()?;
        let present = self.engine.get(REGION, &layout::peer_key(id))?.map(is_peer).transpose()?;
        Ok(durable != Some(true) && present != Some(true) && self.region(id).is_none_or(|region| region.peer != peer))
    }

    /// Why the placement driver does not want this store any more, as its last answer was; the process may be stopped then.
    pub fn refused(&self) -> Option<String> {
        self.refused.lock().clone()
    }

    pub fn set_refused(&self, why: Option<String>) {
        *self.refused.lock() = why;
    }

    /// Whether a store may come back some day.
    pub fn may_come_back(&self, node: NodeId) -> bool {
        let stores = self.stores.lock();
        stores.is_empty() || stores.contains(&node)
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

    /// Looks at all regions, which neither come nor go meanwhile: in no time, and without asking the store for anything.
    pub fn walk(&self, look: impl FnMut(&Region)) {
        self.regions.read().values().for_each(look);
    }

    /// Takes over where the other stores are.
    pub fn learn(&self, stores: &[pb::Store]) {
        let stores = stores.iter().filter(|store| store.state() != pb::StoreState::Tombstone);
        // One that another has displaced is nowhere to be found, and may come back all the same.
        for store in stores.clone().filter(|store| !store.peer_url.is_empty()) {
            self.node.set_address(NodeId(store.id), vec![store.peer_url.clone()]);
        }
        *self.stores.lock() = stores.map(|store| NodeId(store.id)).collect();
    }

    /// Reads a raw key as it lies here; whether that may be answered is the caller's business.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let key = layout::raw_key(key);
        if let Some(found) = self.engine.get_in_memory(RAW, &key).map_err(MachineError::from)? {
            return Ok(found);
        }
        let engine = self.engine.clone();
        self.reads.run_if_room(move || Ok(engine.get(RAW, &key).map_err(MachineError::from)?)).await
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
        batch.delete(REGION, &layout::lacking_key(id));
        self.engine.write(&batch)?;
        Ok(self.engine.flush()?)
    }

    fn machine(&self, id: GroupId) -> Result<RegionMachine, MachineError> {
        let (news, controls) = (self.news.clone(), self.controls.clone());
        let sink = move |happened| match happened {
            Happened::Frozen(frozen) => controls.hold_changes(id, frozen),
            Happened::Behind { source, index, term } => controls.vouch(source, index, term),
            // Whoever listens stops with the store.
            what => drop(news.send(News { region: id, what })),
        };
        RegionMachine::open(self.engine.clone(), self.incoming.clone(), id, self.map.clone(), Arc::new(sink))
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
        let create = CreateGroup { group: id, peer, mark: machine.mark(), membership: membership.into(), fresh };
        let frozen = cell.state().frozen.is_some();
        let handle = self.node.create(create, Box::new(machine), frozen)?;
        self.regions.write().insert(id, Region { handle, peer, cell });
        Ok(())
    }
}
