//! `snapshot restore`: a full backup, and incremental ones after it, become what a server begins with.
//!
//! Life of a restore: every file is read from end to end and checked, and put in order → those that lead from the full
//! backup to the revision wanted are picked; a gap is an error → only then is the data folder touched: the changes of all
//! incremental backups become one stream (`restore.changes`), then the state is copied (`restore.snapshot`), whose name is
//! what makes the folder a restored one. Files are read again for that, and checked again: what was changed in between
//! ends the restore before anything has a name.
//!
//! A change that several incremental backups hold is taken once. The leases are those of the last backup that is used; when
//! a restore stops in its midst, those of the one before too, since a key may still hang on them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use proto::snapshot::{CHANGES_FILE, Header, PAYLOAD_BYTES_MAX, Pair, RESTORE_FILE, Writer};
use serde_json::json;

use super::args::RestoreArgs;
use super::draft::{self, Draft};
use super::source::{self, Found, Nobody, Taker};
use crate::failure::Failure;
use crate::output::{Format, Output};

/// What may lie in a folder that holds nothing: a new file system's own, and a server's that could not start.
const NOTHING: [&str; 2] = ["lost+found", "owner.lock"];
const REV: u8 = 2;
const META: u8 = 3;

pub fn run(args: &RestoreArgs, out: &mut Output) -> Result<(), Failure> {
    let data_dir = args.data_dir.as_path();
    let leftovers = check_folder(data_dir)?;
    let mut files = Vec::new();
    for path in &args.files {
        files.push((path.clone(), source::read(path, "checking", &mut Nobody)?));
    }
    let plan = plan(files, args.to_revision)?;
    // From here on something is changed.
    let local = |what: &str, error: io::Error| {
        Failure::local(format!("cannot {what} {}: {error}", data_dir.display())).advise("check path and permissions")
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir).map_err(|error| local("create", error))?;
    for leftover in leftovers {
        fs::remove_file(&leftover).map_err(|error| local("clear", error))?;
    }
    let changes = if plan.changes.is_empty() { 0 } else { stage_changes(&plan, &data_dir.join(CHANGES_FILE))? };
    stage_state(&plan.full.0, &plan.full.1, &data_dir.join(RESTORE_FILE))?;
    let (keys, revision) = (plan.full.1.counts.keys, plan.revision);
    match out.format_of_lines() {
        Format::Json => {
            out.json(&json!({ "data_dir": data_dir, "revision": revision, "keys": keys, "changes": changes }))?;
        }
        _ => {
            let more = match plan.changes.len() {
                0 => String::new(),
                1 => format!(" with {changes} changes of an incremental backup"),
                many => format!(" with {changes} changes of {many} incremental backups"),
            };
            out.line(format!(
                "{keys} keys{more} at revision {revision} are ready in {}: start chainfire on it; it founds a cluster of its \
                 own, or comes back to its old one if that runs",
                data_dir.display()
            ))?;
        }
    }
    Ok(())
}

/// Fails unless the folder holds nothing; what an interrupted restore left in it is to be removed.
fn check_folder(data_dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let unusable = |error: io::Error| {
        Failure::local(format!("cannot open {}: {error}", data_dir.display())).advise("check path and permissions")
    };
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>().map_err(unusable)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unusable(error)),
    };
    let named = |name: &str| entries.iter().any(|entry| entry.file_name() == name);
    let mut leftovers = Vec::new();
    for entry in &entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        // The state comes last: without it, the rest is of a restore that was interrupted.
        let ours = [RESTORE_FILE, CHANGES_FILE].iter().any(|file| draft::is_part(&name, file));
        if ours || (name == CHANGES_FILE && !named(RESTORE_FILE)) {
            leftovers.push(entry.path());
        } else if !NOTHING.contains(&name.as_str()) {
            let text = format!("{} is not empty; nothing was changed", data_dir.display());
            return Err(
                Failure::local(text).advise("a restore never overwrites: name another folder, or move this one away")
            );
        }
    }
    Ok(leftovers)
}

/// What is to be restored from what.
struct Plan {
    full: (PathBuf, Found),
    /// In order; each follows on the ones before it.
    changes: Vec<(PathBuf, Found)>,
    /// Where it leads to.
    revision: i64,
}

fn plan(files: Vec<(PathBuf, Found)>, to_revision: Option<i64>) -> Result<Plan, Failure> {
    let (mut fulls, mut others): (Vec<_>, Vec<_>) =
        files.into_iter().partition(|(_, found)| found.header().since.is_none());
    let (Some(full), true) = (fulls.pop(), fulls.is_empty()) else {
        return Err(Failure::usage("a restore begins with exactly one full backup").advise("nothing was changed"));
    };
    let begins = full.1.header().revision;
    let (mut have, wanted) = (begins, to_revision.unwrap_or(i64::MAX));
    if wanted < begins {
        let text = format!("revision {wanted} lies before the full backup, which is of revision {begins}");
        return Err(Failure::usage(text).advise("use an older full backup; nothing was changed"));
    }
    others.sort_by_key(|(_, found)| (found.header().since, found.header().revision));
    let mut changes = Vec::new();
    for (path, found) in others {
        let header = found.header();
        let (since, until) = (header.since.unwrap_or_default(), header.revision);
        if (full.1.header().cluster(), header.cluster()) != (header.cluster(), full.1.header().cluster()) {
            let text = format!("{} is of another cluster than {}", path.display(), full.0.display());
            return Err(Failure::usage(text).advise("nothing was changed"));
        }
        // Superfluous, or beyond what is wanted.
        if until <= have || have >= wanted {
            continue;
        }
        if since > have {
            let text = format!("there is no backup of revisions {have} to {since}, before {}", path.display());
            return Err(Failure::usage(text).advise("name the missing incremental backup too; nothing was changed"));
        }
        have = until;
        changes.push((path, found));
    }
    if to_revision.is_some_and(|wanted| wanted > have) {
        return Err(Failure::usage(format!("the backups lead to revision {have}, not to {wanted}"))
            .advise("name a later incremental backup too; nothing was changed"));
    }
    Ok(Plan { full, changes, revision: have.min(wanted) })
}

fn stage_state(path: &Path, checked: &Found, target: &Path) -> Result<(), Failure> {
    struct Copy(Draft);

    impl Taker for Copy {
        fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
            self.0.write(bytes)
        }
    }

    let mut copy = Copy(Draft::create(target)?);
    let found = source::read(path, "copying", &mut copy)?;
    unchanged(path, checked, &found)?;
    copy.0.publish(target).map(drop)
}

/// Makes one stream of the changes of all; returns how many there are.
fn stage_changes(plan: &Plan, target: &Path) -> Result<u64, Failure> {
    let begins = plan.full.1.header().revision;
    let (_, last) = plan.changes.last().expect("there are changes");
    let header = Header { since: Some(begins), revision: plan.revision, ..last.header().clone() };
    let mut merge = Merge {
        draft: Draft::create(target)?,
        writer: Writer::default(),
        pending: Vec::new(),
        until: plan.revision,
        have: begins,
        changes: 0,
        leases: BTreeMap::new(),
    };
    merge.draft.write(&merge.writer.header(&header))?;
    for (path, checked) in &plan.changes {
        let whole = checked.header().revision <= plan.revision;
        let before = std::mem::take(&mut merge.leases);
        let found = source::read(path, "copying", &mut merge)?;
        unchanged(path, checked, &found)?;
        if !whole {
            for (key, value) in before {
                merge.leases.entry(key).or_insert(value);
            }
        }
        merge.have = checked.header().revision.min(plan.revision);
    }
    let changes = merge.changes;
    merge.finish(target)?;
    Ok(changes)
}

fn unchanged(path: &Path, checked: &Found, found: &Found) -> Result<(), Failure> {
    if checked.sha256 == found.sha256 {
        return Ok(());
    }
    Err(Failure::local(format!("{} changed while it was restored; nothing is ready", path.display())))
}

/// Changes on their way into one stream.
struct Merge {
    draft: Draft,
    writer: Writer,
    /// Pairs that do not yet fill a frame.
    pending: Vec<u8>,
    /// The last revision to take.
    until: i64,
    /// The last revision of the backups before.
    have: i64,
    changes: u64,
    leases: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Taker for Merge {
    fn pair(&mut self, _: &Header, pair: Pair<'_>) -> Result<(), Failure> {
        match (pair.family, pair.key.first_chunk::<8>()) {
            (REV, Some(revision)) => {
                let revision = i64::from_be_bytes(*revision);
                if revision > self.have && revision <= self.until {
                    self.changes += 1;
                    self.put(pair)?;
                }
            }
            (META, _) => drop(self.leases.insert(pair.key.to_vec(), pair.value.to_vec())),
            _ => {}
        }
        Ok(())
    }
}

impl Merge {
    fn put(&mut self, Pair { family, key, value }: Pair<'_>) -> Result<(), Failure> {
        self.writer.put_pair(&mut self.pending, family, key, value);
        while self.pending.len() >= PAYLOAD_BYTES_MAX {
            let rest = self.pending.split_off(PAYLOAD_BYTES_MAX);
            let payload = std::mem::replace(&mut self.pending, rest);
            let frame = self.writer.data(&payload);
            self.draft.write(&frame)?;
        }
        Ok(())
    }

    fn finish(mut self, target: &Path) -> Result<(), Failure> {
        for (key, value) in std::mem::take(&mut self.leases) {
            self.put(Pair { family: META, key: &key, value: &value })?;
        }
        if !self.pending.is_empty() {
            let frame = self.writer.data(&self.pending);
            self.draft.write(&frame)?;
        }
        let trailer = self.writer.trailer();
        self.draft.write(&trailer)?;
        self.draft.publish(target).map(drop)
    }
}
