//! What there is once this node belongs to a cluster: the state machine's read side, the watch hub and the lease clock.
//!
//! The state machine itself goes to the applier; here is what the API sees of it. [`Telling`] stands between the two: it
//! passes what the machine publishes to the hub and to the lessor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use base::{ClusterId, NodeId};
use consensus::{MachineError, StateMachine};
use parking_lot::Mutex;
use storage::Engine;
use storage::rocks::{RocksEngine, RocksOptions};

use crate::event::{EventSink, LeaseChange, RevisionEvents};
use crate::lessor::{Lessor, LessorOptions};
use crate::machine::{Identity, Machine, layout};
use crate::read::Reader;
use crate::restore;
use crate::watch::{WatchHub, WatchOptions};

/// Empty until the node belongs to a cluster.
#[derive(Default)]
pub struct Stores(ArcSwapOption<Store>);

impl Stores {
    pub fn get(&self) -> Option<Arc<Store>> {
        self.0.load_full()
    }

    /// Lets go of the store; with the machine gone too, its files are closed.
    pub fn close(&self) {
        self.0.store(None);
    }
}

pub struct Store {
    pub reader: Reader,
    pub hub: Arc<WatchHub>,
    pub lessor: Arc<Mutex<Lessor>>,
    pub engine: Arc<RocksEngine>,
    reclaiming: Arc<AtomicBool>,
}

/// Opens the state machine in a data folder and makes its read side available in `stores`. Unless `keep`, what the
/// folder holds goes first.
pub fn open(
    dir: &std::path::Path,
    options: &RocksOptions,
    lessor: &LessorOptions,
    identity: (ClusterId, NodeId),
    keep: bool,
    stores: &Stores,
) -> Result<Box<dyn StateMachine>, MachineError> {
    let engine = RocksEngine::open(dir, &layout::FAMILIES, options)?;
    if !keep {
        restore::clear(&engine)?;
    }
    let engine = Arc::new(engine);
    let (cluster, member) = identity;
    let hub = WatchHub::new(WatchOptions { cluster_id: cluster.0, member_id: member.0, ..WatchOptions::default() });
    let lessor = Arc::new(Mutex::new(Lessor::new(lessor.clone())));
    let telling = Arc::new(Telling { hub: hub.clone(), lessor: lessor.clone() });
    let shared: Arc<dyn Engine> = engine.clone();
    let (machine, reader) = Machine::open(shared, Identity { cluster, member }, telling)?;
    hub.begin(Arc::new(reader.clone()), reader.current().revision);
    let store = Store { reader, hub, lessor, engine, reclaiming: Arc::default() };
    stores.0.store(Some(Arc::new(store)));
    Ok(Box::new(machine))
}

impl Store {
    /// Rewrites files in the background to give space back; at most once at a time.
    pub fn reclaim(&self) {
        if self.reclaiming.swap(true, Ordering::SeqCst) {
            return;
        }
        let (engine, reclaiming) = (self.engine.clone(), self.reclaiming.clone());
        std::thread::spawn(move || {
            if let Err(error) = engine.reclaim() {
                tracing::warn!(target: "chainfire_storage", "Space was not given back, why={error}");
            }
            reclaiming.store(false, Ordering::SeqCst);
        });
    }
}

/// From the machine to those who wait for news.
struct Telling {
    hub: Arc<WatchHub>,
    lessor: Arc<Mutex<Lessor>>,
}

impl EventSink for Telling {
    fn publish(&self, batch: Arc<Vec<RevisionEvents>>, revision: i64) {
        self.hub.publish(batch, revision);
    }

    fn compacted(&self, revision: i64) {
        self.hub.compacted(revision);
    }

    fn leases(&self, changes: &[LeaseChange]) {
        let now = node::clock::now();
        let mut lessor = self.lessor.lock();
        changes.iter().for_each(|change| lessor.applied(*change, now));
    }

    fn reset(&self, revision: i64) {
        self.hub.reset(revision);
        self.lessor.lock().follow();
    }
}
