//! How much room the disk has.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// (free, total) bytes of the disk under a folder.
pub fn room(dir: &Path) -> Option<(u64, u64)> {
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte and `stat` has room for the answer.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded and filled it.
    let stat = unsafe { stat.assume_init() };
    Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}
