//! Lines that reach the terminal whether or not a test passes: the test harness only catches what the print macros
//! write.

use std::fmt::Arguments;
use std::io::Write as _;
use std::time::Duration;

/// A figure that was measured: `figure(format_args!("…"))`.
pub fn figure(what: Arguments) {
    line(format_args!("figure: {what}"));
}

/// How many faults a test has really made, of those that it was asked for in `CENTRA_RUNS`; torture adds them up, and asks again
/// for what is missing.
pub fn done(count: usize) {
    line(format_args!("done: {count}"));
}

/// A test cannot run here. Whoever calls this returns afterwards.
pub fn skipped(test: &str, why: &str) {
    line(format_args!("SKIPPED {test}: {why}"));
}

/// How often a test does what it repeats: a number of its own, or what `make torture` asks for in `CENTRA_RUNS`.
pub fn runs(own: usize) -> usize {
    const VARIABLE: &str = "CENTRA_RUNS";
    let Some(text) = std::env::var_os(VARIABLE) else { return own };
    let asked = text.to_str().and_then(|text| text.parse().ok()).filter(|count| *count > 0);
    asked.unwrap_or_else(|| panic!("{VARIABLE} is a number, not {}", text.display()))
}

/// The seed of all that a test draws: what `CENTRA_SEED` says, or another one in every run. It is told with what was found.
pub fn seed() -> u64 {
    const VARIABLE: &str = "CENTRA_SEED";
    let Some(text) = std::env::var_os(VARIABLE) else { return u64::from(std::process::id()) };
    let asked = text.to_str().and_then(|text| text.parse().ok());
    asked.unwrap_or_else(|| panic!("{VARIABLE} is a number, not {}", text.display()))
}

/// `median 12 ms, largest 30 ms of 4`.
pub fn spread(durations: &[Duration]) -> String {
    let mut sorted = durations.to_vec();
    sorted.sort();
    let (Some(largest), Some(median)) = (sorted.last(), sorted.get(sorted.len() / 2)) else {
        return "nothing measured".to_owned();
    };
    let p99 = sorted[sorted.len() * 99 / 100].as_millis();
    format!("median {} ms, p99 {p99} ms, largest {} ms of {}", median.as_millis(), largest.as_millis(), sorted.len())
}

/// Whether a check panics, as it is to do where a fault was planted.
pub async fn fails<T: Send + 'static>(check: impl Future<Output = T> + Send + 'static) -> bool {
    tokio::spawn(check).await.is_err_and(|error| error.is_panic())
}

fn line(what: Arguments) {
    // In one piece: others write to the same terminal. One that is gone does not fail a test.
    let _ = std::io::stderr().write_all(format!("{what}\n").as_bytes());
}
