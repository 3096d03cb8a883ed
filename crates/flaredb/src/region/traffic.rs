//! What clients do to a region on this store, counted as it happens, and a sample of it while somebody wants one.
//!
//! Writes are counted where they are applied, so on every replica; reads where they are answered. Nothing here is part of
//! the region's state.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::sample::{Reservoir, Touched};

/// Counters since the region came onto this store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub read_bytes: u64,
    pub read_keys: u64,
    pub write_bytes: u64,
    pub write_keys: u64,
    /// Reads and single writes.
    pub requests: u64,
}

#[derive(Default)]
pub struct Traffic {
    read_bytes: AtomicU64,
    read_keys: AtomicU64,
    write_bytes: AtomicU64,
    write_keys: AtomicU64,
    requests: AtomicU64,
    samples: AtomicBool,
    reservoir: Mutex<Option<Reservoir>>,
}

impl Traffic {
    /// A get or a page of a scan, answered here.
    pub fn read(&self, first: &[u8], last: &[u8], keys: u64, bytes: u64) {
        self.read_keys.fetch_add(keys, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.touch(first, last);
    }

    /// A put or a delete, applied here.
    pub fn write(&self, key: &[u8], bytes: u64) {
        self.write_keys.fetch_add(1, Ordering::Relaxed);
        self.write_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.touch(key, key);
    }

    pub fn counts(&self) -> Counts {
        Counts {
            read_bytes: self.read_bytes.load(Ordering::Relaxed),
            read_keys: self.read_keys.load(Ordering::Relaxed),
            write_bytes: self.write_bytes.load(Ordering::Relaxed),
            write_keys: self.write_keys.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
        }
    }

    /// From here on requests are sampled.
    pub fn begin_samples(&self, seed: u64) {
        *self.reservoir.lock() = Some(Reservoir::new(seed));
        self.samples.store(true, Ordering::Relaxed);
    }

    /// The sample; the next one begins.
    pub fn take_samples(&self) -> Vec<Touched> {
        self.reservoir.lock().as_mut().map(Reservoir::take).unwrap_or_default()
    }

    pub fn end_samples(&self) {
        self.samples.store(false, Ordering::Relaxed);
        *self.reservoir.lock() = None;
    }

    fn touch(&self, first: &[u8], last: &[u8]) {
        // Whoever finds it taken leaves his request out: nobody waits for a sample.
        if self.samples.load(Ordering::Relaxed)
            && let Some(mut reservoir) = self.reservoir.try_lock()
            && let Some(reservoir) = &mut *reservoir
        {
            reservoir.offer(first, last);
        }
    }
}
