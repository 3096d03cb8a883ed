//! Watch fan-out: many watchers of one key, one writer.
//!
//! Two layouts, because they cost a server differently. [`Layout::Shared`]: ten connections, one watch stream on each, the
//! watchers spread evenly over them, as etcd's own benchmark has it. [`Layout::Own`]: a stream for each watcher, ten
//! streams to a connection, as many independent clients would have it. Connections go to the endpoints in turn.
//!
//! The writer puts, waits until every watcher has seen that revision, and puts again. An operation is one event at one
//! watcher; its latency runs from the sending of the put to the arrival of the event.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base::Rng;
use prost::Message;
use proto::etcdserverpb::{PutRequest, WatchCreateRequest, WatchRequest, WatchResponse, watch_request};
use tokio::{sync::Notify, task::LocalSet};

use crate::{
    histogram::Histogram,
    load::{self, Figures, Plan, Window},
    wire::{Connection, Endpoint, Event},
    workload::{KeySpace, PUT, WATCH},
};

const SHARED_STREAMS: usize = 10;
const KEY: &[u8] = b"/watched";
/// A round in which an event is still missing after this long has lost it.
const PATIENCE: Duration = Duration::from_secs(20);

/// How watchers share streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Shared,
    Own,
}

/// `plan.clients` is the number of watchers.
pub async fn run(plan: &Plan<'_>, space: &KeySpace, layout: Layout) -> Result<Figures> {
    let connections = match layout {
        Layout::Shared => plan.clients.min(SHARED_STREAMS),
        Layout::Own => load::connections_for(plan.clients),
    };
    let seen = Rc::new(Seen::default());
    let local = LocalSet::new();
    let mut tasks = Vec::new();
    for index in 0..connections {
        let watchers = plan.clients / connections + usize::from(index < plan.clients % connections);
        let endpoint = plan.endpoints[index % plan.endpoints.len()].clone();
        let seen = seen.clone();
        tasks.push(local.spawn_local(async move {
            if let Err(error) = watch(endpoint, watchers, layout, &seen).await {
                seen.failure.replace(Some(error));
                seen.changed.notify_one();
            }
        }));
    }
    let figures = local.run_until(write(plan, space, &seen)).await;
    tasks.iter().for_each(|task| task.abort());
    figures
}

/// What the watchers tell the writer.
#[derive(Default)]
struct Seen {
    created: Cell<usize>,
    events: Cell<usize>,
    sent: Cell<Option<Instant>>,
    latencies: RefCell<Option<Histogram>>,
    failure: RefCell<Option<anyhow::Error>>,
    changed: Notify,
}

impl Seen {
    async fn wait(&self, done: impl Fn(&Seen) -> bool, what: &str) -> Result<()> {
        let all = async {
            while !done(self) && self.failure.borrow().is_none() {
                self.changed.notified().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, all).await;
        if let Some(error) = self.failure.borrow_mut().take() {
            return Err(error);
        }
        waited.with_context(|| format!("{what}: {} created, {} events seen", self.created.get(), self.events.get()))
    }
}

async fn write(plan: &Plan<'_>, space: &KeySpace, seen: &Seen) -> Result<Figures> {
    seen.wait(|s| s.created.get() == plan.clients, "not all watchers were created").await?;
    let mut wire = Connection::open(&plan.endpoints[0]).await?;
    let mut rng = Rng::new(plan.seed);
    let begun = Instant::now();
    let mut window = None;
    loop {
        if window.is_none() && begun.elapsed() >= plan.warm_up {
            window = Some((Window::begin(plan.servers)?, Instant::now()));
            seen.latencies.replace(Some(Histogram::new()));
        }
        if let Some((_, begun)) = &window
            && begun.elapsed() >= plan.measured
        {
            break;
        }
        let put = PutRequest { key: KEY.into(), value: space.value(&mut rng), ..Default::default() };
        seen.events.set(0);
        seen.sent.set(Some(Instant::now()));
        wire.ask(PUT, &put.encode_to_vec(), PATIENCE).await?;
        seen.wait(|s| s.events.get() >= plan.clients, "an event is missing").await?;
        ensure!(seen.events.get() == plan.clients, "an event came twice");
    }
    let (window, _) = window.expect("the loop ends only inside the window");
    let window = window.end(plan.servers)?;
    let latencies = seen.latencies.take().expect("set with the window");
    Ok(window.figures(&latencies, 0))
}

/// The watchers of one connection.
async fn watch(endpoint: Endpoint, watchers: usize, layout: Layout, seen: &Seen) -> Result<()> {
    let mut wire = Connection::open(&endpoint).await?;
    let create = WatchCreateRequest { key: KEY.into(), ..Default::default() };
    let create =
        WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) }.encode_to_vec();
    let mut stream = wire.open_stream(WATCH, 0)?;
    for watcher in 0..watchers {
        if watcher > 0 && layout == Layout::Own {
            stream = wire.open_stream(WATCH, 0)?;
        }
        wire.send(stream, &create)?;
    }
    loop {
        let mut wrong = None;
        let take = |event: Event| match event {
            Event::Message { body, .. } => {
                if let Err(error) = take_response(body, seen) {
                    wrong = Some(error);
                }
            }
            Event::End { .. } => wrong = Some(anyhow::anyhow!("the server ended a watch stream")),
        };
        wire.turn(take).await?;
        if let Some(error) = wrong {
            return Err(error);
        }
        seen.changed.notify_one();
    }
}

fn take_response(body: &[u8], seen: &Seen) -> Result<()> {
    let response = WatchResponse::decode(body)?;
    if response.canceled {
        bail!("a watcher was cancelled: {}", response.cancel_reason);
    }
    if response.created {
        seen.created.set(seen.created.get() + 1);
        return Ok(());
    }
    if let (Some(latencies), Some(sent)) = (&mut *seen.latencies.borrow_mut(), seen.sent.get()) {
        let latency = sent.elapsed();
        response.events.iter().for_each(|_| latencies.record(latency));
    }
    seen.events.set(seen.events.get() + response.events.len());
    Ok(())
}
