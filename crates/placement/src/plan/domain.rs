//! Failure domains: how far apart two stores are, by the labels that the policy names, largest first.
//!
//! ```text
//!  labels zone, rack, host      a: z1 r1 h1     b: z1 r2 h3     they part at `rack`, level 1 of 3
//!  isolation of a replica = sum over the other replicas of 100^(levels - 1 - level where they part); 0 where they never part
//! ```
//! So one zone more outweighs any number of racks. A store without a label counts as being in the same domain as every other
//! one: who does not say where it is may be next door.

use std::collections::BTreeMap;

use crate::policy::LOCATION_LABELS_MAX;
use crate::view::StoreMeta;

/// A store's domains as small numbers; 0 where the label is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path([u32; LOCATION_LABELS_MAX]);

/// Gives numbers to label values.
#[derive(Debug)]
pub struct Domains<'a> {
    labels: &'a [String],
    numbers: BTreeMap<(usize, &'a str), u32>,
}

impl<'a> Domains<'a> {
    pub fn new(labels: &'a [String]) -> Domains<'a> {
        Domains { labels: &labels[..labels.len().min(LOCATION_LABELS_MAX)], numbers: BTreeMap::new() }
    }

    pub fn path(&mut self, store: &'a StoreMeta) -> Path {
        let mut path = Path::default();
        for (level, label) in self.labels.iter().enumerate() {
            if let Some(value) = store.labels.get(label).filter(|value| !value.is_empty()) {
                let next = self.numbers.len() as u32 + 1;
                path.0[level] = *self.numbers.entry((level, value)).or_insert(next);
            }
        }
        path
    }

    pub fn levels(&self) -> usize {
        self.labels.len()
    }
}

/// How well a replica at `path` is kept apart from those at `rest`.
pub fn isolation(path: &Path, rest: impl IntoIterator<Item = Path>, levels: usize) -> u64 {
    rest.into_iter().map(|other| apart(path, &other, levels)).sum()
}

/// The best isolation that any of `open`, sorted, has from `rest`. Looks at few of them: at each level, a domain in which
/// none of the rest is cannot be bettered, and there are not many others.
pub fn best_isolation(open: &[Path], rest: &[Path], levels: usize) -> u64 {
    best_below(open, rest, 0, levels)
}

/// `open` share their domains above `level`, and `rest` part from them there or below.
fn best_below(mut open: &[Path], rest: &[Path], level: usize, levels: usize) -> u64 {
    if level == levels || rest.is_empty() {
        return 0;
    }
    let weight = 100_u64.pow((levels - 1 - level) as u32);
    let mut best = 0;
    while let Some(first) = open.first() {
        let value = first.0[level];
        let (here, others) = open.split_at(open.partition_point(|path| path.0[level] == value));
        let together = |other: &&Path| value == 0 || other.0[level] == 0 || other.0[level] == value;
        let near: Vec<Path> = rest.iter().filter(together).copied().collect();
        let far = (rest.len() - near.len()) as u64;
        best = best.max(far * weight + best_below(here, &near, level + 1, levels));
        if near.is_empty() {
            return best;
        }
        open = others;
    }
    best
}

fn apart(a: &Path, b: &Path, levels: usize) -> u64 {
    match (0..levels).find(|level| a.0[*level] != 0 && b.0[*level] != 0 && a.0[*level] != b.0[*level]) {
        Some(level) => 100_u64.pow((levels - 1 - level) as u32),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use base::{NodeId, Rng};

    use super::*;

    #[test]
    fn a_larger_domain_outweighs_smaller_ones_and_a_missing_label_is_next_door() {
        let labels = ["zone".to_owned(), "rack".to_owned()];
        let store = |zone: &str, rack: &str| StoreMeta::new(NodeId(1)).label("zone", zone).label("rack", rack);
        let (a, b, c, d) = (store("1", "1"), store("1", "2"), store("2", "1"), StoreMeta::new(NodeId(1)));
        let mut domains = Domains::new(&labels);
        let [a, b, c, d] = [&a, &b, &c, &d].map(|store| domains.path(store));
        assert_eq!(isolation(&a, [a], 2), 0);
        assert_eq!(isolation(&a, [b], 2), 1);
        assert_eq!(isolation(&a, [c], 2), 100);
        assert_eq!(isolation(&a, [b, c], 2), 101);
        assert_eq!(isolation(&a, [d], 2), 0);
    }

    #[test]
    fn the_best_isolation_is_the_best_of_all() {
        let mut rng = Rng::new(5);
        for _ in 0..2000 {
            let mut path = || Path(std::array::from_fn(|_| rng.below(4) as u32));
            let mut open: Vec<Path> = (0..8).map(|_| path()).collect();
            let rest: Vec<Path> = (0..3).map(|_| path()).collect();
            open.sort_unstable();
            let all = open.iter().map(|path| isolation(path, rest.iter().copied(), 3)).max().unwrap();
            assert_eq!(best_isolation(&open, &rest, 3), all, "{open:?} {rest:?}");
        }
    }
}
