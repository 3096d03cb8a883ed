//! The split checker: a region is cut where its leader wants it to be. The leader knows its data (series boundaries, sizes,
//! load); PD's part is to do it once, on the epoch it was reported for, and to draw the new ids.

use crate::model::{Cause, Operator, Step};
use crate::plan::round::{Blocker, Round};
use crate::policy::MIB;
use crate::view::Region;

pub fn check(round: &mut Round<'_>, region: &Region) -> Result<Option<Operator>, Blocker> {
    if region.split_keys.is_empty() {
        return Ok(None);
    }
    if let Some(blocker) = round.blocker(region).or_else(|| round.limit(Cause::Split)) {
        return Err(blocker);
    }
    let parts = region.split_keys.len() + 1;
    let why = if region.bytes >= round.policy.split_bytes() {
        format!("it holds {} MiB", region.bytes / MIB)
    } else {
        let kib = region.read_bytes_per_sec.saturating_add(region.write_bytes_per_sec) >> 10;
        format!("it carries {} requests and {kib} KiB per second", region.requests_per_sec)
    };
    Ok(Some(Operator {
        region: region.id,
        epoch: region.epoch,
        cause: Cause::Split,
        steps: vec![Step::Split { keys: region.split_keys.to_vec() }],
        reason: format!("its leader asks for {parts} parts; {why}"),
        rejected: Vec::new(),
    }))
}
