//! Reading what lies on the disk to see whether it is still what was written: the manifest, and every table file as a
//! whole, against the CRC32C that RocksDB computed when it wrote the file and keeps in the manifest.
//!
//! A pass is a list of files and a place in it. It holds nothing of the database between two steps, so that a received
//! state can be put in place meanwhile, and a step reads at most [`PIECE_BYTES`]: who calls decides the pace. Files
//! that vanish under way were compacted and are passed over, unless the database still counts on them; files that come up are the next pass's. When the whole
//! content is replaced under way the pass has lost its object, and is over.
//!
//! Files are read directly (`O_DIRECT`), past the operating system's cache: the disk is what is asked about, and what others
//! have in the cache stays there. Where a file system has no direct reads, the file's pages are dropped before and after; and
//! so are those of the manifest, which has any length.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{RocksEngine, failed, manifest, unreadable};
use crate::engine::{EngineError, Extent, Scrubbed};

/// A step reads this much at most.
pub const PIECE_BYTES: usize = 1 << 20;
/// What direct reads have to be aligned to.
const ALIGN: usize = 4096;
/// A manifest that is being appended to may look cut off for a moment.
const MANIFEST_TRIES: u32 = 5;
const MANIFEST_PAUSE: Duration = Duration::from_millis(50);

/// A pass over the files of a database.
pub struct StateScrub {
    files: VecDeque<Table>,
    reading: Option<Reading>,
    buffer: Vec<u8>,
    bytes_total: u64,
    unchecked: u64,
    /// Of the content that is looked at.
    generation: u64,
}

struct Table {
    path: PathBuf,
    bytes: u64,
    crc: u32,
}

struct Reading {
    table: Table,
    file: File,
    direct: bool,
    at: u64,
    crc: u32,
}

impl RocksEngine {
    /// Begins a pass: checks the manifest and lists the table files. `Corrupt` is damage, and is remembered
    /// ([`RocksEngine::damage`]).
    pub fn begin_scrub(&self) -> Result<StateScrub, EngineError> {
        let generation = self.generation.load(Ordering::SeqCst);
        self.try_begin_scrub(generation).map_err(|error| self.judged(generation, error))
    }

    fn try_begin_scrub(&self, generation: u64) -> Result<StateScrub, EngineError> {
        let live = self.store()?.db.live_files().map_err(failed)?;
        let sums = read_manifest(&self.staging.dir)?;
        let mut scrub = StateScrub {
            files: VecDeque::new(),
            reading: None,
            buffer: vec![0; PIECE_BYTES + ALIGN],
            bytes_total: 0,
            unchecked: 0,
            generation,
        };
        for file in live {
            let name = file.name.trim_start_matches('/');
            let number = name.split('.').next().and_then(|stem| stem.parse().ok()).unwrap_or(0);
            let bytes = file.size as u64;
            match sums.get(&number) {
                Some(&crc) => {
                    scrub.bytes_total += bytes;
                    scrub.files.push_back(Table { path: self.staging.dir.join(name), bytes, crc });
                }
                None => scrub.unchecked += 1,
            }
        }
        Ok(scrub)
    }

    /// One step of a pass: how many bytes it read; `None` when the pass is over.
    pub fn scrub_step(&self, scrub: &mut StateScrub) -> Result<Option<u64>, EngineError> {
        if scrub.generation != self.generation.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let is_live = |name: &str| -> Result<bool, EngineError> {
            let live = self.store()?.db.live_files().map_err(failed)?;
            Ok(live.iter().any(|file| file.name.trim_start_matches('/') == name))
        };
        scrub.step(is_live).map_err(|error| self.judged(scrub.generation, error))
    }

    /// Damage that was found in a content that has been replaced meanwhile is none.
    fn judged(&self, generation: u64, error: EngineError) -> EngineError {
        if generation != self.generation.load(Ordering::SeqCst) {
            return EngineError::Failed("the state was replaced while it was checked".to_owned());
        }
        self.events.noted(error)
    }
}

impl Scrubbed for RocksEngine {
    type Pass = StateScrub;

    fn begin_pass(&self) -> Result<(StateScrub, Extent), EngineError> {
        let scrub = self.begin_scrub()?;
        let extent = Extent { bytes: scrub.bytes_total(), unchecked: scrub.unchecked() };
        Ok((scrub, extent))
    }

    fn step(&self, scrub: &mut StateScrub) -> Result<Option<u64>, EngineError> {
        self.scrub_step(scrub)
    }
}

impl StateScrub {
    /// Bytes of all table files that are checked.
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// Files without a checksum: written by a version that kept none, and not rewritten since.
    pub fn unchecked(&self) -> u64 {
        self.unchecked
    }

    fn step(&mut self, is_live: impl Fn(&str) -> Result<bool, EngineError>) -> Result<Option<u64>, EngineError> {
        let mut reading = match self.reading.take() {
            Some(reading) => reading,
            None => loop {
                let Some(table) = self.files.pop_front() else { return Ok(None) };
                let name = table.name();
                match Reading::open(table).map_err(|error| unreadable(&name, &error))? {
                    Some(reading) => break reading,
                    // Files leave the list before they leave the folder, and no name comes twice.
                    None if is_live(&name)? => return Err(EngineError::Corrupt(format!("{name} is gone"))),
                    None => continue,
                }
            },
        };
        let name = || reading.table.name();
        let aligned = self.buffer.as_ptr().align_offset(ALIGN);
        let into = &mut self.buffer[aligned..aligned + PIECE_BYTES];
        let read = read_full(&reading.file, into, reading.at).map_err(|error| unreadable(&name(), &error))?;
        let left = reading.table.bytes - reading.at;
        if (read as u64) < left.min(PIECE_BYTES as u64) || read as u64 > left {
            return Err(EngineError::Corrupt(format!("{} is not {} bytes long", name(), reading.table.bytes)));
        }
        reading.crc = crc32c::crc32c_append(reading.crc, &into[..read]);
        reading.at += read as u64;
        if reading.at < reading.table.bytes {
            self.reading = Some(reading);
        } else if reading.crc != reading.table.crc {
            return Err(EngineError::Corrupt(format!("the checksum of {} differs", name())));
        } else if !reading.direct {
            forget_pages(&reading.file);
        }
        Ok(Some(read as u64))
    }
}

impl Table {
    fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().display().to_string()
    }
}

impl Reading {
    /// `None` when the file is gone.
    fn open(table: Table) -> io::Result<Option<Reading>> {
        let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&table.path);
        let (file, direct) = match direct {
            Ok(file) => (Ok(file), true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (File::open(&table.path), false),
            Err(error) => (Err(error), false),
        };
        match file {
            Ok(file) => {
                if !direct {
                    forget_pages(&file);
                }
                Ok(Some(Reading { table, file, direct, at: 0, crc: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Lets the operating system drop what it has cached of a file; it keeps what is not written back yet.
fn forget_pages(file: &File) {
    // SAFETY: takes numbers; the descriptor is open. A refusal only means that the cache is read.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

fn read_full(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < into.len() {
        match file.read_at(&mut into[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => {
                filled += read;
                // A direct read that ends between sectors has met the end of the file.
                if !filled.is_multiple_of(ALIGN) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads a file that is appended to by others, past what is cached of it.
fn read_from_disk(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    forget_pages(&file);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What the manifest in use keeps of table files.
fn read_manifest(dir: &Path) -> Result<BTreeMap<u64, u32>, EngineError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match try_read_manifest(dir)? {
            Ok(sums) => return Ok(sums),
            Err(why) if tries == MANIFEST_TRIES => return Err(EngineError::Corrupt(why)),
            // It may have been replaced, or be in the making.
            Err(_) => std::thread::sleep(MANIFEST_PAUSE),
        }
    }
}

fn try_read_manifest(dir: &Path) -> Result<Result<BTreeMap<u64, u32>, String>, EngineError> {
    let read = |name: &str| match read_from_disk(&dir.join(name)) {
        Ok(bytes) => Ok(Ok(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Err(format!("{name} is gone"))),
        Err(error) => Err(unreadable(name, &error)),
    };
    let current = match read("CURRENT")? {
        Ok(current) => current,
        Err(why) => return Ok(Err(why)),
    };
    let name = String::from_utf8_lossy(&current);
    let Some(name) = name.strip_suffix('\n').filter(|name| name.starts_with("MANIFEST-") && !name.contains('/')) else {
        return Ok(Err("CURRENT names no manifest".to_owned()));
    };
    let bytes = match read(name)? {
        Ok(bytes) => bytes,
        Err(why) => return Ok(Err(why)),
    };
    Ok(manifest::table_checksums(&bytes).map_err(|why| format!("{name}: {why}")))
}

/// Whether a folder holds files of a database that has lost the name of its manifest. RocksDB would begin an empty
/// one there, and delete them.
pub(super) fn lost_current(dir: &Path) -> io::Result<bool> {
    if dir.join("CURRENT").try_exists()? {
        return Ok(false);
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("MANIFEST-") || name.ends_with(".sst") {
            return Ok(true);
        }
    }
    Ok(false)
}
