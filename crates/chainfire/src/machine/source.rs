//! Reading the store at one moment, or that moment and what a batch under way has staged on top of it.
//!
//! A [`Source`] is an engine view plus, within `apply`, the overlays of the batch. Everything that reads the store does
//! it through here, so that a range within a transaction and a range of an API thread are the same code.
//!
//! Reading in the past needs no index of versions: the version of a key that was live at revision R is either its
//! record in `kv`, if that was last put at or before R, or the one pair of `old` with mod revision <= R < superseding
//! revision. A range at R is therefore the merge of two ordered, filtered walks. A walk that meets many dead versions
//! of one key jumps to the one it needs.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

use base::codec::put_u64;
use bytes::Bytes;
use consensus::MachineError;
use storage::{Cursor, FamilyId, View};

use super::count::CountIndex;
use super::layout::{self, KV, META, OLD, Old, REV, Rev};
use super::record::Record;

/// What a batch under way holds over the engine view, by key.
pub type Overlay = BTreeMap<Bytes, Staged>;

/// A key's state in a batch under way.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Whether the key is in the engine view.
    pub existed: bool,
    /// What it holds after the batch; `None`: deleted.
    pub now: Option<Bytes>,
}

/// The overlays of a batch, one for each family that is read while it is under way.
#[derive(Debug, Default)]
pub struct Overlays {
    pub kv: Overlay,
    pub old: Overlay,
    pub meta: Overlay,
}

impl Overlays {
    fn of(&self, family: FamilyId) -> Option<&Overlay> {
        match family {
            KV => Some(&self.kv),
            OLD => Some(&self.old),
            META => Some(&self.meta),
            _ => None,
        }
    }
}

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

/// Changes since a revision, at most, for which the past is the present with patches.
const PATCHES_MAX: i64 = 1_000;

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

    /// With the overlays of a batch under way. `old` must have been brought up to date by the batch.
    pub fn staged(view: &'a dyn View, counts: &'a CountIndex, overlays: &'a Overlays) -> Source<'a> {
        Source { view, counts, staged: Some(overlays) }
    }

    /// The live version of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, MachineError> {
        if let Some(staged) = self.staged.and_then(|overlays| overlays.kv.get(key)) {
            return Ok(staged.now.clone());
        }
        Ok(self.view.get(KV, key)?)
    }

    /// The version of a key that was live at a revision.
    pub fn get_at(&self, key: &[u8], at: i64) -> Result<Option<Bytes>, MachineError> {
        match self.get(key)? {
            Some(record) if Record::read(&record)?.mod_revision <= at => Ok(Some(record)),
            _ => self.old_at(key, at),
        }
    }

    /// The version of a key that was put at exactly this revision, live or not.
    pub fn version(&self, key: &[u8], mod_revision: i64) -> Result<Option<Bytes>, MachineError> {
        if let Some(record) = self.get(key)?
            && Record::read(&record)?.mod_revision == mod_revision
        {
            return Ok(Some(record));
        }
        self.old_version(key, mod_revision)
    }

    /// As [`Source::version`], of versions that are known to be superseded.
    pub fn old_version(&self, key: &[u8], mod_revision: i64) -> Result<Option<Bytes>, MachineError> {
        let mut old_key = Vec::with_capacity(key.len() + 10);
        layout::old_key(&mut old_key, key, mod_revision);
        let value = match self.staged.and_then(|overlays| overlays.old.get(&old_key[..])) {
            Some(staged) => staged.now.clone(),
            None => self.view.get(OLD, &old_key)?,
        };
        value.map(|value| Ok(value.slice_ref(Old::read(&value)?.record))).transpose()
    }

    /// Calls `visit` with the record of each key of the span in order, as of now or of a past revision, until it says
    /// that it wants no more.
    pub fn visit(
        &self,
        span: &Span<'_>,
        at: Option<i64>,
        visit: &mut dyn FnMut(&[u8]) -> Result<More, MachineError>,
    ) -> Result<(), MachineError> {
        let (from, to) = match (span, at) {
            (Span::One(key), at) => {
                let record = match at {
                    None => self.get(key)?,
                    Some(at) => self.get_at(key, at)?,
                };
                return record.map_or(Ok(()), |record| visit(&record).map(|_| ()));
            }
            (Span::Many(from, to), None) => {
                let mut walk = self.walk(KV, from, *to);
                while walk.valid() && visit(walk.value())? {
                    walk.advance();
                }
                return walk.status();
            }
            (Span::Many(from, to), Some(_)) => (*from, *to),
        };
        let at = at.expect("the present was dealt with above");
        let mut live = Live { walk: self.walk(KV, from, to), at };
        let mut dead = Dead::new(self, from, to, at);
        live.settle()?;
        dead.settle()?;
        loop {
            let first = match (live.here()?, dead.here()?) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(live), Some(dead)) => live.key < dead.key,
            };
            if first {
                if !visit(live.walk.value())? {
                    return Ok(());
                }
                live.walk.advance();
                live.settle()?;
            } else {
                if !visit(dead.record()?)? {
                    return Ok(());
                }
                dead.walk.advance();
                dead.settle()?;
            }
        }
        live.walk.status()?;
        dead.walk.status()
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

    /// What makes the present of a span look like a revision not long ago: the keys that changed since, as they were.
    /// `None` when too much has changed. Only without a batch under way.
    pub fn patches(&self, span: &Span<'_>, at: i64, now: i64) -> Result<Option<Overlays>, MachineError> {
        if self.staged.is_some() || now - at > PATCHES_MAX {
            return Ok(None);
        }
        // By key: the version at the revision, and whether there is one now.
        let mut changed: BTreeMap<Bytes, (i64, bool)> = BTreeMap::new();
        let mut walk = self.changes(at + 1);
        let mut steps = 0;
        while walk.valid() {
            let change = Rev::read(walk.key(), walk.value())?;
            if change.revision > now {
                break;
            }
            steps += 1;
            if steps > PATCHES_MAX {
                return Ok(None);
            }
            if span.contains(change.key) {
                let live = change.kind != layout::REV_DELETE;
                match changed.get_mut(change.key) {
                    Some(known) => known.1 = live,
                    None => {
                        changed.insert(Bytes::copy_from_slice(change.key), (change.previous, live));
                    }
                }
            }
            walk.advance();
        }
        walk.status()?;
        let mut overlays = Overlays::default();
        for (key, (version, existed)) in changed {
            let missing = || layout::damaged("version named in history", &key);
            let now = match version {
                0 => None,
                version => Some(self.old_version(&key, version)?.ok_or_else(missing)?),
            };
            overlays.kv.insert(key, Staged { existed, now });
        }
        Ok(Some(overlays))
    }

    /// This store with overlays of [`Source::patches`]: its present is that past.
    pub fn patched<'b>(&self, overlays: &'b Overlays) -> Source<'b>
    where
        'a: 'b,
    {
        Source { staged: Some(overlays), ..*self }
    }

    /// The present count less what was made and plus what was deleted since; `None` when that is too long a way.
    fn count_back(&self, span: &Span<'_>, at: i64, now: i64) -> Result<Option<u64>, MachineError> {
        let present = self.count(span)?;
        let mut steps_left = (present / 4).max(1_000);
        if u64::try_from(now - at).is_ok_and(|revisions| revisions > steps_left) {
            return Ok(None);
        }
        let mut difference = 0_i64;
        let mut walk = self.changes(at + 1);
        while walk.valid() {
            let change = Rev::read(walk.key(), walk.value())?;
            if change.revision > now {
                break;
            }
            if steps_left == 0 {
                return Ok(None);
            }
            steps_left -= 1;
            if span.contains(change.key) {
                match change.kind {
                    layout::REV_DELETE => difference += 1,
                    _ if change.previous == 0 => difference -= 1,
                    _ => {}
                }
            }
            walk.advance();
        }
        walk.status()?;
        Ok(Some(present.saturating_add_signed(difference)))
    }

    /// A walk over `rev` from a revision on. Only sees what the engine holds.
    pub fn changes(&self, from: i64) -> Box<dyn Cursor + 'a> {
        self.view.scan(REV, &layout::rev_key(from, 0), None)
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

    /// A walk over a family, overlay included.
    pub fn walk(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Walk<'a> {
        let staged = self.staged.and_then(|overlays| overlays.of(family)).filter(|overlay| !overlay.is_empty());
        let mut walk = Walk {
            cursor: self.view.scan(family, from, to),
            overlay: staged.map(|overlay| (overlay, to.map(Bytes::copy_from_slice))),
            rest: staged.map(|overlay| overlay_range(overlay, from, to)),
            staged: None,
        };
        walk.next_staged();
        walk.settle();
        walk
    }

    /// The version in `old` that was live at a revision.
    fn old_at(&self, key: &[u8], at: i64) -> Result<Option<Bytes>, MachineError> {
        let mut from = Vec::with_capacity(key.len() + 10);
        base::codec::put_ordered(&mut from, key);
        let mut to = from.clone();
        put_u64(&mut to, at as u64 + 1);
        let walk = self.view.scan_back(OLD, &from, Some(&to));
        let staged = self.staged.and_then(|overlays| overlay_range(&overlays.old, &from, Some(&to)).next_back());
        let value = match staged {
            Some((key, staged)) if !walk.valid() || &key[..] > walk.key() => staged.now.clone(),
            _ if walk.valid() => Some(Bytes::copy_from_slice(walk.value())),
            _ => None,
        };
        walk.status()?;
        let Some(value) = value else { return Ok(None) };
        let old = Old::read(&value)?;
        Ok((old.superseded_at > at).then(|| value.slice_ref(old.record)))
    }
}

/// A forward walk over the pairs of a family and, where there is one, its overlay.
pub struct Walk<'a> {
    cursor: Box<dyn Cursor + 'a>,
    overlay: Option<(&'a Overlay, Option<Bytes>)>,
    rest: Option<btree_map::Range<'a, Bytes, Staged>>,
    /// The overlay's next pair; when `on_staged`, the walk stands on it.
    staged: Option<(&'a Bytes, &'a Staged)>,
}

impl Walk<'_> {
    pub fn valid(&self) -> bool {
        self.staged.is_some() || self.cursor.valid()
    }

    pub fn key(&self) -> &[u8] {
        match self.here() {
            Some((key, _)) => key,
            None => self.cursor.key(),
        }
    }

    pub fn value(&self) -> &[u8] {
        match self.here() {
            Some((_, staged)) => staged.now.as_deref().expect("a walk never stands on a deleted key"),
            None => self.cursor.value(),
        }
    }

    pub fn advance(&mut self) {
        if self.here().is_some() {
            self.next_staged();
        } else {
            self.cursor.advance();
        }
        self.settle();
    }

    /// Moves to the first pair at or beyond `key`; never backwards.
    pub fn seek(&mut self, key: &[u8]) {
        if self.cursor.valid() {
            self.cursor.seek(key);
        }
        if self.staged.is_some_and(|(here, _)| &here[..] < key)
            && let Some((overlay, to)) = &self.overlay
        {
            self.rest = Some(overlay_range(overlay, key, to.as_deref()));
            self.next_staged();
        }
        self.settle();
    }

    pub fn status(&self) -> Result<(), MachineError> {
        Ok(self.cursor.status()?)
    }

    /// The overlay's pair, if the walk stands on it.
    fn here(&self) -> Option<(&[u8], &Staged)> {
        let (key, staged) = self.staged?;
        (!self.cursor.valid() || &key[..] < self.cursor.key()).then_some((key, staged))
    }

    fn next_staged(&mut self) {
        self.staged = self.rest.as_mut().and_then(Iterator::next);
    }

    /// Steps over what the overlay hides or deletes.
    fn settle(&mut self) {
        while let Some((key, staged)) = self.staged {
            if self.cursor.valid() {
                match self.cursor.key().cmp(key) {
                    std::cmp::Ordering::Less => return,
                    std::cmp::Ordering::Equal => {
                        self.cursor.advance();
                        continue;
                    }
                    std::cmp::Ordering::Greater => {}
                }
            }
            if staged.now.is_some() {
                return;
            }
            self.next_staged();
        }
    }
}

/// The live records that were put at or before a revision.
struct Live<'a> {
    walk: Walk<'a>,
    at: i64,
}

impl Live<'_> {
    fn settle(&mut self) -> Result<(), MachineError> {
        while let Some(record) = self.here()?
            && record.mod_revision > self.at
        {
            self.walk.advance();
        }
        Ok(())
    }

    fn here(&self) -> Result<Option<Record<'_>>, MachineError> {
        if self.walk.valid() { Record::read(self.walk.value()).map(Some) } else { Ok(None) }
    }
}

/// The superseded records that were live at a revision.
struct Dead<'a> {
    walk: Walk<'a>,
    source: Source<'a>,
    at: i64,
}

/// Dead versions of one key that are stepped over before a walk jumps.
const STEPS_BEFORE_JUMP: u32 = 8;

impl<'a> Dead<'a> {
    fn new(source: &Source<'a>, from: &[u8], to: Option<&[u8]>, at: i64) -> Dead<'a> {
        let mut low = Vec::with_capacity(from.len() + 2);
        base::codec::put_ordered(&mut low, from);
        let high = to.map(|to| {
            let mut high = Vec::with_capacity(to.len() + 2);
            base::codec::put_ordered(&mut high, to);
            high
        });
        Dead { walk: source.walk(OLD, &low, high.as_deref()), source: *source, at }
    }

    /// Moves to the next version that was live at the revision, from where the walk stands.
    fn settle(&mut self) -> Result<(), MachineError> {
        let mut steps = 0;
        let mut last_key: Vec<u8> = Vec::new();
        while self.walk.valid() {
            let key = self.walk.key();
            let (stem, mod_revision) = (&key[..key.len().saturating_sub(8)], layout::old_key_revision(key)?);
            let old = Old::read(self.walk.value())?;
            if mod_revision <= self.at && old.superseded_at > self.at {
                return Ok(());
            }
            if mod_revision > self.at {
                // This key was not live at the revision, or was passed already: on to the next key.
                let mut beyond = stem.to_vec();
                put_u64(&mut beyond, u64::MAX);
                self.walk.seek(&beyond);
                continue;
            }
            if last_key != stem {
                last_key.clear();
                last_key.extend_from_slice(stem);
                steps = 0;
            }
            steps += 1;
            if steps <= STEPS_BEFORE_JUMP {
                self.walk.advance();
                continue;
            }
            let user_key = Record::read(old.record)?.key.to_vec();
            let mut there = stem.to_vec();
            let live = self.source.get(&user_key)?;
            if live.map_or(Ok(false), |live| Record::read(&live).map(|live| live.mod_revision <= self.at))? {
                put_u64(&mut there, u64::MAX);
            } else {
                match self.source.old_at(&user_key, self.at)? {
                    Some(record) => put_u64(&mut there, Record::read(&record)?.mod_revision as u64),
                    None => put_u64(&mut there, self.at as u64 + 1),
                }
            }
            self.walk.seek(&there);
        }
        Ok(())
    }

    fn here(&self) -> Result<Option<Record<'_>>, MachineError> {
        if self.walk.valid() { Record::read(self.record()?).map(Some) } else { Ok(None) }
    }

    fn record(&self) -> Result<&[u8], MachineError> {
        Ok(Old::read(self.walk.value())?.record)
    }
}

/// The part of an overlay within `from..to`; none when the bounds are the wrong way round.
fn overlay_range<'a>(overlay: &'a Overlay, from: &[u8], to: Option<&[u8]>) -> btree_map::Range<'a, Bytes, Staged> {
    let to = match to {
        Some(to) => Bound::Excluded(if to < from { from } else { to }),
        None => Bound::Unbounded,
    };
    overlay.range::<[u8], _>((Bound::Included(from), to))
}
