//! Watching: from an applied change to the encoded responses of every stream that asked for it.
//!
//! # Life of an event
//! ```text
//! applier ── publish ──► incoming ── dispatch ──► ring of passes ──┬─► stream's notes ──── poll ──► Responses
//!            (append)               (match once,                   │        (live)
//!                                    encode once)                  └─► catch-up (ring, else history)
//! ```
//! [`WatchHub::publish`] appends a batch and wakes the dispatcher. [`WatchHub::dispatch`] takes what has accumulated
//! (a *pass*), finds for each event the ranges it falls into, encodes it once, puts the pass into the ring and leaves
//! a note of 16 bytes with each stream that has a watcher on it. [`WatchStream::poll`] turns the notes into
//! responses: per watcher a head of some 30 bytes, and the shared payload. Whatever accumulated while a stream was
//! busy goes out together.
//!
//! # Slow streams
//! Notes are bounded, and the ring forgets; a stream that loses a note lets its watchers fall back to *lagging*: each
//! knows the next revision it needs and reads it from the ring or from [`History`], in bounded chunks, until it stands
//! at the ring's end. Nothing waits for a slow stream and nothing grows with it.
//!
//! # Invariants
//! 1. A watcher gets every matching event from its start on, once, in order, and all events of a revision in one
//!    response (fragments excepted): `next`, the smallest revision it has not been sent, decides each time.
//! 2. Passes reach the ring before the notes reach the streams, both under the index lock; a watcher's range is in
//!    the index before it reads where the ring ends. So what is not in the ring then will come as a note.
//! 3. The header revision R of a response with events (of its last fragment) or of a progress response means: this
//!    watcher has been sent all its events up to R. With watch id −1 it says so for the whole stream.
//! 4. A watcher ends in one response with `canceled`, and nothing follows under its id.
//!
//! Time is an argument ([`WatchHub::tick`]), wakers are std's: production and simulator drive the same code.
//!
//! # Left out, and why
//! Access rights are checked before a watcher is made ([`Command::Refuse`] answers those who may not). A watcher
//! that starts below the compact revision is refused even where the ring still holds the revision, as etcd does.

mod catch_up;
pub mod check;
mod encode;
mod history;
mod hub;
mod index;
mod live;
mod range;
mod ring;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

use std::time::Duration;

pub use encode::Responses;
pub use history::{History, HistoryError, Past, select};
pub use hub::{TooManyStreams, WatchHub, WatchStats};
pub use range::{KeyRange, RangeEnd};
pub use stream::{Closed, Command, CreateWatch, WatchStream};

/// What a hub needs to know at its start.
#[derive(Clone, Debug)]
pub struct WatchOptions {
    /// For response headers.
    pub cluster_id: u64,
    /// For response headers.
    pub member_id: u64,
    pub streams_max: usize,
    pub watchers_per_stream_max: usize,
    /// Watchers of all streams together.
    pub watchers_max: usize,
    /// Of a watcher's key, and of its range end.
    pub key_bytes_max: usize,
    pub ring_bytes_max: usize,
    pub ring_events_max: usize,
    /// Notes of undelivered passes that a stream may hold before it falls back to catching up.
    pub notes_per_stream_max: usize,
    /// Requests that a stream may hold before [`WatchStream::submit`] waits.
    pub commands_per_stream_max: usize,
    /// About how much one poll encodes, and one response carries unless a single revision is larger.
    pub response_bytes: usize,
    /// Responses above this size are split for watchers that allow it.
    pub fragment_bytes_max: usize,
    /// How often a watcher that asked for it is told of progress when nothing else was sent.
    pub progress_interval: Duration,
}

impl Default for WatchOptions {
    fn default() -> Self {
        WatchOptions {
            cluster_id: 0,
            member_id: 0,
            streams_max: 65_536,
            watchers_per_stream_max: 65_536,
            watchers_max: 1_000_000,
            key_bytes_max: 1_536 * 1024,
            ring_bytes_max: 64 << 20,
            ring_events_max: 100_000,
            notes_per_stream_max: 8_192,
            commands_per_stream_max: 1_024,
            response_bytes: 256 * 1024,
            fragment_bytes_max: 1_536 * 1024,
            progress_interval: Duration::from_secs(600),
        }
    }
}
