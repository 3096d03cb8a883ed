//! After healing: everything must come to rest within a bound, and is judged then. At rest, all regions have their replicas,
//! caught up, and a leader; no store has anything else; the placement driver's records are what is; nothing is planned, and
//! the balance is what the policy wants. Then clients prove that every key can be read and written.

use std::collections::{BTreeMap, BTreeSet};

use base::{GroupId, NodeId};
use consensus::Role;
use flaredb::region::layout::{RAW, raw_key};
use storage::LogStore as _;

use super::World;
use super::node::{Kind, Node, PD_GROUP};
use super::plan::{MS, SECOND};
use super::programs::is_region;
use super::stage::Happening;

/// So long after healing everything is at rest.
const REST_MAX: u64 = 300 * SECOND;
/// So long after that clients have done what they were asked for, and what has begun since is over.
const PROBES_MAX: u64 = 200 * SECOND;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Faulty,
    /// Since when.
    Healing(u64),
    Probing(u64),
    Rest,
}

impl World {
    /// Has everything come to rest?
    pub fn settle(&mut self) {
        let now = self.stage.now;
        match self.phase {
            Phase::Faulty => self.phase = Phase::Healing(now),
            Phase::Healing(since) => match self.unrest() {
                None => {
                    self.stage.note(0, "at-rest", &[("after_ms", (now - since) / MS)]);
                    self.healed_after = now - since;
                    self.probe();
                    self.phase = Phase::Probing(now);
                }
                Some(why) if now - since > REST_MAX => {
                    self.stage.ledger.fail(|| format!("not at rest long after everything was healed: {why}"));
                }
                Some(why) => self.stage.say(0, || why),
            },
            Phase::Probing(since) => {
                if self.clients.is_idle() && self.unrest().is_none() {
                    self.stage.note(0, "proved", &[]);
                    self.judge();
                    self.phase = Phase::Rest;
                } else if now - since > PROBES_MAX {
                    let why = self.unrest();
                    let idle = self.clients.is_idle();
                    self.stage.ledger.fail(|| {
                        let served = if idle { "" } else { "clients are not served, " };
                        let why = why.unwrap_or_default();
                        format!("not over long after everything came to rest: {served}{why}")
                    });
                }
            }
            Phase::Rest => {}
        }
        self.stage.after(500 * MS, Happening::Settle);
    }

    fn live(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.kind == Kind::Store && !node.retired && node.impostor.is_none())
    }

    /// What keeps the world from being at rest.
    fn unrest(&self) -> Option<String> {
        let mut stores = BTreeMap::new();
        for node in self.live() {
            let store = node.store().filter(|_| node.running.is_some());
            let Some(store) = store else { return Some(format!("node {} does not run", node.label())) };
            stores.insert(store.id(), (node, store.clone()));
        }
        let leads = |node: &&Node| {
            let host = node.running.as_ref().and_then(|running| running.host.as_ref());
            host.and_then(|host| host.status(PD_GROUP)).is_some_and(|status| status.role == Role::Leader)
        };
        let leader = self.nodes.iter().find(leads).and_then(|node| node.running.as_ref()?.leader.clone());
        let Some(leader) = leader else { return Some("nobody leads the placement driver".to_owned()) };
        let records: Vec<_> = leader.records().read().regions_from(b"").cloned().collect();
        let replicas = stores.len().min(3);
        let mut end = Some(bytes::Bytes::new());
        let (mut leaders, mut held) =
            (BTreeMap::<NodeId, Vec<GroupId>>::new(), BTreeMap::<NodeId, BTreeSet<GroupId>>::new());
        for record in &records {
            let id = GroupId(record.id);
            if end.as_ref() != Some(&record.start) {
                return Some(format!("{id} begins at {:?}, and the one before it ends at {end:?}", record.start));
            }
            end = (!record.end.is_empty()).then(|| record.end.clone());
            if record.peers.len() != replicas || record.peers.iter().any(|peer| peer.learner) {
                return Some(format!("{id} has {:?}", record.peers));
            }
            let mut states = Vec::new();
            for peer in &record.peers {
                let store = NodeId(peer.store_id);
                let Some((_, there)) = stores.get(&store) else { return Some(format!("{id} has a peer on {store}")) };
                let Some(region) = there.region(id).filter(|region| region.peer.0 == peer.id) else {
                    return Some(format!("peer {} of {id} is not on store {store}", peer.id));
                };
                if region.handle.status().role == Role::Leader {
                    leaders.entry(store).or_default().push(id);
                }
                held.entry(store).or_default().insert(id);
                if !region.handle.is_sound() {
                    return Some(format!("peer {} of {id} on store {store} is not sound", peer.id));
                }
                states.push((region.state(), region.handle.status().committed));
            }
            if states.iter().any(|(state, committed)| state.mark != states[0].0.mark || *committed != state.mark.index)
            {
                return Some(format!("the replicas of {id} are not of one mark"));
            }
            if states[0].0.describe(id) != *record {
                return Some(format!("{id} is not as recorded"));
            }
        }
        if end.is_some() {
            return Some("the records do not reach to the end of all keys".to_owned());
        }
        if leaders.values().map(Vec::len).sum::<usize>() != records.len() {
            return Some(format!("{} regions, led: {leaders:?}", records.len()));
        }
        for (id, (node, store)) in &stores {
            let here: BTreeSet<GroupId> = store.regions().iter().map(|region| region.id()).collect();
            let wanted = held.entry(*id).or_default();
            if here != *wanted {
                return Some(format!("store {id} has {here:?}, and ought to have {wanted:?}"));
            }
            let logs = node.disk.log.groups().into_iter().filter(|group| is_region(*group)).collect::<BTreeSet<_>>();
            if !logs.is_subset(wanted) {
                return Some(format!("store {id} has logs of {logs:?}, and ought to have {wanted:?}"));
            }
        }
        let Ok(term) = leader.term() else { return Some("nobody leads the placement driver".to_owned()) };
        if let Some(flight) = term.view.flights().next() {
            return Some(format!("under way: {}", flight.operator));
        }
        drop(term);
        unbalanced(&stores.keys().copied().collect::<Vec<_>>(), &leaders, &held)
            .filter(|_| self.stage.plan.value_bytes_max < 1 << 10)
    }

    /// At rest, what lies on the disks is what was promised.
    fn judge(&mut self) {
        let keys: Vec<_> = self.stage.ledger.keys().cloned().collect();
        for key in keys {
            let floor = self.stage.ledger.floor(&key);
            let found = self.live().filter_map(|node| {
                let store = node.store()?;
                let region = store.region_at(&key)?;
                region.state().covers(&key).then(|| store.engine.get(RAW, &raw_key(&key)))
            });
            for value in found.collect::<Vec<_>>() {
                match value {
                    Ok(value) => {
                        let value = value.map_or(0, |value| super::work::number_in(&value));
                        self.stage.ledger.read(&key, value, floor);
                    }
                    Err(error) => self.stage.ledger.fail(|| format!("{key:?} cannot be read: {error}")),
                }
            }
        }
        self.regions = self
            .live()
            .filter_map(|node| node.store())
            .flat_map(|store| store.regions())
            .map(|region| region.id())
            .collect::<BTreeSet<_>>()
            .len() as u64;
    }
}

/// A move that the planner would call better, if there is one left.
fn unbalanced(
    stores: &[NodeId],
    leaders: &BTreeMap<NodeId, Vec<GroupId>>,
    held: &BTreeMap<NodeId, BTreeSet<GroupId>>,
) -> Option<String> {
    let led = |store: &NodeId| leaders.get(store).map_or(0, Vec::len);
    let holds = |store: &NodeId, region: &GroupId| held.get(store).is_some_and(|held| held.contains(region));
    for from in stores {
        for to in stores {
            let moves = leaders.get(from).is_some_and(|led| led.iter().any(|region| holds(to, region)));
            if moves && led(from) >= led(to) + 2 {
                return Some(format!("store {from} leads {}, and store {to} {}", led(from), led(to)));
            }
            let (here, there) = (held.get(from).map_or(0, BTreeSet::len), held.get(to).map_or(0, BTreeSet::len));
            let moves = held.get(from).is_some_and(|held| held.iter().any(|region| !holds(to, region)));
            if moves && here > there + 3 {
                return Some(format!("store {from} has {here} regions, and store {to} {there}"));
            }
        }
    }
    None
}
