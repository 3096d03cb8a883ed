//! Replacing one database by another on disk, so that a crash at any point leaves the old or the new.
//!
//! The replacement lies ready in `incoming/db/` of the data folder. From then on:
//!
//! | what lies in `incoming/` | what that says | what opening does |
//! |---|---|---|
//! | no marker | not decided: it was being received, or waited for its commit | deletes `incoming/` |
//! | `COMPLETE` | decided; the database in the data folder is the old one, perhaps deleted in part | deletes the rest of it, renames the marker to `MOVING`, goes on |
//! | `MOVING` | the database in the data folder is the new one, perhaps moved in part | moves the rest, deletes `incoming/` |
//!
//! Every step is durable before the next begins, and each may be repeated. In the data folder only files are
//! touched that bear a name RocksDB gives; the node's own (`identity`, `raft/` …) are not.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

pub(super) const INCOMING: &str = "incoming";
const COMPLETE: &str = "COMPLETE";
const MOVING: &str = "MOVING";

/// Where the replacement's database is built.
pub(super) fn staged_database(dir: &Path) -> PathBuf {
    dir.join(INCOMING).join("db")
}

/// Where its table files are written before they become part of it.
pub(super) fn staged_tables(dir: &Path) -> PathBuf {
    dir.join(INCOMING).join("tables")
}

/// Deletes what an earlier, undecided replacement left and makes empty folders for the next.
pub(super) fn prepare(dir: &Path) -> io::Result<()> {
    discard(dir)?;
    fs::create_dir_all(staged_tables(dir))?;
    fs::create_dir_all(staged_database(dir))?;
    sync_dir(dir)
}

/// Deletes an undecided replacement.
pub(super) fn discard(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(INCOMING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes the closed database in `incoming/` durable, the names of its files included.
pub(super) fn sync_staged(dir: &Path) -> io::Result<()> {
    let database = staged_database(dir);
    for file in fs::read_dir(&database)? {
        File::open(file?.path())?.sync_all()?;
    }
    sync_dir(&database)?;
    sync_dir(&dir.join(INCOMING))
}

/// Decides for the replacement: from here on only the new content is ever opened.
pub(super) fn decide(dir: &Path) -> io::Result<()> {
    let incoming = dir.join(INCOMING);
    let mut marker = File::create(incoming.join(COMPLETE))?;
    marker.write_all(b"the database beside this file replaces the one in the data folder\n")?;
    marker.sync_all()?;
    sync_dir(&incoming)
}

/// Brings the data folder to a state in which its database can be opened. No database may be open in it.
pub(super) fn settle(dir: &Path) -> io::Result<()> {
    let incoming = dir.join(INCOMING);
    if incoming.join(COMPLETE).try_exists()? {
        for file in owned_files(dir)? {
            fs::remove_file(file)?;
        }
        sync_dir(dir)?;
        fs::rename(incoming.join(COMPLETE), incoming.join(MOVING))?;
        sync_dir(&incoming)?;
    }
    if incoming.join(MOVING).try_exists()? {
        let database = staged_database(dir);
        if database.try_exists()? {
            for file in owned_files(&database)? {
                let name = file.file_name().expect("a file that was listed has a name");
                fs::rename(&file, dir.join(name))?;
            }
            sync_dir(dir)?;
            sync_dir(&database)?;
        }
    }
    discard(dir)?;
    sync_dir(dir)
}

/// Whether an exchange was decided and is not finished: the next opening finishes it.
pub(super) fn is_unfinished(dir: &Path) -> io::Result<bool> {
    let incoming = dir.join(INCOMING);
    Ok(incoming.join(COMPLETE).try_exists()? || incoming.join(MOVING).try_exists()?)
}

/// Files directly in `dir` whose names are RocksDB's.
fn owned_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && entry.file_name().to_str().is_some_and(is_owned) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn is_owned(name: &str) -> bool {
    let numbered = |stem: &str| !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_digit());
    match name {
        "CURRENT" | "IDENTITY" | "LOCK" | "LOG" => true,
        _ if name.starts_with("MANIFEST-") || name.starts_with("OPTIONS-") || name.starts_with("LOG.old.") => true,
        _ => name.rsplit_once('.').is_some_and(|(stem, kind)| match kind {
            "sst" | "log" | "blob" => numbered(stem),
            "dbtmp" => true,
            _ => false,
        }),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_rocksdb_gives_are_owned() {
        for name in [
            "CURRENT",
            "IDENTITY",
            "LOCK",
            "LOG",
            "LOG.old.1700000000000000",
            "MANIFEST-000005",
            "OPTIONS-000007",
            "000012.sst",
            "000013.log",
            "000014.blob",
            "000001.dbtmp",
        ] {
            assert!(is_owned(name), "{name}");
        }
        for name in ["identity", "raft", "incoming", "chainfire.log", ".sst", "a.sst", "12.sst.bak", "COMPLETE"] {
            assert!(!is_owned(name), "{name}");
        }
    }
}
