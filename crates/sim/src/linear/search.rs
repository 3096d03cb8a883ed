//! The search for moments: Wing and Gong's, with Lowe's memory of the configurations visited.
//!
//! A configuration is the set of steps placed so far, with the register's state after them. The next step to place
//! is any that was called before the earliest answer among the certain steps not yet placed. A configuration that was
//! met before is not entered again. Sets are bits: of the certain steps only the window between the first one not
//! placed and the last one placed is kept, which with few clients is a word or two.
//!
//! What keeps it small:
//! * of the candidates whose revision is known only those with the smallest one are tried (the others would leave
//!   these behind for good);
//! * a read that fits is placed at once, without alternatives;
//! * steps of unknown outcome are tried last; of all puts whose value nobody saw only the earliest is (they are
//!   alike), of all deletes of unknown outcome likewise; and what follows such a step has to be able to tell it from
//!   nothing (see [`super::model::State`]).

use std::collections::HashSet;
use std::time::Instant;

use super::model::{Action, State, Step};

/// Between two looks at the clock.
const STEPS_PER_LOOK: u64 = 1024;

pub enum End {
    Found,
    GaveUp(String),
}

/// Looks for an order of `steps` (sorted by start). The error explains why there is none.
#[allow(clippy::disallowed_methods, reason = "the limit in time guards against histories that would take for ever")]
pub fn search(key: &str, steps: &[Step], steps_max: u64, deadline: Instant) -> Result<End, String> {
    let mut search = Search::new(steps);
    let mut stack = vec![search.frame(State::START)];
    let mut visited = HashSet::new();
    let mut best = Best::default();
    let mut count = 0;
    while let Some(frame) = stack.last_mut() {
        if search.certain_left == 0 {
            return Ok(End::Found);
        }
        let Some(place) = frame.candidates.pop() else {
            stack.pop();
            if let Some(parent) = stack.last_mut() {
                search.take_back(parent.placed.take().expect("a frame below another has placed a step"));
            }
            continue;
        };
        let Some(state) = frame.state.after(search.step(place)) else { continue };
        search.place(place);
        if !visited.insert(search.configuration(state)) {
            search.take_back(place);
            continue;
        }
        frame.placed = Some(place);
        best.note(&search, &stack, state);
        stack.push(search.frame(state));
        count += 1;
        if count > steps_max || (count % STEPS_PER_LOOK == 0 && Instant::now() > deadline) {
            return Ok(End::GaveUp(format!(
                "key {key}: gave up after {count} configurations of {} steps",
                steps.len()
            )));
        }
    }
    if search.certain_left == 0 { Ok(End::Found) } else { Err(best.explain(key, &search)) }
}

/// Where a step stands: among the certain or among the stray ones.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Certain(usize),
    Stray(usize),
}

struct Frame {
    state: State,
    /// Untried, the likeliest last.
    candidates: Vec<Slot>,
    placed: Option<Slot>,
}

struct Search<'a> {
    certain: Vec<&'a Step>,
    /// Of unknown outcome, and nobody saw an effect: may be left out.
    stray: Vec<&'a Step>,
    certain_placed: Vec<u64>,
    stray_placed: Vec<u64>,
    /// The first certain step not placed.
    first: usize,
    /// One beyond the last word of `certain_placed` that is not zero.
    words_used: usize,
    certain_left: usize,
}

impl<'a> Search<'a> {
    fn new(steps: &'a [Step]) -> Search<'a> {
        let (certain, stray): (Vec<&Step>, Vec<&Step>) = steps.iter().partition(|step| step.certain);
        let words = |steps: usize| vec![0; steps.div_ceil(64)];
        Search {
            certain_placed: words(certain.len()),
            stray_placed: words(stray.len()),
            first: 0,
            words_used: 0,
            certain_left: certain.len(),
            certain,
            stray,
        }
    }

    fn step(&self, slot: Slot) -> &'a Step {
        match slot {
            Slot::Certain(at) => self.certain[at],
            Slot::Stray(at) => self.stray[at],
        }
    }

    fn place(&mut self, slot: Slot) {
        match slot {
            Slot::Certain(at) => {
                self.certain_placed[at / 64] |= 1 << (at % 64);
                self.words_used = self.words_used.max(at / 64 + 1);
                self.certain_left -= 1;
                while self.first < self.certain.len() && is_set(&self.certain_placed, self.first) {
                    self.first += 1;
                }
            }
            Slot::Stray(at) => self.stray_placed[at / 64] |= 1 << (at % 64),
        }
    }

    fn take_back(&mut self, slot: Slot) {
        match slot {
            Slot::Certain(at) => {
                self.certain_placed[at / 64] &= !(1 << (at % 64));
                while self.words_used > 0 && self.certain_placed[self.words_used - 1] == 0 {
                    self.words_used -= 1;
                }
                self.certain_left += 1;
                self.first = self.first.min(at);
            }
            Slot::Stray(at) => self.stray_placed[at / 64] &= !(1 << (at % 64)),
        }
    }

    /// What the memory of visited configurations keeps.
    fn configuration(&self, state: State) -> (State, usize, Box<[u64]>) {
        let from = (self.first / 64).min(self.words_used);
        let bits = self.certain_placed[from..self.words_used].iter().chain(&self.stray_placed).copied().collect();
        (state, self.first, bits)
    }

    fn frame(&self, state: State) -> Frame {
        Frame { state, candidates: self.candidates(state), placed: None }
    }

    fn candidates(&self, state: State) -> Vec<Slot> {
        let mut bound = u64::MAX;
        let mut open = Vec::new();
        for at in self.first..self.certain.len() {
            let step = self.certain[at];
            if step.start > bound {
                break;
            }
            if !is_set(&self.certain_placed, at) {
                bound = bound.min(step.end);
                open.push(at);
            }
        }
        open.retain(|at| self.certain[*at].start <= bound);
        let revision = |at: &usize| self.certain[*at].revision;
        let smallest = open.iter().map(revision).filter(|revision| *revision != 0).min().unwrap_or(0);
        open.retain(|at| revision(at) == 0 || revision(at) == smallest);
        if let Some(read) = self.safe_read(&open, state) {
            return vec![Slot::Certain(read)];
        }
        // Popped from the end: the smallest revision first, and of equal ones the write that made it.
        let hint = |at: &usize| std::cmp::Reverse((hint(self.certain[*at]), *at));
        open.sort_by_key(|at| (revision(at) != 0, is_write(self.certain[*at]), hint(at)));

        let mut candidates = Vec::with_capacity(open.len() + 4);
        let (mut put_offered, mut delete_offered) = (false, false);
        for (at, step) in self.stray.iter().enumerate().take_while(|(_, step)| step.start <= bound) {
            if is_set(&self.stray_placed, at) {
                continue;
            }
            let alike = match step.action {
                Action::Put { .. } if step.anonymous => Some(&mut put_offered),
                Action::Delete { .. } => Some(&mut delete_offered),
                _ => None,
            };
            if alike.is_none_or(|offered| !std::mem::replace(offered, true)) {
                candidates.push(Slot::Stray(at));
            }
        }
        candidates.extend(open.into_iter().map(Slot::Certain));
        candidates
    }

    /// A read that fits here can be placed at once, with no need to try anything else: wherever a valid order has it,
    /// it may as well come first, as it changes nothing. Only its revision could: it must not be beyond that of a step
    /// still to come.
    fn safe_read(&self, open: &[usize], state: State) -> Option<usize> {
        let alone = open.iter().all(|at| self.certain[*at].revision != 0 && !is_write(self.certain[*at]));
        let safe = |step: &Step| alone || step.revision <= state.floor;
        let fits = |step: &&Step| !is_write(step) && safe(step) && state.after(step).is_some();
        open.iter().copied().find(|at| fits(&self.certain[*at]))
    }
}

fn is_set(bits: &[u64], at: usize) -> bool {
    bits[at / 64] & (1 << (at % 64)) != 0
}

/// The lowest revision at which the step can stand, as far as it tells.
fn hint(step: &Step) -> u64 {
    match step.action {
        Action::Get { found } => step.revision.max(found.modified),
        Action::Put { .. } | Action::Delete { .. } | Action::Cas { .. } => step.revision,
    }
}

fn is_write(step: &Step) -> bool {
    match step.action {
        Action::Put { .. } => true,
        Action::Get { .. } => false,
        Action::Delete { done } => done != Some(false),
        Action::Cas { swapped, .. } => swapped != Some(false),
    }
}

/// The furthest the search came, to show where it got stuck.
#[derive(Default)]
struct Best {
    placed: usize,
    last: Vec<String>,
    state: Option<State>,
    open: Vec<String>,
}

impl Best {
    fn note(&mut self, search: &Search, stack: &[Frame], state: State) {
        let placed = search.certain.len() - search.certain_left;
        if placed <= self.placed && self.state.is_some() {
            return;
        }
        self.placed = placed;
        self.state = Some(state);
        let slots = stack.iter().rev().take(4).filter_map(|frame| frame.placed);
        self.last = slots.map(|slot| search.step(slot).text.clone()).collect();
        let certain = search.candidates(state).into_iter().rev().filter(|slot| matches!(slot, Slot::Certain(_)));
        self.open = certain.take(6).map(|slot| search.step(slot).text.clone()).collect();
    }

    fn explain(&self, key: &str, search: &Search) -> String {
        let candidates = search.candidates(State::START).into_iter().rev();
        let first: Vec<String> = candidates.map(|slot| search.step(slot).text.clone()).collect();
        let open = if self.state.is_some() { &self.open } else { &first };
        let lines = |texts: &[String]| if texts.is_empty() { "nothing".to_owned() } else { texts.join("\n    ") };
        format!(
            "key {key}: no order fits. {} of {} operations could be placed, the last of them (backwards):\n    {}\nbut \
             then none of these can follow:\n    {}",
            self.placed,
            search.certain.len(),
            lines(&self.last),
            lines(open),
        )
    }
}
