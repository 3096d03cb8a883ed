//! A member whose data cannot be trusted any more: how it is found out, kept from doing harm, and made whole.
//!
//! ```text
//!  a read, a write, background work, a scrub ─▶ damage() of log or state ─┐
//!  a hash that differs from most (consensus), a digest ───────────────────┼─▶ QUARANTINE: answers nothing
//!  a thread that stops at an error or a panic ────────────────────────────┘        │ a leader hands over
//!                                                          the state               │              the log
//!                          ┌───────── `damaged` in the folder; restart ────────────┴─ `quarantine`; restart ─┐
//!                          ▼                                                                                  │
//!   at an opening ─▶ STANDS IN: the log without the state; votes, acknowledges, answers nothing              │
//!                          │ the leader: the others are a majority without it                                 │
//!                          └───────── `quarantine` in the folder; restart ──────────────────────────────────┐ │
//!                                                                                                           ▼ ▼
//!         REBUILT: a member again  ◀─ learner, snapshot, swap ◀─ reincarnation (`identity`): `lost-PEER/`, new peer id
//! ```
//!
//! *A damaged log* is the end of a vote: what was acknowledged from it can be found in it no more. The whole incarnation is
//! given up at once, where the others can be a majority without it.
//!
//! *A damaged state* is not. What the member has acknowledged lies in its log, and with the others' logs it may be what makes
//! a majority: one of two, or two of three whose tables were damaged at once. So it goes on with its log alone, a
//! stand-in where its state was ([`crate::standin`]), until the leader says that the others are a majority without it, all of
//! them caught up. Then the whole incarnation is given up, log and all: a log without its state would have to be proved
//! to fit. Where the leader never says so (one of two voters; others are down) it stays a voter that answers nothing, says
//! why in status, log and metrics, and asks again every second.
//!
//! Leading it does only in need, if nobody else could be elected: it hands over to one of the others, whichever, until one is
//! met whose state is sound. And the question is not asked of itself.
//!
//! The leader lets one go at a time (`stopping::Leaves`). Its leave counts for [`LEAVE_COUNTS`], and who is granted it falls silent
//! *before* the folder is given up, so that a leave that came too late has no effect. A leader counts nobody as standing whom
//! it let go lately, and in its first seconds, when the leader before it may have, it lets nobody go.
//!
//! Between any two of these stages lies a restart of the process: everything that held on to the damaged files is gone, no
//! code has to live beside a state that is half there, and there is one way into each stage. A state that cannot even be
//! opened takes the same way as one that was found damaged later: which members there are, and as of which entry of the
//! log, is known from the file `members` ([`crate::roster`]), not from the state. Without that file nothing is known, and
//! the node stops.
//!
//! Invariants:
//! 1. From the quarantine on nothing is read from the state for anybody, by this process or a later one.
//! 2. A member that is alone is never given up: it stops, and says how it is restored.
//! 3. A log that is whole is given up only when the others are a majority without it.
//! 4. Who is wrong when replicas differ is a majority's word, never this file's (`consensus`).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consensus::Role;
use parking_lot::Mutex;

use crate::clock;
use crate::node::{Shell, StartError};
use crate::roster::{is_alone, is_spared, votes};
use crate::stopping;

/// How often what noticed damage is asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A damaged leader tries so long to hand over, and its threads have so long to end.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(2);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How often leave is asked for, and how long an answer is waited for.
const ASK_EVERY: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// So long after the question a leave counts: who has not fallen silent by then asks again.
pub const LEAVE_COUNTS: Duration = Duration::from_secs(4);
/// While nothing changes, waiting is mentioned this often.
const SAY_EVERY: Duration = Duration::from_secs(60);

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
    pub fn encode(&self) -> String {
        format!("{}\n{}\n", self.what.name(), self.why)
    }

    /// A file that cannot be understood was written all the same.
    pub fn decode(text: &str) -> Damage {
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
    /// By this process.
    found: Mutex<Option<Damage>>,
    /// Why a stand-in has the state's place, and why it still does.
    stands_in: Option<Damage>,
    waits_for: Mutex<Option<String>>,
    rebuilding: Mutex<Option<(Damage, Instant)>>,
    repairs: [AtomicU64; What::ALL.len()],
    repaired_unix_s: [AtomicU64; What::ALL.len()],
    last: Mutex<Option<String>>,
}

impl Default for Health {
    fn default() -> Health {
        Health::new(None, None)
    }
}

impl Health {
    /// Why this process began with a new incarnation, if it did; or with a stand-in for its state.
    pub(crate) fn new(given_up: Option<Damage>, stands_in: Option<Damage>) -> Health {
        Health {
            quarantined: AtomicBool::new(stands_in.is_some()),
            found: Mutex::new(None),
            stands_in,
            waits_for: Mutex::new(None),
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

    /// Whether this process found damage, and is about to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.found.lock().is_some()
    }

    /// Whether this member goes on with its log alone, because it cannot be spared.
    pub fn waits_to_leave(&self) -> bool {
        self.stands_in.is_some()
    }

    pub(crate) fn found(&self) -> Option<Damage> {
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
        let damage = self.found().or_else(|| self.stands_in.clone());
        let quarantined = damage.map(|damage| format!("this member is quarantined: {}", damage.why));
        let waits_for = self.waits_for.lock().as_ref().map(|why| {
            format!("this member answers nothing, votes with its log, and waits to be rebuilt from its peers: {why}")
        });
        let rebuilding = self.rebuilding.lock().as_ref().map(|(damage, _)| {
            format!("this member gave its data up and is being rebuilt from its peers: {}", damage.why)
        });
        [quarantined, waits_for, rebuilding, self.last.lock().clone()].into_iter().flatten().collect()
    }
}

/// Waits until damage is found or leave is granted, and sees this process through to its end. Runs as long as the node does.
pub(crate) async fn watch(shell: Arc<Shell>) {
    let mut asked = Instant::now();
    let mut said: Option<(Instant, String)> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if let Some(damage) = shell.health().found().or_else(|| shell.noticed()) {
            return quarantine(shell, damage).await;
        }
        if let Some(damage) = shell.health().stands_in.as_ref().filter(|_| asked.elapsed() >= ASK_EVERY) {
            asked = Instant::now();
            let why = match ask_for_leave(&shell).await {
                Ok(()) => return go(&shell, damage, asked).await,
                Err(why) => why,
            };
            if said.as_ref().is_none_or(|(at, last)| *last != why || at.elapsed() >= SAY_EVERY) {
                tracing::warn!(
                    target: "chainfire_storage",
                    "This member votes with its log, and waits to be rebuilt from its peers, waits_for={why} damage={} code=CF4008",
                    damage.why
                );
                said = Some((Instant::now(), why.clone()));
            }
            *shell.health().waits_for.lock() = Some(why);
        }
    }
}

async fn quarantine(shell: Arc<Shell>, damage: Damage) {
    shell.health().report(damage.clone());
    tracing::error!(
        target: "chainfire_storage",
        "Damage found, this member is quarantined, what={} why={} code=CF4001",
        damage.what.name(),
        damage.why
    );
    (shell.ends.quarantine)();
    let (membership, own) = (shell.handle.membership(), shell.identity().peer);
    if is_alone(&membership, own) {
        return (shell.ends.fatal)(StartError::Alone(damage.why).to_string());
    }
    // Durable before anything takes time: whatever ends this process, it does not begin again with this data.
    let marked = match damage.what {
        What::Log if !is_spared(&membership, own) => Err(StartError::NotSpared(damage.why).to_string()),
        What::Log => shell.mark_lost(&damage),
        What::State | What::Differs => shell.mark_damaged(&damage),
    };
    if let Err(error) = marked {
        return (shell.ends.fatal)(error);
    }
    if shell.handle.status().role == Role::Leader {
        let _ = tokio::time::timeout(HANDOVER_TIMEOUT, shell.handle.transfer(None)).await;
    }
    fall_silent(&shell).await;
    tracing::warn!(target: "chainfire_storage", "Starting again, without what is damaged code=CF4002");
    (shell.ends.restart)();
}

/// Leave was granted, or is not needed. What came too late is without effect.
async fn go(shell: &Arc<Shell>, damage: &Damage, asked: Instant) {
    fall_silent(shell).await;
    if asked.elapsed() < LEAVE_COUNTS
        && let Err(error) = shell.mark_lost(damage)
    {
        return (shell.ends.fatal)(error);
    }
    tracing::warn!(target: "chainfire_storage", "Starting again, to be rebuilt from the other members code=CF4009");
    (shell.ends.restart)();
}

/// The error is what is waited for.
async fn ask_for_leave(shell: &Shell) -> Result<(), String> {
    let handle = &shell.handle;
    let (membership, own) = (handle.membership(), shell.identity().peer);
    if membership.by_peer(own).is_none() {
        return Err("it is no member of its cluster (any more)".to_owned());
    }
    if !votes(&membership, own) {
        return Ok(());
    }
    if !is_spared(&membership, own) {
        return Err("of two voting members neither can be spared: add a third with member-add".to_owned());
    }
    let status = handle.status();
    if status.role == Role::Leader {
        // Who of them has a sound state is not known here; with chance one is met soon.
        let others: Vec<_> = membership.voters.iter().filter(|peer| **peer != own).collect();
        let heir = others[clock::random_u64() as usize % others.len()];
        let _ = tokio::time::timeout(HANDOVER_TIMEOUT, handle.transfer(membership.node_of(*heir))).await;
        return Err("another member must lead first".to_owned());
    }
    if status.leader.is_none() {
        return Err("there is no leader".to_owned());
    }
    match tokio::time::timeout(ANSWER_WITHIN, stopping::ask_for_leave(handle)).await {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err("the others are no caught-up majority without it yet".to_owned()),
    }
}

async fn fall_silent(shell: &Arc<Shell>) {
    let going = shell.clone();
    let stopped = tokio::task::spawn_blocking(move || going.stop_threads());
    if tokio::time::timeout(STOP_TIMEOUT, stopped).await.is_err() {
        tracing::warn!(target: "chainfire_storage", "Threads of a damaged member do not end, and go with the process");
    }
}

pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
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
    fn the_first_damage_counts_and_a_repair_is_told_once() {
        let health = Health::new(Some(Damage::new(What::Log, "first life")), None);
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
    #[test]
    fn a_member_without_its_state_is_quarantined_and_not_at_its_end() {
        let health = Health::new(None, Some(Damage::new(What::State, "a table")));
        assert!(health.is_quarantined() && health.waits_to_leave() && !health.is_ending());
        *health.waits_for.lock() = Some("a third".to_owned());
        let notes = health.notes();
        assert!(
            notes[0].contains("a table") && notes[1].contains("votes with its log") && notes[1].contains("a third")
        );
        health.report(Damage::new(What::Log, "the log too"));
        assert!(health.is_ending());
        assert!(health.notes()[0].contains("the log too"));
    }
}
