//! Do watchers get what they were promised? A checker that knows what happened and listens to a stream.
//!
//! [`Truth`] is every change in order. [`StreamCheck`] is told each request and each response of one stream and says
//! which guarantee is broken, if one is: ordered, unique, reliable, atomic, filtered, with true values and previous
//! values, bookmarks kept, silence after cancel. [`StreamCheck::check_caught_up`] asks at the end whether all of it
//! came. It shares no code with the hub but the meaning of a key range, reads responses from their wire form, and is
//! used by tests, the simulator and process tests alike. The module's tests plant each kind of fault and see it
//! caught.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, Bytes};

use super::range::KeyRange;
use super::stream::CreateWatch;
use crate::event::{Event, EventKind, RevisionEvents};

/// A guarantee that was broken, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("watcher {watch_id} was never sent the change of {key:?} at revision {revision}")]
    Lost { watch_id: i64, revision: i64, key: Bytes },
    #[error("watcher {watch_id} was sent the change of {key:?} at revision {revision} again or too late")]
    Repeated { watch_id: i64, revision: i64, key: Bytes },
    #[error("watcher {watch_id} was sent a change of {key:?} at {revision} that did not happen or was not asked for")]
    Invented { watch_id: i64, revision: i64, key: Bytes },
    #[error("watcher {watch_id} was sent revision {revision} in parts")]
    Split { watch_id: i64, revision: i64 },
    #[error("watcher {watch_id} was sent a wrong {what} of {key:?} at revision {revision}")]
    Wrong { watch_id: i64, revision: i64, key: Bytes, what: &'static str },
    #[error("a response to watcher {watch_id} claims revision {claimed} without the change of {key:?} at {revision}")]
    FalseBookmark { watch_id: i64, claimed: i64, revision: i64, key: Bytes },
    #[error("a response about watcher {watch_id}, which is {state}")]
    Unexpected { watch_id: i64, state: &'static str },
    #[error("watcher {watch_id} was ended as compacted at {compact_revision}, but needed only {next} and later")]
    CanceledForNothing { watch_id: i64, compact_revision: i64, next: i64 },
    #[error("malformed response: {0}")]
    Malformed(&'static str),
}

/// Everything that happened to the store.
#[derive(Clone, Debug, Default)]
pub struct Truth {
    changes: BTreeMap<i64, RevisionEvents>,
    compacted: i64,
}

impl Truth {
    pub fn push(&mut self, revision: RevisionEvents) {
        self.changes.insert(revision.revision, revision);
    }

    /// History below `revision` may be refused from here on.
    pub fn compact(&mut self, revision: i64) {
        self.compacted = self.compacted.max(revision);
    }

    pub fn compact_revision(&self) -> i64 {
        self.compacted
    }

    /// The last revision that changed something; zero before the first.
    pub fn revision(&self) -> i64 {
        self.changes.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    pub fn revisions(&self, from: i64, to: i64) -> impl Iterator<Item = &RevisionEvents> {
        let range = (from <= to).then(|| self.changes.range(from..=to));
        range.into_iter().flatten().map(|(_, revision)| revision)
    }
}

/// Listens to one stream.
#[derive(Clone, Debug, Default)]
pub struct StreamCheck {
    watchers: BTreeMap<i64, WatcherCheck>,
    /// Requests that were not answered yet.
    asked: VecDeque<CreateWatch>,
    events: u64,
    progress_answers: u64,
}

#[derive(Clone, Debug)]
struct WatcherCheck {
    request: CreateWatch,
    range: KeyRange,
    /// The smallest revision of which not everything was sent.
    next: i64,
    /// How many of that revision's changes (those this watcher wants) were sent, in fragments.
    sent_of_next: usize,
    ended: bool,
}

impl StreamCheck {
    /// A create request was handed in.
    pub fn on_create(&mut self, request: CreateWatch) {
        self.asked.push_back(request);
    }

    /// A response came, in wire form. Returns it decoded.
    pub fn on_response(&mut self, truth: &Truth, response: &[u8]) -> Result<Seen, Violation> {
        let seen = Seen::decode(response)?;
        let watch_id = seen.watch_id;
        if seen.created {
            let state = "not asked for";
            let request = self.asked.pop_front().ok_or(Violation::Unexpected { watch_id, state })?;
            if !seen.canceled {
                self.begin(request, &seen)?;
            } else if watch_id != -1 {
                return Err(Violation::Unexpected { watch_id, state: "refused but has an id" });
            }
            return Ok(seen);
        }
        if watch_id == -1 && seen.events.is_empty() {
            self.progress_answers += 1;
            for (id, watcher) in self.watchers.iter_mut().filter(|(_, watcher)| !watcher.ended) {
                watcher.check_bookmark(*id, truth, seen.revision)?;
            }
            return Ok(seen);
        }
        let watcher = self.watchers.get_mut(&watch_id).ok_or(Violation::Unexpected { watch_id, state: "unknown" })?;
        if watcher.ended {
            return Err(Violation::Unexpected { watch_id, state: "canceled" });
        }
        for event in &seen.events {
            watcher.check_event(watch_id, truth, event)?;
        }
        self.events += seen.events.len() as u64;
        if seen.canceled {
            watcher.ended = true;
            let compact_revision = seen.compact_revision;
            if compact_revision > truth.compacted || (compact_revision != 0 && watcher.next >= compact_revision) {
                return Err(Violation::CanceledForNothing { watch_id, compact_revision, next: watcher.next });
            }
        } else if !seen.fragment {
            if watcher.sent_of_next > 0 {
                return Err(Violation::Split { watch_id, revision: watcher.next });
            }
            watcher.check_bookmark(watch_id, truth, seen.revision)?;
        } else if !watcher.request.fragment {
            return Err(Violation::Unexpected { watch_id, state: "not to be sent fragments" });
        }
        Ok(seen)
    }

    /// All live watchers must have been sent everything up to `revision`.
    pub fn check_caught_up(&self, truth: &Truth, revision: i64) -> Result<(), Violation> {
        for (watch_id, watcher) in self.watchers.iter().filter(|(_, watcher)| !watcher.ended) {
            if let Some((revision, event)) = watcher.missing(truth, revision) {
                return Err(Violation::Lost { watch_id: *watch_id, revision, key: event.key.clone() });
            }
        }
        Ok(())
    }

    /// Watchers that were made and not ended, with the revision from which a new watcher could take over.
    pub fn live(&self) -> impl Iterator<Item = (i64, i64)> {
        self.watchers.iter().filter(|(_, watcher)| !watcher.ended).map(|(id, watcher)| (*id, watcher.next))
    }

    /// Events checked so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Progress responses with watch id −1 so far.
    pub fn progress_answers(&self) -> u64 {
        self.progress_answers
    }

    fn begin(&mut self, request: CreateWatch, seen: &Seen) -> Result<(), Violation> {
        let watch_id = seen.watch_id;
        let range = KeyRange::from_wire(request.key.clone(), request.range_end.clone())
            .ok_or(Violation::Unexpected { watch_id, state: "on an empty range" })?;
        if self.watchers.get(&watch_id).is_some_and(|watcher| !watcher.ended) {
            return Err(Violation::Unexpected { watch_id, state: "there already" });
        }
        if request.watch_id != 0 && request.watch_id != watch_id {
            return Err(Violation::Unexpected { watch_id, state: "under another id than asked for" });
        }
        let next = if request.start_revision == 0 { seen.revision + 1 } else { request.start_revision };
        self.watchers.insert(watch_id, WatcherCheck { request, range, next, sent_of_next: 0, ended: false });
        Ok(())
    }
}

impl WatcherCheck {
    /// The changes at a revision that this watcher is to be sent.
    fn wanted<'a>(&'a self, revision: &'a RevisionEvents) -> impl Iterator<Item = &'a Event> {
        revision.events.iter().filter(|event| {
            let left_out = match event.kind {
                EventKind::Put => self.request.no_put,
                EventKind::Delete => self.request.no_delete,
            };
            !left_out && self.range.contains(&event.key)
        })
    }

    /// The first change up to `revision` that was not sent.
    fn missing<'a>(&'a self, truth: &'a Truth, revision: i64) -> Option<(i64, &'a Event)> {
        truth.revisions(self.next, revision).find_map(|revision| {
            let sent = if revision.revision == self.next { self.sent_of_next } else { 0 };
            self.wanted(revision).nth(sent).map(|event| (revision.revision, event))
        })
    }

    fn check_bookmark(&mut self, watch_id: i64, truth: &Truth, claimed: i64) -> Result<(), Violation> {
        match self.missing(truth, claimed) {
            None => {
                self.next = self.next.max(claimed + 1);
                Ok(())
            }
            Some((revision, event)) => {
                Err(Violation::FalseBookmark { watch_id, claimed, revision, key: event.key.clone() })
            }
        }
    }

    fn check_event(&mut self, watch_id: i64, truth: &Truth, seen: &SeenEvent) -> Result<(), Violation> {
        let (revision, key) = (seen.mod_revision, seen.key.clone());
        let Some((expected_revision, expected)) = self.missing(truth, i64::MAX) else {
            return Err(self.misplaced(watch_id, truth, seen));
        };
        if (expected_revision, &expected.key) != (revision, &key) {
            if self.sent_of_next > 0 && revision > self.next {
                return Err(Violation::Split { watch_id, revision: self.next });
            }
            let ahead = revision > expected_revision || (revision == expected_revision && self.is_ahead(truth, seen));
            let happened = truth.changes.get(&revision).is_some_and(|all| self.wanted(all).any(|e| e.key == key));
            return Err(if ahead && happened {
                Violation::Lost { watch_id, revision: expected_revision, key: expected.key.clone() }
            } else {
                self.misplaced(watch_id, truth, seen)
            });
        }
        let wrong = |what| Err(Violation::Wrong { watch_id, revision, key: key.clone(), what });
        if seen.kind != expected.kind {
            return wrong("kind");
        }
        if seen.kv != expected.kv {
            return wrong("value");
        }
        match (&seen.prev, &expected.prev, self.request.prev_kv) {
            (Some(_), _, false) => return wrong("previous value, unasked"),
            (Some(seen), Some(expected), true) if seen != expected => return wrong("previous value"),
            (Some(_), None, true) => return wrong("previous value, invented"),
            // What came before the compact revision may be gone.
            (None, Some(_), true) if revision > truth.compacted => return wrong("previous value, missing"),
            _ => {}
        }
        let total = self.wanted(&truth.changes[&revision]).count();
        let sent = if revision == self.next { self.sent_of_next + 1 } else { 1 };
        (self.next, self.sent_of_next) = if sent == total { (revision + 1, 0) } else { (revision, sent) };
        Ok(())
    }

    /// Whether the event comes later in its revision than what is to be sent next.
    fn is_ahead(&self, truth: &Truth, seen: &SeenEvent) -> bool {
        let place = truth
            .changes
            .get(&seen.mod_revision)
            .and_then(|all| self.wanted(all).position(|event| event.key == seen.key));
        let sent = if seen.mod_revision == self.next { self.sent_of_next } else { 0 };
        place.is_some_and(|place| place > sent)
    }

    fn misplaced(&self, watch_id: i64, truth: &Truth, seen: &SeenEvent) -> Violation {
        let (revision, key) = (seen.mod_revision, seen.key.clone());
        let happened = truth.changes.get(&revision).is_some_and(|all| self.wanted(all).any(|event| event.key == key));
        if happened && (revision < self.next || !self.is_ahead(truth, seen)) {
            Violation::Repeated { watch_id, revision, key }
        } else {
            Violation::Invented { watch_id, revision, key }
        }
    }
}

/// A decoded `WatchResponse`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub cluster_id: u64,
    pub member_id: u64,
    /// The header's.
    pub revision: i64,
    pub raft_term: u64,
    pub watch_id: i64,
    pub created: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub cancel_reason: Bytes,
    pub fragment: bool,
    pub events: Vec<SeenEvent>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenEvent {
    pub kind: EventKind,
    pub key: Bytes,
    pub mod_revision: i64,
    /// The encoded `KeyValue`.
    pub kv: Bytes,
    pub prev: Option<Bytes>,
}

impl Seen {
    /// Reads the wire form.
    pub fn decode(response: &[u8]) -> Result<Seen, Violation> {
        let mut seen = Seen::default();
        each_field(Bytes::copy_from_slice(response), |field, value| {
            match (field, value) {
                (1, Value::Bytes(header)) => {
                    each_field(header, |field, value| {
                        match (field, value) {
                            (1, Value::Number(number)) => seen.cluster_id = number,
                            (2, Value::Number(number)) => seen.member_id = number,
                            (3, Value::Number(number)) => seen.revision = number as i64,
                            (4, Value::Number(number)) => seen.raft_term = number,
                            _ => return Err(Violation::Malformed("header")),
                        }
                        Ok(())
                    })?;
                }
                (2, Value::Number(number)) => seen.watch_id = number as i64,
                (3, Value::Number(number)) => seen.created = number != 0,
                (4, Value::Number(number)) => seen.canceled = number != 0,
                (5, Value::Number(number)) => seen.compact_revision = number as i64,
                (6, Value::Bytes(reason)) => seen.cancel_reason = reason,
                (7, Value::Number(number)) => seen.fragment = number != 0,
                (11, Value::Bytes(event)) => seen.events.push(SeenEvent::decode(event)?),
                _ => return Err(Violation::Malformed("field")),
            }
            Ok(())
        })?;
        Ok(seen)
    }
}

impl SeenEvent {
    fn decode(event: Bytes) -> Result<SeenEvent, Violation> {
        let mut seen =
            SeenEvent { kind: EventKind::Put, key: Bytes::new(), mod_revision: 0, kv: Bytes::new(), prev: None };
        each_field(event, |field, value| {
            match (field, value) {
                (1, Value::Number(1)) => seen.kind = EventKind::Delete,
                (2, Value::Bytes(kv)) => seen.kv = kv,
                (3, Value::Bytes(prev)) => seen.prev = Some(prev),
                _ => return Err(Violation::Malformed("event")),
            }
            Ok(())
        })?;
        each_field(seen.kv.clone(), |field, value| {
            match (field, value) {
                (1, Value::Bytes(key)) => seen.key = key,
                (3, Value::Number(revision)) => seen.mod_revision = revision as i64,
                _ => {}
            }
            Ok(())
        })?;
        Ok(seen)
    }
}

enum Value {
    Number(u64),
    Bytes(Bytes),
}

/// Walks the fields of a protobuf message that holds only numbers and byte strings.
fn each_field(mut message: Bytes, mut visit: impl FnMut(u64, Value) -> Result<(), Violation>) -> Result<(), Violation> {
    while message.has_remaining() {
        let tag = varint(&mut message)?;
        let value = match tag & 7 {
            0 => Value::Number(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?).map_err(|_| Violation::Malformed("length"))?;
                if length > message.len() {
                    return Err(Violation::Malformed("length"));
                }
                Value::Bytes(message.split_to(length))
            }
            _ => return Err(Violation::Malformed("wire type")),
        };
        visit(tag >> 3, value)?;
    }
    Ok(())
}

fn varint(message: &mut Bytes) -> Result<u64, Violation> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = message.try_get_u8().map_err(|_| Violation::Malformed("number"))?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Violation::Malformed("number"))
}
