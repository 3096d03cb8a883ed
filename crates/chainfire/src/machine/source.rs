//! Reading the store at one moment, or that moment and what a batch under way has staged on top of it.
//!
//! A [`Source`] is an engine view plus, within `apply`, the overlays of the batch. Everything that reads the store does
//! it through here, so that a range within a transaction and a range of an API thread are the same code.
//!
//! Reading in the past goes back from the live version, link by link ([`layout`]), from the nearest signpost on.
//!
//! The parts: [`overlay`] what is laid over the view, [`past`] reading as of a past revision.

mod overlay;
mod past;

use bytes::Bytes;
use consensus::MachineError;
use storage::{Cursor, FamilyId, View};

use super::count::CountIndex;
use super::layout::{self, KV, META, REV};
use overlay::overlay_range;
pub use overlay::{Overlay, Overlays, Staged, Walk};

/// The keys that a request names, in one form for etcd's three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span<'a> {
    One(&'a [u8]),
    /// From the first up to, not including, the second; without a second, to the end.
    Many(&'a [u8], Option<&'a [u8]>),
}

impl<'a> Span<'a> {
    /// Reads etcd's convention: no end is the key alone, an end of one zero byte is from the key on. An end at or
    /// before the key names nothing.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Span<'a> {
        match range_end {
            [] => Span::One(key),
            [0] => Span::Many(key, None),
            end if end <= key => Span::Many(key, Some(key)),
            end => Span::Many(key, Some(end)),
        }
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Span::One(one) => key == *one,
            Span::Many(from, to) => key >= *from && to.is_none_or(|to| key < to),
        }
    }
}

/// Goes on with the walk or ends it.
pub type More = bool;

/// The store as one reader sees it.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    view: &'a dyn View,
    counts: &'a CountIndex,
    staged: Option<&'a Overlays>,
}

impl<'a> Source<'a> {
    pub fn new(view: &'a dyn View, counts: &'a CountIndex) -> Source<'a> {
        Source { view, counts, staged: None }
    }

    /// With the overlays of a batch under way. For reads in the past, `old` and `rev` must have been brought up to date by
    /// the batch.
    pub fn staged(view: &'a dyn View, counts: &'a CountIndex, overlays: &'a Overlays) -> Source<'a> {
        Source { view, counts, staged: Some(overlays) }
    }

    /// The live version of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        self.pair(KV, key)
    }

    /// Calls `visit` with the record of each key of the span in order, as of now or of a past revision, until it says
    /// that it wants no more.
    pub fn visit(
        &self,
        span: &Span<'_>,
        at: Option<i64>,
        visit: &mut dyn FnMut(&[u8]) -> Result<More, MachineError>,
    ) -> Result<(), MachineError> {
        match (span, at) {
            (Span::One(key), at) => {
                let record = match at {
                    None => self.get(key)?,
                    Some(at) => self.get_at(key, at)?,
                };
                record.map_or(Ok(()), |record| visit(&record).map(|_| ()))
            }
            (Span::Many(from, to), None) => {
                let mut walk = self.walk(KV, from, *to);
                while walk.valid() && visit(walk.value())? {
                    walk.advance();
                }
                walk.status()
            }
            (Span::Many(from, to), Some(at)) => past::visit(self, from, *to, at, visit),
        }
    }

    /// As [`Source::visit`] of the present, from the last key to the first. Only without a batch under way.
    pub fn visit_back(
        &self,
        from: &[u8],
        to: Option<&[u8]>,
        visit: &mut dyn FnMut(&[u8]) -> Result<More, MachineError>,
    ) -> Result<(), MachineError> {
        assert!(self.staged.is_none(), "a batch under way is only walked forwards");
        let mut walk = self.view.scan_back(KV, from, to);
        while walk.valid() && visit(walk.value())? {
            walk.advance();
        }
        Ok(walk.status()?)
    }

    /// Whether [`Source::visit_back`] can be used.
    pub fn is_plain(&self) -> bool {
        self.staged.is_none()
    }

    /// How many keys of the span are live.
    pub fn count(&self, span: &Span<'_>) -> Result<u64, MachineError> {
        let (from, to) = match span {
            Span::One(key) => return Ok(u64::from(self.get(key)?.is_some())),
            Span::Many(from, to) => (*from, *to),
        };
        let mut count = self.counts.count(self.view, from, to)?;
        if let Some(overlays) = self.staged {
            for (_, staged) in overlay_range(&overlays.kv, from, to) {
                match (staged.existed, staged.now.is_some()) {
                    (true, false) => count -= 1,
                    (false, true) => count += 1,
                    _ => {}
                }
            }
        }
        Ok(count)
    }

    /// The count of a range of which `visited` keys were counted by walking up to where `walk` stands.
    pub fn count_rest(
        &self,
        mut walk: Walk<'_>,
        visited: u64,
        from: &[u8],
        to: Option<&[u8]>,
    ) -> Result<u64, MachineError> {
        if self.staged.is_some() {
            return self.count(&Span::Many(from, to));
        }
        let mut count = visited;
        let end = if walk.valid() { self.counts.bucket_end(walk.key()) } else { None };
        while walk.valid() && end.is_none_or(|end| walk.key() < end) {
            count += 1;
            walk.advance();
        }
        walk.status()?;
        match end {
            Some(end) if walk.valid() => Ok(count + self.counts.count(self.view, end, to)?),
            _ => Ok(count),
        }
    }

    /// How many keys of the span were live at a past revision; `now` is the store's revision. Goes back from the
    /// present over the changes since then, if those are fewer than the keys, else walks the keys.
    pub fn count_at(&self, span: &Span<'_>, at: i64, now: i64) -> Result<u64, MachineError> {
        if let Span::One(key) = span {
            return Ok(u64::from(self.get_at(key, at)?.is_some()));
        }
        if self.staged.is_none()
            && let Some(count) = self.count_back(span, at, now)?
        {
            return Ok(count);
        }
        let mut count = 0;
        self.visit(span, Some(at), &mut |_| {
            count += 1;
            Ok(true)
        })?;
        Ok(count)
    }

    /// This store with overlays of [`Source::patches`]: its present is that past.
    pub fn patched<'b>(&self, overlays: &'b Overlays) -> Source<'b>
    where
        'a: 'b,
    {
        Source { staged: Some(overlays), ..*self }
    }

    /// A walk over `rev` from a revision on. Only sees what the engine holds.
    pub fn changes(&self, from: i64) -> Box<dyn Cursor + 'a> {
        self.view.scan(REV, &layout::rev_start(from), None)
    }

    /// The keys attached to a lease, in order.
    pub fn lease_keys(&self, id: i64) -> Result<Vec<Bytes>, MachineError> {
        let from = layout::attached_key(id, b"");
        let to = base::codec::prefix_end(&from).expect("a lease's prefix begins with a letter");
        let mut keys = Vec::new();
        let mut walk = self.walk(META, &from, Some(&to));
        while walk.valid() {
            keys.push(Bytes::copy_from_slice(layout::read_attached_key(walk.key())?.1));
            walk.advance();
        }
        walk.status()?;
        Ok(keys)
    }

    /// What a family holds under a key, overlay included.
    fn pair(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        let staged = self.staged.and_then(|overlays| overlays.of(family)).and_then(|overlay| overlay.get(key));
        match staged {
            Some(staged) => Ok(staged.now.clone()),
            None => Ok(self.view.get(family, key)?),
        }
    }

    /// A walk over a family, overlay included.
    pub fn walk(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Walk<'a> {
        let staged = self.staged.and_then(|overlays| overlays.of(family)).filter(|overlay| !overlay.is_empty());
        Walk::new(self.view.scan(family, from, to), staged, from, to)
    }
}
