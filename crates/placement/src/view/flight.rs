//! Operators that have been begun. One per region; a merge also holds its neighbour.

use base::Time;

use crate::model::{Operator, Step};
use crate::policy::Policy;
use crate::view::Region;

#[derive(Clone, Debug)]
pub struct InFlight {
    /// The caller's.
    pub id: u64,
    pub operator: Operator,
    pub started: Time,
    /// When a step was last seen done, or the caller last saw the step come nearer ([`crate::View::note_progress`]).
    pub progressed: Time,
    /// Index of the step under way; the number of steps when all are done.
    pub step: usize,
    /// When each of the steps before it was seen done.
    pub done: Vec<Time>,
}

impl InFlight {
    pub fn current_step(&self) -> Option<&Step> {
        self.operator.steps.get(self.step)
    }

    /// No progress for longer than the policy allows. Time since the start says nothing: large replicas take long.
    pub fn is_stuck(&self, policy: &Policy, now: Time) -> bool {
        now.since(self.progressed) >= policy.operator_no_progress_timeout
    }

    /// How long each step took that is done.
    pub fn took(&self) -> Vec<std::time::Duration> {
        let begun = std::iter::once(self.started).chain(self.done.iter().copied());
        self.done.iter().zip(begun).map(|(done, begun)| done.since(begun)).collect()
    }

    pub(super) fn advance(&mut self, region: &Region, now: Time) -> Progress {
        let splits = self.operator.steps.iter().any(|step| matches!(step, Step::Split { .. }));
        if region.epoch.version != self.operator.epoch.version && !splits {
            return Progress::Overtaken;
        }
        let step = self.operator.next_step(region, self.step).map_or(self.operator.steps.len(), |(index, _)| index);
        // Another voter has become leader, and it is the one to go: it would have to hand over first.
        if let Some(Step::Remove { store, .. }) = self.operator.steps.get(step)
            && region.leader == Some(*store)
        {
            return Progress::Overtaken;
        }
        if step == self.step && step < self.operator.steps.len() {
            return Progress::Same;
        }
        self.step = step;
        self.done.resize(step, now);
        self.progressed = now;
        if step == self.operator.steps.len() { Progress::Finished } else { Progress::Step(step) }
    }
}

/// What a report said of the region's operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    Same,
    /// This step is next.
    Step(usize),
    /// All steps are done; the caller ends it.
    Finished,
    /// The region's range or leader is such by now that the steps no longer fit; the caller ends it.
    Overtaken,
}
