//! What became of the backups in a folder, for the textfile collector of Prometheus' node exporter. The file is replaced as
//! a whole, so that nobody reads half of it.
//!
//! When the last good backup was made is read from the names in the folder, so it outlives failures and restarts.

use std::path::Path;
use std::time::Duration;

use base::Moment;

use super::draft::Draft;
use super::now;
use super::shelf::{Entry, Kind, Shelf};
use crate::failure::Failure;

/// How one attempt went.
pub struct Attempt {
    pub kind: Kind,
    pub took: Duration,
    pub succeeded: bool,
}

pub fn write(path: &Path, shelf: &Shelf, attempt: &Attempt) -> Result<(), Failure> {
    let mut draft = Draft::create(path)?;
    // The exporter is another user.
    draft.open_to_all()?;
    draft.write(render(shelf, attempt, now()).as_bytes())?;
    draft.publish(path).map(drop)
}

fn render(shelf: &Shelf, attempt: &Attempt, now: Moment) -> String {
    let mut out = String::new();
    let mut metric = |name: &str, help: &str, values: &[(Option<&str>, f64)]| {
        out.push_str(&format!("# HELP chainfire_backup_{name} {help}\n# TYPE chainfire_backup_{name} gauge\n"));
        for (kind, value) in values {
            let label = kind.map_or(String::new(), |kind| format!("{{kind=\"{kind}\"}}"));
            out.push_str(&format!("chainfire_backup_{name}{label} {value}\n"));
        }
    };
    let of_both = |value: fn(&Entry) -> f64| -> Vec<(Option<&'static str>, f64)> {
        [Kind::Full, Kind::Incremental]
            .into_iter()
            .filter_map(|kind| Some((Some(kind.name()), shelf.newest(kind).map(value)?)))
            .collect()
    };
    let own = attempt.kind.name();
    metric("last_attempt_timestamp_seconds", "When a backup was last tried.", &[(None, now.0 as f64)]);
    let succeeded = f64::from(u8::from(attempt.succeeded));
    metric("last_attempt_succeeded", "Whether that was a success.", &[(Some(own), succeeded)]);
    metric("last_attempt_duration_seconds", "How long that took.", &[(Some(own), attempt.took.as_secs_f64())]);
    let made = of_both(|entry| entry.made.0 as f64);
    metric("last_success_timestamp_seconds", "When the newest good backup was made.", &made);
    metric("last_size_bytes", "Its size.", &of_both(|entry| entry.bytes as f64));
    metric("last_revision", "The revision it leads to.", &of_both(|entry| entry.revision as f64));
    let count = |kind| shelf.entries().iter().filter(|entry| entry.kind() == kind).count() as f64;
    let counts = [Kind::Full, Kind::Incremental].map(|kind| (Some(kind.name()), count(kind)));
    metric("kept", "How many are kept.", &counts);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_in_the_form_of_prometheus() {
        let shelf = Shelf::of(&[("chainfire-20261124T201500Z-rev12.tar.gz", 900), ("unrelated", 5)]);
        let attempt = Attempt { kind: Kind::Incremental, took: Duration::from_millis(1500), succeeded: false };
        let text = render(&shelf, &attempt, Moment(7));
        for line in [
            "chainfire_backup_last_attempt_timestamp_seconds 7",
            "chainfire_backup_last_attempt_succeeded{kind=\"incremental\"} 0",
            "chainfire_backup_last_attempt_duration_seconds{kind=\"incremental\"} 1.5",
            "chainfire_backup_last_success_timestamp_seconds{kind=\"full\"} 1795551300",
            "chainfire_backup_last_size_bytes{kind=\"full\"} 900",
            "chainfire_backup_last_revision{kind=\"full\"} 12",
            "chainfire_backup_kept{kind=\"full\"} 1",
            "chainfire_backup_kept{kind=\"incremental\"} 0",
            "# TYPE chainfire_backup_kept gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
