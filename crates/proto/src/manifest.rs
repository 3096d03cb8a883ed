//! What a backup archive says of itself: `restore.sha256`, the last file in it, and beside the state once it is unpacked.
//!
//! ```text
//! # chainfire backup, version 1
//! # kind: full
//! # cluster: 00c1a5f3b2d94e07
//! # revision: 1234
//! # raft_index: 5678
//! # raft_term: 3
//! # created: 2026-11-24T20:15:00Z
//! # program: chainfire-client 0.1.0
//! # base: none
//! 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  restore.snapshot
//! ```
//!
//! Below the comments it is what `sha256sum --check restore.sha256` reads, so that an unpacked backup can be checked with
//! what every machine has. `base` of an incremental backup is the revision that its changes follow on.
//!
//! [`Manifest::decode`] takes nothing but what [`Manifest::encode`] writes: an unknown line, a name with a path in it or a
//! repeated one is an error, so that an archive can hold nothing that its manifest does not name.

use std::fmt::Write as _;

/// The manifest's name in an archive and in a data folder.
pub const MANIFEST_FILE: &str = "restore.sha256";
/// No manifest is longer.
pub const MANIFEST_BYTES_MAX: usize = 4096;

const FIRST_LINE: &str = "# chainfire backup, version 1";
const FILES_MAX: usize = 8;
const TEXT_BYTES_MAX: usize = 128;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    pub cluster: u64,
    pub revision: i64,
    pub raft_index: u64,
    pub raft_term: u64,
    /// RFC 3339, UTC.
    pub created: String,
    /// Who wrote the archive: name and version.
    pub program: String,
    /// The revision that an incremental backup follows on; `None`: a full one.
    pub base: Option<i64>,
    /// (name, SHA-256) of every other file.
    pub files: Vec<(String, [u8; 32])>,
}

impl Manifest {
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let kind = if self.base.is_some() { "incremental" } else { "full" };
        let base = self.base.map_or("none".to_owned(), |base| base.to_string());
        let Manifest { cluster, revision, raft_index, raft_term, created, program, .. } = self;
        let written = write!(
            out,
            "{FIRST_LINE}\n# kind: {kind}\n# cluster: {cluster:016x}\n# revision: {revision}\n# raft_index: {raft_index}\n\
             # raft_term: {raft_term}\n# created: {created}\n# program: {program}\n# base: {base}\n"
        );
        written.expect("writing into a string cannot fail");
        for (name, digest) in &self.files {
            out.push_str(&hex(digest));
            out.push_str("  ");
            out.push_str(name);
            out.push('\n');
        }
        out
    }

    /// # Errors
    /// What is wrong, for people.
    pub fn decode(text: &[u8]) -> Result<Manifest, String> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err("it is too long".to_owned());
        }
        let text = std::str::from_utf8(text).map_err(|_| "it is no text".to_owned())?;
        let mut lines = text.split_terminator('\n');
        if lines.next() != Some(FIRST_LINE) || !text.ends_with('\n') {
            return Err("it is of another kind or version".to_owned());
        }
        let mut take = |key: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix("# ")).and_then(|line| line.strip_prefix(key));
            line.and_then(|line| line.strip_prefix(": ")).ok_or_else(|| format!("it does not say its {key}"))
        };
        let kind = take("kind")?;
        let cluster = take("cluster")?;
        let cluster = u64::from_str_radix(cluster, 16).ok().filter(|_| cluster.len() == 16);
        let number = |key: &str, text: &str| text.parse::<u64>().map_err(|_| format!("its {key} is no number"));
        let mut manifest = Manifest {
            cluster: cluster.ok_or("its cluster is no number of 16 digits")?,
            revision: revision("revision", take("revision")?)?,
            raft_index: number("raft_index", take("raft_index")?)?,
            raft_term: number("raft_term", take("raft_term")?)?,
            created: short(take("created")?)?,
            program: short(take("program")?)?,
            base: match take("base")? {
                "none" => None,
                base => Some(revision("base", base)?),
            },
            files: Vec::new(),
        };
        if kind != if manifest.base.is_some() { "incremental" } else { "full" } {
            return Err("its kind and its base contradict each other".to_owned());
        }
        for line in lines {
            let (digest, name) = line.split_once("  ").ok_or_else(|| format!("a line makes no sense: {line}"))?;
            let digest = unhex(digest).ok_or_else(|| format!("a digest makes no sense: {digest}"))?;
            let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'.');
            let taken = manifest.files.iter().any(|(known, _)| known == name);
            if !plain || name.is_empty() || name.starts_with('.') || name == MANIFEST_FILE || taken {
                return Err(format!("it names `{name}`"));
            }
            manifest.files.push((name.to_owned(), digest));
        }
        if manifest.files.is_empty() || manifest.files.len() > FILES_MAX {
            return Err(format!("it names {} files", manifest.files.len()));
        }
        if manifest.encode() != text {
            return Err("it is written as no program of ours writes it".to_owned());
        }
        Ok(manifest)
    }

    /// The digest of a file that it names.
    pub fn digest(&self, name: &str) -> Option<&[u8; 32]> {
        self.files.iter().find(|(known, _)| known == name).map(|(_, digest)| digest)
    }
}

/// Lowercase hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        write!(out, "{byte:02x}").expect("writing into a string cannot fail");
        out
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 || !bytes.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut out = [0; 32];
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(out)
}

fn revision(key: &str, text: &str) -> Result<i64, String> {
    text.parse().ok().filter(|revision| *revision >= 0).ok_or_else(|| format!("its {key} is no revision"))
}

fn short(text: &str) -> Result<String, String> {
    let fine = text.len() <= TEXT_BYTES_MAX && text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if fine { Ok(text.to_owned()) } else { Err("a line of it is too long or no plain text".to_owned()) }
}
