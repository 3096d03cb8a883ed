//! Checking a log that nobody has open, without changing a byte of it.
//!
//! An opening follows every record, checks each in full and judges the end that it reaches (`recovery`); then it makes the
//! folder ready for the next write: the last record is written once more, what was begun is cleared away. A check does
//! the first and leaves out the second. It sees exactly the damage that an opening would see.
//!
//! Left out, and why: the lock. Whoever checks holds the data folder's own lock, so that no node runs meanwhile; the
//! file `lock` may not be writable for whoever looks.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base::GroupId;

use super::disk::{Disk, DiskFile};
use super::index::GroupLog;
use super::mark::{MARK, Mark};
use super::recovery::{self, Recovery};
use crate::log::{LogError, LogState};

/// A log that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogCheck {
    pub recovery: Recovery,
    pub segments: u64,
    /// How far the log of each group reaches.
    pub groups: BTreeMap<GroupId, LogState>,
}

/// Reads the whole log in `folder`. Fails with what an opening of a log that must exist would fail with.
pub fn verify(folder: &Path) -> Result<LogCheck, LogError> {
    if !folder.is_dir() {
        return Err(LogError::Lost { why: format!("the folder {} is gone", folder.display()) });
    }
    let disk = ReadOnly { folder: folder.to_owned() };
    let names = disk.list().map_err(|error| LogError::Io(format!("cannot read {}: {error}", folder.display())))?;
    if !names.iter().any(|name| name == MARK) {
        return Err(LogError::Lost { why: format!("the file {MARK} is gone") });
    }
    let ids = recovery::segment_ids(&names)?;
    let mark = Mark::open(&disk)?;
    let (scan, tail) = recovery::follow(&disk, &ids, &mark)?;
    let sequence = tail.map_or(0, |tail| tail.sequence);
    let recovery = Recovery {
        sequence,
        mark_behind: sequence - mark.get(),
        torn: scan.torn,
        records: scan.records,
        bytes: scan.bytes,
    };
    let groups = scan.index.groups.iter().map(|(group, log)| (*group, GroupLog::state(log))).collect();
    Ok(LogCheck { recovery, segments: ids.len() as u64, groups })
}

/// A folder in which nothing can be changed.
struct ReadOnly {
    folder: PathBuf,
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnly {
    fn list(&self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.folder)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(File::open(self.folder.join(name))?))
    }

    fn create(&self, _: &str) -> io::Result<Arc<dyn DiskFile>> {
        refused()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn sync_names(&self) -> io::Result<()> {
        refused()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{GroupWrite, HardState, LogBatch, LogEntry, LogStore};
    use crate::seglog::{SegLog, SegLogOptions};

    const GROUP: GroupId = GroupId(1);

    fn written(folder: &Path) -> LogState {
        let log = SegLog::open(folder, SegLogOptions { segment_bytes: 4096, ..SegLogOptions::new(7) }).unwrap();
        for index in 1..=40 {
            let entry = LogEntry { index, term: 3, kind: 0, data: vec![index as u8; 200].into() };
            let hard = Some(HardState { term: 3, vote: 1, commit: index - 1 });
            let write = GroupWrite { group: GROUP, entries: vec![entry], hard, ..GroupWrite::default() };
            log.write(&LogBatch { groups: vec![write] }).unwrap();
        }
        log.idle().unwrap();
        log.state(GROUP).unwrap()
    }

    fn content(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    #[test]
    fn a_check_sees_the_log_as_an_opening_does_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let state = written(dir.path());
        let before = content(dir.path());
        let check = verify(dir.path()).unwrap();
        assert_eq!(check.groups, BTreeMap::from([(GROUP, state)]));
        assert!(check.segments > 1 && check.recovery.records > 40, "{check:?}");
        assert_eq!(content(dir.path()), before);
    }

    #[test]
    fn damage_and_loss_are_told_apart_and_nothing_is_changed() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        let segments = content(dir.path()).into_iter().filter(|(path, _)| path.to_string_lossy().contains("segment-"));
        for (path, whole) in segments {
            // Somewhere in a record: behind the last one lie zeroes.
            let at = whole.iter().position(|byte| *byte == b'C').unwrap() + 100;
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(verify(dir.path()), Err(LogError::Corrupt { .. })), "{}", path.display());
            assert_eq!(fs::read(&path).unwrap(), bytes);
            fs::write(&path, whole).unwrap();
        }
        verify(dir.path()).unwrap();
        fs::remove_file(dir.path().join(MARK)).unwrap();
        assert!(matches!(verify(dir.path()), Err(LogError::Lost { .. })));
        assert!(matches!(verify(&dir.path().join("absent")), Err(LogError::Lost { .. })));
    }
}
