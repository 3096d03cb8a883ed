//! The groups of a node, as its threads share them: what was last published of each, and who waits for what in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use arc_swap::{ArcSwap, ArcSwapOption};
use base::{GroupId, NodeId, PeerId, Time};
use consensus::{Event, GroupStatus, Membership};
use parking_lot::RwLock;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::clock;
use crate::stages::Stages;
use crate::waiters::Waiters;

pub(crate) struct Group {
    pub id: GroupId,
    pub waiters: Waiters,
    /// As of the last turn that had to do with it.
    pub status: ArcSwap<GroupStatus>,
    pub membership: ArcSwap<Membership>,
    /// The last difference between replicas that nobody can judge, until somebody takes it.
    pub unclear: ArcSwapOption<Vec<PeerId>>,
    /// It is about to be taken away, and its log with it.
    pub gone: AtomicBool,
    /// Its state is not what most replicas have: nothing is answered from it. A node with one group says more of it
    /// ([`crate::heal`]).
    pub differs: AtomicBool,
    /// See [`crate::GroupHandle::is_replayed`].
    pub replayed: AtomicBool,
    pub since: Time,
    /// Of this group's snapshots, since the process began.
    pub snapshot_bytes_sent: AtomicU64,
    /// `None`: nobody asks where time went in this one.
    pub stages: Option<Box<Stages>>,
}

impl Group {
    pub fn new(id: GroupId, stages: bool) -> Arc<Group> {
        Arc::new(Group {
            id,
            waiters: Waiters::new(clock::random_u64()),
            status: ArcSwap::default(),
            membership: ArcSwap::default(),
            unclear: ArcSwapOption::empty(),
            gone: AtomicBool::new(false),
            differs: AtomicBool::new(false),
            replayed: AtomicBool::new(false),
            since: clock::now(),
            snapshot_bytes_sent: AtomicU64::new(0),
            stages: stages.then(Box::default),
        })
    }

    /// A turn that had to do with it.
    pub fn turn(&self, now: Time) {
        if let Some(stages) = &self.stages {
            stages.turn(now);
        }
    }

    /// Until another node than `leader` leads.
    pub async fn succeeded(&self, leader: NodeId, events: &mut broadcast::Receiver<Event>) {
        loop {
            match events.recv().await {
                Ok(Event::Leader { group, node, .. }) if group == self.id && node != leader => return,
                Ok(_) => {}
                Err(RecvError::Lagged(_)) if ![leader, NodeId::default()].contains(&self.status.load().leader_node) => {
                    return;
                }
                Err(RecvError::Lagged(_)) => {}
                // The node stops, and ends the call by itself.
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }
}

/// All groups of a node.
#[derive(Default)]
pub(crate) struct Groups(RwLock<BTreeMap<GroupId, Arc<Group>>>);

impl Groups {
    pub fn get(&self, id: GroupId) -> Option<Arc<Group>> {
        self.0.read().get(&id).cloned()
    }

    pub fn add(&self, group: Arc<Group>) {
        self.0.write().insert(group.id, group);
    }

    pub fn all(&self) -> Vec<Arc<Group>> {
        self.0.read().values().cloned().collect()
    }

    /// Whoever waits for it is told that the node has it no more.
    pub fn remove(&self, id: GroupId) {
        if let Some(group) = self.0.write().remove(&id) {
            group.waiters.close();
        }
    }

    /// Nobody waits any longer: the node stops.
    pub fn close(&self) {
        self.0.read().values().for_each(|group| group.waiters.close());
    }
}
