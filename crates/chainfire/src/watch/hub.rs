//! The hub: takes what was applied, finds out whom it concerns, and leaves them a note.
//!
//! Locks, in the order in which they nest: a stream's worker, `index`, `registry`, `ring`, `incoming`, a stream's
//! inbox. `publish` takes `incoming` for an append, and the two before it for as little, so the applier never waits for
//! watchers. While there is no stream at all nothing is kept: whoever comes later reads history.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use base::Time;
use base::rng::mix;
use parking_lot::{Mutex, RwLock};

use super::WatchOptions;
use super::history::History;
use super::index::{InterestId, RangeIndex};
use super::range::KeyRange;
use super::ring::{Encoded, Pass, Ring, RingLimits};
use super::stream::{Note, StreamShared, WatchStream};
use crate::event::{EventSink, RevisionEvents};

/// A pass takes whole revisions until it holds this much.
const PASS_BYTES: usize = 1 << 20;
/// Nor does it take more events than could make this many matches if each fell into every range.
const PASS_MATCHES: usize = 1 << 20;

/// All watchers of a node. See the module's header.
pub struct WatchHub {
    pub(super) options: WatchOptions,
    history: OnceLock<Arc<dyn History>>,
    incoming: Mutex<Incoming>,
    index: Mutex<RangeIndex<Interest>>,
    pub(super) ring: RwLock<Ring>,
    /// Every stream has its notes for all revisions up to this one.
    position: AtomicI64,
    /// The store's revision.
    published: AtomicI64,
    compacted: AtomicI64,
    raft_term: AtomicU64,
    registry: Mutex<Registry>,
    pub(super) counters: Counters,
}

/// There are as many streams as the options allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("etcdserver: too many requests")]
pub struct TooManyStreams;

/// What the hub counts. From `events_sent` on it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchStats {
    pub streams: usize,
    pub watchers: usize,
    /// Watchers that read the past at present.
    pub watchers_lagging: usize,
    /// Published batches that wait to be dispatched.
    pub batches_waiting: usize,
    pub events_sent: u64,
    pub responses_sent: u64,
    /// Times that a stream lost its notes and fell back to catching up.
    pub fall_backs: u64,
    pub history_reads: u64,
    /// Streams that were one too many.
    pub streams_refused: u64,
    /// Watchers that were.
    pub watchers_refused: u64,
}

#[derive(Default)]
pub(super) struct Counters {
    pub watchers: AtomicUsize,
    pub lagging: AtomicUsize,
    pub events: AtomicU64,
    pub responses: AtomicU64,
    pub fall_backs: AtomicU64,
    pub history_reads: AtomicU64,
    pub streams_refused: AtomicU64,
    pub watchers_refused: AtomicU64,
}

/// A range that somebody watches.
#[derive(Default)]
struct Interest {
    subscribers: Vec<Subscriber>,
    /// How many of the watchers want previous values.
    prev_watchers: usize,
    /// What the pass at work has matched so far.
    places: Vec<u32>,
}

struct Subscriber {
    stream: Arc<StreamShared>,
    /// The stream's own number for the range.
    group: u32,
}

#[derive(Default)]
struct Registry {
    streams: BTreeMap<u64, Arc<StreamShared>>,
    opened: u64,
    now: Time,
    /// When which stream is next told to report progress.
    progress: BTreeSet<(Time, u64)>,
    /// Streams to be woken by the next tick.
    stalled: BTreeSet<u64>,
}

impl WatchHub {
    /// A hub that waits for its store. It may be given to the store as its sink; before anything else,
    /// [`WatchHub::begin`].
    pub fn new(options: WatchOptions) -> Arc<WatchHub> {
        let limits = RingLimits {
            bytes_max: options.ring_bytes_max,
            events_max: options.ring_events_max,
            passes_max: options.ring_events_max,
        };
        Arc::new(WatchHub {
            ring: RwLock::new(Ring::new(limits)),
            history: OnceLock::new(),
            incoming: Mutex::default(),
            index: Mutex::default(),
            position: AtomicI64::new(0),
            published: AtomicI64::new(0),
            compacted: AtomicI64::new(0),
            raft_term: AtomicU64::new(0),
            registry: Mutex::default(),
            counters: Counters::default(),
            options,
        })
    }

    /// The store stands at `revision`; what happened up to there is read from `history`. To be called once, before the
    /// first stream is opened and the first batch is published.
    pub fn begin(&self, history: Arc<dyn History>, revision: i64) {
        assert!(self.history.set(history).is_ok(), "a hub begins once");
        self.ring.write().reset(revision);
        self.published.fetch_max(revision, Ordering::AcqRel);
        self.position.fetch_max(revision, Ordering::AcqRel);
    }

    /// A new stream of watchers. It ends when it is dropped.
    pub fn open(self: &Arc<Self>) -> Result<WatchStream, TooManyStreams> {
        let mut registry = self.registry.lock();
        if registry.streams.len() >= self.options.streams_max {
            self.counters.streams_refused.fetch_add(1, Ordering::Relaxed);
            return Err(TooManyStreams);
        }
        registry.opened += 1;
        let shared = Arc::new(StreamShared::new(registry.opened));
        registry.streams.insert(shared.number(), shared.clone());
        drop(registry);
        Ok(WatchStream::new(self.clone(), shared, self.position()))
    }

    /// Matches what has been published against all watchers, up to about a megabyte of it. Returns whether there is
    /// more.
    pub fn dispatch(&self) -> bool {
        let mut index = self.index.lock();
        let (taken, more) = {
            let mut incoming = self.incoming.lock();
            (incoming.take(PASS_MATCHES / (1 + index.ranges())), !incoming.queue.is_empty())
        };
        let (position, wakers) = match taken {
            None => return false,
            Some(Taken::Gap(revision)) => (revision, self.gap(revision)),
            Some(Taken::Pass(pass)) => (pass.last, self.pass(&mut index, pass)),
        };
        self.position.fetch_max(position, Ordering::AcqRel);
        drop(index);
        wakers.into_iter().for_each(Waker::wake);
        more
    }

    /// Dispatches for ever, a pass at a time. One task per hub runs this.
    pub async fn run(&self) {
        poll_fn(|context| {
            if self.dispatch() {
                context.waker().wake_by_ref();
                return Poll::<()>::Pending;
            }
            let mut incoming = self.incoming.lock();
            incoming.waker = Some(context.waker().clone());
            if !incoming.queue.is_empty() {
                context.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }

    /// Tells the time, for progress notifications and for streams that could not read history. To be called about
    /// every 100 ms.
    pub fn tick(&self, now: Time) {
        let mut wakers = Vec::new();
        let mut registry = self.registry.lock();
        registry.now = now;
        for number in std::mem::take(&mut registry.stalled) {
            wakers.extend(registry.streams.get(&number).and_then(|stream| stream.retry()));
        }
        while let Some(&(due, number)) = registry.progress.first()
            && due <= now
        {
            registry.progress.pop_first();
            if let Some(stream) = registry.streams.get(&number) {
                wakers.extend(stream.progress_is_due());
                registry.progress.insert((now + self.progress_interval(number), number));
            }
        }
        drop(registry);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The Raft term to put into response headers.
    pub fn set_raft_term(&self, term: u64) {
        self.raft_term.store(term, Ordering::Relaxed);
    }

    pub fn stats(&self) -> WatchStats {
        let counters = &self.counters;
        WatchStats {
            streams: self.registry.lock().streams.len(),
            watchers: counters.watchers.load(Ordering::Relaxed),
            watchers_lagging: counters.lagging.load(Ordering::Relaxed),
            batches_waiting: self.incoming.lock().queue.len(),
            events_sent: counters.events.load(Ordering::Relaxed),
            responses_sent: counters.responses.load(Ordering::Relaxed),
            fall_backs: counters.fall_backs.load(Ordering::Relaxed),
            history_reads: counters.history_reads.load(Ordering::Relaxed),
            streams_refused: counters.streams_refused.load(Ordering::Relaxed),
            watchers_refused: counters.watchers_refused.load(Ordering::Relaxed),
        }
    }

    pub(super) fn history(&self) -> &dyn History {
        &**self.history.get().expect("`begin` was called before the first stream was opened")
    }

    pub(super) fn position(&self) -> i64 {
        self.position.load(Ordering::Acquire)
    }

    /// The store's revision as of the last published batch.
    pub(super) fn published(&self) -> i64 {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn compact_revision(&self) -> i64 {
        self.compacted.load(Ordering::Acquire).max(self.history().compacted())
    }

    pub(super) fn raft_term(&self) -> u64 {
        self.raft_term.load(Ordering::Relaxed)
    }

    /// From here on the stream gets notes for `range` under `group`. Returns the interest, and the number of the first
    /// pass that they may come from.
    pub(super) fn subscribe(&self, range: &KeyRange, stream: &Arc<StreamShared>, group: u32) -> (InterestId, u64) {
        let mut index = self.index.lock();
        let id = index.intern(range, Interest::default);
        let interest = index.get_mut(id).expect("just interned");
        interest.subscribers.push(Subscriber { stream: stream.clone(), group });
        (id, self.ring.read().next_number())
    }

    pub(super) fn unsubscribe(&self, id: InterestId, stream: u64, group: u32) {
        let mut index = self.index.lock();
        let interest = index.get_mut(id).expect("an interest lives as long as its subscribers");
        interest.subscribers.retain(|subscriber| (subscriber.stream.number(), subscriber.group) != (stream, group));
        if interest.subscribers.is_empty() {
            index.remove(id);
        }
    }

    /// A watcher of the interest wants previous values, or ceases to.
    pub(super) fn want_prev(&self, id: InterestId, wanted: bool) {
        let mut index = self.index.lock();
        let interest = index.get_mut(id).expect("an interest lives as long as its subscribers");
        interest.prev_watchers = if wanted { interest.prev_watchers + 1 } else { interest.prev_watchers - 1 };
    }

    /// The stream is to report progress from time to time.
    pub(super) fn schedule_progress(&self, stream: u64) {
        let mut registry = self.registry.lock();
        let due = registry.now + self.progress_interval(stream);
        registry.progress.insert((due, stream));
    }

    /// The stream is to be woken by the next tick.
    pub(super) fn stall(&self, stream: u64) {
        self.registry.lock().stalled.insert(stream);
    }

    pub(super) fn forget(&self, stream: u64) {
        self.registry.lock().streams.remove(&stream);
    }

    /// Spread by a tenth, so that streams that began together do not report together.
    fn progress_interval(&self, stream: u64) -> Duration {
        let interval = self.options.progress_interval;
        interval + interval / 10 * (mix(stream) % 1_000) as u32 / 1_000
    }

    fn pass(&self, index: &mut RangeIndex<Interest>, mut pass: Pass) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let mut touched: Vec<InterestId> = Vec::new();
        if !index.is_empty() {
            let (mut encoded, mut found) = (Encoded::default(), Vec::new());
            for revision in pass.revisions() {
                for event in &revision.events {
                    found.clear();
                    index.find(&event.key, &mut found);
                    if found.is_empty() {
                        continue;
                    }
                    let with_prev = found.iter().any(|id| index.get_mut(*id).is_some_and(|i| i.prev_watchers > 0));
                    let place = encoded.push(revision.revision, event, with_prev);
                    for id in &found {
                        let interest = index.get_mut(*id).expect("found in the index");
                        if interest.places.is_empty() {
                            touched.push(*id);
                        }
                        interest.places.push(place);
                    }
                }
            }
            pass.encoded = encoded;
        }
        for id in &touched {
            let places = &mut index.get_mut(*id).expect("found in the index").places;
            pass.bytes += places.len() * size_of::<u32>();
            pass.packets.push(std::mem::take(places).into_boxed_slice());
        }
        pass.bytes += pass.encoded.bytes();
        let number = {
            let mut ring = self.ring.write();
            if pass.last < ring.last() {
                // Taken before the last stream closed, and passed over since: nobody is left who could want it.
                return Vec::new();
            }
            let number = ring.next_number();
            ring.push(Arc::new(pass));
            number
        };
        for (packet, id) in (0..).zip(&touched) {
            for subscriber in &index.get_mut(*id).expect("found in the index").subscribers {
                let note = Note { pass: number, packet, group: subscriber.group };
                wakers.extend(subscriber.stream.leave(note, self.options.notes_per_stream_max));
            }
        }
        wakers
    }

    /// Revisions up to `revision` were never published: all watchers read them from history.
    fn gap(&self, revision: i64) -> Vec<Waker> {
        let registry = self.registry.lock();
        self.ring.write().reset(revision);
        registry.streams.values().filter_map(|stream| stream.lose_notes()).collect()
    }

    /// Passes over what leads to `revision`, if there is no stream that could have a watcher. A stream is opened before
    /// that or after it, never meanwhile.
    fn pass_over(&self, revision: i64) -> bool {
        let registry = self.registry.lock();
        if !registry.streams.is_empty() {
            return false;
        }
        let mut ring = self.ring.write();
        if !self.incoming.lock().queue.is_empty() {
            return false;
        }
        ring.reset(revision);
        self.published.fetch_max(revision, Ordering::AcqRel);
        self.position.fetch_max(revision, Ordering::AcqRel);
        true
    }

    fn receive(&self, what: Waiting, bytes: usize, revision: i64) {
        self.published.fetch_max(revision, Ordering::AcqRel);
        let waker = {
            let mut incoming = self.incoming.lock();
            incoming.bytes += bytes;
            incoming.queue.push_back(what);
            if incoming.bytes > self.options.ring_bytes_max && incoming.queue.len() > 1 {
                // The dispatcher is so far behind that the ring could not hold it all: history does.
                incoming.queue.clear();
                incoming.bytes = 0;
                incoming.queue.push_back(Waiting::Gap(revision));
            }
            incoming.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl EventSink for WatchHub {
    fn publish(&self, batch: Arc<Vec<RevisionEvents>>, revision: i64) {
        if (!batch.is_empty() || revision > self.published()) && !self.pass_over(revision) {
            let bytes = batch.iter().map(RevisionEvents::bytes).sum();
            self.receive(Waiting::Batch { batch, at: 0, revision }, bytes, revision);
        }
    }

    fn compacted(&self, revision: i64) {
        self.compacted.fetch_max(revision, Ordering::AcqRel);
    }

    fn reset(&self, revision: i64) {
        self.receive(Waiting::Gap(revision), 0, revision);
    }
}

/// What was published and not yet dispatched. Bounded by the ring's size in bytes.
#[derive(Default)]
struct Incoming {
    queue: VecDeque<Waiting>,
    bytes: usize,
    waker: Option<Waker>,
}

enum Waiting {
    /// Revisions of `batch` from `at` on; behind it the store stands at `revision`.
    Batch {
        batch: Arc<Vec<RevisionEvents>>,
        at: usize,
        revision: i64,
    },
    Gap(i64),
}

enum Taken {
    Pass(Pass),
    Gap(i64),
}

impl Incoming {
    fn take(&mut self, events_max: usize) -> Option<Taken> {
        let mut pass = Pass::default();
        let is_full = |pass: &Pass| pass.bytes >= PASS_BYTES || pass.events >= events_max.max(1);
        while !is_full(&pass) {
            match self.queue.front_mut() {
                None => break,
                Some(Waiting::Gap(_)) if !pass.parts.is_empty() => break,
                Some(Waiting::Gap(revision)) => {
                    let revision = *revision;
                    self.queue.pop_front();
                    return Some(Taken::Gap(revision));
                }
                Some(Waiting::Batch { batch, at, revision }) => {
                    let first = *at;
                    while *at < batch.len() && !is_full(&pass) {
                        pass.bytes += batch[*at].bytes();
                        pass.events += batch[*at].events.len();
                        pass.last = batch[*at].revision;
                        *at += 1;
                    }
                    pass.parts.push((batch.clone(), first, *at));
                    if *at == batch.len() {
                        pass.last = pass.last.max(*revision);
                        self.queue.pop_front();
                    }
                }
            }
        }
        self.bytes = self.bytes.saturating_sub(pass.bytes);
        (!pass.parts.is_empty()).then_some(Taken::Pass(pass))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{HistoryError, Past};

    struct Nothing;

    impl History for Nothing {
        fn revision(&self) -> i64 {
            1
        }

        fn compacted(&self) -> i64 {
            -1
        }

        fn read(&self, _: i64, to: i64, _: &KeyRange, _: usize) -> Result<Past, HistoryError> {
            Ok(Past { revisions: Vec::new(), covered: to })
        }
    }

    /// The last stream closes while the dispatcher has a pass in its hands, and what follows is passed over.
    #[test]
    fn a_pass_that_was_overtaken_is_dropped() {
        let hub = WatchHub::new(WatchOptions::default());
        hub.begin(Arc::new(Nothing), 1);
        let publish = |revision| hub.publish(Arc::new(vec![RevisionEvents { revision, events: Vec::new() }]), revision);
        let stream = hub.open().unwrap();
        publish(2);
        let mut index = hub.index.lock();
        let Some(Taken::Pass(pass)) = hub.incoming.lock().take(1) else { panic!("a pass waits") };
        drop(stream);
        publish(3);
        assert_eq!(hub.position(), 3, "nobody is there");
        assert_eq!(hub.pass(&mut index, pass).len(), 0);
        drop(index);
        // Whoever comes now is served again.
        let _stream = hub.open().unwrap();
        publish(4);
        while hub.dispatch() {}
        assert_eq!((hub.position(), hub.ring.read().last()), (4, 4));
    }
}
