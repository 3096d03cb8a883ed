//! How much room the disk has, against two lines, a file that holds some for the worst case, and large files that keep
//! nobody waiting.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The upper line is no more than this part of a small disk.
const FREE_PART_OF_DISK: u64 = 8;
const BALLAST: &str = "ballast";
/// What a file is called that is being removed, by its extension.
pub const GOING: &str = "going";
/// So much of it goes at once, and then nothing for a moment.
const GOES_AT_ONCE: u64 = 8 << 20;
const GOES_EVERY: Duration = Duration::from_millis(5);

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

/// A file that goes to the disk bit by bit. Left to the kernel, a large one goes there all at once when it is synced, and whoever
/// syncs a small write on the same disk meanwhile, as a log does for every one, waits for it.
pub struct Evenly {
    out: File,
    written: u64,
    /// How many of these the kernel was told to write out.
    written_out: u64,
}

const WRITE_OUT_EVERY_BYTES: u64 = 1 << 20;

impl Evenly {
    /// A file that is empty.
    pub fn new(out: File) -> Evenly {
        Evenly { out, written: 0, written_out: 0 }
    }

    pub fn file(&self) -> &File {
        &self.out
    }

    /// Waits until what came since the last time is on the disk. Its length and place are not made durable by that.
    fn write_out(&mut self) -> io::Result<()> {
        let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
        let (from, bytes) = (self.written_out as libc::off64_t, (self.written - self.written_out) as libc::off64_t);
        // SAFETY: takes numbers, and the descriptor is open.
        if unsafe { libc::sync_file_range(self.out.as_raw_fd(), from, bytes, how) } == 0 {
            self.written_out = self.written;
            return Ok(());
        }
        Err(io::Error::last_os_error())
    }
}

impl Write for Evenly {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.written += count as u64;
        if self.written - self.written_out >= WRITE_OUT_EVERY_BYTES {
            self.write_out()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Removes a file that nobody needs, which is called so ([`GOING`]); a large one bit by bit. One that goes at once keeps whoever
/// syncs a small write on the same disk waiting, the more so where the disk is told of what is free. If it cannot be removed, it
/// takes room until the next start, no more.
pub fn remove_evenly(path: &Path) {
    let shrink = || {
        let file = OpenOptions::new().write(true).open(path)?;
        let mut left = file.metadata()?.len();
        while left > GOES_AT_ONCE {
            left -= GOES_AT_ONCE;
            file.set_len(left)?;
            std::thread::sleep(GOES_EVERY);
        }
        fs::remove_file(path)
    };
    if let Err(error) = shrink() {
        tracing::debug!(target: "chainfire_storage", "A file was not removed, path={} why={error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_to_the_disk_bit_by_bit_is_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let mut file = Evenly::new(File::create(&path).unwrap());
        let content: Vec<u8> = (0..5 << 19).map(|at| (at % 251) as u8).collect();
        for part in content.chunks(300_000) {
            file.write_all(part).unwrap();
            assert!(file.written - file.written_out < WRITE_OUT_EVERY_BYTES);
        }
        assert!(file.written_out > 0);
        assert_eq!(fs::read(&path).unwrap(), content);
    }

    #[test]
    fn a_file_that_is_removed_is_gone_whatever_its_size() {
        let folder = tempfile::tempdir().unwrap();
        for bytes in [0, GOES_AT_ONCE, GOES_AT_ONCE + 1, 3 * GOES_AT_ONCE + 7] {
            let path = folder.path().join("region-1.going");
            File::create(&path).unwrap().set_len(bytes).unwrap();
            remove_evenly(&path);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{bytes} bytes");
        }
        remove_evenly(&folder.path().join("none"));
    }

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
