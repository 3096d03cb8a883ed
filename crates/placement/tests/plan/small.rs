//! Small views in a few words, and plans as text.
//!
//! Stores: `"1:a 2:b 3:c"` are three stores in racks a, b, c. Replicas: `"1* 2 3"`; `*` leads, `l` learns, `?` is behind,
//! `!` has been down for ten minutes, `-` for one.

use std::time::Duration;

use base::{GroupId, NodeId, PeerId, Time};
use placement::policy::MIB;
use placement::scale::key;
use placement::view::{DownPeer, StoreMeta, StoreReport, StoreState, View};
use placement::{Epoch, Key, Peer, Plan, Policy, RegionReport, plan};

pub const GIB: u64 = 1 << 30;

pub struct Small {
    pub view: View,
    pub policy: Policy,
    pub now: Time,
    pub round: u64,
}

impl Small {
    /// Racks matter, schedulers are off.
    pub fn new(stores: &str) -> Small {
        let now = Time::from_millis(10_000_000);
        let policy =
            Policy { location_labels: vec!["rack".to_owned()], schedulers: Default::default(), ..Policy::default() };
        let mut small = Small { view: View::new(now), policy, now, round: 0 };
        for store in stores.split_whitespace() {
            let (id, rack) = store.split_once(':').unwrap_or((store, ""));
            let id = NodeId(id.parse().unwrap());
            small.view.put_store(StoreMeta::new(id).label("rack", rack), now);
            small.store(id.0, |_| {});
        }
        small
    }

    /// The store reports.
    pub fn store(&mut self, id: u64, change: impl Fn(&mut StoreReport)) {
        let mut report =
            StoreReport { capacity_bytes: 1000 * GIB, available_bytes: 900 * GIB, ..StoreReport::default() };
        change(&mut report);
        self.view.report_store(NodeId(id), report, self.now).unwrap();
    }

    pub fn state(&mut self, id: u64, state: StoreState) {
        let meta = self.view.store(NodeId(id)).unwrap().meta.clone();
        self.view.put_store(StoreMeta { state, ..meta }, self.now);
    }

    /// The region's leader reports. Its range is that of its id.
    pub fn region(&mut self, id: u64, replicas: &str, change: impl Fn(&mut RegionReport)) {
        let mut report = RegionReport {
            id: GroupId(id),
            start: key(id),
            end: key(id + 1),
            epoch: Epoch { conf_version: 1, version: 1 },
            bytes: 512 * MIB,
            keys: 2_000_000,
            ..RegionReport::default()
        };
        for (index, word) in replicas.split_whitespace().enumerate() {
            let (number, marks) = word.split_at(word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len()));
            let store = NodeId(number.parse().unwrap());
            let id = PeerId(id * 100 + index as u64 + 1);
            report.peers.push(Peer { id, store, learner: marks.contains('l') });
            let down = |minutes: u64| DownPeer { store, since: self.now - Duration::from_secs(60 * minutes) };
            for mark in marks.chars() {
                match mark {
                    '*' => report.leader = Some(store),
                    '?' => report.pending.push(store),
                    '!' => report.down.push(down(10)),
                    '-' => report.down.push(down(1)),
                    'l' => {}
                    _ => panic!("no such mark: {mark}"),
                }
            }
        }
        change(&mut report);
        self.view.report_region(report, self.now).unwrap();
    }

    /// Time passes, and all stores but these report.
    pub fn later(&mut self, seconds: u64, silent: &[u64]) {
        let stores: Vec<_> = self.view.stores().map(|store| (store.id().0, store.report)).collect();
        let regions: Vec<_> = self.view.regions().map(|region| region.to_report()).collect();
        self.now = self.now + Duration::from_secs(seconds);
        for (store, report) in stores.into_iter().filter(|(store, _)| !silent.contains(store)) {
            self.store(store, |new| *new = report);
        }
        for report in regions {
            self.view.report_region(report, self.now).unwrap();
        }
    }

    pub fn plan(&self) -> Plan {
        plan(&self.view, &self.policy, self.now, self.round)
    }

    /// A line per operator: cause, region, steps in short (`+4` learner, `^4` promote, `>4` lead, `-4` remove).
    pub fn planned(&self) -> Vec<String> {
        self.plan().operators.iter().map(short).collect()
    }

    /// Begins what is planned.
    pub fn begin(&mut self) -> usize {
        let plan = self.plan();
        let count = plan.operators.len();
        for (index, operator) in plan.operators.into_iter().enumerate() {
            self.view.begin(self.round * 1000 + index as u64, operator, self.now).unwrap();
        }
        self.round += 1;
        count
    }

    /// What the blockers of the plan are called, and how many regions each holds up.
    pub fn blocked(&self) -> Vec<(&'static str, u64)> {
        self.plan().stats.blocked.into_iter().collect()
    }
}

pub fn short(operator: &placement::Operator) -> String {
    use placement::Step;
    let steps = operator.steps.iter().map(|step| match step {
        Step::AddLearner { store, .. } => format!("+{store}"),
        Step::Promote { store } => format!("^{store}"),
        Step::Remove { store, .. } => format!("-{store}"),
        Step::TransferLeader { to } => format!(">{to}"),
        Step::Split { keys } => format!("split {}", keys.len()),
        Step::Merge { into, .. } => format!("merge {into}"),
    });
    format!("{} {}: {}", operator.cause, operator.region, steps.collect::<Vec<_>>().join(" "))
}

/// A key between the starts of region `id` and the next.
pub fn key_in(id: u64, more: u8) -> Key {
    [&key(id)[..], &[more]].concat().as_slice().into()
}
