//! Why, why not, and what if: the answers for people. Nothing here decides anything; every answer comes from the filters and
//! checkers that plan, asked about one region or store, so an explanation cannot differ from what is done.
//!
//! * [`region`]: what a region is to have, what it has, what will be done next, what stands in the way, every store as a
//!   candidate.
//! * [`store`]: why a store takes replicas and leaders, or does not; why it does not drain.
//! * [`forecast`]: removing a store or changing the policy, without doing it: regions and bytes to move, blockers, a duration.
//!
//! Each is a value that serialises to JSON and whose `Display` is a few lines of plain text. Lists of stores are as long as
//! there are stores; lists of regions are examples, [`EXAMPLES_MAX`] each.
//!
//! Cost: a region, O(stores). A store or its removal, O(its regions × stores) at worst. A policy, O(all regions): seconds at a
//! million.

pub mod forecast;
pub mod region;
pub mod store;

use std::collections::BTreeMap;

use base::GroupId;
use serde::Serialize;

use crate::plan::round::Blocker;

/// Regions named per kind of blocker.
pub const EXAMPLES_MAX: usize = 3;

/// Regions that cannot have what they need, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BlockedRegions {
    pub blocker: &'static str,
    pub regions: u64,
    pub examples: Vec<Example>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Example {
    pub region: u64,
    pub why: String,
}

/// Gathers blockers by kind.
#[derive(Default)]
struct Gathered(BTreeMap<&'static str, BlockedRegions>);

impl Gathered {
    fn add(&mut self, region: GroupId, blocker: &Blocker) {
        let name = blocker.name();
        let kind =
            self.0.entry(name).or_insert_with(|| BlockedRegions { blocker: name, regions: 0, examples: Vec::new() });
        kind.regions += 1;
        if kind.examples.len() < EXAMPLES_MAX {
            kind.examples.push(Example { region: region.0, why: blocker.to_string() });
        }
    }

    fn list(self) -> Vec<BlockedRegions> {
        self.0.into_values().collect()
    }
}

impl std::fmt::Display for BlockedRegions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} regions: {}", self.regions, self.blocker)?;
        for example in &self.examples {
            write!(f, "\n    region {}: {}", example.region, example.why)?;
        }
        Ok(())
    }
}
