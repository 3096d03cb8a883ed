//! Who a data folder is. The file `identity` holds the node, the cluster and the peer: one incarnation of the folder
//! as Raft knows it. It is drawn when the folder is first used, and anew when the log was lost or damaged, so
//! that nothing ever acts under the identity of a log it does not have.
//!
//! | key | meaning |
//! |---|---|
//! | `node` | the node's id; 0 until a cluster named it |
//! | `peer` | this incarnation's peer id, hexadecimal |
//! | `cluster` | the cluster, hexadecimal; 0 until one was founded or joined |
//! | `voted` | whether this incarnation may have voted or acknowledged anything |
//! | `wished` | the id that the configuration gives the node, where that one is another's; absent otherwise |
//!
//! It is a normal file and not a dot file, so that emptying the folder by `rm -rf DIR/*` takes it along.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use base::{ClusterId, NodeId, PeerId};

use crate::{clock, rebuilds, recovery};

const FILE: &str = "identity";
const TEMPORARY: &str = "identity.tmp";
const LOCK: &str = "owner.lock";
/// Why this incarnation is to be given up at the next start ([`crate::heal`]).
pub(crate) const QUARANTINE: &str = "quarantine";
/// Why the state is not to be used, while the log is.
pub(crate) const DAMAGED: &str = "damaged";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    pub node: NodeId,
    pub peer: PeerId,
    pub cluster: ClusterId,
    pub voted: bool,
    pub wished: NodeId,
}

/// A data folder in use by this process.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("data folder {path}: {error}; name another with --data-dir or correct its permissions")]
    Unusable { path: PathBuf, error: io::Error },
    #[error("data folder {path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("data folder {path} is not empty and holds no `identity`: it is not ours; name an empty one")]
    Foreign { path: PathBuf },
    #[error("data folder {path} belongs to node {theirs}, but this is node {ours}; name the right folder or node id")]
    OtherNode { path: PathBuf, ours: NodeId, theirs: NodeId },
    #[error("{path} cannot be understood: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("{path} is no data folder of a node: there is no `identity` in it; name the right one with --data-dir")]
    Unused { path: PathBuf },
    #[error(
        "data folder {path} is in the middle of a recovery that was interrupted; run `chainfire recover --unsafe` on it \
         again"
    )]
    HalfRecovered { path: PathBuf },
}

impl Identity {
    /// As it lies in the file.
    pub fn encode(&self) -> String {
        let Identity { node, peer, cluster, voted, wished } = self;
        let mut text = format!("node = {node}\npeer = \"{peer}\"\ncluster = \"{cluster}\"\nvoted = {voted}\n");
        if *wished != NodeId::default() {
            text.push_str(&format!("wished = {wished}\n"));
        }
        text
    }

    /// What the file says; the error is for people.
    pub fn decode(text: &str) -> Result<Identity, String> {
        let mut identity = Identity::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (key, value) = line.split_once('=').ok_or_else(|| format!("`{line}` is no `key = value`"))?;
            let value = value.trim().trim_matches('"');
            let hex = || u64::from_str_radix(value, 16).map_err(|error| format!("{}: {error}", key.trim()));
            match key.trim() {
                "node" => identity.node = NodeId(value.parse().map_err(|error| format!("node: {error}"))?),
                "peer" => identity.peer = PeerId(hex()?),
                "cluster" => identity.cluster = ClusterId(hex()?),
                "voted" => identity.voted = value == "true",
                "wished" => identity.wished = NodeId(value.parse().map_err(|error| format!("wished: {error}"))?),
                other => return Err(format!("unknown key `{other}`")),
            }
        }
        if identity.peer.is_none() { Err("no peer id".to_owned()) } else { Ok(identity) }
    }

    /// As it is under a configuration that says `node`; zero takes whatever node the folder is.
    fn configured(self, node: NodeId, path: &Path) -> Result<Identity, IdentityError> {
        let named = ![NodeId::default(), self.wished].contains(&node) && self.node != NodeId::default();
        if named && self.node != node {
            return Err(IdentityError::OtherNode { path: path.to_owned(), ours: node, theirs: self.node });
        }
        Ok(Identity { node: if self.node == NodeId::default() { node } else { self.node }, ..self })
    }
}

impl Folder {
    /// Takes a folder into use, making it if there is none. One that holds something else than `seed` and what belongs to
    /// it must be ours already. Nothing in it is changed when this fails.
    pub fn open(path: &Path, seed: &str) -> Result<Folder, IdentityError> {
        let unusable = |error| IdentityError::Unusable { path: path.to_owned(), error };
        if !path.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(unusable)?;
        }
        if !path.join(FILE).exists() && !is_unused(path, seed).map_err(unusable)? {
            return Err(IdentityError::Foreign { path: path.to_owned() });
        }
        if path.join(recovery::RECOVERING).exists() {
            return Err(IdentityError::HalfRecovered { path: path.to_owned() });
        }
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(path.join(LOCK));
        Folder::lock(path, open.map_err(unusable)?)
    }

    /// Which node a start would be, in this folder and with a configuration that says `node`; zero is known later. Nothing is
    /// made, changed or held.
    pub fn node_in(path: &Path, node: NodeId) -> Result<NodeId, IdentityError> {
        let identity = read(path)?.map(|identity| identity.configured(node, path)).transpose()?;
        Ok(identity.map_or(node, |identity| identity.node))
    }

    /// Takes the folder of a stopped node, to look at it or to mend it. Nothing is made or changed in it.
    pub fn stopped(path: &Path) -> Result<Folder, IdentityError> {
        let unusable = |error| IdentityError::Unusable { path: path.to_owned(), error };
        if !path.join(FILE).try_exists().map_err(unusable)? {
            return Err(IdentityError::Unused { path: path.to_owned() });
        }
        // Whoever looks need not be able to write; without the file nobody holds the lock, and the folder's will do.
        let lock = File::open(path.join(LOCK)).or_else(|_| File::open(path));
        Folder::lock(path, lock.map_err(unusable)?)
    }

    fn lock(path: &Path, lock: File) -> Result<Folder, IdentityError> {
        // SAFETY: the descriptor is open; the lock goes with it when it is closed.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(IdentityError::InUse { path: path.to_owned() });
        }
        Ok(Folder { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The identity in the folder, if one was drawn.
    pub fn read(&self) -> Result<Option<Identity>, IdentityError> {
        read(&self.path)
    }

    /// The identity in the folder, or one drawn now. `node` zero takes whatever node the folder is.
    pub fn identity(&self, node: NodeId) -> Result<Identity, IdentityError> {
        let Some(identity) = self.read()? else {
            let peer = PeerId(clock::random_u64());
            let identity = Identity { node, peer, ..Identity::default() };
            self.save(&identity)?;
            return Ok(identity);
        };
        identity.configured(node, &self.path)
    }

    /// Replaces the identity, durably and at once.
    pub fn save(&self, identity: &Identity) -> Result<(), IdentityError> {
        let write = || -> io::Result<()> {
            let temporary = self.path.join(TEMPORARY);
            let mut file = File::create(&temporary)?;
            file.write_all(identity.encode().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, self.path.join(FILE))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|error| IdentityError::Unusable { path: self.path.clone(), error })
    }

    /// Removes a file, durably; it may be gone already.
    pub fn remove(&self, name: &str) -> Result<(), IdentityError> {
        let removed = match fs::remove_file(self.path.join(name)) {
            Ok(()) => File::open(&self.path).and_then(|folder| folder.sync_all()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        removed.map_err(|error| IdentityError::Unusable { path: self.path.join(name), error })
    }

    /// The files that wait in the folder for a new cluster to begin with: those that share the stem of `seed`.
    pub fn seed_files(&self, seed: &str) -> Result<Vec<String>, IdentityError> {
        let list = || -> io::Result<Vec<String>> {
            let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            let mut names = names.collect::<io::Result<Vec<_>>>()?;
            names.retain(|name| is_of_seed(name, seed));
            names.sort();
            Ok(names)
        };
        list().map_err(|error| IdentityError::Unusable { path: self.path.clone(), error })
    }

    /// Removes them, durably; whether there were any.
    pub fn remove_seed(&self, seed: &str) -> Result<bool, IdentityError> {
        let names = self.seed_files(seed)?;
        names.iter().try_for_each(|name| self.remove(name))?;
        Ok(!names.is_empty())
    }

    /// Decides, durably, that this incarnation is given up at the next start.
    pub fn mark_lost(&self, why: &str) -> Result<(), IdentityError> {
        self.write(QUARANTINE, why)
    }

    /// What [`Folder::mark_lost`] left.
    pub fn lost_mark(&self) -> Result<Option<String>, IdentityError> {
        self.text(QUARANTINE)
    }

    /// Decides, durably, that the state of this incarnation is not used any more, by no start either.
    pub fn mark_damaged(&self, why: &str) -> Result<(), IdentityError> {
        self.write(DAMAGED, why)
    }

    /// What [`Folder::mark_damaged`] left.
    pub fn damaged_mark(&self) -> Result<Option<String>, IdentityError> {
        self.text(DAMAGED)
    }

    fn text(&self, name: &str) -> Result<Option<String>, IdentityError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(IdentityError::Unusable { path, error }),
        }
    }

    /// Puts everything that belongs to a lost incarnation aside, in `lost-PEER/`, and draws a new one.
    pub fn reincarnate(&self, identity: &Identity) -> Result<Identity, IdentityError> {
        let next = Identity { peer: PeerId(clock::random_u64()), voted: false, ..*identity };
        // The new identity first: if the rest is interrupted, the old log is already nobody's.
        self.save(&next)?;
        let aside = self.path.join(format!("lost-{}", identity.peer));
        let moved = || -> io::Result<()> {
            fs::create_dir_all(&aside)?;
            for entry in fs::read_dir(&self.path)? {
                let name = entry?.file_name();
                if !stays(&name.to_string_lossy()) {
                    fs::rename(self.path.join(&name), aside.join(&name))?;
                }
            }
            File::open(&self.path)?.sync_all()
        };
        moved().map_err(|error| IdentityError::Unusable { path: self.path.clone(), error })?;
        Ok(next)
    }

    /// Finishes a [`Folder::reincarnate`] that was interrupted: as long as the new incarnation has taken no part, what lies
    /// beside `lost-PEER/` is the old one's or nobody's.
    pub fn finish_reincarnation(&self, identity: &Identity) -> Result<(), IdentityError> {
        let sweep = || -> io::Result<()> {
            let mut rest = Vec::new();
            let mut lost = false;
            for entry in fs::read_dir(&self.path)? {
                let entry = entry?;
                let name = entry.file_name();
                let text = name.to_string_lossy();
                lost |= text.starts_with("lost-");
                if !stays(&text) {
                    rest.push(entry.path());
                }
            }
            if identity.voted || !lost {
                return Ok(());
            }
            rest.iter()
                .try_for_each(|path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) })
        };
        sweep().map_err(|error| IdentityError::Unusable { path: self.path.clone(), error })
    }

    /// Removes a part of what lost incarnations left, the oldest first, and of the last one the state before the log; says
    /// what. `None`: there is nothing (more).
    pub fn drop_some_lost(&self) -> Option<PathBuf> {
        let lost = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("lost-");
        let mut all: Vec<_> = fs::read_dir(&self.path).ok()?.flatten().filter(lost).map(|entry| entry.path()).collect();
        all.sort_by_key(|path| fs::metadata(path).and_then(|about| about.modified()).ok());
        let oldest = all.first()?.clone();
        let is_state = |entry: &fs::DirEntry| entry.file_name() != "raft";
        let mut state = fs::read_dir(&oldest).ok()?.flatten().filter(is_state).map(|entry| entry.path()).peekable();
        if all.len() > 1 || state.peek().is_none() {
            fs::remove_dir_all(&oldest).ok()?;
        } else {
            state
                .try_for_each(|path| if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) })
                .ok()?;
        }
        Some(oldest)
    }

    /// Removes what lost incarnations left, once the member was rebuilt.
    pub fn forget_lost(&self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("lost-") {
                // What cannot be removed only takes room.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// The identity in a folder, if one was drawn.
fn read(folder: &Path) -> Result<Option<Identity>, IdentityError> {
    let path = folder.join(FILE);
    match fs::read_to_string(&path) {
        Ok(text) => Identity::decode(&text).map(Some).map_err(|why| IdentityError::Damaged { path, why }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(IdentityError::Unusable { path, error }),
    }
}

/// What is the folder's own, whatever the incarnation.
fn stays(name: &str) -> bool {
    [FILE, LOCK, rebuilds::FILE].contains(&name) || name.starts_with("lost-")
}

fn is_unused(path: &Path, seed: &str) -> io::Result<bool> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && !["lost+found", LOCK, TEMPORARY].contains(&&*name) && !is_of_seed(&name, seed) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether a name is a seed's, or of a file that belongs to it: `restore.changes` to `restore.snapshot`.
fn is_of_seed(name: &str, seed: &str) -> bool {
    let stem = seed.split_once('.').map(|(stem, _)| stem);
    name == seed || stem.is_some_and(|stem| name.strip_prefix(stem).is_some_and(|rest| rest.starts_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    const SEED: &str = "seed.state";

    #[test]
    fn a_seed_may_lie_in_an_unused_folder() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(SEED), "state").unwrap();
        fs::write(dir.path().join("seed.more"), "and more").unwrap();
        let folder = Folder::open(dir.path(), SEED).unwrap();
        assert_eq!(folder.read().unwrap(), None);
        assert_eq!(folder.seed_files(SEED).unwrap(), ["seed.more", SEED]);
        assert!(folder.remove_seed(SEED).unwrap());
        assert!(!folder.remove_seed(SEED).unwrap());
        assert!(!is_of_seed("seedling.state", SEED) && !is_of_seed("identity", SEED));
        folder.remove(SEED).unwrap();
        folder.remove(SEED).unwrap();
        assert!(!dir.path().join(SEED).exists());
    }

    #[test]
    fn who_a_start_would_be_is_told_without_a_trace() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        assert_eq!(Folder::node_in(&dir, NodeId(3)).unwrap(), NodeId(3));
        assert!(!dir.exists());
        let folder = Folder::open(&dir, SEED).unwrap();
        let named = Identity { wished: NodeId(7), ..folder.identity(NodeId(3)).unwrap() };
        folder.save(&named).unwrap();
        for configured in [0, 3, 7] {
            assert_eq!(Folder::node_in(&dir, NodeId(configured)).unwrap(), NodeId(3), "{configured}");
        }
        assert!(matches!(Folder::node_in(&dir, NodeId(4)), Err(IdentityError::OtherNode { .. })));
        folder.save(&Identity { node: NodeId(0), wished: NodeId(0), ..named }).unwrap();
        assert_eq!(Folder::node_in(&dir, NodeId(4)).unwrap(), NodeId(4), "it has no number yet");
    }

    #[test]
    fn an_identity_stays_until_its_log_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), SEED).unwrap();
        let first = folder.identity(NodeId(3)).unwrap();
        assert_eq!(folder.identity(NodeId(3)).unwrap(), first);
        assert_eq!(folder.identity(NodeId(0)).unwrap(), first);
        assert!(matches!(folder.identity(NodeId(4)), Err(IdentityError::OtherNode { .. })));
        folder.save(&Identity { wished: NodeId(7), ..first }).unwrap();
        assert_eq!(folder.identity(NodeId(7)).unwrap().node, NodeId(3), "what it is goes before what it was to be");
        assert!(matches!(folder.identity(NodeId(4)), Err(IdentityError::OtherNode { .. })));
        folder.save(&first).unwrap();
        assert!(matches!(Folder::open(dir.path(), SEED), Err(IdentityError::InUse { .. })));
        fs::create_dir(dir.path().join("raft")).unwrap();
        let second = folder.reincarnate(&first).unwrap();
        assert_ne!(second.peer, first.peer);
        assert!(!dir.path().join("raft").exists());
        folder.forget_lost();
        assert_eq!(folder.identity(NodeId(3)).unwrap(), second);
    }

    #[test]
    fn what_was_lost_goes_the_oldest_first_and_the_last_log_at_last() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path(), SEED).unwrap();
        let mut identity = folder.identity(NodeId(1)).unwrap();
        let mut lost = Vec::new();
        for _ in 0..2 {
            fs::create_dir(dir.path().join("raft")).unwrap();
            fs::create_dir(dir.path().join("incoming")).unwrap();
            fs::write(dir.path().join("000007.sst"), "state").unwrap();
            lost.push(dir.path().join(format!("lost-{}", identity.peer)));
            identity = folder.reincarnate(&identity).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert_eq!(folder.drop_some_lost().as_ref(), Some(&lost[0]));
        assert!(!lost[0].exists() && lost[1].join("000007.sst").exists());
        assert_eq!(folder.drop_some_lost().as_ref(), Some(&lost[1]));
        assert_eq!(fs::read_dir(&lost[1]).unwrap().count(), 1, "its log stays");
        assert!(lost[1].join("raft").exists());
        assert_eq!(folder.drop_some_lost().as_ref(), Some(&lost[1]));
        assert!(!lost[1].exists());
        assert_eq!(folder.drop_some_lost(), None);
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let text = "node = 3\npeer = \"00000000000000ff\"\ncluster = \"ab\"\nvoted = true\n";
        assert_eq!(Identity::decode(text).unwrap().peer, PeerId(255));
        mutate::mutate(7, 50_000, &[text.as_bytes().to_vec()], |bytes| {
            if let Ok(identity) = Identity::decode(&String::from_utf8_lossy(bytes)) {
                assert!(!identity.peer.is_none());
                assert_eq!(Identity::decode(&identity.encode()), Ok(identity));
            }
        });
    }

    #[test]
    fn folders_of_others_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.txt"), "precious").unwrap();
        assert!(matches!(Folder::open(dir.path(), SEED), Err(IdentityError::Foreign { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(dir.path().join(FILE), "peer = \"xyz\"").unwrap();
        let folder = Folder::open(dir.path(), SEED).unwrap();
        assert!(matches!(folder.identity(NodeId(1)), Err(IdentityError::Damaged { .. })));
    }
}
