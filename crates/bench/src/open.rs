//! `bench open`: how long a large store takes from its start to its first linearizable read.
//!
//! One node, filled with values that do not compress, stopped politely. Before each start the kernel is asked to forget
//! the files, so that they come from the disk as after a reboot.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::Path,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Cluster, Kind, System},
    compare::median,
    load, progress,
    results::OfKind,
    workload::KeySpace,
};

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Bytes of values to fill in, in GB
    #[arg(long, default_value_t = 10.0)]
    pub gigabytes: f64,
    #[arg(long, default_value_t = 1024)]
    pub value_bytes: usize,
    /// Starts; the median is reported
    #[arg(long, default_value_t = 3)]
    pub starts: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    pub system: Kind,
    pub version: String,
    pub value_bytes: usize,
    pub keys: u64,
    pub fill_seconds: f64,
    pub disk_bytes: u64,
    pub seconds: f64,
}

impl OfKind for Opened {
    fn kind(&self) -> Kind {
        self.system
    }
}

pub async fn run(options: &Options, systems: &[System], folder: &Path) -> Result<Vec<Opened>> {
    let mut found = Vec::new();
    for system in systems {
        found.push(one(options, system, folder).await.context(system.kind.name())?);
    }
    Ok(found)
}

async fn one(options: &Options, system: &System, folder: &Path) -> Result<Opened> {
    let keys = (options.gigabytes * 1e9 / options.value_bytes as f64) as u64;
    let space = KeySpace::new(keys, options.value_bytes);
    let mut cluster = Cluster::start(system, 1, folder).await?;
    let bar = progress::keys(keys, &format!("filling {}", system.kind.name()));
    load::fill(&cluster.endpoints()[0], &space, |keys| bar.inc(keys)).await?;
    let fill_seconds = bar.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let mut seconds = Vec::new();
    let mut disk_bytes = 0;
    for _ in 0..options.starts {
        cluster.stop().await?;
        disk_bytes = forget(cluster.folder())?;
        seconds.push(cluster.start_again().await?.as_secs_f64());
    }
    cluster.stop().await?;
    let (value_bytes, seconds) = (options.value_bytes, median(seconds));
    let version = system.version.clone();
    Ok(Opened { system: system.kind, version, value_bytes, keys, fill_seconds, disk_bytes, seconds })
}

/// Syncs all files below a folder and asks the kernel to drop them from its cache. Returns their size on disk.
fn forget(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            bytes += forget(&path)?;
        } else if metadata.is_file() {
            bytes += metadata.blocks() * 512;
            let file = File::open(&path)?;
            file.sync_all()?;
            // SAFETY: the descriptor is the open file's own. The call is advice; its outcome does not matter.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }
    Ok(bytes)
}
