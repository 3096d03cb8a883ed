//! Starting the process again in its own place: same program, same arguments, same environment, same process id.
//!
//! What the process held is gone with it: files and sockets are closed at the exec, locks go with them, threads end. Who
//! supervises it (systemd, a shell, a test) sees one process that goes on. It is what a member does that gave its data up
//! (`node::heal`): there is one way into a rebuilding, and it begins at the start.
//!
//! A disk that damages whatever is written to it would have its member rebuilt for ever. So restarts are counted, from
//! process to process in the environment, and after [`RESTARTS_MAX`] within [`WITHIN_S`] the process stops instead.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

const VARIABLE: &str = "CENTRA_REBUILDS";
const RESTARTS_MAX: u32 = 5;
const WITHIN_S: u64 = 3600;

/// Returns only with the reason why it could not be done.
pub fn restart() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let before = std::env::var(VARIABLE).unwrap_or_default();
    let Some(count) = next_count(&before, now) else {
        return format!(
            "it was rebuilt {RESTARTS_MAX} times within an hour and is damaged again: the disk or the memory of this \
             machine is failing; replace it"
        );
    };
    let mut words = std::env::args_os();
    let own_name = words.next().unwrap_or_default();
    // By its path where that still leads to the program: tools show a process by the name it was started under.
    let named = std::env::current_exe().ok().filter(|path| path.is_file());
    let program = named.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let error = Command::new(&program).arg0(own_name).args(words).env(VARIABLE, count).exec();
    format!("{} cannot be started again: {error}", program.display())
}

/// `N@SECONDS`: restarts since then. `None`: too many.
fn next_count(before: &str, now_s: u64) -> Option<String> {
    let parsed = before.split_once('@').and_then(|(count, since)| Some((count.parse().ok()?, since.parse().ok()?)));
    let (count, since) = match parsed {
        Some((count, since)) if now_s.saturating_sub(since) < WITHIN_S => (count, since),
        _ => (0u32, now_s),
    };
    (count < RESTARTS_MAX).then(|| format!("{}@{since}", count + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_counted_within_the_hour() {
        let mut value = String::new();
        for count in 1..=RESTARTS_MAX {
            value = next_count(&value, 100 + u64::from(count)).unwrap();
            assert_eq!(value, format!("{count}@101"));
        }
        assert_eq!(next_count(&value, 110), None);
        assert_eq!(next_count(&value, 101 + WITHIN_S).as_deref(), Some("1@3701"));
        assert_eq!(next_count("nonsense", 5).as_deref(), Some("1@5"));
    }
}
