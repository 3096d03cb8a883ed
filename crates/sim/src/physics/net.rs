//! The network between nodes: each message has a fate of its own. It may be lost, repeated, or so late that others
//! overtake it, and links may be cut, in one direction or both. What is under way when a link is cut still arrives.

use std::collections::{BTreeMap, BTreeSet};

use base::Rng;

use super::MS;

/// Messages lost, of a thousand; repeated; late (and so overtaken).
#[derive(Clone, Copy, Debug, Default)]
pub struct Fates {
    pub loss_permille: u64,
    pub repeat_permille: u64,
    pub late_permille: u64,
}

pub struct Net {
    rng: Rng,
    trip: (u64, u64),
    fates: Fates,
    /// By number, the links (from, to) that a partition cuts.
    cuts: BTreeMap<u64, BTreeSet<(usize, usize)>>,
    cut_number: u64,
}

impl Net {
    pub fn new(rng: Rng, trip: (u64, u64), fates: Fates) -> Net {
        Net { rng, trip, fates, cuts: BTreeMap::new(), cut_number: 0 }
    }

    /// After how long a message arrives: never, once or twice.
    pub fn trips(&mut self, from: usize, to: usize) -> Vec<u64> {
        if self.is_cut(from, to) || self.permille(self.fates.loss_permille) {
            return Vec::new();
        }
        let copies = if self.permille(self.fates.repeat_permille) { 2 } else { 1 };
        (0..copies).map(|_| self.trip()).collect()
    }

    /// A trip that a lossless stream makes; `None` when the link is cut.
    pub fn stream_trip(&mut self, from: usize, to: usize) -> Option<u64> {
        if self.is_cut(from, to) || self.is_cut(to, from) { None } else { Some(self.trip()) }
    }

    /// Between a client and a node: always there, never late.
    pub fn client_trip(&mut self) -> u64 {
        self.rng.between(MS / 20, MS)
    }

    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.values().any(|links| links.contains(&(from, to)))
    }

    /// Whether some link of a node is cut.
    pub fn is_torn(&self, at: usize) -> bool {
        self.cuts.values().flatten().any(|(from, to)| *from == at || *to == at)
    }

    /// Cuts links until [`Net::mend`].
    pub fn cut(&mut self, links: BTreeSet<(usize, usize)>) -> u64 {
        self.cut_number += 1;
        self.cuts.insert(self.cut_number, links);
        self.cut_number
    }

    pub fn mend(&mut self, number: u64) {
        self.cuts.remove(&number);
    }

    /// No faults from here on.
    pub fn heal(&mut self) {
        self.cuts.clear();
        self.fates = Fates::default();
    }

    fn trip(&mut self) -> u64 {
        let usual = self.rng.between(self.trip.0, self.trip.1);
        if self.permille(self.fates.late_permille) {
            usual + self.rng.below(60) * self.rng.below(50) * MS
        } else {
            usual
        }
    }

    fn permille(&mut self, chance: u64) -> bool {
        self.rng.below(1_000) < chance
    }
}

/// The links that a random partition of `nodes` cuts.
pub fn partition(rng: &mut Rng, nodes: usize, one_way: bool) -> BTreeSet<(usize, usize)> {
    let mut links = BTreeSet::new();
    if one_way || rng.percent(20) {
        // A few links, each in one direction; or one node that cannot be heard, or cannot hear.
        let deaf = rng.below(nodes as u64) as usize;
        match rng.below(3) {
            0 => links.extend((0..nodes).filter(|to| *to != deaf).map(|to| (deaf, to))),
            1 => links.extend((0..nodes).filter(|from| *from != deaf).map(|from| (from, deaf))),
            _ => {
                for _ in 0..=rng.below(nodes as u64) {
                    links.insert((rng.below(nodes as u64) as usize, rng.below(nodes as u64) as usize));
                }
            }
        }
        return links;
    }
    let side: Vec<bool> = (0..nodes).map(|_| rng.percent(50)).collect();
    // A bridge node, seen by both sides, now and then.
    let bridge = if rng.percent(20) { rng.below(nodes as u64) as usize } else { nodes };
    for from in 0..nodes {
        for to in 0..nodes {
            if side[from] != side[to] && from != bridge && to != bridge {
                links.insert((from, to));
            }
        }
    }
    links
}
