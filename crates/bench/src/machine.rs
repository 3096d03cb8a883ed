//! What the measurements ran on: processor, memory, kernel, file system, and what a sync costs there.

use std::{
    ffi::CString,
    fs::{self, File},
    io::Write,
    os::{fd::AsRawFd, unix::ffi::OsStrExt},
    path::Path,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;

const TMPFS_MAGIC: i64 = 0x0102_1994;
const SYNCS: usize = 200;
const SYNC_BYTES: usize = 4096;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub processors: usize,
    pub memory_gib: f64,
    pub kernel: String,
    pub file_system: String,
    /// One 4 KiB write and fdatasync into a file that was written before, median.
    pub sync_ms: f64,
    /// Seconds since 1970 when this was looked at.
    pub seen_at: u64,
}

impl Machine {
    pub fn look(folder: &Path) -> Result<Machine> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| -> String {
            let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal");
        let memory_kib: f64 = memory_kib.trim_end_matches(" kB").parse().unwrap_or_default();
        Ok(Machine {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            processors: std::thread::available_parallelism()?.get(),
            memory_gib: memory_kib / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system(&fs::canonicalize(folder)?, &read("/proc/mounts")),
            sync_ms: sync_ms(folder)?,
            seen_at: std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs(),
        })
    }
}

/// Refuses a folder in memory: every sync there is free, and every figure of a write would be a lie.
pub fn ensure_on_disk(folder: &Path) -> Result<()> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: `statfs` is plain numbers, for which zeroes are a value; the path ends in zero and outlives the call.
    let kind = unsafe {
        let mut found: libc::statfs = std::mem::zeroed();
        ensure!(libc::statfs(path.as_ptr(), &mut found) == 0, "{} cannot be looked at", folder.display());
        found.f_type
    };
    ensure!(kind != TMPFS_MAGIC, "{} lies in memory; name a folder on a disk with --folder", folder.display());
    Ok(())
}

/// The type of the mount that holds the folder: of those above it, the one with the longest path.
fn file_system(folder: &Path, mounts: &str) -> String {
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|fields| fields.len() > 2);
    let above = fields.filter(|fields| folder.starts_with(fields[1]));
    above.max_by_key(|fields| fields[1].len()).map(|fields| fields[2].to_owned()).unwrap_or_default()
}

fn sync_ms(folder: &Path) -> Result<f64> {
    let place = tempfile::Builder::new().prefix("bench-sync-").tempdir_in(folder)?;
    let mut file = File::create(place.path().join("file")).context("a file to sync")?;
    file.write_all(&vec![0; SYNC_BYTES * SYNCS])?;
    file.sync_all()?;
    let mut file = File::options().write(true).open(place.path().join("file"))?;
    let mut latencies = Histogram::new();
    for _ in 0..SYNCS {
        let begun = Instant::now();
        file.write_all(&[1; SYNC_BYTES])?;
        // SAFETY: the descriptor is the open file's own.
        let done = unsafe { libc::fdatasync(file.as_raw_fd()) };
        ensure!(done == 0, "fdatasync failed");
        latencies.record(begun.elapsed());
    }
    Ok(latencies.quantile(0.5).as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\n";
        assert_eq!(file_system(Path::new("/home/x"), mounts), "ext4");
        assert_eq!(file_system(Path::new("/tmp/x"), mounts), "tmpfs");
        assert_eq!(file_system(Path::new("/tmp/disk/y"), mounts), "xfs");
        assert_eq!(file_system(Path::new("/tmpx"), mounts), "ext4");
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let machine = Machine::look(Path::new(".")).unwrap();
        assert!(machine.processors > 0 && machine.memory_gib > 0.0 && machine.sync_ms > 0.0);
        assert!(!machine.kernel.is_empty());
        assert!(ensure_on_disk(Path::new("/no such folder")).is_err());
    }
}
