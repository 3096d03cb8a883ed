//! Damage to files as disks do it, drawn from a seed: in a table of the state, its manifest or the log, at any place, a bit,
//! a run of zeroes, or all that follows.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use base::Rng;

/// What an erased sector or page leaves.
const ZEROES_MAX: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Table,
    Manifest,
    Log,
}

impl Target {
    pub const ALL: [Target; 3] = [Target::Table, Target::Manifest, Target::Log];

    /// The files of this kind in a data folder, each with up to where it is written.
    fn files(self, data_dir: &Path) -> Vec<(PathBuf, u64)> {
        let folder = if self == Target::Log { data_dir.join("raft") } else { data_dir.to_owned() };
        let current = fs::read_to_string(data_dir.join("CURRENT")).unwrap();
        let wanted = |name: &str| match self {
            Target::Table => name.ends_with(".sst"),
            Target::Manifest => name == current.trim(),
            Target::Log => name.starts_with("segment-"),
        };
        let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| wanted(&path.file_name().unwrap().to_string_lossy()));
        // In an order that a seed can count on.
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), written(&path))).collect()
    }
}

/// Behind that there are zeroes only, which a file that is written later begins with.
pub fn written(path: &Path) -> u64 {
    fs::read(path).unwrap().iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1)
}

/// Damages a file of this kind; says which, and what was done.
pub fn harm(data_dir: &Path, target: Target, rng: &mut Rng) -> (PathBuf, String) {
    let files: Vec<_> = target.files(data_dir).into_iter().filter(|(_, written)| *written > 0).collect();
    let (path, written) =
        rng.pick(&files).unwrap_or_else(|| panic!("there is no {target:?} in {}", data_dir.display()));
    let file = File::options().read(true).write(true).open(path).unwrap();
    let what = loop {
        let at = rng.below(*written);
        match rng.below(3) {
            0 => {
                let (mut byte, bit) = ([0], rng.below(8));
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1 << bit], at).unwrap();
                break format!("bit {bit} of byte {at} flipped");
            }
            1 => {
                let mut bytes = vec![0; rng.between(1, ZEROES_MAX).min(written - at) as usize];
                file.read_exact_at(&mut bytes, at).unwrap();
                if bytes.iter().any(|byte| *byte != 0) {
                    file.write_all_at(&vec![0; bytes.len()], at).unwrap();
                    break format!("{} zeroes from byte {at}", bytes.len());
                }
            }
            _ => {
                file.set_len(at).unwrap();
                break format!("cut off at byte {at}");
            }
        }
    };
    file.sync_all().unwrap();
    (path.clone(), format!("{} of {written} bytes: {what}", path.file_name().unwrap().display()))
}

/// Cuts a data folder's manifest where its last edit begins, as a crash may leave it: what is there opens without a word, at
/// an older moment. Records never cross a block; each begins with a checksum (4 bytes), its length (2) and its kind (1).
pub fn cut_last_edit(data_dir: &Path) {
    const BLOCK: usize = 32 << 10;
    const HEADER: usize = 7;
    let (path, written) = Target::Manifest.files(data_dir).pop().expect("CURRENT names a manifest");
    let bytes = fs::read(&path).unwrap();
    let (mut at, mut last) = (0, None);
    while at + HEADER <= written as usize {
        if BLOCK - at % BLOCK < HEADER {
            at = at.next_multiple_of(BLOCK);
            continue;
        }
        last = Some(at);
        at += HEADER + usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
    }
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(last.expect("it has edits") as u64).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn every_harm_changes_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("CURRENT"), "MANIFEST-1\n").unwrap();
    fs::create_dir(folder.path().join("raft")).unwrap();
    let content = [&[7; 5000][..], &[0; 5000], &[7; 5000]].concat();
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let target = Target::ALL[seed as usize % 3];
        let path = folder.path().join(["1.sst", "MANIFEST-1", "raft/segment-1"][seed as usize % 3]);
        fs::write(&path, [&content[..], &[0; 9000]].concat()).unwrap();
        harm(folder.path(), target, &mut rng);
        let now = fs::read(&path).unwrap();
        assert!(!now.starts_with(&content), "seed {seed}");
    }
}
