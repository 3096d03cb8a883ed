//! What was measured, kept as `benchmarks.json` beside the page made from it.
//!
//! Each subcommand replaces its own part and leaves the others, so that the page always shows the last full run of each.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Kind, System},
    compare::Measured,
    failover::Failover,
    logs::LogFigures,
    machine::Machine,
    memory::Memory,
    open::Opened,
    report,
};

const DATA: &str = "benchmarks.json";
pub const PAGE: &str = "benchmarks.md";

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub machine: Machine,
    #[serde(default)]
    pub compare: Option<Compared>,
    #[serde(default)]
    pub memory: Vec<Memory>,
    #[serde(default)]
    pub open: Vec<Opened>,
    #[serde(default)]
    pub failover: Vec<Failover>,
    #[serde(default)]
    pub log: Vec<LogFigures>,
}

/// One run of the matrix.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compared {
    pub versions: BTreeMap<Kind, String>,
    pub rounds: usize,
    pub seconds: f64,
    /// Whether etcd was restarted between filling and reading.
    pub etcd_restarted: bool,
    pub measured: Vec<Measured>,
}

impl Compared {
    pub fn new(systems: &[System], rounds: usize, seconds: f64) -> Compared {
        let versions = systems.iter().map(|system| (system.kind, system.version.clone())).collect();
        let etcd_restarted = systems.iter().any(System::reads_need_restart);
        Compared { versions, rounds, seconds, etcd_restarted, measured: Vec::new() }
    }

    pub fn with(&self, measured: &[Measured]) -> Compared {
        Compared { measured: measured.to_vec(), ..self.clone() }
    }
}

impl Results {
    /// What is kept in a folder; nothing at all is the beginning.
    pub fn load(folder: &Path) -> Result<Results> {
        let path = folder.join(DATA);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Results::default()),
            Err(error) => Err(error).context(path.display().to_string()),
        }
    }

    /// Writes the data and the page. `measured_in` is the folder whose disk was measured.
    pub fn save(&mut self, folder: &Path, measured_in: &Path) -> Result<()> {
        self.machine = Machine::look(measured_in)?;
        self.write(folder)
    }

    /// Writes the data and the page as they are.
    pub fn write(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join(DATA), serde_json::to_string_pretty(self)? + "\n")?;
        let page = folder.join(PAGE);
        let before = fs::read_to_string(&page).unwrap_or_default();
        fs::write(&page, report::page(self, &before)).with_context(|| page.display().to_string())
    }
}

/// Something measured of one of the systems.
pub trait OfKind {
    fn kind(&self) -> Kind;
}

/// Puts what was found in the place of what was known of the same systems.
pub fn replace<T: OfKind>(known: &mut Vec<T>, found: Vec<T>) {
    known.retain(|old| found.iter().all(|new| new.kind() != old.kind()));
    known.extend(found);
    known.sort_by_key(OfKind::kind);
}

/// The one of a kind.
pub fn of<T: OfKind>(known: &[T], kind: Kind) -> Option<&T> {
    known.iter().find(|one| one.kind() == kind)
}
