//! Who the members are, kept in the file `members` beside the log: what a member knows of its cluster when its state cannot
//! be read. Without it nobody could tell the only voter from one of three, and nobody could go on with the log alone.
//!
//! | bytes | meaning |
//! |---|---|
//! | 8 | the index as of which the members are these, little-endian |
//! | … | the membership, encoded as in the log |
//! | 4 | CRC32 of all before, little-endian |
//!
//! The file is written when a change is seen to be committed, before the log can forget the entry (`driver`): whatever it
//! misses, the log still has. Absent, or with a wrong checksum, it means that nothing is known, and then nobody is
//! given up. So a file that cannot be replaced is removed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use base::PeerId;
use consensus::Membership;

pub const MEMBERS: &str = "members";
const TEMPORARY: &str = "members.tmp";
const CRC_BYTES: usize = 4;

#[derive(Clone, Debug, PartialEq)]
pub struct Roster {
    pub index: u64,
    pub membership: Membership,
}

impl Roster {
    pub fn load(dir: &Path) -> io::Result<Option<Roster>> {
        match fs::read(dir.join(MEMBERS)) {
            Ok(bytes) => Ok(Roster::decode(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // A sector that cannot be read is lost.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the file, durably.
    pub fn save(&self, dir: &Path) -> io::Result<()> {
        let write = || -> io::Result<()> {
            let mut file = File::create(dir.join(TEMPORARY))?;
            file.write_all(&self.encode())?;
            file.sync_all()?;
            fs::rename(dir.join(TEMPORARY), dir.join(MEMBERS))?;
            File::open(dir)?.sync_all()
        };
        write().inspect_err(|_| {
            // It has become wrong. If it stays all the same, the disk takes no more of the log either.
            let _ = fs::remove_file(dir.join(MEMBERS)).and_then(|()| File::open(dir)?.sync_all());
        })
    }

    /// As it lies in the file.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.index.to_le_bytes().to_vec();
        bytes.extend(self.membership.encode());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    /// `None`: the file says nothing.
    pub fn decode(bytes: &[u8]) -> Option<Roster> {
        let (content, crc) = bytes.split_at_checked(bytes.len().checked_sub(CRC_BYTES)?)?;
        let (index, membership) = content.split_first_chunk()?;
        if crc32fast::hash(content).to_le_bytes() != crc {
            return None;
        }
        Some(Roster { index: u64::from_le_bytes(*index), membership: Membership::decode(membership)? })
    }
}

/// Whether this peer's vote counts, in either half while there are two.
pub fn votes(membership: &Membership, own: PeerId) -> bool {
    membership.voters.contains(&own) || membership.voters_outgoing.contains(&own)
}

/// Whether nobody else votes: what this member has, nobody else needs to have.
pub fn is_alone(membership: &Membership, own: PeerId) -> bool {
    membership.voters == [own] && membership.voters_outgoing.is_empty()
}

/// Whether the others can be a majority without this peer, and so take it in anew.
pub fn is_spared(membership: &Membership, own: PeerId) -> bool {
    let spared = |voters: &[PeerId]| !voters.contains(&own) || voters.len() > 2;
    spared(&membership.voters) && spared(&membership.voters_outgoing)
}

#[cfg(test)]
mod tests {
    use base::{ClusterId, NodeId};
    use consensus::Member;

    use super::*;
    use crate::mutate;

    fn voters(voters: &[u64], outgoing: &[u64]) -> Membership {
        let peers = |raw: &[u64]| raw.iter().copied().map(PeerId).collect();
        Membership {
            members: [(NodeId(1), Member::default())].into(),
            voters: peers(voters),
            voters_outgoing: peers(outgoing),
            ..Membership::default()
        }
    }

    #[test]
    fn members_survive_their_file_and_a_damaged_one_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Roster::load(dir.path()).unwrap(), None);
        let member = |node| Member { node: NodeId(node), peer: PeerId(node), ..Member::default() };
        let membership = Membership::founding(ClusterId(9), (1..=3).map(member).collect());
        let roster = Roster { index: 7, membership };
        roster.save(dir.path()).unwrap();
        assert_eq!(Roster::load(dir.path()).unwrap(), Some(roster.clone()));
        let whole = roster.encode();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(Roster::decode(&bytes), None, "byte {at}");
            assert_eq!(Roster::decode(&whole[..at]), None, "{at} bytes");
        }
        mutate::mutate(11, 20_000, &[whole], |bytes| {
            if let Some(roster) = Roster::decode(bytes) {
                assert_eq!(Roster::decode(&roster.encode()), Some(roster));
            }
        });
    }

    #[test]
    fn what_cannot_be_replaced_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        Roster { index: 1, membership: voters(&[1], &[]) }.save(dir.path()).unwrap();
        fs::create_dir(dir.path().join(TEMPORARY)).unwrap();
        Roster { index: 2, membership: voters(&[1, 2], &[]) }.save(dir.path()).unwrap_err();
        assert_eq!(Roster::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn who_is_alone_and_who_is_spared() {
        let own = PeerId(1);
        for (membership, alone, spared) in [
            (voters(&[1], &[]), true, false),
            (voters(&[1, 2], &[]), false, false),
            (voters(&[1, 2, 3], &[]), false, true),
            (voters(&[2], &[]), false, true),
            (voters(&[1], &[1, 2, 3]), false, false),
            (voters(&[2, 3, 4], &[1, 2]), false, false),
            (Membership::default(), false, true),
        ] {
            assert_eq!((is_alone(&membership, own), is_spared(&membership, own)), (alone, spared), "{membership:?}");
        }
        assert!(votes(&voters(&[2], &[1]), own) && !votes(&voters(&[2], &[]), own));
    }
}
