//! The merge checker: a small region becomes part of a neighbour, because every region costs something even when it is
//! empty.
//!
//! Both must be sound and at rest: no recent split, not hot, nothing under way. Replicas must lie in the same stores, so the
//! small region's are moved first; what it becomes must stay well below the size at which it would be split again.

use base::{NodeId, PeerId};

use crate::model::{Cause, Operator, Step};
use crate::plan::filter::{self, Ask};
use crate::plan::round::{Blocker, Round};
use crate::policy::{MIB, format_span};
use crate::view::Region;

pub fn check(round: &mut Round<'_>, region: &Region) -> Result<Option<Operator>, Blocker> {
    if !is_small_and_at_rest(round, region) {
        return Ok(None);
    }
    let (before, behind) = round.view.neighbours(region);
    let fits = |other: &&Region| {
        round.is_sound(other)
            && round.blocker(other).is_none()
            && !other.is_hot()
            && !other.unmeasured
            && other.split_keys.is_empty()
            && other.bytes + region.bytes <= round.policy.split_bytes() / 2
            && !carry_much(round, region, other)
    };
    let Some(into) = [before, behind].into_iter().flatten().filter(fits).min_by_key(|other| (other.bytes, other.id))
    else {
        return Ok(None);
    };
    if let Some(blocker) = round.blocker(region).or_else(|| round.limit(Cause::Merge)) {
        return Err(blocker);
    }
    // Where it cannot follow its neighbour, the neighbour may yet come to it: it waits without complaint.
    let Ok(mut steps) = move_beside(round, region, into, false) else { return Ok(None) };
    steps.push(Step::Merge { into: into.id, into_epoch: into.epoch });
    let reason = format!(
        "{} MiB and {} keys are few; its neighbour {} has {} MiB",
        region.bytes / MIB,
        region.keys,
        into.id,
        into.bytes / MIB
    );
    let (cause, rejected) = (Cause::Merge, Vec::new());
    Ok(Some(Operator { region: region.id, epoch: region.epoch, cause, steps, reason, rejected }))
}

fn is_small_and_at_rest(round: &Round<'_>, region: &Region) -> bool {
    region.bytes <= round.policy.merge_bytes()
        && !region.unmeasured
        && !region.remembers
        && region.keys <= round.policy.max_merge_region_keys
        && round.policy.max_merge_region_size > 0
        && region.split_keys.is_empty()
        && !region.is_hot()
        && round.now.since(region.version_since) >= round.policy.split_merge_interval
        && round.is_sound(region)
}

/// Together they would be split again for their load.
fn carry_much(round: &Round<'_>, region: &Region, other: &Region) -> bool {
    let bytes = |region: &Region| region.read_bytes_per_sec.saturating_add(region.write_bytes_per_sec);
    round.policy.is_much(
        region.requests_per_sec.saturating_add(other.requests_per_sec),
        bytes(region).saturating_add(bytes(other)),
    )
}

/// The steps of a merge that people ask for; the error says what stands in the way. Neither region need be small, or at rest for
/// long, but what becomes of them must not be too much for one.
pub fn steps(round: &Round<'_>, region: &Region, into: &Region) -> Result<Vec<Step>, String> {
    let (before, behind) = round.view.neighbours(region);
    let beside: Vec<&Region> = [before, behind].into_iter().flatten().collect();
    if !beside.iter().any(|other| other.id == into.id) {
        let beside = beside.iter().map(|other| other.id.to_string()).collect::<Vec<_>>().join(" and ");
        let beside = if beside.is_empty() { "none".to_owned() } else { beside };
        return Err(format!("it does not lie beside that one; regions beside it: {beside}"));
    }
    for one in [region, into] {
        let against = match () {
            () if !round.is_sound(one) => "does not have all its replicas, each of them well",
            () if one.unmeasured => "is not measured yet",
            () if !one.split_keys.is_empty() => "is about to be split",
            () => continue,
        };
        return Err(format!("region {} {against}", one.id));
    }
    if region.remembers {
        return Err("a store may have something left of a region that it took in; try again in a minute".to_owned());
    }
    let (bytes, most) = (region.bytes + into.bytes, round.policy.split_bytes());
    if bytes > most {
        let (bytes, most) = (bytes / MIB, most / MIB);
        return Err(format!(
            "together they have {bytes} MiB and would be split again: region-split-size is {most} MiB"
        ));
    }
    if carry_much(round, region, into) {
        return Err(
            "together they would carry so much that they are split again: see load-split-requests-per-sec".to_owned()
        );
    }
    let mut steps = move_beside(round, region, into, true)?;
    steps.push(Step::Merge { into: into.id, into_epoch: into.epoch });
    Ok(steps)
}

/// Steps that bring the region's replicas into the neighbour's stores, one at a time; the error says why that cannot be. `asked`:
/// people want it, whom rates and busy stores do not stop.
fn move_beside(round: &Round<'_>, region: &Region, into: &Region, asked: bool) -> Result<Vec<Step>, String> {
    let missing: Vec<NodeId> =
        into.voters().map(|peer| peer.store).filter(|store| region.peer(*store).is_none()).collect();
    let mut surplus: Vec<NodeId> =
        region.voters().map(|peer| peer.store).filter(|store| into.peer(*store).is_none()).collect();
    // The leader's replica goes last: by then there is one to hand over to.
    surplus.sort_by_key(|store| (region.leader == Some(*store), *store));
    let mut steps = Vec::new();
    for (arriving, leaving) in missing.into_iter().zip(surplus) {
        let ask = Ask { region, leaving: Some(leaving), isolation_min: 0 };
        let store = round.store(arriving).ok_or_else(|| format!("there is no store {arriving}"))?;
        let unfit = |why| format!("store {arriving} cannot take its replica: {why}");
        if asked {
            filter::judge_asked(round, &ask, store).map_err(unfit)?;
        } else {
            filter::judge_replica(round, &ask, store).map_err(unfit)?;
            round.may_leave(leaving).map_err(|blocker| blocker.to_string())?;
        }
        steps.extend([Step::AddLearner { store: arriving, peer: PeerId::NONE }, Step::Promote { store: arriving }]);
        if region.leader == Some(leaving) {
            let stays = |store: &NodeId| into.peer(*store).is_some();
            let to = round.select_leader(region, leaving).ok().map(|(to, _)| to).filter(stays).unwrap_or(arriving);
            steps.push(Step::TransferLeader { to });
        }
        let peer = region.peer(leaving).expect("it is one of its voters").id;
        steps.push(Step::Remove { store: leaving, peer });
    }
    Ok(steps)
}

/// Why a small region is not merged, in words; `None` when it is not small or nothing holds it.
pub fn obstacle(round: &Round<'_>, region: &Region) -> Option<String> {
    let policy = round.policy;
    if region.bytes > policy.merge_bytes() || region.keys > policy.max_merge_region_keys {
        return None;
    }
    if region.frozen {
        return Some("small, and being merged".to_owned());
    }
    if region.remembers {
        return Some("small, but a store may have something left of a region that it took in".to_owned());
    }
    if region.unmeasured {
        return Some("perhaps small, but not measured yet".to_owned());
    }
    let rested = round.now.since(region.version_since);
    if rested < policy.split_merge_interval {
        let (rested, interval) = (format_span(rested), format_span(policy.split_merge_interval));
        return Some(format!("small, but its range is {rested} old; split-merge-interval is {interval}"));
    }
    if region.is_hot() {
        return Some("small, but hot".to_owned());
    }
    match round.view.neighbours(region) {
        (None, None) => Some("small, but it has no neighbour".to_owned()),
        (before, behind) => {
            let busy = before.into_iter().chain(behind).all(|other| carry_much(round, region, other));
            busy.then(|| "small, but with either neighbour it would carry so much that it is split again".to_owned())
        }
    }
}
