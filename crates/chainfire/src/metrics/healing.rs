//! Damage found and made good: the scrub, and members rebuilt.

use node::heal::Health;
use node::metrics::{Page, labels};

use crate::scrub::ScrubProgress;

pub(super) fn add(page: &mut Page, health: &Health, scrub: &ScrubProgress) {
    page.gauge("chainfire_scrub_running", "Whether a pass is under way.", u8::from(scrub.running));
    page.gauge("chainfire_scrub_pass_bytes", "Bytes to be read by the pass under way or the last.", scrub.bytes_total);
    page.gauge("chainfire_scrub_pass_bytes_done", "Bytes of them read so far.", scrub.bytes_done);
    page.counter("chainfire_scrub_bytes_total", "Bytes read by scrubs.", scrub.bytes_read);
    page.counter("chainfire_scrub_passes_total", "Passes that came to an end.", scrub.passes);
    page.counter("chainfire_scrub_findings_total", "Passes that found damage.", scrub.findings);
    page.gauge("chainfire_scrub_unchecked_files", "Files of the state without a checksum.", scrub.unchecked);
    page.gauge("chainfire_scrub_last_end_time_seconds", "When a pass last ended; 0: never.", scrub.ended_unix_s);
    page.counter("chainfire_scrub_failures_total", "Passes that were broken off.", scrub.failures);
    let whole = scrub.whole_unix_s;
    page.gauge(
        "chainfire_scrub_last_whole_time_seconds",
        "When a pass last had read all, and found no damage; 0: never.",
        whole,
    );
    let interval = scrub.interval_s;
    page.gauge("chainfire_scrub_interval_seconds", "A pass begins this often by itself; 0: only when asked.", interval);
    page.gauge("chainfire_quarantined", "Whether this member answers nothing.", u8::from(health.is_quarantined()));
    let rebuilding = u8::from(health.is_rebuilding());
    page.gauge("chainfire_rebuilding", "Whether this member gave its data up and is not whole again.", rebuilding);
    let waits = u8::from(health.waits_to_leave());
    page.gauge("chainfire_rebuild_waits", "Whether this member waits until the others can do without it.", waits);
    let repairs = health.repairs().map(|(what, count)| (labels(&[("what", what.name())]), count));
    page.counters("chainfire_repairs_total", "Times that this member was rebuilt from the others.", repairs);
    let last = health.repaired_unix_s().map(|(what, at)| (labels(&[("what", what.name())]), at));
    page.gauges("chainfire_last_repair_time_seconds", "When this process was last rebuilt; 0: never.", last);
}
