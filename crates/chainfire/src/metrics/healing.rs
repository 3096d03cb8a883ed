//! Damage found and made good: the scrub, and members rebuilt.

use node::heal::Health;
use node::metrics::common::Common;
use node::metrics::{Page, labels};
use node::scrub::ScrubProgress;

pub(super) fn add(page: &mut Page, health: &Health, scrub: &ScrubProgress) {
    Common { page, prefix: "chainfire" }.scrub(scrub);
    page.gauge("chainfire_quarantined", "Whether this member answers nothing.", u8::from(health.is_quarantined()));
    let rebuilding = u8::from(health.is_rebuilding());
    page.gauge("chainfire_rebuilding", "Whether this member gave its data up and is not whole again.", rebuilding);
    let waits = u8::from(health.waits_to_leave());
    page.gauge("chainfire_rebuild_waits", "Whether this member waits until the others can do without it.", waits);
    let repairs = health.repairs().map(|(what, count)| (labels(&[("what", what.name())]), count));
    page.counters("chainfire_repairs_total", "Times that this member was rebuilt from the others.", repairs);
    Common { page, prefix: "chainfire" }.last_repairs(health.repaired_unix_s());
}
