//! What may be done to the data folder of a stopped node, each step so that an interruption leaves something to go on from.
//!
//! *A repaired state* ([`Folder::mark_repaired`]). RocksDB's repair drops what it cannot read without saying what that was,
//! and makes a folder `lost/` for it. So the file `repaired` is there before the repair begins, and either of the two
//! says that the state must not be trusted: at the next start it is given up with the whole incarnation, and comes
//! from a peer. A member that has no peers keeps what there is, and says so ([`Folder::keep_repaired`]).
//!
//! *A lost majority* ([`Folder::begin_recovery`]). What one member has becomes a cluster of its own, under a cluster id and
//! a peer id that nobody has met: whoever comes from the old cluster is a stranger to it.
//!
//! | step | after an interruption |
//! |---|---|
//! | `recovering` holds the new ids; no node starts in the folder | the same ids are used again |
//! | the state is that of a lone founder, durable | seen by its cluster id, and not done twice |
//! | the old log, who the old members were, and the remains of lost incarnations lie in `before-PEER/` | the rest is moved |
//! | the identity names the new ids | the same again |
//! | `recovering` is gone | done |

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use base::{ClusterId, PeerId};

use crate::clock;
use crate::identity::{DAMAGED, Folder, Identity, IdentityError, QUARANTINE};
use crate::roster::MEMBERS;

/// The file that says that a recovery is under way.
pub const RECOVERING: &str = "recovering";
/// The file that says that the state went through RocksDB's repair.
pub const REPAIRED: &str = "repaired";
/// The folder that RocksDB's repair leaves.
const DROPPED: &str = "lost";
/// What it is called once it has been taken note of.
const DROPPED_KEPT: &str = "dropped-by-repair";

/// Who a recovered member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewIds {
    pub cluster: ClusterId,
    pub peer: PeerId,
}

impl NewIds {
    /// As they lie in the file.
    pub fn encode(&self) -> String {
        format!("cluster = \"{}\"\npeer = \"{}\"\n", self.cluster, self.peer)
    }

    /// What the file says; the error is for people.
    pub fn decode(text: &str) -> Result<NewIds, String> {
        let mut ids = NewIds { cluster: ClusterId(0), peer: PeerId(0) };
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (key, value) = line.split_once('=').ok_or_else(|| format!("`{line}` is no `key = value`"))?;
            let number = u64::from_str_radix(value.trim().trim_matches('"'), 16);
            let number = number.map_err(|error| format!("{}: {error}", key.trim()))?;
            match key.trim() {
                "cluster" => ids.cluster = ClusterId(number),
                "peer" => ids.peer = PeerId(number),
                other => return Err(format!("unknown key `{other}`")),
            }
        }
        if ids.cluster.0 == 0 || ids.peer.is_none() { Err("an id is missing".to_owned()) } else { Ok(ids) }
    }
}

impl Folder {
    /// Says that the state is about to go through RocksDB's repair.
    pub fn mark_repaired(&self) -> Result<(), IdentityError> {
        self.write(REPAIRED, "the state went through a repair that may have dropped files\n")?;
        // It takes the place of what was found before.
        self.remove(DAMAGED)
    }

    /// Why the state must not be trusted, if it went through a repair.
    pub fn repaired(&self) -> Option<&'static str> {
        let any = self.path().join(REPAIRED).exists() || self.path().join(DROPPED).exists();
        any.then_some("the state went through a repair that may have dropped files")
    }

    /// The state stays in use all the same: there is no other. What was dropped stays too, under a name that
    /// asks no question at the next start.
    pub fn keep_repaired(&self) -> Result<(), IdentityError> {
        let kept = || -> io::Result<()> {
            let dropped = self.path().join(DROPPED);
            if dropped.exists() {
                let mut number = 1;
                while self.path().join(format!("{DROPPED_KEPT}-{number}")).exists() {
                    number += 1;
                }
                fs::rename(dropped, self.path().join(format!("{DROPPED_KEPT}-{number}")))?;
            }
            sync(self.path())
        };
        kept().map_err(|error| self.unusable(error))?;
        self.remove(REPAIRED)
    }

    /// Draws the ids of a new cluster, or finds those of a recovery that was interrupted.
    pub fn begin_recovery(&self) -> Result<NewIds, IdentityError> {
        let path = self.path().join(RECOVERING);
        match fs::read_to_string(&path) {
            Ok(text) => return NewIds::decode(&text).map_err(|why| IdentityError::Damaged { path, why }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.unusable(error)),
        }
        let ids = NewIds { cluster: ClusterId(clock::random_u64()), peer: PeerId(clock::random_u64()) };
        self.write(RECOVERING, &ids.encode())?;
        Ok(ids)
    }

    /// The state is the new cluster's: the log becomes nobody's, and the identity the new one. `old` is who the folder was
    /// when the recovery began.
    pub fn finish_recovery(&self, old: &Identity, ids: NewIds) -> Result<Identity, IdentityError> {
        let aside = self.path().join(format!("before-{}", old.peer));
        let moved = || -> io::Result<()> {
            fs::create_dir_all(&aside)?;
            for entry in fs::read_dir(self.path())? {
                let name = entry?.file_name();
                let text = name.to_string_lossy();
                if ["raft", MEMBERS, DAMAGED, QUARANTINE].contains(&&*text) || text.starts_with("lost-") {
                    fs::rename(self.path().join(&name), aside.join(&name))?;
                }
            }
            sync(&aside)?;
            sync(self.path())
        };
        if old.peer != ids.peer {
            moved().map_err(|error| self.unusable(error))?;
        }
        let new = Identity { cluster: ids.cluster, peer: ids.peer, voted: false, ..*old };
        self.save(&new)?;
        self.remove(RECOVERING)?;
        Ok(new)
    }

    /// Gives everything that root has made in the folder to the folder's owner: the node does not run as root.
    pub fn give_to_owner(&self) -> io::Result<()> {
        use std::os::unix::fs::MetadataExt as _;
        let owner = fs::metadata(self.path())?;
        // SAFETY: asks for a number.
        if unsafe { libc::geteuid() } != 0 || owner.uid() == 0 {
            return Ok(());
        }
        let mut waiting = vec![self.path().to_owned()];
        while let Some(path) = waiting.pop() {
            let about = fs::symlink_metadata(&path)?;
            if about.uid() == 0 {
                std::os::unix::fs::lchown(&path, Some(owner.uid()), Some(owner.gid()))?;
            }
            if about.is_dir() {
                waiting.extend(fs::read_dir(&path)?.filter_map(|entry| Some(entry.ok()?.path())));
            }
        }
        Ok(())
    }

    /// Replaces a file, durably and at once.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<(), IdentityError> {
        let write = || -> io::Result<()> {
            let temporary: PathBuf = self.path().join(format!("{name}.tmp"));
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, self.path().join(name))?;
            sync(self.path())
        };
        write().map_err(|error| self.unusable(error))
    }

    pub(crate) fn unusable(&self, error: io::Error) -> IdentityError {
        IdentityError::Unusable { path: self.path().to_owned(), error }
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use base::NodeId;

    use super::*;
    use crate::mutate;

    const SEED: &str = "seed";

    fn used(dir: &Path) -> Identity {
        let folder = Folder::open(dir, SEED).unwrap();
        let identity = Identity { cluster: ClusterId(0xAB), voted: true, ..folder.identity(NodeId(3)).unwrap() };
        folder.save(&identity).unwrap();
        fs::create_dir(dir.join("raft")).unwrap();
        fs::write(dir.join("000007.sst"), "state").unwrap();
        identity
    }

    #[test]
    fn a_recovery_that_was_interrupted_goes_on_with_the_same_ids() {
        let dir = tempfile::tempdir().unwrap();
        let old = used(dir.path());
        let ids = Folder::stopped(dir.path()).unwrap().begin_recovery().unwrap();
        assert!(matches!(Folder::open(dir.path(), SEED), Err(IdentityError::HalfRecovered { .. })));
        let folder = Folder::stopped(dir.path()).unwrap();
        assert_eq!(folder.begin_recovery().unwrap(), ids);
        fs::create_dir(dir.path().join("lost-ff")).unwrap();
        let new = folder.finish_recovery(&old, ids).unwrap();
        assert_eq!((new.cluster, new.peer, new.node, new.voted), (ids.cluster, ids.peer, old.node, false));
        drop(folder);
        let folder = Folder::open(dir.path(), SEED).unwrap();
        assert_eq!(folder.read().unwrap(), Some(new));
        // Nothing that a new incarnation clears away, and the state is still there.
        folder.finish_reincarnation(&new).unwrap();
        assert!(dir.path().join("000007.sst").exists() && !dir.path().join("raft").exists());
        assert!(dir.path().join(format!("before-{}", old.peer)).join("raft").exists());
    }

    #[test]
    fn a_stopped_folder_is_taken_only_if_it_is_ours_and_free() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Folder::stopped(dir.path()), Err(IdentityError::Unused { .. })));
        assert!(matches!(Folder::stopped(&dir.path().join("absent")), Err(IdentityError::Unused { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        used(dir.path());
        let running = Folder::open(dir.path(), SEED).unwrap();
        assert!(matches!(Folder::stopped(dir.path()), Err(IdentityError::InUse { .. })));
        drop(running);
        Folder::stopped(dir.path()).unwrap();
    }

    #[test]
    fn a_repaired_state_is_seen_by_marker_or_folder_until_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        used(dir.path());
        let folder = Folder::stopped(dir.path()).unwrap();
        assert_eq!(folder.repaired(), None);
        folder.mark_repaired().unwrap();
        assert!(folder.repaired().is_some());
        folder.keep_repaired().unwrap();
        assert_eq!(folder.repaired(), None);
        for _ in 0..2 {
            fs::create_dir(dir.path().join(DROPPED)).unwrap();
            assert!(folder.repaired().is_some());
            folder.keep_repaired().unwrap();
            assert_eq!(folder.repaired(), None);
        }
        assert!(dir.path().join("dropped-by-repair-2").exists());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        let text = "cluster = \"00000000000000ff\"\npeer = \"0000000000000007\"\n";
        assert_eq!(NewIds::decode(text).unwrap(), NewIds { cluster: ClusterId(255), peer: PeerId(7) });
        mutate::mutate(9, 50_000, &[text.as_bytes().to_vec()], |bytes| {
            if let Ok(ids) = NewIds::decode(&String::from_utf8_lossy(bytes)) {
                assert!(ids.cluster.0 != 0 && !ids.peer.is_none());
                assert_eq!(NewIds::decode(&ids.encode()), Ok(ids));
            }
        });
    }
}
