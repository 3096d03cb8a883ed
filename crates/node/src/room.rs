//! The engine room: log, driver, log writer, applier and transport of a node, whichever groups it has. What a node does
//! with it (how it comes to a cluster, what becomes of damage) is the business of whoever runs one: [`crate::node`] for a
//! node with one group, [`crate::many`] for one with many.
//!
//! The life of a group: [`Room::declare`] makes a handle, with which nothing can be done yet; [`Room::create`] puts the
//! group on the host; [`Room::destroy`] takes it away, and its log with it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use base::{GroupId, NodeId};
use consensus::{CreateGroup, Host, HostConfig, Input, StateMachine};
use parking_lot::Mutex;
use storage::seglog::SegLog;
use tokio::sync::broadcast;

use crate::applier::{Applier, Work};
use crate::clock;
use crate::driver::{self, Driver, DriverStats, Engines, LogQueue};
use crate::gossip::SharedView;
use crate::group::{Group, Groups};
use crate::handle::{GroupHandle, Shared};
use crate::heal::Health;
use crate::identity::Identity;
use crate::tls::Certificates;
use crate::transport::{Me, Peers, Transport};

/// Events that a slow listener may miss.
const EVENTS_KEPT: usize = 1024;

pub(crate) struct Room {
    pub shared: Arc<Shared>,
    pub engines: Arc<Engines>,
    pub store: Arc<SegLog>,
    applier: Arc<Applier>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a room is made of.
pub(crate) struct Fittings<'a> {
    pub dir: &'a Path,
    pub identity: Identity,
    /// Under which the others reach this node.
    pub advertise: String,
    pub peers: Peers,
    pub store: Arc<SegLog>,
    pub health: Arc<Health>,
    /// The node cannot go on.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub certificates: Option<Arc<Certificates>>,
    pub request_timeout: Duration,
    pub election_timeout: Duration,
    pub gossip: SharedView,
    /// On their way out at a time, and on their way in.
    pub snapshots_max: usize,
    pub runtime: &'a tokio::runtime::Handle,
}

impl Room {
    pub fn new(fittings: Fittings<'_>) -> Room {
        let Fittings { dir, identity, advertise, peers, store, health, fatal, .. } = fittings;
        let engines = Arc::new(Engines {
            inbox: Arc::default(),
            work: Arc::default(),
            groups: Arc::<Groups>::default(),
            staged: Arc::default(),
            sources: Arc::default(),
            stop: Arc::new(AtomicBool::new(false)),
            fatal,
            health: health.clone(),
            stats: Arc::new(DriverStats::default()),
            held: Arc::default(),
            crowded: AtomicBool::new(false),
            dir: dir.to_owned(),
        });
        let me = Me { node: identity.node, peer: identity.peer, cluster: identity.cluster, address: advertise };
        let (inbox, work, staged) = (engines.inbox.clone(), engines.work.clone(), engines.staged.clone());
        let transport = Transport::new(
            me,
            peers,
            inbox.clone(),
            work.clone(),
            staged,
            fittings.runtime.clone(),
            fittings.certificates,
        );
        let shared = Arc::new(Shared {
            identity: ArcSwap::from_pointee(identity),
            inbox,
            events: broadcast::channel(EVENTS_KEPT).0,
            transport,
            request_timeout: fittings.request_timeout,
            election_timeout: fittings.election_timeout,
            gossip: fittings.gossip,
            waits_for: ArcSwapOption::empty(),
            left_out: AtomicBool::default(),
            held: engines.held.clone(),
            health,
        });
        Room {
            shared,
            engines,
            store,
            applier: Arc::new(Applier::new(work, fittings.snapshots_max)),
            threads: Mutex::default(),
        }
    }

    /// A handle for a group that may come. `stages`: whether it is noted where its commands' time goes.
    pub fn declare(&self, id: GroupId, stages: bool) -> GroupHandle {
        let group = Group::new(id, stages);
        self.engines.groups.add(group.clone());
        GroupHandle { group, node: self.shared.clone() }
    }

    pub fn handle(&self, id: GroupId) -> Option<GroupHandle> {
        let group = self.engines.groups.get(id)?;
        Some(GroupHandle { group, node: self.shared.clone() })
    }

    pub fn handles(&self) -> Vec<GroupHandle> {
        let handle = |group| GroupHandle { group, node: self.shared.clone() };
        self.engines.groups.all().into_iter().map(handle).collect()
    }

    /// Puts a group that was declared on the host. `changes_held`: see [`Input::HoldChanges`].
    pub fn create(&self, create: CreateGroup, machine: Box<dyn StateMachine>, changes_held: bool) {
        let group = self.engines.groups.get(create.group).expect("it was declared");
        group.membership.store(create.membership.clone());
        self.shared.transport.learn(&create.membership);
        self.applier.give(create.group, machine);
        let held = changes_held.then_some(Input::HoldChanges { group: create.group, held: true });
        self.engines.inbox.extend([Input::Create(create)].into_iter().chain(held));
    }

    pub fn campaign(&self, id: GroupId) {
        self.engines.inbox.push(Input::Campaign { group: id });
    }

    /// Takes a group away, with its log. Whoever waits for it is told so.
    pub fn destroy(&self, id: GroupId) {
        if let Some(group) = self.engines.groups.get(id) {
            group.gone.store(true, Ordering::SeqCst);
        }
        self.engines.inbox.push(Input::Destroy { group: id });
    }

    /// Starts the threads.
    pub fn start(&self, node: NodeId, host: HostConfig) {
        let log: Arc<LogQueue> = Arc::default();
        let driver = Driver {
            host: Host::new(HostConfig { node, ..host }, self.store.clone(), clock::now()),
            shared: self.shared.clone(),
            engines: self.engines.clone(),
            store: self.store.clone(),
            log: log.clone(),
            applier: self.applier.clone(),
            transport: self.shared.transport.clone(),
        };
        let mut threads = self.threads.lock();
        let mut start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let (fatal, named) = (self.engines.fatal.clone(), name.to_owned());
            let run = move || {
                // The raft crate panics at a log that cannot be read, among other things.
                let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
                if ended.is_err() {
                    fatal(format!("the thread {named} has panicked"));
                }
            };
            let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
            threads.push(thread.expect("threads can be started"));
        };
        start("driver", Box::new(move || driver.run()));
        let (engines, store) = (self.engines.clone(), self.store.clone());
        start("log-writer", Box::new(move || driver::write_log(store.as_ref(), &log, &engines)));
        let (engines, applier) = (self.engines.clone(), self.applier.clone());
        start("applier", Box::new(move || applier.run(&engines)));
        let (engines, applier) = (self.engines.clone(), self.applier.clone());
        start("installer", Box::new(move || applier.run_installs(&engines)));
    }

    /// Ends the threads, and with them all that this node says to others.
    pub fn stop(&self) {
        self.engines.stop.store(true, Ordering::SeqCst);
        self.engines.work.push(Work::Stop);
        self.shared.transport.close();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}
