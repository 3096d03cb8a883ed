//! What must never be, whoever is to blame. Each check knows only what it was told: by appliers, by hosts, by disks, and by what
//! clients were answered.
//!
//! | told | checked |
//! |---|---|
//! | [`Ledger::applied`] | replicas at one index are the same in hash, range and epoch; epochs grow with the index |
//! | [`Ledger::peer`], [`Ledger::store`] | no id is anybody else's |
//! | [`Ledger::created`], [`Ledger::destroyed`] | a peer that was taken away never comes back |
//! | [`Ledger::acted`] | whoever has voted does not begin anew |
//! | [`Ledger::leader`], [`Ledger::committed`] | one leader per term; what is committed lies on the disks of a quorum |
//! | [`Ledger::answering`] | no key is answered for by two |
//! | [`Ledger::acknowledged`], [`Ledger::read`] | nothing acknowledged is lost, no read goes back |

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, NodeId, PeerId};
use bytes::Bytes;
use consensus::{Mark, Membership};
use flaredb::region::RegionState;

/// The first thing that must not be, and when it was.
pub use crate::world::ledger::Failure;

#[derive(Default)]
pub struct Ledger {
    pub failure: Option<Failure>,
    now: u64,
    /// By group and index.
    states: BTreeMap<(GroupId, u64), State>,
    peers: BTreeMap<PeerId, (GroupId, NodeId)>,
    stores: BTreeMap<NodeId, PeerId>,
    destroyed: BTreeSet<(GroupId, PeerId)>,
    acted: BTreeSet<(GroupId, PeerId)>,
    leaders: BTreeMap<(GroupId, u64), PeerId>,
    committed: BTreeMap<GroupId, u64>,
    keys: BTreeMap<Bytes, Key>,
    pub elections: u64,
    pub splits: u64,
    pub merges: u64,
    pub changes: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct State {
    hash: u64,
    term: u64,
    range: (Bytes, Bytes),
    version: u64,
    conf_version: u64,
}

/// What is known of a key: its values are numbers that only grow.
#[derive(Clone, Copy, Debug, Default)]
struct Key {
    /// The greatest value that was acknowledged or read.
    floor: u64,
    /// The greatest that was asked for.
    asked: u64,
}

impl Ledger {
    pub fn at(&mut self, now: u64) {
        self.now = now;
    }

    pub fn fail(&mut self, why: impl FnOnce() -> String) {
        if self.failure.is_none() {
            self.failure = Some(Failure { time: self.now, why: why() });
        }
    }

    /// A replica stands at a mark. The placement driver's has no range.
    pub fn applied(&mut self, group: GroupId, peer: PeerId, mark: Mark, state: &RegionState) {
        let told = State {
            hash: mark.hash,
            term: mark.term,
            range: (state.start.clone(), state.end.clone()),
            version: state.version,
            conf_version: state.conf_version,
        };
        let at = (group, mark.index);
        if let Some(known) = self.states.get(&at) {
            if *known != told {
                let known = known.clone();
                self.fail(|| {
                    format!("replicas of {group} differ after entry {}: {known:x?}, {peer} has {told:x?}", mark.index)
                });
            }
            return;
        }
        let below = self.states.range((group, 0)..at).next_back().map(|(_, state)| state);
        let above = self.states.range(at..=(group, u64::MAX)).next().map(|(_, state)| state);
        let behind = |a: &State, b: &State| a.version > b.version || a.conf_version > b.conf_version;
        if below.is_some_and(|below| behind(below, &told)) || above.is_some_and(|above| behind(&told, above)) {
            let told = (told.version, told.conf_version);
            self.fail(|| format!("the epoch of {group} goes back at entry {}: {told:?}", mark.index));
            return;
        }
        let silently = below.is_some_and(|below| below.range != told.range && below.version == told.version);
        if let Some(below) = below.filter(|below| below.version > 0 && below.range != told.range) {
            let grown = told.range.0 < below.range.0 || is_below(&below.range.1, &told.range.1);
            (self.splits, self.merges) = (self.splits + u64::from(!grown), self.merges + u64::from(grown));
        }
        self.changes += u64::from(below.is_some_and(|below| below.conf_version < told.conf_version));
        if silently {
            self.fail(|| format!("the range of {group} changes at entry {} and its version does not", mark.index));
        }
        self.states.insert(at, told);
    }

    /// A peer is named somewhere.
    pub fn peer(&mut self, peer: PeerId, group: GroupId, node: NodeId) {
        let known = *self.peers.entry(peer).or_insert((group, node));
        if known != (group, node) {
            let (first, on) = known;
            self.fail(|| {
                format!("peer id {peer} was given twice: in {first} on store {on}, in {group} on store {node}")
            });
        }
    }

    pub fn membership(&mut self, group: GroupId, membership: &Membership) {
        for member in membership.members.values().filter(|member| !member.peer.is_none()) {
            self.peer(member.peer, group, member.node);
        }
    }

    /// A data folder was taken for a store.
    pub fn store(&mut self, node: NodeId, incarnation: PeerId) {
        let known = *self.stores.entry(node).or_insert(incarnation);
        if known != incarnation {
            self.fail(|| format!("store id {node} was given to two data folders: {known} and {incarnation}"));
        }
    }

    /// A peer was put on a store. `fresh`: it may vote, for it never has.
    pub fn created(&mut self, group: GroupId, peer: PeerId, fresh: bool) {
        if fresh && self.acted.contains(&(group, peer)) {
            self.fail(|| format!("peer {peer} of {group} begins anew, and has voted or acknowledged something before"));
        }
        if self.destroyed.contains(&(group, peer)) {
            self.fail(|| format!("peer {peer} of {group} was taken away and is back"));
        }
    }

    /// A peer's log holds something, for good, that others may have been told of.
    pub fn acted(&mut self, group: GroupId, peer: PeerId) {
        self.acted.insert((group, peer));
    }

    pub fn destroyed(&mut self, group: GroupId, peer: PeerId) {
        self.destroyed.insert((group, peer));
    }

    pub fn leader(&mut self, group: GroupId, term: u64, peer: PeerId) {
        let known = self.leaders.get(&(group, term)).copied();
        match known {
            None => {
                self.leaders.insert((group, term), peer);
                self.elections += 1;
            }
            Some(known) if known != peer => {
                self.fail(|| format!("two leaders of {group} in term {term}: {known} and {peer}"));
            }
            Some(_) => {}
        }
    }

    pub fn committed_index(&self, group: GroupId) -> u64 {
        self.committed.get(&group).copied().unwrap_or(0)
    }

    /// A leader says that an entry is committed; so many of so many voters have it on disk, if it is certain who
    /// votes.
    pub fn committed(&mut self, group: GroupId, index: u64, counted: Option<(usize, usize)>) {
        self.committed.insert(group, index);
        if let Some((have, voters)) = counted
            && have * 2 <= voters
        {
            self.fail(|| {
                format!("entry {index} of {group} is committed, and on the disks of {have} of {voters} voters")
            });
        }
    }

    /// All that answer at this moment: range, group, place.
    pub fn answering(&mut self, mut all: Vec<(Bytes, Bytes, GroupId, usize)>) {
        all.sort();
        for (index, (_, end, group, at)) in all.iter().enumerate() {
            let behind = all.iter().skip(index + 1).find(|(start, ..)| end.is_empty() || start < end);
            if let Some((start, _, other, there)) = behind {
                self.fail(|| {
                    format!(
                        "{group} on node {at} and {other} on node {there} both answer for {start:?}",
                        at = at + 1,
                        there = there + 1
                    )
                });
                return;
            }
        }
    }

    /// What a read that begins here must at least find.
    pub fn floor(&self, key: &Bytes) -> u64 {
        self.keys.get(key).map_or(0, |key| key.floor)
    }

    /// The greatest value that anybody asked for.
    pub fn asked_for(&self, key: &Bytes) -> u64 {
        self.keys.get(key).map_or(0, |key| key.asked)
    }

    pub fn keys(&self) -> impl Iterator<Item = &Bytes> {
        self.keys.keys()
    }

    pub fn asked(&mut self, key: &Bytes, value: u64) {
        let key = self.keys.entry(key.clone()).or_default();
        key.asked = key.asked.max(value);
    }

    pub fn acknowledged(&mut self, key: &Bytes, value: u64) {
        let key = self.keys.entry(key.clone()).or_default();
        key.floor = key.floor.max(value);
    }

    /// A read found a value that began when `floor` was known.
    pub fn read(&mut self, key: &Bytes, value: u64, floor: u64) {
        let known = self.keys.get(key).copied().unwrap_or_default();
        if value < floor {
            self.fail(|| format!("{key:?} was {floor} before a read that finds {value}"));
        } else if value > known.asked {
            self.fail(|| format!("{key:?} is {value}, and nobody wrote more than {}", known.asked));
        }
        self.acknowledged(key, value);
    }
}

/// Of two ends of ranges: the empty one is behind all keys.
fn is_below(a: &Bytes, b: &Bytes) -> bool {
    !a.is_empty() && (b.is_empty() || a < b)
}
