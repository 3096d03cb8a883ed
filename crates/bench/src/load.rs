//! The load: clients that each send a request, wait for its answer, and send the next.
//!
//! All clients live on one thread, several to a connection, so that the load takes at most one of the machine's
//! processors. Connection `i` goes to endpoint `i mod n`. After a warm-up, whatever is answered inside the measured
//! window counts, and the processor time of servers and clients is read at both of its ends.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use base::Rng;
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;

use crate::{
    histogram::Histogram,
    procfs,
    wire::{Connection, Endpoint, Event},
    workload::{KeySpace, RAW_BATCH, TXN, Workload},
};

/// One answer in this many is decoded and checked.
const CHECK_EVERY: u64 = 256;

/// What is run against whom.
pub struct Plan<'a> {
    pub endpoints: &'a [Endpoint],
    /// The servers' process ids, for their processor time.
    pub servers: &'a [u32],
    pub clients: usize,
    pub warm_up: Duration,
    pub measured: Duration,
    pub seed: u64,
}

/// What one measured window gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub operations: u64,
    /// Operations that were refused; they are not in the other figures.
    pub refused: u64,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// All servers together, per operation.
    pub server_cpu_us: f64,
    pub client_cpu_us: f64,
    /// All servers together, at the end.
    pub resident_mib: f64,
}

/// Connections for so many clients: as etcd's own benchmark has it, one for one and 100 for 1,000; 8 for 64.
pub fn connections_for(clients: usize) -> usize {
    clients.div_ceil(10).min(100).max(clients.min(8))
}

/// Runs a workload and returns its figures.
pub async fn run(plan: &Plan<'_>, space: &KeySpace, workload: Workload) -> Result<Figures> {
    run_apart(plan, std::slice::from_ref(space), workload).await
}

/// As [`run`], of each endpoint its own keys: endpoint `i` is asked for those of space `i mod n`.
pub async fn run_apart(plan: &Plan<'_>, spaces: &[KeySpace], workload: Workload) -> Result<Figures> {
    let phase = Rc::new(Cell::new(Phase::WarmUp));
    let local = LocalSet::new();
    let connections = connections_for(plan.clients);
    let mut tasks = Vec::new();
    for index in 0..connections {
        let clients = plan.clients / connections + usize::from(index < plan.clients % connections);
        let at = index % plan.endpoints.len();
        let (endpoint, space) = (plan.endpoints[at].clone(), spaces[at % spaces.len()].clone());
        let rng = Rng::new(plan.seed).fork(index as u64);
        tasks.push(local.spawn_local(connection(endpoint, clients, space, workload, rng, phase.clone())));
    }
    local
        .run_until(async {
            tokio::time::sleep(plan.warm_up).await;
            let window = Window::begin(plan.servers)?;
            phase.set(Phase::Measured);
            tokio::time::sleep(plan.measured).await;
            phase.set(Phase::Over);
            let window = window.end(plan.servers)?;
            let mut latencies = Histogram::new();
            let mut refused = 0;
            for task in tasks {
                let counts = task.await.context("a connection's task")??;
                latencies.add(&counts.latencies);
                refused += counts.refused;
            }
            ensure!(latencies.count() > 0, "{}: nothing was answered ({refused} refused)", workload.name());
            Ok(window.figures(&latencies, refused))
        })
        .await
}

/// Fills the key space with transactions, several in flight. `on_keys` hears how many keys each of them added.
pub async fn fill(endpoint: &Endpoint, space: &KeySpace, on_keys: impl FnMut(u64)) -> Result<()> {
    fill_with(endpoint, space, TXN, KeySpace::load_txn, on_keys).await
}

/// As [`fill`], FlareDB's raw keys.
pub async fn fill_raw(endpoint: &Endpoint, space: &KeySpace, on_keys: impl FnMut(u64)) -> Result<()> {
    fill_with(endpoint, space, RAW_BATCH, KeySpace::load_batch, on_keys).await
}

async fn fill_with(
    endpoint: &Endpoint,
    space: &KeySpace,
    method: &'static str,
    load: impl Fn(&KeySpace, u64, &mut Rng) -> (Vec<u8>, u64),
    mut on_keys: impl FnMut(u64),
) -> Result<()> {
    const IN_FLIGHT: usize = 8;
    let mut connection = Connection::open(endpoint).await?;
    let mut rng = Rng::new(1);
    let mut next = 0;
    loop {
        while next < space.keys && connection.in_flight() < IN_FLIGHT {
            let (body, count) = load(space, next, &mut rng);
            connection.call(method, &body, count as u32)?;
            next += count;
        }
        if connection.in_flight() == 0 {
            return Ok(());
        }
        let mut refused = false;
        connection
            .turn(|event| match event {
                Event::End { succeeded: true, tag } => on_keys(u64::from(tag)),
                Event::End { .. } => refused = true,
                Event::Message { .. } => (),
            })
            .await?;
        ensure!(!refused, "loading: the server refused a request");
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    WarmUp,
    Measured,
    Over,
}

struct Counts {
    latencies: Histogram,
    refused: u64,
}

/// All clients of one connection.
async fn connection(
    endpoint: Endpoint,
    clients: usize,
    space: KeySpace,
    workload: Workload,
    mut rng: Rng,
    phase: Rc<Cell<Phase>>,
) -> Result<Counts> {
    let mut wire = Connection::open(&endpoint).await?;
    let mut request = Vec::new();
    let mut started = vec![Instant::now(); clients];
    let mut idle: Vec<u32> = (0..clients as u32).collect();
    let mut counts = Counts { latencies: Histogram::new(), refused: 0 };
    let mut answers = 0u64;
    loop {
        if phase.get() != Phase::Over {
            for client in idle.drain(..) {
                workload.request(&space, &mut rng, &mut request);
                wire.call(workload.method(), &request, client)?;
                started[client as usize] = Instant::now();
            }
        }
        if wire.in_flight() == 0 {
            return Ok(counts);
        }
        let mut wrong = None;
        wire.turn(|event| match event {
            Event::Message { body, .. } => {
                if answers.is_multiple_of(CHECK_EVERY)
                    && let Err(error) = workload.check(&space, body)
                {
                    wrong = Some(error);
                }
                answers += 1;
            }
            Event::End { tag, succeeded } => {
                idle.push(tag);
                if phase.get() == Phase::Measured {
                    if succeeded {
                        counts.latencies.record(started[tag as usize].elapsed());
                    } else {
                        counts.refused += 1;
                    }
                }
            }
        })
        .await?;
        if let Some(error) = wrong {
            return Err(error.context(format!("{} at {}: a wrong answer", workload.name(), endpoint.address)));
        }
    }
}

/// Processor times at the beginning of a window, and what passed by its end.
pub struct Window {
    begun: Instant,
    servers: Duration,
    clients: Duration,
    resident_bytes: u64,
}

impl Window {
    pub fn begin(servers: &[u32]) -> Result<Window> {
        Ok(Window {
            begun: Instant::now(),
            servers: processor_time_of(servers)?,
            clients: procfs::own_processor_time(),
            resident_bytes: 0,
        })
    }

    pub fn end(mut self, servers: &[u32]) -> Result<EndedWindow> {
        let length = self.begun.elapsed();
        self.servers = processor_time_of(servers)? - self.servers;
        self.clients = procfs::own_processor_time() - self.clients;
        for pid in servers {
            self.resident_bytes += procfs::resident_bytes(*pid)?;
        }
        Ok(EndedWindow { length, window: self })
    }
}

pub struct EndedWindow {
    length: Duration,
    window: Window,
}

impl EndedWindow {
    pub fn figures(&self, latencies: &Histogram, refused: u64) -> Figures {
        let operations = latencies.count();
        let each = |time: Duration| time.as_secs_f64() * 1e6 / operations as f64;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Figures {
            operations,
            refused,
            per_second: operations as f64 / self.length.as_secs_f64(),
            p50_ms: milliseconds(latencies.quantile(0.50)),
            p99_ms: milliseconds(latencies.quantile(0.99)),
            server_cpu_us: each(self.window.servers),
            client_cpu_us: each(self.window.clients),
            resident_mib: self.window.resident_bytes as f64 / f64::from(1 << 20),
        }
    }
}

fn processor_time_of(servers: &[u32]) -> Result<Duration> {
    servers.iter().map(|pid| procfs::processor_time(*pid)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_follow_etcds_benchmark() {
        assert_eq!([1, 8, 64, 100, 1000].map(connections_for), [1, 8, 8, 10, 100]);
    }

    #[test]
    fn figures_are_per_operation() {
        let mut latencies = Histogram::new();
        for _ in 0..1000 {
            latencies.record(Duration::from_millis(2));
        }
        let window = Window {
            begun: Instant::now(),
            servers: Duration::from_millis(100),
            clients: Duration::from_millis(10),
            resident_bytes: 3 << 20,
        };
        let figures = EndedWindow { length: Duration::from_secs(2), window }.figures(&latencies, 5);
        assert_eq!((figures.operations, figures.refused), (1000, 5));
        assert_eq!((figures.per_second, figures.server_cpu_us, figures.client_cpu_us), (500.0, 100.0, 10.0));
        assert_eq!(figures.resident_mib, 3.0);
        assert!((figures.p99_ms - 2.0).abs() < 0.05);
    }
}
