//! The methods of a service: calls begun and ended, by outcome, and how long each took.
//!
//! A [`Running`] call that is dropped before it has ended counts as canceled: whoever asked went away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::get;
use super::histogram::{Histogram, REQUEST_BOUNDS_US};
use super::page::{Observed, Page, labels};

pub const CANCELED: u32 = 1;

/// gRPC's codes by number, as they stand in labels.
pub const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// One method's calls.
#[derive(Default)]
pub struct Calls {
    pub started: AtomicU64,
    /// By gRPC code.
    done: [AtomicU64; CODES.len()],
}

impl Calls {
    pub fn ended(&self, code: u32) {
        if let Some(done) = self.done.get(code as usize) {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Methods times codes is much; those that never happened are left out, but for success.
    pub fn by_code(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let codes = CODES.iter().zip(&self.done).map(|(code, count)| (*code, get(count)));
        codes.filter(|(code, count)| *count > 0 || *code == "OK")
    }

    fn under_way(&self) -> u64 {
        get(&self.started).saturating_sub(self.done.iter().map(get).sum())
    }
}

/// All methods of a service, by their numbers.
pub struct Methods {
    each: Vec<(&'static str, Calls, Histogram)>,
}

impl Methods {
    /// `names`: in the order of their numbers.
    pub fn new(names: &[&'static str]) -> Arc<Methods> {
        let each = names.iter().map(|name| (*name, Calls::default(), Histogram::new(&REQUEST_BOUNDS_US)));
        Arc::new(Methods { each: each.collect() })
    }

    pub fn name(&self, method: u16) -> &'static str {
        self.each.get(usize::from(method)).map_or("", |(name, ..)| name)
    }

    pub fn begin(self: &Arc<Self>, method: u16) -> Running {
        if let Some((_, calls, _)) = self.each.get(usize::from(method)) {
            calls.started.fetch_add(1, Ordering::Relaxed);
        }
        Running { methods: self.clone(), method, began: Instant::now(), code: CANCELED }
    }

    /// `PREFIX_requests_total`, `PREFIX_requests_under_way` and `PREFIX_request_duration_seconds`.
    pub fn add(&self, page: &mut Page, prefix: &str) {
        let ended = self.each.iter().flat_map(|(name, calls, _)| {
            calls.by_code().map(|(code, count)| (labels(&[("method", name), ("code", code)]), count))
        });
        page.counters(&format!("{prefix}_requests_total"), "Requests that have ended, by outcome.", ended);
        let waiting = self.each.iter().map(|(name, calls, _)| (labels(&[("method", name)]), calls.under_way()));
        page.gauges(&format!("{prefix}_requests_under_way"), "Requests that are being worked on.", waiting);
        let seen: Vec<(String, Observed)> =
            self.each.iter().map(|(name, _, took)| (labels(&[("method", name)]), took.read())).collect();
        let seen = seen.iter().map(|(labels, seen)| (labels.clone(), seen));
        let help = "From a request's arrival to its answer, whatever that is.";
        page.histograms(&format!("{prefix}_request_duration_seconds"), help, seen);
    }
}

/// A call under way.
pub struct Running {
    methods: Arc<Methods>,
    method: u16,
    began: Instant,
    code: u32,
}

impl Running {
    /// It is about to end with this gRPC code.
    pub fn ends(&mut self, code: u32) {
        self.code = code;
    }

    pub fn method(&self) -> &'static str {
        self.methods.name(self.method)
    }

    pub fn took(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn code(&self) -> &'static str {
        CODES.get(self.code as usize).copied().unwrap_or("Unknown")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some((_, calls, took)) = self.methods.each.get(usize::from(self.method)) {
            calls.ended(self.code);
            took.observe(self.began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_by_how_it_ends() {
        let methods = Methods::new(&["Get", "Put"]);
        methods.begin(0).ends(0);
        methods.begin(1).ends(14);
        drop(methods.begin(1));
        let under_way = methods.begin(1);
        assert_eq!(under_way.method(), "Put");
        let mut page = Page::default();
        methods.add(&mut page, "x");
        let text = page.text();
        for line in [
            "x_requests_total{method=\"Get\",code=\"OK\"} 1",
            "x_requests_total{method=\"Put\",code=\"Canceled\"} 1",
            "x_requests_total{method=\"Put\",code=\"Unavailable\"} 1",
            "x_requests_under_way{method=\"Put\"} 1",
            "x_request_duration_seconds_count{method=\"Put\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
