//! What will happen, in order of (time, number of entering): the whole order of a world. Two things of the same
//! time happen in the order in which they were planned, so that nothing is left to chance but what the seed says.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A node by its place in the world, with the life it was in: what was planned for an earlier life is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub at: usize,
    pub life: u32,
}

/// The plan.
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<Slot<T>>>,
    number: u64,
}

struct Slot<T> {
    time: u64,
    number: u64,
    what: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { heap: BinaryHeap::new(), number: 0 }
    }
}

impl<T> Queue<T> {
    pub fn push(&mut self, time: u64, what: T) {
        self.number += 1;
        self.heap.push(Reverse(Slot { time, number: self.number, what }));
    }

    pub fn pop(&mut self) -> Option<(u64, T)> {
        self.heap.pop().map(|Reverse(slot)| (slot.time, slot.what))
    }
}

impl<T> Ord for Slot<T> {
    fn cmp(&self, other: &Slot<T>) -> std::cmp::Ordering {
        (self.time, self.number).cmp(&(other.time, other.number))
    }
}

impl<T> PartialOrd for Slot<T> {
    fn partial_cmp(&self, other: &Slot<T>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Slot<T> {
    fn eq(&self, other: &Slot<T>) -> bool {
        self.number == other.number
    }
}

impl<T> Eq for Slot<T> {}
