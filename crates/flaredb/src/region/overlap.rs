//! Ranges that belong to other regions by now. A replica that was away for long may think of a range that has been cut since,
//! and whose parts have come to the same store by themselves.

use base::GroupId;
use bytes::Bytes;
use consensus::MachineError;
use storage::View;

use super::RegionState;
use super::layout::{self, REGION, Record};

/// From a key to another one, exclusive; an empty end is behind all keys.
pub type Range = (Bytes, Bytes);

/// The ranges of all other regions of the store, in the order of their starts.
pub fn others(view: &dyn View, own: GroupId) -> Result<Vec<Range>, MachineError> {
    Ok(all(view, own)?.into_iter().map(|(range, _)| range).collect())
}

/// The other regions of the store that have a key of this one's range.
pub fn overlapping(view: &dyn View, own: GroupId, state: &RegionState) -> Result<Vec<GroupId>, MachineError> {
    let all = all(view, own)?.into_iter();
    Ok(all.filter(|(range, _)| overlaps(state, std::slice::from_ref(range))).map(|(_, id)| id).collect())
}

fn all(view: &dyn View, own: GroupId) -> Result<Vec<(Range, GroupId)>, MachineError> {
    let mut ranges = Vec::new();
    let mut walk = view.scan(REGION, &[], None);
    while walk.valid() {
        if let Some((region, Record::State)) = layout::record(walk.key())
            && region != own
        {
            let state = layout::read_state(Bytes::copy_from_slice(walk.value()), Bytes::new())?;
            if state.version > 0 {
                ranges.push(((state.start, state.end), region));
            }
        }
        walk.advance();
    }
    walk.status()?;
    ranges.sort();
    Ok(ranges)
}

/// Whether any of these has a key of the region's range.
pub fn overlaps(state: &RegionState, others: &[Range]) -> bool {
    let before = |key: &Bytes, end: &Bytes| end.is_empty() || key < end;
    others.iter().any(|(start, end)| before(start, &state.end) && before(&state.start, end))
}

/// What is left of the region's range without these, which ascend.
pub fn without(state: &RegionState, others: &[Range]) -> Vec<Range> {
    let before = |key: &Bytes, end: &Bytes| end.is_empty() || key < end;
    let mut left = Vec::new();
    let mut from = Some(state.start.clone());
    for (start, end) in others {
        let Some(begin) = from.clone().filter(|begin| before(begin, end)) else { continue };
        if !before(start, &state.end) {
            break;
        }
        if begin < *start {
            left.push((begin, start.clone()));
        }
        from = (!end.is_empty()).then(|| end.clone());
    }
    left.extend(from.filter(|from| before(from, &state.end)).map(|from| (from, state.end.clone())));
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(start: &'static str, end: &'static str) -> RegionState {
        RegionState { start: start.into(), end: end.into(), version: 1, ..RegionState::default() }
    }

    fn ranges(all: &[(&'static str, &'static str)]) -> Vec<Range> {
        all.iter().map(|(start, end)| ((*start).into(), (*end).into())).collect()
    }

    #[test]
    fn what_others_have_is_left_to_them() {
        let without = |own: (&'static str, &'static str), others: &[(&'static str, &'static str)]| {
            without(&state(own.0, own.1), &ranges(others))
        };
        assert_eq!(without(("b", "y"), &[]), ranges(&[("b", "y")]));
        assert_eq!(without(("b", "y"), &[("a", "b"), ("y", "")]), ranges(&[("b", "y")]));
        assert_eq!(without(("b", "y"), &[("m", "")]), ranges(&[("b", "m")]));
        assert_eq!(without(("b", "y"), &[("", "d"), ("f", "h"), ("x", "z")]), ranges(&[("d", "f"), ("h", "x")]));
        assert_eq!(without(("b", "y"), &[("a", "z")]), []);
        assert_eq!(without(("", ""), &[("d", "f")]), ranges(&[("", "d"), ("f", "")]));
        assert_eq!(without(("", ""), &[("", "")]), []);
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let overlaps = |others: &[(&'static str, &'static str)]| overlaps(&state("b", "y"), &ranges(others));
        assert!(!overlaps(&[("a", "b"), ("y", "")]));
        assert!(
            overlaps(&[("a", "b\0")]) && overlaps(&[("x", "")]) && overlaps(&[("", "")]) && overlaps(&[("c", "d")])
        );
    }
}
