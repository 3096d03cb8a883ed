//! What every program's page at `/metrics` is made of.
//!
//! The parts of a program keep plain counters and know nothing of metrics; one file in each program gives them names. What
//! those files have in common stands here, and nothing that is one program's own.
//!
//! | file | its subject |
//! |---|---|
//! | [`page`] | the text format: families, samples, labels |
//! | [`calls`] | the methods of a service: outcomes and durations |
//! | [`histogram`] | durations counted where they happen |
//! | [`common`] | families of the engine room and the state, under each program's own prefix |
//! | [`process`] | the process: memory, CPU time, descriptors |
//! | [`reference`] | what the documents say of a page, and whether a page keeps to the format |

pub mod calls;
pub mod common;
pub mod histogram;
pub mod page;
pub mod process;
pub mod reference;

pub use histogram::{Histogram, by_powers};
pub use page::{Observed, Page, labels};

use std::sync::atomic::{AtomicU64, Ordering};

/// A counter's value.
pub fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}
