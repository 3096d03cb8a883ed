//! How a member finds that its cluster goes on without it.
//!
//! Nobody speaks to a node that was removed: it hears no leader, asks for votes, and gets no answer, which looks to it like
//! a lost majority. So a member that knows no leader for a while asks the others who they think it is. One of its cluster
//! that knows a leader and does not know this node settles it. (One that has not heard of this node yet is mistaken, for a
//! moment; what is said here is words, in the status and in the answers to clients, who would otherwise be told of a leader
//! that is missed.) One that still got the entry by which it was removed need not ask.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base::ClusterId;
use consensus::Role;

use crate::founding::probe;
use crate::node::Shell;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks without a leader before anyone is asked.
const PATIENCE_LOOKS: u32 = 3;
/// Looks between two lines that say the same.
const SAY_EVERY_LOOKS: u32 = 60;

const LEFT_OUT: &str = "this node was removed from its cluster; to bring it back, stop it, empty its data folder, add it with \
                        member-add, and start it";

/// Runs as long as the node.
pub(crate) async fn watch(shell: Arc<Shell>) {
    let mut alone: u32 = 0;
    let mut said: Option<u32> = None;
    let (mut was_member, mut committed) = (false, 0);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let identity = shell.identity();
        let membership = shell.handle.membership();
        let member = membership.by_peer(identity.peer).is_some();
        let status = shell.handle.status();
        // One that may not ask for votes never gives its leader up, however long that has been silent.
        let is_quiet = status.committed == std::mem::replace(&mut committed, status.committed);
        let led = !status.leader.is_none() && (status.role != Role::Learner || !is_quiet);
        // It may have been one for less than a look.
        was_member |= member || membership.removed.contains(&identity.node);
        if identity.cluster == ClusterId::default() || !was_member || (member && led) {
            // Before it is a member it waits elsewhere, and says so there.
            if said.take().is_some() {
                shell.handle.node.left_out.store(false, Ordering::Relaxed);
                if member {
                    shell.waits_for(None);
                }
            }
            alone = 0;
            continue;
        }
        alone += 1;
        if alone < PATIENCE_LOOKS {
            continue;
        }
        if member && !is_left_out(&shell, identity.cluster).await {
            // Or whoever said so was mistaken.
            if said.take().is_some() {
                shell.handle.node.left_out.store(false, Ordering::Relaxed);
                shell.waits_for(None);
            }
            continue;
        }
        if said.is_none_or(|at| alone - at >= SAY_EVERY_LOOKS) {
            said = Some(alone);
            tracing::warn!(target: "chainfire_raft", "Removed: {LEFT_OUT} code=CF4111");
        }
        shell.handle.node.left_out.store(true, Ordering::Relaxed);
        shell.waits_for(Some(LEFT_OUT.to_owned()));
    }
}

async fn is_left_out(shell: &Arc<Shell>, cluster: ClusterId) -> bool {
    for address in shell.known_addresses() {
        if let Ok(standing) = probe(shell, &address).await
            && standing.cluster == cluster
            && standing.led
        {
            return !standing.expected;
        }
    }
    false
}
