//! The durable mark: a small file that says up to which sequence number the log was once synced, and so tells a
//! torn tail from lost entries. It also holds the log's salt.
//!
//! | slot at byte | written | what it says after a power cut |
//! |---|---|---|
//! | 0 | after every sync of the log, not synced itself | perhaps nothing: may be old or torn |
//! | 512, 1024 | in turns, each time synced before the other is touched | the newer of the two is good |
//!
//! The mark is the highest number found in a slot whose checksum is right. A slot is 32 bytes: magic `CFM1` (4), CRC of
//! what follows (4), version (4), zeroes (4), salt (8), mark (8). A killed process leaves slot 0 exact, because the
//! operating system keeps what was written.
//!
//! The window: after a power cut the mark may lie behind the log. Then, and only then, damage inside the last record
//! looks like a torn tail. Every earlier record is vouched for by the one that follows it, since a record is written
//! only after the one before it was synced.

use std::io;
use std::sync::Arc;

use crate::log::{LogError, Place};

use super::disk::{Disk, DiskFile, read_full, unreadable, write_all};

pub const MARK: &str = "mark";
/// The file on its way to becoming the mark.
pub const MARK_UNFINISHED: &str = "mark.unfinished";

const MAGIC: [u8; 4] = *b"CFM1";
const VERSION: u32 = 1;
const SLOT_BYTES: usize = 32;
const SLOTS_AT: [u64; 3] = [0, 512, 1024];
const FILE_BYTES: usize = 1536;

pub struct Mark {
    file: Arc<dyn DiskFile>,
    salt: u64,
    noted: u64,
    durable: u64,
    /// The slot to be synced next: 1 or 2.
    next: usize,
}

impl Mark {
    /// Creates the file with a mark of zero, durably and at once.
    pub fn create(disk: &dyn Disk, salt: u64) -> io::Result<Mark> {
        let file = disk.create(MARK_UNFINISHED)?;
        let mut image = vec![0; FILE_BYTES];
        for at in SLOTS_AT {
            image[at as usize..at as usize + SLOT_BYTES].copy_from_slice(&encode(salt, 0));
        }
        write_all(&*file, &image, 0)?;
        file.sync()?;
        disk.rename(MARK_UNFINISHED, MARK)?;
        disk.sync_names()?;
        Ok(Mark { file, salt, noted: 0, durable: 0, next: 1 })
    }

    pub fn open(disk: &dyn Disk) -> Result<Mark, LogError> {
        let failed = |error: io::Error| unreadable(MARK, 0, &error);
        let file = disk.open(MARK).map_err(failed)?;
        let mut image = vec![0; FILE_BYTES];
        let bytes = read_full(&*file, &mut image, 0).map_err(failed)?;
        let slots = SLOTS_AT.map(|at| image[..bytes].get(at as usize..at as usize + SLOT_BYTES).and_then(decode));
        let Some(best) = slots.iter().flatten().max_by_key(|slot| slot.mark) else {
            let place = Place { file: MARK.to_owned(), offset: 0 };
            return Err(LogError::Corrupt { place, why: "no slot has a good checksum".to_owned() });
        };
        if best.version != VERSION {
            return Err(LogError::Io(format!("the log has format {}, and this program knows {VERSION}", best.version)));
        }
        let synced = |slot: usize| slots[slot].map_or(0, |slot| slot.mark);
        let next = if slots[1].is_none() || (slots[2].is_some() && synced(1) < synced(2)) { 1 } else { 2 };
        Ok(Mark { file, salt: best.salt, noted: best.mark, durable: synced(1).max(synced(2)), next })
    }

    pub fn salt(&self) -> u64 {
        self.salt
    }

    /// The mark as last noted.
    pub fn get(&self) -> u64 {
        self.noted
    }

    /// Notes that the log is synced up to `sequence`. Where that fails the file says less than it could, as after a power cut,
    /// until the next time.
    pub fn note(&mut self, sequence: u64) -> io::Result<()> {
        self.noted = sequence;
        write_all(&*self.file, &encode(self.salt, sequence), SLOTS_AT[0])
    }

    /// Makes what was noted durable, if it is not: writes it, and is then to be followed by [`Mark::sync`]. Until that the
    /// other slot stands, so that a write that failed may be tried again.
    pub fn prepare(&mut self) -> io::Result<()> {
        if self.durable == self.noted {
            return Ok(());
        }
        write_all(&*self.file, &encode(self.salt, self.noted), SLOTS_AT[self.next])
    }

    /// Syncs what was prepared.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.durable == self.noted {
            return Ok(());
        }
        self.file.sync()?;
        self.durable = self.noted;
        self.next = 3 - self.next;
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Slot {
    version: u32,
    salt: u64,
    mark: u64,
}

fn encode(salt: u64, mark: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..4].copy_from_slice(&MAGIC);
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    slot[16..24].copy_from_slice(&salt.to_le_bytes());
    slot[24..].copy_from_slice(&mark.to_le_bytes());
    let crc = crc32fast::hash(&slot[8..]);
    slot[4..8].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<Slot> {
    let slot: &[u8; SLOT_BYTES] = slot.try_into().ok()?;
    if slot[..4] != MAGIC || crc32fast::hash(&slot[8..]).to_le_bytes() != slot[4..8] {
        return None;
    }
    let number = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("8 bytes"));
    Some(Slot { version: number(8) as u32, salt: number(16), mark: number(24) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mutate;

    #[test]
    fn a_changed_slot_is_not_read_and_no_slot_makes_the_decoder_panic() {
        let good = encode(7, 9).to_vec();
        assert!(decode(&good).is_some_and(|slot| (slot.salt, slot.mark) == (7, 9)));
        mutate::mutate(14, 50_000, std::slice::from_ref(&good), |bytes| {
            assert!(decode(bytes).is_none() || bytes == good);
            // Whatever lies under a good checksum, too.
            let mut sealed = bytes.to_vec();
            if let Some((head, content)) = sealed.split_first_chunk_mut::<8>() {
                head[..4].copy_from_slice(&MAGIC);
                head[4..].copy_from_slice(&crc32fast::hash(content).to_le_bytes());
            }
            assert!(decode(&sealed).is_none() || sealed.len() == SLOT_BYTES);
        });
    }
}
