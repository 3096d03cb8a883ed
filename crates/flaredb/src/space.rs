//! The room on a store's disk.
//!
//! Two lines are drawn through the disk's free bytes ([`node::disk::Room`]); the upper one is a setting.
//!
//! | the disk | what happens |
//! |---|---|
//! | full (below the upper line) | regions led here are handed to stores that have room; of those that stay no puts are taken, by whichever store they are asked for; deletes and reads go on, and so do Raft and moving away; no region is received |
//! | next to no room (below the lower line) | regions of which other stores with room have a majority are held here: they take nothing new, and catch up later |
//! | room again | all of that ends by itself |
//!
//! A store that becomes full writes out what it has in memory while there is room for it, so that its log can go; and deletions
//! from then on, which in memory give no room back. ([`fit`] sees to it that they have room.)
//!
//! The placement driver hears of it with each heartbeat: it sends such a store no replicas, and moves away what it holds. Its
//! answers say which other stores are full.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base::{GroupId, NodeId};
use consensus::{MachineError, Membership, Role};
use node::disk::{Ballast, Room, upper_line};
use node::many::ManyNode;
use parking_lot::Mutex;

use crate::config::Settings;
use crate::store::{Region, Store};

const TICK: Duration = Duration::from_millis(50);
/// Between two attempts to hand over, and how many regions each of them is about.
const HAND_OVER_EVERY: Duration = Duration::from_secs(1);
const HANDED_AT_ONCE: usize = 64;
/// How often a full store looks whether there are deletions to be written out.
const WRITE_OUT_EVERY: Duration = Duration::from_secs(5);
/// A merge of those that are not merged yet takes as much room as these, and what they overlap.
pub const TABLES_IN_RESERVE: u64 = 8;
const TABLE_BYTES_MIN: u64 = 1 << 20;
const LOG_PART_OF_DISK: u64 = 8;
const LOG_BYTES_MIN: u64 = 16 << 20;
/// So many of these looks there are at most before a few are enough.
const FEW_AFTER_MAX: u32 = 12;
const DELETIONS_WORTH_A_TABLE: u64 = 100;
/// What is written meanwhile, by the log for one.
const SPARE_BYTES: u64 = 2 << 20;
/// What the placement driver said of other stores counts for so long.
const WORD_COUNTS: Duration = Duration::from_secs(10);
/// How long a put waits for a full leader to hand over.
const PUT_WAITS: Duration = Duration::from_secs(3);
const PUT_LOOKS_EVERY: Duration = Duration::from_millis(50);

/// Whether deletions in memory are worth a table. Many always are. A few may give as much room back, or next to none: they are at
/// the first look, and where few come again and again after more and more looks.
struct Worth {
    looks: u32,
    few_after: u32,
}

impl Default for Worth {
    fn default() -> Worth {
        Worth { looks: 0, few_after: 1 }
    }
}

impl Worth {
    fn look(&mut self, deletions: u64) -> bool {
        self.looks += 1;
        let many = deletions >= DELETIONS_WORTH_A_TABLE;
        if !many && (deletions == 0 || self.looks < self.few_after) {
            return false;
        }
        let few_after = if many { 1 } else { (self.few_after * 2).min(FEW_AFTER_MAX) };
        *self = Worth { looks: 0, few_after };
        true
    }
}

/// What a store knows of full disks.
#[derive(Default)]
pub struct Space {
    full: AtomicBool,
    /// Since the disk became full, what was in memory then has not been written out.
    unwritten: AtomicBool,
    worth: Mutex<Worth>,
    /// The placement driver's last word on all stores, and when that was.
    stores: Mutex<Option<(Instant, BTreeSet<NodeId>)>>,
    /// Regions that take nothing new here.
    held: Mutex<BTreeSet<GroupId>>,
}

impl Space {
    /// Whether this store's own disk is.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Whether a region's replica here takes nothing new, and so answers nothing that needs it.
    pub fn is_held(&self, region: GroupId) -> bool {
        self.held.lock().contains(&region)
    }

    /// The placement driver has said which are.
    pub fn learn(&self, stores: &[u64]) {
        *self.stores.lock() = Some((Instant::now(), stores.iter().copied().map(NodeId).collect()));
    }

    /// Those that are, this one left out; `None`: the placement driver has not been heard lately.
    fn others(&self) -> Option<BTreeSet<NodeId>> {
        let stores = self.stores.lock();
        let (at, full) = stores.as_ref()?;
        (at.elapsed() < WORD_COUNTS).then(|| full.clone())
    }
}

/// What is chosen for any disk, made smaller for a small one: tables, so that [`TABLES_IN_RESERVE`] of them find room when it is full;
/// and the log.
pub fn fit(settings: &mut Settings) {
    let folder = std::path::absolute(&settings.node.data_dir).unwrap_or_default();
    // It may be about to be made.
    let found = folder.ancestors().find_map(node::disk::room).filter(|(_, total)| *total > 0);
    let Some((_, total)) = found else { return };
    let table = (upper_line(total, u64::MAX) / TABLES_IN_RESERVE).max(TABLE_BYTES_MIN);
    let log = (total / LOG_PART_OF_DISK).max(LOG_BYTES_MIN);
    let (storage, host) = (&mut settings.storage, &mut settings.node.host);
    let asked = (storage.write_buffer_size, storage.file_size, host.log_bytes_kept_all);
    storage.write_buffer_size = storage.write_buffer_size.min(usize::try_from(table).unwrap_or(usize::MAX));
    storage.file_size = storage.file_size.min(table);
    host.log_bytes_kept_all = host.log_bytes_kept_all.min(log);
    if asked != (storage.write_buffer_size, storage.file_size, host.log_bytes_kept_all) {
        tracing::info!(
            target: "flaredb_storage",
            "The disk is small, and what is kept on it made smaller, disk={total} write_buffer_size={} table_size={} log_size={}",
            storage.write_buffer_size,
            storage.file_size,
            host.log_bytes_kept_all
        );
    }
}

/// Whether stores with room, other than `own`, are a majority of the members that vote.
fn is_spared(membership: &Membership, own: NodeId, full: &BTreeSet<NodeId>) -> bool {
    let roomy = |node: NodeId| node != own && !full.contains(&node);
    let voters = membership.voters.iter().filter_map(|peer| membership.node_of(*peer));
    voters.filter(|node| roomy(*node)).count() > membership.voters.len() / 2
}

/// Watches the disk, and what was found damaged on it, for as long as the store runs. `reserve_bytes`: the upper line.
pub async fn keep_room(store: Arc<Store>, node: Arc<ManyNode>, folder: PathBuf, reserve_bytes: u64) {
    let ballast = Ballast::new(&folder);
    let mut room = Room::default();
    let mut handed: Option<Instant> = None;
    let mut looked = Instant::now();
    let mut writing = tokio::spawn(std::future::ready(()));
    loop {
        if node.ends_if_damaged() {
            return;
        }
        if let Some((free, total)) = node::disk::room(&folder) {
            room.update(free, total, reserve_bytes);
            ballast.adjust(free, total, reserve_bytes);
        }
        node.refuse_snapshots(room.full);
        let was = store.space.full.swap(room.full, Ordering::Relaxed);
        if room.full && !was {
            tracing::error!(
                target: "flaredb_storage",
                "Disk full, this store takes no puts until there is room again code=CF8530"
            );
        } else if !room.full && was {
            tracing::info!(target: "flaredb_storage", "Disk has room again, puts are taken");
        }
        if room.full && handed.is_none_or(|at| at.elapsed() >= HAND_OVER_EVERY) {
            handed = Some(Instant::now());
            store.hand_over();
            if let Some(path) = node.drop_some_lost() {
                let path = path.display();
                tracing::warn!(
                    target: "flaredb_storage",
                    "Disk full, a part of what was given up as damaged is removed, path={path} code=CF8531"
                );
            }
        }
        if !was {
            store.space.unwritten.store(room.full, Ordering::Relaxed);
            *store.space.worth.lock() = Worth::default();
        }
        let due = !was || looked.elapsed() >= WRITE_OUT_EVERY;
        if room.full && due && writing.is_finished() {
            looked = Instant::now();
            writing = tokio::spawn(store.clone().write_out(folder.clone()));
        }
        store.hold(room.critical);
        tokio::time::sleep(TICK).await;
    }
}

impl Store {
    /// Waits until a region's leader has room for a put. The error: the store that has none.
    pub async fn wait_for_room(&self, region: &Region) -> Result<(), NodeId> {
        let began = Instant::now();
        loop {
            let leader = region.handle.status().leader_node;
            let is_own = leader == self.id();
            let full = if is_own {
                self.space.is_full()
            } else {
                self.space.others().is_some_and(|full| full.contains(&leader))
            };
            if !full {
                return Ok(());
            }
            // One of several may yet hand over.
            let others = self.space.others().unwrap_or_default();
            let hopeless = !is_spared(&region.handle.membership(), leader, &others);
            if hopeless || began.elapsed() >= PUT_WAITS {
                return Err(leader);
            }
            self.node.sleep(PUT_LOOKS_EVERY).await;
        }
    }

    fn hand_over(&self) {
        let full = self.space.others().unwrap_or_default();
        let mut led = Vec::new();
        self.walk(|region| led.extend(region.handle.is_leader().then(|| region.clone())));
        let spared = led.into_iter().filter_map(|region| {
            let membership = region.handle.membership();
            let status = region.handle.status();
            let mut ready =
                status.followers.iter().filter(|(peer, _, heard)| *heard && membership.voters.contains(peer));
            let to = ready.find_map(|(peer, ..)| membership.node_of(*peer).filter(|node| !full.contains(node)));
            to.map(|to| (region, to))
        });
        for (region, to) in spared.take(HANDED_AT_ONCE) {
            // What does not come about is tried again.
            drop(tokio::spawn(region.handle.transfer(Some(to))));
        }
    }

    /// Writes out what is in memory, once after the disk has become full, then when there are deletions among it that are worth it
    /// ([`Worth`]). Only where it fits: an engine that fails to write takes nothing any more until it has recovered.
    async fn write_out(self: Arc<Self>, folder: PathBuf) {
        let store = self.clone();
        let written = self.chores.run(move || {
            let stats = store.engine.stats();
            let free = node::disk::room(&folder).map_or(0, |(free, _)| free);
            if stats.memtable_bytes + SPARE_BYTES > free {
                return Ok(());
            }
            let worth_it = store.space.worth.lock().look(stats.deletions_in_memory);
            if worth_it || store.space.unwritten.load(Ordering::Relaxed) {
                store.engine.flush().map_err(MachineError::from)?;
                store.space.unwritten.store(false, Ordering::Relaxed);
            }
            Ok::<(), MachineError>(())
        });
        if let Err(why) = written.await {
            tracing::warn!(target: "flaredb_storage", "Disk full, memory cannot be written out, why={why} code=CF8532");
        }
    }

    /// Keeps those regions held that others can do without this store's disk.
    fn hold(&self, critical: bool) {
        let mut held = self.space.held.lock();
        if !critical && held.is_empty() {
            return;
        }
        let full = self.space.others().filter(|_| critical);
        let spared = |region: &Region| {
            full.as_ref().is_some_and(|full| is_spared(&region.handle.membership(), self.id(), full))
                && region.handle.status().role != Role::Leader
        };
        for region in self.regions() {
            match (spared(&region), held.contains(&region.id())) {
                (true, false) => drop(held.insert(region.id())),
                (false, true) => drop(held.remove(&region.id())),
                _ => continue,
            }
            region.handle.hold_group(held.contains(&region.id()));
        }
        held.retain(|id| self.region(*id).is_some());
    }
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, PeerId};
    use consensus::Member;

    use super::*;

    #[test]
    fn a_region_is_held_where_others_with_room_are_a_majority() {
        let member = |node| Member { node: NodeId(node), peer: PeerId(100 + node), ..Member::default() };
        for (voters, full, expected) in [
            (1, &[][..], false),
            (2, &[], false),
            (3, &[], true),
            (3, &[2], false),
            (5, &[2], true),
            (5, &[2, 3], false),
        ] {
            let membership = Membership::founding(ClusterId(1), (1..=voters).map(member).collect());
            let full = full.iter().copied().map(NodeId).collect();
            assert_eq!(is_spared(&membership, NodeId(1), &full), expected, "{voters} voters, full: {full:?}");
        }
    }

    #[test]
    fn a_few_deletions_are_written_out_soon_and_then_more_rarely() {
        let mut worth = Worth::default();
        let mut at = |deletions: &dyn Fn(u32) -> u64, looks: u32| {
            (0..looks).filter(|look| worth.look(deletions(*look))).collect::<Vec<_>>()
        };
        assert_eq!(at(&|_| 0, 20), [0; 0]);
        assert_eq!(at(&|_| 74, 30), [0, 2, 6, 14, 26]);
        assert_eq!(at(&|look| if look == 1 { 100 } else { 0 }, 3), [1], "many are at once");
        assert_eq!(at(&|_| 1, 3), [0, 2], "and a few soon after them");
    }

    #[test]
    fn nobody_is_taken_for_full_on_old_word_or_none() {
        let space = Space::default();
        assert_eq!(space.others(), None);
        space.learn(&[3]);
        assert_eq!(space.others(), Some(BTreeSet::from([NodeId(3)])));
        let old = Instant::now().checked_sub(WORD_COUNTS);
        if let (Some(old), Some((at, _))) = (old, &mut *space.stores.lock()) {
            *at = old;
        }
        assert_eq!(space.others(), None);
    }
}
