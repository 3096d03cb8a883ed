//! A state that was left in an unused data folder: a backup, restored or unpacked there. It is what marks a restored folder.
//!
//! Such a folder never rewinds a cluster. What it means at the start:
//!
//! | this node | the cluster | what becomes of it |
//! |---|---|---|
//! | belongs to one already | | the files are removed, the node's own state is kept |
//! | may not found (`bootstrap = false`) | runs | the node comes back as the new incarnation of its member; the leader fills it |
//! | may not found | is not to be found | the node waits, and says so |
//! | may found | runs | as above: the leader fills it |
//! | may found | no initial member belongs to one | the state is loaded, and a new cluster begins with it |
//!
//! Its life where it may found: found at start and checked (a bad one ends the start, with nothing changed) → all initial
//! members answer that they belong to no cluster → loaded into the state machine's files → a cluster is founded, by a member
//! that has it ([`crate::founding`]): the founding mark and membership take the place of those in the state, and then
//! the identity names the cluster → the files are removed.
//!
//! Until the identity names a cluster, the folder belongs to none: whoever stops before that begins again with
//! loading. From then on what is left of the files is removed, and never loaded. A member that a founder without the same
//! state takes along gives its own up, and is filled by the leader.

use std::path::{Path, PathBuf};

use base::ClusterId;
use parking_lot::Mutex;

use crate::identity::Folder;
use crate::node::{NodeConfig, StartError};

/// What floor 5 does with such a file; errors are for people.
pub struct Seed {
    /// The name of the file in the data folder. Files with the same stem belong to it.
    pub file: &'static str,
    /// Reads the file, and what belongs to it, from end to end; the number is the same for the same state.
    pub check: SeedStep<u64>,
    /// Replaces the state in the data folder by the file's.
    pub load: SeedStep<()>,
}

pub type SeedStep<T> = Box<dyn FnOnce(&Path) -> Result<T, String> + Send>;

/// A seed that waits to be loaded, or to give way to a cluster that runs.
pub(crate) struct Waiting {
    /// By this number members compare what they begin with; zero: nothing that a cluster could begin with.
    pub number: u64,
    /// Whether the folder holds one at all.
    pub exists: bool,
    pub file: &'static str,
    path: PathBuf,
    /// Taken when it is carried out.
    load: Mutex<Option<SeedStep<()>>>,
    /// Held while it is.
    loading: Mutex<bool>,
}

impl Waiting {
    /// Whether a cluster may be founded as far as this node's state goes.
    pub fn is_ready(&self) -> bool {
        self.number == 0 || self.loading.try_lock().is_some_and(|loaded| *loaded)
    }

    /// Loads the state, once. Takes as long as it takes.
    pub fn load(&self) -> Result<(), String> {
        let mut loaded = self.loading.lock();
        if let Some(load) = self.load.lock().take() {
            load(&self.path)?;
            *loaded = true;
        }
        Ok(())
    }
}

/// Looks for the folder's seed and checks it.
pub(crate) fn find(seed: Seed, folder: &Folder, config: &NodeConfig) -> Result<Waiting, StartError> {
    let path = folder.path().join(seed.file);
    let identity = folder.read()?;
    let mut waiting = Waiting {
        number: 0,
        exists: path.exists(),
        file: seed.file,
        path: path.clone(),
        load: Mutex::new(None),
        loading: Mutex::new(false),
    };
    if identity.is_some_and(|identity| identity.cluster != ClusterId::default()) {
        if folder.remove_seed(seed.file)? {
            tracing::warn!(
                target: "chainfire_storage",
                "What was left of a restore is removed: this node belongs to a cluster, and its state is never rewound"
            );
        }
        waiting.exists = false;
        return Ok(waiting);
    }
    if !waiting.exists {
        return match folder.seed_files(seed.file)?.first() {
            None => Ok(waiting),
            Some(part) => Err(StartError::State(format!(
                "{} is a part of a restore, but there is no {} beside it: an incremental backup needs its full one, and an \
                 interrupted restore is to be run again (chainfire-client snapshot restore) code=CF5001",
                folder.path().join(part).display(),
                seed.file
            ))),
        };
    }
    if !config.bootstrap {
        tracing::info!(
            target: "chainfire_storage",
            "A restored backup lies in the data folder, but this node founds no cluster: it comes back to the running one, \
             whose leader fills it, and the backup is not loaded, file={}",
            path.display()
        );
        return Ok(waiting);
    }
    waiting.number = (seed.check)(&path).map_err(StartError::State)?.max(1);
    tracing::info!(
        target: "chainfire_storage",
        "A restored backup lies in the data folder: it is loaded when a new cluster is founded, and gives way to one that \
         runs, file={}",
        path.display()
    );
    waiting.load = Mutex::new(Some(seed.load));
    Ok(waiting)
}
