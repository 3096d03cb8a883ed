//! A member whose data cannot be trusted any more: how it is found out, kept from doing harm, and made whole.
//!
//! ```text
//!  a read, a write, background work, a scrub ─▶ damage() of log or state ─┐
//!  a hash that differs from most (consensus)  ────────────────────────────┼─▶ QUARANTINE: answers nothing
//!  a thread that stops at an error or a panic ────────────────────────────┘        │ a leader hands over
//!                                                                                  ▼
//!         at an opening: log or state is damaged ─────┐             `quarantine` in the data folder; restart
//!                                                     ▼                            ▼
//!         REBUILT: a member again  ◀─ learner, snapshot, swap ◀─ reincarnation (`identity`): `lost-PEER/`, new peer id
//! ```
//!
//! Whatever is damaged, the whole incarnation is given up: a log without its state, or a state without its log, would
//! have to be proved to fit. The price is a snapshot, and it is paid by machines.
//!
//! Between quarantine and rebuilding lies a restart of the process: everything that held on to the damaged files is
//! gone, and there is one way into a rebuilding. The file `quarantine` carries the decision across, and is put aside with
//! the rest.
//!
//! Invariants:
//! 1. From the quarantine on nothing is read from the state for anybody, and nothing is written that counts: the threads
//!    end before the process does.
//! 2. A member that is alone is never given up: it stops, and says how it is restored.
//! 3. Who is wrong when replicas differ is a majority's word, never this file's (`consensus`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consensus::{Membership, Role};
use parking_lot::Mutex;

use crate::node::Shell;

/// How often what noticed damage is asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A damaged leader tries so long to hand over, and its threads have so long to end.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Log,
    State,
    /// The state is in order as far as checksums go, but it is not what most replicas have.
    Differs,
}

impl What {
    pub const ALL: [What; 3] = [What::Log, What::State, What::Differs];

    pub fn name(self) -> &'static str {
        match self {
            What::Log => "log",
            What::State => "state",
            What::Differs => "differs",
        }
    }
}

/// Why a member is given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub what: What,
    /// For people.
    pub why: String,
}

impl Damage {
    pub fn new(what: What, why: impl fmt::Display) -> Damage {
        Damage { what, why: why.to_string() }
    }

    /// As it lies in the file `quarantine`: what, a line break, why.
    pub(crate) fn encode(&self) -> String {
        format!("{}\n{}\n", self.what.name(), self.why)
    }

    /// A file that cannot be understood was written all the same.
    pub(crate) fn decode(text: &str) -> Damage {
        let (first, why) = text.split_once('\n').unwrap_or((text, ""));
        let what = What::ALL.into_iter().find(|what| what.name() == first).unwrap_or(What::State);
        Damage::new(what, why.trim_end())
    }
}

/// What the process around a node does when the node cannot go on as it is.
#[derive(Clone)]
pub struct Ends {
    /// It cannot go on at all, for this reason.
    pub fatal: Arc<dyn Fn(String) + Send + Sync>,
    /// Nothing may be answered from its state any more.
    pub quarantine: Arc<dyn Fn() + Send + Sync>,
    /// It has stopped, and must be started again as a process. Does not return if it can help it.
    pub restart: Arc<dyn Fn() + Send + Sync>,
}

/// What a node knows of its own health. Shared by its parts, and looked at for status and metrics.
pub struct Health {
    quarantined: AtomicBool,
    found: Mutex<Option<Damage>>,
    rebuilding: Mutex<Option<(Damage, Instant)>>,
    repairs: [AtomicU64; What::ALL.len()],
    repaired_unix_s: [AtomicU64; What::ALL.len()],
    last: Mutex<Option<String>>,
}

impl Default for Health {
    fn default() -> Health {
        Health::new(None)
    }
}

impl Health {
    /// `given_up`: why this process began with a new incarnation, if it did.
    pub(crate) fn new(given_up: Option<Damage>) -> Health {
        Health {
            quarantined: AtomicBool::new(false),
            found: Mutex::new(None),
            rebuilding: Mutex::new(given_up.map(|damage| (damage, Instant::now()))),
            repairs: Default::default(),
            repaired_unix_s: Default::default(),
            last: Mutex::new(None),
        }
    }

    /// Damage was found: from here on nothing is answered. The first report counts.
    pub fn report(&self, damage: Damage) {
        self.quarantined.store(true, Ordering::SeqCst);
        self.found.lock().get_or_insert(damage);
    }

    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::SeqCst)
    }

    /// Whether this process began without the data that it had given up, and is not whole again.
    pub fn is_rebuilding(&self) -> bool {
        self.rebuilding.lock().is_some()
    }

    fn found(&self) -> Option<Damage> {
        self.found.lock().clone()
    }

    /// The member stands again, if it was being rebuilt.
    pub(crate) fn rebuilt(&self) {
        let Some((damage, since)) = self.rebuilding.lock().take() else { return };
        let took = since.elapsed().as_millis();
        self.repairs[damage.what as usize].fetch_add(1, Ordering::Relaxed);
        self.repaired_unix_s[damage.what as usize].store(unix_s(), Ordering::Relaxed);
        tracing::info!(
            target: "chainfire_storage",
            "This member was rebuilt from its peers, what={} took={took}ms why={}",
            damage.what.name(),
            damage.why
        );
        *self.last.lock() = Some(format!("rebuilt from its peers in {took} ms: {}", damage.why));
    }

    /// Members rebuilt by this process, by what was damaged.
    pub fn repairs(&self) -> impl Iterator<Item = (What, u64)> + '_ {
        What::ALL.into_iter().map(|what| (what, self.repairs[what as usize].load(Ordering::Relaxed)))
    }

    /// When this process was last rebuilt, by what was damaged: seconds since 1970; zero for never.
    pub fn repaired_unix_s(&self) -> impl Iterator<Item = (What, u64)> + '_ {
        What::ALL.into_iter().map(|what| (what, self.repaired_unix_s[what as usize].load(Ordering::Relaxed)))
    }

    /// One sentence each, for `status`.
    pub fn notes(&self) -> Vec<String> {
        let quarantined = self.found().map(|damage| format!("this member is quarantined: {}", damage.why));
        let rebuilding = self.rebuilding.lock().as_ref().map(|(damage, _)| {
            format!("this member gave its data up and is being rebuilt from its peers: {}", damage.why)
        });
        [quarantined, rebuilding, self.last.lock().clone()].into_iter().flatten().collect()
    }
}

/// Whether nobody else has what this member has. An unknown membership is judged by who is configured.
pub(crate) fn is_alone(membership: Option<&Membership>, own: base::PeerId, others_configured: bool) -> bool {
    match membership.filter(|membership| !membership.is_empty()) {
        Some(membership) => membership.voters == [own] && membership.voters_outgoing.is_empty(),
        None => !others_configured,
    }
}

/// Waits until damage is found, and sees this process through to its end. Runs as long as the node does.
pub(crate) async fn watch(shell: Arc<Shell>) {
    let damage = loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(damage) = shell.health().found().or_else(|| shell.noticed()) {
            break damage;
        }
    };
    shell.health().report(damage.clone());
    let alone = is_alone(Some(&shell.handle.membership()), shell.identity().peer, shell.others_configured());
    tracing::error!(
        target: "chainfire_storage",
        "Damage found, this member is quarantined, what={} why={} code=CF4001",
        damage.what.name(),
        damage.why
    );
    (shell.ends.quarantine)();
    if alone {
        let why = crate::node::StartError::Alone(damage.why);
        return (shell.ends.fatal)(why.to_string());
    }
    // Durable before anything takes time: whatever ends this process, it does not begin again with this data.
    if let Err(error) = shell.mark_lost(&damage) {
        return (shell.ends.fatal)(error);
    }
    if shell.handle.status().role == Role::Leader {
        let _ = tokio::time::timeout(HANDOVER_TIMEOUT, shell.handle.transfer(None)).await;
    }
    let stopping = shell.clone();
    let stopped = tokio::task::spawn_blocking(move || stopping.stop_threads());
    if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
        tracing::warn!(target: "chainfire_storage", "Threads of a damaged member do not end, and go with the process");
    }
    tracing::warn!(target: "chainfire_storage", "Starting again, to be rebuilt from the other members code=CF4002");
    (shell.ends.restart)();
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use base::PeerId;

    use super::*;

    #[test]
    fn a_decision_survives_its_file() {
        for what in What::ALL {
            let damage = Damage::new(what, "the checksum of 000012.sst differs");
            assert_eq!(Damage::decode(&damage.encode()), damage);
        }
        assert_eq!(Damage::decode("").what, What::State);
        assert_eq!(Damage::decode("nonsense").what, What::State);
    }

    #[test]
    fn only_the_sole_voter_is_alone() {
        let voters = |voters: &[u64]| Membership {
            members: [(base::NodeId(1), consensus::Member::default())].into(),
            voters: voters.iter().copied().map(PeerId).collect(),
            ..Membership::default()
        };
        let own = PeerId(1);
        assert!(is_alone(Some(&voters(&[1])), own, true));
        assert!(!is_alone(Some(&voters(&[2])), own, false), "a learner of another");
        assert!(!is_alone(Some(&voters(&[1, 2])), own, false));
        assert!(is_alone(None, own, false));
        assert!(!is_alone(None, own, true));
        assert!(is_alone(Some(&Membership::default()), own, false));
    }

    #[test]
    fn the_first_damage_counts_and_a_repair_is_told_once() {
        let health = Health::new(Some(Damage::new(What::Log, "first life")));
        assert!(health.notes()[0].contains("being rebuilt"));
        assert!(health.is_rebuilding());
        health.rebuilt();
        health.rebuilt();
        assert!(!health.is_rebuilding());
        assert_eq!(health.repaired_unix_s().map(|(_, at)| at > 0).collect::<Vec<_>>(), [true, false, false]);
        assert_eq!(health.repairs().map(|(_, count)| count).collect::<Vec<_>>(), [1, 0, 0]);
        assert!(!health.is_quarantined());
        health.report(Damage::new(What::State, "one"));
        health.report(Damage::new(What::Log, "two"));
        assert!(health.is_quarantined());
        assert_eq!(health.found().unwrap().why, "one");
    }
}
