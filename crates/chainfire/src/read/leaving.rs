//! A view for a caller that may leave: once it has, whatever is read through the view ends at the next key, with an error that
//! nobody hears.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use storage::{Cursor, EngineError, FamilyId, View};

use super::StateView;

/// Whether whoever asked has left; for the work.
#[derive(Clone, Debug, Default)]
pub struct Leaving(Arc<AtomicBool>);

/// Held by whoever asks; dropped, it says that nobody waits any more.
#[derive(Debug)]
pub struct Staying(Leaving);

impl Leaving {
    pub fn has_left(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub fn staying(&self) -> Staying {
        Staying(self.clone())
    }

    fn checked(&self) -> Result<(), EngineError> {
        if self.has_left() { Err(EngineError::Failed("nobody waits for the answer".into())) } else { Ok(()) }
    }
}

impl Drop for Staying {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

impl StateView {
    /// The same picture, as long as the caller stays.
    pub fn while_asked(&self, leaving: &Leaving) -> StateView {
        StateView {
            revision: self.revision,
            compacted: self.compacted,
            mark: self.mark,
            membership: self.membership.clone(),
            alarms: self.alarms.clone(),
            counts: self.counts.clone(),
            view: Arc::new(LeavingView { view: self.view.clone(), leaving: leaving.clone() }),
            horizon: self.horizon.clone(),
        }
    }
}

struct LeavingView {
    view: Arc<dyn View>,
    leaving: Leaving,
}

impl View for LeavingView {
    fn get(&self, family: FamilyId, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.leaving.checked()?;
        self.view.get(family, key)
    }

    fn scan(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        Box::new(LeavingCursor { cursor: self.view.scan(family, from, to), leaving: &self.leaving, left: false })
    }

    fn scan_back(&self, family: FamilyId, from: &[u8], to: Option<&[u8]>) -> Box<dyn Cursor + '_> {
        Box::new(LeavingCursor { cursor: self.view.scan_back(family, from, to), leaving: &self.leaving, left: false })
    }
}

struct LeavingCursor<'a> {
    cursor: Box<dyn Cursor + 'a>,
    leaving: &'a Leaving,
    /// As of the last step: between two of them nothing changes.
    left: bool,
}

impl Cursor for LeavingCursor<'_> {
    fn valid(&self) -> bool {
        !self.left && self.cursor.valid()
    }

    fn key(&self) -> &[u8] {
        self.cursor.key()
    }

    fn value(&self) -> &[u8] {
        self.cursor.value()
    }

    fn advance(&mut self) {
        self.left = self.leaving.has_left();
        self.cursor.advance();
    }

    fn seek(&mut self, key: &[u8]) {
        self.left = self.leaving.has_left();
        self.cursor.seek(key);
    }

    fn status(&self) -> Result<(), EngineError> {
        self.leaving.checked()?;
        self.cursor.status()
    }
}
