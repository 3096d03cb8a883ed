//! How often a data folder was given up of late, so that a disk that damages whatever is written to it does not have its
//! member rebuilt for ever: after [`REBUILDS_MAX`] times within [`WITHIN_S`] the node does not start.
//!
//! The file `rebuilds` holds one time a line, in seconds since 1970, and stays with the folder from one incarnation to the
//! next. It is written before a folder is given up. A line that cannot be understood counts for nothing.

use std::fs;
use std::io;

use crate::identity::{Folder, IdentityError};

pub(crate) const FILE: &str = "rebuilds";
pub const REBUILDS_MAX: usize = 5;
const WITHIN_S: u64 = 3600;

impl Folder {
    /// Counts one more; `false`: there have been too many, and this one is not to be.
    pub fn count_rebuild(&self, now_s: u64) -> Result<bool, IdentityError> {
        let before = match fs::read(self.path().join(FILE)) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(self.unusable(error)),
        };
        let Some(times) = next(&before, now_s) else { return Ok(false) };
        self.write(FILE, &times)?;
        Ok(true)
    }
}

/// A clock that was set back does not make the folder wait for what lies ahead.
fn next(before: &str, now_s: u64) -> Option<String> {
    let times = before.lines().filter_map(|line| line.parse::<u64>().ok());
    let mut recent: Vec<u64> = times.filter(|at| *at <= now_s && now_s - at < WITHIN_S).collect();
    recent.push(now_s);
    (recent.len() <= REBUILDS_MAX).then(|| recent.iter().map(|at| format!("{at}\n")).collect())
}

#[cfg(test)]
mod tests {
    use base::NodeId;

    use super::*;
    use crate::mutate;

    #[test]
    fn rebuilds_are_counted_within_the_hour() {
        let mut times = String::new();
        for count in 1..=REBUILDS_MAX as u64 {
            times = next(&times, 100 + count).unwrap();
            assert_eq!(times.lines().count() as u64, count);
        }
        assert_eq!(next(&times, 110), None);
        assert_eq!(next(&times, 100 + WITHIN_S), None, "the first has not aged yet");
        assert_eq!(next(&times, 101 + WITHIN_S).unwrap().lines().count(), REBUILDS_MAX);
        assert_eq!(next(&times, 50).unwrap(), "50\n", "a clock that was set back");
        assert_eq!(next("nonsense\n-1\n", 5).unwrap(), "5\n");
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        mutate::mutate(10, 50_000, &[b"100\n200\n300\n".to_vec()], |bytes| {
            if let Some(times) = next(&String::from_utf8_lossy(bytes), 400) {
                assert!(times.ends_with("400\n") && times.lines().count() <= REBUILDS_MAX);
            }
        });
    }

    #[test]
    fn the_count_outlives_process_and_incarnation() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..REBUILDS_MAX {
            let folder = Folder::open(dir.path(), "seed").unwrap();
            let identity = folder.identity(NodeId(1)).unwrap();
            assert!(folder.count_rebuild(1_000).unwrap());
            folder.finish_reincarnation(&folder.reincarnate(&identity).unwrap()).unwrap();
        }
        let folder = Folder::open(dir.path(), "seed").unwrap();
        assert!(!folder.count_rebuild(1_001).unwrap());
        assert!(folder.count_rebuild(1_000 + WITHIN_S).unwrap());
    }
}
