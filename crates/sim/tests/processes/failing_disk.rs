//! The test's side of `failing_disk.c`: disks of single nodes that fail a call, and lose what was not synced when the power
//! goes.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use base::Rng;

use crate::cluster::Cluster;

/// What happens to a call; numbers as in `failing_disk.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO.
    WriteFails = 1,
    /// ENOSPC, also where files are made longer.
    NoSpace = 2,
    /// Half of the bytes are written, which is no error.
    ShortWrite = 3,
    /// EIO.
    SyncFails = 4,
    /// EIO.
    ReadFails = 5,
    /// Nothing is synced, and nobody told.
    SyncLies = 6,
}

/// Which files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Any = 0,
    Log = 1,
    State = 2,
}

/// The disk of one node.
pub struct FailingDisk {
    control: File,
    data_dir: PathBuf,
    unsynced: PathBuf,
}

/// Of `struct control`: six numbers, and a path.
const CALLS: u64 = 4;
const FAILED: u64 = 5;
const STRUCK: u64 = 6;
const PATH_BYTES: usize = 200;
/// Of `struct undo`: offset, size before, number of bytes.
const UNDO_HEADER: usize = 24;

impl FailingDisk {
    /// Puts such a disk under each node from its next start on. Fails where no C compiler is at hand.
    pub fn under(cluster: &mut Cluster) -> Result<Vec<FailingDisk>, String> {
        let library = cluster.folder().join("failing_disk.so");
        compile(&library)?;
        let folder = cluster.folder().to_owned();
        let made = cluster.nodes.iter_mut().map(|node| {
            let control = folder.join(format!("{}.disk", node.name));
            let unsynced = folder.join(format!("{}.unsynced", node.name));
            fs::write(&control, [0; STRUCK as usize * 8 + PATH_BYTES])?;
            fs::create_dir(&unsynced)?;
            node.environment = [
                ("LD_PRELOAD", &library),
                ("FAILING_DISK_FOLDER", &node.data_dir),
                ("FAILING_DISK_CONTROL", &control),
                ("FAILING_DISK_UNSYNCED", &unsynced),
            ]
            .map(|(name, path)| (name, OsString::from(path)))
            .into();
            let control = File::options().read(true).write(true).open(control)?;
            Ok(FailingDisk { control, data_dir: node.data_dir.clone(), unsynced })
        });
        made.collect::<io::Result<_>>().map_err(|error| error.to_string())
    }

    /// The disks are as any others from the next start on.
    pub fn away_from(cluster: &mut Cluster) {
        cluster.nodes.iter_mut().for_each(|node| node.environment.clear());
    }

    /// The `at`-th call from here on that the fault can befall fails; if it is lasting, all after it too.
    pub fn arm(&self, fault: Fault, place: Place, at: u64, lasting: bool) {
        self.disarm();
        let numbers = [place as u64, at, u64::from(lasting), 0, 0];
        self.set(1, &numbers);
        self.control.write_all_at(&[0; PATH_BYTES], STRUCK * 8).unwrap();
        self.set(0, &[fault as u64]);
    }

    pub fn disarm(&self) {
        self.set(0, &[0]);
    }

    /// How many calls the fault could have befallen.
    pub fn calls(&self) -> u64 {
        self.number(CALLS)
    }

    pub fn failed(&self) -> u64 {
        self.number(FAILED)
    }

    /// The first file that it befell, below the data folder.
    pub fn struck(&self) -> String {
        let mut bytes = [0; PATH_BYTES];
        self.control.read_exact_at(&mut bytes, STRUCK * 8).unwrap();
        String::from_utf8_lossy(&bytes).trim_matches(['/', '\0']).to_owned()
    }

    /// Of a node that does not run: takes back what was not synced, of each file all or only the last writes. Says how many
    /// writes that were.
    pub fn lose_power(&self, rng: &mut Rng) -> usize {
        let mut files = BTreeMap::new();
        files_below(&self.data_dir, &mut files);
        let mut records: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
        for entry in fs::read_dir(&self.unsynced).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            let (inode, _) = name.split_once('.').expect("INODE.ROUND");
            records.entry(inode.parse().unwrap()).or_default().push(path);
        }
        let mut lost = 0;
        for (inode, mut paths) in records {
            // Rounds have equally many digits.
            paths.sort();
            let all = paths.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
            let writes: Vec<Undo> = all.iter().flat_map(|bytes| undos(bytes)).collect();
            paths.iter().for_each(|path| fs::remove_file(path).unwrap());
            let Some(path) = files.get(&inode) else { continue };
            let kept = if rng.percent(50) { 0 } else { rng.below(writes.len() as u64 + 1) as usize };
            let file = File::options().write(true).open(path).unwrap();
            for undo in writes[kept..].iter().rev() {
                file.write_all_at(undo.bytes, undo.offset).unwrap();
                file.set_len(undo.size_before).unwrap();
                lost += 1;
            }
        }
        lost
    }

    fn set(&self, first: u64, numbers: &[u64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        self.control.write_all_at(&bytes, first * 8).unwrap();
    }

    fn number(&self, field: u64) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, field * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }
}

struct Undo<'a> {
    offset: u64,
    size_before: u64,
    bytes: &'a [u8],
}

/// In the order of the writes. A record that is cut off was of a write that never began.
fn undos(mut rest: &[u8]) -> Vec<Undo<'_>> {
    let mut found = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(UNDO_HEADER) {
        let number = |at: usize| u64::from_ne_bytes(header[at..at + 8].try_into().unwrap());
        let Some((bytes, after)) = after.split_at_checked(number(16) as usize) else { break };
        found.push(Undo { offset: number(0), size_before: number(8), bytes });
        rest = after;
    }
    found
}

fn files_below(folder: &Path, found: &mut BTreeMap<u64, PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files_below(&entry.path(), found);
        } else if kind.is_file() {
            found.insert(entry.metadata().unwrap().ino(), entry.path());
        }
    }
}

fn compile(library: &Path) -> Result<(), String> {
    // Carried along: a test program may outlive the folder that it was built in.
    let source = library.with_extension("c");
    fs::write(&source, include_str!("failing_disk.c")).map_err(|error| error.to_string())?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-shared", "-fPIC", "-pthread", "-o"]).arg(library).arg(&source).arg("-ldl");
    let output = compiler.output().map_err(|error| format!("cc: {error}"))?;
    // What does not compile is a fault of the source.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
