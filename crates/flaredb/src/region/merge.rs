//! Two regions become one: what the commands of a merge do in the log of the region that is taken in (the *source*) and in
//! that of the neighbour that takes it in (the *target*). Who proposes them, and when, is in [`crate::merging`].
//!
//! ```text
//!  source's log   … writes │ Freeze at F │ refused …  │ Seal                         (or Thaw, if T says never)
//!                              │ every member has applied F? members still the same?
//!  target's log   … writes ────┴──────────────────────▶ │ CommitMerge │ writes, of both ranges
//!                                                     or │ AbortMerge  │ the version is another one: no CommitMerge any more
//! ```
//! No pair moves: raw pairs lie by their keys alone, and both regions have replicas in the same stores.
//!
//! # Why it is safe
//! * **One log decides.** A merge has happened when CommitMerge is applied in the target's log, and there alone. It counts on
//!   the target being of the version that the source was frozen for; whatever changes that version (AbortMerge, a split,
//!   another merge) makes it impossible for ever. A target that is frozen itself takes nobody in, and comes back, if it does,
//!   with another version: Thaw changes it too. So a source may thaw as soon as the target's committed state says *never*.
//! * **The answer can always be had.** A region that has taken one in remembers it ([`Merged`]), hands the memory on to what
//!   is split off it, takes no more than [`MERGED_MAX`], and is not merged away before it has forgotten. It forgets when no
//!   store has anything left of the source that could come back after a power cut. So as long as a frozen source is there to
//!   ask, whatever region lies where the target lay can tell it what became of the merge.
//! * **Nobody reads what is old.** CommitMerge is proposed when all members have applied F. From then on each of them refuses
//!   reads, whatever lease it has or had, and after a restart it has to apply F again before it can serve: F is committed.
//! * **The members stay.** A frozen region's members refuse to propose changes of membership ([`consensus::Input::HoldChanges`]),
//!   the first entry of every later leader included. A change that was in the log already shows in Seal, which comes after it.
//! * **Every replica of the target has what it takes in**, or waits for it. In one batch with the larger range the source's
//!   peer on this store goes, with its records. After a power cut before that is on disk both are there again as they were.
//!   The source may then be before F, and the other stores may have nothing left of it: the target's entries wait
//!   (`EngineError::Held`) until the source has applied F from its own log, which has it, because it was applied once; that F
//!   is committed is vouched for by CommitMerge.
//! * **If the source's peer is missing all the same**, or is not what the others have (F's hash tells), this replica of the
//!   target is *lacking*: from that entry on it answers nothing and hands nothing on, also after restarts, its hash differs
//!   from the others', and the placement driver puts another one in its place.
//!
//! A replica of the target that gets a snapshot from after the merge takes the place of the source's peer with it
//! ([`super::snapshot`]).

use std::collections::BTreeSet;

use base::{GroupId, NodeId, PeerId, hash};
use bytes::Bytes;
use consensus::{MachineError, Membership};
use proto::{flaredb as pb, placement};
use storage::EngineError;

use super::layout::{self, REGION};
use super::machine::{FROZEN, Happened, REFUSED, RegionMachine, STALE, Stage, load};
use super::{RegionState, overlap};

/// Regions that one remembers to have taken in. It forgets them within seconds, unless a store is away.
pub const MERGED_MAX: usize = 16;

/// A region is about to become part of a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// The entry that froze it.
    pub at: u64,
    pub term: u64,
    /// Of all that was applied before.
    pub hash: u64,
    /// As it was then, which it still must be.
    pub conf_version: u64,
    pub target: GroupId,
    /// The target takes it in while it is of this version, or never.
    pub target_version: u64,
    /// Where the target begins in this version: whoever has this key knows what became of the merge.
    pub target_start: Bytes,
}

/// A region that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    pub source: GroupId,
    pub into: GroupId,
    /// Of `into`, from then on.
    pub version: u64,
    /// What it had when it was taken in.
    pub peers: Vec<(NodeId, PeerId)>,
}

/// What there is on this store of a region that is to be taken in.
enum Here {
    Ready(PeerId),
    /// It has not applied all that it is to bring.
    Behind,
    Missing(&'static str),
}

impl RegionMachine {
    pub(super) fn freeze(&mut self, stage: &mut Stage<'_>, freeze: pb::Freeze) -> u32 {
        let membership = Membership::decode(&self.state.membership).unwrap_or_default();
        let state = &mut self.state;
        let adjacent = is_adjacent(state, &freeze.target_start, &freeze.target_end);
        if membership.is_joint() || !adjacent || !state.merged.is_empty() || freeze.target == self.id.0 {
            return REFUSED;
        }
        state.frozen = Some(Frozen {
            at: stage.index,
            term: stage.term,
            // The commands before it in the same entry count.
            hash: hash::roll(state.mark.hash, &stage.batch.bytes()[stage.begun..]),
            conf_version: state.conf_version,
            target: GroupId(freeze.target),
            target_version: freeze.target_version,
            target_start: freeze.target_start,
        });
        self.agree(stage);
        0
    }

    /// Whether the region is still frozen as it was, with the members that it had.
    pub(super) fn seal(&self, seal: &pb::Seal) -> u32 {
        let same = |frozen: &Frozen| frozen.at == seal.frozen_at && frozen.conf_version == self.state.conf_version;
        if self.state.frozen.as_ref().is_some_and(same) { 0 } else { REFUSED }
    }

    pub(super) fn thaw(&mut self, stage: &mut Stage<'_>, thaw: &pb::Thaw) -> u32 {
        if self.state.frozen.take_if(|frozen| frozen.at == thaw.frozen_at).is_none() {
            return STALE;
        }
        // Whoever wanted to become part of this one learns that it never will.
        self.state.version += 1;
        self.agree(stage);
        0
    }

    pub(super) fn abort_merge(&mut self, stage: &mut Stage<'_>) -> u32 {
        if self.state.frozen.is_some() {
            return FROZEN;
        }
        self.state.version += 1;
        self.agree(stage);
        0
    }

    pub(super) fn forget_merged(&mut self, stage: &mut Stage<'_>, forget: &pb::ForgetMerged) -> u32 {
        let before = self.state.merged.len();
        self.state.merged.retain(|merged| merged.source.0 != forget.source);
        if self.state.merged.len() < before {
            self.agree(stage);
        }
        0
    }

    pub(super) fn commit_merge(&mut self, stage: &mut Stage<'_>, commit: pb::CommitMerge) -> Result<u32, MachineError> {
        if self.state.frozen.is_some() {
            return Ok(FROZEN);
        }
        let membership = Membership::decode(&self.state.membership).unwrap_or_default();
        let source = commit.source.clone().unwrap_or_default();
        let named: BTreeSet<NodeId> = source.peers.iter().map(|peer| NodeId(peer.store_id)).collect();
        let adjacent = is_adjacent(&self.state, &source.start, &source.end);
        if membership.is_joint()
            || !adjacent
            || named.len() != source.peers.len()
            || !named.iter().eq(membership.members.keys())
            || self.state.merged.len() >= MERGED_MAX
            || source.id == self.id.0
        {
            return Ok(REFUSED);
        }
        // The outcome does not depend on what this store has; only whether this replica is whole.
        match self.source_here(&commit, &source)? {
            Here::Ready(peer) => {
                let id = GroupId(source.id);
                stage.own.delete(REGION, &layout::peer_key(id));
                stage.own.put(REGION, &layout::retired_key(id), &peer.0.to_le_bytes());
                stage.own.delete(REGION, &layout::state_key(id));
                stage.own.delete(REGION, &layout::membership_key(id));
                stage.taken.push((id, peer));
            }
            Here::Behind => {
                let (source, index, term) = (GroupId(source.id), commit.frozen_at, commit.frozen_term);
                (self.sink)(Happened::Behind { source, index, term });
                return Err(EngineError::Held.into());
            }
            Here::Missing(why) => {
                tracing::error!(
                    target: "flaredb_raft",
                    "This replica lacks what its region has taken in and answers nothing any more, region={} source={} \
                     why={why} code=CF8509",
                    self.id,
                    source.id
                );
                stage.own.put(REGION, &layout::lacking_key(self.id), &[]);
                stage.lacking = true;
            }
        }
        let state = &mut self.state;
        if source.end == state.start && !state.start.is_empty() {
            state.start = source.start.clone();
        } else {
            state.end = source.end.clone();
        }
        state.version = state.version.max(source.version) + 1;
        let peers = source.peers.iter().map(|peer| (NodeId(peer.store_id), PeerId(peer.id))).collect();
        let version = state.version;
        state.merged.push(Merged { source: GroupId(source.id), into: self.id, version, peers });
        self.agree(stage);
        Ok(0)
    }

    fn source_here(&self, commit: &pb::CommitMerge, source: &placement::Region) -> Result<Here, MachineError> {
        let id = GroupId(source.id);
        let Some(peer) = self.engine.get(REGION, &layout::peer_key(id))? else {
            return Ok(Here::Missing("there is no peer of it here"));
        };
        let peer = layout::read_peer(&peer)?;
        if source.peers.iter().all(|named| named.id != peer.0) {
            return Ok(Here::Missing("another peer of it is here"));
        }
        let state = load(&*self.engine, id)?;
        if state.mark.index < commit.frozen_at {
            return Ok(Here::Behind);
        }
        Ok(match &state.frozen {
            Some(frozen) if (frozen.at, frozen.hash) == (commit.frozen_at, commit.frozen_hash) => Here::Ready(peer),
            Some(frozen) if frozen.at == commit.frozen_at => {
                Here::Missing("it has come to something else than the others")
            }
            _ => Here::Missing("it is not frozen"),
        })
    }

    /// What the replicas must agree on becomes part of the hash.
    pub(super) fn agree(&self, stage: &mut Stage<'_>) {
        stage.batch.put(REGION, &layout::state_key(self.id), &layout::write_state(&self.state));
    }
}

/// Whether the region begins where this range ends, or ends where it begins.
fn is_adjacent(state: &RegionState, start: &Bytes, end: &Bytes) -> bool {
    let touches = |end: &Bytes, start: &Bytes| end == start && !end.is_empty();
    state.version > 0 && (touches(end, &state.start) || touches(&state.end, start))
}

/// Regions on this store that are no more, as the state of another one tells which is about to be put in its place here: what
/// they hold is in that state. Not while the one that took them in is still to do so here.
pub(super) fn displaced(
    engine: &dyn storage::Engine,
    id: GroupId,
    state: &RegionState,
) -> Result<Vec<(GroupId, PeerId)>, MachineError> {
    let mut gone = Vec::new();
    let overlapping = overlap::overlapping(&*engine.view(), id, state)?;
    for merged in state.merged.iter().filter(|merged| overlapping.contains(&merged.source)) {
        let Some(peer) = engine.get(REGION, &layout::peer_key(merged.source))? else { continue };
        let peer = layout::read_peer(&peer)?;
        let into_is_here = engine.get(REGION, &layout::peer_key(merged.into))?.is_some();
        let is_past = merged.into == id || !into_is_here || load(engine, merged.into)?.version >= merged.version;
        if is_past && merged.peers.iter().any(|(_, known)| *known == peer) {
            gone.push((merged.source, peer));
        }
    }
    Ok(gone)
}

#[cfg(test)]
pub(super) mod tests;
