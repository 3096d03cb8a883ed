//! What lies on top of an engine view: the writes of a batch under way, or the patches that make the present look like a
//! past revision; and walking over both as if they were one.
//!
//! An overlay hides the view's pairs of the same keys. A walk stands on the smaller of the view's next key and the
//! overlay's, and never on one that the overlay deletes.

use std::collections::{BTreeMap, btree_map};
use std::ops::Bound;

use bytes::Bytes;
use consensus::MachineError;
use storage::{Cursor, FamilyId};

use crate::machine::layout::{KV, META, OLD, REV};

/// What lies over one family of an engine view, by key.
pub type Overlay = BTreeMap<Bytes, Staged>;

/// A key's state in an overlay.
#[derive(Clone, Debug)]
pub struct Staged {
    /// Whether the key is in the engine view.
    pub existed: bool,
    /// What is shown instead; `None`: nothing.
    pub now: Option<Bytes>,
}

/// One overlay for each family that is read while a batch is under way.
#[derive(Debug, Default)]
pub struct Overlays {
    pub kv: Overlay,
    pub old: Overlay,
    pub rev: Overlay,
    pub meta: Overlay,
}

impl Overlays {
    /// The overlay of a family that has one.
    pub fn of(&self, family: FamilyId) -> Option<&Overlay> {
        match family {
            KV => Some(&self.kv),
            OLD => Some(&self.old),
            REV => Some(&self.rev),
            META => Some(&self.meta),
            _ => None,
        }
    }
}

/// A forward walk over the pairs of a family and, where there is one, its overlay.
pub struct Walk<'a> {
    cursor: Box<dyn Cursor + 'a>,
    overlay: Option<(&'a Overlay, Option<Bytes>)>,
    rest: Option<btree_map::Range<'a, Bytes, Staged>>,
    /// The overlay's next pair; the walk stands on it if it comes before the cursor's.
    staged: Option<(&'a Bytes, &'a Staged)>,
}

impl<'a> Walk<'a> {
    /// Over what `cursor` shows of `from..to`, with an overlay on top.
    pub fn new(cursor: Box<dyn Cursor + 'a>, overlay: Option<&'a Overlay>, from: &[u8], to: Option<&[u8]>) -> Walk<'a> {
        let mut walk = Walk {
            cursor,
            overlay: overlay.map(|overlay| (overlay, to.map(Bytes::copy_from_slice))),
            rest: overlay.map(|overlay| overlay_range(overlay, from, to)),
            staged: None,
        };
        walk.next_staged();
        walk.settle();
        walk
    }

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

/// The part of an overlay within `from..to`; none when the bounds are the wrong way round.
pub fn overlay_range<'a>(overlay: &'a Overlay, from: &[u8], to: Option<&[u8]>) -> btree_map::Range<'a, Bytes, Staged> {
    let to = match to {
        Some(to) => Bound::Excluded(if to < from { from } else { to }),
        None => Bound::Unbounded,
    };
    overlay.range::<[u8], _>((Bound::Included(from), to))
}
