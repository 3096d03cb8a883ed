//! Reading as of a past revision: the short way over what changed since, and the long way.
//!
//! The short way ([`Source::patches`]) undoes the changes since the revision in an overlay over the present. The long
//! way ([`visit`]) goes over all keys that are live or have a signpost above the revision, and follows the links of
//! those that were changed since.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use base::codec::{put_ordered, put_u64, take_ordered};
use bytes::Bytes;
use consensus::MachineError;

use super::{More, Overlays, Source, Span, Staged, Walk};
use crate::machine::layout::{self, KV, OLD, Old, REV, Rev};
use crate::machine::record::Record;

/// Calls `visit` with each record of `from..to` that was live at a revision, in key order, until it wants no more.
pub fn visit(
    source: &Source<'_>,
    from: &[u8],
    to: Option<&[u8]>,
    at: i64,
    visit: &mut dyn FnMut(&[u8]) -> Result<More, MachineError>,
) -> Result<(), MachineError> {
    let mut live = source.walk(KV, from, to);
    let mut signs = Signs::new(source, from, to, at)?;
    loop {
        let order = match &signs.here {
            Some((key, _)) if live.valid() => live.key().cmp(key),
            Some(_) => Ordering::Greater,
            None if live.valid() => Ordering::Less,
            None => break,
        };
        let sign = if order == Ordering::Less { None } else { signs.here.take() };
        let more = if order == Ordering::Greater {
            let (key, revision) = sign.as_ref().expect("the walk stands on a sign");
            source.version_behind(key, *revision, at)?.map_or(Ok(true), |record| visit(&record))?
        } else {
            let mod_revision = Record::read(live.value())?.mod_revision;
            if mod_revision <= at {
                visit(live.value())?
            } else {
                let begin = sign.as_ref().map_or(mod_revision, |(_, revision)| *revision);
                source.version_behind(live.key(), begin, at)?.map_or(Ok(true), |record| visit(&record))?
            }
        };
        if !more {
            return Ok(());
        }
        if order != Ordering::Greater {
            live.advance();
        }
        if sign.is_some() {
            signs.next()?;
        }
    }
    live.status()?;
    signs.walk.status()
}

impl<'a> Source<'a> {
    /// The version of a key that was live at a revision.
    pub fn get_at(&self, key: &[u8], at: i64) -> Result<Option<Bytes>, MachineError> {
        let live = self.get(key)?;
        let live_since = live.as_deref().map(Record::read).transpose()?.map(|record| record.mod_revision);
        if live_since.is_some_and(|since| since <= at) {
            return Ok(live);
        }
        let mut stem = Vec::with_capacity(key.len() + 10);
        put_ordered(&mut stem, key);
        let walk = self.walk(OLD, &with_revision(&stem, at as u64 + 1), Some(&with_revision(&stem, u64::MAX)));
        let sign = if walk.valid() { Some(layout::read_old_key(walk.key())?.1) } else { None };
        walk.status()?;
        sign.or(live_since).map_or(Ok(None), |begin| self.version_behind(key, begin, at))
    }

    /// A version of a key that is known to be superseded.
    pub fn old_version(&self, key: &[u8], mod_revision: i64) -> Result<Option<Bytes>, MachineError> {
        let mut at = Vec::with_capacity(key.len() + 10);
        layout::rev_key(&mut at, mod_revision, key);
        if let Some(value) = self.pair(REV, &at)? {
            return Ok(Rev::read(&at, &value)?.record.map(|record| value.slice_ref(record)));
        }
        layout::old_key(&mut at, key, mod_revision);
        let Some(value) = self.pair(OLD, &at)? else { return Ok(None) };
        Ok(Old::read(&value)?.record.map(|record| value.slice_ref(record)))
    }

    /// The version of a key that was live at a revision, found by going back from a change after it.
    fn version_behind(&self, key: &[u8], mut change: i64, at: i64) -> Result<Option<Bytes>, MachineError> {
        let missing = || layout::damaged("version named in history", key);
        let mut there = Vec::with_capacity(8 + key.len());
        loop {
            layout::rev_key(&mut there, change, key);
            let value = self.pair(REV, &there)?.ok_or_else(missing)?;
            let previous = Rev::read(&there, &value)?.previous;
            if previous == 0 {
                return Ok(None);
            }
            if previous >= change {
                return Err(missing());
            }
            if previous <= at {
                return self.old_version(key, previous)?.ok_or_else(missing).map(Some);
            }
            change = previous;
        }
    }

    /// What makes the present of a span look like a revision not long ago: the keys that changed since, as they were.
    /// `None` when more than `changes_max` have (in the whole store), and while a batch is under way.
    pub fn patches(
        &self,
        span: &Span<'_>,
        at: i64,
        now: i64,
        changes_max: i64,
    ) -> Result<Option<Overlays>, MachineError> {
        if self.staged.is_some() || now - at > changes_max {
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
            if steps > changes_max {
                return Ok(None);
            }
            if span.contains(change.key) {
                let live = !change.is_delete();
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

    /// The present count less what was made and plus what was deleted since; `None` when that is too long a way.
    pub(super) fn count_back(&self, span: &Span<'_>, at: i64, now: i64) -> Result<Option<u64>, MachineError> {
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
                if change.is_delete() {
                    difference += 1;
                } else if change.previous == 0 {
                    difference -= 1;
                }
            }
            walk.advance();
        }
        walk.status()?;
        Ok(Some(present.saturating_add_signed(difference)))
    }
}

/// A walk over `old` that stops once for each key: at its first entry above a revision.
struct Signs<'a> {
    walk: Walk<'a>,
    at: i64,
    /// The key, and the revision of that entry.
    here: Option<(Vec<u8>, i64)>,
}

impl<'a> Signs<'a> {
    fn new(source: &Source<'a>, from: &[u8], to: Option<&[u8]>, at: i64) -> Result<Signs<'a>, MachineError> {
        let bound = |key: &[u8]| {
            let mut bound = Vec::with_capacity(key.len() + 2);
            put_ordered(&mut bound, key);
            bound
        };
        let walk = source.walk(OLD, &bound(from), to.map(bound).as_deref());
        let mut signs = Signs { walk, at, here: None };
        signs.settle()?;
        Ok(signs)
    }

    /// On to the next key.
    fn next(&mut self) -> Result<(), MachineError> {
        let beyond = with_revision(layout::read_old_key(self.walk.key())?.0, u64::MAX);
        self.walk.seek(&beyond);
        self.settle()
    }

    fn settle(&mut self) -> Result<(), MachineError> {
        self.here = None;
        while self.walk.valid() {
            let (stem, revision) = layout::read_old_key(self.walk.key())?;
            if revision > self.at {
                let (key, _) = take_ordered(stem).ok_or_else(|| layout::damaged("old", stem))?;
                self.here = Some((key, revision));
                break;
            }
            let above = with_revision(stem, self.at as u64 + 1);
            self.walk.seek(&above);
        }
        Ok(())
    }
}

fn with_revision(stem: &[u8], revision: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(stem.len() + 8);
    key.extend_from_slice(stem);
    put_u64(&mut key, revision);
    key
}
