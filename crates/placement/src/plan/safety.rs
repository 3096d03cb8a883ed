//! What no plan may do: leave a region with fewer healthy voters than a majority, put two replicas into one store, take the
//! leader away from under itself. Every operator passes here before it enters the plan, whichever checker made it.
//!
//! ```text
//!  3 voters, 1 down        2 of 3 well     majority 2  ok
//!  + learner, promoted     3 of 4 well     majority 3  ok
//!  - the one that is down  3 of 3 well                 ok
//! ```
//! A voter is healthy when its leader says that it answers and has caught up, and PD hears of its store.

use base::NodeId;

use crate::model::Step;
use crate::plan::round::{Blocker, Round};
use crate::view::Region;

/// Healthy voters, and voters.
pub fn standing(round: &Round<'_>, region: &Region) -> (usize, usize) {
    let well = region.voters().filter(|peer| round.is_well(region, peer.store)).count();
    (well, region.voters().count())
}

/// Walks through the steps.
pub fn check(round: &Round<'_>, region: &Region, steps: &[Step]) -> Result<(), Blocker> {
    let mut voters: Vec<(NodeId, bool)> =
        region.voters().map(|peer| (peer.store, round.is_well(region, peer.store))).collect();
    let mut learners: Vec<NodeId> = region.learners().map(|peer| peer.store).collect();
    let mut leader = region.leader;
    for step in steps {
        let fits = match step {
            Step::AddLearner { store, .. } => {
                if !learners.contains(store) {
                    learners.push(*store);
                }
                voters.iter().all(|(voter, _)| voter != store)
            }
            Step::Promote { store } => {
                let there = learners.contains(store);
                learners.retain(|learner| learner != store);
                voters.push((*store, true));
                there
            }
            Step::Remove { store, .. } => {
                let there = learners.contains(store) || voters.iter().any(|(voter, _)| voter == store);
                learners.retain(|learner| learner != store);
                voters.retain(|(voter, _)| voter != store);
                there && leader != Some(*store)
            }
            Step::TransferLeader { to } => {
                leader = Some(*to);
                voters.contains(&(*to, true))
            }
            Step::Split { .. } | Step::Merge { .. } => true,
        };
        let well = voters.iter().filter(|(_, well)| *well).count();
        if !fits || well * 2 <= voters.len() {
            return Err(Blocker::Unsafe { step: step.to_string(), well, voters: voters.len() });
        }
    }
    Ok(())
}
