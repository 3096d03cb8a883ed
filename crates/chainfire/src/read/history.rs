//! What changed between two revisions, read back from the store: for watchers that begin in the past or fell behind.
//!
//! `rev` says in order which keys changed, and for each the revision of the version before; the versions themselves
//! are then point reads. What comes out has the shape of what the machine published when it applied the changes, with
//! one difference: of a change at the compacted revision itself, the version before it is gone.

use bytes::Bytes;
use consensus::MachineError;

use crate::event::{Event, EventKind, RevisionEvents};
use crate::machine::layout::{REV_DELETE, Rev, damaged};
use crate::machine::record::Record;
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
    let mut under_way = RevisionEvents { revision: from, events: Vec::new() };
    let mut walk = source.changes(from.max(0));
    while walk.valid() {
        let change = Rev::read(walk.key(), walk.value())?;
        if change.revision > to {
            break;
        }
        if change.revision != under_way.revision {
            bytes += close(&mut under_way, change.revision, &mut out.revisions);
            if bytes >= bytes_max || seen >= CHANGES_MAX {
                out.next = change.revision;
                return Ok(out);
            }
        }
        seen += 1;
        if range.contains(change.key)
            && let Some(event) = event(source, compacted, &change)?
        {
            under_way.events.push(event);
        }
        walk.advance();
    }
    walk.status()?;
    close(&mut under_way, to, &mut out.revisions);
    Ok(out)
}

/// Moves a finished revision over; returns its bytes.
fn close(under_way: &mut RevisionEvents, next: i64, revisions: &mut Vec<RevisionEvents>) -> usize {
    let done = std::mem::replace(under_way, RevisionEvents { revision: next, events: Vec::new() });
    let bytes = if done.events.is_empty() { 0 } else { done.bytes() };
    if bytes > 0 {
        revisions.push(done);
    }
    bytes
}

fn event(source: &Source<'_>, compacted: i64, change: &Rev<'_>) -> Result<Option<Event>, MachineError> {
    let kept = change.revision > compacted;
    let missing = || damaged("version named in history", change.key);
    let prev = if change.previous != 0 && kept {
        Some(source.old_version(change.key, change.previous)?.ok_or_else(missing)?)
    } else {
        None
    };
    let (kind, kv) = if change.kind == REV_DELETE {
        (EventKind::Delete, tombstone(change.key, change.revision))
    } else {
        match source.version(change.key, change.revision)? {
            Some(record) => (EventKind::Put, record),
            // Superseded within the compacted revision itself.
            None if !kept => return Ok(None),
            None => return Err(missing()),
        }
    };
    let key = kv.slice_ref(Record::read(&kv)?.key);
    Ok(Some(Event { kind, key, kv, prev }))
}

/// The `kv` of a delete event.
pub(crate) fn tombstone(key: &[u8], revision: i64) -> Bytes {
    Record { key, mod_revision: revision, ..Record::default() }.encode()
}
