//! Who leads, said now and then, so that the last lines of a quiet node's log name the leader too; and the round trips to the
//! other members, measured for the metrics. Followers that are behind are the driver's to tell of (`node::lag`).

use std::sync::Arc;
use std::time::Duration;

use node::GroupHandle;

use crate::metrics::Metrics;

const SAY_EVERY: Duration = Duration::from_secs(30);
const PING_EVERY: Duration = Duration::from_secs(5);

/// Runs as long as the node.
pub fn start(handle: &GroupHandle, metrics: &Arc<Metrics>) {
    tokio::spawn(name_the_leader(handle.clone()));
    tokio::spawn(round_trips(handle.clone(), metrics.clone()));
}

async fn name_the_leader(handle: GroupHandle) {
    loop {
        tokio::time::sleep(SAY_EVERY).await;
        let (status, standing) = (handle.status(), node::announce::standing(&handle));
        let (leader, index) = (status.leader_node, status.committed);
        tracing::info!(target: "chainfire_raft", "{standing}, leader={leader} raft_index={index}");
    }
}

async fn round_trips(handle: GroupHandle, metrics: Arc<Metrics>) {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        let own = handle.node();
        for node in handle.membership().members.keys().copied().filter(|node| *node != own) {
            // One that does not answer has no round trip; the log tells of it elsewhere.
            if let Ok(took) = handle.ping(node).await {
                metrics.round_trip(node, took);
            }
        }
    }
}
