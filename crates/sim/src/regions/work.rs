//! Clients. Each key has one writer, who writes greater and greater numbers: by swaps, which go on where an outcome is unknown,
//! or by puts, which then stop. Anybody reads. So what may be read is a range: no less than what was known when the read began,
//! no more than what was asked for.
//!
//! Clients route by what the placement driver's members have on record, old or new, and say which region they expect; a store
//! never sends them elsewhere.

use std::collections::BTreeMap;

use base::Rng;
use bytes::Bytes;
use proto::flaredb as pb;

use super::World;
use super::ground::{Heard, Request, To};
use super::stage::{Happening, Stage};

#[derive(Default)]
pub struct Clients {
    clients: Vec<Client>,
    pub answered: u64,
    pub unknown: u64,
    /// Nothing new is begun.
    pub stopped: bool,
}

struct Client {
    rng: Rng,
    /// By the start of the region.
    known: BTreeMap<Bytes, Route>,
    /// Its own keys, with what it believes that they hold.
    own: BTreeMap<Bytes, Own>,
    count: u64,
    under_way: Option<(What, u64)>,
    /// What is left to prove after everything has come to rest: key by key, that it can be read, written and scanned.
    probes: Vec<What>,
}

#[derive(Clone, Debug)]
struct Route {
    end: Bytes,
    context: pb::Context,
    at: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Own {
    /// It is written by swaps; puts stop after an outcome that is unknown.
    swaps: bool,
    known: u64,
    /// What it holds must be read before it can be written.
    unsure: bool,
}

#[derive(Clone, Debug)]
enum What {
    Get { key: Bytes, floor: u64 },
    Swap { key: Bytes, from: u64, to: u64 },
    Put { key: Bytes, to: u64 },
    Scan { start: Bytes, floors: BTreeMap<Bytes, u64> },
}

impl What {
    fn key(&self) -> &Bytes {
        match self {
            What::Get { key, .. } | What::Swap { key, .. } | What::Put { key, .. } => key,
            What::Scan { start, .. } => start,
        }
    }
}

impl Clients {
    pub fn new(stage: &mut Stage) -> Clients {
        let count = stage.plan.clients as u64;
        let mut clients = Vec::new();
        for client in 0..count {
            let own = (0..stage.plan.keys).filter(|key| key % count == client);
            let own = own.map(|key| (key_of(key), Own { swaps: key % 3 != 0, ..Own::default() })).collect();
            let rng = stage.rng.fork(client);
            clients.push(Client { rng, known: BTreeMap::new(), own, count: 0, under_way: None, probes: Vec::new() });
            let first = stage.rng.below(stage.plan.rest_max);
            stage.after(first, Happening::Client { client: client as usize });
        }
        Clients { clients, ..Clients::default() }
    }

    /// Nothing is under way or left to prove.
    pub fn is_idle(&self) -> bool {
        self.clients.iter().all(|client| client.under_way.is_none() && client.probes.is_empty())
    }
}

pub fn key_of(number: u64) -> Bytes {
    format!("k{number:03}").into()
}

/// A value is a number, and padding.
fn value_of(number: u64, padding: usize) -> Bytes {
    let mut value = number.to_string().into_bytes();
    value.push(b' ');
    value.extend(std::iter::repeat_n(b'.', padding));
    value.into()
}

pub fn number_in(value: &[u8]) -> u64 {
    let digits = value.split(|byte| *byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
}

impl World {
    /// A client, having rested, does its next thing.
    pub fn client(&mut self, client: usize) {
        let this = &mut self.clients.clients[client];
        if this.under_way.is_some() {
            return;
        }
        let what = match this.probes.pop() {
            Some(probe) => probe,
            None if self.clients.stopped => return,
            None => this.next(&self.stage),
        };
        let what = self.with_floors(what);
        self.send(client, what);
    }

    /// Everybody proves that each of its keys can be read and written, and all together can be scanned.
    pub fn probe(&mut self) {
        for (client, this) in self.clients.clients.iter_mut().enumerate() {
            for key in this.own.keys() {
                this.probes.push(What::Get { key: key.clone(), floor: 0 });
            }
            this.probes.push(What::Scan { start: Bytes::from_static(b"k"), floors: BTreeMap::new() });
            self.stage.after(0, Happening::Client { client });
        }
    }

    /// What is known at this moment is what must be found.
    fn with_floors(&self, what: What) -> What {
        let ledger = &self.stage.ledger;
        match what {
            What::Get { key, .. } => What::Get { floor: ledger.floor(&key), key },
            What::Scan { start, .. } => {
                let within = ledger.keys().filter(|key| **key >= start);
                What::Scan { floors: within.map(|key| (key.clone(), ledger.floor(key))).collect(), start }
            }
            what => what,
        }
    }

    fn send(&mut self, client: usize, what: What) {
        let Some(route) = self.route(client, what.key()) else {
            let this = &mut self.clients.clients[client];
            if self.clients.stopped {
                this.probes.push(what);
            }
            return self.rest(client);
        };
        let this = &mut self.clients.clients[client];
        let padding = this.rng.below(self.stage.plan.value_bytes_max) as usize;
        let context = Some(route.context);
        let request = match &what {
            What::Get { key, .. } => Request::Get(pb::GetRequest { context, key: key.clone() }),
            What::Put { key, to } => {
                self.stage.ledger.asked(key, *to);
                Request::Put(pb::PutRequest { context, key: key.clone(), value: value_of(*to, padding) })
            }
            What::Swap { key, from, to } => {
                self.stage.ledger.asked(key, *to);
                Request::CompareAndSwap(pb::CompareAndSwapRequest {
                    context,
                    key: key.clone(),
                    // Swapped values have no padding, or what is expected would not be known.
                    expected: (*from > 0).then(|| value_of(*from, 0)),
                    value: Some(value_of(*to, 0)),
                })
            }
            What::Scan { start, .. } => Request::Scan(pb::ScanRequest {
                context,
                start: start.clone(),
                rows_max: 1 + this.rng.below(20) as u32,
                ..pb::ScanRequest::default()
            }),
        };
        self.stage.note(0, "ask", &[("client", client as u64), ("at", route.at as u64 + 1)]);
        self.stage
            .trace
            .say(self.stage.now, 0, || format!("{what:?} in {}/{}", route.context.region_id, route.context.version));
        this.count += 1;
        let number = (client as u64) << 32 | this.count;
        this.under_way = Some((what, number));
        let patience = self.stage.plan.patience;
        self.ask_as_client(number, To::Api { at: route.at, request }, patience);
    }

    /// Where a key lies, as far as the client knows or some member of the placement driver has on record.
    fn route(&mut self, client: usize, key: &[u8]) -> Option<Route> {
        let pds = self.stage.plan.pds as u64;
        let this = &mut self.clients.clients[client];
        if let Some((_, route)) =
            this.known.range::<[u8], _>((std::ops::Bound::Unbounded, std::ops::Bound::Included(key))).next_back()
            && (route.end.is_empty() || key < &route.end[..])
        {
            let mut route = route.clone();
            // Any replica answers. One that is out of the others' sight may believe that it leads still.
            if this.rng.percent(10) {
                let stores = pds as usize..self.nodes.len();
                let unseen = |at: &usize| self.nodes[*at].is_paused(&self.stage) || self.stage.net.is_torn(*at);
                let unseen: Vec<usize> = stores.clone().filter(unseen).collect();
                let all: Vec<usize> = stores.collect();
                route.at = this.rng.pick(if unseen.is_empty() { &all } else { &unseen }).copied()?;
            }
            return Some(route);
        }
        let member = this.rng.below(pds) as usize;
        let Some(leader) = self.nodes[member].running.as_ref().and_then(|running| running.leader.clone()) else {
            // Any store says what it has there.
            let at = (pds + this.rng.below(self.nodes.len() as u64 - 1 - pds)) as usize;
            let region = self.nodes[at].store()?.region_at(key)?;
            let (id, state) = (region.id(), region.state());
            let context = pb::Context { region_id: id.0, conf_version: state.conf_version, version: state.version };
            return Some(Route { end: state.end.clone(), context, at });
        };
        let records = leader.records().read();
        let region = records.region_at(key)?;
        let peer = this.rng.pick(&region.peers)?;
        let store = records.stores.get(&peer.store_id)?;
        let route = Route {
            end: region.end.clone(),
            context: pb::Context { region_id: region.id, conf_version: region.conf_version, version: region.version },
            at: super::node::place_at(&store.peer_url)?,
        };
        this.known.insert(region.start.clone(), route.clone());
        Some(route)
    }

    fn rest(&mut self, client: usize) {
        let delay = 1 + self.stage.rng.below(self.stage.plan.rest_max);
        self.stage.after(delay, Happening::Client { client });
    }

    /// What came of a client's question.
    pub fn client_heard(&mut self, number: u64, heard: Heard) {
        let client = (number >> 32) as usize;
        let this = &mut self.clients.clients[client];
        let Some((what, _)) = this.under_way.take_if(|(_, own)| *own == number) else { return };
        let misrouted = match &heard {
            Heard::Found(answer) => answer.error.is_some(),
            Heard::Put(answer) => answer.error.is_some(),
            Heard::Swapped(answer) => answer.error.is_some(),
            Heard::Scanned(answer) => answer.error.is_some(),
            _ => false,
        };
        let failed = misrouted || matches!(heard, Heard::Lost | Heard::Failed(_) | Heard::Refused(_));
        self.stage.note(0, "heard", &[("client", client as u64), ("failed", u64::from(failed))]);
        self.stage.trace.say(self.stage.now, 0, || format!("{heard:?}").chars().take(200).collect());
        if failed {
            this.forget(what.key());
            // Only what says so may yet take effect: it was lost, or ran out of time.
            let open = match &heard {
                Heard::Lost => true,
                Heard::Failed(status) => status.code == rpc::Code::DeadlineExceeded,
                _ => false,
            };
            this.missed(&what, open);
            self.clients.unknown += u64::from(open);
            if self.clients.stopped {
                self.clients.clients[client].probes.push(what);
            }
            return self.rest(client);
        }
        self.clients.answered += 1;
        match (what, heard) {
            (What::Get { key, floor }, Heard::Found(answer)) => {
                let value = answer.value.as_ref().map_or(0, |value| number_in(value));
                self.stage.ledger.read(&key, value, floor);
                let (stopped, asked) = (self.clients.stopped, self.stage.ledger.asked_for(&key));
                if let Some(own) = self.clients.clients[client].own.get_mut(&key) {
                    own.known = own.known.max(value);
                    own.unsure = false;
                    if stopped && own.swaps {
                        let probe = What::Swap { key, from: own.known, to: asked.max(own.known) + 1 };
                        self.clients.clients[client].probes.push(probe);
                    }
                }
            }
            (What::Put { key, to }, Heard::Put(_)) => {
                self.stage.ledger.acknowledged(&key, to);
                self.clients.clients[client].own.entry(key).or_default().known = to;
            }
            (What::Swap { key, to, .. }, Heard::Swapped(answer)) => {
                let previous = answer.previous.as_ref().map_or(0, |value| number_in(value));
                let holds = if answer.swapped { to } else { previous };
                self.stage.ledger.read(&key, holds, 0);
                self.clients.clients[client].own.entry(key).or_default().known = holds;
            }
            (What::Scan { start, floors }, Heard::Scanned(answer)) => self.scanned(client, start, &floors, answer),
            (what, heard) => self.stage.ledger.fail(|| format!("{what:?} was answered with {heard:?}")),
        }
        self.rest(client);
    }

    /// A page: all keys from its start to where the next one begins.
    fn scanned(&mut self, client: usize, start: Bytes, floors: &BTreeMap<Bytes, u64>, answer: pb::ScanResponse) {
        let found: BTreeMap<Bytes, u64> =
            answer.pairs.iter().map(|pair| (pair.key.clone(), number_in(&pair.value))).collect();
        let within = |key: &Bytes| *key >= start && answer.resume.as_ref().is_none_or(|resume| key < resume);
        for (key, floor) in floors.iter().filter(|(key, _)| within(key)) {
            self.stage.ledger.read(key, found.get(key).copied().unwrap_or(0), *floor);
        }
        if let Some(stray) = found.keys().find(|key| !within(key)) {
            self.stage.ledger.fail(|| format!("a scan from {start:?} to {:?} finds {stray:?}", answer.resume));
        }
        if let Some(resume) = answer.resume.filter(|_| !answer.pairs.is_empty() || self.clients.stopped) {
            self.clients.clients[client].probes.push(What::Scan { start: resume, floors: BTreeMap::new() });
        }
    }
}

impl Client {
    fn next(&mut self, stage: &Stage) -> What {
        let dice = self.rng.below(100);
        let any = key_of(self.rng.below(stage.plan.keys));
        let keys: Vec<Bytes> = self.own.keys().cloned().collect();
        let Some(key) = self.rng.pick(&keys).cloned().filter(|_| dice < 55) else {
            if dice < 90 {
                return What::Get { key: any, floor: 0 };
            }
            return What::Scan { start: any, floors: BTreeMap::new() };
        };
        let own = self.own.get(&key).copied().unwrap_or_default();
        match own {
            Own { unsure: true, .. } => What::Get { key, floor: 0 },
            Own { swaps: true, known, .. } => {
                let to = known.max(stage.ledger.asked_for(&key)) + 1;
                What::Swap { key, from: known, to }
            }
            Own { known, .. } => What::Put { key, to: known + 1 },
        }
    }

    fn forget(&mut self, key: &[u8]) {
        let below = (std::ops::Bound::Unbounded, std::ops::Bound::Included(key));
        if let Some(start) = self.known.range::<[u8], _>(below).next_back().map(|(start, _)| start.clone()) {
            self.known.remove(&start);
        }
    }

    /// It was not done, or nobody knows.
    fn missed(&mut self, what: &What, open: bool) {
        match what {
            What::Swap { key, .. } if open => self.own.entry(key.clone()).or_default().unsure = true,
            What::Put { key, .. } if open => drop(self.own.remove(key)),
            _ => {}
        }
    }
}
