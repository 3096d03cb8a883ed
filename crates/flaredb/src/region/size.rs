//! How large a region is, and where it can be cut. Found by walking it, which is done only when enough was written since the
//! last time that the answer may be another one.

use bytes::Bytes;
use consensus::MachineError;
use storage::View;

use super::RegionState;
use super::layout::{self, RAW};

/// Cuts asked for at once.
const CUTS_MAX: usize = 16;

/// What a walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Of keys and values.
    pub bytes: u64,
    pub keys: u64,
    /// Where it is to be cut, if it is as large as `split_bytes`: into parts of half that size.
    pub cuts: Vec<Bytes>,
}

/// Walks a region.
pub fn measure(view: &dyn View, state: &RegionState, split_bytes: u64) -> Result<Size, MachineError> {
    let mut size = Size::default();
    let (mut part, mut cuts) = (0, Vec::new());
    let mut walk = view.scan(RAW, &layout::raw_key(&state.start), Some(&layout::raw_end(&state.end)));
    while walk.valid() {
        let key = layout::client_key(walk.key());
        if part >= split_bytes / 2 && cuts.len() < CUTS_MAX {
            cuts.push((Bytes::copy_from_slice(key), size.bytes));
            part = 0;
        }
        let bytes = (key.len() + walk.value().len()) as u64;
        part += bytes;
        size.bytes += bytes;
        size.keys += 1;
        walk.advance();
    }
    walk.status()?;
    // A small rest stays with the part before it.
    if size.bytes >= split_bytes && split_bytes > 0 {
        let large = |(_, at): &(Bytes, u64)| size.bytes - at >= split_bytes / 4;
        size.cuts = cuts.into_iter().filter(large).map(|(key, _)| key).collect();
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use storage::memengine::MemEngine;
    use storage::{Engine as _, WriteBatch};

    use super::*;

    #[test]
    fn regions_are_cut_into_halves_of_what_is_too_large() {
        let engine = MemEngine::new(&layout::FAMILIES);
        let mut batch = WriteBatch::new();
        for number in 0..100 {
            batch.put(RAW, &layout::raw_key(format!("k{number:03}").as_bytes()), &[7; 96]);
        }
        engine.write(&batch).unwrap();
        let state = RegionState { version: 1, ..RegionState::default() };
        let measured = |split_bytes| measure(&*engine.view(), &state, split_bytes).unwrap();
        assert_eq!(measured(20_000), Size { bytes: 10_000, keys: 100, cuts: Vec::new() });
        assert_eq!(measured(10_000).cuts, ["k050"]);
        assert_eq!(measured(8_000).cuts, ["k040", "k080"]);
        assert_eq!(measured(9_000).cuts, ["k045"], "ten keys are no region");
        let part = RegionState { start: "k010".into(), end: "k020".into(), ..state.clone() };
        assert_eq!(measure(&*engine.view(), &part, 500).unwrap().cuts, ["k013", "k016"]);
    }
}
