//! Who may take a replica or a leader: one list of filters, each with its reason. The planner and [`crate::explain`] ask the
//! same list, so what is explained is what is planned.
//!
//! The filters of a store come in two parts: those that look at the store alone, asked once per round and again when the
//! round sends it something ([`STORE_FILTERS`]), and those that look at the region too ([`REPLICA_FILTERS`]).
//! Leaders have a list of their own ([`LEADER_FILTERS`]).

use std::fmt;

use base::NodeId;

use crate::plan::domain::isolation;
use crate::plan::round::{Round, StoreNow};
use crate::policy::format_span;
use crate::view::{Health, Region, StoreState};

/// Why a store was passed over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rejection {
    State(StoreState),
    NotReported,
    Silent(Health),
    /// Used share of its disk, in percent, with what is on its way.
    Full {
        used_percent: u8,
        limit_percent: u8,
    },
    Slow,
    /// It says so itself: it takes no puts.
    NoRoom,
    Snapshots {
        count: u32,
        max: u32,
    },
    PendingPeers {
        count: u32,
        max: u32,
    },
    AddRate {
        per_minute: u32,
        max: u32,
    },
    HoldsReplica,
    /// It would put the replica closer to the others than what is asked for.
    Isolation {
        would_be: u64,
        wanted: u64,
    },
    /// Its learner does not answer the region's leader.
    DoesNotAnswer,
    /// It holds no voter that is well.
    NotACaughtUpVoter,
    GivesUpLeaders,
    /// It may, but the difference is too small, or the move would only turn it round.
    NotBetter,
}

impl Rejection {
    /// Passes by itself: it says nothing against the store as such.
    pub fn is_passing(&self) -> bool {
        use Rejection::{AddRate, PendingPeers, Slow, Snapshots};
        matches!(self, Slow | Snapshots { .. } | PendingPeers { .. } | AddRate { .. })
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::State(state) => write!(f, "it is {state}"),
            Rejection::NotReported => f.write_str("it has not reported yet"),
            Rejection::Silent(Health::Down(span)) => write!(f, "it is down, silent for {}", format_span(*span)),
            Rejection::Silent(Health::Disconnected(span)) => {
                write!(f, "it is disconnected, silent for {}", format_span(*span))
            }
            Rejection::Silent(Health::Connected) => f.write_str("it is silent"),
            Rejection::Full { used_percent, limit_percent } => {
                write!(f, "its disk would be {used_percent} % full (low-space-ratio {limit_percent} %)")
            }
            Rejection::Slow => f.write_str("its disk is slow"),
            Rejection::NoRoom => f.write_str("its disk is full, and it takes no puts"),
            Rejection::Snapshots { count, max } => {
                write!(f, "{count} snapshots are under way (max-snapshot-count {max})")
            }
            Rejection::PendingPeers { count, max } => {
                write!(f, "{count} of its replicas are behind (max-pending-peer-count {max})")
            }
            Rejection::AddRate { per_minute, max } => {
                write!(f, "{per_minute} replicas were sent to it within a minute (store-add-limit {max})")
            }
            Rejection::HoldsReplica => f.write_str("it holds a replica already"),
            Rejection::Isolation { would_be, wanted } => {
                write!(
                    f,
                    "its failure domain is too close to the other replicas (isolation {would_be}, wanted {wanted})"
                )
            }
            Rejection::DoesNotAnswer => f.write_str("its learner does not answer the region's leader"),
            Rejection::NotACaughtUpVoter => f.write_str("it holds no voter that answers and has caught up"),
            Rejection::GivesUpLeaders => f.write_str("it is giving up its leaders"),
            Rejection::NotBetter => f.write_str("nothing would be gained"),
        }
    }
}

/// What is asked of a store: take a replica of this region.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub region: &'a Region,
    /// The replica that leaves in exchange; it does not count when failure domains are compared.
    pub leaving: Option<NodeId>,
    pub isolation_min: u64,
}

/// A store that may take it. More isolation is better, then a lower score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fit {
    pub isolation: u64,
    pub score: f64,
}

type StoreFilter = fn(&Round<'_>, &StoreNow<'_>) -> Option<Rejection>;
type ReplicaFilter = fn(&Round<'_>, &Ask<'_>, &StoreNow<'_>) -> Option<Rejection>;

/// May the store take any replica at all?
pub const STORE_FILTERS: [StoreFilter; 9] =
    [state, reported, heard, roomy, room, fast, snapshots, pending_peers, add_rate];

/// May it take this one?
pub const REPLICA_FILTERS: [ReplicaFilter; 3] = [holds_none, room_for_it, apart_enough];

/// May it lead any region at all? To lead one it must also hold a voter of it that is well.
pub const LEADER_FILTERS: [StoreFilter; 5] = [state, heard, roomy, fast, keeps_leaders];

/// The verdict on the store alone.
pub fn judge_store(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    STORE_FILTERS.iter().find_map(|filter| filter(round, store))
}

/// The verdict on the store alone, leaving out what passes by itself.
pub fn judge_store_for_long(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    all_against_store(round, store).into_iter().find(|rejection| !rejection.is_passing())
}

/// The verdict of the region alone: whether the store would do as a place for the replica if it took any.
pub fn judge_place(round: &Round<'_>, ask: &Ask<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    REPLICA_FILTERS.iter().find_map(|filter| filter(round, ask, store))
}

/// The verdict on a store as a place that people ask for: what passes by itself does not count.
pub fn judge_asked(round: &Round<'_>, ask: &Ask<'_>, store: &StoreNow<'_>) -> Result<(), Rejection> {
    judge_place(round, ask, store).or_else(|| judge_store_for_long(round, store)).map_or(Ok(()), Err)
}

/// Every reason against the store alone.
pub fn all_against_store(round: &Round<'_>, store: &StoreNow<'_>) -> Vec<Rejection> {
    STORE_FILTERS.iter().filter_map(|filter| filter(round, store)).collect()
}

/// The verdict on a store as a place for a replica.
pub fn judge_replica(round: &Round<'_>, ask: &Ask<'_>, store: &StoreNow<'_>) -> Result<Fit, Rejection> {
    match store.refused.or_else(|| judge_place(round, ask, store)) {
        Some(rejection) => Err(rejection),
        None => Ok(Fit { isolation: isolation_at(round, ask, store), score: store.region_score(0, 0) }),
    }
}

/// The verdict on a store as the region's leader.
pub fn judge_leader(round: &Round<'_>, region: &Region, store: &StoreNow<'_>) -> Result<(), Rejection> {
    let voter = region.peer(store.id()).is_some_and(|peer| !peer.learner);
    let not_well = (!voter || !region.is_well_in(store.id())).then_some(Rejection::NotACaughtUpVoter);
    judge_leader_store(round, store).or(not_well).map_or(Ok(()), Err)
}

/// The verdict on a store as the leader of anything.
pub fn judge_leader_store(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    LEADER_FILTERS.iter().find_map(|filter| filter(round, store))
}

fn isolation_at(round: &Round<'_>, ask: &Ask<'_>, store: &StoreNow<'_>) -> u64 {
    isolation(&store.path, round.paths_without(ask.region, ask.leaving), round.levels())
}

fn state(_: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    (store.state != StoreState::Up).then_some(Rejection::State(store.state))
}

fn reported(_: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    (!store.store.reported || store.store.report.capacity_bytes == 0).then_some(Rejection::NotReported)
}

fn heard(_: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    (store.health != Health::Connected).then_some(Rejection::Silent(store.health))
}

fn room(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    full(round, store, 0)
}

fn roomy(_: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    store.store.report.full.then_some(Rejection::NoRoom)
}

fn fast(_: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    store.store.report.slow.then_some(Rejection::Slow)
}

fn snapshots(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    let (count, max) = (store.snapshots(), round.policy.max_snapshot_count);
    (count >= max).then_some(Rejection::Snapshots { count, max })
}

fn pending_peers(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    let (count, max) = (store.pending(), round.policy.max_pending_peer_count);
    (count >= max).then_some(Rejection::PendingPeers { count, max })
}

fn add_rate(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    let (per_minute, max) = (store.adds_lately, store.add_limit(round.policy));
    (per_minute >= max).then_some(Rejection::AddRate { per_minute, max })
}

fn holds_none(_: &Round<'_>, ask: &Ask<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    ask.region.peer(store.id()).is_some().then_some(Rejection::HoldsReplica)
}

fn room_for_it(round: &Round<'_>, ask: &Ask<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    full(round, store, ask.region.bytes)
}

fn apart_enough(round: &Round<'_>, ask: &Ask<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    if ask.isolation_min == 0 {
        return None;
    }
    let would_be = isolation_at(round, ask, store);
    (would_be < ask.isolation_min).then_some(Rejection::Isolation { would_be, wanted: ask.isolation_min })
}

fn full(round: &Round<'_>, store: &StoreNow<'_>, more_bytes: u64) -> Option<Rejection> {
    let used = store.used_ratio(more_bytes as i64);
    let limit = round.policy.low_space_ratio;
    let percent = |ratio: f64| (ratio * 100.0).clamp(0.0, 255.0) as u8;
    (used >= limit).then(|| Rejection::Full { used_percent: percent(used), limit_percent: percent(limit) })
}

fn keeps_leaders(round: &Round<'_>, store: &StoreNow<'_>) -> Option<Rejection> {
    round.policy.evicts_leaders_of(store.id()).then_some(Rejection::GivesUpLeaders)
}
