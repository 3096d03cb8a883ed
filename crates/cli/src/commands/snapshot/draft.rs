//! A file that gets its name when it is complete and durable; dropped before that, it vanishes. A crash leaves at most a
//! file whose name says that it is a part, and the next draft of the same file removes it: who writes a part holds a lock on
//! it. Process ids alone would not tell, since in a container each one is the first. Only the owner may read it: what a
//! store holds is nobody else's business.
//!
//! What is written goes to the disk bit by bit. Left to the kernel, a large file would go there all at once, and whoever
//! syncs a small one on the same disk meanwhile, as a node does for every write, would wait for it. The same goes for each
//! sync of a file that grows, which commits the file system's journal: there is one, at the end.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, Write};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Follows the name in parts, before the process id of who writes.
const PART: &str = ".part-";
const BUFFER_BYTES: usize = 256 << 10;
const WRITE_OUT_EVERY_BYTES: u64 = 256 << 10;

pub struct Draft {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    written: u64,
    /// How many of these the kernel was told to write out.
    written_out: u64,
}

impl Draft {
    /// A draft beside where it is to be.
    pub fn create(target: &Path) -> Result<Draft, Failure> {
        let name = target.file_name().ok_or_else(|| Failure::usage(format!("{} names no file", target.display())))?;
        let name = name.to_string_lossy();
        let path = target.with_file_name(format!("{name}{PART}{}", std::process::id()));
        let create = || -> io::Result<File> {
            remove_left(folder_of(target), &name);
            let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
            file.try_lock()?;
            Ok(file)
        };
        let file = create().map_err(|error| {
            Failure::local(format!("cannot write {}: {error}", path.display())).advise("check path and permissions")
        })?;
        Ok(Draft { path, out: Some(BufWriter::with_capacity(BUFFER_BYTES, file)), written: 0, written_out: 0 })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.write_all(bytes).map_err(|error| self.failed(&error))
    }

    /// Replaces the first bytes.
    pub fn write_at_front(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let out = self.out.as_mut().expect("published drafts are not written");
        let mut replace = || {
            out.rewind()?;
            out.write_all(bytes)?;
            out.seek(io::SeekFrom::End(0)).map(drop)
        };
        replace().map_err(|error| self.failed(&error))
    }

    /// Makes it durable and gives it its name, which another file may have had; returns its length.
    pub fn publish(mut self, target: &Path) -> Result<u64, Failure> {
        let out = self.out.take().expect("a draft is published once");
        let durable = || -> io::Result<u64> {
            let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            let length = file.metadata()?.len();
            fs::rename(&self.path, target)?;
            sync_folder_of(target)?;
            Ok(length)
        };
        durable().map_err(|error| self.failed(&error))
    }

    /// Lets everybody read it, whatever the umask says.
    pub fn open_to_all(&mut self) -> Result<(), Failure> {
        let file = self.out.as_ref().expect("published drafts are not changed").get_ref();
        file.set_permissions(fs::Permissions::from_mode(0o644)).map_err(|error| self.failed(&error))
    }

    pub fn failed(&self, error: &io::Error) -> Failure {
        Failure::local(format!("cannot write {}: {error}", self.path.display())).advise("is the disk full?")
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let out = self.out.as_mut().expect("published drafts are not written");
        let written = out.write(bytes)?;
        self.written += written as u64;
        if self.written - self.written_out >= WRITE_OUT_EVERY_BYTES {
            out.flush()?;
            write_out(out.get_ref(), self.written_out, self.written)?;
            self.written_out = self.written;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.as_mut().expect("published drafts are not written").flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already when it was published.
        let _ = fs::remove_file(&self.path);
    }
}

/// Has a part of a file written to the disk, and waits until it is. Its length and place are not made durable by that.
fn write_out(file: &File, from: u64, to: u64) -> io::Result<()> {
    let how = libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    let (from, bytes) = (from as libc::off64_t, (to - from) as libc::off64_t);
    // SAFETY: takes numbers, and the descriptor is open.
    if unsafe { libc::sync_file_range(file.as_raw_fd(), from, bytes, how) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Removes the parts of a file whose writers are gone. What cannot be removed only takes room.
fn remove_left(folder: &Path, target: &str) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for part in entries.filter(|entry| is_part(&entry.file_name().to_string_lossy(), target)) {
        if File::open(part.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(part.path());
        }
    }
}

/// Whether a name is that of a part of a file.
pub fn is_part(name: &str, target: &str) -> bool {
    let id = name.strip_prefix(target).and_then(|rest| rest.strip_prefix(PART));
    id.is_some_and(|id| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}

pub fn sync_folder_of(file: &Path) -> io::Result<()> {
    File::open(folder_of(file))?.sync_all()
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_has_its_name_only_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a");
        let names = || fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut draft = Draft::create(&target).unwrap();
        draft.write(b"xxxx and more").unwrap();
        assert!(names().all(|name| is_part(&name, "a")) && names().count() == 1);
        draft.write_at_front(b"good").unwrap();
        assert_eq!(draft.publish(&target).unwrap(), 13);
        assert_eq!(fs::read(&target).unwrap(), b"good and more");
        drop(Draft::create(&target).unwrap());
        assert_eq!(names().collect::<Vec<_>>(), ["a"]);
        for other in ["a", "a.part-", "a.part-x", "ab.part-1", "b.part-1"] {
            assert!(!is_part(other, "a"), "{other}");
        }
    }

    #[test]
    fn a_killed_writers_part_makes_room_and_a_living_ones_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // In a container, whoever was killed had the same process id.
        let own = format!("a.part-{}", std::process::id());
        for name in [&own, "a.part-77", "a.part-78", "b.part-77"] {
            fs::write(path(name), "half of it").unwrap();
        }
        let living = File::open(path("a.part-78")).unwrap();
        living.lock().unwrap();
        let mut draft = Draft::create(&path("a")).unwrap();
        draft.write(b"new").unwrap();
        draft.publish(&path("a")).unwrap();
        assert_eq!(fs::read(path("a")).unwrap(), b"new");
        let left = [&own, "a.part-77", "a.part-78", "b.part-77"].map(|name| path(name).exists());
        assert_eq!(left, [false, false, true, true]);
    }

    #[test]
    fn only_its_owner_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let mode = |open: bool| {
            let target = folder.path().join("a");
            let mut draft = Draft::create(&target).unwrap();
            if open {
                draft.open_to_all().unwrap();
            }
            draft.publish(&target).unwrap();
            fs::metadata(target).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode(false), mode(true)), (0o600, 0o644));
    }
}
