//! The program under the name `rocksdb_ldb`: so much of RocksDB's tool as runbooks call, with the RocksDB that wrote the files.
//!
//! A repair throws away what it cannot read, and forgets deletions. So nothing is repaired that is intact, and a node whose
//! state was repaired gets it from a peer at its next start ([`node::recovery`]). Answers are RocksDB's: `OK`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use node::{Folder, IdentityError};
use storage::rocks;

use super::{ExitCode, Failure, give_to_owner, print};
use crate::machine::layout;

const HELP: &str = "\
Checks or repairs the database of a stopped Chainfire node, as RocksDB's tool of this name does.

Usage: rocksdb_ldb --db=DIR checkconsistency     read the manifest, and every block against its checksum
       rocksdb_ldb --db=DIR repair               if that fails: keep the files that can still be read
       rocksdb_ldb --db=DIR list_column_families

After a repair that had to drop something the node gets its state from a peer at its next start. See also `chainfire check`
and `chainfire repair`, which know the Raft log too.

Exit codes: 0 OK, 1 not done, 2 damaged.
";

pub(super) fn run(words: &[OsString]) -> Result<ExitCode, Failure> {
    let mut dir: Option<PathBuf> = None;
    let mut command = None;
    let mut words = words.iter().map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        if word == "--help" || word == "-h" {
            return print(HELP);
        } else if let Some(path) = word.strip_prefix("--db=") {
            dir = Some(path.into());
        } else if word == "--db" {
            dir = words.next().map(PathBuf::from);
        } else if word.starts_with("--") {
            return Err(Failure::not_done(format!("unknown flag {word}; see rocksdb_ldb --help")));
        } else if command.replace(word).is_some() {
            return Err(Failure::not_done("one command at a time; see rocksdb_ldb --help"));
        }
    }
    let dir = dir.ok_or_else(|| Failure::not_done("--db=DIR is missing; see rocksdb_ldb --help"))?;
    if !dir.is_dir() {
        return Err(Failure::not_done(format!("there is no folder {} code=CF4101", dir.display())));
    }
    match command.as_deref() {
        Some("checkconsistency") => check(&dir).and_then(|()| print("OK\n")),
        Some("list_column_families") => {
            check(&dir)?;
            let names: Vec<&str> = layout::FAMILIES.iter().map(|family| family.name).collect();
            print(&format!("Column families in {}: \n{{default, {}}}\n", dir.display(), names.join(", ")))
        }
        Some("repair") => repair(&dir),
        Some(other) => Err(Failure::not_done(format!("unknown command `{other}`; see rocksdb_ldb --help"))),
        None => Err(Failure::not_done("a command is missing; see rocksdb_ldb --help")),
    }
}

fn check(dir: &Path) -> Result<(), Failure> {
    let _held = hold(dir)?;
    intact(dir)
}

fn intact(dir: &Path) -> Result<(), Failure> {
    match rocks::check(dir, &layout::FAMILIES) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Failure::not_done(format!("there is no database in {} code=CF4101", dir.display()))),
        Err(error) => Err(Failure::damaged(format!("{error} code=CF4104"))),
    }
}

fn repair(dir: &Path) -> Result<ExitCode, Failure> {
    let held = hold(dir)?;
    match intact(dir) {
        Ok(()) => return print("every checksum is right: nothing to repair\nOK\n"),
        Err(failure) if failure.exit == super::NOT_DONE => return Err(failure),
        Err(failure) => print(&format!("{}\n", failure.line))?,
    };
    if let Some(folder) = &held {
        folder.mark_repaired()?;
    }
    let repaired = rocks::repair(dir, &layout::FAMILIES);
    if let Some(folder) = &held {
        give_to_owner(folder)?;
    }
    repaired.map_err(|error| Failure::damaged(format!("{error} code=CF4104")))?;
    intact(dir)?;
    print("files may have been dropped: the node gets its state from another member at its next start\nOK\n")
}

/// Holds the folder, if it is a node's.
fn hold(dir: &Path) -> Result<Option<Folder>, Failure> {
    match Folder::stopped(dir) {
        Ok(folder) => Ok(Some(folder)),
        Err(IdentityError::Unused { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
