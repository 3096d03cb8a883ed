//! What changed between two revisions, read back from the store: for watchers that begin in the past or fell behind.
//!
//! `rev` holds it in order, but for the order within a revision, which each change brings along; the versions before
//! are point reads. What comes out has the shape of what the machine published when it applied the changes, with one
//! difference: of a change at the compacted revision itself, the version before it is gone.

use bytes::Bytes;
use consensus::MachineError;

use crate::event::{Event, EventKind, RevisionEvents};
use crate::machine::layout::{Rev, damaged};
use crate::machine::record::{Record, shared_key};
use crate::machine::source::{Source, Span};

/// A part of history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Whole revisions, ascending, with only their events in the range asked for.
    pub revisions: Vec<RevisionEvents>,
    /// Everything below this revision is in; greater than the last one asked for when nothing is left.
    pub next: i64,
}

/// Changes that are passed over, as outside of the range, before the walk is interrupted.
const CHANGES_MAX: usize = 20_000;

/// Reads `from..=to`; stops at a revision's end once about `bytes_max` bytes were collected.
pub fn read(
    source: &Source<'_>,
    compacted: i64,
    from: i64,
    to: i64,
    range: &Span<'_>,
    bytes_max: usize,
) -> Result<History, MachineError> {
    let mut out = History { revisions: Vec::new(), next: to.saturating_add(1).max(from) };
    let (mut bytes, mut seen) = (0, 0);
    let mut under_way = UnderWay { revision: from, events: Vec::new() };
    let mut walk = source.changes(from.max(0));
    while walk.valid() {
        let change = Rev::read(walk.key(), walk.value())?;
        if change.revision > to {
            break;
        }
        if change.revision != under_way.revision {
            bytes += under_way.close(change.revision, &mut out.revisions);
            if bytes >= bytes_max || seen >= CHANGES_MAX {
                out.next = change.revision;
                return Ok(out);
            }
        }
        seen += 1;
        if range.contains(change.key) {
            under_way.events.push((change.place, event(source, compacted, &change)?));
        }
        walk.advance();
    }
    walk.status()?;
    under_way.close(to, &mut out.revisions);
    Ok(out)
}

/// A revision of which not all may have been read.
struct UnderWay {
    revision: i64,
    /// Each with its place.
    events: Vec<(u32, Event)>,
}

impl UnderWay {
    /// Moves a finished revision over and begins the next; returns its bytes.
    fn close(&mut self, next: i64, revisions: &mut Vec<RevisionEvents>) -> usize {
        let revision = std::mem::replace(&mut self.revision, next);
        if self.events.is_empty() {
            return 0;
        }
        self.events.sort_unstable_by_key(|(place, _)| *place);
        let events = self.events.drain(..).map(|(_, event)| event).collect();
        let done = RevisionEvents { revision, events };
        let bytes = done.bytes();
        revisions.push(done);
        bytes
    }
}

fn event(source: &Source<'_>, compacted: i64, change: &Rev<'_>) -> Result<Event, MachineError> {
    let prev = if change.previous != 0 && change.revision > compacted {
        let missing = || damaged("version named in history", change.key);
        Some(source.old_version(change.key, change.previous)?.ok_or_else(missing)?)
    } else {
        None
    };
    let (kind, kv) = match change.record {
        Some(record) => (EventKind::Put, Bytes::copy_from_slice(record)),
        None => (EventKind::Delete, tombstone(change.key, change.revision)),
    };
    let key = shared_key(&kv)?;
    Ok(Event { kind, key, kv, prev })
}

/// The `kv` of a delete event.
pub(crate) fn tombstone(key: &[u8], revision: i64) -> Bytes {
    Record { key, mod_revision: revision, ..Record::default() }.encode()
}
