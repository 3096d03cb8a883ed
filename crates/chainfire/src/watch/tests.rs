//! Random operations on a hub with tiny limits, every stream under the checker; and the checker's own teeth.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use base::{Rng, Time};
use bytes::{BufMut, Bytes};
use parking_lot::Mutex;

use super::check::{Seen, StreamCheck, Truth, Violation};
use super::*;
use crate::event::{Event, EventKind, EventSink, RevisionEvents};

/// A store of keys that tells everything it does to a truth.
#[derive(Default)]
struct Store {
    truth: Truth,
    live: BTreeMap<Bytes, (i64, i64, Bytes)>,
    revision: i64,
    /// Up to where readers of history see.
    visible: i64,
    compacted: i64,
}

impl Store {
    /// One random transaction; its events are in history from here on.
    fn write(&mut self, rng: &mut Rng, value_bytes: u64) -> RevisionEvents {
        self.revision += 1;
        let revision = self.revision;
        let mut keys: Vec<Bytes> = (0..1 + rng.below(4)).map(|_| key(rng)).collect();
        keys.sort();
        keys.dedup();
        let events = keys.into_iter().map(|key| {
            let before = self.live.remove(&key);
            let prev = before.as_ref().map(|(_, _, kv)| kv.clone());
            if before.is_some() && rng.percent(30) {
                return Event { kind: EventKind::Delete, kv: key_value(&key, 0, revision, 0, 0), key, prev };
            }
            let (created, version) = before.map_or((revision, 1), |(created, version, _)| (created, version + 1));
            let kv = key_value(&key, created, revision, version, rng.below(value_bytes) as usize);
            self.live.insert(key.clone(), (created, version, kv.clone()));
            Event { kind: EventKind::Put, key, kv, prev }
        });
        let revision = RevisionEvents { revision, events: events.collect() };
        self.truth.push(revision.clone());
        revision
    }
}

struct Shelf(Mutex<Store>);

impl History for Shelf {
    fn revision(&self) -> i64 {
        let store = self.0.lock();
        store.visible
    }

    fn compacted(&self) -> i64 {
        self.0.lock().compacted
    }

    fn read(&self, from: i64, to: i64, range: &KeyRange, max: usize) -> Result<Past, HistoryError> {
        let store = self.0.lock();
        assert!(to <= store.visible, "read beyond what is visible");
        if from < store.compacted {
            return Err(HistoryError::Compacted { revision: store.compacted });
        }
        let (mut revisions, mut bytes, mut looked) = (Vec::new(), 0, 0);
        for revision in store.truth.revisions(from, to) {
            if bytes >= max || looked > 20 {
                return Ok(Past { revisions, covered: revision.revision - 1 });
            }
            looked += 1;
            revisions.extend(select(revision, range).inspect(|selected| bytes += selected.bytes()));
        }
        Ok(Past { revisions, covered: to })
    }
}

fn key(rng: &mut Rng) -> Bytes {
    let length = 1 + rng.below(2);
    Bytes::from((0..length).map(|_| b'a' + rng.below(4) as u8).collect::<Vec<_>>())
}

fn key_value(key: &[u8], created: i64, revision: i64, version: i64, value_bytes: usize) -> Bytes {
    let mut out = Vec::new();
    let mut field = |tag: u8, bytes: &[u8]| {
        out.put_u8(tag << 3 | 2);
        encode_varint(&mut out, bytes.len() as u64);
        out.put_slice(bytes);
    };
    field(1, key);
    if version > 0 {
        field(5, &vec![b'v'; value_bytes]);
    }
    for (tag, number) in [(2, created), (3, revision), (4, version)] {
        if number > 0 {
            out.put_u8(tag << 3);
            encode_varint(&mut out, number as u64);
        }
    }
    out.into()
}

fn encode_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A stream, its checker, and what may be done to its responses on their way.
struct Client {
    stream: WatchStream,
    check: StreamCheck,
    ids: Vec<i64>,
    sabotage: Option<Sabotage>,
    /// The watcher that the fault was planted on.
    sabotaged: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
enum Sabotage {
    DropEvent,
    RepeatEvent,
    RepeatResponse,
    SplitRevision,
    DropResponse,
    ForeignEvent,
    FlipValue,
    FalseProgress,
}

impl Client {
    fn read(&mut self, past: &Shelf, tally: &mut Tally) -> Result<bool, Violation> {
        let responses = self.stream.poll();
        let more = responses.more() || !responses.is_empty();
        let truth = &past.0.lock().truth;
        for message in responses.into_messages() {
            for message in self.meddle(message) {
                let seen = self.check.on_response(truth, &message)?;
                tally.fragments += u64::from(seen.fragment);
                tally.compacted += u64::from(seen.compact_revision > 0);
                if seen.created && !seen.canceled {
                    self.ids.push(seen.watch_id);
                }
                if seen.canceled {
                    self.ids.retain(|id| *id != seen.watch_id);
                }
            }
        }
        Ok(more)
    }

    /// Plants the fault, once, in the first response that it fits.
    fn meddle(&mut self, message: Bytes) -> Vec<Bytes> {
        let Some(sabotage) = self.sabotage.filter(|_| self.sabotaged.is_none()) else { return vec![message] };
        let seen = Seen::decode(&message).unwrap();
        let (head, events) = take_apart(&message);
        let join = |events: &[Bytes]| Bytes::from([std::slice::from_ref(&head), events].concat().concat());
        let meddled = match (sabotage, events.len()) {
            (_, 0) => None,
            (_, _) if seen.fragment => None,
            (Sabotage::DropEvent, count) => Some(vec![join(&events[..count - 1])]),
            (Sabotage::RepeatEvent, _) => Some(vec![join(&[&events[..1], &events[..]].concat())]),
            (Sabotage::RepeatResponse, _) => Some(vec![message.clone(), message.clone()]),
            (Sabotage::DropResponse, _) => Some(vec![]),
            (Sabotage::SplitRevision, count) => (1..count)
                .find(|at| seen.events[*at].mod_revision == seen.events[at - 1].mod_revision)
                .map(|at| vec![join(&events[..at]), join(&events[at..])]),
            (Sabotage::ForeignEvent, _) => {
                let kv = key_value(b"zz", 1, seen.events[0].mod_revision, 1, 1);
                let foreign = Event { kind: EventKind::Put, key: Bytes::from_static(b"zz"), kv, prev: None };
                let mut field = Vec::new();
                super::encode::put_event(&mut field, &foreign, false);
                Some(vec![join(&[&[Bytes::from(field)], &events[..]].concat())])
            }
            (Sabotage::FlipValue, _) => events.iter().position(|event| event.ends_with(b"\x01")).map(|at| {
                let mut events = events.clone();
                let mut event = events[at].to_vec();
                *event.last_mut().unwrap() = 2;
                events[at] = event.into();
                vec![join(&events)]
            }),
            (Sabotage::FalseProgress, _) => Some(vec![head.clone(), message.clone()]),
        };
        self.sabotaged = meddled.as_ref().map(|_| seen.watch_id);
        meddled.unwrap_or_else(|| vec![message])
    }
}

/// A response's bytes before its events, and each event field.
fn take_apart(message: &Bytes) -> (Bytes, Vec<Bytes>) {
    let (mut at, mut head, mut events) = (0, Vec::new(), Vec::new());
    while at < message.len() {
        let begin = at;
        let tag = message[at];
        at += 1;
        let mut number = 0;
        for shift in (0..).step_by(7) {
            number |= u64::from(message[at] & 127) << shift;
            at += 1;
            if message[at - 1] < 128 {
                break;
            }
        }
        at += if tag & 7 == 2 { number as usize } else { 0 };
        if tag == 11 << 3 | 2 { events.push(message.slice(begin..at)) } else { head.extend(&message[begin..at]) }
    }
    (head.into(), events)
}

fn random_watch(rng: &mut Rng, revision: i64) -> CreateWatch {
    let range_end = match rng.below(4) {
        0 | 1 => Bytes::new(),
        2 => Bytes::from_static(&[0]),
        _ => key(rng),
    };
    let start_revision = match rng.below(5) {
        0 => revision + rng.below(5) as i64,
        1 => revision - rng.below(20) as i64,
        2 => rng.below(1 + revision as u64) as i64,
        _ => 0,
    };
    CreateWatch {
        watch_id: if rng.percent(20) { rng.below(6) as i64 } else { 0 },
        key: if rng.percent(5) { Bytes::new() } else { key(rng) },
        range_end,
        start_revision: start_revision.max(-1),
        prev_kv: rng.percent(50),
        progress_notify: rng.percent(30),
        fragment: rng.percent(30),
        no_put: rng.percent(10),
        no_delete: rng.percent(10),
    }
}

/// How often a life came by what is to be tested.
#[derive(Debug, Default)]
struct Tally {
    events: u64,
    fragments: u64,
    compacted: u64,
    progress: u64,
    fall_backs: u64,
    history_reads: u64,
}

/// A whole life of a hub.
fn random_life(seed: u64, sabotage: Option<Sabotage>, tally: &mut Tally) -> Result<(), Violation> {
    let mut rng = Rng::new(seed);
    let options = WatchOptions {
        ring_bytes_max: 1 << (9 + rng.below(8)),
        notes_per_stream_max: 1 + rng.below(40) as usize,
        commands_per_stream_max: 8,
        watchers_per_stream_max: 40,
        response_bytes: 1 << (6 + rng.below(10)),
        fragment_bytes_max: 300,
        progress_interval: Duration::from_secs(2),
        ..WatchOptions::default()
    };
    let value_bytes = [2, 200, 40_000][rng.below(3) as usize];
    let past = Arc::new(Shelf(Mutex::default()));
    for _ in 0..rng.below(20) {
        past.0.lock().write(&mut rng, value_bytes);
    }
    let start = past.0.lock().revision;
    past.0.lock().visible = start;
    let hub = WatchHub::new(options);
    hub.begin(past.clone(), start);
    let mut clients: Vec<Client> = Vec::new();
    let mut now = Time::ZERO;
    let laziness = rng.below(90);

    for _ in 0..600 {
        match rng.below(100) {
            0..30 => {
                let mut store = past.0.lock();
                let batch: Vec<_> = (0..1 + rng.below(6)).map(|_| store.write(&mut rng, value_bytes)).collect();
                let revision = store.revision;
                if rng.percent(70) {
                    store.visible = revision;
                }
                drop(store);
                hub.publish(Arc::new(batch), revision);
            }
            30..50 => {
                hub.dispatch();
            }
            50..55 if clients.len() < 6 => {
                let stream = hub.open().unwrap();
                let (check, ids) = (StreamCheck::default(), Vec::new());
                clients.push(Client { stream, check, ids, sabotage, sabotaged: None });
            }
            55..56 if !clients.is_empty() => {
                let gone = clients.swap_remove(rng.below(clients.len() as u64) as usize);
                tally.events += gone.check.events();
            }
            56..58 => {
                let mut store = past.0.lock();
                let revision = (store.revision - rng.below(30) as i64).min(store.visible);
                if revision > store.compacted {
                    store.compacted = revision;
                    store.truth.compact(revision);
                    drop(store);
                    hub.compacted(revision);
                }
            }
            58..59 => {
                let mut store = past.0.lock();
                for _ in 0..rng.below(10) {
                    store.write(&mut rng, value_bytes);
                }
                store.visible = store.revision;
                let revision = store.revision;
                drop(store);
                hub.reset(revision);
            }
            59..62 => {
                now = now + Duration::from_millis(rng.below(3_000));
                hub.tick(now);
            }
            choice if !clients.is_empty() => {
                let at = rng.below(clients.len() as u64) as usize;
                let client = &mut clients[at];
                let revision = past.0.lock().revision;
                match choice {
                    62..70 => {
                        let request = random_watch(&mut rng, revision);
                        if client.stream.try_submit(Command::Create(request.clone())).is_ok() {
                            client.check.on_create(request);
                        }
                    }
                    70..73 => {
                        if let Some(watch_id) = rng.pick(&client.ids).copied() {
                            let _ = client.stream.try_submit(Command::Cancel { watch_id });
                        }
                    }
                    73..75 => {
                        let _ = client.stream.try_submit(Command::Progress);
                    }
                    _ if !rng.percent(laziness) => {
                        client.read(&past, tally)?;
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    let revision = past.0.lock().revision;
    past.0.lock().visible = revision;
    while hub.dispatch() {}
    for client in &mut clients {
        hub.tick(now);
        while client.read(&past, tally)? {}
        client.stream.try_submit(Command::Progress).unwrap_or_else(|_| panic!("room"));
        while client.read(&past, tally)? {}
        client.check.check_caught_up(&past.0.lock().truth, revision)?;
        assert!(client.ids.is_empty() || client.check.progress_answers() > 0, "progress was asked for");
        tally.events += client.check.events();
        tally.progress += client.check.progress_answers();
    }
    assert_eq!(hub.stats().watchers, clients.iter().map(|client| client.ids.len()).sum::<usize>());
    assert_eq!(hub.stats().watchers_lagging, 0);
    let meddled_with = |client: &Client| client.sabotaged.is_some_and(|id| client.ids.contains(&id));
    if sabotage.is_some() && !clients.iter().any(meddled_with) {
        // Nothing to meddle with, or the watcher was ended before it could be missed.
        return Err(Violation::Malformed("no chance"));
    }
    drop(clients);
    let stats = hub.stats();
    assert_eq!((stats.watchers, stats.streams), (0, 0));
    tally.fall_backs += stats.fall_backs;
    tally.history_reads += stats.history_reads;
    Ok(())
}

#[test]
fn every_watcher_gets_what_it_asked_for() {
    let mut tally = Tally::default();
    for seed in 0..600 {
        random_life(seed, None, &mut tally).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"));
    }
    let Tally { events, fragments, compacted, progress, fall_backs, history_reads } = tally;
    assert!(events > 100_000, "{tally:?}");
    assert!([fragments, compacted, progress, fall_backs, history_reads].iter().all(|count| *count > 500), "{tally:?}");
}

#[test]
fn planted_faults_are_caught() {
    use Sabotage::*;
    for sabotage in
        [DropEvent, RepeatEvent, RepeatResponse, SplitRevision, DropResponse, ForeignEvent, FlipValue, FalseProgress]
    {
        let mut chances = 0;
        for seed in 0..60 {
            match random_life(seed, Some(sabotage), &mut Tally::default()) {
                Err(Violation::Malformed("no chance")) => {}
                Err(_) => chances += 1,
                Ok(()) => panic!("{sabotage:?} went unnoticed with seed {seed}"),
            }
        }
        assert!(chances > 5, "{sabotage:?} was hardly tried");
    }
}

/// Threads instead of turns: wakers must reach who waits.
#[test]
fn nobody_sleeps_through_an_event() {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    fn wait_for<T>(mut future: impl Future<Output = T> + Unpin, until: impl Fn() -> bool) -> Option<T> {
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        while !until() {
            if let Poll::Ready(done) = std::pin::Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
                return Some(done);
            }
            std::thread::park();
        }
        None
    }
    let past = Arc::new(Shelf(Mutex::default()));
    let options = WatchOptions { notes_per_stream_max: 16, ring_bytes_max: 20_000, ..WatchOptions::default() };
    let hub = WatchHub::new(options);
    hub.begin(past.clone(), 0);
    let over = std::sync::atomic::AtomicBool::new(false);
    let streams: Vec<_> = (0..4).map(|_| hub.open().unwrap()).collect();
    const REVISION_LAST: i64 = 3_000;
    std::thread::scope(|scope| {
        let (hub, over) = (&hub, &over);
        let is_over = || over.load(std::sync::atomic::Ordering::Acquire);
        let dispatcher = scope.spawn(move || wait_for(Box::pin(hub.run()), is_over));
        let readers: Vec<_> = streams
            .iter()
            .map(|stream| {
                let past = past.clone();
                scope.spawn(move || {
                    let mut check = StreamCheck::default();
                    let all = Bytes::from_static(&[0]);
                    let watch = CreateWatch { range_end: all, start_revision: 1, prev_kv: true, ..Default::default() };
                    check.on_create(watch.clone());
                    wait_for(Box::pin(stream.submit(Command::Create(watch))), || false).unwrap().unwrap();
                    while check.live().next().is_none_or(|(_, next)| next <= REVISION_LAST) {
                        let responses = wait_for(Box::pin(stream.next()), || false).unwrap().unwrap();
                        let truth = &past.0.lock().truth;
                        for message in responses.into_messages() {
                            check.on_response(truth, &message).unwrap();
                        }
                    }
                })
            })
            .collect();
        let mut rng = Rng::new(1);
        for _ in 0..REVISION_LAST / 3 {
            let mut store = past.0.lock();
            let batch: Vec<_> = (0..3).map(|_| store.write(&mut rng, 100)).collect();
            let revision = store.revision;
            store.visible = revision;
            drop(store);
            hub.publish(Arc::new(batch), revision);
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        over.store(true, std::sync::atomic::Ordering::Release);
        dispatcher.thread().unpark();
    });
    let stream = &streams[0];
    stream.close();
    assert_eq!(stream.try_submit(Command::Progress), Err(Command::Progress));
    assert!(wait_for(Box::pin(stream.next()), || false).unwrap().is_err());
}

/// One response after the other, by hand.
#[test]
fn answers_to_requests() {
    let past = Arc::new(Shelf(Mutex::default()));
    let mut rng = Rng::new(3);
    for _ in 0..9 {
        past.0.lock().write(&mut rng, 5);
    }
    (past.0.lock().visible, past.0.lock().compacted) = (9, 4);
    let options = WatchOptions {
        cluster_id: 11,
        member_id: 12,
        watchers_per_stream_max: 2,
        streams_max: 1,
        key_bytes_max: 8,
        progress_interval: Duration::from_secs(10),
        ..WatchOptions::default()
    };
    let hub = WatchHub::new(options);
    hub.begin(past, 9);
    hub.set_raft_term(5);
    let stream = hub.open().unwrap();
    assert_eq!(hub.open().err(), Some(TooManyStreams));
    let ask = |command| {
        stream.try_submit(command).unwrap();
        let decode = |message: Bytes| Seen::decode(&message).unwrap();
        stream.poll().into_messages().into_iter().map(decode).collect::<Vec<_>>()
    };
    let base = Seen { cluster_id: 11, member_id: 12, revision: 9, raft_term: 5, ..Seen::default() };
    let refused = |reason: &'static str| {
        vec![Seen { watch_id: -1, created: true, canceled: true, cancel_reason: reason.into(), ..base.clone() }]
    };
    let watch = |watch_id, key: &'static str, end: &'static str, start_revision| {
        let (key, range_end) = (Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes()));
        Command::Create(CreateWatch {
            watch_id,
            key,
            range_end,
            start_revision,
            progress_notify: true,
            ..CreateWatch::default()
        })
    };
    assert_eq!(ask(Command::Progress), vec![]);
    assert_eq!(ask(watch(0, "a", "a", 0)), refused("mvcc: watcher range is empty"));
    assert_eq!(ask(watch(0, "a", "", -1)), refused("etcdserver: mvcc: required revision has been compacted"));
    assert_eq!(ask(watch(0, "a key too long", "", 0)), refused("etcdserver: request is too large"));
    let denied = "etcdserver: permission denied";
    assert_eq!(ask(Command::Refuse { reason: denied.into() }), refused(denied));
    assert_eq!(ask(watch(7, "x", "", 0)), vec![Seen { watch_id: 7, created: true, ..base.clone() }]);
    assert_eq!(ask(watch(7, "y", "", 0)), refused("mvcc: duplicate watch ID provided on the WatchStream"));
    let compacted = Seen {
        canceled: true,
        compact_revision: 4,
        cancel_reason: "etcdserver: mvcc: required revision has been compacted".into(),
        ..base.clone()
    };
    assert_eq!(ask(watch(0, "y", "", 3)), vec![Seen { created: true, ..base.clone() }, compacted]);
    assert_eq!(ask(watch(0, "y", "\0", 20)), vec![Seen { watch_id: 1, created: true, ..base.clone() }]);
    assert_eq!((hub.stats().streams_refused, hub.stats().watchers_refused), (1, 0), "what is wrong is not too much");
    assert_eq!(ask(watch(0, "y", "", 0)), refused("etcdserver: too many requests"));
    assert_eq!((hub.stats().streams_refused, hub.stats().watchers_refused), (1, 1));
    assert_eq!(ask(Command::Progress), vec![Seen { watch_id: -1, ..base.clone() }]);
    assert_eq!(ask(Command::Cancel { watch_id: 3 }), vec![]);
    assert_eq!(ask(Command::Cancel { watch_id: 1 }), vec![Seen { watch_id: 1, canceled: true, ..base.clone() }]);
    hub.tick(Time::from_millis(9_999));
    assert!(stream.poll().is_empty());
    hub.tick(Time::from_millis(11_000));
    let progress = stream.poll().into_messages();
    assert_eq!(Seen::decode(&progress[0]).unwrap(), Seen { watch_id: 7, ..base });
    assert_eq!(progress.len(), 1);
}

/// Streams come and go while one thread publishes and another dispatches: each watcher sees what is put while it is
/// there, whatever was passed over before.
#[test]
fn streams_come_and_go_under_writes() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let store = Store { visible: 1, revision: 1, ..Store::default() };
    let shelf = Arc::new(Shelf(Mutex::new(store)));
    let hub = WatchHub::new(WatchOptions::default());
    hub.begin(shelf.clone(), 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (hub, shelf, done) = (&hub, &shelf, &done);
        let publisher = scope.spawn(move || {
            let mut rng = Rng::new(5);
            while !done.load(Ordering::Relaxed) {
                let written = {
                    let mut store = shelf.0.lock();
                    let written = store.write(&mut rng, 10);
                    store.visible = store.revision;
                    written
                };
                let revision = written.revision;
                hub.publish(Arc::new(vec![written]), revision);
            }
        });
        let dispatcher = scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                hub.dispatch();
            }
        });
        for _ in 0..100 {
            for _ in 0..2_000 {
                drop(hub.open().unwrap());
            }
            let stream = hub.open().unwrap();
            let everything = CreateWatch { key: "\0".into(), range_end: "\0".into(), ..CreateWatch::default() };
            stream.try_submit(Command::Create(everything)).unwrap_or_else(|_| panic!("room"));
            // The answer to the creation, and an event after it.
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            let mut answers = 0;
            while answers < 2 {
                assert!(std::time::Instant::now() < deadline, "a watcher gets no events");
                assert!(!publisher.is_finished() && !dispatcher.is_finished(), "a thread ended");
                answers += stream.poll().into_messages().len();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}
