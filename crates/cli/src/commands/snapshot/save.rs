//! `snapshot save`: a stream of the server becomes a file.

use std::path::{Path, PathBuf};

use proto::manifest::Manifest;
use proto::snapshot::Header;
use serde_json::json;

use super::archive::Writer;
use super::args::SaveArgs;
use super::draft::Draft;
use super::now;
use super::shelf::{self, Entry};
use super::source::{self, Nobody};
use super::stream::{self, Pace, Received, Wanted};
use crate::connect::Client;
use crate::failure::Failure;
use crate::format::size;
use crate::output::{Format, Output};

const PROGRAM: &str = concat!("chainfire-client ", env!("CARGO_PKG_VERSION"));

/// Where it goes.
pub enum Target<'a> {
    File(&'a Path),
    /// Into a folder, under a name that says when and what.
    Folder(&'a Path),
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Saved {
    /// `None`: nothing had changed, and nothing was written.
    pub path: Option<PathBuf>,
    pub bytes: u64,
    pub header: Header,
}

pub async fn run(client: &Client, args: SaveArgs, out: &mut Output) -> Result<(), Failure> {
    let wanted = match &args.since {
        Some(base) if args.incremental => since(base)?,
        _ => Wanted::Everything { stale: args.stale },
    };
    let target = match (&args.file, &args.output_dir) {
        (Some(file), _) => Target::File(file),
        (None, Some(folder)) => Target::Folder(folder),
        (None, None) => return Err(Failure::usage("name a file, or a folder with --output-dir")),
    };
    if let Target::File(file) = target {
        check_name(file, args.incremental)?;
    }
    let saved = save(client, wanted, Pace { mib_per_second: args.max_rate }, target).await?;
    tell(&saved, out)
}

/// What to ask for after a backup, which is read to its end: nothing is to follow on one that cannot be restored.
pub fn since(base: &Path) -> Result<Wanted, Failure> {
    let found = source::read(base, "checking", &mut Nobody)?;
    let header = found.header();
    Ok(Wanted::Since { revision: header.revision, cluster: header.cluster() })
}

/// What a backup is to those that serve: where processors are short, it gets a tenth of what they get.
const NICE: libc::c_int = 10;

/// This thread goes behind others until it ends.
fn step_back() {
    // SAFETY: takes numbers. For Linux zero is the calling thread, and nobody is refused to be nicer.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// Receives a backup and writes it. A file with the final name is complete and durable; without success there is none.
pub async fn save(client: &Client, wanted: Wanted, pace: Pace, target: Target<'_>) -> Result<Saved, Failure> {
    step_back();
    let made = now();
    let beside = match target {
        Target::File(file) => file.to_owned(),
        Target::Folder(folder) => folder.join(shelf::DRAFT),
    };
    let archived = matches!(target, Target::Folder(_)) || is_archive_name(&beside);
    let draft = Draft::create(&beside)?;
    if !archived {
        let mut draft = draft;
        let Received { content, digest } = stream::receive(client, wanted, pace, |bytes| draft.write(bytes)).await?;
        draft.write(&digest)?;
        let bytes = draft.publish(&beside)?;
        return Ok(Saved { path: Some(beside), bytes, header: content.header });
    }
    let mut writer = Writer::new(draft)?;
    let Received { content, .. } = stream::receive(client, wanted, pace, |bytes| writer.write(bytes)).await?;
    let header = content.header;
    if matches!(target, Target::Folder(_)) && header.since == Some(header.revision) {
        return Ok(Saved { path: None, bytes: 0, header });
    }
    let entry = Entry { made, revision: header.revision, since: header.since, bytes: 0 };
    let path = match target {
        Target::File(file) => file.to_owned(),
        Target::Folder(folder) => folder.join(entry.name()),
    };
    let manifest = Manifest {
        cluster: header.cluster(),
        revision: header.revision,
        raft_index: header.raft_index,
        raft_term: header.raft_term,
        created: made.rfc3339(),
        program: PROGRAM.to_owned(),
        base: header.since,
        files: Vec::new(),
    };
    let bytes = writer.finish(&entry.stem(), manifest, made)?.publish(&path)?;
    Ok(Saved { path: Some(path), bytes, header })
}

pub fn tell(saved: &Saved, out: &mut Output) -> Result<(), Failure> {
    let Saved { path, bytes, header } = saved;
    let (revision, since) = (header.revision, header.since);
    if out.format_of_lines() == Format::Json {
        out.json(&json!({ "file": path, "bytes": bytes, "revision": revision, "since": since }))?;
        return Ok(());
    }
    let size = size(*bytes);
    out.line(match (path, since) {
        (None, _) => format!("Nothing changed since revision {revision}; nothing was saved"),
        (Some(path), None) => format!("Snapshot saved at {} ({size}, revision {revision})", path.display()),
        (Some(path), Some(since)) => {
            format!("Changes saved at {} ({size}, revisions {since} to {revision})", path.display())
        }
    })?;
    Ok(())
}

fn is_archive_name(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".tar.gz") || name.ends_with(".tgz")
}

/// What restores the newest `*.tar.gz` of a folder must not find an incremental backup there.
fn check_name(file: &Path, incremental: bool) -> Result<(), Failure> {
    if incremental && file.to_string_lossy().ends_with(".tar.gz") {
        return Err(Failure::usage(format!("{}: that is the name of a full backup", file.display()))
            .advise("call an incremental one something like NAME.incr.tgz, so that nobody restores it alone"));
    }
    Ok(())
}
