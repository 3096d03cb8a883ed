//! A region: a range of keys, and the state machine of the Raft group that holds it.
//!
//! All regions of a store lie in one engine. A region's own part is the raw pairs within its range, and a few small records
//! of its own ([`layout`]): where it stands, what it covers, who its members are.
//!
//! ```text
//!  entries ─▶ RegionMachine::apply ─▶ one batch: pairs, state ─▶ engine ─▶ RegionCell: what readers and routers look at
//! ```
//!
//! | file | its one subject |
//! |---|---|
//! | [`claims`] | ranges that received snapshots are about to take |
//! | [`layout`] | where everything lies, and the records' codecs |
//! | [`machine`] | what commands do |
//! | [`map`] | which region covers a key; the regions' cells |
//! | [`merge`] | how two regions become one, in both of their logs |
//! | [`overlap`] | ranges that belong to others by now |
//! | [`sample`] | which keys it is asked for, and where that load could be divided |
//! | [`size`] | how large it is, and where it can be cut |
//! | [`snapshot`] | a region as a stream, and a received one put in place |
//! | [`traffic`] | what clients do to it here, in numbers |
//!
//! Invariants
//! 1. A command is done only if the region is of the version with which the command was checked, and covers its keys: a
//!    stale epoch changes nothing, on any replica.
//! 2. Data and mark are in one batch.
//! 3. What an entry does is a function of the region's state and the entry. (Where the records of another region on this
//!    store come in, at splits and merges, they decide about what is this store's own and is not hashed, or about waiting.)

pub mod claims;
#[cfg(test)]
mod decoders;
pub mod layout;
pub mod machine;
pub mod map;
pub mod merge;
pub mod overlap;
pub mod sample;
pub mod size;
pub mod snapshot;
pub mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use base::GroupId;
use bytes::Bytes;
use consensus::{Mark, MemberRole, Membership};
use parking_lot::{Mutex, MutexGuard};
use proto::placement as pb;

pub use machine::RegionMachine;
pub use map::RangeMap;
pub use merge::{Frozen, Merged};

/// A region as of its last applied entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionState {
    pub mark: Mark,
    /// The keys from here …
    pub start: Bytes,
    /// … to here, exclusive; empty: to the end.
    pub end: Bytes,
    /// Grows with each change of the range. Zero: this peer has got nothing yet.
    pub version: u64,
    /// Grows with each change of the members.
    pub conf_version: u64,
    /// Encoded.
    pub membership: Bytes,
    /// It is about to become part of another one.
    pub frozen: Option<Frozen>,
    /// What it has taken in, while anything may be left of that: at most [`merge::MERGED_MAX`].
    pub merged: Vec<Merged>,
}

/// What all others see of a region.
#[derive(Default)]
pub struct RegionCell {
    state: ArcSwap<RegionState>,
    /// Bytes put since the region was last measured.
    pub written: AtomicU64,
    pub traffic: traffic::Traffic,
    /// The region has become part of another one on this store: its machine does nothing any more.
    consumed: AtomicBool,
    /// Held by the machine while it applies.
    applying: Mutex<()>,
    /// How often a snapshot has begun to take the place of what was here.
    installs: AtomicU64,
}

/// A region as a reader found it ([`RegionCell::seen`]).
pub struct Seen {
    pub state: Arc<RegionState>,
    installs: u64,
}

impl RegionCell {
    pub fn state(&self) -> Arc<RegionState> {
        self.state.load_full()
    }

    /// Returns what was there before.
    pub fn set(&self, state: Arc<RegionState>) -> Arc<RegionState> {
        self.state.swap(state)
    }

    /// What a reader begins with, and compares afterwards ([`RegionCell::is_as`]).
    pub fn seen(&self) -> Seen {
        // Before the state: an install is counted once nobody sees the old one any more, and before its first pair goes.
        let installs = self.installs.load(Ordering::SeqCst);
        Seen { state: self.state(), installs }
    }

    /// Whether the range has been the same all the time since. An install may leave the version as it was, and takes the pairs
    /// away in between.
    pub fn is_as(&self, seen: &Seen) -> bool {
        self.state.load().version == seen.state.version && self.installs.load(Ordering::SeqCst) == seen.installs
    }

    /// The pairs are about to be replaced; the region shows nothing until they are.
    pub(super) fn begin_install(&self) {
        self.installs.fetch_add(1, Ordering::SeqCst);
    }

    pub fn is_consumed(&self) -> bool {
        self.consumed.load(Ordering::SeqCst)
    }

    /// Nothing is applied from then on, and what was being applied is done.
    pub(super) fn consume(&self) {
        let _applying = self.applying();
        self.consumed.store(true, Ordering::SeqCst);
    }

    fn applying(&self) -> MutexGuard<'_, ()> {
        self.applying.lock()
    }
}

impl RegionState {
    pub fn covers(&self, key: &[u8]) -> bool {
        self.version > 0 && key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }

    /// As it is told to others.
    pub fn describe(&self, id: GroupId) -> pb::Region {
        let membership = Membership::decode(&self.membership).unwrap_or_default();
        let peer = |member: &consensus::Member| pb::Peer {
            id: member.peer.0,
            store_id: member.node.0,
            learner: member.role == MemberRole::Learner,
        };
        pb::Region {
            id: id.0,
            start: self.start.clone(),
            end: self.end.clone(),
            conf_version: self.conf_version,
            version: self.version,
            peers: membership.members.values().map(peer).collect(),
        }
    }
}
