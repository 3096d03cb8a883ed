//! What strikes: crashes (between steps, and within what a store does to its engine), partitions, pauses, slow disks; the
//! placement driver in part or as a whole gone, and answers of it that arrive once more; stores lost for good, and folders that
//! claim to be somebody else. And steps that nobody planned, carried out by the stores as if they had been.

use std::sync::Arc;

use flaredb::supervisor;
use proto::placement as pb;
use storage::LogStore as _;
use storage::memengine::MemEngine;
use storage::memlog::MemLog;

use super::World;
use super::bug::Bug;
use super::ground::Question;
use super::node::{Impostor, Kind, Node, address_of, new_identity};
use super::plan::{MS, SECOND};
use super::programs::Link;
use super::stage::{Ending, Happening};
use super::tripwire::{Lie, Tripwire};
use super::work::key_of;
use crate::physics::net;

/// How long the placement driver is gone, if it is.
pub const OUTAGE: u64 = 600 * SECOND;
/// Operations of an engine within which a planned power cut comes.
const CUT_WITHIN: u64 = 12;

impl Node {
    fn as_impostor(&self, claims_id: bool) -> Impostor {
        Impostor { claims_id, writes: self.disk.engine.writes(), syncs: self.disk.log.stats().syncs }
    }
}

impl World {
    /// The next fault, and when the one after it comes.
    pub fn fault(&mut self) {
        if self.stage.healed {
            return;
        }
        let pause = 1 + self.stage.rng.below(2 * self.stage.plan.fault_every);
        self.stage.after(pause, Happening::Fault);
        let mut faults = self.stage.plan.faults.clone();
        if self.stage.outage.is_some() {
            // Whoever crashes comes back only with the placement driver.
            (faults.crashes, faults.cuts, faults.lost_store) = (false, false, false);
            (faults.pd_crashes, faults.pd_gone) = (false, false);
        }
        let store = self.stage.plan.pds + self.stage.rng.below(self.stores() as u64) as usize;
        let pd = self.stage.rng.below(self.stage.plan.pds as u64) as usize;
        match self.stage.rng.below(12) {
            0 | 1 if faults.crashes => self.strike(store),
            2 if faults.cuts && self.nodes[store].running.is_some() => {
                let operations = 1 + self.stage.rng.below(CUT_WITHIN);
                self.stage.note(store as u64 + 1, "cut-armed", &[("operations", operations)]);
                self.nodes[store].disk.engine.arm(operations);
            }
            3 if faults.partitions => {
                let one_way = self.stage.rng.percent(30);
                let links = net::partition(&mut self.stage.rng, self.nodes.len(), one_way);
                let number = self.stage.net.cut(links);
                self.stage.note(0, "partition", &[("number", number)]);
                let span = self.stage.rng.between(500, 9_000) * MS;
                self.stage.after(span, Happening::End(Ending::Partition { number }));
            }
            4 if faults.pauses => {
                let span = self.stage.rng.between(100, 5_000) * MS;
                self.stage.note(store as u64 + 1, "pause", &[("ms", span / MS)]);
                let node = &mut self.nodes[store];
                node.paused_until = node.paused_until.max(self.stage.now + span);
            }
            5 if faults.slow_disk => {
                self.stage.note(store as u64 + 1, "slow-disk", &[]);
                self.nodes[store].slow_disk = true;
                let span = self.stage.rng.between(500, 6_000) * MS;
                self.stage.after(span, Happening::End(Ending::SlowDisk { at: store }));
            }
            6 if faults.pd_crashes => self.strike(pd),
            7 if faults.pd_gone && self.stage.rng.percent(30) => {
                let down = self.stage.rng.between(10, 40) * SECOND;
                for at in 0..self.stage.plan.pds {
                    self.nodes[at].crash(&mut self.stage);
                    self.stage.after(down, Happening::Start { at });
                }
            }
            8 | 10 | 11 if faults.impostors => self.impostor(),
            9 if faults.lost_store && self.stage.rng.percent(60) => self.lose(store),
            _ => {}
        }
    }

    /// All members of the placement driver are gone for long, once all stores are there. What a store has been told to do may be
    /// under way.
    pub fn begin_outage(&mut self) {
        if self.stage.healed {
            return;
        }
        let pds = self.stage.plan.pds;
        if !self.nodes[pds..pds + self.stage.plan.stores].iter().all(|node| node.store().is_some()) {
            return self.stage.after(500 * MS, Happening::Outage);
        }
        self.stage.note(0, "outage", &[]);
        self.stage.outage = Some(self.clients.answered);
        self.nodes[pds..].iter().for_each(|node| node.disk.engine.arm(0));
        for at in 0..pds {
            self.nodes[at].crash(&mut self.stage);
        }
        self.stage.after(OUTAGE, Happening::End(Ending::Outage));
    }

    /// Data has flowed all the time.
    fn end_outage(&mut self) {
        let Some(answered) = self.stage.outage.take() else { return };
        let since = self.clients.answered - answered;
        self.stage.note(0, "outage-over", &[("answered", since)]);
        self.outages += 1;
        if since < OUTAGE / SECOND {
            self.stage.ledger.fail(|| format!("{since} calls were answered while the placement driver was gone"));
        }
        for at in 0..self.stage.plan.pds {
            self.stage.after(0, Happening::Start { at });
        }
    }

    pub fn end_fault(&mut self, ending: Ending) {
        match ending {
            Ending::Outage => self.end_outage(),
            Ending::Partition { number } => {
                self.stage.note(0, "mended", &[("number", number)]);
                self.stage.net.mend(number);
            }
            Ending::SlowDisk { at } => self.nodes[at].slow_disk = false,
        }
    }

    /// Stores that there are or will be, the impostors' place excluded.
    fn stores(&self) -> usize {
        self.stage.plan.stores + self.stage.plan.joiners
    }

    fn strike(&mut self, at: usize) {
        if self.nodes[at].running.is_none() {
            return;
        }
        // Nobody takes a copy for the original while the original is away: see below.
        if matches!(self.nodes[at].kind, Kind::Store) {
            self.banish_copies();
        }
        self.nodes[at].crash(&mut self.stage);
        let down = if self.stage.rng.percent(20) {
            self.stage.rng.between(5, 25) * SECOND
        } else {
            self.stage.rng.between(100, 3_000) * MS
        };
        self.stage.after(down, Happening::Start { at });
    }

    /// A process whose power was cut in the middle of something.
    pub fn cut(&mut self, at: usize) {
        self.stage.note(at as u64 + 1, "cut", &[]);
        self.banish_copies();
        self.nodes[at].crash(&mut self.stage);
        self.nodes[at].disk.engine.crash();
        let down = self.stage.rng.between(100, 4_000) * MS;
        self.stage.after(down, Happening::Start { at });
    }

    /// A store never comes back; only if all regions can do without it.
    fn lose(&mut self, at: usize) {
        let pds = self.stage.plan.pds;
        let up = self.nodes[pds..].iter().filter(|node| node.store().is_some() && node.impostor.is_none()).count();
        if up < 4 || self.nodes[pds..].iter().any(|node| node.retired && node.impostor.is_none()) {
            return;
        }
        let safe = |region: flaredb::store::Region| region.handle.membership().voters.len() >= 3;
        let safe = self.nodes[pds..].iter().filter_map(|node| node.store()).flat_map(|store| store.regions()).all(safe);
        if !safe || self.nodes[at].store().is_none() {
            return;
        }
        self.stage.note(at as u64 + 1, "lost", &[]);
        self.lost += 1;
        self.banish_copies();
        self.nodes[at].retired = true;
        self.nodes[at].crash(&mut self.stage);
    }

    /// Somebody with a copy of a store's folder, with a folder of its own and a store's id, or at a store's address.
    fn impostor(&mut self) {
        let at = self.nodes.len() - 1;
        let pds = self.stage.plan.pds;
        let real: Vec<usize> = (pds..at).filter(|real| self.nodes[*real].store().is_some()).collect();
        let Some(real) = self.stage.rng.pick(&real).copied() else { return };
        if self.nodes[at].running.is_some() {
            return;
        }
        let identity = self.nodes[real].disk.identity;
        let faults = &self.stage.plan.faults;
        // Who comes while the original has not been heard of is the original, moved, or takes its place.
        let steady = !faults.partitions && !faults.pauses && !faults.pd_gone && !faults.pd_crashes && !faults.outage;
        let kind = if steady { self.stage.rng.below(3) } else { 0 };
        self.stage.note(at as u64 + 1, "impostor", &[("of", real as u64 + 1), ("kind", kind)]);
        let fresh = new_identity(&mut self.stage);
        let folder = self.folder.join(format!("impostor-{}", self.stage.name()));
        let (log, engine, identity) = match kind {
            2 => {
                let original = &self.nodes[real].disk;
                (original.log.copy(), original.engine.inner.copy(), identity)
            }
            _ => (MemLog::new(), MemEngine::new(&flaredb::region::layout::FAMILIES), fresh),
        };
        let claimed = self.nodes[real].disk.identity.node.0;
        let address = self.nodes[real].address.clone();
        let node = &mut self.nodes[at];
        node.disk.log = Arc::new(log);
        node.disk.engine = Tripwire::new(Arc::new(engine));
        node.disk.identity = identity;
        node.disk.incoming = folder;
        node.disk.shadows.clear();
        node.asks_for = if kind == 0 { claimed } else { 0 };
        node.address = if kind == 1 { address } else { address_of(at) };
        node.impostor = Some(node.as_impostor(kind == 0));
        node.start(&mut self.stage);
    }

    /// The impostor goes away, and has written nothing.
    fn banish(&mut self) {
        let node = self.nodes.last_mut().expect("there is a place for it");
        if node.running.is_none() {
            return;
        }
        if let Some(before) = node.impostor {
            let now = node.as_impostor(before.claims_id);
            if now != before {
                self.stage.ledger.fail(|| format!("who must be refused has written: {before:?}, {now:?}"));
            }
        }
        node.crash(&mut self.stage);
    }

    /// Somebody is about to be away for whom a copy could be taken.
    fn banish_copies(&mut self) {
        if self.nodes.last().and_then(|node| node.impostor).is_some_and(|impostor| !impostor.claims_id) {
            self.banish();
        }
    }

    /// A process has ended by itself, and said why.
    pub fn ended(&mut self, at: usize, why: &str) {
        self.stage.say(at as u64 + 1, || why.to_owned());
        let node = &mut self.nodes[at];
        let Some(before) = node.impostor else {
            if node.disk.engine.is_cut() {
                return;
            }
            return self.stage.ledger.fail(|| format!("a store that did nothing wrong was refused: {why}"));
        };
        self.stage.note(at as u64 + 1, "ended", &[("claims_id", u64::from(before.claims_id))]);
        self.banish();
    }

    /// A step that nobody planned, for a region that a store leads; by its epoch or by an old one.
    pub fn odd(&mut self) {
        if self.stage.healed {
            return;
        }
        let pause = 1 + self.stage.rng.below(2 * self.stage.plan.odd_every);
        self.stage.after(pause, Happening::Odd);
        let pds = self.stage.plan.pds;
        let leads = |at: &usize| {
            let regions = self.nodes[*at].store().map(|store| store.regions()).unwrap_or_default();
            let led = regions.into_iter().filter(|region| region.handle.is_leader() && region.state().version > 0);
            led.map(|region| (*at, region)).collect::<Vec<_>>()
        };
        let led: Vec<_> = (pds..self.nodes.len() - 1).collect::<Vec<_>>().iter().flat_map(leads).collect();
        let Some((at, region)) = self.stage.rng.pick(&led).cloned() else { return };
        let Some(store) = self.nodes[at].store().cloned() else { return };
        let state = region.state();
        let faults = self.stage.plan.faults.clone();
        let members: Vec<u64> = region.handle.membership().members.keys().map(|node| node.0).collect();
        // Nobody votes of whom the placement driver has never heard: it would take such a peer away.
        let records = self.nodes[..pds].iter().find_map(|node| node.running.as_ref()?.leader.clone());
        let learners: Vec<u64> = records.map_or_else(Vec::new, |leader| {
            let records = leader.records().read();
            let peers = records.regions.get(&region.id().0).map(|region| region.peers.clone()).unwrap_or_default();
            peers.into_iter().filter(|peer| peer.learner).map(|peer| peer.store_id).collect()
        });
        let known: Vec<u64> = (pds..self.nodes.len() - 1).map(|other| self.nodes[other].disk.identity.node.0).collect();
        let outside: Vec<u64> = known.into_iter().filter(|id| *id > 0 && !members.contains(id)).collect();
        let before = store.regions().into_iter().map(|other| (other.id(), other.state()));
        let beside =
            before.filter(|(_, other)| other.version > 0 && (other.end == state.start || other.start == state.end));
        let beside: Vec<(u64, u64)> = beside.map(|(id, other)| (id.0, other.version)).collect();
        let neighbour = self.stage.rng.pick(&beside).copied();
        let cut = key_of(self.stage.rng.below(self.stage.plan.keys));
        let rng = &mut self.stage.rng;
        let what = match rng.below(10) {
            0..=2 if faults.odd_splits && state.covers(&cut) && cut > state.start => Odd::Split(cut, members),
            3 if faults.odd_members => match rng.pick(&outside) {
                Some(store) => Odd::Add(*store),
                None => return,
            },
            4 if faults.odd_members => match rng.pick(&learners) {
                Some(store) => Odd::Plain(pb::step::Action::PromoteStore(*store)),
                None => return,
            },
            // Of few voters one is not taken: a store that is lost for good must not take a region along.
            5 if faults.odd_members && (members.len() > 3 || (members.len() == 3 && !faults.lost_store)) => {
                match rng.pick(&members) {
                    Some(store) => Odd::Plain(pb::step::Action::RemoveStore(*store)),
                    None => return,
                }
            }
            6 | 7 if faults.odd_transfers => match rng.pick(&members) {
                Some(store) => Odd::Plain(pb::step::Action::TransferToStore(*store)),
                None => return,
            },
            8 | 9 if faults.merges => match neighbour {
                Some((into, into_version)) => Odd::Plain(pb::step::Action::Merge(pb::MergeStep { into, into_version })),
                None => return,
            },
            _ => return,
        };
        self.stage.note(at as u64 + 1, "odd", &[("group", region.id().0)]);
        self.stage.say(at as u64 + 1, || format!("{what:?}"));
        self.odd_steps += 1;
        let Some(running) = &self.nodes[at].running else { return };
        let process = running.process.clone();
        let link = Link::new(process.clone(), pds);
        let step = pb::Step {
            region_id: region.id().0,
            conf_version: state.conf_version,
            version: state.version,
            action: None,
        };
        drop(region);
        let doing = async move {
            let action = match what {
                Odd::Plain(action) => action,
                Odd::Add(store_id) => {
                    let Ok(ids) = link.ask::<pb::AllocateIdsResponse>(Question::Allocate(1)).await else { return };
                    pb::step::Action::AddLearner(pb::Peer { id: ids.first, store_id, learner: true })
                }
                Odd::Split(start, members) => {
                    let count = 1 + members.len() as u32;
                    let Ok(ids) = link.ask::<pb::AllocateIdsResponse>(Question::Allocate(count)).await else { return };
                    let peers = members.into_iter().zip(ids.first + 1..);
                    let peers = peers.map(|(store_id, id)| pb::Peer { id, store_id, learner: false }).collect();
                    pb::step::Action::Split(pb::SplitStep {
                        at: vec![pb::SplitAt { start, region_id: ids.first, peers }],
                    })
                }
            };
            let steps = vec![pb::Step { action: Some(action), ..step }];
            supervisor::follow(&store, pb::HeartbeatResponse { steps, ..pb::HeartbeatResponse::default() });
        };
        process.out.lock().tasks.push(Box::pin(doing));
    }

    /// An answer of the placement driver arrives once more.
    pub fn again(&mut self, at: usize, number: usize) {
        if self.stage.healed {
            return;
        }
        let Some(store) = self.nodes[at].store().cloned() else { return };
        let answer = self.calls.answers[number].1.clone();
        let (steps, retired) = (answer.steps.len() as u64, answer.retired.len() as u64);
        self.stage.note(at as u64 + 1, "again", &[("steps", steps), ("retired", retired)]);
        supervisor::follow(&store, answer);
    }

    /// All faults are over.
    pub fn heal(&mut self) {
        self.stage.note(0, "heal", &[]);
        self.stage.healed = true;
        self.stage.outage = None;
        self.stage.net.heal();
        self.clients.stopped = true;
        self.banish();
        for at in 0..self.nodes.len() - 1 {
            let node = &mut self.nodes[at];
            (node.slow_disk, node.paused_until) = (false, 0);
            node.disk.engine.arm(0);
            if node.running.is_none() && !node.retired {
                self.stage.after(0, Happening::Start { at });
            }
        }
    }

    /// How a store's engine lies, for a planted bug.
    pub fn plant(&mut self, at: usize) {
        let node = &self.nodes[at];
        if node.kind == Kind::Store {
            *node.disk.engine.lie.lock() = match self.stage.bug {
                Some(Bug::FlushNothing) => Some(Lie::FlushNothing),
                Some(Bug::ForgetRetired) => Some(Lie::ForgetRetired),
                Some(Bug::KeepMerged) => Some(Lie::KeepMerged),
                Some(Bug::ServeUnflushedSplits) => Some(Lie::ForgetBirths),
                Some(Bug::SplitKeepsVersion) => Some(Lie::KeepVersion),
                _ => None,
            };
        }
    }
}

/// See [`World::odd`].
#[derive(Debug)]
enum Odd {
    Plain(pb::step::Action),
    Add(u64),
    Split(bytes::Bytes, Vec<u64>),
}
