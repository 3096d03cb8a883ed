//! `snapshot status` and `snapshot verify`: what is in saved files, and whether they are intact.
//!
//! Both read a file from end to end, and check the same. `status` says what is in one file; `verify` takes many, says what
//! each of them came to, and fails if one is not intact.

use std::path::{Path, PathBuf};

use proto::manifest::hex;
use serde_json::{Value, json};

use super::source::{self, Found, Nobody};
use crate::failure::Failure;
use crate::format::size;
use crate::output::{Format, Output};

pub fn status(file: &Path, out: &mut Output) -> Result<(), Failure> {
    let found = source::read(file, "checking", &mut Nobody)?;
    let header = found.header();
    let digest = hex(&found.sha256);
    let kind = kind(&found);
    match out.format() {
        Format::Json => out.json(&as_json(&found))?,
        Format::Table => {
            let row = [
                kind,
                header.revision.to_string(),
                found.counts.keys.to_string(),
                found.counts.changes.to_string(),
                size(found.file_bytes),
                header.raft_index.to_string(),
                digest[..16].to_owned(),
            ];
            out.table(&["KIND", "REVISION", "KEYS", "CHANGES", "SIZE", "RAFT INDEX", "SHA-256"], [row.into()])?;
        }
        Format::Simple => {
            let more = header.since.map_or(String::new(), |since| format!(", since {since}"));
            let (digest, bytes) = (&digest[..16], size(found.file_bytes));
            out.line(format!("{digest}, {}, {}, {bytes}{more}", header.revision, found.counts.keys))?;
        }
    }
    Ok(())
}

pub fn verify(files: &[PathBuf], out: &mut Output) -> Result<(), Failure> {
    let mut failures = Vec::new();
    for file in files {
        match (source::read(file, "verifying", &mut Nobody), out.format_of_lines()) {
            (Ok(found), Format::Json) => {
                let mut told = as_json(&found);
                told["file"] = json!(file);
                told["intact"] = json!(true);
                out.json(&told)?;
            }
            (Ok(found), _) => out.line(format!(
                "{}: intact, {}, revision {}, {} keys, {} changes, {} leases, {}",
                file.display(),
                kind(&found),
                found.header().revision,
                found.counts.keys,
                found.counts.changes,
                found.counts.leases,
                size(found.file_bytes)
            ))?,
            (Err(failure), Format::Json) => {
                out.json(&json!({ "file": file, "intact": false, "why": failure.text }))?;
                failures.push(failure);
            }
            (Err(failure), _) => {
                out.line(format!("{}: NOT INTACT", file.display()))?;
                failures.push(failure);
            }
        }
    }
    let Some(first) = failures.first() else { return Ok(()) };
    // What is fine has been said before the complaint.
    out.flush()?;
    if files.len() == 1 {
        return Err(first.clone());
    }
    Err(Failure::local(format!(
        "{} of {} files are not intact, the first: {}",
        failures.len(),
        files.len(),
        first.text
    )))
}

fn kind(found: &Found) -> String {
    found.header().since.map_or("full".to_owned(), |since| format!("incremental since {since}"))
}

fn as_json(found: &Found) -> Value {
    let header = found.header();
    json!({
        "sha256": hex(&found.sha256),
        "kind": if header.since.is_some() { "incremental" } else { "full" },
        "since": header.since,
        "revision": header.revision,
        "totalKey": found.counts.keys,
        "totalSize": found.file_bytes,
        "changes": found.counts.changes,
        "leases": found.counts.leases,
        "compactRevision": found.counts.compacted,
        "cluster": format!("{:016x}", header.cluster()),
        "raftIndex": header.raft_index,
        "raftTerm": header.raft_term,
        "created": found.manifest.as_ref().map(|manifest| &manifest.created),
        "program": found.manifest.as_ref().map(|manifest| &manifest.program),
    })
}
