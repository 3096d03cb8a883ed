//! A state that was left in an unused data folder, for a new cluster to begin with: a snapshot to restore.
//!
//! Its life: found at start and checked (a bad one ends the start, with nothing changed) → loaded into the state
//! machine's files → a cluster is founded, by a member that has it ([`crate::founding`]): the founding mark and
//! membership take the place of those in the state, and then the identity names the cluster → the file is removed.
//!
//! Until the identity names a cluster, the folder belongs to none: whoever stops before that begins again with
//! loading. From then on what is left of the file is removed, and never loaded. A member that a founder without the same
//! state takes along gives its own up, and is filled by the leader.

use std::path::Path;

use base::ClusterId;

use crate::identity::Folder;
use crate::node::{NodeConfig, StartError};

/// What floor 5 does with such a file; errors are for people.
pub struct Seed {
    /// The name of the file in the data folder.
    pub file: &'static str,
    /// Reads the file from end to end; the number is the same for the same state.
    pub check: SeedStep<u64>,
    /// Replaces the state in the data folder by the file's.
    pub load: SeedStep<()>,
}

pub type SeedStep<T> = Box<dyn FnOnce(&Path) -> Result<T, String> + Send>;

/// Loads the folder's seed; a number by which members compare what they begin with, zero for nothing.
pub(crate) fn load(seed: Seed, folder: &Folder, config: &NodeConfig) -> Result<u64, StartError> {
    let path = folder.path().join(seed.file);
    if !path.exists() {
        return Ok(0);
    }
    let identity = folder.read()?;
    if identity.is_some_and(|identity| identity.cluster != ClusterId::default()) {
        folder.remove(seed.file)?;
        return Ok(0);
    }
    if !config.bootstrap {
        return Err(StartError::State(format!(
            "{} waits for a new cluster to begin with, but this node may not found one: allow it, or remove the file",
            path.display()
        )));
    }
    let state = (seed.check)(&path).map_err(StartError::State)?;
    // The folder is ours before anything else is written into it.
    folder.identity(config.node)?;
    (seed.load)(&path).map_err(StartError::State)?;
    Ok(state.max(1))
}
