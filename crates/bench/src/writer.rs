//! A writer that does not wait: a put every few milliseconds to each of its endpoints, whatever became of the last one.
//!
//! A client that waits for each answer measures the time-out of the one request that was under way when a leader died.
//! This one measures when the cluster takes writes again. It remembers every acknowledged put, so that it can say
//! afterwards whether any of them is gone.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use prost::Message;
use proto::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use proto::flaredb;
use tokio::task::JoinHandle;

use crate::{
    histogram::Histogram,
    wire::{Connection, Endpoint, Event},
    workload::{KeySpace, PUT, RANGE, RAW_PUT},
};

const PREFIX: &str = "/writer/";
const PREFIX_END: &str = "/writer0";
const IN_FLIGHT_MAX: usize = 1000;
const PAGE: i64 = 2000;

/// A put that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub struct Acknowledged {
    pub number: u32,
    pub sent: Instant,
    pub at: Instant,
}

/// Those that were sent within one of these windows.
pub fn within(puts: &[Acknowledged], windows: &[(Instant, Instant)]) -> Histogram {
    let mut latencies = Histogram::new();
    let inside = |put: &&Acknowledged| windows.iter().any(|(from, to)| put.sent >= *from && put.sent < *to);
    puts.iter().filter(inside).for_each(|put| latencies.record(put.at - put.sent));
    latencies
}

/// Runs until [`Writer::stop`]. Must live inside a `LocalSet`.
pub struct Writer {
    shared: Rc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

/// A put as a request: its method and its body.
type Request = (&'static str, Vec<u8>);

struct Shared {
    every: Duration,
    request: Box<dyn Fn(u32) -> Request>,
    next: Cell<u32>,
    stopping: Cell<bool>,
    acknowledged: RefCell<Vec<Acknowledged>>,
}

impl Writer {
    /// Puts get the numbers from `first` on.
    pub fn start(endpoints: &[Endpoint], every: Duration, first: u32) -> Writer {
        let request = |number: u32| {
            let put = PutRequest { key: key(number).into(), value: number.to_string().into(), ..Default::default() };
            (PUT, put.encode_to_vec())
        };
        Writer::start_with(endpoints, every, first, request)
    }

    /// Writes FlareDB's raw keys, one behind each key of a space in turn, so that all regions have their share.
    pub fn start_raw(endpoints: &[Endpoint], every: Duration, space: &KeySpace) -> Writer {
        /// So far apart that keys that follow on one another lie in different regions; a prime.
        const STRIDE: u64 = 1_000_003;
        let space = space.clone();
        let request = move |number: u32| {
            let key = [&space.key(u64::from(number) * STRIDE % space.keys)[..], b"+"].concat();
            let put = flaredb::PutRequest { context: None, key: key.into(), value: number.to_string().into() };
            (RAW_PUT, put.encode_to_vec())
        };
        Writer::start_with(endpoints, every, 0, request)
    }

    fn start_with(
        endpoints: &[Endpoint],
        every: Duration,
        first: u32,
        request: impl Fn(u32) -> Request + 'static,
    ) -> Writer {
        let shared = Rc::new(Shared {
            every,
            request: Box::new(request),
            next: Cell::new(first),
            stopping: Cell::new(false),
            acknowledged: RefCell::new(Vec::new()),
        });
        let start = |endpoint: &Endpoint| tokio::task::spawn_local(keep_writing(endpoint.clone(), shared.clone()));
        let tasks = endpoints.iter().map(start).collect();
        Writer { shared, tasks }
    }

    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.borrow().len()
    }

    /// When the first put that was sent after `moment` was acknowledged.
    pub fn first_after(&self, moment: Instant) -> Option<Instant> {
        self.shared.acknowledged.borrow().iter().filter(|put| put.sent > moment).map(|put| put.at).min()
    }

    /// Stops writing and returns all that was acknowledged.
    pub async fn stop(self) -> Vec<Acknowledged> {
        self.shared.stopping.set(true);
        for task in self.tasks {
            task.abort();
            task.await.ok();
        }
        self.shared.acknowledged.take()
    }
}

/// How many of the acknowledged puts are not in the store.
pub async fn missing(endpoint: &Endpoint, acknowledged: &[Acknowledged]) -> Result<usize> {
    let mut stored = std::collections::BTreeSet::new();
    let mut connection = Connection::open(endpoint).await?;
    let mut from = PREFIX.as_bytes().to_vec();
    loop {
        let page = RangeRequest {
            key: from.clone().into(),
            range_end: PREFIX_END.into(),
            limit: PAGE,
            keys_only: true,
            ..Default::default()
        };
        let answer = connection.ask(RANGE, &page.encode_to_vec(), Duration::from_secs(20)).await?;
        let answer = RangeResponse::decode(&answer[..])?;
        stored.extend(answer.kvs.iter().map(|kv| kv.key.clone()));
        let Some(last) = answer.kvs.last().filter(|_| answer.more) else { break };
        from = [&last.key[..], &[0]].concat();
    }
    Ok(acknowledged.iter().filter(|put| !stored.contains(key(put.number).as_bytes())).count())
}

fn key(number: u32) -> String {
    format!("{PREFIX}{number:09}")
}

async fn keep_writing(endpoint: Endpoint, shared: Rc<Shared>) {
    while !shared.stopping.get() {
        // A connection that breaks is opened again: the endpoint may be restarting.
        let _broken = write_until_broken(&endpoint, &shared).await;
        tokio::time::sleep(shared.every).await;
    }
}

async fn write_until_broken(endpoint: &Endpoint, shared: &Shared) -> Result<()> {
    let connection = Connection::open(endpoint);
    let mut wire = tokio::time::timeout(Duration::from_secs(1), connection).await.context("no connection")??;
    let mut sent = HashMap::new();
    let mut due = tokio::time::interval(shared.every);
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        if wire.in_flight() < IN_FLIGHT_MAX {
            let number = shared.next.get();
            shared.next.set(number + 1);
            let (method, put) = (shared.request)(number);
            sent.insert(number, Instant::now());
            wire.call(method, &put, number)?;
        }
        let on_event = |event: Event| {
            if let Event::End { tag, succeeded } = event
                && let Some(sent) = sent.remove(&tag)
                && succeeded
            {
                let put = Acknowledged { number: tag, sent, at: Instant::now() };
                shared.acknowledged.borrow_mut().push(put);
            }
        };
        // Answers are taken until the next put is due.
        wire.turns_for(shared.every, on_event).await?;
    }
}
