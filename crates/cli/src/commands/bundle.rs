//! `debug bundle`: what others need to look into a cluster's trouble, in one archive that can be given away.
//!
//! ```text
//! chainfire-debug-TIME/
//!   manifest.json     what is here, what could not be had and why, by which client
//!   machine.txt       this machine: system, memory, processors, time
//!   cluster.json      `status --cluster`: members, who answers, what is wrong
//!   node-N/           of each member that answers: status.json alarms.json hashkv.json metrics.txt health.json version.json
//!   logs/ config/     the end of the node's journal and its configuration, or files that were named; without secrets
//! ```
//!
//! Logs and configuration are those of the machine that this runs on. Where no node is installed there are none, and the
//! manifest says so.
//!
//! No key, value, password or private key is in it: none of the calls returns one, and texts pass [`crate::redact`]. One
//! that cannot be had is named in the manifest and stops nothing. The archive is for its maker's eyes (mode 0600)
//! and is there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use proto::etcdserverpb::alarm_request::AlarmAction;
use proto::etcdserverpb::{AlarmRequest, AlarmType, HashKvRequest};
use serde_json::{Value, json};

use super::cluster::{self, Asked};
use super::status::status_json;
use crate::args::BundleArgs;
use crate::connect::{self, Client, Repeat};
use crate::failure::{BUNDLE_FAILED, Failure};
use crate::output::{Format, Output};
use crate::redact::redact;

/// What is taken of a file: its end.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// The node's lines of the journal: about as much as is taken of a file.
const JOURNAL: &[&str] = &["--unit=chainfire", "--lines=50000", "--no-pager", "--quiet", "--output=short-iso-precise"];

pub async fn run(client: &Client, args: BundleArgs, out: &mut Output) -> Result<(), Failure> {
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = format!("chainfire-debug-{now_s}");
    let path = args.file.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let mut bundle = Bundle::create(&path, name, now_s).map_err(|error| failed(&path, &error))?;
    bundle.gather(client, &args).await.map_err(|error| failed(&path, &error))?;
    let (entries, missing) = (bundle.entries.len(), bundle.missing.clone());
    bundle.finish(client).map_err(|error| failed(&path, &error))?;
    match out.format_of_lines() {
        Format::Json => out.json(&json!({ "file": path, "entries": entries, "missing": missing }))?,
        _ => {
            for (what, why) in &missing {
                out.line(format!("missing: {what}: {why}"))?;
            }
            out.line(format!("{entries} entries in {}", path.display()))?;
        }
    }
    Ok(())
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::local(format!("{}: cannot be made: {error}", path.display())).code(BUNDLE_FAILED)
}

/// A file that is removed again unless it became what it should be.
struct Draft(PathBuf);

impl Drop for Draft {
    fn drop(&mut self) {
        // Not there any more if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}

/// An archive in the making.
struct Bundle {
    path: PathBuf,
    draft: Draft,
    archive: tar::Builder<GzEncoder<File>>,
    /// The folder that everything in it lies in.
    name: String,
    now_s: u64,
    entries: Vec<String>,
    /// What, and why.
    missing: Vec<(String, String)>,
}

impl Bundle {
    fn create(path: &Path, name: String, now_s: u64) -> io::Result<Bundle> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(".draft");
        let draft = Draft(PathBuf::from(draft));
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&draft.0)?;
        let archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        let path = path.to_owned();
        Ok(Bundle { path, draft, archive, name, now_s, entries: Vec::new(), missing: Vec::new() })
    }

    async fn gather(&mut self, client: &Client, args: &BundleArgs) -> io::Result<()> {
        self.add("machine.txt", machine(self.now_s).as_bytes())?;
        match cluster::look(client).await {
            Ok(view) => {
                self.add_json("cluster.json", &view.json())?;
                for asked in &view.members {
                    self.member(client, asked).await?;
                }
            }
            Err(why) => self.miss("cluster.json", why.text),
        }
        if args.log.is_empty() {
            self.add_text("logs/journal.log", journal())?;
        }
        let config = if args.config.is_empty() { configuration(&args.node_config) } else { args.config.clone() };
        for (folder, files) in [("logs", &args.log), ("config", &config)] {
            for (at, file) in files.iter().enumerate() {
                // Two files may have the same name.
                let base = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
                let text = end_of(file).map_err(|error| format!("{}: {error}", file.display()));
                self.add_text(&format!("{folder}/{}-{base}", at + 1), text)?;
            }
        }
        Ok(())
    }

    /// Without its secrets, or why it cannot be had.
    fn add_text(&mut self, entry: &str, text: Result<String, String>) -> io::Result<()> {
        match text {
            Ok(text) => self.add(entry, redact(&text).as_bytes()),
            Err(why) => {
                self.miss(entry, why);
                Ok(())
            }
        }
    }

    async fn member(&mut self, client: &Client, asked: &Asked) -> io::Result<()> {
        let folder = format!("node-{}", asked.member.node_id);
        let status = match &asked.answer {
            Ok(status) => status,
            Err(why) => {
                self.miss(&folder, format!("{} {why}", asked.endpoint).trim_start().to_owned());
                return Ok(());
            }
        };
        self.add_json(&format!("{folder}/status.json"), &status_json(&asked.endpoint, status))?;
        let only = client.only(&asked.endpoint);
        let request = AlarmRequest { action: AlarmAction::Get as i32, member_id: 0, alarm: AlarmType::None as i32 };
        let ask = |channel| async move { connect::maintenance(channel).alarm(request).await };
        let alarms = only.call(Repeat::Safe, ask).await.map(|answer| {
            let name = |kind| AlarmType::try_from(kind).map_or("UNKNOWN", |kind| kind.as_str_name());
            let alarms =
                answer.alarms.iter().map(|alarm| json!({ "node_id": alarm.member_id, "alarm": name(alarm.alarm) }));
            json!(alarms.collect::<Vec<_>>())
        });
        self.add_answer(&format!("{folder}/alarms.json"), alarms)?;
        // The same revision everywhere, so that hashes can be compared; what is compacted there has no hash.
        let ask = |channel| async move { connect::maintenance(channel).hash_kv(HashKvRequest { revision: 0 }).await };
        let hash = only.call(Repeat::Safe, ask).await.map(|answer| {
            json!({
                "hash": answer.hash,
                "hash_revision": answer.hash_revision,
                "compact_revision": answer.compact_revision,
            })
        });
        self.add_answer(&format!("{folder}/hashkv.json"), hash)?;
        for (page, file) in [("/metrics", "metrics.txt"), ("/health", "health.json"), ("/version", "version.json")] {
            let entry = format!("{folder}/{file}");
            match only.page(&asked.endpoint, page).await {
                Ok(text) => self.add(&entry, &text)?,
                Err(why) => self.miss(&entry, why.text),
            }
        }
        Ok(())
    }

    fn add_answer(&mut self, entry: &str, answer: Result<Value, Failure>) -> io::Result<()> {
        match answer {
            Ok(value) => self.add_json(entry, &value),
            Err(why) => {
                self.miss(entry, why.text);
                Ok(())
            }
        }
    }

    fn add_json(&mut self, entry: &str, value: &Value) -> io::Result<()> {
        self.add(entry, &serde_json::to_vec_pretty(value)?)
    }

    fn add(&mut self, entry: &str, bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.now_s);
        self.archive.append_data(&mut header, format!("{}/{entry}", self.name), bytes)?;
        self.entries.push(entry.to_owned());
        Ok(())
    }

    fn miss(&mut self, what: &str, why: String) {
        self.missing.push((what.to_owned(), why));
    }

    fn finish(mut self, client: &Client) -> io::Result<()> {
        let missing: Vec<_> = self.missing.iter().map(|(what, why)| json!({ "what": what, "why": why })).collect();
        let manifest = json!({
            "made_at_unix_s": self.now_s,
            "client_version": env!("CARGO_PKG_VERSION"),
            "endpoints": client.endpoints(),
            "entries": self.entries,
            "missing": missing,
            "left_out": "keys, values, passwords, private keys",
        });
        self.add_json("manifest.json", &manifest)?;
        let file = self.archive.into_inner()?.finish()?;
        file.sync_all()?;
        fs::rename(&self.draft.0, &self.path)
    }
}

/// What the node on this machine is configured by: its file and the drop-ins beside it, in the order in which it reads them.
fn configuration(file: &Path) -> Vec<PathBuf> {
    let mut folder = file.as_os_str().to_owned();
    folder.push(".d");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut drop_ins: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "toml")).collect();
    drop_ins.sort();
    [vec![file.to_owned()], drop_ins].concat()
}

/// The end of what the node on this machine has logged.
fn journal() -> Result<String, String> {
    let said = Command::new("journalctl").args(JOURNAL).output().map_err(|error| format!("journalctl: {error}"))?;
    if said.stdout.is_empty() {
        let why = String::from_utf8_lossy(&said.stderr).trim().replace('\n', "; ");
        return Err(format!(
            "journalctl: {}",
            if why.is_empty() { "it has no lines of chainfire.service" } else { &why }
        ));
    }
    let from = said.stdout.len().saturating_sub(FILE_BYTES_MAX as usize);
    Ok(whole_lines(&said.stdout[from..], from > 0))
}

fn end_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    if length > FILE_BYTES_MAX {
        file.seek(SeekFrom::Start(length - FILE_BYTES_MAX))?;
    }
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(whole_lines(&bytes, length > FILE_BYTES_MAX))
}

/// The text without what may be half a line at its beginning, which might have lost the name of its secret.
fn whole_lines(bytes: &[u8], begins_anywhere: bool) -> String {
    let text = String::from_utf8_lossy(bytes);
    match text.split_once('\n') {
        _ if !begins_anywhere => text.into_owned(),
        Some((_, whole)) => whole.to_owned(),
        None => String::new(),
    }
}

/// What the kernel says about this machine.
fn machine(now_s: u64) -> String {
    let of = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let first = |path: &str, prefix: &str| {
        let text = of(path);
        text.lines().find(|line| line.starts_with(prefix)).unwrap_or_default().to_owned()
    };
    let processors = of("/proc/cpuinfo").lines().filter(|line| line.starts_with("processor")).count();
    let lines = [
        format!("time: {now_s} (seconds since 1970)"),
        format!("kernel: {}", of("/proc/sys/kernel/osrelease").trim()),
        first("/etc/os-release", "PRETTY_NAME="),
        format!("architecture: {}", std::env::consts::ARCH),
        format!("processors: {processors}"),
        format!("load: {}", of("/proc/loadavg").trim()),
        first("/proc/meminfo", "MemTotal:"),
        first("/proc/meminfo", "MemAvailable:"),
        format!("uptime: {}", of("/proc/uptime").trim()),
        format!("open files: {}", first("/proc/self/limits", "Max open files")),
    ];
    lines.join("\n") + "\n"
}
