//! Settings that take effect while the node runs: one place from which all code reads them, each time it needs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::config::{AutoCompaction, Settings};

/// What may change.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// The store's largest size. Zero: unlimited.
    pub quota_bytes: u64,
    pub txn_ops_max: usize,
    pub auto_compaction: AutoCompaction,
    /// Requests that take this long are reported. Zero: none are.
    pub slow_request: Duration,
}

impl Values {
    pub fn of(settings: &Settings) -> Values {
        Values {
            quota_bytes: settings.quota_bytes,
            txn_ops_max: settings.txn_ops_max,
            auto_compaction: settings.auto_compaction,
            slow_request: settings.slow_request,
        }
    }
}

/// The values in force.
pub struct Live {
    values: ArcSwap<Values>,
    changed: watch::Sender<()>,
    reloads: AtomicU64,
    reloads_failed: AtomicU64,
    reloaded_unix_s: AtomicU64,
    last_failed: std::sync::atomic::AtomicBool,
}

/// Counted for the metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReloadStats {
    pub done: u64,
    pub failed: u64,
    /// Whether the last one failed.
    pub last_failed: bool,
    /// When the configuration in force was read, in seconds since 1970.
    pub read_unix_s: u64,
}

impl Live {
    pub fn new(values: Values) -> Live {
        Live {
            values: ArcSwap::from_pointee(values),
            changed: watch::Sender::new(()),
            reloads: AtomicU64::new(0),
            reloads_failed: AtomicU64::new(0),
            reloaded_unix_s: AtomicU64::new(unix_seconds()),
            last_failed: std::sync::atomic::AtomicBool::new(false),
        }
    }

    pub fn values(&self) -> Arc<Values> {
        self.values.load_full()
    }

    pub fn slow_request(&self) -> Duration {
        self.values.load().slow_request
    }

    pub fn txn_ops_max(&self) -> usize {
        self.values.load().txn_ops_max
    }

    pub fn quota_bytes(&self) -> u64 {
        self.values.load().quota_bytes
    }

    /// Wakes whoever waits with [`watch::Receiver::changed`].
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub fn set(&self, values: Values) {
        self.values.store(Arc::new(values));
        self.changed.send_replace(());
    }

    pub fn reloaded(&self, ok: bool) {
        self.last_failed.store(!ok, Ordering::Relaxed);
        if ok {
            self.reloads.fetch_add(1, Ordering::Relaxed);
            self.reloaded_unix_s.store(unix_seconds(), Ordering::Relaxed);
        } else {
            self.reloads_failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn stats(&self) -> ReloadStats {
        ReloadStats {
            done: self.reloads.load(Ordering::Relaxed),
            failed: self.reloads_failed.load(Ordering::Relaxed),
            last_failed: self.last_failed.load(Ordering::Relaxed),
            read_unix_s: self.reloaded_unix_s.load(Ordering::Relaxed),
        }
    }
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
