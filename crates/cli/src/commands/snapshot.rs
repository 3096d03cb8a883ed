//! `snapshot save`, `status`, `restore`.
//!
//! A saved file is what the server streamed: its state ([`proto::snapshot`]), and the SHA-256 of that at the end.
//! It is written under a temporary name, made durable, and only then gets its own, so a file with that name is complete.
//!
//! Restoring checks everything and leaves the state in an otherwise empty data folder, under the name [`RESTORE_FILE`]. The
//! server that is started on the folder loads it and founds a cluster of its own, with a cluster id of its own: nothing of
//! the old cluster's log can be rewound by it.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use proto::etcdserverpb::SnapshotRequest;
use proto::snapshot::{Content, FILE_DIGEST_BYTES, FRAME_BYTES_MAX, RESTORE_FILE, Reader};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::args::SnapshotCommand;
use crate::connect::{self, Client};
use crate::failure::Failure;
use crate::format::size;
use crate::output::{Format, Output};

/// What may lie in a folder that holds nothing: a new file system's own, and a server's that could not start.
const NOTHING: [&str; 2] = ["lost+found", "owner.lock"];

pub async fn run(client: &Client, command: SnapshotCommand, out: &mut Output) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Save { file } => save(client, &file, out).await,
        SnapshotCommand::Status { file } => status(&file, out),
        SnapshotCommand::Restore { file, data_dir } => restore(&file, &data_dir, out),
    }
}

async fn save(client: &Client, file: &Path, out: &mut Output) -> Result<(), Failure> {
    let (endpoint, channel) = client.any_channel().await?;
    let timed_out = |_| Failure::timed_out(&endpoint);
    let opened = client.within(connect::maintenance(channel).snapshot(SnapshotRequest {})).await.map_err(timed_out)?;
    let mut stream = opened.map_err(|status| Failure::of_status(&endpoint, &status))?.into_inner();

    let mut draft = Draft::create(file)?;
    let progress = progress("saving");
    let mut hasher = Sha256::new();
    // The digest of all before is the last thing in the stream, wherever the chunks are cut.
    let mut last: Vec<u8> = Vec::new();
    let mut written = 0u64;
    let mut revision = 0;
    loop {
        let next = tokio::select! {
            next = client.within(stream.message()) => next.map_err(timed_out)?,
            _ = tokio::signal::ctrl_c() => return Err(Failure::local("interrupted; nothing was saved")),
        };
        let Some(chunk) = next.map_err(|status| Failure::of_status(&endpoint, &status))? else { break };
        if let Some(header) = &chunk.header {
            revision = header.revision;
        }
        draft.write(&chunk.blob)?;
        last.extend_from_slice(&chunk.blob);
        let sure = last.len().saturating_sub(FILE_DIGEST_BYTES);
        hasher.update(&last[..sure]);
        last.drain(..sure);
        written += chunk.blob.len() as u64;
        progress.set_length(written + chunk.remaining_bytes);
        progress.set_position(written);
    }
    progress.finish_and_clear();
    if last.len() < FILE_DIGEST_BYTES || hasher.finalize()[..] != last[..] {
        return Err(Failure::local(format!(
            "{endpoint}: the snapshot arrived damaged or cut short; nothing was saved"
        ))
        .advise("try again"));
    }
    draft.publish()?;
    match out.format_of_lines() {
        Format::Json => out.json(&json!({ "file": file, "bytes": written, "revision": revision }))?,
        _ => out.line(format!("Snapshot saved at {} ({}, revision {revision})", file.display(), size(written)))?,
    }
    Ok(())
}

fn status(file: &Path, out: &mut Output) -> Result<(), Failure> {
    let (content, bytes, digest) = check(file, None)?;
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    match out.format() {
        Format::Json => out.json(&json!({
            "sha256": digest,
            "revision": content.header.revision,
            "totalKey": content.keys,
            "totalSize": bytes,
            "raftIndex": content.header.raft_index,
            "raftTerm": content.header.raft_term,
        }))?,
        Format::Table => {
            let row = [
                content.header.revision.to_string(),
                content.keys.to_string(),
                size(bytes),
                content.header.raft_index.to_string(),
            ];
            let row = row.into_iter().chain([digest[..16].to_owned()]).collect();
            out.table(&["REVISION", "KEYS", "SIZE", "RAFT INDEX", "SHA-256"], [row])?;
        }
        Format::Simple => {
            out.line(format!("{}, {}, {}, {}", &digest[..16], content.header.revision, content.keys, size(bytes)))?
        }
    }
    Ok(())
}

fn restore(file: &Path, data_dir: &Path, out: &mut Output) -> Result<(), Failure> {
    let local = |what: &str, path: &Path, error: io::Error| {
        Failure::local(format!("cannot {what} {}: {error}", path.display())).advise("check path and permissions")
    };
    match fs::read_dir(data_dir) {
        Ok(entries) => {
            let holds = |entry: io::Result<fs::DirEntry>| {
                entry.map_or(true, |entry| NOTHING.iter().all(|name| entry.file_name() != *name))
            };
            if entries.into_iter().any(holds) {
                let text = format!("{} is not empty; nothing was changed", data_dir.display());
                return Err(Failure::local(text)
                    .advise("a restore never overwrites: name another folder, or move this one away"));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(data_dir).map_err(|error| local("create", data_dir, error))?;
        }
        Err(error) => return Err(local("open", data_dir, error)),
    }
    let target = data_dir.join(RESTORE_FILE);
    let mut draft = Draft::create(&target)?;
    let (content, ..) = check(file, Some(&mut draft))?;
    draft.publish()?;
    match out.format_of_lines() {
        Format::Json => {
            out.json(&json!({ "data_dir": data_dir, "revision": content.header.revision, "keys": content.keys }))?
        }
        _ => out.line(format!(
            "{} keys at revision {} are ready in {}: start chainfire on it, and it founds a cluster of its own",
            content.keys,
            content.header.revision,
            data_dir.display()
        ))?,
    }
    Ok(())
}

/// Reads a file from end to end, checks it against its digest, and copies its state (without the digest) into `copy`.
fn check(file: &Path, mut copy: Option<&mut Draft>) -> Result<(Content, u64, [u8; FILE_DIGEST_BYTES]), Failure> {
    let unreadable = |error: io::Error| Failure::local(format!("cannot read {}: {error}", file.display()));
    let damaged = |why: &str| Failure::local(format!("{} is no intact snapshot: {why}", file.display()));
    let mut input = File::open(file).map_err(unreadable)?;
    let bytes = input.metadata().map_err(unreadable)?.len();
    let Some(state_bytes) = bytes.checked_sub(FILE_DIGEST_BYTES as u64).filter(|bytes| *bytes > 0) else {
        return Err(damaged("it is too short"));
    };
    let mut digest = [0; FILE_DIGEST_BYTES];
    input.seek(io::SeekFrom::End(-(FILE_DIGEST_BYTES as i64))).map_err(unreadable)?;
    input.read_exact(&mut digest).map_err(unreadable)?;
    input.rewind().map_err(unreadable)?;

    let progress = progress("checking");
    progress.set_length(state_bytes);
    let mut hasher = Sha256::new();
    let mut reader = Reader::new(u8::MAX);
    let mut state = BufReader::new(input).take(state_bytes);
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    loop {
        let length = state.read(&mut buffer).map_err(unreadable)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        reader.feed(&buffer[..length]);
        while reader.pair().map_err(|why| damaged(&why.0))?.is_some() {}
        if let Some(draft) = &mut copy {
            draft.write(&buffer[..length])?;
        }
        progress.inc(length as u64);
    }
    progress.finish_and_clear();
    if hasher.finalize()[..] != digest {
        return Err(damaged("its content does not fit its SHA-256"));
    }
    Ok((reader.finish().map_err(|why| damaged(&why.0))?, bytes, digest))
}

fn progress(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(0).with_message(what);
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
    bar.set_style(style.expect("the template is well-formed").progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A file that gets its name when it is complete; dropped before that, it vanishes.
struct Draft {
    target: PathBuf,
    path: PathBuf,
    out: Option<BufWriter<File>>,
}

impl Draft {
    fn create(target: &Path) -> Result<Draft, Failure> {
        let name = target.file_name().ok_or_else(|| Failure::usage(format!("{} names no file", target.display())))?;
        let path = target.with_file_name(format!("{}.part-{}", name.to_string_lossy(), std::process::id()));
        let file = File::options().write(true).create_new(true).open(&path).map_err(|error| {
            Failure::local(format!("cannot write {}: {error}", path.display())).advise("check path and permissions")
        })?;
        Ok(Draft { target: target.to_owned(), path, out: Some(BufWriter::with_capacity(1 << 20, file)) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let out = self.out.as_mut().expect("published drafts are not written");
        out.write_all(bytes).map_err(|error| self.failed(&error))
    }

    fn publish(mut self) -> Result<(), Failure> {
        let out = self.out.take().expect("a draft is published once");
        let durable = || -> io::Result<()> {
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            fs::rename(&self.path, &self.target)?;
            let folder = match self.target.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            File::open(folder)?.sync_all()
        };
        durable().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::local(format!("cannot write {}: {error}", self.target.display())).advise("is the disk full?")
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already when it was published.
        let _ = fs::remove_file(&self.path);
    }
}
