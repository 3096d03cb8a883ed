//! What the service manager hears of a node ([`crate::service`]): when it is ready, how it goes, and that it lives.
//!
//! *Ready* means that a linearizable read has been answered here: the node knows a leader and has applied what was
//! committed. So whoever restarts the nodes of a cluster one after the other, each when the one before is ready, never
//! takes a quorum away. It is bounded: after [`READY_WITHIN`] the node is called ready all the same, because a manager
//! that waits for a quorum would keep the node from being the one that completes it; the status line then says what is
//! waited for.
//!
//! *Alive* means that the driver takes turns. Its counter is looked at, from a task on the threads that serve clients:
//! when either stands still, no sign of life is given, and the manager kills the process and starts it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use consensus::Role;

use crate::driver::DriverStats;
use crate::handle::GroupHandle;
use crate::service::Service;

/// A node that is not ready by then is called ready, with a word on what it waits for.
pub const READY_WITHIN: Duration = Duration::from_secs(15);
const READY_POLL: Duration = Duration::from_millis(20);
const STATUS_EVERY: Duration = Duration::from_secs(2);

/// Tells the manager, until the node stops. `has_state`: whether there is a state to read from; `begun`: when the process
/// began.
pub fn start(
    service: &Arc<Service>,
    handle: &GroupHandle,
    has_state: impl Fn() -> bool + Send + Sync + 'static,
    stats: Arc<DriverStats>,
    begun: Instant,
) {
    let told = tokio::spawn(readiness(service.clone(), handle.clone(), has_state, begun));
    tokio::spawn(watchdog(service.clone(), stats));
    let (service, handle) = (service.clone(), handle.clone());
    tokio::spawn(async move {
        // A status line before the node is ready is `readiness`'s.
        let _ = told.await;
        statuses(&service, &handle).await;
    });
}

async fn readiness(service: Arc<Service>, handle: GroupHandle, has_state: impl Fn() -> bool, begun: Instant) {
    let mut told = false;
    let mut status = String::new();
    loop {
        let answered = async { has_state() && handle.read().await.is_ok() };
        if tokio::time::timeout(STATUS_EVERY, answered).await == Ok(true) {
            break;
        }
        let waiting = format!("Waiting: {}", waits_for(&handle));
        if waiting != status {
            service.status(&waiting);
            status = waiting;
        }
        if !told && begun.elapsed() >= READY_WITHIN {
            told = true;
            tracing::warn!(
                target: "chainfire_api",
                "Not ready after {} s, the service manager is told that the node runs, why={} code=CF7001",
                READY_WITHIN.as_secs(),
                waits_for(&handle)
            );
            service.ready();
        }
        tokio::time::sleep(READY_POLL).await;
    }
    tracing::info!(target: "chainfire_api", "ready to serve client requests");
    if !told {
        service.ready();
    }
}

async fn statuses(service: &Service, handle: &GroupHandle) {
    if !service.is_present() {
        return;
    }
    let mut last = String::new();
    loop {
        let status = standing(handle);
        if status != last {
            service.status(&status);
            last = status;
        }
        tokio::time::sleep(STATUS_EVERY).await;
    }
}

/// One line on how the node stands.
pub fn standing(handle: &GroupHandle) -> String {
    let status = handle.status();
    let members = handle.membership().members.len();
    let (term, leader) = (status.term, status.leader_node);
    match status.role {
        _ if status.leader.is_none() || handle.is_left_out() => format!("Waiting: {}", waits_for(handle)),
        Role::Leader => format!("Leading {members} members, term {term}"),
        Role::Learner => format!("Learning from node {leader}, term {term}, {members} members"),
        Role::Follower | Role::Candidate => format!("Following node {leader}, term {term}, {members} members"),
    }
}

/// Why a node cannot serve linearizable reads.
fn waits_for(handle: &GroupHandle) -> String {
    if handle.cluster() == base::ClusterId::default() {
        return "this node belongs to no cluster yet, it waits for the other members".to_owned();
    }
    if handle.is_left_out() {
        return "this member was removed from its cluster".to_owned();
    }
    if handle.health().waits_to_leave() {
        return "this member is quarantined, and votes with its log until the others can do without it".to_owned();
    }
    let (status, membership) = (handle.status(), handle.membership());
    let voters = membership.voters.len();
    if membership.by_peer(status.peer).is_none() {
        "this node waits to be let into its cluster".to_owned()
    } else if status.leader.is_none() {
        format!("no leader elected, {} of {voters} voting members must reach one another", voters / 2 + 1)
    } else {
        format!("this node catches up with its leader, node {}, applied={}", status.leader_node, status.applied)
    }
}

/// Gives signs of life while the driver turns, which it does when there is nothing to do either.
pub async fn watchdog(service: Arc<Service>, stats: Arc<DriverStats>) {
    let Some(limit) = service.watchdog() else { return };
    let pause = (limit / 4).min(Duration::from_secs(2));
    let mut seen = 0;
    let mut stood_since = Instant::now();
    let mut said = false;
    loop {
        let turns = stats.turns.load(Ordering::Relaxed);
        // A node without a cluster has no driver yet.
        if turns != seen || turns == 0 {
            (seen, stood_since, said) = (turns, Instant::now(), false);
            service.alive();
        } else if !said && stood_since.elapsed() >= limit / 2 {
            said = true;
            tracing::error!(
                target: "chainfire_raft",
                "The driver stands still, without a turn the service manager ends the node, standing={}ms code=CF7003",
                stood_since.elapsed().as_millis()
            );
        }
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// The counter stands for the driver: with it the signs of life come and go.
    #[test]
    fn no_turn_no_sign_of_life() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.clone().into_os_string()),
            "WATCHDOG_USEC" => Some("80000".into()),
            _ => None,
        };
        let service = Arc::new(Service::new(variable, 1));
        let stats = Arc::new(DriverStats::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let task = runtime.spawn(watchdog(service, stats.clone()));
        let mut buffer = [0; 64];
        let mut hears = || socket.recv(&mut buffer).is_ok();
        assert!(hears() && hears() && hears(), "before there is a driver the task itself is what lives");
        stats.turns.store(5, Ordering::Relaxed);
        let last = Instant::now() + Duration::from_secs(20);
        while hears() {
            assert!(Instant::now() < last, "signs of life without a turn");
        }
        for turns in 6..9 {
            stats.turns.store(turns, Ordering::Relaxed);
            assert!(hears(), "the driver turns again");
        }
        task.abort();
    }
}
