//! What the service manager hears of a store: when it is ready, and that it lives.
//!
//! *Ready* means that the store is registered and serves, and every region that it came back with knows its leader: so
//! whoever restarts the stores one after the other, each when the one before is ready, never takes a quorum away. It is
//! bounded, as with every node ([`node::announce`]): a store that waits for the placement driver or for the other stores is
//! called ready after a while all the same, and its status line says what it waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use node::announce::READY_WITHIN;
use node::service::Service;

use crate::store::Store;

const POLL: Duration = Duration::from_millis(50);
const STATUS_EVERY: Duration = Duration::from_secs(2);

/// Says at most once that the store is ready.
pub struct Ready {
    service: Arc<Service>,
    told: AtomicBool,
}

impl Ready {
    /// `begun`: when the process began. After the bound it is called ready whatever becomes of it.
    pub fn within_bound(service: Arc<Service>, begun: Instant) -> Arc<Ready> {
        let ready = Arc::new(Ready { service, told: AtomicBool::new(false) });
        let late = ready.clone();
        tokio::spawn(async move {
            tokio::time::sleep_until((begun + READY_WITHIN).into()).await;
            if late.tell() {
                tracing::warn!(
                    target: "flaredb_service",
                    "Not ready after {} s, the service manager is told that the store runs code=CF8514",
                    READY_WITHIN.as_secs()
                );
            }
        });
        ready
    }

    /// `false`: it was said before.
    fn tell(&self) -> bool {
        let first = !self.told.swap(true, Ordering::SeqCst);
        if first {
            self.service.ready();
        }
        first
    }

    /// Waits for the leaders of all regions that are here, tells, and keeps the status line from then on.
    pub async fn attend(self: Arc<Ready>, store: Arc<Store>) {
        let mut said = String::new();
        let mut say = |line: String| {
            if line != said {
                self.service.status(&line);
                said = line;
            }
        };
        loop {
            let (regions, leaderless) = counts(&store);
            if leaderless == 0 {
                break;
            }
            say(format!("Waiting: {leaderless} of {regions} regions know no leader"));
            tokio::time::sleep(POLL).await;
        }
        tracing::info!(target: "flaredb_service", "ready to serve client requests");
        self.tell();
        if !self.service.is_present() {
            return;
        }
        loop {
            let identity = store.node.identity();
            let (regions, leaderless) = counts(&store);
            let but = if leaderless == 0 { String::new() } else { format!(", {leaderless} of them without a leader") };
            say(match store.refused() {
                Some(why) => format!("May be stopped, the placement driver refuses this store: {why}"),
                None => {
                    format!("Store {} of cluster {} serves {regions} regions{but}", identity.node, identity.cluster)
                }
            });
            tokio::time::sleep(STATUS_EVERY).await;
        }
    }
}

/// The regions here, and those of them that know no leader.
fn counts(store: &Store) -> (usize, usize) {
    let (mut all, mut leaderless) = (0, 0);
    store.walk(|region| {
        all += 1;
        leaderless += usize::from(region.handle.status().leader.is_none());
    });
    (all, leaderless)
}
