//! How much room the disk has, against two lines, and a file that holds some for the worst case.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The upper line is no more than this part of a small disk.
const FREE_PART_OF_DISK: u64 = 8;
const BALLAST: &str = "ballast";

/// (free, total) bytes of the disk under a folder. What is kept back for others is neither.
pub fn room(dir: &Path) -> Option<(u64, u64)> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte and `stat` has room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded and filled it.
    let stat = unsafe { stat.assume_init() };
    let usable = stat.f_blocks.saturating_sub(stat.f_bfree) + stat.f_bavail;
    Some((stat.f_bavail * stat.f_frsize, usable * stat.f_frsize))
}

/// How much there is, against the two lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Below the upper line.
    pub full: bool,
    /// Below the lower line.
    pub critical: bool,
}

impl Room {
    /// `reserve`: the upper line, on a disk that is large enough. Goes over a line at once, and back only with a quarter more than that.
    pub fn update(&mut self, free: u64, total: u64, reserve: u64) {
        let (upper, lower) = lines(total, reserve);
        let crossed = |was: bool, line: u64| free < if was { line / 4 * 5 } else { line };
        self.full = crossed(self.full, upper);
        self.critical = crossed(self.critical, lower);
    }
}

/// Free bytes below which a disk counts as full.
pub fn upper_line(total: u64, reserve: u64) -> u64 {
    lines(total, reserve).0
}

fn lines(total: u64, reserve: u64) -> (u64, u64) {
    let upper = reserve.min(total / FREE_PART_OF_DISK);
    (upper, upper / 2)
}

/// A file that holds room for the worst case.
pub struct Ballast {
    path: PathBuf,
}

impl Ballast {
    pub fn new(dir: &Path) -> Ballast {
        Ballast { path: dir.join(BALLAST) }
    }

    /// Given up when next to nothing is left, and taken up again when there is plenty.
    pub fn adjust(&self, free: u64, total: u64, reserve: u64) {
        let (upper, lower) = lines(total, reserve);
        let bytes = lower / 2;
        let there = self.path.exists();
        if there && free < lower / 4 {
            tracing::warn!(target: "chainfire_storage", "Next to no space left, giving the ballast up, bytes={bytes}");
            // If it cannot be removed there is nothing to gain.
            let _ = fs::remove_file(&self.path);
        } else if !there && free > upper / 4 * 5 + bytes * 2 {
            let made = File::create(&self.path).is_ok_and(|file| allocate(&file, bytes));
            if !made {
                let _ = fs::remove_file(&self.path);
            }
        }
    }
}

fn allocate(file: &File, bytes: u64) -> bool {
    // SAFETY: the descriptor is open.
    bytes > 0 && unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes as libc::off_t) } == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_crossed_at_once_and_recrossed_with_a_margin() {
        let total = 80 << 20;
        let mut room = Room::default();
        for (free_mib, full, critical) in [
            (11, false, false),
            (9, true, false),
            (11, true, false),
            (4, true, true),
            (6, true, true),
            (7, true, false),
            (13, false, false),
        ] {
            room.update(free_mib << 20, total, 128 << 20);
            assert_eq!(room, Room { full, critical }, "{free_mib} MiB free");
        }
    }
}
