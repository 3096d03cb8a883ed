//! How many snapshots a node has on their way at a time: whatever holds a slot is one of them, and gives it back by being
//! dropped. A snapshot that is sent holds its slot from the moment it is built; one that is received, until it is in place or
//! thrown away.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use consensus::{MachineError, Mark, SnapshotSink, SnapshotSource};

use crate::group::Group;

pub(crate) struct Slots {
    max: usize,
    taken: AtomicUsize,
    freed: Box<dyn Fn() + Send + Sync>,
}

pub(crate) struct Slot(Arc<Slots>);

impl Slots {
    /// `freed` is called whenever one is given back.
    pub fn new(max: usize, freed: impl Fn() + Send + Sync + 'static) -> Arc<Slots> {
        Arc::new(Slots { max, taken: AtomicUsize::new(0), freed: Box::new(freed) })
    }

    pub fn take(self: &Arc<Self>) -> Option<Slot> {
        let more = |taken: usize| (taken < self.max).then_some(taken + 1);
        let taken = self.taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more);
        taken.is_ok().then(|| Slot(self.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
        (self.0.freed)();
    }
}

/// A snapshot on its way out.
pub(crate) struct Sending {
    source: Box<dyn SnapshotSource>,
    group: Arc<Group>,
    _slot: Slot,
}

impl Sending {
    pub fn new(source: Box<dyn SnapshotSource>, group: Arc<Group>, slot: Slot) -> Sending {
        Sending { source, group, _slot: slot }
    }
}

impl SnapshotSource for Sending {
    fn mark(&self) -> Mark {
        self.source.mark()
    }

    fn membership(&self) -> Bytes {
        self.source.membership()
    }

    fn bytes_total(&self) -> u64 {
        self.source.bytes_total()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, MachineError> {
        let chunk = self.source.next_chunk()?;
        let bytes = chunk.as_ref().map_or(0, Bytes::len) as u64;
        self.group.snapshot_bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        Ok(chunk)
    }
}

/// A snapshot on its way in. `alone` is shared by those of one machine.
pub(crate) struct Receiving {
    sink: Box<dyn SnapshotSink>,
    _alone: Arc<()>,
    _slot: Slot,
}

impl Receiving {
    pub fn new(sink: Box<dyn SnapshotSink>, alone: Arc<()>, slot: Slot) -> Receiving {
        Receiving { sink, _alone: alone, _slot: slot }
    }
}

impl SnapshotSink for Receiving {
    fn write(&mut self, chunk: Bytes) -> Result<(), MachineError> {
        self.sink.write(chunk)
    }

    fn finish(&mut self) -> Result<Mark, MachineError> {
        self.sink.finish()
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self.sink.as_any()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_and_no_more_until_one_is_given_back() {
        let freed = Arc::new(AtomicUsize::new(0));
        let counted = freed.clone();
        let slots = Slots::new(2, move || {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let (first, second) = (slots.take(), slots.take());
        assert!(first.is_some() && second.is_some() && slots.take().is_none());
        drop(first);
        assert_eq!(freed.load(Ordering::SeqCst), 1);
        assert!(slots.take().is_some());
        drop(second);
        assert_eq!(freed.load(Ordering::SeqCst), 3);
    }
}
