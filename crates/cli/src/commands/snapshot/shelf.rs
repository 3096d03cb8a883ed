//! A folder in which backups are kept: what is there, and what may go.
//!
//! | name | |
//! |---|---|
//! | `chainfire-20261124T201500Z-rev1234.tar.gz` | full, of revision 1234 |
//! | `chainfire-20261124T202000Z-rev1234-1300.incr.tgz` | incremental: what changed after revision 1234 up to 1300 |
//! | either with `.bad` | was found to be damaged; for people to look at |
//!
//! Files with other names are never touched, nor looked at. Incremental backups form one chain through the full ones: each
//! follows on the last incremental one, so that every revision since the oldest full backup can be restored.
//!
//! What goes: full backups beyond the number kept that are also older than the days kept, and incremental ones that end
//! before the oldest full one that stays. At least one full backup always stays, and every incremental one that it needs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base::Moment;

use crate::failure::Failure;

/// What a backup is called until its name is known.
pub const DRAFT: &str = "chainfire-backup";
/// Held by whoever makes or deletes backups in the folder.
const LOCK: &str = ".chainfire-backup.lock";
const PREFIX: &str = "chainfire-";
const FULL: &str = ".tar.gz";
const INCREMENTAL: &str = ".incr.tgz";
const SET_ASIDE: &str = ".bad";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Full,
    Incremental,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Full => "full",
            Kind::Incremental => "incremental",
        }
    }
}

/// A backup, as its name tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub made: Moment,
    pub revision: i64,
    pub since: Option<i64>,
    pub bytes: u64,
}

impl Entry {
    pub fn kind(&self) -> Kind {
        if self.since.is_some() { Kind::Incremental } else { Kind::Full }
    }

    /// The folder within the archive.
    pub fn stem(&self) -> String {
        let since = self.since.map_or(String::new(), |since| format!("{since}-"));
        format!("{PREFIX}{}-rev{since}{}", self.made.compact(), self.revision)
    }

    pub fn name(&self) -> String {
        self.stem() + if self.since.is_some() { INCREMENTAL } else { FULL }
    }

    fn parse(name: &str, bytes: u64) -> Option<Entry> {
        let stem = name.strip_suffix(FULL).or_else(|| name.strip_suffix(INCREMENTAL))?;
        let (made, revisions) = stem.strip_prefix(PREFIX)?.split_once("-rev")?;
        let (since, revision) = match revisions.split_once('-') {
            Some((since, revision)) => (Some(since.parse().ok()?), revision),
            None => (None, revisions),
        };
        let entry = Entry { made: Moment::parse_compact(made)?, revision: revision.parse().ok()?, since, bytes };
        (entry.name() == name).then_some(entry)
    }
}

/// What is in the folder, the oldest first.
#[derive(Debug, Default)]
pub struct Shelf {
    entries: Vec<Entry>,
}

impl Shelf {
    pub fn of(files: &[(&str, u64)]) -> Shelf {
        let mut entries: Vec<Entry> = files.iter().filter_map(|(name, bytes)| Entry::parse(name, *bytes)).collect();
        entries.sort_by_key(|entry| (entry.made, entry.revision));
        Shelf { entries }
    }

    pub fn read(folder: &Path) -> Result<Shelf, Failure> {
        let files = list(folder)?;
        let files: Vec<(&str, u64)> = files.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        Ok(Shelf::of(&files))
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The newest of a kind.
    pub fn newest(&self, kind: Kind) -> Option<&Entry> {
        self.entries.iter().rev().find(|entry| entry.kind() == kind)
    }

    /// What an incremental backup may follow on, the best first: it continues the chain, or begins one.
    pub fn bases(&self) -> Vec<&Entry> {
        let Some(full) = self.newest(Kind::Full) else { return Vec::new() };
        self.newest(Kind::Incremental).into_iter().chain([full]).collect()
    }

    /// What may go, with `keep` of at least one.
    pub fn superfluous(&self, keep: u32, keep_days: Option<u32>, now: Moment) -> Vec<&Entry> {
        let young = |entry: &Entry| keep_days.is_some_and(|days| now.since(entry.made) < DAY * days);
        let fulls: Vec<&Entry> = self.entries.iter().rev().filter(|entry| entry.kind() == Kind::Full).collect();
        let (kept, old): (Vec<_>, Vec<_>) =
            fulls.into_iter().enumerate().partition(|(place, entry)| *place < keep.max(1) as usize || young(entry));
        let Some((_, oldest)) = kept.last() else { return Vec::new() };
        // Revisions begin anew with another cluster: a chain that ended a day before the oldest full backup is no use.
        let useless = |entry: &Entry| {
            let ended = entry.revision <= oldest.revision || oldest.made.since(entry.made) > DAY;
            entry.made < oldest.made && ended
        };
        let chains = self.entries.iter().filter(|entry| entry.kind() == Kind::Incremental && useless(entry));
        chains.chain(old.into_iter().map(|(_, entry)| entry)).collect()
    }
}

/// The right to change what is in a folder, until it is dropped.
pub struct Lock(#[expect(dead_code, reason = "the lock goes with the file")] fs::File);

impl Lock {
    /// Takes a folder, making it if there is none.
    pub fn take(folder: &Path) -> Result<Lock, Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let unusable = |error: std::io::Error| {
            Failure::local(format!("cannot use {}: {error}", folder.display())).advise("check path and permissions")
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(unusable)?;
        let file = fs::File::options().create(true).truncate(false).write(true).open(folder.join(LOCK));
        let file = file.map_err(unusable)?;
        file.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => {
                Failure::local(format!("another backup into {} is under way", folder.display()))
                    .advise("wait for it, or stop it")
            }
            fs::TryLockError::Error(error) => unusable(error),
        })?;
        Ok(Lock(file))
    }
}

/// Takes a damaged backup its name, so that it is none any more.
pub fn set_aside(path: &Path) -> Result<(), Failure> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(SET_ASIDE);
    fs::rename(path, &aside).map_err(|error| {
        Failure::local(format!("cannot set {} aside: {error}", path.display())).advise("check permissions")
    })?;
    eprintln!("set aside as {}", aside.display());
    Ok(())
}

/// Deletes backups; returns those that are gone.
pub fn delete(folder: &Path, entries: &[&Entry]) -> Result<Vec<PathBuf>, Failure> {
    let mut gone = Vec::new();
    for entry in entries {
        let path = folder.join(entry.name());
        fs::remove_file(&path).map_err(|error| {
            Failure::local(format!("cannot delete {}: {error}", path.display())).advise("check permissions")
        })?;
        gone.push(path);
    }
    Ok(gone)
}

fn list(folder: &Path) -> Result<Vec<(String, u64)>, Failure> {
    let read = || -> std::io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                files.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
            }
        }
        Ok(files)
    };
    read().map_err(|error| {
        Failure::local(format!("cannot read {}: {error}", folder.display())).advise("check path and permissions")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(made: u64, since: Option<i64>, revision: i64) -> Entry {
        Entry { made: Moment(made), revision, since, bytes: 0 }
    }

    fn shelf(entries: &[Entry]) -> Shelf {
        let names: Vec<String> = entries.iter().map(Entry::name).collect();
        Shelf::of(&names.iter().map(|name| (name.as_str(), 0)).collect::<Vec<_>>())
    }

    #[test]
    fn names_come_back() {
        for entry in [entry(1_795_551_300, None, 1234), entry(1_795_551_600, Some(1234), 1300)] {
            assert_eq!(Entry::parse(&entry.name(), 0), Some(entry));
        }
        assert_eq!(entry(1_795_551_300, None, 1234).name(), "chainfire-20261124T201500Z-rev1234.tar.gz");
        assert!(!entry(1_795_551_300, Some(1), 2).name().ends_with(".tar.gz"), "the runbook takes the newest of those");
        for foreign in [
            "chainfire-20261124T201500Z-rev1234.tar.gz.part-12",
            "chainfire-20261124T201500Z-rev1234.tar.gz.bad",
            "chainfire-20261124T201500Z-rev01234.tar.gz",
            "chainfire-20261124T201500Z-rev1-2.tar.gz",
            "chainfire-20261124T201500Z-rev1.incr.tgz",
            "chainfire-20261399T201500Z-rev1234.tar.gz",
            "chainfire-monday.tar.gz",
            "other-20261124T201500Z-rev1234.tar.gz",
            "chainfire-backup.part-12",
        ] {
            assert_eq!(Entry::parse(foreign, 0), None, "{foreign}");
        }
    }

    #[test]
    fn the_newest_stay_with_what_they_need() {
        let hour = 3600;
        let fulls = [1, 2, 3].map(|n| entry(n * hour, None, n as i64 * 100));
        let chain = [
            entry(hour + 60, Some(100), 150),
            entry(2 * hour + 60, Some(150), 250),
            entry(3 * hour + 60, Some(250), 350),
        ];
        let all = shelf(&[&fulls[..], &chain[..]].concat());
        let gone = |keep, days, now: u64| -> Vec<(Option<i64>, i64)> {
            all.superfluous(keep, days, Moment(now)).iter().map(|entry| (entry.since, entry.revision)).collect()
        };
        let now = 4 * hour;
        assert_eq!(gone(3, None, now), []);
        // The one from 150 to 250 leads on from the full backup of revision 200.
        assert_eq!(gone(2, None, now), [(Some(100), 150), (None, 100)]);
        assert_eq!(gone(1, None, now), [(Some(100), 150), (Some(150), 250), (None, 200), (None, 100)]);
        assert_eq!(gone(0, None, now), gone(1, None, now), "one stays in any case");
        assert_eq!(gone(1, Some(1), now), [], "they are young");
        assert_eq!(gone(1, Some(1), 25 * hour + 1), [(Some(100), 150), (None, 100)], "one is too old");
        assert_eq!(shelf(&chain).superfluous(1, None, Moment(u64::MAX / 2)), Vec::<&Entry>::new());
    }

    #[test]
    fn a_chain_of_another_cluster_goes_too() {
        let day = 86_400;
        let all = shelf(&[entry(day, Some(9_000), 9_500), entry(day + 5, None, 9_500), entry(9 * day, None, 20)]);
        let gone: Vec<i64> = all.superfluous(1, None, Moment(10 * day)).iter().map(|entry| entry.revision).collect();
        assert_eq!(gone, [9_500, 9_500]);
    }

    #[test]
    fn a_chain_goes_on_from_its_end() {
        let all = shelf(&[entry(10, None, 100), entry(20, Some(100), 150), entry(30, None, 180)]);
        let bases: Vec<i64> = all.bases().iter().map(|entry| entry.revision).collect();
        assert_eq!(bases, [150, 180]);
        assert!(shelf(&[entry(20, Some(100), 150)]).bases().is_empty(), "without a full backup it begins with one");
    }

    #[test]
    fn only_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("made");
        let lock = Lock::take(&dir).unwrap();
        let Err(refused) = Lock::take(&dir) else { panic!("two have it") };
        assert!(refused.text.contains("is under way"));
        drop(lock);
        Lock::take(&dir).unwrap();
    }
}
