//! Disks of a test's own: small ones in memory, to be filled, and ones in a file, to be frozen. Both need root.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const DISK_BYTES: u64 = 320 << 20;

/// A file system in memory; unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
    _folder: Option<TempDir>,
}

impl SmallDisk {
    pub fn mount() -> io::Result<SmallDisk> {
        let folder = tempfile::Builder::new().prefix("processes-disk-").tempdir()?;
        let mut disk = SmallDisk::mount_at(folder.path())?;
        disk._folder = Some(folder);
        Ok(disk)
    }

    /// Over a folder, which is made if there is none. To be dropped before what holds the folder.
    pub fn mount_at(path: &Path) -> io::Result<SmallDisk> {
        fs::create_dir_all(path)?;
        let text = CString::new(path.as_os_str().as_bytes())?;
        let options = CString::new(format!("size={DISK_BYTES},mode=700"))?;
        // SAFETY: all texts end with a zero byte and live through the call.
        let done =
            unsafe { libc::mount(c"tmpfs".as_ptr(), text.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) };
        if done == 0 { Ok(SmallDisk { path: path.to_owned(), _folder: None }) } else { Err(io::Error::last_os_error()) }
    }

    pub fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Someone else takes all of it but so many bytes, piece by piece. A node that takes some at the same moment may have them.
    pub fn fill(&self, ballast: &Path, left: u64) {
        const PAGE: u64 = 4096;
        let file = fs::File::create(ballast).unwrap();
        let (mut taken, mut piece) = (0, u64::MAX);
        for _ in 0..1000 {
            let Some(more) = self.free_bytes().checked_sub(left).filter(|more| *more > 0) else { return };
            piece = piece.min(more);
            // SAFETY: the descriptor is open.
            let done = unsafe { libc::posix_fallocate(file.as_raw_fd(), taken as libc::off_t, piece as libc::off_t) };
            // What does not fit is not taken at all: some of it had gone meanwhile, and may again. Less is taken sooner.
            if done == 0 {
                taken += piece;
                piece = piece.saturating_mul(2);
            } else {
                piece = (piece / 2).max(PAGE);
            }
        }
        panic!("{} bytes stay free", self.free_bytes());
    }

    pub fn free_bytes(&self) -> u64 {
        let path = CString::new(self.path.as_os_str().as_bytes()).expect("paths have no zero bytes");
        let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: the path ends with a zero byte, and the call fills `stat` when it succeeds.
        let stat = unsafe {
            assert_eq!(libc::statvfs(path.as_ptr(), stat.as_mut_ptr()), 0);
            stat.assume_init()
        };
        stat.f_bavail * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

fn unmount(path: &Path) {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return };
    // SAFETY: the path ends with a zero byte. Detached: what is still open goes when it is closed.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
}

/// A file system in a file that can be frozen: nothing that writes to it returns until it is thawed.
pub struct FrozenDisk {
    path: PathBuf,
}

impl FrozenDisk {
    /// Over a folder, with its file beside it. To be dropped before what holds the folder.
    pub fn mount_at(path: &Path) -> Result<FrozenDisk, String> {
        let image = path.with_extension("img");
        let made =
            fs::create_dir_all(path).and_then(|()| fs::File::create(&image)).and_then(|file| file.set_len(1 << 30));
        made.map_err(|error| error.to_string())?;
        run("mkfs.ext4", &["-q".as_ref(), image.as_os_str()])?;
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), path.as_os_str()])?;
        // What mkfs leaves there is not a node's.
        fs::remove_dir(path.join("lost+found")).map_err(|error| error.to_string())?;
        Ok(FrozenDisk { path: path.to_owned() })
    }

    pub fn freeze(&self) {
        run("fsfreeze", &["-f".as_ref(), self.path.as_os_str()]).unwrap();
    }

    pub fn thaw(&self) {
        run("fsfreeze", &["-u".as_ref(), self.path.as_os_str()]).unwrap();
    }
}

impl Drop for FrozenDisk {
    fn drop(&mut self) {
        // A process that waits for a frozen disk cannot even be killed.
        let _ = run("fsfreeze", &["-u".as_ref(), self.path.as_os_str()]);
        unmount(&self.path);
    }
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program}: {said}")) }
}
