//! Serving live watchers: the stream's notes become responses.
//!
//! Notes of one group are gathered into a *run*, as many passes as fit into a response. A run's payload is laid out
//! once, with and without previous values, and goes behind a head of its own to each member that wants all of it.
//! Who wants less (a filter, a later start) or wants it in fragments is served event by event.

use std::sync::Arc;

use bytes::Bytes;

use super::encode::{Head, Pieces, Responses};
use super::hub::WatchHub;
use super::ring::{Encoded, Pass};
use super::worker::{Watcher, Work, Worker};
use crate::event::EventKind;

impl Worker {
    /// Encodes from the backlog until `out` is full.
    pub(super) fn serve_live(&mut self, hub: &WatchHub, out: &mut Responses) {
        while out.bytes() < hub.options.response_bytes {
            let Some(mut work) = self.backlog.pop_front() else { return };
            if self.serve_run(&mut work, hub, out) {
                self.backlog.push_front(work);
            }
        }
    }

    /// Serves the work's next run to as many members as `out` has room for. Returns whether work is left.
    fn serve_run(&mut self, work: &mut Work, hub: &WatchHub, out: &mut Responses) -> bool {
        let Some(first_pass) = self.groups[work.group as usize].as_ref().map(|group| group.first_pass) else {
            return false;
        };
        while work.notes.front().is_some_and(|(pass, _)| *pass < first_pass) {
            (work.run, work.member) = (0, 0);
            work.notes.pop_front();
        }
        if work.notes.is_empty() {
            return false;
        }
        let Some(passes) = run_passes(work, hub) else {
            self.lag_group(work.group);
            return false;
        };
        let parts = passes.iter().map(|(pass, packet)| (&pass.encoded, &pass.packets[*packet as usize][..]));
        let mut run = Run::new(parts.collect(), passes.last().map_or(0, |(pass, _)| pass.last));
        let header = self.header(run.last, hub);
        let group = self.groups[work.group as usize].as_ref().expect("looked at above");
        while let Some(member) = group.members.get(work.member) {
            if out.bytes() >= hub.options.response_bytes {
                return true;
            }
            work.member += 1;
            let Some(slot) = member else { continue };
            let watcher = self.watchers[*slot as usize].as_mut().expect("members are watchers");
            if !watcher.lagging {
                run.serve(watcher, &header, hub.options.fragment_bytes_max, out);
            }
        }
        work.notes.drain(..work.run);
        (work.run, work.member) = (0, 0);
        !work.notes.is_empty()
    }

    fn lag_group(&mut self, group: u32) {
        let members = self.groups[group as usize].as_ref().map_or(Vec::new(), |group| group.members.clone());
        members.into_iter().flatten().for_each(|slot| self.lag(slot));
    }
}

/// The passes of the work's run, which is cut here if it is not yet. `None` when the ring has dropped one.
fn run_passes(work: &mut Work, hub: &WatchHub) -> Option<Vec<(Arc<Pass>, u32)>> {
    let ring = hub.ring.read();
    let (mut passes, mut bytes) = (Vec::with_capacity(work.run.max(1)), 0);
    for (number, packet) in &work.notes {
        if work.run > 0 && passes.len() == work.run {
            break;
        }
        let pass = ring.get(*number)?;
        let more = pass.encoded.bytes_of(&pass.packets[*packet as usize]);
        if work.run == 0 && !passes.is_empty() && bytes + more > hub.options.response_bytes {
            break;
        }
        bytes += more;
        passes.push((pass.clone(), *packet));
    }
    work.run = passes.len();
    Some(passes)
}

/// Events that go to several watchers in one response each.
pub(super) struct Run<'a> {
    /// Encoded events and the places among them that count, in order of revision.
    parts: Vec<(&'a Encoded, &'a [u32])>,
    first: i64,
    /// Who has been served knows everything up to this revision.
    last: i64,
    events: usize,
    /// All events, without and with previous values; laid out when first wanted.
    whole: [Option<Pieces<'a>>; 2],
}

impl<'a> Run<'a> {
    pub fn new(parts: Vec<(&'a Encoded, &'a [u32])>, last: i64) -> Run<'a> {
        let first = parts.iter().find_map(|(encoded, places)| Some(encoded.revision(*places.first()?)));
        let events = parts.iter().map(|(_, places)| places.len()).sum();
        Run { parts, first: first.unwrap_or(last), last, events, whole: [None, None] }
    }

    /// Sends the watcher what it has not been sent and wants.
    pub fn serve(&mut self, watcher: &mut Watcher, header: &Bytes, fragment_bytes_max: usize, out: &mut Responses) {
        if watcher.next > self.last {
            return;
        }
        let head = Head { header, watch_id: watcher.id, ..Head::default() };
        let sent = if watcher.no_put || watcher.no_delete || watcher.next > self.first {
            self.send_chosen(watcher, head, fragment_bytes_max, out)
        } else {
            let parts = &self.parts;
            let whole = self.whole[usize::from(watcher.prev_kv)].get_or_insert_with(|| {
                let mut pieces = Pieces::default();
                for (encoded, places) in parts {
                    encoded.pieces(places, watcher.prev_kv, &mut pieces);
                }
                pieces.finish()
            });
            if whole.bytes > response_bytes_max(watcher, fragment_bytes_max) {
                self.send_chosen(watcher, head, fragment_bytes_max, out)
            } else {
                if self.events > 0 {
                    out.events_of(&head, whole, self.events);
                }
                self.events > 0
            }
        };
        watcher.quiet &= !sent;
        watcher.next = self.last + 1;
    }

    /// Event by event. Returns whether there was one.
    fn send_chosen(&self, watcher: &Watcher, mut head: Head, fragment_bytes_max: usize, out: &mut Responses) -> bool {
        let wanted = |encoded: &Encoded, place: u32| {
            encoded.revision(place) >= watcher.next
                && match encoded.kind(place) {
                    EventKind::Put => !watcher.no_put,
                    EventKind::Delete => !watcher.no_delete,
                }
        };
        let bytes_max = response_bytes_max(watcher, fragment_bytes_max);
        let mut pieces = Pieces::default();
        let mut events = 0;
        for (encoded, places) in &self.parts {
            for place in places.iter().filter(|place| wanted(encoded, **place)) {
                let piece = encoded.event(*place, watcher.prev_kv);
                if events > 0 && pieces.bytes + piece.len() > bytes_max {
                    head.fragment = true;
                    out.events_of(&head, &std::mem::take(&mut pieces).finish(), events);
                    events = 0;
                }
                pieces.push(piece);
                events += 1;
            }
        }
        head.fragment = false;
        if events > 0 {
            out.events_of(&head, &pieces.finish(), events);
        }
        events > 0
    }
}

/// What may go into one response. No message can be larger than 4 GiB, so even watchers that did not ask for it are
/// sent fragments of a revision that comes near.
fn response_bytes_max(watcher: &Watcher, fragment_bytes_max: usize) -> usize {
    if watcher.fragment { fragment_bytes_max } else { 1 << 30 }
}
