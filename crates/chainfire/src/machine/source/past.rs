//! Reading a range as of a past revision: the short way over what changed since, and the long way.
//!
//! The short way ([`Source::patches`]) undoes the changes since the revision in an overlay over the present. The long
//! way ([`visit`]) merges two filtered walks: records of `kv` that were put at or before the revision, and versions of
//! `old` that were live at it. No key is in both.

use std::collections::BTreeMap;

use base::codec::put_u64;
use bytes::Bytes;
use consensus::MachineError;

use super::{More, Overlays, Source, Span, Staged, Walk};
use crate::machine::layout::{self, KV, OLD, Old, Rev};
use crate::machine::record::Record;

/// Calls `visit` with each record of `from..to` that was live at a revision, in key order, until it wants no more.
pub fn visit(
    source: &Source<'_>,
    from: &[u8],
    to: Option<&[u8]>,
    at: i64,
    visit: &mut dyn FnMut(&[u8]) -> Result<More, MachineError>,
) -> Result<(), MachineError> {
    let mut live = Live { walk: source.walk(KV, from, to), at };
    let mut dead = Dead::new(source, from, to, at);
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

impl<'a> Source<'a> {
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
