//! What goes on by itself while a node runs: the lease clock, auto-compaction, the room on the disk ([`crate::space`]), and
//! the watch hub's own tasks. All of it proposes commands like any client.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use consensus::{Refusal, Role};
use node::{GroupHandle, storage_log};
use proto::etcdserverpb::CompactionRequest;

use crate::command::Command;
use crate::config::AutoCompaction;
use crate::live::Live;
use crate::space;
use crate::store::{Store, Stores};

const LEASE_TICK: Duration = Duration::from_millis(100);

/// Starts all of it.
pub fn start(handle: &GroupHandle, stores: &Arc<Stores>, rules: Rules) {
    let runtime = tokio::runtime::Handle::current();
    runtime.spawn(hub(handle.clone(), stores.clone()));
    runtime.spawn(leases(handle.clone(), stores.clone()));
    runtime.spawn(space::keep(handle.clone(), stores.clone(), rules.clone()));
    runtime.spawn(storage_log::watch_writes(rules.stats.clone()));
    runtime.spawn(compaction(handle.clone(), stores.clone(), rules));
    runtime.spawn(engine_events(stores.clone()));
}

#[derive(Clone)]
pub struct Rules {
    pub data_dir: PathBuf,
    pub live: Arc<Live>,
    /// Set while this node refuses writes at once because a quorum's disks have no room for more.
    pub disk_full: Arc<AtomicBool>,
    /// Whose disks are full, as they tell the leader.
    pub reports: Arc<space::Reports>,
    pub stats: Arc<node::DriverStats>,
}

pub(crate) async fn ready(stores: &Stores) -> Arc<Store> {
    loop {
        if let Some(store) = stores.get() {
            return store;
        }
        tokio::time::sleep(LEASE_TICK).await;
    }
}

async fn hub(handle: GroupHandle, stores: Arc<Stores>) {
    let hub = ready(&stores).await.hub.clone();
    let dispatching = hub.clone();
    tokio::spawn(async move { dispatching.run().await });
    loop {
        hub.set_raft_term(handle.term());
        hub.tick(handle.now());
        tokio::time::sleep(LEASE_TICK).await;
    }
}

/// Ends leases that ran out, on the leader.
async fn leases(handle: GroupHandle, stores: Arc<Stores>) {
    let store = ready(&stores).await;
    loop {
        tokio::time::sleep(LEASE_TICK).await;
        let status = handle.status();
        let leads = status.role == Role::Leader;
        let due = {
            let mut lessor = store.lessor.lock();
            if !leads {
                lessor.follow();
                continue;
            }
            if lessor.term() != Some(status.term) {
                // The leases are known once an entry of this leader's own term has been applied.
                let view = store.reader.current();
                if view.mark.term != status.term {
                    continue;
                }
                let Ok(leases) = view.leases() else { continue };
                let leases = leases.into_iter().map(|lease| (lease.id, lease.ttl_s, lease.remaining_s));
                lessor.lead(status.term, leases, handle.now());
            }
            lessor.due(handle.now())
        };
        let term = due.term;
        let in_term = |command| Command::InTerm { term, command: Box::new(command) }.encode();
        for id in due.revoke {
            // Offered again until it is applied.
            drop(tokio::spawn(handle.propose(in_term(Command::LeaseRevoke { id }))));
        }
        if !due.checkpoint.is_empty() {
            let ids: Vec<i64> = due.checkpoint.iter().map(|(id, _)| *id).collect();
            let command = in_term(Command::LeaseCheckpoint(due.checkpoint));
            tokio::spawn(checkpoint(handle.clone(), store.lessor.clone(), term, ids, command));
        }
    }
}

async fn checkpoint(
    handle: GroupHandle,
    lessor: Arc<parking_lot::Mutex<crate::lessor::Lessor>>,
    term: u64,
    ids: Vec<i64>,
    command: bytes::Bytes,
) {
    match handle.propose(command).await {
        Ok(_) => return,
        Err(Refusal::TimedOut) => {
            // Its outcome is open: what is applied in the same term after it settles that.
            let clear = Command::LeaseCheckpoint(ids.iter().map(|id| (*id, 0)).collect());
            let clear = Command::InTerm { term, command: Box::new(clear) };
            if handle.propose(clear.encode()).await.is_err() {
                return;
            }
        }
        Err(_) => {}
    }
    lessor.lock().abandoned(ids, handle.now());
}

/// Compacts by itself, on the leader, as etcd's two modes do.
async fn compaction(handle: GroupHandle, stores: Arc<Stores>, rules: Rules) {
    let store = ready(&stores).await;
    // Periodic: the revision of each tenth of the period, oldest first.
    let mut seen = std::collections::VecDeque::new();
    let mut changed = rules.live.subscribe();
    let mut mode = rules.live.values().auto_compaction;
    loop {
        let (pause, keep) = match mode {
            AutoCompaction::Off => (Duration::MAX, None),
            AutoCompaction::Periodic(period) => (period / 10, None),
            AutoCompaction::Revision(keep) => (Duration::from_secs(300), Some(keep)),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // The sender lives as long as the node.
            _ = changed.changed() => {
                let now = rules.live.values().auto_compaction;
                if now != mode {
                    (mode, seen) = (now, std::collections::VecDeque::new());
                }
                continue;
            }
        }
        let view = store.reader.current();
        let target = match keep {
            Some(keep) => view.revision - keep,
            None => {
                seen.push_back(view.revision);
                if seen.len() <= 10 { 0 } else { seen.pop_front().unwrap_or(0) }
            }
        };
        if handle.is_leader() && target > view.compacted.max(0) {
            let request = CompactionRequest { revision: target, physical: false };
            // Another node, or a client, may have compacted further.
            let _ = handle.propose(Command::Compact(request).encode()).await;
            tracing::info!(target: "chainfire_storage", "Compacted, revision={target}");
        }
    }
}

/// Puts into the log what the engine met in the background.
async fn engine_events(stores: Arc<Stores>) {
    loop {
        tokio::time::sleep(storage_log::LOOK_EVERY).await;
        let Some(store) = stores.get() else { continue };
        store.engine.take_events().into_iter().for_each(storage_log::tell);
    }
}
