//! A file that gets its name when it is complete and durable; dropped before that, it vanishes. A crash leaves at most a
//! file whose name says that it is a part.
//!
//! What is written goes to the disk bit by bit. Left to the kernel, a large file would go there all at once, and whoever
//! syncs a small one on the same disk meanwhile, as a node does for every write, would wait for it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek as _, Write};
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Follows the name in parts, before the process id of who writes.
const PART: &str = ".part-";
const BUFFER_BYTES: usize = 256 << 10;
const SYNC_EVERY_BYTES: usize = 1 << 20;

pub struct Draft {
    path: PathBuf,
    out: Option<BufWriter<File>>,
    /// Bytes that may not be on the disk yet.
    unsynced: usize,
}

impl Draft {
    /// A draft beside where it is to be.
    pub fn create(target: &Path) -> Result<Draft, Failure> {
        let name = target.file_name().ok_or_else(|| Failure::usage(format!("{} names no file", target.display())))?;
        let path = target.with_file_name(format!("{}{PART}{}", name.to_string_lossy(), std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).map_err(|error| {
            Failure::local(format!("cannot write {}: {error}", path.display())).advise("check path and permissions")
        })?;
        Ok(Draft { path, out: Some(BufWriter::with_capacity(BUFFER_BYTES, file)), unsynced: 0 })
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
        use std::os::unix::fs::PermissionsExt as _;
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
        self.unsynced += written;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.unsynced = 0;
            out.flush()?;
            out.get_ref().sync_data()?;
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

/// Whether a name is of a part that some draft left.
pub fn is_part(name: &str) -> bool {
    name.rsplit_once(PART).is_some_and(|(_, id)| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
}

pub fn sync_folder_of(file: &Path) -> io::Result<()> {
    let folder = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
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
        assert!(names().all(|name| is_part(&name)) && names().count() == 1);
        draft.write_at_front(b"good").unwrap();
        assert_eq!(draft.publish(&target).unwrap(), 13);
        assert_eq!(fs::read(&target).unwrap(), b"good and more");
        drop(Draft::create(&target).unwrap());
        assert_eq!(names().collect::<Vec<_>>(), ["a"]);
        assert!(!is_part("a") && !is_part("a.part-") && !is_part("a.part-x"));
    }
}
