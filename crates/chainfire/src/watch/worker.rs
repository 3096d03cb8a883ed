//! The watchers of one stream, and the turn in which they are served.
//!
//! Watchers with the same range form a *group*; the hub knows only groups. A watcher is either *live*, served by
//! notes (`live.rs`), or *lagging*, served from the past (`catch_up.rs`). Both paths ask `next`, the smallest revision
//! that the watcher has not been sent, so an event that comes by both is sent once.
//!
//! `delivered` is the stream's own mark: live watchers have been sent everything up to it. It saves moving the `next`
//! of thousands of quiet watchers with every revision of the store.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::encode::{Head, Responses, header_field};
use super::hub::WatchHub;
use super::index::InterestId;
use super::range::KeyRange;
use super::stream::{Command, CreateWatch, Note, StreamShared};

#[derive(Default)]
pub(super) struct Worker {
    pub(super) watchers: Vec<Option<Watcher>>,
    free_watchers: Vec<u32>,
    by_id: HashMap<i64, u32>,
    pub(super) groups: Vec<Option<Group>>,
    free_groups: Vec<u32>,
    by_range: HashMap<KeyRange, u32>,
    /// Groups with many holes among their members.
    holes: BTreeSet<u32>,
    /// Lagging watchers by their `next`.
    pub(super) lagging: BTreeSet<(i64, u32)>,
    pub(super) backlog: VecDeque<Work>,
    notes: Vec<Note>,
    /// Once the backlog is done, `delivered` is this.
    draining_to: i64,
    pub(super) delivered: i64,
    id_next: i64,
    /// Progress was asked for, and the answer's revision must reach this.
    progress_asked: Option<i64>,
    progress_due: bool,
    /// The hub tells this stream when progress is due.
    scheduled: bool,
    header: (i64, u64, Bytes),
    lagging_counted: usize,
}

pub(super) struct Watcher {
    pub id: i64,
    pub group: u32,
    /// Its place among the group's members.
    member: usize,
    pub next: i64,
    pub lagging: bool,
    pub prev_kv: bool,
    pub no_put: bool,
    pub no_delete: bool,
    pub fragment: bool,
    progress_notify: bool,
    /// Nothing was sent since progress was last due.
    pub quiet: bool,
}

pub(super) struct Group {
    pub range: KeyRange,
    interest: InterestId,
    /// Notes from earlier passes were meant for an earlier group of the same number.
    pub first_pass: u64,
    /// Watchers; `None` where one has gone while others were being served.
    pub members: Vec<Option<u32>>,
    members_live: usize,
}

/// Notes of a group that are being turned into responses.
pub(super) struct Work {
    pub group: u32,
    /// (pass, packet), ascending.
    pub notes: VecDeque<(u64, u32)>,
    /// How many of the notes go into the response at hand; zero when that is still open.
    pub run: usize,
    /// The first member that has not got it.
    pub member: usize,
}

/// Etcd's words for a watcher that cannot be.
const RANGE_IS_EMPTY: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
pub(super) const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const TOO_MANY: &str = "etcdserver: too many requests";
const TOO_LARGE: &str = "etcdserver: request is too large";

impl Worker {
    pub fn new(position: i64) -> Worker {
        Worker { draining_to: position, delivered: position, ..Worker::default() }
    }

    /// Does what is to be done, up to about one response's worth of encoding.
    pub fn turn(&mut self, hub: &Arc<WatchHub>, shared: &Arc<StreamShared>) -> Responses {
        let mut out = Responses::default();
        let (commands, progress_due) = shared.take_commands();
        self.progress_due |= progress_due;
        for command in commands {
            self.carry_out(command, hub, shared, &mut out);
        }
        // First the position, then the notes: so the notes are complete up to it.
        let position = hub.position();
        let mut notes = std::mem::take(&mut self.notes);
        if shared.take_notes(self.backlog.is_empty(), &mut notes) {
            hub.counters.fall_backs.fetch_add(1, Ordering::Relaxed);
            self.fall_back();
        }
        if self.backlog.is_empty() {
            self.draining_to = position;
            self.plan(&mut notes);
        }
        self.notes = notes;

        let stalled = !self.lagging.is_empty() && self.catch_up(hub, shared, &mut out);
        self.serve_live(hub, &mut out);
        if self.backlog.is_empty() {
            self.delivered = self.delivered.max(self.draining_to);
            self.fill_holes();
            if self.lagging.is_empty() {
                self.report_progress(hub, &mut out);
            }
        }
        if stalled {
            hub.stall(shared.number());
        }
        out.set_more(!self.backlog.is_empty() || (!self.lagging.is_empty() && !stalled));
        self.count(hub, &out);
        out
    }

    /// Takes all watchers out of the hub.
    pub fn end(&mut self, hub: &WatchHub, shared: &StreamShared) {
        for slot in 0..self.watchers.len() as u32 {
            self.remove(slot, hub, shared);
        }
        self.count(hub, &Responses::default());
    }

    pub(super) fn header(&mut self, revision: i64, hub: &WatchHub) -> Bytes {
        let term = hub.raft_term();
        if (self.header.0, self.header.1) != (revision, term) || self.header.2.is_empty() {
            let field = header_field(hub.options.cluster_id, hub.options.member_id, revision, term);
            self.header = (revision, term, field);
        }
        self.header.2.clone()
    }

    /// A live watcher loses its notes and reads the past instead.
    pub(super) fn lag(&mut self, slot: u32) {
        let Some(watcher) = self.watchers[slot as usize].as_mut().filter(|watcher| !watcher.lagging) else { return };
        watcher.next = watcher.next.max(self.delivered + 1);
        watcher.lagging = true;
        self.lagging.insert((watcher.next, slot));
    }

    /// Ends a watcher for a reason of ours.
    pub(super) fn cancel(
        &mut self,
        slot: u32,
        compact_revision: i64,
        reason: &str,
        hub: &WatchHub,
        shared: &StreamShared,
        out: &mut Responses,
    ) {
        let Some(watch_id) = self.watchers[slot as usize].as_ref().map(|watcher| watcher.id) else { return };
        self.remove(slot, hub, shared);
        let header = self.header(hub.published(), hub);
        let head = Head { header: &header, watch_id, compact_revision, cancel_reason: reason, ..Head::default() };
        out.control(&Head { canceled: true, ..head });
    }

    fn carry_out(&mut self, command: Command, hub: &Arc<WatchHub>, shared: &Arc<StreamShared>, out: &mut Responses) {
        match command {
            Command::Create(request) => {
                let start = request.start_revision;
                let answer = self.create(request, hub, shared);
                let header = self.header(hub.published(), hub);
                let head = Head { header: &header, created: true, ..Head::default() };
                match answer {
                    Ok((watch_id, slot)) => {
                        out.control(&Head { watch_id, ..head });
                        let compact_revision = hub.compact_revision();
                        if start != 0 && start < compact_revision {
                            self.cancel(slot, compact_revision, COMPACTED, hub, shared, out);
                        }
                    }
                    Err(reason) => {
                        out.control(&Head { watch_id: NO_WATCH, canceled: true, cancel_reason: reason, ..head });
                    }
                }
            }
            Command::Refuse { reason } => {
                let header = self.header(hub.published(), hub);
                let head = Head { header: &header, created: true, canceled: true, ..Head::default() };
                out.control(&Head { watch_id: NO_WATCH, cancel_reason: &reason, ..head });
            }
            Command::Cancel { watch_id } => {
                if let Some(slot) = self.by_id.get(&watch_id).copied() {
                    self.cancel(slot, 0, "", hub, shared, out);
                }
            }
            Command::Progress => {
                if !self.by_id.is_empty() {
                    let revision = hub.published();
                    while hub.position() < revision && hub.dispatch() {}
                    self.progress_asked = Some(revision);
                }
            }
        }
    }

    fn create(
        &mut self,
        request: CreateWatch,
        hub: &Arc<WatchHub>,
        shared: &Arc<StreamShared>,
    ) -> Result<(i64, u32), &'static str> {
        if request.start_revision < 0 {
            return Err(COMPACTED);
        }
        if request.key.len().max(request.range_end.len()) > hub.options.key_bytes_max {
            return Err(TOO_LARGE);
        }
        let range = KeyRange::from_wire(request.key, request.range_end).ok_or(RANGE_IS_EMPTY)?;
        if request.watch_id != 0 && self.by_id.contains_key(&request.watch_id) {
            return Err(DUPLICATE_ID);
        }
        if self.by_id.len() >= hub.options.watchers_per_stream_max {
            hub.counters.watchers_refused.fetch_add(1, Ordering::Relaxed);
            return Err(TOO_MANY);
        }
        if hub.counters.watchers.fetch_add(1, Ordering::Relaxed) >= hub.options.watchers_max {
            hub.counters.watchers.fetch_sub(1, Ordering::Relaxed);
            hub.counters.watchers_refused.fetch_add(1, Ordering::Relaxed);
            return Err(TOO_MANY);
        }
        let id = if request.watch_id == 0 { self.draw_id() } else { request.watch_id };
        let next = if request.start_revision == 0 { hub.published() + 1 } else { request.start_revision };
        let group = self.group(range, hub, shared);
        let slot = self.free_watchers.pop().unwrap_or_else(|| {
            self.watchers.push(None);
            self.watchers.len() as u32 - 1
        });
        let joined = self.groups[group as usize].as_mut().expect("just found or made");
        joined.members.push(Some(slot));
        joined.members_live += 1;
        let (member, interest) = (joined.members.len() - 1, joined.interest);
        if request.prev_kv {
            hub.want_prev(interest, true);
        }
        // After the hub knows the range: whatever is not in the ring here will come as a note.
        let lagging = next <= hub.ring.read().last();
        if lagging {
            self.lagging.insert((next, slot));
        }
        if request.progress_notify && !self.scheduled {
            hub.schedule_progress(shared.number());
            self.scheduled = true;
        }
        self.by_id.insert(id, slot);
        self.watchers[slot as usize] = Some(Watcher {
            id,
            group,
            member,
            next,
            lagging,
            prev_kv: request.prev_kv,
            no_put: request.no_put,
            no_delete: request.no_delete,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            quiet: true,
        });
        Ok((id, slot))
    }

    fn draw_id(&mut self) -> i64 {
        while self.by_id.contains_key(&self.id_next) {
            self.id_next += 1;
        }
        self.id_next += 1;
        self.id_next - 1
    }

    fn group(&mut self, range: KeyRange, hub: &Arc<WatchHub>, shared: &Arc<StreamShared>) -> u32 {
        if let Some(group) = self.by_range.get(&range) {
            return *group;
        }
        let group = self.free_groups.pop().unwrap_or_else(|| {
            self.groups.push(None);
            self.groups.len() as u32 - 1
        });
        let (interest, first_pass) = hub.subscribe(&range, shared, group);
        self.by_range.insert(range.clone(), group);
        self.groups[group as usize] = Some(Group { range, interest, first_pass, members: Vec::new(), members_live: 0 });
        group
    }

    fn remove(&mut self, slot: u32, hub: &WatchHub, shared: &StreamShared) {
        let Some(watcher) = self.watchers[slot as usize].take() else { return };
        self.free_watchers.push(slot);
        self.by_id.remove(&watcher.id);
        if watcher.lagging {
            self.lagging.remove(&(watcher.next, slot));
        }
        hub.counters.watchers.fetch_sub(1, Ordering::Relaxed);
        let group = self.groups[watcher.group as usize].as_mut().expect("a group lives as long as its watchers");
        group.members[watcher.member] = None;
        group.members_live -= 1;
        if watcher.prev_kv {
            hub.want_prev(group.interest, false);
        }
        if group.members_live > 0 {
            if group.members.len() >= 2 * group.members_live + 8 {
                self.holes.insert(watcher.group);
            }
            return;
        }
        let group = self.groups[watcher.group as usize].take().expect("just seen");
        hub.unsubscribe(group.interest, shared.number(), watcher.group);
        self.by_range.remove(&group.range);
        self.free_groups.push(watcher.group);
    }

    /// Closes the ranks of groups that watchers have left; not while a group is being served, whose cursor counts on
    /// the places.
    fn fill_holes(&mut self) {
        for number in std::mem::take(&mut self.holes) {
            let Some(group) = self.groups[number as usize].as_mut() else { continue };
            group.members.retain(Option::is_some);
            for (member, slot) in group.members.iter().flatten().enumerate() {
                self.watchers[*slot as usize].as_mut().expect("members are watchers").member = member;
            }
        }
    }

    /// Sorts notes into work by group.
    fn plan(&mut self, notes: &mut Vec<Note>) {
        notes.sort_by_key(|note| note.group);
        for note in notes.drain(..) {
            match self.backlog.back_mut() {
                Some(work) if work.group == note.group => work.notes.push_back((note.pass, note.packet)),
                _ => {
                    let notes = VecDeque::from([(note.pass, note.packet)]);
                    self.backlog.push_back(Work { group: note.group, notes, run: 0, member: 0 });
                }
            }
        }
    }

    /// Notes were lost: all watchers read the past from where they stand.
    fn fall_back(&mut self) {
        self.backlog.clear();
        for slot in 0..self.watchers.len() as u32 {
            self.lag(slot);
        }
    }

    /// All watchers are live, and have been sent everything up to `delivered`.
    fn report_progress(&mut self, hub: &WatchHub, out: &mut Responses) {
        if self.progress_asked.is_none() && !self.progress_due {
            return;
        }
        let header = self.header(self.delivered, hub);
        if self.progress_asked.is_some_and(|revision| revision <= self.delivered) {
            self.progress_asked = None;
            if !self.by_id.is_empty() {
                out.control(&Head { header: &header, watch_id: NO_WATCH, ..Head::default() });
            }
        }
        if self.progress_due {
            self.progress_due = false;
            for watcher in self.watchers.iter_mut().flatten().filter(|watcher| watcher.progress_notify) {
                if watcher.quiet {
                    out.control(&Head { header: &header, watch_id: watcher.id, ..Head::default() });
                }
                watcher.quiet = true;
            }
        }
    }

    fn count(&mut self, hub: &WatchHub, out: &Responses) {
        let lagging = self.lagging.len();
        if lagging != self.lagging_counted {
            hub.counters.lagging.fetch_add(lagging, Ordering::Relaxed);
            hub.counters.lagging.fetch_sub(self.lagging_counted, Ordering::Relaxed);
            self.lagging_counted = lagging;
        }
        if !out.is_empty() {
            hub.counters.events.fetch_add(out.events() as u64, Ordering::Relaxed);
            hub.counters.responses.fetch_add(out.messages() as u64, Ordering::Relaxed);
        }
    }
}

/// The watch id of an answer that concerns no watcher or all of them.
pub(super) const NO_WATCH: i64 = -1;
